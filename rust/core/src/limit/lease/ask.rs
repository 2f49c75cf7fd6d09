//! The syncer's side of a lease: what to ask of the store, and when.

use std::sync::atomic::Ordering::{Relaxed, SeqCst};

use super::terms::{Kind, Terms, signed};
use super::{GRACE, LIFE, Lease, Nanos, TAU};

/// Without a request for so long, a rate's lease goes back.
const IDLE: Nanos = LIFE;
/// The same for holdings. Longer, because a first request of theirs always waits for the store.
const IDLE_HOLDING: Nanos = 3_000_000_000;
/// Leases are renewed when less than this is left of their life.
const RENEW: Nanos = LIFE / 4;
/// Parts of holdings are told at least so often: thrice within [`PART_LIFE`].
const BEAT: Nanos = 1_500_000_000;
/// More than is needed goes back at most so often.
const TIDY: Nanos = 2 * TAU;
/// After a failed call a lease asks again.
const RETRY: Nanos = 250_000_000;
/// A lease is meant to last for so many times [`TAU`].
const AHEAD: f64 = 4.0;
/// Far from the limit, what is owed is told so often.
const LEISURE: Nanos = 4 * TAU;
/// Near the limit, participants take turns: no one asks again sooner than its turn may come, but
/// after so long it does.
const TURN: Nanos = 200_000_000;
/// The demand is averaged over about so long; the larger of both counts.
const MEMORIES: [f64; 2] = [200_000_000.0, 2_000_000_000.0];
/// The store takes a participant's part of a holding back after so long without a word of it.
pub(super) const PART_LIFE: Nanos = 5_000_000_000;

/// What one call tells the store and asks of it. Units throughout; the reply is a [`Grant`].
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub struct Ask {
    /// The terms at the time of the call.
    pub terms: Terms,
    /// Grows from call to call; the same again tells of `settled` again.
    pub seq: u64,
    /// Spent beyond what was lent. Rates only.
    pub owed: u64,
    /// Lent and given back. Rates only.
    pub returned: u64,
    /// All that the participant holds, in use or not. Holdings only.
    pub part: u64,
    /// Spent for good since the last call. Money only.
    pub settled: u64,
    /// Known to be spent for good by all. Money only.
    pub floor: u64,
    /// Units wished for.
    pub want: u64,
    /// Of these, units that requests wait for.
    pub need: u64,
    /// The least that is of use, ≥ 1.
    pub unit: u64,
    /// The store had this limit not long ago: if it is gone there, it was lost.
    pub known: bool,
    /// How long the store was lost to this lease; 0 when it was not.
    pub away: Nanos,
    /// What the ledger is owed when the call succeeds.
    cleared: i64,
}

/// The store's reply to an [`Ask`].
#[derive(Clone, Copy, Debug, Default, PartialEq, Eq)]
pub struct Grant {
    /// Units lent.
    pub units: u64,
    /// Units left at the store; below 0 is debt.
    pub level: i64,
    /// With less than was needed: when there may be more.
    pub retry: Nanos,
    /// The call was overtaken by a later one and nothing was done.
    pub stale: bool,
}

/// When a lease wants to talk to the store.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub(super) enum Due {
    Now(Ask),
    /// Look again then.
    At(Nanos),
    /// Nothing to do until a request comes.
    Idle,
}

/// What only the syncer and waiting requests touch.
#[derive(Debug, Default)]
pub(super) struct Slow {
    /// Units that requests wait for, the largest of them, and how many wait.
    waiting: u64,
    largest: u64,
    waiters: u64,
    /// The same units and requests, of the call in flight.
    awaited: (u64, u64),
    /// Someone wants to know what the store has.
    curious: bool,
    /// Calls begun, and answered or failed.
    begun: u64,
    pub(super) answered: u64,
    in_flight: Option<Ask>,
    last_sent: Nanos,
    /// No call before this unless a request waits.
    not_before: Nanos,
    /// The store has the limit until then; 0: never heard.
    known_until: Nanos,
    /// Of holdings: what the store has lent, less what went back.
    part: i64,
    /// Settled money that was told, with the call's number, and not acknowledged.
    told: Option<(u64, u64)>,
    tidied: Nanos,
    /// The participant ends: nothing is to be kept.
    ends: bool,
    /// The least that was free since then.
    spare: i64,
    demand: Demand,
}

impl Slow {
    pub(super) fn wait_for(&mut self, cost: u64) -> u64 {
        self.waiting = self.waiting.saturating_add(cost);
        self.largest = self.largest.max(cost);
        self.waiters += 1;
        self.begun + 1
    }

    /// Lets the next call come at once, whether there is anything to tell.
    pub(super) fn look(&mut self) {
        self.curious = true;
    }

    /// The store is lost: ask as soon as it is back, not when it had said that there is more.
    pub(super) fn ask_again(&mut self, now: Nanos) {
        self.not_before = self.not_before.min(now + RETRY);
    }

    /// A call begins that all who wait now wait for.
    fn await_now(&mut self) {
        self.awaited.0 = self.awaited.0.saturating_add(self.waiting);
        self.awaited.1 += self.waiters;
        (self.waiting, self.largest, self.waiters) = (0, 0, 0);
        self.begun += 1;
    }

    /// Lets the next call come at once and give everything back.
    pub(super) fn end(&mut self) {
        self.ends = true;
        self.not_before = 0;
        self.last_sent = 0;
    }
}

/// How much requests want.
#[derive(Debug, Default)]
struct Demand {
    at: Nanos,
    offered: u64,
    requests: u64,
    /// Units per nanosecond, lately and for longer.
    rates: [f64; 2],
    /// Units per request.
    typical: f64,
    /// Units and requests that are counted a second time, because they waited.
    again: (u64, u64),
}

impl Demand {
    fn measure(&mut self, now: Nanos, offered: u64, requests: u64) {
        let span = now.saturating_sub(self.at);
        if span < TAU / 2 {
            return;
        }
        let again = std::mem::take(&mut self.again);
        let units = offered.wrapping_sub(self.offered).saturating_sub(again.0) as f64;
        let count = requests.wrapping_sub(self.requests).saturating_sub(again.1) as f64;
        // A pause is as long as it was: the first requests after it do not make a high rate.
        let rate = units / span as f64;
        for (average, memory) in self.rates.iter_mut().zip(MEMORIES) {
            let news = 1.0 - (-(span as f64) / memory).exp();
            *average += news * (rate - *average);
        }
        if count > 0.0 {
            let news = if self.typical == 0.0 { 1.0 } else { 0.2 };
            self.typical += news * (units / count - self.typical);
        }
        (self.at, self.offered, self.requests) = (now, offered, requests);
    }

    fn rate(&self) -> f64 {
        let [lately, longer] = self.rates;
        lately.max(longer)
    }

    fn unit(&self) -> u64 {
        (self.typical.ceil() as u64).max(1)
    }
}

impl Lease {
    /// What to ask now. Nothing while a call is in flight.
    pub(super) fn due(&self, now: Nanos) -> Due {
        let mut slow = self.slow.lock();
        if slow.in_flight.is_some() {
            return Due::At(now + TAU);
        }
        let (offered, requests) = (self.offered.load(Relaxed), self.requests.load(Relaxed));
        slow.demand.measure(now, offered, requests);
        let terms = self.terms();
        let due = if terms.is_rate() {
            self.due_rate(&mut slow, terms, now)
        } else {
            self.due_holding(&mut slow, terms, now)
        };
        if let Due::Now(ask) = due {
            slow.await_now();
            slow.curious = false;
            slow.last_sent = now;
            slow.in_flight = Some(ask);
            self.urgent.store(false, SeqCst);
        }
        due
    }

    /// What to hold, for a demand that goes on.
    fn target(&self, slow: &Slow, terms: &Terms) -> u64 {
        let unit = slow.demand.unit();
        let rate = slow.demand.rate();
        if terms.is_rate() && rate * (LIFE as f64) < unit as f64 {
            // It would run out unused; credit serves the next request.
            return 0;
        }
        let most = (terms.size() / 20)
            .min(terms.size() / self.hub.live())
            .max(unit);
        ((AHEAD * rate * TAU as f64).ceil() as u64)
            .clamp(unit, most)
            .min(terms.size())
    }

    fn due_rate(&self, slow: &mut Slow, terms: Terms, now: Nanos) -> Due {
        let recent = !slow.ends && now.saturating_sub(self.seen.load(Relaxed)) < IDLE;
        let share = self.share.load_full();
        let held = self.held.load(SeqCst);
        let expires = self.expires.load(Relaxed);
        let waits = slow.waiting > 0 || slow.curious;
        let paced = slow.not_before.max(slow.last_sent + TAU);
        if !waits && !slow.ends && now < paced {
            return Due::At(paced);
        }
        // Far from the limit nothing is borrowed ahead: credit serves, and debt is told at leisure.
        let unit = slow.demand.unit();
        let level = self.estimate(&terms, now);
        let credit = self.credit(&terms, signed(unit), level);
        let plenty = level * 4.0 >= terms.size() as f64 && credit >= signed(unit);
        let mut target = if recent { self.target(slow, &terms) } else { 0 };
        if plenty && 2 * target <= credit as u64 {
            target = 0;
        }
        let patient = plenty && -held <= credit / 2 && now < slow.last_sent + LEISURE;
        let in_debt = held < 0 && (slow.ends || !patient);
        let valid = now < expires;
        let keep = if valid { signed(target) } else { 0 };
        let surplus = if !recent || (!valid && share.is_none()) {
            held.max(0)
        } else if held > 2 * keep.max(1) && now >= slow.tidied + TIDY {
            held - keep
        } else {
            0
        };
        let low = recent && target > 0 && held < signed(target.div_ceil(2));
        let ages = recent && held > 0 && expires.saturating_sub(now) < RENEW;
        let heal = share.is_some();
        if !(waits || in_debt || surplus > 0 || low || ages || heal) {
            return if recent || held < 0 {
                Due::At(now + TAU)
            } else {
                self.rest(slow)
            };
        }
        if surplus > 0 {
            slow.tidied = now;
            self.held.fetch_sub(surplus, SeqCst);
        }
        let cleared = (-held).max(0);
        let deficit = share.as_ref().and_then(|share| share.deficit(now));
        let owed = deficit.map_or(cleared as u64, |deficit| deficit.min(cleared as u64));
        let kept = (held - surplus).max(0) as u64;
        let lacking = slow.waiting.saturating_sub(kept);
        let want = target.saturating_sub(kept).max(lacking).min(terms.size());
        let unit = unit.max(slow.largest).min(terms.size().max(1));
        Due::Now(Ask {
            terms,
            seq: self.hub.next_seq(),
            owed,
            returned: surplus as u64,
            part: 0,
            settled: 0,
            floor: 0,
            want,
            need: lacking.min(want),
            unit,
            known: now < slow.known_until
                || deficit.is_some_and(|d| d > 0)
                || self.hub.wiped(now, &terms),
            away: share.map_or(0, |share| now.saturating_sub(share.since).max(1)),
            cleared,
        })
    }

    fn due_holding(&self, slow: &mut Slow, terms: Terms, now: Nanos) -> Due {
        let age = now.saturating_sub(self.seen.load(Relaxed));
        let recent = !slow.ends && age < IDLE_HOLDING;
        let share = self.share.load_full();
        let waits = slow.waiting > 0 || slow.curious;
        let paced = slow.not_before.max(slow.last_sent + TAU);
        if !waits && !slow.ends && now < paced {
            return Due::At(paced);
        }
        // Before `held`: what is settled in between then counts as still held.
        let unsettled = self.settled.load(SeqCst) > 0 || slow.told.is_some();
        let free = self.held.load(SeqCst);
        slow.spare = slow.spare.min(free);
        let mut target = if recent { self.target(slow, &terms) } else { 0 };
        if slow.known_until > 0 && self.level.load(Relaxed) < signed(terms.size() / 4) {
            // Others may need it more than this participant may.
            target = 0;
        }
        let surplus = if !recent || share.is_some() {
            free.max(0)
        } else if now >= slow.tidied + TIDY {
            let idle = slow.spare.min(free);
            slow.tidied = now;
            slow.spare = free;
            if idle > 2 * signed(target) {
                idle - signed(target)
            } else {
                0
            }
        } else {
            0
        };
        let low = recent && free < signed(target.div_ceil(2));
        let beat = slow.part > 0 && now >= slow.last_sent + BEAT;
        let heal = share.is_some();
        if !(waits || unsettled || free < 0 || surplus > 0 || low || beat || heal) {
            return if recent {
                Due::At(now + TAU)
            } else if slow.part > 0 {
                Due::At(slow.last_sent + BEAT)
            } else {
                self.rest(slow)
            };
        }
        if surplus > 0 {
            self.held.fetch_sub(surplus, SeqCst);
            slow.spare = 0;
            slow.part -= surplus;
        }
        let (seq, settled) = match slow.told {
            Some(told) => told,
            None => (self.hub.next_seq(), self.settled.swap(0, SeqCst)),
        };
        if slow.told.is_none() && settled > 0 {
            slow.told = Some((seq, settled));
            slow.part -= signed(settled);
        }
        let cleared = (-self.held.load(SeqCst)).max(0);
        let part = (slow.part + cleared).max(0) as u64;
        let kept = (free - surplus).max(0) as u64;
        let lacking = slow.waiting.saturating_sub(kept);
        let want = target.saturating_sub(kept).max(lacking).min(terms.size());
        // Who waits needs no more than that, whatever is usual.
        let unit = match slow.largest {
            0 => slow.demand.unit(),
            largest => largest,
        };
        Due::Now(Ask {
            terms,
            seq,
            owed: 0,
            returned: 0,
            part,
            settled,
            floor: self.floor.load(Relaxed),
            want,
            need: lacking.min(want),
            unit: unit.min(terms.size().max(1)),
            known: now < slow.known_until,
            away: 0,
            cleared,
        })
    }

    /// Lets the syncer forget this lease until a request comes.
    fn rest(&self, slow: &Slow) -> Due {
        self.queued.store(false, SeqCst);
        // A request or a settlement that came since found it queued, and rang no bell.
        let busy = self.held.load(SeqCst) != 0 || self.settled.load(SeqCst) > 0 || slow.waiting > 0;
        if busy && !self.queued.swap(true, SeqCst) {
            return Due::At(0);
        }
        Due::Idle
    }

    /// The store answered the call that was sent at `sent`.
    pub(super) fn granted(&self, sent: Nanos, now: Nanos, grant: Grant) {
        let mut slow = self.slow.lock();
        let Some(ask) = slow.in_flight.take() else {
            return;
        };
        if grant.stale {
            slow.not_before = now + TAU;
            self.finish(&mut slow);
            return;
        }
        let terms = ask.terms;
        let units = signed(grant.units);
        self.share.store(None);
        if terms.is_rate() {
            self.held.fetch_add(ask.cleared + units, SeqCst);
            slow.known_until = now.saturating_add(terms.forgotten_after());
        } else {
            slow.told = None;
            slow.part = signed(ask.part) + units;
            self.held.fetch_add(ask.cleared + units, SeqCst);
            slow.known_until = now.saturating_add(PART_LIFE);
        }
        let life = if terms.is_rate() { LIFE } else { PART_LIFE };
        self.expires.store(sent.saturating_add(life), Relaxed);
        self.level.store(grant.level, Relaxed);
        self.level_at.store(now.max(1), Relaxed);
        // Near the limit requests get what the syncer brings and do not wait for the store.
        let scarce =
            terms.is_rate() && units < signed(ask.want) && grant.level < signed(terms.size() / 10);
        slow.not_before = if grant.retry > 0 {
            now + grant.retry.max(self.turn(&ask)).max(TAU)
        } else {
            0
        };
        let refused = if grant.retry > 0 {
            slow.not_before + GRACE
        } else if scarce {
            now + TAU + GRACE
        } else {
            0
        };
        self.refuse_until.store(refused, Relaxed);
        self.finish(&mut slow);
    }

    /// How long until a participant's turn comes, near the limit. Scattered, so that not the same
    /// one comes first each time.
    fn turn(&self, ask: &Ask) -> Nanos {
        let all = ask.unit.saturating_mul(self.hub.live());
        let turn = ask.terms.time_for(all as f64).min(TURN);
        let scatter = ask.seq.wrapping_mul(0x9E37_79B9_7F4A_7C15) >> 56;
        turn / 4 * 3 + turn / 512 * scatter
    }

    /// The call failed or was not answered in time; it may have been carried out.
    pub(super) fn failed(&self, now: Nanos) {
        let mut slow = self.slow.lock();
        if slow.in_flight.take().is_none() {
            return;
        }
        // What was returned is gone, what is owed is told again: neither ever lends too much.
        slow.not_before = now + RETRY;
        self.enter_share(&mut slow, now);
        self.finish(&mut slow);
    }

    /// Nothing will be asked for the requests that wait.
    pub(super) fn abandoned(&self, now: Nanos) {
        let mut slow = self.slow.lock();
        slow.await_now();
        self.enter_share(&mut slow, now);
        self.finish(&mut slow);
    }

    fn finish(&self, slow: &mut Slow) {
        slow.answered = slow.begun;
        // Those who waited ask again now, which is no new demand.
        let (units, requests) = std::mem::take(&mut slow.awaited);
        slow.demand.again.0 = slow.demand.again.0.saturating_add(units);
        slow.demand.again.1 += requests;
        self.answer.notify_waiters();
        if slow.waiting > 0 && !self.urgent.swap(true, SeqCst) {
            if let Some(me) = self.me.upgrade() {
                self.hub.urgent.push(me);
            }
            self.hub.ring();
        }
    }

    /// Whether no request and no debt makes it worth keeping at `now`.
    pub(super) fn forgettable(&self, now: Nanos) -> bool {
        let age = now.saturating_sub(self.seen.load(Relaxed));
        let keep = match self.terms().kind {
            Kind::Rate { .. } => self.terms().forgotten_after(),
            Kind::Permits { .. } | Kind::Money { .. } => 0,
        };
        !self.queued.load(SeqCst) && age > keep.clamp(60_000_000_000, 3_600_000_000_000)
    }
}
