//! Quotas worked out from limits, once for all keys that have the same.

use std::sync::{Arc, Weak};

use parking_lot::Mutex;
use rustc_hash::FxHashMap;

use super::{Limits, Quota};

/// What [`Limits`] come to.
#[derive(Debug)]
pub(super) struct Plan {
    pub(super) requests: Option<Quota>,
    pub(super) tokens: Option<Quota>,
    /// `u64::MAX` without a limit.
    pub(super) max_in_flight: u64,
}

/// The plans in use. Only a cache: a plan follows from its limits, so sharing one shows nowhere.
static PLANS: Mutex<Option<Plans>> = Mutex::new(None);

#[derive(Default)]
struct Plans {
    known: FxHashMap<Limits, Weak<Plan>>,
    /// Forget the unused when there are so many.
    sweep_at: usize,
}

impl Plan {
    /// The plan of `limits`. Locks, so it is for changes of configuration.
    pub(super) fn of(limits: &Limits) -> Arc<Self> {
        let mut plans = PLANS.lock();
        let plans = plans.get_or_insert_default();
        if let Some(plan) = plans.known.get(limits).and_then(Weak::upgrade) {
            return plan;
        }
        if plans.known.len() >= plans.sweep_at {
            plans.known.retain(|_, plan| plan.strong_count() > 0);
            plans.sweep_at = (2 * plans.known.len()).max(64);
        }
        let plan = Arc::new(Self {
            requests: limits.requests(),
            tokens: limits.tokens(),
            max_in_flight: limits.concurrency.map_or(u64::MAX, u64::from),
        });
        plans.known.insert(*limits, Arc::downgrade(&plan));
        plan
    }
}
