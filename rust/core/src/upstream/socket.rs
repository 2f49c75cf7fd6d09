//! WebSockets to an upstream (RFC 6455 §4.1).
use http::header::{
    CONNECTION, CONTENT_TYPE, HeaderMap, HeaderValue, SEC_WEBSOCKET_ACCEPT, SEC_WEBSOCKET_KEY,
    SEC_WEBSOCKET_VERSION, UPGRADE,
};
use http::{Method, StatusCode};
use http_body_util::{BodyExt, Limited};
use hyper::upgrade::Upgraded;

use super::{Rope, Upstream, chain, not_forwarded};
use crate::error::{Error, Kind};
use crate::exchange::asked;
use crate::gateway::Endpoint;
use crate::handshake;
use crate::scrub;

/// Most of an error's body that is read, bytes.
const MAX_ERROR: usize = 64 * 1024;

impl Upstream {
    /// Opens a WebSocket for a Realtime session with a model, as it is named there. `headers` go along.
    ///
    /// Errors: as of [`Upstream::post`]; the upstream's own refusal; one that does not speak the
    /// protocol.
    pub async fn open_socket(&self, model: &str, headers: &HeaderMap) -> Result<Upgraded, Error> {
        let uri = self
            .places
            .uri(&self.address, Endpoint::Realtime, false, model)
            .ok_or_else(|| {
                let text = "This model does not serve this API.";
                Error::new(Kind::InvalidRequest, text)
                    .code("unsupported_endpoint")
                    .sibling(true)
            })?
            .map_err(|e| not_forwarded(&e))?;
        let mut request = self.request(Method::GET, uri, headers, Rope::empty())?;
        let key = handshake::fresh_key();
        let out = request.headers_mut();
        out.remove(CONTENT_TYPE);
        out.insert(UPGRADE, HeaderValue::from_static("websocket"));
        out.insert(CONNECTION, HeaderValue::from_static("Upgrade"));
        out.insert(SEC_WEBSOCKET_VERSION, HeaderValue::from_static("13"));
        let sent = HeaderValue::try_from(&key).map_err(|e| not_forwarded(&e))?;
        out.insert(SEC_WEBSOCKET_KEY, sent);
        self.attempts.inc();
        let pool = self.sockets.as_ref().unwrap_or(&self.pool);
        let response = pool.send(request).await?;
        if response.status() != StatusCode::SWITCHING_PROTOCOLS {
            let (parts, body) = response.into_parts();
            let body = Limited::new(body, MAX_ERROR).collect().await;
            let body = body.map(http_body_util::Collected::to_bytes);
            let status = parts.status.as_u16();
            return Err(scrub::upstream_error(
                // A success is none without the upgrade.
                if status < 400 { 502 } else { status },
                &parts.headers,
                &body.unwrap_or_default(),
                &self.rules,
                asked(false),
            ));
        }
        let broken = |cause: String| {
            let text = "The engine did not open a session.";
            Error::new(Kind::UpstreamError, text).cause(cause)
        };
        let accept = response.headers().get(SEC_WEBSOCKET_ACCEPT);
        if accept != Some(&handshake::accept(&key)) {
            return Err(broken("a wrong Sec-WebSocket-Accept".to_owned()));
        }
        hyper::upgrade::on(response)
            .await
            .map_err(|cause| broken(chain(&cause)))
    }
}
