//! What an engine says of its own load.
use std::sync::atomic::{AtomicU64, Ordering};
use std::time::Duration;

use serde::Deserialize;

use crate::limit::Nanos;

/// What an engine said last of its load. It goes stale: SGLang says nothing new for 15 decode steps
/// and does not count what has just arrived, so it is to be taken together with the gateway's own
/// requests in flight.
#[derive(Clone, Copy, Debug, PartialEq)]
pub struct Load {
    /// Requests that it computes.
    pub running: u32,
    /// Requests that wait inside it.
    pub waiting: u32,
    /// Tokens that its cache holds.
    pub tokens: u64,
    /// How long ago it said so.
    pub age: Duration,
}

/// A load report as the control plane hands it over.
#[derive(Clone, Copy, Debug, Default, Deserialize, PartialEq, Eq)]
#[serde(deny_unknown_fields)]
pub struct Report {
    /// See [`Load::running`].
    pub running: u32,
    /// See [`Load::waiting`].
    pub waiting: u32,
    /// See [`Load::tokens`].
    #[serde(default)]
    pub tokens: u64,
}

/// The report that came last, read without a lock. One that comes while it is read may be read in
/// parts, which is as good as either.
#[derive(Debug, Default)]
pub struct LastLoad {
    /// Running in the upper half, waiting in the lower.
    requests: AtomicU64,
    tokens: AtomicU64,
    /// When it came; 0: never.
    at: AtomicU64,
}

impl LastLoad {
    /// Takes a report in.
    pub fn set(&self, load: Report, now: Nanos) {
        let requests = u64::from(load.running) << 32 | u64::from(load.waiting);
        self.requests.store(requests, Ordering::Relaxed);
        self.tokens.store(load.tokens, Ordering::Relaxed);
        self.at.store(now.max(1), Ordering::Release);
    }

    /// The last one and its age; none before the first.
    pub fn get(&self, now: Nanos) -> Option<Load> {
        let at = self.at.load(Ordering::Acquire);
        let requests = self.requests.load(Ordering::Relaxed);
        (at != 0).then(|| Load {
            running: (requests >> 32) as u32,
            waiting: requests as u32,
            tokens: self.tokens.load(Ordering::Relaxed),
            age: Duration::from_nanos(now.saturating_sub(at)),
        })
    }
}
