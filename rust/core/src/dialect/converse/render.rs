//! Requests, written.
use bytes::BytesMut;

use crate::error::Error;

use super::super::carry::{Carry, invalid};
use super::super::chat::{Content, Format, Message, Param, Part, Request, Role, Tool, ToolChoice};
use super::super::json::{List, Object};
use super::super::{Dialect, Options};
use super::block::{
    Names, Unsayable, is_blank, put_cache_point, put_call, put_media, put_redacted, put_result,
    put_schema, put_text, put_thought,
};
use super::family::{Family, additional};
use super::wire::own;

/// Longest name of a tool.
const MAX_NAME: usize = 64;

/// Writes a request; model and streaming are said in the path.
///
/// Errors: `InvalidRequest` for what cannot be said in this dialect.
pub(crate) fn render_request(
    request: &Request<'_>,
    options: &Options<'_>,
    carry: &mut Carry,
    out: &mut BytesMut,
) -> Result<(), Error> {
    let family = Family::of(options.model);
    carry.unknown(request)?;
    lacking(request, carry)?;
    Object::write(out, |body| {
        body.list("messages", |list| messages(&request.messages, carry, list))?;
        system(&request.system, body);
        inference(request, carry, body)?;
        tools(request, carry, body)?;
        output(request, family, carry, body)?;
        additional(request, family, carry, body)
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
        (
            request.parallel_tool_calls == Some(false),
            Param::ParallelToolCalls,
        ),
    ];
    for (_, param) in asked.into_iter().filter(|(asked, _)| *asked) {
        carry.leave_param(param)?;
    }
    if request.user.is_some() {
        carry.hint(Param::User.name(carry.from()));
    }
    Ok(())
}

/// Messages, those of one role in a row as one: roles have to alternate.
fn messages(messages: &[Message<'_>], carry: &mut Carry, list: &mut List<'_>) -> Result<(), Error> {
    let mut names = Names::default();
    for turn in messages.chunk_by(|one, next| one.role == next.role) {
        let mut content = BytesMut::new();
        List::write(&mut content, |list| {
            turn.iter()
                .try_for_each(|message| blocks(message, &mut names, carry, list))
        })?;
        let Some(first) = turn.first() else {
            continue;
        };
        if &content[..] == b"[]" {
            if first.role == Role::Assistant {
                continue;
            }
            let path = match carry.from() {
                Dialect::Gemini => format!("contents[{}].parts", first.index),
                _ => format!("messages[{}].content", first.index),
            };
            let message = format!("`{path}` must not be blank.");
            return Err(invalid(path, message));
        }
        list.object(|message| {
            message.put(
                "role",
                match first.role {
                    Role::User => "user",
                    Role::Assistant => "assistant",
                },
            );
            message.member("content").extend_from_slice(&content);
        });
    }
    Ok(())
}

fn blocks(
    message: &Message<'_>,
    names: &mut Names,
    carry: &mut Carry,
    list: &mut List<'_>,
) -> Result<(), Error> {
    if message.name.is_some() {
        carry.hint(format!("messages[{}].name", message.index));
    }
    // Results have to come before what else the user says.
    let is_result = |part: &&Part<'_>| matches!(part.content, Content::ToolResult(_));
    let results = message.parts.iter().filter(is_result);
    let others = message.parts.iter().filter(|part| !is_result(part));
    for part in results.chain(others) {
        block(part, names, carry, list)?;
        put_cache_point(list, part.cache.as_ref());
    }
    Ok(())
}

fn block(
    part: &Part<'_>,
    names: &mut Names,
    carry: &mut Carry,
    list: &mut List<'_>,
) -> Result<(), Error> {
    let refuse = |Unsayable(what): Unsayable| carry.refuse(part.spot, &part.content, what);
    match &part.content {
        Content::Text(text) | Content::Refusal(text) => {
            if !is_blank(text) {
                put_text(list, text);
            }
        }
        Content::Image(_) | Content::Document { .. } | Content::Audio(_) => {
            put_media(list, &part.content, names).map_err(refuse)?;
        }
        Content::ToolResult(result) => put_result(list, result, names).map_err(refuse)?,
        Content::ToolCall(call) => {
            if !put_call(list, call) {
                let path = part.spot.path(carry.from());
                let message = format!("The arguments of `{path}` have to be a JSON object.");
                return Err(invalid(path, message));
            }
            if call.signature.is_some() {
                carry.signature(part.spot);
            }
        }
        Content::Thinking { text, signature } => match own(signature.as_ref()) {
            Some(_) => put_thought(list, text, signature.as_ref()),
            // Unsigned it would be refused, and another's signature too.
            None => carry.hint(part.spot.path(carry.from())),
        },
        Content::Redacted(signature) => match own(Some(signature)) {
            Some(data) => put_redacted(list, data),
            None => carry.hint(part.spot.path(carry.from())),
        },
    }
    Ok(())
}

fn system(parts: &[Part<'_>], body: &mut Object<'_>) {
    if parts.is_empty() {
        return;
    }
    body.list("system", |list| {
        for part in parts {
            if let Content::Text(text) = &part.content
                && !is_blank(text)
            {
                put_text(list, text);
                put_cache_point(list, part.cache.as_ref());
            }
        }
    });
}

fn inference(request: &Request<'_>, carry: &mut Carry, body: &mut Object<'_>) -> Result<(), Error> {
    let temperature = request.temperature.map(|temperature| temperature.min(1.0));
    if temperature != request.temperature {
        carry.leave_param(Param::Temperature)?;
    }
    if request.max_tokens.is_none()
        && temperature.is_none()
        && request.top_p.is_none()
        && request.stop.is_empty()
    {
        return Ok(());
    }
    body.object("inferenceConfig", |config| {
        config.put_some("maxTokens", request.max_tokens);
        config.put_some("temperature", temperature);
        config.put_some("topP", request.top_p);
        if !request.stop.is_empty() {
            config.put("stopSequences", &request.stop);
        }
    });
    Ok(())
}

fn tools(request: &Request<'_>, carry: &mut Carry, body: &mut Object<'_>) -> Result<(), Error> {
    // Converse wants tools to be told wherever a message speaks of one.
    let parts = request.messages.iter().flat_map(|message| &message.parts);
    let called = parts.filter_map(|part| match &part.content {
        Content::ToolCall(call) => Some(&*call.name),
        _ => None,
    });
    let mut called: Vec<&str> = called.collect();
    called.sort_unstable();
    called.dedup();
    if request.tools.is_empty() && called.is_empty() {
        return Ok(());
    }
    if request.tool_choice == Some(ToolChoice::None) {
        if called.is_empty() {
            // No tools are told, so none can be called.
            return Ok(());
        }
        carry.leave_param(Param::ToolChoice)?;
    }
    for tool in &request.tools {
        check_name(tool, carry.from())?;
    }
    body.object("toolConfig", |config| {
        config.list("tools", |list| {
            for tool in &request.tools {
                list.object(|item| item.object("toolSpec", |spec| describe(tool, spec)));
                put_cache_point(list, tool.cache.as_ref());
            }
            if request.tools.is_empty() {
                for name in called {
                    list.object(|item| {
                        item.object("toolSpec", |spec| {
                            spec.put("name", name);
                            put_schema(spec, None);
                        });
                    });
                }
            }
        });
        match &request.tool_choice {
            None | Some(ToolChoice::None) => {}
            Some(ToolChoice::Auto) => config.object("toolChoice", |choice| {
                choice.object("auto", |_| ());
            }),
            Some(ToolChoice::Required) => config.object("toolChoice", |choice| {
                choice.object("any", |_| ());
            }),
            Some(ToolChoice::Named(name)) => config.object("toolChoice", |choice| {
                choice.object("tool", |tool| tool.put("name", name));
            }),
        }
    });
    Ok(())
}

fn describe(tool: &Tool<'_>, spec: &mut Object<'_>) {
    spec.put("name", &tool.name);
    let description = tool.description.as_deref();
    spec.put_some("description", description.filter(|text| !text.is_empty()));
    put_schema(spec, tool.parameters.as_deref());
    spec.put_some("strict", tool.strict);
}

/// Errors: `InvalidRequest` for a name that Converse would refuse in its own words.
fn check_name(tool: &Tool<'_>, from: Dialect) -> Result<(), Error> {
    let fits = |c: char| c.is_ascii_alphanumeric() || c == '_' || c == '-';
    if tool.name.len() <= MAX_NAME && tool.name.chars().all(fits) {
        return Ok(());
    }
    let index = tool.index;
    let path = match from {
        Dialect::OpenAi => format!("tools[{index}].function.name"),
        Dialect::Anthropic | Dialect::Responses => format!("tools[{index}].name"),
        Dialect::Gemini => format!("tools[0].functionDeclarations[{index}].name"),
        Dialect::Converse => format!("toolConfig.tools[{index}].toolSpec.name"),
    };
    let message =
        format!("`{path}` has to be up to {MAX_NAME} letters, digits, underscores and hyphens.");
    Err(invalid(path, message))
}

fn output(
    request: &Request<'_>,
    family: Family,
    carry: &mut Carry,
    body: &mut Object<'_>,
) -> Result<(), Error> {
    let effort = match (request.effort.as_deref(), family) {
        (None | Some("none"), _) | (_, Family::Nova | Family::Gpt) => None,
        (Some("minimal"), _) => Some("low"),
        (effort, _) => effort,
    };
    if matches!(request.format, Some(Format::Json)) {
        carry.leave_param(Param::Format)?;
    }
    let schema = match &request.format {
        Some(Format::Schema {
            name,
            description,
            schema,
            ..
        }) => Some((name, description, schema)),
        Some(Format::Json) | None => None,
    };
    if effort.is_none() && schema.is_none() {
        return Ok(());
    }
    body.object("outputConfig", |config| {
        if let Some((name, description, schema)) = schema {
            config.object("textFormat", |format| {
                format.put("type", "json_schema");
                format.object("structure", |structure| {
                    structure.object("jsonSchema", |inner| {
                        // A string with JSON in it.
                        inner.put("schema", schema.get());
                        inner.put_some("name", name.as_deref());
                        inner.put_some("description", description.as_deref());
                    });
                });
            });
        }
        config.put_some("effort", effort);
    });
    Ok(())
}
