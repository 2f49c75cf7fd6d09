//! What answers and streams share.
use std::borrow::Cow;

use serde::Deserialize;

use crate::error::{Error, Kind};
use crate::usage::{MAX_TOKENS, Usage};

use super::super::chat::{Signature, Signer, Stop};
use super::super::failure::told;
use super::super::json::{Object, Text};

/// `TokenUsage`.
#[derive(Deserialize)]
#[serde(rename_all = "camelCase")]
#[expect(clippy::struct_field_names, reason = "the names of the wire")]
pub(super) struct Counts {
    input_tokens: u64,
    output_tokens: u64,
    #[serde(default)]
    cache_read_input_tokens: Option<u64>,
    #[serde(default)]
    cache_write_input_tokens: Option<u64>,
}

impl Counts {
    /// Input that was read from or written to a cache is not among `inputTokens`: the three add up
    /// to the prompt.
    pub(super) fn usage(&self) -> Option<Usage> {
        let cached = self.cache_read_input_tokens.unwrap_or(0);
        let cache_write = self.cache_write_input_tokens.unwrap_or(0);
        let prompt = self
            .input_tokens
            .checked_add(cached)?
            .checked_add(cache_write)?;
        (prompt < MAX_TOKENS && self.output_tokens < MAX_TOKENS).then_some(Usage {
            prompt,
            completion: self.output_tokens,
            cached,
            cache_write,
            reasoning: 0,
        })
    }
}

/// Writes `TokenUsage`.
pub(super) fn put_usage(object: &mut Object<'_>, usage: &Usage) {
    object.object("usage", |counts| {
        let aside = usage.cached.saturating_add(usage.cache_write);
        counts.put("inputTokens", usage.prompt.saturating_sub(aside));
        counts.put("outputTokens", usage.completion);
        counts.put("totalTokens", usage.total());
        if aside > 0 {
            counts.put("cacheReadInputTokens", usage.cached);
            counts.put("cacheWriteInputTokens", usage.cache_write);
        }
    });
}

/// Why it ended. Errors: `UpstreamError` for an end that is a failure, or unknown.
pub(super) fn stop(reason: &str) -> Result<Stop, Error> {
    match reason {
        "end_turn" => Ok(Stop::End),
        "tool_use" => Ok(Stop::Tools),
        "max_tokens" => Ok(Stop::Length),
        "stop_sequence" => Ok(Stop::Sequence),
        "guardrail_intervened" | "content_filtered" => Ok(Stop::Filtered),
        "model_context_window_exceeded" => Ok(Stop::Context),
        // `malformed_model_output`, `malformed_tool_use`, and what is not known yet.
        _ => Err(told(
            Kind::UpstreamError,
            None,
            format_args!("ended with {reason}"),
        )),
    }
}

/// Converse's word for it.
pub(super) const fn reason(stop: Stop) -> &'static str {
    match stop {
        Stop::End | Stop::Paused => "end_turn",
        Stop::Tools => "tool_use",
        Stop::Length => "max_tokens",
        Stop::Sequence => "stop_sequence",
        Stop::Filtered => "content_filtered",
        Stop::Context => "model_context_window_exceeded",
    }
}

/// A signature that came over Converse: of its models only Claude signs.
pub(super) const fn signature(value: Cow<'_, str>) -> Signature<'_> {
    Signature {
        value,
        by: Signer::Anthropic,
    }
}

/// The value of a signature that Claude made.
pub(super) fn own<'s>(signature: Option<&'s Signature<'_>>) -> Option<&'s str> {
    signature
        .filter(|signature| signature.by == Signer::Anthropic)
        .map(|signature| &*signature.value)
}

#[derive(Deserialize)]
struct Exception<'a> {
    #[serde(borrow, default)]
    message: Option<Text<'a>>,
}

/// An exception inside a stream, by its name and payload.
pub(super) fn exception(name: &str, payload: &[u8]) -> Error {
    let kind = match name {
        "throttlingException" => Kind::RateLimited,
        "validationException" => Kind::InvalidRequest,
        "serviceUnavailableException" | "modelNotReadyException" => Kind::Unavailable,
        "modelTimeoutException" => Kind::UpstreamTimeout,
        "resourceNotFoundException" => Kind::ModelNotFound,
        // `internalServerException`, `modelStreamErrorException`, our account's, and the unknown.
        _ => Kind::UpstreamError,
    };
    let said = serde_json::from_slice::<Exception<'_>>(payload).ok();
    let said = said.as_ref().and_then(|said| said.message.as_ref());
    let said = said.map(|message| &*message.0);
    // Where the client is at fault, its input may be quoted: that is for the client alone.
    let quoted = match kind {
        Kind::InvalidRequest => "",
        _ => said.unwrap_or_default(),
    };
    told(kind, said, format_args!("in the stream: {name} {quoted}"))
}
