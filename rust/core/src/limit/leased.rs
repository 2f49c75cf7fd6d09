//! A subject's limits where several machines share them: each is spent from a lease.

use std::sync::{Arc, Weak};
use std::time::Duration;

use arc_swap::{ArcSwapOption, ArcSwapWeak};

use super::lease::{Lease, LeaseQuote, Leases, Terms};
use super::plan::Plan;
use super::verdict::{Denial, tighter};
use super::{
    Ask, CONCURRENCY_RETRY, Dimension, MeterState, Nanos, Now, Part, Quota, Standing, State,
};

/// One limit of a subject.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub(super) enum Limit {
    PerSecond,
    PerMinute,
    Tokens,
    Permits,
    Money,
}

impl Limit {
    const ALL: [Self; 5] = [
        Self::PerSecond,
        Self::PerMinute,
        Self::Tokens,
        Self::Permits,
        Self::Money,
    ];

    const fn name(self) -> &'static str {
        match self {
            Self::PerSecond => "requests/second",
            Self::PerMinute => "requests/minute",
            Self::Tokens => "tokens/minute",
            Self::Permits => "concurrency",
            Self::Money => "money",
        }
    }
}

/// Finds the leases of a subject. It holds none of them, so that the registry may forget those
/// that nobody uses.
#[derive(Debug)]
pub(super) struct Leased {
    registry: Arc<Leases>,
    subject: Box<str>,
    tag: Box<str>,
    /// Of these limits, among all that the subject had: an old meter's changes nothing.
    version: u64,
    rates: [ArcSwapWeak<Lease>; 4],
    /// With the start of the period that it is for.
    money: ArcSwapOption<(i64, Weak<Lease>)>,
}

impl Leased {
    pub(super) fn new(registry: &Arc<Leases>, subject: &str, tag: &str) -> Self {
        Self {
            registry: Arc::clone(registry),
            subject: subject.into(),
            tag: tag.into(),
            version: registry.next_version(),
            rates: Default::default(),
            money: ArcSwapOption::empty(),
        }
    }

    /// The same subject's, for other limits.
    pub(super) fn renewed(&self) -> Self {
        Self::new(&self.registry, &self.subject, &self.tag)
    }

    fn make(&self, id: &str, terms: Terms) -> Arc<Lease> {
        self.registry.get_as_of(self.version, id, &self.tag, terms)
    }

    /// The lease of a limit, at `unix_s` where the calendar matters; `None` if there is no limit.
    pub(super) fn lease(&self, limit: Limit, plan: &Plan, unix_s: i64) -> Option<Arc<Lease>> {
        if limit == Limit::Money {
            return self.money(plan, unix_s);
        }
        let terms = terms(limit, plan)?;
        let place = self.rates.get(limit as usize)?;
        if let Some(lease) = place.load().upgrade() {
            return Some(lease);
        }
        let lease = self.make(&format!("{}/{}", self.subject, limit.name()), terms);
        place.store(Arc::downgrade(&lease));
        Some(lease)
    }

    /// The fill, as far as it is known here.
    pub(super) fn state(&self, plan: &Plan, now: Nanos) -> MeterState {
        let mut state = MeterState::default();
        for limit in Limit::ALL.into_iter().filter(|l| *l != Limit::Money) {
            if let Some(lease) = self.lease(limit, plan, 0) {
                add(&mut state, limit, lease.state(now));
            }
        }
        state
    }

    /// Each limit as it stands, as far as it is known here, and the store is asked for what is not:
    /// soon after, a second look shows that.
    pub(super) fn standings(&self, plan: &Plan, now: Now) -> Vec<Standing> {
        let standing = |limit: Limit| {
            let lease = self.lease(limit, plan, now.unix_s)?;
            lease.look(now.mono);
            let state = lease.state(now.mono);
            let (size, burst, period) = sizes(limit, plan);
            let (dimension, reset) = match limit {
                Limit::PerSecond | Limit::PerMinute => (Dimension::Requests, Some(state.reset)),
                Limit::Tokens => (Dimension::Tokens, Some(state.reset)),
                Limit::Permits => (Dimension::Concurrency, None),
                Limit::Money => {
                    let end = plan.budget.and_then(|b| b.period.bounds(now.unix_s).1);
                    let left = end.map(|end| (end - now.unix_s).max(0) as u64);
                    (
                        Dimension::Budget,
                        left.map(|s| s.saturating_mul(1_000_000_000)),
                    )
                }
            };
            Some(Standing {
                dimension,
                period,
                limit: size,
                burst,
                remaining: state.remaining,
                reset,
            })
        };
        Limit::ALL.into_iter().filter_map(standing).collect()
    }

    fn money(&self, plan: &Plan, unix_s: i64) -> Option<Arc<Lease>> {
        let budget = plan.budget?;
        let start = budget.period.bounds(unix_s).0;
        if let Some(known) = &*self.money.load()
            && known.0 == start
            && let Some(lease) = known.1.upgrade()
        {
            return Some(lease);
        }
        let period = budget.period.as_str();
        let id = format!("{}/{}/{period}/{start}", self.subject, Limit::Money.name());
        let lease = self.make(&id, Terms::money(budget.nano, plan.on_store_loss));
        self.money
            .store(Some(Arc::new((start, Arc::downgrade(&lease)))));
        Some(lease)
    }
}

fn terms(limit: Limit, plan: &Plan) -> Option<Terms> {
    let rate = |quota: &Option<Quota>, period_s| {
        let quota = quota.as_ref()?;
        let period = Duration::from_secs(period_s);
        Some(Terms::rate(
            quota.limit(),
            period,
            quota.burst(),
            plan.on_store_loss,
        ))
    };
    match limit {
        Limit::PerSecond => rate(&plan.per_second, 1),
        Limit::PerMinute => rate(&plan.per_minute, 60),
        Limit::Tokens => rate(&plan.tokens, 60),
        Limit::Permits => (plan.max_in_flight < u64::MAX)
            .then(|| Terms::permits(plan.max_in_flight, plan.on_store_loss)),
        Limit::Money => None,
    }
}

/// What leases say to a request.
#[derive(Clone, Copy, Debug)]
pub(super) enum Stop {
    /// A limit refuses it.
    Deny(Denial),
    /// The store may have what is missing here; the refusal if it has not.
    Want(Denial),
}

/// One meter's part in an admission.
pub(super) struct Lines {
    now: Now,
    lines: [Option<Line>; 5],
}

struct Line {
    limit: Limit,
    lease: Arc<Lease>,
    cost: u64,
    /// As configured.
    size: u64,
    burst: u64,
    period: &'static str,
    quote: LeaseQuote,
}

impl Line {
    fn stop(&self, now: Now) -> Option<Stop> {
        let wait = match self.quote {
            LeaseQuote::Pass { .. } => return None,
            // Whether it has is known in a moment.
            LeaseQuote::NeedGrant => return Some(Stop::Want(self.denial(Some(CONCURRENCY_RETRY)))),
            LeaseQuote::Never => None,
            LeaseQuote::Wait { until } => Some(until.saturating_sub(now.mono)),
        };
        let retry_after = wait.and_then(|wait| match self.limit {
            Limit::PerSecond | Limit::PerMinute | Limit::Tokens => Some(wait),
            // No clock tells when what others hold comes back.
            Limit::Permits => Some(CONCURRENCY_RETRY),
            Limit::Money => self.may_return().then_some(CONCURRENCY_RETRY),
        });
        Some(Stop::Deny(self.denial(retry_after)))
    }

    /// Whether money that is missing may be there later: requests in flight hold it, or the store
    /// is away.
    fn may_return(&self) -> bool {
        self.lease.in_share() || self.lease.known_spent().saturating_add(self.cost) <= self.size
    }

    fn denial(&self, retry_after: Option<Nanos>) -> Denial {
        let dimension = match self.limit {
            Limit::PerSecond | Limit::PerMinute => Dimension::Requests,
            Limit::Tokens => Dimension::Tokens,
            Limit::Permits => Dimension::Concurrency,
            Limit::Money => Dimension::Budget,
        };
        Denial {
            dimension,
            period: self.period,
            retry_after,
            limit: self.size,
            burst: self.burst,
        }
    }
}

impl Lines {
    pub(super) fn new(leased: &Leased, plan: &Plan, now: Now, ask: Ask, part: Part) -> Self {
        let lines = Limit::ALL.map(|limit| {
            let takes_part = match limit {
                Limit::PerSecond | Limit::PerMinute | Limit::Tokens => part.has_use(),
                Limit::Permits => part.has_place(),
                Limit::Money => true,
            };
            if !takes_part {
                return None;
            }
            let lease = leased.lease(limit, plan, now.unix_s)?;
            let cost = match limit {
                Limit::PerSecond | Limit::PerMinute | Limit::Permits => 1,
                Limit::Tokens => ask.tokens,
                Limit::Money => ask.nano,
            };
            let (size, burst, period) = sizes(limit, plan);
            let quote = lease.quote(now.mono, cost);
            Some(Line {
                limit,
                lease,
                cost,
                size,
                burst,
                period,
                quote,
            })
        });
        Self { now, lines }
    }

    /// What stands against it: a refusal before a wish.
    pub(super) fn stop(&self) -> Option<Stop> {
        let mut found: Option<Stop> = None;
        for stop in self.lines.iter().flatten().filter_map(|l| l.stop(self.now)) {
            found = match (found, stop) {
                (Some(Stop::Deny(known)), Stop::Deny(denial)) if !denial.outranks(&known) => {
                    Some(Stop::Deny(known))
                }
                (Some(known), Stop::Want(_)) => Some(known),
                (_, stop) => Some(stop),
            };
        }
        found
    }

    /// Takes all of it, or nothing.
    pub(super) fn take(&mut self) -> Result<(), Stop> {
        let now = self.now;
        for at in 0..self.lines.len() {
            let Some(Some(line)) = self.lines.get_mut(at) else {
                continue;
            };
            line.quote = line.lease.take(now.mono, line.cost);
            if let Some(stop) = line.stop(now) {
                self.give_back(at);
                return Err(stop);
            }
        }
        Ok(())
    }

    /// Gives back what the first `count` lines took.
    fn give_back(&self, count: usize) {
        for line in self.lines.iter().take(count).flatten() {
            line.lease.give_back(line.cost);
        }
    }

    /// Takes everything back: another meter said no.
    pub(super) fn undo(&self) {
        self.give_back(self.lines.len());
    }

    /// What is missing here and may be had of the store.
    pub(super) fn wants(&self) -> impl Iterator<Item = (Arc<Lease>, u64)> {
        self.lines
            .iter()
            .flatten()
            .filter(|line| line.quote == LeaseQuote::NeedGrant)
            .map(|line| (Arc::clone(&line.lease), line.cost))
    }

    /// The fill, as far as it is known here.
    pub(super) fn state(&self) -> MeterState {
        let mut state = MeterState::default();
        for line in self.lines.iter().flatten() {
            add(&mut state, line.limit, line.lease.state(self.now.mono));
        }
        state
    }
}

fn add(state: &mut MeterState, limit: Limit, fill: State) {
    match limit {
        Limit::PerSecond | Limit::PerMinute => {
            state.requests = tighter(state.requests, Some(fill));
        }
        Limit::Tokens => state.tokens = Some(fill),
        Limit::Permits => {
            state.max_in_flight = u32::try_from(fill.limit).ok();
            state.in_flight = fill.limit.saturating_sub(fill.remaining);
        }
        Limit::Money => {}
    }
}

/// Size, burst and period of a limit, for people.
fn sizes(limit: Limit, plan: &Plan) -> (u64, u64, &'static str) {
    let rate = |quota: &Option<Quota>, period| {
        let quota = quota.as_ref();
        (
            quota.map_or(0, Quota::limit),
            quota.map_or(0, Quota::burst),
            period,
        )
    };
    match limit {
        Limit::PerSecond => rate(&plan.per_second, "second"),
        Limit::PerMinute => rate(&plan.per_minute, "minute"),
        Limit::Tokens => rate(&plan.tokens, "minute"),
        Limit::Permits => (plan.max_in_flight, plan.max_in_flight, ""),
        Limit::Money => plan
            .budget
            .map_or((0, 0, ""), |b| (b.nano, b.nano, b.period.as_str())),
    }
}
