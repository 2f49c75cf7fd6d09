//! One inference request: read, admitted, relayed.
use std::sync::Arc;

use http::header::{
    ALLOW, AUTHORIZATION, CONNECTION, CONTENT_TYPE, EXPECT, HOST, TRANSFER_ENCODING,
};
use http::{HeaderMap, HeaderName, HeaderValue, Method, Request, Response, StatusCode, Version};
use hyper::body::{Body, Incoming};

use super::Shared;
use super::body::{self, Answer, Guard, Unread};
use crate::door::{Door, Front, Way};
use crate::error::{Error, Kind};
use crate::gateway;
use crate::slot::{Head, Slot};
use crate::tags;
use crate::upstream::BETA;

/// A body above this is read only for those who may ask at all.
const SMALL: u64 = 64 * 1024;

/// Answers one request. Every outcome is an answer in OpenAI's shape.
pub(super) async fn answer(
    shared: &Shared,
    way: &'static Way,
    request: Request<Incoming>,
) -> Response<Answer> {
    let (parts, incoming) = request.into_parts();
    let modern = parts.version < Version::HTTP_2;
    let refuse = |error: &Error| refused(shared, way.door, &parts.headers, error);
    if parts.method != Method::POST {
        let error = Error::new(
            Kind::MethodNotAllowed,
            format!("Use POST for {}.", way.path),
        );
        let mut response = refuse(&error);
        response
            .headers_mut()
            .insert(ALLOW, HeaderValue::from_static("POST"));
        return response;
    }
    let asked = view(&parts.headers);
    let waits = modern && waits(&parts.headers);
    if incoming
        .size_hint()
        .exact()
        .is_none_or(|length| length > SMALL)
        && let Err(error) = shared.gateway.authenticate(&asked)
    {
        if !waits {
            body::drain(incoming).await;
        }
        return closing(refuse(&error));
    }
    let bounds = &shared.bounds;
    let bytes = match body::read(incoming, bounds.body_bytes, bounds.body_read, waits).await {
        Ok(bytes) => bytes,
        Err(unread) => return closing(refuse(&unread_error(unread, bounds.body_bytes))),
    };
    let slot = shared.gateway.enter(way, asked, bytes);
    deliver(slot, &refuse).await
}

/// The answer of an exchange.
pub(super) async fn deliver(
    slot: Arc<Slot>,
    refuse: &(dyn Fn(&Error) -> Response<Answer> + Sync),
) -> Response<Answer> {
    let guard = Guard(slot);
    let head = std::future::poll_fn(|cx| guard.0.poll_head(cx)).await;
    let Some(head) = head else {
        // The runtime is going down.
        return closing(refuse(&Error::new(
            Kind::Unavailable,
            "The gateway is shutting down. Please try again.",
        )));
    };
    render(head, guard)
}

/// What HTTP/1.1 demands of a request's head and hyper lets pass (RFC 9112 §3.2, §6.1, §6.3): a
/// request that two readers could frame differently is refused. A length beside a coding never gets
/// here: hyper drops the length, as §6.3 allows, and closes the connection after the answer.
pub(super) fn framing(headers: &HeaderMap, version: Version) -> Result<(), Error> {
    let bad = |text: &'static str| Err(Error::new(Kind::InvalidRequest, text).code("bad_framing"));
    if version >= Version::HTTP_2 {
        return Ok(());
    }
    let mut hosts = headers.get_all(HOST).iter();
    if hosts.next().is_none() && version == Version::HTTP_11 {
        return bad("The request has no Host header.");
    }
    if hosts.next().is_some() {
        return bad("The request has more than one Host header.");
    }
    let mut codings = headers.get_all(TRANSFER_ENCODING).iter();
    if let Some(coding) = codings.next()
        && (codings.next().is_some() || !coding.as_bytes().eq_ignore_ascii_case(b"chunked"))
    {
        return bad("The transfer encoding must be 'chunked', once.");
    }
    Ok(())
}

/// Refuses a request whose framing is bad, whatever its path.
pub(super) fn unreadable(shared: &Shared, headers: &HeaderMap, error: &Error) -> Response<Answer> {
    closing(refused(shared, Door::OpenAi, headers, error))
}

/// Whether the client sends its body only once it is told to (RFC 9110 §10.1.1): one that is refused
/// instead has nothing to drain.
pub(super) fn waits(headers: &HeaderMap) -> bool {
    headers
        .get(EXPECT)
        .is_some_and(|value| value.as_bytes().eq_ignore_ascii_case(b"100-continue"))
}

/// The headers that admission reads.
pub(super) fn view(headers: &HeaderMap) -> gateway::Request<'_> {
    let get = |name: HeaderName| headers.get(name).map(HeaderValue::as_bytes);
    gateway::Request {
        authorization: get(AUTHORIZATION),
        content_type: get(CONTENT_TYPE),
        request_id: get(HeaderName::from_static("x-request-id")),
        traceparent: get(HeaderName::from_static("traceparent")),
        tracestate: get(HeaderName::from_static("tracestate")),
        tags: get(HeaderName::from_static(tags::HEADER)),
        session: get(HeaderName::from_static("x-session-id")),
        api_key: get(HeaderName::from_static("x-api-key")),
        beta: get(HeaderName::from_static(BETA)),
        idempotency_key: get(HeaderName::from_static("idempotency-key")),
        front: Front::Http,
        deadline: None,
    }
}

pub(super) fn unread_error(unread: Unread, limit: usize) -> Error {
    match unread {
        Unread::TooLarge => Error::new(
            Kind::PayloadTooLarge,
            format!("The request body is over the limit of {limit} bytes."),
        ),
        Unread::TooSlow => Error::new(
            Kind::InvalidRequest,
            "The request body did not arrive in time.",
        )
        .code("slow_body"),
        Unread::Broken => Error::new(
            Kind::InvalidRequest,
            "The request body is incomplete or malformed.",
        )
        .code("bad_body"),
    }
}

/// An answer that is an error, outside of any exchange. `headers` are the request's.
pub(super) fn refused(
    shared: &Shared,
    door: Door,
    headers: &HeaderMap,
    error: &Error,
) -> Response<Answer> {
    let id = crate::headers::fresh_request_id(view(headers).request_id);
    let slot = shared.gateway.refusal(door, error, door.greeting(id));
    let guard = Guard(std::sync::Arc::new(slot));
    match guard
        .0
        .poll_head(&mut std::task::Context::from_waker(std::task::Waker::noop()))
    {
        std::task::Poll::Ready(Some(head)) => render(head, guard),
        _ => Response::new(Answer::Whole(None)),
    }
}

/// What follows on this connection cannot be trusted, or would not be read.
pub(super) fn closing(mut response: Response<Answer>) -> Response<Answer> {
    response
        .headers_mut()
        .insert(CONNECTION, HeaderValue::from_static("close"));
    response
}

fn render(head: Head, guard: Guard) -> Response<Answer> {
    let body = if head.more {
        Answer::Stream(guard)
    } else {
        Answer::Whole(Some(head.body))
    };
    let mut response = Response::new(body);
    *response.status_mut() = StatusCode::from_u16(head.status).unwrap_or(StatusCode::BAD_GATEWAY);
    let headers = response.headers_mut();
    headers.reserve(head.headers.len());
    for (name, value) in head.headers {
        headers.append(name, value);
    }
    response
}
