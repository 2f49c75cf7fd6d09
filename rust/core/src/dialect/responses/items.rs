//! Reading what is put in: messages, calls, their results, thoughts.
use std::borrow::Cow;
use std::collections::HashMap;

use serde_json::value::RawValue;

use crate::error::{Error, Kind};

use super::super::carry::invalid;
use super::super::chat::{
    Content, Media, Message, Part, Place, Role, Signature, Signer, Spot, ToolCall, ToolResult,
};
use super::super::json::{self, Members, Path, value};
use super::super::openai::{audio, media, thought_signature};
use super::parse::Parsed;

/// Between the name of who signed and `redacted` thoughts that only it can read.
pub(super) const REDACTED: &str = "redacted:";

const SAID: [&str; 4] = ["input_text", "input_image", "input_file", "input_audio"];

/// Adds the instructions, before all else.
pub(super) fn instructions<'a>(text: Cow<'a, str>, parsed: &mut Parsed<'a>) {
    if !text.is_empty() {
        let part = Part::new(Content::Text(text), Spot::default());
        parsed.request.system.push(part);
    }
}

/// Reads `input`: text, or items.
pub(super) fn read<'a>(
    raw: &'a RawValue,
    at: &Path<'_>,
    parsed: &mut Parsed<'a>,
) -> Result<(), Error> {
    if json::is_text(raw) {
        let text = json::text(raw, at)?;
        if text.is_empty() {
            return Err(at.has_to_be("text that is not empty, or a list of items"));
        }
        let part = Part::new(Content::Text(text), Spot::new(0, Place::Whole));
        parsed.request.messages.push(Message {
            role: Role::User,
            parts: vec![part],
            name: None,
            index: 0,
        });
        return Ok(());
    }
    let list = json::list(raw, at).map_err(|_| at.has_to_be("a string or a list of items"))?;
    if list.is_empty() {
        return Err(at.has_to_be("text that is not empty, or a list of items"));
    }
    let mut items = Items {
        parsed,
        calls: HashMap::new(),
    };
    for (i, raw) in list.into_iter().enumerate() {
        items.item(raw, i as u32, &at.index(i))?;
    }
    Ok(())
}

struct Items<'a, 'p> {
    parsed: &'p mut Parsed<'a>,
    /// Names of called tools, by the calls' ids: the client's, so no hash that it could foresee.
    calls: HashMap<Cow<'a, str>, Cow<'a, str>>,
}

impl<'a> Items<'a, '_> {
    fn item(&mut self, raw: &'a RawValue, index: u32, at: &Path<'_>) -> Result<(), Error> {
        let mut members = Members::read(raw.get(), at)?;
        let kind = members.text("type", at)?;
        match kind.as_deref() {
            None | Some("message") => self.message(members, index, at),
            Some("function_call") => self.call(members, index, at, false),
            Some("custom_tool_call") => self.call(members, index, at, true),
            Some("function_call_output" | "custom_tool_call_output") => {
                self.result(members, index, at)
            }
            Some("reasoning") => self.reasoning(members, index, at),
            Some("item_reference") => {
                let path = at.key("id").to_string();
                let id = members.need_text("id", at)?;
                let message = format!("There is no item with the id '{id}'.");
                Err(Error::new(Kind::NotFound, message)
                    .param(path)
                    .code("item_not_found"))
            }
            Some(_) => {
                self.parsed.native_only(&at.key("type"));
                Ok(())
            }
        }
    }

    fn message(
        &mut self,
        mut members: Members<'a>,
        index: u32,
        at: &Path<'_>,
    ) -> Result<(), Error> {
        let role = members.need_text("role", at)?;
        let content = members.need("content", at)?;
        match &*role {
            "system" | "developer" => {
                let parts = self.contents(content, index, &at.key("content"), &["input_text"])?;
                self.parsed.request.system.extend(parts);
                return Ok(());
            }
            "user" => {
                let parts = self.contents(content, index, &at.key("content"), &SAID)?;
                if parts.is_empty() {
                    // It may have been of parts that only Responses has.
                    return match &self.parsed.native_only {
                        Some(_) => Ok(()),
                        None => Err(empty(&at.key("content"))),
                    };
                }
                self.parsed.request.messages.push(Message {
                    role: Role::User,
                    parts,
                    name: None,
                    index,
                });
            }
            "assistant" => {
                let types = ["output_text", "refusal"];
                let parts = self.contents(content, index, &at.key("content"), &types)?;
                let begins = |content: &Content<'_>| {
                    !matches!(content, Content::Thinking { .. } | Content::Redacted(_))
                };
                self.says(parts, index, begins);
            }
            _ => {
                return Err(at
                    .key("role")
                    .has_to_be("one of user, assistant, system, developer"));
            }
        }
        Ok(())
    }

    /// What the model said: more of its last message, unless that has something for which the new
    /// `begins` another one.
    fn says(&mut self, parts: Vec<Part<'a>>, index: u32, begins: impl Fn(&Content<'_>) -> bool) {
        if parts.is_empty() {
            return;
        }
        if let Some(last) = self.parsed.request.messages.last_mut()
            && last.role == Role::Assistant
            && !last.parts.iter().any(|part| begins(&part.content))
        {
            last.parts.extend(parts);
            return;
        }
        self.parsed.request.messages.push(Message {
            role: Role::Assistant,
            parts,
            name: None,
            index,
        });
    }

    /// A message's content; parts without text are no parts.
    fn contents(
        &mut self,
        raw: &'a RawValue,
        index: u32,
        at: &Path<'_>,
        types: &[&str],
    ) -> Result<Vec<Part<'a>>, Error> {
        if json::is_text(raw) {
            let text = json::text(raw, at)?;
            let part = Part::new(Content::Text(text), Spot::new(index, Place::Whole));
            return Ok(Vec::from_iter((!is_blank(&part)).then_some(part)));
        }
        let items = json::list(raw, at).map_err(|_| at.has_to_be("a string or a list of parts"))?;
        let mut parts = Vec::with_capacity(items.len());
        for (i, raw) in items.into_iter().enumerate() {
            let at = &at.index(i);
            let mut members = Members::read(raw.get(), at)?;
            let kind = members.need_text("type", at)?;
            if !types.contains(&&*kind) {
                let one_of = format!("one of {}", types.join(", "));
                return Err(at.key("type").has_to_be(one_of));
            }
            let content = match &*kind {
                "input_text" | "output_text" => Content::Text(members.need_text("text", at)?),
                "refusal" => Content::Refusal(members.need_text("refusal", at)?),
                "input_image" => self.image(&mut members, at)?,
                "input_audio" => audio(&mut members, at)?,
                _ => file(&mut members, at)?,
            };
            let part = Part::new(content, Spot::new(index, Place::Item(i as u32)));
            if !is_blank(&part) {
                parts.push(part);
            }
        }
        Ok(parts)
    }

    fn image(&mut self, members: &mut Members<'a>, at: &Path<'_>) -> Result<Content<'a>, Error> {
        if members
            .text("detail", at)?
            .is_some_and(|detail| detail != "auto")
        {
            self.parsed.request.hint(&at.key("detail"));
        }
        if let Some(id) = members.text("file_id", at)? {
            return Ok(Content::Image(Media::File(id)));
        }
        let url = members.need_text("image_url", at)?;
        let media = media(url, &at.key("image_url"))?;
        if let Media::Base64 { media_type, .. } = &media
            && !media_type.starts_with("image/")
        {
            return Err(at.key("image_url").has_to_be("an image"));
        }
        Ok(Content::Image(media))
    }

    fn call(
        &mut self,
        mut members: Members<'a>,
        index: u32,
        at: &Path<'_>,
        custom: bool,
    ) -> Result<(), Error> {
        let id = members.need_text("call_id", at)?;
        if id.is_empty() {
            return Err(at.key("call_id").has_to_be("a string that is not empty"));
        }
        let name = members.need_text("name", at)?;
        if name.is_empty() {
            return Err(at.key("name").has_to_be("a string that is not empty"));
        }
        let arguments = if custom {
            Cow::Owned(as_argument(&members.need_text("input", at)?))
        } else {
            let arguments = members.need_text("arguments", at)?;
            match serde_json::from_str::<&RawValue>(&arguments) {
                Ok(raw) if json::is_object(raw) => arguments,
                // What some clients send for a call without arguments.
                _ if arguments.trim().is_empty() => Cow::Borrowed("{}"),
                _ => {
                    let path = at.key("arguments");
                    return Err(path.has_to_be("a string with a JSON object"));
                }
            }
        };
        let signature = members
            .read_with("extra_content", at, thought_signature)?
            .flatten();
        self.calls.insert(id.clone(), name.clone());
        let call = Content::ToolCall(ToolCall {
            id,
            name,
            arguments,
            signature,
        });
        let part = Part::new(call, Spot::new(index, Place::Whole));
        self.says(vec![part], index, |_| false);
        Ok(())
    }

    fn result(&mut self, mut members: Members<'a>, index: u32, at: &Path<'_>) -> Result<(), Error> {
        let id = members.need_text("call_id", at)?;
        let output = members.need("output", at)?;
        let parts = self.contents(output, index, &at.key("output"), &SAID)?;
        let Some(name) = self.calls.get(&id).cloned() else {
            if self.parsed.native_only.is_some() {
                return Ok(());
            }
            let path = at.key("call_id").to_string();
            let message = format!(
                "No tool call found for function call output with call_id {id} (`{path}`)."
            );
            return Err(invalid(path, message));
        };
        let content = Content::ToolResult(ToolResult {
            id,
            name,
            content: parts.into_iter().map(|part| part.content).collect(),
            is_error: false,
        });
        self.parsed.request.messages.push(Message {
            role: Role::User,
            parts: vec![Part::new(content, Spot::new(index, Place::Whole))],
            name: None,
            index,
        });
        Ok(())
    }

    fn reasoning(
        &mut self,
        mut members: Members<'a>,
        index: u32,
        at: &Path<'_>,
    ) -> Result<(), Error> {
        let said = members.read_with("content", at, texts)?.unwrap_or_default();
        let summary = members.read_with("summary", at, texts)?.unwrap_or_default();
        let text = if said.is_empty() { summary } else { said };
        let sealed = members.text("encrypted_content", at)?;
        let known = sealed.as_deref().and_then(signed);
        if sealed.is_some() && known.is_none() {
            // Sealed by who knows whom: nobody but it can read it.
            self.parsed.request.hint(&at.key("encrypted_content"));
        }
        let (signature, redacted) = known.map_or((None, false), |(by, all)| (Some(by), all));
        let content = match signature {
            Some(signature) if redacted => Content::Redacted(signature),
            signature if signature.is_some() || !text.is_empty() => {
                Content::Thinking { text, signature }
            }
            _ => return Ok(()),
        };
        let part = Part::new(content, Spot::new(index, Place::Whole));
        self.says(vec![part], index, |content| {
            !matches!(content, Content::Thinking { .. } | Content::Redacted(_))
        });
        Ok(())
    }
}

fn is_blank(part: &Part<'_>) -> bool {
    matches!(&part.content, Content::Text(text) if text.is_empty())
}

fn empty(at: &Path<'_>) -> Error {
    let path = at.to_string();
    let message = format!("`{path}` must not be empty.");
    invalid(path, message)
}

/// Free text as the one argument of a function: the inverse of [`argument_of`].
pub(super) fn as_argument(text: &str) -> String {
    let mut out = bytes::BytesMut::from(&b"{\"input\":"[..]);
    value(&mut out, text);
    out.extend_from_slice(b"}");
    String::from_utf8(out.into()).unwrap_or_default()
}

/// The free text that a function was called with; what does not say it as it should is taken whole.
pub(super) fn argument_of(arguments: &str) -> Cow<'_, str> {
    let inner = Members::read(arguments, &Path::ROOT)
        .and_then(|mut members| members.need_text("input", &Path::ROOT));
    inner.unwrap_or(Cow::Borrowed(arguments))
}

/// Texts of a list of `{"type", "text"}`, with a blank line between them.
fn texts<'a>(raw: &'a RawValue, at: &Path<'_>) -> Result<Cow<'a, str>, Error> {
    let mut all = Cow::Borrowed("");
    for (i, raw) in json::list(raw, at)?.into_iter().enumerate() {
        let at = &at.index(i);
        let text = Members::read(raw.get(), at)?.need_text("text", at)?;
        if all.is_empty() {
            all = text;
        } else if !text.is_empty() {
            let all = all.to_mut();
            all.push_str("\n\n");
            all.push_str(&text);
        }
    }
    Ok(all)
}

/// What another provider signed, and whether it is all that there is of the thought.
pub(super) fn signed(sealed: &str) -> Option<(Signature<'static>, bool)> {
    let (name, value) = sealed.split_once(':')?;
    let by = Signer::from_name(name)?;
    let (value, redacted) = match value.strip_prefix(REDACTED) {
        Some(value) => (value, true),
        None => (value, false),
    };
    let value = Cow::Owned(value.to_owned());
    Some((Signature { value, by }, redacted))
}

fn file<'a>(members: &mut Members<'a>, at: &Path<'_>) -> Result<Content<'a>, Error> {
    let name = members.text("filename", at)?;
    let media = if let Some(id) = members.text("file_id", at)? {
        Media::File(id)
    } else if let Some(url) = members.text("file_url", at)? {
        match media(url, &at.key("file_url"))? {
            Media::Url { url, media_type } => Media::Url { url, media_type },
            _ => return Err(at.key("file_url").has_to_be("an http(s) URL")),
        }
    } else {
        media(members.need_text("file_data", at)?, &at.key("file_data"))?
    };
    Ok(Content::Document { media, name })
}
