//! The way to the application: plain HTTP/1.1 over a Unix socket, kept alive.
use std::future::Future;
use std::net::IpAddr;
use std::path::PathBuf;
use std::pin::Pin;
use std::sync::Arc;
use std::task::{Context, Poll};
use std::time::Duration;

use http::{HeaderName, HeaderValue, Request, Response, Uri, Version};
use hyper::body::Incoming;
use hyper_util::client::legacy::Client;
use hyper_util::client::legacy::connect::{Connected, Connection};
use hyper_util::rt::{TokioExecutor, TokioIo, TokioTimer};
use tokio::net::UnixStream;

use super::Shared;
use super::body::Answer;
use super::inference::refused;
use crate::door::Door;
use crate::error::{Error, Kind};
use crate::upstream::is_hop_by_hop;

/// Tells the application who sent a request: the address of the connection's other end. What a
/// client says under this name never gets there.
const PEER: HeaderName = HeaderName::from_static("x-forebay-peer");

/// The application behind the listener.
pub(super) struct App {
    client: Client<Connector, Incoming>,
}

#[derive(Clone)]
struct Connector(Arc<PathBuf>);

/// A connection to the application.
struct Stream(TokioIo<UnixStream>);

impl App {
    pub(super) fn new(socket: PathBuf) -> Self {
        let client = Client::builder(TokioExecutor::new())
            .pool_timer(TokioTimer::new())
            .pool_idle_timeout(Duration::from_secs(30))
            .build(Connector(Arc::new(socket)));
        Self { client }
    }

    /// Passes a request of `peer` on and its answer back.
    pub(super) async fn answer(
        &self,
        shared: &Shared,
        peer: IpAddr,
        request: Request<Incoming>,
    ) -> Response<Answer> {
        let id = request.headers().get("x-request-id").cloned();
        match self.client.request(forwarded(request, peer)).await {
            Ok(response) => {
                let (mut parts, body) = response.into_parts();
                strip(&mut parts.headers);
                parts.headers.remove("server");
                parts.version = Version::HTTP_11;
                Response::from_parts(parts, Answer::App(body))
            }
            Err(cause) => refused(
                shared,
                Door::OpenAi,
                &id.into_iter()
                    .map(|id| (HeaderName::from_static("x-request-id"), id))
                    .collect(),
                &Error::new(Kind::Unavailable, "The gateway is busy. Please try again.")
                    .cause(crate::upstream::chain(&cause)),
            ),
        }
    }
}

fn forwarded(request: Request<Incoming>, peer: IpAddr) -> Request<Incoming> {
    let (mut parts, body) = request.into_parts();
    strip(&mut parts.headers);
    parts.headers.remove(PEER);
    // An IPv4 client of an IPv6 socket is known by the address that it has.
    if let Ok(peer) = HeaderValue::try_from(peer.to_canonical().to_string()) {
        parts.headers.insert(PEER, peer);
    }
    if let Some(authority) = parts.uri.authority()
        && let Ok(host) = HeaderValue::from_str(authority.as_str())
    {
        parts.headers.insert(http::header::HOST, host);
    }
    let path = parts.uri.path_and_query().cloned();
    let uri = Uri::builder().scheme("http").authority("app");
    parts.uri = match path {
        Some(path) => uri.path_and_query(path),
        None => uri.path_and_query("/"),
    }
    .build()
    .unwrap_or_default();
    parts.version = Version::HTTP_11;
    Request::from_parts(parts, body)
}

fn strip(headers: &mut http::HeaderMap) {
    let dropped: Vec<_> = headers
        .keys()
        .filter(|name| is_hop_by_hop(name, headers))
        .cloned()
        .collect();
    for name in dropped {
        headers.remove(name);
    }
}

impl tower_service::Service<Uri> for Connector {
    type Response = Stream;
    type Error = std::io::Error;
    type Future = Pin<Box<dyn Future<Output = Result<Stream, std::io::Error>> + Send>>;

    fn poll_ready(&mut self, _: &mut Context<'_>) -> Poll<Result<(), Self::Error>> {
        Poll::Ready(Ok(()))
    }

    fn call(&mut self, _: Uri) -> Self::Future {
        let path = Arc::clone(&self.0);
        Box::pin(async move { Ok(Stream(TokioIo::new(UnixStream::connect(&*path).await?))) })
    }
}

impl Connection for Stream {
    fn connected(&self) -> Connected {
        Connected::new()
    }
}

impl hyper::rt::Read for Stream {
    fn poll_read(
        mut self: Pin<&mut Self>,
        cx: &mut Context<'_>,
        buf: hyper::rt::ReadBufCursor<'_>,
    ) -> Poll<std::io::Result<()>> {
        Pin::new(&mut self.0).poll_read(cx, buf)
    }
}

impl hyper::rt::Write for Stream {
    fn poll_write(
        mut self: Pin<&mut Self>,
        cx: &mut Context<'_>,
        buf: &[u8],
    ) -> Poll<std::io::Result<usize>> {
        Pin::new(&mut self.0).poll_write(cx, buf)
    }

    fn poll_flush(mut self: Pin<&mut Self>, cx: &mut Context<'_>) -> Poll<std::io::Result<()>> {
        Pin::new(&mut self.0).poll_flush(cx)
    }

    fn poll_shutdown(mut self: Pin<&mut Self>, cx: &mut Context<'_>) -> Poll<std::io::Result<()>> {
        Pin::new(&mut self.0).poll_shutdown(cx)
    }
}
