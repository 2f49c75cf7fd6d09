//! One error taxonomy for every door.
//!
//! A kind decides, in one exhaustive match each, the HTTP status, OpenAI's
//! `type` and `code`, Anthropic's `type`, the gRPC status and who may retry. The message is safe
//! to show; the cause is private and goes to the log only.
use std::borrow::Cow;
use std::fmt;
use std::time::Duration;

use bytes::Bytes;
use serde::Serialize;

use crate::limit::Scope;
use crate::snapshot::Reason;
use crate::sse::TooLarge;

/// What went wrong, in terms that every protocol can render.
#[derive(Clone, Copy, Debug, PartialEq, Eq, Hash)]
pub enum Kind {
    /// The request itself cannot be served, by anyone.
    InvalidRequest,
    /// No key, or none that we know.
    Unauthenticated,
    /// A known key that may not do this.
    Forbidden,
    /// No such model.
    ModelNotFound,
    /// No such path.
    NotFound,
    /// The path exists; the method does not.
    MethodNotAllowed,
    /// What the request needs is taken, for now or for good: another one with its idempotency key.
    Conflict,
    /// The body is over the limit.
    PayloadTooLarge,
    /// Its idempotency key belongs to another request.
    KeyReused,
    /// Money or quota is used up; waiting does not help.
    BudgetExhausted,
    /// Over a rate limit; waiting helps unless the request alone is over the burst.
    RateLimited,
    /// The client went away.
    ClientClosed,
    /// A fault of the gateway.
    Internal,
    /// The engine failed, or answered with something that is no answer.
    UpstreamError,
    /// No target can take the request now.
    Unavailable,
    /// The engine did not answer in time.
    UpstreamTimeout,
}

/// Who may try again.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum Retry {
    /// Nobody.
    Never,
    /// The client, after `retry-after`.
    After,
    /// The gateway, on another target, before the first byte.
    Sibling,
}

impl Kind {
    /// The HTTP status code.
    pub const fn status(self) -> u16 {
        match self {
            Self::InvalidRequest => 400,
            Self::Unauthenticated => 401,
            Self::Forbidden => 403,
            Self::ModelNotFound | Self::NotFound => 404,
            Self::MethodNotAllowed => 405,
            Self::Conflict => 409,
            Self::PayloadTooLarge => 413,
            Self::KeyReused => 422,
            Self::BudgetExhausted | Self::RateLimited => 429,
            Self::ClientClosed => 499,
            Self::Internal => 500,
            Self::UpstreamError => 502,
            Self::Unavailable => 503,
            Self::UpstreamTimeout => 504,
        }
    }

    /// OpenAI's `error.type`.
    pub const fn openai_type(self) -> &'static str {
        match self {
            Self::InvalidRequest
            | Self::Unauthenticated
            | Self::ModelNotFound
            | Self::NotFound
            | Self::MethodNotAllowed
            | Self::Conflict
            | Self::PayloadTooLarge
            | Self::KeyReused => "invalid_request_error",
            Self::Forbidden => "permission_error",
            Self::BudgetExhausted => "insufficient_quota",
            Self::RateLimited => "rate_limit_error",
            Self::ClientClosed => "client_closed_request",
            Self::Internal | Self::UpstreamError => "server_error",
            Self::Unavailable => "service_unavailable_error",
            Self::UpstreamTimeout => "timeout_error",
        }
    }

    /// OpenAI's `error.code`, where the error itself names none.
    pub const fn openai_code(self) -> Option<&'static str> {
        match self {
            Self::InvalidRequest => None,
            Self::Unauthenticated => Some("invalid_api_key"),
            Self::Forbidden => Some("permission_denied"),
            Self::ModelNotFound => Some("model_not_found"),
            Self::NotFound => Some("unknown_url"),
            Self::MethodNotAllowed => Some("method_not_supported"),
            Self::Conflict => Some("conflict"),
            Self::PayloadTooLarge => Some("request_too_large"),
            Self::KeyReused => Some("idempotency_key_reused"),
            Self::BudgetExhausted => Some("insufficient_quota"),
            Self::RateLimited => Some("rate_limit_exceeded"),
            Self::ClientClosed => Some("client_closed_request"),
            Self::Internal => Some("internal_error"),
            Self::UpstreamError => Some("upstream_error"),
            Self::Unavailable => Some("service_unavailable"),
            Self::UpstreamTimeout => Some("upstream_timeout"),
        }
    }

    /// Anthropic's `error.type`. Statuses are the gateway's own at every door, so that what Anthropic
    /// tells with 402 and 529 is told by the type: money that is used up, and too much to do.
    pub const fn anthropic_type(self) -> &'static str {
        match self {
            Self::InvalidRequest | Self::MethodNotAllowed | Self::KeyReused => {
                "invalid_request_error"
            }
            Self::Unauthenticated => "authentication_error",
            Self::Forbidden => "permission_error",
            Self::ModelNotFound | Self::NotFound => "not_found_error",
            Self::PayloadTooLarge => "request_too_large",
            Self::BudgetExhausted => "billing_error",
            Self::RateLimited => "rate_limit_error",
            Self::ClientClosed | Self::Internal | Self::UpstreamError => "api_error",
            Self::Unavailable => "overloaded_error",
            Self::Conflict => "conflict_error",
            Self::UpstreamTimeout => "timeout_error",
        }
    }

    /// The gRPC status code (google/rpc/code.proto).
    pub const fn grpc_code(self) -> i32 {
        match self {
            Self::InvalidRequest => 3,
            Self::Unauthenticated => 16,
            Self::Forbidden => 7,
            Self::ModelNotFound | Self::NotFound => 5,
            Self::MethodNotAllowed => 12,
            Self::Conflict => 10,
            Self::KeyReused => 9,
            Self::PayloadTooLarge | Self::BudgetExhausted | Self::RateLimited => 8,
            Self::ClientClosed => 1,
            Self::Internal => 13,
            Self::UpstreamError | Self::Unavailable => 14,
            Self::UpstreamTimeout => 4,
        }
    }

    /// Who may retry.
    pub const fn retry(self) -> Retry {
        match self {
            Self::Conflict | Self::RateLimited | Self::Unavailable => Retry::After,
            Self::UpstreamError | Self::UpstreamTimeout => Retry::Sibling,
            Self::InvalidRequest
            | Self::Unauthenticated
            | Self::Forbidden
            | Self::ModelNotFound
            | Self::NotFound
            | Self::MethodNotAllowed
            | Self::PayloadTooLarge
            | Self::KeyReused
            | Self::BudgetExhausted
            | Self::ClientClosed
            | Self::Internal => Retry::Never,
        }
    }

    /// A stable name for metrics, usage rows and gRPC's `ErrorInfo.reason`.
    pub const fn name(self) -> &'static str {
        match self {
            Self::InvalidRequest => "invalid_request",
            Self::Unauthenticated => "unauthenticated",
            Self::Forbidden => "forbidden",
            Self::ModelNotFound => "model_not_found",
            Self::NotFound => "not_found",
            Self::MethodNotAllowed => "method_not_allowed",
            Self::Conflict => "conflict",
            Self::PayloadTooLarge => "payload_too_large",
            Self::KeyReused => "idempotency_key_reused",
            Self::BudgetExhausted => "budget_exhausted",
            Self::RateLimited => "rate_limited",
            Self::ClientClosed => "client_closed",
            Self::Internal => "internal",
            Self::UpstreamError => "upstream_error",
            Self::Unavailable => "unavailable",
            Self::UpstreamTimeout => "upstream_timeout",
        }
    }

    /// The kind of that name: the inverse of [`Kind::name`].
    pub fn from_name(name: &str) -> Option<Self> {
        const ALL: [Kind; 16] = [
            Kind::InvalidRequest,
            Kind::Unauthenticated,
            Kind::Forbidden,
            Kind::ModelNotFound,
            Kind::NotFound,
            Kind::MethodNotAllowed,
            Kind::Conflict,
            Kind::PayloadTooLarge,
            Kind::KeyReused,
            Kind::BudgetExhausted,
            Kind::RateLimited,
            Kind::ClientClosed,
            Kind::Internal,
            Kind::UpstreamError,
            Kind::Unavailable,
            Kind::UpstreamTimeout,
        ];
        ALL.into_iter().find(|kind| kind.name() == name)
    }
}

/// One failure: what the client may read, and apart from it what only the log may.
#[derive(Clone, Debug)]
pub struct Error {
    /// Its place in the taxonomy.
    pub kind: Kind,
    /// Safe to show: no key, no address, no stack.
    pub message: Cow<'static, str>,
    /// The request field at fault, as the client named it.
    pub param: Option<Cow<'static, str>>,
    /// Overrides [`Kind::openai_code`].
    pub code: Option<Cow<'static, str>>,
    /// How long the client should wait.
    pub retry_after: Option<Duration>,
    /// False: SDKs that retry 429s by themselves are told not to.
    pub should_retry: Option<bool>,
    /// Whose limit or budget is used up.
    pub quota: Option<Scope>,
    /// What it is about, where another model may do better.
    pub reason: Option<Reason>,
    /// Whether another target may do better. Absent: as [`Kind::retry`] says.
    pub sibling: Option<bool>,
    /// The HTTP status of the upstream's answer that it was made of.
    pub upstream_status: Option<u16>,
    /// For the log only.
    pub cause: Option<Box<str>>,
}

#[derive(Serialize)]
struct Envelope<'a> {
    error: Body<'a>,
}

#[derive(Serialize)]
struct Body<'a> {
    message: &'a str,
    r#type: &'a str,
    param: Option<&'a str>,
    code: Option<&'a str>,
}

impl Error {
    /// An error of `kind` that tells the client `message`.
    pub fn new(kind: Kind, message: impl Into<Cow<'static, str>>) -> Self {
        Self {
            kind,
            message: message.into(),
            param: None,
            code: None,
            retry_after: None,
            should_retry: None,
            quota: None,
            reason: None,
            sibling: None,
            upstream_status: None,
            cause: None,
        }
    }

    /// The engine sent an event that no decoder holds.
    pub(crate) fn oversized_event(cause: TooLarge) -> Self {
        let message = "The engine sent an event that is too large.";
        Self::new(Kind::UpstreamError, message).cause(cause)
    }

    /// Names the request field at fault.
    #[must_use]
    pub fn param(mut self, param: impl Into<Cow<'static, str>>) -> Self {
        self.param = Some(param.into());
        self
    }

    /// Sets a more exact `code` than the kind's own.
    #[must_use]
    pub fn code(mut self, code: impl Into<Cow<'static, str>>) -> Self {
        self.code = Some(code.into());
        self
    }

    /// Tells the client when to come back.
    #[must_use]
    pub fn retry_after(mut self, wait: Duration) -> Self {
        self.retry_after = Some(wait);
        self
    }

    /// Says what it is about.
    #[must_use]
    pub fn reason(mut self, reason: Reason) -> Self {
        self.reason = Some(reason);
        self
    }

    /// Says whether another target may do better.
    #[must_use]
    pub fn sibling(mut self, may: bool) -> Self {
        self.sibling = Some(may);
        self
    }

    /// Whether another target of the same model may do better, before the first byte.
    pub fn elsewhere(&self) -> bool {
        let by_kind = self.kind.retry() == Retry::Sibling || self.kind == Kind::Unavailable;
        self.sibling.unwrap_or(by_kind)
    }

    /// Keeps the private cause for the log.
    #[must_use]
    pub fn cause(mut self, cause: impl fmt::Display) -> Self {
        self.cause = Some(cause.to_string().into());
        self
    }

    /// The body in OpenAI's shape: `{"error": {message, type, param, code}}`.
    pub fn openai_body(&self) -> Bytes {
        let body = Envelope {
            error: Body {
                message: &self.message,
                r#type: self.kind.openai_type(),
                param: self.param.as_deref(),
                code: self.code.as_deref().or(self.kind.openai_code()),
            },
        };
        // Strings alone cannot fail to serialise; an empty body would still be a valid answer.
        serde_json::to_vec(&body)
            .map(Bytes::from)
            .unwrap_or_default()
    }

    /// The headers that only errors carry, as `(name, value)`.
    ///
    /// `retry-after` in whole seconds, rounded up and at least 1 (RFC 9110 §10.2.3; OpenAI's SDK
    /// ignores 0), beside the exact `retry-after-ms`.
    pub fn headers(&self) -> Vec<(&'static str, String)> {
        let mut headers = Vec::new();
        let wait = self
            .retry_after
            .or((self.kind == Kind::Unavailable).then_some(Duration::from_secs(1)));
        if let Some(wait) = wait {
            let seconds = wait.as_millis().div_ceil(1000).max(1);
            headers.push(("retry-after", seconds.to_string()));
            headers.push(("retry-after-ms", wait.as_millis().max(1).to_string()));
        }
        let should_retry = self
            .should_retry
            .or((self.kind == Kind::BudgetExhausted).then_some(false));
        if let Some(should_retry) = should_retry {
            headers.push(("x-should-retry", should_retry.to_string()));
        }
        headers
    }
}

impl fmt::Display for Error {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        write!(f, "{}: {}", self.kind.name(), self.message)?;
        match &self.cause {
            Some(cause) => write!(f, " ({cause})"),
            None => Ok(()),
        }
    }
}

impl std::error::Error for Error {}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn names_are_inverse() {
        for name in [
            "invalid_request",
            "rate_limited",
            "upstream_timeout",
            "not_found",
            "conflict",
            "idempotency_key_reused",
        ] {
            assert_eq!(Kind::from_name(name).map(Kind::name), Some(name));
        }
        assert_eq!(Kind::from_name("nope"), None);
    }

    #[test]
    fn what_another_target_may_do_better() {
        for (kind, elsewhere) in [
            (Kind::UpstreamError, true),
            (Kind::UpstreamTimeout, true),
            (Kind::Unavailable, true),
            (Kind::RateLimited, false),
            (Kind::InvalidRequest, false),
        ] {
            let error = Error::new(kind, "x");
            assert_eq!(error.elsewhere(), elsewhere);
            assert_eq!(error.sibling(!elsewhere).elsewhere(), !elsewhere);
        }
    }

    #[test]
    fn openai_shape() {
        let error = Error::new(Kind::ModelNotFound, "no \"x\"").param("model");
        assert_eq!(
            &error.openai_body()[..],
            br#"{"error":{"message":"no \"x\"","type":"invalid_request_error","param":"model","code":"model_not_found"}}"#
        );
    }

    #[test]
    fn retry_after_rounds_up_and_is_never_zero() {
        let error = Error::new(Kind::RateLimited, "x").retry_after(Duration::from_millis(1));
        assert_eq!(
            error.headers().first(),
            Some(&("retry-after", "1".to_owned()))
        );
        let error = Error::new(Kind::RateLimited, "x").retry_after(Duration::from_millis(1001));
        assert_eq!(
            error.headers().first(),
            Some(&("retry-after", "2".to_owned()))
        );
    }
}
