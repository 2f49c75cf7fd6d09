//! The wire of streams, borrowed: the members that a continuation acts on, and edits in place.
use std::borrow::Cow;
use std::fmt;

use serde::de::{MapAccess, Visitor};
use serde::{Deserialize, Deserializer};
use serde_json::value::RawValue;

/// A string, borrowed where it has no escapes.
#[derive(Deserialize)]
pub(super) struct Text<'a>(#[serde(borrow)] pub(super) Cow<'a, str>);

/// Reads a JSON string; `None` where it is none, or holds half of a surrogate pair.
pub(super) fn text(raw: &RawValue) -> Option<Cow<'_, str>> {
    serde_json::from_str::<Text<'_>>(raw.get())
        .ok()
        .map(|text| text.0)
}

/// The members of an object in their order, those given twice included.
pub(super) struct Members<'a>(pub(super) Vec<(Cow<'a, str>, &'a RawValue)>);

impl<'a> Members<'a> {
    /// Reads one object.
    pub(super) fn parse(json: &'a str) -> Option<Self> {
        serde_json::from_str(json).ok()
    }

    /// The member of that name that counts: the last.
    pub(super) fn get(&self, name: &str) -> Option<&'a RawValue> {
        self.0
            .iter()
            .rev()
            .find(|(key, _)| key == name)
            .map(|(_, value)| *value)
    }
}

impl<'de: 'a, 'a> Deserialize<'de> for Members<'a> {
    fn deserialize<D: Deserializer<'de>>(deserializer: D) -> Result<Self, D::Error> {
        struct Object;
        impl<'de> Visitor<'de> for Object {
            type Value = Members<'de>;

            fn expecting(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
                f.write_str("an object")
            }

            fn visit_map<A: MapAccess<'de>>(self, mut map: A) -> Result<Self::Value, A::Error> {
                let mut members = Vec::new();
                while let Some((key, value)) = map.next_entry::<Text<'de>, &'de RawValue>()? {
                    members.push((key.0, value));
                }
                Ok(Members(members))
            }
        }
        deserializer.deserialize_map(Object)
    }
}

/// One event of a chat or of a completion.
#[derive(Deserialize)]
pub(super) struct Chunk<'a> {
    #[serde(borrow, default)]
    pub(super) id: Option<&'a RawValue>,
    #[serde(borrow, default)]
    pub(super) created: Option<&'a RawValue>,
    #[serde(borrow, default)]
    pub(super) model: Option<&'a RawValue>,
    #[serde(borrow, default)]
    pub(super) system_fingerprint: Option<&'a RawValue>,
    #[serde(borrow, default)]
    pub(super) choices: Option<Vec<Choice<'a>>>,
    #[serde(borrow, default)]
    pub(super) usage: Option<&'a RawValue>,
}

impl<'a> Chunk<'a> {
    /// Reads one event's data.
    pub(super) fn parse(data: &'a [u8]) -> Option<Self> {
        serde_json::from_slice(data).ok()
    }
}

/// One choice of an event.
#[derive(Deserialize)]
pub(super) struct Choice<'a> {
    #[serde(default)]
    pub(super) index: Option<u64>,
    #[serde(borrow, default)]
    pub(super) delta: Option<Delta<'a>>,
    /// What a completion says.
    #[serde(borrow, default)]
    pub(super) text: Option<&'a RawValue>,
    #[serde(borrow, default)]
    pub(super) finish_reason: Option<&'a RawValue>,
}

/// What an event of a chat adds.
#[derive(Deserialize)]
pub(super) struct Delta<'a> {
    #[serde(borrow, default)]
    pub(super) role: Option<&'a RawValue>,
    #[serde(borrow, default)]
    pub(super) content: Option<&'a RawValue>,
    #[serde(borrow, default)]
    pub(super) reasoning_content: Option<&'a RawValue>,
    /// Another name for it (vLLM, OpenRouter).
    #[serde(borrow, default)]
    pub(super) reasoning: Option<&'a RawValue>,
    #[serde(borrow, default)]
    pub(super) tool_calls: Option<&'a RawValue>,
    #[serde(borrow, default)]
    pub(super) function_call: Option<&'a RawValue>,
    #[serde(borrow, default)]
    pub(super) refusal: Option<&'a RawValue>,
    #[serde(borrow, default)]
    pub(super) audio: Option<&'a RawValue>,
}

impl<'a> Choice<'a> {
    /// The text it adds, as it stands: a chat's `content`, a completion's `text`.
    pub(super) fn said(&self) -> Option<&'a RawValue> {
        let content = self.delta.as_ref().and_then(|delta| delta.content);
        content.or(self.text)
    }
}

impl Delta<'_> {
    /// Part of a chain of thought.
    pub(super) fn reasons(&self) -> bool {
        is_something(self.reasoning_content) || is_something(self.reasoning)
    }

    /// Part of a tool call.
    pub(super) fn calls(&self) -> bool {
        is_something(self.tool_calls) || is_something(self.function_call)
    }

    /// Something else that is no text.
    pub(super) fn other(&self) -> bool {
        is_something(self.refusal) || is_something(self.audio)
    }
}

/// Whether a member says anything.
pub(super) fn is_something(raw: Option<&RawValue>) -> bool {
    raw.is_some_and(|raw| !matches!(raw.get(), "null" | "\"\"" | "[]" | "{}" | "false"))
}

/// A JSON document, changed in places.
pub(super) struct Edit<'a> {
    data: &'a [u8],
    changes: Vec<(usize, usize, String)>,
}

impl<'a> Edit<'a> {
    pub(super) const fn new(data: &'a [u8]) -> Self {
        Self {
            data,
            changes: Vec::new(),
        }
    }

    /// Puts `with` in the place of `value`, which was read from the document.
    pub(super) fn replace(&mut self, value: &RawValue, with: impl Into<String>) {
        let value = value.get();
        let start = (value.as_ptr() as usize).wrapping_sub(self.data.as_ptr() as usize);
        let end = start.saturating_add(value.len());
        if end <= self.data.len() {
            self.changes.push((start, end, with.into()));
        }
    }

    /// Appends the changed document as one event.
    pub(super) fn write(mut self, out: &mut bytes::BytesMut) {
        self.changes.sort_by_key(|(start, ..)| *start);
        out.extend_from_slice(b"data: ");
        let mut from = 0;
        for (start, end, with) in &self.changes {
            out.extend_from_slice(self.data.get(from..*start).unwrap_or_default());
            out.extend_from_slice(with.as_bytes());
            from = *end;
        }
        out.extend_from_slice(self.data.get(from..).unwrap_or_default());
        out.extend_from_slice(b"\n\n");
    }
}

/// `text` as a JSON string.
pub(super) fn quoted(text: &str) -> String {
    serde_json::to_string(text).unwrap_or_default()
}
