//! Writing a request.
use bytes::BytesMut;

use crate::error::Error;

use super::super::Options;
use super::super::carry::Carry;
use super::super::chat::{
    Content, Format, Media, Message, Param, Part, Request, Role, Thinking, Tool, ToolChoice,
    ToolResult,
};
use super::super::json::{List, Object};

/// Longest end user's id: OpenAI refuses longer ones, and coding tools send Anthropic such.
const MAX_USER: usize = 64;

/// Writes `request`. What other dialects have and this one has not goes to `carry`.
pub(crate) fn render_request(
    request: &Request<'_>,
    options: &Options<'_>,
    carry: &mut Carry,
    out: &mut BytesMut,
) -> Result<(), Error> {
    carry.unknown(request)?;
    Object::write(out, |body| {
        body.put("model", options.model);
        body.list("messages", |list| messages(request, carry, list))?;
        body.put_some("max_completion_tokens", request.max_tokens);
        body.put_some("temperature", request.temperature);
        body.put_some("top_p", request.top_p);
        body.put_some("top_k", request.top_k);
        if !request.stop.is_empty() {
            body.put("stop", &request.stop);
        }
        body.put_some("seed", request.seed);
        body.put_some("frequency_penalty", request.frequency_penalty);
        body.put_some("presence_penalty", request.presence_penalty);
        body.put_some("n", request.n);
        body.put_some("logprobs", request.logprobs);
        body.put_some("top_logprobs", request.top_logprobs);
        body.put_some("logit_bias", request.logit_bias.as_deref());
        tools(request, carry, body);
        format(request, body);
        effort(request, carry, body);
        match request.user.as_deref() {
            // It says who asks, not what: the answer is the same without it.
            Some(user) if user.len() > MAX_USER => carry.hint(Param::User.name(carry.from())),
            user => body.put_some("user", user),
        }
        if options.stream {
            body.put("stream", true);
            body.object("stream_options", |options| {
                options.put("include_usage", true);
            });
        }
        Ok(())
    })
}

fn effort(request: &Request<'_>, carry: &mut Carry, body: &mut Object<'_>) {
    let thinking = request.thinking;
    let effort = request.effort.as_deref().or(match thinking {
        // As Vertex's compatible API has the budgets.
        Some(Thinking::Budget(0..=1024)) => Some("low"),
        Some(Thinking::Budget(1025..=8192)) => Some("medium"),
        Some(Thinking::Budget(_)) => Some("high"),
        Some(Thinking::Adaptive | Thinking::Disabled) | None => None,
    });
    body.put_some("reasoning_effort", effort);
    if thinking.is_some() {
        carry.hint(Param::Thinking.name(carry.from()));
    }
}

fn format(request: &Request<'_>, body: &mut Object<'_>) {
    match &request.format {
        None => {}
        Some(Format::Json) => body.object("response_format", |format| {
            format.put("type", "json_object");
        }),
        Some(Format::Schema {
            name,
            description,
            schema,
            strict,
        }) => body.object("response_format", |format| {
            format.put("type", "json_schema");
            format.object("json_schema", |inner| {
                inner.put("name", name.as_deref().unwrap_or("answer"));
                inner.put_some("description", description.as_deref());
                inner.put("schema", schema);
                inner.put_some("strict", *strict);
            });
        }),
    }
}

fn tools(request: &Request<'_>, carry: &mut Carry, body: &mut Object<'_>) {
    if request.tools.is_empty() {
        return;
    }
    body.list("tools", |list| {
        for tool in &request.tools {
            list.object(|item| {
                item.put("type", "function");
                item.object("function", |function| describe(tool, function));
            });
            if tool.cache.is_some() {
                carry.hint(format!("tools[{}].cache_control", tool.index));
            }
        }
    });
    match &request.tool_choice {
        None => {}
        Some(ToolChoice::Auto) => body.put("tool_choice", "auto"),
        Some(ToolChoice::Required) => body.put("tool_choice", "required"),
        Some(ToolChoice::None) => body.put("tool_choice", "none"),
        Some(ToolChoice::Named(name)) => body.object("tool_choice", |choice| {
            choice.put("type", "function");
            choice.object("function", |function| function.put("name", name));
        }),
    }
    body.put_some("parallel_tool_calls", request.parallel_tool_calls);
}

fn describe(tool: &Tool<'_>, function: &mut Object<'_>) {
    function.put("name", &tool.name);
    function.put_some("description", tool.description.as_deref());
    function.put_some("parameters", tool.parameters.as_deref());
    function.put_some("strict", tool.strict);
}

fn messages(request: &Request<'_>, carry: &mut Carry, list: &mut List<'_>) -> Result<(), Error> {
    if !request.system.is_empty() {
        list.object(|message| {
            message.put("role", "system");
            contents(message, &Vec::from_iter(&request.system), carry)
        })?;
    }
    for message in &request.messages {
        match message.role {
            Role::User => user(message, carry, list)?,
            Role::Assistant => list.object(|object| assistant(message, carry, object))?,
        }
    }
    Ok(())
}

/// Results of tools are messages of their own and come first; images in them follow with what the
/// user says, as a tool's message has text alone.
fn user(message: &Message<'_>, carry: &mut Carry, list: &mut List<'_>) -> Result<(), Error> {
    let mut said = Vec::new();
    for part in &message.parts {
        let Content::ToolResult(result) = &part.content else {
            continue;
        };
        list.object(|object| tool(part, result, carry, object));
        for content in &result.content {
            if !matches!(content, Content::Text(_)) {
                said.push(Part::new(content.clone(), part.spot));
            }
        }
    }
    let own = message
        .parts
        .iter()
        .filter(|part| !matches!(part.content, Content::ToolResult(_)));
    let said: Vec<&Part<'_>> = said.iter().chain(own).collect();
    if said.is_empty() {
        return Ok(());
    }
    list.object(|object| {
        object.put("role", "user");
        object.put_some("name", message.name.as_deref());
        contents(object, &said, carry)
    })
}

fn tool(part: &Part<'_>, result: &ToolResult<'_>, carry: &mut Carry, object: &mut Object<'_>) {
    object.put("role", "tool");
    object.put("tool_call_id", &result.id);
    let texts: Vec<&str> = result
        .content
        .iter()
        .filter_map(|content| match content {
            Content::Text(text) => Some(&**text),
            _ => None,
        })
        .collect();
    match texts.as_slice() {
        [] => object.put("content", ""),
        [text] => object.put("content", text),
        texts => object.list("content", |list| {
            for text in texts {
                list.object(|item| {
                    item.put("type", "text");
                    item.put("text", text);
                });
            }
        }),
    }
    let path = part.spot.path(carry.from());
    if result.is_error {
        carry.hint(format!("{path}.is_error"));
    }
    if part.cache.is_some() {
        carry.hint(format!("{path}.cache_control"));
    }
}

/// One text as a string, all else as a list of parts.
fn contents(object: &mut Object<'_>, parts: &[&Part<'_>], carry: &mut Carry) -> Result<(), Error> {
    for part in parts {
        if part.cache.is_some() {
            carry.hint(format!("{}.cache_control", part.spot.path(carry.from())));
        }
    }
    if let [part] = parts
        && let Content::Text(text) = &part.content
    {
        object.put("content", text);
        return Ok(());
    }
    object.list("content", |list| {
        for part in parts {
            list.object(|item| piece(part, carry, item))?;
        }
        Ok(())
    })
}

fn piece(part: &Part<'_>, carry: &Carry, item: &mut Object<'_>) -> Result<(), Error> {
    let refuse = |what| Err(carry.refuse(part.spot, &part.content, what));
    match &part.content {
        Content::Text(text) => {
            item.put("type", "text");
            item.put("text", text);
        }
        Content::Image(media) => {
            item.put("type", "image_url");
            let Some(url) = url(media) else {
                return refuse("images by a file's id");
            };
            item.object("image_url", |image| image.put("url", url));
        }
        Content::Document { media, name } => {
            item.put("type", "file");
            match media {
                Media::File(id) => item.object("file", |file| file.put("file_id", id)),
                Media::Base64 { .. } => item.object("file", |file| {
                    file.put("filename", name.as_deref().unwrap_or("document.pdf"));
                    file.put_some("file_data", url(media));
                }),
                Media::Url { .. } => return refuse("documents by their URL"),
            }
        }
        Content::Audio(Media::Base64 { media_type, data }) => {
            let format = match &**media_type {
                "audio/wav" | "audio/x-wav" => "wav",
                "audio/mpeg" | "audio/mp3" => "mp3",
                _ => return refuse("audio but WAV and MP3"),
            };
            item.put("type", "input_audio");
            item.object("input_audio", |audio| {
                audio.put("data", data);
                audio.put("format", format);
            });
        }
        Content::Audio(_) => return refuse("audio by its URL"),
        Content::Refusal(_)
        | Content::ToolCall(_)
        | Content::ToolResult(_)
        | Content::Thinking { .. }
        | Content::Redacted(_) => return refuse("such part in a user's message"),
    }
    Ok(())
}

/// A URL for it: its own, or a data URL.
fn url(media: &Media<'_>) -> Option<String> {
    match media {
        Media::Base64 { media_type, data } => Some(format!("data:{media_type};base64,{data}")),
        Media::Url { url, .. } => Some(url.clone().into_owned()),
        Media::File(_) => None,
    }
}

fn assistant(
    message: &Message<'_>,
    carry: &mut Carry,
    object: &mut Object<'_>,
) -> Result<(), Error> {
    object.put("role", "assistant");
    object.put_some("name", message.name.as_deref());
    let mut texts = Vec::new();
    let mut calls = Vec::new();
    let mut refusal = String::new();
    let mut thoughts = String::new();
    for part in &message.parts {
        let foreign = |carry: &mut Carry| carry.hint(part.spot.path(carry.from()));
        match &part.content {
            Content::Text(_) => texts.push(part),
            Content::Refusal(text) => refusal.push_str(text),
            // Another provider's signed thoughts say nothing to this one, and OpenAI itself refuses
            // members that it does not know.
            Content::Thinking {
                text,
                signature: None,
            } => thoughts.push_str(text),
            Content::Thinking { .. } | Content::Redacted(_) => foreign(carry),
            Content::ToolCall(call) => calls.push((part, call)),
            Content::Image(_)
            | Content::Document { .. }
            | Content::Audio(_)
            | Content::ToolResult(_) => {
                return Err(carry.refuse(part.spot, &part.content, "such part of an assistant"));
            }
        }
    }
    if !thoughts.is_empty() {
        object.put("reasoning_content", thoughts);
    }
    if texts.is_empty() {
        object.put(
            "content",
            (calls.is_empty() && refusal.is_empty()).then_some(""),
        );
    } else {
        contents(object, &texts, carry)?;
    }
    if !refusal.is_empty() {
        object.put("refusal", refusal);
    }
    if calls.is_empty() {
        return Ok(());
    }
    object.list("tool_calls", |list| {
        for (part, call) in calls {
            list.object(|item| {
                item.put("id", &call.id);
                item.put("type", "function");
                item.object("function", |function| {
                    function.put("name", &call.name);
                    function.put("arguments", &call.arguments);
                });
            });
            if part.cache.is_some() {
                carry.hint(format!("{}.cache_control", part.spot.path(carry.from())));
            }
            if call.signature.is_some() {
                carry.signature(part.spot);
            }
        }
    });
    Ok(())
}
