//! Failures, as the log is told of them.
use crate::attempts::Attempt;
use crate::error::Error;

/// A failure, as the log is told of it.
pub struct Failure<'a> {
    /// What failed.
    pub error: &'a Error,
    /// As in `x-request-id`; empty where there is none.
    pub request_id: &'a str,
    /// The attempt that failed; of other failures there is none.
    pub attempt: Option<&'a Attempt>,
}

/// What the log is told of a failure.
pub type Note = Box<dyn Fn(&Failure<'_>) + Send + Sync>;
