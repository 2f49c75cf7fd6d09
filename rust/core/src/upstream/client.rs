//! The pooled HTTP client of one upstream.
use std::sync::{Arc, OnceLock};
use std::time::Duration;

use http::uri::Scheme;
use http::{Request, Response, Version};
use hyper::body::Incoming;
use hyper_rustls::{HttpsConnector, HttpsConnectorBuilder};
use hyper_util::client::legacy::Client;
use hyper_util::client::legacy::connect::{CaptureConnection, HttpConnector, capture_connection};
use hyper_util::rt::{TokioExecutor, TokioTimer};

use super::outgoing::Outgoing;
use crate::error::{Error, Kind};

/// An idle connection is dropped before SGLang's uvicorn closes it, at 5.0 s.
const POOL_IDLE: Duration = Duration::from_secs(4);

/// Whether a request that is being sent has a connection yet: before that no engine knows of it.
#[derive(Default)]
pub struct Reach(OnceLock<CaptureConnection>);

impl Reach {
    /// Looks at a request that is to be sent.
    pub(super) fn watch<B>(&self, request: &mut Request<B>) {
        self.0.get_or_init(|| capture_connection(request));
    }

    /// It has, or has had.
    pub fn is_there(&self) -> bool {
        let seen = self.0.get();
        seen.is_some_and(|seen| seen.connection_metadata().is_some())
    }
}

/// Connections to one upstream, kept and made as needed.
pub(super) struct Pool {
    client: Client<HttpsConnector<HttpConnector>, Outgoing>,
    version: Version,
}

impl Pool {
    /// `http2`: by prior knowledge over plain TCP, by ALPN over TLS.
    pub(super) fn new(scheme: &Scheme, http2: bool, connect: Duration) -> Result<Self, String> {
        let mut http = HttpConnector::new();
        http.set_nodelay(true);
        http.enforce_http(false);
        http.set_connect_timeout(Some(connect));
        http.set_keepalive(Some(Duration::from_secs(30)));
        let connector = HttpsConnectorBuilder::new()
            .with_tls_config(tls_config(scheme)?)
            .https_or_http();
        let connector = if http2 {
            connector.enable_all_versions().wrap_connector(http)
        } else {
            connector.enable_http1().wrap_connector(http)
        };
        // Prior knowledge over plain TCP; ALPN decides over TLS.
        let h2c = http2 && *scheme == Scheme::HTTP;
        let client = Client::builder(TokioExecutor::new())
            .pool_timer(TokioTimer::new())
            .timer(TokioTimer::new())
            .pool_idle_timeout(POOL_IDLE)
            .pool_max_idle_per_host(1024)
            .http2_only(h2c)
            .http2_adaptive_window(true)
            .build(connector);
        Ok(Self {
            client,
            version: if h2c {
                Version::HTTP_2
            } else {
                Version::HTTP_11
            },
        })
    }

    /// Sends a request and waits for the answer's head.
    ///
    /// Errors: [`Kind::Unavailable`] when no connection came about, [`Kind::UpstreamError`] when it
    /// broke.
    pub(super) async fn send(
        &self,
        mut request: Request<Outgoing>,
    ) -> Result<Response<Incoming>, Error> {
        *request.version_mut() = self.version;
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
