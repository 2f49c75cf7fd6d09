//! The HTTP listener: inference answered here, everything else by the application behind it.
//!
//! A request for one of the inference paths costs no Python: it is read, admitted and relayed on
//! the runtime's thread. All other paths go, as they came, to the application (Starlette), which
//! listens on a Unix socket of this process, with the client's address in `x-forebay-peer`.
mod app;
mod backlog;
mod body;
mod inference;
mod life;
mod object;
mod socket;
mod upload;
mod ws;

use std::io;
use std::net::{IpAddr, SocketAddr};
use std::path::PathBuf;
use std::pin::pin;
use std::sync::Arc;
use std::time::Duration;

use http::header::CONNECTION;
use http::{HeaderValue, Request, Response, StatusCode, Version};
use hyper::body::Incoming;
use hyper::service::service_fn;
use hyper_util::rt::{TokioExecutor, TokioIo, TokioTimer};
use hyper_util::server::conn::auto::Builder;
use tokio::net::{TcpListener, TcpSocket, TcpStream};
use tokio::sync::watch;

use crate::door::Way;
use crate::gateway::Gateway;
use crate::pass::object::Object;

use app::App;
use body::Answer;
use life::{Connections, Held, Life};
use socket::{Deadlines, Socket};
pub use ws::Sockets;

/// Connections that wait to be accepted.
const BACKLOG: u32 = 4096;
/// Streams of one HTTP/2 connection at once.
const HTTP2_STREAMS: u32 = 1000;
/// What one of them may hold for a client that does not read.
const HTTP2_SEND_BYTES: usize = 64 * 1024;
/// A pause after an accept that failed for want of descriptors.
const ACCEPT_PAUSE: Duration = Duration::from_millis(10);

/// How the listener bounds what clients send.
#[derive(Clone, Debug)]
pub struct Bounds {
    /// Largest request body, bytes.
    pub body_bytes: usize,
    /// Largest form with files in it, bytes.
    pub upload_bytes: u64,
    /// Largest request head, bytes.
    pub header_bytes: usize,
    /// Until a request's head is there, from its first byte, or that a connection says nothing.
    pub header_read: Duration,
    /// How long a connection may be idle between two requests over HTTP/1.
    pub keep_alive: Duration,
    /// Until a request's body is there.
    pub body_read: Duration,
    /// How long a client may take nothing of what is written to it.
    pub write_stall: Duration,
    /// WebSockets.
    pub sockets: Sockets,
}

/// What every connection shares.
struct Shared {
    gateway: Arc<Gateway>,
    app: App,
    sockets: Arc<ws::Open>,
    connections: Arc<Connections>,
    bounds: Bounds,
}

/// A running listener.
pub struct Listener {
    address: SocketAddr,
    connections: Arc<Connections>,
    stage: watch::Receiver<Stage>,
}

/// How far a listener's end has come.
#[derive(Clone, Copy, Debug, PartialEq, Eq, PartialOrd, Ord)]
enum Stage {
    Listening,
    /// It takes no more connections.
    Closed,
    /// There are none any more.
    Ended,
}

impl Listener {
    /// Listens on `address` and serves until [`Listener::stop`]. Runs on the current runtime.
    ///
    /// `shared`: other processes of this user may listen on the address too (`SO_REUSEPORT`), and
    /// the system spreads connections over them. `app` is the application's Unix socket.
    pub fn start(
        gateway: Arc<Gateway>,
        address: SocketAddr,
        shared: bool,
        app: PathBuf,
        bounds: Bounds,
    ) -> io::Result<Self> {
        let socket = if address.is_ipv4() {
            TcpSocket::new_v4()?
        } else {
            TcpSocket::new_v6()?
        };
        socket.set_reuseaddr(true)?;
        socket.set_reuseport(shared)?;
        socket.bind(address)?;
        let listener = socket.listen(BACKLOG)?;
        let address = listener.local_addr()?;
        let connections = Connections::new();
        let (told, stage) = watch::channel(Stage::Listening);
        let shared = Arc::new(Shared {
            gateway,
            app: App::new(app),
            sockets: ws::Open::new(bounds.sockets),
            connections: Arc::clone(&connections),
            bounds,
        });
        tokio::spawn(async move {
            accept(listener, &shared).await;
            told.send_replace(Stage::Closed);
            shared.connections.ended().await;
            shared.sockets.ended().await;
            told.send_replace(Stage::Ended);
        });
        Ok(Self {
            address,
            connections,
            stage,
        })
    }

    /// Where it listens, with the port that the system chose.
    pub fn address(&self) -> SocketAddr {
        self.address
    }

    /// Takes no more connections, once this has ended; whoever was told that it is connected is
    /// served. One that is idle, or becomes so, is closed after `idle`, unless a request comes.
    pub async fn close(&self, idle: Duration) {
        self.connections.close(idle);
        self.reached(Stage::Closed).await;
    }

    /// Connections that may bring another inference request, or have one that runs.
    pub fn expecting(&self) -> usize {
        self.connections.expecting()
    }

    /// Accepts no more, closes idle connections, lets running requests end; waits up to `grace`.
    /// Whether all had ended.
    pub async fn stop(&self, grace: Duration) -> bool {
        self.connections.close(Duration::ZERO);
        tokio::time::timeout(grace, self.reached(Stage::Ended))
            .await
            .is_ok()
    }

    async fn reached(&self, stage: Stage) {
        // An error means that the runtime is gone, and all connections with it.
        let _ = self.stage.clone().wait_for(|now| *now >= stage).await;
    }
}

/// Accepts until the connections are to end.
async fn accept(listener: TcpListener, shared: &Arc<Shared>) {
    let mut builder = Builder::new(TokioExecutor::new());
    builder
        .http1()
        .timer(TokioTimer::new())
        // The socket keeps it.
        .header_read_timeout(None)
        .max_buf_size(shared.bounds.header_bytes.max(8192));
    builder
        .http2()
        .timer(TokioTimer::new())
        .max_header_list_size(u32::try_from(shared.bounds.header_bytes).unwrap_or(u32::MAX))
        .max_concurrent_streams(HTTP2_STREAMS)
        .max_send_buf_size(HTTP2_SEND_BYTES)
        .keep_alive_interval(Duration::from_secs(30))
        .keep_alive_timeout(Duration::from_secs(20));
    let accepting = async {
        loop {
            match listener.accept().await {
                Ok((stream, peer)) => connection(&builder, shared, stream, peer.ip()),
                // One connection failed, or there are no descriptors left: neither ends the listener.
                Err(_) => tokio::time::sleep(ACCEPT_PAUSE).await,
            }
        }
    };
    let closed = async {
        shared.connections.closing().await;
        // Where the system cannot, those whose handshake ends in this very moment are reset.
        let _ = backlog::seal(&listener);
        tokio::time::sleep(backlog::HANDSHAKE).await;
    };
    tokio::select! {
        biased;
        // First, so that when the time is over all that waited has been taken.
        () = accepting => {}
        () = closed => {}
    }
}

fn connection(
    builder: &Builder<TokioExecutor>,
    shared: &Arc<Shared>,
    stream: TcpStream,
    peer: IpAddr,
) {
    // It fails only on a connection that is gone already.
    let _ = stream.set_nodelay(true);
    let bounds = &shared.bounds;
    let life = shared.connections.enter();
    let within = Deadlines {
        head: bounds.header_read,
        idle: bounds.keep_alive,
        write: bounds.write_stall,
    };
    let stream = Socket::new(stream, within, Arc::clone(&life));
    let (shared, running) = (Arc::clone(shared), Arc::clone(&life));
    let service =
        service_fn(move |request| handle(Arc::clone(&shared), running.clone(), peer, request));
    let serving = builder
        .serve_connection_with_upgrades(TokioIo::new(stream), service)
        .into_owned();
    tokio::spawn(async move {
        let mut serving = pin!(serving);
        // A connection that breaks has dropped its request, which is how that is cancelled.
        tokio::select! {
            biased;
            // First: what has come is seen before the time for it is over.
            _ = serving.as_mut() => {}
            crossing = life.over() => {
                serving.as_mut().graceful_shutdown();
                if tokio::time::timeout(crossing, serving.as_mut()).await.is_err() {
                    life.tell();
                    let _ = serving.await;
                }
            }
        }
    });
}

async fn handle(
    shared: Arc<Shared>,
    life: Arc<Life>,
    peer: IpAddr,
    request: Request<Incoming>,
) -> Result<Response<Held>, std::convert::Infallible> {
    let version = request.version();
    let mut running = life.begin(version, request.uri().path().starts_with("/v1/"));
    let mut response = answer(&shared, peer, request).await;
    if response.status() == StatusCode::SWITCHING_PROTOCOLS {
        running.is_upgraded();
    } else if version < Version::HTTP_2 && shared.gateway.is_leaving() {
        let close = HeaderValue::from_static("close");
        response.headers_mut().insert(CONNECTION, close);
    }
    Ok(response.map(|answer| Held {
        answer,
        _running: running,
    }))
}

async fn answer(
    shared: &Arc<Shared>,
    peer: IpAddr,
    mut request: Request<Incoming>,
) -> Response<Answer> {
    if let Err(error) = inference::framing(request.headers(), request.version()) {
        return inference::unreadable(shared, request.headers(), &error);
    }
    if let Some(answer) = ws::answer(shared, &mut request).await {
        return answer;
    }
    match Way::of_http(request.uri().path()) {
        Some(way) => inference::answer(shared, way, request).await,
        None if let Some(endpoint) = upload::of_path(request.uri().path()) => {
            upload::answer(shared, endpoint, request).await
        }
        None if let Some(found) = Object::of(
            request.method(),
            request.uri().path(),
            request.uri().query().unwrap_or_default(),
        ) =>
        {
            object::answer(shared, found, request).await
        }
        None => shared.app.answer(shared, peer, request).await,
    }
}
