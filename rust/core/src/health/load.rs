//! What an engine says of its own load.
use std::time::Duration;

use serde::Deserialize;

/// What an engine said last of its load. It goes stale: SGLang says nothing new for 15 decode steps
/// and does not count what has just arrived, so it is to be taken together with the gateway's own
/// requests in flight.
#[derive(Clone, Copy, Debug, PartialEq)]
pub struct Load {
    /// Requests that it computes.
    pub running: u32,
    /// Requests that wait inside it.
    pub waiting: u32,
    /// Tokens that its cache holds.
    pub tokens: u64,
    /// How long ago it said so.
    pub age: Duration,
}

/// A load report as the control plane hands it over.
#[derive(Clone, Copy, Debug, Default, Deserialize, PartialEq, Eq)]
#[serde(deny_unknown_fields)]
pub struct Report {
    /// See [`Load::running`].
    pub running: u32,
    /// See [`Load::waiting`].
    pub waiting: u32,
    /// See [`Load::tokens`].
    #[serde(default)]
    pub tokens: u64,
}
