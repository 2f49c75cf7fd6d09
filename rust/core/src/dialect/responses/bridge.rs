//! A request for upstreams that speak chat alone.
use std::borrow::Cow;

use bytes::BytesMut;

use crate::error::Error;

use super::super::carry::{Carry, unsupported};
use super::super::chat::{Content, Media, Message, Part, Place, Request, Role, Spot};
use super::super::json::{Members, Path, value};
use super::super::openai;
use super::super::{Dialect, Options};
use super::asked::Asked;
use super::parse::{Parsed, parse};

/// A request as chat, and what is to be known to tell the answer.
pub(crate) struct Bridged {
    /// OpenAI's chat completions. Where something is native only, the request without that: enough to
    /// decide by.
    pub(crate) chat: Vec<u8>,
    /// What the response repeats.
    pub(crate) asked: Asked,
    /// Where each message of `chat` came from.
    pub(crate) places: Places,
    /// What only an upstream with Responses can do, as the error for all others.
    pub(crate) native_only: Option<Error>,
    /// The model's name as the client wrote it.
    pub(crate) model: String,
    /// The response is to be kept.
    pub(crate) store: bool,
    /// The response before it.
    pub(crate) previous: Option<String>,
}

/// Reads a request. Errors: `InvalidRequest` that names the field; `NotFound` for an item that is
/// referred to and not there.
pub(crate) fn bridge(body: &str) -> Result<Bridged, Error> {
    let mut members = Members::read(body, &Path::ROOT)?;
    let model = members.need_text("model", &Path::ROOT)?;
    let previous = members.text("previous_response_id", &Path::ROOT)?;
    let previous = previous.map(Cow::into_owned);
    let store = members.boolean("store", &Path::ROOT)?.unwrap_or(true);
    let mut parsed = parse(body)?;
    without_files(&mut parsed);
    let asked = Asked::of(&parsed, previous.as_deref(), members);
    let Parsed {
        mut request,
        native_only,
        verbosity,
        stream,
        ..
    } = parsed;
    if request.messages.is_empty() && request.system.is_empty() {
        // All of it was of what only Responses has.
        request
            .system
            .push(Part::new(Content::Text(" ".into()), Spot::default()));
    }
    // Engines have fields of their own, which pass as they do in chat.
    let own = std::mem::take(&mut request.other);
    let options = Options {
        model: &model,
        stream,
        drop_params: true,
        max_output_tokens: 0,
    };
    let mut carry = Carry::new(Dialect::Responses, true);
    let mut out = BytesMut::with_capacity(body.len() + body.len() / 8 + 256);
    openai::render_request(&request, &options, &mut carry, &mut out)?;
    out.truncate(out.len().saturating_sub(1));
    let verbosity = verbosity.map(|text| ("verbosity", text));
    if let Some((name, text)) = verbosity {
        member(&mut out, name, &text);
    }
    for (name, raw) in &own {
        member(&mut out, name, raw);
    }
    out.extend_from_slice(b"}");
    Ok(Bridged {
        places: Places::of(&request),
        chat: out.into(),
        asked,
        native_only,
        model: model.into_owned(),
        store,
        previous,
    })
}

fn member(out: &mut BytesMut, name: &str, member: impl serde::Serialize) {
    out.extend_from_slice(b",");
    value(out, name);
    out.extend_from_slice(b":");
    value(out, member);
}

/// Takes out what chat has no words for, and notes it.
fn without_files(parsed: &mut Parsed<'_>) {
    let mut first = None;
    for message in &mut parsed.request.messages {
        message.parts.retain_mut(|part| {
            let spot = part.spot;
            if let Content::ToolResult(result) = &mut part.content {
                result.content.retain(|content| match unsaid(content) {
                    None => true,
                    Some(field) => {
                        first.get_or_insert_with(|| {
                            format!("input[{}].output{field}", spot.message.unwrap_or(0))
                        });
                        false
                    }
                });
                return true;
            }
            match unsaid(&part.content) {
                None => true,
                Some(field) => {
                    first.get_or_insert_with(|| spot.path(Dialect::Responses) + field);
                    false
                }
            }
        });
    }
    parsed
        .request
        .messages
        .retain(|message| !message.parts.is_empty());
    if let Some(path) = first
        && parsed.native_only.is_none()
    {
        parsed.native_only = Some(unsupported(path));
    }
}

/// The field of a part that chat does not have.
const fn unsaid(content: &Content<'_>) -> Option<&'static str> {
    match content {
        Content::Image(Media::File(_)) => Some(".file_id"),
        Content::Document {
            media: Media::Url { .. },
            ..
        } => Some(".file_url"),
        _ => None,
    }
}

/// Names of a chat's fields in the request that it was made of.
#[derive(Clone, Debug, Default)]
pub(crate) struct Places {
    /// Of each message: the item that it came from; none for what came from several.
    messages: Vec<Option<u32>>,
    /// Items before the client's own.
    before: u32,
    /// `input` is text.
    text: bool,
}

impl Places {
    fn of(request: &Request<'_>) -> Self {
        let mut messages = Vec::with_capacity(request.messages.len() + 1);
        if !request.system.is_empty() {
            messages.push(None);
        }
        for message in &request.messages {
            places(message, &mut messages);
        }
        let text = match request.messages.as_slice() {
            [one] => matches!(
                one.parts.as_slice(),
                [part] if part.spot.place == Place::Whole && one.role == Role::User
            ),
            _ => false,
        };
        Self {
            messages,
            before: 0,
            text,
        }
    }

    /// Says how many items stand before the client's own.
    pub(crate) const fn after(mut self, before: u32) -> Self {
        self.before = before;
        self
    }

    /// A field of the chat as the client named it: `max_output_tokens` for `max_completion_tokens`.
    pub(crate) fn name<'f>(&self, field: &'f str) -> Cow<'f, str> {
        let (first, rest) = match field.find(['.', '[']) {
            Some(at) => field.split_at(at),
            None => (field, ""),
        };
        Cow::Borrowed(match first {
            "max_completion_tokens" | "max_tokens" => "max_output_tokens",
            "reasoning_effort" => "reasoning.effort",
            "verbosity" => "text.verbosity",
            "response_format" => {
                return Cow::Owned(format!("text.format{}", without(rest, ".json_schema")));
            }
            "logprobs" => "include",
            "tools" => return Cow::Owned(format!("tools{}", without(rest, ".function"))),
            "tool_choice" => {
                return Cow::Owned(format!("tool_choice{}", without(rest, ".function")));
            }
            "messages" => return Cow::Owned(self.message(rest)),
            _ => return Cow::Borrowed(field),
        })
    }

    fn message(&self, rest: &str) -> String {
        let number = rest
            .strip_prefix('[')
            .and_then(|rest| rest.split_once(']'))
            .and_then(|(number, rest)| Some((number.parse::<usize>().ok()?, rest)));
        let Some((number, rest)) = number else {
            return "input".to_owned();
        };
        let Some(Some(item)) = self.messages.get(number).copied() else {
            return "input".to_owned();
        };
        let Some(item) = item.checked_sub(self.before) else {
            return "previous_response_id".to_owned();
        };
        if self.text {
            return "input".to_owned();
        }
        let rest = rest
            .replace(".image_url.url", ".image_url")
            .replace(".file.file_data", ".file_data")
            .replace(".file.filename", ".filename");
        let rest = if rest.starts_with(".content") {
            rest
        } else {
            String::new()
        };
        format!("input[{item}]{rest}")
    }
}

fn without(rest: &str, part: &str) -> String {
    rest.replacen(part, "", 1)
}

/// The messages that `message` becomes: each result is one, and what else a user says is one more.
fn places(message: &Message<'_>, messages: &mut Vec<Option<u32>>) {
    if message.role == Role::Assistant {
        messages.push(message.parts.first().and_then(|part| part.spot.message));
        return;
    }
    let mut says = false;
    for part in &message.parts {
        match &part.content {
            Content::ToolResult(result) => {
                messages.push(part.spot.message);
                says |= result
                    .content
                    .iter()
                    .any(|content| !matches!(content, Content::Text(_)));
            }
            _ => says = true,
        }
    }
    if says {
        messages.push(Some(message.index));
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn fields_have_the_clients_names() {
        let body = r#"{"model":"m","instructions":"Be brief.","input":[
            {"role":"user","content":"old"},
            {"type":"function_call","call_id":"c","name":"f","arguments":"{}"},
            {"type":"function_call_output","call_id":"c","output":"x"},
            {"role":"user","content":[{"type":"input_text","text":"x"}]}]}"#;
        let places = bridge(body).map(|told| told.places.after(1));
        let Ok(places) = places else {
            unreachable!("it is a request")
        };
        for (chat, own) in [
            ("max_completion_tokens", "max_output_tokens"),
            ("response_format.json_schema.schema", "text.format.schema"),
            ("tools[1].function.name", "tools[1].name"),
            ("messages[0].content", "input"),
            ("messages[1].content", "previous_response_id"),
            ("messages[2].tool_calls[0].id", "input[0]"),
            ("messages[3].tool_call_id", "input[1]"),
            (
                "messages[4].content[0].image_url.url",
                "input[2].content[0].image_url",
            ),
            ("messages[9].content", "input"),
            ("top_k", "top_k"),
        ] {
            assert_eq!(places.name(chat), own);
        }
    }

    #[test]
    fn what_only_an_upstream_can_do_is_kept_apart() {
        let body = r#"{"model":"m","tools":[{"type":"web_search"}],
            "input":[{"role":"user","content":[{"type":"input_file","file_url":"https://x/a.pdf"}]}]}"#;
        let told = bridge(body);
        let field = told.ok().and_then(|told| told.native_only?.param);
        assert_eq!(field, Some("tools[0].type".into()));
    }
}
