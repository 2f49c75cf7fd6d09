//! Answers that are errors, and what every answer's head carries.
use bytes::BytesMut;
use http::{HeaderName, HeaderValue};

use super::Job;
use crate::error::Error;
use crate::record::{Outcome, Record};
use crate::relay;
use crate::slot::header_text;

/// Answers with an error before anything else was answered.
pub(super) async fn refuse(job: &Job, error: &Error, record: &mut Record) {
    record.note(error, &job.answer_headers);
    let mut headers = job.answer_headers.clone();
    if let Some((upstream, attempts)) = record.attempted() {
        headers.extend(attempt_headers(&upstream, attempts));
        headers.extend(record.attempt_log());
    }
    if let Some(log) = &mut record.log {
        log.answered(&error.openai_body());
    }
    record.close(Outcome::Error, error.kind.status(), Some(error.kind), None);
    record.book_durably().await;
    job.slot.refuse(error, headers);
}

/// What is left for the client of a stream.
#[derive(Default)]
pub(super) struct Last {
    /// In OpenAI's words.
    pub(super) said: BytesMut,
    /// In the client's own, where it gets those.
    pub(super) told: Option<BytesMut>,
}

impl Last {
    /// Gives it to the client.
    pub(super) fn give(&self, job: &Job) {
        let told = self.told.as_ref().unwrap_or(&self.said);
        job.slot.write(|out| out.extend_from_slice(told));
    }
}

/// Ends a stream that has begun. The status is out; the error is the stream's last event, after
/// what was held back.
pub(super) async fn cut(
    job: &Job,
    finish: Option<&str>,
    record: &mut Record,
    error: &Error,
    held: Last,
) {
    record.note(error, &job.answer_headers);
    record.close(Outcome::UpstreamCut, 200, Some(error.kind), finish);
    logged_all(record, &held.said);
    logged(record, &mut BytesMut::new(), |out| {
        relay::error_event(error, out);
    });
    record.book_durably().await;
    held.give(job);
    job.slot.cut(error);
}

/// Lets `fill` write to the client, and the prompt log see what it wrote.
pub(super) fn logged<T>(
    record: &mut Record,
    out: &mut BytesMut,
    fill: impl FnOnce(&mut BytesMut) -> T,
) -> T {
    let from = out.len();
    let filled = fill(out);
    logged_all(record, out.get(from..).unwrap_or_default());
    filled
}

/// The client gets `bytes` of a stream: the prompt log sees them.
pub(super) fn logged_all(record: &mut Record, bytes: &[u8]) {
    if let Some(log) = &mut record.log {
        log.streamed(bytes);
    }
}

/// Which upstream answered, or failed last, and how many were tried.
pub(super) fn attempt_headers(upstream: &str, attempts: u32) -> [(HeaderName, HeaderValue); 2] {
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
