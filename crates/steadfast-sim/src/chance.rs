//! Random numbers from a seed: the same seed gives the same run.

use std::f64::consts::TAU;
use std::time::Duration;

/// The mean and the standard deviation of one way through the network, in milliseconds, as in AWS's
/// jitter study.
const NETWORK_MS: (f64, f64) = (10.0, 2.0);

#[derive(Debug)]
pub(super) struct Chance(fastrand::Rng);

impl Chance {
    pub(super) fn new(seed: u64) -> Self {
        Self(fastrand::Rng::with_seed(seed))
    }

    /// Draws a number from 0 to under 1.
    pub(super) fn unit(&mut self) -> f64 {
        self.0.f64()
    }

    /// Draws the gap between two events of a Poisson process, or a service time without memory, with a
    /// mean of `mean` seconds.
    pub(super) fn exponential(&mut self, mean: f64) -> Duration {
        seconds(-(1.0 - self.unit()).ln() * mean)
    }

    /// Draws the time of one way through the network.
    pub(super) fn network(&mut self) -> Duration {
        let (mean, deviation) = NETWORK_MS;
        let radius = (-2.0 * (1.0 - self.unit()).ln()).sqrt();
        let normal = radius * (TAU * self.unit()).cos();
        seconds((mean + deviation * normal).abs() / 1000.0)
    }
}

/// Converts seconds. A number that no clock can hold, or a NaN, is the longest time.
pub(super) fn seconds(seconds: f64) -> Duration {
    Duration::try_from_secs_f64(seconds).unwrap_or(Duration::MAX)
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn distributions_have_their_means() {
        let mut chance = Chance::new(1);
        let mut mean_ms = |draw: fn(&mut Chance) -> Duration| {
            (0..20_000).map(|_| draw(&mut chance).as_secs_f64()).sum::<f64>() / 20.0
        };
        let network = mean_ms(Chance::network);
        assert!((network - 10.0).abs() < 0.1, "{network}");
        let gap = mean_ms(|chance| chance.exponential(0.1));
        assert!((gap - 100.0).abs() < 3.0, "{gap}");
        assert_eq!(seconds(f64::NAN), Duration::MAX);
    }
}
