//! Between Python objects and the core's borrowed views.
use forebay_core::door::grpc::status_details;
use forebay_core::error::Error;
use forebay_core::gateway::Request;
use forebay_core::record::UsageEvent;
use forebay_core::slot::Head;
use http::{HeaderName, HeaderValue};
use pyo3::prelude::*;
use pyo3::types::{PyBytes, PyList, PyString, PyTuple};

/// The request headers that admission reads, kept alive while it borrows them.
#[derive(Default)]
pub(crate) struct Headers<'py> {
    authorization: Option<Bound<'py, PyBytes>>,
    content_type: Option<Bound<'py, PyBytes>>,
    request_id: Option<Bound<'py, PyBytes>>,
    traceparent: Option<Bound<'py, PyBytes>>,
    tracestate: Option<Bound<'py, PyBytes>>,
    tags: Option<Bound<'py, PyBytes>>,
    session: Option<Bound<'py, PyBytes>>,
    api_key: Option<Bound<'py, PyBytes>>,
    idempotency_key: Option<Bound<'py, PyBytes>>,
    beta: Option<Bound<'py, PyBytes>>,
}

impl<'py> Headers<'py> {
    /// Reads ASGI's list of `(name, value)`, names in lower case. The first of a name counts.
    pub(crate) fn read(list: &Bound<'py, PyList>) -> PyResult<Self> {
        let mut headers = Self::default();
        for item in list.iter() {
            let pair = item.cast::<PyTuple>()?;
            let name = pair.get_item(0)?;
            let place = match name.cast::<PyBytes>()?.as_bytes() {
                b"authorization" => &mut headers.authorization,
                b"content-type" => &mut headers.content_type,
                b"x-request-id" => &mut headers.request_id,
                b"traceparent" => &mut headers.traceparent,
                b"tracestate" => &mut headers.tracestate,
                b"x-forebay-tags" => &mut headers.tags,
                b"x-session-id" => &mut headers.session,
                b"x-api-key" => &mut headers.api_key,
                b"idempotency-key" => &mut headers.idempotency_key,
                b"anthropic-beta" => &mut headers.beta,
                _ => continue,
            };
            if place.is_none() {
                *place = Some(pair.get_item(1)?.cast_into::<PyBytes>()?);
            }
        }
        Ok(headers)
    }

    pub(crate) fn request(&self) -> Request<'_> {
        fn bytes<'a>(header: Option<&'a Bound<'_, PyBytes>>) -> Option<&'a [u8]> {
            header.map(PyBytesMethods::as_bytes)
        }
        Request {
            authorization: bytes(self.authorization.as_ref()),
            content_type: bytes(self.content_type.as_ref()),
            request_id: bytes(self.request_id.as_ref()),
            traceparent: bytes(self.traceparent.as_ref()),
            tracestate: bytes(self.tracestate.as_ref()),
            tags: bytes(self.tags.as_ref()),
            session: bytes(self.session.as_ref()),
            api_key: bytes(self.api_key.as_ref()),
            idempotency_key: bytes(self.idempotency_key.as_ref()),
            beta: bytes(self.beta.as_ref()),
            ..Request::default()
        }
    }
}

/// `(status, headers, body, more)` as a front end sends it.
pub(crate) fn head<'py>(py: Python<'py>, head: &Head) -> PyResult<Bound<'py, PyAny>> {
    let headers = header_list(py, &head.headers)?;
    let body = PyBytes::new(py, &head.body);
    Ok((head.status, headers, body, head.more)
        .into_pyobject(py)?
        .into_any())
}

/// Bytes before each message of gRPC's: a flag, and its length. gRPC's core puts its own there.
const PREFIX: usize = 5;

/// `(initial metadata, trailing metadata, message, more)` as the gRPC front sends it: rates and waits
/// come at the end, and what is HTTP's own not at all.
pub(crate) fn call_head<'py>(py: Python<'py>, head: &Head) -> PyResult<Bound<'py, PyAny>> {
    let (mut first, mut last) = (Vec::new(), Vec::new());
    for (name, value) in &head.headers {
        let name = name.as_str();
        let place = match name {
            "content-type" | "content-length" | "connection" | "cache-control"
            | "x-accel-buffering" => continue,
            "retry-after" | "retry-after-ms" | "x-should-retry" => &mut last,
            _ if name.starts_with("x-ratelimit-") => &mut last,
            _ => &mut first,
        };
        let text = match value.to_str() {
            Ok(text) => PyString::new(py, text),
            Err(_) => PyString::new(py, &latin1(value.as_bytes())),
        };
        place.push((PyString::intern(py, name), text));
    }
    let message = PyBytes::new(py, head.body.get(PREFIX..).unwrap_or_default());
    let (first, last) = (PyTuple::new(py, first)?, PyTuple::new(py, last)?);
    Ok((first, last, message, head.more)
        .into_pyobject(py)?
        .into_any())
}

fn latin1(bytes: &[u8]) -> String {
    bytes.iter().copied().map(char::from).collect()
}

/// An error as gRPC has it: the code, the message, and a `google.rpc.Status` in its wire form.
pub(crate) fn grpc_status<'py>(
    py: Python<'py>,
    error: &Error,
    request_id: &str,
) -> PyResult<Bound<'py, PyTuple>> {
    let (code, message, details) = status_details(error, request_id);
    (code, message, PyBytes::new(py, &details)).into_pyobject(py)
}

fn header_list<'py>(
    py: Python<'py>,
    headers: &[(HeaderName, HeaderValue)],
) -> PyResult<Bound<'py, PyList>> {
    let pairs: Vec<_> = headers
        .iter()
        .map(|(name, value)| {
            (
                PyBytes::new(py, name.as_str().as_bytes()),
                PyBytes::new(py, value.as_bytes()),
            )
        })
        .collect();
    PyList::new(py, pairs)
}

/// One event as a tuple in the order of the usage table's columns.
pub(crate) fn usage_event<'py>(
    py: Python<'py>,
    event: &UsageEvent,
) -> PyResult<Bound<'py, PyTuple>> {
    let values: Vec<Bound<'py, PyAny>> = vec![
        PyBytes::new(py, &event.event_id).into_any(),
        event.request_id.as_str().into_pyobject(py)?.into_any(),
        event.account.as_ref().into_pyobject(py)?.into_any(),
        event.key_id.as_str().into_pyobject(py)?.into_any(),
        event.admitted_us.into_pyobject(py)?.into_any(),
        event.first_byte_us.into_pyobject(py)?.into_any(),
        event.ended_us.into_pyobject(py)?.into_any(),
        event.model_asked.as_str().into_pyobject(py)?.into_any(),
        event.model_served.as_ref().into_pyobject(py)?.into_any(),
        event.upstream.as_deref().into_pyobject(py)?.into_any(),
        event.front.into_pyobject(py)?.into_any(),
        event.endpoint.into_pyobject(py)?.into_any(),
        event.stream.into_pyobject(py)?.to_owned().into_any(),
        event.outcome.into_pyobject(py)?.into_any(),
        event.status.into_pyobject(py)?.into_any(),
        event.finish_reason.as_deref().into_pyobject(py)?.into_any(),
        event.error_kind.into_pyobject(py)?.into_any(),
        event.attempts.into_pyobject(py)?.into_any(),
        event.usage.prompt.into_pyobject(py)?.into_any(),
        event.usage.cached.into_pyobject(py)?.into_any(),
        event.usage.completion.into_pyobject(py)?.into_any(),
        event.usage.reasoning.into_pyobject(py)?.into_any(),
        event.source.into_pyobject(py)?.into_any(),
        event.duration_ms.into_pyobject(py)?.into_any(),
        event.ttft_ms.into_pyobject(py)?.into_any(),
        event.tokens_per_second.into_pyobject(py)?.into_any(),
        event.cost_pico.into_pyobject(py)?.into_any(),
        event.price_id.into_pyobject(py)?.into_any(),
    ];
    PyTuple::new(py, values)
}
