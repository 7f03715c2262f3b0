//! The limits of every setting, in one place.
//!
//! Setters accept anything, so that a builder chain needs no `?`. The client's `build`, a request
//! and the simulation check the finished settings here. The error names the first setting that is
//! out of its limits, its value and the limit.

use std::fmt::{self, Debug};
use std::time::Duration;

use super::breaker::BreakerPolicy;
use super::budget::RetryBudget;
use super::hedge::{HedgeAt, HedgePolicy};
use super::settings::{RetryPolicy, TimeLimit};

/// A setting that is out of its limits.
///
/// ```
/// use steadfast_core::RetryPolicy;
///
/// let error = RetryPolicy::new().max_attempts(0).validate().unwrap_err();
/// assert_eq!(error.setting, "max_attempts");
/// assert_eq!(error.to_string(), "max_attempts: 0, but must be at least 1: it counts the first attempt");
/// ```
#[derive(Clone, Debug, PartialEq, Eq)]
#[non_exhaustive]
pub struct InvalidPolicy {
    /// Name of the method that sets it.
    pub setting: &'static str,
    /// Its value.
    pub value: String,
    /// The limit, and the reason for it.
    pub limit: &'static str,
}

impl fmt::Display for InvalidPolicy {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        write!(f, "{}: {}, but must be {}", self.setting, self.value, self.limit)
    }
}

impl std::error::Error for InvalidPolicy {}

/// Checks all policies of one client.
#[doc(hidden)]
pub fn check(
    retry: &RetryPolicy,
    budget: &RetryBudget,
    breaker: Option<&BreakerPolicy>,
    hedge: Option<&HedgePolicy>,
) -> Result<(), InvalidPolicy> {
    retry.validate()?;
    budget.validate()?;
    breaker.map_or(Ok(()), BreakerPolicy::validate)?;
    hedge.map_or(Ok(()), HedgePolicy::validate)
}

fn require(holds: bool, setting: &'static str, value: impl Debug, limit: &'static str) -> Result<(), InvalidPolicy> {
    if holds { Ok(()) } else { Err(InvalidPolicy { setting, value: format!("{value:?}"), limit }) }
}

fn require_time(time: Duration, setting: &'static str, limit: &'static str) -> Result<(), InvalidPolicy> {
    require(!time.is_zero(), setting, time, limit)
}

fn require_share(share: f64, setting: &'static str, limit: &'static str) -> Result<(), InvalidPolicy> {
    require(share > 0.0 && share <= 1.0, setting, share, limit)
}

impl RetryPolicy {
    /// Checks the settings.
    ///
    /// # Errors
    ///
    /// Returns the first setting that is out of its limits.
    pub fn validate(&self) -> Result<(), InvalidPolicy> {
        require(self.max_attempts > 0, "max_attempts", self.max_attempts, "at least 1: it counts the first attempt")?;
        match self.deadline {
            TimeLimit::AtMost(limit) => {
                require_time(limit, "deadline", "over zero, which leaves no time for an attempt")
            }
            TimeLimit::Unset | TimeLimit::Unlimited => Ok(()),
        }
    }
}

impl RetryBudget {
    /// Checks the settings.
    ///
    /// # Errors
    ///
    /// Returns a [`deposit`](Self::deposit) that is negative or not a number.
    pub fn validate(&self) -> Result<(), InvalidPolicy> {
        let is_sound = self.deposit.is_finite() && self.deposit >= 0.0;
        require(is_sound, "budget", self.deposit, "a ratio that is a number, and not negative")
    }
}

impl BreakerPolicy {
    /// Checks the settings.
    ///
    /// # Errors
    ///
    /// Returns the first setting that is out of its limits.
    pub fn validate(&self) -> Result<(), InvalidPolicy> {
        require_share(self.failure_share, "failure_share", "over 0 and at most 1")?;
        if let Some(slow) = &self.slow_calls {
            require_share(slow.share, "slow_calls", "a share over 0 and at most 1")?;
            require_time(slow.from, "slow_calls", "over zero, from which on every call is slow")?;
        }
        require(self.min_calls > 0, "min_calls", self.min_calls, "at least 1: of no calls there is no share")?;
        require_time(self.window, "window", "over zero, in which nothing happens")?;
        require_time(self.open_for, "open_for", "over zero, which is not open")?;
        let is_share = (0.0..=1.0).contains(&self.open_jitter);
        require(is_share, "open_jitter", self.open_jitter, "a share from 0 to 1")?;
        require(self.probes > 0, "probes", self.probes, "at least 1: without a probe the circuit never closes")
    }
}

impl HedgePolicy {
    /// Checks the settings.
    ///
    /// # Errors
    ///
    /// Returns the first setting that is out of its limits.
    pub fn validate(&self) -> Result<(), InvalidPolicy> {
        let own_rate = match self.at {
            HedgeAt::After(time) => {
                require_time(time, "after", "over zero, which sends everything twice")?;
                0.0
            }
            HedgeAt::Quantile(share) => {
                require(share > 0.0 && share < 1.0, "quantile", share, "over 0 and under 1")?;
                // 1 - 0.98 is a little more than 0.02.
                1.0 - share - 1e-9
            }
        };
        require_share(self.max_extra_load, "max_extra_load", "over 0 and at most 1")?;
        // A lower limit would be spent on responses that are nearly there, and would leave the
        // slowest alone.
        let limit = "not under 1 - quantile, the share of responses that are this late";
        require(self.max_extra_load >= own_rate, "max_extra_load", self.max_extra_load, limit)
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    const SECOND: Duration = Duration::from_secs(1);

    fn setting(checked: Result<(), InvalidPolicy>) -> Result<(), &'static str> {
        checked.map_err(|invalid| invalid.setting)
    }

    #[test]
    fn error_names_setting_value_and_limit() {
        let error = RetryPolicy::new().max_attempts(0).validate().unwrap_err();
        assert_eq!(error.to_string(), "max_attempts: 0, but must be at least 1: it counts the first attempt");
        let error = BreakerPolicy::new().failure_share(1.5).validate().unwrap_err();
        assert_eq!(error.to_string(), "failure_share: 1.5, but must be over 0 and at most 1");
        let error = RetryPolicy::new().deadline(Duration::ZERO).validate().unwrap_err();
        assert_eq!(error.to_string(), "deadline: 0ns, but must be over zero, which leaves no time for an attempt");
    }

    #[test]
    fn every_policy_of_a_client_is_checked() {
        let (retry, budget) = (RetryPolicy::new(), RetryBudget::standard());
        let (breaker, hedge) = (BreakerPolicy::new().probes(0), HedgePolicy::after(Duration::ZERO));
        assert_eq!(setting(check(&retry, &budget, None, None)), Ok(()));
        assert_eq!(setting(check(&retry, &budget, Some(&breaker), None)), Err("probes"));
        assert_eq!(setting(check(&retry, &budget, None, Some(&hedge))), Err("after"));
        assert_eq!(setting(check(&retry, &RetryBudget::ratio(-1.0), None, None)), Err("budget"));
        assert_eq!(setting(check(&retry.max_attempts(0), &budget, None, None)), Err("max_attempts"));
    }

    /// A field can be set past every setter, and is checked all the same.
    #[test]
    fn directly_set_field_is_checked() {
        let mut retry = RetryPolicy::new();
        retry.deadline = TimeLimit::AtMost(Duration::ZERO);
        assert_eq!(setting(retry.validate()), Err("deadline"));
        let mut breaker = BreakerPolicy::new();
        breaker.window = Duration::ZERO;
        assert_eq!(setting(breaker.validate()), Err("window"));
        let mut hedge = HedgePolicy::after(SECOND);
        hedge.at = HedgeAt::Quantile(1.5);
        assert_eq!(setting(hedge.validate()), Err("quantile"));
    }

    #[test]
    fn limits_of_a_budget() {
        for ratio in [f64::NAN, -0.1, f64::INFINITY] {
            assert!(RetryBudget::ratio(ratio).validate().is_err(), "{ratio}");
        }
        assert!(RetryBudget::ratio(f64::MAX).validate().is_ok());
    }

    #[test]
    fn limits_of_a_breaker() {
        let setting = |policy: BreakerPolicy| setting(policy.validate());
        let new = BreakerPolicy::new;
        assert_eq!(setting(new().slow_calls(SECOND, 1.0)), Ok(()));
        for share in [0.0, -0.1, 1.1, f64::NAN, f64::INFINITY] {
            assert_eq!(setting(new().failure_share(share)), Err("failure_share"), "{share}");
            assert_eq!(setting(new().slow_calls(SECOND, share)), Err("slow_calls"), "{share}");
        }
        assert_eq!(setting(new().slow_calls(Duration::ZERO, 0.5)), Err("slow_calls"));
        assert_eq!(setting(new().min_calls(0)), Err("min_calls"));
        assert_eq!(setting(new().window(Duration::ZERO)), Err("window"));
        assert_eq!(setting(new().open_for(Duration::ZERO)), Err("open_for"));
        assert_eq!(setting(new().open_jitter(1.1)), Err("open_jitter"));
        assert_eq!(setting(new().open_jitter(f64::NAN)), Err("open_jitter"));
        assert_eq!(setting(new().probes(0)), Err("probes"));
    }

    #[test]
    fn limits_of_a_hedge() {
        let setting = |policy: HedgePolicy| setting(policy.validate());
        let quantile = HedgePolicy::quantile;
        assert_eq!(setting(quantile(0.98)), Ok(()));
        assert_eq!(setting(quantile(0.98).max_extra_load(0.02)), Ok(()), "its own rate");
        assert_eq!(setting(quantile(0.1)), Ok(()), "the default limit is bounded");
        assert_eq!(setting(quantile(0.95).max_extra_load(0.02)), Err("max_extra_load"));
        for share in [0.0, 1.0, -0.5, 98.0, f64::NAN] {
            assert_eq!(setting(quantile(share)), Err("quantile"), "{share}");
        }
        let after = HedgePolicy::after;
        assert_eq!(setting(after(Duration::ZERO)), Err("after"));
        for share in [0.0, -0.1, 1.1, f64::NAN, f64::INFINITY] {
            assert_eq!(setting(after(SECOND).max_extra_load(share)), Err("max_extra_load"), "{share}");
        }
    }
}
