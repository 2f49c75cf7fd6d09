//! The gateway's state: what every request is decided by, and how it is changed.
use std::sync::atomic::{AtomicBool, AtomicU8, Ordering};
use std::sync::{Arc, OnceLock};
use std::time::{Duration, SystemTime, UNIX_EPOCH};

use arc_swap::ArcSwap;
use bytes::Bytes;
use http::{HeaderMap, HeaderName, HeaderValue, Method};
use parking_lot::{Mutex, RwLock};
use tokio::runtime::Handle;
use tokio::sync::Notify;

use crate::attempts::Attempt;
use crate::counters::Counters;
use crate::door::{Door, Front};
pub use crate::endpoint::Endpoint;
use crate::error::{Error, Kind};
use crate::events::Events;
use crate::exchange;
use crate::guard::{Described, Description};
use crate::headers::bearer;
use crate::keys::{Denied, Key, KeySpec, Keys};
use crate::limit::lease::{LeaseCounters, Leases};
use crate::limit::{Nanos, Now, Region};
pub use crate::note::{Failure, Note};
use crate::port::Port;
use crate::price::{PriceBook, PriceSpec};
use crate::prompt_log::{Entry, MAX_WAITING, PromptLog, Sink};
use crate::refusals::{named_model, permitted};
use crate::slot::{Answering, Head, Headers, Slot};
use crate::snapshot::{Model, Snapshot, SnapshotSpec};
use crate::spool::{Spool, SpoolCounters};
use crate::subjects::{Ground, SubjectSpec, Subjects};
use crate::trace::Traces;
use crate::upstream::{Rope, Upstream};

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
    /// `x-forebay-tags`; see [`crate::tags`].
    pub tags: Option<&'a [u8]>,
    /// `x-session-id`: requests of one session stay together where their model says so.
    pub session: Option<&'a [u8]>,
    /// `x-api-key`.
    pub api_key: Option<&'a [u8]>,
    /// `idempotency-key`.
    pub idempotency_key: Option<&'a [u8]>,
    /// `anthropic-beta`.
    pub beta: Option<&'a [u8]>,
    /// How its client is connected.
    pub front: Front,
    /// How long its client waits for all of the answer, where it says so.
    pub deadline: Option<Duration>,
}

/// Prompt logs go to the spool.
struct LogSink(Arc<Spool>);

impl Sink for LogSink {
    fn keep(&mut self, entry: Entry) -> bool {
        let mut row = Vec::new();
        entry.copy(&mut row);
        self.0.log(&row)
    }
}

/// The instant on the monotonic clock that all processes of this machine share.
pub fn monotonic() -> Nanos {
    let mono = rustix::time::clock_gettime(rustix::time::ClockId::Monotonic);
    mono.tv_sec as Nanos * 1_000_000_000 + mono.tv_nsec as Nanos
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
    /// What happens to spools.
    pub spool_counters: SpoolCounters,
    pub(crate) snapshot: ArcSwap<Snapshot>,
    pub(crate) subjects: ArcSwap<Subjects>,
    prices: ArcSwap<PriceBook>,
    described: Mutex<Described>,
    region: Arc<Region>,
    pub(crate) runtime: Handle,
    keys_current: AtomicBool,
    stage: AtomicU8,
    drains: Notify,
    halted: AtomicBool,
    halting: Notify,
    note: RwLock<Option<Note>>,
    prompt_log: OnceLock<PromptLog>,
    spool: OnceLock<Arc<Spool>>,
    /// Traced requests.
    pub traces: Traces,
    /// What the store is asked.
    pub port: Port,
}

/// How far a gateway has come on its way to its end; it serves before the first.
const LEAVING: u8 = 1;
const DRAINING: u8 = 2;
const REFUSING: u8 = 3;

impl Gateway {
    /// A gateway without keys and models, whose exchanges run on `runtime` and whose limits live in
    /// `region`.
    pub fn new(runtime: Handle, region: Arc<Region>) -> Self {
        let metrics = Counters::new();
        let traces = Traces::registered(&metrics.registry);
        Self {
            leases: Arc::new(Leases::new(LeaseCounters::registered(&metrics.registry))),
            spool_counters: SpoolCounters::registered(&metrics.registry),
            keys: Keys::default(),
            events: Events::default(),
            metrics,
            snapshot: ArcSwap::from_pointee(Snapshot::default()),
            subjects: ArcSwap::default(),
            prices: ArcSwap::default(),
            described: Mutex::default(),
            region,
            runtime,
            keys_current: AtomicBool::new(false),
            stage: AtomicU8::new(0),
            drains: Notify::new(),
            halted: AtomicBool::new(false),
            halting: Notify::new(),
            note: RwLock::new(None),
            prompt_log: OnceLock::new(),
            spool: OnceLock::new(),
            traces,
            port: Port::default(),
        }
    }

    /// The instant, on a monotonic clock that all processes of this machine share and on the
    /// calendar's.
    pub fn now(&self) -> Now {
        let unix = rustix::time::clock_gettime(rustix::time::ClockId::Realtime);
        Now {
            mono: monotonic(),
            unix_s: unix.tv_sec,
        }
    }

    /// Sets where failures are told.
    pub fn on_failure(&self, note: Note) {
        *self.note.write() = Some(note);
    }

    /// From now on requests are logged, for those who want it, and entries go to `sink`. Once only: a
    /// second sink is dropped.
    pub fn log_prompts(&self, sink: Box<dyn Sink>) -> std::io::Result<()> {
        let log = PromptLog::start(sink, &self.metrics.registry, MAX_WAITING)?;
        // The log that is there stays.
        let _ = self.prompt_log.set(log);
        Ok(())
    }

    /// From now on what is admitted is recorded in `spool`, prompt logs too. Once only: a second
    /// spool is dropped.
    pub fn record_in(&self, spool: Arc<Spool>) -> std::io::Result<()> {
        self.log_prompts(Box::new(LogSink(Arc::clone(&spool))))?;
        // The spool that is there stays.
        let _ = self.spool.set(spool);
        Ok(())
    }

    /// Where what is admitted is recorded. Without one events wait in memory.
    pub fn spool(&self) -> Option<&Arc<Spool>> {
        self.spool.get()
    }

    /// Takes over what processes that have gone left in the spool's folder. Gives how many spools.
    pub fn adopt_spools(&self) -> std::io::Result<usize> {
        let Some(spool) = self.spool() else {
            return Ok(0);
        };
        let prices = self.prices();
        spool.adopt(&|served| {
            let rates = prices.rates(served.model, served.account);
            let price = rates.at(served.upstream?, served.admitted_us)?;
            let duration_us = u64::try_from(served.duration_us).unwrap_or(0);
            Some((price.id, price.cost(&served.usage, duration_us)))
        })
    }

    /// The prompt log, if there is one.
    pub fn prompt_log(&self) -> Option<&PromptLog> {
        self.prompt_log.get()
    }

    /// Tells the log of a failure.
    pub fn note(&self, error: &Error, answer_headers: &[(HeaderName, HeaderValue)]) {
        self.metrics.failed(error.kind);
        self.log(error, answer_headers);
    }

    /// Tells the log alone, of what no client is told.
    pub(crate) fn log(&self, error: &Error, answer_headers: &[(HeaderName, HeaderValue)]) {
        if error.cause.is_none() {
            return;
        }
        if let Some(note) = &*self.note.read() {
            let id = answer_headers
                .iter()
                .find(|(name, _)| name == "x-request-id");
            let id = id.and_then(|(_, value)| value.to_str().ok());
            note(&Failure {
                error,
                request_id: id.unwrap_or_default(),
                attempt: None,
            });
        }
    }

    /// Tells the log of an attempt that failed.
    pub(crate) fn note_attempt(&self, error: &Error, request_id: &str, attempt: &Attempt) {
        if let Some(note) = &*self.note.read() {
            note(&Failure {
                error,
                request_id,
                attempt: Some(attempt),
            });
        }
    }

    /// Swaps the configuration in, whole; on an error nothing changes.
    pub fn configure(&self, spec: SnapshotSpec) -> Result<(), String> {
        let next = Snapshot::build(spec, &self.snapshot.load(), &self.metrics, &self.region)?;
        self.described.lock().tell(&next);
        self.snapshot.store(Arc::new(next));
        Ok(())
    }

    /// Takes in what an upstream said of its models, in place of what it said before.
    pub fn describe_upstream(&self, name: &str, said: Description) {
        let mut described = self.described.lock();
        described.take(name, said);
        described.tell(&self.snapshot.load());
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

    /// Takes the whole price book in; on an error nothing changes. A request that an upstream has
    /// been tried for keeps the price that it has.
    pub fn load_prices(&self, specs: Vec<PriceSpec>) -> Result<(), String> {
        self.prices.store(Arc::new(PriceBook::of(specs)?));
        Ok(())
    }

    /// The price book.
    pub fn prices(&self) -> arc_swap::Guard<Arc<PriceBook>> {
        self.prices.load()
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

    /// Whether the keys are those of the database. While they are not, an unknown key may be a new
    /// one, so it is told to come back rather than that it is wrong.
    pub fn keys_current(&self, current: bool) {
        self.keys_current.store(current, Ordering::Release);
    }

    /// From now on each answer is the last of its connection, so that clients go elsewhere; requests
    /// are taken as ever.
    pub fn leave(&self) {
        self.stage.fetch_max(LEAVING, Ordering::AcqRel);
    }

    /// Whether [`Gateway::leave`] was called.
    pub fn is_leaving(&self) -> bool {
        self.stage.load(Ordering::Acquire) >= LEAVING
    }

    /// The same, and WebSockets end with what runs on them; no new ones are taken. Requests are.
    pub fn drain(&self) {
        self.stage.fetch_max(DRAINING, Ordering::AcqRel);
        self.drains.notify_waiters();
    }

    /// The same, and new requests are refused; running ones go on.
    pub fn refuse(&self) {
        self.drain();
        self.stage.fetch_max(REFUSING, Ordering::AcqRel);
    }

    /// Whether [`Gateway::refuse`] was called.
    pub fn is_refusing(&self) -> bool {
        self.stage.load(Ordering::Acquire) >= REFUSING
    }

    /// Resolves when [`Gateway::drain`] is called.
    pub fn draining(&self) -> tokio::sync::futures::Notified<'_> {
        self.drains.notified()
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
        self.stage.load(Ordering::Acquire) >= DRAINING
    }

    /// The model of that name.
    pub(crate) fn model(&self, name: &str) -> Option<Arc<Model>> {
        self.snapshot.load().models.get(name).cloned()
    }

    /// The model that a key asks for by name, if it may use it.
    pub(crate) fn model_for(&self, key: &Key, asked: &str) -> Result<Arc<Model>, Error> {
        let snapshot = self.snapshot.load();
        let model = named_model(&snapshot, asked)?;
        permitted(key, asked, model)?;
        Ok(Arc::clone(model))
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

    /// The key of a request: a bearer token, or without one `x-api-key`, as Anthropic's clients send it.
    pub fn authenticate(&self, request: &Request<'_>) -> Result<Arc<Key>, Error> {
        let unix_s = SystemTime::now()
            .duration_since(UNIX_EPOCH)
            .map_or(0.0, |d| d.as_secs_f64());
        let bearer = request.authorization.map(bearer);
        let api_key = request.api_key.map(<[u8]>::trim_ascii);
        let given = match (bearer, api_key) {
            (None | Some(None), Some(key)) => Some(Some(key)),
            (bearer, _) => bearer,
        };
        let denied = match given {
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
    pub fn authenticate_admin(&self, request: &Request<'_>) -> Result<Arc<Key>, Error> {
        let key = self.authenticate(request)?;
        if !key.admin {
            return Err(Error::new(
                Kind::Forbidden,
                "This API key does not open the admin API.",
            ));
        }
        Ok(key)
    }

    /// The upstream of that name.
    pub fn upstream(&self, name: &str) -> Option<Arc<Upstream>> {
        self.snapshot.load().upstream(name)
    }

    /// Hands an upstream's credentials over; see [`Upstream::set_credentials`]. Fails where there is
    /// no such upstream.
    pub fn set_credentials(&self, upstream: &str, json: &[u8]) -> Result<(), String> {
        self.upstream(upstream)
            .ok_or_else(|| format!("no upstream is named {upstream}"))?
            .set_credentials(json)
            .map_err(|e| format!("upstream {upstream}: {e}"))
    }

    /// Asks an upstream for `path`: its models, whether it is ready, or to wake. Not admitted, not
    /// booked. An upstream that cannot be reached within `limit` is an error's answer.
    pub fn fetch(
        self: &Arc<Self>,
        upstream: &str,
        method: Method,
        path: String,
        body: Bytes,
        limit: Duration,
    ) -> Arc<Slot> {
        let Some(upstream) = self.upstream(upstream) else {
            let error = Error::new(Kind::NotFound, "There is no such upstream.");
            return Arc::new(self.refusal(Door::OpenAi, &error, Vec::new()));
        };
        let body = Rope::new(vec![body]);
        let gateway = Arc::clone(self);
        self.answering(async move {
            exchange::fetch(&upstream, method, &path, (&HeaderMap::new(), body), limit)
                .await
                .inspect_err(|error| gateway.note(error, &[]))
        })
    }

    /// Asks an upstream's agent for `path`, as [`Gateway::fetch`] asks the upstream; who asks tells the
    /// log what came of it. None where the upstream has no agent, or is none.
    pub fn ask_agent(
        self: &Arc<Self>,
        upstream: &str,
        method: Method,
        path: String,
        body: Bytes,
        limit: Duration,
    ) -> Option<Arc<Slot>> {
        let upstream = self.upstream(upstream)?;
        upstream.agent.as_ref()?;
        let body = Rope::new(vec![body]);
        Some(self.answering(async move {
            let Some(agent) = &upstream.agent else {
                return Err(Error::new(Kind::NotFound, "There is no agent."));
            };
            exchange::answer(agent.ask(method, &path, body), limit).await
        }))
    }

    /// An exchange whose answer is the one that `asked` comes to.
    fn answering(
        &self,
        asked: impl Future<Output = Result<(u16, Bytes), Error>> + Send + 'static,
    ) -> Arc<Slot> {
        let slot = Arc::new(Slot::new());
        let answer = Answering(Arc::clone(&slot));
        let task = self.runtime.spawn(async move {
            let head = match asked.await {
                Ok((status, body)) => Head {
                    status,
                    headers: Vec::new(),
                    body,
                    more: false,
                },
                Err(error) => Head {
                    status: error.kind.status(),
                    // Tells it from an error that the upstream answered.
                    headers: vec![(
                        HeaderName::from_static("x-forebay-error"),
                        HeaderValue::from_static(error.kind.name()),
                    )],
                    body: error.openai_body(),
                    more: false,
                },
            };
            answer.0.start(head);
        });
        slot.driven_by(task.abort_handle());
        slot
    }

    /// An answered exchange that holds an error, as `door` tells it. `headers` begin with the
    /// request's id.
    pub fn refusal(&self, door: Door, error: &Error, headers: Headers) -> Slot {
        self.note(error, &headers);
        let slot = Slot::of(door, None);
        slot.refuse(error, headers);
        slot
    }
}
