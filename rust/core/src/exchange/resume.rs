//! A stream that broke off after its commit point: another engine carries it on, where that can be.
use std::sync::Arc;

use bytes::Bytes;
use tokio::time::Instant;

use super::Job;
use super::body::speaks;
use super::course::Course;
use super::feed::Path;
use super::open::{Open, Opened, Try, open};
use super::out::Out;
use super::refuse::Last;
use crate::dialect::Dialect;
use crate::dispatch::{self, Trail};
use crate::edits::Edits;
use crate::error::Error;
use crate::gateway::{Endpoint, monotonic};
use crate::peek::peek;
use crate::record::{Progress, Record};
use crate::relay::StreamRelay;
use crate::resume::{Next, Resume, Splice, Why};
use crate::snapshot::Target;
use crate::usage::Usage;

/// Most engines that are asked to carry one stream on: so many do not die by chance.
const MAX_JOINS: u32 = 8;

/// What came of a stream that broke off.
pub(super) enum Resumed {
    /// Another engine goes on.
    Open(Box<Open>),
    /// It lacked its end only.
    Over(End),
    /// Nothing: the client has to be told.
    Not(Error, End),
}

/// What is left of a stream without an engine.
pub(super) struct End {
    pub(super) relay: StreamRelay,
    /// What its engine had told of tokens, as [`Open::progress`] has it.
    pub(super) counted: Option<(Usage, bool)>,
    /// What the client is to get and has not.
    pub(super) last: Last,
}

/// A join, as every sibling is asked for it.
struct Join {
    body: Option<(Bytes, Edits)>,
    splice: Splice,
}

/// Has a stream carried on that broke off with `error`. `joins`: the engines that were asked to, so
/// far.
///
/// Each sibling that can go on from a message is tried once. The retry budget is not asked: a join
/// needs a stream that was running, and what ends its engines ends [`MAX_JOINS`] more at most.
pub(super) async fn resume(
    course: &mut Course,
    job: &Job,
    dead: Box<Open>,
    error: Error,
    joins: &mut u32,
    out: &mut Out<'_>,
    record: &mut Record,
) -> Resumed {
    let (target, mut end) = dead.into_end();
    record.lost(&error);
    let now = Instant::now();
    if now < course.total {
        // That a request took longer than it may is not its engine's fault: it may have asked for
        // much, or its client does not read.
        target.upstream.health.failed(None, &error, monotonic());
    }
    // Who began in the client's own words cannot be followed by who speaks others.
    let wanted =
        course.model.resume && end.last.told.is_none() && error.elsewhere() && *joins < MAX_JOINS;
    if !wanted || now >= course.total || !job.slot.lingers(None) {
        return Resumed::Not(error, end);
    }
    let join = match next(job, &end.relay) {
        Ok(Some(Next::Attempt(attempt))) => Join {
            body: match attempt.body.map(inspected) {
                None => None,
                Some(Some(inspected)) => Some(inspected),
                Some(None) => {
                    return Resumed::Not(not_continued(error, Why::Request.text()), end);
                }
            },
            splice: attempt.splice,
        },
        Ok(Some(Next::End(events))) => {
            end.relay.rejoin();
            return match end.relay.feed(events, &mut end.last.said) {
                Ok(()) => {
                    record.note(&error, &job.answer_headers);
                    record.advance(unended(progress(&end)));
                    Resumed::Over(end)
                }
                Err(broken) => Resumed::Not(broken, end),
            };
        }
        Ok(None) => return Resumed::Not(error, end),
        Err(why) => return Resumed::Not(not_continued(error, why.text()), end),
    };
    end.relay.rejoin();
    let same = |a: &Target, b: &Target| Arc::ptr_eq(&a.upstream, &b.upstream) && a.model == b.model;
    let fits = |other: &Target| {
        let goes_on = || other.upstream.traits.continues && speaks(job, other) == Dialect::OpenAi;
        !same(other, &target) && (join.body.is_none() || goes_on())
    };
    let model = Arc::clone(&course.model);
    let mut trail = Trail::only(&model, &job.ask, fits);
    if !trail.has_more() {
        return Resumed::Not(not_continued(error, "no other target can go on"), end);
    }
    let mut last = error;
    while trail.has_more() && *joins < MAX_JOINS {
        let (total, alarm) = (course.total, &mut course.alarm);
        let placed = dispatch::next(&mut trail, &model, &job.ask, total, alarm, out);
        let placed = match placed.await {
            Ok(placed) => placed,
            Err(error) => {
                last = not_continued(last, &error.message);
                break;
            }
        };
        if job.gateway.is_halted() {
            return Resumed::Not(last, end);
        }
        *joins += 1;
        record.note(&last, &job.answer_headers);
        let upstream = Arc::clone(&placed.target.upstream);
        record.resumes();
        let number = record.attempt(&placed.target);
        // What was delivered is owed, whoever goes on; until one does, to who delivered it.
        record.owe(&target.upstream.name);
        record.contacted();
        record.advance(progress(&end));
        if !job.slot.lingers(record.linger(&upstream)) {
            return Resumed::Not(last, end);
        }
        let rejoined = (join.splice.clone(), end.relay.clone());
        let mut attempt = Try::of(placed, &model, number);
        attempt.body = join.body.clone().map(Box::new);
        attempt.path = Path::Rejoined(Box::new(rejoined));
        let opened = open(job, attempt, course.total, &mut course.alarm, Some(record)).await;
        match opened {
            Ok(Opened::Stream(mut open)) => {
                let mut early = std::mem::take(&mut end.last.said);
                early.extend_from_slice(&open.early);
                open.early = early;
                record.owe(&upstream.name);
                record.advance(open.progress());
                return Resumed::Open(open);
            }
            // A stream was asked for.
            Ok(Opened::Whole(..) | Opened::Passing(_)) => {}
            Err(failed) => {
                record.lost(&failed.error);
                record.advance(progress(&end));
                last = failed.error;
            }
        }
        if !job.slot.lingers(None) {
            break;
        }
    }
    Resumed::Not(last, end)
}

/// What follows what was delivered; nothing where that was not remembered.
fn next(job: &Job, relay: &StreamRelay) -> Result<Option<Next>, Why> {
    let Some(delivered) = relay.delivered() else {
        return Ok(None);
    };
    let resume = Resume::new(job.endpoint == Endpoint::Completions);
    resume
        .next(delivered, &job.body, job.shape.max_event_bytes)
        .map(Some)
}

/// A body of ours with its places for edits.
fn inspected(body: Bytes) -> Option<(Bytes, Edits)> {
    let edits = Edits::of(&peek(&body).ok()?);
    Some((body, edits))
}

/// The error with why nobody goes on, for the log.
fn not_continued(error: Error, why: &str) -> Error {
    let cause = match &error.cause {
        Some(cause) => format!("{cause}; not continued: {why}"),
        None => format!("not continued: {why}"),
    };
    error.cause(cause)
}

/// The engine's last count is one that it had not ended.
fn unended(made: Progress) -> Progress {
    Progress {
        reported: made.reported.map(|(usage, _)| (usage, false)),
        ..made
    }
}

fn progress(end: &End) -> Progress {
    let events = end.relay.content_events();
    Progress {
        reported: end.relay.usage().or(end.counted),
        content_events: events,
        answered: events > 0,
    }
}
