//! The client side: where an upstream is, what it is sent, and how.
use std::sync::Arc;
use std::time::{Duration, SystemTime, UNIX_EPOCH};

use bytes::Bytes;
use http::header::{ACCEPT, AUTHORIZATION, CONTENT_TYPE, HeaderMap, HeaderName, HeaderValue};
use http::{Method, Request, Response, StatusCode, Uri};
use http_body_util::{BodyExt, Limited};
use hyper::body::Incoming;

use crate::adaptive::Adaptive;
use crate::counters::Counters;
use crate::dialect::Dialect;
use crate::error::{Error, Kind};
use crate::gate::{Gate, GateSpec};
use crate::gateway::Endpoint;
use crate::health::Health;
use crate::limit::{Permits, Region};
use crate::linger::OnDisconnect;
use crate::metrics::Counter;
use crate::pass::object::Object;
use crate::scrub::ErrorRules;
use crate::snapshot::{MAX_TIMEOUT, SignSpec, UpstreamSpec};

mod address;
mod agent;
mod client;
mod credentials;
mod forward;
mod outgoing;
mod redirect;
mod rope;
pub mod sigv4;
mod socket;

pub use agent::Agent;
pub use client::{Reach, chain};
pub use credentials::AwsCredentials;
pub use forward::{is_hop_by_hop, passes};
pub use outgoing::Outgoing;
pub use rope::Rope;

use address::{Address, Places};
use client::Pool;
use credentials::{Credentials, HeaderList, Wallet};

/// Which unfinished parts of Anthropic's API a request uses.
pub const BETA: &str = "anthropic-beta";

/// Output asked for where neither client nor configuration bounds it and the dialect must, tokens.
const MAX_OUTPUT_TOKENS: u32 = 4096;

/// One engine or provider: its address, its credentials, its pool and its capacity.
pub struct Upstream {
    /// The configured name, as shown in `x-forebay-upstream` and in usage.
    pub name: Arc<str>,
    /// Its kind's name.
    pub kind: Arc<str>,
    /// What its kind can do.
    pub traits: Traits,
    /// What is spoken there about chat.
    pub dialect: Dialect,
    /// What its dialect cannot say is left out; else it is refused.
    pub drop_params: bool,
    /// Asked for where its dialect wants a bound on output and the client names none, tokens.
    pub max_output_tokens: u32,
    /// What its errors mean.
    pub rules: ErrorRules,
    /// What becomes of a request whose client leaves.
    pub on_disconnect: OnDisconnect,
    /// The way in: how many requests at once, and who waits.
    pub gate: Arc<Gate>,
    /// Whether it takes requests, and how well.
    pub health: Arc<Health>,
    /// Requests sent.
    pub attempts: Arc<Counter>,
    /// Where it counts the tokens of a request of Anthropic's Messages.
    pub count_tokens: Option<String>,
    /// What tells of it and starts it, where there is one.
    pub agent: Option<Agent>,
    address: Address,
    places: Places,
    headers: HeaderList,
    sign: Option<SignSpec>,
    redirects: bool,
    /// Nothing is sent before credentials have come.
    waits: bool,
    wallet: Arc<Wallet>,
    pool: Pool,
    /// For WebSockets, where the other one may speak HTTP/2.
    sockets: Option<Pool>,
}

/// What an upstream's kind can do on the wire.
#[derive(Clone, Debug, Default, PartialEq, Eq)]
#[expect(clippy::struct_excessive_bools, reason = "independent facts")]
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

/// What is asked of an upstream.
#[derive(Clone, Copy, Debug)]
pub struct Call<'a> {
    /// Which API.
    pub endpoint: Endpoint,
    /// The answer is to be a stream.
    pub stream: bool,
    /// The model's name there.
    pub model: &'a str,
    /// It is told as Responses, where these are offered beside chat.
    pub responses: bool,
    /// The file or batch that it is about, in place of a model.
    pub object: Option<&'a Object>,
}

impl Upstream {
    /// The client for one configured upstream, of which `health` is known. Fails on what is no address,
    /// path, header or rule.
    pub fn new(
        spec: &UpstreamSpec,
        counters: &Counters,
        region: &Arc<Region>,
        health: Arc<Health>,
    ) -> Result<Self, String> {
        let named = |e: String| format!("upstream {}: {e}", spec.name);
        let address = Address::parse(&spec.url).map_err(named)?;
        let connect = Duration::try_from_secs_f64(spec.connect_s)
            .map_err(|e| named(format!("connect timeout: {e}")))?;
        Ok(Self {
            name: Arc::from(spec.name.as_str()),
            kind: Arc::from(spec.kind.as_str()),
            traits: spec.traits(),
            dialect: spec.dialect,
            drop_params: spec.drop_params,
            max_output_tokens: spec.max_output_tokens.unwrap_or(MAX_OUTPUT_TOKENS),
            rules: ErrorRules::compile(&spec.errors).map_err(named)?,
            on_disconnect: spec.on_disconnect().map_err(named)?,
            gate: gate(spec, counters, region)?,
            health,
            attempts: counters.upstream(&spec.name),
            count_tokens: spec.paths.count_tokens.clone(),
            agent: agent(spec, connect)?,
            places: Places::new(&address, &spec.paths).map_err(named)?,
            headers: fixed_headers(spec).map_err(named)?,
            sign: spec.sign.clone(),
            redirects: spec.redirects,
            waits: spec.credentials || spec.sign.is_some(),
            wallet: Arc::default(),
            pool: Pool::new(address.scheme(), spec.http2, connect).map_err(named)?,
            sockets: (spec.http2 && spec.paths.realtime.is_some())
                .then(|| Pool::new(address.scheme(), false, connect))
                .transpose()
                .map_err(named)?,
            address,
        })
    }

    /// Goes on with the credentials that `previous` has, where they are for the same place.
    pub fn take_over(&mut self, previous: &Self) {
        if self.kind == previous.kind
            && self.sign == previous.sign
            && self.waits == previous.waits
            && self.address.same_origin(&previous.address)
        {
            self.wallet = Arc::clone(&previous.wallet);
        }
    }

    /// From now on requests carry these credentials, or are signed with them.
    ///
    /// json: `{"headers": [[name, value]…]}`, or `{"access_key", "secret_key", "session_token"}`
    /// where requests are signed. Fails on anything else, quoting nothing of it.
    pub fn set_credentials(&self, json: &[u8]) -> Result<(), String> {
        let credentials = Credentials::parse(json)?;
        match (&credentials, &self.sign) {
            (Credentials::Aws(_), None) => Err("its requests are not signed".to_owned()),
            (Credentials::Headers(_), Some(_)) => {
                Err("its requests are signed: they need an access_key".to_owned())
            }
            _ => {
                self.wallet.put(credentials);
                Ok(())
            }
        }
    }

    /// Whether it has this API.
    pub fn offers(&self, endpoint: Endpoint) -> bool {
        self.places.offers(endpoint)
    }

    /// Whether it has Responses beside chat.
    pub const fn offers_responses(&self) -> bool {
        self.places.offers_responses()
    }

    /// Posts `body` and waits for the answer's head, wherever that is to be fetched.
    ///
    /// Errors: [`Kind::Unavailable`] when nothing was sent, as no connection came about or
    /// credentials are missing; [`Kind::UpstreamError`] when the connection broke, or a redirect
    /// leads elsewhere. Neither the message nor the client-visible part holds the address.
    /// reach: told once there is a connection.
    pub async fn post(
        &self,
        call: &Call<'_>,
        headers: &HeaderMap,
        body: impl Into<Outgoing>,
        reach: Option<Arc<Reach>>,
    ) -> Result<Response<Incoming>, Error> {
        let (method, uri) = match call.object {
            None if call.responses => {
                let uri = self.places.responses(&self.address, call.model);
                (Method::POST, uri)
            }
            None => {
                let places = &self.places;
                let uri = places.uri(&self.address, call.endpoint, call.stream, call.model);
                (Method::POST, uri)
            }
            Some(object) => (
                object.method(),
                self.places.below(call.endpoint, &object.below()),
            ),
        };
        let uri = uri
            .ok_or_else(|| {
                let text = "This model does not serve this API.";
                Error::new(Kind::InvalidRequest, text).sibling(true)
            })?
            .map_err(|e| not_forwarded(&e))?;
        let mut request = self.request(method, uri.clone(), headers, body)?;
        if let Some(reach) = reach {
            reach.watch(&mut request);
        }
        self.attempts.inc();
        let response = self.pool.send(request).await?;
        if self.redirects && response.status() == StatusCode::SEE_OTHER {
            // Rare, and large: apart, so that other requests do not carry its room.
            return Box::pin(self.follow(uri, headers, response)).await;
        }
        Ok(response)
    }

    /// Fetches the answer that a 303 put off.
    async fn follow(
        &self,
        mut uri: Uri,
        headers: &HeaderMap,
        mut response: Response<Incoming>,
    ) -> Result<Response<Incoming>, Error> {
        let lost = |cause: &str| {
            let text = "The engine's answer is to be fetched where it cannot be.";
            Error::new(Kind::UpstreamError, text).cause(cause)
        };
        for _ in 0..redirect::MAX_HOPS {
            uri = redirect::next(&uri, response.headers())
                .ok_or_else(|| lost("a redirect to another origin, or to none"))?;
            let request = self.request(Method::GET, uri.clone(), headers, Rope::empty())?;
            response = self.pool.send(request).await.map_err(|mut error| {
                // The engine has the request, whatever becomes of its answer.
                error.kind = Kind::UpstreamError;
                error
            })?;
            if response.status() != StatusCode::SEE_OTHER {
                return Ok(response);
            }
        }
        Err(lost("a redirect without an end"))
    }

    /// Where something below a collection is, for [`Upstream::ask`]'s address: its whole path.
    pub fn path_below(&self, endpoint: Endpoint, below: &str) -> Option<String> {
        let uri = self.places.below(endpoint, below)?.ok()?;
        Some(self.address.own(&uri))
    }

    /// Asks for `path` below the address; errors as [`Upstream::post`], and redirects are answers.
    pub async fn ask(
        &self,
        method: Method,
        path: &str,
        body: Rope,
    ) -> Result<Response<Incoming>, Error> {
        self.ask_with(method, path, &HeaderMap::new(), body).await
    }

    /// [`Upstream::ask`] with more headers.
    pub async fn ask_with(
        &self,
        method: Method,
        path: &str,
        headers: &HeaderMap,
        body: Rope,
    ) -> Result<Response<Incoming>, Error> {
        let uri = self.address.uri(path).map_err(|e| not_forwarded(&e))?;
        let request = self.request(method, uri, headers, body)?;
        self.pool.send(request).await
    }

    fn request(
        &self,
        method: Method,
        uri: Uri,
        headers: &HeaderMap,
        body: impl Into<Outgoing>,
    ) -> Result<Request<Outgoing>, Error> {
        let credentials = self.wallet.get();
        if self.waits && credentials.is_none() {
            return Err(Error::new(
                Kind::Unavailable,
                "The engine cannot take the request yet. Please try again later.",
            )
            .cause("no credentials have come"));
        }
        let mut request = Request::new(body.into());
        *request.method_mut() = method;
        *request.uri_mut() = uri;
        let out = request.headers_mut();
        out.reserve(headers.len() + self.headers.len() + 5);
        for (name, value) in headers {
            out.insert(name.clone(), value.clone());
        }
        out.entry(CONTENT_TYPE)
            .or_insert(HeaderValue::from_static("application/json"));
        out.insert(ACCEPT, HeaderValue::from_static("*/*"));
        for (name, value) in &self.headers {
            let value = match out.get(name).filter(|_| name == BETA) {
                Some(asked) => joined(value, asked),
                None => value.clone(),
            };
            out.insert(name.clone(), value);
        }
        match credentials.as_deref() {
            Some(Credentials::Headers(list)) => {
                for (name, value) in list {
                    out.insert(name.clone(), value.clone());
                }
            }
            Some(Credentials::Aws(keys)) => {
                if let Some(scope) = &self.sign {
                    sign(&mut request, keys, scope).map_err(|e| not_forwarded(&e))?;
                }
            }
            None => {}
        }
        Ok(request)
    }

    /// Tells the engine to stop the request that it knows as `rid`. Best effort, bounded to 2 s.
    pub async fn abort(self: Arc<Self>, rid: String) {
        let Some(path) = self.traits.abort_path.clone() else {
            return;
        };
        let text = Bytes::from(format!("{{\"rid\":\"{rid}\"}}"));
        let call = async {
            // Twice, as a kept connection may be found closed: to stop a request again is harmless.
            for _ in 0..2 {
                let body = Rope::new(vec![text.clone()]);
                let Ok(answer) = self.ask(Method::POST, &path, body).await else {
                    continue;
                };
                // Read to its end, so that the connection can be used again.
                let rest = Limited::new(answer.into_body(), 4096).collect().await;
                drop(rest);
                break;
            }
        };
        // An engine that does not answer has already lost the request's connection.
        let _ = tokio::time::timeout(Duration::from_secs(2), call).await;
    }
}

/// Anthropic's betas: those that are configured, and those that the client asks for.
fn joined(configured: &HeaderValue, asked: &HeaderValue) -> HeaderValue {
    let both = [configured.as_bytes(), b",", asked.as_bytes()].concat();
    HeaderValue::from_bytes(&both).unwrap_or_else(|_| configured.clone())
}

fn not_forwarded(cause: &dyn std::fmt::Display) -> Error {
    Error::new(Kind::Internal, "The request could not be forwarded.").cause(cause)
}

/// What every request carries: the key as a bearer token, and the kind's own headers.
fn fixed_headers(spec: &UpstreamSpec) -> Result<HeaderList, String> {
    let mut out = HeaderList::new();
    if let Some(key) = &spec.api_key {
        out.push((AUTHORIZATION, bearer(key)?));
    }
    out.extend(credentials::headers(&spec.headers)?);
    Ok(out)
}

/// A key as a bearer token.
fn bearer(key: &str) -> Result<HeaderValue, String> {
    let mut value = HeaderValue::try_from(format!("Bearer {key}"))
        .map_err(|_| "the key has characters no header can carry".to_owned())?;
    value.set_sensitive(true);
    Ok(value)
}

fn agent(spec: &UpstreamSpec, connect: Duration) -> Result<Option<Agent>, String> {
    spec.agent
        .as_ref()
        .map(|agent| Agent::new(agent, connect))
        .transpose()
        .map_err(|e| format!("upstream {}: agent: {e}", spec.name))
}

/// Signs a request that is complete otherwise.
fn sign(
    request: &mut Request<Outgoing>,
    keys: &AwsCredentials,
    scope: &SignSpec,
) -> Result<(), String> {
    let now = SystemTime::now()
        .duration_since(UNIX_EPOCH)
        .map_or(0, |since| since.as_secs());
    let uri = request.uri();
    // As the client writes it: with the port where that is not the scheme's own.
    let host = uri.host().unwrap_or_default();
    let host = match (uri.port_u16(), uri.scheme_str()) {
        (None, _) | (Some(443), Some("https")) | (Some(80), Some("http")) => host.to_owned(),
        (Some(port), _) => format!("{host}:{port}"),
    };
    let content_type = request.headers().get(CONTENT_TYPE);
    let content_type = content_type.and_then(|value| value.to_str().ok());
    let parts = request.body().parts();
    let parts = parts.ok_or("a body that still comes cannot be signed")?;
    let body = sigv4::hash(parts.iter().map(Bytes::as_ref));
    let signable = sigv4::Signable {
        method: request.method().as_str(),
        host: &host,
        path: uri.path(),
        query: uri.query().unwrap_or_default(),
        headers: &[("content-type", content_type.unwrap_or_default())],
        body: &body,
    };
    let place = sigv4::Scope {
        region: &scope.region,
        service: &scope.service,
    };
    let signature = sigv4::sign(&signable, keys, place, now);
    let out = request.headers_mut();
    let value = |text: String| HeaderValue::try_from(text).map_err(|e| e.to_string());
    let mut secret = value(signature.authorization)?;
    secret.set_sensitive(true);
    out.insert(AUTHORIZATION, secret);
    let date = value(signature.date)?;
    out.insert(HeaderName::from_static("x-amz-date"), date);
    if let Some(token) = &keys.session_token {
        let mut token = value(token.clone())?;
        token.set_sensitive(true);
        out.insert(HeaderName::from_static("x-amz-security-token"), token);
    }
    Ok(())
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
