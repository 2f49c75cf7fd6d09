//! How many requests an upstream can take at once, found out from its time to first token.
//!
//! A gradient limit: while the time to first token stays near what it is without a queue in the
//! engine, the limit grows by its square root a window; when the time rises, the limit shrinks by
//! the ratio. The rule is that of Netflix's concurrency-limits (`Gradient2Limit`: tolerance, gradient
//! between ½ and 1, no change while less than half of the limit is used) and of Envoy's adaptive
//! concurrency filter (windows of samples, their median, headroom of √limit, a baseline measured at
//! the minimum concurrency). Unlike theirs the baseline needs no phase of its own to be measured
//! again: it follows what is seen near it, or at no more than `min` requests in flight; when an
//! engine as a whole gets slower, the limit sinks to `min`, and the baseline rises there.
//!
//! The time to first token, not that of the answer, which is the length of what is said. Pure: time
//! is an argument.

use std::time::Duration;

use crate::limit::Nanos;

/// Samples of one window, at least.
const WINDOW_SAMPLES: usize = 10;
/// Samples of one window that are kept, at most.
const MAX_SAMPLES: usize = 512;
/// Length of one window, at least.
const WINDOW: Duration = Duration::from_millis(500);
/// The time to first token may be so many times the baseline before the limit shrinks.
const TOLERANCE: f64 = 2.0;
/// Up to so many times the baseline is taken for noise around it.
const NEAR: f64 = 1.25;
/// Weight of the newest window in the baseline, where a queue may have a part in it.
const NEAR_WEIGHT: f64 = 0.1;
/// The same where none has: at no more than `min` in flight, and below the baseline.
const SURE_WEIGHT: f64 = 0.3;
/// After so many windows without such a one the limit is halved, so that the engine's queue drains and
/// shows whether the baseline is still the lowest.
const PROBE_AFTER: u32 = 50;
/// How much of the way down is gone in one window.
const DESCENT: f64 = 0.5;
/// What is left of the limit, at least, after one window.
const LEAST_GRADIENT: f64 = 0.5;
/// What is left of the limit after the upstream refused for want of capacity, or never began.
const OVERLOADED: f64 = 0.9;

/// An adaptive limit on requests in flight.
#[derive(Debug)]
pub struct Adaptive {
    min: f64,
    max: f64,
    limit: f64,
    /// Time to first token without a queue, seconds.
    baseline_s: Option<f64>,
    /// When the current window began, with its first sample.
    began: Nanos,
    /// The current window's times to first token, seconds.
    samples: Vec<f64>,
    /// Most requests in flight at the start of one of them.
    used: u64,
    /// Requests that started before say nothing of the limit since.
    shrunk: Nanos,
    /// Windows since one in which certainly nothing was queued.
    unsure: u32,
}

impl Adaptive {
    /// A limit from `min` to `max`, at least 1, that begins at `min`: what is measured there is the
    /// first baseline.
    pub fn new(min: u32, max: u32) -> Self {
        let min = min.max(1);
        Self {
            min: f64::from(min),
            max: f64::from(max.max(min)),
            limit: f64::from(min),
            baseline_s: None,
            began: 0,
            samples: Vec::new(),
            used: 0,
            shrunk: 0,
            unsure: 0,
        }
    }

    /// Requests that may be in flight now.
    pub fn limit(&self) -> u64 {
        self.limit as u64
    }

    /// The time to first token that is taken to be one without a queue.
    pub fn baseline(&self) -> Option<Duration> {
        Duration::try_from_secs_f64(self.baseline_s?).ok()
    }

    /// A stream's first token came `ttft` after its request was sent, which then was one of
    /// `in_flight`.
    pub fn first_token(&mut self, ttft: Duration, in_flight: u64, now: Nanos) {
        let sent = now.saturating_sub(nanos(ttft));
        if sent < self.shrunk {
            return;
        }
        if self.samples.is_empty() {
            self.began = now;
            self.used = 0;
        }
        self.used = self.used.max(in_flight);
        if self.samples.len() < MAX_SAMPLES {
            self.samples.push(ttft.as_secs_f64());
        }
        if self.samples.len() >= WINDOW_SAMPLES && now.saturating_sub(self.began) >= nanos(WINDOW) {
            self.close(now);
        }
    }

    /// The upstream said that it has too much to do, or a request sent `waited` ago never began.
    pub fn overloaded(&mut self, waited: Duration, now: Nanos) {
        if now.saturating_sub(nanos(waited)) >= self.shrunk {
            self.shrink_to(self.limit * OVERLOADED, now);
        }
    }

    fn close(&mut self, now: Nanos) {
        let mut samples = std::mem::take(&mut self.samples);
        let middle = samples.len() / 2;
        let (_, median, _) = samples.select_nth_unstable_by(middle, f64::total_cmp);
        let seen = median.max(1e-6);
        let baseline = self.baseline_s.get_or_insert(seen);
        let weight = if self.used as f64 <= self.min || seen <= *baseline {
            self.unsure = 0;
            SURE_WEIGHT
        } else {
            self.unsure += 1;
            if seen < *baseline * NEAR {
                NEAR_WEIGHT
            } else {
                0.0
            }
        };
        *baseline += weight * (seen - *baseline);
        if (self.used as f64) < self.limit / 2.0 {
            return;
        }
        let gradient = (TOLERANCE * *baseline / seen).clamp(LEAST_GRADIENT, 1.0);
        if self.unsure >= PROBE_AFTER {
            self.unsure = 0;
            self.shrink_to(self.limit / 2.0, now);
            return;
        }
        if gradient >= 1.0 {
            self.limit = (self.limit + self.limit.sqrt()).min(self.max);
            return;
        }
        // No headroom at the minimum: there the baseline is measured, and nothing else leads away.
        let headroom = self.limit.sqrt() - self.min.sqrt();
        let next = (self.limit * gradient + headroom).min(self.max);
        if next < self.limit {
            self.shrink_to(self.limit + DESCENT * (next - self.limit), now);
        } else {
            self.limit = next;
        }
    }

    fn shrink_to(&mut self, limit: f64, now: Nanos) {
        self.limit = limit.max(self.min);
        self.shrunk = now;
        self.samples.clear();
    }
}

fn nanos(span: Duration) -> Nanos {
    u64::try_from(span.as_nanos()).unwrap_or(u64::MAX)
}
