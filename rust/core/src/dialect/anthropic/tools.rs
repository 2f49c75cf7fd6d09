//! Writing tools, which of them to call, and ids of calls.
use std::borrow::Cow;

use super::super::chat::{Raw, Request, Tool, ToolChoice};
use super::super::json::{Members, Object, Path};

/// Writes tools and the choice of them.
pub(super) fn tools(request: &Request<'_>, body: &mut Object<'_>) {
    if request.tools.is_empty() {
        return;
    }
    body.list("tools", |list| {
        for tool in &request.tools {
            list.object(|item| describe(tool, item));
        }
    });
    let alone = request.parallel_tool_calls == Some(false);
    let (kind, name) = match &request.tool_choice {
        None if !alone => return,
        None | Some(ToolChoice::Auto) => ("auto", None),
        Some(ToolChoice::Required) => ("any", None),
        Some(ToolChoice::None) => ("none", None),
        Some(ToolChoice::Named(name)) => ("tool", Some(name)),
    };
    body.object("tool_choice", |choice| {
        choice.put("type", kind);
        choice.put_some("name", name);
        if alone && kind != "none" {
            choice.put("disable_parallel_tool_use", true);
        }
    });
}

fn describe(tool: &Tool<'_>, item: &mut Object<'_>) {
    item.put("name", &tool.name);
    item.put_some("description", tool.description.as_deref());
    let typed = tool.parameters.as_ref().filter(|raw| has_type(raw));
    match (typed, &tool.parameters) {
        (Some(schema), _) => item.put("input_schema", schema),
        // The type has to be there, and of an object that says no other.
        (None, parameters) => item.object("input_schema", |schema| {
            schema.put("type", "object");
            let members = parameters
                .as_ref()
                .and_then(|raw| Members::read(raw.get(), &Path::ROOT).ok());
            for (name, raw) in members.map(Members::rest).unwrap_or_default() {
                schema.put_named(&name, raw);
            }
        }),
    }
    item.put_some("strict", tool.strict);
    item.put_some("cache_control", tool.cache.as_deref());
}

fn has_type(schema: &Raw<'_>) -> bool {
    // What cannot be looked into is not changed.
    Members::read(schema.get(), &Path::ROOT)
        .map_or(true, |mut members| members.take("type").is_some())
}

/// Ids have letters, digits, `_` and `-` only; other engines' may have more.
pub(super) fn tool_id(id: &str) -> Cow<'_, str> {
    let fits = |c: char| c.is_ascii_alphanumeric() || c == '_' || c == '-';
    if id.chars().all(fits) {
        return Cow::Borrowed(id);
    }
    Cow::Owned(id.chars().map(|c| if fits(c) { c } else { '_' }).collect())
}
