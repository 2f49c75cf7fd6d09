//! Whole answers.
use std::borrow::Cow;

use bytes::BytesMut;
use serde::Deserialize;
use serde_json::value::RawValue;

use crate::error::{Error, Kind};
use crate::scrub::{self, Asked};

use super::super::Context;
use super::super::calls::call_id;
use super::super::carry::broken;
use super::super::chat::{Answer, Content, Raw, Signature, Signer, Stop, ToolCall, Usage};
use super::super::json::{Object, Path, Text, is_text};
use super::format::{self, Detail};

#[derive(Deserialize)]
struct Wire<'a> {
    #[serde(borrow, default)]
    choices: Option<Vec<Choice<'a>>>,
    #[serde(borrow, default)]
    usage: Option<&'a RawValue>,
    #[serde(borrow, default)]
    error: Option<&'a RawValue>,
}

#[derive(Deserialize)]
struct Choice<'a> {
    #[serde(borrow, default)]
    message: Option<Message<'a>>,
    #[serde(borrow, default)]
    finish_reason: Option<Text<'a>>,
    #[serde(borrow, default)]
    logprobs: Option<Logprobs<'a>>,
    /// SGLang's, where a stop sequence was met: it, or a token's id.
    #[serde(borrow, default)]
    matched_stop: Option<&'a RawValue>,
    /// vLLM's of the same meaning.
    #[serde(borrow, default)]
    stop_reason: Option<&'a RawValue>,
}

/// What is told of the tokens' probabilities.
#[derive(Deserialize)]
pub(super) struct Logprobs<'a> {
    #[serde(borrow, default)]
    content: Option<&'a RawValue>,
}

impl<'a> Logprobs<'a> {
    /// Those of the text, as a list that is not empty.
    pub(super) fn listed(self) -> Option<Raw<'a>> {
        let list = self.content.filter(|raw| raw.get().len() > 2)?;
        Some(Cow::Borrowed(list))
    }
}

#[derive(Deserialize)]
struct Message<'a> {
    #[serde(borrow, default)]
    content: Option<Text<'a>>,
    #[serde(borrow, default)]
    refusal: Option<Text<'a>>,
    #[serde(borrow, default)]
    reasoning_content: Option<Text<'a>>,
    #[serde(borrow, default)]
    reasoning: Option<Text<'a>>,
    #[serde(borrow, default)]
    reasoning_details: Option<Vec<&'a RawValue>>,
    #[serde(borrow, default)]
    tool_calls: Option<Vec<Call<'a>>>,
}

#[derive(Deserialize)]
struct Call<'a> {
    #[serde(borrow, default)]
    id: Option<Text<'a>>,
    #[serde(borrow)]
    function: Function<'a>,
    #[serde(borrow, default)]
    extra_content: Option<Extra<'a>>,
}

#[derive(Deserialize)]
struct Function<'a> {
    #[serde(borrow)]
    name: Text<'a>,
    #[serde(borrow, default)]
    arguments: Option<Text<'a>>,
}

/// Where Gemini's compatible API has its signatures.
#[derive(Deserialize)]
pub(super) struct Extra<'a> {
    #[serde(borrow, default)]
    google: Option<Google<'a>>,
}

#[derive(Deserialize)]
struct Google<'a> {
    #[serde(borrow, default)]
    thought_signature: Option<Text<'a>>,
}

impl<'a> Extra<'a> {
    pub(super) fn signature(self) -> Option<Signature<'a>> {
        Some(Signature {
            value: self.google?.thought_signature?.0,
            by: Signer::Gemini,
        })
    }
}

/// Reads an answer's first choice. Errors: `UpstreamError`, or what an error in its place says.
///
/// id: the answer's, for calls that have none.
pub(crate) fn parse_answer<'a>(body: &'a str, id: &str) -> Result<Answer<'a>, Error> {
    let wire: Wire<'a> = serde_json::from_str(body).map_err(broken)?;
    if wire.error.is_some_and(says_something) {
        return Err(scrub::stream_error(body.as_bytes(), Asked::default()));
    }
    let choice = wire.choices.and_then(|list| list.into_iter().next());
    let Some(choice) = choice else {
        return Err(broken("no choice"));
    };
    let message = choice.message.ok_or_else(|| broken("no message"))?;
    let mut content = thoughts(&message)?;
    if let Some(Text(text)) = message.content.filter(|text| !text.0.is_empty()) {
        content.push(Content::Text(text));
    }
    if let Some(Text(text)) = message.refusal.filter(|text| !text.0.is_empty()) {
        content.push(Content::Refusal(text));
    }
    let mut calls = 0;
    for call in message.tool_calls.unwrap_or_default() {
        content.push(Content::ToolCall(ToolCall {
            id: known_id(call.id).unwrap_or_else(|| call_id(id, calls).into()),
            name: call.function.name.0,
            arguments: call.function.arguments.map_or("{}".into(), |text| text.0),
            signature: call.extra_content.and_then(Extra::signature),
        }));
        calls += 1;
    }
    let reason = choice.finish_reason.map(|text| text.0);
    let stop_sequence = choice
        .matched_stop
        .or(choice.stop_reason)
        .and_then(sequence);
    Ok(Answer {
        content,
        stop: stop(reason.as_deref(), calls > 0, stop_sequence.is_some())?,
        stop_sequence,
        usage: wire.usage.and_then(|raw| Usage::parse(raw.get())),
        logprobs: choice.logprobs.and_then(Logprobs::listed),
    })
}

fn thoughts<'a>(message: &Message<'a>) -> Result<Vec<Content<'a>>, Error> {
    let mut content = Vec::new();
    for raw in message.reasoning_details.iter().flatten() {
        let detail = Detail::parse(raw, &Path::ROOT).map_err(broken)?;
        content.extend(detail.into_content());
    }
    let text = message
        .reasoning_content
        .as_ref()
        .or(message.reasoning.as_ref());
    if content.is_empty()
        && let Some(Text(text)) = text.filter(|text| !text.0.is_empty())
    {
        content.push(Content::Thinking {
            text: text.clone(),
            signature: None,
        });
    }
    Ok(content)
}

/// A call's id, where the engine gives one.
pub(super) fn known_id(id: Option<Text<'_>>) -> Option<Cow<'_, str>> {
    id.map(|id| id.0).filter(|id| !id.is_empty())
}

/// Python's truth, as OpenAI's SDK judges an `error` member.
pub(super) fn says_something(raw: &RawValue) -> bool {
    !matches!(raw.get(), "null" | "false" | "0" | "\"\"" | "{}" | "[]")
}

/// The stop sequence, if it is one and no token's id.
pub(super) fn sequence(raw: &RawValue) -> Option<Cow<'_, str>> {
    if !is_text(raw) {
        return None;
    }
    serde_json::from_str::<Text<'_>>(raw.get())
        .ok()
        .map(|text| text.0)
}

/// What a finish reason means. With a named tool vLLM says `stop` of a call.
pub(super) fn stop(reason: Option<&str>, called: bool, sequence: bool) -> Result<Stop, Error> {
    match reason {
        Some("stop" | "eos" | "eos_token") if called => Ok(Stop::Tools),
        Some("stop") if sequence => Ok(Stop::Sequence),
        Some("stop" | "eos" | "eos_token") => Ok(Stop::End),
        Some("stop_sequence") => Ok(Stop::Sequence),
        Some("length") => Ok(Stop::Length),
        Some("tool_calls" | "function_call") => Ok(Stop::Tools),
        Some("content_filter") => Ok(Stop::Filtered),
        other => Err(Error::new(
            Kind::UpstreamError,
            "The engine ended the answer without a reason for it.",
        )
        .cause(format!("finish reason {other:?}"))),
    }
}

/// The finish reason. A paused turn is not whole, as one at its bound is not.
pub(super) const fn reason(stop: Stop) -> &'static str {
    match stop {
        Stop::End | Stop::Sequence => "stop",
        Stop::Length | Stop::Context | Stop::Paused => "length",
        Stop::Tools => "tool_calls",
        Stop::Filtered => "content_filter",
    }
}

/// Writes an answer.
pub(crate) fn render_answer(answer: &Answer<'_>, context: &Context, out: &mut BytesMut) {
    Object::write(out, |body| {
        body.put("id", &context.id);
        body.put("object", "chat.completion");
        body.put("created", context.created);
        body.put("model", &context.model);
        body.list("choices", |list| {
            list.object(|choice| {
                choice.put("index", 0);
                choice.object("message", |message| write_message(answer, message));
                match &answer.logprobs {
                    None => choice.put("logprobs", ()),
                    Some(list) => choice.object("logprobs", |logprobs| {
                        logprobs.put("content", list);
                        logprobs.put("refusal", ());
                    }),
                }
                choice.put("finish_reason", reason(answer.stop));
            });
        });
        if let Some(counts) = &answer.usage {
            body.object("usage", |object| usage(counts, object));
        }
    });
}

fn write_message(answer: &Answer<'_>, message: &mut Object<'_>) {
    message.put("role", "assistant");
    let mut text: Option<String> = None;
    let mut refusal: Option<String> = None;
    let mut thoughts: Option<String> = None;
    let mut signed = false;
    let mut calls = Vec::new();
    for content in &answer.content {
        match content {
            Content::Text(more) => text.get_or_insert_default().push_str(more),
            Content::Refusal(more) => refusal.get_or_insert_default().push_str(more),
            Content::Thinking { text, signature } => {
                thoughts.get_or_insert_default().push_str(text);
                signed |= signature.is_some();
            }
            Content::Redacted(_) => signed = true,
            Content::ToolCall(call) => calls.push(call),
            Content::Image(_)
            | Content::Document { .. }
            | Content::Audio(_)
            | Content::ToolResult(_) => {}
        }
    }
    if text.is_none() && refusal.is_none() && calls.is_empty() {
        text = Some(String::new());
    }
    message.put("content", text);
    message.put("refusal", refusal);
    message.put_some(
        "reasoning_content",
        thoughts.filter(|text| !text.is_empty()),
    );
    if signed {
        message.list("reasoning_details", |list| {
            let thoughts = answer.content.iter().filter(|content| {
                matches!(content, Content::Thinking { .. } | Content::Redacted(_))
            });
            for (index, thought) in (0u32..).zip(thoughts) {
                list.object(|detail| match thought {
                    Content::Thinking { text, signature } => {
                        format::text(detail, index, Some(text), signature.as_ref());
                    }
                    Content::Redacted(data) => format::encrypted(detail, index, data),
                    _ => {}
                });
            }
        });
    }
    if !calls.is_empty() {
        message.list("tool_calls", |list| {
            for call in calls {
                list.object(|item| {
                    item.put("id", &call.id);
                    item.put("type", "function");
                    item.object("function", |function| {
                        function.put("name", &call.name);
                        function.put("arguments", &call.arguments);
                    });
                    extra(call.signature.as_ref(), item);
                });
            }
        });
    }
}

/// A call's signature where Gemini's compatible API has it.
pub(in super::super) fn extra(signature: Option<&Signature<'_>>, item: &mut Object<'_>) {
    if let Some(signature) = signature {
        item.object("extra_content", |extra| {
            extra.object("google", |google| {
                google.put("thought_signature", &signature.value);
            });
        });
    }
}

/// The usage object.
pub(super) fn usage(usage: &Usage, object: &mut Object<'_>) {
    object.put("prompt_tokens", usage.prompt);
    object.put("completion_tokens", usage.completion);
    object.put("total_tokens", usage.total());
    object.object("prompt_tokens_details", |details| {
        details.put("cached_tokens", usage.cached);
        details.put("cache_write_tokens", usage.cache_write);
    });
    object.object("completion_tokens_details", |details| {
        details.put("reasoning_tokens", usage.reasoning);
    });
}
