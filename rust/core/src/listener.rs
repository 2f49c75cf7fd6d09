//! The HTTP listener: inference answered here, everything else by the application behind it.
//!
//! A request for one of the inference paths costs no Python: it is read, admitted and relayed on
//! the runtime's thread. All other paths go, as they came, to the application (Starlette), which
//! listens on a Unix socket of this process, with the client's address in `x-forebay-peer`.
mod app;
mod body;
mod inference;
mod object;
mod socket;
mod upload;
mod ws;

use std::io;
use std::net::{IpAddr, SocketAddr};
use std::path::PathBuf;
use std::sync::Arc;
use std::time::Duration;

use http::{Request, Response};
use hyper::body::Incoming;
use hyper::service::service_fn;
use hyper_util::rt::{TokioExecutor, TokioIo, TokioTimer};
use hyper_util::server::conn::auto::Builder;
use hyper_util::server::graceful::GracefulShutdown;
use tokio::net::{TcpSocket, TcpStream};
use tokio::sync::watch;

use crate::door::Way;
use crate::gateway::Gateway;
use crate::pass::object::Object;

use app::App;
use body::Answer;
use socket::Socket;
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
    /// Until a request's head is there.
    pub header_read: Duration,
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
    bounds: Bounds,
}

/// A running listener.
pub struct Listener {
    address: SocketAddr,
    stop: watch::Sender<bool>,
    stopped: watch::Receiver<bool>,
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
        let (stop, stopping) = watch::channel(false);
        let (done, stopped) = watch::channel(false);
        let shared = Arc::new(Shared {
            gateway,
            app: App::new(app),
            sockets: ws::Open::new(bounds.sockets),
            bounds,
        });
        tokio::spawn(async move {
            accept(listener, shared, stopping).await;
            // Nobody may be waiting any more.
            let _ = done.send(true);
        });
        Ok(Self {
            address,
            stop,
            stopped,
        })
    }

    /// Where it listens, with the port that the system chose.
    pub fn address(&self) -> SocketAddr {
        self.address
    }

    /// Accepts no more, closes idle connections, lets running requests end; waits up to `grace`.
    /// Whether all had ended.
    pub async fn stop(&self, grace: Duration) -> bool {
        // An error means that the listener has ended already.
        let _ = self.stop.send(true);
        let mut stopped = self.stopped.clone();
        tokio::time::timeout(grace, stopped.wait_for(|done| *done))
            .await
            .is_ok()
    }
}

async fn accept(
    listener: tokio::net::TcpListener,
    shared: Arc<Shared>,
    mut stopping: watch::Receiver<bool>,
) {
    let graceful = GracefulShutdown::new();
    let mut builder = Builder::new(TokioExecutor::new());
    builder
        .http1()
        .timer(TokioTimer::new())
        .header_read_timeout(shared.bounds.header_read)
        .max_buf_size(shared.bounds.header_bytes.max(8192));
    builder
        .http2()
        .timer(TokioTimer::new())
        .max_header_list_size(u32::try_from(shared.bounds.header_bytes).unwrap_or(u32::MAX))
        .max_concurrent_streams(HTTP2_STREAMS)
        .max_send_buf_size(HTTP2_SEND_BYTES)
        .keep_alive_interval(Duration::from_secs(30))
        .keep_alive_timeout(Duration::from_secs(20));
    loop {
        let accepted = tokio::select! {
            biased;
            _ = stopping.wait_for(|stop| *stop) => break,
            accepted = listener.accept() => accepted,
        };
        match accepted {
            Ok((stream, peer)) => connection(&builder, &graceful, &shared, stream, peer.ip()),
            // One connection failed, or there are no descriptors left: neither ends the listener.
            Err(_) => tokio::time::sleep(ACCEPT_PAUSE).await,
        }
    }
    drop(listener);
    graceful.shutdown().await;
    shared.sockets.ended().await;
}

fn connection(
    builder: &Builder<TokioExecutor>,
    graceful: &GracefulShutdown,
    shared: &Arc<Shared>,
    stream: TcpStream,
    peer: IpAddr,
) {
    // It fails only on a connection that is gone already.
    let _ = stream.set_nodelay(true);
    let bounds = &shared.bounds;
    let stream = Socket::new(stream, bounds.header_read, bounds.write_stall);
    let shared = Arc::clone(shared);
    let service = service_fn(move |request| handle(Arc::clone(&shared), peer, request));
    let serving = graceful.watch(
        builder
            .serve_connection_with_upgrades(TokioIo::new(stream), service)
            .into_owned(),
    );
    tokio::spawn(async move {
        // A connection that breaks has dropped its request, which is how that is cancelled.
        let _ = serving.await;
    });
}

async fn handle(
    shared: Arc<Shared>,
    peer: IpAddr,
    mut request: Request<Incoming>,
) -> Result<Response<Answer>, std::convert::Infallible> {
    if let Err(error) = inference::framing(request.headers(), request.version()) {
        return Ok(inference::unreadable(&shared, request.headers(), &error));
    }
    if let Some(answer) = ws::answer(&shared, &mut request).await {
        return Ok(answer);
    }
    let answer = match Way::of_http(request.uri().path()) {
        Some(way) => inference::answer(&shared, way, request).await,
        None if let Some(endpoint) = upload::of_path(request.uri().path()) => {
            upload::answer(&shared, endpoint, request).await
        }
        None if let Some(found) = Object::of(
            request.method(),
            request.uri().path(),
            request.uri().query().unwrap_or_default(),
        ) =>
        {
            object::answer(&shared, found, request).await
        }
        None => shared.app.answer(&shared, peer, request).await,
    };
    Ok(answer)
}
