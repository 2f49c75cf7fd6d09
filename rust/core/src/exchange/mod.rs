//! One request's life: attempts, the commit point, the relay, the end.
//!
//! States, in order: *attempting* (no byte has reached the client: a failure moves on to the next
//! target), *committed* (the head is out: a failure becomes an in-stream error), *ended*. The
//! driver runs as one task; dropping it at any point closes the engine's connection and books what
//! was delivered.
use std::borrow::Cow;
use std::sync::Arc;
use std::time::{Duration, SystemTime, UNIX_EPOCH};

use bytes::{Bytes, BytesMut};
use http::{HeaderMap, HeaderName, Method, Response};
use hyper::body::Incoming;
use tokio::time::Instant;

use crate::alarm::{Alarm, Elapsed};
use crate::dialect::Context;
use crate::door::Native;
use crate::edits::Edits;
use crate::error::{Error, Kind};
use crate::gateway::{Endpoint, Gateway};
use crate::keys::KeyId;
use crate::linger::{OnDisconnect, outstayed};
use crate::pass::object::Object;
use crate::pass::upload::Upload;
use crate::record::Record;
use crate::relay::Shape;
use crate::route::Ask;
use crate::scrub::Asked;
use crate::slot::{Headers, Slot, stopped};
use crate::snapshot::{Model, Target};
use crate::trace::Trace;
use crate::upstream::{BETA, Rope, Upstream};

mod body;
mod course;
mod feed;
mod hedge;
mod keep;
mod native;
mod objects;
mod open;
mod out;
mod passing;
mod ranked;
mod read;
mod refuse;
mod resume;
mod stream;
mod unary;

/// Most bytes of an answer to [`fetch`]: a list of thousands of models.
const MAX_FETCH: usize = 8 << 20;

/// Everything that the driver needs, decided at admission.
pub struct Job {
    /// The gateway.
    pub gateway: Arc<Gateway>,
    /// Where the answer goes.
    pub slot: Arc<Slot>,
    /// The model asked for.
    pub model: Arc<Model>,
    /// The model's name as the client wrote it.
    pub model_asked: String,
    /// Which API.
    pub endpoint: Endpoint,
    /// Streamed, in OpenAI's chunks.
    pub stream: bool,
    /// Its answer goes by, and is not read whole.
    pub passes: bool,
    /// In place of a body that is there, one that still comes.
    pub upload: Option<Arc<Upload>>,
    /// The file or batch that it is about.
    pub object: Option<Object>,
    /// What the relay has to know.
    pub shape: Shape,
    /// The client's body.
    pub body: Bytes,
    /// Where it is edited.
    pub edits: Edits,
    /// Headers for the upstream.
    pub headers: HeaderMap,
    /// Its place in a trace.
    pub trace: Option<Box<Trace>>,
    /// Headers of every answer: request id and limits.
    pub answer_headers: Headers,
    /// One choice only: the engine may know the request by our id.
    pub single: bool,
    /// The engine's name for the request.
    pub rid: String,
    /// Largest unary answer, bytes.
    pub max_answer_bytes: usize,
    /// What routing has to know of it.
    pub ask: Ask,
    /// Whose request it is.
    pub account: Arc<str>,
    /// Their key.
    pub key_id: KeyId,
    /// How long all of it may take.
    pub total: Duration,
    /// The client's own request, for upstreams that speak as it does.
    pub native: Option<Native>,
}

impl Job {
    /// What an answer that is turned into OpenAI's dialect says of itself.
    fn context(&self) -> Context {
        let now = SystemTime::now().duration_since(UNIX_EPOCH);
        Context {
            id: format!("chatcmpl-{}", self.rid),
            model: self.model_asked.clone(),
            created: now.map_or(0, |since| since.as_secs()),
        }
    }

    /// The headers for the upstream of the `number`th attempt. own: what is sent is the client's own
    /// request.
    fn headers_of(&self, number: u32, own: Option<&Native>) -> Cow<'_, HeaderMap> {
        let mut headers = Cow::Borrowed(&self.headers);
        let trace = self.trace.as_ref();
        if let Some(traceparent) = trace.and_then(|trace| trace.traceparent(number)) {
            let name = HeaderName::from_static("traceparent");
            headers.to_mut().insert(name, traceparent);
        }
        if let Some(beta) = own.and_then(|own| own.beta.clone()) {
            let name = HeaderName::from_static(BETA);
            headers.to_mut().insert(name, beta);
        }
        headers
    }

    /// A number from 0 to 1 for this request's `n`th throw: its id was made by chance.
    fn chance(&self, n: u32) -> f64 {
        let random = self
            .rid
            .get(16..)
            .and_then(|digits| u64::from_str_radix(digits, 16).ok())
            .unwrap_or_default();
        // Fibonacci hashing spreads the throws (Knuth, The Art of Computer Programming, 6.4).
        let thrown = (random ^ u64::from(n)).wrapping_mul(0x9E37_79B9_7F4A_7C15);
        (thrown >> 11) as f64 / (1_u64 << 53) as f64
    }
}

/// One question to an upstream: `(status, body)`, all of it within `limit`.
pub async fn fetch(
    upstream: &Upstream,
    method: Method,
    path: &str,
    (headers, body): (&HeaderMap, Rope),
    limit: Duration,
) -> Result<(u16, Bytes), Error> {
    answer(upstream.ask_with(method, path, headers, body), limit).await
}

/// Waits for what was asked, and reads it whole, within `limit`.
pub async fn answer(
    asked: impl Future<Output = Result<Response<Incoming>, Error>>,
    limit: Duration,
) -> Result<(u16, Bytes), Error> {
    let until = Instant::now() + limit;
    let mut alarm = Alarm::new(until);
    let late = || {
        Error::new(
            Kind::UpstreamTimeout,
            "The upstream did not answer in time.",
        )
    };
    let response = alarm
        .within(until, asked)
        .await
        .map_err(|Elapsed| late())??;
    let status = response.status().as_u16();
    let mut body = response.into_body();
    let mut out = BytesMut::new();
    while let Some(chunk) = alarm
        .within(until, read::frame(&mut body))
        .await
        .map_err(|Elapsed| late())?
    {
        let cut = |cause| {
            Error::new(Kind::UpstreamError, "The upstream broke off its answer.").cause(cause)
        };
        out.extend_from_slice(&chunk.map_err(cut)?);
        if out.len() > MAX_FETCH {
            return Err(Error::new(
                Kind::UpstreamError,
                "The upstream's answer is too large.",
            ));
        }
    }
    Ok((status, out.freeze()))
}

/// Runs the exchange to its end, or to the gateway's. Everything of it is released when this future
/// ends or is dropped; the record then says what had come of it.
pub fn drive(job: Box<Job>, mut record: Record) -> impl Future<Output = ()> + Send {
    let gateway = Arc::clone(&job.gateway);
    let may_linger = |target: &Target| target.upstream.on_disconnect != OnDisconnect::Abort;
    // Of fallbacks it is not known before.
    let changes = job.object.as_ref().is_some_and(Object::changes);
    let lingers = changes || job.model.falls_back() || job.model.targets.iter().any(may_linger);
    // An async function would have room for its arguments twice.
    async move {
        let mut gone = false;
        tokio::select! {
            biased;
            () = course::run(&job, &mut record) => {}
            () = gateway.halting() => {}
            () = outstayed(&job.slot, &mut gone), if lingers => {}
        }
        if gone {
            record.client_gone();
        }
        record.book();
        // An exchange that was stopped once it was closed has not told its client.
        job.slot.abandon(&stopped());
    }
}

/// How errors name the request's parameters.
pub const fn asked(max_completion_tokens: bool) -> Asked {
    Asked {
        max_completion_tokens,
    }
}
