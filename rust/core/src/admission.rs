//! Admission: one plain call from a request's bytes to a running exchange, or to a clear refusal.
use std::sync::Arc;
use std::time::{Duration, Instant};

use bytes::Bytes;
use http::Method;
use http::header::CONTENT_TYPE;

use crate::arrival::Arrival;
use crate::door::{self, Door, Voice, Way};
use crate::edits::Edits;
use crate::error::{Error, Kind};
use crate::exchange::{self, Job, drive};
use crate::gateway::{Endpoint, Gateway, Request};
use crate::guard;
use crate::headers::{rate_headers, request_id_header, upstream_headers};
use crate::idempotency::Entry;
use crate::keys::Key;
use crate::limit::{Ask, Declined, GRANT_WAIT, Meter, Meters, Now, Refusal, Reservation, Wanting};
use crate::pass::object::{Act, Object};
use crate::pass::upload::Upload;
use crate::peek::Peek;
use crate::record::{Opening, Record};
use crate::refusals::{limited, unpriced};
use crate::relay::Shape;
use crate::slot::{Answering, Headers, Slot};
use crate::snapshot::Model;
use crate::tags;
use crate::usage::Usage;

mod asked;
mod cost;
mod foreign;
mod kept;
mod recall;
mod routing;
mod session;

pub(crate) use asked::{permitted_model, sound_tokens};
pub(crate) use kept::Kept;
pub(crate) use session::{Asking, Caller, Session};

use asked::Asked;
use cost::{Cost, text_of};
use routing::Seen;

/// How often a request asks the store that machines share while it waits.
const MAX_ASKS: u32 = 4;

impl Gateway {
    /// Decides a request and starts it. A refusal is an exchange too, answered already.
    pub fn admit(
        self: &Arc<Self>,
        endpoint: Endpoint,
        request: Request<'_>,
        body: Bytes,
    ) -> Arc<Slot> {
        let asked = Asked {
            endpoint,
            body,
            native: None,
            upload: None,
            object: None,
        };
        self.start(Door::OpenAi, request, asked, None, Arrival::now())
    }

    /// Decides a request that sends a file, and starts it.
    pub fn admit_file(
        self: &Arc<Self>,
        object: Object,
        request: Request<'_>,
        upload: Arc<Upload>,
    ) -> Arc<Slot> {
        if let Some(refusal) = self.unrepeatable(&request) {
            return refusal;
        }
        let asked = Asked {
            endpoint: object.endpoint,
            body: Bytes::new(),
            native: None,
            upload: Some(upload),
            object: Some(object),
        };
        self.start(Door::OpenAi, request, asked, None, Arrival::now())
    }

    /// Decides any other request about files and batches, and starts it.
    pub fn admit_object(
        self: &Arc<Self>,
        object: Object,
        request: Request<'_>,
        body: Bytes,
    ) -> Arc<Slot> {
        let repeatable = object.method() == Method::POST;
        if repeatable && let Some(slot) = self.once(Entry::Object(object.clone()), request, &body) {
            return slot;
        }
        let asked = Asked {
            endpoint: object.endpoint,
            body,
            native: None,
            upload: None,
            object: Some(object),
        };
        self.start(Door::OpenAi, request, asked, None, Arrival::now())
    }

    /// Decides a request whose body still comes, and starts it. A refusal is an exchange too, answered
    /// already.
    pub fn admit_upload(
        self: &Arc<Self>,
        endpoint: Endpoint,
        request: Request<'_>,
        upload: Arc<Upload>,
    ) -> Arc<Slot> {
        if let Some(refusal) = self.unrepeatable(&request) {
            return refusal;
        }
        let asked = Asked {
            endpoint,
            body: Bytes::new(),
            native: None,
            upload: Some(upload),
            object: None,
        };
        self.start(Door::OpenAi, request, asked, None, Arrival::now())
    }

    /// Decides a request as it came in at a door, and starts it. A refusal is an exchange too, answered
    /// already, in the door's words.
    pub fn enter(
        self: &Arc<Self>,
        way: &'static Way,
        request: Request<'_>,
        body: Bytes,
    ) -> Arc<Slot> {
        if let Some(slot) = self.once(Entry::Way(way), request, &body) {
            return slot;
        }
        if way.door == Door::OpenAi {
            return self.admit(way.endpoint, request, body);
        }
        let arrival = Arrival::now();
        if way.door == Door::Count {
            return self.count(way, request, body, &arrival);
        }
        if way.door == Door::Responses {
            return self.respond(way, request, body, arrival);
        }
        let id = request_id_header(request.request_id, &arrival.id);
        let read = self
            .authenticate(&request)
            .and_then(|_| door::enter(way, body, id.1.to_str().unwrap_or_default()));
        match read {
            Ok(entered) => {
                let asked = Asked {
                    endpoint: way.endpoint,
                    body: entered.body,
                    native: entered.native.map(|native| native.asking(request.beta)),
                    upload: None,
                    object: None,
                };
                self.start(way.door, request, asked, entered.voice, arrival)
            }
            Err(error) => Arc::new(self.refusal(way.door, &error, way.door.greeting(id))),
        }
    }

    fn start(
        self: &Arc<Self>,
        door: Door,
        request: Request<'_>,
        asked: Asked,
        voice: Option<Box<dyn Voice>>,
        arrival: Arrival,
    ) -> Arc<Slot> {
        let id = request_id_header(request.request_id, &arrival.id);
        let mut answer_headers = door.greeting(id);
        let slot = Arc::new(Slot::of(door, voice));
        let decided = self.decide(&asked, request, &arrival, &mut answer_headers, &slot);
        if !matches!(decided, Err(No::Wanting(_))) {
            self.metrics
                .admission
                .observe_duration(arrival.at.elapsed());
        }
        let driver = match decided {
            Ok((job, record)) => self.runtime.spawn(drive(job, record)),
            Err(No::Error(error)) => {
                self.note(&error, &answer_headers);
                slot.refuse(&error, answer_headers);
                return slot;
            }
            Err(No::Wanting(wanting)) => {
                let request = Kept::of(&request);
                let (gateway, slot) = (Arc::clone(self), Arc::clone(&slot));
                self.runtime.spawn(async move {
                    gateway
                        .admit_granted(asked, request, arrival, slot, wanting)
                        .await;
                })
            }
        };
        slot.driven_by(driver.abort_handle());
        slot
    }

    /// The rest of an admission that asks the store that machines share, for a moment.
    async fn admit_granted(
        self: Arc<Self>,
        asked: Asked,
        request: Kept,
        arrival: Arrival,
        slot: Arc<Slot>,
        mut wanting: Wanting,
    ) {
        // Not since its arrival: it may have waited for something else before.
        let since = Instant::now();
        let answer = Answering(Arc::clone(&slot));
        let request = request.request();
        let id = request_id_header(request.request_id, &arrival.id);
        let mut headers = slot.door().greeting(id);
        let mut asks = 0;
        let decided = loop {
            let left = GRANT_WAIT.saturating_sub(since.elapsed());
            wanting.answered(left, || self.now().mono).await;
            asks += 1;
            let decided = self.decide(&asked, request, &arrival, &mut headers, &slot);
            match decided {
                // What came was for several, and another one was quicker.
                Err(No::Wanting(again)) if asks < MAX_ASKS && since.elapsed() < GRANT_WAIT => {
                    wanting = again;
                }
                decided => break decided,
            }
        };
        self.metrics
            .admission
            .observe_duration(arrival.at.elapsed());
        let error = match decided {
            Ok((job, record)) => {
                drive(job, record).await;
                return;
            }
            Err(No::Error(error)) => error,
            Err(No::Wanting(wanting)) => {
                self.refused(&wanting.into_refusal(), 0, self.now(), &mut headers)
            }
        };
        self.note(&error, &headers);
        answer.0.door().limits(&mut headers, self.now().unix_s);
        answer.0.refuse(&error, headers);
    }

    /// The key of a request that may be served now.
    pub fn whose(&self, request: &Request<'_>) -> Result<Arc<Key>, Error> {
        let key = self.authenticate(request)?;
        if key.admin {
            return Err(Error::new(
                Kind::Forbidden,
                "An admin key does not open the inference API.",
            ));
        }
        if self.is_refusing() {
            return Err(Error::new(
                Kind::Unavailable,
                "The gateway is shutting down. Please try again.",
            )
            .retry_after(Duration::from_secs(1)));
        }
        Ok(key)
    }

    fn decide(
        self: &Arc<Self>,
        entered: &Asked,
        request: Request<'_>,
        arrival: &Arrival,
        answer_headers: &mut Headers,
        slot: &Arc<Slot>,
    ) -> Result<(Box<Job>, Record), No> {
        let (endpoint, bytes) = (entered.endpoint, &entered.body);
        let key = self.whose(&request)?;
        let tags = request.tags.map(tags::parse).transpose()?.flatten();
        let body = entered.read(&key, request.content_type)?;
        let snapshot = self.snapshot.load();
        let (asked, model) = entered.model(&key, &snapshot, &body)?;
        guard::check(endpoint, &body, &model.known)?;
        if entered.object.is_none() {
            let own = entered.native.as_ref().map_or(bytes, |own| &own.body);
            foreign::check(&snapshot, model, own)?;
        }
        let whose = (&*key, &**model, arrival.unix_us);
        let reserved = self.reserve(whose, endpoint, &body, answer_headers);
        slot.door().limits(answer_headers, self.now().unix_s);
        let (reservation, cost) = reserved?;
        let trace = self.traces.of(request.traceparent, &arrival.id);
        let opening = Opening {
            arrival: *arrival,
            trace: trace.clone(),
            tags,
            request_id: answer_headers
                .first()
                .and_then(|(_, id)| id.to_str().ok())
                .unwrap_or_default()
                .to_owned(),
            account: Arc::clone(&key.account),
            key_id: key.id,
            model_asked: asked.clone(),
            endpoint,
            front: request.front,
            stream: body.stream,
            prompt_estimate: cost.prompt,
            prompt_bytes: match text_of(endpoint, &body) {
                (bytes, 0) => bytes,
                // Token ids teach nothing of text.
                _ => 0,
            },
        };
        let mut record = Record::open(self, slot, model, reservation, opening)?;
        let seen = Seen {
            request,
            bytes,
            body: &body,
            endpoint,
            arrival,
        };
        let (ask, choice) = self.place(&key, model, &seen, &cost);
        if let Some(log) = self.prompt_log() {
            let settings = snapshot.prompt_logs.as_ref();
            record.log = log.capture(choice, *arrival.id.as_bytes(), settings, bytes);
        }
        let prompts = match endpoint {
            Endpoint::Completions => body.prompt_items.max(1),
            _ => 1,
        };
        let choices = body.n.unwrap_or(1).saturating_mul(prompts);
        let mut headers = upstream_headers(&request, answer_headers);
        if let Some(upload) = &entered.upload {
            headers.insert(CONTENT_TYPE, upload.content_type().clone());
        }
        let job = Job {
            gateway: Arc::clone(self),
            slot: Arc::clone(slot),
            model: Arc::clone(model),
            model_asked: asked,
            endpoint,
            stream: body.stream && endpoint.is_text(),
            passes: match &entered.object {
                None => endpoint.passes(body.stream),
                Some(object) => object.act == Act::Content,
            },
            object: entered.object.clone(),
            upload: entered.upload.clone(),
            shape: Shape {
                include_usage: body.include_usage,
                continuous_usage: body.continuous_usage_stats || slot.door().counts_early(),
                completions: endpoint == Endpoint::Completions,
                choices,
                max_event_bytes: snapshot.max_event_bytes,
                asked: exchange::asked(body.max_completion_tokens.is_some()),
            },
            edits: Edits::of(&body),
            body: bytes.clone(),
            headers,
            trace,
            answer_headers: std::mem::take(answer_headers),
            single: choices == 1 && endpoint.is_text(),
            rid: arrival.id.simple().to_string(),
            max_answer_bytes: snapshot.max_answer_bytes,
            ask,
            total: request.deadline.map_or(model.timeouts.total, |deadline| {
                deadline.min(model.timeouts.total)
            }),
            native: entered.native.clone(),
            account: Arc::clone(&key.account),
            key_id: key.id,
        };
        self.copy_to_shadow(&job);
        Ok((Box::new(job), record))
    }

    /// Takes what the request may cost from every limit that applies, or says which one refuses.
    /// The answer's headers tell the tightest limit either way.
    fn reserve(
        &self,
        (key, model, admitted_us): (&Key, &Model, i64),
        endpoint: Endpoint,
        body: &Peek<'_>,
        answer_headers: &mut Headers,
    ) -> Result<(Reservation, Cost), No> {
        let meters = self.meters(key, model);
        let burst = meters
            .iter()
            .flatten()
            .filter_map(|meter| meter.token_burst())
            .min();
        let cost = Cost::of(body, endpoint, model, burst);
        let nano = if meters.iter().flatten().any(|meter| meter.has_budget()) {
            self.dearest(key, model, &cost, admitted_us)
                .ok_or_else(|| unpriced(&model.name))?
        } else {
            0
        };
        let now = self.now();
        let ask = Ask {
            tokens: cost.reserve,
            nano,
        };
        match Reservation::admit(meters, now, ask) {
            Ok((reservation, fill)) => {
                rate_headers(&fill, answer_headers);
                Ok((reservation, cost))
            }
            Err(Declined::Refused(refusal)) => {
                let error = self.refused(&refusal, cost.reserve, now, answer_headers);
                Err(error.into())
            }
            Err(Declined::Wanting(wanting)) => Err(No::Wanting(wanting)),
        }
    }

    /// What a request may cost at the dearest of the model's upstreams, or of its fallbacks', nano-USD;
    /// `None` if one of the model's own has no price. How long it will take is not known: time is
    /// spent as it passes.
    fn dearest(&self, key: &Key, model: &Model, cost: &Cost, admitted_us: i64) -> Option<u64> {
        let prices = self.prices();
        let usage = Usage {
            prompt: cost.prompt,
            completion: cost.output,
            ..Usage::default()
        };
        let of = |model: &Model| {
            let rates = prices.rates(&model.name, &key.account);
            model.targets.iter().try_fold(0, |most, target| {
                let price = rates.at(&target.upstream.name, admitted_us)?;
                Some(price.nano(&usage, 0).max(most))
            })
        };
        let own = of(model)?;
        // One without a price does not answer for who has a budget.
        let others = model.fallbacks().filter_map(|name| of(&*self.model(name)?));
        Some(others.fold(own, u64::max))
    }

    /// A limit refuses a request of `tokens`.
    pub(crate) fn refused(
        &self,
        refusal: &Refusal,
        tokens: u64,
        now: Now,
        headers: &mut Headers,
    ) -> Error {
        self.metrics.refused(refusal.scope, refusal.dimension);
        rate_headers(&refusal.state, headers);
        limited(refusal, tokens, now.unix_s)
    }

    /// The meters of a key's requests for a model, one a scope.
    pub(crate) fn meters(&self, key: &Key, model: &Model) -> Meters {
        let subjects = self.subjects.load();
        let used = |meter: &Arc<Meter>| (!meter.is_open()).then(|| Arc::clone(meter));
        [
            subjects
                .accounts
                .get(&*key.account)
                .and_then(|account| used(&account.metered.meter)),
            used(key.meter()),
            subjects
                .models
                .get(&*model.name)
                .and_then(|metered| used(&metered.meter)),
            key.per_model
                .get(&*model.name)
                .and_then(|metered| used(&metered.meter)),
        ]
    }
}

/// Why a request does not start at once.
enum No {
    /// It never will.
    Error(Error),
    /// A limit has to ask the store that machines share.
    Wanting(Wanting),
}

impl From<Error> for No {
    fn from(error: Error) -> Self {
        Self::Error(error)
    }
}
