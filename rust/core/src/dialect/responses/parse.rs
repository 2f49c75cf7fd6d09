//! Reading a request.
use std::borrow::Cow;

use serde_json::value::RawValue;

use crate::error::Error;

use super::super::carry::{invalid, unsupported};
use super::super::chat::{Format, Request};
use super::super::json::{self, Members, Path};
use super::items;
use super::tools;

/// Top-level fields that say nothing about the answer itself.
const HINTS: [&str; 6] = [
    "max_tool_calls",
    "metadata",
    "prompt_cache_key",
    "prompt_cache_options",
    "prompt_cache_retention",
    "service_tier",
];

/// What only an upstream that has Responses itself can do.
const NATIVE: [&str; 3] = ["context_management", "moderation", "prompt"];

const EFFORTS: [&str; 7] = ["none", "minimal", "low", "medium", "high", "xhigh", "max"];

const SUMMARIES: [&str; 3] = ["auto", "concise", "detailed"];

const INCLUDES: [&str; 8] = [
    "code_interpreter_call.outputs",
    "computer_call_output.output.image_url",
    "file_search_call.results",
    "message.input_image.image_url",
    "message.output_text.logprobs",
    "reasoning.encrypted_content",
    "web_search_call.action.sources",
    "web_search_call.results",
];

/// A request as it was read.
#[derive(Default)]
pub(super) struct Parsed<'a> {
    /// All that another dialect may have words for.
    pub(super) request: Request<'a>,
    /// The first of what only Responses has, as the error for all others.
    pub(super) native_only: Option<Error>,
    /// Names of tools that take free text.
    pub(super) custom: Vec<Cow<'a, str>>,
    /// `text.verbosity`, where it is not what it is without being said.
    pub(super) verbosity: Option<Cow<'a, str>>,
    /// Thoughts are asked for as summaries.
    pub(super) summary: bool,
    /// Logprobs are asked for.
    pub(super) logprobs: bool,
    pub(super) stream: bool,
}

impl Parsed<'_> {
    /// Notes what only Responses has.
    pub(super) fn native_only(&mut self, at: &Path<'_>) {
        if self.native_only.is_none() {
            self.native_only = Some(unsupported(at.to_string()));
        }
    }
}

/// Reads a request that is to be said in another dialect. Errors: `InvalidRequest` that names the
/// field.
pub(crate) fn parse_request(body: &str) -> Result<Request<'_>, Error> {
    let mut parsed = parse(body)?;
    if let Some(error) = parsed.native_only {
        return Err(error);
    }
    if let Some(verbosity) = parsed.verbosity
        && let Ok(raw) = serde_json::value::to_raw_value(&verbosity)
    {
        let name = Cow::Borrowed("text.verbosity");
        parsed.request.other.push((name, Cow::Owned(raw)));
    }
    Ok(parsed.request)
}

/// Reads a request. Errors: `InvalidRequest` that names the field, of what is malformed or nobody can
/// do behind this gateway.
pub(super) fn parse(body: &str) -> Result<Parsed<'_>, Error> {
    let at = &Path::ROOT;
    let mut members = Members::read(body, at)?;
    let mut parsed = Parsed::default();
    // The gateway's own affair: what is to be kept, and how the answer travels.
    members.text("model", at)?;
    parsed.stream = members.boolean("stream", at)?.unwrap_or(false);
    members.read_with("stream_options", at, json::object)?;
    members.boolean("store", at)?;
    members.text("previous_response_id", at)?;
    held_back(&mut members, at)?;
    let input = members.need("input", at)?;
    if let Some(text) = members.text("instructions", at)? {
        items::instructions(text, &mut parsed);
    }
    tools::read(&mut members, at, &mut parsed)?;
    items::read(input, &at.key("input"), &mut parsed)?;
    sampling(&mut members, at, &mut parsed)?;
    text(&mut members, at, &mut parsed)?;
    reasoning(&mut members, at, &mut parsed)?;
    repeated(&mut members, at)?;
    let user = members.text("user", at)?;
    parsed.request.user = members.text("safety_identifier", at)?.or(user);
    for (name, raw) in members.rest() {
        let path = &at.key(&name);
        if NATIVE.contains(&&*name) {
            parsed.native_only(path);
        } else if HINTS.contains(&&*name) {
            parsed.request.hint(path);
        } else {
            parsed.request.other.push((name, Cow::Borrowed(raw)));
        }
    }
    Ok(parsed)
}

/// What a gateway that keeps conversations itself does not offer.
fn held_back(members: &mut Members<'_>, at: &Path<'_>) -> Result<(), Error> {
    if members.boolean("background", at)? == Some(true) {
        return Err(refused(
            "background",
            "Responses in the background are not offered here; `background` has to be false.",
        ));
    }
    if members.take("conversation").is_some() {
        return Err(refused(
            "conversation",
            "Conversations are not offered here; `previous_response_id` carries one on.",
        ));
    }
    Ok(())
}

fn refused(field: &'static str, message: &'static str) -> Error {
    invalid(field, message).code("unsupported_parameter")
}

fn sampling<'a>(
    members: &mut Members<'a>,
    at: &Path<'_>,
    parsed: &mut Parsed<'a>,
) -> Result<(), Error> {
    let request = &mut parsed.request;
    request.max_tokens = match members.count("max_output_tokens", at)? {
        Some(0) => return Err(at.key("max_output_tokens").has_to_be("at least 1")),
        bound => bound,
    };
    request.temperature = within(members, at, "temperature", 0.0, 2.0)?;
    request.top_p = within(members, at, "top_p", 0.0, 1.0)?;
    request.top_k = members.count("top_k", at)?;
    request.seed = members.integer("seed", at)?;
    request.frequency_penalty = within(members, at, "frequency_penalty", -2.0, 2.0)?;
    request.presence_penalty = within(members, at, "presence_penalty", -2.0, 2.0)?;
    request.stop = members.read_with("stop", at, stops)?.unwrap_or_default();
    request.top_logprobs = members.count("top_logprobs", at)?.filter(|n| *n != 0);
    if request.top_logprobs.is_some_and(|n| n > 20) {
        return Err(at.key("top_logprobs").has_to_be("at most 20"));
    }
    let included = members.read_with("include", at, includes)?.unwrap_or(false);
    parsed.logprobs = included || request.top_logprobs.is_some();
    request.logprobs = parsed.logprobs.then_some(true);
    Ok(())
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

fn stops<'a>(raw: &'a RawValue, at: &Path<'_>) -> Result<Vec<Cow<'a, str>>, Error> {
    if json::is_text(raw) {
        return Ok(vec![json::text(raw, at)?]);
    }
    let items = json::list(raw, at).map_err(|_| at.has_to_be("a string or a list of strings"))?;
    let texts = items.into_iter().enumerate();
    texts
        .map(|(i, item)| json::text(item, &at.index(i)))
        .collect()
}

/// Whether logprobs are among what is to be included. The rest is of tools that only an upstream runs.
fn includes(raw: &RawValue, at: &Path<'_>) -> Result<bool, Error> {
    let mut logprobs = false;
    for (i, raw) in json::list(raw, at)?.into_iter().enumerate() {
        let at = &at.index(i);
        let name = json::text(raw, at)?;
        if !INCLUDES.contains(&&*name) {
            return Err(at.has_to_be(format_args!("one of {}", INCLUDES.join(", "))));
        }
        logprobs |= name == "message.output_text.logprobs";
    }
    Ok(logprobs)
}

fn text<'a>(
    members: &mut Members<'a>,
    at: &Path<'_>,
    parsed: &mut Parsed<'a>,
) -> Result<(), Error> {
    let Some(raw) = members.take("text") else {
        return Ok(());
    };
    let at = &at.key("text");
    let mut text = Members::read(raw.get(), at)?;
    parsed.request.format = text.read_with("format", at, format)?.flatten();
    if let Some(verbosity) = text.text("verbosity", at)? {
        if !["low", "medium", "high"].contains(&&*verbosity) {
            return Err(at.key("verbosity").has_to_be("low, medium or high"));
        }
        parsed.verbosity = Some(verbosity).filter(|verbosity| verbosity != "medium");
    }
    Ok(())
}

fn format<'a>(raw: &'a RawValue, at: &Path<'_>) -> Result<Option<Format<'a>>, Error> {
    let mut members = Members::read(raw.get(), at)?;
    match &*members.need_text("type", at)? {
        "text" => Ok(None),
        "json_object" => Ok(Some(Format::Json)),
        "json_schema" => Ok(Some(Format::Schema {
            name: Some(members.need_text("name", at)?),
            description: members.text("description", at)?,
            strict: members.boolean("strict", at)?,
            schema: Cow::Borrowed(json::object(
                members.need("schema", at)?,
                &at.key("schema"),
            )?),
        })),
        _ => Err(at.key("type").has_to_be("text, json_object or json_schema")),
    }
}

fn reasoning<'a>(
    members: &mut Members<'a>,
    at: &Path<'_>,
    parsed: &mut Parsed<'a>,
) -> Result<(), Error> {
    let Some(raw) = members.take("reasoning") else {
        return Ok(());
    };
    let at = &at.key("reasoning");
    let mut reasoning = Members::read(raw.get(), at)?;
    parsed.request.effort = reasoning.text("effort", at)?;
    if let Some(effort) = &parsed.request.effort
        && !EFFORTS.contains(&&**effort)
    {
        let one_of = format!("one of {}", EFFORTS.join(", "));
        return Err(at.key("effort").has_to_be(one_of));
    }
    for name in ["summary", "generate_summary"] {
        let Some(summary) = reasoning.text(name, at)? else {
            continue;
        };
        if !SUMMARIES.contains(&&*summary) {
            return Err(at.key(name).has_to_be("auto, concise or detailed"));
        }
        parsed.summary = true;
    }
    match reasoning.text("mode", at)?.as_deref() {
        None | Some("standard") => {}
        Some(_) => parsed.native_only(&at.key("mode")),
    }
    for (name, _) in reasoning.rest() {
        parsed.request.hint(&at.key(&name));
    }
    Ok(())
}

/// What the response repeats has to be of the right type.
fn repeated(members: &mut Members<'_>, at: &Path<'_>) -> Result<(), Error> {
    let checked = [
        members.text("service_tier", at)?,
        members.text("prompt_cache_key", at)?,
        members.text("prompt_cache_retention", at)?,
    ];
    drop(checked);
    members.count("max_tool_calls", at)?;
    match members.text("truncation", at)?.as_deref() {
        None | Some("auto" | "disabled") => {}
        Some(_) => return Err(at.key("truncation").has_to_be("auto or disabled")),
    }
    members.read_with("metadata", at, metadata)?;
    Ok(())
}

fn metadata(raw: &RawValue, at: &Path<'_>) -> Result<(), Error> {
    let members = Members::read(raw.get(), at)?.rest();
    if members.len() > 16 {
        return Err(at.has_to_be("an object of up to 16 members"));
    }
    for (name, raw) in members {
        json::text(raw, &at.key(&name))?;
    }
    Ok(())
}
