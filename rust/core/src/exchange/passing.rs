//! Answers that go by: sound, images in a making, transcripts. Nothing of them is changed.
//!
//! The commit point is the first piece: until then a failure is the attempt's alone. After it an answer
//! of events ends with one that is an error, and any other is broken off, so that nobody takes half of
//! it for the whole.
use bytes::Bytes;
use http::header::CONTENT_TYPE;
use http::{HeaderMap, HeaderValue};
use hyper::body::Incoming;
use tokio::time::Instant;

use super::Job;
use super::out::{Out, head};
use super::read::{frame, joined_frame};
use super::refuse::{Last, cut};
use crate::admission::sound_tokens;
use crate::alarm::{Alarm, Elapsed};
use crate::endpoint::Endpoint;
use crate::error::{Error, Kind};
use crate::gate::Permit;
use crate::linger::Unread;
use crate::pass::finder::{Finder, Form};
use crate::record::{Outcome, Progress, Record};
use crate::snapshot::{Target, Timeouts};

/// Input tokens of a second of sound where an engine counts seconds: what gpt-4o-transcribe has.
const TOKENS_A_SECOND: f64 = 10.0;

/// An answer that goes by.
pub(super) struct Passing {
    /// Who answers.
    pub(super) target: Target,
    timeouts: Timeouts,
    headers: HeaderMap,
    incoming: Incoming,
    unread: Unread,
    permit: Permit,
    /// What has come before the commit point.
    first: Option<Bytes>,
    form: Form,
    finder: Finder,
    bytes: u64,
}

impl Passing {
    /// An answer whose head is there.
    pub(super) fn new(
        target: Target,
        timeouts: Timeouts,
        (headers, incoming): (HeaderMap, Incoming),
        unread: Unread,
        permit: Permit,
    ) -> Self {
        let media = headers.get(CONTENT_TYPE).map(HeaderValue::as_bytes);
        let form = Form::of(media);
        Self {
            target,
            timeouts,
            headers,
            incoming,
            unread,
            permit,
            first: None,
            form,
            finder: Finder::new(form),
            bytes: 0,
        }
    }

    /// Waits for the first piece.
    pub(super) async fn begin(&mut self, until: Instant, alarm: &mut Alarm) -> Result<(), Error> {
        self.first = match alarm.within(until, frame(&mut self.incoming)).await {
            Err(Elapsed) => return Err(late()),
            Ok(Some(Err(cause))) => return Err(broken(cause)),
            Ok(Some(Ok(chunk))) => Some(chunk),
            Ok(None) => None,
        };
        Ok(())
    }

    /// Takes a piece on its way to the client.
    fn took(&mut self, job: &Job, chunk: &Bytes, record: &mut Record) {
        self.bytes += chunk.len() as u64;
        heard(job, record);
        self.finder.feed(chunk);
        record.advance(self.progress(job.endpoint));
        job.slot.write(|out| out.extend_from_slice(chunk));
    }

    /// What it has cost so far, as far as the gateway can tell by itself.
    fn progress(&self, endpoint: Endpoint) -> Progress {
        let is_text = hears(endpoint);
        // Text of four bytes a token, in JSON of as much again.
        let each = if self.form == Form::Other { 4 } else { 8 };
        Progress {
            reported: None,
            content_events: if is_text { self.bytes / each } else { 0 },
            answered: true,
        }
    }

    /// What it has cost, by what it said.
    fn settle(&mut self, job: &Job, record: &mut Record) {
        heard(job, record);
        let mut progress = self.progress(job.endpoint);
        if let Some(usage) = self.finder.usage() {
            progress.reported = Some((usage, true));
            self.permit.used(usage.total());
        } else if let Some(seconds) = self.finder.seconds() {
            record.estimate_input((seconds * TOKENS_A_SECOND).ceil() as u64);
        }
        record.advance(progress);
    }
}

fn hears(endpoint: Endpoint) -> bool {
    matches!(endpoint, Endpoint::Transcriptions | Endpoint::Translations)
}

/// Sound may come without a length: how much it was is known once it has come.
fn heard(job: &Job, record: &mut Record) {
    if let Some(upload) = job.upload.as_ref().filter(|_| hears(job.endpoint)) {
        record.estimate_input(sound_tokens(upload));
    }
}

fn late() -> Error {
    Error::new(
        Kind::UpstreamTimeout,
        "The engine did not finish its answer in time.",
    )
}

fn broken(cause: String) -> Error {
    let text = "The engine closed the connection before it had finished.";
    Error::new(Kind::UpstreamError, text).cause(cause)
}

/// Gives the client an answer as it comes, to its end or its cut.
pub(super) async fn relay(
    job: &Job,
    mut passing: Box<Passing>,
    total: Instant,
    alarm: &mut Alarm,
    out: &mut Out<'_>,
    record: &mut Record,
) {
    if passing.form != Form::Events {
        job.slot.speak_raw();
    }
    record.committed(200);
    let (target, headers) = (&passing.target, &passing.headers);
    out.start(|| head(job, (target, true), headers, None, record));
    let relayed = run(job, &mut passing, total, alarm, record).await;
    passing.settle(job, record);
    match relayed {
        Ok(()) => {
            let failed = passing.finder.failed();
            let (outcome, error) = if failed {
                (Outcome::UpstreamCut, Some(Kind::UpstreamError))
            } else {
                (Outcome::Ok, None)
            };
            record.close(outcome, 200, error, None);
            record.book_durably().await;
            if failed {
                // The client has it in its last event; no repeat is to have it again.
                let text = "The engine ended its answer with an error.";
                job.slot.failed(Error::new(Kind::UpstreamError, text));
            }
            job.slot.finish();
        }
        // Nobody is there to be told.
        Err(error) if error.kind == Kind::ClientClosed => {}
        Err(error) => cut(job, None, record, &error, Last::default()).await,
    }
}

async fn run(
    job: &Job,
    passing: &mut Passing,
    total: Instant,
    alarm: &mut Alarm,
    record: &mut Record,
) -> Result<(), Error> {
    let Some(first) = passing.first.take() else {
        return Ok(());
    };
    passing.took(job, &first, record);
    drop(first);
    loop {
        alarm
            .within(total, std::future::poll_fn(|cx| job.slot.poll_room(cx)))
            .await
            .map_err(|Elapsed| late())?;
        let until = (Instant::now() + passing.timeouts.idle).min(total);
        let next = joined_frame(&mut passing.incoming, &job.slot, true);
        match alarm.within(until, next).await {
            Err(Elapsed) => return Err(late()),
            Ok(None) => return Ok(()),
            Ok(Some(Err(cause))) => return Err(broken(cause)),
            Ok(Some(Ok(chunk))) => {
                let came = passing.unread.came(&job.slot, Some(record), chunk.len());
                passing.took(job, &chunk, record);
                came?;
            }
        }
    }
}
