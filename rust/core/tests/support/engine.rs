//! An engine that does exactly what its script says.
use std::net::SocketAddr;
use std::sync::Arc;
use std::sync::atomic::{AtomicUsize, Ordering};
use std::time::Duration;

use parking_lot::Mutex;
use tokio::io::{AsyncRead, AsyncReadExt, AsyncWriteExt};
use tokio::net::{TcpListener, TcpStream};

/// What the engine does next on a connection.
#[derive(Clone, Debug)]
pub enum Step {
    Send(Vec<u8>),
    Wait(Duration),
    /// Nothing more, until the other side closes.
    Hang,
    Close,
    Reset,
    /// Sends this over and over until the other side closes.
    Flood(Vec<u8>),
}

/// One request as it arrived.
#[derive(Clone, Debug)]
pub struct Received {
    pub head: String,
    pub body: String,
}

impl Received {
    /// The next request of a connection; `buffer` holds what came too early.
    pub async fn read(stream: &mut (impl AsyncRead + Unpin), buffer: &mut Vec<u8>) -> Option<Self> {
        let mut need = None;
        loop {
            if need.is_none()
                && let Some(at) = buffer.windows(4).position(|w| w == b"\r\n\r\n")
            {
                let head = String::from_utf8(buffer[..at].to_vec()).unwrap();
                let length = head.lines().find_map(|line| {
                    line.to_ascii_lowercase()
                        .strip_prefix("content-length: ")
                        .map(|n| n.parse::<usize>().unwrap())
                });
                need = Some((head, at + 4, at + 4 + length.unwrap_or(0)));
            }
            if let Some((head, start, end)) = &need
                && buffer.len() >= *end
            {
                let received = Self {
                    head: head.clone(),
                    body: String::from_utf8(buffer[*start..*end].to_vec()).unwrap(),
                };
                buffer.drain(..*end);
                return Some(received);
            }
            if !stream.read_buf(buffer).await.is_ok_and(|count| count > 0) {
                return None;
            }
        }
    }

    pub fn json(&self) -> serde_json::Value {
        serde_json::from_str(&self.body).unwrap()
    }
}

#[derive(Default)]
pub struct Log {
    pub requests: Mutex<Vec<Received>>,
    pub aborts: Mutex<Vec<String>>,
    /// Connections that run a script now.
    pub active: AtomicUsize,
    pub written: AtomicUsize,
}

pub struct Engine {
    pub address: SocketAddr,
    pub log: Arc<Log>,
}

impl Engine {
    /// Every request is answered by `script`, which is given how many came before.
    pub async fn start(
        script: impl Fn(usize) -> Vec<Step> + Send + Sync + Clone + 'static,
    ) -> Self {
        let listener = TcpListener::bind("127.0.0.1:0").await.unwrap();
        let address = listener.local_addr().unwrap();
        let log = Arc::new(Log::default());
        let shared = Arc::clone(&log);
        tokio::spawn(async move {
            while let Ok((stream, _)) = listener.accept().await {
                tokio::spawn(serve(stream, script.clone(), Arc::clone(&shared)));
            }
        });
        Self { address, log }
    }

    /// The same script for every request.
    pub async fn always(script: Vec<Step>) -> Self {
        Self::start(move |_| script.clone()).await
    }

    /// An address that refuses connections.
    pub async fn down() -> Self {
        let listener = TcpListener::bind("127.0.0.1:0").await.unwrap();
        Self {
            address: listener.local_addr().unwrap(),
            log: Arc::default(),
        }
    }

    pub fn requests(&self) -> Vec<Received> {
        self.log.requests.lock().clone()
    }

    pub fn aborts(&self) -> Vec<String> {
        self.log.aborts.lock().clone()
    }

    pub fn active(&self) -> usize {
        self.log.active.load(Ordering::SeqCst)
    }

    pub fn written(&self) -> usize {
        self.log.written.load(Ordering::SeqCst)
    }
}

struct Active(Arc<Log>);

impl Drop for Active {
    fn drop(&mut self) {
        self.0.active.fetch_sub(1, Ordering::SeqCst);
    }
}

async fn serve(mut stream: TcpStream, script: impl Fn(usize) -> Vec<Step>, log: Arc<Log>) {
    stream.set_nodelay(true).unwrap();
    let mut buffer = Vec::new();
    while let Some(received) = Received::read(&mut stream, &mut buffer).await {
        if received.head.starts_with("POST /abort_request ") {
            log.aborts.lock().push(received.body);
            let answer = b"HTTP/1.1 200 OK\r\ncontent-length: 2\r\n\r\n{}";
            if stream.write_all(answer).await.is_err() {
                return;
            }
            continue;
        }
        let number = {
            let mut requests = log.requests.lock();
            requests.push(received);
            requests.len() - 1
        };
        log.active.fetch_add(1, Ordering::SeqCst);
        let _active = Active(Arc::clone(&log));
        let steps = script(number);
        if !play(&mut stream, steps, &log).await {
            return;
        }
    }
}

/// Whether the connection goes on.
async fn play(stream: &mut TcpStream, steps: Vec<Step>, log: &Log) -> bool {
    for step in steps {
        match step {
            Step::Send(bytes) => {
                if stream.write_all(&bytes).await.is_err() {
                    return false;
                }
                log.written.fetch_add(bytes.len(), Ordering::SeqCst);
            }
            Step::Wait(time) => {
                // A peer that leaves meanwhile ends the script.
                let mut byte = [0];
                if tokio::time::timeout(time, stream.peek(&mut byte))
                    .await
                    .is_ok()
                {
                    return false;
                }
            }
            Step::Hang => {
                let mut byte = [0];
                let _ = stream.peek(&mut byte).await;
                return false;
            }
            Step::Close => return false,
            Step::Reset => {
                stream.set_zero_linger().unwrap();
                return false;
            }
            Step::Flood(bytes) => loop {
                let mut rest = &bytes[..];
                while !rest.is_empty() {
                    let Ok(count) = stream.write(rest).await else {
                        return false;
                    };
                    rest = &rest[count..];
                    log.written.fetch_add(count, Ordering::SeqCst);
                }
            },
        }
    }
    true
}

/// A unary answer of known length.
pub fn unary(status: &str, body: &str) -> Vec<u8> {
    format!(
        "HTTP/1.1 {status}\r\ncontent-type: application/json\r\nserver: uvicorn\r\ncontent-length: {}\r\n\r\n{body}",
        body.len()
    )
    .into_bytes()
}

pub const STREAM_HEAD: &[u8] = b"HTTP/1.1 200 OK\r\ncontent-type: text/event-stream; charset=utf-8\r\nserver: uvicorn\r\ntransfer-encoding: chunked\r\n\r\n";
pub const LAST_CHUNK: &[u8] = b"0\r\n\r\n";

/// One HTTP chunk.
pub fn chunk(data: &[u8]) -> Vec<u8> {
    let mut out = format!("{:x}\r\n", data.len()).into_bytes();
    out.extend_from_slice(data);
    out.extend_from_slice(b"\r\n");
    out
}

/// `data:` with running usage, as SGLang sends with `continuous_usage_stats`.
pub fn content(text: &str, tokens: u64) -> String {
    format!(
        "data: {{\"id\":\"x\",\"choices\":[{{\"index\":0,\"delta\":{{\"content\":\"{text}\"}},\"finish_reason\":null}}],\"usage\":{{\"prompt_tokens\":7,\"completion_tokens\":{tokens}}}}}\n\n"
    )
}

/// The same as the client gets it that asked for no usage.
pub fn content_shown(text: &str) -> String {
    format!(
        "data: {{\"id\":\"x\",\"choices\":[{{\"index\":0,\"delta\":{{\"content\":\"{text}\"}},\"finish_reason\":null}}]}}\n\n"
    )
}

pub const FINISH: &str =
    "data: {\"id\":\"x\",\"choices\":[{\"index\":0,\"delta\":{},\"finish_reason\":\"stop\"}]}\n\n";
pub const USAGE: &str = "data: {\"id\":\"x\",\"choices\":[],\"usage\":{\"prompt_tokens\":7,\"completion_tokens\":3}}\n\n";
pub const DONE: &str = "data: [DONE]\n\n";

/// Three tokens, finish, usage, end.
pub fn whole_stream() -> String {
    content("a", 1) + &content("b", 2) + &content("c", 3) + FINISH + USAGE + DONE
}

/// [`whole_stream`] as the client gets it that asked for no usage.
pub fn whole_stream_shown() -> String {
    content_shown("a") + &content_shown("b") + &content_shown("c") + FINISH + DONE
}

pub const UNARY: &str = "{\"id\":\"x\",\"choices\":[{\"index\":0,\"message\":{\"role\":\"assistant\",\"content\":\"hi\"},\"finish_reason\":\"stop\"}],\"usage\":{\"prompt_tokens\":7,\"completion_tokens\":2}}";
