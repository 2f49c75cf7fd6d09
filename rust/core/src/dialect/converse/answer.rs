//! Whole answers, read and written.
use std::borrow::Cow;

use bytes::BytesMut;
use serde::Deserialize;
use serde_json::value::RawValue;

use crate::error::Error;

use super::super::carry::broken;
use super::super::chat::{Answer, Content, ToolCall};
use super::super::json::{List, Object, Text};
use super::block::{put_call, put_redacted, put_text, put_thought};
use super::wire::{Counts, own, put_usage, reason, signature, stop};

#[derive(Deserialize)]
#[serde(rename_all = "camelCase")]
struct Response<'a> {
    #[serde(borrow)]
    output: Output<'a>,
    #[serde(borrow)]
    stop_reason: Text<'a>,
    #[serde(default)]
    usage: Option<Counts>,
    #[serde(borrow, default)]
    additional_model_response_fields: Option<Additional<'a>>,
}

#[derive(Deserialize)]
struct Output<'a> {
    #[serde(borrow)]
    message: Message<'a>,
}

#[derive(Deserialize)]
struct Message<'a> {
    #[serde(borrow)]
    content: Vec<Block<'a>>,
}

/// Claude's, where `additionalModelResponseFieldPaths` asked for it.
#[derive(Deserialize)]
struct Additional<'a> {
    #[serde(borrow, default)]
    stop_sequence: Option<Text<'a>>,
}

/// A union: one of them is there.
#[derive(Deserialize)]
#[serde(rename_all = "camelCase")]
struct Block<'a> {
    #[serde(borrow, default)]
    text: Option<Text<'a>>,
    #[serde(borrow, default)]
    tool_use: Option<ToolUse<'a>>,
    #[serde(borrow, default)]
    reasoning_content: Option<Reasoning<'a>>,
    #[serde(borrow, default)]
    citations_content: Option<Cited<'a>>,
}

#[derive(Deserialize)]
struct ToolUse<'a> {
    #[serde(borrow, rename = "toolUseId")]
    id: Text<'a>,
    #[serde(borrow)]
    name: Text<'a>,
    #[serde(borrow)]
    input: &'a RawValue,
}

#[derive(Deserialize)]
#[serde(rename_all = "camelCase")]
struct Reasoning<'a> {
    #[serde(borrow, default)]
    reasoning_text: Option<Thought<'a>>,
    #[serde(borrow, default)]
    redacted_content: Option<Text<'a>>,
}

#[derive(Deserialize)]
struct Thought<'a> {
    #[serde(borrow)]
    text: Text<'a>,
    #[serde(borrow, default)]
    signature: Option<Text<'a>>,
}

#[derive(Deserialize)]
struct Cited<'a> {
    #[serde(borrow, default)]
    content: Option<Vec<Piece<'a>>>,
}

#[derive(Deserialize)]
struct Piece<'a> {
    #[serde(borrow, default)]
    text: Option<Text<'a>>,
}

/// Reads an answer. Errors: `UpstreamError`.
pub(crate) fn parse_answer(body: &str) -> Result<Answer<'_>, Error> {
    // An array would be read as an object whose members come in order.
    if !body.trim_ascii_start().starts_with('{') {
        return Err(broken("not an object"));
    }
    let response: Response<'_> = serde_json::from_str(body).map_err(broken)?;
    let mut content = Vec::new();
    for block in response.output.message.content {
        read(block, &mut content)?;
    }
    Ok(Answer {
        content,
        stop: stop(&response.stop_reason.0)?,
        stop_sequence: response
            .additional_model_response_fields
            .and_then(|fields| fields.stop_sequence)
            .map(|sequence| sequence.0),
        usage: response.usage.and_then(|counts| counts.usage()),
        logprobs: None,
    })
}

fn read<'a>(block: Block<'a>, content: &mut Vec<Content<'a>>) -> Result<(), Error> {
    if let Some(text) = block.text {
        content.push(Content::Text(text.0));
    } else if let Some(call) = block.tool_use {
        content.push(Content::ToolCall(ToolCall {
            id: call.id.0,
            name: call.name.0,
            arguments: Cow::Borrowed(call.input.get()),
            signature: None,
        }));
    } else if let Some(reasoning) = block.reasoning_content {
        if let Some(thought) = reasoning.reasoning_text {
            content.push(Content::Thinking {
                text: thought.text.0,
                signature: thought.signature.map(|value| signature(value.0)),
            });
        }
        if let Some(data) = reasoning.redacted_content {
            content.push(Content::Redacted(signature(data.0)));
        }
    } else if let Some(cited) = block.citations_content {
        // What is quoted is text of the answer; from where has no place elsewhere.
        let pieces = cited.content.unwrap_or_default().into_iter();
        content.extend(
            pieces
                .filter_map(|piece| piece.text)
                .map(|text| Content::Text(text.0)),
        );
    } else {
        return Err(broken("an answer that is neither text nor a tool call"));
    }
    Ok(())
}

/// Writes an answer, which says nothing of its id and model. Errors: `UpstreamError` for a call whose arguments are no object.
pub(crate) fn render_answer(answer: &Answer<'_>, out: &mut BytesMut) -> Result<(), Error> {
    Object::write(out, |body| {
        body.object("output", |output| {
            output.object("message", |message| {
                message.put("role", "assistant");
                message.list("content", |list| {
                    answer.content.iter().try_for_each(|part| put(part, list))
                })
            })
        })?;
        body.put("stopReason", reason(answer.stop));
        put_usage(body, &answer.usage.unwrap_or_default());
        // Required, and not known here.
        body.object("metrics", |metrics| metrics.put("latencyMs", 0));
        if let Some(sequence) = &answer.stop_sequence {
            body.object("additionalModelResponseFields", |fields| {
                fields.put("stop_sequence", sequence);
            });
        }
        Ok(())
    })
}

fn put(content: &Content<'_>, list: &mut List<'_>) -> Result<(), Error> {
    match content {
        Content::Text(text) | Content::Refusal(text) => put_text(list, text),
        Content::Thinking { text, signature } => put_thought(list, text, signature.as_ref()),
        Content::Redacted(signature) => {
            if let Some(data) = own(Some(signature)) {
                put_redacted(list, data);
            }
        }
        Content::ToolCall(call) => {
            if !put_call(list, call) {
                return Err(broken("a call whose arguments are no JSON object"));
            }
        }
        Content::Image(_)
        | Content::Document { .. }
        | Content::Audio(_)
        | Content::ToolResult(_) => return Err(broken("an answer that is not text")),
    }
    Ok(())
}
