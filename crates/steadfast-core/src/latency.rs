//! The latencies of one origin, in bounded memory. From them a hedge knows that a request is late.
//!
//! There are two histograms of half a minute each: the current one, and the one before it. So a
//! change of the origin's speed is known a minute later. A bucket is at most 6 % wide.

use std::sync::{Mutex, MutexGuard, PoisonError};
use std::time::{Duration, Instant};

use histogram::Histogram32;

const WINDOW: Duration = Duration::from_secs(30);
/// The longest latency that has a bucket of its own, in microseconds.
const LONGEST: u64 = 60_000_000;
/// A bucket is at most 2⁻⁴ of its value wide, and the buckets reach a little beyond [`LONGEST`].
const POWERS: (u8, u8) = (4, 26);
/// The fewest responses of one window from which a quantile is taken.
const ENOUGH_FOR_A_QUANTILE: u32 = 100;

/// The latencies of one origin.
#[derive(Debug)]
#[doc(hidden)]
pub struct Latencies(Mutex<Windows>);

#[derive(Debug)]
struct Windows {
    began: Option<Instant>,
    current: LatencyWindow,
    previous: LatencyWindow,
}

#[derive(Clone, Debug)]
struct LatencyWindow {
    counts: Histogram32,
    number: u32,
}

impl Latencies {
    #[doc(hidden)]
    pub fn new() -> Option<Self> {
        // `Histogram32` accepts these powers.
        let counts = Histogram32::new(POWERS.0, POWERS.1).ok()?;
        let empty = LatencyWindow { counts, number: 0 };
        Some(Self(Mutex::new(Windows { began: None, current: empty.clone(), previous: empty })))
    }

    #[doc(hidden)]
    pub fn record(&self, took: Duration, now: Instant) {
        self.at(now).current.record(u64::try_from(took.as_micros()).unwrap_or(LONGEST).min(LONGEST));
    }

    /// Returns the latency that this share of the responses did not exceed, if there are enough of
    /// them.
    #[doc(hidden)]
    pub fn quantile(&self, share: f64, now: Instant) -> Option<Duration> {
        let windows = self.at(now);
        let fuller = [&windows.current, &windows.previous].into_iter().max_by_key(|window| window.number)?;
        let bucket = fuller.counts.quantile_bucket(share).ok()?.filter(|_| fuller.number >= ENOUGH_FOR_A_QUANTILE)?;
        // The middle of the bucket: its end would be late, and its beginning early.
        Some(Duration::from_micros(bucket.start().midpoint(bucket.end())))
    }

    fn at(&self, now: Instant) -> MutexGuard<'_, Windows> {
        // Poisoning leaves plausible counts, and those are good enough.
        let mut windows = self.0.lock().unwrap_or_else(PoisonError::into_inner);
        windows.move_to(now);
        windows
    }
}

impl LatencyWindow {
    fn record(&mut self, microseconds: u64) {
        // The histogram has a bucket for every value up to the longest.
        if self.counts.increment(microseconds).is_ok() {
            self.number = self.number.saturating_add(1);
        }
    }

    fn reset(&mut self) {
        self.counts.reset();
        self.number = 0;
    }
}

impl Windows {
    fn move_to(&mut self, now: Instant) {
        let age = now.saturating_duration_since(*self.began.get_or_insert(now));
        if age < WINDOW {
            return;
        }
        std::mem::swap(&mut self.current, &mut self.previous);
        self.current.reset();
        if age >= 2 * WINDOW {
            self.previous.reset();
        }
        self.began = Some(now);
    }
}

#[cfg(test)]
mod tests {
    use super::*;
    use crate::clock;

    const MS: Duration = Duration::from_millis(1);

    fn near(found: Option<Duration>, expected: Duration) {
        let off = found.unwrap().as_secs_f64() / expected.as_secs_f64() - 1.0;
        assert!(off.abs() < 0.07, "{found:?}, expected {expected:?}");
    }

    #[test]
    fn quantile_needs_100_and_follows_a_change() {
        let (latencies, now) = (Latencies::new().unwrap(), clock::now());
        for number in 1..=99 {
            latencies.record(MS * number, now);
        }
        assert_eq!(latencies.quantile(0.9, now), None, "ninety-nine");
        latencies.record(MS * 100, now);
        near(latencies.quantile(0.9, now), MS * 90);
        near(latencies.quantile(0.98, now + WINDOW), MS * 98);
        for _ in 0..101 {
            latencies.record(MS * 500, now + WINDOW);
        }
        near(latencies.quantile(0.5, now + WINDOW), MS * 500);
    }

    #[test]
    fn latencies_are_small_and_take_any_duration() {
        let (latencies, now) = (Latencies::new().unwrap(), clock::now());
        for took in [Duration::ZERO, Duration::MAX] {
            latencies.record(took, now);
        }
        let windows = latencies.0.lock().unwrap();
        assert_eq!(windows.current.number, 2);
        let bytes = 2 * size_of_val(windows.current.counts.as_slice()) + size_of::<Windows>();
        println!("{bytes} bytes");
        assert!(bytes < 4096, "{bytes}");
    }
}
