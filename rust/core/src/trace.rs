//! Traces: which requests have one, the ids of their spans, and what waits to be told of them.
//!
//! A traced request has a span of its own and one for each attempt, made of its record once it has
//! ended. Ids need no further chance: a request's id is random, and those of its spans follow from it.
use std::sync::{Arc, OnceLock};

use crossbeam_queue::ArrayQueue;
use http::HeaderValue;
use serde::Serialize;
use uuid::Uuid;

use crate::attempts::Attempt;
use crate::metrics::{Counter, Registry};
use crate::record::UsageEvent;

/// Ended requests that wait beyond this are dropped, and counted.
const MAX_WAITING: usize = 8_192;
/// Bits of a request's id by which it is sampled: random in every kind of UUIDv7.
const RANDOM: u64 = (1 << 32) - 1;

/// The place of one request in its trace.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub struct Trace {
    id: u128,
    parent: Option<u64>,
    span: u64,
}

impl Trace {
    /// Of the request with this id: within its client's trace, or a trace of its own. `None`: its
    /// client, or without one the share, says that it has none.
    pub fn of(traceparent: Option<&[u8]>, request: &Uuid, share: f64) -> Option<Self> {
        let number = request.as_u128();
        let span = (number as u64).max(1);
        if let Some((id, parent, sampled)) = traceparent.and_then(parse) {
            return sampled.then_some(Self {
                id,
                parent: Some(parent),
                span,
            });
        }
        let drawn = (number as u64 & RANDOM) as f64 / (RANDOM + 1) as f64;
        (drawn < share).then_some(Self {
            id: number,
            parent: None,
            span,
        })
    }

    /// The id of an attempt's span.
    fn attempt(&self, number: u32) -> u64 {
        // Fibonacci hashing: no two attempts of a request, and none and the request, are the same.
        let step = u64::from(number).wrapping_mul(0x9E37_79B9_7F4A_7C15);
        self.span.wrapping_add(step).max(1)
    }

    /// The `traceparent` that goes with an attempt: what the upstream makes of it hangs below that.
    pub fn traceparent(&self, number: u32) -> Option<HeaderValue> {
        let text = format!("00-{:032x}-{:016x}-01", self.id, self.attempt(number));
        HeaderValue::try_from(text).ok()
    }
}

/// Trace, parent, and whether it is sampled, of what has been found to be a `traceparent`.
fn parse(text: &[u8]) -> Option<(u128, u64, bool)> {
    if !crate::headers::is_traceparent(text) {
        return None;
    }
    let text = std::str::from_utf8(text).ok()?;
    let mut fields = text.split('-').skip(1);
    let id = u128::from_str_radix(fields.next()?, 16).ok()?;
    let parent = u64::from_str_radix(fields.next()?, 16).ok()?;
    let flags = u8::from_str_radix(fields.next()?, 16).ok()?;
    Some((id, parent, flags & 1 == 1))
}

/// One ended request.
pub struct Ended {
    trace: Trace,
    event: UsageEvent,
    attempts: Vec<Attempt>,
}

#[derive(Serialize)]
struct Tried<'a> {
    span_id: String,
    #[serde(flatten)]
    attempt: &'a Attempt,
}

#[derive(Serialize)]
struct Told<'a> {
    trace_id: String,
    span_id: String,
    parent_id: Option<String>,
    request_id: &'a str,
    admitted_us: i64,
    ended_us: i64,
    model_asked: &'a str,
    model_served: &'a str,
    endpoint: &'a str,
    stream: bool,
    outcome: &'a str,
    status: u16,
    finish_reason: Option<&'a str>,
    error_kind: Option<&'a str>,
    input_tokens: u64,
    cached_tokens: u64,
    cache_write_tokens: u64,
    output_tokens: u64,
    reasoning_tokens: u64,
    ttft_ms: Option<f64>,
    attempts: Vec<Tried<'a>>,
}

impl Ended {
    fn told(&self) -> Told<'_> {
        let (trace, event) = (&self.trace, &self.event);
        let tried = |attempt| Tried::of(trace, attempt);
        Told {
            trace_id: format!("{:032x}", trace.id),
            span_id: format!("{:016x}", trace.span),
            parent_id: trace.parent.map(|parent| format!("{parent:016x}")),
            request_id: &event.request_id,
            admitted_us: event.admitted_us,
            ended_us: event.ended_us,
            model_asked: &event.model_asked,
            model_served: &event.model_served,
            endpoint: event.endpoint,
            stream: event.stream,
            outcome: event.outcome,
            status: event.status,
            finish_reason: event.finish_reason.as_deref(),
            error_kind: event.error_kind,
            input_tokens: event.usage.prompt,
            cached_tokens: event.usage.cached,
            cache_write_tokens: event.usage.cache_write,
            output_tokens: event.usage.completion,
            reasoning_tokens: event.usage.reasoning,
            ttft_ms: event.ttft_ms,
            attempts: self.attempts.iter().map(tried).collect(),
        }
    }
}

impl<'a> Tried<'a> {
    fn of(trace: &Trace, attempt: &'a Attempt) -> Self {
        Self {
            span_id: format!("{:016x}", trace.attempt(attempt.number)),
            attempt,
        }
    }
}

/// The traces of a gateway. Off until [`Traces::begin`].
pub struct Traces {
    on: OnceLock<(f64, ArrayQueue<Ended>)>,
    /// Ended requests that nobody was told of.
    pub dropped: Arc<Counter>,
}

impl Traces {
    /// Without any.
    pub fn registered(registry: &Registry) -> Self {
        let name = "forebay_traces_dropped_total";
        let help = "Traced requests whose spans were not exported.";
        Self {
            on: OnceLock::new(),
            dropped: registry.counters(name, help, []).get_or_create(&[]),
        }
    }

    /// From now on requests are traced: those of clients that say so, and this share of those whose
    /// clients say nothing. Once only: a second share is dropped.
    pub fn begin(&self, share: f64) {
        self.on
            .get_or_init(|| (share, ArrayQueue::new(MAX_WAITING)));
    }

    /// The trace of a request, if it has one.
    pub(crate) fn of(&self, traceparent: Option<&[u8]>, request: &Uuid) -> Option<Box<Trace>> {
        let (share, _) = self.on.get()?;
        Trace::of(traceparent, request, *share).map(Box::new)
    }

    /// A traced request has ended.
    pub(crate) fn push(&self, trace: &Trace, event: &UsageEvent, attempts: &[Attempt]) {
        let Some((_, queue)) = self.on.get() else {
            return;
        };
        let ended = Ended {
            trace: *trace,
            event: event.clone(),
            attempts: attempts.to_vec(),
        };
        if queue.push(ended).is_err() {
            self.dropped.inc();
        }
    }

    /// Takes up to `limit` ended requests, oldest first, as a JSON array; nothing where none waits.
    pub fn take(&self, limit: usize) -> Option<Vec<u8>> {
        let (_, queue) = self.on.get()?;
        let taken: Vec<Ended> = std::iter::from_fn(|| queue.pop()).take(limit).collect();
        if taken.is_empty() {
            return None;
        }
        let told: Vec<_> = taken.iter().map(Ended::told).collect();
        serde_json::to_vec(&told).ok()
    }
}
