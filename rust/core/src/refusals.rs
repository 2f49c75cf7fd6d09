//! Why admission says no: each check of a request, with the error that names what to change.
use std::sync::Arc;
use std::time::Duration;

use crate::error::{Error, Kind};
use crate::gateway::Endpoint;
use crate::headers::duration;
use crate::limit::{Dimension, Refusal};
use crate::peek::{Peek, PeekError, PeekErrorKind};
use crate::snapshot::{Model, Snapshot};

/// A body that is not JSON by its own account.
pub(crate) fn json_content(content_type: Option<&[u8]>) -> Result<(), Error> {
    // Without one, JSON is meant: curl without -H is told apart by its form type.
    let Some(value) = content_type else {
        return Ok(());
    };
    let media = value
        .split(|b| *b == b';')
        .next()
        .unwrap_or_default()
        .trim_ascii();
    if media.eq_ignore_ascii_case(b"application/json") {
        return Ok(());
    }
    Err(Error::new(
        Kind::InvalidRequest,
        "The content type must be application/json.",
    )
    .param("content-type")
    .code("unsupported_content_type"))
}

pub(crate) fn unreadable(error: &PeekError) -> Error {
    let refused = Error::new(
        Kind::InvalidRequest,
        format!("We could not read the request: {error}."),
    );
    match error.kind {
        PeekErrorKind::WrongType { field, .. } => refused.param(field).code("invalid_type"),
        PeekErrorKind::OutOfRange { field, .. } => refused.param(field).code("invalid_value"),
        _ => refused.code("invalid_json"),
    }
}

/// What an API requires of its body, beyond types.
pub(crate) fn complete(endpoint: Endpoint, body: &Peek<'_>) -> Result<(), Error> {
    let missing = |field: &'static str| {
        Error::new(
            Kind::InvalidRequest,
            format!("Missing required parameter: '{field}'."),
        )
        .param(field)
        .code("missing_required_parameter")
    };
    match endpoint {
        Endpoint::Chat if !body.has_messages => Err(missing("messages")),
        Endpoint::Chat if body.messages_empty => Err(Error::new(
            Kind::InvalidRequest,
            "'messages' must hold at least one message.",
        )
        .param("messages")
        .code("empty_array")),
        Endpoint::Completions if !body.has_prompt => Err(missing("prompt")),
        Endpoint::Embeddings if !body.has_input => Err(missing("input")),
        Endpoint::Chat | Endpoint::Completions | Endpoint::Embeddings => Ok(()),
    }
}

pub(crate) fn find_model<'s>(
    snapshot: &'s Snapshot,
    body: &Peek<'_>,
) -> Result<(String, &'s Arc<Model>), Error> {
    let Some(asked) = &body.model else {
        return Err(
            Error::new(Kind::InvalidRequest, "You must provide a model parameter.")
                .param("model")
                .code("missing_required_parameter"),
        );
    };
    if let Some(model) = snapshot.models.get(asked.as_ref()) {
        return Ok((asked.to_string(), model));
    }
    if !snapshot.complete {
        return Err(Error::new(
            Kind::Unavailable,
            "The engine has not said yet which models it serves. Please try again.",
        )
        .retry_after(Duration::from_secs(1)));
    }
    let shown: String = asked.chars().take(200).collect();
    Err(Error::new(
        Kind::ModelNotFound,
        format!("The model '{shown}' does not exist or you do not have access to it."),
    )
    .param("model"))
}

pub(crate) fn rate_limited(refusal: &Refusal, cost: u64) -> Error {
    let Refusal {
        dimension,
        limit,
        burst,
        ..
    } = refusal;
    let Some(wait) = refusal.retry_after else {
        let message = match dimension {
            Dimension::Tokens => format!(
                "This request needs about {cost} tokens, more than the {burst} that the key may use at once. Waiting does not help; make the request smaller.",
            ),
            _ => format!(
                "The key may not make such requests: its limit on {} is {limit}.",
                dimension.as_str()
            ),
        };
        let mut error = Error::new(Kind::RateLimited, message).code("request_over_limit");
        error.should_retry = Some(false);
        return error;
    };
    let wait = Duration::from_nanos(wait);
    let what = match dimension {
        Dimension::Concurrency => format!("{limit} requests at a time"),
        other => format!("{limit} {} per minute", other.as_str()),
    };
    Error::new(
        Kind::RateLimited,
        format!(
            "Rate limit reached: {what}. Please try again in {}.",
            duration(wait)
        ),
    )
    .retry_after(wait)
}
