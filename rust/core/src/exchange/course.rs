//! The way of a request from target to target, until one has answered or none is left.
use std::sync::Arc;
use std::time::Duration;

use bytes::Bytes;
use http::HeaderMap;
use tokio::time::Instant;

use super::Job;
use super::hedge::open_hedged;
use super::keep::keep;
use super::objects;
use super::open::{Open, Opened, Try};
use super::out::{Out, head, is_plain};
use super::passing;
use super::refuse::{Last, cut};
use super::resume::{Resumed, resume};
use super::stream;
use super::unary::Whole;
use crate::alarm::Alarm;
use crate::dispatch::{self, Trail};
use crate::error::{Error, Kind};
use crate::gateway::monotonic;
use crate::guard;
use crate::pass::object::{Act, Object};
use crate::peek::peek;
use crate::record::{Outcome, Record};
use crate::retry::{Tries, backoff};
use crate::snapshot::{Model, Reason, Target};

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
    /// Which targets were tried.
    pub(super) trail: Trail,
    tries: Tries,
    /// Fallbacks that were tried, by their number in the list of the model asked for.
    fallen: usize,
    /// A model for what the request is about has been tried.
    fitted: bool,
    /// What the last upstream said that had the request.
    said: Option<Error>,
    /// Why an earlier target or model did not have it, unless the request was not for it.
    away: Option<Box<Error>>,
}

/// Answers the request.
pub(super) async fn run(job: &Job, record: &mut Record) {
    let now = Instant::now();
    let total = now + job.total;
    let mut course = Course {
        total,
        alarm: Alarm::new((now + job.model.timeouts.first_byte).min(total)),
        trail: Trail::new(),
        model: Arc::clone(&job.model),
        tries: Tries::default(),
        fallen: 0,
        fitted: false,
        said: None,
        away: None,
    };
    let mut out = Out::new(job);
    if let Some(object) = &job.object {
        if object.act == Act::List {
            // Rare: apart, so that other requests do not carry its room.
            Box::pin(objects::list(job, object, record)).await;
            return;
        }
        if let Err(error) = Box::pin(objects::check(job, object)).await {
            out.fail(&error, record).await;
            return;
        }
    }
    job.model.retries.earn();
    loop {
        let placed = dispatch::next(
            &mut course.trail,
            &course.model,
            &job.ask,
            total,
            &mut course.alarm,
            &mut out,
        );
        // Boxed before the next wait, which then carries no room for it.
        let attempt = match placed.await {
            Ok(placed) => {
                if job.gateway.is_halted() {
                    // The place came free as another request was stopped.
                    return;
                }
                let (upstream, at) = (&placed.target.upstream, placed.at);
                let number = record.attempt(&placed.target);
                // Whoever leaves may leave something behind, which has to be recorded or taken back.
                let linger = if job.object.as_ref().is_some_and(Object::changes) {
                    record.linger_for(job.total)
                } else {
                    record.linger(upstream)
                };
                if !job.slot.lingers(linger) {
                    return;
                }
                Ok((Try::of(placed, &course.model, number), at))
            }
            Err(error) => Err(error),
        };
        let goes_on = match attempt {
            Ok((attempt, at)) => match course.attempt(job, attempt, &mut out, record).await {
                Ok(()) => return,
                Err(failed) => course.goes_on(job, failed, at, &mut out, record).await,
            },
            Err(error) => course.goes_elsewhere(job, error, &mut out, record).await,
        };
        if !goes_on {
            return;
        }
    }
}

impl Course {
    /// Makes one attempt. An error means that the client has had nothing of it.
    async fn attempt(
        &mut self,
        job: &Job,
        attempt: Box<Try>,
        out: &mut Out<'_>,
        record: &mut Record,
    ) -> Result<(), Failed> {
        let opened = open_hedged(self, job, attempt, record).await?;
        match opened {
            Opened::Whole(target, headers, whole) => {
                if let Some(object) = &job.object
                    && let Err(error) =
                        Box::pin(objects::settle(job, object, &target, &whole.body)).await
                {
                    out.fail(&error, record).await;
                    return Ok(());
                }
                answer(job, &target, &headers, whole, record).await;
            }
            Opened::Stream(open) => self.stream(job, open, out, record).await,
            Opened::Passing(answer) => {
                let alarm = &mut self.alarm;
                Box::pin(passing::relay(job, answer, self.total, alarm, out, record)).await;
            }
        }
        Ok(())
    }

    /// Relays a stream whose first token is there.
    async fn stream(
        &mut self,
        job: &Job,
        mut open: Box<Open>,
        out: &mut Out<'_>,
        record: &mut Record,
    ) {
        record.advance(open.progress());
        record.committed(200);
        if open.relay.is_native() {
            job.slot.speak_native();
        }
        out.start(|| {
            let raw = open.relay.is_native() || is_plain(job, &open.target);
            head(job, (&open.target, raw), &open.headers, None, record)
        });
        let mut joins = 0;
        loop {
            let relayed = stream::relay(job, &mut open, self.total, &mut self.alarm, record).await;
            let Err(error) = relayed else {
                open.target
                    .upstream
                    .health
                    .succeeded(None, None, monotonic());
                return;
            };
            if let Some(trouble) = job.slot.trouble() {
                // No other engine's fault, and none can say it better.
                let (_, end) = open.into_end();
                let finish = end.relay.finish_reason();
                Box::pin(cut(job, finish, record, &trouble, Last::default())).await;
                return;
            }
            if error.kind == Kind::ClientClosed {
                // Nobody is there to be told.
                return;
            }
            // Rare, and large: apart, so that other requests do not carry its room.
            match Box::pin(resume(self, job, open, error, &mut joins, out, record)).await {
                Resumed::Open(next) => open = next,
                Resumed::Over(end) => {
                    let finish = end.relay.finish_reason();
                    stream::close(job, finish, end.last, record).await;
                    return;
                }
                // Its client has left, and nobody reads on for it.
                Resumed::Not(error, _) if error.kind == Kind::ClientClosed => return,
                Resumed::Not(error, end) => {
                    let finish = end.relay.finish_reason();
                    cut(job, finish, record, &error, end.last).await;
                    return;
                }
            }
        }
    }

    /// Whether the request is tried once more after an attempt at target `at` has failed; else its
    /// client has been told.
    async fn goes_on(
        &mut self,
        job: &Job,
        failed: Failed,
        at: usize,
        out: &mut Out<'_>,
        record: &mut Record,
    ) -> bool {
        let error = &failed.error;
        record.lost(error);
        if !job.slot.lingers(None) {
            // Nobody waits for another one's answer.
            if error.kind != Kind::ClientClosed {
                record.close(Outcome::Error, error.kind.status(), Some(error.kind), None);
            }
            return false;
        }
        if failed.sent {
            self.tries.made += 1;
        } else {
            self.trail.lost(at);
        }
        let Some(step) = self.step(job, &failed, record) else {
            let unsaid = !failed.sent && error.kind == Kind::InvalidRequest;
            let told = if unsaid { self.instead(error) } else { None };
            out.fail(told.unwrap_or(error), record).await;
            return false;
        };
        if failed.sent {
            self.said = Some(error.clone());
        } else {
            self.misses(error);
        }
        self.take(job, error, step, record).await;
        true
    }

    /// Whether another model is tried, as none of this one's targets could take the request; else the
    /// client has been told.
    async fn goes_elsewhere(
        &mut self,
        job: &Job,
        error: Error,
        out: &mut Out<'_>,
        record: &mut Record,
    ) -> bool {
        let waits = Instant::now() < self.total && job.slot.lingers(None);
        if let Some(model) = waits.then(|| self.fallback(job, record)).flatten() {
            self.misses(&error);
            self.take(job, &error, Step::Model(model), record).await;
            return true;
        }
        let told = self.instead(&error).unwrap_or(&error);
        out.fail(told, record).await;
        false
    }

    /// A target or a model has not had the request.
    fn misses(&mut self, error: &Error) {
        if error.kind != Kind::InvalidRequest {
            self.away.get_or_insert_with(|| Box::new(error.clone()));
        }
    }

    /// What the client is told rather than that the last target or model, with `error`, does not have
    /// the request: what an engine said tells more, and that the last one has no words for the request
    /// is not why it came to nothing.
    fn instead(&self, error: &Error) -> Option<&Error> {
        let unfit = error.kind == Kind::InvalidRequest;
        let away = self.away.as_deref().filter(|_| unfit);
        self.said.as_ref().or(away)
    }

    /// Takes a step after a failure.
    async fn take(&mut self, job: &Job, error: &Error, step: Step, record: &mut Record) {
        record.note(error, &job.answer_headers);
        record.failed();
        match step {
            Step::Sibling => {}
            Step::Again(wait) => tokio::time::sleep(wait).await,
            Step::Model(model) => {
                record.serve(&model);
                self.trail = Trail::new();
                self.model = model;
                self.tries = Tries::default();
            }
        }
    }

    /// What to do about a failure; nothing where it is the request's own, or all has been tried.
    fn step(&mut self, job: &Job, failed: &Failed, record: &Record) -> Option<Step> {
        let error = &failed.error;
        let now = Instant::now();
        if now >= self.total {
            return None;
        }
        if job.upload.as_ref().is_some_and(|upload| !upload.is_kept()) {
            // What went by cannot be sent once more.
            return None;
        }
        if let Some(model) = self.fitting(job, error, record) {
            return Some(Step::Model(model));
        }
        let retry = &self.model.retry;
        let status = error.upstream_status.filter(|_| failed.sent);
        if !error.elsewhere() && status.is_none_or(|status| !retry.on.contains(&status)) {
            return None;
        }
        let budget = || self.tries.allow(retry, &self.model.retries, monotonic());
        if self.trail.has_more() && (!failed.sent || budget()) {
            return Some(Step::Sibling);
        }
        // What is broken stays so; what has too much to do may have less soon: one of several, or the
        // only one if it says so.
        let busy = matches!(error.kind, Kind::Unavailable | Kind::RateLimited)
            && (error.retry_after.is_some() || self.model.targets.len() > 1);
        if !self.trail.has_more() && failed.sent && busy {
            let wait = backoff(retry, self.tries.made, job.chance(self.tries.made));
            let wait = error.retry_after.map_or(wait, |asked| asked.max(wait));
            let bearable = wait.as_secs_f64() <= retry.max_backoff_s;
            // The budget is asked last: it is for what is made.
            if bearable && now + wait < self.total && self.trail.again() && budget() {
                return Some(Step::Again(wait));
            }
        }
        self.fallback(job, record).map(Step::Model)
    }

    /// The model for what this one cannot do with this request.
    fn fitting(&mut self, job: &Job, error: &Error, record: &Record) -> Option<Arc<Model>> {
        let name = match error.reason? {
            Reason::ContextOverflow => self.model.context_fallback.as_deref(),
            Reason::ContentFilter => self.model.content_filter_fallback.as_deref(),
            Reason::Loading | Reason::Quota => None,
        }?;
        let first = !std::mem::replace(&mut self.fitted, true);
        let model = first.then(|| job.gateway.model(name))??;
        may_have(&model, job, record).then_some(model)
    }

    /// The next of the fallbacks of the model asked for.
    fn fallback(&mut self, job: &Job, record: &Record) -> Option<Arc<Model>> {
        loop {
            let name = job.model.fallbacks.get(self.fallen)?;
            self.fallen += 1;
            if let Some(model) = job
                .gateway
                .model(name)
                .filter(|model| may_have(model, job, record))
            {
                return Some(model);
            }
        }
    }
}

/// Whether a request that was admitted for another model may be sent to an engine of this one.
fn may_have(model: &Model, job: &Job, record: &Record) -> bool {
    let fits = || {
        job.upload.is_some()
            || peek(&job.body)
                .is_ok_and(|body| guard::check(job.endpoint, &body, &model.known).is_ok())
    };
    record.may_serve(model) && fits()
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
    // What is stopped while it is kept was not answered.
    let told = keep(job, Some(whole.told)).await;
    record.first_byte();
    record.close(Outcome::Ok, 200, None, whole.finish.as_deref());
    let raw = whole.native || is_plain(job, target);
    let head = head(
        job,
        (target, raw),
        headers,
        told.or_else(|| Some(Bytes::new())),
        record,
    );
    record.book_durably().await;
    job.slot.start(head);
}
