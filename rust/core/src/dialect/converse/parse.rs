//! Requests, read.
use std::borrow::Cow;

use serde_json::value::RawValue;

use crate::error::Error;

use super::super::carry::unsupported;
use super::super::chat::{Format, Request, Thinking, Tool, ToolChoice};
use super::super::json::{self, Members, Path};
use super::messages::{Messages, cache_point};

/// Top-level fields that say nothing about the answer itself.
const HINTS: [&str; 4] = [
    "requestMetadata",
    "performanceConfig",
    "serviceTier",
    "projectIdentifier",
];

const EFFORTS: [&str; 5] = ["low", "medium", "high", "xhigh", "max"];

/// Reads a request. Errors: `InvalidRequest` that names the field.
pub(crate) fn parse_request(body: &str) -> Result<Request<'_>, Error> {
    let at = &Path::ROOT;
    let mut members = Members::read(body, at)?;
    let mut request = Request::default();
    if let Some(raw) = members.take("system") {
        request.system = Messages::system(raw, &at.key("system"))?;
    }
    let messages = members.need("messages", at)?;
    request.messages = Messages::read(messages, &at.key("messages"))?;
    members.read_with("inferenceConfig", at, |raw, at| {
        inference(raw, at, &mut request)
    })?;
    members.read_with("toolConfig", at, |raw, at| tools(raw, at, &mut request))?;
    members.read_with("outputConfig", at, |raw, at| output(raw, at, &mut request))?;
    members.read_with("additionalModelRequestFields", at, |raw, at| {
        additional(raw, at, &mut request)
    })?;
    // Answers tell the stop sequence in any case.
    members.take("additionalModelResponseFieldPaths");
    for (name, raw) in members.rest() {
        if HINTS.contains(&&*name) {
            request.hints.push(name.into_owned());
        } else {
            request.other.push((name, Cow::Borrowed(raw)));
        }
    }
    Ok(request)
}

fn unknown(members: Members<'_>, at: &Path<'_>) -> Result<(), Error> {
    match members.rest().first() {
        None => Ok(()),
        Some((name, _)) => Err(unsupported(at.key(name).to_string())),
    }
}

fn inference<'a>(raw: &'a RawValue, at: &Path<'_>, request: &mut Request<'a>) -> Result<(), Error> {
    let mut config = Members::read(raw.get(), at)?;
    request.max_tokens = match config.count("maxTokens", at)? {
        Some(0) => return Err(at.key("maxTokens").has_to_be("at least 1")),
        bound => bound,
    };
    request.temperature = fraction(&mut config, at, "temperature")?;
    request.top_p = fraction(&mut config, at, "topP")?;
    let path = &at.key("stopSequences");
    let stop = config.read_with("stopSequences", at, json::list)?;
    for (i, raw) in stop.unwrap_or_default().into_iter().enumerate() {
        let at = &path.index(i);
        let text = json::text(raw, at)?;
        if text.is_empty() {
            return Err(at.has_to_be("a string that is not empty"));
        }
        request.stop.push(text);
    }
    unknown(config, at)
}

fn fraction(members: &mut Members<'_>, at: &Path<'_>, name: &str) -> Result<Option<f64>, Error> {
    match members.number(name, at)? {
        Some(number) if !(0.0..=1.0).contains(&number) => {
            Err(at.key(name).has_to_be("a number from 0 to 1"))
        }
        number => Ok(number),
    }
}

fn tools<'a>(raw: &'a RawValue, at: &Path<'_>, request: &mut Request<'a>) -> Result<(), Error> {
    let mut config = Members::read(raw.get(), at)?;
    let path = &at.key("tools");
    for (i, raw) in json::list(config.need("tools", at)?, path)?
        .into_iter()
        .enumerate()
    {
        let at = &path.index(i);
        let mut tool = Members::read(raw.get(), at)?;
        if let Some(raw) = tool.take("cachePoint") {
            let point = cache_point(raw, &at.key("cachePoint"))?;
            if let Some(last) = request.tools.last_mut() {
                last.cache = Some(point);
            }
            continue;
        }
        let inner = &at.key("toolSpec");
        let spec = tool.take("toolSpec");
        unknown(tool, at)?;
        let raw = spec.ok_or_else(|| inner.is_missing())?;
        let mut spec = Members::read(raw.get(), inner)?;
        let name = spec.need_text("name", inner)?;
        if name.is_empty() {
            return Err(inner.key("name").has_to_be("a string that is not empty"));
        }
        let schema = &inner.key("inputSchema");
        let mut input = Members::read(spec.need("inputSchema", inner)?.get(), schema)?;
        request.tools.push(Tool {
            name,
            description: spec.text("description", inner)?,
            parameters: Some(Cow::Borrowed(json::object(
                input.need("json", schema)?,
                &schema.key("json"),
            )?)),
            strict: spec.boolean("strict", inner)?,
            cache: None,
            index: i as u32,
        });
    }
    if request.tools.is_empty() {
        return Err(path.has_to_be("a list with at least one tool"));
    }
    let path = &at.key("toolChoice");
    if let Some(raw) = config.take("toolChoice") {
        request.tool_choice = Some(choice(raw, path, &request.tools)?);
    }
    unknown(config, at)
}

fn choice<'a>(
    raw: &'a RawValue,
    at: &Path<'_>,
    tools: &[Tool<'_>],
) -> Result<ToolChoice<'a>, Error> {
    let mut choice = Members::read(raw.get(), at)?;
    let auto = choice.take("auto");
    let any = choice.take("any");
    let inner = &at.key("tool");
    match (auto, any, choice.take("tool")) {
        (Some(_), None, None) => Ok(ToolChoice::Auto),
        (None, Some(_), None) => Ok(ToolChoice::Required),
        (None, None, Some(raw)) => {
            let name = Members::read(raw.get(), inner)?.need_text("name", inner)?;
            if tools.iter().all(|tool| tool.name != name) {
                let at = inner.key("name");
                return Err(at.has_to_be("the name of one of the tools"));
            }
            Ok(ToolChoice::Named(name))
        }
        _ => Err(at.has_to_be("one of auto, any and tool")),
    }
}

fn output<'a>(raw: &'a RawValue, at: &Path<'_>, request: &mut Request<'a>) -> Result<(), Error> {
    let mut config = Members::read(raw.get(), at)?;
    if let Some(effort) = config.text("effort", at)? {
        if !EFFORTS.contains(&&*effort) {
            let at = at.key("effort");
            return Err(at.has_to_be(format_args!("one of {}", EFFORTS.join(", "))));
        }
        request.effort = Some(effort);
    }
    request.format = config.read_with("textFormat", at, format)?;
    unknown(config, at)
}

fn format<'a>(raw: &'a RawValue, at: &Path<'_>) -> Result<Format<'a>, Error> {
    let mut format = Members::read(raw.get(), at)?;
    if format.need_text("type", at)? != "json_schema" {
        return Err(at.key("type").has_to_be("json_schema"));
    }
    let structure = format.need("structure", at)?;
    let at = &at.key("structure");
    let mut structure = Members::read(structure.get(), at)?;
    let raw = structure.need("jsonSchema", at)?;
    let at = &at.key("jsonSchema");
    let mut inner = Members::read(raw.get(), at)?;
    let text = inner.need_text("schema", at)?;
    let fault = || at.key("schema").has_to_be("a string with a JSON object");
    let schema = match text {
        Cow::Borrowed(text) => serde_json::from_str::<&RawValue>(text).map(Cow::Borrowed),
        Cow::Owned(text) => serde_json::from_str::<Box<RawValue>>(&text).map(Cow::Owned),
    };
    let schema = schema.map_err(|_| fault())?;
    if !json::is_object(&schema) {
        return Err(fault());
    }
    Ok(Format::Schema {
        name: inner.text("name", at)?,
        description: inner.text("description", at)?,
        schema,
        strict: None,
    })
}

/// Claude's, which others have too; of the rest nothing is known.
fn additional<'a>(
    raw: &'a RawValue,
    at: &Path<'_>,
    request: &mut Request<'a>,
) -> Result<(), Error> {
    let mut fields = Members::read(raw.get(), at)?;
    request.top_k = fields.count("top_k", at)?;
    request.thinking = fields.read_with("thinking", at, thinking)?;
    for (name, raw) in fields.rest() {
        let name = Cow::Owned(at.key(&name).to_string());
        request.other.push((name, Cow::Borrowed(raw)));
    }
    Ok(())
}

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
