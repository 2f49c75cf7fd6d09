//! Metrics of upstreams' health.
use std::sync::Arc;
use std::time::Duration;

use crate::health::{AgentState, Availability, Cause, Engine};
use crate::metrics::{Counter, Family, Gauge, Registry};

/// The availabilities, in the order of their gauges.
const STATES: [Availability; 6] = [
    Availability::Open { share: 1.0 },
    Availability::Trial,
    Availability::Out,
    Availability::Cold,
    Availability::Loading,
    Availability::Draining,
];

/// What a probe can find, in the order of their counters.
const FOUND: [Engine; 5] = [
    Engine::Warm,
    Engine::Loading,
    Engine::Cold,
    Engine::Down,
    Engine::Draining,
];

/// What an agent does, in the order of their gauges.
const AGENT: [AgentState; 2] = [AgentState::Answers, AgentState::Away];

/// The families.
pub(super) struct HealthFamilies {
    outcomes: Arc<Family<Counter, 2>>,
    ejections: Arc<Family<Counter, 2>>,
    probes: Arc<Family<Counter, 2>>,
    states: Arc<Family<Gauge, 2>>,
    agents: Arc<Family<Gauge, 2>>,
    first_token: Arc<Family<Gauge, 1>>,
}

impl HealthFamilies {
    /// Registers them.
    pub(super) fn registered(registry: &Registry) -> Self {
        Self {
            outcomes: registry.counters(
                "forebay_upstream_outcomes_total",
                "What attempts came to, so far as that speaks of the upstream, by upstream.",
                ["upstream", "outcome"],
            ),
            ejections: registry.counters(
                "forebay_upstream_ejections_total",
                "Times an upstream was taken out for what its requests came to, by reason.",
                ["upstream", "reason"],
            ),
            probes: registry.counters(
                "forebay_upstream_probes_total",
                "Looks at an upstream, by what was found.",
                ["upstream", "found"],
            ),
            states: registry.gauges(
                "forebay_upstream_state",
                "Processes that find an upstream in this state.",
                ["upstream", "state"],
            ),
            agents: registry.gauges(
                "forebay_upstream_agent",
                "Processes that an upstream's agent answers, or that find it away.",
                ["upstream", "state"],
            ),
            first_token: registry.gauges(
                "forebay_upstream_first_token_milliseconds",
                "Moving average of an upstream's time to first token, sensitive to peaks.",
                ["upstream"],
            ),
        }
    }

    /// The handles of an upstream.
    pub(super) fn of(&self, name: &str) -> OfHealth {
        OfHealth {
            successes: self.outcomes.get_or_create(&[name, "success"]),
            failures: self.outcomes.get_or_create(&[name, "failure"]),
            ejections: Cause::ALL.map(|cause| self.ejections.get_or_create(&[name, cause.name()])),
            probes: FOUND.map(|engine| self.probes.get_or_create(&[name, engine.name()])),
            states: STATES.map(|state| self.states.get_or_create(&[name, state.name()])),
            agents: AGENT.map(|state| {
                let state = state.name().unwrap_or_default();
                self.agents.get_or_create(&[name, state])
            }),
            first_token: self.first_token.get_or_create(&[name]),
        }
    }
}

/// Handles of one upstream's health.
#[derive(Debug, Default)]
pub struct OfHealth {
    /// Attempts that succeeded.
    pub successes: Arc<Counter>,
    /// Attempts that failed by its fault.
    pub failures: Arc<Counter>,
    ejections: [Arc<Counter>; Cause::ALL.len()],
    probes: [Arc<Counter>; FOUND.len()],
    states: [Arc<Gauge>; STATES.len()],
    agents: [Arc<Gauge>; AGENT.len()],
    first_token: Arc<Gauge>,
}

impl OfHealth {
    /// It was ejected.
    pub fn ejected(&self, cause: Cause) {
        if let Some(counter) = self.ejections.get(cause as usize) {
            counter.inc();
        }
    }

    /// Ejections in all.
    pub fn ejections(&self) -> u64 {
        self.ejections.iter().map(|counter| counter.get()).sum()
    }

    /// A probe found it so.
    pub fn probed(&self, found: Engine) {
        for (engine, counter) in FOUND.iter().zip(&self.probes) {
            if *engine == found {
                counter.inc();
            }
        }
    }

    /// Sets the gauges.
    pub fn show(&self, now: Availability, first_token: Option<Duration>, agent: AgentState) {
        for (state, gauge) in STATES.iter().zip(&self.states) {
            gauge.set(i64::from(state.name() == now.name()));
        }
        for (state, gauge) in AGENT.iter().zip(&self.agents) {
            gauge.set(i64::from(*state == agent));
        }
        let first_token = first_token.unwrap_or_default().as_millis();
        self.first_token
            .set(i64::try_from(first_token).unwrap_or(i64::MAX));
    }
}
