//! Which requests are copied to a shadow.
use std::sync::Arc;
use std::sync::atomic::{AtomicU32, Ordering};

use super::share::Share;
use crate::snapshot::ShadowSpec;
use crate::upstream::Upstream;

/// Where copies of a model's requests go.
pub struct Shadow {
    /// The upstream.
    pub upstream: Arc<Upstream>,
    /// The model's name there.
    pub model: Arc<str>,
    share: Share,
    max_in_flight: u32,
    in_flight: AtomicU32,
}

/// A copy under way.
pub struct Copied(Arc<Shadow>);

impl Shadow {
    /// As configured, at `upstream`.
    pub fn new(spec: &ShadowSpec, upstream: Arc<Upstream>) -> Self {
        Self {
            upstream,
            model: Arc::from(spec.model.as_str()),
            share: Share::percent(spec.percent),
            max_in_flight: spec.max_in_flight,
            in_flight: AtomicU32::new(0),
        }
    }

    /// Counts a request. The right to copy it, if it is one of the share, the shadow takes new
    /// requests, and not too many copies are under way.
    pub fn copy(self: &Arc<Self>) -> Option<Copied> {
        if !(self.share.count() && self.share.take()) || self.upstream.health.is_draining() {
            return None;
        }
        let enter = |copies: u32| (copies < self.max_in_flight).then_some(copies + 1);
        self.in_flight
            .fetch_update(Ordering::Relaxed, Ordering::Relaxed, enter)
            .ok()?;
        Some(Copied(Arc::clone(self)))
    }

    /// Copies under way.
    pub fn in_flight(&self) -> u32 {
        self.in_flight.load(Ordering::Relaxed)
    }
}

impl std::ops::Deref for Copied {
    type Target = Shadow;

    fn deref(&self) -> &Shadow {
        &self.0
    }
}

impl Drop for Copied {
    fn drop(&mut self) {
        self.0.in_flight.fetch_sub(1, Ordering::Relaxed);
    }
}
