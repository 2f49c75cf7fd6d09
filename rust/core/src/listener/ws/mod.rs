//! WebSockets: chat and the Responses API as requests on a socket, and the relay of Realtime sessions.
//!
//! Whoever may not come in is told over HTTP, before the upgrade. What one socket holds is bounded:
//! one message of `limits.body_bytes` being read, as much in line, one batch of events going out. A
//! client that does not read stops the reading of its engine, as over HTTP.
mod answer;
mod mode;
mod peer;
mod realtime;
mod requests;
mod responses;
mod session;

use std::sync::Arc;
use std::sync::atomic::{AtomicUsize, Ordering};
use std::time::Duration;

use http::header::{
    CONNECTION, HeaderMap, HeaderValue, SEC_WEBSOCKET_ACCEPT, SEC_WEBSOCKET_PROTOCOL,
    SEC_WEBSOCKET_VERSION, UPGRADE,
};
use http::{Request, Response, StatusCode};
use hyper::body::Incoming;
use hyper::upgrade::{OnUpgrade, Upgraded};
use hyper_util::rt::TokioIo;
use parking_lot::Mutex;
use rustc_hash::FxHashMap;
use tokio::sync::Notify;
use tokio_tungstenite::tungstenite::protocol::Role;

use super::Shared;
use super::body::Answer;
use super::inference::refused;
use crate::door::{Door, Front, Way};
use crate::error::{Error, Kind};
use crate::gateway;
use crate::handshake::{self, Bad, Opening};
use crate::metrics::Counted;

use mode::Mode;
use peer::Peer;
use responses::Responses;

/// Between two pings.
const PING: Duration = Duration::from_secs(20);
/// How long a connection may wait for its upgrade after the answer was given.
const UPGRADE_WAIT: Duration = Duration::from_secs(15);

/// How sockets are bounded.
#[derive(Clone, Copy, Debug)]
pub struct Sockets {
    /// Most at once.
    pub most: usize,
    /// How long one may have no request.
    pub idle: Duration,
}

/// The sockets of a listener.
pub(super) struct Open {
    bounds: Sockets,
    count: AtomicUsize,
    /// Of each account that has any.
    accounts: Mutex<FxHashMap<Arc<str>, usize>>,
    last: Notify,
}

/// Sockets that one account may have, however few a listener may.
const LEAST_OF_ACCOUNT: usize = 16;

/// One place among them, and among its account's.
struct Place {
    open: Arc<Open>,
    account: Arc<str>,
}

/// Why there is no place.
#[derive(Debug, PartialEq, Eq)]
enum NoPlace {
    Listener,
    Account,
}

impl Open {
    pub(super) fn new(bounds: Sockets) -> Arc<Self> {
        Arc::new(Self {
            bounds,
            count: AtomicUsize::new(0),
            accounts: Mutex::default(),
            last: Notify::new(),
        })
    }

    fn place(self: &Arc<Self>, account: &Arc<str>) -> Result<Place, NoPlace> {
        let most = self.bounds.most;
        let taken = self
            .count
            .fetch_update(Ordering::AcqRel, Ordering::Acquire, |count| {
                (count < most).then_some(count + 1)
            });
        taken.map_err(|_| NoPlace::Listener)?;
        let mut accounts = self.accounts.lock();
        let count = accounts.entry(Arc::clone(account)).or_default();
        *count += 1;
        let count = *count;
        drop(accounts);
        let place = Place {
            open: Arc::clone(self),
            account: Arc::clone(account),
        };
        // Beyond its bound the account's place is given back as it is dropped.
        if count > (most / 4).max(LEAST_OF_ACCOUNT) {
            return Err(NoPlace::Account);
        }
        Ok(place)
    }

    /// Ends once none is open.
    pub(super) async fn ended(&self) {
        loop {
            let mut last = std::pin::pin!(self.last.notified());
            last.as_mut().enable();
            if self.count.load(Ordering::Acquire) == 0 {
                return;
            }
            last.await;
        }
    }
}

impl Drop for Place {
    fn drop(&mut self) {
        let mut accounts = self.open.accounts.lock();
        if let Some(count) = accounts.get_mut(&self.account) {
            *count -= 1;
            if *count == 0 {
                accounts.remove(&self.account);
            }
        }
        drop(accounts);
        if self.open.count.fetch_sub(1, Ordering::AcqRel) == 1 {
            self.open.last.notify_waiters();
        }
    }
}

/// What a request says of itself, for all requests on its socket.
struct Client {
    authorization: Vec<u8>,
    traceparent: Option<Vec<u8>>,
    tracestate: Option<Vec<u8>>,
    tags: Option<Vec<u8>>,
    session: Option<Vec<u8>>,
}

impl Client {
    fn of(headers: &HeaderMap) -> Self {
        let view = super::inference::view(headers);
        let own = |value: Option<&[u8]>| value.map(<[u8]>::to_vec);
        Self {
            authorization: handshake::authorization(headers).unwrap_or_default(),
            traceparent: own(view.traceparent),
            tracestate: own(view.tracestate),
            tags: own(view.tags),
            session: own(view.session),
        }
    }

    /// Each request has an id of its own.
    fn request(&self) -> gateway::Request<'_> {
        gateway::Request {
            authorization: Some(&self.authorization),
            traceparent: self.traceparent.as_deref(),
            tracestate: self.tracestate.as_deref(),
            tags: self.tags.as_deref(),
            session: self.session.as_deref(),
            front: Front::WebSocket,
            ..gateway::Request::default()
        }
    }
}

/// Answers a request for a WebSocket, or `None` where it is for none.
pub(super) async fn answer(
    shared: &Arc<Shared>,
    request: &mut Request<Incoming>,
) -> Option<Response<Answer>> {
    let wanted = handshake::wanted(request.method(), request.version(), request.headers());
    if request.uri().path() == realtime::PATH {
        if !wanted {
            let text = "Realtime sessions are WebSockets, over HTTP/1.1.";
            return Some(upgrade_required(shared, request.headers(), text));
        }
        return Some(session(shared, request).await);
    }
    if !wanted {
        return None;
    }
    let way = Way::of_path(request.uri().path())?;
    let mode = mode_of(shared, way)?;
    let (opening, place) = match opened(shared, request.headers()) {
        Ok(opened) => opened,
        Err(bad) => return Some(refusal(shared, request.headers(), bad)),
    };
    let upgrade = hyper::upgrade::on(&mut *request);
    let client = Client::of(request.headers());
    let shared = Arc::clone(shared);
    tokio::spawn(async move {
        let _place = place;
        if let Some(socket) = upgraded(upgrade).await {
            let _counted = Counted::by(&shared.gateway.metrics.websockets);
            let most = shared.bounds.body_bytes;
            let peer = Peer::new(socket, Role::Server, most, PING).await;
            requests::serve(&shared, &client, (way, mode), peer).await;
        }
    });
    Some(switching(&opening))
}

/// Answers a request for a Realtime session, once its provider is there.
async fn session(shared: &Arc<Shared>, request: &mut Request<Incoming>) -> Response<Answer> {
    let (opening, place) = match opened(shared, request.headers()) {
        Ok(opened) => opened,
        Err(bad) => return refusal(shared, request.headers(), bad),
    };
    let client = Client::of(request.headers());
    let (query, headers) = (request.uri().query(), request.headers());
    let asked = client.request();
    // Rare, and large: apart, so that other requests do not carry its room.
    let opening_session = Box::pin(realtime::open(shared, &asked, query, headers));
    let ready = match opening_session.await {
        Ok(ready) => ready,
        Err(error) => return refusal(shared, request.headers(), Bad::Request(error)),
    };
    let upgrade = hyper::upgrade::on(&mut *request);
    tokio::spawn(realtime::serve(Arc::clone(shared), ready, upgrade, place));
    switching(&opening)
}

fn mode_of(shared: &Shared, way: &Way) -> Option<Mode> {
    match way.path {
        "/v1/chat/completions" => Some(Mode::Chat),
        "/v1/responses" => {
            let responses = Responses::new(shared.bounds.body_bytes);
            Some(Mode::Responses(Box::new(responses)))
        }
        _ => None,
    }
}

/// What stands before every upgrade.
fn opened(shared: &Shared, headers: &HeaderMap) -> Result<(Opening, Place), Bad> {
    let opening = handshake::read(headers)?;
    let authorization = handshake::authorization(headers);
    let key = shared
        .gateway
        .authenticate(&gateway::Request {
            authorization: authorization.as_deref(),
            ..gateway::Request::default()
        })
        .map_err(Bad::Request)?;
    if key.admin {
        let message = "An admin key does not open the inference API.";
        return Err(Bad::Request(Error::new(Kind::Forbidden, message)));
    }
    let busy = |message: &'static str| {
        Bad::Request(Error::new(Kind::Unavailable, message).retry_after(Duration::from_secs(1)))
    };
    if shared.gateway.is_draining() {
        return Err(busy("The gateway is shutting down. Please try again."));
    }
    let place = shared.sockets.place(&key.account).map_err(|no| match no {
        NoPlace::Listener => busy("Too many WebSockets are open. Please try again."),
        NoPlace::Account => {
            let message = "This account has too many WebSockets open. Close one first.";
            let error = Error::new(Kind::RateLimited, message).code("too_many_websockets");
            Bad::Request(error.retry_after(Duration::from_secs(1)))
        }
    })?;
    Ok((opening, place))
}

/// The connection as the socket that it has become.
async fn upgraded(upgrade: OnUpgrade) -> Option<TokioIo<Upgraded>> {
    let upgraded = tokio::time::timeout(UPGRADE_WAIT, upgrade).await;
    upgraded.ok()?.ok().map(TokioIo::new)
}

fn switching(opening: &Opening) -> Response<Answer> {
    let mut response = Response::new(Answer::Whole(None));
    *response.status_mut() = StatusCode::SWITCHING_PROTOCOLS;
    let headers = response.headers_mut();
    headers.insert(UPGRADE, HeaderValue::from_static("websocket"));
    headers.insert(CONNECTION, HeaderValue::from_static("Upgrade"));
    headers.insert(SEC_WEBSOCKET_ACCEPT, opening.accept.clone());
    if let Some(protocol) = &opening.protocol {
        headers.insert(SEC_WEBSOCKET_PROTOCOL, protocol.clone());
    }
    response
}

fn refusal(shared: &Shared, headers: &HeaderMap, bad: Bad) -> Response<Answer> {
    match bad {
        Bad::Request(error) => refused(shared, Door::OpenAi, headers, &error),
        Bad::Version => upgrade_required(shared, headers, "This WebSocket version is not spoken."),
    }
}

/// 426 (RFC 9110 §15.5.22, RFC 6455 §4.4).
fn upgrade_required(
    shared: &Shared,
    headers: &HeaderMap,
    message: &'static str,
) -> Response<Answer> {
    let error = Error::new(Kind::InvalidRequest, message).code("upgrade_required");
    let mut response = refused(shared, Door::OpenAi, headers, &error);
    *response.status_mut() = StatusCode::UPGRADE_REQUIRED;
    let headers = response.headers_mut();
    headers.insert(SEC_WEBSOCKET_VERSION, HeaderValue::from_static("13"));
    headers.insert(UPGRADE, HeaderValue::from_static("websocket"));
    headers.insert(CONNECTION, HeaderValue::from_static("Upgrade"));
    response
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn one_account_leaves_places_to_others() {
        let open = Open::new(Sockets {
            most: 100,
            idle: Duration::ZERO,
        });
        let (one, other): (Arc<str>, Arc<str>) = ("one".into(), "other".into());
        let mut places: Vec<_> = (0..25).flat_map(|_| open.place(&one)).collect();
        assert_eq!(places.len(), 25);
        assert!(matches!(open.place(&one), Err(NoPlace::Account)));
        assert!(open.place(&other).is_ok());
        places.pop();
        assert!(open.place(&one).is_ok());
        drop(places);
        assert_eq!(open.count.load(Ordering::Acquire), 0);
        assert!(open.accounts.lock().is_empty());
    }

    #[test]
    fn few_places_are_anybodys() {
        let open = Open::new(Sockets {
            most: 3,
            idle: Duration::ZERO,
        });
        let one: Arc<str> = "one".into();
        let places: Vec<_> = (0..3).flat_map(|_| open.place(&one)).collect();
        assert_eq!(places.len(), 3);
        assert!(matches!(open.place(&one), Err(NoPlace::Listener)));
    }
}
