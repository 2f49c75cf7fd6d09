//! What one admitted request leaves behind: exactly one usage event, and its tokens settled.
use std::sync::Arc;
use std::time::{Instant, SystemTime, UNIX_EPOCH};

use crate::error::Kind;
use crate::gateway::{Endpoint, Gateway};
use crate::keys::KeyId;
use crate::limit::Reservation;
use crate::price::Price;
use crate::slot::stopped;
use crate::snapshot::Model;
use crate::usage::{Source, Usage};

/// How a request ended.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum Outcome {
    /// Answered in full.
    Ok,
    /// The client left first.
    ClientClosed,
    /// The engine failed after the answer had begun.
    UpstreamCut,
    /// Answered with an error.
    Error,
    /// The gateway stopped first.
    GatewayDied,
}

impl Outcome {
    /// The name in the usage table.
    pub const fn name(self) -> &'static str {
        match self {
            Self::Ok => "ok",
            Self::ClientClosed => "client_closed",
            Self::UpstreamCut => "upstream_cut",
            Self::Error => "error",
            Self::GatewayDied => "gateway_died",
        }
    }
}

/// One finished request, as the usage table keeps it. Times are unix microseconds.
#[derive(Clone, Debug)]
pub struct UsageEvent {
    /// UUIDv7, made at admission.
    pub event_id: [u8; 16],
    /// As in `x-request-id`.
    pub request_id: String,
    /// Who is billed.
    pub account: Arc<str>,
    /// The key's public id.
    pub key_id: KeyId,
    /// When it was admitted.
    pub admitted_us: i64,
    /// When the first byte of the answer came.
    pub first_byte_us: Option<i64>,
    /// When it ended.
    pub ended_us: i64,
    /// The model as the client named it.
    pub model_asked: String,
    /// The model's own name.
    pub model_served: Arc<str>,
    /// The last upstream tried.
    pub upstream: Option<Arc<str>>,
    /// The door.
    pub front: &'static str,
    /// Which API.
    pub endpoint: &'static str,
    /// Streamed.
    pub stream: bool,
    /// How it ended.
    pub outcome: &'static str,
    /// The HTTP status; 499 when the client left before there was one.
    pub status: u16,
    /// The engine's finish reason.
    pub finish_reason: Option<String>,
    /// The error's kind.
    pub error_kind: Option<&'static str>,
    /// Upstreams tried.
    pub attempts: u32,
    /// Tokens.
    pub usage: Usage,
    /// Where the tokens come from.
    pub source: &'static str,
    /// From admission to the end, milliseconds.
    pub duration_ms: f64,
    /// From admission to the first token, milliseconds.
    pub ttft_ms: Option<f64>,
    /// Output tokens by the time from first token to the end.
    pub tokens_per_second: Option<f64>,
    /// What it cost, pico-USD; absent when no price was in force.
    pub cost_pico: Option<u64>,
    /// The row of the price book that the cost is by; absent where none is, and of what was not
    /// served, which costs nothing.
    pub price_id: Option<i64>,
}

/// Microseconds since the epoch.
pub fn unix_us() -> i64 {
    SystemTime::now()
        .duration_since(UNIX_EPOCH)
        .map_or(0, |d| d.as_micros() as i64)
}

/// What the engine has said of usage so far.
#[derive(Clone, Copy, Debug, Default)]
pub struct Progress {
    /// The engine's latest counts, and whether they are final.
    pub reported: Option<(Usage, bool)>,
    /// Events that carried content.
    pub content_events: u64,
}

/// The guard of one admitted request. Its drop books the request, whatever happened.
pub struct Record {
    gateway: Arc<Gateway>,
    slot: Arc<crate::slot::Slot>,
    model: Arc<Model>,
    reservation: Option<Reservation>,
    event: Option<UsageEvent>,
    started: Instant,
    first_token: Option<Instant>,
    endpoint: Endpoint,
    prompt_estimate: u64,
    prompt_bytes: usize,
    contacted: bool,
    /// What the upstream tried last costs.
    price: Option<Price>,
    /// Updated as the answer goes by.
    pub progress: Progress,
    /// Set once the answer's end is known.
    pub outcome: Option<Outcome>,
}

/// What is known of a request when it is admitted.
pub struct Opening {
    /// UUIDv7.
    pub event_id: [u8; 16],
    /// As in `x-request-id`.
    pub request_id: String,
    /// Who is billed.
    pub account: Arc<str>,
    /// The key.
    pub key_id: KeyId,
    /// When it was admitted, unix microseconds.
    pub admitted_us: i64,
    /// As the client named it.
    pub model_asked: String,
    /// Which API.
    pub endpoint: Endpoint,
    /// Streamed.
    pub stream: bool,
    /// Input tokens, estimated.
    pub prompt_estimate: u64,
    /// Bytes of text that the estimate is from; 0 when token ids were sent.
    pub prompt_bytes: usize,
}

impl Record {
    /// Opens the record of a request that was just admitted.
    pub fn open(
        gateway: &Arc<Gateway>,
        slot: &Arc<crate::slot::Slot>,
        model: &Arc<Model>,
        reservation: Reservation,
        opening: Opening,
    ) -> Self {
        gateway.metrics.in_flight.add(1);
        let Opening {
            event_id,
            request_id,
            account,
            key_id,
            admitted_us,
            model_asked,
            endpoint,
            stream,
            prompt_estimate,
            prompt_bytes,
        } = opening;
        Self {
            gateway: Arc::clone(gateway),
            slot: Arc::clone(slot),
            model: Arc::clone(model),
            reservation: Some(reservation),
            event: Some(UsageEvent {
                event_id,
                request_id,
                account,
                key_id,
                admitted_us,
                first_byte_us: None,
                ended_us: 0,
                model_asked,
                model_served: Arc::clone(&model.name),
                upstream: None,
                front: "http",
                endpoint: endpoint.name(),
                stream,
                outcome: Outcome::GatewayDied.name(),
                status: 499,
                finish_reason: None,
                error_kind: None,
                attempts: 0,
                usage: Usage::default(),
                source: Source::Estimated.name(),
                duration_ms: 0.0,
                ttft_ms: None,
                tokens_per_second: None,
                cost_pico: None,
                price_id: None,
            }),
            started: Instant::now(),
            first_token: None,
            endpoint,
            prompt_estimate,
            prompt_bytes,
            contacted: false,
            price: None,
            progress: Progress::default(),
            outcome: None,
        }
    }

    /// One more upstream is tried.
    pub fn attempt(&mut self, upstream: &Arc<str>) -> u32 {
        let Some(event) = &mut self.event else {
            return 0;
        };
        self.price = self
            .gateway
            .prices()
            .rates(&self.model.name, &event.account)
            .at(upstream, event.admitted_us)
            .copied();
        event.upstream = Some(Arc::clone(upstream));
        event.attempts += 1;
        // What a failed attempt said of usage is not the client's to pay.
        self.progress = Progress::default();
        event.attempts
    }

    /// The last upstream tried, and how many were.
    pub fn attempted(&self) -> Option<(Arc<str>, u32)> {
        let event = self.event.as_ref()?;
        Some((Arc::clone(event.upstream.as_ref()?), event.attempts))
    }

    /// The request goes to an engine: from here on it counts, even if it fails. Whether it did not
    /// count before.
    pub fn contacted(&mut self) -> bool {
        !std::mem::replace(&mut self.contacted, true)
    }

    /// No connection came about, so nothing was sent after all.
    pub fn not_contacted(&mut self) {
        self.contacted = false;
    }

    /// The answer's head is out, with `status`.
    pub fn committed(&mut self, status: u16) {
        self.first_byte();
        if let Some(event) = &mut self.event {
            event.status = status;
        }
    }

    /// The first byte of the answer is there.
    pub fn first_byte(&mut self) {
        if self.first_token.is_none() {
            self.first_token = Some(Instant::now());
            if let Some(event) = &mut self.event {
                event.first_byte_us = Some(unix_us());
            }
        }
    }

    /// The stream has delivered more.
    pub fn advance(&mut self, progress: Progress) {
        self.progress = progress;
        let delivered = match progress.reported {
            Some((usage, _)) => usage.total(),
            None => self.prompt_estimate + progress.content_events,
        };
        if let Some(reservation) = &mut self.reservation
            && reservation.charge_progress(delivered)
            && let Some(price) = &self.price
        {
            let usage = match progress.reported {
                Some((usage, _)) => usage,
                None => Usage {
                    prompt: self.prompt_estimate,
                    completion: progress.content_events,
                    ..Usage::default()
                },
            };
            let duration_us = self.started.elapsed().as_micros() as u64;
            reservation.spend_progress(price.nano(&usage, duration_us));
        }
    }

    /// The answer's status and how it ended.
    pub fn close(
        &mut self,
        outcome: Outcome,
        status: u16,
        error: Option<Kind>,
        finish: Option<&str>,
    ) {
        self.outcome = Some(outcome);
        if let Some(event) = &mut self.event {
            event.status = status;
            event.error_kind = error.map(Kind::name);
            event.finish_reason = finish.map(str::to_owned);
        }
    }

    /// The tokens to book: the engine's own, or what was delivered of an unfinished answer.
    fn tokens(&self, outcome: Outcome) -> (Usage, Source) {
        if !self.contacted {
            return (Usage::default(), Source::Counted);
        }
        match self.progress.reported {
            Some((usage, true)) => (usage, Source::Reported),
            Some((usage, false)) => (usage, Source::Counted),
            None if outcome == Outcome::Error => (Usage::default(), Source::Estimated),
            None => {
                let usage = Usage {
                    prompt: self.prompt_estimate,
                    completion: self.progress.content_events,
                    ..Usage::default()
                };
                (usage, Source::Estimated)
            }
        }
    }
}

impl Drop for Record {
    fn drop(&mut self) {
        self.book();
    }
}

impl Record {
    /// Books the request and gives its permit back, once. Called before the client reads the end of
    /// its answer, so that its next request finds the permit free.
    pub fn book(&mut self) {
        let Some(mut event) = self.event.take() else {
            return;
        };
        let outcome = self.outcome.unwrap_or_else(|| {
            // A runtime that goes down drops its connections too: those clients did not leave.
            if self.slot.is_cancelled() && !self.gateway.is_halted() {
                Outcome::ClientClosed
            } else {
                Outcome::GatewayDied
            }
        });
        if outcome == Outcome::GatewayDied {
            let error = stopped();
            if event.first_byte_us.is_none() {
                event.status = error.kind.status();
            }
            event.error_kind = Some(error.kind.name());
            self.slot.abandon(&error);
        }
        let (usage, source) = self.tokens(outcome);
        let now = Instant::now();
        let duration = now - self.started;
        let duration_us = duration.as_micros() as u64;
        // What was not served, or failed without tokens, costs nothing, whatever the price.
        let served = self.contacted && (outcome != Outcome::Error || usage.total() > 0);
        let price = self.price.filter(|_| served);
        event.price_id = price.map(|price| price.id);
        event.cost_pico = match price {
            Some(price) => Some(price.cost(&usage, duration_us)),
            None => (!served).then_some(0),
        };
        if served && price.is_none() {
            self.model.metrics.unpriced.inc();
        }
        if let Some(reservation) = self.reservation.take() {
            if self.contacted {
                let nano = price.map_or(0, |price| price.nano(&usage, duration_us));
                reservation.settle(usage.total(), nano);
            } else {
                reservation.cancel();
            }
        }
        if source == Source::Reported {
            self.model
                .estimator
                .observe(self.prompt_bytes, usage.prompt, usage.completion);
        }
        event.ended_us = event.admitted_us.saturating_add_unsigned(duration_us);
        event.duration_ms = duration_us as f64 / 1e3;
        event.ttft_ms = self
            .first_token
            .map(|at| (at - self.started).as_secs_f64() * 1e3);
        event.tokens_per_second = self.first_token.and_then(|at| {
            let seconds = (now - at).as_secs_f64();
            (event.stream && usage.completion > 1 && seconds > 0.0)
                .then(|| (usage.completion - 1) as f64 / seconds)
        });
        self.model.metrics.input.add(usage.prompt);
        self.model.metrics.output.add(usage.completion);
        event.usage = usage;
        event.source = source.name();
        event.outcome = outcome.name();
        if outcome == Outcome::ClientClosed {
            event.error_kind = Some(Kind::ClientClosed.name());
        }
        self.gateway
            .metrics
            .finished(self.endpoint, &event, outcome);
        if !self.gateway.events.push(event) {
            self.gateway.metrics.usage_dropped.inc();
        }
    }
}
