//! Whole answers.
use std::borrow::Cow;

use bytes::BytesMut;
use serde::Deserialize;
use serde_json::value::RawValue;

use crate::error::{Error, Kind};

use super::super::Context;
use super::super::carry::broken;
use super::super::chat::{Answer, Content, Stop, ToolCall, Usage};
use super::super::failure;
use super::super::json::{Path, Text};
use super::super::openai::{self, thought_signature};
use super::asked::Asked;
use super::items::{as_argument, signed};
use super::output::{Ids, Response, Status, items_of};

#[derive(Deserialize)]
pub(super) struct Wire<'a> {
    #[serde(borrow, default)]
    status: Option<Text<'a>>,
    #[serde(borrow, default)]
    output: Vec<&'a RawValue>,
    #[serde(borrow, default)]
    incomplete_details: Option<Incomplete<'a>>,
    #[serde(borrow, default)]
    error: Option<Fault<'a>>,
    #[serde(default)]
    usage: Option<Counts>,
}

#[derive(Deserialize)]
struct Incomplete<'a> {
    #[serde(borrow, default)]
    reason: Option<Text<'a>>,
}

/// An item of the output.
#[derive(Deserialize)]
pub(super) struct Item<'a> {
    #[serde(borrow)]
    pub(super) r#type: Text<'a>,
    #[serde(borrow, default)]
    content: Option<Vec<Part<'a>>>,
    #[serde(borrow, default)]
    summary: Option<Vec<Part<'a>>>,
    #[serde(borrow, default)]
    pub(super) encrypted_content: Option<Text<'a>>,
    #[serde(borrow, default)]
    pub(super) call_id: Option<Text<'a>>,
    #[serde(borrow, default)]
    pub(super) name: Option<Text<'a>>,
    #[serde(borrow, default)]
    pub(super) arguments: Option<Text<'a>>,
    #[serde(borrow, default)]
    pub(super) input: Option<Text<'a>>,
    #[serde(borrow, default)]
    pub(super) extra_content: Option<&'a RawValue>,
}

impl<'a> Item<'a> {
    /// Reads an item; none of a kind that no other dialect has, whose members may be anything.
    pub(super) fn read(raw: &'a RawValue) -> Result<Option<Self>, serde_json::Error> {
        #[derive(Deserialize)]
        struct Kind<'a> {
            #[serde(borrow)]
            r#type: Text<'a>,
        }
        let kind: Kind<'a> = serde_json::from_str(raw.get())?;
        let known = ["message", "reasoning", "function_call", "custom_tool_call"];
        if known.contains(&&*kind.r#type.0) {
            serde_json::from_str(raw.get()).map(Some)
        } else {
            Ok(None)
        }
    }
}

#[derive(Deserialize)]
struct Part<'a> {
    #[serde(borrow)]
    r#type: Text<'a>,
    #[serde(borrow, default)]
    text: Option<Text<'a>>,
    #[serde(borrow, default)]
    refusal: Option<Text<'a>>,
    #[serde(borrow, default)]
    logprobs: Option<&'a RawValue>,
}

/// What failed.
#[derive(Deserialize)]
pub(super) struct Fault<'a> {
    #[serde(borrow, default)]
    pub(super) code: Option<Text<'a>>,
    #[serde(borrow, default)]
    pub(super) message: Option<Text<'a>>,
}

impl Fault<'_> {
    /// The error, of the kind that its code stands for.
    pub(super) fn into_error(self) -> Error {
        let code = self.code.map_or(Cow::Borrowed(""), |text| text.0);
        let kind = match &*code {
            "rate_limit_exceeded" => Kind::RateLimited,
            "server_is_overloaded" => Kind::Unavailable,
            "context_length_exceeded" | "invalid_prompt" | "bio_policy" => Kind::InvalidRequest,
            code if code.contains("image") => Kind::InvalidRequest,
            _ => Kind::UpstreamError,
        };
        let said = self.message.map(|text| text.0);
        failure::told(kind, said.as_deref(), code)
    }
}

/// Token counts as Responses names them.
#[derive(Deserialize)]
pub(super) struct Counts {
    #[serde(default)]
    input_tokens: Option<u64>,
    #[serde(default)]
    output_tokens: Option<u64>,
    #[serde(default)]
    input_tokens_details: Option<InputDetails>,
    #[serde(default)]
    output_tokens_details: Option<OutputDetails>,
}

#[derive(Default, Deserialize)]
struct InputDetails {
    #[serde(default)]
    cached_tokens: Option<u64>,
    #[serde(default)]
    cache_write_tokens: Option<u64>,
}

#[derive(Default, Deserialize)]
struct OutputDetails {
    #[serde(default)]
    reasoning_tokens: Option<u64>,
}

impl Counts {
    /// The counts, within what can be; none unless both input and output are told.
    pub(super) fn usage(self) -> Option<Usage> {
        let (prompt, completion) = (self.input_tokens?, self.output_tokens?);
        let input = self.input_tokens_details.unwrap_or_default();
        let output = self.output_tokens_details.unwrap_or_default();
        if prompt.max(completion) >= crate::usage::MAX_TOKENS {
            return None;
        }
        let cached = input.cached_tokens.unwrap_or(0).min(prompt);
        Some(Usage {
            prompt,
            completion,
            cached,
            cache_write: input.cache_write_tokens.unwrap_or(0).min(prompt - cached),
            reasoning: output.reasoning_tokens.unwrap_or(0).min(completion),
        })
    }
}

/// How a response ended.
pub(super) struct Ended {
    pub(super) stop: Stop,
    pub(super) usage: Option<Usage>,
}

impl Wire<'_> {
    /// Errors: it failed, or has not ended.
    pub(super) fn ended(self, called: bool) -> Result<Ended, Error> {
        let status = self.status.as_ref().map(|text| &*text.0);
        let reason = self.incomplete_details.and_then(|details| details.reason);
        let stop = match (status, self.error) {
            (Some("failed"), Some(fault)) => return Err(fault.into_error()),
            (Some("completed"), _) if called => Stop::Tools,
            (Some("completed"), _) => Stop::End,
            (Some("incomplete"), _) => match reason.as_ref().map(|text| &*text.0) {
                Some("content_filter") => Stop::Filtered,
                _ => Stop::Length,
            },
            (status, _) => return Err(broken(format!("status {status:?}"))),
        };
        Ok(Ended {
            stop,
            usage: self.usage.and_then(Counts::usage),
        })
    }
}

/// Reads an answer. Items of tools that the provider runs are passed over. Errors: `UpstreamError`, or
/// what an error in its place says.
pub(crate) fn parse_answer(body: &str) -> Result<Answer<'_>, Error> {
    let mut wire: Wire<'_> = serde_json::from_str(body).map_err(broken)?;
    let mut content = Vec::new();
    let mut logprobs = None;
    let mut called = false;
    for raw in std::mem::take(&mut wire.output) {
        let Some(item) = Item::read(raw).map_err(broken)? else {
            continue;
        };
        match &*item.r#type.0 {
            "message" => {
                for part in item.content.into_iter().flatten() {
                    logprobs = logprobs.or(part.logprobs);
                    content.extend(match &*part.r#type.0 {
                        "output_text" => part.text.map(|text| Content::Text(text.0)),
                        "refusal" => part.refusal.map(|text| Content::Refusal(text.0)),
                        _ => None,
                    });
                }
            }
            "reasoning" => content.extend(thought(item)),
            "function_call" | "custom_tool_call" => {
                called = true;
                content.push(Content::ToolCall(call(item)?));
            }
            _ => {}
        }
    }
    let ended = wire.ended(called)?;
    Ok(Answer {
        content,
        stop: ended.stop,
        stop_sequence: None,
        usage: ended.usage,
        logprobs: logprobs.filter(|raw| raw.get() != "[]").map(Cow::Borrowed),
    })
}

fn thought(item: Item<'_>) -> Option<Content<'_>> {
    let text = |parts: Option<Vec<Part<'_>>>| {
        let texts = parts.into_iter().flatten().filter_map(|part| part.text);
        let texts: Vec<String> = texts.map(|text| text.0.into_owned()).collect();
        texts.join("\n\n")
    };
    let mut said = text(item.content);
    if said.is_empty() {
        said = text(item.summary);
    }
    let signed = item.encrypted_content.and_then(|sealed| signed(&sealed.0));
    match signed {
        Some((signature, true)) => Some(Content::Redacted(signature)),
        Some((signature, false)) => Some(Content::Thinking {
            text: said.into(),
            signature: Some(signature),
        }),
        None if said.is_empty() => None,
        None => Some(Content::Thinking {
            text: said.into(),
            signature: None,
        }),
    }
}

fn call(item: Item<'_>) -> Result<ToolCall<'_>, Error> {
    let (Some(id), Some(name)) = (item.call_id, item.name) else {
        return Err(broken("a call without an id or a name"));
    };
    let arguments = match (item.arguments, item.input) {
        (Some(arguments), _) => arguments.0,
        (None, Some(input)) => Cow::Owned(as_argument(&input.0)),
        (None, None) => Cow::Borrowed("{}"),
    };
    let signature = item
        .extra_content
        .and_then(|raw| thought_signature(raw, &Path::ROOT).ok().flatten());
    Ok(ToolCall {
        id: id.0,
        name: name.0,
        arguments,
        signature,
    })
}

/// Writes an answer. stored: whether it can be named as a previous response.
pub(crate) fn render_answer(
    answer: &Answer<'_>,
    context: &Context,
    asked: &Asked,
    stored: bool,
    out: &mut BytesMut,
) {
    let items = items_of(answer, &asked.telling.custom);
    Response {
        context,
        asked,
        status: Status::of(answer.stop),
        items: &items,
        ids: &Ids::of(&context.id),
        stop: Some(answer.stop),
        usage: answer.usage,
        error: None,
        stored,
    }
    .write(out);
}

/// An answer of chat as the response. Errors: it is none.
pub(crate) fn tell(
    body: &str,
    context: &Context,
    asked: &Asked,
    stored: bool,
) -> Result<BytesMut, Error> {
    let answer = openai::parse_answer(body, &context.id)?;
    let mut out = BytesMut::with_capacity(body.len() + 2048);
    render_answer(&answer, context, asked, stored, &mut out);
    Ok(out)
}
