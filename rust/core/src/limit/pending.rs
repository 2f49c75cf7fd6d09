//! One meter's part in an admission: looked at first, then taken.

use std::sync::Arc;
use std::sync::atomic::AtomicU64;

use super::gcra::{Quote, Tat};
use super::lease::Lease;
use super::leased::{Lines, Stop};
use super::region::{Cell, Rows};
use super::verdict::{CONCURRENCY_RETRY, Denial, Dimension, MeterState, tighter};
use super::{Ask, Meter, Nanos, Now, Part, Quota, State};

/// One meter's part in an admission: looked at first, then taken.
pub(super) enum Pending<'a> {
    Here(Here<'a>),
    Leased(Lines),
}

impl<'a> Pending<'a> {
    #[inline]
    pub(super) fn new(meter: &'a Meter, now: Now, ask: Ask, part: Part) -> Self {
        match &meter.leased {
            None => Self::Here(Here::new(meter, now, ask, part)),
            Some(leased) => Self::Leased(Lines::new(leased, &meter.plan, now, ask, part)),
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
    part: Part,
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
    pub(super) fn new(meter: &'a Meter, now: Now, ask: Ask, part: Part) -> Self {
        let plan = &*meter.plan;
        let rates = match meter.rows().filter(|_| part.has_use()) {
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
            part,
            rates,
        }
    }

    /// The worst that stands against it, if anything does.
    #[inline]
    pub(super) fn denial(&self) -> Option<Denial> {
        let rows = self.meter.rows()?;
        let passes = self
            .rates
            .iter()
            .flatten()
            .all(|asked| matches!(asked.quote, Quote::Pass(..)))
            && !self.is_full(rows)
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
        if self.is_full(rows) {
            worst = Some(self.full_house().worse(worst));
        }
        if let Some(denial) = self.over_budget() {
            worst = Some(denial.worse(worst));
        }
        worst
    }

    #[inline]
    fn is_full(&self, rows: &Rows) -> bool {
        self.part.has_place() && rows.permits().sum() >= self.meter.plan.max_in_flight
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
    pub(super) fn take(&mut self) -> Result<(), Denial> {
        let Some(rows) = self.meter.rows() else {
            return Ok(());
        };
        let max = self.meter.plan.max_in_flight;
        if self.part.has_place() && !rows.permits().take(1, || max) {
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
        if self.part.has_place() {
            self.meter.release();
        }
    }

    /// Takes everything back: another meter said no.
    #[cold]
    fn give_back(&self) {
        self.undo(self.rates.len());
        self.meter.spend(self.now.unix_s, self.nano, 0);
    }

    /// The fill that is left.
    #[inline]
    pub(super) fn state(&self) -> MeterState {
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
