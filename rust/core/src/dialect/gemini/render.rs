//! Requests, written.
use bytes::BytesMut;

use crate::error::Error;

use super::super::calls::arguments;
use super::super::carry::{Carry, invalid};
use super::super::chat::{
    Content, Media, Message, Param, Part, Request, Role, Spot, ToolCall, ToolChoice, ToolResult,
};
use super::super::json::{List, Object};
use super::super::media::type_of_url;
use super::super::{Dialect, Options};
use super::answer::{own, put_text, put_thought};
use super::config::config;
use super::generation::Generation;

/// What Google's documents name for calls that the model has not made itself.
const UNSIGNED: &str = "skip_thought_signature_validator";

/// Writes a request; model and streaming are said in the path.
///
/// Errors: `InvalidRequest` for what cannot be said in this dialect.
pub(crate) fn render_request(
    request: &Request<'_>,
    options: &Options<'_>,
    carry: &mut Carry,
    out: &mut BytesMut,
) -> Result<(), Error> {
    let generation = Generation::of(options.model);
    carry.unknown(request)?;
    if request.user.is_some() {
        carry.hint(Param::User.name(carry.from()));
    }
    Object::write(out, |body| {
        system(&request.system, carry, body);
        body.list("contents", |list| {
            contents(&request.messages, generation, carry, list)
        })?;
        tools(request, carry, body)?;
        config(request, generation, carry, body)
    })
}

fn system(parts: &[Part<'_>], carry: &mut Carry, body: &mut Object<'_>) {
    if parts.is_empty() {
        return;
    }
    body.object("systemInstruction", |system| {
        system.list("parts", |list| {
            for part in parts {
                uncached(part, carry);
                if let Content::Text(text) = &part.content {
                    put_text(list, text, None);
                }
            }
        });
    });
}

fn uncached(part: &Part<'_>, carry: &mut Carry) {
    if part.cache.is_some() {
        let path = part.spot.path(carry.from());
        carry.hint(format!("{path}.cache_control"));
    }
}

/// Messages, those joined that have to be one: results of calls made together, and what the model
/// said without a user between.
fn contents(
    messages: &[Message<'_>],
    generation: Generation,
    carry: &mut Carry,
    list: &mut List<'_>,
) -> Result<(), Error> {
    let mut rest = messages;
    let mut written = false;
    while let Some(first) = rest.first() {
        let joins = first.role == Role::Assistant || are_results(first);
        let is_more = |next: &&Message<'_>| {
            next.role == first.role && (next.role == Role::Assistant || are_results(next))
        };
        let joined = rest
            .iter()
            .take_while(|next| joins && is_more(next))
            .count();
        let (turn, after) = rest.split_at(joined.max(1));
        rest = after;
        let mut parts = BytesMut::new();
        List::write(&mut parts, |list| {
            Turn {
                generation,
                carry,
                list,
                called: false,
            }
            .write(turn)
        })?;
        if &parts[..] == b"[]" {
            continue;
        }
        written = true;
        list.object(|content| {
            content.put(
                "role",
                match first.role {
                    Role::User => "user",
                    Role::Assistant => "model",
                },
            );
            content.member("parts").extend_from_slice(&parts);
        });
    }
    if written {
        return Ok(());
    }
    let field = match carry.from() {
        Dialect::Gemini => "contents",
        _ => "messages",
    };
    Err(invalid(field, format!("`{field}` has to say something.")))
}

/// Whether a message has nothing but results of calls.
fn are_results(message: &Message<'_>) -> bool {
    let mut parts = message.parts.iter();
    parts.all(|part| matches!(part.content, Content::ToolResult(_)))
}

/// One of Gemini's contents, being written.
struct Turn<'t, 'o> {
    generation: Generation,
    carry: &'t mut Carry,
    list: &'t mut List<'o>,
    /// A call has been written.
    called: bool,
}

impl Turn<'_, '_> {
    fn write(&mut self, messages: &[Message<'_>]) -> Result<(), Error> {
        for message in messages {
            if message.name.is_some() {
                let field = format!("messages[{}].name", message.index);
                self.carry.hint(field);
            }
            // A signature without a text of its own is the next text's.
            let mut pending = None;
            for part in &message.parts {
                uncached(part, self.carry);
                match &part.content {
                    Content::Redacted(signature) => match own(Some(signature)) {
                        Some(_) => pending = Some(signature),
                        None => self.leave(part.spot),
                    },
                    Content::Text(text) | Content::Refusal(text) => {
                        if !text.is_empty() {
                            put_text(self.list, text, pending.take());
                        }
                    }
                    _ => self.part(part)?,
                }
            }
            if let Some(signature) = pending {
                put_text(self.list, "", Some(signature));
            }
        }
        Ok(())
    }

    fn part(&mut self, part: &Part<'_>) -> Result<(), Error> {
        match &part.content {
            Content::Text(_) | Content::Refusal(_) | Content::Redacted(_) => Ok(()),
            Content::Thinking { text, signature } => {
                match own(signature.as_ref()) {
                    Some(_) => put_thought(self.list, text, signature.as_ref()),
                    None => self.leave(part.spot),
                }
                Ok(())
            }
            Content::Image(media) | Content::Audio(media) => self.media(part, media),
            Content::Document { media, name } => {
                if name.is_some() {
                    self.carry.file_name(part.spot);
                }
                self.media(part, media)
            }
            Content::ToolCall(call) => self.call(call, part.spot),
            Content::ToolResult(result) => self.result(result, part),
        }
    }

    /// A thought that Gemini has not signed is of no use to it.
    fn leave(&mut self, spot: Spot) {
        let path = spot.path(self.carry.from());
        self.carry.hint(path);
    }

    fn media(&mut self, part: &Part<'_>, media: &Media<'_>) -> Result<(), Error> {
        self.known(part, &part.content, media)?;
        self.list.object(|object| put_media(object, media));
        Ok(())
    }

    /// Errors: `InvalidRequest` for media that Gemini cannot fetch.
    fn known(
        &self,
        part: &Part<'_>,
        content: &Content<'_>,
        media: &Media<'_>,
    ) -> Result<(), Error> {
        match media {
            Media::File(_) => Err(self.carry.refuse(part.spot, content, "file by its id")),
            Media::Url { url, .. } if url.starts_with("s3://") => {
                Err(self.carry.refuse(part.spot, content, "file on S3"))
            }
            Media::Base64 { .. } | Media::Url { .. } => Ok(()),
        }
    }

    fn call(&mut self, call: &ToolCall<'_>, spot: Spot) -> Result<(), Error> {
        let args = arguments(&call.arguments).ok_or_else(|| {
            let path = spot.path(self.carry.from());
            let message = format!("The arguments of `{path}` have to be a JSON object.");
            invalid(path, message)
        })?;
        let is_first = !std::mem::replace(&mut self.called, true);
        let signature = own(call.signature.as_ref())
            .or((is_first && self.generation == Generation::Three).then_some(UNSIGNED));
        self.list.object(|part| {
            part.object("functionCall", |function| {
                function.put("id", &call.id);
                function.put("name", &call.name);
                function.put("args", args);
            });
            part.put_some("thoughtSignature", signature);
        });
        Ok(())
    }

    /// A result: what is a JSON object goes as it is, text under `output`, an error under `error`.
    fn result(&mut self, result: &ToolResult<'_>, part: &Part<'_>) -> Result<(), Error> {
        let mut text = String::new();
        let mut files = Vec::new();
        for content in &result.content {
            match content {
                Content::Text(more) => {
                    if !text.is_empty() {
                        text.push('\n');
                    }
                    text.push_str(more);
                }
                Content::Image(media) | Content::Document { media, .. } => {
                    self.known(part, content, media)?;
                    files.push(media);
                }
                _ => {
                    return Err(self
                        .carry
                        .refuse(part.spot, content, "such result of a tool"));
                }
            }
        }
        self.list.object(|object| {
            object.object("functionResponse", |response| {
                response.put("id", &result.id);
                response.put("name", &result.name);
                match arguments(&text).filter(|_| !text.is_empty() && !result.is_error) {
                    Some(raw) => response.put("response", raw),
                    None => response.object("response", |inner| {
                        inner.put(if result.is_error { "error" } else { "output" }, &text);
                    }),
                }
                if !files.is_empty() {
                    response.list("parts", |list| {
                        for media in files {
                            list.object(|part| put_media(part, media));
                        }
                    });
                }
            });
        });
        Ok(())
    }
}

fn put_media(object: &mut Object<'_>, media: &Media<'_>) {
    match media {
        Media::Base64 { media_type, data } => object.object("inlineData", |inline| {
            inline.put("mimeType", media_type);
            inline.put("data", data);
        }),
        Media::Url { url, media_type } => object.object("fileData", |file| {
            let guess = || type_of_url(url);
            file.put_some("mimeType", media_type.as_deref().or_else(guess));
            file.put("fileUri", url);
        }),
        Media::File(_) => {}
    }
}

fn tools(request: &Request<'_>, carry: &mut Carry, body: &mut Object<'_>) -> Result<(), Error> {
    if request.tools.is_empty() {
        return Ok(());
    }
    body.list("tools", |list| {
        list.object(|tool| {
            tool.list("functionDeclarations", |list| {
                for tool in &request.tools {
                    list.object(|function| {
                        function.put("name", &tool.name);
                        function.put_some("description", tool.description.as_ref());
                        function.put_some("parametersJsonSchema", tool.parameters.as_ref());
                    });
                    if tool.cache.is_some() {
                        carry.hint(format!("tools[{}].cache_control", tool.index));
                    }
                }
            });
        });
    });
    if request.parallel_tool_calls == Some(false) {
        carry.leave_param(Param::ParallelToolCalls)?;
    }
    // Schemas are kept to when a call is demanded, or when this is asked for.
    let is_strict = request.tools.iter().any(|tool| tool.strict == Some(true));
    let (mode, name) = match &request.tool_choice {
        None | Some(ToolChoice::Auto) if is_strict => ("VALIDATED", None),
        None => return Ok(()),
        Some(ToolChoice::Auto) => ("AUTO", None),
        Some(ToolChoice::Required) => ("ANY", None),
        Some(ToolChoice::None) => ("NONE", None),
        Some(ToolChoice::Named(name)) => ("ANY", Some([name])),
    };
    body.object("toolConfig", |config| {
        config.object("functionCallingConfig", |calling| {
            calling.put("mode", mode);
            calling.put_some("allowedFunctionNames", name);
        });
    });
    Ok(())
}
