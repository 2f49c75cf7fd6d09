//! Whole answers, read and written.
use std::borrow::Cow;

use bytes::BytesMut;

use crate::error::Error;
use crate::usage::Usage;

use super::super::Context;
use super::super::calls::{arguments, call_id};
use super::super::carry::broken;
use super::super::chat::{Answer, Content, Signature, Signer, Stop, ToolCall};
use super::super::json::{List, Object};
use super::wire::{Piece, Response};

/// Reads an answer.
///
/// id: the answer's, of which ids of calls are made that come without. Errors: `UpstreamError`, or
/// what an error in the answer's place says.
pub(crate) fn parse_answer<'a>(body: &'a str, id: &str) -> Result<Answer<'a>, Error> {
    let response = Response::parse(body)?;
    let usage = response.usage();
    let is_blocked = response.is_blocked();
    let mut content: Vec<Content<'a>> = Vec::new();
    let mut calls = 0;
    let stop = response.pieces(false, |piece| {
        add(piece, &mut content, &mut calls, id);
        Ok(())
    })?;
    let stop = match stop {
        Some(stop) => stop,
        None if is_blocked => Stop::Filtered,
        None => return Err(broken("an answer without a finish reason")),
    };
    Ok(Answer {
        content,
        stop,
        stop_sequence: None,
        usage,
        logprobs: None,
    })
}

/// Adds a piece to an answer: thoughts that follow each other are one, and so is text.
fn add<'a>(piece: Piece<'a>, content: &mut Vec<Content<'a>>, calls: &mut u32, id: &str) {
    match (piece, content.last_mut()) {
        (Piece::Text(more), Some(Content::Text(text)))
        | (
            Piece::Thought(more),
            Some(Content::Thinking {
                text,
                signature: None,
            }),
        ) => text.to_mut().push_str(&more),
        (Piece::Text(text), _) => content.push(Content::Text(text)),
        (Piece::Thought(text), _) => content.push(Content::Thinking {
            text,
            signature: None,
        }),
        (
            Piece::ThoughtSignature(new),
            Some(Content::Thinking {
                signature: signature @ None,
                ..
            }),
        ) => *signature = Some(new),
        (Piece::ThoughtSignature(new) | Piece::Signature(new), _) => {
            content.push(Content::Redacted(new));
        }
        (
            Piece::Call {
                id: given,
                name,
                arguments,
                signature,
            },
            _,
        ) => {
            content.push(Content::ToolCall(ToolCall {
                id: given.unwrap_or_else(|| Cow::Owned(call_id(id, *calls))),
                name,
                arguments: Cow::Borrowed(arguments),
                signature,
            }));
            *calls += 1;
        }
    }
}

/// Writes an answer. Errors: `UpstreamError` for a call whose arguments are no object.
pub(crate) fn render_answer(
    answer: &Answer<'_>,
    context: &Context,
    out: &mut BytesMut,
) -> Result<(), Error> {
    Object::write(out, |body| {
        body.list("candidates", |candidates| {
            candidates.object(|candidate| {
                candidate.object("content", |content| {
                    let written = content.list("parts", |list| {
                        answer.content.iter().try_for_each(|part| put(part, list))
                    });
                    content.put("role", "model");
                    written
                })?;
                candidate.put("finishReason", reason(answer.stop));
                candidate.put("index", 0);
                Ok(())
            })
        })?;
        if let Some(usage) = &answer.usage {
            put_usage(body, usage);
        }
        put_context(body, context);
        Ok(())
    })
}

fn put(content: &Content<'_>, list: &mut List<'_>) -> Result<(), Error> {
    match content {
        Content::Text(text) | Content::Refusal(text) => put_text(list, text, None),
        Content::Thinking { text, signature } => {
            put_thought(list, text, signature.as_ref());
        }
        Content::Redacted(signature) => put_signature(list, signature),
        Content::ToolCall(call) => put_call(list, call)?,
        Content::Image(_)
        | Content::Document { .. }
        | Content::Audio(_)
        | Content::ToolResult(_) => return Err(broken("an answer that is not text")),
    }
    Ok(())
}

/// Text, and its signature if Gemini made it.
pub(super) fn put_text(list: &mut List<'_>, text: &str, signature: Option<&Signature<'_>>) {
    list.object(|part| {
        part.put("text", text);
        part.put_some("thoughtSignature", own(signature));
    });
}

/// A thought, and its signature if Gemini made it.
pub(super) fn put_thought(list: &mut List<'_>, text: &str, signature: Option<&Signature<'_>>) {
    list.object(|part| {
        part.put("text", text);
        part.put("thought", true);
        part.put_some("thoughtSignature", own(signature));
    });
}

/// A signature without a text that is known to be its; nothing for another provider's.
pub(super) fn put_signature(list: &mut List<'_>, signature: &Signature<'_>) {
    if own(Some(signature)).is_some() {
        put_text(list, "", Some(signature));
    }
}

/// A call. Errors: `UpstreamError` if its arguments are no object.
pub(super) fn put_call(list: &mut List<'_>, call: &ToolCall<'_>) -> Result<(), Error> {
    let args = arguments(&call.arguments)
        .ok_or_else(|| broken("a call whose arguments are no JSON object"))?;
    list.object(|part| {
        part.object("functionCall", |function| {
            function.put("id", &call.id);
            function.put("name", &call.name);
            function.put("args", args);
        });
        part.put_some("thoughtSignature", own(call.signature.as_ref()));
    });
    Ok(())
}

/// The value of a signature that Gemini made.
pub(super) fn own<'s>(signature: Option<&'s Signature<'_>>) -> Option<&'s str> {
    signature
        .filter(|signature| signature.by == Signer::Gemini)
        .map(|signature| &*signature.value)
}

/// Gemini's word for how an answer ended.
pub(super) const fn reason(stop: Stop) -> &'static str {
    match stop {
        Stop::End | Stop::Sequence | Stop::Tools | Stop::Paused => "STOP",
        Stop::Length | Stop::Context => "MAX_TOKENS",
        Stop::Filtered => "SAFETY",
    }
}

/// Counts. What was written to a cache has no place of its own: it is among the prompt's.
pub(super) fn put_usage(body: &mut Object<'_>, usage: &Usage) {
    body.object("usageMetadata", |counts| {
        counts.put("promptTokenCount", usage.prompt);
        let answer = usage.completion.saturating_sub(usage.reasoning);
        counts.put("candidatesTokenCount", answer);
        if usage.reasoning > 0 {
            counts.put("thoughtsTokenCount", usage.reasoning);
        }
        if usage.cached > 0 {
            counts.put("cachedContentTokenCount", usage.cached);
        }
        counts.put("totalTokenCount", usage.total());
    });
}

/// What an answer says of itself.
pub(super) fn put_context(body: &mut Object<'_>, context: &Context) {
    body.put("modelVersion", &context.model);
    body.put("responseId", &context.id);
}
