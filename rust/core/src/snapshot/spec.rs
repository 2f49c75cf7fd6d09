//! The configuration in the form that the control plane hands over.
use std::fmt;
use std::time::Duration;

use serde::Deserialize;

use crate::dialect::Dialect;
use crate::endpoint::Endpoint;
use crate::linger::{Cap, OnDisconnect};
use crate::prompt_log::SettingsSpec;
use crate::upstream::Traits;

use super::MAX_TIMEOUT;

/// The configuration in the form that the control plane hands over, as JSON.
#[derive(Debug, Default, Deserialize)]
#[serde(deny_unknown_fields)]
pub struct SnapshotSpec {
    /// Every upstream.
    pub upstreams: Vec<UpstreamSpec>,
    /// Every model, with its targets in order.
    pub models: Vec<ModelSpec>,
    /// Largest event of a stream, bytes.
    pub max_event_bytes: usize,
    /// Largest unary answer, bytes.
    pub max_answer_bytes: usize,
    /// False while an upstream that is asked for its models has never answered: an unknown model
    /// may then exist all the same.
    pub complete: bool,
    /// Where files and batches are kept, as a model of one target; without it, nowhere.
    #[serde(default)]
    pub files: Option<ModelSpec>,
    /// How prompts are logged; without it, only metadata are.
    #[serde(default)]
    pub prompt_logs: Option<SettingsSpec>,
}

/// One upstream: address, credentials, and what its kind can do.
#[derive(Clone, Default, Deserialize, PartialEq)]
#[serde(deny_unknown_fields)]
#[expect(
    clippy::struct_excessive_bools,
    reason = "independent members of a JSON document"
)]
pub struct UpstreamSpec {
    /// Unique name.
    pub name: String,
    /// Scheme, host, port and an optional path prefix, without `/v1`.
    pub url: String,
    /// Sent as a bearer token.
    #[serde(default)]
    pub api_key: Option<String>,
    /// HTTP/2: by prior knowledge over plain TCP, by ALPN over TLS.
    #[serde(default)]
    pub http2: bool,
    /// Most requests in flight at once.
    #[serde(default)]
    pub max_concurrency: Option<u32>,
    /// Finds out how many of them the upstream can take at once.
    #[serde(default)]
    pub adaptive: Option<AdaptiveSpec>,
    /// Most requests that wait while all places are taken.
    #[serde(default)]
    pub max_waiting: usize,
    /// Longest of these waits, seconds.
    #[serde(default)]
    pub queue_timeout_s: f64,
    /// Connect timeout, seconds.
    pub connect_s: f64,
    /// See [`Traits::include_usage`].
    pub include_usage: bool,
    /// See [`Traits::continuous_usage`].
    pub continuous_usage: bool,
    /// See [`Traits::rid`].
    pub rid: bool,
    /// See [`Traits::abort_path`].
    #[serde(default)]
    pub abort_path: Option<String>,
    /// With it, a request whose client leaves is read to its end within these bounds; without, it is
    /// stopped.
    #[serde(default)]
    pub drain: Option<DrainSpec>,
    /// Its kind's name, for who looks.
    #[serde(default)]
    pub kind: String,
    /// What is spoken there.
    #[serde(default)]
    pub dialect: Dialect,
    /// Where each API is.
    #[serde(default)]
    pub paths: PathsSpec,
    /// Sent with every request: credentials that do not change, versions.
    #[serde(default)]
    pub headers: Vec<(String, String)>,
    /// Nothing is sent before credentials were handed over, which may be replaced at any time.
    /// Those that sign are needed in any case.
    #[serde(default)]
    pub credentials: bool,
    /// Requests are signed (AWS Signature Version 4) with credentials that are handed over apart.
    #[serde(default)]
    pub sign: Option<SignSpec>,
    /// What its statuses mean where that is not what they usually do; the first that fits counts.
    #[serde(default)]
    pub errors: Vec<ErrorRule>,
    /// A 303 says where the answer is to be fetched.
    #[serde(default)]
    pub redirects: bool,
    /// Can go on from a last message of the assistant's (`continue_final_message`).
    #[serde(default)]
    pub continues: bool,
    /// What its dialect cannot carry is left out; else it is refused.
    #[serde(default)]
    pub drop_params: bool,
    /// Asked for where a dialect wants a bound on output and the client names none, tokens.
    #[serde(default)]
    pub max_output_tokens: Option<u32>,
    /// When it is taken out for what its requests come to; never without.
    #[serde(default)]
    pub outlier: Option<OutlierSpec>,
    /// How long its share of requests grows once it is back, seconds.
    #[serde(default)]
    pub slow_start_s: f64,
    /// What happens to requests while it is not warm; without, they go elsewhere or fail.
    #[serde(default)]
    pub cold: Option<ColdSpec>,
    /// Takes no new requests.
    #[serde(default)]
    pub draining: bool,
    /// What tells how the engine is and starts it.
    #[serde(default)]
    pub agent: Option<AgentSpec>,
}

impl fmt::Debug for UpstreamSpec {
    /// Without its secrets.
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        f.debug_struct("UpstreamSpec")
            .field("name", &self.name)
            .field("kind", &self.kind)
            .finish_non_exhaustive()
    }
}

/// Paths below the upstream's address. `{model}` stands for the model's name there,
/// percent-encoded. An API without a path is not there.
#[derive(Clone, Debug, Deserialize, PartialEq, Eq)]
#[serde(deny_unknown_fields)]
pub struct PathsSpec {
    /// Chat.
    pub chat: Option<String>,
    /// Chat that is streamed, where that is another path.
    #[serde(default)]
    pub chat_stream: Option<String>,
    /// Completions.
    pub completions: Option<String>,
    /// Embeddings.
    pub embeddings: Option<String>,
    /// Realtime sessions.
    #[serde(default)]
    pub realtime: Option<String>,
    /// Counts the tokens of a request of Anthropic's Messages.
    #[serde(default)]
    pub count_tokens: Option<String>,
    /// OpenAI's Responses, where they are offered beside chat.
    #[serde(default)]
    pub responses: Option<String>,
    /// Ranking of documents.
    #[serde(default)]
    pub rerank: Option<String>,
    /// Scores of pairs.
    #[serde(default)]
    pub score: Option<String>,
    /// Moderations.
    #[serde(default)]
    pub moderations: Option<String>,
    /// Images made from text.
    #[serde(default)]
    pub images: Option<String>,
    /// Images made from images.
    #[serde(default)]
    pub image_edits: Option<String>,
    /// Variations of an image.
    #[serde(default)]
    pub image_variations: Option<String>,
    /// Speech made from text.
    #[serde(default)]
    pub speech: Option<String>,
    /// Text of speech.
    #[serde(default)]
    pub transcriptions: Option<String>,
    /// English text of speech.
    #[serde(default)]
    pub translations: Option<String>,
    /// Files; single ones lie below.
    #[serde(default)]
    pub files: Option<String>,
    /// Batches; single ones lie below.
    #[serde(default)]
    pub batches: Option<String>,
}

impl PathsSpec {
    /// The path of an API.
    pub fn of(&self, endpoint: Endpoint) -> &Option<String> {
        match endpoint {
            Endpoint::Chat => &self.chat,
            Endpoint::Completions => &self.completions,
            Endpoint::Embeddings => &self.embeddings,
            Endpoint::Realtime => &self.realtime,
            Endpoint::Rerank => &self.rerank,
            Endpoint::Score => &self.score,
            Endpoint::Moderations => &self.moderations,
            Endpoint::Images => &self.images,
            Endpoint::ImageEdits => &self.image_edits,
            Endpoint::ImageVariations => &self.image_variations,
            Endpoint::Speech => &self.speech,
            Endpoint::Transcriptions => &self.transcriptions,
            Endpoint::Translations => &self.translations,
            Endpoint::Files => &self.files,
            Endpoint::Batches => &self.batches,
        }
    }
}

impl Default for PathsSpec {
    fn default() -> Self {
        let path = |path: &str| Some(path.to_owned());
        Self {
            chat: path("/v1/chat/completions"),
            chat_stream: None,
            completions: path("/v1/completions"),
            embeddings: path("/v1/embeddings"),
            realtime: None,
            count_tokens: None,
            responses: None,
            rerank: None,
            score: None,
            moderations: None,
            images: None,
            image_edits: None,
            image_variations: None,
            speech: None,
            transcriptions: None,
            translations: None,
            files: None,
            batches: None,
        }
    }
}

/// What a signature is for.
#[derive(Clone, Debug, Deserialize, PartialEq, Eq)]
#[serde(deny_unknown_fields)]
pub struct SignSpec {
    /// The service's signing name: `bedrock`.
    pub service: String,
    /// The region: `us-east-1`.
    pub region: String,
}

/// What one answer of an upstream means. All conditions that are given have to hold.
#[derive(Clone, Debug, Deserialize, PartialEq, Eq)]
#[serde(deny_unknown_fields)]
pub struct ErrorRule {
    /// The HTTP status.
    pub status: u16,
    /// The error's own `code`, `type` or `status`, whichever has it.
    #[serde(default)]
    pub code: Option<String>,
    /// Text within the body, in lower case; compared without case.
    #[serde(default)]
    pub contains: Option<String>,
    /// The kind's name, as [`crate::error::Kind::name`] has it.
    pub kind: String,
    /// Whether another target may do better. Absent: as the kind says.
    #[serde(default)]
    pub retry: Option<bool>,
    /// What it is about, where another model may do better.
    #[serde(default)]
    pub reason: Option<Reason>,
}

/// What an upstream's refusal is about.
#[derive(Clone, Copy, Debug, Deserialize, PartialEq, Eq, Hash)]
#[serde(rename_all = "snake_case")]
pub enum Reason {
    /// The request does not fit into the model's context.
    ContextOverflow,
    /// A filter refused what was asked or answered.
    ContentFilter,
    /// The engine is being started.
    Loading,
    /// Our account there is out of quota: waiting does not help.
    Quota,
}

/// When an upstream is ejected (the names are Envoy's outlier detection's).
#[derive(Clone, Copy, Debug, Deserialize, PartialEq)]
#[serde(deny_unknown_fields)]
pub struct OutlierSpec {
    /// Failures in a row; 0 never.
    pub consecutive: u32,
    /// Share of failures within an interval, per cent; 0 never.
    pub failure_percent: u32,
    /// Requests within an interval before its share or its latency counts.
    pub min_requests: u32,
    /// Times the median first-token time of its siblings; 0 never.
    pub latency_factor: f64,
    /// The interval, seconds.
    pub interval_s: f64,
    /// How long the first ejection lasts, seconds; each further one as much longer.
    pub base_ejection_s: f64,
    /// The longest ejection, seconds.
    pub max_ejection_s: f64,
    /// Most of a model's targets of one tier that may be out at once, per cent; one always may.
    pub max_ejection_percent: u32,
}

/// What requests do at an engine that has to be started.
#[derive(Clone, Copy, Debug, Deserialize, PartialEq)]
#[serde(deny_unknown_fields)]
pub struct ColdSpec {
    /// How long a request waits for it at most, seconds.
    pub hold_s: f64,
    /// After how long it goes to a higher tier, where there is one, seconds.
    pub spill_after_s: f64,
    /// Seconds between two comments that keep a waiting stream's client there.
    pub keep_alive_s: f64,
    /// Most requests that wait.
    pub max_held: usize,
    /// Without requests for so long an engine that can be woken is taken to have gone cold,
    /// seconds; 0 never.
    #[serde(default)]
    pub idle_s: f64,
}

/// The bounds of reading on for a client that has left.
#[derive(Clone, Copy, Debug, Deserialize, PartialEq)]
#[serde(deny_unknown_fields)]
pub struct DrainSpec {
    /// Longest, seconds.
    pub seconds: f64,
    /// Most bytes of the answer.
    pub bytes: u64,
}

/// Where the agent beside an engine is.
#[derive(Clone, Deserialize, PartialEq, Eq)]
#[serde(deny_unknown_fields)]
pub struct AgentSpec {
    /// Scheme, host, port and an optional path prefix.
    pub url: String,
    /// Sent as a bearer token.
    #[serde(default)]
    pub key: Option<String>,
}

impl fmt::Debug for AgentSpec {
    /// Without its key.
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        f.debug_struct("AgentSpec")
            .field("url", &self.url)
            .finish_non_exhaustive()
    }
}

/// The bounds of an adaptive limit, requests in flight.
#[derive(Clone, Copy, Debug, Deserialize, PartialEq, Eq)]
#[serde(deny_unknown_fields)]
pub struct AdaptiveSpec {
    /// So many the upstream can always take.
    pub min: u32,
    /// More are never tried.
    pub max: u32,
}

impl UpstreamSpec {
    /// Most requests in flight at once, whatever the adaptive limit.
    pub fn most_in_flight(&self) -> Option<u32> {
        let adaptive = self.adaptive.map(|adaptive| adaptive.max.max(1));
        self.max_concurrency.into_iter().chain(adaptive).min()
    }

    /// What becomes of a request whose client leaves; an error on a time that is none.
    pub fn on_disconnect(&self) -> Result<OnDisconnect, String> {
        let Some(drain) = self.drain else {
            return Ok(OnDisconnect::Abort);
        };
        let time = Duration::try_from_secs_f64(drain.seconds)
            .map_err(|e| format!("drain: {e}"))?
            .min(MAX_TIMEOUT);
        Ok(OnDisconnect::Drain(Cap {
            time,
            bytes: drain.bytes,
        }))
    }

    /// What the kind can do.
    pub fn traits(&self) -> Traits {
        Traits {
            include_usage: self.include_usage,
            continuous_usage: self.continuous_usage,
            rid: self.rid,
            abort_path: self.abort_path.clone(),
            continues: self.continues,
        }
    }
}

/// One model as clients name it.
#[derive(Clone, Debug, Default, Deserialize)]
#[serde(deny_unknown_fields)]
pub struct ModelSpec {
    /// Its name.
    pub name: String,
    /// Other names for it.
    #[serde(default)]
    pub aliases: Vec<String>,
    /// Where it is served; at least one.
    pub targets: Vec<TargetSpec>,
    /// Until the answer's first byte, seconds.
    pub first_byte_s: f64,
    /// Between two reads, seconds.
    pub idle_s: f64,
    /// The whole request, seconds.
    pub total_s: f64,
    /// How a target is chosen among those of a tier.
    #[serde(default)]
    pub policy: PolicySpec,
    /// Requests of one session go to one target as long as that can take them.
    #[serde(default)]
    pub sticky: Option<StickySpec>,
    /// A copy of some requests goes there; its answers are thrown away.
    #[serde(default)]
    pub shadow: Option<ShadowSpec>,
    /// What happens when an attempt fails before its first token.
    #[serde(default)]
    pub retry: RetrySpec,
    /// A second attempt beside a slow first one.
    #[serde(default)]
    pub hedge: Option<HedgeSpec>,
    /// Models that are tried in turn when this one cannot answer.
    #[serde(default)]
    pub fallbacks: Vec<String>,
    /// The model for what does not fit into this one's context.
    #[serde(default)]
    pub context_fallback: Option<String>,
    /// The model for what a content filter refuses.
    #[serde(default)]
    pub content_filter_fallback: Option<String>,
    /// A stream whose engine dies is carried on by a sibling that can.
    #[serde(default)]
    pub resume: bool,
}

/// One place that serves a model.
#[derive(Clone, Debug, Deserialize, PartialEq)]
#[serde(deny_unknown_fields)]
pub struct TargetSpec {
    /// The upstream's name.
    pub upstream: String,
    /// The model's name there.
    pub model: String,
    /// Used when no target of a lower tier can take a request.
    #[serde(default)]
    pub tier: u8,
    /// Its share of requests against its siblings'.
    #[serde(default = "one")]
    pub weight: u32,
    /// Its share of all of the model's requests, per cent, whatever the policy: a canary.
    #[serde(default)]
    pub canary_percent: Option<f64>,
    /// Not used for requests that may cost more there, nano-USD.
    #[serde(default)]
    pub max_cost_nano: Option<u64>,
    /// Longest wait for its first byte, where that is not the model's, seconds.
    #[serde(default)]
    pub first_byte_s: Option<f64>,
    /// Its context, tokens; what is estimated not to fit goes elsewhere.
    #[serde(default)]
    pub context_tokens: Option<u64>,
}

const fn one() -> u32 {
    1
}

impl Default for TargetSpec {
    fn default() -> Self {
        Self {
            upstream: String::new(),
            model: String::new(),
            tier: 0,
            weight: one(),
            canary_percent: None,
            max_cost_nano: None,
            first_byte_s: None,
            context_tokens: None,
        }
    }
}

/// How a target is chosen among those of a tier.
#[derive(Clone, Copy, Debug, Default, Deserialize, PartialEq, Eq)]
#[serde(rename_all = "snake_case")]
pub enum PolicySpec {
    /// In turn, by weight.
    #[default]
    RoundRobin,
    /// The fewest requests for its weight.
    LeastLoad,
    /// The better one of two taken at random.
    PowerOfTwo,
    /// Where the prompt's beginning has been before, within bounded load.
    PrefixAffinity,
    /// The shortest expected time to first token.
    Latency,
}

/// What makes a session.
#[derive(Clone, Debug, Deserialize, PartialEq)]
#[serde(deny_unknown_fields)]
pub struct StickySpec {
    /// What tells sessions apart.
    pub by: StickyBy,
    /// How long one is remembered after its last request, seconds.
    pub ttl_s: f64,
}

/// What tells sessions apart.
#[derive(Clone, Copy, Debug, Deserialize, PartialEq, Eq)]
#[serde(rename_all = "snake_case")]
pub enum StickyBy {
    /// The header `x-session-id`, else the body's `user`, else the key.
    Session,
    /// The body's `user`, else the key.
    User,
    /// The API key.
    Key,
}

/// Where a copy of some requests goes.
#[derive(Clone, Debug, Deserialize, PartialEq)]
#[serde(deny_unknown_fields)]
pub struct ShadowSpec {
    /// The upstream's name.
    pub upstream: String,
    /// The model's name there.
    pub model: String,
    /// Which share of requests, per cent.
    pub percent: f64,
    /// Most copies in flight; more are not made.
    pub max_in_flight: u32,
}

/// What happens when an attempt fails before its first token.
#[derive(Clone, Debug, Deserialize, PartialEq)]
#[serde(default, deny_unknown_fields)]
pub struct RetrySpec {
    /// Attempts at most, the first one included.
    pub attempts: u32,
    /// Retries that are allowed for each request, over time (a share: 0.2).
    pub budget: f64,
    /// Retries a second that are always allowed.
    pub min_per_second: f64,
    /// The first wait before a target is tried again, seconds; doubles, with jitter.
    pub backoff_s: f64,
    /// The longest wait, seconds.
    pub max_backoff_s: f64,
    /// Statuses of upstreams that are tried elsewhere though their kind would not.
    pub on: Vec<u16>,
}

impl Default for RetrySpec {
    fn default() -> Self {
        Self {
            attempts: 3,
            budget: 0.2,
            min_per_second: 10.0,
            backoff_s: 0.05,
            max_backoff_s: 2.0,
            on: Vec::new(),
        }
    }
}

/// A second attempt beside a slow first one.
#[derive(Clone, Copy, Debug, Deserialize, PartialEq)]
#[serde(deny_unknown_fields)]
pub struct HedgeSpec {
    /// After how long without a first token, seconds.
    pub after_s: f64,
    /// Most requests that are hedged, per cent of all.
    pub max_percent: f64,
}
