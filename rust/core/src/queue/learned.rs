//! What is learned from requests that have ended: how fast places come free, and how good the
//! estimates are.
use std::time::Duration;

use crate::limit::Nanos;

/// Requests that must have ended before anything is said of a wait.
const EVIDENCE: u32 = 8;
/// Of so many requests, about, the holding time is the mean.
const MEMORY: u32 = 16;

/// The mean time that a request holds its place, and how many hold one (Little's law).
#[derive(Debug, Default)]
pub(super) struct Pace {
    held_s: f64,
    seen: u32,
    running: u64,
    moved: Nanos,
}

impl Pace {
    pub(super) fn started(&mut self, now: Nanos) {
        self.running += 1;
        self.moved = self.moved.max(now);
    }

    pub(super) fn ended(&mut self, held: Duration, now: Nanos) {
        self.running = self.running.saturating_sub(1);
        self.moved = self.moved.max(now);
        self.seen = self.seen.saturating_add(1);
        self.held_s += (held.as_secs_f64() - self.held_s) / f64::from(self.seen.min(MEMORY));
    }

    /// Until `ahead` places have come free. An upstream at which nothing has moved for longer than
    /// requests usually take is taken to be as slow as that.
    pub(super) fn wait(&self, ahead: u64, now: Nanos) -> Option<Duration> {
        if self.seen < EVIDENCE || self.running == 0 {
            return None;
        }
        let still_s = Duration::from_nanos(now.saturating_sub(self.moved)).as_secs_f64();
        let interval_s = self.held_s.max(still_s) / self.running as f64;
        Duration::try_from_secs_f64(ahead as f64 * interval_s).ok()
    }
}

/// Weight of the newest request in the ratio.
const RATIO_WEIGHT: f64 = 1.0 / 64.0;
/// The ratio is kept within 1/100 and 100.
const MOST_RATIO: f64 = 100.0;

/// What requests cost of what they were expected to.
#[derive(Clone, Copy, Debug)]
pub(super) struct Ratio {
    expected: f64,
    used: f64,
}

impl Default for Ratio {
    fn default() -> Self {
        Self {
            expected: 1.0,
            used: 1.0,
        }
    }
}

impl Ratio {
    pub(super) fn learn(&mut self, expected: u64, used: u64) {
        self.expected += RATIO_WEIGHT * (expected as f64 - self.expected);
        self.used += RATIO_WEIGHT * (used as f64 - self.used);
    }

    /// What `tokens` expected will come to.
    pub(super) fn of(self, tokens: u64) -> u64 {
        let ratio = self.used.max(1e-3) / self.expected.max(1e-3);
        (tokens as f64 * ratio.clamp(1.0 / MOST_RATIO, MOST_RATIO)).round() as u64
    }
}
