//! One request's life: attempts, the commit point, the relay, the end.
//!
//! States, in order: *attempting* (no byte has reached the client: a failure moves on to the next
//! target), *committed* (the head is out: a failure becomes an in-stream error), *ended*. The
//! driver runs as one task; dropping it at any point closes the engine's connection and books what
//! was delivered.
use std::future::Future;
use std::pin::{Pin, pin};
use std::sync::Arc;
use std::task::Poll;
use std::time::Duration;

use bytes::{Bytes, BytesMut};
use http::{HeaderMap, HeaderName, HeaderValue, Method};
use http_body::Body;
use hyper::body::Incoming;
use tokio::time::Instant;

use crate::alarm::{Alarm, Elapsed};
use crate::dispatch;
use crate::edits::{Edits, Wanted};
use crate::error::{Error, Kind};
use crate::gate::Permit;
use crate::gateway::{Endpoint, Gateway};
use crate::linger::{OnDisconnect, Unread, outstayed};
use crate::queue::Ask;
use crate::record::{Outcome, Progress, Record};
use crate::relay::{self, Shape, StreamRelay};
use crate::scrub::{self, Asked};
use crate::slot::{Head, Headers, Slot, error_headers, header_text};
use crate::snapshot::{Model, Target};
use crate::upstream::{self, Call, Rope, Upstream};
use crate::usage::Inspected;

/// A stream is neither kept nor held back by what stands between us and the client.
const STREAM_HEADERS: [(&str, &str); 2] =
    [("cache-control", "no-cache"), ("x-accel-buffering", "no")];

/// Most bytes of an upstream's error body that are read.
const MAX_ERROR_BODY: usize = 64 * 1024;

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
    /// Streamed.
    pub stream: bool,
    /// What the relay has to know.
    pub shape: Shape,
    /// The client's body.
    pub body: Bytes,
    /// Where it is edited.
    pub edits: Edits,
    /// Headers for the upstream.
    pub headers: HeaderMap,
    /// Headers of every answer: request id and limits.
    pub answer_headers: Headers,
    /// One choice only: the engine may know the request by our id.
    pub single: bool,
    /// The engine's name for the request.
    pub rid: String,
    /// Largest unary answer, bytes.
    pub max_answer_bytes: usize,
    /// What it asks of an upstream, and for whom.
    pub ask: Ask,
}

/// Stops the engine's work on a request that is dropped before its answer was whole.
struct Stopper {
    upstream: Arc<Upstream>,
    rid: Option<String>,
}

impl Drop for Stopper {
    fn drop(&mut self) {
        let Some(rid) = self.rid.take() else { return };
        if let Ok(runtime) = tokio::runtime::Handle::try_current() {
            runtime.spawn(Arc::clone(&self.upstream).abort(rid));
        }
    }
}

/// One question to an upstream: `(status, body)`, all of it within `limit`.
pub async fn fetch(
    upstream: &Upstream,
    method: Method,
    path: &str,
    body: Rope,
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
        .within(until, upstream.ask(method, path, body))
        .await
        .map_err(|Elapsed| late())??;
    let status = response.status().as_u16();
    let mut body = response.into_body();
    let mut out = BytesMut::new();
    while let Some(chunk) = alarm
        .within(until, frame(&mut body))
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
pub async fn drive(job: Job, mut record: Record) {
    let gateway = Arc::clone(&job.gateway);
    let may_linger = |target: &Target| target.upstream.on_disconnect != OnDisconnect::Abort;
    let lingers = job.model.targets.iter().any(may_linger);
    let mut gone = false;
    tokio::select! {
        biased;
        () = run(&job, &mut record) => {}
        () = gateway.halting() => {}
        () = outstayed(&job.slot, &mut gone), if lingers => {}
    }
    if gone {
        record.client_gone();
    }
}

async fn run(job: &Job, record: &mut Record) {
    let now = Instant::now();
    let total = now + job.model.timeouts.total;
    let mut alarm = Alarm::new((now + job.model.timeouts.first_byte).min(total));
    let mut left: Vec<Target> = job.model.candidates().cloned().collect();
    loop {
        let next = dispatch::next(&mut left, &job.ask, total, &mut alarm).await;
        let error = match next {
            Ok((target, permit)) => {
                if job.gateway.is_halted() {
                    // The place came free as another request was stopped.
                    return;
                }
                let attempts = record.attempt(&target.upstream.name);
                if !job.slot.lingers(record.linger(&target.upstream)) {
                    return;
                }
                match attempt(job, &target, permit, attempts, total, &mut alarm, record).await {
                    Ok(()) => return,
                    Err(error) => {
                        if let Some(log) = &mut record.log {
                            log.unanswered();
                        }
                        error
                    }
                }
            }
            Err(error) => {
                refuse(job, &error, record).await;
                return;
            }
        };
        if !job.slot.lingers(None) {
            // Nobody waits for another one's answer.
            if error.kind != Kind::ClientClosed {
                record.close(Outcome::Error, error.kind.status(), Some(error.kind), None);
            }
            return;
        }
        if left.is_empty() || !error.elsewhere() || Instant::now() >= total {
            refuse(job, &error, record).await;
            return;
        }
        job.gateway.note(&error, &job.answer_headers);
        record.failed();
    }
}

/// Answers with an error before anything else was answered.
async fn refuse(job: &Job, error: &Error, record: &mut Record) {
    job.gateway.note(error, &job.answer_headers);
    let mut headers = job.answer_headers.clone();
    headers.extend(error_headers(error));
    if let Some((upstream, attempts)) = record.attempted() {
        headers.extend(attempt_headers(&upstream, attempts));
    }
    let body = error.openai_body();
    if let Some(log) = &mut record.log {
        log.answered(&body);
    }
    record.close(Outcome::Error, error.kind.status(), Some(error.kind), None);
    record.book_durably().await;
    job.slot.start(Head {
        status: error.kind.status(),
        headers,
        body,
        more: false,
    });
}

/// Which upstream answered, or failed last, and how many were tried.
fn attempt_headers(upstream: &str, attempts: u32) -> [(HeaderName, HeaderValue); 2] {
    [
        (
            HeaderName::from_static("x-forebay-upstream"),
            header_text(upstream),
        ),
        (
            HeaderName::from_static("x-forebay-attempts"),
            HeaderValue::from(attempts),
        ),
    ]
}

/// Tries one target. An error means that nothing has reached the client.
async fn attempt(
    job: &Job,
    target: &Target,
    mut permit: Permit,
    attempts: u32,
    total: Instant,
    alarm: &mut Alarm,
    record: &mut Record,
) -> Result<(), Error> {
    let upstream = &target.upstream;
    let rid = (upstream.traits.rid && job.single).then(|| attempt_rid(&job.rid, attempts));
    let body = body_for(job, target, rid.as_deref());
    let first_byte = (Instant::now() + job.model.timeouts.first_byte).min(total);
    let mut stopper = Stopper {
        upstream: Arc::clone(upstream),
        rid,
    };
    // From its first byte on the request counts: an engine may compute what nobody waits for.
    let first_contact = record.contacted();
    let call = call_for(job, target);
    let sent = alarm
        .within(first_byte, upstream.post(&call, &job.headers, body))
        .await;
    let response = match sent {
        Err(Elapsed) => {
            permit.overloaded();
            return Err(Error::new(
                Kind::UpstreamTimeout,
                "The engine did not answer in time.",
            ));
        }
        Ok(Err(error)) => {
            stopper.rid = None;
            permit.used(0);
            if first_contact && error.kind == Kind::Unavailable {
                record.not_contacted();
            }
            return Err(error);
        }
        Ok(Ok(response)) => response,
    };
    let (parts, mut incoming) = response.into_parts();
    let status = parts.status.as_u16();
    if status != 200 {
        stopper.rid = None;
        permit.used(0);
        if matches!(status, 429 | 503 | 529) {
            permit.overloaded();
        }
        let body = read_error(&mut incoming, first_byte, alarm).await;
        let (headers, rules) = (&parts.headers, &upstream.rules);
        let error = scrub::upstream_error(status, headers, &body, rules, job.shape.asked);
        return Err(error);
    }
    let head = |body: Bytes, more: bool| {
        let mut headers = Vec::with_capacity(job.answer_headers.len() + parts.headers.len() + 4);
        for (name, value) in &parts.headers {
            if upstream::passes(name, &parts.headers) {
                headers.push((name.clone(), value.clone()));
            }
        }
        headers.extend(job.answer_headers.iter().cloned());
        headers.extend(attempt_headers(&upstream.name, attempts));
        if more {
            headers.extend(STREAM_HEADERS.map(|(name, value)| {
                (
                    HeaderName::from_static(name),
                    HeaderValue::from_static(value),
                )
            }));
        }
        Head {
            status,
            headers,
            body,
            more,
        }
    };
    if job.stream {
        stream(
            job,
            incoming,
            total,
            first_byte,
            alarm,
            record,
            &mut permit,
            &mut stopper,
            head,
        )
        .await
    } else {
        let mut unread = Unread::new(upstream.on_disconnect);
        let body = read_whole(&mut incoming, job, total, alarm, &mut unread, record).await?;
        stopper.rid = None;
        let (body, finish) = unary(job, body, record)?;
        if let Some((usage, _)) = record.progress.reported {
            permit.used(usage.total());
        }
        record.first_byte();
        record.close(Outcome::Ok, status, None, finish.as_deref());
        record.book_durably().await;
        job.slot.start(head(body, false));
        Ok(())
    }
}

/// Reads a stream to its end. Before the first real event an error is the attempt's.
#[expect(
    clippy::too_many_arguments,
    reason = "one state, taken apart so that borrows stay short"
)]
async fn stream(
    job: &Job,
    mut incoming: Incoming,
    total: Instant,
    first_byte: Instant,
    alarm: &mut Alarm,
    record: &mut Record,
    permit: &mut Permit,
    stopper: &mut Stopper,
    head: impl Fn(Bytes, bool) -> Head,
) -> Result<(), Error> {
    let mut relay = StreamRelay::new(job.shape);
    let mut early = BytesMut::new();
    let mut unread = Unread::new(stopper.upstream.on_disconnect);
    let mut committed = false;
    // The last bytes wait until the end is recorded for good.
    let holds = record.is_held();
    loop {
        let until = if committed {
            (Instant::now() + job.model.timeouts.idle).min(total)
        } else {
            first_byte
        };
        let read = alarm
            .within(until, joined_frame(&mut incoming, &job.slot, committed))
            .await;
        let (result, ended) = match read {
            Err(Elapsed) => {
                if !committed {
                    permit.overloaded();
                }
                let text = "The engine stopped sending before it had finished.";
                (Err(Error::new(Kind::UpstreamTimeout, text)), true)
            }
            Ok(Some(Ok(chunk))) => {
                unread.came(&job.slot, record, chunk.len())?;
                let feed = |out: &mut BytesMut| logged(record, out, |out| relay.feed(chunk, out));
                let result = if committed && !holds {
                    job.slot.write(feed)
                } else {
                    feed(&mut early)
                };
                (result, relay.is_done())
            }
            Ok(Some(Err(cause))) => {
                let result = finish(&mut relay, committed && !holds, job, &mut early, record);
                (result.map_err(|error| error.cause(cause)), true)
            }
            Ok(None) => (
                finish(&mut relay, committed && !holds, job, &mut early, record),
                true,
            ),
        };
        advance(&relay, record, permit);
        if !committed && relay.is_started() {
            committed = true;
            permit.first_token();
            record.committed(200);
            job.slot.start(head(Bytes::new(), true));
        }
        if committed && !(holds && ended) && !early.is_empty() {
            let early = std::mem::take(&mut early);
            job.slot.write(|out| out.extend_from_slice(&early));
        }
        if !committed && early.len() > job.shape.max_event_bytes {
            return Err(Error::new(
                Kind::UpstreamError,
                "The engine sent too much before its first event.",
            ));
        }
        match result {
            Err(error) if !committed => return Err(error),
            Err(error) => {
                cut(job, &relay, record, &error, &early).await;
                return Ok(());
            }
            Ok(()) if ended => {
                stopper.rid = None;
                close_whole(&relay, record);
                if !committed {
                    return Err(Error::new(
                        Kind::UpstreamError,
                        "The engine sent an empty stream.",
                    ));
                }
                record.book_durably().await;
                job.slot.write(|out| out.extend_from_slice(&early));
                job.slot.finish();
                drain(&mut incoming).await;
                return Ok(());
            }
            Ok(()) => {}
        }
        if alarm
            .within(total, std::future::poll_fn(|cx| job.slot.poll_room(cx)))
            .await
            .is_err()
        {
            let error = Error::new(
                Kind::UpstreamTimeout,
                "The request took longer than it may.",
            );
            cut(job, &relay, record, &error, &early).await;
            return Ok(());
        }
    }
}

/// The stream is whole; an engine may say in it that it gave up.
fn close_whole(relay: &StreamRelay, record: &mut Record) {
    let aborted = matches!(relay.finish_reason(), Some("abort" | "error"));
    let outcome = if aborted {
        Outcome::UpstreamCut
    } else {
        Outcome::Ok
    };
    let error = aborted.then_some(Kind::UpstreamError);
    record.close(outcome, 200, error, relay.finish_reason());
}

/// Tells the record and the queue what the stream has cost so far.
fn advance(relay: &StreamRelay, record: &mut Record, permit: &mut Permit) {
    let reported = relay.usage();
    record.advance(Progress {
        reported,
        content_events: relay.content_events(),
        answered: relay.content_events() > 0,
    });
    if let Some((usage, _)) = reported {
        permit.used(usage.total());
    }
}

/// Ends a stream that has begun. The status is out; the error is the stream's last event, after
/// what was held back.
async fn cut(job: &Job, relay: &StreamRelay, record: &mut Record, error: &Error, held: &[u8]) {
    job.gateway.note(error, &job.answer_headers);
    record.close(
        Outcome::UpstreamCut,
        200,
        Some(error.kind),
        relay.finish_reason(),
    );
    let mut last = BytesMut::from(held);
    logged(record, &mut last, |out| relay::error_event(error, out));
    record.book_durably().await;
    job.slot.write(|out| out.extend_from_slice(&last));
    job.slot.finish();
}

/// Lets `fill` write to the client, and the prompt log see what it wrote.
fn logged<T>(record: &mut Record, out: &mut BytesMut, fill: impl FnOnce(&mut BytesMut) -> T) -> T {
    let from = out.len();
    let filled = fill(out);
    if let Some(log) = &mut record.log {
        log.streamed(out.get(from..).unwrap_or_default());
    }
    filled
}

fn finish(
    relay: &mut StreamRelay,
    at_once: bool,
    job: &Job,
    early: &mut BytesMut,
    record: &mut Record,
) -> Result<(), Error> {
    let mut end = |out: &mut BytesMut| logged(record, out, |out| relay.end(out));
    if at_once {
        job.slot.write(end)
    } else {
        end(early)
    }
}

/// Reads the last chunk of a body whose content is complete, so that the connection can be reused.
async fn drain(incoming: &mut Incoming) {
    let rest = async { while let Some(Ok(_)) = frame(incoming).await {} };
    // An engine that keeps the stream open past its end marker loses the connection.
    let _ = tokio::time::timeout(Duration::from_millis(50), rest).await;
}

/// The next data of a stream. What was written before is told to the reader only when nothing more
/// is ready: a burst that the engine sent at once leaves at once, in one write instead of ten. The
/// connection that reads for us gets one turn to hand on what it has already.
async fn joined_frame(
    body: &mut Incoming,
    slot: &Slot,
    committed: bool,
) -> Option<Result<Bytes, String>> {
    let mut next = pin!(frame(body));
    let mut gave_way = !committed;
    std::future::poll_fn(|cx| {
        let polled = next.as_mut().poll(cx);
        if polled.is_pending() {
            if gave_way {
                slot.notify();
            } else {
                gave_way = true;
                cx.waker().wake_by_ref();
            }
        }
        polled
    })
    .await
}

/// The next data of a body; trailers are passed over.
async fn frame(body: &mut Incoming) -> Option<Result<Bytes, String>> {
    std::future::poll_fn(|cx| {
        loop {
            match Pin::new(&mut *body).poll_frame(cx) {
                Poll::Ready(Some(Ok(frame))) => {
                    if let Ok(data) = frame.into_data() {
                        return Poll::Ready(Some(Ok(data)));
                    }
                }
                Poll::Ready(Some(Err(error))) => {
                    return Poll::Ready(Some(Err(upstream::chain(&error))));
                }
                Poll::Ready(None) => return Poll::Ready(None),
                Poll::Pending => return Poll::Pending,
            }
        }
    })
    .await
}

async fn read_error(body: &mut Incoming, until: Instant, alarm: &mut Alarm) -> BytesMut {
    let mut out = BytesMut::new();
    while let Ok(Some(Ok(chunk))) = alarm.within(until, frame(body)).await {
        out.extend_from_slice(chunk.get(..MAX_ERROR_BODY - out.len()).unwrap_or(&chunk));
        if out.len() >= MAX_ERROR_BODY {
            break;
        }
    }
    out
}

/// A whole unary answer. Nothing has reached the client, so every failure is the attempt's.
async fn read_whole(
    body: &mut Incoming,
    job: &Job,
    total: Instant,
    alarm: &mut Alarm,
    unread: &mut Unread,
    record: &mut Record,
) -> Result<Bytes, Error> {
    let mut first = Bytes::new();
    let mut rest = BytesMut::new();
    loop {
        let until = (Instant::now() + job.model.timeouts.idle).min(total);
        match alarm.within(until, frame(body)).await {
            Err(Elapsed) => {
                return Err(Error::new(
                    Kind::UpstreamTimeout,
                    "The engine did not finish its answer in time.",
                ));
            }
            Ok(None) => {
                return Ok(if rest.is_empty() {
                    first
                } else {
                    rest.freeze()
                });
            }
            Ok(Some(Err(cause))) => {
                return Err(Error::new(
                    Kind::UpstreamError,
                    "The engine closed the connection before it had finished.",
                )
                .cause(cause));
            }
            Ok(Some(Ok(chunk))) => {
                let length = first.len().max(rest.len()) + chunk.len();
                record.progress = estimated(job.endpoint, length);
                unread.came(&job.slot, record, chunk.len())?;
                if length > job.max_answer_bytes {
                    return Err(Error::new(
                        Kind::UpstreamError,
                        "The engine's answer is too large.",
                    ));
                }
                // Most answers come in one piece, which is passed on as it is.
                if first.is_empty() && rest.is_empty() {
                    first = chunk;
                    continue;
                }
                if rest.is_empty() {
                    rest.extend_from_slice(&first);
                }
                rest.extend_from_slice(&chunk);
            }
        }
    }
}

/// What so many bytes of a unary answer have cost, without usage: text of four bytes a token, in an
/// envelope of as much again and more.
fn estimated(endpoint: Endpoint, bytes: usize) -> Progress {
    let tokens = bytes as u64 / 16;
    Progress {
        reported: None,
        content_events: match endpoint {
            Endpoint::Embeddings => 0,
            Endpoint::Chat | Endpoint::Completions => tokens,
        },
        answered: tokens > 0,
    }
}

/// Checks a unary answer and reads its usage.
fn unary(job: &Job, body: Bytes, record: &mut Record) -> Result<(Bytes, Option<String>), Error> {
    if !body.trim_ascii_start().starts_with(b"{") {
        // Some page or other: no engine made it.
        record.progress = Progress::default();
    }
    let seen = Inspected::parse(&body).map_err(|cause| {
        Error::new(Kind::UpstreamError, "The engine's answer is not JSON.").cause(cause)
    })?;
    if seen.failed() {
        // An error in disguise: nothing was made.
        record.progress = Progress::default();
        return Err(scrub::stream_error(&body, job.shape.asked));
    }
    let choices = seen.choices.as_deref().unwrap_or_default();
    let finish = choices
        .last()
        .and_then(|choice| choice.finish_reason.as_deref())
        .map(str::to_owned);
    record.progress = Progress {
        reported: seen.usage().map(|usage| (usage, true)),
        ..estimated(job.endpoint, body.len())
    };
    let body = if job.shape.completions && body.windows(11).any(|at| at == b"\"text\":null") {
        let mut out = BytesMut::with_capacity(body.len());
        relay::mend_null_text(&body, &mut out);
        out.freeze()
    } else {
        body
    };
    if let Some(log) = &mut record.log {
        log.answered(&body);
    }
    Ok((body, finish))
}

/// What is asked of this target.
fn call_for<'a>(job: &Job, target: &'a Target) -> Call<'a> {
    Call {
        endpoint: job.endpoint,
        stream: job.stream,
        model: &target.model,
    }
}

/// The client's body as this target needs it.
fn body_for(job: &Job, target: &Target, rid: Option<&str>) -> Rope {
    let traits = &target.upstream.traits;
    let usage = [
        job.stream && traits.include_usage && !job.shape.include_usage,
        job.stream && traits.continuous_usage && job.single && !job.shape.continuous_usage,
    ];
    let wanted = Wanted {
        model: (*target.model != *job.model_asked).then_some(&*target.model),
        rid,
        hides_rid: traits.rid,
        usage,
    };
    Rope::new(job.edits.apply(&job.body, &wanted))
}

/// Each attempt has a name of its own: an engine refuses a second running request of one name.
fn attempt_rid(rid: &str, attempt: u32) -> String {
    if attempt <= 1 {
        rid.to_owned()
    } else {
        format!("{rid}-{attempt}")
    }
}

/// How errors name the request's parameters.
pub const fn asked(max_completion_tokens: bool) -> Asked {
    Asked {
        max_completion_tokens,
    }
}
