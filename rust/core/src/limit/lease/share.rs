//! What a participant spends while the store is lost.

use std::time::Duration;

use super::terms::{Kind, OnStoreLoss, Terms, signed};
use crate::limit::{Bucket, Decision, MAX_NOW, Nanos, Quota};

/// The wait suggested while nothing may be spent: the next probe of the store.
pub(super) const PROBE: Nanos = 1_000_000_000;

/// A participant's part of one limit. The lease's own ledger goes on beside it, so that what was
/// spent can be told when the store is back.
#[derive(Debug)]
pub(super) struct Share {
    pub(super) since: Nanos,
    way: Way,
}

#[derive(Debug)]
enum Way {
    Deny,
    Rate(Bucket),
    /// Permits that may be in use.
    Permits(i64),
    /// Nano-USD beyond what the lease holds.
    Money(i64),
}

/// Whether a cost passes.
pub(super) enum Verdict {
    Pass,
    Wait(Nanos),
}

impl Share {
    /// The share of one of `live` participants that holds `held`, while the store is thought to
    /// have `level` more.
    pub(super) fn new(terms: &Terms, live: u64, held: i64, level: f64, now: Nanos) -> Self {
        let live = live.max(1);
        let part = level.max(0.0) / live as f64;
        let way = match (terms.on_loss, terms.kind) {
            (OnStoreLoss::Deny, _) => Way::Deny,
            (_, Kind::Permits { capacity }) => Way::Permits(signed((capacity / live).max(1))),
            (_, Kind::Money { .. }) => Way::Money(part as i64),
            (
                _,
                Kind::Rate {
                    units,
                    period,
                    burst,
                },
            ) => {
                // A share of the rate is the same units in as many times the period.
                let period = period.saturating_mul(live).min(MAX_NOW);
                let cap = (burst / live).max(1);
                Quota::new(units, Duration::from_nanos(period), cap).map_or(Way::Deny, |quota| {
                    let bucket = Bucket::new(quota);
                    let there = (held.max(0) as f64 + part).min(cap as f64) as u64;
                    bucket.admit(now, cap - there);
                    Way::Rate(bucket)
                })
            }
        };
        Self { since: now, way }
    }

    /// What taking `cost` would come to, with `held` in the ledger and `used` in use.
    pub(super) fn quote(&self, now: Nanos, cost: u64, held: i64, used: i64) -> Verdict {
        match &self.way {
            Way::Rate(bucket) => {
                let least = cost.min(bucket.quota().burst());
                let state = bucket.peek(now);
                if state.remaining >= least {
                    return Verdict::Pass;
                }
                // Until it is full, less what is not needed.
                let missing = least - state.remaining;
                let short = bucket.quota().burst() - state.remaining;
                let wait = u128::from(state.reset) * u128::from(missing) / u128::from(short.max(1));
                Verdict::Wait(now.saturating_add(wait as Nanos))
            }
            Way::Permits(cap) => passes(used.saturating_add(signed(cost)) <= *cap, now),
            Way::Money(more) => passes(held.saturating_add(*more) >= signed(cost), now),
            Way::Deny => passes(false, now),
        }
    }

    /// Takes `cost`; the caller keeps the ledger. A cost above the share's burst leaves debt.
    pub(super) fn take(&self, now: Nanos, cost: u64, held: i64, used: i64) -> Verdict {
        let Way::Rate(bucket) = &self.way else {
            return self.quote(now, cost, held, used);
        };
        let cap = bucket.quota().burst();
        match bucket.admit(now, cost.min(cap)) {
            Decision::Allow { .. } => {
                bucket.charge(cost.saturating_sub(cap));
                Verdict::Pass
            }
            Decision::Deny { retry_after, .. } => Verdict::Wait(now.saturating_add(retry_after)),
            Decision::Never => Verdict::Wait(now.saturating_add(PROBE)),
        }
    }

    pub(super) fn give_back(&self, units: u64) {
        if let Way::Rate(bucket) = &self.way {
            bucket.refund(units);
        }
    }

    pub(super) fn charge(&self, units: u64) {
        if let Way::Rate(bucket) = &self.way {
            bucket.charge(units);
        }
    }

    /// Units that the share could admit now.
    pub(super) fn remaining(&self, now: Nanos, held: i64, used: i64) -> u64 {
        match &self.way {
            Way::Rate(bucket) => bucket.peek(now).remaining,
            Way::Permits(cap) => (cap - used).max(0) as u64,
            Way::Money(more) => held.saturating_add(*more).max(0) as u64,
            Way::Deny => 0,
        }
    }

    /// By how much a rate's share is not full: all that the store need be told, because what was
    /// refilled since is spent rightly. `None` where everything is to be told.
    pub(super) fn deficit(&self, now: Nanos) -> Option<u64> {
        match &self.way {
            Way::Rate(bucket) => Some(bucket.quota().burst() - bucket.peek(now).remaining),
            _ => None,
        }
    }
}

fn passes(yes: bool, now: Nanos) -> Verdict {
    if yes {
        Verdict::Pass
    } else {
        Verdict::Wait(now.saturating_add(PROBE))
    }
}
