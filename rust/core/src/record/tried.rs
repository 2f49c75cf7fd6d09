//! What a record says of its attempts: to the client, the log and the usage table.
use std::time::Instant;

use http::{HeaderName, HeaderValue};

use super::Record;
use crate::attempts::{Attempt, HEDGE_LOST, Why};
use crate::error::{Error, Kind};
use crate::snapshot::Target;

/// A second attempt that was made beside a late one.
pub(crate) struct Hedge<'a> {
    /// Where it went.
    pub(crate) target: &'a Target,
    /// When.
    pub(crate) began: Instant,
    /// It is the one that answers.
    pub(crate) won: bool,
    /// Why and when the other one of the two failed; else it was late.
    pub(crate) failed: Option<(Error, Instant)>,
}

impl Record {
    /// Microseconds from the request's arrival.
    pub(super) fn since(&self, at: Instant) -> u64 {
        let passed = at.saturating_duration_since(self.started);
        u64::try_from(passed.as_micros()).unwrap_or(u64::MAX)
    }

    /// The running attempt has failed, which the log is told.
    pub(crate) fn lost(&mut self, error: &Error) {
        self.lost_at(error, Instant::now());
    }

    fn lost_at(&mut self, error: &Error, at: Instant) {
        let at_us = self.since(at);
        let Some(attempt) = self.tried.fail(error, at_us) else {
            return;
        };
        if error.kind == Kind::ClientClosed {
            return;
        }
        if let Some(event) = &self.event {
            self.gateway.note_attempt(error, &event.request_id, attempt);
            self.told.clone_from(&error.cause);
        }
    }

    /// The next attempt carries a stream on that broke off.
    pub(crate) fn resumes(&mut self) {
        self.tried.next_is(Why::Resume);
    }

    /// A second attempt was made beside the running one.
    pub(crate) fn hedged(&mut self, hedge: &Hedge<'_>) {
        let now = Instant::now();
        let began_us = self.since(hedge.began);
        if hedge.won {
            if let Some((error, at)) = &hedge.failed {
                self.lost_at(error, *at);
            } else {
                let at_us = self.since(now);
                self.tried.end(HEDGE_LOST, None, at_us);
            }
            self.tried.next_is(Why::Hedge);
            self.attempt_since(hedge.target, began_us);
            self.contacted();
            return;
        }
        let (reason, status, ended) = match &hedge.failed {
            Some((error, at)) => (error.kind.name(), error.upstream_status, *at),
            None => (HEDGE_LOST, None, now),
        };
        let ended_us = self.since(ended);
        let Some(event) = &mut self.event else {
            return;
        };
        event.attempts += 1;
        let attempt = Attempt {
            number: event.attempts,
            upstream: hedge.target.upstream.name.clone(),
            model: hedge.target.model.clone(),
            why: Why::Hedge,
            reason,
            status,
            start_us: began_us,
            duration_us: ended_us.saturating_sub(began_us),
        };
        if let Some((error, _)) = &hedge.failed {
            self.gateway
                .note_attempt(error, &event.request_id, &attempt);
        }
        self.tried.beside(attempt);
    }

    /// Tells the log of a failure, unless it is the attempt's that it has just been told.
    pub(crate) fn note(&self, error: &Error, answer_headers: &[(HeaderName, HeaderValue)]) {
        if self.told.is_some() && self.told == error.cause {
            self.gateway.metrics.failed(error.kind);
        } else {
            self.gateway.note(error, answer_headers);
        }
    }

    /// The header that tells of several attempts.
    pub(crate) fn attempt_log(&self) -> Option<(HeaderName, HeaderValue)> {
        let text = HeaderValue::try_from(self.tried.header()?).ok()?;
        Some((HeaderName::from_static("x-forebay-attempt-log"), text))
    }
}
