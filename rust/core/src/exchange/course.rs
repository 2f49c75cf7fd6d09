//! The way of a request from target to target, until one has answered or none is left.
use std::sync::Arc;
use std::time::Duration;

use bytes::Bytes;
use http::header::CONTENT_TYPE;
use http::{HeaderMap, HeaderName, HeaderValue};
use tokio::time::Instant;

use super::Job;
use super::body::speaks;
use super::hedge::open_hedged;
use super::open::{Open, Opened, Try};
use super::refuse::{attempt_headers, cut, refuse};
use super::stream;
use super::unary::Whole;
use crate::alarm::Alarm;
use crate::dialect::Dialect;
use crate::dispatch;
use crate::error::{Error, Kind};
use crate::record::{Outcome, Record};
use crate::retry::{Tries, backoff};
use crate::slot::Head;
use crate::snapshot::{Model, Reason, Target};
use crate::upstream;

/// A stream is neither kept nor held back by what stands between us and the client.
const STREAM_HEADERS: [(&str, &str); 2] =
    [("cache-control", "no-cache"), ("x-accel-buffering", "no")];

/// Why an attempt came to nothing.
pub(super) struct Failed {
    /// What the client would be told.
    pub(super) error: Error,
    /// An upstream may have had the request: false where no connection came about.
    pub(super) sent: bool,
}

impl From<Error> for Failed {
    fn from(error: Error) -> Self {
        Self { error, sent: true }
    }
}

impl Failed {
    /// The client has left, and nobody reads on for it.
    pub(super) fn left() -> Self {
        Error::new(Kind::ClientClosed, "The client left.").into()
    }
}

/// What comes after a failure.
enum Step {
    /// Another target, at once.
    Sibling,
    /// All targets anew, after a while.
    Again(Duration),
    /// Another model.
    Model(Arc<Model>),
}

/// What an exchange has before it: time, targets, tries.
pub(super) struct Course {
    /// The model that answers: the one asked for, or a fallback of it.
    pub(super) model: Arc<Model>,
    /// When the whole request is over.
    pub(super) total: Instant,
    pub(super) alarm: Alarm,
    /// Targets that were not tried yet.
    pub(super) left: Vec<Target>,
    tries: Tries,
    /// Fallbacks that were tried, by their number in the list of the model asked for.
    fallen: usize,
    /// A model for what the request is about has been tried.
    fitted: bool,
    /// What the last upstream said that had the request.
    said: Option<Error>,
}

/// Answers the request.
pub(super) async fn run(job: &Job, record: &mut Record) {
    let now = Instant::now();
    let total = now + job.model.timeouts.total;
    let mut course = Course {
        total,
        alarm: Alarm::new((now + job.model.timeouts.first_byte).min(total)),
        left: job.model.candidates().cloned().collect(),
        model: Arc::clone(&job.model),
        tries: Tries::default(),
        fallen: 0,
        fitted: false,
        said: None,
    };
    job.model.retries.earn();
    loop {
        let next = dispatch::next(&mut course.left, &job.ask, total, &mut course.alarm).await;
        let failed = match next {
            Ok((target, permit)) => {
                if job.gateway.is_halted() {
                    // The place came free as another request was stopped.
                    return;
                }
                let number = record.attempt(&target.upstream.name);
                if !job.slot.lingers(record.linger(&target.upstream)) {
                    return;
                }
                let attempt = Try {
                    timeouts: course.model.timeouts,
                    target,
                    permit,
                    number,
                };
                match course.attempt(job, attempt, record).await {
                    Ok(()) => return,
                    Err(failed) => failed,
                }
            }
            Err(error) => Failed { error, sent: false },
        };
        if !course.goes_on(job, failed, record).await {
            return;
        }
    }
}

impl Course {
    /// Makes one attempt. An error means that the client has had nothing of it.
    async fn attempt(
        &mut self,
        job: &Job,
        attempt: Try,
        record: &mut Record,
    ) -> Result<(), Failed> {
        match open_hedged(self, job, attempt, record).await? {
            Opened::Whole(target, headers, whole) => {
                answer(job, &target, &headers, whole, record).await;
            }
            Opened::Stream(open) => self.stream(job, *open, record).await,
        }
        Ok(())
    }

    /// Relays a stream whose first token is there.
    async fn stream(&mut self, job: &Job, mut open: Open, record: &mut Record) {
        record.advance(open.progress());
        record.committed(200);
        job.slot.start(head(
            job,
            &open.target,
            &open.headers,
            Bytes::new(),
            true,
            record,
        ));
        let relayed = stream::relay(job, &mut open, self.total, &mut self.alarm, record).await;
        if let Err(error) = relayed {
            let held = std::mem::take(&mut open.early);
            cut(job, open.relay.finish_reason(), record, &error, held).await;
        }
    }

    /// Whether the request is tried once more after a failure; else its client has been told.
    async fn goes_on(&mut self, job: &Job, failed: Failed, record: &mut Record) -> bool {
        let error = &failed.error;
        if !job.slot.lingers(None) {
            // Nobody waits for another one's answer.
            if error.kind != Kind::ClientClosed {
                record.close(Outcome::Error, error.kind.status(), Some(error.kind), None);
            }
            return false;
        }
        let Some(step) = self.step(job, &failed) else {
            // That the last target has no words for the request is not why it came to nothing.
            let unsaid = !failed.sent && error.kind == Kind::InvalidRequest;
            let told = self.said.as_ref().filter(|_| unsaid).unwrap_or(error);
            refuse(job, told, record).await;
            return false;
        };
        if failed.sent {
            self.said = Some(error.clone());
        }
        job.gateway.note(error, &job.answer_headers);
        record.failed();
        match step {
            Step::Sibling => {}
            Step::Again(wait) => {
                tokio::time::sleep(wait).await;
                self.left = self.model.candidates().cloned().collect();
            }
            Step::Model(model) => {
                record.serve(&model);
                self.left = model.candidates().cloned().collect();
                self.model = model;
                self.tries = Tries::default();
            }
        }
        true
    }

    /// What to do about a failure; nothing where it is the request's own, or all has been tried.
    fn step(&mut self, job: &Job, failed: &Failed) -> Option<Step> {
        let error = &failed.error;
        let now = Instant::now();
        if now >= self.total {
            return None;
        }
        if failed.sent {
            self.tries.made += 1;
        }
        if let Some(model) = self.fitting(job, error) {
            return Some(Step::Model(model));
        }
        let retry = &self.model.retry;
        if !error.elsewhere() {
            return None;
        }
        let budget = || {
            self.tries
                .allow(retry, &self.model.retries, job.gateway.now().mono)
        };
        if !self.left.is_empty() && (!failed.sent || budget()) {
            return Some(Step::Sibling);
        }
        // What is broken stays so; what has too much to do may have less soon.
        let busy = matches!(error.kind, Kind::Unavailable | Kind::RateLimited);
        if self.left.is_empty() && failed.sent && busy && budget() {
            let wait = backoff(retry, self.tries.made, job.chance(self.tries.made));
            let wait = error.retry_after.map_or(wait, |asked| asked.max(wait));
            let bearable = wait.as_secs_f64() <= retry.max_backoff_s;
            if bearable && now + wait < self.total {
                return Some(Step::Again(wait));
            }
        }
        self.fallback(job).map(Step::Model)
    }

    /// The model for what this one cannot do with this request.
    fn fitting(&mut self, job: &Job, error: &Error) -> Option<Arc<Model>> {
        let name = match error.reason? {
            Reason::ContextOverflow => self.model.context_fallback.as_deref(),
            Reason::ContentFilter => self.model.content_filter_fallback.as_deref(),
            Reason::Loading | Reason::Quota => None,
        }?;
        let first = !std::mem::replace(&mut self.fitted, true);
        first.then(|| job.gateway.model(name))?
    }

    /// The next of the fallbacks of the model asked for.
    fn fallback(&mut self, job: &Job) -> Option<Arc<Model>> {
        loop {
            let name = job.model.fallbacks.get(self.fallen)?;
            self.fallen += 1;
            if let Some(model) = job.gateway.model(name) {
                return Some(model);
            }
        }
    }
}

/// Gives the client a whole answer.
async fn answer(
    job: &Job,
    target: &Target,
    headers: &HeaderMap,
    whole: Whole,
    record: &mut Record,
) {
    record.progress = whole.progress;
    if let Some(log) = &mut record.log {
        log.answered(&whole.body);
    }
    record.first_byte();
    record.close(Outcome::Ok, 200, None, whole.finish.as_deref());
    let head = head(job, target, headers, whole.body, false, record);
    record.book_durably().await;
    job.slot.start(head);
}

/// An answer's head: what of the upstream's headers reaches the client, and ours.
fn head(
    job: &Job,
    target: &Target,
    theirs: &HeaderMap,
    body: Bytes,
    more: bool,
    record: &Record,
) -> Head {
    let mut headers = Vec::with_capacity(job.answer_headers.len() + theirs.len() + 4);
    if speaks(job, target) == Dialect::OpenAi {
        for (name, value) in theirs {
            if upstream::passes(name, theirs) {
                headers.push((name.clone(), value.clone()));
            }
        }
    } else {
        // What they say is of an answer that the client does not get.
        let media = if more {
            "text/event-stream"
        } else {
            "application/json"
        };
        headers.push((CONTENT_TYPE, HeaderValue::from_static(media)));
    }
    headers.extend(job.answer_headers.iter().cloned());
    let attempts = record.attempted().map_or(0, |(_, attempts)| attempts);
    headers.extend(attempt_headers(&target.upstream.name, attempts));
    if more {
        let own = |(name, value)| {
            (
                HeaderName::from_static(name),
                HeaderValue::from_static(value),
            )
        };
        headers.extend(STREAM_HEADERS.map(own));
    }
    Head {
        status: 200,
        headers,
        body,
        more,
    }
}
