//! The load client: raw HTTP/1.1 over kept-alive connections, one request at a time on each.

mod answer;

use std::cell::{Cell, RefCell};
use std::io;
use std::net::{SocketAddr, ToSocketAddrs as _};
use std::rc::Rc;
use std::time::Duration;

use clap::ValueEnum;
use memchr::memmem;
use tokio::io::{AsyncReadExt as _, AsyncWriteExt as _};
use tokio::net::TcpStream;

use self::answer::Answer;
use crate::clock::{Pacer, SECOND, now_ns};
use crate::stats::{Fault, Report, Stats};
use crate::wire::bad;

/// Read buffer of one connection, bytes.
const READ_BYTES: usize = 16 * 1024;
/// Placeholder in each prompt, overwritten with a number so that no two prompts are the same.
const SERIAL: &[u8] = b"#000000000000";

/// What each request is.
#[derive(Clone, Copy, Debug, PartialEq, Eq, ValueEnum)]
pub(crate) enum Workload {
    /// Chat completion, not streamed.
    Unary,
    /// Chat completion streamed in bursts.
    Burst,
    /// Chat completion streamed at a steady pace.
    Paced,
    /// Chat completion, not streamed, with a long prompt.
    Prompt200k,
    /// Embeddings.
    Embeddings,
}

impl Workload {
    fn name(self) -> &'static str {
        match self {
            Self::Unary => "unary",
            Self::Burst => "burst",
            Self::Paced => "paced",
            Self::Prompt200k => "prompt200k",
            Self::Embeddings => "embeddings",
        }
    }

    fn streams(self) -> bool {
        matches!(self, Self::Burst | Self::Paced)
    }
}

/// Where requests go.
#[derive(Clone, Debug)]
pub(crate) struct Target {
    address: SocketAddr,
    host: String,
    base: String,
    key: String,
}

impl Target {
    /// Reads `http://host[:port][/base]`. Fails on another scheme or an unknown host.
    pub(crate) fn parse(url: &str, key: &str) -> io::Result<Self> {
        let rest = url
            .strip_prefix("http://")
            .ok_or_else(|| bad("--url must start with http://"))?;
        let (host, base) = rest.split_once('/').unwrap_or((rest, ""));
        let resolved = if host
            .rsplit_once(':')
            .is_some_and(|(_, port)| port.parse::<u16>().is_ok())
        {
            host.to_socket_addrs()?.next()
        } else {
            (host, 80).to_socket_addrs()?.next()
        };
        Ok(Self {
            address: resolved.ok_or_else(|| bad("--url names no host"))?,
            host: host.to_owned(),
            base: base.trim_end_matches('/').to_owned(),
            key: key.to_owned(),
        })
    }
}

/// One run.
#[derive(Clone, Debug)]
pub(crate) struct Options {
    pub(crate) target: Target,
    pub(crate) model: String,
    pub(crate) workload: Workload,
    pub(crate) concurrency: usize,
    pub(crate) duration_s: Option<f64>,
    pub(crate) requests: Option<u64>,
    pub(crate) rate: Option<f64>,
    pub(crate) ramp_s: f64,
    pub(crate) threads: usize,
    pub(crate) timeout_s: f64,
    pub(crate) answer_bytes: usize,
    pub(crate) prompt_bytes: Option<usize>,
    pub(crate) chunks: u64,
    pub(crate) bursts: u64,
    pub(crate) pace: u64,
    pub(crate) events: u64,
    pub(crate) include_usage: bool,
}

impl Options {
    /// Head and body of the request, with [`SERIAL`] in its prompt.
    fn request(&self) -> Vec<u8> {
        let shape = match self.workload {
            Workload::Burst => format!("load:burst:{}:{}", self.chunks, self.bursts),
            Workload::Paced => format!("load:pace:{}:{}", self.pace, self.events),
            _ => format!("load:unary:{}", self.answer_bytes),
        };
        let long = self.workload == Workload::Prompt200k;
        let size = self.prompt_bytes.unwrap_or(if long { 200_000 } else { 30 });
        let prompt = format!(
            "{shape} {} {}",
            String::from_utf8_lossy(SERIAL),
            "Tell me about the sea. "
                .chars()
                .cycle()
                .take(size)
                .collect::<String>()
        );
        let model = serde_json::Value::from(self.model.as_str());
        let usage = if self.include_usage && self.workload.streams() {
            r#""stream_options":{"include_usage":true},"#
        } else {
            ""
        };
        let body = if self.workload == Workload::Embeddings {
            format!(r#"{{"model":{model},"user":"{shape}","input":"{prompt}"}}"#)
        } else {
            format!(
                r#"{{"model":{model},"stream":{},{usage}"max_tokens":256,"temperature":0.7,"user":"{shape}","messages":[{{"role":"user","content":"{prompt}"}}]}}"#,
                self.workload.streams()
            )
        };
        let Target {
            host, base, key, ..
        } = &self.target;
        let path = match self.workload {
            Workload::Embeddings => "v1/embeddings",
            _ => "v1/chat/completions",
        };
        let slash = if base.is_empty() { "" } else { "/" };
        let bearer = match key.as_str() {
            "" => String::new(),
            key => format!("authorization: Bearer {key}\r\n"),
        };
        format!(
            "POST /{base}{slash}{path} HTTP/1.1\r\nhost: {host}\r\n{bearer}accept: */*\r\n\
             user-agent: forebay-load\r\ncontent-type: application/json\r\n\
             content-length: {}\r\n\r\n{body}",
            body.len()
        )
        .into_bytes()
    }

    /// Content events in a whole answer.
    fn expected_events(&self) -> u64 {
        match self.workload {
            Workload::Burst => self.chunks,
            Workload::Paced => self.events,
            _ => 0,
        }
    }
}

/// Runs the load. Fails when a thread cannot start; failed requests are counted, not raised.
pub(crate) fn run(options: Options) -> io::Result<Report> {
    let (workload, concurrency) = (options.workload, options.concurrency);
    let start_ns = now_ns() + 20_000_000;
    let threads = options.threads;
    let mut total = Stats::new(start_ns)?;
    let parts = crate::on_threads(threads, move |thread| {
        one_thread(options.clone(), thread, start_ns)
    })?;
    for part in parts {
        total.merge(part)?;
    }
    Ok(total.report(workload.name(), concurrency))
}

/// What the workers of one thread share.
struct Plan {
    options: Options,
    pacer: Pacer,
    stats: RefCell<Stats>,
    next: Cell<u64>,
    first: u64,
    start_ns: u64,
    stop_ns: u64,
}

impl Plan {
    /// The next request's number and intended start, if there is one more to make.
    fn take(&self) -> Option<(u64, Option<u64>)> {
        let number = self.first + self.next.get() * self.options.threads as u64;
        if self.options.requests.is_some_and(|limit| number >= limit) {
            return None;
        }
        let due = self
            .options
            .rate
            .map(|rate| self.start_ns + (number as f64 / rate * SECOND as f64) as u64);
        if due.unwrap_or_else(now_ns) >= self.stop_ns {
            return None;
        }
        self.next.set(self.next.get() + 1);
        Some((number, due))
    }
}

async fn one_thread(options: Options, thread: usize, start_ns: u64) -> io::Result<Stats> {
    let stop_ns = options
        .duration_s
        .map_or(u64::MAX, |s| start_ns + (s * SECOND as f64) as u64);
    let plan = Rc::new(Plan {
        pacer: Pacer::start(0)?,
        stats: RefCell::new(Stats::new(start_ns)?),
        next: Cell::new(0),
        first: thread as u64,
        start_ns,
        stop_ns,
        options,
    });
    let request = plan.options.request();
    let workers: Vec<_> = (thread..plan.options.concurrency)
        .step_by(plan.options.threads)
        .map(|index| tokio::task::spawn_local(worker(Rc::clone(&plan), request.clone(), index)))
        .collect();
    for worker in workers {
        worker.await.map_err(io::Error::other)?;
    }
    let plan = Rc::into_inner(plan).ok_or_else(|| bad("a worker is still running"))?;
    Ok(plan.stats.into_inner())
}

async fn worker(plan: Rc<Plan>, mut request: Vec<u8>, index: usize) {
    let options = &plan.options;
    let share = index as f64 / options.concurrency as f64;
    plan.pacer
        .until(plan.start_ns + (options.ramp_s * share * SECOND as f64) as u64)
        .await;
    let serial_at = memmem::find(&request, SERIAL).unwrap_or_default() + 1;
    let limit = Duration::from_secs_f64(options.timeout_s.clamp(0.001, 86_400.0));
    let mut connection = Connection::default();
    while let Some((number, due)) = plan.take() {
        if let Some(field) = request.get_mut(serial_at..serial_at + SERIAL.len() - 1) {
            let mut left = number;
            for digit in field.iter_mut().rev() {
                *digit = b'0' + (left % 10) as u8;
                left /= 10;
            }
        }
        if let Some(due) = due {
            plan.pacer.until(due).await;
        }
        let began = due.unwrap_or_else(now_ns);
        let work = connection.exchange(&plan, &request, began);
        let outcome = match tokio::time::timeout(limit, work).await {
            Ok(outcome) => outcome,
            Err(_) => Err((Fault::Timeout, String::from("no whole answer in time"))),
        };
        let now = now_ns();
        let mut stats = plan.stats.borrow_mut();
        stats.requests += 1;
        stats.end_ns = now;
        match outcome {
            Ok(()) => stats.latency.saturating_record(now - began),
            Err((fault, message)) => {
                stats.fault(fault, message);
                connection = Connection::default();
            }
        }
    }
}

type Failure = (Fault, String);

fn broken(error: &io::Error) -> Failure {
    (Fault::Io, error.to_string())
}

#[derive(Default)]
struct Connection {
    stream: Option<TcpStream>,
    buffer: Vec<u8>,
}

impl Connection {
    /// Sends the request and reads its answer. A kept-alive connection that turns out to be closed
    /// before the first byte is replaced once, as any client does.
    async fn exchange(&mut self, plan: &Plan, request: &[u8], began: u64) -> Result<(), Failure> {
        if let Some(stream) = self.stream.take() {
            match self.on(stream, plan, request, began).await {
                Err(None) => plan.stats.borrow_mut().reconnects += 1,
                Err(Some(failure)) => return Err(failure),
                Ok(()) => return Ok(()),
            }
        }
        let stream = TcpStream::connect(plan.options.target.address)
            .await
            .map_err(|e| broken(&e))?;
        stream.set_nodelay(true).map_err(|e| broken(&e))?;
        let outcome = self.on(stream, plan, request, began).await;
        outcome.map_err(|failure| {
            failure.unwrap_or_else(|| (Fault::Io, String::from("closed before the first byte")))
        })
    }

    /// One exchange on one connection; `Err(None)` when it was closed before the first byte.
    async fn on(
        &mut self,
        mut stream: TcpStream,
        plan: &Plan,
        request: &[u8],
        began: u64,
    ) -> Result<(), Option<Failure>> {
        self.buffer.clear();
        self.buffer.reserve(READ_BYTES);
        stream.write_all(request).await.map_err(|_| None)?;
        let mut answer = Answer::new(plan);
        loop {
            let count = match stream.read_buf(&mut self.buffer).await {
                Ok(count) => count,
                Err(_) if answer.untouched() => return Err(None),
                Err(error) => return Err(Some(broken(&error))),
            };
            let now = now_ns();
            if count == 0 {
                if answer.untouched() {
                    return Err(None);
                }
                return answer.at_close().map_err(Some);
            }
            answer.feed(&mut self.buffer, now, began).map_err(Some)?;
            if answer.ended {
                answer.judge().map_err(Some)?;
                if !answer.framing.close {
                    self.stream = Some(stream);
                }
                return Ok(());
            }
        }
    }
}
