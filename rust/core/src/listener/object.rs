//! Files and batches: paths with ids in them, and no model.
use http::header::{ALLOW, CONTENT_TYPE};
use http::{HeaderValue, Request, Response, Version};
use hyper::body::Incoming;

use super::Shared;
use super::body::{self, Answer};
use super::inference::{closing, deliver, refused, unread_error, view, waits};
use super::upload::{limits, source};
use crate::door::Door;
use crate::endpoint::Endpoint;
use crate::error::{Error, Kind};
use crate::pass::object::{Act, Object};
use crate::pass::upload::{Upload, drain};

/// Answers one request. Every outcome is an answer in OpenAI's shape.
pub(super) async fn answer(
    shared: &Shared,
    found: Result<Object, &'static str>,
    request: Request<Incoming>,
) -> Response<Answer> {
    let (parts, incoming) = request.into_parts();
    let modern = parts.version < Version::HTTP_2;
    let refuse = |error: &Error| refused(shared, Door::OpenAi, &parts.headers, error);
    let object = match found {
        Ok(object) => object,
        Err(allow) => {
            let text = format!("Use {allow} for {}.", parts.uri.path());
            let mut response = refuse(&Error::new(Kind::MethodNotAllowed, text));
            let allow = HeaderValue::from_static(allow);
            response.headers_mut().insert(ALLOW, allow);
            return response;
        }
    };
    let asked = view(&parts.headers);
    let waits = modern && waits(&parts.headers);
    if let Err(error) = shared.gateway.authenticate(&asked) {
        if !waits {
            body::drain(incoming).await;
        }
        return closing(refuse(&error));
    }
    if object.endpoint == Endpoint::Files && object.act == Act::Create {
        let content_type = parts.headers.get(CONTENT_TYPE).map(HeaderValue::as_bytes);
        let upload = match Upload::raw(source(incoming), content_type, limits(shared), waits) {
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
        let kept = std::sync::Arc::clone(&upload);
        let slot = shared.gateway.admit_file(object, asked, upload);
        let response = deliver(slot, &refuse).await;
        return if !kept.is_read() && modern {
            closing(response)
        } else {
            response
        };
    }
    let bounds = &shared.bounds;
    let bytes = match body::read(incoming, bounds.body_bytes, bounds.body_read, waits).await {
        Ok(bytes) => bytes,
        Err(unread) => return closing(refuse(&unread_error(unread, bounds.body_bytes))),
    };
    let slot = shared.gateway.admit_object(object, asked, bytes);
    deliver(slot, &refuse).await
}
