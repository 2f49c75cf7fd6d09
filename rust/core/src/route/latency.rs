//! The shortest expected time to first token.
use std::sync::atomic::{AtomicU64, Ordering};
use std::time::Duration;

use super::Fleet;
use super::draw::Draws;
use super::least_load::least;
use crate::limit::Nanos;

/// A measurement that nothing renews counts half after so long: a target that was slow once gets a
/// request again some time, and a new measurement with it.
pub const HALF_LIFE: Duration = Duration::from_secs(10);

/// Younger ones are taken as they are.
const FRESH: Nanos = 1_000_000_000;

/// What a target costs that nobody has measured and that has its first request already: more than any
/// that was measured.
const UNMEASURED: f64 = 1e15;

/// Peak EWMA, as in Finagle and Linkerd: the smallest `ttft × (load + 1) / weight`, where `ttft` is the
/// moving average of the time to first token, sensitive to peaks ([`crate::health::peak`]), and the
/// load counts what is in flight, so that a fast target is not run down before its average shows it.
///
/// A target that nobody has measured is tried at once, with one request at a time.
#[derive(Debug)]
pub struct Latency {
    seen: Box<[Seen]>,
}

/// The average that was seen last, and when first.
#[derive(Debug, Default)]
struct Seen {
    average: AtomicU64,
    since: AtomicU64,
}

impl Latency {
    /// For so many targets.
    pub fn new(targets: usize) -> Self {
        Self {
            seen: (0..targets).map(|_| Seen::default()).collect(),
        }
    }

    /// The best target; None where none can take the request. Looks at all of them.
    pub fn pick(&self, fleet: &impl Fleet, draws: &mut Draws) -> Option<usize> {
        least(fleet, draws, |at| self.cost(fleet, at))
    }

    fn cost(&self, fleet: &impl Fleet, at: usize) -> Option<f64> {
        let (weight, load) = fleet.open(at)?;
        Some(match fleet.ttft(at) {
            Some(average) => self.aged(at, average, fleet.now()) * (load + 1.0) / weight,
            None if load < 1.0 => 0.0,
            None => UNMEASURED * (load + 1.0) / weight,
        })
    }

    /// An average, less what its age takes away, nanoseconds.
    fn aged(&self, at: usize, average: Duration, now: Nanos) -> f64 {
        let nanos = u64::try_from(average.as_nanos()).unwrap_or(u64::MAX);
        let Some(seen) = self.seen.get(at) else {
            return nanos as f64;
        };
        if seen.average.load(Ordering::Relaxed) != nanos
            && seen.average.swap(nanos, Ordering::Relaxed) != nanos
        {
            seen.since.store(now, Ordering::Relaxed);
            return nanos as f64;
        }
        let age = now.saturating_sub(seen.since.load(Ordering::Relaxed));
        if age < FRESH {
            return nanos as f64;
        }
        nanos as f64 * (-(age as f64) / HALF_LIFE.as_nanos() as f64).exp2()
    }
}
