//! What an error says of the upstream that it came from.
use std::time::Duration;

use serde::Serialize;

use crate::error::{Error, Kind};
use crate::snapshot::Reason;

/// How long an upstream that is overloaded and does not say until when is left alone.
const OVERLOADED: Duration = Duration::from_secs(1);
/// The same where our account's quota is used up, which no short wait changes.
const USED_UP: Duration = Duration::from_secs(60);

/// Why an upstream is or was ejected.
#[derive(Clone, Copy, Debug, PartialEq, Eq, Hash, Serialize)]
#[serde(rename_all = "snake_case")]
pub enum Cause {
    /// Failures in a row.
    Consecutive,
    /// The share of failures.
    FailureShare,
    /// First tokens much later than its siblings'.
    Latency,
    /// The trial request after an ejection failed.
    Trial,
}

impl Cause {
    /// All, in the order of their index.
    pub const ALL: [Self; 4] = [
        Self::Consecutive,
        Self::FailureShare,
        Self::Latency,
        Self::Trial,
    ];

    /// The name in metrics.
    pub const fn name(self) -> &'static str {
        match self {
            Self::Consecutive => "consecutive",
            Self::FailureShare => "failure_share",
            Self::Latency => "latency",
            Self::Trial => "trial",
        }
    }
}

/// What an error says of its upstream.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum Verdict {
    /// Nothing: the request or the client was at fault, or the gateway itself.
    Neutral,
    /// It has too much to do, and is left alone for so long.
    Overload(Duration),
    /// It failed.
    Failure,
}

impl Verdict {
    /// Of an attempt's error: connections that did not come about, timeouts, 5xx, streams that were
    /// cut and answers that are none are failures, and so are refusals of our credentials. A 429 is
    /// overload, and so are a used-up quota and a 503 that says when to come back, or that the engine
    /// is being started. What the client is to blame for says nothing.
    pub fn of(error: &Error) -> Self {
        let overload = |unless_told| Self::Overload(error.retry_after.unwrap_or(unless_told));
        match error.reason {
            Some(Reason::ContextOverflow | Reason::ContentFilter) => return Self::Neutral,
            Some(Reason::Loading) => return overload(OVERLOADED),
            Some(Reason::Quota) => return overload(USED_UP),
            None => {}
        }
        match error.kind {
            Kind::RateLimited => overload(OVERLOADED),
            Kind::BudgetExhausted => overload(USED_UP),
            Kind::Unavailable => error.retry_after.map_or(Self::Failure, Self::Overload),
            Kind::UpstreamError | Kind::UpstreamTimeout => Self::Failure,
            Kind::InvalidRequest
            | Kind::Unauthenticated
            | Kind::Forbidden
            | Kind::ModelNotFound
            | Kind::NotFound
            | Kind::MethodNotAllowed
            | Kind::PayloadTooLarge
            | Kind::ClientClosed
            | Kind::Conflict
            | Kind::KeyReused
            | Kind::Internal => Self::Neutral,
        }
    }
}
