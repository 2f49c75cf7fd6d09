//! The client's side of an exchange: the head of its answer, and signs of life before that.
use bytes::Bytes;
use http::header::CONTENT_TYPE;
use http::{HeaderMap, HeaderName, HeaderValue};

use super::Job;
use super::body::speaks;
use super::refuse::{Last, attempt_headers, cut, refuse};
use crate::dialect::Dialect;
use crate::dispatch::Waiting;
use crate::error::Error;
use crate::record::Record;
use crate::slot::Head;
use crate::snapshot::Target;
use crate::upstream;

/// A stream is neither kept nor held back by what stands between us and the client.
const STREAM_HEADERS: [(&str, &str); 2] =
    [("cache-control", "no-cache"), ("x-accel-buffering", "no")];

/// Keeps a client there whose engine is being started: a comment (WHATWG HTML §9.2.6).
const COMMENT: &[u8] = b": the engine is being started\n\n";

/// What the client has had of its answer's head.
pub(super) struct Out<'a> {
    job: &'a Job,
    started: bool,
}

impl<'a> Out<'a> {
    /// Nothing yet.
    pub(super) const fn new(job: &'a Job) -> Self {
        Self {
            job,
            started: false,
        }
    }

    /// Gives a stream's head, unless signs of life have made that already.
    pub(super) fn start(&mut self, head: impl FnOnce() -> Head) {
        if !std::mem::replace(&mut self.started, true) {
            self.job.slot.start(head());
        }
    }

    /// Answers with an error: as the answer, or where a head is out as the stream's only event.
    pub(super) async fn fail(&mut self, error: &Error, record: &mut Record) {
        if self.started {
            // Signs of life are no answer: nothing of one has reached the client.
            record.failed();
            cut(self.job, None, record, error, Last::default()).await;
        } else {
            refuse(self.job, error, record).await;
        }
    }
}

impl Waiting for Out<'_> {
    fn held(&mut self) {
        if !self.job.stream {
            return;
        }
        let job = self.job;
        self.start(|| {
            let mut headers = job.answer_headers.clone();
            let door = job.slot.door();
            headers.push((CONTENT_TYPE, HeaderValue::from_static(door.media(true))));
            headers.extend(stream_headers());
            Head {
                status: 200,
                headers,
                body: Bytes::new(),
                more: true,
            }
        });
        job.slot.keep_alive(COMMENT);
    }
}

/// An answer's head: what of the upstream's headers reaches the client, and ours. `body`: absent of a
/// stream. `raw`: the client gets what the upstream sends.
pub(super) fn head(
    job: &Job,
    (target, raw): (&Target, bool),
    theirs: &HeaderMap,
    body: Option<Bytes>,
    record: &Record,
) -> Head {
    let more = body.is_none();
    let mut headers = Vec::with_capacity(job.answer_headers.len() + theirs.len() + 4);
    let door = job.slot.door();
    if raw {
        for (name, value) in theirs {
            if upstream::passes(name, theirs) {
                headers.push((name.clone(), value.clone()));
            }
        }
    } else {
        // What they say is of an answer that the client does not get.
        headers.push((CONTENT_TYPE, HeaderValue::from_static(door.media(more))));
    }
    headers.extend(job.answer_headers.iter().cloned());
    let attempts = record.attempted().map_or(0, |(_, attempts)| attempts);
    headers.extend(attempt_headers(&target.upstream.name, attempts));
    headers.extend(record.attempt_log());
    if more {
        headers.extend(stream_headers());
    }
    Head {
        status: 200,
        headers,
        body: body.unwrap_or_default(),
        more,
    }
}

/// Whether the client gets OpenAI's answers as the target sends them.
pub(super) fn is_plain(job: &Job, target: &Target) -> bool {
    speaks(job, target) == Dialect::OpenAi && !job.slot.is_voiced()
}

fn stream_headers() -> [(HeaderName, HeaderValue); 2] {
    STREAM_HEADERS.map(|(name, value)| {
        (
            HeaderName::from_static(name),
            HeaderValue::from_static(value),
        )
    })
}
