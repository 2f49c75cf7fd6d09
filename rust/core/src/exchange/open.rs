//! One attempt, from its first byte to its commit point: a stream's first token, or a whole answer.
//!
//! Until then nothing of it has reached the client, so that a failure is the attempt's alone.
use std::sync::Arc;

use bytes::{Bytes, BytesMut};
use http::HeaderMap;
use hyper::body::Incoming;
use tokio::time::Instant;

use super::Job;
use super::body::{attempt_rid, body_for};
use super::course::Failed;
use super::read::{joined_frame, read_error};
use super::refuse::logged;
use super::resume::End;
use super::unary::{self, Whole, read_whole};
use crate::alarm::{Alarm, Elapsed};
use crate::edits::Edits;
use crate::error::{Error, Kind};
use crate::gate::Permit;
use crate::linger::Unread;
use crate::record::{Progress, Record};
use crate::relay::StreamRelay;
use crate::resume::Splice;
use crate::scrub;
use crate::snapshot::{Target, Timeouts};
use crate::upstream::Upstream;

/// An attempt that is to be made.
pub(super) struct Try {
    /// Where.
    pub(super) target: Target,
    /// The place it has there.
    pub(super) permit: Permit,
    /// Which one of the request's it is, from 1.
    pub(super) number: u32,
    /// How long its parts may take.
    pub(super) timeouts: Timeouts,
    /// What a stream goes through.
    pub(super) path: Path,
}

/// What an answer's stream goes through on its way to the client.
pub(super) enum Path {
    /// A relay of its own; with `true` it is remembered what was passed on.
    Fresh(bool),
    /// The relay of a stream that broke off.
    Rejoined(Box<Rejoined>),
}

/// A stream that another engine is to carry on.
pub(super) struct Rejoined {
    /// In place of the client's body.
    pub(super) body: Option<(Bytes, Edits)>,
    /// Before the relay.
    pub(super) splice: Splice,
    /// What the stream went through before.
    pub(super) relay: StreamRelay,
}

/// An attempt that has come to its commit point.
#[expect(
    clippy::large_enum_variant,
    reason = "one a request, moved twice: cheaper than a box"
)]
pub(super) enum Opened {
    /// The whole answer, and the headers that came with it.
    Whole(Target, HeaderMap, Whole),
    /// A stream whose first token is there.
    Stream(Box<Open>),
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

/// Makes one attempt until its commit point. Only what has a `record` is noted there.
pub(super) async fn open(
    job: &Job,
    attempt: Try,
    total: Instant,
    alarm: &mut Alarm,
    mut record: Option<&mut Record>,
) -> Result<Opened, Failed> {
    let Try {
        target,
        mut permit,
        number,
        timeouts,
        path,
    } = attempt;
    let upstream = Arc::clone(&target.upstream);
    let rid = (upstream.traits.rid && job.single).then(|| attempt_rid(&job.rid, number));
    let given = match &path {
        Path::Rejoined(again) => again.body.as_ref().map(|(body, edits)| (body, edits)),
        Path::Fresh(_) => None,
    };
    let given = given.unwrap_or((&job.body, &job.edits));
    let body = body_for(job, given, &target, rid.as_deref());
    let first_byte = (Instant::now() + timeouts.first_byte).min(total);
    let mut stopper = Stopper {
        upstream: Arc::clone(&upstream),
        rid,
    };
    // From its first byte on the request counts: an engine may compute what nobody waits for.
    let first_contact = record.as_mut().is_some_and(|record| record.contacted());
    let sent = alarm
        .within(
            first_byte,
            upstream.post(job.endpoint.path(), &job.headers, body),
        )
        .await;
    let response = match sent {
        Err(Elapsed) => {
            permit.overloaded();
            let error = "The engine did not answer in time.";
            return Err(Error::new(Kind::UpstreamTimeout, error).into());
        }
        Ok(Err(error)) => {
            stopper.rid = None;
            permit.used(0);
            let sent = error.kind != Kind::Unavailable;
            if let Some(record) = record
                && first_contact
                && !sent
            {
                record.not_contacted();
            }
            return Err(Failed { error, sent });
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
        let wait = scrub::retry_after(&parts.headers);
        return Err(scrub::upstream_error(status, &body, wait, job.shape.asked).into());
    }
    let mut unread = Unread::new(upstream.on_disconnect);
    if job.stream {
        let (relay, splice) = match path {
            Path::Fresh(false) => (StreamRelay::new(job.shape), None),
            Path::Fresh(true) => (StreamRelay::new(job.shape).followed(), None),
            Path::Rejoined(again) => (again.relay, Some(again.splice)),
        };
        let mut open = Open {
            target,
            timeouts,
            headers: parts.headers,
            early: BytesMut::new(),
            last: None,
            before: relay.is_started().then(|| relay.content_events()),
            relay,
            splice,
            incoming,
            unread,
            permit,
            stopper,
        };
        open.until_started(job, first_byte, alarm, record).await?;
        return Ok(Opened::Stream(Box::new(open)));
    }
    let body = read_whole(
        &mut incoming,
        job,
        (timeouts.idle, total),
        alarm,
        &mut unread,
        record.as_deref_mut(),
    )
    .await?;
    stopper.rid = None;
    match unary::inspect(job, body) {
        Ok(whole) => {
            if let Some((usage, _)) = whole.progress.reported {
                permit.used(usage.total());
            }
            Ok(Opened::Whole(target, parts.headers, whole))
        }
        Err(unfit) => {
            let (error, made) = *unfit;
            if let Some(record) = record {
                record.progress = made;
            }
            Err(error.into())
        }
    }
}

/// Where a stream is read into.
#[derive(Clone, Copy, PartialEq, Eq)]
pub(super) enum Into {
    /// [`Open::early`].
    Early,
    /// What the client gets, at once.
    Client,
}

/// A stream in flight.
pub(super) struct Open {
    /// Where it comes from.
    pub(super) target: Target,
    /// How long its parts may take.
    pub(super) timeouts: Timeouts,
    /// The headers of its answer.
    pub(super) headers: HeaderMap,
    /// What the client is to get and has not.
    pub(super) early: BytesMut,
    /// How it ended, where it did before its client had anything.
    last: Option<Result<(), Error>>,
    pub(super) relay: StreamRelay,
    splice: Option<Splice>,
    /// Events with content before this engine's, where another one began the stream.
    before: Option<u64>,
    pub(super) incoming: Incoming,
    unread: Unread,
    permit: Permit,
    stopper: Stopper,
}

impl Open {
    /// Reads up to the first token. An error is the attempt's.
    async fn until_started(
        &mut self,
        job: &Job,
        first_byte: Instant,
        alarm: &mut Alarm,
        mut record: Option<&mut Record>,
    ) -> Result<(), Error> {
        loop {
            let read = self.read(job, first_byte, alarm, record.as_deref_mut(), Into::Early);
            let (result, ended) = read.await;
            if self.is_started() {
                self.permit.first_token();
                self.last = (ended || result.is_err()).then_some(result);
                return Ok(());
            }
            if let Some(record) = &mut record {
                record.advance(self.progress());
            }
            if let Err(error) = result {
                if error.kind == Kind::UpstreamTimeout {
                    self.permit.overloaded();
                }
                return Err(error);
            }
            if self.early.len() > job.shape.max_event_bytes {
                return Err(Error::new(
                    Kind::UpstreamError,
                    "The engine sent too much before its first event.",
                ));
            }
            if ended {
                self.whole();
                return Err(Error::new(
                    Kind::UpstreamError,
                    "The engine sent an empty stream.",
                ));
            }
        }
    }

    /// The next of what the client is to get: how the reading went, and whether it was the last.
    pub(super) async fn next(
        &mut self,
        job: &Job,
        until: Instant,
        alarm: &mut Alarm,
        record: &mut Record,
        into: Into,
    ) -> (Result<(), Error>, bool) {
        match self.last.take() {
            Some(last) => (last, true),
            None => self.read(job, until, alarm, Some(record), into).await,
        }
    }

    async fn read(
        &mut self,
        job: &Job,
        until: Instant,
        alarm: &mut Alarm,
        mut record: Option<&mut Record>,
        into: Into,
    ) -> (Result<(), Error>, bool) {
        let committed = self.is_started();
        let read = joined_frame(&mut self.incoming, &job.slot, committed);
        let cut = match alarm.within(until, read).await {
            Err(Elapsed) => {
                let error = "The engine stopped sending before it had finished.";
                return (Err(Error::new(Kind::UpstreamTimeout, error)), true);
            }
            Ok(Some(Ok(chunk))) => {
                let came = self
                    .unread
                    .came(&job.slot, record.as_deref_mut(), chunk.len());
                if came.is_err() {
                    return (came, true);
                }
                let (relay, splice) = (&mut self.relay, &mut self.splice);
                let feed = |out: &mut BytesMut| feed(relay, splice.as_mut(), chunk, out);
                let fed = match (into, record) {
                    (Into::Client, Some(record)) => job.slot.write(|out| logged(record, out, feed)),
                    _ => feed(&mut self.early),
                };
                return (fed, self.relay.is_done());
            }
            Ok(Some(Err(cause))) => Some(cause),
            Ok(None) => None,
        };
        let ended = self.end();
        let ended = ended.map_err(|error| match cut {
            Some(cause) => error.cause(cause),
            None => error,
        });
        (ended, true)
    }

    /// What is left once the engine is given up, which is stopped.
    pub(super) fn into_end(self) -> (Target, End) {
        let end = End {
            relay: self.relay,
            early: self.early,
        };
        (self.target, end)
    }

    /// Whether its first token is there.
    fn is_started(&self) -> bool {
        let ended = || self.relay.is_done() || self.relay.finish_reason().is_some();
        match self.before {
            None => self.relay.is_started(),
            Some(before) => self.relay.content_events() > before || ended(),
        }
    }

    /// The engine has closed its side.
    fn end(&mut self) -> Result<(), Error> {
        if let Some(splice) = &mut self.splice {
            let mut last = BytesMut::new();
            splice.end(&mut last)?;
            self.relay.feed(last.freeze(), &mut self.early)?;
        }
        self.relay.end(&mut self.early)
    }

    /// Whether it ended before its client had anything.
    pub(super) const fn is_over(&self) -> bool {
        self.last.is_some()
    }

    /// What the engine has made so far.
    pub(super) fn progress(&self) -> Progress {
        Progress {
            reported: self.relay.usage(),
            content_events: self.relay.content_events(),
            answered: self.relay.content_events() > 0,
        }
    }

    /// Tells the queue what the stream has cost so far.
    pub(super) fn charge(&mut self) {
        if let Some((usage, _)) = self.relay.usage() {
            self.permit.used(usage.total());
        }
    }

    /// The engine has said all that it had to: there is nothing to stop.
    pub(super) fn whole(&mut self) {
        // One that was ended at a join does not know of it.
        if !self.splice.as_ref().is_some_and(Splice::is_done) {
            self.stopper.rid = None;
        }
    }
}

/// What an engine sent, through the join if there is one, to the relay.
fn feed(
    relay: &mut StreamRelay,
    splice: Option<&mut Splice>,
    chunk: Bytes,
    out: &mut BytesMut,
) -> Result<(), Error> {
    let Some(splice) = splice else {
        return relay.feed(chunk, out);
    };
    let mut spliced = BytesMut::new();
    let joined = splice.feed(chunk, &mut spliced);
    relay.feed(spliced.freeze(), out)?;
    joined
}
