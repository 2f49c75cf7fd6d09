//! A request's end: its tokens settled, its one event written, its permit given back.
use std::time::Instant;

use super::{Contact, Outcome, Record, with_row};
use crate::attempts;
use crate::error::Kind;
use crate::slot::stopped;
use crate::spool::Durability;
use crate::usage::{Source, Usage};

/// What came of the attempt that a request ended with.
fn reason(outcome: Outcome, error: Option<&'static str>) -> &'static str {
    match outcome {
        Outcome::Ok => attempts::OK,
        Outcome::ClientClosed | Outcome::GatewayDied => outcome.name(),
        Outcome::UpstreamCut | Outcome::Error => error.unwrap_or(outcome.name()),
    }
}

impl Drop for Record {
    fn drop(&mut self) {
        self.book();
    }
}

impl Record {
    /// The tokens to book: the engine's own, or what was delivered of an unfinished answer.
    fn tokens(&self, outcome: Outcome) -> (Usage, Source) {
        if self.contact == Contact::Never {
            return (Usage::default(), Source::Counted);
        }
        match self.progress.reported {
            Some((usage, true)) => (usage, Source::Reported),
            Some((usage, false)) => (usage, Source::Counted),
            // An engine that answered nothing, or with an error, has nothing to be paid for.
            None if self.contact == Contact::Failed
                || outcome == Outcome::Error && !self.progress.answered =>
            {
                (Usage::default(), Source::Estimated)
            }
            None => (self.estimate(), Source::Estimated),
        }
    }

    /// Books the request and gives its permit back, once. Called before the client reads the end of
    /// its answer, so that its next request finds the permit free.
    pub fn book(&mut self) {
        let Some(mut event) = self.event.take() else {
            return;
        };
        if let Some((reach, before)) = self.reach.take()
            && self.contact == Contact::Made
            && !reach.is_there()
        {
            self.contact = before;
        }
        // A runtime that goes down drops its connections too: those clients did not leave.
        let left = self.client_gone || self.slot.is_cancelled() && !self.gateway.is_halted();
        let ended = self.outcome;
        let outcome = match ended {
            _ if left => Outcome::ClientClosed,
            Some(outcome) => outcome,
            None => Outcome::GatewayDied,
        };
        if left && let Some(upstream) = &event.upstream {
            self.gateway.metrics.left(upstream, self.lingers, ended);
        }
        if outcome == Outcome::GatewayDied {
            let error = stopped();
            if event.first_byte_us.is_none() {
                event.status = error.kind.status();
            }
            event.error_kind = Some(error.kind.name());
            self.slot.abandon(&error);
        }
        let (usage, source) = self.tokens(ended.unwrap_or(outcome));
        let now = Instant::now();
        let duration = now - self.started;
        let duration_us = duration.as_micros() as u64;
        // What was not served, or failed without tokens, costs nothing, whatever the price.
        let failed = ended.unwrap_or(outcome) == Outcome::Error;
        let served = self.contact == Contact::Made && (!failed || usage.total() > 0);
        let price = self.price.filter(|_| served);
        event.price_id = price.map(|price| price.id);
        event.cost_pico = match price {
            Some(price) => Some(price.cost(&usage, duration_us)),
            None => (!served).then_some(0),
        };
        if served && price.is_none() {
            self.model.metrics.unpriced.inc();
        }
        if let Some(reservation) = self.reservation.take() {
            if self.contact == Contact::Never {
                reservation.cancel();
            } else {
                let nano = price.map_or(0, |price| price.nano(&usage, duration_us));
                reservation.settle(usage.total(), nano);
            }
        }
        if source == Source::Reported {
            self.model
                .estimator
                .observe(self.prompt_bytes, usage.prompt, usage.completion);
        }
        event.ended_us = event.admitted_us.saturating_add_unsigned(duration_us);
        event.duration_ms = duration_us as f64 / 1e3;
        event.ttft_ms = self
            .first_token
            .map(|at| (at - self.started).as_secs_f64() * 1e3);
        event.tokens_per_second = self.first_token.and_then(|at| {
            let seconds = (now - at).as_secs_f64();
            (event.stream && usage.completion > 1 && seconds > 0.0)
                .then(|| (usage.completion - 1) as f64 / seconds)
        });
        self.model.metrics.input.add(usage.prompt);
        self.model.metrics.output.add(usage.completion);
        event.usage = usage;
        self.tried
            .end(reason(outcome, event.error_kind), None, duration_us);
        event.attempt_log = self.tried.json();
        event.source = source.name();
        event.outcome = outcome.name();
        if outcome == Outcome::ClientClosed {
            event.error_kind = Some(Kind::ClientClosed.name());
        }
        if let Some(log) = self.log.take() {
            log.end(&event);
        }
        if let Some(trace) = &self.trace {
            self.gateway.traces.push(trace, &event, self.tried.all());
        }
        self.model.metrics.demand.ended(&event);
        self.gateway
            .metrics
            .finished(self.endpoint, &event, outcome);
        match self.opened.take() {
            Some((spool, opened)) => {
                let recorded = with_row(&event, |row| spool.end(&opened, row));
                self.recorded = Some((spool, recorded));
            }
            // Admitted without a record: that was counted then.
            None if self.gateway.spool().is_some() => {}
            None => {
                if !self.gateway.events.push(event) {
                    self.gateway.metrics.usage_dropped.inc();
                }
            }
        }
    }

    /// Books the request, and waits until that is as safe as the spool is to make it.
    pub async fn book_durably(&mut self) {
        self.book();
        if let Some((spool, recorded)) = &self.recorded {
            spool.durable(*recorded).await;
        }
    }

    /// The client is not to see the end of its answer before that is recorded for good.
    pub fn is_held(&self) -> bool {
        let opened = self.opened.as_ref();
        opened.is_some_and(|(spool, _)| spool.durability() == Durability::Machine)
    }
}
