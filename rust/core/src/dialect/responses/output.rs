//! What a model put out: its items, how they are written, and the response that holds them.
use std::borrow::Cow;

use bytes::BytesMut;

use super::super::Context;
use super::super::chat::{Answer, Content, Signature, Stop, ToolCall, Usage};
use super::super::json::{List, Object};
use super::super::openai::extra;
use super::asked::Asked;
use super::items::{REDACTED, argument_of};

/// Names of tools that take free text.
#[derive(Clone, Debug, Default)]
pub(super) struct Custom(pub(super) Vec<String>);

impl Custom {
    pub(super) fn has(&self, name: &str) -> bool {
        self.0.iter().any(|custom| custom == name)
    }
}

/// How items are told.
#[derive(Clone, Debug, Default)]
pub(super) struct Telling {
    pub(super) custom: Custom,
    /// Thoughts are told as their summary.
    pub(super) summary: bool,
    /// With the logprobs of text.
    pub(super) logprobs: bool,
}

/// One thing that the model put out.
#[derive(Debug)]
pub(super) enum Item {
    Message(Vec<Said>),
    Reasoning {
        text: String,
        /// Signed or sealed, as `encrypted_content`.
        sealed: Option<String>,
    },
    Call {
        id: String,
        name: String,
        arguments: String,
        signature: Option<Signature<'static>>,
        custom: bool,
    },
}

/// A part of a message.
#[derive(Debug)]
pub(super) enum Said {
    Text {
        text: String,
        /// JSON of logprobs, with commas between them.
        logprobs: String,
    },
    Refusal(String),
}

/// What failed.
pub(crate) struct Failed<'a> {
    /// As exact as can be.
    pub(crate) code: &'a str,
    /// One of the few codes that a response's own error has.
    pub(crate) kind: &'static str,
    pub(crate) message: &'a str,
    pub(crate) param: Option<&'a str>,
}

impl Failed<'_> {
    /// The members of the event that tells it.
    pub(super) fn event(&self, event: &mut Object<'_>) {
        event.put("code", self.code);
        event.put("message", self.message);
        event.put("param", self.param);
    }
}

/// How far an item, or a response, has come.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub(super) enum Status {
    InProgress,
    Completed,
    Incomplete,
    Failed,
}

impl Status {
    /// What an answer that ended so is.
    pub(super) const fn of(stop: Stop) -> Self {
        match stop {
            Stop::End | Stop::Sequence | Stop::Tools => Self::Completed,
            Stop::Length | Stop::Context | Stop::Paused | Stop::Filtered => Self::Incomplete,
        }
    }

    const fn name(self) -> &'static str {
        match self {
            Self::InProgress => "in_progress",
            Self::Completed => "completed",
            Self::Incomplete => "incomplete",
            Self::Failed => "failed",
        }
    }
}

/// What another provider signed, as an item carries it: the inverse of [`super::items::signed`].
pub(super) fn sealed(signature: &Signature<'_>, redacted: bool) -> String {
    let redacted = if redacted { REDACTED } else { "" };
    format!("{}:{redacted}{}", signature.by.name(), signature.value)
}

/// Ids of a response's items: the same number has the same id.
#[derive(Debug)]
pub(super) struct Ids(String);

impl Ids {
    /// answer: the response's own id.
    pub(super) fn of(answer: &str) -> Self {
        let own = answer.rsplit(['_', '-']).next().unwrap_or(answer);
        Self(own.to_owned())
    }

    pub(super) fn id(&self, item: &Item, index: usize) -> String {
        let kind = match item {
            Item::Message(_) => "msg",
            Item::Reasoning { .. } => "rs",
            Item::Call { custom: true, .. } => "ctc",
            Item::Call { .. } => "fc",
        };
        format!("{kind}_{}{index:04x}", self.0)
    }
}

/// Writes an item.
pub(super) fn item(
    object: &mut Object<'_>,
    item: &Item,
    id: &str,
    status: Status,
    telling: &Telling,
) {
    object.put("id", id);
    match item {
        Item::Message(said) => {
            object.put("type", "message");
            object.put("status", status.name());
            object.list("content", |list| {
                for said in said {
                    list.object(|part| write_said(part, said));
                }
            });
            object.put("role", "assistant");
        }
        Item::Reasoning { text, sealed } => {
            object.put("type", "reasoning");
            let (summary, content) = if telling.summary {
                (text.as_str(), "")
            } else {
                ("", text.as_str())
            };
            object.list("summary", |list| thought(list, "summary_text", summary));
            if !telling.summary {
                object.list("content", |list| thought(list, "reasoning_text", content));
            }
            object.put_some("encrypted_content", sealed.as_deref());
            object.put("status", status.name());
        }
        Item::Call {
            id: call_id,
            name,
            arguments,
            signature,
            custom,
        } => {
            object.put(
                "type",
                if *custom {
                    "custom_tool_call"
                } else {
                    "function_call"
                },
            );
            object.put("status", status.name());
            if *custom {
                object.put("input", argument_of(arguments));
            } else {
                object.put("arguments", arguments);
            }
            object.put("call_id", call_id);
            object.put("name", name);
            extra(signature.as_ref(), object);
        }
    }
}

fn thought(list: &mut List<'_>, kind: &str, text: &str) {
    if !text.is_empty() {
        list.object(|part| {
            part.put("type", kind);
            part.put("text", text);
        });
    }
}

/// Writes a part of a message.
pub(super) fn write_said(part: &mut Object<'_>, said: &Said) {
    match said {
        Said::Text { text, logprobs } => {
            part.put("type", "output_text");
            part.list("annotations", |_| ());
            raw_list(part, "logprobs", logprobs);
            part.put("text", text);
        }
        Said::Refusal(text) => {
            part.put("type", "refusal");
            part.put("refusal", text);
        }
    }
}

/// A list of which there is the JSON of its items.
pub(super) fn raw_list(object: &mut Object<'_>, name: &str, items: &str) {
    let out = object.member(name);
    out.extend_from_slice(b"[");
    out.extend_from_slice(items.as_bytes());
    out.extend_from_slice(b"]");
}

/// All that a response says beside what it repeats.
pub(super) struct Response<'a> {
    pub(super) context: &'a Context,
    pub(super) asked: &'a Asked,
    pub(super) status: Status,
    pub(super) items: &'a [Item],
    pub(super) ids: &'a Ids,
    /// Why it ended; absent while it runs.
    pub(super) stop: Option<Stop>,
    pub(super) usage: Option<Usage>,
    /// `(code, message)` of what failed.
    pub(super) error: Option<(&'a str, &'a str)>,
    /// Whether it can be named as a previous response.
    pub(super) stored: bool,
}

impl Response<'_> {
    /// Writes the response.
    pub(super) fn write(&self, out: &mut BytesMut) {
        Object::write(out, |object| self.members(object));
    }

    fn members(&self, object: &mut Object<'_>) {
        object.put("id", &self.context.id);
        object.put("object", "response");
        object.put("created_at", self.context.created);
        object.put("status", self.status.name());
        object.put("background", false);
        match self.error {
            None => object.put("error", ()),
            Some((code, message)) => object.object("error", |error| {
                error.put("code", code);
                error.put("message", message);
            }),
        }
        match self.stop.filter(|_| self.status == Status::Incomplete) {
            None => object.put("incomplete_details", ()),
            Some(stop) => object.object("incomplete_details", |details| {
                details.put("reason", incomplete(stop));
            }),
        }
        object.put("model", &self.context.model);
        object.list("output", |list| {
            for (index, one) in self.items.iter().enumerate() {
                let status = self.item_status(index);
                let id = self.ids.id(one, index);
                list.object(|object| item(object, one, &id, status, &self.asked.telling));
            }
        });
        object.put("store", self.stored);
        match &self.usage {
            None => object.put("usage", ()),
            Some(counts) => object.object("usage", |object| usage(counts, object)),
        }
        object.repeat(self.asked.repeated());
    }

    fn item_status(&self, index: usize) -> Status {
        last_status(self.status, index + 1 == self.items.len())
    }
}

/// How far an item is in a response that ended so: only the last one can have been cut.
pub(super) const fn last_status(response: Status, last: bool) -> Status {
    match response {
        Status::Incomplete | Status::Failed if last => Status::Incomplete,
        Status::InProgress if last => Status::InProgress,
        _ => Status::Completed,
    }
}

const fn incomplete(stop: Stop) -> &'static str {
    match stop {
        Stop::Filtered => "content_filter",
        _ => "max_output_tokens",
    }
}

/// Writes the usage object.
pub(super) fn usage(usage: &Usage, object: &mut Object<'_>) {
    object.put("input_tokens", usage.prompt);
    object.object("input_tokens_details", |details| {
        details.put("cached_tokens", usage.cached);
        details.put("cache_write_tokens", usage.cache_write);
    });
    object.put("output_tokens", usage.completion);
    object.object("output_tokens_details", |details| {
        details.put("reasoning_tokens", usage.reasoning);
    });
    object.put("total_tokens", usage.total());
}

/// The items of a whole answer: as a stream of the same would have them.
pub(super) fn items_of(answer: &Answer<'_>, custom: &Custom) -> Vec<Item> {
    let mut items: Vec<Item> = Vec::new();
    for content in &answer.content {
        match content {
            Content::Text(text) => {
                let logprobs = answer.logprobs.as_ref().map_or("", |raw| inner(raw.get()));
                let said = Said::Text {
                    text: text.clone().into_owned(),
                    logprobs: logprobs.to_owned(),
                };
                say(&mut items, said);
            }
            Content::Refusal(text) => say(&mut items, Said::Refusal(text.clone().into_owned())),
            Content::Thinking { text, signature } => items.push(Item::Reasoning {
                text: text.clone().into_owned(),
                sealed: signature.as_ref().map(|signature| sealed(signature, false)),
            }),
            Content::Redacted(signature) => items.push(Item::Reasoning {
                text: String::new(),
                sealed: Some(sealed(signature, true)),
            }),
            Content::ToolCall(call) => items.push(called(call, custom)),
            Content::Image(_)
            | Content::Document { .. }
            | Content::Audio(_)
            | Content::ToolResult(_) => {}
        }
    }
    items
}

fn say(items: &mut Vec<Item>, said: Said) {
    if let Some(Item::Message(parts)) = items.last_mut() {
        parts.push(said);
    } else {
        items.push(Item::Message(vec![said]));
    }
}

fn called(call: &ToolCall<'_>, custom: &Custom) -> Item {
    Item::Call {
        id: call.id.clone().into_owned(),
        name: call.name.clone().into_owned(),
        arguments: call.arguments.clone().into_owned(),
        signature: call.signature.as_ref().map(owned),
        custom: custom.has(&call.name),
    }
}

pub(super) fn owned(signature: &Signature<'_>) -> Signature<'static> {
    Signature {
        value: Cow::Owned(signature.value.clone().into_owned()),
        by: signature.by,
    }
}

/// The items of a list's JSON, with commas between them.
pub(super) fn inner(list: &str) -> &str {
    let list = list.trim();
    let inner = list
        .strip_prefix('[')
        .and_then(|rest| rest.strip_suffix(']'));
    inner.unwrap_or_default().trim()
}
