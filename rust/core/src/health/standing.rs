//! The words for how an upstream stands, and what of its configuration its health follows.
use std::time::Duration;

use super::span;
use crate::snapshot::{OutlierSpec, UpstreamSpec};

/// Whether an upstream takes requests.
#[derive(Clone, Copy, Debug, PartialEq)]
pub enum Availability {
    /// It does.
    Open {
        /// Above 0, and below 1 in slow start: the share of its usual requests.
        share: f32,
    },
    /// Half open: one request at a time, by [`super::Health::take_trial`].
    Trial,
    /// Ejected, down, left alone as it asked for, or half open with its trial under way.
    Out,
    /// Not started; [`super::Health::want`] has it started.
    Cold,
    /// Being started.
    Loading,
    /// Takes no new requests, by decision, or as its agent says.
    Draining,
}

impl Availability {
    /// The name in views and metrics.
    pub const fn name(self) -> &'static str {
        match self {
            Self::Open { .. } => "open",
            Self::Trial => "trial",
            Self::Out => "out",
            Self::Cold => "cold",
            Self::Loading => "loading",
            Self::Draining => "draining",
        }
    }
}

/// What probes found of an engine.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
#[repr(u8)]
pub enum Engine {
    /// Not looked at yet: taken for warm.
    Unknown,
    /// Answers requests.
    Warm,
    /// Being started.
    Loading,
    /// Not started, and can be.
    Cold,
    /// Cannot be reached, or says that it is not well.
    Down,
    /// Finishes what it has, and ends.
    Draining,
}

impl Engine {
    const ALL: [Self; 6] = [
        Self::Unknown,
        Self::Warm,
        Self::Loading,
        Self::Cold,
        Self::Down,
        Self::Draining,
    ];

    /// The name in views and reports.
    pub const fn name(self) -> &'static str {
        match self {
            Self::Unknown => "unknown",
            Self::Warm => "warm",
            Self::Loading => "loading",
            Self::Cold => "cold",
            Self::Down => "down",
            Self::Draining => "draining",
        }
    }

    /// What a report may say: the inverse of [`Engine::name`], without `unknown`.
    pub fn reported(name: &str) -> Option<Self> {
        let mut all = Self::ALL.into_iter();
        all.find(|engine| engine.name() == name && *engine != Self::Unknown)
    }

    pub(super) fn of(index: u8) -> Self {
        Self::ALL
            .get(usize::from(index))
            .copied()
            .unwrap_or(Self::Unknown)
    }
}

/// Whether an upstream's agent answers.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
#[repr(u8)]
pub enum AgentState {
    /// There is none, or it was not asked yet.
    None,
    /// It does.
    Answers,
    /// It does not: the engine itself is asked.
    Away,
}

impl AgentState {
    /// The name in views and metrics.
    pub const fn name(self) -> Option<&'static str> {
        match self {
            Self::None => None,
            Self::Answers => Some("answers"),
            Self::Away => Some("away"),
        }
    }

    pub(super) fn of(index: u8) -> Self {
        match index {
            1 => Self::Answers,
            2 => Self::Away,
            _ => Self::None,
        }
    }
}

/// The parts of an upstream's configuration that its health follows.
#[derive(Clone, Copy, Debug, Default, PartialEq)]
pub struct Settings {
    /// When it is ejected; never without.
    pub outlier: Option<OutlierSpec>,
    /// How long its share grows once it is back.
    pub slow_start: Duration,
    /// Takes no new requests.
    pub draining: bool,
    /// It has an agent, which tells how it is.
    pub agent: bool,
}

impl From<&UpstreamSpec> for Settings {
    fn from(spec: &UpstreamSpec) -> Self {
        Self {
            outlier: spec.outlier,
            slow_start: span(spec.slow_start_s),
            draining: spec.draining,
            agent: spec.agent.is_some(),
        }
    }
}
