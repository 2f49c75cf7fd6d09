//! The text of requests and answers, as far as it is logged.
//!
//! Pure. A stream becomes the text that its events add up to; JSON stays JSON, with the escapes
//! undone that would hide something from a pattern.
use std::borrow::Cow;
use std::fmt::Write;

use bytes::Bytes;
use serde::Deserialize;

use crate::sse::Decoder;

/// What one choice's events are adding to.
#[derive(Clone, Copy, PartialEq, Eq)]
enum Voice {
    Answer,
    Reasoning,
    Tool,
}

#[derive(Deserialize)]
struct Chunk<'a> {
    #[serde(borrow, default)]
    choices: Vec<Choice<'a>>,
    #[serde(borrow, default)]
    error: Option<&'a serde_json::value::RawValue>,
}

#[derive(Deserialize)]
struct Choice<'a> {
    #[serde(default)]
    index: usize,
    #[serde(borrow, default)]
    text: Option<Cow<'a, str>>,
    #[serde(borrow, default)]
    delta: Option<Delta<'a>>,
}

#[derive(Deserialize)]
struct Delta<'a> {
    #[serde(borrow, default)]
    content: Option<Cow<'a, str>>,
    #[serde(borrow, default)]
    reasoning_content: Option<Cow<'a, str>>,
    /// Another name for it; who sends both says the same in both.
    #[serde(borrow, default)]
    reasoning: Option<Cow<'a, str>>,
    #[serde(borrow, default)]
    tool_calls: Option<Vec<ToolCall<'a>>>,
}

#[derive(Deserialize)]
struct ToolCall<'a> {
    #[serde(borrow, default)]
    function: Option<Function<'a>>,
}

#[derive(Deserialize)]
struct Function<'a> {
    #[serde(borrow, default)]
    name: Option<Cow<'a, str>>,
    #[serde(borrow, default)]
    arguments: Option<Cow<'a, str>>,
}

/// Longer events no stream of ours has.
const MAX_EVENT: usize = 64 << 20;
/// Choices beyond this are not logged; a request has at most 128 for each of its prompts.
const MAX_CHOICES: usize = 256;

/// The text of one stream, gathered as its bytes come.
pub(super) struct StreamText {
    decoder: Decoder,
    choices: Vec<(Voice, String)>,
    length: usize,
    limit: usize,
    errors: String,
}

impl StreamText {
    /// Of at most about `limit` bytes.
    pub(super) fn new(limit: usize) -> Self {
        Self {
            decoder: Decoder::new(MAX_EVENT),
            choices: Vec::new(),
            length: 0,
            limit,
            errors: String::new(),
        }
    }

    /// The memory that it takes, about.
    pub(super) fn size(&self) -> usize {
        self.length + self.decoder.buffered()
    }

    /// More of the stream as the client got it.
    pub(super) fn feed(&mut self, bytes: Bytes) {
        if self.length >= self.limit || self.decoder.feed(bytes).is_err() {
            return;
        }
        while let Some(frame) = self.decoder.next() {
            let Some(data) = frame.data() else { continue };
            if let Ok(chunk) = serde_json::from_slice::<Chunk<'_>>(&data) {
                self.chunk(&chunk);
            }
        }
    }

    fn chunk(&mut self, chunk: &Chunk<'_>) {
        if let Some(error) = chunk.error {
            self.length += error.get().len();
            self.errors.push_str("\n[error] ");
            self.errors.push_str(error.get());
        }
        for choice in &chunk.choices {
            if let Some(text) = &choice.text {
                self.say(choice.index, Voice::Answer, text);
            }
            let Some(delta) = &choice.delta else { continue };
            if let Some(text) = delta
                .reasoning_content
                .as_ref()
                .or(delta.reasoning.as_ref())
            {
                self.say(choice.index, Voice::Reasoning, text);
            }
            if let Some(text) = &delta.content {
                self.say(choice.index, Voice::Answer, text);
            }
            for call in delta.tool_calls.iter().flatten() {
                let Some(function) = &call.function else {
                    continue;
                };
                if let Some(name) = function.name.as_deref().filter(|name| !name.is_empty()) {
                    self.say(choice.index, Voice::Tool, &format!("\n[call] {name} "));
                }
                if let Some(arguments) = &function.arguments {
                    self.say(choice.index, Voice::Tool, arguments);
                }
            }
        }
    }

    fn say(&mut self, index: usize, voice: Voice, text: &str) {
        if text.is_empty() || index >= MAX_CHOICES || self.length >= self.limit {
            return;
        }
        if self.choices.len() <= index {
            self.choices
                .resize_with(index + 1, || (Voice::Answer, String::new()));
        }
        let Some((last, said)) = self.choices.get_mut(index) else {
            return;
        };
        if *last != voice {
            match voice {
                Voice::Answer if !said.is_empty() => said.push_str("\n[answer] "),
                Voice::Reasoning => said.push_str("[reasoning] "),
                Voice::Answer | Voice::Tool => {}
            }
            *last = voice;
        }
        said.push_str(text);
        self.length += text.len();
    }

    /// All of it: the choices in their order.
    pub(super) fn finish(self) -> String {
        let several = self.choices.len() > 1;
        let mut out = String::with_capacity(self.length);
        for (index, (_, text)) in self.choices.iter().enumerate() {
            if several {
                // Writing to a string does not fail.
                let _ = writeln!(out, "[choice {index}]");
            }
            out.push_str(text);
            if several {
                out.push('\n');
            }
        }
        out.push_str(&self.errors);
        out
    }
}

/// JSON's text with `\uXXXX` and `\/` undone within its strings, but for control characters, quotes
/// and backslashes: the same document, if it was one.
pub(super) fn plain(json: &str) -> Cow<'_, str> {
    if !json.contains("\\u") && !json.contains("\\/") {
        return Cow::Borrowed(json);
    }
    let mut out = String::with_capacity(json.len());
    let mut rest = json;
    while let Some(at) = rest.find('\\') {
        let (before, escape) = rest.split_at(at);
        out.push_str(before);
        let (character, length) = match escape.as_bytes().get(1) {
            Some(b'/') => (Some('/'), 2),
            Some(b'u') => unescaped(escape),
            _ => (None, 2),
        };
        let length = if escape.is_char_boundary(length) {
            length.min(escape.len())
        } else {
            1
        };
        match character.filter(|c| !c.is_control() && !matches!(c, '"' | '\\')) {
            Some(character) => out.push(character),
            None => out.push_str(escape.get(..length).unwrap_or_default()),
        }
        rest = escape.get(length..).unwrap_or_default();
    }
    out.push_str(rest);
    Cow::Owned(out)
}

/// The character of an escape `\uXXXX`, or of two for a surrogate pair, and the escape's length.
fn unescaped(escape: &str) -> (Option<char>, usize) {
    let unit = |at: usize| {
        let escape = escape.get(at..at + 6)?;
        let hex = escape.strip_prefix("\\u")?;
        hex.bytes().all(|byte| byte.is_ascii_hexdigit()).then(|| {
            // Four digits always fit.
            u16::from_str_radix(hex, 16).unwrap_or_default()
        })
    };
    let Some(first) = unit(0) else {
        return (None, 2);
    };
    if let Some(character) = char::from_u32(u32::from(first)) {
        return (Some(character), 6);
    }
    let pair = unit(6).and_then(|second| char::decode_utf16([first, second]).next()?.ok());
    match pair {
        Some(character) => (Some(character), 12),
        None => (None, 6),
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    fn said(events: &[&str]) -> String {
        let mut text = StreamText::new(1000);
        for event in events {
            let whole = format!("data: {event}\n\n");
            let (first, second) = whole.split_at(whole.len() / 2);
            text.feed(Bytes::copy_from_slice(first.as_bytes()));
            text.feed(Bytes::copy_from_slice(second.as_bytes()));
        }
        text.finish()
    }

    #[test]
    fn events_add_up_to_a_text() {
        let chat = |delta: &str| format!(r#"{{"choices":[{{"index":0,"delta":{delta}}}]}}"#);
        let events = [
            chat(r#"{"role":"assistant","content":""}"#),
            chat(r#"{"reasoning_content":"hm"}"#),
            chat(r#"{"content":"He\n"}"#),
            chat(r#"{"content":"llo"}"#),
            chat(r#"{"tool_calls":[{"index":0,"function":{"name":"f","arguments":"{\"a\""}}]}"#),
            chat(r#"{"tool_calls":[{"index":0,"function":{"arguments":":1}"}}]}"#),
            r#"{"choices":[],"usage":{}}"#.to_owned(),
            r#"{"error":{"message":"late"}}"#.to_owned(),
            "[DONE]".to_owned(),
        ];
        let events: Vec<_> = events.iter().map(String::as_str).collect();
        assert_eq!(
            said(&events),
            "[reasoning] hm\n[answer] He\nllo\n[call] f {\"a\":1}\n[error] {\"message\":\"late\"}"
        );
    }

    #[test]
    fn choices_are_kept_apart() {
        let events = [
            r#"{"choices":[{"index":1,"text":"b"}]}"#,
            r#"{"choices":[{"index":0,"text":"a"},{"index":1,"text":"B"}]}"#,
        ];
        assert_eq!(said(&events), "[choice 0]\na\n[choice 1]\nbB\n");
    }

    #[test]
    fn a_long_stream_is_kept_to_its_limit() {
        let mut text = StreamText::new(100);
        for _ in 0..1000 {
            text.feed(Bytes::from_static(
                b"data: {\"choices\":[{\"index\":0,\"text\":\"0123456789\"}]}\n\n",
            ));
        }
        assert_eq!(text.finish().len(), 100);
    }

    #[test]
    fn escapes_are_undone_where_that_changes_no_document() {
        for (json, text) in [
            (r#""a\u0040b.com""#, r#""a@b.com""#),
            (r#""\u53f74111""#, r#""号4111""#),
            (r#""\ud83d\ude00\/""#, r#""😀/""#),
            (
                r#""\u0022\u005c\u000a\n\\u0041""#,
                r#""\u0022\u005c\u000a\n\\u0041""#,
            ),
            (r#""\ud83d""#, r#""\ud83d""#),
            (r"\u12", r"\u12"),
            (r"\u00e", r"\u00e"),
            ("\\u0041\\é", "A\\é"),
            ("\\", "\\"),
        ] {
            assert_eq!(plain(json), text, "{json}");
        }
    }
}
