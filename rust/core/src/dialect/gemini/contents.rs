//! The messages of a request, read.
use std::borrow::Cow;
use std::collections::{HashMap, VecDeque};

use serde_json::value::RawValue;

use crate::error::Error;

use super::super::base64::is_base64;
use super::super::carry::{invalid, unsupported};
use super::super::chat::{
    Content, Media, Message, Part, Place, Role, Signature, Signer, Spot, ToolCall, ToolResult,
};
use super::super::json::{self, Members, Path};

/// Reads contents one by one; knows the calls that wait for their results.
#[derive(Default)]
pub(super) struct Contents<'a> {
    /// Names of calls that are not answered, by their ids.
    open: HashMap<Cow<'a, str>, Cow<'a, str>>,
    /// Ids of calls in their order, answered or not, by their names.
    called: HashMap<Cow<'a, str>, VecDeque<Cow<'a, str>>>,
}

impl<'a> Contents<'a> {
    /// Reads the list.
    pub(super) fn read(raw: &'a RawValue, at: &Path<'_>) -> Result<Vec<Message<'a>>, Error> {
        let mut contents = Self::default();
        let mut messages = Vec::new();
        for (i, raw) in json::list(raw, at)?.into_iter().enumerate() {
            messages.extend(contents.message(raw, i as u32, &at.index(i))?);
        }
        Ok(messages)
    }

    fn message(
        &mut self,
        raw: &'a RawValue,
        index: u32,
        at: &Path<'_>,
    ) -> Result<Option<Message<'a>>, Error> {
        let mut members = Members::read(raw.get(), at)?;
        let role = match members.text("role", at)?.as_deref() {
            None | Some("user" | "function") => Role::User,
            Some("model") => Role::Assistant,
            Some(_) => return Err(at.key("role").has_to_be("user or model")),
        };
        let path = &at.key("parts");
        let mut parts = Vec::new();
        for (i, raw) in json::list(members.need("parts", at)?, path)?
            .into_iter()
            .enumerate()
        {
            let spot = Spot::new(index, Place::Item(i as u32));
            self.part(raw, role, spot, &path.index(i), &mut parts)?;
        }
        if parts.is_empty() && role == Role::User {
            let path = path.to_string();
            let message = format!("`{path}` must not be empty.");
            return Err(invalid(path, message));
        }
        Ok((!parts.is_empty()).then_some(Message {
            role,
            parts,
            name: None,
            index,
        }))
    }

    fn part(
        &mut self,
        raw: &'a RawValue,
        role: Role,
        spot: Spot,
        at: &Path<'_>,
        parts: &mut Vec<Part<'a>>,
    ) -> Result<(), Error> {
        let mut part = Members::read(raw.get(), at)?.camel();
        let is_thought = part.boolean("thought", at)? == Some(true);
        let signature = part.text("thoughtSignature", at)?.map(|value| Signature {
            value,
            by: Signer::Gemini,
        });
        let mut push = |content| parts.push(Part::new(content, spot));
        let text = part.text("text", at)?;
        let inline = part.read_with("inlineData", at, inline)?;
        let file = part.read_with("fileData", at, file)?;
        let call = part.take("functionCall");
        let result = part.take("functionResponse");
        if let Some((name, _)) = part.rest().first() {
            return Err(unsupported(at.key(name).to_string()));
        }
        let told = [
            text.is_some(),
            inline.is_some(),
            file.is_some(),
            call.is_some(),
            result.is_some(),
        ];
        if told.into_iter().filter(|is| *is).count() > 1 {
            return Err(at.has_to_be("text, inlineData, fileData, functionCall or functionResponse, and one of them only"));
        }
        if let Some(raw) = call {
            let at = &at.key("functionCall");
            if role == Role::User {
                return Err(at.has_to_be("in a content of the model"));
            }
            push(Content::ToolCall(self.call(raw, spot, signature, at)?));
            return Ok(());
        }
        if is_thought {
            let text = text.unwrap_or_default();
            if !text.is_empty() || signature.is_some() {
                push(Content::Thinking { text, signature });
            }
            return Ok(());
        }
        if let Some(signature) = signature {
            push(Content::Redacted(signature));
        }
        if let Some(text) = text.filter(|text| !text.is_empty()) {
            push(Content::Text(text));
        }
        if let Some(content) = inline.or(file) {
            if role == Role::Assistant {
                return Err(at.has_to_be("text or a function call, as the content is the model's"));
            }
            push(content);
        }
        if let Some(raw) = result {
            let at = &at.key("functionResponse");
            if role == Role::Assistant {
                return Err(at.has_to_be("in a content of the user"));
            }
            push(Content::ToolResult(self.result(raw, at)?));
        }
        Ok(())
    }

    fn call(
        &mut self,
        raw: &'a RawValue,
        spot: Spot,
        signature: Option<Signature<'a>>,
        at: &Path<'_>,
    ) -> Result<ToolCall<'a>, Error> {
        let mut call = Members::read(raw.get(), at)?;
        let name = call.need_text("name", at)?;
        if name.is_empty() {
            return Err(at.key("name").has_to_be("a string that is not empty"));
        }
        let args = call.read_with("args", at, json::object)?;
        let id = call.text("id", at)?.filter(|id| !id.is_empty());
        let id = id.unwrap_or_else(|| {
            let place = match spot.place {
                Place::Item(item) => item,
                _ => 0,
            };
            let message = spot.message.unwrap_or_default();
            Cow::Owned(format!("call_{message}_{place}"))
        });
        self.open.insert(id.clone(), name.clone());
        let called = self.called.entry(name.clone()).or_default();
        called.push_back(id.clone());
        Ok(ToolCall {
            id,
            name,
            arguments: Cow::Borrowed(args.map_or("{}", RawValue::get)),
            signature,
        })
    }

    /// A result belongs to the call with its id, or to the first unanswered one of its name.
    fn result(&mut self, raw: &'a RawValue, at: &Path<'_>) -> Result<ToolResult<'a>, Error> {
        let mut result = Members::read(raw.get(), at)?;
        let name = result.need_text("name", at)?;
        let given = result.text("id", at)?.filter(|id| !id.is_empty());
        let field = if given.is_some() { "id" } else { "name" };
        let answered = match given {
            Some(id) => self.open.remove_entry(&id),
            None => self.first_of(&name),
        };
        let Some((id, _)) = answered else {
            return Err(at
                .key(field)
                .has_to_be("that of an unanswered function call before it"));
        };
        let response = result.need("response", at)?;
        let (text, is_error) = response_text(response, &at.key("response"))?;
        let mut content = vec![Content::Text(text)];
        let path = &at.key("parts");
        for (i, raw) in result
            .read_with("parts", at, json::list)?
            .unwrap_or_default()
            .into_iter()
            .enumerate()
        {
            let at = &path.index(i);
            let mut part = Members::read(raw.get(), at)?.camel();
            let media = match part.read_with("inlineData", at, inline)? {
                Some(media) => Some(media),
                None => part.read_with("fileData", at, file)?,
            };
            content.push(media.ok_or_else(|| at.has_to_be("inlineData or fileData"))?);
        }
        Ok(ToolResult {
            id,
            name,
            content,
            is_error,
        })
    }
}

impl<'a> Contents<'a> {
    /// Answers the first call of that name.
    fn first_of(&mut self, name: &str) -> Option<(Cow<'a, str>, Cow<'a, str>)> {
        let called = self.called.get_mut(name)?;
        loop {
            let id = called.pop_front()?;
            if let Some(entry) = self.open.remove_entry(&id) {
                return Some(entry);
            }
        }
    }
}

/// What a function gave, and whether it failed: text alone under `output` or `error` is that text.
fn response_text<'a>(raw: &'a RawValue, at: &Path<'_>) -> Result<(Cow<'a, str>, bool), Error> {
    json::object(raw, at)?;
    if let Ok(mut members) = Members::read(raw.get(), at) {
        let output = members.take("output");
        let error = members.take("error");
        if members.rest().is_empty()
            && let (Some(said), None) | (None, Some(said)) = (output, error)
        {
            let text = if json::is_text(said) {
                json::text(said, at)?
            } else {
                Cow::Borrowed(said.get())
            };
            return Ok((text, error.is_some()));
        }
    }
    Ok((Cow::Borrowed(raw.get()), false))
}

/// Bytes in base64, with or without padding, in either alphabet, as Google's API takes them.
fn inline<'a>(raw: &'a RawValue, at: &Path<'_>) -> Result<Content<'a>, Error> {
    let mut blob = Members::read(raw.get(), at)?.camel();
    let media_type = blob.need_text("mimeType", at)?.to_ascii_lowercase();
    let mut data = blob.need_text("data", at)?;
    if data.contains(['-', '_']) {
        data = Cow::Owned(data.replace('-', "+").replace('_', "/"));
    }
    while !data.is_empty() && !data.len().is_multiple_of(4) && !data.ends_with("==") {
        data.to_mut().push('=');
    }
    if !is_base64(&data) {
        return Err(at.key("data").has_to_be("base64"));
    }
    let media = Media::Base64 {
        media_type: Cow::Owned(media_type.clone()),
        data,
    };
    content(media, &media_type, at)
}

fn file<'a>(raw: &'a RawValue, at: &Path<'_>) -> Result<Content<'a>, Error> {
    let mut file = Members::read(raw.get(), at)?.camel();
    let url = file.need_text("fileUri", at)?;
    let media_type = file.text("mimeType", at)?;
    let known = media_type
        .as_deref()
        .or_else(|| super::super::media::type_of_url(&url));
    let kind = known.unwrap_or("application/pdf").to_ascii_lowercase();
    content(Media::Url { url, media_type }, &kind, at)
}

fn content<'a>(media: Media<'a>, media_type: &str, at: &Path<'_>) -> Result<Content<'a>, Error> {
    match media_type.split('/').next() {
        Some("image") => Ok(Content::Image(media)),
        Some("audio") => Ok(Content::Audio(media)),
        Some("application" | "text") => Ok(Content::Document { media, name: None }),
        _ => Err(at
            .key("mimeType")
            .has_to_be("a type of image, audio, application or text")),
    }
}
