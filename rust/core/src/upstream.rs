//! The client side: one pooled HTTP client per upstream.
use std::pin::Pin;
use std::sync::Arc;
use std::task::{Context, Poll};
use std::time::Duration;

use bytes::Bytes;
use http::header::{ACCEPT, AUTHORIZATION, CONTENT_TYPE, HeaderMap, HeaderName, HeaderValue};
use http::uri::{Authority, PathAndQuery, Scheme};
use http::{Method, Request, Response, Uri, Version};
use http_body::{Body, Frame, SizeHint};
use http_body_util::{BodyExt, Limited};
use hyper::body::Incoming;
use hyper_rustls::{HttpsConnector, HttpsConnectorBuilder};
use hyper_util::client::legacy::Client;
use hyper_util::client::legacy::connect::HttpConnector;
use hyper_util::rt::{TokioExecutor, TokioTimer};

use crate::adaptive::Adaptive;
use crate::counters::Counters;
use crate::error::{Error, Kind};
use crate::gate::{Gate, GateSpec};
use crate::limit::{Permits, Region};
use crate::linger::OnDisconnect;
use crate::metrics::Counter;
use crate::snapshot::{MAX_TIMEOUT, UpstreamSpec};

/// An idle connection is dropped before SGLang's uvicorn closes it, at 5.0 s.
const POOL_IDLE: Duration = Duration::from_secs(4);

/// A request body of known length in a few slices: the client's own bytes with ours between them.
#[derive(Debug)]
pub struct Rope {
    parts: std::vec::IntoIter<Bytes>,
    remaining: u64,
}

impl Rope {
    /// A body of `parts`, in order; empty parts are dropped.
    pub fn new(mut parts: Vec<Bytes>) -> Self {
        parts.retain(|part| !part.is_empty());
        let remaining = parts.iter().map(|part| part.len() as u64).sum();
        Self {
            parts: parts.into_iter(),
            remaining,
        }
    }
}

impl Body for Rope {
    type Data = Bytes;
    type Error = std::convert::Infallible;

    fn poll_frame(
        mut self: Pin<&mut Self>,
        _: &mut Context<'_>,
    ) -> Poll<Option<Result<Frame<Bytes>, Self::Error>>> {
        let part = self.parts.next();
        if let Some(part) = &part {
            self.remaining -= part.len() as u64;
        }
        Poll::Ready(part.map(|part| Ok(Frame::data(part))))
    }

    fn is_end_stream(&self) -> bool {
        self.remaining == 0
    }

    fn size_hint(&self) -> SizeHint {
        SizeHint::with_exact(self.remaining)
    }
}

/// One engine or provider: its address, its credentials, its pool and its capacity.
pub struct Upstream {
    /// The configured name, as shown in `x-forebay-upstream` and in usage.
    pub name: Arc<str>,
    /// What its kind can do.
    pub traits: Traits,
    /// What becomes of a request whose client leaves.
    pub on_disconnect: OnDisconnect,
    /// The way in: how many requests at once, and who waits.
    pub gate: Arc<Gate>,
    /// Requests sent.
    pub attempts: Arc<Counter>,
    scheme: Scheme,
    authority: Authority,
    prefix: String,
    authorization: Option<HeaderValue>,
    client: Client<HttpsConnector<HttpConnector>, Rope>,
    version: Version,
}

/// What an upstream's kind can do on the wire.
#[derive(Clone, Debug, Default, PartialEq, Eq)]
pub struct Traits {
    /// Knows `stream_options.include_usage`.
    pub include_usage: bool,
    /// Knows `stream_options.continuous_usage_stats`.
    pub continuous_usage: bool,
    /// Takes our request id in the body field `rid`.
    pub rid: bool,
    /// Where `{"rid": …}` is posted to stop a request.
    pub abort_path: Option<String>,
    /// Goes on from a last message of the assistant's.
    pub continues: bool,
}

impl Upstream {
    /// The client for one configured upstream. Fails on an address that is none.
    pub fn new(
        spec: &UpstreamSpec,
        counters: &Counters,
        region: &Arc<Region>,
    ) -> Result<Self, String> {
        let uri: Uri = spec
            .url
            .parse()
            .map_err(|e| format!("upstream {}: {e}", spec.name))?;
        let parts = uri.into_parts();
        let (Some(scheme), Some(authority)) = (parts.scheme, parts.authority) else {
            return Err(format!(
                "upstream {}: the address needs a scheme and a host",
                spec.name
            ));
        };
        let prefix = parts
            .path_and_query
            .map_or_else(String::new, |path| path.path().to_owned());
        let authorization = match &spec.api_key {
            Some(key) => {
                let mut value = HeaderValue::try_from(format!("Bearer {key}")).map_err(|_| {
                    format!(
                        "upstream {}: the key has characters no header can carry",
                        spec.name
                    )
                })?;
                value.set_sensitive(true);
                Some(value)
            }
            None => None,
        };
        let mut http = HttpConnector::new();
        http.set_nodelay(true);
        http.enforce_http(false);
        let connect = Duration::try_from_secs_f64(spec.connect_s)
            .map_err(|e| format!("upstream {}: connect timeout: {e}", spec.name))?;
        http.set_connect_timeout(Some(connect));
        http.set_keepalive(Some(Duration::from_secs(30)));
        let tls = tls_config(&scheme)?;
        let connector = HttpsConnectorBuilder::new()
            .with_tls_config(tls)
            .https_or_http();
        let connector = if spec.http2 {
            connector.enable_all_versions().wrap_connector(http)
        } else {
            connector.enable_http1().wrap_connector(http)
        };
        // Prior knowledge over plain TCP; ALPN decides over TLS.
        let h2c = spec.http2 && scheme == Scheme::HTTP;
        let client = Client::builder(TokioExecutor::new())
            .pool_timer(TokioTimer::new())
            .timer(TokioTimer::new())
            .pool_idle_timeout(POOL_IDLE)
            .pool_max_idle_per_host(1024)
            .http2_only(h2c)
            .http2_adaptive_window(true)
            .build(connector);
        Ok(Self {
            name: Arc::from(spec.name.as_str()),
            traits: spec.traits(),
            on_disconnect: spec
                .on_disconnect()
                .map_err(|e| format!("upstream {}: {e}", spec.name))?,
            gate: gate(spec, counters, region)?,
            attempts: counters.upstream(&spec.name),
            scheme,
            authority,
            prefix: prefix.trim_end_matches('/').to_owned(),
            authorization,
            client,
            version: if h2c {
                Version::HTTP_2
            } else {
                Version::HTTP_11
            },
        })
    }

    /// Posts `body` to `path` and waits for the answer's head.
    ///
    /// Errors: [`Kind::Unavailable`] when no connection came about, [`Kind::UpstreamError`] when it
    /// broke. Neither the message nor the client-visible part holds the address.
    pub async fn post(
        &self,
        path: &str,
        headers: &HeaderMap,
        body: Rope,
    ) -> Result<Response<Incoming>, Error> {
        self.attempts.inc();
        self.send(self.request(Method::POST, path, headers, body)?)
            .await
    }

    /// Asks for `path`; errors as [`Upstream::post`].
    pub async fn get(&self, path: &str) -> Result<Response<Incoming>, Error> {
        self.send(self.request(Method::GET, path, &HeaderMap::new(), Rope::new(Vec::new()))?)
            .await
    }

    async fn send(&self, request: Request<Rope>) -> Result<Response<Incoming>, Error> {
        self.client.request(request).await.map_err(|cause| {
            let detail = chain(&cause);
            if cause.is_connect() {
                Error::new(
                    Kind::Unavailable,
                    "The engine cannot be reached. Please try again later.",
                )
                .cause(detail)
            } else {
                Error::new(
                    Kind::UpstreamError,
                    "The engine closed the connection without an answer.",
                )
                .cause(detail)
            }
        })
    }

    fn request(
        &self,
        method: Method,
        path: &str,
        headers: &HeaderMap,
        body: Rope,
    ) -> Result<Request<Rope>, Error> {
        let path = if self.prefix.is_empty() {
            PathAndQuery::try_from(path)
        } else {
            PathAndQuery::try_from(format!("{}{path}", self.prefix))
        };
        let internal = |cause: &dyn std::fmt::Display| {
            Error::new(Kind::Internal, "The request could not be forwarded.").cause(cause)
        };
        let uri = Uri::builder()
            .scheme(self.scheme.clone())
            .authority(self.authority.clone())
            .path_and_query(path.map_err(|e| internal(&e))?)
            .build()
            .map_err(|e| internal(&e))?;
        let mut request = Request::new(body);
        *request.method_mut() = method;
        *request.uri_mut() = uri;
        *request.version_mut() = self.version;
        let out = request.headers_mut();
        out.reserve(headers.len() + 4);
        for (name, value) in headers {
            out.insert(name.clone(), value.clone());
        }
        out.insert(CONTENT_TYPE, HeaderValue::from_static("application/json"));
        out.insert(ACCEPT, HeaderValue::from_static("*/*"));
        if let Some(authorization) = &self.authorization {
            out.insert(AUTHORIZATION, authorization.clone());
        }
        Ok(request)
    }

    /// Tells the engine to stop the request that it knows as `rid`. Best effort, bounded to 2 s.
    pub async fn abort(self: Arc<Self>, rid: String) {
        let Some(path) = self.traits.abort_path.clone() else {
            return;
        };
        let text = Bytes::from(format!("{{\"rid\":\"{rid}\"}}"));
        let headers = HeaderMap::new();
        let call = async {
            // Twice, as a kept connection may be found closed: to stop a request again is harmless.
            for _ in 0..2 {
                let body = Rope::new(vec![text.clone()]);
                let request = self.request(Method::POST, &path, &headers, body)?;
                let Ok(answer) = self.send(request).await else {
                    continue;
                };
                // Read to its end, so that the connection can be used again.
                let rest = Limited::new(answer.into_body(), 4096).collect().await;
                drop(rest);
                break;
            }
            Ok::<(), Error>(())
        };
        // An engine that does not answer has already lost the request's connection.
        let _ = tokio::time::timeout(Duration::from_secs(2), call).await;
    }
}

fn gate(
    spec: &UpstreamSpec,
    counters: &Counters,
    region: &Arc<Region>,
) -> Result<Arc<Gate>, String> {
    let most = spec.most_in_flight();
    let timeout = Duration::try_from_secs_f64(spec.queue_timeout_s)
        .map(|timeout| timeout.min(MAX_TIMEOUT))
        .map_err(|e| format!("upstream {}: queue timeout: {e}", spec.name))?;
    let gate = GateSpec {
        permits: Arc::new(Permits::of(
            region,
            &format!("upstream:{}", spec.name),
            most,
        )),
        adaptive: spec
            .adaptive
            .map(|adaptive| Adaptive::new(adaptive.min, most.unwrap_or(adaptive.max))),
        max_waiting: spec.max_waiting,
        timeout,
    };
    Ok(Gate::new(gate, most.map(|_| counters.gate(&spec.name))))
}

fn tls_config(scheme: &Scheme) -> Result<rustls::ClientConfig, String> {
    let mut roots = rustls::RootCertStore::empty();
    if *scheme == Scheme::HTTPS {
        let found = rustls_native_certs::load_native_certs();
        roots.add_parsable_certificates(found.certs);
        if roots.is_empty() {
            return Err("no root certificates were found on this system".to_owned());
        }
    }
    let provider = Arc::new(rustls::crypto::ring::default_provider());
    rustls::ClientConfig::builder_with_provider(provider)
        .with_safe_default_protocol_versions()
        .map(|builder| builder.with_root_certificates(roots).with_no_client_auth())
        .map_err(|e| format!("TLS cannot be set up: {e}"))
}

/// An error with its sources, for the log.
pub fn chain(error: &dyn std::error::Error) -> String {
    let mut text = error.to_string();
    let mut source = error.source();
    while let Some(cause) = source {
        text.push_str(": ");
        text.push_str(&cause.to_string());
        source = cause.source();
    }
    text
}

/// Headers of one hop (RFC 9110 §7.6.1), which a proxy never passes on.
const HOP_BY_HOP: [&str; 9] = [
    "connection",
    "keep-alive",
    "proxy-authenticate",
    "proxy-authorization",
    "proxy-connection",
    "te",
    "trailer",
    "transfer-encoding",
    "upgrade",
];

/// Headers that are the gateway's own to set, or that would tell what stands behind it.
const OWN: [&str; 14] = [
    "content-length",
    "date",
    "server",
    "via",
    "x-powered-by",
    "set-cookie",
    "alt-svc",
    "strict-transport-security",
    "www-authenticate",
    "location",
    "retry-after",
    "retry-after-ms",
    "x-should-retry",
    "x-request-id",
];

/// Whether an upstream's response header reaches the client.
pub fn passes(name: &HeaderName, headers: &HeaderMap) -> bool {
    let text = name.as_str();
    let own = OWN.contains(&text)
        || text.starts_with("x-ratelimit-")
        || text.starts_with("x-forebay-")
        || text.starts_with("access-control-");
    !own && !is_hop_by_hop(name, headers)
}

/// Whether a header belongs to one hop, by its name or because `Connection` lists it.
pub fn is_hop_by_hop(name: &HeaderName, headers: &HeaderMap) -> bool {
    let text = name.as_str();
    HOP_BY_HOP.contains(&text)
        || headers
            .get_all(http::header::CONNECTION)
            .iter()
            .any(|listed| {
                listed.to_str().is_ok_and(|list| {
                    list.split(',')
                        .any(|token| token.trim().eq_ignore_ascii_case(text))
                })
            })
}
