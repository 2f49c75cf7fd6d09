//! The agent beside an engine: it tells how the engine is, and starts it.
use std::time::Duration;

use http::header::{ACCEPT, AUTHORIZATION, CONTENT_TYPE, HeaderValue};
use http::{Method, Request, Response};
use hyper::body::Incoming;

use super::address::Address;
use super::client::Pool;
use super::outgoing::Outgoing;
use super::rope::Rope;
use super::{bearer, not_forwarded};
use crate::error::Error;
use crate::snapshot::AgentSpec;

/// Asks the agent of one upstream.
pub struct Agent {
    address: Address,
    key: Option<HeaderValue>,
    pool: Pool,
}

impl Agent {
    /// Fails on what is no address, and on a key that no header can carry.
    pub(super) fn new(spec: &AgentSpec, connect: Duration) -> Result<Self, String> {
        let address = Address::parse(&spec.url)?;
        Ok(Self {
            key: spec.key.as_deref().map(bearer).transpose()?,
            pool: Pool::new(address.scheme(), false, connect)?,
            address,
        })
    }

    /// Asks for `path` below its address; errors as [`super::Upstream::post`].
    pub async fn ask(
        &self,
        method: Method,
        path: &str,
        body: Rope,
    ) -> Result<Response<Incoming>, Error> {
        let mut request = Request::new(Outgoing::from(body));
        *request.method_mut() = method;
        *request.uri_mut() = self.address.uri(path).map_err(|e| not_forwarded(&e))?;
        let out = request.headers_mut();
        out.insert(CONTENT_TYPE, HeaderValue::from_static("application/json"));
        out.insert(ACCEPT, HeaderValue::from_static("*/*"));
        if let Some(key) = &self.key {
            out.insert(AUTHORIZATION, key.clone());
        }
        self.pool.send(request).await
    }
}
