//! When an upstream is an outlier, by what its requests come to.
use std::time::Duration;

use super::{nanos, span};
use crate::limit::Nanos;
use crate::snapshot::OutlierSpec;

use super::verdict::Cause;

/// Counts one upstream's outcomes. It only judges; whether an ejection follows is decided elsewhere,
/// and told by [`Detector::clear`].
#[derive(Clone, Debug, Default)]
pub struct Detector {
    in_a_row: u32,
    began: Nanos,
    requests: u32,
    failures: u32,
    first_tokens: u32,
    first_token_sum: Duration,
}

/// An interval that has ended.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub struct Interval {
    /// The mean time to first token within it, if there were enough requests to speak of one.
    pub first_token: Option<Duration>,
}

impl Detector {
    /// A request's first token came after `ttft`; nothing is said yet of how it ends. Gives the
    /// interval that ended before, if one did.
    pub fn first_token(
        &mut self,
        spec: &OutlierSpec,
        ttft: Duration,
        now: Nanos,
    ) -> Option<Interval> {
        let ended = self.turn(spec, now);
        self.first_tokens = self.first_tokens.saturating_add(1);
        self.first_token_sum = self.first_token_sum.saturating_add(ttft);
        ended
    }

    /// A request succeeded. Gives the interval that ended before, if one did.
    pub fn succeeded(&mut self, spec: &OutlierSpec, now: Nanos) -> Option<Interval> {
        let ended = self.turn(spec, now);
        self.in_a_row = 0;
        self.requests = self.requests.saturating_add(1);
        ended
    }

    /// A request failed. Gives why it is an outlier now, if it is one. It stays one with every further
    /// failure until [`Detector::clear`] or a success.
    pub fn failed(&mut self, spec: &OutlierSpec, now: Nanos) -> Option<Cause> {
        self.turn(spec, now);
        self.in_a_row = self.in_a_row.saturating_add(1);
        self.requests = self.requests.saturating_add(1);
        self.failures = self.failures.saturating_add(1);
        if spec.consecutive > 0 && self.in_a_row >= spec.consecutive {
            return Some(Cause::Consecutive);
        }
        let share_counts = spec.failure_percent > 0 && self.requests >= spec.min_requests.max(1);
        let reached = u64::from(self.failures) * 100
            >= u64::from(spec.failure_percent) * u64::from(self.requests);
        (share_counts && reached).then_some(Cause::FailureShare)
    }

    /// Whether an interval's mean time to first token is an outlier among its siblings': more than
    /// `latency_factor` times their median. Without a sibling to compare with it never is.
    pub fn is_slow(spec: &OutlierSpec, mean: Duration, siblings: &mut [Duration]) -> bool {
        if spec.latency_factor.is_nan() || spec.latency_factor <= 0.0 {
            return false;
        }
        siblings.sort_unstable();
        let median = siblings.get(siblings.len() / 2);
        median.is_some_and(|median| mean.as_secs_f64() > spec.latency_factor * median.as_secs_f64())
    }

    /// Begins anew: the upstream was ejected, or is back.
    pub fn clear(&mut self, now: Nanos) {
        *self = Self {
            began: now,
            ..Self::default()
        };
    }

    /// Begins the next interval if this one is over.
    fn turn(&mut self, spec: &OutlierSpec, now: Nanos) -> Option<Interval> {
        if now.saturating_sub(self.began) < nanos(span(spec.interval_s)) {
            return None;
        }
        let enough = self.first_tokens >= spec.min_requests.max(1);
        let ended = Interval {
            first_token: enough.then(|| self.first_token_sum / self.first_tokens.max(1)),
        };
        *self = Self {
            in_a_row: self.in_a_row,
            began: now,
            ..Self::default()
        };
        Some(ended)
    }
}
