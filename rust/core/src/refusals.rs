//! Why admission says no: each check of a request, with the error that names what to change.
use std::sync::Arc;
use std::time::Duration;

use crate::error::{Error, Kind};
use crate::gateway::Endpoint;
use crate::headers::duration;
use crate::keys::Key;
use crate::limit::{Dimension, Period, Refusal, Scope};
use crate::peek::{Peek, PeekError, PeekErrorKind, RANK_FIELDS};
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
        Endpoint::Completions | Endpoint::Images if !body.has_prompt => Err(missing("prompt")),
        Endpoint::Embeddings | Endpoint::Moderations | Endpoint::Speech if !body.has_input => {
            Err(missing("input"))
        }
        Endpoint::Rerank if !body.has("query") => Err(missing("query")),
        Endpoint::Rerank if !body.has("documents") => Err(missing("documents")),
        Endpoint::Score => scored(body).map_or(Ok(()), |field| Err(missing(field))),
        _ => Ok(()),
    }
}

/// What is missing of the two sides that are scored against each other: vLLM has several names for
/// them, SGLang one.
fn scored(body: &Peek<'_>) -> Option<&'static str> {
    let (left, right) = RANK_FIELDS.split_at(RANK_FIELDS.len() / 2);
    let has = |side: &[&str]| side.iter().any(|field| body.has(field));
    // As it is named depends on the side that is there.
    let sglang = body.has("query") || body.has("items");
    match (has(left), has(right)) {
        (true, true) => None,
        (false, _) if sglang => Some("query"),
        (false, _) => Some("text_1"),
        (true, false) if sglang => Some("items"),
        (true, false) => Some("text_2"),
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
    let model = named_model(snapshot, asked)?;
    Ok((asked.to_string(), model))
}

/// The model of that name.
pub(crate) fn named_model<'s>(
    snapshot: &'s Snapshot,
    asked: &str,
) -> Result<&'s Arc<Model>, Error> {
    if let Some(model) = snapshot.models.get(asked) {
        return Ok(model);
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

/// Refuses a key that may not use the model.
pub(crate) fn permitted(key: &Key, asked: &str, model: &Model) -> Result<(), Error> {
    if key.may_use(asked, &model.name) {
        return Ok(());
    }
    Err(Error::new(
        Kind::Forbidden,
        format!("This API key may not use the model '{asked}'."),
    )
    .param("model")
    .code("model_not_allowed"))
}

/// A budget cannot be kept where the cost is not known.
pub(crate) fn unpriced(model: &str) -> Error {
    Error::new(
        Kind::Forbidden,
        format!(
            "The model '{model}' has no price, so this API key, which has a budget, may not use it."
        ),
    )
    .param("model")
    .code("model_has_no_price")
}

/// A limit says no. `cost` in tokens, `unix_s` is now.
pub(crate) fn limited(refusal: &Refusal, cost: u64, unix_s: i64) -> Error {
    let Refusal {
        scope,
        dimension,
        period,
        limit,
        burst,
        ..
    } = refusal;
    let whose = match scope {
        Scope::Account => "this account",
        Scope::Key => "this API key",
        Scope::Model => "this model",
        Scope::KeyModel => "this API key on this model",
    };
    let Some(wait) = refusal.retry_after else {
        let (kind, message) = match dimension {
            Dimension::Budget => (
                Kind::BudgetExhausted,
                budget_spent(whose, period, *limit, unix_s),
            ),
            Dimension::Tokens => (
                Kind::RateLimited,
                format!(
                    "This request needs about {cost} tokens, more than the {burst} that {whose} may use at once. Waiting does not help; make the request smaller.",
                ),
            ),
            Dimension::Requests | Dimension::Concurrency => (
                Kind::RateLimited,
                format!(
                    "No such requests are taken: the limit on {} of {whose} is {limit}.",
                    dimension.as_str()
                ),
            ),
        };
        let mut error = Error::new(kind, message);
        if kind == Kind::RateLimited {
            error = error.code("request_over_limit");
        }
        error.should_retry = Some(false);
        error.quota = Some(*scope);
        return error;
    };
    let wait = Duration::from_nanos(wait);
    let what = match dimension {
        Dimension::Concurrency => format!("{limit} requests at a time"),
        Dimension::Budget => "requests in flight hold what is left of the budget".to_owned(),
        Dimension::Requests | Dimension::Tokens => {
            format!("{limit} {} per {period}", dimension.as_str())
        }
    };
    let mut error = Error::new(
        Kind::RateLimited,
        format!(
            "Rate limit reached for {whose}: {what}. Please try again in {}.",
            duration(wait)
        ),
    )
    .retry_after(wait);
    error.quota = Some(*scope);
    error
}

fn budget_spent(whose: &str, period: &str, nano: u64, unix_s: i64) -> String {
    let usd = usd(nano);
    match Period::from_name(period).and_then(|period| period.bounds(unix_s).1) {
        Some(end) => format!(
            "The budget of {whose}, {usd} USD per {period}, does not cover this request. A new {period} begins in {}.",
            duration(Duration::from_secs((end - unix_s).max(0) as u64))
        ),
        None => format!("The budget of {whose}, {usd} USD in total, does not cover this request."),
    }
}

/// Nano-USD in USD, cents at least.
fn usd(nano: u64) -> String {
    let text = format!("{}.{:09}", nano / 1_000_000_000, nano % 1_000_000_000);
    let cents = text.len() - 7;
    let (whole, rest) = text.split_at(cents);
    format!("{whole}{}", rest.trim_end_matches('0'))
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn amounts_are_written_exactly() {
        for (nano, text) in [
            (25_000_000_000, "25.00"),
            (1, "0.000000001"),
            (1_500_000_000, "1.50"),
            (123_456_000, "0.123456"),
            (0, "0.00"),
        ] {
            assert_eq!(usd(nano), text);
        }
    }
}
