//! `Core`: the gateway's state and its runtime, as Python holds them.
use std::net::SocketAddr;
use std::path::PathBuf;
use std::sync::atomic::{AtomicU64, Ordering};
use std::sync::{Arc, OnceLock};
use std::task::{Context, Poll, Waker};
use std::time::Duration;

use bytes::Bytes;
use crossbeam_queue::ArrayQueue;
use forebay_core::door::{Door, Front, Way};
use forebay_core::error::{Error, Kind};
use forebay_core::gateway::Gateway;
use forebay_core::headers::fresh_request_id;
use forebay_core::health::Engine;
use forebay_core::listener::{Bounds, Listener, Sockets};
use http::Method;
use parking_lot::Mutex;
use pyo3::exceptions::{PyOSError, PyRuntimeError, PyValueError};
use pyo3::prelude::*;
use pyo3::types::{PyBytes, PyList, PyString, PyTuple};

use crate::bridge::{Queue, Reactor};
use crate::convert::{self, Headers};
use crate::exchange::Exchange;
use crate::leases::Leases;
use crate::limits;
use crate::notes::{self, Note};
use crate::port::Taken;
use crate::spool::Spool;
use crate::waits::{Source, Waits};

/// The wait for what the store is asked, among those of exchanges, which count from 0.
const PORT: u64 = u64::MAX;

/// How long a client may take nothing of its answer before its connection is given up.
const WRITE_STALL: Duration = Duration::from_secs(300);

/// The gateway of one process.
#[pyclass(frozen, module = "forebay._core")]
pub(crate) struct Core {
    gateway: Arc<Gateway>,
    reactor: Reactor,
    waits: Waits,
    notes: Arc<ArrayQueue<Note>>,
    next_id: AtomicU64,
    taken: Taken,
    listener: Mutex<Option<Arc<Listener>>>,
}

impl Core {
    /// The futures that its event loop awaits.
    pub(crate) const fn waits(&self) -> &Waits {
        &self.waits
    }
}

/// The way of that index.
fn the_way(index: usize) -> PyResult<&'static Way> {
    Way::all()
        .get(index)
        .ok_or_else(|| PyValueError::new_err("no such way"))
}

/// What is spoken at the way of that index; OpenAI's without one.
fn door_of(way: Option<usize>) -> PyResult<Door> {
    way.map_or(Ok(Door::OpenAi), |way| Ok(the_way(way)?.door))
}

fn kind(name: &str) -> PyResult<Kind> {
    Kind::from_name(name)
        .ok_or_else(|| PyValueError::new_err(format!("no error kind is named {name:?}")))
}

/// An error of the kind of that name.
fn failure(
    kind_name: &str,
    message: String,
    param: Option<String>,
    code: Option<String>,
    cause: Option<String>,
) -> PyResult<Error> {
    let mut error = Error::new(kind(kind_name)?, message);
    error.param = param.map(Into::into);
    error.code = code.map(Into::into);
    error.cause = cause.map(Into::into);
    Ok(error)
}

#[pymethods]
impl Core {
    #[new]
    #[pyo3(signature = (*, limits_fd=None, worker=0))]
    fn new(limits_fd: Option<i32>, worker: usize) -> PyResult<Self> {
        let bell = Arc::new(OnceLock::new());
        let reactor = Reactor::start(&bell).map_err(PyOSError::new_err)?;
        let region = limits::region(limits_fd, worker)?;
        let gateway = Arc::new(Gateway::new(reactor.handle().clone(), region));
        let metrics = &gateway.metrics;
        let queue = Queue::new(
            Arc::clone(&metrics.wakeups),
            Arc::clone(&metrics.completions),
        );
        let queue = Arc::new(queue.map_err(PyOSError::new_err)?);
        let queue = Arc::clone(bell.get_or_init(|| queue));
        let notes = notes::collect(&gateway);
        Ok(Self {
            gateway,
            reactor,
            waits: Waits::new(queue),
            notes,
            next_id: AtomicU64::new(0),
            taken: Taken::default(),
            listener: Mutex::new(None),
        })
    }

    /// Delivers results on this event loop from now on. Once per process.
    fn attach(slf: &Bound<'_, Self>, event_loop: &Bound<'_, PyAny>) -> PyResult<()> {
        let drain = slf.getattr(pyo3::intern!(slf.py(), "drain"))?;
        slf.get().waits.attach(event_loop, &drain)
    }

    /// Resolves every future whose result is ready. The event loop calls it.
    fn drain(&self, py: Python<'_>) -> PyResult<()> {
        self.waits.drain(py, |id, source| match source {
            Source::Exchange(exchange, what) => exchange.get().poll(py, *what),
            Source::Port => {
                let waker = self.waits.waker(id);
                let cx = Context::from_waker(&waker);
                self.taken.poll(py, &self.gateway.port, &cx)
            }
        })
    }

    /// Listens on `host:port` and serves the inference API from there, all else from the
    /// application's Unix socket. Returns the address with the port that the system chose. With
    /// `reuse_port` other processes may listen there too.
    #[expect(clippy::too_many_arguments, reason = "keyword arguments of one call")]
    #[pyo3(signature = (host, port, *, app, body_bytes, upload_bytes, header_bytes, header_read_s, keep_alive_s, body_read_s, websockets, websocket_idle_s, reuse_port=false))]
    fn listen(
        &self,
        host: &str,
        port: u16,
        app: PathBuf,
        body_bytes: usize,
        upload_bytes: u64,
        header_bytes: usize,
        header_read_s: f64,
        keep_alive_s: f64,
        body_read_s: f64,
        websockets: usize,
        websocket_idle_s: f64,
        reuse_port: bool,
    ) -> PyResult<(String, u16)> {
        let ip = host
            .parse()
            .map_err(|_| PyValueError::new_err(format!("{host:?} is no IP address")))?;
        let seconds =
            |s| Duration::try_from_secs_f64(s).map_err(|e| PyValueError::new_err(e.to_string()));
        let bounds = Bounds {
            body_bytes,
            upload_bytes,
            header_bytes,
            header_read: seconds(header_read_s)?,
            keep_alive: seconds(keep_alive_s)?,
            body_read: seconds(body_read_s)?,
            write_stall: WRITE_STALL,
            sockets: Sockets {
                most: websockets,
                idle: seconds(websocket_idle_s)?,
            },
        };
        let _runtime = self.reactor.handle().enter();
        let listener = Listener::start(
            Arc::clone(&self.gateway),
            SocketAddr::new(ip, port),
            reuse_port,
            app,
            bounds,
        )?;
        let address = listener.address();
        *self.listener.lock() = Some(Arc::new(listener));
        Ok((address.ip().to_string(), address.port()))
    }

    /// Takes no more connections, once this has returned. An idle one is closed after `idle_s`
    /// seconds. Blocks.
    fn close_door(&self, py: Python<'_>, idle_s: f64) -> PyResult<()> {
        let Some(listener) = self.listener.lock().clone() else {
            return Ok(());
        };
        let idle = Duration::try_from_secs_f64(idle_s)
            .map_err(|e| PyValueError::new_err(e.to_string()))?;
        py.detach(|| self.reactor.handle().block_on(listener.close(idle)));
        Ok(())
    }

    /// Connections that may bring another request, or have one that runs.
    #[getter]
    fn expecting(&self) -> usize {
        let listener = self.listener.lock();
        listener.as_ref().map_or(0, |listener| listener.expecting())
    }

    /// Accepts no more and lets running requests end, for up to `grace_s` seconds. Whether all
    /// had ended. Blocks.
    fn stop_listening(&self, py: Python<'_>, grace_s: f64) -> PyResult<bool> {
        let Some(listener) = self.listener.lock().take() else {
            return Ok(true);
        };
        let grace = Duration::try_from_secs_f64(grace_s)
            .map_err(|e| PyValueError::new_err(e.to_string()))?;
        Ok(py.detach(|| self.reactor.handle().block_on(listener.stop(grace))))
    }

    /// Takes a new configuration in, whole. JSON as the control plane makes it.
    fn configure(&self, snapshot: &[u8]) -> PyResult<()> {
        let spec =
            serde_json::from_slice(snapshot).map_err(|e| PyValueError::new_err(e.to_string()))?;
        self.gateway.configure(spec).map_err(PyValueError::new_err)
    }

    /// What a probe found of an upstream, and what the engine said of its load, as JSON. Whether there
    /// is such an upstream.
    fn report_upstream(&self, name: &str, state: &str, load: Option<&[u8]>) -> PyResult<bool> {
        let engine = Engine::reported(state)
            .ok_or_else(|| PyValueError::new_err(format!("no state is named {state:?}")))?;
        let load = load
            .map(serde_json::from_slice)
            .transpose()
            .map_err(|e| PyValueError::new_err(e.to_string()))?;
        Ok(self.gateway.report_upstream(name, engine, load))
    }

    /// An upstream's agent answers, or does not. Whether there is such an upstream.
    fn report_agent(&self, name: &str, answers: bool) -> bool {
        self.gateway.report_agent(name, answers)
    }

    /// Takes in what an upstream says of its models, as JSON.
    fn describe_upstream(&self, name: &str, said: &[u8]) -> PyResult<()> {
        let said =
            serde_json::from_slice(said).map_err(|e| PyValueError::new_err(e.to_string()))?;
        self.gateway.describe_upstream(name, said);
        Ok(())
    }

    /// From now on an upstream takes no new requests, or does again. Whether there is such an
    /// upstream.
    fn drain_upstream(&self, name: &str, draining: bool) -> bool {
        self.gateway.drain_upstream(name, draining)
    }

    /// All upstreams as they stand, as JSON.
    fn upstreams<'py>(&self, py: Python<'py>) -> PyResult<Bound<'py, PyBytes>> {
        let json = serde_json::to_vec(&self.gateway.upstreams())
            .map_err(|e| PyRuntimeError::new_err(e.to_string()))?;
        Ok(PyBytes::new(py, &json))
    }

    /// The upstreams that requests have wanted awake since the last call.
    fn take_wanted(&self) -> Vec<String> {
        self.gateway.take_wanted()
    }

    /// Takes key records in; with `replace`, keys that are not among them go.
    fn load_keys(&self, records: &[u8], replace: bool) -> PyResult<usize> {
        let specs =
            serde_json::from_slice(records).map_err(|e| PyValueError::new_err(e.to_string()))?;
        self.gateway
            .load_keys(specs, replace)
            .map_err(PyValueError::new_err)
    }

    /// Takes the limits of all accounts and models in, whole.
    fn load_limits(&self, records: &[u8]) -> PyResult<()> {
        let specs =
            serde_json::from_slice(records).map_err(|e| PyValueError::new_err(e.to_string()))?;
        self.gateway
            .load_limits(specs)
            .map_err(PyValueError::new_err)
    }

    /// Takes the price book in, whole.
    fn load_prices(&self, records: &[u8]) -> PyResult<()> {
        let specs =
            serde_json::from_slice(records).map_err(|e| PyValueError::new_err(e.to_string()))?;
        self.gateway
            .load_prices(specs)
            .map_err(PyValueError::new_err)
    }

    /// Raises what was spent of budgets to what the database knows of.
    fn set_spent(&self, records: &[u8]) -> PyResult<()> {
        let specs: Vec<_> =
            serde_json::from_slice(records).map_err(|e| PyValueError::new_err(e.to_string()))?;
        self.gateway.set_spent(&specs);
        Ok(())
    }

    /// The limits of a key as they stand, as JSON; `None` if there is no such key.
    fn key_limits<'py>(
        &self,
        py: Python<'py>,
        key_id: &str,
    ) -> PyResult<Option<Bound<'py, PyBytes>>> {
        let Some(limits) = self.gateway.key_limits(key_id) else {
            return Ok(None);
        };
        let json =
            serde_json::to_vec(&limits).map_err(|e| PyRuntimeError::new_err(e.to_string()))?;
        Ok(Some(PyBytes::new(py, &json)))
    }

    /// Whether limits are shared with other machines.
    #[getter]
    fn shares_limits(&self) -> bool {
        self.gateway.leases.is_active()
    }

    /// Shares limits with other processes from now on: `expected` of them, until the store tells.
    fn leases(&self, expected: u64) -> PyResult<Leases> {
        Leases::new(Arc::clone(&self.gateway), expected)
    }

    /// Decides a request and starts it. Never raises for what a client sent.
    #[pyo3(signature = (way, headers, body, *, front="http", deadline_s=None))]
    fn admit<'py>(
        slf: &Bound<'py, Self>,
        way: usize,
        headers: &Bound<'py, PyList>,
        body: &Bound<'py, PyBytes>,
        front: &str,
        deadline_s: Option<f64>,
    ) -> PyResult<Exchange> {
        let this = slf.get();
        let way = the_way(way)?;
        let headers = Headers::read(headers)?;
        let mut request = headers.request();
        request.front = Front::from_name(front)
            .ok_or_else(|| PyValueError::new_err(format!("{front:?} is no front")))?;
        // One that is longer than can be said is none.
        request.deadline =
            deadline_s.map(|s| Duration::try_from_secs_f64(s.max(0.0)).unwrap_or(Duration::MAX));
        let body = Bytes::copy_from_slice(body.as_bytes());
        let slot = this.gateway.enter(way, request, body);
        let id = this.next_id.fetch_add(1, Ordering::Relaxed);
        Ok(Exchange::new(slot, slf.clone().unbind(), id))
    }

    /// What the store is asked: a list of `(ticket, kind, payload)`, or a future of it.
    fn asks<'py>(slf: &Bound<'py, Self>) -> PyResult<Bound<'py, PyAny>> {
        let (py, this) = (slf.py(), slf.get());
        let waker = this.waits.waker(PORT);
        let cx = Context::from_waker(&waker);
        match this.taken.poll(py, &this.gateway.port, &cx)? {
            Poll::Ready(asked) => Ok(asked),
            Poll::Pending => this.waits.begin(py, PORT, Source::Port),
        }
    }

    /// Answers what the store was asked; `None`: it has failed.
    #[pyo3(signature = (ticket, payload))]
    fn reply(&self, ticket: u64, payload: Option<&[u8]>) {
        self.taken.answer(ticket, payload);
    }

    /// Hands an upstream's credentials over, as JSON. They replace what it had.
    fn set_credentials(&self, upstream: &str, credentials: &[u8]) -> PyResult<()> {
        self.gateway
            .set_credentials(upstream, credentials)
            .map_err(PyValueError::new_err)
    }

    /// Asks an upstream, or its agent, for `path`: an exchange that is not booked. `limit_s` in
    /// seconds.
    #[pyo3(signature = (upstream, path, limit_s, *, method="GET", body=None, agent=false))]
    fn fetch(
        slf: &Bound<'_, Self>,
        upstream: &str,
        path: String,
        limit_s: f64,
        method: &str,
        body: Option<&[u8]>,
        agent: bool,
    ) -> PyResult<Exchange> {
        let this = slf.get();
        let limit = Duration::try_from_secs_f64(limit_s)
            .map_err(|e| PyValueError::new_err(e.to_string()))?;
        let method = Method::from_bytes(method.as_bytes())
            .map_err(|_| PyValueError::new_err(format!("{method:?} is no method")))?;
        let body = Bytes::copy_from_slice(body.unwrap_or_default());
        let slot = if agent {
            let slot = this.gateway.ask_agent(upstream, method, path, body, limit);
            slot.ok_or_else(|| PyValueError::new_err(format!("{upstream:?} has no agent")))?
        } else {
            this.gateway.fetch(upstream, method, path, body, limit)
        };
        let id = this.next_id.fetch_add(1, Ordering::Relaxed);
        Ok(Exchange::new(slot, slf.clone().unbind(), id))
    }

    /// `None` if the request's key is good, else the refusal, answered already.
    #[pyo3(signature = (headers, *, way=None))]
    fn authenticate<'py>(
        &self,
        py: Python<'py>,
        headers: &Bound<'py, PyList>,
        way: Option<usize>,
    ) -> PyResult<Option<Bound<'py, PyAny>>> {
        let headers = Headers::read(headers)?;
        match self.gateway.authenticate(&headers.request()) {
            Ok(_) => Ok(None),
            Err(error) => self
                .answer(py, door_of(way)?, &error, Some(&headers))
                .map(Some),
        }
    }

    /// `None` if the request's key is a good admin key, else the refusal, answered already.
    fn authenticate_admin<'py>(
        &self,
        py: Python<'py>,
        headers: &Bound<'py, PyList>,
    ) -> PyResult<Option<Bound<'py, PyAny>>> {
        let headers = Headers::read(headers)?;
        match self.gateway.authenticate_admin(&headers.request()) {
            Ok(_) => Ok(None),
            Err(error) => self
                .answer(py, Door::OpenAi, &error, Some(&headers))
                .map(Some),
        }
    }

    /// The account of the request's key, or the refusal.
    fn account<'py>(
        &self,
        py: Python<'py>,
        headers: &Bound<'py, PyList>,
    ) -> PyResult<Bound<'py, PyAny>> {
        let headers = Headers::read(headers)?;
        match self.gateway.whose(&headers.request()) {
            Ok(key) => Ok(PyString::new(py, &key.account).into_any()),
            Err(error) => self.answer(py, Door::OpenAi, &error, Some(&headers)),
        }
    }

    /// `None` if the request's key is good, an admin key with `admin`; else the refusal as gRPC
    /// has it: `(code, message, details)`.
    #[pyo3(signature = (headers, *, admin=false))]
    fn grpc_refusal<'py>(
        &self,
        py: Python<'py>,
        headers: &Bound<'py, PyList>,
        admin: bool,
    ) -> PyResult<Option<Bound<'py, PyTuple>>> {
        let headers = Headers::read(headers)?;
        let request = headers.request();
        let found = if admin {
            self.gateway.authenticate_admin(&request)
        } else {
            self.gateway.authenticate(&request)
        };
        match found {
            Ok(_) => Ok(None),
            Err(error) => self.grpc_status(py, &error, Some(&headers)).map(Some),
        }
    }

    /// The names of the models that the request's key may use, or the refusal.
    fn models<'py>(
        &self,
        py: Python<'py>,
        headers: &Bound<'py, PyList>,
    ) -> PyResult<Bound<'py, PyAny>> {
        let headers = Headers::read(headers)?;
        match self.gateway.authenticate(&headers.request()) {
            Ok(key) => Ok(PyList::new(py, self.gateway.models(&key))?.into_any()),
            Err(error) => self.answer(py, Door::OpenAi, &error, Some(&headers)),
        }
    }

    /// Whether the keys are those of the database now.
    fn keys_current(&self, current: bool) {
        self.gateway.keys_current(current);
    }

    /// Ends what still runs with an error that says so.
    fn halt(&self) {
        self.gateway.halt();
    }

    /// An error's answer, `(status, headers, body, False)`, as the way's door tells it, without a
    /// way in OpenAI's shape. `headers` are the request's, for its id.
    #[pyo3(signature = (kind_name, message, *, headers=None, param=None, code=None, cause=None, way=None))]
    #[expect(clippy::too_many_arguments, reason = "keyword arguments of one call")]
    fn error<'py>(
        &self,
        py: Python<'py>,
        kind_name: &str,
        message: String,
        headers: Option<&Bound<'py, PyList>>,
        param: Option<String>,
        code: Option<String>,
        cause: Option<String>,
        way: Option<usize>,
    ) -> PyResult<Bound<'py, PyAny>> {
        let error = failure(kind_name, message, param, code, cause)?;
        let headers = headers.map(Headers::read).transpose()?;
        self.answer(py, door_of(way)?, &error, headers.as_ref())
    }

    /// An error as gRPC has it: `(code, message, details)`. `headers` are the request's, for its id.
    #[pyo3(signature = (kind_name, message, *, headers=None, param=None, code=None, cause=None))]
    #[expect(clippy::too_many_arguments, reason = "keyword arguments of one call")]
    fn grpc_error<'py>(
        &self,
        py: Python<'py>,
        kind_name: &str,
        message: String,
        headers: Option<&Bound<'py, PyList>>,
        param: Option<String>,
        code: Option<String>,
        cause: Option<String>,
    ) -> PyResult<Bound<'py, PyTuple>> {
        let error = failure(kind_name, message, param, code, cause)?;
        let headers = headers.map(Headers::read).transpose()?;
        self.grpc_status(py, &error, headers.as_ref())
    }

    /// From now on what is admitted is recorded in a spool under `root`, prompt logs too. Once.
    #[pyo3(signature = (root, *, node, segment_bytes, max_bytes, durability, on_full))]
    fn open_spool(
        &self,
        root: PathBuf,
        node: String,
        segment_bytes: u64,
        max_bytes: u64,
        durability: &str,
        on_full: &str,
    ) -> PyResult<Spool> {
        if self.gateway.spool().is_some() {
            return Err(PyRuntimeError::new_err("there is a spool already"));
        }
        Spool::open(
            &self.gateway,
            root,
            node,
            segment_bytes,
            max_bytes,
            durability,
            on_full,
        )
    }

    /// Takes up to `limit` finished requests, oldest first, as tuples in the usage table's order.
    fn take_usage<'py>(&self, py: Python<'py>, limit: usize) -> PyResult<Vec<Bound<'py, PyTuple>>> {
        self.gateway
            .events
            .take(limit)
            .iter()
            .map(|event| convert::usage_event(py, event))
            .collect()
    }

    /// Takes what the log should be told: `(kind, message, cause, request id, attempt)`
    /// each.
    fn take_failures(&self) -> Vec<Note> {
        std::iter::from_fn(|| self.notes.pop()).collect()
    }

    /// From now on requests are traced.
    fn trace(&self, sample: f64) {
        self.gateway.traces.begin(sample);
    }

    /// Takes up to `limit` traced requests that have ended, as a JSON array; None: none waits.
    fn take_traces<'py>(&self, py: Python<'py>, limit: usize) -> Option<Bound<'py, PyBytes>> {
        let taken = self.gateway.traces.take(limit)?;
        Some(PyBytes::new(py, &taken))
    }

    /// Counts traced requests that could not be exported.
    fn drop_traces(&self, count: u64) {
        self.gateway.traces.dropped.add(count);
    }

    /// Finished requests that were not taken yet.
    #[getter]
    fn usage_backlog(&self) -> usize {
        match self.gateway.spool() {
            Some(spool) => usize::try_from(spool.standing().waiting).unwrap_or(usize::MAX),
            None => self.gateway.events.len(),
        }
    }

    /// Admitted requests that have not ended.
    #[getter]
    fn in_flight(&self) -> i64 {
        self.gateway.metrics.in_flight.get()
    }

    /// All metrics in the Prometheus text format.
    fn metrics(&self) -> String {
        let count = |n| i64::try_from(n).unwrap_or(i64::MAX);
        let (metrics, region) = (&self.gateway.metrics, self.gateway.region());
        metrics.usage_backlog.set(count(self.usage_backlog()));
        if let Some(spool) = self.gateway.spool() {
            spool.show();
        }
        self.gateway.show_upstreams();
        metrics.limit_rows.set(count(region.used()));
        metrics.limit_rows_private.set(count(region.overflowed()));
        self.gateway.metrics.registry.render()
    }

    /// From now on each answer is its connection's last; requests are taken.
    fn leave(&self) {
        self.gateway.leave();
    }

    /// From now on WebSockets end, too, with what runs on them; requests are taken.
    fn begin_drain(&self) {
        self.gateway.drain();
    }

    /// From now on new requests are refused; running ones go on.
    fn refuse(&self) {
        self.gateway.refuse();
    }

    /// Ends the runtime: what still runs is dropped and booked, and no future stays pending.
    fn close(&self, py: Python<'_>) -> PyResult<()> {
        self.gateway.halt();
        py.detach(|| self.reactor.stop());
        self.waits.close(py)
    }
}

impl Core {
    /// Notes an error as an answer is noted, and gives what gRPC tells of it.
    fn grpc_status<'py>(
        &self,
        py: Python<'py>,
        error: &Error,
        headers: Option<&Headers<'py>>,
    ) -> PyResult<Bound<'py, PyTuple>> {
        let asked = headers.and_then(|headers| headers.request().request_id);
        let id = fresh_request_id(asked);
        let text = id.1.clone();
        self.gateway.refusal(Door::OpenAi, error, vec![id]);
        convert::grpc_status(py, error, text.to_str().unwrap_or_default())
    }

    fn answer<'py>(
        &self,
        py: Python<'py>,
        door: Door,
        error: &Error,
        headers: Option<&Headers<'py>>,
    ) -> PyResult<Bound<'py, PyAny>> {
        let asked = headers.and_then(|headers| headers.request().request_id);
        let headers = door.greeting(fresh_request_id(asked));
        let slot = self.gateway.refusal(door, error, headers);
        let mut cx = std::task::Context::from_waker(Waker::noop());
        match slot.poll_head(&mut cx) {
            Poll::Ready(Some(head)) => convert::head(py, &head),
            _ => Err(PyRuntimeError::new_err("a refusal is answered")),
        }
    }
}
