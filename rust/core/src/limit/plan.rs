//! Quotas worked out from limits, once for all subjects that have the same.

use std::hash::{Hash, Hasher};
use std::sync::{Arc, Weak};

use parking_lot::Mutex;
use rustc_hash::{FxHashMap, FxHasher};

use super::lease::OnStoreLoss;
use super::{Budget, Limits, Quota};

const SECOND: u64 = 1_000_000_000;
const MINUTE: u64 = 60 * SECOND;

/// What [`Limits`] come to.
#[derive(Debug)]
pub(super) struct Plan {
    pub(super) per_second: Option<Quota>,
    pub(super) per_minute: Option<Quota>,
    pub(super) tokens: Option<Quota>,
    /// `u64::MAX` without a limit.
    pub(super) max_in_flight: u64,
    pub(super) budget: Option<Budget>,
    pub(super) on_store_loss: OnStoreLoss,
    /// Tells quotas apart, never zero: arrival times are in units of their quota.
    pub(super) fingerprint: u64,
    /// No limit at all.
    pub(super) open: bool,
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
        let plan = Arc::new(Self::new(limits));
        plans.known.insert(*limits, Arc::downgrade(&plan));
        plan
    }

    fn new(limits: &Limits) -> Self {
        let per_second = limits
            .rps
            .map(|rps| Quota::clamped(rps, SECOND, limits.rps_burst.unwrap_or(rps)));
        let per_minute = limits
            .rpm
            .map(|rpm| Quota::clamped(rpm, MINUTE, limits.rpm_burst.unwrap_or((rpm / 6).max(1))));
        let tokens = limits
            .tpm
            .map(|tpm| Quota::clamped(tpm, MINUTE, limits.tpm_burst.unwrap_or(tpm)));
        let max_in_flight = limits.concurrency.map_or(u64::MAX, u64::from);
        // Equal in every process: the hash has no seed.
        let mut hasher = FxHasher::default();
        [&per_second, &per_minute, &tokens].hash(&mut hasher);
        Self {
            open: per_second.is_none()
                && per_minute.is_none()
                && tokens.is_none()
                && limits.concurrency.is_none()
                && limits.budget.is_none(),
            per_second,
            per_minute,
            tokens,
            max_in_flight,
            budget: limits.budget,
            on_store_loss: limits.on_store_loss,
            fingerprint: hasher.finish().max(1),
        }
    }
}
