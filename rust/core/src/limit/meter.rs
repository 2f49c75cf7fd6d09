//! Every limit of one subject, decided together.

use std::sync::Arc;
use std::sync::atomic::AtomicU64;

use arc_swap::ArcSwapOption;

use super::budget::Spent;
use super::gcra::{Quote, Tat};
use super::lease::{Lease, Leases, OnStoreLoss};
use super::leased::{Leased, Limit, Lines, Stop};
use super::plan::Plan;
use super::region::{Cell, Region, Rows, subject_id};
use super::{Budget, Nanos, Quota, Scope, State};

/// The wait suggested to a request refused for concurrency: no clock tells when another one ends.
/// The same for money that is reserved by requests in flight.
pub const CONCURRENCY_RETRY: Nanos = 1_000_000_000;

/// An instant on both clocks.
#[derive(Clone, Copy, Debug, Default, PartialEq, Eq)]
pub struct Now {
    /// The monotonic clock, the same in all processes that share a region.
    pub mono: Nanos,
    /// The calendar's, unix seconds.
    pub unix_s: i64,
}

/// What a request takes from each limit, besides one request and one permit.
#[derive(Clone, Copy, Debug, Default, PartialEq, Eq)]
pub struct Ask {
    /// Input and output tokens.
    pub tokens: u64,
    /// Nano-USD.
    pub nano: u64,
}

/// A subject's limits as configured; `None` is no limit and 0 refuses everything.
#[derive(Clone, Copy, Debug, Default, PartialEq, Eq, Hash)]
pub struct Limits {
    /// Requests per second.
    pub rps: Option<u64>,
    /// Requests at once; all of `rps` unless given.
    pub rps_burst: Option<u64>,
    /// Requests per minute.
    pub rpm: Option<u64>,
    /// Requests at once; a sixth of `rpm` (ten seconds' worth), at least 1, unless given.
    pub rpm_burst: Option<u64>,
    /// Tokens per minute.
    pub tpm: Option<u64>,
    /// Tokens at once; all of `tpm` unless given.
    pub tpm_burst: Option<u64>,
    /// Requests in flight.
    pub concurrency: Option<u32>,
    /// Money.
    pub budget: Option<Budget>,
    /// Without the shared store.
    pub on_store_loss: OnStoreLoss,
}

/// Which limit refused.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum Dimension {
    /// Requests per second or minute.
    Requests,
    /// Tokens per minute.
    Tokens,
    /// Requests in flight.
    Concurrency,
    /// Money.
    Budget,
}

impl Dimension {
    /// The name used in headers, metrics and messages.
    pub fn as_str(self) -> &'static str {
        match self {
            Self::Requests => "requests",
            Self::Tokens => "tokens",
            Self::Concurrency => "concurrency",
            Self::Budget => "budget",
        }
    }
}

/// An admission, with the fill that it left for the headers of the answer.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub struct Admitted {
    /// Tokens reserved, to be passed to [`Meter::settle`] or [`Meter::cancel`].
    pub reserved: u64,
    /// Absent without a limit on requests.
    pub requests: Option<State>,
    /// Absent without a limit on tokens.
    pub tokens: Option<State>,
}

/// A refusal. It cost nothing.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub struct Refusal {
    /// Whose limit it is; of a single meter, the key's.
    pub scope: Scope,
    /// The limit to name: one that no wait cures, else the one with the longest wait.
    pub dimension: Dimension,
    /// Of which period it is: `second`, `minute`, `day`, `month`, `total`; empty for concurrency.
    pub period: &'static str,
    /// The wait after which all limits would admit the same request ([`CONCURRENCY_RETRY`], a
    /// guess, for what requests in flight hold). `None`: the cost exceeds the burst, or the budget
    /// is spent, which no wait cures.
    pub retry_after: Option<Nanos>,
    /// Units per period, requests in flight or nano-USD, as configured.
    pub limit: u64,
    /// The most that one request may cost in that dimension.
    pub burst: u64,
    /// The fill of all limits.
    pub state: MeterState,
}

/// The fill of the limits of a subject, or of the tightest ones of several.
#[derive(Clone, Copy, Debug, Default, PartialEq, Eq)]
pub struct MeterState {
    /// Absent without a limit on requests.
    pub requests: Option<State>,
    /// Absent without a limit on tokens.
    pub tokens: Option<State>,
    /// Requests in flight; counted if there is any limit.
    pub in_flight: u64,
    /// The limit on requests in flight.
    pub max_in_flight: Option<u32>,
}

impl MeterState {
    /// The tighter of each, of two subjects.
    #[must_use]
    pub fn tighter(self, other: Self) -> Self {
        let room = |state: &Self| {
            state
                .max_in_flight
                .map(|max| u64::from(max).saturating_sub(state.in_flight))
        };
        let ours = match (room(&self), room(&other)) {
            (Some(a), Some(b)) => a <= b,
            (None, Some(_)) => false,
            _ => true,
        };
        let held = if ours { &self } else { &other };
        Self {
            requests: tighter(self.requests, other.requests),
            tokens: tighter(self.tokens, other.tokens),
            in_flight: held.in_flight,
            max_in_flight: held.max_in_flight,
        }
    }
}

/// The limit that a client meets first: less remaining, or as much for longer.
#[inline]
pub(super) fn tighter(a: Option<State>, b: Option<State>) -> Option<State> {
    match (a, b) {
        (Some(a), Some(b)) => {
            let rank = |state: &State| (state.remaining, std::cmp::Reverse(state.reset));
            Some(if rank(&b) < rank(&a) { b } else { a })
        }
        (a, b) => a.or(b),
    }
}

/// One limit as it stands, for people.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub struct Standing {
    /// What it counts.
    pub dimension: Dimension,
    /// As in [`Refusal::period`].
    pub period: &'static str,
    /// As configured.
    pub limit: u64,
    /// What may be taken at once.
    pub burst: u64,
    /// What could be taken now.
    pub remaining: u64,
    /// Time until all of it could; unknown for concurrency.
    pub reset: Option<Nanos>,
}

/// Every limit of one subject: requests, tokens, concurrency and money, each optional.
///
/// The configuration is of this process; the state lies in a [`Region`] and may be shared.
#[derive(Debug)]
#[repr(align(64))]
pub struct Meter {
    plan: Arc<Plan>,
    /// None without limits, and where limits are leased.
    rows: Rows,
    /// Present where limits are shared with other machines.
    leased: Option<Box<Leased>>,
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
    fn rows(&self) -> Option<&Rows> {
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
        let mut pending = Here::new(self, now, Ask { tokens, nano: 0 });
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

    fn money(&self) -> Option<(Budget, Spent<'_>)> {
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

/// Why a meter says no, without its fill.
#[derive(Clone, Copy, Debug)]
pub(super) struct Denial {
    pub(super) dimension: Dimension,
    pub(super) period: &'static str,
    pub(super) retry_after: Option<Nanos>,
    pub(super) limit: u64,
    pub(super) burst: u64,
}

impl Denial {
    /// Whether it is the one to tell of two: what no wait cures, else the longer wait.
    pub(super) fn outranks(&self, other: &Self) -> bool {
        let rank = |denial: &Self| (denial.retry_after.is_none(), denial.retry_after);
        rank(self) > rank(other)
    }

    fn worse(self, other: Option<Self>) -> Self {
        match other {
            Some(other) if !self.outranks(&other) => other,
            _ => self,
        }
    }

    pub(super) fn refusal(self, scope: Scope, state: MeterState) -> Box<Refusal> {
        let Self {
            dimension,
            period,
            retry_after,
            limit,
            burst,
        } = self;
        Box::new(Refusal {
            scope,
            dimension,
            period,
            retry_after,
            limit,
            burst,
            state,
        })
    }
}

/// One meter's part in an admission: looked at first, then taken.
pub(super) enum Pending<'a> {
    Here(Here<'a>),
    Leased(Lines),
}

impl<'a> Pending<'a> {
    #[inline]
    pub(super) fn new(meter: &'a Meter, now: Now, ask: Ask) -> Self {
        match &meter.leased {
            None => Self::Here(Here::new(meter, now, ask)),
            Some(leased) => Self::Leased(Lines::new(leased, &meter.plan, now, ask)),
        }
    }

    /// The worst that stands against it, if anything does.
    #[inline]
    pub(super) fn stop(&self) -> Option<Stop> {
        match self {
            Self::Here(here) => here.denial().map(Stop::Deny),
            Self::Leased(lines) => lines.stop(),
        }
    }

    /// Takes all of it, or nothing.
    #[inline]
    pub(super) fn take(&mut self) -> Result<(), Stop> {
        match self {
            Self::Here(here) => here.take().map_err(Stop::Deny),
            Self::Leased(lines) => lines.take(),
        }
    }

    /// Takes everything back: another meter said no.
    #[cold]
    pub(super) fn give_back(&self) {
        match self {
            Self::Here(here) => here.give_back(),
            Self::Leased(lines) => lines.undo(),
        }
    }

    /// The fill that is left.
    #[inline]
    pub(super) fn state(&self) -> MeterState {
        match self {
            Self::Here(here) => here.state(),
            Self::Leased(lines) => lines.state(),
        }
    }

    /// What the store may have and leases here have not.
    pub(super) fn wants(&self) -> Vec<(Arc<Lease>, u64)> {
        match self {
            Self::Here(_) => Vec::new(),
            Self::Leased(lines) => lines.wants().collect(),
        }
    }
}

/// The part of a meter whose limits are this machine's.
pub(super) struct Here<'a> {
    meter: &'a Meter,
    now: Now,
    nano: u64,
    rates: [Option<Asked<'a>>; 3],
}

/// One bucket's part.
#[derive(Clone, Copy)]
struct Asked<'a> {
    tat: Tat<'a>,
    quota: &'a Quota,
    clock: u64,
    cost: u64,
    quote: Quote,
}

impl<'a> Asked<'a> {
    #[inline]
    fn new(quota: Option<&'a Quota>, word: &'a AtomicU64, now: Nanos, cost: u64) -> Option<Self> {
        let quota = quota?;
        let (tat, clock) = (Tat(word), quota.ticks(now));
        Some(Self {
            tat,
            quota,
            clock,
            cost,
            quote: tat.quote(quota, clock, cost),
        })
    }

    #[inline]
    fn state(&self, now: Nanos) -> State {
        match self.quote {
            Quote::Pass(_, new) => self.quota.state(new, self.clock, now),
            Quote::Wait(_) | Quote::Never => self.tat.peek(self.quota, now),
        }
    }

    fn denial(&self, at: usize, now: Nanos) -> Option<Denial> {
        let retry_after = match self.quote {
            Quote::Pass(..) => return None,
            Quote::Wait(until) => Some(self.quota.wait(until, now)),
            Quote::Never => None,
        };
        let (dimension, period) = match at {
            0 => (Dimension::Requests, "second"),
            1 => (Dimension::Requests, "minute"),
            _ => (Dimension::Tokens, "minute"),
        };
        Some(Denial {
            dimension,
            period,
            retry_after,
            limit: self.quota.limit(),
            burst: self.quota.burst(),
        })
    }
}

impl<'a> Here<'a> {
    #[inline]
    fn new(meter: &'a Meter, now: Now, ask: Ask) -> Self {
        let plan = &*meter.plan;
        let rates = match meter.rows() {
            None => [None; 3],
            Some(rows) => {
                let asked = |quota: &'a Option<Quota>, cell, cost| {
                    Asked::new(quota.as_ref(), rows.cell(cell), now.mono, cost)
                };
                [
                    asked(&plan.per_second, Cell::PerSecond, 1),
                    asked(&plan.per_minute, Cell::PerMinute, 1),
                    asked(&plan.tokens, Cell::Tokens, ask.tokens),
                ]
            }
        };
        Self {
            meter,
            now,
            nano: ask.nano,
            rates,
        }
    }

    /// The worst that stands against it, if anything does.
    #[inline]
    fn denial(&self) -> Option<Denial> {
        let rows = self.meter.rows()?;
        let passes = self
            .rates
            .iter()
            .flatten()
            .all(|asked| matches!(asked.quote, Quote::Pass(..)))
            && rows.permits().sum() < self.meter.plan.max_in_flight
            && self.meter.plan.budget.is_none();
        if passes { None } else { self.worst() }
    }

    #[inline(never)]
    fn worst(&self) -> Option<Denial> {
        let rows = self.meter.rows()?;
        let mut worst = None;
        for (at, asked) in self.rates.iter().enumerate() {
            if let Some(denial) = asked.and_then(|asked| asked.denial(at, self.now.mono)) {
                worst = Some(denial.worse(worst));
            }
        }
        if rows.permits().sum() >= self.meter.plan.max_in_flight {
            worst = Some(self.full_house().worse(worst));
        }
        if let Some(denial) = self.over_budget() {
            worst = Some(denial.worse(worst));
        }
        worst
    }

    fn full_house(&self) -> Denial {
        let max = self.meter.plan.max_in_flight;
        Denial {
            dimension: Dimension::Concurrency,
            period: "",
            retry_after: (max > 0).then_some(CONCURRENCY_RETRY),
            limit: max,
            burst: max,
        }
    }

    fn over_budget(&self) -> Option<Denial> {
        let (budget, spent) = self.meter.money()?;
        let rows = self.meter.rows()?;
        spent.roll(self.now.unix_s);
        let known = spent.get(self.now.unix_s).saturating_add(self.nano);
        let fits = |taken: u64| taken <= budget.nano && budget.nano > 0;
        if fits(known.saturating_add(rows.reserved().sum())) {
            return None;
        }
        Some(Denial {
            dimension: Dimension::Budget,
            period: budget.period.as_str(),
            // What is only reserved may come back.
            retry_after: fits(known).then_some(CONCURRENCY_RETRY),
            limit: budget.nano,
            burst: budget.nano,
        })
    }

    /// Takes all of it, or nothing.
    #[inline]
    fn take(&mut self) -> Result<(), Denial> {
        let Some(rows) = self.meter.rows() else {
            return Ok(());
        };
        let max = self.meter.plan.max_in_flight;
        if !rows.permits().take(1, || max) {
            return Err(self.full_house());
        }
        let mut failed = None;
        for (at, asked) in self.rates.iter_mut().enumerate() {
            let Some(asked) = asked else { continue };
            asked.quote = asked
                .tat
                .take(asked.quota, asked.clock, asked.quote, asked.cost);
            if let Some(denial) = asked.denial(at, self.now.mono) {
                failed = Some((at, denial));
                break;
            }
        }
        if let Some((at, denial)) = failed {
            self.undo(at);
            return Err(denial);
        }
        if let Some((budget, spent)) = self.meter.money() {
            let left = || budget.nano.saturating_sub(spent.get(self.now.unix_s));
            if !rows.reserved().take(self.nano, left) {
                let denial = self.over_budget();
                self.undo(self.rates.len());
                // Gone again already: then it was a race, and a moment is enough.
                return Err(denial.unwrap_or(Denial {
                    dimension: Dimension::Budget,
                    period: budget.period.as_str(),
                    retry_after: Some(CONCURRENCY_RETRY),
                    limit: budget.nano,
                    burst: budget.nano,
                }));
            }
        }
        Ok(())
    }

    /// Gives back the permit and the first `rates` of what was taken.
    #[cold]
    fn undo(&self, rates: usize) {
        for asked in self.rates.iter().take(rates).flatten() {
            asked.tat.refund(asked.quota, asked.cost);
        }
        self.meter.release();
    }

    /// Takes everything back: another meter said no.
    #[cold]
    fn give_back(&self) {
        self.undo(self.rates.len());
        self.meter.spend(self.now.unix_s, self.nano, 0);
    }

    /// The fill that is left.
    #[inline]
    fn state(&self) -> MeterState {
        let Some(rows) = self.meter.rows() else {
            return MeterState::default();
        };
        let state = |asked: &Option<Asked>| asked.as_ref().map(|asked| asked.state(self.now.mono));
        let [per_second, per_minute, tokens] = &self.rates;
        MeterState {
            requests: tighter(state(per_second), state(per_minute)),
            tokens: state(tokens),
            in_flight: rows.permits().sum(),
            max_in_flight: u32::try_from(self.meter.plan.max_in_flight).ok(),
        }
    }
}
