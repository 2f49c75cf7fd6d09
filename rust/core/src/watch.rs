//! What the control plane, which probes upstreams, tells of them and asks.
use std::sync::Arc;

use serde::Serialize;

use crate::gateway::{Gateway, monotonic};
use crate::health::load::Report;
use crate::health::{Engine, Health, View};

/// One upstream as it stands in this process.
#[derive(Debug, Serialize)]
pub struct UpstreamView {
    name: String,
    kind: String,
    #[serde(flatten)]
    health: View,
    /// Requests that it has, of all workers of this machine.
    in_flight: u64,
    /// Requests of this process that wait for a place.
    waiting: usize,
    /// Requests that it may have now; none: any number.
    limit: Option<u64>,
}

impl Gateway {
    /// A probe found the upstream in `engine`'s state, and the engine said `load` of itself. False if
    /// there is no such upstream.
    pub fn report_upstream(&self, name: &str, engine: Engine, load: Option<Report>) -> bool {
        self.with_health(name, |health| {
            let now = monotonic();
            health.report(engine, now);
            if let Some(load) = load {
                health.report_load(load, now);
            }
        })
    }

    /// The agent of the upstream answers, or does not. False if there is no such upstream.
    pub fn report_agent(&self, name: &str, answers: bool) -> bool {
        self.with_health(name, |health| health.report_agent(answers))
    }

    /// From now on the upstream takes no new requests, or does again. False if there is no such
    /// upstream.
    pub fn drain_upstream(&self, name: &str, draining: bool) -> bool {
        self.with_health(name, |health| health.drain(draining))
    }

    /// All upstreams as they stand, by name.
    pub fn upstreams(&self) -> Vec<UpstreamView> {
        let (snapshot, now) = (self.snapshot.load(), monotonic());
        let mut views: Vec<UpstreamView> = snapshot
            .upstreams()
            .map(|(spec, upstream)| UpstreamView {
                name: spec.name.clone(),
                kind: spec.kind.clone(),
                health: upstream.health.view(now),
                in_flight: upstream.gate.in_use(),
                waiting: upstream.gate.waiting(),
                limit: upstream.gate.limit(),
            })
            .collect();
        views.sort_by(|a, b| a.name.cmp(&b.name));
        views
    }

    /// The upstreams that requests have wanted awake since the last call.
    pub fn take_wanted(&self) -> Vec<String> {
        self.snapshot
            .load()
            .upstreams()
            .filter(|(_, upstream)| upstream.health.take_wanted())
            .map(|(spec, _)| spec.name.clone())
            .collect()
    }

    /// Sets the gauges of upstreams to what holds now.
    pub fn show_upstreams(&self) {
        let now = monotonic();
        for (spec, upstream) in self.snapshot.load().upstreams() {
            upstream.health.show(now);
            let in_flight = i64::try_from(upstream.gate.in_use()).unwrap_or(i64::MAX);
            self.metrics.upstream_in_flight(&spec.name).set(in_flight);
        }
    }

    fn with_health(&self, name: &str, work: impl FnOnce(&Health)) -> bool {
        let found = self.snapshot.load().upstream(name);
        let health = found.map(|upstream| Arc::clone(&upstream.health));
        health.is_some_and(|health| {
            work(&health);
            true
        })
    }
}
