//! One admission over every limit that applies, and the guard that settles it exactly once.

use std::sync::Arc;
use std::sync::atomic::{AtomicBool, Ordering};
use std::time::Duration;

use super::lease::Lease;
use super::leased::Stop;
use super::pending::Pending;
use super::verdict::Denial;
use super::{Ask, Meter, MeterState, Nanos, Now, Part, Refusal};

/// How many tokens beyond its reservation a stream may deliver before they are charged.
pub const PROGRESS_STEP: u64 = 256;

/// How long a request waits for the store that machines share; then this process's share counts.
pub const GRANT_WAIT: Duration = Duration::from_millis(60);

/// Whose limits apply to a request, in the order in which they are taken.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum Scope {
    /// The account, over all its keys.
    Account,
    /// The key.
    Key,
    /// The model, over all clients.
    Model,
    /// The key on one model.
    KeyModel,
}

impl Scope {
    /// All, in order.
    pub const ALL: [Self; 4] = [Self::Account, Self::Key, Self::Model, Self::KeyModel];

    /// The name in the admin API and in errors.
    pub const fn as_str(self) -> &'static str {
        match self {
            Self::Account => "account",
            Self::Key => "key",
            Self::Model => "model",
            Self::KeyModel => "key_model",
        }
    }
}

/// The meters that apply to a request, one a [`Scope`] at most.
pub type Meters = [Option<Arc<Meter>>; 4];

/// The permits of one request: they go back once, at its end or before.
#[derive(Debug)]
pub struct Places {
    meters: Meters,
    returned: AtomicBool,
}

impl Places {
    /// Gives the permits back, if they are still held.
    pub fn give_back(&self) {
        if !self.returned.swap(true, Ordering::AcqRel) {
            for meter in self.meters.iter().flatten() {
                meter.release();
            }
        }
    }
}

/// One admitted request: its permits, and the tokens and the money that it holds, of every meter.
///
/// Ends in [`Self::settle`], [`Self::cancel`] or a drop, each by value, so exactly once. A drop
/// keeps the tokens that are held (the reservation and what [`Self::charge_progress`] added), as
/// nobody learnt the true use, and spends the money that was known to be.
#[derive(Debug)]
#[must_use = "dropping it ends the request"]
pub struct Reservation {
    meters: Meters,
    part: Part,
    /// Who else may give the permits back.
    places: Option<Arc<Places>>,
    held: u64,
    /// Nano-USD reserved and not yet spent.
    reserved: u64,
    /// Nano-USD known to be spent.
    spent: u64,
    admitted_s: i64,
    /// Some meter counts money.
    holds_money: bool,
    /// Tokens used when the cost was last asked for.
    told: u64,
}

impl Reservation {
    /// Admits a request under all of `meters`, or under none.
    ///
    /// Looks at every limit first, then takes in order; when a race is lost in between, what was
    /// taken is given back.
    ///
    /// # Errors
    /// [`Declined`], at no cost.
    pub fn admit(meters: Meters, now: Now, ask: Ask) -> Result<(Self, MeterState), Declined> {
        Self::admit_part(meters, now, ask, Part::Whole)
    }

    /// As [`Self::admit`], but of a session, or of a request of one.
    ///
    /// # Errors
    /// [`Declined`], at no cost.
    pub fn admit_part(
        meters: Meters,
        now: Now,
        ask: Ask,
        part: Part,
    ) -> Result<(Self, MeterState), Declined> {
        let state = take(&meters, now, ask, part)?;
        let holds_money = meters.iter().flatten().any(|meter| meter.has_budget());
        Ok((
            Self {
                meters,
                part,
                places: None,
                holds_money,
                told: 0,
                held: ask.tokens,
                reserved: ask.nano,
                spent: 0,
                admitted_s: now.unix_s,
            },
            state,
        ))
    }

    /// Whether money is counted for it.
    pub fn holds_money(&self) -> bool {
        self.holds_money
    }

    /// Tokens held: reserved, and charged since.
    pub fn held(&self) -> u64 {
        self.held
    }

    /// The request's permits, to give back before its tokens are settled: its client may have gone
    /// while its engine still works.
    pub fn places(&mut self) -> Arc<Places> {
        let places = self.places.get_or_insert_with(|| {
            Arc::new(Places {
                meters: self.meters.clone(),
                returned: AtomicBool::new(!self.part.has_place()),
            })
        });
        Arc::clone(places)
    }

    fn each(&self) -> impl Iterator<Item = &Arc<Meter>> {
        self.meters.iter().flatten()
    }

    /// Tells how many tokens the request has used so far, input included. Charges those beyond the
    /// reservation in steps of [`PROGRESS_STEP`]. Whether it is time to say what they cost.
    #[inline]
    pub fn charge_progress(&mut self, used: u64) -> bool {
        let due = self.holds_money && used >= self.told + PROGRESS_STEP;
        if due {
            self.told = used;
        }
        self.charge_beyond(used);
        due
    }

    #[inline]
    fn charge_beyond(&mut self, used: u64) {
        let beyond = used.saturating_sub(self.held);
        if beyond < PROGRESS_STEP {
            return;
        }
        let due = beyond - beyond % PROGRESS_STEP;
        for meter in self.each() {
            meter.settle(0, due);
        }
        self.held += due;
    }

    /// Puts `nano` in all down as spent, so that it is even if this process dies.
    pub fn spend_progress(&mut self, nano: u64) {
        let more = nano.saturating_sub(self.spent);
        if more == 0 {
            return;
        }
        let covered = more.min(self.reserved);
        for meter in self.each() {
            meter.spend(self.admitted_s, covered, more);
        }
        self.reserved -= covered;
        self.spent += more;
    }

    /// Ends the request with the tokens it used, input included, and their cost; 0 is a value.
    pub fn settle(mut self, used: u64, nano: u64) {
        for meter in self.each() {
            meter.settle(self.held, used);
        }
        self.spend_progress(nano);
        self.unspend_beyond(nano);
    }

    /// Ends a request whose upstream was never contacted: it costs nothing.
    pub fn cancel(mut self) {
        for meter in self.each() {
            if self.part.has_use() {
                meter.cancel(self.held);
            }
        }
        self.unspend_beyond(0);
    }

    fn unspend_beyond(&mut self, nano: u64) {
        let over = self.spent.saturating_sub(nano);
        if over > 0 {
            for meter in self.each() {
                meter.unspend(self.admitted_s, over);
            }
            self.spent = nano;
        }
    }
}

impl Drop for Reservation {
    fn drop(&mut self) {
        for meter in self.each() {
            meter.spend(self.admitted_s, self.reserved, 0);
        }
        match &self.places {
            Some(places) => places.give_back(),
            None if self.part.has_place() => self.each().for_each(|meter| meter.release()),
            None => {}
        }
    }
}

/// Why a request was not admitted, at no cost.
#[derive(Debug)]
pub enum Declined {
    /// A limit refuses it: the one to name among all.
    Refused(Box<Refusal>),
    /// What is missing here may be had of the store that machines share: ask for it, then try once
    /// more.
    Wanting(Wanting),
}

/// What to ask the store for.
#[derive(Debug)]
pub struct Wanting {
    leases: Vec<(Arc<Lease>, u64)>,
    refusal: Box<Refusal>,
}

impl Wanting {
    /// Waits until the store has answered for all of it, `within` at most; what it did not answer
    /// for is spent from this process's share. `clock` is the clock of admissions.
    pub async fn answered(&self, within: Duration, clock: impl Fn() -> Nanos) {
        let now = clock();
        let asked: Vec<_> = self
            .leases
            .iter()
            .map(|(lease, cost)| (lease, lease.request(now, *cost)))
            .collect();
        let all = async {
            for (lease, ticket) in &asked {
                lease.answered(*ticket).await;
            }
        };
        if tokio::time::timeout(within, all).await.is_err() {
            for (lease, ticket) in asked {
                if !lease.is_answered(ticket) {
                    lease.unanswered(clock());
                }
            }
        }
    }

    /// The refusal of a request that found nothing after asking either.
    pub fn into_refusal(self) -> Box<Refusal> {
        self.refusal
    }
}

fn take(meters: &Meters, now: Now, ask: Ask, part: Part) -> Result<MeterState, Declined> {
    let mut pending = meters.each_ref().map(|meter| {
        let meter = meter.as_ref()?;
        Some(Pending::new(meter, now, ask, part))
    });
    let mut worst: Option<(Scope, Denial)> = None;
    let mut wanting = None;
    for (scope, part) in Scope::ALL.into_iter().zip(&pending) {
        match part.as_ref().and_then(Pending::stop) {
            Some(Stop::Want(denial)) => wanting = wanting.or(Some((scope, denial))),
            Some(Stop::Deny(denial)) if worst.is_none_or(|(_, known)| denial.outranks(&known)) => {
                worst = Some((scope, denial));
            }
            Some(Stop::Deny(_)) | None => {}
        }
    }
    if let Some((scope, denial)) = worst {
        return Err(Declined::Refused(
            denial.refusal(scope, untaken(meters, now)),
        ));
    }
    if let Some((scope, denial)) = wanting {
        return Err(want(scope, denial, &pending, untaken(meters, now)));
    }
    for at in 0..pending.len() {
        let Some(Some(next)) = pending.get_mut(at) else {
            continue;
        };
        if let Err(stop) = next.take() {
            for taken in pending.iter().take(at).flatten() {
                taken.give_back();
            }
            let scope = Scope::ALL.get(at).copied().unwrap_or(Scope::Key);
            let state = untaken(meters, now);
            let denial = match stop {
                Stop::Deny(denial) => denial,
                Stop::Want(denial) => return Err(want(scope, denial, &pending, state)),
            };
            return Err(Declined::Refused(denial.refusal(scope, state)));
        }
    }
    Ok(fill(&pending))
}

/// The fill that a refused request leaves: that of before, also where it would have passed.
#[cold]
fn untaken(meters: &Meters, now: Now) -> MeterState {
    meters
        .iter()
        .flatten()
        .map(|meter| meter.state(now.mono))
        .reduce(MeterState::tighter)
        .unwrap_or_default()
}

/// The fill that an admitted request leaves.
fn fill(pending: &[Option<Pending>; 4]) -> MeterState {
    pending
        .iter()
        .flatten()
        .map(Pending::state)
        .reduce(MeterState::tighter)
        .unwrap_or_default()
}

#[cold]
fn want(
    scope: Scope,
    denial: Denial,
    pending: &[Option<Pending>; 4],
    state: MeterState,
) -> Declined {
    Declined::Wanting(Wanting {
        leases: pending.iter().flatten().flat_map(Pending::wants).collect(),
        refusal: denial.refusal(scope, state),
    })
}
