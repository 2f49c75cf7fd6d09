//! Requests that are forms with files in them: admitted once their model is known, and sent on while
//! the rest of them still comes.
use std::sync::Arc;

use http::header::{ALLOW, CONTENT_TYPE};
use http::{HeaderName, HeaderValue, Method, Request, Response, Version};
use http_body_util::BodyExt;
use hyper::body::Incoming;

use super::inference::{closing, deliver, refused, view, waits};
use super::{Shared, body::Answer};
use crate::door::Door;
use crate::endpoint::Endpoint;
use crate::error::{Error, Kind};
use crate::pass::multipart::MAX_MODEL;
use crate::pass::upload::{Limits, Source, Upload, drain};

/// Names the model of a form that does not begin with it; the query's `model` does, too.
const MODEL: HeaderName = HeaderName::from_static("x-forebay-model");

/// What a path takes a form for.
pub(super) fn of_path(path: &str) -> Option<Endpoint> {
    [
        Endpoint::Transcriptions,
        Endpoint::Translations,
        Endpoint::ImageEdits,
        Endpoint::ImageVariations,
    ]
    .into_iter()
    .find(|endpoint| endpoint.path() == path)
}

/// How a form is read.
pub(super) fn limits(shared: &Shared) -> Limits {
    Limits {
        bytes: shared.bounds.upload_bytes,
        head_bytes: shared.bounds.body_bytes,
        idle: shared.bounds.body_read,
    }
}

/// A body as it is read for an upload.
pub(super) fn source(incoming: Incoming) -> Source {
    incoming.map_err(|_| ()).boxed_unsync()
}

/// Answers one request. Every outcome is an answer in OpenAI's shape.
pub(super) async fn answer(
    shared: &Shared,
    endpoint: Endpoint,
    request: Request<Incoming>,
) -> Response<Answer> {
    let (parts, incoming) = request.into_parts();
    let modern = parts.version < Version::HTTP_2;
    let refuse = |error: &Error| refused(shared, Door::OpenAi, &parts.headers, error);
    if parts.method != Method::POST {
        let error = Error::new(
            Kind::MethodNotAllowed,
            format!("Use POST for {}.", endpoint.path()),
        );
        let mut response = refuse(&error);
        let allow = HeaderValue::from_static("POST");
        response.headers_mut().insert(ALLOW, allow);
        return response;
    }
    let asked = view(&parts.headers);
    let waits = modern && waits(&parts.headers);
    let source = source(incoming);
    // Whoever may not ask at all does not get to fill memory either.
    if let Err(error) = shared.gateway.authenticate(&asked) {
        if !waits {
            drain(source).await;
        }
        return closing(refuse(&error));
    }
    let content_type = parts.headers.get(CONTENT_TYPE).map(HeaderValue::as_bytes);
    let named = match named(&parts) {
        Ok(named) => named,
        Err(error) => {
            if !waits {
                drain(source).await;
            }
            return closing(refuse(&error));
        }
    };
    let limits = limits(shared);
    let opened = Upload::open(source, content_type, named, limits, waits).await;
    let upload = match opened {
        Ok(upload) => upload,
        Err(refusal) => {
            if let Some(rest) = refusal.rest
                && !waits
            {
                drain(rest).await;
            }
            return closing(refuse(&refusal.error));
        }
    };
    let slot = shared
        .gateway
        .admit_upload(endpoint, asked, Arc::clone(&upload));
    let mut response = deliver(slot, &refuse).await;
    if !upload.is_read() && modern {
        // What is left of the body would be taken for the next request.
        response = closing(response);
    }
    response
}

/// The model that a header or the query names.
fn named(parts: &http::request::Parts) -> Result<Option<String>, Error> {
    let wrong = |param: &'static str| {
        Error::new(
            Kind::InvalidRequest,
            format!("'{param}' must be the name of a model."),
        )
        .param(param)
        .code("invalid_value")
    };
    let fits = |name: &String| !name.is_empty() && name.len() <= MAX_MODEL;
    if let Some(value) = parts.headers.get(MODEL) {
        let name = value.to_str().ok().map(str::to_owned).filter(fits);
        return name.map(Some).ok_or_else(|| wrong("x-forebay-model"));
    }
    let query = parts.uri.query().unwrap_or_default();
    let mut values = query
        .split('&')
        .filter_map(|pair| pair.strip_prefix("model="));
    let Some(value) = values.next() else {
        return Ok(None);
    };
    let name = decoded(value).filter(fits);
    match (name, values.next()) {
        (Some(name), None) => Ok(Some(name)),
        _ => Err(wrong("model")),
    }
}

/// A value of a query with its escapes undone.
fn decoded(text: &str) -> Option<String> {
    let mut out = Vec::with_capacity(text.len());
    let mut rest = text.as_bytes();
    while let Some((first, after)) = rest.split_first() {
        rest = after;
        match first {
            b'%' => {
                let digits = std::str::from_utf8(after.get(..2)?).ok()?;
                out.push(u8::from_str_radix(digits, 16).ok()?);
                rest = after.get(2..)?;
            }
            b'+' => out.push(b' '),
            byte => out.push(*byte),
        }
    }
    String::from_utf8(out).ok()
}
