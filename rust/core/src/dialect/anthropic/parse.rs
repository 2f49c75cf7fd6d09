//! Reading a request.
use std::borrow::Cow;

use serde_json::value::RawValue;

use crate::error::Error;

use super::super::carry::invalid;
use super::super::chat::{Format, Request, Thinking, Tool, ToolChoice};
use super::super::json::{self, Members, Path};
use super::message::Messages;

/// Top-level fields that say nothing about the answer itself: who pays and where, how fast, what is
/// kept of it, and what the provider may leave out of a long conversation to save room.
const HINTS: [&str; 12] = [
    "billing_policy",
    "cache_control",
    "compaction",
    "context_management",
    "diagnostics",
    "fallback_credit_token",
    "fallbacks",
    "inference_geo",
    "service_tier",
    "speed",
    "user_profile_id",
    "workspace_id",
];

const EFFORTS: [&str; 5] = ["low", "medium", "high", "xhigh", "max"];

/// Reads a request. Errors: `InvalidRequest` that names the field.
pub(crate) fn parse_request(body: &str) -> Result<Request<'_>, Error> {
    let at = &Path::ROOT;
    let mut members = Members::read(body, at)?;
    for name in ["model", "stream"] {
        members.take(name);
    }
    let mut request = Request::default();
    let system = members.take("system");
    let messages = members.need("messages", at)?;
    Messages::read(system, messages, &mut request)?;
    request.max_tokens = match members.count("max_tokens", at)? {
        None => return Err(at.key("max_tokens").is_missing()),
        Some(0) => return Err(at.key("max_tokens").has_to_be("at least 1")),
        bound => bound,
    };
    request.temperature = fraction(&mut members, at, "temperature")?;
    request.top_p = fraction(&mut members, at, "top_p")?;
    request.top_k = members.count("top_k", at)?;
    request.stop = members
        .read_with("stop_sequences", at, stop)?
        .unwrap_or_default();
    if let Some(raw) = members.take("tools") {
        tools(raw, &at.key("tools"), &mut request)?;
    }
    choice(&mut members, at, &mut request)?;
    request.thinking = members.read_with("thinking", at, thinking)?;
    if let Some(raw) = members.take("output_config") {
        output(raw, &at.key("output_config"), &mut request)?;
    }
    request.user = members
        .read_with("metadata", at, |raw, at| {
            Members::read(raw.get(), at)?.text("user_id", at)
        })?
        .flatten();
    for (name, raw) in members.rest() {
        if HINTS.contains(&&*name) {
            request.hint(&at.key(&name));
        } else if !(name == "mcp_servers" && raw.get() == "[]") {
            request.other.push((name, Cow::Borrowed(raw)));
        }
    }
    Ok(request)
}

fn fraction(members: &mut Members<'_>, at: &Path<'_>, name: &str) -> Result<Option<f64>, Error> {
    match members.number(name, at)? {
        Some(number) if !(0.0..=1.0).contains(&number) => {
            Err(at.key(name).has_to_be("a number from 0 to 1"))
        }
        number => Ok(number),
    }
}

fn stop<'a>(raw: &'a RawValue, at: &Path<'_>) -> Result<Vec<Cow<'a, str>>, Error> {
    json::list(raw, at)?
        .into_iter()
        .enumerate()
        .map(|(i, item)| json::text(item, &at.index(i)))
        .collect()
}

fn tools<'a>(raw: &'a RawValue, at: &Path<'_>, request: &mut Request<'a>) -> Result<(), Error> {
    for (i, raw) in json::list(raw, at)?.into_iter().enumerate() {
        let at = &at.index(i);
        let mut tool = Members::read(raw.get(), at)?;
        // The others are run by the provider, or known to its models alone.
        if let Some(kind) = tool.take("type")
            && json::text(kind, &at.key("type"))? != "custom"
        {
            request.elsewhere(&at.key("type"), kind);
            continue;
        }
        let name = tool.need_text("name", at)?;
        if name.is_empty() {
            return Err(at.key("name").has_to_be("a string that is not empty"));
        }
        request.tools.push(Tool {
            name,
            description: tool.text("description", at)?,
            parameters: Some(Cow::Borrowed(json::object(
                tool.need("input_schema", at)?,
                &at.key("input_schema"),
            )?)),
            strict: tool.boolean("strict", at)?,
            cache: tool
                .read_with("cache_control", at, json::object)?
                .map(Cow::Borrowed),
            index: i as u32,
        });
    }
    Ok(())
}

fn choice<'a>(
    members: &mut Members<'a>,
    at: &Path<'_>,
    request: &mut Request<'a>,
) -> Result<(), Error> {
    let at = &at.key("tool_choice");
    let Some(raw) = members.take("tool_choice") else {
        return Ok(());
    };
    let mut choice = Members::read(raw.get(), at)?;
    let chosen = match &*choice.need_text("type", at)? {
        "auto" => ToolChoice::Auto,
        "any" => ToolChoice::Required,
        "none" => ToolChoice::None,
        "tool" => ToolChoice::Named(choice.need_text("name", at)?),
        _ => return Err(at.key("type").has_to_be("auto, any, none or tool")),
    };
    let alone = choice.boolean("disable_parallel_tool_use", at)?;
    if request.tools.is_empty() {
        return match chosen {
            ToolChoice::Required | ToolChoice::Named(_) if !request.other.is_empty() => {
                request.elsewhere(at, raw);
                Ok(())
            }
            ToolChoice::Required | ToolChoice::Named(_) => {
                Err(invalid("tool_choice", "`tool_choice` needs `tools`."))
            }
            ToolChoice::Auto | ToolChoice::None => Ok(()),
        };
    }
    if let ToolChoice::Named(name) = &chosen
        && request.tools.iter().all(|tool| tool.name != *name)
    {
        if !request.other.is_empty() {
            // Of a tool that the provider runs.
            request.elsewhere(at, raw);
            return Ok(());
        }
        return Err(at.key("name").has_to_be("the name of one of `tools`"));
    }
    request.tool_choice = Some(chosen);
    request.parallel_tool_calls = alone.filter(|alone| *alone).map(|_| false);
    Ok(())
}

/// Whether, and how long, the model thinks: of `display` there is nothing elsewhere.
fn thinking(raw: &RawValue, at: &Path<'_>) -> Result<Thinking, Error> {
    let mut members = Members::read(raw.get(), at)?;
    match &*members.need_text("type", at)? {
        "disabled" => Ok(Thinking::Disabled),
        "adaptive" => Ok(Thinking::Adaptive),
        "enabled" => match members.count("budget_tokens", at)? {
            Some(budget) => Ok(Thinking::Budget(budget)),
            None => Err(at.key("budget_tokens").is_missing()),
        },
        _ => Err(at.key("type").has_to_be("enabled, disabled or adaptive")),
    }
}

fn output<'a>(raw: &'a RawValue, at: &Path<'_>, request: &mut Request<'a>) -> Result<(), Error> {
    let mut members = Members::read(raw.get(), at)?;
    request.effort = members.text("effort", at)?;
    if let Some(effort) = &request.effort
        && !EFFORTS.contains(&&**effort)
    {
        return Err(at
            .key("effort")
            .has_to_be(format_args!("one of {}", EFFORTS.join(", "))));
    }
    request.format = members.read_with("format", at, |raw, at| {
        let mut format = Members::read(raw.get(), at)?;
        if format.need_text("type", at)? != "json_schema" {
            return Err(at.key("type").has_to_be("\"json_schema\""));
        }
        let schema = json::object(format.need("schema", at)?, &at.key("schema"))?;
        Ok(Format::Schema {
            name: None,
            description: None,
            schema: Cow::Borrowed(schema),
            strict: Some(true),
        })
    })?;
    for (name, raw) in members.rest() {
        if name == "task_budget" {
            // A hint to the model that it was trained on.
            request.hint(&at.key(&name));
        } else {
            request.elsewhere(&at.key(&name), raw);
        }
    }
    Ok(())
}
