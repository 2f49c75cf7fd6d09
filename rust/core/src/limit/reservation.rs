//! One admission over every limit that applies, and the guard that settles it exactly once.

use std::sync::Arc;

use super::meter::{Ask, MeterState, Now, Pending};
use super::{Meter, Refusal};

/// How many tokens beyond its reservation a stream may deliver before they are charged.
pub const PROGRESS_STEP: u64 = 256;

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

/// One admitted request: its permits, and the tokens and the money that it holds, of every meter.
///
/// Ends in [`Self::settle`], [`Self::cancel`] or a drop, each by value, so exactly once. A drop
/// keeps the tokens that are held (the reservation and what [`Self::charge_progress`] added), as
/// nobody learnt the true use, and spends the money that was known to be.
#[derive(Debug)]
#[must_use = "dropping it ends the request"]
pub struct Reservation {
    meters: Meters,
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
    /// [`Refusal`], at no cost: the limit to name among all, and whose it is.
    pub fn admit(meters: Meters, now: Now, ask: Ask) -> Result<(Self, MeterState), Box<Refusal>> {
        let state = take(&meters, now, ask)?;
        let holds_money = meters.iter().flatten().any(|meter| meter.has_budget());
        Ok((
            Self {
                meters,
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

    /// Tokens held: reserved, and charged since.
    pub fn held(&self) -> u64 {
        self.held
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
            meter.cancel(self.held);
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
            meter.release();
        }
    }
}

fn take(meters: &Meters, now: Now, ask: Ask) -> Result<MeterState, Box<Refusal>> {
    let mut pending = meters
        .each_ref()
        .map(|meter| meter.as_ref().map(|meter| Pending::new(meter, now, ask)));
    let fill = |pending: &[Option<Pending>; 4]| {
        pending
            .iter()
            .flatten()
            .map(Pending::state)
            .reduce(MeterState::tighter)
            .unwrap_or_default()
    };
    let mut worst = None;
    for (scope, denial) in Scope::ALL
        .into_iter()
        .zip(&pending)
        .filter_map(|(scope, pending)| Some((scope, pending.as_ref()?.denial()?)))
    {
        worst = match worst {
            Some((known, other)) if !denial.outranks(&other) => Some((known, other)),
            _ => Some((scope, denial)),
        };
    }
    if let Some((scope, denial)) = worst {
        return Err(denial.refusal(scope, fill(&pending)));
    }
    for at in 0..pending.len() {
        let Some(Some(next)) = pending.get_mut(at) else {
            continue;
        };
        if let Err(denial) = next.take() {
            for taken in pending.iter().take(at).flatten() {
                taken.give_back();
            }
            let scope = Scope::ALL.get(at).copied().unwrap_or(Scope::Key);
            let state = meters
                .iter()
                .flatten()
                .map(|meter| meter.state(now.mono))
                .reduce(MeterState::tighter)
                .unwrap_or_default();
            return Err(denial.refusal(scope, state));
        }
    }
    Ok(fill(&pending))
}
