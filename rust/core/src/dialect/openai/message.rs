//! Reading messages.
use std::borrow::Cow;
use std::collections::HashMap;

use serde_json::value::RawValue;

use crate::error::Error;

use super::super::base64::is_base64;
use super::super::carry::invalid;
use super::super::chat::{
    Content, Media, Message, Part, Place, Request, Role, Signature, Signer, Spot, ToolCall,
    ToolResult,
};
use super::super::json::{self, Members, Path};
use super::format::Detail;
use super::parse::name;

/// Reads messages one by one; knows the calls that were made.
pub(super) struct Messages<'a, 'r> {
    request: &'r mut Request<'a>,
    /// Names of called tools, by the calls' ids: the client's, so no hash that it could foresee.
    calls: HashMap<Cow<'a, str>, Cow<'a, str>>,
}

impl<'a, 'r> Messages<'a, 'r> {
    /// Reads the list into `request`.
    pub(super) fn read(
        raw: &'a RawValue,
        at: &Path<'_>,
        request: &'r mut Request<'a>,
    ) -> Result<(), Error> {
        let mut messages = Self {
            request,
            calls: HashMap::new(),
        };
        for (i, raw) in json::list(raw, at)?.into_iter().enumerate() {
            messages.message(raw, i as u32, &at.index(i))?;
        }
        Ok(())
    }

    fn message(&mut self, raw: &'a RawValue, index: u32, at: &Path<'_>) -> Result<(), Error> {
        let mut members = Members::read(raw.get(), at)?;
        let role = members.need_text("role", at)?;
        let content = members.take("content");
        let parts = match &*role {
            "system" | "developer" => {
                let parts = self.contents(content, index, at, &["text"])?;
                self.request.system.extend(parts);
                self.rest(members, at);
                return Ok(());
            }
            "user" => self.contents(
                content,
                index,
                at,
                &["text", "image_url", "input_audio", "file"],
            )?,
            "assistant" => self.assistant(content, &mut members, index, at)?,
            "tool" => vec![self.result(content, &mut members, index, at)?],
            _ => {
                return Err(at
                    .key("role")
                    .has_to_be("one of system, developer, user, assistant, tool"));
            }
        };
        if parts.is_empty() {
            let path = at.key("content").to_string();
            let message = format!("`{path}` must not be empty.");
            return Err(invalid(path, message));
        }
        let role = if role == "assistant" {
            Role::Assistant
        } else {
            Role::User
        };
        let name = members.text("name", at)?;
        self.request.messages.push(Message {
            role,
            parts,
            name,
            index,
        });
        self.rest(members, at);
        Ok(())
    }

    /// Members that no other dialect has: what a client sends back of an answer may have any.
    fn rest(&mut self, members: Members<'a>, at: &Path<'_>) {
        for (name, raw) in members.rest() {
            if raw.get() != "[]" {
                self.request.hint(&at.key(&name));
            }
        }
    }

    /// A message's content; parts without text are no parts.
    fn contents(
        &mut self,
        content: Option<&'a RawValue>,
        index: u32,
        at: &Path<'_>,
        types: &[&str],
    ) -> Result<Vec<Part<'a>>, Error> {
        let at = &at.key("content");
        let Some(raw) = content else {
            return Ok(Vec::new());
        };
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
                return Err(at
                    .key("type")
                    .has_to_be(format_args!("one of {}", types.join(", "))));
            }
            let content = match &*kind {
                "text" => Content::Text(members.need_text("text", at)?),
                "refusal" => Content::Refusal(members.need_text("refusal", at)?),
                "image_url" => self.image(&mut members, at)?,
                "input_audio" => audio(&mut members, at)?,
                _ => file(&mut members, at)?,
            };
            let cache = members
                .read_with("cache_control", at, json::object)?
                .map(Cow::Borrowed);
            let spot = Spot::new(index, Place::Item(i as u32));
            let part = Part {
                content,
                spot,
                cache,
            };
            if !is_blank(&part) {
                parts.push(part);
            }
            self.rest(members, at);
        }
        Ok(parts)
    }

    fn image(&mut self, members: &mut Members<'a>, at: &Path<'_>) -> Result<Content<'a>, Error> {
        let raw = members.need("image_url", at)?;
        let at = &at.key("image_url");
        let mut image = Members::read(raw.get(), at)?;
        let url = image.need_text("url", at)?;
        let media = media(url, &at.key("url"))?;
        if let Media::Base64 { media_type, .. } = &media
            && !media_type.starts_with("image/")
        {
            return Err(at.key("url").has_to_be("an image"));
        }
        if image
            .text("detail", at)?
            .is_some_and(|detail| detail != "auto")
        {
            self.request.hint(&at.key("detail"));
        }
        Ok(Content::Image(media))
    }

    fn assistant(
        &mut self,
        content: Option<&'a RawValue>,
        members: &mut Members<'a>,
        index: u32,
        at: &Path<'_>,
    ) -> Result<Vec<Part<'a>>, Error> {
        let mut parts = thoughts(members, index, at)?;
        parts.extend(self.contents(content, index, at, &["text", "refusal"])?);
        if let Some(refusal) = members.text("refusal", at)? {
            let refusal = Content::Refusal(refusal);
            parts.push(Part::new(refusal, Spot::new(index, Place::Whole)));
        }
        if members.take("function_call").is_some() {
            let path = at.key("function_call").to_string();
            let message = format!("`{path}` is not supported; `tool_calls` is.");
            return Err(invalid(path, message));
        }
        let at = &at.key("tool_calls");
        if let Some(raw) = members.take("tool_calls") {
            for (i, raw) in json::list(raw, at)?.into_iter().enumerate() {
                let call = Content::ToolCall(self.call(raw, &at.index(i))?);
                parts.push(Part::new(call, Spot::new(index, Place::Call(i as u32))));
            }
        }
        Ok(parts)
    }

    fn call(&mut self, raw: &'a RawValue, at: &Path<'_>) -> Result<ToolCall<'a>, Error> {
        let mut members = Members::read(raw.get(), at)?;
        let id = members.need_text("id", at)?;
        if id.is_empty() {
            return Err(at.key("id").has_to_be("a string that is not empty"));
        }
        if members
            .text("type", at)?
            .is_some_and(|kind| kind != "function")
        {
            return Err(at.key("type").has_to_be("\"function\""));
        }
        let inner = &at.key("function");
        let mut function = Members::read(members.need("function", at)?.get(), inner)?;
        let name = name(&mut function, inner)?;
        let arguments = function.need_text("arguments", inner)?;
        let arguments = match serde_json::from_str::<Box<RawValue>>(&arguments) {
            Ok(raw) if json::is_object(&raw) => arguments,
            // What some clients send for a call without arguments.
            _ if arguments.trim().is_empty() => Cow::Borrowed("{}"),
            _ => {
                return Err(inner
                    .key("arguments")
                    .has_to_be("a string with a JSON object"));
            }
        };
        let signature = members
            .read_with("extra_content", at, thought_signature)?
            .flatten();
        self.calls.insert(id.clone(), name.clone());
        Ok(ToolCall {
            id,
            name,
            arguments,
            signature,
        })
    }

    fn result(
        &mut self,
        content: Option<&'a RawValue>,
        members: &mut Members<'a>,
        index: u32,
        at: &Path<'_>,
    ) -> Result<Part<'a>, Error> {
        let id = members.need_text("tool_call_id", at)?;
        let Some(name) = self.calls.get(&id).cloned() else {
            return Err(at
                .key("tool_call_id")
                .has_to_be("the id of a tool call in an earlier message"));
        };
        let parts = self.contents(content, index, at, &["text", "image_url", "file"])?;
        let cache = parts.iter().find_map(|part| part.cache.clone());
        let content = Content::ToolResult(ToolResult {
            id,
            name,
            content: parts.into_iter().map(|part| part.content).collect(),
            is_error: false,
        });
        Ok(Part {
            content,
            spot: Spot::new(index, Place::Whole),
            cache,
        })
    }
}

fn is_blank(part: &Part<'_>) -> bool {
    matches!(&part.content, Content::Text(text) if text.is_empty())
}

/// `{"google": {"thought_signature": "…"}}`; other providers' say nothing to us.
pub(in super::super) fn thought_signature<'a>(
    raw: &'a RawValue,
    at: &Path<'_>,
) -> Result<Option<Signature<'a>>, Error> {
    let mut members = Members::read(raw.get(), at)?;
    let google = members.read_with("google", at, |raw, at| {
        Members::read(raw.get(), at)?.text("thought_signature", at)
    })?;
    Ok(google.flatten().map(|value| Signature {
        value,
        by: Signer::Gemini,
    }))
}

/// Thoughts: `reasoning_details`, else `reasoning_content` or `reasoning`, without a signature.
fn thoughts<'a>(
    members: &mut Members<'a>,
    index: u32,
    at: &Path<'_>,
) -> Result<Vec<Part<'a>>, Error> {
    let reasoning = members.text("reasoning", at)?;
    let text = members.text("reasoning_content", at)?.or(reasoning);
    let Some(raw) = members.take("reasoning_details") else {
        let thought = text.filter(|text| !text.is_empty()).map(|text| {
            let thinking = Content::Thinking {
                text,
                signature: None,
            };
            Part::new(thinking, Spot::new(index, Place::Reasoning))
        });
        return Ok(Vec::from_iter(thought));
    };
    let at = &at.key("reasoning_details");
    let mut parts: Vec<Part<'a>> = Vec::new();
    let mut open = None;
    for (i, raw) in json::list(raw, at)?.into_iter().enumerate() {
        let detail = Detail::parse(raw, &at.index(i))?;
        // A client that collects a stream may keep its pieces apart.
        if detail.index.is_some()
            && open == detail.index
            && let Some(part) = parts.last_mut()
            && detail.append_to(&mut part.content)
        {
            continue;
        }
        open = detail.index;
        if let Some(content) = detail.into_content() {
            parts.push(Part::new(
                content,
                Spot::new(index, Place::Detail(i as u32)),
            ));
        }
    }
    Ok(parts)
}

pub(in super::super) fn audio<'a>(
    members: &mut Members<'a>,
    at: &Path<'_>,
) -> Result<Content<'a>, Error> {
    let inner = &at.key("input_audio");
    let mut audio = Members::read(members.need("input_audio", at)?.get(), inner)?;
    let data = audio.need_text("data", inner)?;
    if !is_base64(&data) {
        return Err(inner.key("data").has_to_be("base64"));
    }
    let media_type = match &*audio.need_text("format", inner)? {
        "wav" => "audio/wav",
        "mp3" => "audio/mpeg",
        _ => return Err(inner.key("format").has_to_be("wav or mp3")),
    };
    Ok(Content::Audio(Media::Base64 {
        media_type: media_type.into(),
        data,
    }))
}

fn file<'a>(members: &mut Members<'a>, at: &Path<'_>) -> Result<Content<'a>, Error> {
    let inner = &at.key("file");
    let mut file = Members::read(members.need("file", at)?.get(), inner)?;
    let name = file.text("filename", inner)?;
    if let Some(id) = file.text("file_id", inner)? {
        let media = Media::File(id);
        return Ok(Content::Document { media, name });
    }
    let media = media(file.need_text("file_data", inner)?, &inner.key("file_data"))?;
    Ok(Content::Document { media, name })
}

/// What a URL stands for: itself, or the bytes that a data URL holds.
pub(in super::super) fn media<'a>(url: Cow<'a, str>, at: &Path<'_>) -> Result<Media<'a>, Error> {
    let fault = || at.has_to_be("an http(s) URL or a data URL with base64");
    let Some(rest) = url.strip_prefix("data:") else {
        return if ["https://", "http://", "gs://", "s3://"]
            .iter()
            .any(|scheme| url.starts_with(scheme))
        {
            Ok(Media::Url {
                url,
                media_type: None,
            })
        } else {
            Err(fault())
        };
    };
    let (kind, data) = rest.split_once(";base64,").ok_or_else(fault)?;
    if !is_base64(data) {
        return Err(at.has_to_be("a data URL with valid base64"));
    }
    // Parameters (`;charset=…`) say nothing of an image.
    let kind = kind.split_once(';').map_or(kind, |(kind, _)| kind);
    let media_type = match kind.to_ascii_lowercase() {
        jpg if jpg == "image/jpg" => "image/jpeg".to_owned(),
        other if other.contains('/') => other,
        _ => return Err(fault()),
    };
    let start = url.len() - data.len();
    let data = match url {
        Cow::Borrowed(url) => Cow::Borrowed(url.get(start..).unwrap_or_default()),
        Cow::Owned(mut url) => Cow::Owned(url.split_off(start)),
    };
    Ok(Media::Base64 {
        media_type: media_type.into(),
        data,
    })
}
