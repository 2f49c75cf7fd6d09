//! Requests that wait for an engine to start.
use std::sync::Arc;
use std::sync::atomic::{AtomicUsize, Ordering};
use std::time::Duration;

use crate::metrics::Gauge;
use crate::snapshot::{ColdSpec, MAX_TIMEOUT};

/// What requests do at an engine that is not warm, and how many do it.
#[derive(Debug)]
pub struct Cold {
    /// How long a request waits for it at most.
    pub hold: Duration,
    /// After how long it goes to a higher tier, where there is one.
    pub spill_after: Duration,
    /// The time between two signs of life to the client.
    pub keep_alive: Duration,
    max_held: usize,
    held: AtomicUsize,
}

/// A request that waits. Dropped, it does so no more.
#[derive(Debug)]
pub struct Held {
    cold: Arc<Cold>,
    shown: Arc<Gauge>,
}

impl Cold {
    /// As configured; an error on a time that is none.
    pub fn new(spec: &ColdSpec) -> Result<Self, String> {
        let time = |name: &str, seconds: f64| {
            Duration::try_from_secs_f64(seconds)
                .map(|time| time.min(MAX_TIMEOUT))
                .map_err(|e| format!("cold: {name}: {e}"))
        };
        Ok(Self {
            hold: time("hold", spec.hold_s)?,
            spill_after: time("spill after", spec.spill_after_s)?,
            keep_alive: time("keep alive", spec.keep_alive_s)?,
            max_held: spec.max_held,
            held: AtomicUsize::new(0),
        })
    }

    /// Lets a request wait, unless as many do as may. `shown` counts those of its model.
    pub fn hold(self: &Arc<Self>, shown: &Arc<Gauge>) -> Option<Held> {
        let enter = |held: usize| (held < self.max_held).then_some(held + 1);
        self.held
            .fetch_update(Ordering::Relaxed, Ordering::Relaxed, enter)
            .ok()?;
        shown.inc();
        Some(Held {
            cold: Arc::clone(self),
            shown: Arc::clone(shown),
        })
    }

    /// How many wait.
    pub fn held(&self) -> usize {
        self.held.load(Ordering::Relaxed)
    }
}

impl Drop for Held {
    fn drop(&mut self) {
        self.cold.held.fetch_sub(1, Ordering::Relaxed);
        self.shown.dec();
    }
}
