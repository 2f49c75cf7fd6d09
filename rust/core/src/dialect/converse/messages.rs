//! The messages of a request, read.
use std::borrow::Cow;

use rustc_hash::FxHashMap;
use serde_json::value::{RawValue, to_raw_value};

use crate::error::Error;

use super::super::base64::is_base64;
use super::super::carry::{invalid, unsupported};
use super::super::chat::{
    Content, Media, Message, Part, Place, Raw, Role, Spot, ToolCall, ToolResult,
};
use super::super::json::{self, Members, Path};
use super::super::media::type_of_format;
use super::wire::signature;

/// Reads messages one by one; knows the calls that were made.
#[derive(Default)]
pub(super) struct Messages<'a> {
    /// Names of called tools, by the calls' ids.
    calls: FxHashMap<Cow<'a, str>, Cow<'a, str>>,
}

/// Everything up to here is cached: said as Anthropic's `cache_control`.
pub(super) fn cache_point<'a>(raw: &'a RawValue, at: &Path<'_>) -> Result<Raw<'a>, Error> {
    let mut point = Members::read(raw.get(), at)?;
    if point.need_text("type", at)? != "default" {
        return Err(at.key("type").has_to_be("default"));
    }
    let control = match point.text("ttl", at)? {
        Some(ttl) => serde_json::json!({"type": "ephemeral", "ttl": ttl}),
        None => serde_json::json!({"type": "ephemeral"}),
    };
    to_raw_value(&control)
        .map(Cow::Owned)
        .map_err(|_| at.has_to_be("a cache point"))
}

impl<'a> Messages<'a> {
    /// Reads the list of messages.
    pub(super) fn read(raw: &'a RawValue, at: &Path<'_>) -> Result<Vec<Message<'a>>, Error> {
        let mut messages = Self::default();
        let mut read = Vec::new();
        for (i, raw) in json::list(raw, at)?.into_iter().enumerate() {
            read.push(messages.message(raw, i as u32, &at.index(i))?);
        }
        Ok(read)
    }

    /// Reads the system prompt.
    pub(super) fn system(raw: &'a RawValue, at: &Path<'_>) -> Result<Vec<Part<'a>>, Error> {
        let mut parts: Vec<Part<'a>> = Vec::new();
        for (i, raw) in json::list(raw, at)?.into_iter().enumerate() {
            let at = &at.index(i);
            let mut block = Members::read(raw.get(), at)?;
            if let Some(raw) = block.take("cachePoint") {
                mark(&mut parts, cache_point(raw, &at.key("cachePoint"))?);
                continue;
            }
            let text = block.text("text", at)?;
            if let Some((name, _)) = block.rest().first() {
                return Err(unsupported(at.key(name).to_string()));
            }
            let text = text.ok_or_else(|| at.key("text").is_missing())?;
            let spot = Spot {
                message: None,
                place: Place::Item(i as u32),
            };
            parts.push(Part::new(Content::Text(text), spot));
        }
        Ok(parts)
    }

    fn message(
        &mut self,
        raw: &'a RawValue,
        index: u32,
        at: &Path<'_>,
    ) -> Result<Message<'a>, Error> {
        let mut members = Members::read(raw.get(), at)?;
        let role = match &*members.need_text("role", at)? {
            "user" => Role::User,
            "assistant" => Role::Assistant,
            _ => return Err(at.key("role").has_to_be("user or assistant")),
        };
        let raw = members.need("content", at)?;
        let at = &at.key("content");
        let mut parts = Vec::new();
        for (i, raw) in json::list(raw, at)?.into_iter().enumerate() {
            let at = &at.index(i);
            let mut block = Members::read(raw.get(), at)?;
            if let Some(raw) = block.take("cachePoint") {
                mark(&mut parts, cache_point(raw, &at.key("cachePoint"))?);
                continue;
            }
            let content = self.block(block, role, at)?;
            parts.push(Part::new(content, Spot::new(index, Place::Item(i as u32))));
        }
        if parts.is_empty() {
            let path = at.to_string();
            let message = format!("`{path}` must not be empty.");
            return Err(invalid(path, message));
        }
        Ok(Message {
            role,
            parts,
            name: None,
            index,
        })
    }

    fn block(
        &mut self,
        mut block: Members<'a>,
        role: Role,
        at: &Path<'_>,
    ) -> Result<Content<'a>, Error> {
        const MINE: &str = "in a message of the assistant";
        const YOURS: &str = "in a message of the user";
        let must = |is: bool, name: &str, place: &str| {
            if is {
                Ok(())
            } else {
                Err(at.key(name).has_to_be(place))
            }
        };
        if let Some(text) = block.text("text", at)? {
            return Ok(Content::Text(text));
        }
        if let Some(media) = media(&mut block, at)? {
            must(role == Role::User, "content", YOURS)?;
            return Ok(media);
        }
        if let Some(raw) = block.take("toolUse") {
            must(role == Role::Assistant, "toolUse", MINE)?;
            return self.call(raw, &at.key("toolUse")).map(Content::ToolCall);
        }
        if let Some(raw) = block.take("toolResult") {
            must(role == Role::User, "toolResult", YOURS)?;
            return self
                .result(raw, &at.key("toolResult"))
                .map(Content::ToolResult);
        }
        if let Some(raw) = block.take("reasoningContent") {
            must(role == Role::Assistant, "reasoningContent", MINE)?;
            return reasoning(raw, &at.key("reasoningContent"));
        }
        match block.rest().first() {
            Some((name, _)) => Err(unsupported(at.key(name).to_string())),
            None => Err(at.has_to_be("a block of content")),
        }
    }

    fn call(&mut self, raw: &'a RawValue, at: &Path<'_>) -> Result<ToolCall<'a>, Error> {
        let mut call = Members::read(raw.get(), at)?;
        let id = call.need_text("toolUseId", at)?;
        let name = call.need_text("name", at)?;
        for (field, text) in [("toolUseId", &id), ("name", &name)] {
            if text.is_empty() {
                return Err(at.key(field).has_to_be("a string that is not empty"));
            }
        }
        let input = json::object(call.need("input", at)?, &at.key("input"))?;
        self.calls.insert(id.clone(), name.clone());
        Ok(ToolCall {
            id,
            name,
            arguments: Cow::Borrowed(input.get()),
            signature: None,
        })
    }

    fn result(&mut self, raw: &'a RawValue, at: &Path<'_>) -> Result<ToolResult<'a>, Error> {
        let mut result = Members::read(raw.get(), at)?;
        let id = result.need_text("toolUseId", at)?;
        let Some(name) = self.calls.get(&id).cloned() else {
            let at = at.key("toolUseId");
            return Err(at.has_to_be("the id of a toolUse in an earlier message"));
        };
        let is_error = match result.text("status", at)?.as_deref() {
            None | Some("success") => false,
            Some("error") => true,
            Some(_) => return Err(at.key("status").has_to_be("success or error")),
        };
        let list = result.need("content", at)?;
        let at = &at.key("content");
        let mut content = Vec::new();
        for (i, raw) in json::list(list, at)?.into_iter().enumerate() {
            let at = &at.index(i);
            let mut block = Members::read(raw.get(), at)?;
            if let Some(text) = block.text("text", at)? {
                content.push(Content::Text(text));
            } else if let Some(raw) = block.take("json") {
                content.push(Content::Text(Cow::Borrowed(raw.get())));
            } else if let Some(media) = media(&mut block, at)? {
                content.push(media);
            } else if let Some((name, _)) = block.rest().first() {
                return Err(unsupported(at.key(name).to_string()));
            }
        }
        Ok(ToolResult {
            id,
            name,
            content,
            is_error,
        })
    }
}

fn mark<'a>(parts: &mut [Part<'a>], point: Raw<'a>) {
    if let Some(last) = parts.last_mut() {
        last.cache = Some(point);
    }
}

fn reasoning<'a>(raw: &'a RawValue, at: &Path<'_>) -> Result<Content<'a>, Error> {
    let mut reasoning = Members::read(raw.get(), at)?;
    if let Some(data) = reasoning.text("redactedContent", at)? {
        return Ok(Content::Redacted(signature(data)));
    }
    let raw = reasoning.need("reasoningText", at)?;
    let at = &at.key("reasoningText");
    let mut thought = Members::read(raw.get(), at)?;
    Ok(Content::Thinking {
        text: thought.need_text("text", at)?,
        signature: thought.text("signature", at)?.map(signature),
    })
}

/// An image, a document or a sound, if the block is one.
fn media<'a>(block: &mut Members<'a>, at: &Path<'_>) -> Result<Option<Content<'a>>, Error> {
    for kind in ["image", "document", "audio"] {
        let Some(raw) = block.take(kind) else {
            continue;
        };
        let at = &at.key(kind);
        let mut file = Members::read(raw.get(), at)?;
        let name = file.text("name", at)?;
        let format = file.text("format", at)?;
        let source = file.need("source", at)?;
        let inner = &at.key("source");
        let mut source = Members::read(source.get(), inner)?;
        if kind == "document"
            && let Some(text) = source.text("text", inner)?
        {
            return Ok(Some(Content::Text(text)));
        }
        let format = format.ok_or_else(|| at.key("format").is_missing())?;
        let Some(media_type) = type_of_format(&format) else {
            return Err(at.key("format").has_to_be("a format that Converse knows"));
        };
        let media = if let Some(data) = source.text("bytes", inner)? {
            if !is_base64(&data) {
                return Err(inner.key("bytes").has_to_be("base64"));
            }
            Media::Base64 {
                media_type: Cow::Borrowed(media_type),
                data,
            }
        } else if let Some(raw) = source.take("s3Location") {
            let inner = &inner.key("s3Location");
            Media::Url {
                url: Members::read(raw.get(), inner)?.need_text("uri", inner)?,
                media_type: Some(Cow::Borrowed(media_type)),
            }
        } else {
            return Err(inner.has_to_be("bytes or an s3Location"));
        };
        return Ok(Some(match kind {
            "image" => Content::Image(media),
            "audio" => Content::Audio(media),
            _ => Content::Document { media, name },
        }));
    }
    Ok(None)
}
