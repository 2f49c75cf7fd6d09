//! Requests, read.
use std::borrow::Cow;
use std::collections::HashSet;

use serde_json::value::RawValue;

use crate::error::Error;

use super::super::carry::unsupported;
use super::super::chat::{Content, Format, Part, Place, Request, Spot, Thinking, Tool, ToolChoice};
use super::super::json::{self, Members, Path};
use super::contents::Contents;
use super::schema::json_schema;

/// Reads a request, whose names may be JSON's (`inlineData`) or protobuf's own (`inline_data`), as
/// Google's API takes both; errors name them as JSON has them.
///
/// Errors: `InvalidRequest` that names the field.
pub(crate) fn parse_request(body: &str) -> Result<Request<'_>, Error> {
    let at = &Path::ROOT;
    let mut members = Members::read(body, at)?.camel();
    // Said in the path.
    members.take("model");
    let system = members.read_with("systemInstruction", at, system)?;
    let contents = members.need("contents", at)?;
    let mut request = Request {
        system: system.unwrap_or_default(),
        messages: Contents::read(contents, &at.key("contents"))?,
        tools: members.read_with("tools", at, tools)?.unwrap_or_default(),
        ..Request::default()
    };
    members.read_with("toolConfig", at, |raw, at| choice(raw, at, &mut request))?;
    members.read_with("generationConfig", at, |raw, at| {
        config(raw, at, &mut request)
    })?;
    for (name, raw) in members.rest() {
        if matches!(&*name, "labels" | "serviceTier") {
            request.hints.push(name.into_owned());
        } else if raw.get() != "[]" {
            request.other.push((name, Cow::Borrowed(raw)));
        }
    }
    Ok(request)
}

fn system<'a>(raw: &'a RawValue, at: &Path<'_>) -> Result<Vec<Part<'a>>, Error> {
    let mut members = Members::read(raw.get(), at)?.camel();
    let at = &at.key("parts");
    let mut parts = Vec::new();
    let list = members.read_with("parts", &Path::ROOT, |raw, _| json::list(raw, at))?;
    for (i, raw) in list.unwrap_or_default().into_iter().enumerate() {
        let at = &at.index(i);
        let mut part = Members::read(raw.get(), at)?;
        let text = part.need_text("text", at)?;
        if !text.is_empty() {
            let spot = Spot {
                message: None,
                place: Place::Item(i as u32),
            };
            parts.push(Part::new(Content::Text(text), spot));
        }
    }
    Ok(parts)
}

fn tools<'a>(raw: &'a RawValue, at: &Path<'_>) -> Result<Vec<Tool<'a>>, Error> {
    let mut tools = Vec::new();
    for (i, raw) in json::list(raw, at)?.into_iter().enumerate() {
        let at = &at.index(i);
        let mut tool = Members::read(raw.get(), at)?.camel();
        let path = &at.key("functionDeclarations");
        let functions = tool.read_with("functionDeclarations", at, json::list)?;
        for (i, raw) in functions.unwrap_or_default().into_iter().enumerate() {
            let at = &path.index(i);
            let mut function = Members::read(raw.get(), at)?.camel();
            let name = function.need_text("name", at)?;
            if name.is_empty() {
                return Err(at.key("name").has_to_be("a string that is not empty"));
            }
            let schema = function.read_with("parameters", at, json::object)?;
            let json_schema = match function.read_with("parametersJsonSchema", at, json::object)? {
                Some(raw) => Some(Cow::Borrowed(raw)),
                None => schema.map(json_schema),
            };
            tools.push(Tool {
                name,
                description: function.text("description", at)?,
                parameters: json_schema,
                strict: None,
                cache: None,
                index: tools.len() as u32,
            });
        }
        if let Some((name, _)) = tool.rest().first() {
            return Err(unsupported(at.key(name).to_string()));
        }
    }
    Ok(tools)
}

fn choice<'a>(raw: &'a RawValue, at: &Path<'_>, request: &mut Request<'a>) -> Result<(), Error> {
    let mut config = Members::read(raw.get(), at)?.camel();
    let inner = &at.key("functionCallingConfig");
    let calling = config.take("functionCallingConfig");
    if let Some((name, _)) = config.rest().first() {
        return Err(unsupported(at.key(name).to_string()));
    }
    let Some(raw) = calling else {
        return Ok(());
    };
    let mut calling = Members::read(raw.get(), inner)?.camel();
    let mode = calling.text("mode", inner)?;
    let at = &inner.key("allowedFunctionNames");
    let names = calling
        .read_with("allowedFunctionNames", inner, json::list)?
        .unwrap_or_default();
    let mut allowed = Vec::with_capacity(names.len());
    for (i, name) in names.into_iter().enumerate() {
        allowed.push(json::text(name, &at.index(i))?);
    }
    let known: HashSet<&str> = request.tools.iter().map(|tool| &*tool.name).collect();
    if !allowed.iter().all(|name| known.contains(&**name)) {
        return Err(at.has_to_be("a list of names of declared functions"));
    }
    let mode = mode.as_deref().unwrap_or("AUTO").to_ascii_uppercase();
    request.tool_choice = match (mode.as_str(), allowed.len()) {
        ("AUTO" | "MODE_UNSPECIFIED" | "VALIDATED", 0) => Some(ToolChoice::Auto),
        ("NONE", _) => Some(ToolChoice::None),
        ("ANY", 1) => allowed.pop().map(ToolChoice::Named),
        ("ANY", n) if n == 0 || n == request.tools.len() => Some(ToolChoice::Required),
        ("ANY", _) => return Err(at.has_to_be("one name, or all of them")),
        ("AUTO" | "MODE_UNSPECIFIED" | "VALIDATED", _) => return Err(unsupported(at.to_string())),
        _ => {
            let path = inner.key("mode");
            return Err(path.has_to_be("AUTO, ANY, NONE or VALIDATED"));
        }
    };
    if request.tools.is_empty() {
        request.tool_choice = None;
    }
    if mode == "VALIDATED" {
        for tool in &mut request.tools {
            tool.strict = Some(true);
        }
    }
    Ok(())
}

fn config<'a>(raw: &'a RawValue, at: &Path<'_>, request: &mut Request<'a>) -> Result<(), Error> {
    let mut config = Members::read(raw.get(), at)?.camel();
    request.max_tokens = config.count("maxOutputTokens", at)?;
    request.temperature = config.number("temperature", at)?;
    request.top_p = config.number("topP", at)?;
    // A float on the wire, though it counts.
    request.top_k = match config.number("topK", at)? {
        Some(k) if k >= 1.0 && k.fract() == 0.0 && k <= f64::from(u32::MAX) => Some(k as u32),
        Some(_) => return Err(at.key("topK").has_to_be("an integer of at least 1")),
        None => None,
    };
    let stop = &at.key("stopSequences");
    for (i, raw) in config
        .read_with("stopSequences", at, json::list)?
        .unwrap_or_default()
        .into_iter()
        .enumerate()
    {
        request.stop.push(json::text(raw, &stop.index(i))?);
    }
    request.seed = config.integer("seed", at)?;
    request.frequency_penalty = config.number("frequencyPenalty", at)?;
    request.presence_penalty = config.number("presencePenalty", at)?;
    request.n = config.count("candidateCount", at)?.filter(|n| *n != 1);
    request.logprobs = config.boolean("responseLogprobs", at)?.filter(|is| *is);
    request.top_logprobs = config.count("logprobs", at)?.filter(|n| *n != 0);
    request.format = format(&mut config, at)?;
    config.read_with("thinkingConfig", at, |raw, at| thinking(raw, at, request))?;
    let modalities = config.take("responseModalities");
    if modalities
        .is_some_and(|raw| serde_json::from_str::<[&str; 1]>(raw.get()).ok() != Some(["TEXT"]))
    {
        return Err(unsupported(at.key("responseModalities").to_string()));
    }
    for (name, raw) in config.rest() {
        let name = Cow::Owned(at.key(&name).to_string());
        request.other.push((name, Cow::Borrowed(raw)));
    }
    Ok(())
}

fn format<'a>(config: &mut Members<'a>, at: &Path<'_>) -> Result<Option<Format<'a>>, Error> {
    let mime = config.text("responseMimeType", at)?;
    let schema = config.read_with("responseSchema", at, json::object)?;
    let schema = match config.read_with("responseJsonSchema", at, json::object)? {
        Some(raw) => Some(Cow::Borrowed(raw)),
        None => schema.map(json_schema),
    };
    match (mime.as_deref(), schema) {
        (None | Some("text/plain"), None) => Ok(None),
        (Some("application/json"), None) => Ok(Some(Format::Json)),
        (Some("application/json"), Some(schema)) => Ok(Some(Format::Schema {
            name: None,
            description: None,
            schema,
            strict: None,
        })),
        (None | Some("text/plain"), Some(_)) => Err(at
            .key("responseMimeType")
            .has_to_be("application/json where there is a schema")),
        _ => Err(at
            .key("responseMimeType")
            .has_to_be("text/plain or application/json")),
    }
}

fn thinking(raw: &RawValue, at: &Path<'_>, request: &mut Request<'_>) -> Result<(), Error> {
    let mut members = Members::read(raw.get(), at)?.camel();
    request.thinking = match members.integer("thinkingBudget", at)? {
        None => None,
        Some(0) => Some(Thinking::Disabled),
        Some(-1) => Some(Thinking::Adaptive),
        Some(budget) => Some(Thinking::Budget(u32::try_from(budget).map_err(|_| {
            at.key("thinkingBudget")
                .has_to_be("-1, 0 or a count of tokens")
        })?)),
    };
    if let Some(level) = members.text("thinkingLevel", at)? {
        let level = level.to_ascii_lowercase();
        if !["minimal", "low", "medium", "high"].contains(&level.as_str()) {
            return Err(at
                .key("thinkingLevel")
                .has_to_be("MINIMAL, LOW, MEDIUM or HIGH"));
        }
        request.effort = Some(Cow::Owned(level));
    }
    let is_shown = members.boolean("includeThoughts", at)?;
    if is_shown == Some(true) && request.thinking.is_none() && request.effort.is_none() {
        request.thinking = Some(Thinking::Adaptive);
    }
    Ok(())
}
