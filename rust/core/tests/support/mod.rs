//! A scripted engine, a client of exact bytes, and a gateway between them, all on the loopback.
#![allow(
    missing_docs,
    dead_code,
    unreachable_pub,
    clippy::unwrap_used,
    clippy::expect_used,
    clippy::panic,
    clippy::indexing_slicing
)]

pub mod client;
pub mod engine;

use std::future::poll_fn;
use std::io;
use std::net::SocketAddr;
use std::path::PathBuf;
use std::sync::Arc;
use std::sync::atomic::{AtomicUsize, Ordering};
use std::time::Duration;

use bytes::Bytes;
use forebay_core::dialect::Dialect;
use forebay_core::gateway::{Endpoint, Gateway, Request};
use forebay_core::keys::KeySpec;
use forebay_core::limit::Region;
use forebay_core::listener::{Bounds, Listener, Sockets};
use forebay_core::price::PriceSpec;
use forebay_core::prompt_log::{ChoiceSpec, SettingsSpec};
use forebay_core::record::UsageEvent;
use forebay_core::slot::Slot;
use forebay_core::snapshot::{
    AdaptiveSpec, DrainSpec, ModelSpec, SnapshotSpec, TargetSpec, UpstreamSpec,
};
use forebay_core::subjects::LimitsSpec;
use sha2::{Digest, Sha256};
use tokio::io::{AsyncReadExt, AsyncWriteExt};
use tokio::net::UnixListener;

use engine::Engine;

/// The whole text of a key: `fb-`, kind, id, secret and the CRC-32 of all that in base62.
pub fn key_text(id: &str) -> String {
    const ALPHABET: &[u8] = b"0123456789ABCDEFGHIJKLMNOPQRSTUVWXYZabcdefghijklmnopqrstuvwxyz";
    assert_eq!(id.len(), 12);
    let body = format!("fb-i{id}{}", "s".repeat(32));
    let mut crc = crc32fast::hash(body.as_bytes()) as usize;
    let mut check = [0; 6];
    for place in check.iter_mut().rev() {
        *place = ALPHABET[crc % 62];
        crc /= 62;
    }
    body + std::str::from_utf8(&check).unwrap()
}

/// The record of [`key_text`]'s key, without limits.
pub fn key_spec(id: &str) -> KeySpec {
    use std::fmt::Write;
    let digest = Sha256::digest(key_text(id))
        .iter()
        .fold(String::new(), |mut hex, byte| {
            write!(hex, "{byte:02x}").unwrap();
            hex
        });
    KeySpec {
        id: id.to_owned(),
        kind: "inference".to_owned(),
        account: "acme".to_owned(),
        digest,
        previous_digest: None,
        previous_expires_at: None,
        models: None,
        limits: LimitsSpec {
            concurrency: Some(1000),
            ..LimitsSpec::default()
        },
        per_model: rustc_hash::FxHashMap::default(),
        priority: None,
        log: ChoiceSpec::default(),
        expires_at: None,
        revoked: false,
    }
}

pub const KEY: &str = "KEY000000001";

/// What a test may set; the model is `m`, known to the engines as `engine/m`.
pub struct Setup {
    pub first_byte: f64,
    pub idle: f64,
    pub total: f64,
    pub max_answer_bytes: usize,
    pub max_event_bytes: usize,
    pub max_concurrency: Option<u32>,
    pub adaptive: Option<AdaptiveSpec>,
    pub max_waiting: usize,
    pub queue_timeout: f64,
    pub http2: bool,
    pub body_bytes: usize,
    /// Largest form with files in it, bytes.
    pub upload_bytes: u64,
    pub header_read: Duration,
    pub keep_alive: Duration,
    pub body_read: Duration,
    pub write_stall: Duration,
    pub keys: Vec<KeySpec>,
    pub drain: Option<DrainSpec>,
    pub prompt_logs: Option<SettingsSpec>,
    /// The price book.
    pub prices: Vec<PriceSpec>,
    /// Streams are carried on, and every engine can.
    pub resume: bool,
    /// What the engines speak.
    pub dialect: Dialect,
}

impl Default for Setup {
    fn default() -> Self {
        Self {
            first_byte: 5.0,
            idle: 5.0,
            total: 20.0,
            max_answer_bytes: 1 << 20,
            max_event_bytes: 1 << 16,
            max_concurrency: Some(2000),
            adaptive: None,
            max_waiting: 1000,
            queue_timeout: 5.0,
            http2: false,
            body_bytes: 1 << 20,
            upload_bytes: 100 << 20,
            header_read: Duration::from_secs(5),
            keep_alive: Duration::from_secs(60),
            body_read: Duration::from_secs(5),
            write_stall: Duration::from_secs(5),
            keys: vec![key_spec(KEY)],
            drain: None,
            prompt_logs: None,
            prices: Vec::new(),
            resume: false,
            dialect: Dialect::OpenAi,
        }
    }
}

/// A gateway before some engines.
pub struct Rig {
    pub gateway: Arc<Gateway>,
    bounds: Bounds,
    sockets: parking_lot::Mutex<Vec<PathBuf>>,
}

impl Drop for Rig {
    fn drop(&mut self) {
        for path in self.sockets.lock().drain(..) {
            let _ = std::fs::remove_file(path);
        }
    }
}

impl Rig {
    /// Engines by address, named `a`, `b` … in the order in which they are tried.
    pub fn new(setup: Setup, engines: &[&Engine]) -> Self {
        let gateway = Arc::new(Gateway::new(
            tokio::runtime::Handle::current(),
            Arc::new(Region::small(64, 1, 0)),
        ));
        let names = ["a", "b", "c"];
        let upstreams = engines
            .iter()
            .zip(names)
            .map(|(engine, name)| UpstreamSpec {
                name: name.to_owned(),
                url: format!("http://{}", engine.address),
                api_key: Some("engine-secret".to_owned()),
                http2: setup.http2,
                max_concurrency: setup.max_concurrency,
                adaptive: setup.adaptive,
                max_waiting: setup.max_waiting,
                queue_timeout_s: setup.queue_timeout,
                connect_s: 2.0,
                include_usage: true,
                continuous_usage: true,
                rid: true,
                abort_path: Some("/abort_request".to_owned()),
                drain: setup.drain,
                continues: setup.resume,
                dialect: setup.dialect,
                ..UpstreamSpec::default()
            });
        let targets = engines.iter().zip(names).map(|(_, name)| TargetSpec {
            upstream: name.to_owned(),
            model: "engine/m".to_owned(),
            ..TargetSpec::default()
        });
        gateway
            .configure(SnapshotSpec {
                upstreams: upstreams.collect(),
                models: vec![ModelSpec {
                    name: "m".to_owned(),
                    aliases: vec!["alias".to_owned()],
                    targets: targets.collect(),
                    first_byte_s: setup.first_byte,
                    idle_s: setup.idle,
                    total_s: setup.total,
                    resume: setup.resume,
                    ..ModelSpec::default()
                }],
                max_event_bytes: setup.max_event_bytes,
                max_answer_bytes: setup.max_answer_bytes,
                complete: true,
                prompt_logs: setup.prompt_logs,
                files: None,
            })
            .unwrap();
        gateway.load_prices(setup.prices).unwrap();
        gateway.load_keys(setup.keys, true).unwrap();
        // Shown where a test fails.
        gateway.on_failure(Box::new(|failure| println!("{}", failure.error)));
        Self {
            gateway,
            bounds: Bounds {
                body_bytes: setup.body_bytes,
                upload_bytes: setup.upload_bytes,
                header_bytes: 16 * 1024,
                header_read: setup.header_read,
                keep_alive: setup.keep_alive,
                body_read: setup.body_read,
                write_stall: setup.write_stall,
                sockets: Sockets {
                    most: 100,
                    idle: Duration::from_secs(600),
                },
            },
            sockets: parking_lot::Mutex::default(),
        }
    }

    /// Admits one request of [`KEY`].
    pub fn admit(&self, endpoint: Endpoint, body: &str) -> Arc<Slot> {
        self.admit_as(KEY, endpoint, body)
    }

    /// Admits one request of the key with this id.
    pub fn admit_as(&self, id: &str, endpoint: Endpoint, body: &str) -> Arc<Slot> {
        let authorization = format!("Bearer {}", key_text(id));
        let request = Request {
            authorization: Some(authorization.as_bytes()),
            content_type: Some(b"application/json"),
            ..Request::default()
        };
        self.gateway
            .admit(endpoint, request, Bytes::copy_from_slice(body.as_bytes()))
    }

    /// Sends a chat request and reads its whole answer.
    pub async fn chat(&self, stream: bool) -> Answer {
        Answer::of(&self.admit(Endpoint::Chat, &chat(stream))).await
    }

    /// The one usage event that the test's one request must leave, once nothing runs any more.
    pub async fn event(&self) -> UsageEvent {
        let mut events = self.events(1).await;
        events.remove(0)
    }

    /// Exactly `count` events; all permits are back.
    pub async fn events(&self, count: usize) -> Vec<UsageEvent> {
        until("the requests end", || {
            self.gateway.metrics.in_flight.get() == 0 && self.gateway.events.len() == count
        })
        .await;
        tokio::time::sleep(Duration::from_millis(5)).await;
        assert_eq!(self.gateway.metrics.in_flight.get(), 0);
        let key = self
            .gateway
            .keys
            .authenticate(key_text(KEY).as_bytes(), 0.0);
        if let Ok(key) = key {
            assert_eq!(key.meter().state(self.gateway.now().mono).in_flight, 0);
        }
        let events = self.gateway.events.take(usize::MAX);
        assert_eq!(events.len(), count);
        events
    }

    /// A listener before the gateway and a fake application behind it.
    pub fn listen(&self) -> Listener {
        self.listen_on("127.0.0.1:0".parse().unwrap(), false)
            .unwrap()
    }

    /// The same on an address that others may share.
    pub fn listen_on(&self, address: SocketAddr, shared: bool) -> io::Result<Listener> {
        let app = fake_app();
        self.sockets.lock().push(app.clone());
        let gateway = Arc::clone(&self.gateway);
        Listener::start(gateway, address, shared, app, self.bounds.clone())
    }
}

pub fn chat(stream: bool) -> String {
    format!(
        "{{\"model\":\"m\",\"stream\":{stream},\"messages\":[{{\"role\":\"user\",\"content\":\"hi\"}}]}}"
    )
}

/// A whole answer as a front end takes it from a slot.
#[derive(Debug)]
pub struct Answer {
    pub status: u16,
    pub headers: Vec<(String, String)>,
    pub body: String,
    pub batches: usize,
}

impl Answer {
    pub async fn of(slot: &Slot) -> Self {
        let head = within(poll_fn(|cx| slot.poll_head(cx)))
            .await
            .expect("a head");
        let mut body = head.body.to_vec();
        let mut batches = 0;
        while head.more
            && let Some(batch) = within(poll_fn(|cx| slot.poll_bytes(cx))).await
        {
            body.extend_from_slice(&batch);
            batches += 1;
        }
        Self {
            status: head.status,
            headers: head
                .headers
                .iter()
                .map(|(name, value)| (name.to_string(), value.to_str().unwrap().to_owned()))
                .collect(),
            body: String::from_utf8(body).unwrap(),
            batches,
        }
    }

    pub fn header(&self, name: &str) -> Option<&str> {
        self.headers
            .iter()
            .find(|(n, _)| n == name)
            .map(|(_, value)| value.as_str())
    }
}

/// Every wait of a test is bounded.
pub async fn within<F: Future>(future: F) -> F::Output {
    tokio::time::timeout(Duration::from_secs(8), future)
        .await
        .expect("it takes too long")
}

pub async fn until(what: &str, holds: impl Fn() -> bool) {
    for _ in 0..4000 {
        if holds() {
            return;
        }
        tokio::time::sleep(Duration::from_millis(1)).await;
    }
    panic!("never: {what}");
}

/// Answers every request with what it received, on a Unix socket.
fn fake_app() -> PathBuf {
    static NEXT: AtomicUsize = AtomicUsize::new(0);
    let number = NEXT.fetch_add(1, Ordering::Relaxed);
    let path = std::env::temp_dir().join(format!("forebay-{}-{number}.sock", std::process::id()));
    let _ = std::fs::remove_file(&path);
    let listener = UnixListener::bind(&path).unwrap();
    tokio::spawn(async move {
        while let Ok((mut stream, _)) = listener.accept().await {
            tokio::spawn(async move {
                let mut buffer = Vec::new();
                while let Some(seen) = engine::Received::read(&mut stream, &mut buffer).await {
                    let text = format!("{}\r\n\r\n{}", seen.head, seen.body);
                    let head = format!(
                        "HTTP/1.1 200 OK\r\nserver: app\r\ncontent-length: {}\r\n\r\n",
                        text.len()
                    );
                    if stream.write_all((head + &text).as_bytes()).await.is_err() {
                        return;
                    }
                }
            });
        }
    });
    path
}

/// Reads until the peer closes.
pub async fn rest(stream: &mut (impl AsyncReadExt + Unpin)) -> Vec<u8> {
    let mut out = Vec::new();
    // A reset is an end as well.
    let _ = within(stream.read_to_end(&mut out)).await;
    out
}
