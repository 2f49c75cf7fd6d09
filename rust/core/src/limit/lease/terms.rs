//! What is leased: the limit's size and how it refills.

use std::time::Duration;

use crate::limit::{MAX_NOW, Nanos};

/// Units at most; what exceeds it counts as this. It keeps sums within an `i64`.
const MAX_UNITS: u64 = 1 << 60;

/// Units as the ledgers count them.
#[inline]
pub(super) fn signed(units: u64) -> i64 {
    units.min(MAX_UNITS).cast_signed()
}

/// What a limit does while the store is lost.
#[derive(Clone, Copy, Debug, Default, PartialEq, Eq, Hash)]
pub enum OnStoreLoss {
    /// Every participant spends its share of the limit.
    #[default]
    Share,
    /// Nothing is admitted.
    Deny,
}

/// How a limit's units come back.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum Kind {
    /// Requests, tokens: `units` come back per `period`, up to `burst`.
    Rate {
        /// Units per period.
        units: u64,
        /// The period.
        period: Nanos,
        /// Units that may be spent at once.
        burst: u64,
    },
    /// Requests in flight: what was taken comes back when its request ends.
    Permits {
        /// Permits of all participants together.
        capacity: u64,
    },
    /// Money of one period: what was settled never comes back.
    Money {
        /// Nano-USD of all participants together.
        capacity: u64,
    },
}

/// A limit as its lease needs it.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub struct Terms {
    pub(super) kind: Kind,
    pub(super) on_loss: OnStoreLoss,
}

impl Terms {
    /// A limit of `units` per `period`, of which `burst` may be spent at once. Without units, or
    /// with a period of 0, every cost above 0 is refused.
    pub fn rate(units: u64, period: Duration, burst: u64, on_loss: OnStoreLoss) -> Self {
        let period = Nanos::try_from(period.as_nanos()).unwrap_or(MAX_NOW);
        let open = units > 0 && period > 0;
        let kind = Kind::Rate {
            units: units.clamp(1, MAX_UNITS),
            period: period.clamp(1, MAX_NOW),
            burst: if open { burst.min(MAX_UNITS) } else { 0 },
        };
        Self { kind, on_loss }
    }

    /// Up to `capacity` permits at once.
    pub fn permits(capacity: u64, on_loss: OnStoreLoss) -> Self {
        let capacity = capacity.min(MAX_UNITS);
        let kind = Kind::Permits { capacity };
        Self { kind, on_loss }
    }

    /// Up to `capacity` nano-USD in the period that the lease's id names.
    pub fn money(capacity: u64, on_loss: OnStoreLoss) -> Self {
        let capacity = capacity.min(MAX_UNITS);
        let kind = Kind::Money { capacity };
        Self { kind, on_loss }
    }

    /// The most that can be had at once.
    pub fn size(&self) -> u64 {
        match self.kind {
            Kind::Rate { burst, .. } => burst,
            Kind::Permits { capacity } | Kind::Money { capacity } => capacity,
        }
    }

    pub(super) fn is_rate(&self) -> bool {
        matches!(self.kind, Kind::Rate { .. })
    }

    /// Units that come back within `span`.
    pub(super) fn refill(&self, span: Nanos) -> f64 {
        match self.kind {
            Kind::Rate { units, period, .. } => units as f64 * (span as f64 / period as f64),
            Kind::Permits { .. } | Kind::Money { .. } => 0.0,
        }
    }

    /// How long `units` take to come back; `Nanos::MAX` if they never do.
    pub(super) fn time_for(&self, units: f64) -> Nanos {
        match self.kind {
            Kind::Rate {
                units: per, period, ..
            } => (units.max(0.0) * period as f64 / per as f64).ceil() as Nanos,
            Kind::Permits { .. } | Kind::Money { .. } => Nanos::MAX,
        }
    }

    /// How long the store remembers a rate after its last call: by then it is full.
    pub(super) fn forgotten_after(&self) -> Nanos {
        self.time_for(2.0 * self.size() as f64)
            .clamp(1_000_000_000, MAX_NOW)
    }
}
