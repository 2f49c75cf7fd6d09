//! Reading a request.
use std::borrow::Cow;

use serde_json::value::RawValue;

use crate::error::Error;

use super::super::carry::invalid;
use super::super::chat::{Format, Request, Thinking, Tool, ToolChoice};
use super::super::json::{self, Members, Path};
use super::message::Messages;

/// Top-level fields that say nothing about the answer itself.
const HINTS: [&str; 10] = [
    "metadata",
    "prediction",
    "priority",
    "prompt_cache_key",
    "prompt_cache_options",
    "prompt_cache_retention",
    "rid",
    "service_tier",
    "store",
    "user_location",
];

const EFFORTS: [&str; 7] = ["none", "minimal", "low", "medium", "high", "xhigh", "max"];

/// Reads a request. Errors: `InvalidRequest` that names the field.
pub(crate) fn parse_request(body: &str) -> Result<Request<'_>, Error> {
    let at = &Path::ROOT;
    let mut members = Members::read(body, at)?;
    // Known from elsewhere: the gateway's choice, and what it asks for itself.
    for name in ["model", "stream", "stream_options"] {
        members.take(name);
    }
    let mut request = Request::default();
    let messages = members.need("messages", at)?;
    Messages::read(messages, &at.key("messages"), &mut request)?;
    request.tools = members.read_with("tools", at, tools)?.unwrap_or_default();
    choice(&mut members, at, &mut request)?;
    sampling(&mut members, at, &mut request)?;
    request.format = members.read_with("response_format", at, format)?.flatten();
    request.effort = members.text("reasoning_effort", at)?;
    if let Some(effort) = &request.effort
        && !EFFORTS.contains(&&**effort)
    {
        return Err(at
            .key("reasoning_effort")
            .has_to_be(format_args!("one of {}", EFFORTS.join(", "))));
    }
    request.thinking = members.read_with("thinking", at, thinking)?;
    let user = members.text("user", at)?;
    request.user = members.text("safety_identifier", at)?.or(user);
    for (name, raw) in members.rest() {
        if HINTS.contains(&&*name) {
            request.hint(&at.key(&name));
        } else if !says_nothing(&name, raw) {
            request.other.push((name, Cow::Borrowed(raw)));
        }
    }
    Ok(request)
}

/// Fields at the value that they have without being said.
fn says_nothing(name: &str, raw: &RawValue) -> bool {
    match name {
        "modalities" => {
            serde_json::from_str::<[&str; 1]>(raw.get()).is_ok_and(|list| list == ["text"])
        }
        "functions" => serde_json::from_str::<[(); 0]>(raw.get()).is_ok(),
        _ => false,
    }
}

fn sampling<'a>(
    members: &mut Members<'a>,
    at: &Path<'_>,
    request: &mut Request<'a>,
) -> Result<(), Error> {
    let max_tokens = bound(members, at, "max_tokens")?;
    request.max_tokens = bound(members, at, "max_completion_tokens")?.or(max_tokens);
    request.temperature = within(members, at, "temperature", 0.0, 2.0)?;
    request.top_p = within(members, at, "top_p", 0.0, 1.0)?;
    request.top_k = members.count("top_k", at)?;
    request.stop = members.read_with("stop", at, stop)?.unwrap_or_default();
    request.seed = members.integer("seed", at)?;
    request.frequency_penalty =
        within(members, at, "frequency_penalty", -2.0, 2.0)?.filter(|penalty| *penalty != 0.0);
    request.presence_penalty =
        within(members, at, "presence_penalty", -2.0, 2.0)?.filter(|penalty| *penalty != 0.0);
    request.n = bound(members, at, "n")?.filter(|n| *n != 1);
    request.logprobs = members.boolean("logprobs", at)?.filter(|asked| *asked);
    request.top_logprobs = members.count("top_logprobs", at)?.filter(|n| *n != 0);
    request.logit_bias = members
        .read_with("logit_bias", at, json::object)?
        .filter(|raw| raw.get().bytes().any(|byte| byte == b':'))
        .map(Cow::Borrowed);
    Ok(())
}

/// An integer from 1.
fn bound(members: &mut Members<'_>, at: &Path<'_>, name: &str) -> Result<Option<u32>, Error> {
    match members.count(name, at)? {
        Some(0) => Err(at.key(name).has_to_be("at least 1")),
        bound => Ok(bound),
    }
}

fn within(
    members: &mut Members<'_>,
    at: &Path<'_>,
    name: &str,
    least: f64,
    most: f64,
) -> Result<Option<f64>, Error> {
    match members.number(name, at)? {
        Some(number) if !(least..=most).contains(&number) => Err(at
            .key(name)
            .has_to_be(format_args!("a number from {least} to {most}"))),
        number => Ok(number),
    }
}

fn stop<'a>(raw: &'a RawValue, at: &Path<'_>) -> Result<Vec<Cow<'a, str>>, Error> {
    let one = |raw, at: &Path<'_>| match json::text(raw, at) {
        Ok(text) if text.is_empty() => Err(at.has_to_be("a string that is not empty")),
        read => read,
    };
    if json::is_text(raw) {
        return Ok(vec![one(raw, at)?]);
    }
    let items = json::list(raw, at).map_err(|_| at.has_to_be("a string or a list of strings"))?;
    items
        .into_iter()
        .enumerate()
        .map(|(i, item)| one(item, &at.index(i)))
        .collect()
}

fn tools<'a>(raw: &'a RawValue, at: &Path<'_>) -> Result<Vec<Tool<'a>>, Error> {
    let mut tools = Vec::new();
    for (i, raw) in json::list(raw, at)?.into_iter().enumerate() {
        let at = &at.index(i);
        let mut tool = Members::read(raw.get(), at)?;
        if tool.need_text("type", at)? != "function" {
            return Err(at.key("type").has_to_be("\"function\""));
        }
        let inner = &at.key("function");
        let mut function = Members::read(tool.need("function", at)?.get(), inner)?;
        tools.push(Tool {
            name: name(&mut function, inner)?,
            description: function.text("description", inner)?,
            parameters: function
                .read_with("parameters", inner, json::object)?
                .map(Cow::Borrowed),
            strict: function.boolean("strict", inner)?,
            cache: tool
                .read_with("cache_control", at, json::object)?
                .map(Cow::Borrowed),
            index: i as u32,
        });
    }
    Ok(tools)
}

/// A function's name.
pub(super) fn name<'a>(members: &mut Members<'a>, at: &Path<'_>) -> Result<Cow<'a, str>, Error> {
    let name = members.need_text("name", at)?;
    if name.is_empty() {
        return Err(at.key("name").has_to_be("a string that is not empty"));
    }
    Ok(name)
}

fn choice<'a>(
    members: &mut Members<'a>,
    at: &Path<'_>,
    request: &mut Request<'a>,
) -> Result<(), Error> {
    let path = &at.key("tool_choice");
    let choice = members.read_with("tool_choice", at, |raw, at| {
        if json::is_text(raw) {
            return match &*json::text(raw, at)? {
                "auto" => Ok(ToolChoice::Auto),
                "required" => Ok(ToolChoice::Required),
                "none" => Ok(ToolChoice::None),
                _ => Err(at.has_to_be("auto, required, none or a function")),
            };
        }
        let mut named = Members::read(raw.get(), at)?;
        if named.need_text("type", at)? != "function" {
            return Err(at.key("type").has_to_be("\"function\""));
        }
        let inner = &at.key("function");
        let mut function = Members::read(named.need("function", at)?.get(), inner)?;
        name(&mut function, inner).map(ToolChoice::Named)
    })?;
    let parallel = members.boolean("parallel_tool_calls", at)?;
    if request.tools.is_empty() {
        return match choice {
            Some(ToolChoice::Required | ToolChoice::Named(_)) => {
                Err(invalid("tool_choice", "`tool_choice` needs `tools`."))
            }
            _ => Ok(()),
        };
    }
    if let Some(ToolChoice::Named(name)) = &choice
        && request.tools.iter().all(|tool| tool.name != *name)
    {
        return Err(path
            .key("function")
            .key("name")
            .has_to_be("the name of one of `tools`"));
    }
    request.tool_choice = choice;
    request.parallel_tool_calls = parallel;
    Ok(())
}

fn format<'a>(raw: &'a RawValue, at: &Path<'_>) -> Result<Option<Format<'a>>, Error> {
    let mut members = Members::read(raw.get(), at)?;
    match &*members.need_text("type", at)? {
        "text" => Ok(None),
        "json_object" => Ok(Some(Format::Json)),
        "json_schema" => {
            let inner = &at.key("json_schema");
            let mut schema = Members::read(members.need("json_schema", at)?.get(), inner)?;
            Ok(Some(Format::Schema {
                name: schema.text("name", inner)?,
                description: schema.text("description", inner)?,
                strict: schema.boolean("strict", inner)?,
                schema: Cow::Borrowed(json::object(
                    schema.need("schema", inner)?,
                    &inner.key("schema"),
                )?),
            }))
        }
        _ => Err(at.key("type").has_to_be("text, json_object or json_schema")),
    }
}

/// Anthropic's member, which several engines and gateways take here too.
fn thinking(raw: &RawValue, at: &Path<'_>) -> Result<Thinking, Error> {
    let mut members = Members::read(raw.get(), at)?;
    match &*members.need_text("type", at)? {
        "disabled" => Ok(Thinking::Disabled),
        "adaptive" => Ok(Thinking::Adaptive),
        "enabled" => match members.count("budget_tokens", at)? {
            Some(budget) => Ok(Thinking::Budget(budget)),
            None => Ok(Thinking::Adaptive),
        },
        _ => Err(at.key("type").has_to_be("enabled, disabled or adaptive")),
    }
}
