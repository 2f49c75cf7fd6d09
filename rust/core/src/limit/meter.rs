//! Every limit of one subject, decided together.

use std::sync::Arc;

use arc_swap::ArcSwapOption;

use super::budget::Spent;
use super::gcra::Tat;
use super::lease::{Lease, Leases};
use super::leased::{Leased, Limit};
use super::pending::Here;
use super::plan::Plan;
use super::region::{Cell, Region, Rows, subject_id};
use super::verdict::tighter;
use super::{
    Admitted, Ask, Budget, Dimension, Limits, MeterState, Nanos, Now, Part, Quota, Refusal, Scope,
    Standing,
};

/// Every limit of one subject: requests, tokens, concurrency and money, each optional.
///
/// The configuration is of this process; the state lies in a [`Region`] and may be shared.
#[derive(Debug)]
#[repr(align(64))]
pub struct Meter {
    pub(super) plan: Arc<Plan>,
    /// None without limits, and where limits are leased.
    rows: Rows,
    /// Present where limits are shared with other machines.
    pub(super) leased: Option<Box<Leased>>,
    id: u64,
    /// The meter with newer limits that has taken this one's place.
    next: ArcSwapOption<Meter>,
}

// A cache line: with a million keys, an admission costs what the cache misses cost.
const _: () = assert!(size_of::<Meter>() == 64);

impl Meter {
    /// Full buckets and no request in flight, in memory of its own.
    pub fn new(limits: &Limits) -> Self {
        Self::of(&Arc::new(Region::small(8, 1, 0)), "subject", limits)
    }

    /// The limits of `subject`, whose state in `region` goes on if it is there.
    pub fn of(region: &Arc<Region>, subject: &str, limits: &Limits) -> Self {
        Self::with_id(region, subject_id(subject), limits)
    }

    /// The limits of `subject`, shared with other machines: all are asked for with those of the
    /// same `tag`.
    pub fn leased(
        region: &Arc<Region>,
        leases: &Arc<Leases>,
        subject: &str,
        tag: &str,
        limits: &Limits,
    ) -> Self {
        let shared = Leased::new(leases, subject, tag);
        Self::made(region, subject_id(subject), limits, Some(shared))
    }

    /// As [`Meter::of`], for a subject known by number.
    pub fn with_id(region: &Arc<Region>, id: u64, limits: &Limits) -> Self {
        Self::made(region, id, limits, None)
    }

    fn made(region: &Arc<Region>, id: u64, limits: &Limits, leased: Option<Leased>) -> Self {
        let plan = Plan::of(limits);
        let rows = if plan.open || leased.is_some() {
            Rows::none(region)
        } else {
            let kind = plan.budget.map(|budget| budget.period.kind());
            Rows::of(region, id, plan.fingerprint, kind)
        };
        Self {
            plan,
            rows,
            leased: leased.map(Box::new),
            id,
            next: ArcSwapOption::empty(),
        }
    }

    #[inline]
    pub(super) fn rows(&self) -> Option<&Rows> {
        (!self.rows.is_none()).then_some(&self.rows)
    }

    /// The meter of the same subject with other limits, which takes this one's place.
    ///
    /// What is outstanding carries over in units, rounded up; a smaller burst makes no new debt and
    /// debt is kept. Requests in flight stay counted, and what they settle or cancel reaches the
    /// new meter (a settlement that races this very call may miss it). Limits that come back find
    /// the state that they had.
    #[must_use]
    pub fn reconfigured(self: &Arc<Self>, limits: &Limits, now: Nanos) -> Arc<Self> {
        let leased = self.leased.as_ref().map(|leased| leased.renewed());
        let new = Arc::new(Self::made(self.rows.region(), self.id, limits, leased));
        if let (Some(old), Some(rows)) = (self.rows(), new.rows())
            && self.plan.fingerprint != new.plan.fingerprint
        {
            for ((to, old_quota), cell) in [
                (&new.plan.per_second, &self.plan.per_second),
                (&new.plan.per_minute, &self.plan.per_minute),
                (&new.plan.tokens, &self.plan.tokens),
            ]
            .into_iter()
            .zip([Cell::PerSecond, Cell::PerMinute, Cell::Tokens])
            {
                if let (Some(to), Some(from)) = (to, old_quota) {
                    let old = Tat(old.cell(cell));
                    Tat(rows.cell(cell)).carry(to, old, from, now);
                }
            }
        }
        self.next.store(Some(Arc::clone(&new)));
        new
    }

    /// The meter that has taken this one's place, if one has.
    fn successor(&self) -> Option<Arc<Self>> {
        let mut newest = self.next.load_full()?;
        while let Some(next) = newest.next.load_full() {
            newest = next;
        }
        Some(newest)
    }

    /// Whether there is no limit.
    pub fn is_open(&self) -> bool {
        self.plan.open
    }

    /// Whether there is a limit on money.
    pub fn has_budget(&self) -> bool {
        self.plan.budget.is_some()
    }

    fn lease(&self, limit: Limit, unix_s: i64) -> Option<Arc<Lease>> {
        self.leased.as_ref()?.lease(limit, &self.plan, unix_s)
    }

    /// Takes one request, `tokens` tokens and one permit, or nothing. For limits that are not
    /// leased.
    ///
    /// # Errors
    /// [`Refusal`] names the limit and the wait.
    pub fn admit(&self, now: Nanos, tokens: u64) -> Result<Admitted, Box<Refusal>> {
        let now = Now {
            mono: now,
            unix_s: 0,
        };
        let mut pending = Here::new(self, now, Ask { tokens, nano: 0 }, Part::Whole);
        if let Some(denial) = pending.denial() {
            return Err(denial.refusal(Scope::Key, self.state(now.mono)));
        }
        pending
            .take()
            .map_err(|denial| denial.refusal(Scope::Key, self.state(now.mono)))?;
        let MeterState {
            requests,
            tokens: left,
            ..
        } = pending.state();
        Ok(Admitted {
            reserved: tokens,
            requests,
            tokens: left,
        })
    }

    /// The fill of every limit; takes nothing.
    pub fn state(&self, now: Nanos) -> MeterState {
        if let Some(leased) = &self.leased {
            return leased.state(&self.plan, now);
        }
        let Some(rows) = self.rows() else {
            return MeterState::default();
        };
        let peek = |quota: &Option<Quota>, cell| {
            quota
                .as_ref()
                .map(|quota| Tat(rows.cell(cell)).peek(quota, now))
        };
        MeterState {
            requests: tighter(
                peek(&self.plan.per_second, Cell::PerSecond),
                peek(&self.plan.per_minute, Cell::PerMinute),
            ),
            tokens: peek(&self.plan.tokens, Cell::Tokens),
            in_flight: rows.permits().sum(),
            max_in_flight: u32::try_from(self.plan.max_in_flight).ok(),
        }
    }

    /// Each limit as it stands. One that machines share is as it was last heard of, and the store
    /// is asked: the next call tells what it answered.
    pub fn standings(&self, now: Now) -> Vec<Standing> {
        if let Some(leased) = &self.leased {
            return leased.standings(&self.plan, now);
        }
        let Some(rows) = self.rows() else {
            return Vec::new();
        };
        let mut out = Vec::new();
        for (quota, cell, dimension, period) in [
            (
                &self.plan.per_second,
                Cell::PerSecond,
                Dimension::Requests,
                "second",
            ),
            (
                &self.plan.per_minute,
                Cell::PerMinute,
                Dimension::Requests,
                "minute",
            ),
            (&self.plan.tokens, Cell::Tokens, Dimension::Tokens, "minute"),
        ] {
            if let Some(quota) = quota {
                let state = Tat(rows.cell(cell)).peek(quota, now.mono);
                out.push(Standing {
                    dimension,
                    period,
                    limit: quota.limit(),
                    burst: quota.burst(),
                    remaining: state.remaining,
                    reset: Some(state.reset),
                });
            }
        }
        let max = self.plan.max_in_flight;
        if max < u64::MAX {
            out.push(Standing {
                dimension: Dimension::Concurrency,
                period: "",
                limit: max,
                burst: max,
                remaining: max.saturating_sub(rows.permits().sum()),
                reset: None,
            });
        }
        if let Some((budget, spent)) = self.money() {
            let end = budget.period.bounds(now.unix_s).1;
            let seconds = end.map(|end| (end - now.unix_s).max(0) as u64);
            let taken = spent.get(now.unix_s) + rows.reserved().sum();
            out.push(Standing {
                dimension: Dimension::Budget,
                period: budget.period.as_str(),
                limit: budget.nano,
                burst: budget.nano,
                remaining: budget.nano.saturating_sub(taken),
                reset: seconds.map(|s| s.saturating_mul(1_000_000_000)),
            });
        }
        out
    }

    /// The most tokens that one request may reserve; `None` without a limit.
    pub fn token_burst(&self) -> Option<u64> {
        self.plan.tokens.as_ref().map(Quota::burst)
    }

    /// Replaces a reservation by what was used: refunds what is over, charges what is missing.
    pub fn settle(&self, reserved: u64, used: u64) {
        self.correct(Cell::Tokens, reserved, used);
    }

    /// Takes an admission back: its request and its tokens. For a request whose upstream was never
    /// contacted.
    pub fn cancel(&self, reserved: u64) {
        self.correct(Cell::Tokens, reserved, 0);
        self.correct(Cell::PerSecond, 1, 0);
        self.correct(Cell::PerMinute, 1, 0);
    }

    /// Returns the permit of an admission by this very meter.
    pub fn release(&self) {
        if let Some(rows) = self.rows() {
            rows.permits().give(1);
        } else if let Some(lease) = self.lease(Limit::Permits, 0) {
            lease.give_back(1);
        }
    }

    /// Moves money from reserved to spent: of `reserved`, held since `admitted_s`, `spent` are now
    /// known to be. What was reserved and is not spent is free again.
    pub(super) fn spend(&self, admitted_s: i64, reserved: u64, spent: u64) {
        if let Some(lease) = self.lease(Limit::Money, admitted_s) {
            lease.settle(reserved, spent);
        }
        let (Some(rows), Some(_)) = (self.rows(), self.plan.budget) else {
            return;
        };
        let successor = self.successor();
        if spent > 0
            && let Some((_, money)) = successor.as_deref().unwrap_or(self).money()
        {
            // Before it is taken off what is reserved: for a moment it counts twice, never not.
            money.add(admitted_s, spent);
        }
        rows.reserved().give(reserved);
    }

    /// Takes back what [`Meter::spend`] had put down as spent. Not of a lease, which has told the
    /// store.
    pub(super) fn unspend(&self, admitted_s: i64, nano: u64) {
        let successor = self.successor();
        if self.plan.budget.is_some()
            && let Some((_, money)) = successor.as_deref().unwrap_or(self).money()
        {
            money.subtract(admitted_s, nano);
        }
    }

    /// At least `nano` were spent, by whomever, in the budget's period that began at `start`, unix
    /// seconds.
    pub fn raise_spent(&self, now_s: i64, start: i64, nano: u64) {
        if let Some((_, money)) = self.money() {
            money.raise(now_s, start, nano);
        } else if let Some(budget) = self.plan.budget
            && budget.period.bounds(now_s).0 == start
            && let Some(lease) = self.lease(Limit::Money, now_s)
        {
            lease.spent_at_least(nano);
        }
    }

    pub(super) fn money(&self) -> Option<(Budget, Spent<'_>)> {
        let budget = self.plan.budget?;
        let spent = Spent {
            word: self.rows()?.spent()?,
            period: budget.period,
        };
        Some((budget, spent))
    }

    fn quota(&self, cell: Cell) -> Option<&Quota> {
        match cell {
            Cell::PerSecond => self.plan.per_second.as_ref(),
            Cell::PerMinute => self.plan.per_minute.as_ref(),
            Cell::Tokens => self.plan.tokens.as_ref(),
        }
    }

    /// Moves the difference of what this meter had taken and what was used onto the bucket of the
    /// newest one.
    fn correct(&self, cell: Cell, taken: u64, used: u64) {
        // Where there was no limit nothing was taken, so nothing can come back to one that came since.
        if taken == used || self.quota(cell).is_none() {
            return;
        }
        let successor = self.successor();
        let newest = successor.as_deref().unwrap_or(self);
        if newest.leased.is_some() {
            let limit = match cell {
                Cell::PerSecond => Limit::PerSecond,
                Cell::PerMinute => Limit::PerMinute,
                Cell::Tokens => Limit::Tokens,
            };
            if let Some(lease) = newest.lease(limit, 0) {
                lease.settle(taken, used);
            }
        } else if let (Some(quota), Some(rows)) = (newest.quota(cell), newest.rows()) {
            let tat = Tat(rows.cell(cell));
            if used > taken {
                tat.charge(quota, used - taken);
            } else {
                tat.refund(quota, taken - used);
            }
        }
    }
}
