//! Writing a request.
use bytes::BytesMut;

use crate::error::Error;

use super::super::Options;
use super::super::carry::Carry;
use super::super::chat::{
    Content, Format, Media, Message, Param, Part, Request, Role, Signature, Signer, Thinking,
    ToolResult,
};
use super::super::json::{List, Object};
use super::block::{redacted, thinking, tool_use};
use super::tools::{tool_id, tools};

/// Image types that Claude reads.
const IMAGES: [&str; 4] = ["image/jpeg", "image/png", "image/gif", "image/webp"];

/// Writes `request`. What this dialect lacks goes to `carry`.
pub(crate) fn render_request(
    request: &Request<'_>,
    options: &Options<'_>,
    carry: &mut Carry,
    out: &mut BytesMut,
) -> Result<(), Error> {
    carry.unknown(request)?;
    lacking(request, carry)?;
    Object::write(out, |body| {
        body.put("model", options.model);
        let bound = request.max_tokens.unwrap_or(options.max_output_tokens);
        body.put("max_tokens", bound);
        system(request, body);
        body.list("messages", |list| messages(request, carry, list))?;
        sampling(request, carry, body)?;
        tools(request, body);
        reasoning(request, body);
        output(request, carry, body)?;
        if let Some(user) = &request.user {
            body.object("metadata", |metadata| metadata.put("user_id", user));
        }
        if options.stream {
            body.put("stream", true);
        }
        Ok(())
    })
}

fn lacking(request: &Request<'_>, carry: &mut Carry) -> Result<(), Error> {
    let asked = [
        (request.n.is_some(), Param::N),
        (request.seed.is_some(), Param::Seed),
        (request.logprobs.is_some(), Param::Logprobs),
        (request.top_logprobs.is_some(), Param::TopLogprobs),
        (request.logit_bias.is_some(), Param::LogitBias),
        (request.frequency_penalty.is_some(), Param::FrequencyPenalty),
        (request.presence_penalty.is_some(), Param::PresencePenalty),
    ];
    for (_, param) in asked.into_iter().filter(|(asked, _)| *asked) {
        carry.leave_param(param)?;
    }
    Ok(())
}

fn sampling(request: &Request<'_>, carry: &mut Carry, body: &mut Object<'_>) -> Result<(), Error> {
    if let Some(temperature) = request.temperature {
        if temperature > 1.0 {
            carry.leave_param(Param::Temperature)?;
        }
        body.put("temperature", temperature.min(1.0));
    }
    body.put_some("top_p", request.top_p);
    body.put_some("top_k", request.top_k);
    // Anthropic takes none of blanks alone.
    let stop: Vec<_> = request
        .stop
        .iter()
        .filter(|stop| !stop.trim().is_empty())
        .collect();
    if stop.len() < request.stop.len() {
        carry.leave_param(Param::Stop)?;
    }
    if !stop.is_empty() {
        body.put("stop_sequences", stop);
    }
    Ok(())
}

/// An effort is one of adaptive thinking, unless the client says how to think.
fn reasoning(request: &Request<'_>, body: &mut Object<'_>) {
    let effort = request.effort.as_deref();
    let thinking = request.thinking.or(match effort {
        None => None,
        Some("none") => Some(Thinking::Disabled),
        Some(_) => Some(Thinking::Adaptive),
    });
    if let Some(thinking) = thinking {
        body.object("thinking", |object| match thinking {
            Thinking::Disabled => object.put("type", "disabled"),
            Thinking::Adaptive => object.put("type", "adaptive"),
            Thinking::Budget(tokens) => {
                object.put("type", "enabled");
                object.put("budget_tokens", tokens);
            }
        });
    }
}

fn output(request: &Request<'_>, carry: &mut Carry, body: &mut Object<'_>) -> Result<(), Error> {
    let effort = match request.effort.as_deref() {
        Some("none") | None => None,
        Some("minimal") => Some("low"),
        effort => effort,
    };
    let schema = match &request.format {
        None => None,
        Some(Format::Json) => {
            carry.leave_param(Param::Format)?;
            None
        }
        Some(Format::Schema {
            schema,
            description,
            ..
        }) => {
            if description.is_some() {
                carry.hint("response_format.json_schema.description");
            }
            Some(schema)
        }
    };
    if effort.is_none() && schema.is_none() {
        return Ok(());
    }
    body.object("output_config", |config| {
        config.put_some("effort", effort);
        if let Some(schema) = schema {
            config.object("format", |format| {
                format.put("type", "json_schema");
                format.put("schema", schema);
            });
        }
    });
    Ok(())
}

fn system(request: &Request<'_>, body: &mut Object<'_>) {
    let texts = request
        .system
        .iter()
        .filter_map(|part| match &part.content {
            Content::Text(text) => Some((text, part.cache.as_deref())),
            _ => None,
        });
    let texts: Vec<_> = texts.collect();
    match texts.as_slice() {
        [] => {}
        [(text, None)] => body.put("system", text),
        texts => body.list("system", |list| {
            for (text, cache) in texts {
                list.object(|block| {
                    block.put("type", "text");
                    block.put("text", text);
                    block.put_some("cache_control", *cache);
                });
            }
        }),
    }
}

/// Adjacent messages of one role are one.
fn messages(request: &Request<'_>, carry: &mut Carry, list: &mut List<'_>) -> Result<(), Error> {
    let mut turn: Vec<&Part<'_>> = Vec::new();
    let mut role = None;
    for message in &request.messages {
        let kept = sayable(message, carry);
        if kept.is_empty() {
            continue;
        }
        if role.is_some_and(|role| role != message.role) {
            write_turn(role, &turn, list, carry)?;
            turn.clear();
        }
        role = Some(message.role);
        turn.extend(kept);
    }
    write_turn(role, &turn, list, carry)
}

/// The parts that can be said: without thoughts that Claude has not signed and blank text beside
/// others, both of which it refuses.
fn sayable<'m, 'a>(message: &'m Message<'a>, carry: &mut Carry) -> Vec<&'m Part<'a>> {
    if message.name.is_some() {
        carry.hint(format!("messages[{}].name", message.index));
    }
    let claude = |signature: &Signature<'_>| signature.by == Signer::Anthropic;
    message
        .parts
        .iter()
        .filter(|part| {
            let kept = match &part.content {
                Content::Thinking { signature, .. } => signature.as_ref().is_some_and(claude),
                Content::Redacted(data) => claude(data),
                Content::Text(text) => message.parts.len() == 1 || !text.trim().is_empty(),
                _ => true,
            };
            if !kept {
                carry.hint(part.spot.path(carry.from()));
            }
            kept
        })
        .collect()
}

fn write_turn(
    role: Option<Role>,
    parts: &[&Part<'_>],
    list: &mut List<'_>,
    carry: &mut Carry,
) -> Result<(), Error> {
    let role = match role {
        _ if parts.is_empty() => return Ok(()),
        Some(Role::Assistant) => "assistant",
        Some(Role::User) | None => "user",
    };
    list.object(|message| {
        message.put("role", role);
        if let [part] = parts
            && let Content::Text(text) = &part.content
            && part.cache.is_none()
        {
            message.put("content", text);
            return Ok(());
        }
        // Results have to come before what else the user says.
        let results = |part: &&&Part<'_>| matches!(part.content, Content::ToolResult(_));
        let first = parts.iter().filter(results);
        let others = parts.iter().filter(|part| !results(part));
        message.list("content", |list| {
            for part in first.chain(others) {
                list.object(|block| write_block(part, &part.content, carry, block))?;
            }
            Ok(())
        })
    })
}

fn write_block(
    part: &Part<'_>,
    content: &Content<'_>,
    carry: &mut Carry,
    block: &mut Object<'_>,
) -> Result<(), Error> {
    match content {
        Content::Text(text) | Content::Refusal(text) => {
            block.put("type", "text");
            block.put("text", text);
        }
        Content::Image(media) => image(part, content, media, carry, block)?,
        Content::Document { media, name } => {
            block.put("type", "document");
            document(part, content, media, carry, block)?;
            block.put_some("title", name.as_deref());
        }
        Content::Audio(_) => return Err(carry.refuse(part.spot, content, "audio")),
        Content::Thinking { text, signature } => thinking(block, text, signature.as_ref()),
        Content::Redacted(data) => redacted(block, data),
        Content::ToolCall(call) => {
            tool_use(block, &tool_id(&call.id), &call.name, &call.arguments)?;
            if call.signature.is_some() {
                carry.signature(part.spot);
            }
        }
        Content::ToolResult(result) => tool_result(part, result, carry, block)?,
    }
    block.put_some("cache_control", part.cache.as_deref());
    Ok(())
}

fn tool_result(
    part: &Part<'_>,
    result: &ToolResult<'_>,
    carry: &mut Carry,
    block: &mut Object<'_>,
) -> Result<(), Error> {
    block.put("type", "tool_result");
    block.put("tool_use_id", tool_id(&result.id));
    match result.content.as_slice() {
        [] => {}
        [Content::Text(text)] => block.put("content", text),
        contents => block.list("content", |list| {
            for content in contents {
                let inner = Part::new(content.clone(), part.spot);
                list.object(|block| write_block(&inner, content, carry, block))?;
            }
            Ok::<(), Error>(())
        })?,
    }
    if result.is_error {
        block.put("is_error", true);
    }
    Ok(())
}

fn image(
    part: &Part<'_>,
    content: &Content<'_>,
    media: &Media<'_>,
    carry: &Carry,
    block: &mut Object<'_>,
) -> Result<(), Error> {
    let refuse = |what| Err(carry.refuse(part.spot, content, what));
    match media {
        Media::Base64 { media_type, .. } if !IMAGES.contains(&&**media_type) => {
            return refuse("images but JPEG, PNG, GIF and WebP");
        }
        Media::Url { url, .. } if !is_web(url) => return refuse("images but from the web"),
        _ => {}
    }
    block.put("type", "image");
    source(media, block);
    Ok(())
}

fn document(
    part: &Part<'_>,
    content: &Content<'_>,
    media: &Media<'_>,
    carry: &Carry,
    block: &mut Object<'_>,
) -> Result<(), Error> {
    let refuse = |what| Err(carry.refuse(part.spot, content, what));
    match media {
        Media::Base64 { media_type, .. } if media_type != "application/pdf" => {
            return refuse("documents but PDF");
        }
        Media::Url { url, .. } if !is_web(url) => return refuse("documents but from the web"),
        _ => {}
    }
    source(media, block);
    Ok(())
}

fn is_web(url: &str) -> bool {
    url.starts_with("https://") || url.starts_with("http://")
}

fn source(media: &Media<'_>, block: &mut Object<'_>) {
    block.object("source", |source| match media {
        Media::Base64 { media_type, data } => {
            source.put("type", "base64");
            source.put("media_type", media_type);
            source.put("data", data);
        }
        Media::Url { url, .. } => {
            source.put("type", "url");
            source.put("url", url);
        }
        Media::File(id) => {
            source.put("type", "file");
            source.put("file_id", id);
        }
    });
}
