//! The circuit breaker of one origin: when to send nothing at all.
//!
//! If a server is down, each request takes as long as its timeout. Retries are not the worst load:
//! the first attempts of all operations go on too. Each holds a task and a connection until it
//! times out, and the server meets all of them when it comes back.
//!
//! A breaker counts the calls that fail. After too many it opens: it lets no call through for a
//! while, and then a few, as probes. If the probes succeed, it closes again.
//!
//! The time is an argument; this file reads no clock. The lock is short, and never held across an
//! await.

use std::fmt;
use std::sync::PoisonError;
use std::time::{Duration, Instant};

use super::class::Class;

// In the tests below it is the model checker's lock, so that the checker explores this code and not
// a copy of it.
#[cfg(not(test))]
type Lock<T> = std::sync::Mutex<T>;
#[cfg(test)]
use self::tests::Lock;

/// When a circuit opens, and how it closes again.
///
/// | setting | default |
/// | --- | --- |
/// | [`failure_share`](Self::failure_share) | half of the calls |
/// | [`slow_calls`](Self::slow_calls) | off |
/// | [`min_calls`](Self::min_calls) | 20 in the window |
/// | [`window`](Self::window) | 10 s |
/// | [`open_for`](Self::open_for) | 5 s at most |
/// | [`open_jitter`](Self::open_jitter) | a fifth of that time is random |
/// | [`probes`](Self::probes) | 3 |
///
/// The [`Class`] decides whether a call has failed, not the status:
///
/// | class | counts as |
/// | --- | --- |
/// | `Ambiguous`, `NotProcessed` | failed |
/// | `Success`, `Permanent` | answered: a 404 shows that the server works |
/// | `Throttled` | answered: the server works, and limits its load |
///
/// Backoff and
/// [cooldown](https://docs.rs/steadfast/latest/steadfast/struct.ClientBuilder.html#method.cooldown)
/// slow down after a `Throttled` call. The window moves in tenths of its length. The settings are
/// checked when you build the client.
///
/// ```
/// use std::time::Duration;
/// use steadfast_core::BreakerPolicy;
///
/// // Opens when half of at least 50 calls in 10 s have failed, or when 80 % took 2 s or longer.
/// let policy = BreakerPolicy::new().min_calls(50).slow_calls(Duration::from_secs(2), 0.8);
/// assert!(policy.validate().is_ok());
/// ```
#[derive(Clone, Debug, PartialEq)]
#[non_exhaustive]
pub struct BreakerPolicy {
    /// The share of failed calls that opens the circuit: over 0, at most 1.
    pub failure_share: f64,
    /// Which calls are slow, and the share of them that opens the circuit. `None`: slow calls do
    /// not matter.
    pub slow_calls: Option<SlowCalls>,
    /// The fewest calls in the window that can open the circuit. At least 1.
    pub min_calls: u32,
    /// How far back calls count. Not zero.
    pub window: Duration,
    /// How long the circuit stays open before the first probe, at most. Not zero.
    pub open_for: Duration,
    /// The share of `open_for` that is random: from 0 to 1.
    pub open_jitter: f64,
    /// How many probes must succeed for the circuit to close. At least 1.
    pub probes: u32,
}

/// Which calls are slow, and how many of them are too many.
#[derive(Clone, Copy, Debug, PartialEq)]
#[non_exhaustive]
pub struct SlowCalls {
    /// A call that takes this long or longer is slow. Not zero.
    pub from: Duration,
    /// The share of slow calls that opens the circuit: over 0, at most 1.
    pub share: f64,
}

impl Default for BreakerPolicy {
    fn default() -> Self {
        Self::new()
    }
}

impl BreakerPolicy {
    /// Creates a policy with the defaults of the table above.
    #[must_use]
    pub fn new() -> Self {
        Self {
            failure_share: 0.5,
            slow_calls: None,
            min_calls: 20,
            window: Duration::from_secs(10),
            open_for: Duration::from_secs(5),
            open_jitter: 0.2,
            probes: 3,
        }
    }

    /// Sets the share of failed calls in the window, over 0 and at most 1, that opens the circuit.
    /// Default: 0.5.
    ///
    /// ```
    /// use steadfast_core::BreakerPolicy;
    ///
    /// assert!(BreakerPolicy::new().failure_share(0.8).validate().is_ok());
    /// assert!(BreakerPolicy::new().failure_share(80.0).validate().is_err()); // not a percentage
    /// ```
    #[must_use]
    pub fn failure_share(mut self, share: f64) -> Self {
        self.failure_share = share;
        self
    }

    /// Sets which calls are slow, and the share of slow calls in the window that also opens the
    /// circuit. The share is over 0 and at most
    /// 1. Default: off.
    ///
    /// With `fetch`, a call lasts until its body is read. A slow probe is a failed one.
    #[must_use]
    pub fn slow_calls(mut self, from: Duration, share: f64) -> Self {
        self.slow_calls = Some(SlowCalls { from, share });
        self
    }

    /// Sets the fewest calls in the window that can open the circuit. Default: 20. At least 1.
    #[must_use]
    pub fn min_calls(mut self, calls: u32) -> Self {
        self.min_calls = calls;
        self
    }

    /// Sets how far back calls count. Default: 10 s. Not zero.
    #[must_use]
    pub fn window(mut self, window: Duration) -> Self {
        self.window = window;
        self
    }

    /// Sets how long the circuit stays open before the first probe, at most. Default: 5 s. Not
    /// zero.
    #[must_use]
    pub fn open_for(mut self, time: Duration) -> Self {
        self.open_for = time;
        self
    }

    /// Sets the share of `open_for` that is random, from 0 to 1. Default: 0.2. The circuit then
    /// stays open for between four fifths and all of `open_for`.
    ///
    /// When a server fails, the circuits of all its clients open at about the same time. Without
    /// jitter their probes would also arrive together.
    ///
    /// ```
    /// use std::time::{Duration, Instant};
    /// use steadfast_core::{Breaker, BreakerPolicy, Class};
    ///
    /// let (now, took) = (Instant::now(), Duration::from_millis(20));
    /// let mut waits = Vec::new();
    /// // Two clients, and the random number that each has drawn.
    /// for unit in [0.0, 0.6] {
    ///     let breaker = Breaker::new(BreakerPolicy::new().min_calls(1).open_jitter(0.5));
    ///     let permit = breaker.acquire(now)?;
    ///     permit.record_with_jitter(Class::Ambiguous, took, now, || unit);
    ///     waits.push(breaker.state(now).open_for());
    /// }
    /// assert_eq!(waits, [Duration::from_millis(2500), Duration::from_millis(4000)]);
    /// # Ok::<(), steadfast_core::CircuitOpen>(())
    /// ```
    #[must_use]
    pub fn open_jitter(mut self, share: f64) -> Self {
        self.open_jitter = share;
        self
    }

    /// Sets how many probes may be under way at a time. As many must succeed for the circuit to
    /// close; a failed one opens it again. Default:
    /// 3. At least 1.
    ///
    /// A probe is an ordinary call of yours. It holds its place until it ends, at its attempt
    /// timeout at the latest.
    #[must_use]
    pub fn probes(mut self, probes: u32) -> Self {
        self.probes = probes;
        self
    }

    /// Returns how long a circuit stays open, for a random number between 0 and 1.
    fn opens_for(&self, unit: f64) -> Duration {
        let jitter = self.open_jitter.clamp(0.0, 1.0);
        // Exact without jitter: a product of floating-point numbers is not.
        if jitter == 0.0 || unit >= 1.0 {
            return self.open_for;
        }
        self.open_for.mul_f64(1.0 - jitter + jitter * unit.max(0.0))
    }

    fn is_slow(&self, took: Duration) -> bool {
        self.slow_calls.is_some_and(|slow| took >= slow.from)
    }
}

/// The state of a breaker: which calls it lets through.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
#[non_exhaustive]
pub enum BreakerState {
    /// All calls.
    Closed,
    /// No calls.
    #[non_exhaustive]
    Open {
        /// Time from now to the first probe.
        retry_after: Duration,
    },
    /// A few calls, as probes.
    HalfOpen,
}

impl BreakerState {
    /// Returns the state in a word or two, as logs print it.
    #[must_use]
    pub fn as_str(self) -> &'static str {
        match self {
            Self::Closed => "closed",
            Self::Open { .. } => "open",
            Self::HalfOpen => "half-open",
        }
    }

    /// Returns how long the circuit stays open, or zero if it is not open.
    #[must_use]
    pub fn open_for(self) -> Duration {
        match self {
            Self::Open { retry_after } => retry_after,
            Self::Closed | Self::HalfOpen => Duration::ZERO,
        }
    }
}

/// The error of a call that the breaker did not let through.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
#[non_exhaustive]
pub struct CircuitOpen {
    /// When to try again. While probes are under way: how long the circuit will be open if they
    /// fail.
    pub retry_after: Duration,
}

/// The breaker of one origin.
///
/// ```
/// use std::time::{Duration, Instant};
/// use steadfast_core::{Breaker, BreakerPolicy, BreakerState, Class};
///
/// let breaker = Breaker::new(BreakerPolicy::new().min_calls(2));
/// let (now, took) = (Instant::now(), Duration::from_millis(20));
/// for _ in 0..2 {
///     let permit = breaker.acquire(now)?;
///     permit.record(Class::Ambiguous, took, now);
/// }
/// let refused = breaker.acquire(now).unwrap_err();
/// assert_eq!(refused.retry_after, Duration::from_secs(5));
///
/// let later = now + Duration::from_secs(5);
/// let probe = breaker.acquire(later)?;
/// drop(probe); // never sent: its place is free again
/// assert_eq!(breaker.state(later), BreakerState::HalfOpen);
/// # Ok::<(), steadfast_core::CircuitOpen>(())
/// ```
pub struct Breaker {
    policy: BreakerPolicy,
    circuit: Lock<Circuit>,
}

impl Breaker {
    /// Creates a closed breaker. With a policy that does not [validate](BreakerPolicy::validate) it
    /// may never open or never close.
    #[must_use]
    pub fn new(policy: BreakerPolicy) -> Self {
        let circuit = Lock::new(Circuit::closed(&policy));
        Self { policy, circuit }
    }

    /// Returns a permit for one call, unless the circuit is open.
    ///
    /// # Errors
    ///
    /// [`CircuitOpen`]: the circuit is open, or half-open with every probe under way.
    ///
    /// ```
    /// use std::time::Instant;
    /// use steadfast_core::{Breaker, BreakerPolicy, Class};
    ///
    /// fn send() -> Class { Class::Success } // your transport
    ///
    /// let breaker = Breaker::new(BreakerPolicy::new());
    /// let started = Instant::now();
    /// match breaker.acquire(started) {
    ///     Ok(permit) => {
    ///         let class = send();
    ///         permit.record(class, started.elapsed(), Instant::now());
    ///     }
    ///     Err(open) => println!("not sent; try again in {:?}", open.retry_after),
    /// }
    /// ```
    pub fn acquire(&self, now: Instant) -> Result<Permit<'_>, CircuitOpen> {
        let Ticket { epoch, half_opened } = self.with(|circuit, policy| circuit.acquire(policy, now))?;
        Ok(Permit { breaker: self, epoch, half_opened, settled: false })
    }

    /// Returns the state at the time `now`. An open circuit whose time has passed is half-open,
    /// even before the next call.
    #[must_use]
    pub fn state(&self, now: Instant) -> BreakerState {
        self.with(|circuit, _| circuit.state(now))
    }

    fn with<T>(&self, act: impl FnOnce(&mut Circuit, &BreakerPolicy) -> T) -> T {
        // Nothing between lock and unlock panics, so poisoning leaves no half-written state.
        act(&mut self.circuit.lock().unwrap_or_else(PoisonError::into_inner), &self.policy)
    }
}

impl fmt::Debug for Breaker {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        let phase = self.with(|circuit, _| circuit.phase.as_str());
        f.debug_struct("Breaker").field("phase", &phase).field("policy", &self.policy).finish()
    }
}

/// Permission for one call.
///
/// If you drop it without a [`record`](Self::record), the call does not count, and the place of a
/// probe is free again.
#[must_use = "it is given back when it is dropped"]
pub struct Permit<'a> {
    breaker: &'a Breaker,
    epoch: u64,
    half_opened: bool,
    settled: bool,
}

impl Permit<'_> {
    /// Returns whether the circuit was open and this call is its first probe.
    #[must_use]
    pub fn half_opened(&self) -> bool {
        self.half_opened
    }

    /// Records the class of the call and its duration. Returns the new state if the circuit has
    /// changed.
    ///
    /// A call from before the last change of the circuit does not count, because it says nothing
    /// about the state now.
    ///
    /// ```
    /// use std::time::{Duration, Instant};
    /// use steadfast_core::{Breaker, BreakerPolicy, BreakerState, Class};
    ///
    /// let breaker = Breaker::new(BreakerPolicy::new().min_calls(1));
    /// let (now, took) = (Instant::now(), Duration::from_millis(20));
    /// let changed = breaker.acquire(now)?.record(Class::NotProcessed, took, now);
    /// assert!(matches!(changed, Some(BreakerState::Open { .. })));
    /// # Ok::<(), steadfast_core::CircuitOpen>(())
    /// ```
    ///
    /// A circuit that opens stays open for the whole [`open_for`](BreakerPolicy::open_for). If
    /// several clients call one server, use [`record_with_jitter`](Self::record_with_jitter).
    pub fn record(self, class: Class, took: Duration, now: Instant) -> Option<BreakerState> {
        self.record_with_jitter(class, took, now, || 1.0)
    }

    /// Records the call as [`record`](Self::record) does. If the circuit opens, `unit` draws the
    /// random part of the time for which it stays open
    /// ([`open_jitter`](BreakerPolicy::open_jitter)): a number between 0 and 1.
    pub fn record_with_jitter(
        mut self,
        class: Class,
        took: Duration,
        now: Instant,
        unit: impl FnOnce() -> f64,
    ) -> Option<BreakerState> {
        self.settled = true;
        let call = Call::new(class, self.breaker.policy.is_slow(took));
        self.breaker.with(|circuit, policy| circuit.record(policy, (self.epoch, call), now, unit))
    }
}

impl Drop for Permit<'_> {
    fn drop(&mut self) {
        if !self.settled {
            self.breaker.with(|circuit, _| circuit.give_back(self.epoch));
        }
    }
}

impl fmt::Debug for Permit<'_> {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        f.debug_struct("Permit").field("epoch", &self.epoch).finish_non_exhaustive()
    }
}

/// One call, as the breaker sees it.
#[derive(Clone, Copy, Debug)]
struct Call {
    failed: bool,
    slow: bool,
}

impl Call {
    fn new(class: Class, slow: bool) -> Self {
        Self { failed: matches!(class, Class::Ambiguous | Class::NotProcessed), slow }
    }
}

/// The circuit's half of a permit.
struct Ticket {
    epoch: u64,
    half_opened: bool,
}

/// The state machine, without the lock.
#[derive(Debug)]
struct Circuit {
    /// Grows with every change of the phase, so that a permit of an earlier phase is recognised.
    epoch: u64,
    phase: Phase,
}

#[derive(Debug)]
enum Phase {
    Closed(Window),
    Open { since: Instant, open_for: Duration },
    HalfOpen { out: u32, passed: u32 },
}

impl Phase {
    fn as_str(&self) -> &'static str {
        match self {
            Self::Closed(_) => "closed",
            Self::Open { .. } => "open",
            Self::HalfOpen { .. } => "half-open",
        }
    }
}

impl Circuit {
    fn closed(policy: &BreakerPolicy) -> Self {
        Self { epoch: 0, phase: Phase::Closed(Window::new(policy.window)) }
    }

    fn acquire(&mut self, policy: &BreakerPolicy, now: Instant) -> Result<Ticket, CircuitOpen> {
        let mut half_opened = false;
        if let Phase::Open { since, open_for } = self.phase {
            let retry_after = open_for.saturating_sub(now.saturating_duration_since(since));
            if !retry_after.is_zero() {
                return Err(CircuitOpen { retry_after });
            }
            half_opened = true;
            self.change(Phase::HalfOpen { out: 0, passed: 0 });
        }
        if let Phase::HalfOpen { out, passed } = &mut self.phase {
            if out.saturating_add(*passed) >= policy.probes {
                return Err(CircuitOpen { retry_after: policy.open_for });
            }
            *out += 1;
        }
        Ok(Ticket { epoch: self.epoch, half_opened })
    }

    fn record(
        &mut self,
        policy: &BreakerPolicy,
        (epoch, call): (u64, Call),
        now: Instant,
        unit: impl FnOnce() -> f64,
    ) -> Option<BreakerState> {
        if epoch != self.epoch {
            return None;
        }
        match &mut self.phase {
            Phase::Closed(window) => {
                let counts = window.count(call, now);
                if !counts.open(policy, call) {
                    return None;
                }
            }
            Phase::HalfOpen { out, passed } if !call.failed && !call.slow => {
                *out = out.saturating_sub(1);
                *passed += 1;
                if *passed < policy.probes {
                    return None;
                }
                self.change(Phase::Closed(Window::new(policy.window)));
                return Some(BreakerState::Closed);
            }
            // A permit of this epoch is never one of an open circuit, which gives none.
            Phase::HalfOpen { .. } | Phase::Open { .. } => {}
        }
        let open_for = policy.opens_for(unit());
        self.change(Phase::Open { since: now, open_for });
        Some(BreakerState::Open { retry_after: open_for })
    }

    fn give_back(&mut self, epoch: u64) {
        if let Phase::HalfOpen { out, .. } = &mut self.phase
            && epoch == self.epoch
        {
            *out = out.saturating_sub(1);
        }
    }

    fn state(&self, now: Instant) -> BreakerState {
        match self.phase {
            Phase::Closed(_) => BreakerState::Closed,
            Phase::HalfOpen { .. } => BreakerState::HalfOpen,
            Phase::Open { since, open_for } => match open_for.saturating_sub(now.saturating_duration_since(since)) {
                Duration::ZERO => BreakerState::HalfOpen,
                retry_after => BreakerState::Open { retry_after },
            },
        }
    }

    fn change(&mut self, phase: Phase) {
        self.phase = phase;
        self.epoch = self.epoch.wrapping_add(1);
    }
}

/// The steps in which a window moves.
const SLICES: usize = 10;

/// The calls of the window, in slices of equal length.
#[derive(Debug)]
struct Window {
    slice: Duration,
    /// When the current slice began; `None` before the first call.
    began: Option<Instant>,
    at: usize,
    slices: [Counts; SLICES],
}

#[derive(Clone, Copy, Debug, Default)]
struct Counts {
    calls: u32,
    failed: u32,
    slow: u32,
}

impl Counts {
    fn add(&mut self, other: Self) {
        self.calls = self.calls.saturating_add(other.calls);
        self.failed = self.failed.saturating_add(other.failed);
        self.slow = self.slow.saturating_add(other.slow);
    }

    /// Returns whether these counts open the circuit. Only a bad call does.
    fn open(&self, policy: &BreakerPolicy, call: Call) -> bool {
        let reaches = |count: u32, share: f64| f64::from(count) >= share * f64::from(self.calls);
        let failing = call.failed && reaches(self.failed, policy.failure_share);
        let slow = call.slow && policy.slow_calls.is_some_and(|slow| reaches(self.slow, slow.share));
        self.calls >= policy.min_calls && (failing || slow)
    }
}

impl Window {
    fn new(window: Duration) -> Self {
        let steps = u32::try_from(SLICES).unwrap_or(1);
        let slice = (window / steps).max(Duration::from_nanos(1));
        Self { slice, began: None, at: 0, slices: [Counts::default(); SLICES] }
    }

    /// Counts a call, and returns the counts of the whole window.
    fn count(&mut self, call: Call, now: Instant) -> Counts {
        self.move_to(now);
        let one = Counts { calls: 1, failed: u32::from(call.failed), slow: u32::from(call.slow) };
        if let Some(slice) = self.slices.get_mut(self.at) {
            slice.add(one);
        }
        self.slices.iter().fold(Counts::default(), |mut sum, slice| {
            sum.add(*slice);
            sum
        })
    }

    /// Forgets the slices that are too old at `now`. A time before the current slice, from a thread
    /// that was held up, counts as now.
    fn move_to(&mut self, now: Instant) {
        let began = *self.began.get_or_insert(now);
        let (passed, slice) = (now.saturating_duration_since(began).as_nanos(), self.slice.as_nanos());
        let steps = usize::try_from(passed / slice).unwrap_or(usize::MAX);
        for _ in 0..steps.min(SLICES) {
            self.at = (self.at + 1) % SLICES;
            self.slices[self.at] = Counts::default();
        }
        if steps > 0 {
            let into_the_slice = u64::try_from(passed % slice).unwrap_or(u64::MAX);
            self.began = now.checked_sub(Duration::from_nanos(into_the_slice));
        }
    }
}

#[cfg(test)]
mod tests {
    use std::cell::Cell;
    use std::ops::DerefMut;
    use std::sync::LockResult;

    use super::super::now_in_a_test;
    use super::*;

    const SECOND: Duration = Duration::from_secs(1);

    fn policy() -> BreakerPolicy {
        BreakerPolicy::new().min_calls(4).probes(2).slow_calls(SECOND, 0.75)
    }

    /// Plays calls on the state machine, one after the other, and renders the state after each.
    /// `f`: a call that fails, `s`: one that is slow, `o`: one that is answered, `d`: a permit that
    /// is dropped; `+`: a second passes.
    fn check(policy: &BreakerPolicy, calls: &str) -> String {
        let (mut circuit, mut now) = (Circuit::closed(policy), now_in_a_test());
        let states = calls.chars().map(|call| {
            let call = match call {
                '+' => {
                    now += SECOND;
                    return '.';
                }
                'd' => None,
                call => Some(Call { failed: call == 'f', slow: call == 's' }),
            };
            let Ok(pass) = circuit.acquire(policy, now) else { return 'x' };
            match call {
                Some(call) => drop(circuit.record(policy, (pass.epoch, call), now, || 1.0)),
                None => circuit.give_back(pass.epoch),
            }
            match circuit.phase {
                Phase::Closed(_) => 'c',
                Phase::Open { .. } => 'O',
                Phase::HalfOpen { .. } => 'h',
            }
        });
        states.collect()
    }

    #[test]
    fn circuit_opens_at_the_share_of_enough_calls() {
        assert_eq!(check(&policy(), "ooff"), "cccO", "half of four");
        assert_eq!(check(&policy(), "fffoo"), "ccccc", "an answer does not open it");
        assert_eq!(check(&policy(), "ooofff"), "cccccO");
        assert_eq!(check(&policy(), "fffd+f"), "cccc.O", "a dropped permit is no call");
        assert_eq!(check(&policy(), "osss"), "cccO", "three slow calls of four");
        assert_eq!(check(&policy().failure_share(1.0), "offfffff"), "cccccccc");
    }

    #[test]
    fn open_circuit_lets_probes_through_later() {
        assert_eq!(check(&policy(), "ffffo++++o+oo"), "cccOx....x.hc", "two probes that succeed");
        assert_eq!(check(&policy(), "ffff+++++of+o"), "cccO.....hO.x", "one that fails");
        assert_eq!(check(&policy(), "ffff+++++s"), "cccO.....O", "a slow one has failed");
        assert_eq!(check(&policy(), "ffff+++++ddddoo"), "cccO.....hhhhhc", "a dropped one is given back");
    }

    #[test]
    fn calls_before_the_window_are_forgotten() {
        assert_eq!(check(&policy(), "fff++++++++++f"), "ccc..........c");
        assert_eq!(check(&policy(), "fff+++++++++f"), "ccc.........O");
        assert_eq!(check(&policy(), "f+++ff++++++++f"), "c...cc........c", "the first has left");
    }

    #[test]
    fn no_call_passes_while_all_probes_are_out() {
        let (policy, now) = (policy(), now_in_a_test());
        let mut circuit = Circuit::closed(&policy);
        circuit.change(Phase::Open { since: now, open_for: policy.open_for });
        let early = now + policy.open_for - Duration::from_nanos(1);
        let refused = CircuitOpen { retry_after: Duration::from_nanos(1) };
        assert_eq!(circuit.acquire(&policy, early).map(|_| ()), Err(refused));
        let late = now + policy.open_for;
        assert_eq!(circuit.state(late), BreakerState::HalfOpen, "before somebody comes");
        let first = circuit.acquire(&policy, late).map(|pass| pass.half_opened);
        let second = circuit.acquire(&policy, late).map(|pass| pass.half_opened);
        assert_eq!((first, second), (Ok(true), Ok(false)));
        let refused = CircuitOpen { retry_after: policy.open_for };
        assert_eq!(circuit.acquire(&policy, late).map(|_| ()), Err(refused));
    }

    /// Returns for how many milliseconds circuits stay open whose clients have drawn these numbers.
    fn open_times(jitter: f64, units: &[f64]) -> Vec<u128> {
        let policy = BreakerPolicy::new().min_calls(1).open_jitter(jitter);
        let times = units.iter().map(|unit| {
            let (breaker, now) = (Breaker::new(policy.clone()), now_in_a_test());
            let permit = breaker.acquire(now).unwrap();
            permit.record_with_jitter(Class::Ambiguous, SECOND, now, || *unit);
            let time = breaker.state(now).open_for();
            assert!(breaker.acquire(now + time - Duration::from_millis(1)).is_err());
            assert!(breaker.acquire(now + time).is_ok(), "a probe");
            time.as_millis()
        });
        times.collect()
    }

    #[test]
    fn jitter_spreads_the_first_probes() {
        assert_eq!(open_times(0.5, &[0.0, 0.2, 1.0]), [2500, 3000, 5000]);
        assert_eq!(open_times(0.0, &[0.0, 0.5, 1.0]), [5000; 3]);
        assert_eq!(open_times(0.8, &[0.5, -1.0, 7.0]), [3000, 1000, 5000]);
    }

    #[test]
    fn number_is_drawn_only_when_circuit_opens() {
        let (breaker, now) = (Breaker::new(BreakerPolicy::new().min_calls(2)), now_in_a_test());
        let drawn = Cell::new(0);
        let fail = || {
            let permit = breaker.acquire(now).unwrap();
            permit.record_with_jitter(Class::Ambiguous, SECOND, now, || {
                drawn.set(drawn.get() + 1);
                1.0
            });
        };
        fail();
        assert_eq!(drawn.get(), 0);
        fail();
        assert_eq!(drawn.get(), 1);
    }

    #[test]
    fn class_decides_whether_a_call_failed() {
        let failed = |class| Call::new(class, false).failed;
        assert!(failed(Class::Ambiguous) && failed(Class::NotProcessed));
        assert!(!failed(Class::Success) && !failed(Class::Permanent) && !failed(Class::Throttled));
    }

    #[test]
    fn extreme_times_do_not_panic() {
        let (policy, now) = (policy().open_for(Duration::MAX).window(Duration::from_nanos(1)), now_in_a_test());
        let mut window = Window::new(policy.window);
        let call = Call { failed: true, slow: false };
        assert_eq!(window.count(call, now + SECOND).calls, 1);
        assert_eq!(window.count(call, now).calls, 2, "from a thread that was held up");
        let mut circuit = Circuit::closed(&policy);
        circuit.change(Phase::Open { since: now, open_for: policy.open_for });
        assert!(circuit.acquire(&policy, now + SECOND).is_err());
        let mut window = Window::new(Duration::MAX);
        assert_eq!((window.count(call, now).calls, window.count(call, now + SECOND).calls), (1, 2));
    }

    std::thread_local! {
        /// loom plays all threads of a model on one.
        static IN_A_MODEL: Cell<bool> = const { Cell::new(false) };
    }

    /// loom's lock works in a model alone, and other tests have breakers too.
    pub(super) enum Lock<T> {
        Plain(std::sync::Mutex<T>),
        Modelled(loom::sync::Mutex<T>),
    }

    impl<T> Lock<T> {
        pub(super) fn new(value: T) -> Self {
            if IN_A_MODEL.get() {
                Self::Modelled(loom::sync::Mutex::new(value))
            } else {
                Self::Plain(std::sync::Mutex::new(value))
            }
        }

        pub(super) fn lock(&self) -> LockResult<Box<dyn DerefMut<Target = T> + '_>> {
            Ok(match self {
                Self::Plain(lock) => Box::new(lock.lock().unwrap()),
                Self::Modelled(lock) => Box::new(lock.lock().unwrap()),
            })
        }
    }

    /// Every interleaving of the threads of each model is played, on the model checker's lock.
    mod interleavings {
        use std::sync::Arc;
        use std::sync::atomic::Ordering;

        use super::*;

        type AtomicU32 = loom::sync::atomic::AtomicU32;

        fn model(threads: impl Fn() + Send + Sync + 'static) {
            loom::model(move || {
                IN_A_MODEL.set(true);
                threads();
                IN_A_MODEL.set(false);
            });
        }

        const TOOK: Duration = Duration::from_millis(1);

        /// A breaker that has just opened, and the moment at which it lets probes through.
        fn opened(probes: u32) -> (Arc<Breaker>, Instant) {
            let now = now_in_a_test();
            let breaker = Arc::new(Breaker::new(BreakerPolicy::new().min_calls(1).probes(probes)));
            let permit = breaker.acquire(now).unwrap();
            assert!(permit.record(Class::Ambiguous, TOOK, now).is_some());
            (breaker, now + Duration::from_secs(5))
        }

        fn join(threads: impl IntoIterator<Item = loom::thread::JoinHandle<()>>) {
            threads.into_iter().for_each(|thread| thread.join().unwrap());
        }

        #[test]
        fn probes_are_limited_and_places_are_returned() {
            model(|| {
                let (breaker, now) = opened(1);
                let (out, half_opened) = (Arc::new(AtomicU32::new(0)), Arc::new(AtomicU32::new(0)));
                let threads: Vec<_> = (0..2)
                    .map(|_| {
                        let (breaker, out, half_opened) = (breaker.clone(), out.clone(), half_opened.clone());
                        loom::thread::spawn(move || {
                            let Ok(permit) = breaker.acquire(now) else { return };
                            half_opened.fetch_add(u32::from(permit.half_opened()), Ordering::Relaxed);
                            assert_eq!(out.fetch_add(1, Ordering::Relaxed), 0, "two probes at a time");
                            out.fetch_sub(1, Ordering::Relaxed);
                            drop(permit);
                        })
                    })
                    .collect();
                join(threads);
                assert_eq!(half_opened.load(Ordering::Relaxed), 1, "one of them is the first");
                let probe = breaker.acquire(now);
                assert!(probe.is_ok(), "the place was lost");
                assert!(breaker.acquire(now).is_err(), "a place was made");
            });
        }

        #[test]
        fn disagreeing_probes_change_state_once() {
            model(|| {
                let (breaker, now) = opened(2);
                let changes = Arc::new(AtomicU32::new(0));
                let threads: Vec<_> = [Class::Success, Class::Ambiguous]
                    .map(|class| {
                        let (breaker, changes) = (breaker.clone(), changes.clone());
                        loom::thread::spawn(move || {
                            if let Ok(permit) = breaker.acquire(now) {
                                let changed = permit.record(class, TOOK, now).is_some();
                                changes.fetch_add(u32::from(changed), Ordering::Relaxed);
                            }
                        })
                    })
                    .into();
                join(threads);
                let open = BreakerState::Open { retry_after: Duration::from_secs(5) };
                assert_eq!((breaker.state(now), changes.load(Ordering::Relaxed)), (open, 1));
            });
        }

        #[test]
        fn call_from_before_outage_changes_no_state() {
            for late in [Class::Success, Class::Ambiguous] {
                model(move || {
                    let start = now_in_a_test();
                    let breaker = Arc::new(Breaker::new(BreakerPolicy::new().min_calls(1).probes(1)));
                    let probing = Arc::new(AtomicU32::new(0));
                    let straggler = {
                        let (breaker, probing) = (breaker.clone(), probing.clone());
                        loom::thread::spawn(move || {
                            let Ok(permit) = breaker.acquire(start) else { return };
                            // Let through after the outage, it would have a say.
                            if probing.load(Ordering::SeqCst) == 0 {
                                permit.record(late, TOOK, start);
                            }
                        })
                    };
                    // The failure that opens it is this one, or the straggler's.
                    let failing = breaker.acquire(start).map(|permit| permit.record(Class::Ambiguous, TOOK, start));
                    assert!(failing != Ok(Some(BreakerState::Closed)));
                    probing.store(1, Ordering::SeqCst);
                    let now = start + Duration::from_secs(5);
                    let probe = breaker.acquire(now).map(|probe| probe.record(Class::Success, TOOK, now));
                    assert_eq!(probe, Ok(Some(BreakerState::Closed)));
                    straggler.join().unwrap();
                    assert_eq!(breaker.state(now), BreakerState::Closed);
                });
            }
        }
    }
}
