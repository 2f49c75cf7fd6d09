//! Calls of tools, in whatever dialect.
use serde_json::value::RawValue;

use super::json;

/// An id for a call that came without: unique in its conversation, as the answer's is.
///
/// Converse takes letters, digits and `_.:-`, at most 64; OpenAI at most 40 characters.
pub(crate) fn call_id(answer: &str, index: u32) -> String {
    let answer = answer.rsplit('-').next().unwrap_or(answer);
    let mut id = String::from("call_");
    id.extend(answer.chars().filter(char::is_ascii_alphanumeric).take(28));
    id.push('_');
    id.push_str(&index.to_string());
    id
}

/// A call's arguments, if they are a JSON object; nothing at all is an empty one.
pub(crate) fn arguments(text: &str) -> Option<&RawValue> {
    let text = text.trim_ascii();
    let text = if text.is_empty() { "{}" } else { text };
    serde_json::from_str::<&RawValue>(text)
        .ok()
        .filter(|raw| json::is_object(raw))
}
