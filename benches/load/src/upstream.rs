//! An upstream shaped like SGLang that costs next to nothing, so that what is measured is the gateway.

use std::cell::RefCell;
use std::collections::HashMap;
use std::io;
use std::net::SocketAddr;
use std::rc::Rc;
use std::sync::atomic::{AtomicU64, Ordering};

use memchr::memmem;
use tokio::io::{AsyncReadExt as _, AsyncWriteExt as _};
use tokio::net::{TcpListener, TcpSocket, TcpStream};

use crate::clock::{Pacer, SECOND, now_ns};
use crate::shapes::{self, Ask, Door, Events, MODEL, STREAM_HEAD, Shape};
use crate::wire::{Dechunker, Framing, bad, framing};

/// Events joined into one write when the upstream has fallen behind its own pace.
const MAX_CATCH_UP: u32 = 16;
const MAX_HEAD: usize = 64 * 1024;
const MAX_BODY: usize = 64 * 1024 * 1024;

/// Streams begun, over all threads: spreads the first events of paced streams over one period.
static STREAMS: AtomicU64 = AtomicU64::new(0);

/// How the upstream runs.
#[derive(Clone, Copy, Debug)]
pub(crate) struct Options {
    /// Address to listen on.
    pub(crate) listen: SocketAddr,
    /// Threads, each with its own listener on the same port.
    pub(crate) threads: usize,
    /// Pause between the bursts of a burst stream, nanoseconds.
    pub(crate) burst_gap_ns: u64,
    /// Paced events are sent only at multiples of this many nanoseconds; 0 sends each at its time.
    pub(crate) quantum_ns: u64,
}

/// Whole unary responses by door and size.
type UnaryCache = HashMap<(u8, usize), Rc<[u8]>>;

struct Shared {
    options: Options,
    pacer: Pacer,
    chat: Events,
    text: Events,
    unary: RefCell<UnaryCache>,
}

/// Serves until the process ends. Fails when the address cannot be bound.
pub(crate) fn run(options: Options) -> io::Result<()> {
    crate::on_threads(options.threads, move |_| async move {
        let listener = listen(options.listen)?;
        let shared = Rc::new(Shared {
            options,
            pacer: Pacer::start(options.quantum_ns)?,
            chat: Events::new(Door::Chat),
            text: Events::new(Door::Text),
            unary: RefCell::default(),
        });
        loop {
            let (stream, _) = listener.accept().await?;
            let shared = Rc::clone(&shared);
            tokio::task::spawn_local(async move {
                // A peer that goes away ends its connection and nothing else.
                let _ = serve(stream, &shared).await;
            });
        }
    })
    .map(|_: Vec<()>| ())
}

/// A listener that shares its port with those of other threads.
pub(crate) fn listen(address: SocketAddr) -> io::Result<TcpListener> {
    let socket = if address.is_ipv4() {
        TcpSocket::new_v4()?
    } else {
        TcpSocket::new_v6()?
    };
    socket.set_reuseaddr(true)?;
    socket.set_reuseport(true)?;
    socket.bind(address)?;
    socket.listen(4096)
}

async fn serve(mut stream: TcpStream, shared: &Shared) -> io::Result<()> {
    stream.set_nodelay(true)?;
    let mut buffer = Vec::with_capacity(4096);
    let mut out = Vec::new();
    loop {
        let Some(request) = read_head(&mut stream, &mut buffer).await? else {
            return Ok(());
        };
        buffer.drain(..request.head_len);
        if request.framing.expects_continue {
            stream.write_all(b"HTTP/1.1 100 Continue\r\n\r\n").await?;
        }
        let ask = read_body(&mut stream, &mut buffer, request.framing).await?;
        out.clear();
        match request.door {
            Some(door) => answer(&mut stream, shared, door, ask, &mut out).await?,
            None => stream.write_all(&request.fixed).await?,
        }
        if request.framing.close {
            return stream.shutdown().await;
        }
    }
}

struct Request {
    head_len: usize,
    framing: Framing,
    door: Option<Door>,
    fixed: Vec<u8>,
}

async fn read_head(stream: &mut TcpStream, buffer: &mut Vec<u8>) -> io::Result<Option<Request>> {
    loop {
        if let Some(end) = memmem::find(buffer, b"\r\n\r\n") {
            return parse_head(buffer, end + 4).map(Some);
        }
        if buffer.len() > MAX_HEAD {
            return Err(bad("head over 64 KiB"));
        }
        if stream.read_buf(buffer).await? == 0 {
            return Ok(None);
        }
    }
}

fn parse_head(buffer: &[u8], head_len: usize) -> io::Result<Request> {
    let mut headers = [httparse::EMPTY_HEADER; 100];
    let mut parsed = httparse::Request::new(&mut headers);
    parsed
        .parse(buffer)
        .map_err(|_| bad("malformed request head"))?;
    let framing = framing(parsed.headers)?;
    let target = parsed.path.unwrap_or_default();
    let path = target.split('?').next().unwrap_or_default();
    let door = match (parsed.method, path) {
        (Some("POST"), "/v1/chat/completions") => Some(Door::Chat),
        (Some("POST"), "/v1/completions") => Some(Door::Text),
        (Some("POST"), "/v1/embeddings") => Some(Door::Embeddings),
        _ => None,
    };
    let fixed = if door.is_some() {
        Vec::new()
    } else {
        fixed(path)
    };
    Ok(Request {
        head_len,
        framing,
        door,
        fixed,
    })
}

/// Answers of the paths that gateways poll.
fn fixed(path: &str) -> Vec<u8> {
    let model = format!(
        r#"{{"id":"{MODEL}","object":"model","created":1795493838,"owned_by":"sglang","root":"{MODEL}","parent":null,"max_model_len":131072}}"#
    );
    let body = match path {
        "/" | "/ready" | "/health" | "/ping" | "/health_generate" | "/abort_request" => {
            String::new()
        }
        "/v1/models" => format!(r#"{{"object":"list","data":[{model}]}}"#),
        "/model_info" | "/get_model_info" => format!(
            r#"{{"model_path":"{MODEL}","tokenizer_path":"{MODEL}","is_generation":true,"preferred_sampling_params":null,"weight_version":"default"}}"#
        ),
        "/server_info" | "/get_server_info" => format!(
            r#"{{"model_path":"{MODEL}","served_model_name":"{MODEL}","version":"0.5.23","dp_size":1,"max_running_requests":2048,"max_total_num_tokens":1000000}}"#
        ),
        "/v1/loads" => String::from(
            r#"{"timestamp":"2026-11-24T04:17:20.745120+00:00","version":"0.5.23","accelerator":null,"num_accelerators":1,"loads":[{"timestamp":1795493840.7,"dp_rank":0,"num_running_reqs":0,"num_waiting_reqs":0,"num_used_tokens":0,"num_total_tokens":0,"max_total_num_tokens":1000000,"max_running_requests":2048,"token_usage":0.0,"gen_throughput":0.0,"cache_hit_rate":0.0}]}"#,
        ),
        _ if path.strip_prefix("/v1/models/") == Some(MODEL) => model,
        _ => return shapes::json("404 Not Found", r#"{"detail":"Not Found"}"#),
    };
    shapes::json("200 OK", &body)
}

/// Reads one body, reads what it asks for, and takes it out of the buffer.
async fn read_body(
    stream: &mut TcpStream,
    buffer: &mut Vec<u8>,
    framing: Framing,
) -> io::Result<Ask> {
    if !framing.chunked {
        let length = framing.length.unwrap_or(0);
        if length > MAX_BODY {
            return Err(bad("body over 64 MiB"));
        }
        buffer.reserve(length.saturating_sub(buffer.len()));
        while buffer.len() < length {
            more(stream, buffer).await?;
        }
        let ask = shapes::read_ask(buffer.get(..length).unwrap_or_default());
        buffer.drain(..length);
        return Ok(ask);
    }
    let mut decoder = Dechunker::default();
    let mut body = Vec::new();
    loop {
        let used = decoder.feed(buffer, |part| body.extend_from_slice(part))?;
        buffer.drain(..used);
        if decoder.done() {
            return Ok(shapes::read_ask(&body));
        }
        if body.len() > MAX_BODY {
            return Err(bad("body over 64 MiB"));
        }
        more(stream, buffer).await?;
    }
}

async fn more(stream: &mut TcpStream, buffer: &mut Vec<u8>) -> io::Result<()> {
    match stream.read_buf(buffer).await? {
        0 => Err(io::ErrorKind::UnexpectedEof.into()),
        _ => Ok(()),
    }
}

async fn answer(
    stream: &mut TcpStream,
    shared: &Shared,
    door: Door,
    ask: Ask,
    out: &mut Vec<u8>,
) -> io::Result<()> {
    let events = if door == Door::Text {
        &shared.text
    } else {
        &shared.chat
    };
    match ask.shape {
        Shape::Unary { bytes } => {
            let key = (door as u8, bytes);
            let known = shared.unary.borrow().get(&key).cloned();
            let response = known.unwrap_or_else(|| {
                let response: Rc<[u8]> = shapes::unary(door, bytes).into();
                shared.unary.borrow_mut().insert(key, Rc::clone(&response));
                response
            });
            stream.write_all(&response).await
        }
        Shape::Burst { chunks, bursts } => {
            out.extend_from_slice(STREAM_HEAD);
            events.first(out);
            for burst in 0..bursts {
                if burst > 0 {
                    shared
                        .pacer
                        .until(now_ns() + shared.options.burst_gap_ns)
                        .await;
                }
                let now = now_ns();
                for _ in chunks * burst / bursts..chunks * (burst + 1) / bursts {
                    events.content(out, now, 0);
                }
                if burst + 1 == bursts {
                    events.end(out, ask.include_usage);
                }
                stream.write_all(out).await?;
                out.clear();
            }
            Ok(())
        }
        Shape::Pace {
            per_s,
            events: total,
        } => {
            out.extend_from_slice(STREAM_HEAD);
            events.first(out);
            stream.write_all(out).await?;
            let period = SECOND / per_s;
            let start = now_ns() + phase(period);
            let due = |n: u64| shared.pacer.round(start + n * period);
            let mut sent = 0;
            while sent < total {
                shared.pacer.until(due(sent)).await;
                out.clear();
                let now = now_ns();
                for _ in 0..MAX_CATCH_UP {
                    if sent == total || due(sent) > now {
                        break;
                    }
                    events.content(out, now, now - due(sent));
                    sent += 1;
                }
                if sent == total {
                    events.end(out, ask.include_usage);
                }
                stream.write_all(out).await?;
            }
            Ok(())
        }
    }
}

/// A stream's offset within one period: multiples of the golden ratio are spread evenly for any
/// number of streams.
fn phase(period: u64) -> u64 {
    let turn = STREAMS
        .fetch_add(1, Ordering::Relaxed)
        .wrapping_mul(0x9e37_79b9_7f4a_7c15);
    ((u128::from(turn) * u128::from(period)) >> 64) as u64
}
