//! Metrics of what is asked of models and what their upstreams have: an autoscaler's signals.
use std::sync::Arc;
use std::time::Duration;

use crate::metrics::{Bounds, Counter, Family, Gauge, Histogram, Registry};
use crate::record::UsageEvent;

/// The families.
pub(super) struct DemandFamilies {
    requests: Arc<Family<Counter, 1>>,
    in_flight: Arc<Family<Gauge, 1>>,
    held: Arc<Family<Gauge, 1>>,
    spills: Arc<Family<Counter, 1>>,
    first_token: Arc<Family<Histogram, 1>>,
    upstream_in_flight: Arc<Family<Gauge, 1>>,
}

impl DemandFamilies {
    /// Registers them.
    pub(super) fn registered(registry: &Registry) -> Self {
        Self {
            requests: registry.counters(
                "forebay_model_requests_total",
                "Admitted requests that began at a model, its fallbacks' included.",
                ["model"],
            ),
            in_flight: registry.gauges(
                "forebay_model_requests_in_flight",
                "Admitted requests of a model that have not ended, those that wait included.",
                ["model"],
            ),
            held: registry.gauges(
                "forebay_model_requests_held",
                "Requests of a model that wait for an engine to start.",
                ["model"],
            ),
            spills: registry.counters(
                "forebay_model_spills_total",
                "Attempts of a model that went to a later tier than its first.",
                ["model"],
            ),
            first_token: registry.histograms(
                "forebay_model_time_to_first_token_seconds",
                "From admission to the first event of a streamed answer, by the model that gave it.",
                ["model"],
                Bounds::FIRST_TOKEN,
            ),
            upstream_in_flight: registry.gauges(
                "forebay_upstream_requests_in_flight",
                "Requests that an upstream has, of all processes of this machine.",
                ["upstream"],
            ),
        }
    }

    /// The handles of a model.
    pub(super) fn of(&self, model: &str) -> OfDemand {
        OfDemand {
            requests: self.requests.get_or_create(&[model]),
            in_flight: self.in_flight.get_or_create(&[model]),
            held: self.held.get_or_create(&[model]),
            spills: self.spills.get_or_create(&[model]),
            first_token: self.first_token.get_or_create(&[model]),
        }
    }

    /// The requests that an upstream has.
    pub(super) fn at(&self, upstream: &str) -> Arc<Gauge> {
        self.upstream_in_flight.get_or_create(&[upstream])
    }
}

/// Handles of what is asked of one model.
pub struct OfDemand {
    /// Requests that began.
    pub requests: Arc<Counter>,
    /// Those that have not ended.
    pub in_flight: Arc<Gauge>,
    /// Those that wait for an engine to start.
    pub held: Arc<Gauge>,
    /// Attempts at a later tier than the first.
    pub spills: Arc<Counter>,
    first_token: Arc<Histogram>,
}

impl OfDemand {
    /// A request began at the model.
    pub fn began(&self) {
        self.requests.inc();
        self.in_flight.inc();
    }

    /// A request that began here goes on at another model.
    pub fn left(&self) {
        self.in_flight.dec();
    }

    /// A request has ended.
    pub fn ended(&self, event: &UsageEvent) {
        self.in_flight.dec();
        if let Some(ttft) = event.ttft_ms
            && event.stream
        {
            self.first_token
                .observe_duration(Duration::from_secs_f64(ttft / 1e3));
        }
    }
}
