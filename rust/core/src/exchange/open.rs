//! One attempt, from its first byte to its commit point: a stream's first token, or a whole answer.
//!
//! Until then nothing of it has reached the client, so that a failure is the attempt's alone.
use std::pin::pin;
use std::sync::Arc;
use std::time::Duration;

use bytes::{Bytes, BytesMut};
use http::HeaderMap;
use hyper::body::Incoming;
use tokio::time::Instant;

use super::Job;
use super::body::{attempt_rid, body_for};
use super::course::Failed;
use super::feed::{Feed, Path};
use super::native::native;
use super::passing::Passing;
use super::read::{joined_frame, read_error};
use super::refuse::{Last, logged};
use super::resume::End;
use super::unary::{self, Whole, read_whole};
use crate::alarm::{Alarm, Elapsed};
use crate::dialect::Dialect;
use crate::dispatch::Placed;
use crate::door::Native;
use crate::edits::Edits;
use crate::error::{Error, Kind};
use crate::gate::Permit;
use crate::gateway::monotonic;
use crate::health::Trial;
use crate::linger::Unread;
use crate::record::{Progress, Record};
use crate::scrub;
use crate::snapshot::{Model, Target, Timeouts};
use crate::upstream::{Call, Outgoing, Reach, Upstream};

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
    /// In place of the client's body.
    pub(super) body: Option<Box<(Bytes, Edits)>>,
    /// What a stream goes through.
    pub(super) path: Path,
    /// Where it finds out whether the target is back.
    trial: Option<Trial>,
}

impl Try {
    /// The `number`th attempt of a request, at a target of this model's.
    pub(super) fn of(placed: Placed, model: &Model, number: u32) -> Box<Self> {
        let first_byte = placed.target.first_byte;
        Box::new(Self {
            timeouts: Timeouts {
                first_byte: first_byte.unwrap_or(model.timeouts.first_byte),
                ..model.timeouts
            },
            target: placed.target,
            permit: placed.permit,
            trial: placed.trial,
            number,
            body: None,
            path: Path::Fresh(model.resume),
        })
    }
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
    /// An answer that goes by, whose first piece is there.
    Passing(Box<Passing>),
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

/// Makes one attempt until its commit point. Only what has a `record` is noted there. What came of it
/// is told to the health of its upstream.
pub(super) async fn open(
    job: &Job,
    mut attempt: Box<Try>,
    total: Instant,
    alarm: &mut Alarm,
    record: Option<&mut Record>,
) -> Result<Opened, Failed> {
    let began = Instant::now();
    let health = Arc::clone(&attempt.target.upstream.health);
    let trial = attempt.trial.take();
    let opened = try_open(job, attempt, total, alarm, record).await;
    let (trial, now) = (trial.as_ref(), monotonic());
    match &opened {
        // How it ends is told then.
        Ok(Opened::Stream(_)) => health.first_token(trial, began.elapsed(), now),
        Ok(Opened::Whole(..) | Opened::Passing(_)) => health.succeeded(trial, None, now),
        Err(failed) => health.failed(trial, &failed.error, now),
    }
    opened
}

async fn try_open(
    job: &Job,
    attempt: Box<Try>,
    total: Instant,
    alarm: &mut Alarm,
    mut record: Option<&mut Record>,
) -> Result<Opened, Failed> {
    let Try {
        target,
        mut permit,
        number,
        timeouts,
        body,
        path,
        trial: _,
    } = *attempt;
    let upstream = Arc::clone(&target.upstream);
    let rid = (upstream.traits.rid && job.single).then(|| attempt_rid(&job.rid, number));
    let given = match body.as_deref() {
        Some((body, edits)) => (body, edits),
        None => (&job.body, &job.edits),
    };
    let whole = body.is_none() && matches!(path, Path::Fresh(_));
    let body = outgoing(job, given, &target, rid.as_deref(), whole)
        .map_err(|error| Failed { error, sent: false })?;
    let first_byte = (Instant::now() + timeouts.first_byte).min(total);
    let mut stopper = Stopper {
        upstream: Arc::clone(&upstream),
        rid,
    };
    let own = native(job, &target).filter(|_| whole);
    let to = (&target, &*job.headers_of(number, own), beside(own, &target));
    let times = (timeouts.first_byte, total);
    let sent = send(job, to, body, times, alarm, record.as_deref_mut()).await;
    let (headers, mut incoming) = match sent {
        Ok(answer) => answer,
        Err(unsent) => {
            // An engine that has not begun in time may still work on it.
            if unsent.late {
                permit.overloaded();
            } else {
                stopper.rid = None;
                permit.used(0);
            }
            if unsent.busy {
                permit.overloaded();
            }
            return Err(unsent.failed);
        }
    };
    let mut unread = Unread::new(upstream.on_disconnect);
    if job.passes {
        let mut passing = Passing::new(target, timeouts, (headers, incoming), unread, permit);
        // It has begun: what follows is bounded as the rest of it is.
        let until = (Instant::now() + timeouts.first_byte).min(total);
        passing.begin(until, alarm).await?;
        return Ok(Opened::Passing(Box::new(passing)));
    }
    if job.stream {
        let relay = Feed::new(job, &target, path);
        let mut open = Open {
            target,
            timeouts,
            headers,
            early: BytesMut::new(),
            last: None,
            relay,
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
    let whole = unary::judged(job, &target, own, body, record)?;
    if let Some((usage, _)) = whole.progress.reported {
        permit.used(usage.total());
    }
    Ok(Opened::Whole(target, headers, whole))
}

/// Whether a request goes to where the target has Responses beside chat.
fn beside(own: Option<&Native>, target: &Target) -> bool {
    let upstream = &target.upstream;
    own.is_some_and(|own| own.dialect == Dialect::Responses)
        && upstream.dialect != Dialect::Responses
}

/// What this target is sent.
fn outgoing(
    job: &Job,
    given: (&Bytes, &Edits),
    target: &Target,
    rid: Option<&str>,
    whole: bool,
) -> Result<Outgoing, Error> {
    match &job.upload {
        None => body_for(job, given, target, rid, whole).map(Outgoing::from),
        Some(upload) => {
            let body = upload.body(&target.model).map(Outgoing::from);
            body.ok_or_else(gone)
        }
    }
}

/// A body that came by cannot be sent once more.
fn gone() -> Error {
    Error::new(
        Kind::UpstreamError,
        "The engine failed, and the request was too large to be sent to another one.",
    )
}

/// Why there is no answer to read.
struct Unanswered {
    failed: Failed,
    /// The time was over.
    late: bool,
    /// The upstream said that it has too much to do.
    busy: bool,
}

/// Sends the request and waits for the head of an answer that is a success.
async fn send(
    job: &Job,
    (target, headers, responses): (&Target, &HeaderMap, bool),
    body: Outgoing,
    (first_byte, total): (Duration, Instant),
    alarm: &mut Alarm,
    mut record: Option<&mut Record>,
) -> Result<(HeaderMap, Incoming), Unanswered> {
    let upstream = &target.upstream;
    let call = Call {
        endpoint: job.endpoint,
        stream: job.stream,
        model: &target.model,
        responses,
        object: job.object.as_ref(),
    };
    let unanswered = |failed: Failed| Unanswered {
        failed,
        late: false,
        busy: false,
    };
    // From its first byte on the request counts: an engine may compute what nobody waits for.
    let reach = record.is_some().then(Arc::<Reach>::default);
    let first_contact = match (&mut record, &reach) {
        (Some(record), Some(reach)) => record.reaching(Arc::clone(reach)),
        _ => false,
    };
    let mut post = pin!(upstream.post(&call, headers, body, reach));
    let mut until = (Instant::now() + first_byte).min(total);
    let sent = loop {
        let sent = alarm.within(until, post.as_mut()).await;
        // An engine answers a body that still comes once it has come.
        let later = job
            .upload
            .as_ref()
            .map(|upload| upload.moved() + first_byte);
        match later.map(|later| later.min(total)) {
            Some(later) if sent.is_err() && later > until => until = later,
            _ => break sent,
        }
    };
    let response = match sent {
        Err(Elapsed) => {
            let error = "The engine did not answer in time.";
            let failed = Error::new(Kind::UpstreamTimeout, error).into();
            return Err(Unanswered {
                late: true,
                ..unanswered(failed)
            });
        }
        Ok(Err(error)) => {
            let fault = job.upload.as_ref().and_then(|upload| upload.fault());
            let error = fault.unwrap_or(error);
            let sent = error.kind != Kind::Unavailable;
            if let Some(record) = record
                && first_contact
                && !sent
            {
                record.not_contacted();
            }
            return Err(unanswered(Failed { error, sent }));
        }
        Ok(Ok(response)) => response,
    };
    let (parts, mut incoming) = response.into_parts();
    let status = parts.status.as_u16();
    if status == 200 {
        return Ok((parts.headers, incoming));
    }
    let body = read_error(&mut incoming, until, alarm).await;
    let (headers, asked) = (&parts.headers, job.shape.asked);
    let error = scrub::upstream_error(status, headers, &body, &upstream.rules, asked);
    Err(Unanswered {
        busy: matches!(status, 429 | 503 | 529),
        ..unanswered(error.into())
    })
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
    pub(super) relay: Feed,
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
            if self.relay.is_started() {
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
            if self.early.len().max(self.relay.waiting()) > job.shape.max_event_bytes {
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
        let committed = self.relay.is_started();
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
                let relay = &mut self.relay;
                let fed = match (into, record) {
                    (Into::Client, Some(record)) if !relay.is_native() => job
                        .slot
                        .write(|out| logged(record, out, |out| relay.feed(chunk, out))),
                    _ => relay.feed(chunk, &mut self.early),
                };
                return (fed, self.relay.is_done());
            }
            Ok(Some(Err(cause))) => Some(cause),
            Ok(None) => None,
        };
        let ended = self.relay.end(&mut self.early);
        let ended = ended.map_err(|error| match cut {
            Some(cause) => error.cause(cause),
            None => error,
        });
        (ended, true)
    }

    /// What is left once the engine is given up, which is stopped.
    pub(super) fn into_end(mut self: Box<Self>) -> (Target, End) {
        let end = End {
            counted: self.relay.usage(),
            last: Last {
                told: self.relay.told(),
                said: self.early,
            },
            relay: self.relay.into_relay(),
        };
        (self.target, end)
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

    /// The engine has said all that it had to: there is nothing to stop, and its place is free before
    /// the client can ask for it again.
    pub(super) fn whole(&mut self) {
        self.permit.give_back();
        // One that was ended at a join does not know of it.
        if !self.relay.ended_at_join() {
            self.stopper.rid = None;
        }
    }
}
