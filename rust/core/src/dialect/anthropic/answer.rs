//! Whole answers, their ends and their errors.
use std::borrow::Cow;

use bytes::BytesMut;
use serde::Deserialize;

use crate::error::{Error, Kind};

use super::super::Context;
use super::super::carry::broken;
use super::super::chat::{Answer, Content, Stop, ToolCall, Usage};
use super::super::failure;
use super::super::json::{List, Object, Text};
use super::block::{self, Block, redacted, signature, thinking, tool_use};
use super::count::{self, Counts};

#[derive(Deserialize)]
struct Wire<'a> {
    #[serde(borrow, default)]
    r#type: Option<Text<'a>>,
    #[serde(borrow, default)]
    content: Vec<Block<'a>>,
    #[serde(borrow, default)]
    stop_reason: Option<Text<'a>>,
    #[serde(borrow, default)]
    stop_sequence: Option<Text<'a>>,
    #[serde(borrow, default)]
    stop_details: Option<StopDetails<'a>>,
    #[serde(default)]
    usage: Option<Counts>,
    #[serde(borrow, default)]
    error: Option<Fault<'a>>,
}

/// Why it refused.
#[derive(Deserialize)]
pub(super) struct StopDetails<'a> {
    #[serde(borrow, default)]
    pub(super) explanation: Option<Text<'a>>,
}

/// An error's `type` and message.
#[derive(Deserialize)]
pub(super) struct Fault<'a> {
    #[serde(borrow, default)]
    r#type: Option<Text<'a>>,
    #[serde(borrow, default)]
    message: Option<Text<'a>>,
}

impl Fault<'_> {
    /// The error, of the kind that its type stands for.
    pub(super) fn into_error(self) -> Error {
        let kind = self.r#type.map_or(Cow::Borrowed(""), |text| text.0);
        let meant = match &*kind {
            "invalid_request_error" => Kind::InvalidRequest,
            "not_found_error" => Kind::ModelNotFound,
            "request_too_large" => Kind::PayloadTooLarge,
            "rate_limit_error" => Kind::RateLimited,
            "overloaded_error" => Kind::Unavailable,
            "timeout_error" => Kind::UpstreamTimeout,
            // Faults of our own account there are the upstream's to the client.
            _ => Kind::UpstreamError,
        };
        let said = self.message.map(|text| text.0);
        failure::told(meant, said.as_deref(), kind)
    }
}

/// Reads an answer. Blocks that no other dialect has (tools that the provider runs, and what they
/// found) are passed over. Errors: `UpstreamError`, or what an error in its place says.
pub(crate) fn parse_answer(body: &str) -> Result<Answer<'_>, Error> {
    let wire: Wire<'_> = serde_json::from_str(body).map_err(broken)?;
    if wire.r#type.is_some_and(|kind| kind.0 == "error") {
        let fault = wire.error.ok_or_else(|| broken("an empty error"))?;
        return Err(fault.into_error());
    }
    let mut content = Vec::with_capacity(wire.content.len());
    for block in wire.content {
        let text = |text: Option<Text<'_>>| text.map(|text| text.0.into_owned());
        content.extend(match &*block.r#type.0 {
            "text" => block
                .text
                .filter(|text| !text.0.is_empty())
                .map(|text| Content::Text(text.0)),
            "thinking" => Some(Content::Thinking {
                text: block.thinking.map_or(Cow::Borrowed(""), |text| text.0),
                signature: block.signature.and_then(|text| signature(text.0)),
            }),
            "redacted_thinking" => block
                .data
                .and_then(|text| signature(text.0))
                .map(Content::Redacted),
            "tool_use" => Some(Content::ToolCall(ToolCall {
                id: text(block.id)
                    .ok_or_else(|| broken("a tool_use without an id"))?
                    .into(),
                name: text(block.name)
                    .ok_or_else(|| broken("a tool_use without a name"))?
                    .into(),
                arguments: block.input.map_or("{}", |raw| raw.get()).into(),
                signature: None,
            })),
            _ => None,
        });
    }
    let stop = stop(wire.stop_reason.as_ref().map(|text| &*text.0))?;
    if let Some(Text(why)) = wire.stop_details.and_then(|details| details.explanation)
        && stop == Stop::Filtered
    {
        content.push(Content::Refusal(why));
    }
    Ok(Answer {
        content,
        stop,
        stop_sequence: wire.stop_sequence.map(|text| text.0),
        usage: wire.usage.and_then(|counts| counts.usage()),
        logprobs: None,
    })
}

/// What a stop reason means; new ones are ends as others are.
pub(super) fn stop(reason: Option<&str>) -> Result<Stop, Error> {
    Ok(match reason {
        Some("stop_sequence") => Stop::Sequence,
        Some("max_tokens") => Stop::Length,
        Some("model_context_window_exceeded") => Stop::Context,
        Some("tool_use") => Stop::Tools,
        Some("refusal") => Stop::Filtered,
        Some("pause_turn") => Stop::Paused,
        Some(_) => Stop::End,
        None => return Err(broken("no stop reason")),
    })
}

/// The stop reason.
pub(super) const fn reason(stop: Stop) -> &'static str {
    match stop {
        Stop::End => "end_turn",
        Stop::Sequence => "stop_sequence",
        Stop::Length => "max_tokens",
        Stop::Context => "model_context_window_exceeded",
        Stop::Tools => "tool_use",
        Stop::Filtered => "refusal",
        Stop::Paused => "pause_turn",
    }
}

/// Writes an answer. Errors: a call's arguments are no JSON object.
pub(crate) fn render_answer(
    answer: &Answer<'_>,
    context: &Context,
    out: &mut BytesMut,
) -> Result<(), Error> {
    Object::write(out, |body| {
        body.put("id", &context.id);
        body.put("type", "message");
        body.put("role", "assistant");
        body.put("model", &context.model);
        body.list("content", |list| {
            for content in &answer.content {
                write_block(content, list)?;
            }
            Ok(())
        })?;
        body.put("stop_reason", reason(answer.stop));
        body.put("stop_sequence", answer.stop_sequence.as_deref());
        let usage: Usage = answer.usage.unwrap_or_default();
        body.object("usage", |object| count::write(usage, object));
        Ok(())
    })
}

fn write_block(content: &Content<'_>, list: &mut List<'_>) -> Result<(), Error> {
    match content {
        Content::Text(text) | Content::Refusal(text) => list.object(|block| {
            block.put("type", "text");
            block.put("text", text);
        }),
        Content::Thinking { text, signature } => {
            list.object(|block| thinking(block, text, signature.as_ref()));
        }
        Content::Redacted(data) => list.object(|block| redacted(block, data)),
        Content::ToolCall(call) => {
            if let Some(signature) = &call.signature {
                list.object(|block| block::thinking(block, "", Some(signature)));
            }
            list.object(|block| tool_use(block, &call.id, &call.name, &call.arguments))?;
        }
        Content::Image(_)
        | Content::Document { .. }
        | Content::Audio(_)
        | Content::ToolResult(_) => {}
    }
    Ok(())
}
