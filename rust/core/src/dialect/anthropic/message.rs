//! Reading messages.
use std::borrow::Cow;
use std::collections::HashMap;

use serde_json::value::RawValue;

use crate::error::Error;

use super::super::base64::is_base64;
use super::super::carry::invalid;
use super::super::chat::{
    Content, Media, Message, Part, Place, Request, Role, Spot, ToolCall, ToolResult,
};
use super::super::json::{self, Members, Path};
use super::block::{attach, signature};

const USER: &[&str] = &[
    "text",
    "image",
    "document",
    "tool_result",
    "mid_conv_system",
];
const ASSISTANT: &[&str] = &["text", "thinking", "redacted_thinking", "tool_use"];
const RESULT: &[&str] = &["text", "image", "document"];
/// What other dialects have too. Where a block of these stands matters; others may stand anywhere.
const KNOWN: &[&str] = &[
    "text",
    "image",
    "document",
    "tool_use",
    "tool_result",
    "thinking",
    "redacted_thinking",
    "mid_conv_system",
];
const SYSTEM: &[&str] = &["text"];

/// Reads messages one by one; knows the calls that were made.
pub(super) struct Messages<'a, 'r> {
    request: &'r mut Request<'a>,
    /// Names of called tools, by the calls' ids: the client's, so no hash that it could foresee.
    calls: HashMap<Cow<'a, str>, Cow<'a, str>>,
    /// The message that is read has blocks that no other dialect has.
    elsewhere: bool,
}

impl<'a, 'r> Messages<'a, 'r> {
    /// Reads `system` and the list of messages into `request`.
    pub(super) fn read(
        system: Option<&'a RawValue>,
        list: &'a RawValue,
        request: &'r mut Request<'a>,
    ) -> Result<(), Error> {
        let mut messages = Self {
            request,
            calls: HashMap::new(),
            elsewhere: false,
        };
        if let Some(raw) = system {
            let parts = messages.blocks(raw, None, &Path::ROOT.key("system"), SYSTEM)?;
            messages.request.system.extend(parts);
        }
        let at = &Path::ROOT.key("messages");
        for (i, raw) in json::list(list, at)?.into_iter().enumerate() {
            messages.message(raw, i as u32, &at.index(i))?;
        }
        Ok(())
    }

    fn message(&mut self, raw: &'a RawValue, index: u32, at: &Path<'_>) -> Result<(), Error> {
        let mut members = Members::read(raw.get(), at)?;
        let role = members.need_text("role", at)?;
        self.elsewhere = false;
        let content = members.need("content", at)?;
        let at = &at.key("content");
        let (role, mut parts) = match &*role {
            "user" => (Role::User, self.blocks(content, Some(index), at, USER)?),
            "assistant" => {
                let mut parts = self.blocks(content, Some(index), at, ASSISTANT)?;
                attach(&mut parts);
                (Role::Assistant, parts)
            }
            "system" => {
                let parts = self.blocks(content, Some(index), at, SYSTEM)?;
                self.request.system.extend(parts);
                return Ok(());
            }
            _ => {
                let path = format!("messages[{index}].role");
                let message = format!("`{path}` has to be user, assistant or system.");
                return Err(invalid(path, message));
            }
        };
        if parts.is_empty() && self.elsewhere {
            let nothing = Content::Text("".into());
            parts.push(Part::new(nothing, Spot::new(index, Place::Whole)));
        }
        if parts.is_empty() {
            let path = at.to_string();
            let message = format!("`{path}` must not be empty.");
            return Err(invalid(path, message));
        }
        self.request.messages.push(Message {
            role,
            parts,
            name: None,
            index,
        });
        Ok(())
    }

    /// Text, or blocks of the given types. Blocks without text are no parts.
    fn blocks(
        &mut self,
        raw: &'a RawValue,
        message: Option<u32>,
        at: &Path<'_>,
        types: &[&str],
    ) -> Result<Vec<Part<'a>>, Error> {
        let spot = |place| Spot { message, place };
        if json::is_text(raw) {
            let text = json::text(raw, at)?;
            let part = Part::new(Content::Text(text), spot(Place::Whole));
            return Ok(Vec::from_iter((!is_blank(&part.content)).then_some(part)));
        }
        let items =
            json::list(raw, at).map_err(|_| at.has_to_be("a string or a list of blocks"))?;
        let mut parts = Vec::with_capacity(items.len());
        for (i, raw) in items.into_iter().enumerate() {
            let at = &at.index(i);
            let mut block = Members::read(raw.get(), at)?;
            let kind = block.need_text("type", at)?;
            if !KNOWN.contains(&&*kind) {
                // What the provider runs and found, or what is new there.
                self.request.elsewhere(&at.key("type"), raw);
                self.elsewhere = true;
                continue;
            }
            if !types.contains(&&*kind) {
                return Err(at
                    .key("type")
                    .has_to_be(format_args!("one of {}", types.join(", "))));
            }
            let cache = block
                .read_with("cache_control", at, json::object)?
                .map(Cow::Borrowed);
            let Some(content) = self.block(&kind, &mut block, at)? else {
                continue;
            };
            let spot = spot(Place::Item(i as u32));
            parts.push(Part {
                content,
                spot,
                cache,
            });
            for (name, raw) in block.rest() {
                if raw.get() != "[]" {
                    self.request.hint(&at.key(&name));
                }
            }
        }
        Ok(parts)
    }

    fn block(
        &mut self,
        kind: &str,
        block: &mut Members<'a>,
        at: &Path<'_>,
    ) -> Result<Option<Content<'a>>, Error> {
        let content = match kind {
            "text" => Content::Text(block.need_text("text", at)?),
            "image" => Content::Image(image(block, at)?),
            "document" => {
                let Some(document) = self.document(block, at)? else {
                    return Ok(None);
                };
                document
            }
            "thinking" => Content::Thinking {
                text: block.need_text("thinking", at)?,
                signature: block.text("signature", at)?.and_then(signature),
            },
            "redacted_thinking" => match signature(block.need_text("data", at)?) {
                Some(data) => Content::Redacted(data),
                None => return Err(at.key("data").has_to_be("a string that is not empty")),
            },
            "tool_use" => {
                let id = block.need_text("id", at)?;
                let name = block.need_text("name", at)?;
                if id.is_empty() {
                    return Err(at.key("id").has_to_be("a string that is not empty"));
                }
                let input = json::object(block.need("input", at)?, &at.key("input"))?;
                self.calls.insert(id.clone(), name.clone());
                Content::ToolCall(ToolCall {
                    id,
                    name,
                    arguments: input.get().into(),
                    signature: None,
                })
            }
            "tool_result" => Content::ToolResult(self.result(block, at)?),
            // Instructions in mid-conversation join the others.
            _ => {
                let raw = block.need("content", at)?;
                let at = &at.key("content");
                let parts = self.blocks(raw, None, at, SYSTEM)?;
                self.request.system.extend(parts);
                return Ok(None);
            }
        };
        Ok((!is_blank(&content)).then_some(content))
    }

    fn result(&mut self, block: &mut Members<'a>, at: &Path<'_>) -> Result<ToolResult<'a>, Error> {
        let id = block.need_text("tool_use_id", at)?;
        let Some(name) = self.calls.get(&id).cloned() else {
            return Err(at
                .key("tool_use_id")
                .has_to_be("the id of a tool_use in an earlier message"));
        };
        let is_error = block.boolean("is_error", at)?.unwrap_or(false);
        let parts = match block.take("content") {
            Some(raw) => self.blocks(raw, None, &at.key("content"), RESULT)?,
            None => Vec::new(),
        };
        Ok(ToolResult {
            id,
            name,
            content: parts.into_iter().map(|part| part.content).collect(),
            is_error,
        })
    }

    /// A document; nothing where it is made of blocks, as it is at Anthropic alone.
    fn document(
        &mut self,
        block: &mut Members<'a>,
        at: &Path<'_>,
    ) -> Result<Option<Content<'a>>, Error> {
        let name = block.text("title", at)?;
        let raw = block.need("source", at)?;
        let at = &at.key("source");
        let mut source = Members::read(raw.get(), at)?;
        let kind = source.need_text("type", at)?;
        match &*kind {
            "text" => return Ok(Some(Content::Text(source.need_text("data", at)?))),
            "content" => {
                self.request.elsewhere(&at.key("type"), raw);
                self.elsewhere = true;
                return Ok(None);
            }
            _ => {}
        }
        match media(&kind, &mut source, at)? {
            Some(media) => Ok(Some(Content::Document { media, name })),
            None => Err(at
                .key("type")
                .has_to_be("base64, text, content, url or file")),
        }
    }
}

fn is_blank(content: &Content<'_>) -> bool {
    match content {
        Content::Text(text) => text.is_empty(),
        Content::Thinking { text, signature } => text.is_empty() && signature.is_none(),
        _ => false,
    }
}

fn image<'a>(block: &mut Members<'a>, at: &Path<'_>) -> Result<Media<'a>, Error> {
    let raw = block.need("source", at)?;
    let at = &at.key("source");
    let mut source = Members::read(raw.get(), at)?;
    let kind = source.need_text("type", at)?;
    match media(&kind, &mut source, at)? {
        Some(Media::Base64 { media_type, .. }) if !media_type.starts_with("image/") => {
            Err(at.key("media_type").has_to_be("an image's"))
        }
        Some(media) => Ok(media),
        None => Err(at.key("type").has_to_be("base64, url or file")),
    }
}

fn media<'a>(
    kind: &str,
    source: &mut Members<'a>,
    at: &Path<'_>,
) -> Result<Option<Media<'a>>, Error> {
    Ok(Some(match kind {
        "base64" => {
            let media_type = source.need_text("media_type", at)?;
            let data = source.need_text("data", at)?;
            if !is_base64(&data) {
                return Err(at.key("data").has_to_be("base64"));
            }
            Media::Base64 { media_type, data }
        }
        "url" => {
            let url = source.need_text("url", at)?;
            if !(url.starts_with("https://") || url.starts_with("http://")) {
                return Err(at.key("url").has_to_be("an http(s) URL"));
            }
            Media::Url {
                url,
                media_type: None,
            }
        }
        "file" => Media::File(source.need_text("file_id", at)?),
        _ => return Ok(None),
    }))
}
