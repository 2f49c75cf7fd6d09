//! One finished request, as the usage table keeps it.
use std::sync::Arc;

use crate::keys::KeyId;
use crate::usage::Usage;

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
    /// The last upstream tried; of a stream that broke off the last one that delivered of it.
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
    /// What came of each, where there were several: the text of a JSON array; see
    /// [`crate::attempts`].
    pub attempt_log: Option<Box<str>>,
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
    /// The client's labels: the text of a JSON object of strings.
    pub tags: Option<Box<str>>,
    /// What it cost, pico-USD; absent when no price was in force.
    pub cost_pico: Option<u64>,
    /// The row of the price book that the cost is by; absent where none is, and of what was not
    /// served, which costs nothing.
    pub price_id: Option<i64>,
}
