//! What is configured, and what a request asks.

use super::lease::OnStoreLoss;
use super::{Budget, Nanos};

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

/// Which limits count what takes part in them: a session holds a permit while it lasts, and each of
/// its requests takes the rest.
#[derive(Clone, Copy, Debug, Default, PartialEq, Eq)]
pub enum Part {
    /// All.
    #[default]
    Whole,
    /// Those on what is in flight; money must be left.
    Place,
    /// All but those on what is in flight.
    Use,
}

impl Part {
    /// Whether a permit is taken.
    pub(super) const fn has_place(self) -> bool {
        !matches!(self, Self::Use)
    }

    /// Whether a request is counted, and its tokens.
    pub(super) const fn has_use(self) -> bool {
        !matches!(self, Self::Place)
    }
}
