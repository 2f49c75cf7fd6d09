//! Writing a request.
use bytes::BytesMut;

use crate::error::Error;

use super::super::Options;
use super::super::carry::Carry;
use super::super::chat::{
    Content, Format, Media, Message, Param, Part, Request, Role, Thinking, ToolChoice, ToolResult,
};
use super::super::json::{List, Object};

/// Writes `request`. What other dialects have and this one has not goes to `carry`.
pub(crate) fn render_request(
    request: &Request<'_>,
    options: &Options<'_>,
    carry: &mut Carry,
    out: &mut BytesMut,
) -> Result<(), Error> {
    carry.unknown(request)?;
    unsaid(request, carry)?;
    Object::write(out, |body| {
        body.put("model", options.model);
        instructions(request, carry, body)?;
        body.list("input", |list| {
            for message in &request.messages {
                write_message(message, carry, list)?;
            }
            Ok::<(), Error>(())
        })?;
        body.put_some("max_output_tokens", request.max_tokens);
        body.put_some("temperature", request.temperature);
        body.put_some("top_p", request.top_p);
        body.put_some("top_logprobs", request.top_logprobs);
        if request.logprobs == Some(true) {
            body.put("include", ["message.output_text.logprobs"]);
        }
        tools(request, carry, body);
        format(request, body);
        effort(request, carry, body);
        body.put_some("user", request.user.as_deref());
        // The client sends the whole conversation every time.
        body.put("store", false);
        if options.stream {
            body.put("stream", true);
        }
        Ok(())
    })
}

/// Parameters that Responses does not have.
fn unsaid(request: &Request<'_>, carry: &mut Carry) -> Result<(), Error> {
    for (given, param) in [
        (request.top_k.is_some(), Param::TopK),
        (!request.stop.is_empty(), Param::Stop),
        (request.seed.is_some(), Param::Seed),
        (request.frequency_penalty.is_some(), Param::FrequencyPenalty),
        (request.presence_penalty.is_some(), Param::PresencePenalty),
        (request.n.is_some(), Param::N),
        (request.logit_bias.is_some(), Param::LogitBias),
    ] {
        if given {
            carry.leave_param(param)?;
        }
    }
    Ok(())
}

fn instructions(
    request: &Request<'_>,
    carry: &mut Carry,
    body: &mut Object<'_>,
) -> Result<(), Error> {
    let mut all = String::new();
    for part in &request.system {
        let Content::Text(text) = &part.content else {
            return Err(carry.refuse(part.spot, &part.content, "instructions but text"));
        };
        if !all.is_empty() {
            all.push_str("\n\n");
        }
        all.push_str(text);
        cached(part, carry);
    }
    if !all.is_empty() {
        body.put("instructions", all);
    }
    Ok(())
}

fn cached(part: &Part<'_>, carry: &mut Carry) {
    if part.cache.is_some() {
        carry.hint(format!("{}.cache_control", part.spot.path(carry.from())));
    }
}

fn write_message(
    message: &Message<'_>,
    carry: &mut Carry,
    list: &mut List<'_>,
) -> Result<(), Error> {
    if message.name.is_some() {
        carry.hint(format!("messages[{}].name", message.index));
    }
    let mut said: Vec<&Part<'_>> = Vec::new();
    for part in &message.parts {
        cached(part, carry);
        match &part.content {
            Content::ToolResult(result) => output(part, result, carry, list)?,
            Content::ToolCall(call) => {
                spoken(message.role, &mut said, carry, list)?;
                list.object(|item| {
                    item.put("type", "function_call");
                    item.put("call_id", &call.id);
                    item.put("name", &call.name);
                    item.put("arguments", &call.arguments);
                });
                if call.signature.is_some() {
                    carry.signature(part.spot);
                }
            }
            // Another provider's thoughts say nothing to this one, which takes its own alone.
            Content::Thinking { .. } | Content::Redacted(_) => {
                carry.hint(part.spot.path(carry.from()));
            }
            Content::Text(_)
            | Content::Refusal(_)
            | Content::Image(_)
            | Content::Document { .. }
            | Content::Audio(_) => said.push(part),
        }
    }
    spoken(message.role, &mut said, carry, list)
}

/// Writes what has been said so far as one message.
fn spoken(
    role: Role,
    said: &mut Vec<&Part<'_>>,
    carry: &mut Carry,
    list: &mut List<'_>,
) -> Result<(), Error> {
    if said.is_empty() {
        return Ok(());
    }
    list.object(|item| {
        item.put("type", "message");
        item.put(
            "role",
            if role == Role::User {
                "user"
            } else {
                "assistant"
            },
        );
        item.list("content", |list| {
            for part in said.drain(..) {
                list.object(|object| piece(role, part, &part.content, carry, object))?;
            }
            Ok(())
        })
    })
}

fn output(
    part: &Part<'_>,
    result: &ToolResult<'_>,
    carry: &mut Carry,
    list: &mut List<'_>,
) -> Result<(), Error> {
    if result.is_error {
        carry.hint(format!("{}.is_error", part.spot.path(carry.from())));
    }
    list.object(|item| {
        item.put("type", "function_call_output");
        item.put("call_id", &result.id);
        match result.content.as_slice() {
            [] => item.put("output", ""),
            [Content::Text(text)] => item.put("output", text),
            contents => item.list("output", |list| {
                for content in contents {
                    list.object(|object| piece(Role::User, part, content, carry, object))?;
                }
                Ok::<(), Error>(())
            })?,
        }
        Ok(())
    })
}

fn piece(
    role: Role,
    part: &Part<'_>,
    content: &Content<'_>,
    carry: &Carry,
    object: &mut Object<'_>,
) -> Result<(), Error> {
    match (role, content) {
        (Role::User, Content::Text(text)) => {
            object.put("type", "input_text");
            object.put("text", text);
        }
        (Role::Assistant, Content::Text(text)) => {
            object.put("type", "output_text");
            object.put("text", text);
            object.list("annotations", |_| ());
        }
        (Role::Assistant, Content::Refusal(text)) => {
            object.put("type", "refusal");
            object.put("refusal", text);
        }
        (Role::User, Content::Image(media)) => {
            object.put("type", "input_image");
            object.put("detail", "auto");
            match media {
                Media::File(id) => object.put("file_id", id),
                Media::Base64 { media_type, data } => {
                    object.put("image_url", format!("data:{media_type};base64,{data}"));
                }
                Media::Url { url, .. } => object.put("image_url", url),
            }
        }
        (Role::User, Content::Document { media, name }) => {
            object.put("type", "input_file");
            match media {
                Media::File(id) => object.put("file_id", id),
                Media::Base64 { media_type, data } => {
                    object.put("filename", name.as_deref().unwrap_or("document.pdf"));
                    object.put("file_data", format!("data:{media_type};base64,{data}"));
                }
                Media::Url { url, .. } => object.put("file_url", url),
            }
        }
        _ => return Err(carry.refuse(part.spot, content, "such part of a message")),
    }
    Ok(())
}

fn tools(request: &Request<'_>, carry: &mut Carry, body: &mut Object<'_>) {
    if request.tools.is_empty() {
        return;
    }
    body.list("tools", |list| {
        for tool in &request.tools {
            list.object(|item| {
                item.put("type", "function");
                item.put("name", &tool.name);
                item.put_some("description", tool.description.as_deref());
                item.put("parameters", tool.parameters.as_deref());
                // Here it is true unless it is said; in the other dialects it is not.
                item.put("strict", tool.strict.unwrap_or(false));
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
            choice.put("name", name);
        }),
    }
    body.put_some("parallel_tool_calls", request.parallel_tool_calls);
}

fn format(request: &Request<'_>, body: &mut Object<'_>) {
    let Some(format) = &request.format else {
        return;
    };
    body.object("text", |text| {
        text.object("format", |object| match format {
            Format::Json => object.put("type", "json_object"),
            Format::Schema {
                name,
                description,
                schema,
                strict,
            } => {
                object.put("type", "json_schema");
                object.put("name", name.as_deref().unwrap_or("answer"));
                object.put_some("description", description.as_deref());
                object.put("schema", schema);
                object.put_some("strict", *strict);
            }
        });
    });
}

fn effort(request: &Request<'_>, carry: &mut Carry, body: &mut Object<'_>) {
    let effort = request.effort.as_deref().or(match request.thinking {
        Some(Thinking::Budget(0..=1024)) => Some("low"),
        Some(Thinking::Budget(1025..=8192)) => Some("medium"),
        Some(Thinking::Budget(_)) => Some("high"),
        Some(Thinking::Adaptive | Thinking::Disabled) | None => None,
    });
    if let Some(effort) = effort {
        body.object("reasoning", |reasoning| reasoning.put("effort", effort));
    }
    if request.thinking.is_some() {
        carry.hint(Param::Thinking.name(carry.from()));
    }
}
