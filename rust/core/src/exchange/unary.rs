//! Whole answers: read to their end, looked into, mended.
use std::time::Duration;

use bytes::{Bytes, BytesMut};
use hyper::body::Incoming;
use tokio::time::Instant;

use super::Job;
use super::body::speaks;
use super::read::frame;
use super::{objects, ranked};
use crate::alarm::{Alarm, Elapsed};
use crate::dialect::{self, Dialect};
use crate::door::Native;
use crate::error::{Error, Kind};
use crate::gateway::Endpoint;
use crate::linger::Unread;
use crate::record::{Progress, Record};
use crate::relay;
use crate::scrub;
use crate::snapshot::Target;
use crate::usage::Inspected;

/// An answer that can be given to the client as it is.
pub(super) struct Whole {
    /// The answer, in OpenAI's words.
    pub(super) body: Bytes,
    /// What the client gets.
    pub(super) told: Bytes,
    /// That is as the target sent it, in the client's own dialect.
    pub(super) native: bool,
    /// The last choice's finish reason.
    pub(super) finish: Option<String>,
    /// What it cost.
    pub(super) progress: Progress,
}

/// Reads a whole answer. Nothing has reached the client, so every failure is the attempt's.
pub(super) async fn read_whole(
    body: &mut Incoming,
    job: &Job,
    (idle, total): (Duration, Instant),
    alarm: &mut Alarm,
    unread: &mut Unread,
    mut record: Option<&mut Record>,
) -> Result<Bytes, Error> {
    let mut first = Bytes::new();
    let mut rest = BytesMut::new();
    loop {
        let until = (Instant::now() + idle).min(total);
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
                if let Some(record) = &mut record {
                    record.progress = estimated(job.endpoint, length);
                }
                unread.came(&job.slot, record.as_deref_mut(), chunk.len())?;
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
        content_events: if endpoint.is_text() { tokens } else { 0 },
        answered: tokens > 0,
    }
}

/// Judges a whole answer, turned into OpenAI's where that is not what is spoken. own: what the target
/// was sent is the client's own request.
pub(super) fn judged(
    job: &Job,
    target: &Target,
    own: Option<&Native>,
    body: Bytes,
    record: Option<&mut Record>,
) -> Result<Whole, Error> {
    let dialect = own.map_or_else(|| speaks(job, target), |own| own.dialect);
    let (body, told) = if dialect == Dialect::OpenAi {
        (body, None)
    } else {
        match dialect::answer(dialect, Dialect::OpenAi, &body, &job.context()) {
            Ok(turned) => (turned.into(), own.map(|_| body)),
            Err(error) => {
                // An error in disguise: nothing was made.
                let failed = Inspected::parse(&body).is_ok_and(|seen| seen.failed());
                if let Some(record) = record.filter(|_| failed) {
                    record.progress = Progress::default();
                }
                return Err(error);
            }
        }
    };
    inspect(job, body, told).map_err(|unfit| {
        let (error, made) = *unfit;
        if let Some(record) = record {
            record.progress = made;
        }
        error
    })
}

/// Checks an answer and reads its usage. `own`: it in the client's own words, where it came in these.
/// Of one that is none: why, and what it has cost all the same.
fn inspect(job: &Job, body: Bytes, own: Option<Bytes>) -> Result<Whole, Box<(Error, Progress)>> {
    if matches!(
        job.endpoint,
        Endpoint::Rerank | Endpoint::Score | Endpoint::Moderations
    ) {
        return ranked::inspect(job, &body);
    }
    if job.object.is_some() {
        return objects::inspect(job, body);
    }
    let estimate = estimated(job.endpoint, body.len());
    let seen = Inspected::parse(&body).map_err(|cause| {
        // Some page or other: no engine made it.
        let made = body.trim_ascii_start().starts_with(b"{");
        let error =
            Error::new(Kind::UpstreamError, "The engine's answer is not JSON.").cause(cause);
        Box::new((error, if made { estimate } else { Progress::default() }))
    })?;
    if seen.failed() {
        // An error in disguise: nothing was made.
        let error = scrub::stream_error(&body, job.shape.asked);
        return Err(Box::new((error, Progress::default())));
    }
    let choices = seen.choices.as_deref().unwrap_or_default();
    let finish = choices
        .last()
        .and_then(|choice| choice.finish_reason.as_deref())
        .map(str::to_owned);
    if let Some(reason) = finish.as_deref().filter(|reason| relay::gave_up(reason)) {
        return Err(Box::new((relay::given_up(reason), Progress::default())));
    }
    let progress = Progress {
        reported: seen.usage().map(|usage| (usage, true)),
        ..estimate
    };
    let body = if job.shape.completions && body.windows(11).any(|at| at == b"\"text\":null") {
        let mut out = BytesMut::with_capacity(body.len());
        relay::mend_null_text(&body, &mut out);
        out.freeze()
    } else {
        body
    };
    let native = own.is_some();
    let told = match own {
        Some(own) => job
            .slot
            .own(own)
            .map_err(|error| Box::new((error, progress)))?,
        None => job
            .slot
            .turned(&body)
            .map_err(|error| Box::new((error, progress)))?,
    };
    Ok(Whole {
        body,
        told,
        native,
        finish,
        progress,
    })
}
