//! An upstream's health for who looks.
use serde::Serialize;

use super::load::Load;
use super::verdict::Cause;

/// One upstream's health at an instant.
#[derive(Clone, Debug, PartialEq, Serialize)]
pub struct View {
    /// What probes found last: `unknown`, `warm`, `loading`, `cold`, `draining` or `down`.
    pub state: &'static str,
    /// Whether its agent `answers` or is `away`; none: there is none, or it was not asked yet.
    pub agent: Option<&'static str>,
    /// What that, its requests and who drains it come to: `open`, `trial`, `out`, `cold`, `loading`
    /// or `draining`.
    pub availability: &'static str,
    /// Its share of requests, below 1 in slow start; 0 unless open.
    pub share: f32,
    /// The ejection that it is in.
    pub ejection: Option<Ejected>,
    /// Ejections in all.
    pub ejections: u64,
    /// It said that it has too much to do; how long it is still left alone, seconds.
    pub backs_off_s: Option<f64>,
    /// Drained by an administrator or by the configuration.
    pub draining: bool,
    /// Requests that succeeded.
    pub successes: u64,
    /// Requests that failed.
    pub failures: u64,
    /// Moving average of the time to first token, milliseconds.
    pub first_token_ms: Option<f64>,
    /// What the engine said of its load.
    pub load: Option<LoadView>,
}

/// An ejection that is not over.
#[derive(Clone, Copy, Debug, PartialEq, Serialize)]
pub struct Ejected {
    /// Why.
    pub reason: Cause,
    /// Seconds until it is tried again; 0 when it waits for its trial.
    pub ends_in_s: f64,
    /// The how-maniest in succession.
    pub streak: u32,
}

/// [`Load`] as JSON.
#[derive(Clone, Copy, Debug, PartialEq, Serialize)]
pub struct LoadView {
    /// See [`Load::running`].
    pub running: u32,
    /// See [`Load::waiting`].
    pub waiting: u32,
    /// See [`Load::tokens`].
    pub tokens: u64,
    /// See [`Load::age`], seconds.
    pub age_s: f64,
}

impl From<Load> for LoadView {
    fn from(load: Load) -> Self {
        Self {
            running: load.running,
            waiting: load.waiting,
            tokens: load.tokens,
            age_s: load.age.as_secs_f64(),
        }
    }
}
