//! What limits answer: an admission, a refusal, and how full they are.

use super::{Nanos, Scope, State};

/// The wait suggested to a request refused for concurrency: no clock tells when another one ends.
/// The same for money that is reserved by requests in flight.
pub const CONCURRENCY_RETRY: Nanos = 1_000_000_000;

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

    pub(super) fn worse(self, other: Option<Self>) -> Self {
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
