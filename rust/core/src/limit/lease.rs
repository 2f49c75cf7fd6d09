//! Limits that several processes share, spent from leases.
//!
//! A store (Redis, Valkey) keeps one ledger a limit. A *participant*, one worker process, borrows
//! units from it in advance, in a [`Lease`], and decides by plain counters. What it borrows,
//! returns and owes is told to the store off the request's path, by a syncer that takes [`Ask`]s
//! from the registry ([`Leases`]) and brings back [`Grant`]s.
//!
//! **Rates** (requests, tokens) refill at the store. **Holdings** do not: of a fixed capacity each
//! participant holds a part; permits come back when requests end, money that was settled never
//! does.
//!
//! Overshoot of a rate in any window W, of N participants: at most `b + r·W + N·(L + c)`, plus what
//! requests used beyond their reservation. L, what a participant holds at most, is the smaller of b/20
//! and b/N, or one request; c, what it may spend before it has asked, is b/20 or one request, and
//! never above b/N.
//! All of it is debited, so the next window pays it back. Holdings do not overshoot while the store
//! answers.
//!
//! With the store lost, a participant spends its share, 1 of N, and tells on return what is
//! not made good by then.
//!
//! Conservation makes it right: `held` is what the store lent less what was spent, whatever the
//! order in which requests, settlements and replies come.

mod ask;
mod registry;
mod share;
mod terms;
mod wire;

use std::sync::atomic::{AtomicBool, AtomicI64, AtomicU64, Ordering::Relaxed, Ordering::SeqCst};
use std::sync::{Arc, Weak};

use arc_swap::{ArcSwap, ArcSwapOption, Guard};
use parking_lot::Mutex;
use tokio::sync::Notify;

pub use ask::{Ask, Grant};
pub use registry::{Call, LeaseCounters, Leases, Round};
pub use terms::{Kind, OnStoreLoss, Terms};

use super::{Nanos, State};
use ask::Slow;
use registry::Hub;
use share::{Share, Verdict};
use terms::signed;

/// Asks of one lease are at least this far apart, unless a request waits.
pub const TAU: Nanos = 50_000_000;
/// How long a lease may be spent, from before the call that brought or renewed it.
pub const LIFE: Nanos = 1_000_000_000;
/// After an empty grant requests are refused until the store has more, and for this long beyond:
/// by then the syncer has asked, so that no request needs to wait.
const GRACE: Nanos = 10_000_000;
/// Requests closer together than this need not each be noted.
const GLANCE: Nanos = 1_000_000;

/// What a lease says to a cost.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum LeaseQuote {
    /// It is there ([`Lease::take`]: it was taken).
    Pass {
        /// Whole units left here and, as far as is known, at the store.
        remaining: u64,
    },
    /// It is not here, but the store may have it: call [`Lease::request`], wait for
    /// [`Lease::answered`], and take again. Another request may have taken what came, so that it is
    /// worth asking once or twice more.
    NeedGrant,
    /// Nothing to be had before `until`.
    Wait {
        /// The instant, of the same clock; `Nanos::MAX` if it cannot be told.
        until: Nanos,
    },
    /// The cost is above the burst or the capacity, which no wait cures.
    Never,
}

/// One participant's part of one limit.
///
/// The request path (`quote`, `take`, `give_back`, `charge`, `settle`) takes no lock while the
/// store answers.
#[derive(Debug)]
pub struct Lease {
    id: Box<str>,
    tag: Arc<str>,
    hub: Arc<Hub>,
    me: Weak<Lease>,
    terms: ArcSwap<Terms>,
    /// Of which configuration the terms are.
    version: AtomicU64,
    /// Lent by the store less spent here; below 0 is owed.
    held: AtomicI64,
    /// Of a holding, what requests have in use.
    used: AtomicI64,
    /// Money spent and not yet reported.
    settled: AtomicU64,
    /// Money spent here since the beginning.
    spent: AtomicU64,
    /// Money that is known to be spent by all, from elsewhere.
    floor: AtomicU64,
    /// Units that requests wanted, and how many wanted them; they wrap.
    offered: AtomicU64,
    requests: AtomicU64,
    /// When a request last came.
    seen: AtomicU64,
    /// Until when what is held may be spent.
    expires: AtomicU64,
    /// Until when the store has nothing.
    refuse_until: AtomicU64,
    /// What the store had left at `level_at`; 0 there is never.
    level: AtomicI64,
    level_at: AtomicU64,
    /// It is among the leases that the syncer looks at.
    queued: AtomicBool,
    /// It is among those that the syncer should look at now.
    urgent: AtomicBool,
    share: ArcSwapOption<Share>,
    slow: Mutex<Slow>,
    answer: Notify,
}

/// A reply that a request waits for.
#[derive(Clone, Copy, Debug)]
pub struct Ticket(u64);

impl Ticket {
    /// A number that stands for it across a language border.
    pub fn number(self) -> u64 {
        self.0
    }
}

impl From<u64> for Ticket {
    fn from(number: u64) -> Self {
        Self(number)
    }
}

impl Lease {
    fn new(id: &str, tag: Arc<str>, terms: Terms, version: u64, hub: Arc<Hub>) -> Arc<Self> {
        Arc::new_cyclic(|me| Self {
            id: id.into(),
            tag,
            hub,
            me: Weak::clone(me),
            terms: ArcSwap::from_pointee(terms),
            version: AtomicU64::new(version),
            held: AtomicI64::new(0),
            used: AtomicI64::new(0),
            settled: AtomicU64::new(0),
            spent: AtomicU64::new(0),
            floor: AtomicU64::new(0),
            offered: AtomicU64::new(0),
            requests: AtomicU64::new(0),
            seen: AtomicU64::new(0),
            expires: AtomicU64::new(0),
            refuse_until: AtomicU64::new(0),
            level: AtomicI64::new(0),
            level_at: AtomicU64::new(0),
            queued: AtomicBool::new(false),
            urgent: AtomicBool::new(false),
            share: ArcSwapOption::empty(),
            slow: Mutex::new(Slow::default()),
            answer: Notify::new(),
        })
    }

    /// The id under which the registry has it.
    pub fn id(&self) -> &str {
        &self.id
    }

    /// What it leases.
    pub fn terms(&self) -> Terms {
        **self.terms.load()
    }

    /// Replaces the terms, unless those that it has are of a later configuration.
    #[cold]
    fn revise(&self, terms: Terms, version: u64) {
        let _one_at_a_time = self.slow.lock();
        if version < self.version.load(Relaxed) {
            return;
        }
        self.version.store(version, Relaxed);
        let old = self.terms.swap(Arc::new(terms));
        if !terms.is_rate() {
            // What is spent or in use stays so, until the store counts anew.
            let change = signed(terms.size()) - signed(old.size());
            self.level.fetch_add(change, Relaxed);
            if change > 0 {
                self.refuse_until.store(0, Relaxed);
            }
        }
    }

    /// Units of a holding that requests have in use here.
    pub fn in_use(&self) -> u64 {
        self.used.load(Relaxed).max(0).cast_unsigned()
    }

    /// What taking `cost` would come to; takes nothing. Every request asks this once: it is how
    /// the lease learns the demand, refused or not.
    #[inline]
    pub fn quote(&self, now: Nanos, cost: u64) -> LeaseQuote {
        let terms = self.terms.load();
        if cost > terms.size() {
            return LeaseQuote::Never;
        }
        self.offered.fetch_add(cost, Relaxed);
        self.requests.fetch_add(1, Relaxed);
        self.touch(now);
        let held = self.held.load(Relaxed);
        if let Some(share) = &*self.share(now) {
            let used = self.used.load(Relaxed);
            return match share.quote(now, cost, held, used) {
                Verdict::Pass => LeaseQuote::Pass {
                    remaining: share.remaining(now, held, used).saturating_sub(cost),
                },
                Verdict::Wait(until) => LeaseQuote::Wait { until },
            };
        }
        self.judge(&terms, now, held, signed(cost))
    }

    /// Takes `cost` if it is there.
    #[inline]
    pub fn take(&self, now: Nanos, cost: u64) -> LeaseQuote {
        let terms = self.terms.load();
        if cost > terms.size() {
            return LeaseQuote::Never;
        }
        if let Some(share) = &*self.share(now) {
            return self.take_share(share, &terms, now, cost);
        }
        let mut held = self.held.load(Relaxed);
        loop {
            let found = self.judge(&terms, now, held, signed(cost));
            if !matches!(found, LeaseQuote::Pass { .. }) {
                return found;
            }
            match self
                .held
                .compare_exchange_weak(held, held - signed(cost), SeqCst, Relaxed)
            {
                Ok(_) => {
                    if !terms.is_rate() {
                        self.used.fetch_add(signed(cost), Relaxed);
                    }
                    self.touch(now);
                    self.hub.counters.from_lease.inc();
                    return found;
                }
                Err(seen) => held = seen,
            }
        }
    }

    #[cold]
    fn take_share(&self, share: &Share, terms: &Terms, now: Nanos, cost: u64) -> LeaseQuote {
        // Taken first, so that of racing requests the later one sees the earlier.
        let cost_held = signed(cost);
        let in_use = if terms.is_rate() { 0 } else { cost_held };
        let held = self.held.fetch_sub(cost_held, SeqCst);
        let used = self.used.fetch_add(in_use, SeqCst);
        match share.take(now, cost, held, used) {
            Verdict::Pass => {
                self.touch(now);
                self.hub.counters.from_share.inc();
                LeaseQuote::Pass {
                    remaining: share.remaining(now, held - cost_held, used + in_use),
                }
            }
            Verdict::Wait(until) => {
                self.held.fetch_add(cost_held, SeqCst);
                self.used.fetch_sub(in_use, SeqCst);
                LeaseQuote::Wait { until }
            }
        }
    }

    /// Gives back `units` that were taken and not used.
    pub fn give_back(&self, units: u64) {
        self.settle(units, 0);
    }

    /// Takes `units` of a rate whether they are there or not: what is missing is owed, and the
    /// store is told.
    pub fn charge(&self, units: u64) {
        self.settle(0, units);
    }

    /// Replaces what was taken by what was used. Of permits, `used` is nothing; of money it stays
    /// spent for good.
    pub fn settle(&self, taken: u64, used: u64) {
        let terms = self.terms.load();
        let (given, spent) = (signed(taken), signed(used));
        if !terms.is_rate() {
            self.used.fetch_sub(given, Relaxed);
            if matches!(terms.kind, Kind::Money { .. }) {
                self.settled.fetch_add(spent.cast_unsigned(), SeqCst);
                self.spent.fetch_add(spent.cast_unsigned(), Relaxed);
            }
        }
        self.held.fetch_add(given.saturating_sub(spent), SeqCst);
        if terms.is_rate()
            && let Some(share) = &*self.share.load()
        {
            if used > taken {
                share.charge(used - taken);
            } else {
                share.give_back(taken - used);
            }
        }
        self.enqueue();
    }

    /// At least this much money was spent by all participants, as someone else counted.
    pub fn spent_at_least(&self, units: u64) {
        self.floor.fetch_max(units, Relaxed);
    }

    /// Money that is known to be spent for good: by all, as someone else counted, or here.
    pub fn known_spent(&self) -> u64 {
        let here = self.spent.load(Relaxed);
        self.floor.load(Relaxed).max(here)
    }

    /// Tells the syncer that a request waits for `cost`, after [`LeaseQuote::NeedGrant`].
    #[cold]
    pub fn request(&self, now: Nanos, cost: u64) -> Ticket {
        let ticket = self.slow.lock().wait_for(cost);
        self.hub.counters.waits.inc();
        self.touch(now);
        self.call_soon();
        Ticket(ticket)
    }

    fn call_soon(&self) {
        if !self.urgent.swap(true, SeqCst)
            && let Some(me) = self.me.upgrade()
        {
            self.hub.urgent.push(me);
        }
        self.hub.ring();
    }

    /// Has the store asked what it has left, so that [`Self::state`] is right once it has
    /// answered. At most once per [`TAU`].
    pub fn look(&self, now: Nanos) {
        let heard = self.level_at.load(Relaxed);
        if (heard == 0 || now >= heard + TAU) && !self.hub.lost() {
            self.slow.lock().look();
            self.call_soon();
        }
    }

    /// Waits until the store has answered, or failed. It has no time-out: the caller bounds it,
    /// and then calls [`Self::unanswered`].
    pub async fn answered(&self, ticket: Ticket) {
        loop {
            let next = self.answer.notified();
            if self.is_answered(ticket) {
                return;
            }
            next.await;
        }
    }

    /// Whether the store has answered, or failed.
    pub fn is_answered(&self, ticket: Ticket) -> bool {
        self.slow.lock().answered >= ticket.0
    }

    /// A request has waited long enough: the store counts as lost for this rate until it answers.
    /// A holding's request is refused instead; what others hold is not known to be free.
    #[cold]
    pub fn unanswered(&self, now: Nanos) {
        if !self.terms().is_rate() {
            return;
        }
        self.enter_share(&mut self.slow.lock(), now);
    }

    /// The figures for headers; they are what is here and what the store is thought to have.
    pub fn state(&self, now: Nanos) -> State {
        let terms = self.terms();
        let limit = match terms.kind {
            Kind::Rate { burst: 0, .. } => 0,
            Kind::Rate { units, .. } => units,
            Kind::Permits { capacity } | Kind::Money { capacity } => capacity,
        };
        let held = self.held.load(Relaxed);
        let remaining = match &*self.share(now) {
            Some(share) => share.remaining(now, held, self.used.load(Relaxed)),
            None => self.remaining(&terms, now, held),
        };
        let missing = terms.size() - remaining.min(terms.size());
        let reset = match terms.kind {
            Kind::Rate { .. } => terms.time_for(missing as f64),
            Kind::Permits { .. } | Kind::Money { .. } => 0,
        };
        State {
            limit,
            remaining,
            reset,
        }
    }

    /// Whether the store is lost to it, so that it spends its share.
    pub fn in_share(&self) -> bool {
        self.share.load().is_some()
    }

    fn remaining(&self, terms: &Terms, now: Nanos, held: i64) -> u64 {
        let total = held.max(0) as f64 + self.estimate(terms, now).max(0.0) + held.min(0) as f64;
        (total.max(0.0) as u64).min(terms.size())
    }

    /// What the store is thought to have: all, if nothing was ever heard.
    fn estimate(&self, terms: &Terms, now: Nanos) -> f64 {
        let at = self.level_at.load(Relaxed);
        if at == 0 {
            let spent = match terms.kind {
                Kind::Money { .. } => self.floor.load(Relaxed),
                Kind::Rate { .. } | Kind::Permits { .. } => 0,
            };
            return terms.size().saturating_sub(spent) as f64;
        }
        let level = self.level.load(Relaxed) as f64 + terms.refill(now.saturating_sub(at));
        level.min(terms.size() as f64)
    }

    /// What a rate's lease may owe: as much as it may hold, its part of the burst at most, and no
    /// more than half of what the store is thought to have.
    fn credit(&self, terms: &Terms, cost: i64, level: f64) -> i64 {
        let part = terms.size() / self.hub.live();
        let allowed = signed((terms.size() / 20).max(cost as u64).min(part));
        allowed.min((level / 2.0) as i64)
    }

    #[inline]
    fn judge(&self, terms: &Terms, now: Nanos, held: i64, cost: i64) -> LeaseQuote {
        let valid = now < self.expires.load(Relaxed);
        let mut ready = if valid { held } else { held.min(0) };
        if !terms.is_rate() {
            // More is out than there is, since there is less: what comes back goes back.
            ready += self.level.load(Relaxed).min(0);
        }
        let pass = || LeaseQuote::Pass {
            remaining: self.remaining(terms, now, held - cost),
        };
        if ready >= cost {
            return pass();
        }
        let refuse_until = self.refuse_until.load(Relaxed);
        if !terms.is_rate() {
            // What was refused may have been much, and this be little.
            let fits = matches!(terms.kind, Kind::Money { .. })
                && cost - ready <= self.level.load(Relaxed);
            return if now < refuse_until && !fits {
                LeaseQuote::Wait {
                    until: refuse_until,
                }
            } else {
                LeaseQuote::NeedGrant
            };
        }
        let level = self.estimate(terms, now);
        let missing = (cost - ready) as f64;
        if now < refuse_until || level < missing {
            let until = now.saturating_add(terms.time_for((missing - level).max(0.0)));
            return LeaseQuote::Wait {
                until: until.max(refuse_until).max(now + 1),
            };
        }
        if ready - cost >= -self.credit(terms, cost, level) {
            return pass();
        }
        LeaseQuote::NeedGrant
    }

    /// The share, if the store is lost.
    #[inline]
    fn share(&self, now: Nanos) -> Guard<Option<Arc<Share>>> {
        let share = self.share.load();
        if share.is_none() && self.hub.lost() {
            self.enter_share(&mut self.slow.lock(), now);
            return self.share.load();
        }
        share
    }

    #[cold]
    fn enter_share(&self, slow: &mut Slow, now: Nanos) {
        if self.share.load().is_some() {
            return;
        }
        slow.ask_again(now);
        let terms = self.terms();
        let level = self.estimate(&terms, now);
        let held = self.held.load(Relaxed);
        self.share.store(Some(Arc::new(Share::new(
            &terms,
            self.hub.live(),
            held,
            level,
            now,
        ))));
        // However idle, it asks once when the store is back, so that no request finds a share then.
        self.enqueue();
    }

    /// Notes that a request came, and has the syncer look at this lease.
    #[inline]
    fn touch(&self, now: Nanos) {
        if now.saturating_sub(self.seen.load(Relaxed)) > GLANCE {
            self.seen.fetch_max(now, Relaxed);
        }
        self.enqueue();
    }

    #[inline]
    fn enqueue(&self) {
        if !self.queued.load(SeqCst)
            && !self.queued.swap(true, SeqCst)
            && let Some(me) = self.me.upgrade()
        {
            self.hub.fresh.push(me);
            self.hub.rouse();
        }
    }
}
