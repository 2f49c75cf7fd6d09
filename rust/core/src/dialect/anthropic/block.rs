//! Blocks of answers and of assistants' messages, and signatures within.
//!
//! Anthropic's own signatures stand as they are. Another provider's get its name in front
//! (`google-gemini-v1:…`; no base64 has a colon), so that they come back to it and to nobody else. A
//! signature that belongs to a call stands in a thinking block without text just before the call.
use std::borrow::Cow;

use serde::Deserialize;
use serde_json::value::RawValue;

use crate::error::Error;

use super::super::carry::broken;
use super::super::chat::{Content, Part, Signature, Signer};
use super::super::json::{Object, Text, is_object};

/// A block of an answer, or what begins one in a stream.
#[derive(Deserialize)]
pub(super) struct Block<'a> {
    #[serde(borrow)]
    pub(super) r#type: Text<'a>,
    #[serde(borrow, default)]
    pub(super) text: Option<Text<'a>>,
    #[serde(borrow, default)]
    pub(super) thinking: Option<Text<'a>>,
    #[serde(borrow, default)]
    pub(super) signature: Option<Text<'a>>,
    #[serde(borrow, default)]
    pub(super) data: Option<Text<'a>>,
    #[serde(borrow, default)]
    pub(super) id: Option<Text<'a>>,
    #[serde(borrow, default)]
    pub(super) name: Option<Text<'a>>,
    #[serde(borrow, default)]
    pub(super) input: Option<&'a RawValue>,
}

/// A signature, and whose it is. Engines that sign nothing send an empty one.
pub(super) fn signature(value: Cow<'_, str>) -> Option<Signature<'_>> {
    if value.is_empty() {
        return None;
    }
    let foreign = value
        .split_once(':')
        .and_then(|(name, _)| Some((Signer::from_name(name)?, name.len() + 1)));
    let Some((by, start)) = foreign else {
        return Some(Signature {
            value,
            by: Signer::Anthropic,
        });
    };
    let value = match value {
        Cow::Borrowed(value) => Cow::Borrowed(value.get(start..).unwrap_or_default()),
        Cow::Owned(mut value) => Cow::Owned(value.split_off(start)),
    };
    Some(Signature { value, by })
}

/// The signature as a client gets it.
pub(super) fn signed<'s>(signature: &'s Signature<'_>) -> Cow<'s, str> {
    match signature.by {
        Signer::Anthropic => Cow::Borrowed(&signature.value),
        by @ Signer::Gemini => Cow::Owned(format!("{}:{}", by.name(), signature.value)),
    }
}

/// Gives signatures that stand before calls to the calls.
pub(super) fn attach(parts: &mut Vec<Part<'_>>) {
    let mut pending: Option<Signature<'_>> = None;
    let mut kept = Vec::with_capacity(parts.len());
    for mut part in parts.drain(..) {
        match &mut part.content {
            Content::Thinking {
                text,
                signature:
                    signature @ Some(Signature {
                        by: Signer::Gemini, ..
                    }),
            } if text.is_empty() => {
                pending = signature.take();
                continue;
            }
            Content::ToolCall(call) => call.signature = pending.take(),
            _ => {}
        }
        kept.push(part);
    }
    *parts = kept;
}

/// Writes a block that thinks.
pub(super) fn thinking(block: &mut Object<'_>, text: &str, signature: Option<&Signature<'_>>) {
    block.put("type", "thinking");
    block.put("thinking", text);
    block.put("signature", signature.map(signed).unwrap_or_default());
}

/// Writes a block whose thoughts cannot be read.
pub(super) fn redacted(block: &mut Object<'_>, data: &Signature<'_>) {
    block.put("type", "redacted_thinking");
    block.put("data", signed(data));
}

/// Writes a call's block. Errors: the arguments are no JSON object.
pub(super) fn tool_use(
    block: &mut Object<'_>,
    id: &str,
    name: &str,
    arguments: &str,
) -> Result<(), Error> {
    block.put("type", "tool_use");
    block.put("id", id);
    block.put("name", name);
    let arguments = if arguments.trim().is_empty() {
        "{}"
    } else {
        arguments
    };
    let input: &RawValue = serde_json::from_str(arguments).map_err(broken)?;
    if !is_object(input) {
        return Err(broken("a tool call's arguments are no object"));
    }
    block.put("input", input);
    Ok(())
}
