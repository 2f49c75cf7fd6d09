//! The gateway's own metrics: which there are, and what is added when.
use std::sync::Arc;
use std::time::Duration;

use crate::error::Kind;
use crate::gateway::Endpoint;
use crate::limit::{Dimension, Scope};
use crate::metrics::{Bounds, Counter, Family, Gauge, Histogram, Registry};
use crate::queue::Reason;
use crate::record::{Outcome, UsageEvent};

mod demand;
mod health;

pub use demand::OfDemand;
pub use health::OfHealth;

const OUTCOMES: [Outcome; 5] = [
    Outcome::Ok,
    Outcome::ClientClosed,
    Outcome::UpstreamCut,
    Outcome::Error,
    Outcome::GatewayDied,
];

/// Handles of one API, kept so that a request pays no lookup.
struct OfEndpoint {
    requests: Vec<Arc<Counter>>,
    duration: Arc<Histogram>,
    first_token: Arc<Histogram>,
}

/// Handles of one model.
pub struct OfModel {
    /// Input tokens booked.
    pub input: Arc<Counter>,
    /// Output tokens booked.
    pub output: Arc<Counter>,
    /// Requests booked without a price.
    pub unpriced: Arc<Counter>,
    /// What is asked of it.
    pub demand: OfDemand,
}

/// Handles of one upstream whose requests in flight are bounded.
pub struct OfGate {
    /// Requests that wait for it.
    pub waiting: Arc<Gauge>,
    /// How long those waited that started after all.
    pub wait: Arc<Histogram>,
    /// Requests that may be in flight now.
    pub limit: Arc<Gauge>,
    shed: [Arc<Counter>; Reason::ALL.len()],
}

impl OfGate {
    /// Requests that were refused for this reason.
    pub fn shed(&self, reason: Reason) -> &Counter {
        let [full, displaced, late, timeout] = &self.shed;
        match reason {
            Reason::Full => full,
            Reason::Displaced => displaced,
            Reason::Late => late,
            Reason::Timeout => timeout,
        }
    }
}

/// All metrics of the gateway.
pub struct Counters {
    /// Renders them.
    pub registry: Registry,
    /// From a request's arrival to the decision whether it starts.
    pub admission: Arc<Histogram>,
    /// Admitted requests that have not ended.
    pub in_flight: Arc<Gauge>,
    /// WebSockets that are open, Realtime sessions among them.
    pub websockets: Arc<Gauge>,
    /// Realtime sessions that are open.
    pub realtime: Arc<Gauge>,
    /// Keys loaded.
    pub keys: Arc<Gauge>,
    /// Usage events that wait for the database.
    pub usage_backlog: Arc<Gauge>,
    /// Usage events lost because, without a spool, too many waited.
    pub usage_dropped: Arc<Counter>,
    /// Responses that were to be stored and were not.
    pub unsaved_responses: Arc<Counter>,
    /// Subjects in the limit table.
    pub limit_rows: Arc<Gauge>,
    /// Subjects that it has no place for.
    pub limit_rows_private: Arc<Gauge>,
    /// Times the event loop was woken.
    pub wakeups: Arc<Counter>,
    /// Results handed to the event loop.
    pub completions: Arc<Counter>,
    endpoints: Vec<OfEndpoint>,
    tokens: Arc<Family<Counter, 2>>,
    unpriced: Arc<Family<Counter, 1>>,
    attempts: Arc<Family<Counter, 1>>,
    waiting: Arc<Family<Gauge, 1>>,
    queue_wait: Arc<Family<Histogram, 1>>,
    limits: Arc<Family<Gauge, 1>>,
    shed: Arc<Family<Counter, 2>>,
    hang_ups: Arc<Family<Counter, 2>>,
    repeats: Arc<Family<Counter, 1>>,
    copies: Arc<Family<Counter, 2>>,
    errors: Arc<Family<Counter, 1>>,
    refusals: Arc<Family<Counter, 2>>,
    health: health::HealthFamilies,
    demand: demand::DemandFamilies,
}

fn of_repeats(registry: &Registry) -> Arc<Family<Counter, 1>> {
    registry.counters(
        "forebay_idempotent_requests_total",
        "Requests with an Idempotency-Key, by what became of them.",
        ["outcome"],
    )
}

fn of_refusals(registry: &Registry) -> Arc<Family<Counter, 2>> {
    registry.counters(
        "forebay_limit_refusals_total",
        "Requests refused by a limit, by whose it is and what it counts.",
        ["scope", "dimension"],
    )
}

fn of_endpoints(registry: &Registry) -> Vec<OfEndpoint> {
    let requests = registry.counters(
        "forebay_requests_total",
        "Admitted requests that ended, by API and outcome.",
        ["endpoint", "outcome"],
    );
    let duration = registry.histograms(
        "forebay_request_duration_seconds",
        "From admission to the end of the answer.",
        ["endpoint"],
        Bounds::SECONDS,
    );
    let first_token = registry.histograms(
        "forebay_time_to_first_token_seconds",
        "From admission to the first event of a streamed answer.",
        ["endpoint"],
        Bounds::FIRST_TOKEN,
    );
    Endpoint::ALL
        .iter()
        .map(|endpoint| OfEndpoint {
            requests: OUTCOMES
                .iter()
                .map(|outcome| requests.get_or_create(&[endpoint.name(), outcome.name()]))
                .collect(),
            duration: duration.get_or_create(&[endpoint.name()]),
            first_token: first_token.get_or_create(&[endpoint.name()]),
        })
        .collect()
}

impl Default for Counters {
    fn default() -> Self {
        Self::new()
    }
}

impl Counters {
    /// Registers everything.
    #[expect(clippy::too_many_lines, reason = "a list")]
    pub fn new() -> Self {
        let registry = Registry::default();
        let endpoints = of_endpoints(&registry);
        // Each process says 1, so that their sum is how many there are.
        registry
            .gauge("forebay_workers", "Worker processes that answered.")
            .set(1);
        Self {
            admission: registry.histogram(
                "forebay_admission_seconds",
                "From a request's arrival to the decision, a wait for the shared limits' store included.",
                Bounds::DECISION,
            ),
            in_flight: registry.gauge(
                "forebay_requests_in_flight",
                "Admitted requests that have not ended.",
            ),
            websockets: registry.gauge(
                "forebay_websockets",
                "WebSockets that are open, Realtime sessions among them.",
            ),
            realtime: registry.gauge(
                "forebay_realtime_sessions",
                "Realtime sessions that are open.",
            ),
            keys: registry.gauge("forebay_keys", "API keys loaded."),
            usage_backlog: registry.gauge(
                "forebay_usage_backlog_events",
                "Usage events that wait for the database.",
            ),
            usage_dropped: registry.counter(
                "forebay_usage_dropped_total",
                "Usage events lost because, without a spool, too many waited to be taken.",
            ),
            unsaved_responses: registry.counter(
                "forebay_responses_unsaved_total",
                "Responses that the store did not take; their clients were told store: false.",
            ),
            wakeups: registry.counter(
                "forebay_bridge_wakeups_total",
                "Times the core woke the event loop.",
            ),
            completions: registry.counter(
                "forebay_bridge_completions_total",
                "Results the core handed to the event loop.",
            ),
            tokens: registry.counters(
                "forebay_tokens_total",
                "Tokens booked, by model and direction.",
                ["model", "direction"],
            ),
            unpriced: registry.counters(
                "forebay_unpriced_requests_total",
                "Requests served at no cost because no price was in force, by model.",
                ["model"],
            ),
            attempts: registry.counters(
                "forebay_upstream_attempts_total",
                "Requests sent, by upstream.",
                ["upstream"],
            ),
            waiting: registry.gauges(
                "forebay_upstream_waiting",
                "Requests that wait for a place at an upstream.",
                ["upstream"],
            ),
            queue_wait: registry.histograms(
                "forebay_queue_wait_seconds",
                "How long those requests waited that did not start at once, by upstream.",
                ["upstream"],
                Bounds::SECONDS,
            ),
            limits: registry.gauges(
                "forebay_upstream_concurrency_limit",
                "Requests that may be in flight at an upstream now.",
                ["upstream"],
            ),
            shed: registry.counters(
                "forebay_queue_shed_total",
                "Requests that an upstream's queue refused, by reason.",
                ["upstream", "reason"],
            ),
            hang_ups: registry.counters(
                "forebay_client_hangups_total",
                "Requests whose client left, by upstream and what became of them: stopped, read to their end, or stopped while they were.",
                ["upstream", "then"],
            ),
            copies: registry.counters(
                "forebay_shadow_requests_total",
                "Copies of requests that were sent to a shadow, by upstream and what came of them: ok, failed.",
                ["upstream", "outcome"],
            ),
            errors: registry.counters(
                "forebay_errors_total",
                "Errors, by kind; refusals included.",
                ["kind"],
            ),
            repeats: of_repeats(&registry),
            refusals: of_refusals(&registry),
            limit_rows: registry.gauge(
                "forebay_limit_rows",
                "Subjects with limits that have a place in the limit table.",
            ),
            limit_rows_private: registry.gauge(
                "forebay_limit_rows_private",
                "Subjects that the table had no place for: their limits count per worker.",
            ),
            health: health::HealthFamilies::registered(&registry),
            demand: demand::DemandFamilies::registered(&registry),
            endpoints,
            registry,
        }
    }

    /// The handles of a model.
    pub fn model(&self, name: &str) -> OfModel {
        OfModel {
            input: self.tokens.get_or_create(&[name, "input"]),
            output: self.tokens.get_or_create(&[name, "output"]),
            unpriced: self.unpriced.get_or_create(&[name]),
            demand: self.demand.of(name),
        }
    }

    /// The attempts counter of an upstream.
    pub fn upstream(&self, name: &str) -> Arc<Counter> {
        self.attempts.get_or_create(&[name])
    }

    /// The handles of an upstream whose requests in flight are bounded.
    pub fn gate(&self, name: &str) -> OfGate {
        OfGate {
            waiting: self.waiting.get_or_create(&[name]),
            wait: self.queue_wait.get_or_create(&[name]),
            limit: self.limits.get_or_create(&[name]),
            shed: Reason::ALL.map(|reason| self.shed.get_or_create(&[name, reason.name()])),
        }
    }

    /// The requests that an upstream has.
    pub fn upstream_in_flight(&self, name: &str) -> Arc<Gauge> {
        self.demand.at(name)
    }

    /// The handles of an upstream's health.
    pub fn health(&self, name: &str) -> OfHealth {
        self.health.of(name)
    }

    /// An error was answered, or made the gateway try elsewhere.
    pub fn failed(&self, kind: Kind) {
        self.errors.get_or_create(&[kind.name()]).inc();
    }

    /// A client left while `upstream` had its request, which went on without it or not.
    pub fn left(&self, upstream: &str, lingered: bool, ended: Option<Outcome>) {
        let then = match (lingered, ended) {
            (false, _) => "stopped",
            (true, Some(_)) => "drained",
            (true, None) => "cut",
        };
        self.hang_ups.get_or_create(&[upstream, then]).inc();
    }

    /// A request with an idempotency key was decided.
    pub fn repeated(&self, outcome: &str) {
        self.repeats.get_or_create(&[outcome]).inc();
    }

    /// A copy of a request has ended.
    pub fn copied(&self, upstream: &str, ok: bool) {
        let outcome = if ok { "ok" } else { "failed" };
        self.copies.get_or_create(&[upstream, outcome]).inc();
    }

    /// A limit refused a request.
    pub fn refused(&self, scope: Scope, dimension: Dimension) {
        self.refusals
            .get_or_create(&[scope.as_str(), dimension.as_str()])
            .inc();
    }

    /// A request has ended.
    pub fn finished(&self, endpoint: Endpoint, event: &UsageEvent, outcome: Outcome) {
        self.in_flight.add(-1);
        let Some(of) = self.endpoints.get(endpoint as usize) else {
            return;
        };
        if let Some(requests) = of.requests.get(outcome as usize) {
            requests.inc();
        }
        of.duration
            .observe_duration(Duration::from_secs_f64(event.duration_ms / 1e3));
        if let Some(ttft) = event.ttft_ms
            && event.stream
        {
            of.first_token
                .observe_duration(Duration::from_secs_f64(ttft / 1e3));
        }
    }
}
