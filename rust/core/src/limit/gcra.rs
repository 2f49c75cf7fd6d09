//! One limit: a quota, and the bucket that spends it.
//!
//! The bucket counts in *ticks*, chosen per quota so that one unit is a whole number of ticks. What
//! is charged and refunded is therefore exact and no rounding ever adds up, however fast the limit:
//! only the clock is rounded (down, to a tick, which is a nanosecond or less unless the burst is
//! enormous). Whole nanoseconds a unit would be 10 % wrong at 3·10⁸ units a second.

use std::num::NonZeroU64;
use std::sync::atomic::{AtomicU64, Ordering::Relaxed};
use std::time::Duration;

use super::Nanos;

/// The last instant at which every bucket still refills, 146 years into its clock (so Unix time in
/// nanoseconds fits). Later instants count as this one: limits then run dry, they never open.
pub const MAX_NOW: Nanos = 1 << 62;

/// Ticks per nanosecond at most, which makes `MAX_NOW` end at `MAX_TICKS`.
const MAX_TICKS_PER_NANO: u128 = 2;
/// The clock's end in ticks. The other half of the word holds bursts and debt.
const MAX_TICKS: u64 = 1 << 63;
/// A whole burst in ticks at most.
const MAX_BURST_TICKS: u64 = 1 << 62;

/// Why a quota cannot be.
#[derive(Clone, Copy, Debug, PartialEq, Eq, thiserror::Error)]
pub enum BadQuota {
    /// No units per period: such a limit would never refill.
    #[error("a limit needs at least 1 unit per period")]
    NoUnits,
    /// No burst: such a limit would refuse everything.
    #[error("a limit needs a burst of at least 1 unit")]
    NoBurst,
    /// A burst above 2⁶².
    #[error("a burst may be 2^62 units at most")]
    BurstTooLarge,
    /// A period of zero, or above [`MAX_NOW`].
    #[error("a limit's period must be from 1 ns to 146 years")]
    BadPeriod,
    /// More than two units a nanosecond (1.2·10¹¹ a minute).
    #[error("a limit may refill 2 units per nanosecond at most")]
    TooFast,
}

/// How fast a bucket refills and how much it holds.
#[derive(Clone, Copy, Debug, PartialEq, Eq, Hash)]
pub struct Quota {
    /// Ticks per nanosecond × 2^`shift`, rounded down, with the highest bit set (so to 2⁻⁶³).
    mult: NonZeroU64,
    shift: u32,
    /// Ticks per unit, ≥ 1.
    scale: u64,
    burst: u64,
    /// Units per period as configured: what clients are told.
    limit: u64,
}

impl Quota {
    /// A limit of `units` per `period`, of which `burst` may be spent at once.
    ///
    /// # Errors
    /// [`BadQuota`] names the argument that is out of range.
    pub fn new(units: u64, period: Duration, burst: u64) -> Result<Self, BadQuota> {
        let period = u64::try_from(period.as_nanos()).map_err(|_| BadQuota::BadPeriod)?;
        if period == 0 || period > MAX_NOW {
            return Err(BadQuota::BadPeriod);
        }
        if units == 0 {
            return Err(BadQuota::NoUnits);
        }
        if burst == 0 {
            return Err(BadQuota::NoBurst);
        }
        if burst > MAX_BURST_TICKS {
            return Err(BadQuota::BurstTooLarge);
        }
        if u128::from(units) > MAX_TICKS_PER_NANO * u128::from(period) {
            return Err(BadQuota::TooFast);
        }
        Ok(Self::of(units, period, burst, units))
    }

    /// A limit of `units` a minute; `burst` is all of them unless given.
    ///
    /// # Errors
    /// [`BadQuota`] names the argument that is out of range.
    pub fn per_minute(units: u64, burst: Option<u64>) -> Result<Self, BadQuota> {
        Self::new(units, Duration::from_secs(60), burst.unwrap_or(units))
    }

    /// Like [`Self::new`], with a period in nanoseconds, but takes every number: no units or no
    /// burst make a limit that refuses every cost above 0, and what exceeds a bucket's range (two
    /// units a nanosecond) becomes that range. [`Self::limit`] still reports `units`.
    pub(super) fn clamped(units: u64, period: u64, burst: u64) -> Self {
        let burst = if units == 0 {
            0
        } else {
            burst.min(MAX_BURST_TICKS)
        };
        Self::of(units.clamp(1, 2 * period), period, burst, units)
    }

    /// The arguments are in range, but `burst` may be 0.
    fn of(units: u64, period: u64, burst: u64, limit: u64) -> Self {
        let shared = gcd(units, period);
        let (units, period) = (units / shared, period / shared);
        let roomiest = (MAX_TICKS_PER_NANO * u128::from(period) / u128::from(units))
            .min(u128::from(MAX_BURST_TICKS / burst.max(1)))
            .max(1) as u64;
        // A scale of `period` makes a nanosecond `units` ticks: then the clock is exact too.
        let scale = if period <= roomiest { period } else { roomiest };

        // ticks per nanosecond = units·scale ÷ period ≤ 2, normalised to 64 significant bits.
        let ticks = u128::from(units) * u128::from(scale);
        let period = u128::from(period);
        let mut shift = 63 + ticks.leading_zeros() - period.leading_zeros();
        if (ticks << shift) / period < 1 << 63 {
            shift += 1;
        }
        let mult = ((ticks << shift) / period) as u64;
        Self {
            mult: NonZeroU64::new(mult).unwrap_or(NonZeroU64::MIN),
            shift,
            scale,
            burst,
            limit,
        }
    }

    /// Units per period, as configured.
    pub fn limit(&self) -> u64 {
        self.limit
    }

    /// Units that may be spent at once; a cost above this is never admitted.
    pub fn burst(&self) -> u64 {
        self.burst
    }

    /// The clock in ticks, rounded down.
    #[inline]
    pub(super) fn ticks(&self, now: Nanos) -> u64 {
        ((u128::from(now) * u128::from(self.mult.get())) >> self.shift).min(u128::from(MAX_TICKS))
            as u64
    }

    /// The first instant whose [`Self::ticks`] reach `ticks`; `Nanos::MAX` if none does.
    #[inline]
    fn instant(&self, ticks: u64) -> Nanos {
        let ticks = u128::from(ticks);
        if ticks > u128::from(MAX_TICKS) || ticks.leading_zeros() < self.shift {
            return Nanos::MAX;
        }
        (ticks << self.shift)
            .div_ceil(u128::from(self.mult.get()))
            .min(u128::from(Nanos::MAX)) as Nanos
    }

    #[inline]
    fn burst_ticks(&self) -> u64 {
        self.burst.saturating_mul(self.scale)
    }

    #[inline]
    fn cost_ticks(&self, cost: u64) -> u64 {
        cost.saturating_mul(self.scale)
    }

    /// What taking `cost`, which is within the burst, comes to.
    #[inline]
    fn quote(&self, tat: u64, clock: u64, cost: u64) -> Quote {
        let new = tat.max(clock).saturating_add(self.cost_ticks(cost));
        let burst = self.burst_ticks();
        if new - clock <= burst {
            Quote::Pass(tat, new)
        } else {
            Quote::Wait(new - burst)
        }
    }

    /// The wait from `now` until the clock reaches `until` ticks; `Nanos::MAX` if it never does.
    pub(super) fn wait(&self, until: u64, now: Nanos) -> Nanos {
        match self.instant(until) {
            Nanos::MAX => Nanos::MAX,
            at => at.saturating_sub(now),
        }
    }

    /// What a bucket of this quota holds at `clock` ticks (that is, at `now`).
    #[inline]
    pub(super) fn state(&self, tat: u64, clock: u64, now: Nanos) -> State {
        if tat <= clock {
            return State {
                limit: self.limit,
                remaining: self.burst,
                reset: 0,
            };
        }
        State {
            limit: self.limit,
            remaining: self.burst_ticks().saturating_sub(tat - clock) / self.scale,
            reset: self.instant(tat).saturating_sub(now),
        }
    }
}

fn gcd(mut a: u64, mut b: u64) -> u64 {
    while b != 0 {
        (a, b) = (b, a % b);
    }
    a
}

/// A bucket's fill, as rate-limit headers report it.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub struct State {
    /// Units per period, as configured.
    pub limit: u64,
    /// Whole units that could be spent now; 0 in debt.
    pub remaining: u64,
    /// Time until the bucket is full again if nothing is spent.
    pub reset: Nanos,
}

/// What [`Bucket::admit`] decided.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum Decision {
    /// The cost was taken.
    Allow {
        /// Whole units left.
        remaining: u64,
        /// Time until the bucket is full again.
        reset: Nanos,
    },
    /// Nothing was taken; the same cost will pass after `retry_after` unless others come first.
    Deny {
        /// The shortest wait that suffices: one nanosecond less would be refused again.
        retry_after: Nanos,
        /// Whole units left, fewer than the cost.
        remaining: u64,
        /// Time until the bucket is full again.
        reset: Nanos,
    },
    /// Nothing was taken: the cost exceeds the burst, which no wait cures.
    Never,
}

/// What a bucket would answer, before anything is written.
#[derive(Clone, Copy, Debug)]
pub(super) enum Quote {
    /// Replace arrival time `.0` with `.1`.
    Pass(u64, u64),
    /// Refused until the clock reaches this many ticks.
    Wait(u64),
    Never,
}

/// A bucket's whole state: the theoretical arrival time (TAT), when it will be full again, in ticks
/// of the quota that every call must be given.
///
/// It publishes no other memory, so every access is relaxed.
#[derive(Clone, Copy, Debug)]
pub(super) struct Tat<'a>(pub(super) &'a AtomicU64);

impl Tat<'_> {
    /// What taking `cost` at `clock` ticks would come to.
    #[inline]
    pub(super) fn quote(self, quota: &Quota, clock: u64, cost: u64) -> Quote {
        if cost > quota.burst {
            return Quote::Never;
        }
        quota.quote(self.0.load(Relaxed), clock, cost)
    }

    /// Carries a quote out; quotes again for as long as others move the state in between.
    #[inline]
    pub(super) fn take(self, quota: &Quota, clock: u64, mut found: Quote, cost: u64) -> Quote {
        while let Quote::Pass(old, new) = found {
            match self.0.compare_exchange_weak(old, new, Relaxed, Relaxed) {
                Ok(_) => break,
                Err(seen) => found = quota.quote(seen, clock, cost),
            }
        }
        found
    }

    pub(super) fn refund(self, quota: &Quota, cost: u64) {
        let ticks = quota.cost_ticks(cost);
        self.update(|tat| tat.saturating_sub(ticks));
    }

    pub(super) fn charge(self, quota: &Quota, cost: u64) {
        let ticks = quota.cost_ticks(cost);
        self.update(|tat| tat.saturating_add(ticks));
    }

    pub(super) fn peek(self, quota: &Quota, now: Nanos) -> State {
        quota.state(self.0.load(Relaxed), quota.ticks(now), now)
    }

    /// Takes over what is outstanding in a bucket of another quota, in units, rounded up, unless
    /// more is here already: workers that come one after another do this once.
    ///
    /// A smaller burst never turns what was within the old one into debt; debt stays debt.
    pub(super) fn carry(self, to: &Quota, old: Tat<'_>, from: &Quota, now: Nanos) {
        let taken = old.0.load(Relaxed).saturating_sub(from.ticks(now));
        let taken = taken.div_ceil(from.scale);
        let within = taken.min(from.burst).min(to.burst);
        let debt = taken.saturating_sub(from.burst);
        let ticks = to.cost_ticks(within.saturating_add(debt));
        self.0
            .fetch_max(to.ticks(now).saturating_add(ticks), Relaxed);
    }

    #[inline]
    fn update(self, f: impl Fn(u64) -> u64) {
        let mut tat = self.0.load(Relaxed);
        while let Err(seen) = self.0.compare_exchange_weak(tat, f(tat), Relaxed, Relaxed) {
            tat = seen;
        }
    }
}

/// One limit and its state: weighted GCRA in a single atomic word.
#[derive(Debug)]
pub struct Bucket {
    word: AtomicU64,
    quota: Quota,
}

impl Bucket {
    /// A full bucket.
    pub fn new(quota: Quota) -> Self {
        Self {
            word: AtomicU64::new(0),
            quota,
        }
    }

    fn tat(&self) -> Tat<'_> {
        Tat(&self.word)
    }

    /// The quota it spends.
    pub fn quota(&self) -> &Quota {
        &self.quota
    }

    /// Takes `cost` units if they are there.
    pub fn admit(&self, now: Nanos, cost: u64) -> Decision {
        let quota = &self.quota;
        let clock = quota.ticks(now);
        let tat = self.tat();
        match tat.take(quota, clock, tat.quote(quota, clock, cost), cost) {
            Quote::Pass(_, new) => {
                let State {
                    remaining, reset, ..
                } = quota.state(new, clock, now);
                Decision::Allow { remaining, reset }
            }
            Quote::Wait(until) => {
                let State {
                    remaining, reset, ..
                } = self.peek(now);
                Decision::Deny {
                    retry_after: quota.wait(until, now),
                    remaining,
                    reset,
                }
            }
            Quote::Never => Decision::Never,
        }
    }

    /// Gives back `cost` units that were taken. The bucket never exceeds its burst by it.
    pub fn refund(&self, cost: u64) {
        self.tat().refund(&self.quota, cost);
    }

    /// Takes `cost` units whether they are there or not. What is missing becomes debt, which
    /// refilling repays before the next admission; it is never forgiven.
    ///
    /// Counts from the last admission, not from now: the units were used in between.
    pub fn charge(&self, cost: u64) {
        self.tat().charge(&self.quota, cost);
    }

    /// The fill at `now`; takes nothing.
    pub fn peek(&self, now: Nanos) -> State {
        self.tat().peek(&self.quota, now)
    }
}
