//! Admission: one plain call from a request's bytes to a running exchange, or to a clear refusal.
use std::sync::Arc;
use std::sync::atomic::{AtomicBool, AtomicUsize, Ordering};
use std::time::{Duration, Instant, SystemTime, UNIX_EPOCH};

use arc_swap::ArcSwap;
use bytes::Bytes;
use crossbeam_queue::SegQueue;
use http::{HeaderName, HeaderValue};
use parking_lot::RwLock;
use tokio::runtime::Handle;
use tokio::sync::Notify;

use crate::counters::Counters;
use crate::edits::Edits;
use crate::error::{Error, Kind};
use crate::exchange::{self, Job, drive};
use crate::headers::{bearer, rate_headers, request_id_header, upstream_headers};
use crate::keys::{Denied, Key, KeySpec, Keys};
use crate::limit::lease::{LeaseCounters, Leases};
use crate::limit::{
    Ask, Declined, GRANT_WAIT, Meter, Meters, Nanos, Now, Refusal, Region, Reservation, Wanting,
};
use crate::peek::{Peek, peek};
use crate::queue::{self, Priority};
use crate::record::{Opening, Record, UsageEvent};
use crate::refusals::{complete, find_model, json_content, limited, unpriced, unreadable};
use crate::relay::Shape;
use crate::slot::{Answering, Head, Headers, Slot, error_headers};
use crate::snapshot::{Model, Snapshot, SnapshotSpec};
use crate::subjects::{Ground, SubjectSpec, Subjects};

/// Events waiting for the database beyond this are dropped, and counted.
const MAX_EVENTS: usize = 500_000;

/// How often a request asks the store that machines share while it waits.
const MAX_ASKS: u32 = 4;

/// Which inference API.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum Endpoint {
    /// `/v1/chat/completions`
    Chat,
    /// `/v1/completions`
    Completions,
    /// `/v1/embeddings`
    Embeddings,
}

impl Endpoint {
    /// All, in the order of their index.
    pub const ALL: [Self; 3] = [Self::Chat, Self::Completions, Self::Embeddings];

    /// The path, ours and the engine's.
    pub const fn path(self) -> &'static str {
        match self {
            Self::Chat => "/v1/chat/completions",
            Self::Completions => "/v1/completions",
            Self::Embeddings => "/v1/embeddings",
        }
    }

    /// The API of a path.
    pub fn of_path(path: &str) -> Option<Self> {
        Self::ALL
            .into_iter()
            .find(|endpoint| endpoint.path() == path)
    }

    /// The name in metrics and usage.
    pub const fn name(self) -> &'static str {
        match self {
            Self::Chat => "chat",
            Self::Completions => "completions",
            Self::Embeddings => "embeddings",
        }
    }
}

/// A request as a front end hands it over. Everything is borrowed.
#[derive(Clone, Copy, Debug, Default)]
pub struct Request<'a> {
    /// `authorization`.
    pub authorization: Option<&'a [u8]>,
    /// `content-type`.
    pub content_type: Option<&'a [u8]>,
    /// `x-request-id`.
    pub request_id: Option<&'a [u8]>,
    /// `traceparent` (W3C Trace Context).
    pub traceparent: Option<&'a [u8]>,
    /// `tracestate`.
    pub tracestate: Option<&'a [u8]>,
}

/// What the log is told of a failure.
pub type Note = Box<dyn Fn(&Error, &str) + Send + Sync>;

/// The usage events that wait to be written: the seam where a crash-proof spool belongs.
#[derive(Default)]
pub struct Events {
    queue: SegQueue<UsageEvent>,
    waiting: AtomicUsize,
}

impl Events {
    /// Books one event.
    pub fn push(&self, event: UsageEvent) -> bool {
        if self.waiting.fetch_add(1, Ordering::Relaxed) >= MAX_EVENTS {
            self.waiting.fetch_sub(1, Ordering::Relaxed);
            return false;
        }
        self.queue.push(event);
        true
    }

    /// Takes up to `limit` events, oldest first.
    pub fn take(&self, limit: usize) -> Vec<UsageEvent> {
        let mut taken = Vec::with_capacity(limit.min(self.len()));
        while taken.len() < limit
            && let Some(event) = self.queue.pop()
        {
            taken.push(event);
        }
        self.waiting.fetch_sub(taken.len(), Ordering::Relaxed);
        taken
    }

    /// How many wait.
    pub fn len(&self) -> usize {
        self.waiting.load(Ordering::Relaxed)
    }

    /// Whether none waits.
    pub fn is_empty(&self) -> bool {
        self.len() == 0
    }
}

/// The gateway's state: what every request is decided by.
pub struct Gateway {
    /// All API keys.
    pub keys: Keys,
    /// Finished requests that wait for the database.
    pub events: Events,
    /// Counters and histograms.
    pub metrics: Counters,
    /// Limits shared with other machines; in use once activated.
    pub leases: Arc<Leases>,
    snapshot: ArcSwap<Snapshot>,
    subjects: ArcSwap<Subjects>,
    region: Arc<Region>,
    runtime: Handle,
    keys_current: AtomicBool,
    draining: AtomicBool,
    halted: AtomicBool,
    halting: Notify,
    note: RwLock<Option<Note>>,
}

impl Gateway {
    /// A gateway without keys and models, whose exchanges run on `runtime` and whose limits live in
    /// `region`.
    pub fn new(runtime: Handle, region: Arc<Region>) -> Self {
        let metrics = Counters::new();
        Self {
            leases: Arc::new(Leases::new(LeaseCounters::registered(&metrics.registry))),
            keys: Keys::default(),
            events: Events::default(),
            metrics,
            snapshot: ArcSwap::from_pointee(Snapshot::default()),
            subjects: ArcSwap::default(),
            region,
            runtime,
            keys_current: AtomicBool::new(false),
            draining: AtomicBool::new(false),
            halted: AtomicBool::new(false),
            halting: Notify::new(),
            note: RwLock::new(None),
        }
    }

    /// The instant, on a monotonic clock that all processes of this machine share and on the
    /// calendar's.
    pub fn now(&self) -> Now {
        let mono = rustix::time::clock_gettime(rustix::time::ClockId::Monotonic);
        let unix = rustix::time::clock_gettime(rustix::time::ClockId::Realtime);
        Now {
            mono: mono.tv_sec as Nanos * 1_000_000_000 + mono.tv_nsec as Nanos,
            unix_s: unix.tv_sec,
        }
    }

    /// Sets where failures are told.
    pub fn on_failure(&self, note: Note) {
        *self.note.write() = Some(note);
    }

    /// Tells the log of a failure.
    pub fn note(&self, error: &Error, answer_headers: &[(HeaderName, HeaderValue)]) {
        self.metrics.failed(error.kind);
        if error.cause.is_none() {
            return;
        }
        if let Some(note) = &*self.note.read() {
            let id = answer_headers
                .iter()
                .find(|(name, _)| name == "x-request-id");
            note(
                error,
                id.and_then(|(_, value)| value.to_str().ok())
                    .unwrap_or_default(),
            );
        }
    }

    /// Swaps the configuration in, whole; on an error nothing changes.
    pub fn configure(&self, spec: SnapshotSpec) -> Result<(), String> {
        let next = Snapshot::build(spec, &self.snapshot.load(), &self.metrics, &self.region)?;
        self.snapshot.store(Arc::new(next));
        Ok(())
    }

    /// Takes key records in; see [`Keys::load`].
    pub fn load_keys(&self, specs: Vec<KeySpec>, replace: bool) -> Result<usize, String> {
        let count = self
            .keys
            .load(specs, replace, &self.ground(), self.now().mono)?;
        self.keys_current(true);
        self.metrics
            .keys
            .set(i64::try_from(count).unwrap_or(i64::MAX));
        Ok(count)
    }

    /// Takes the limits of all accounts and models in; on an error nothing changes.
    pub fn load_limits(&self, specs: Vec<SubjectSpec>) -> Result<(), String> {
        let next = self
            .subjects
            .load()
            .next(specs, &self.ground(), self.now().mono)?;
        self.subjects.store(Arc::new(next));
        Ok(())
    }

    /// The accounts and models that have limits.
    pub(crate) fn subjects(&self) -> arc_swap::Guard<Arc<Subjects>> {
        self.subjects.load()
    }

    /// Where limits are kept.
    fn ground(&self) -> Ground<'_> {
        Ground {
            region: &self.region,
            leases: self.leases.is_active().then_some(&self.leases),
        }
    }

    /// The memory of the limits.
    pub fn region(&self) -> &Arc<Region> {
        &self.region
    }

    /// The meters of a key's requests for a model, one a scope.
    fn meters(&self, key: &Key, model: &Model) -> Meters {
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

    /// Whether the keys are those of the database. While they are not, an unknown key may be a new
    /// one, so it is told to come back rather than that it is wrong.
    pub fn keys_current(&self, current: bool) {
        self.keys_current.store(current, Ordering::Release);
    }

    /// From now on new requests are refused; running ones go on.
    pub fn drain(&self) {
        self.draining.store(true, Ordering::Release);
    }

    /// Ends what still runs, by the gateway, not by its client: an answer that has begun gets an
    /// error as its last event, any other a 503.
    pub fn halt(&self) {
        self.halted.store(true, Ordering::Release);
        self.halting.notify_waiters();
    }

    /// Resolves when [`Gateway::halt`] is called.
    pub fn halting(&self) -> tokio::sync::futures::Notified<'_> {
        self.halting.notified()
    }

    /// Whether [`Gateway::halt`] was called.
    pub fn is_halted(&self) -> bool {
        self.halted.load(Ordering::Acquire)
    }

    /// Whether [`Gateway::drain`] was called.
    pub fn is_draining(&self) -> bool {
        self.draining.load(Ordering::Acquire)
    }

    /// The models a key may use, sorted, as `(name, …)` of the models' own names and aliases.
    pub fn models(&self, key: &Key) -> Vec<String> {
        let snapshot = self.snapshot.load();
        let mut names: Vec<String> = snapshot
            .models
            .iter()
            .filter(|(asked, model)| key.may_use(asked, &model.name))
            .map(|(asked, _)| asked.to_string())
            .collect();
        names.sort();
        names
    }

    /// The key of a request.
    pub fn authenticate(&self, authorization: Option<&[u8]>) -> Result<Arc<Key>, Error> {
        let unix_s = SystemTime::now()
            .duration_since(UNIX_EPOCH)
            .map_or(0.0, |d| d.as_secs_f64());
        let denied = match authorization.map(bearer) {
            None => Denied::Missing,
            Some(None) => Denied::Malformed,
            Some(Some(text)) => match self.keys.authenticate(text, unix_s) {
                Ok(key) => return Ok(key),
                Err(denied) => denied,
            },
        };
        if denied == Denied::Unknown && !self.keys_current.load(Ordering::Acquire) {
            return Err(Error::new(
                Kind::Unavailable,
                "This API key cannot be checked now. Please try again.",
            ));
        }
        let (message, code) = match denied {
            Denied::Missing => (
                "You didn't provide an API key. Send it in the Authorization header: 'Authorization: Bearer fb-…'.",
                "missing_api_key",
            ),
            Denied::Malformed | Denied::Unknown => {
                ("Incorrect API key provided.", "invalid_api_key")
            }
            Denied::Revoked => ("This API key has been revoked.", "api_key_revoked"),
            Denied::Expired => ("This API key has expired.", "api_key_expired"),
        };
        Err(Error::new(Kind::Unauthenticated, message).code(code))
    }

    /// The admin key of a request; any other key is refused.
    pub fn authenticate_admin(&self, authorization: Option<&[u8]>) -> Result<Arc<Key>, Error> {
        let key = self.authenticate(authorization)?;
        if !key.admin {
            return Err(Error::new(
                Kind::Forbidden,
                "This API key does not open the admin API.",
            ));
        }
        Ok(key)
    }

    /// Decides a request and starts it. A refusal is an exchange too, answered already.
    pub fn admit(
        self: &Arc<Self>,
        endpoint: Endpoint,
        request: Request<'_>,
        body: Bytes,
    ) -> Arc<Slot> {
        let began = Instant::now();
        let id = uuid::Uuid::now_v7();
        let mut answer_headers = Vec::with_capacity(8);
        answer_headers.push(request_id_header(request.request_id, &id));
        let slot = Arc::new(Slot::new());
        let decided = self.decide(endpoint, request, &body, &id, &mut answer_headers, &slot);
        if !matches!(decided, Err(No::Wanting(_))) {
            self.metrics.admission.observe_duration(began.elapsed());
        }
        let driver = match decided {
            Ok((job, record)) => self.runtime.spawn(drive(*job, record)),
            Err(No::Error(error)) => return Arc::new(self.refusal(&error, answer_headers)),
            Err(No::Wanting(wanting)) => {
                let request = Kept::of(&request);
                let (gateway, slot) = (Arc::clone(self), Arc::clone(&slot));
                self.runtime.spawn(async move {
                    gateway
                        .admit_granted(endpoint, request, body, (id, began), slot, wanting)
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
        endpoint: Endpoint,
        request: Kept,
        body: Bytes,
        (id, began): (uuid::Uuid, Instant),
        slot: Arc<Slot>,
        mut wanting: Wanting,
    ) {
        let answer = Answering(Arc::clone(&slot));
        let request = request.request();
        let mut headers = vec![request_id_header(request.request_id, &id)];
        let mut asked = 0;
        let decided = loop {
            let left = GRANT_WAIT.saturating_sub(began.elapsed());
            wanting.answered(left, || self.now().mono).await;
            asked += 1;
            let decided = self.decide(endpoint, request, &body, &id, &mut headers, &slot);
            match decided {
                // What came was for several, and another one was quicker.
                Err(No::Wanting(again)) if asked < MAX_ASKS && began.elapsed() < GRANT_WAIT => {
                    wanting = again;
                }
                decided => break decided,
            }
        };
        self.metrics.admission.observe_duration(began.elapsed());
        let error = match decided {
            Ok((job, record)) => {
                drive(*job, record).await;
                return;
            }
            Err(No::Error(error)) => error,
            Err(No::Wanting(wanting)) => {
                self.refused(&wanting.into_refusal(), 0, self.now(), &mut headers)
            }
        };
        answer.0.start(self.refusal_head(&error, headers));
    }

    /// Asks an upstream for `path`: its models, or whether it is ready. Not admitted, not booked.
    /// An upstream that cannot be reached within `limit` is an error's answer.
    pub fn fetch(self: &Arc<Self>, upstream: &str, path: String, limit: Duration) -> Arc<Slot> {
        let Some(upstream) = self.snapshot.load().upstream(upstream) else {
            let error = Error::new(Kind::NotFound, "There is no such upstream.");
            return Arc::new(self.refusal(&error, Vec::new()));
        };
        let slot = Arc::new(Slot::new());
        let (gateway, answer) = (Arc::clone(self), Answering(Arc::clone(&slot)));
        let task = self.runtime.spawn(async move {
            let head = match exchange::fetch(&upstream, &path, limit).await {
                Ok((status, body)) => Head {
                    status,
                    headers: Vec::new(),
                    body,
                    more: false,
                },
                Err(error) => {
                    gateway.note(&error, &[]);
                    Head {
                        status: error.kind.status(),
                        headers: Vec::new(),
                        body: error.openai_body(),
                        more: false,
                    }
                }
            };
            answer.0.start(head);
        });
        slot.driven_by(task.abort_handle());
        slot
    }

    /// An answered exchange that holds an error.
    pub fn refusal(&self, error: &Error, headers: Headers) -> Slot {
        Slot::answered(self.refusal_head(error, headers))
    }

    fn refusal_head(&self, error: &Error, mut headers: Headers) -> Head {
        self.note(error, &headers);
        headers.extend(error_headers(error));
        Head {
            status: error.kind.status(),
            headers,
            body: error.openai_body(),
            more: false,
        }
    }

    fn decide(
        self: &Arc<Self>,
        endpoint: Endpoint,
        request: Request<'_>,
        bytes: &Bytes,
        id: &uuid::Uuid,
        answer_headers: &mut Headers,
        slot: &Arc<Slot>,
    ) -> Result<(Box<Job>, Record), No> {
        let key = self.authenticate(request.authorization)?;
        if key.admin {
            return Err(Error::new(
                Kind::Forbidden,
                "An admin key does not open the inference API.",
            )
            .into());
        }
        if self.draining.load(Ordering::Acquire) {
            return Err(Error::new(
                Kind::Unavailable,
                "The gateway is shutting down. Please try again.",
            )
            .retry_after(Duration::from_secs(1))
            .into());
        }
        json_content(request.content_type)?;
        let body = peek(bytes).map_err(|error| unreadable(&error))?;
        complete(endpoint, &body)?;
        let snapshot = self.snapshot.load();
        let (asked, model) = find_model(&snapshot, &body)?;
        if !key.may_use(&asked, &model.name) {
            return Err(Error::new(
                Kind::Forbidden,
                format!("This API key may not use the model '{asked}'."),
            )
            .param("model")
            .code("model_not_allowed")
            .into());
        }
        let (reservation, cost) = self.reserve(&key, model, endpoint, &body, answer_headers)?;
        let opening = Opening {
            event_id: *id.as_bytes(),
            request_id: answer_headers
                .first()
                .and_then(|(_, id)| id.to_str().ok())
                .unwrap_or_default()
                .to_owned(),
            account: Arc::clone(&key.account),
            key_id: key.id,
            model_asked: asked.clone(),
            endpoint,
            stream: body.stream,
            prompt_estimate: cost.prompt,
            prompt_bytes: if body.prompt_token_ids > 0 {
                0
            } else {
                body.prompt_bytes
            },
        };
        let record = Record::open(self, slot, model, reservation, opening);
        let prompts = match endpoint {
            Endpoint::Completions => body.prompt_items.max(1),
            Endpoint::Chat | Endpoint::Embeddings => 1,
        };
        let choices = body.n.unwrap_or(1).saturating_mul(prompts);
        let job = Job {
            gateway: Arc::clone(self),
            slot: Arc::clone(slot),
            model: Arc::clone(model),
            model_asked: asked,
            endpoint,
            stream: body.stream && endpoint != Endpoint::Embeddings,
            shape: Shape {
                include_usage: body.include_usage,
                continuous_usage: body.continuous_usage_stats,
                completions: endpoint == Endpoint::Completions,
                choices,
                max_event_bytes: snapshot.max_event_bytes,
                asked: exchange::asked(body.max_completion_tokens.is_some()),
            },
            edits: Edits::of(&body),
            body: bytes.clone(),
            headers: upstream_headers(&request, answer_headers),
            answer_headers: std::mem::take(answer_headers),
            single: choices == 1 && endpoint != Endpoint::Embeddings,
            rid: id.simple().to_string(),
            max_answer_bytes: snapshot.max_answer_bytes,
            ask: self.place(&key, cost.reserve),
        };
        Ok((Box::new(job), record))
    }

    /// How a request of `tokens` stands in a queue.
    fn place(&self, key: &Key, tokens: u64) -> queue::Ask {
        let subjects = self.subjects.load();
        let account = subjects.accounts.get(&*key.account);
        queue::Ask {
            account: Arc::clone(&key.account),
            weight: account.map_or(1.0, |account| account.weight),
            priority: if key.batch {
                Priority::Batch
            } else {
                Priority::Interactive
            },
            tokens,
        }
    }

    /// Takes what the request may cost from every limit that applies, or says which one refuses.
    /// The answer's headers tell the tightest limit either way.
    fn reserve(
        &self,
        key: &Key,
        model: &Model,
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
        if model.price.is_none() && meters.iter().flatten().any(|meter| meter.has_budget()) {
            return Err(unpriced(&model.name).into());
        }
        let now = self.now();
        let ask = Ask {
            tokens: cost.reserve,
            nano: cost.nano,
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

    /// A limit refuses a request of `tokens`.
    fn refused(&self, refusal: &Refusal, tokens: u64, now: Now, headers: &mut Headers) -> Error {
        self.metrics.refused(refusal.scope, refusal.dimension);
        rate_headers(&refusal.state, headers);
        limited(refusal, tokens, now.unix_s)
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

/// A request that outlives its front end's call.
struct Kept([Option<Vec<u8>>; 5]);

impl Kept {
    fn of(request: &Request<'_>) -> Self {
        let fields = [
            request.authorization,
            request.content_type,
            request.request_id,
            request.traceparent,
            request.tracestate,
        ];
        Self(fields.map(|field| field.map(<[u8]>::to_vec)))
    }

    fn request(&self) -> Request<'_> {
        let [
            authorization,
            content_type,
            request_id,
            traceparent,
            tracestate,
        ] = self.0.each_ref().map(Option::as_deref);
        Request {
            authorization,
            content_type,
            request_id,
            traceparent,
            tracestate,
        }
    }
}

/// What a request is taken to cost until its usage is known.
struct Cost {
    /// Input tokens.
    prompt: u64,
    /// Tokens to reserve.
    reserve: u64,
    /// Money to reserve, nano-USD; 0 without a price.
    nano: u64,
}

impl Cost {
    /// Input by the model's learned bytes per token, output by the request's cap, or by what the
    /// model's answers usually are and then at most half the burst.
    fn of(body: &Peek<'_>, endpoint: Endpoint, model: &Model, burst: Option<u64>) -> Self {
        let prompt = body.prompt_token_ids + model.estimator.prompt_tokens(body.prompt_bytes);
        let answers = u64::from(body.n.unwrap_or(1)) * u64::from(body.prompt_items.max(1));
        let usual = || model.estimator.output_tokens().saturating_mul(answers);
        let output = match (endpoint, body.output_cap()) {
            (Endpoint::Embeddings, _) => 0,
            (_, Some(cap)) => cap.saturating_mul(answers),
            (_, None) => usual(),
        };
        let nano = model.price.map_or(0, |price| price.of(prompt, output));
        let reserve = match burst {
            None => prompt.saturating_add(output),
            // Only the input can be more than a burst holds; output is settled on what it was.
            Some(burst) if prompt > burst => prompt,
            Some(burst) => {
                let output = match body.output_cap() {
                    Some(_) => output,
                    None => output.min(burst / 2),
                };
                prompt.saturating_add(output).min(burst)
            }
        };
        Self {
            prompt,
            reserve,
            nano,
        }
    }
}
