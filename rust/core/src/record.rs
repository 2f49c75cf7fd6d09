//! What one admitted request leaves behind: exactly one usage event, and its tokens settled.
use std::cell::RefCell;
use std::sync::Arc;
use std::time::{Duration, Instant};

use crate::arrival::Arrival;
use crate::attempts::{Attempts, Why};
use crate::door::Front;
use crate::error::{Error, Kind};
use crate::gateway::{Endpoint, Gateway};
use crate::keys::KeyId;
use crate::limit::Reservation;
use crate::linger::{Cap, Linger, OnDisconnect};
use crate::price::Price;
use crate::prompt_log::Capture;
use crate::snapshot::{Model, Target};
use crate::spool::row::{Reached, put_usage};
use crate::spool::{Full, Opened, Spool};
use crate::trace::Trace;
use crate::upstream::{Reach, Upstream};
use crate::usage::{Source, Usage};

mod booking;
mod event;
mod tried;

pub use self::event::{Outcome, UsageEvent};
pub(crate) use self::tried::Hedge;

thread_local! {
    static ROW: RefCell<Vec<u8>> = const { RefCell::new(Vec::new()) };
}

/// Lets `take` have the event as a row; the bytes are reused.
fn with_row<T>(event: &UsageEvent, take: impl FnOnce(&[u8]) -> T) -> T {
    ROW.with_borrow_mut(|row| {
        row.clear();
        put_usage(event, row);
        take(row)
    })
}

/// What the engine has said of usage so far.
#[derive(Clone, Copy, Debug, Default)]
pub struct Progress {
    /// The engine's latest counts, and whether they are final.
    pub reported: Option<(Usage, bool)>,
    /// Events that carried content.
    pub content_events: u64,
    /// The engine has begun an answer that is no error.
    pub answered: bool,
}

/// What came of the request's way to engines.
#[derive(Clone, Copy, PartialEq, Eq)]
enum Contact {
    /// None has had it: it does not count.
    Never,
    /// One has had it, and is owed nothing; there may be another one to try.
    Failed,
    /// One has it, or has answered.
    Made,
}

/// The guard of one admitted request. Its drop books the request, whatever happened.
pub struct Record {
    gateway: Arc<Gateway>,
    slot: Arc<crate::slot::Slot>,
    model: Arc<Model>,
    reservation: Option<Reservation>,
    event: Option<UsageEvent>,
    started: Instant,
    first_token: Option<Instant>,
    endpoint: Endpoint,
    prompt_estimate: u64,
    prompt_bytes: usize,
    contact: Contact,
    /// The last attempt's connection, and what it was before that.
    reach: Option<(Arc<Reach>, Contact)>,
    /// The last attempt goes on without its client.
    lingers: bool,
    client_gone: bool,
    /// What is kept of it for the prompt log.
    pub(crate) log: Option<Box<Capture>>,
    /// What that upstream costs.
    price: Option<Price>,
    /// Updated as the answer goes by.
    pub progress: Progress,
    /// Set once the answer's end is known.
    pub outcome: Option<Outcome>,
    /// Its place in a trace.
    trace: Option<Box<Trace>>,
    /// What came of each attempt.
    tried: Attempts,
    /// The private cause that the log has been told last.
    told: Option<Box<str>>,
    /// Its place in the spool, where there is one.
    opened: Option<(Arc<Spool>, Opened)>,
    /// What the spool gave for its end.
    recorded: Option<(Arc<Spool>, u64)>,
}

/// What is known of a request when it is admitted.
pub struct Opening {
    /// When it came, and the id made of that.
    pub arrival: Arrival,
    /// Its place in a trace.
    pub trace: Option<Box<Trace>>,
    /// See [`UsageEvent::tags`].
    pub tags: Option<Box<str>>,
    /// As in `x-request-id`.
    pub request_id: String,
    /// Who is billed.
    pub account: Arc<str>,
    /// The key.
    pub key_id: KeyId,
    /// As the client named it.
    pub model_asked: String,
    /// Which API.
    pub endpoint: Endpoint,
    /// How its client is connected.
    pub front: Front,
    /// Streamed.
    pub stream: bool,
    /// Input tokens, estimated.
    pub prompt_estimate: u64,
    /// Bytes of text that the estimate is from; 0 when token ids were sent.
    pub prompt_bytes: usize,
}

impl Record {
    /// Opens the record of a request that was just admitted.
    ///
    /// Errors: it could not be recorded, and the reservation is given back.
    pub fn open(
        gateway: &Arc<Gateway>,
        slot: &Arc<crate::slot::Slot>,
        model: &Arc<Model>,
        reservation: Reservation,
        opening: Opening,
    ) -> Result<Self, Error> {
        let Opening {
            arrival,
            trace,
            tags,
            request_id,
            account,
            key_id,
            model_asked,
            endpoint,
            front,
            stream,
            prompt_estimate,
            prompt_bytes,
        } = opening;
        let event = UsageEvent {
            event_id: *arrival.id.as_bytes(),
            request_id,
            account,
            key_id,
            admitted_us: arrival.unix_us,
            first_byte_us: None,
            ended_us: arrival.unix_us,
            model_asked,
            model_served: Arc::clone(&model.name),
            upstream: None,
            front: front.name(),
            endpoint: endpoint.name(),
            stream,
            outcome: Outcome::GatewayDied.name(),
            status: 499,
            finish_reason: None,
            error_kind: None,
            attempts: 0,
            attempt_log: None,
            usage: Usage::default(),
            source: Source::Estimated.name(),
            duration_ms: 0.0,
            ttft_ms: None,
            tokens_per_second: None,
            tags,
            cost_pico: None,
            price_id: None,
        };
        let begun = gateway.spool().map(|spool| {
            let opened = with_row(&event, |row| spool.begin(row));
            (spool, opened)
        });
        let opened = match begun {
            None => None,
            Some((spool, Ok(opened))) => Some((Arc::clone(spool), opened)),
            Some((spool, Err(Full))) => {
                if let Err(error) = spool.full() {
                    reservation.cancel();
                    return Err(error);
                }
                None
            }
        };
        gateway.metrics.in_flight.add(1);
        model.metrics.demand.began();
        Ok(Self {
            gateway: Arc::clone(gateway),
            slot: Arc::clone(slot),
            model: Arc::clone(model),
            reservation: Some(reservation),
            event: Some(event),
            started: arrival.at,
            first_token: None,
            endpoint,
            prompt_estimate,
            prompt_bytes,
            contact: Contact::Never,
            reach: None,
            lingers: false,
            client_gone: false,
            log: None,
            price: None,
            progress: Progress::default(),
            outcome: None,
            trace,
            tried: Attempts::default(),
            told: None,
            opened,
            recorded: None,
        })
    }

    /// Notes how far the request has come, where it survives this process.
    fn mark(&self) {
        let (Some((_, opened)), Some(event)) = (&self.opened, &self.event) else {
            return;
        };
        let usage = match self.progress.reported {
            Some((usage, _)) => usage,
            None => self.estimate(),
        };
        let passed = i64::try_from(self.started.elapsed().as_micros()).unwrap_or(i64::MAX);
        let reached = Reached {
            contacted: self.contact == Contact::Made,
            counted: self.progress.reported.is_some(),
            attempts: u8::try_from(event.attempts).unwrap_or(u8::MAX),
            status: event.first_byte_us.map_or(0, |_| event.status),
            first_byte_us: event.first_byte_us.unwrap_or(0),
            seen_us: event.admitted_us.saturating_add(passed),
            usage,
        };
        reached.store(opened.progress());
    }

    /// What was delivered, as far as the gateway can tell by itself.
    fn estimate(&self) -> Usage {
        Usage {
            prompt: self.prompt_estimate,
            completion: self.progress.content_events,
            ..Usage::default()
        }
    }

    /// One more upstream is tried.
    pub fn attempt(&mut self, target: &Target) -> u32 {
        let at_us = self.since(Instant::now());
        self.attempt_since(target, at_us)
    }

    fn attempt_since(&mut self, target: &Target, at_us: u64) -> u32 {
        let Some(event) = &mut self.event else {
            return 0;
        };
        let upstream = &target.upstream.name;
        event.attempts += 1;
        // What a failed attempt said of usage is not the client's to pay.
        self.progress = Progress::default();
        let attempts = event.attempts;
        self.tried.begin(attempts, upstream, &target.model, at_us);
        self.owe(upstream);
        if self.contact == Contact::Made {
            self.contact = Contact::Failed;
            self.mark();
        }
        if let Some((spool, opened)) = &self.opened {
            spool.attempt(opened, upstream);
        }
        attempts
    }

    /// What there is of an answer is `upstream`'s, and is booked at its price.
    pub(crate) fn owe(&mut self, upstream: &Arc<str>) {
        let Some(event) = &mut self.event else { return };
        self.price = self
            .gateway
            .prices()
            .rates(&self.model.name, &event.account)
            .at(upstream, event.admitted_us)
            .copied();
        event.upstream = Some(Arc::clone(upstream));
    }

    /// Whether another model may answer: where money is counted it must have a price.
    pub(crate) fn may_serve(&self, model: &Model) -> bool {
        let counts = self
            .reservation
            .as_ref()
            .is_some_and(Reservation::holds_money);
        let (true, Some(event)) = (counts, &self.event) else {
            return true;
        };
        let prices = self.gateway.prices();
        let rates = prices.rates(&model.name, &event.account);
        let mut targets = model.targets.iter();
        targets.all(|target| rates.at(&target.upstream.name, event.admitted_us).is_some())
    }

    /// Another model is to answer from now on: a fallback.
    pub(crate) fn serve(&mut self, model: &Arc<Model>) {
        self.model.metrics.demand.left();
        model.metrics.demand.began();
        self.model = Arc::clone(model);
        self.tried.next_is(Why::Fallback);
        if let Some(event) = &mut self.event {
            event.model_served = Arc::clone(&model.name);
        }
    }

    /// The last upstream tried, and how many were.
    pub fn attempted(&self) -> Option<(Arc<str>, u32)> {
        let event = self.event.as_ref()?;
        Some((Arc::clone(event.upstream.as_ref()?), event.attempts))
    }

    /// The request goes to an engine: from here on it counts, even if it fails. Whether it did not
    /// count before.
    pub fn contacted(&mut self) -> bool {
        self.reach = None;
        let before = std::mem::replace(&mut self.contact, Contact::Made);
        self.mark();
        before == Contact::Never
    }

    /// As [`contacted`](Self::contacted), so far as a connection comes about: a client that leaves
    /// before owes nothing.
    pub fn reaching(&mut self, reach: Arc<Reach>) -> bool {
        let before = self.contact;
        let first = self.contacted();
        self.reach = Some((reach, before));
        first
    }

    /// The attempt has failed and another one is to follow: an engine that answered nothing is owed
    /// nothing while the request waits for the next.
    pub fn failed(&mut self) {
        let nothing = !self.progress.answered && self.progress.reported.is_none();
        if self.contact == Contact::Made && nothing {
            self.contact = Contact::Failed;
            self.mark();
        }
    }

    /// No connection came about, so nothing was sent after all.
    pub fn not_contacted(&mut self) {
        self.contact = Contact::Never;
        self.mark();
    }

    /// How an attempt at `upstream` goes on when its client leaves; `None`: not.
    pub fn linger(&mut self, upstream: &Upstream) -> Option<Linger> {
        let linger = match upstream.on_disconnect {
            OnDisconnect::Abort => None,
            OnDisconnect::Drain(cap) => self.reservation.as_mut().map(|reservation| Linger {
                places: reservation.places(),
                cap,
            }),
        };
        self.lingers = linger.is_some();
        linger
    }

    /// How an attempt goes on that has to be known to its end, whatever the upstream's policy.
    pub fn linger_for(&mut self, time: Duration) -> Option<Linger> {
        let linger = self.reservation.as_mut().map(|reservation| Linger {
            places: reservation.places(),
            cap: Cap {
                time,
                bytes: u64::MAX,
            },
        });
        self.lingers = linger.is_some();
        linger
    }

    /// The client has left, and not because the gateway stopped.
    pub fn client_gone(&mut self) {
        self.client_gone = true;
    }

    /// The answer's head is out, with `status`.
    pub fn committed(&mut self, status: u16) {
        self.first_byte();
        self.status(status);
    }

    /// What the client was told; one that has left is told nothing more.
    fn status(&mut self, status: u16) {
        if let Some(event) = &mut self.event
            && !self.slot.is_cancelled()
        {
            event.status = status;
        }
    }

    /// The first byte of the answer is there.
    pub fn first_byte(&mut self) {
        if self.first_token.is_none() {
            let now = Instant::now();
            self.first_token = Some(now);
            if let Some(event) = &mut self.event {
                let waited = (now - self.started).as_micros() as i64;
                event.first_byte_us = Some(event.admitted_us + waited);
            }
        }
    }

    /// The input is estimated anew, by what is known now, tokens.
    pub(crate) fn estimate_input(&mut self, tokens: u64) {
        self.prompt_estimate = tokens;
    }

    /// The stream has delivered more.
    pub fn advance(&mut self, progress: Progress) {
        self.progress = progress;
        let delivered = match progress.reported {
            Some((usage, _)) => usage.total(),
            None => self.prompt_estimate + progress.content_events,
        };
        if let Some(reservation) = &mut self.reservation
            && reservation.charge_progress(delivered)
            && let Some(price) = &self.price
        {
            let usage = match progress.reported {
                Some((usage, _)) => usage,
                None => Usage {
                    prompt: self.prompt_estimate,
                    completion: progress.content_events,
                    ..Usage::default()
                },
            };
            let duration_us = self.started.elapsed().as_micros() as u64;
            reservation.spend_progress(price.nano(&usage, duration_us));
        }
        self.mark();
    }

    /// The answer's status and how it ended.
    pub fn close(
        &mut self,
        outcome: Outcome,
        status: u16,
        error: Option<Kind>,
        finish: Option<&str>,
    ) {
        self.outcome = Some(outcome);
        self.status(status);
        if let Some(event) = &mut self.event {
            event.error_kind = error.map(Kind::name);
            event.finish_reason = finish.map(str::to_owned);
        }
    }
}
