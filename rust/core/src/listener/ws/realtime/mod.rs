//! Realtime sessions (`GET /v1/realtime?model=…`), relayed to a provider that has them.
//!
//! The provider is chosen and connected to before the client's upgrade, as for any request: by the
//! model's policy, with the next target where one fails. The session holds one place there, and one
//! permit of each limit of its key, account and model; each response in it is a request.
mod books;
mod events;
mod relay;

use std::sync::Arc;

use http::header::{HeaderMap, HeaderName};
use hyper::upgrade::{OnUpgrade, Upgraded};
use hyper_util::rt::TokioIo;
use tokio::time::Instant;
use tokio_tungstenite::tungstenite::protocol::Role;

use super::super::Shared;
use super::peer::Peer;
use super::{PING, Place};
use crate::admission::{Caller, Session};
use crate::alarm::Alarm;
use crate::dispatch::{self, Trail, Waiting};
use crate::error::{Error, Kind};
use crate::gate::Permit;
use crate::gateway::{Request, monotonic};
use crate::metrics::Counted;
use crate::snapshot::Target;

use relay::Relay;

/// The path.
pub(super) const PATH: &str = "/v1/realtime";
/// Which form of the API a client speaks.
const BETA: HeaderName = HeaderName::from_static("openai-beta");
/// The longest event of a provider, bytes.
const MAX_EVENT: usize = 16 << 20;

/// A session whose provider is there.
pub(super) struct Ready {
    session: Arc<Session>,
    target: Target,
    permit: Permit,
    provider: Upgraded,
}

/// Nobody is told while a session waits: it has no head yet.
struct Silent;

impl Waiting for Silent {
    fn held(&mut self) {}
}

/// Admits a session and connects it.
///
/// Errors: as for a request, and those of the providers.
pub(super) async fn open(
    shared: &Shared,
    request: &Request<'_>,
    query: Option<&str>,
    headers: &HeaderMap,
) -> Result<Ready, Error> {
    let model = model_of(query)?;
    let caller = Caller::of(request)?;
    let gateway = &shared.gateway;
    let session = Session::open(gateway, caller, &model).await?;
    let ask = session.ask()?;
    let model = Arc::clone(session.model());
    let mut passed = HeaderMap::new();
    if let Some(beta) = headers.get(BETA) {
        passed.insert(BETA, beta.clone());
    }
    let until = Instant::now() + model.timeouts.first_byte;
    let mut alarm = Alarm::new(until);
    let mut trail = Trail::new();
    let mut said = None;
    loop {
        let placed = dispatch::next(&mut trail, &model, &ask, until, &mut alarm, &mut Silent).await;
        let placed = match placed {
            Ok(placed) => placed,
            // What a provider said tells more than that there is no other one.
            Err(error) => return Err(said.unwrap_or(error)),
        };
        let upstream = &placed.target.upstream;
        let connecting = upstream.open_socket(&placed.target.model, &passed);
        let connected = match alarm.within(until, connecting).await {
            Ok(connected) => connected,
            Err(_) => Err(Error::new(
                Kind::UpstreamTimeout,
                "The engine did not answer in time.",
            )),
        };
        match connected {
            Ok(provider) => {
                let trial = placed.trial.as_ref();
                upstream.health.succeeded(trial, None, monotonic());
                return Ok(Ready {
                    session: Arc::new(session),
                    target: placed.target,
                    permit: placed.permit,
                    provider,
                });
            }
            Err(error) => {
                let trial = placed.trial.as_ref();
                upstream.health.failed(trial, &error, monotonic());
                trail.lost(placed.at);
                gateway.note(&error, &[]);
                if !error.elsewhere() || Instant::now() >= until {
                    return Err(error);
                }
                said = Some(error);
            }
        }
    }
}

/// Relays a session once its client has come over.
pub(super) async fn serve(shared: Arc<Shared>, ready: Ready, upgrade: OnUpgrade, place: Place) {
    let _place = place;
    let Some(client) = super::upgraded(upgrade).await else {
        return;
    };
    let Ready {
        session,
        target,
        mut permit,
        provider,
    } = ready;
    let metrics = &shared.gateway.metrics;
    let _counted = [&metrics.websockets, &metrics.realtime].map(Counted::by);
    let bounds = &shared.bounds;
    let stall = bounds.write_stall;
    let client = Peer::new(client, Role::Server, bounds.body_bytes, PING).await;
    let provider = TokioIo::new(provider);
    let provider = Peer::new(provider, Role::Client, MAX_EVENT, PING).await;
    let relay = Relay {
        client,
        provider: provider.stalling(stall),
        session,
        target,
        gateway: Arc::clone(&shared.gateway),
        idle: bounds.sockets.idle,
    };
    // Large: apart, so that this task is no larger while its client comes over.
    let used = Box::pin(relay.run()).await;
    permit.used(used);
}

/// The model that a session asks for: the query's only parameter.
fn model_of(query: Option<&str>) -> Result<String, Error> {
    let mut model = None;
    for pair in query.unwrap_or_default().split('&') {
        let (name, value) = pair.split_once('=').unwrap_or((pair, ""));
        match name {
            "" => {}
            "model" if model.is_none() => model = decoded(value),
            "model" => {
                return Err(
                    Error::new(Kind::InvalidRequest, "There are two models.").param("model")
                );
            }
            other => {
                let shown: String = other.chars().take(40).collect();
                let text =
                    format!("'{shown}' is not supported: a session has a model, and no more.");
                return Err(Error::new(Kind::InvalidRequest, text)
                    .param(shown)
                    .code("unsupported_parameter"));
            }
        }
    }
    model.filter(|model| !model.is_empty()).ok_or_else(|| {
        Error::new(Kind::InvalidRequest, "You must provide a model parameter.")
            .param("model")
            .code("missing_required_parameter")
    })
}

/// A query's value (WHATWG URL §5.1): percent-encoded, a plus is a space. `None`: not UTF-8.
fn decoded(text: &str) -> Option<String> {
    let mut out = Vec::with_capacity(text.len());
    let mut bytes = text.bytes();
    while let Some(byte) = bytes.next() {
        out.push(match byte {
            b'+' => b' ',
            b'%' => {
                let mut digit = || char::from(bytes.next()?).to_digit(16);
                u8::try_from(digit()? << 4 | digit()?).ok()?
            }
            byte => byte,
        });
    }
    String::from_utf8(out).ok()
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn the_model_is_the_querys() {
        for (query, model) in [
            ("model=m", "m"),
            ("model=org%2Fname%20x+y", "org/name x y"),
            ("&model=m&", "m"),
        ] {
            assert_eq!(model_of(Some(query)).ok().as_deref(), Some(model));
        }
        for (query, param) in [
            (None, "model"),
            (Some(""), "model"),
            (Some("model="), "model"),
            (Some("model=%zz"), "model"),
            (Some("model=%ff"), "model"),
            (Some("model=%f"), "model"),
            (Some("model=a&model=b"), "model"),
            (Some("model=a&call_id=c"), "call_id"),
            (Some("intent=transcription"), "intent"),
        ] {
            let error = model_of(query).err();
            let named = error.as_ref().and_then(|error| error.param.as_deref());
            assert_eq!(named, Some(param), "{query:?}");
        }
    }
}
