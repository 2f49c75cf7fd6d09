//! Reading tools and which of them are to be called.
use std::borrow::Cow;

use serde_json::value::RawValue;

use crate::error::Error;

use super::super::carry::invalid;
use super::super::chat::{Tool, ToolChoice};
use super::super::json::{self, Members, Path};
use super::parse::Parsed;

/// What a tool that takes free text has for parameters where only functions are known: the text is its
/// one argument.
pub(super) const TEXT_PARAMETERS: &str = r#"{"type":"object","properties":{"input":{"type":"string"}},"required":["input"],"additionalProperties":false}"#;

/// Reads `tools`, `tool_choice` and `parallel_tool_calls`.
pub(super) fn read<'a>(
    members: &mut Members<'a>,
    at: &Path<'_>,
    parsed: &mut Parsed<'a>,
) -> Result<(), Error> {
    let mut given = 0;
    if let Some(raw) = members.take("tools") {
        let at = &at.key("tools");
        for (i, raw) in json::list(raw, at)?.into_iter().enumerate() {
            tool(raw, i as u32, &at.index(i), parsed)?;
            given += 1;
        }
    }
    let choice = members.take("tool_choice");
    let parallel = members.boolean("parallel_tool_calls", at)?;
    if let Some(raw) = choice {
        choose(raw, &at.key("tool_choice"), given, parsed)?;
    }
    if parsed.request.tools.is_empty() {
        parsed.request.tool_choice = None;
    } else {
        parsed.request.parallel_tool_calls = parallel;
    }
    Ok(())
}

fn tool<'a>(
    raw: &'a RawValue,
    index: u32,
    at: &Path<'_>,
    parsed: &mut Parsed<'a>,
) -> Result<(), Error> {
    let mut tool = Members::read(raw.get(), at)?;
    let kind = tool.need_text("type", at)?;
    let custom = match &*kind {
        "function" => false,
        "custom" => true,
        _ => {
            parsed.native_only(&at.key("type"));
            return Ok(());
        }
    };
    let name = name(&mut tool, at)?;
    let description = tool.text("description", at)?;
    let mut parameters = tool
        .read_with("parameters", at, json::object)?
        .map(Cow::Borrowed);
    let mut strict = tool.boolean("strict", at)?;
    if custom {
        let inner = &at.key("format");
        if let Some(raw) = tool.take("format") {
            match &*Members::read(raw.get(), inner)?.need_text("type", inner)? {
                "text" => {}
                // Nothing else holds a model to a grammar.
                _ => parsed.native_only(inner),
            }
        }
        parameters = serde_json::value::RawValue::from_string(TEXT_PARAMETERS.to_owned())
            .ok()
            .map(Cow::Owned);
        strict = None;
        parsed.custom.push(name.clone());
    }
    if tool.boolean("defer_loading", at)? == Some(true) {
        parsed.native_only(&at.key("defer_loading"));
    }
    parsed.request.tools.push(Tool {
        name,
        description,
        parameters,
        strict,
        cache: None,
        index,
    });
    Ok(())
}

fn name<'a>(members: &mut Members<'a>, at: &Path<'_>) -> Result<Cow<'a, str>, Error> {
    let name = members.need_text("name", at)?;
    if name.is_empty() {
        return Err(at.key("name").has_to_be("a string that is not empty"));
    }
    Ok(name)
}

/// given: how many tools there are, those too that only Responses has.
fn choose<'a>(
    raw: &'a RawValue,
    at: &Path<'_>,
    given: usize,
    parsed: &mut Parsed<'a>,
) -> Result<(), Error> {
    let choice = if json::is_text(raw) {
        match &*json::text(raw, at)? {
            "auto" => ToolChoice::Auto,
            "required" => ToolChoice::Required,
            "none" => ToolChoice::None,
            _ => return Err(at.has_to_be("auto, required, none or an object")),
        }
    } else {
        let mut named = Members::read(raw.get(), at)?;
        match &*named.need_text("type", at)? {
            "function" | "custom" => {
                let name = name(&mut named, at)?;
                known(&name, at, parsed)?;
                ToolChoice::Named(name)
            }
            "allowed_tools" => allowed(named, at, parsed)?,
            _ => {
                parsed.native_only(&at.key("type"));
                return Ok(());
            }
        }
    };
    if given == 0 && matches!(choice, ToolChoice::Required | ToolChoice::Named(_)) {
        return Err(invalid("tool_choice", "`tool_choice` needs `tools`."));
    }
    parsed.request.tool_choice = Some(choice);
    Ok(())
}

/// A choice among some of the tools: the others are not told of.
fn allowed<'a>(
    mut members: Members<'a>,
    at: &Path<'_>,
    parsed: &mut Parsed<'a>,
) -> Result<ToolChoice<'a>, Error> {
    let choice = match &*members.need_text("mode", at)? {
        "auto" => ToolChoice::Auto,
        "required" => ToolChoice::Required,
        _ => return Err(at.key("mode").has_to_be("auto or required")),
    };
    let raw = members.need("tools", at)?;
    let at = &at.key("tools");
    let mut names = Vec::new();
    for (i, raw) in json::list(raw, at)?.into_iter().enumerate() {
        let at = &at.index(i);
        let mut tool = Members::read(raw.get(), at)?;
        match &*tool.need_text("type", at)? {
            "function" | "custom" => {
                let name = name(&mut tool, at)?;
                known(&name, at, parsed)?;
                names.push(name);
            }
            _ => parsed.native_only(&at.key("type")),
        }
    }
    parsed
        .request
        .tools
        .retain(|tool| names.contains(&tool.name));
    Ok(choice)
}

fn known(name: &str, at: &Path<'_>, parsed: &Parsed<'_>) -> Result<(), Error> {
    if parsed.request.tools.iter().any(|tool| tool.name == name) {
        return Ok(());
    }
    Err(at.key("name").has_to_be("the name of one of `tools`"))
}
