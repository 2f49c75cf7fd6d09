//! What an answer that goes by says of usage, whatever its size: the member `usage` of a JSON object,
//! or of the last event that has one. Sans-io, in constant memory.
use crate::usage::Usage;

/// Longest usage that is read, bytes.
const MAX_USAGE: usize = 16 * 1024;
/// Longest key that is looked for, bytes.
const MAX_KEY: usize = 8;
/// How deep an object is followed; what is deeper than that is taken for no usage.
const MAX_DEPTH: u32 = 1 << 20;

/// What an answer is made of.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum Form {
    /// One JSON text.
    Json,
    /// Server-sent events, each with a JSON text on one line.
    Events,
    /// Anything else, which says nothing.
    Other,
}

impl Form {
    /// By its `content-type`.
    pub fn of(content_type: Option<&[u8]>) -> Self {
        let media = content_type.unwrap_or_default().split(|byte| *byte == b';');
        let media = media.into_iter().next().unwrap_or_default().trim_ascii();
        if media.eq_ignore_ascii_case(b"application/json") {
            Self::Json
        } else if media.eq_ignore_ascii_case(b"text/event-stream") {
            Self::Events
        } else {
            Self::Other
        }
    }
}

/// Where in a line of events.
#[derive(Clone, Copy, PartialEq, Eq)]
enum Line {
    /// So many bytes of `data:` have come.
    Field(usize),
    /// Within a field's value.
    Data,
    /// In a line of no interest.
    Skip,
}

/// What the string that is being read is for.
#[derive(Clone, Copy, PartialEq, Eq)]
enum Text {
    /// None is being read.
    None,
    /// A key of the outermost object.
    Key,
    /// Any other.
    Other,
}

/// Reads an answer as it goes by.
pub struct Finder {
    form: Form,
    line: Line,
    depth: u32,
    text: Text,
    escaped: bool,
    /// A key of the outermost object may follow.
    expects_key: bool,
    key: Vec<u8>,
    /// The value of `usage`, while it is being read.
    value: Option<Vec<u8>>,
    /// The last usage that was whole.
    usage: Option<Vec<u8>>,
    failed: bool,
}

impl Finder {
    /// For an answer of this form.
    pub fn new(form: Form) -> Self {
        Self {
            form,
            line: Line::Field(0),
            depth: 0,
            text: Text::None,
            escaped: false,
            expects_key: false,
            key: Vec::new(),
            value: None,
            usage: None,
            failed: false,
        }
    }

    /// Takes bytes of the answer.
    pub fn feed(&mut self, bytes: &[u8]) {
        match self.form {
            Form::Other => {}
            Form::Json => bytes.iter().for_each(|byte| self.json(*byte)),
            Form::Events => bytes.iter().for_each(|byte| self.event(*byte)),
        }
    }

    /// The usage, as far as it has been said.
    pub fn usage(&self) -> Option<Usage> {
        let json = std::str::from_utf8(self.usage.as_deref()?).ok()?;
        Usage::parse(json).or_else(|| Usage::parse_input(json))
    }

    /// Seconds of audio, where an answer counts those.
    pub fn seconds(&self) -> Option<f64> {
        #[derive(serde::Deserialize)]
        struct Timed {
            seconds: f64,
        }
        let timed: Timed = serde_json::from_slice(self.usage.as_deref()?).ok()?;
        (0.0..1e9).contains(&timed.seconds).then_some(timed.seconds)
    }

    /// Whether an event told of an error.
    pub fn failed(&self) -> bool {
        self.failed
    }

    fn event(&mut self, byte: u8) {
        const FIELD: &[u8] = b"data:";
        if matches!(byte, b'\n' | b'\r') {
            self.line = Line::Field(0);
            self.restart();
            return;
        }
        match self.line {
            Line::Data => self.json(byte),
            Line::Skip => {}
            Line::Field(seen) if FIELD.get(seen) == Some(&byte) => {
                self.line = if seen + 1 == FIELD.len() {
                    Line::Data
                } else {
                    Line::Field(seen + 1)
                };
            }
            Line::Field(_) => self.line = Line::Skip,
        }
    }

    fn restart(&mut self) {
        self.depth = 0;
        self.text = Text::None;
        self.escaped = false;
        self.expects_key = false;
        self.key.clear();
        self.value = None;
    }

    fn json(&mut self, byte: u8) {
        if self.text != Text::None {
            self.within_text(byte);
            return;
        }
        match byte {
            b'"' => {
                self.text = if self.depth == 1 && self.expects_key {
                    self.key.clear();
                    self.expects_key = false;
                    Text::Key
                } else {
                    self.keep(byte);
                    Text::Other
                };
            }
            b'{' | b'[' => {
                self.keep(byte);
                self.depth = (self.depth + 1).min(MAX_DEPTH);
                self.expects_key = self.depth == 1 && byte == b'{';
            }
            b'}' | b']' => {
                if self.depth == 1 {
                    self.settle();
                } else {
                    self.keep(byte);
                }
                self.depth = self.depth.saturating_sub(1);
            }
            b',' if self.depth == 1 => {
                self.settle();
                self.expects_key = true;
            }
            b':' if self.depth == 1 => {
                if matches!(self.key.as_slice(), b"usage" | b"error") {
                    self.value = Some(Vec::new());
                }
            }
            byte => self.keep(byte),
        }
    }

    fn within_text(&mut self, byte: u8) {
        if self.text == Text::Key {
            if self.escaped || byte == b'\\' {
                // No key that is looked for has escapes.
                self.key.push(b'\\');
            } else if byte != b'"' && self.key.len() <= MAX_KEY {
                self.key.push(byte);
            }
        } else {
            self.keep(byte);
        }
        match byte {
            _ if self.escaped => self.escaped = false,
            b'\\' => self.escaped = true,
            b'"' => self.text = Text::None,
            _ => {}
        }
        self.key.truncate(MAX_KEY + 1);
    }

    fn keep(&mut self, byte: u8) {
        if let Some(value) = &mut self.value {
            if value.len() < MAX_USAGE {
                value.push(byte);
            } else {
                self.value = None;
            }
        }
    }

    /// A member of the outermost object has ended.
    fn settle(&mut self) {
        if let Some(value) = self.value.take() {
            let text = value.trim_ascii();
            if self.key == b"error" {
                self.failed |= !matches!(text, b"null" | b"false" | b"{}" | b"\"\"" | b"");
            } else if text.starts_with(b"{") {
                self.usage = Some(text.to_vec());
            }
        }
        self.key.clear();
    }
}

#[cfg(test)]
mod tests {
    use super::*;
    use proptest::prelude::*;

    fn found(form: Form, text: &str, cut: usize) -> (Option<Usage>, Option<f64>, bool) {
        let mut finder = Finder::new(form);
        let (first, second) = text.as_bytes().split_at(cut.min(text.len()));
        finder.feed(first);
        finder.feed(second);
        (finder.usage(), finder.seconds(), finder.failed())
    }

    fn usage(prompt: u64, completion: u64) -> Usage {
        Usage {
            prompt,
            completion,
            ..Usage::default()
        }
    }

    #[test]
    fn usage_is_found_wherever_it_stands_in_the_object() {
        for text in [
            r#"{"text":"usage\":{\"x","usage":{"type":"tokens","input_tokens":14,"output_tokens":3,"total_tokens":17,"input_token_details":{"audio_tokens":14}}}"#,
            r#"{ "usage" : {"input_tokens":14,"output_tokens":3}, "text":"}" }"#,
            r#"{"data":[{"usage":{"input_tokens":1,"output_tokens":1}}],"usage":{"input_tokens":14,"output_tokens":3}}"#,
        ] {
            for cut in 0..=text.len() {
                assert_eq!(
                    found(Form::Json, text, cut),
                    (Some(usage(14, 3)), None, false),
                    "{text}"
                );
            }
        }
    }

    #[test]
    fn the_last_event_with_usage_counts() {
        let text = "event: transcript.text.delta\r\ndata: {\"type\":\"transcript.text.delta\",\"delta\":\"a\"}\r\n\r\n: usage\n\ndata:{\"usage\":null}\n\ndata: {\"type\":\"transcript.text.done\",\"usage\":{\"input_tokens\":5,\"output_tokens\":2}}\n\ndata: [DONE]\n\n";
        for cut in 0..=text.len() {
            assert_eq!(
                found(Form::Events, text, cut),
                (Some(usage(5, 2)), None, false)
            );
        }
    }

    #[test]
    fn seconds_and_errors_are_told_apart() {
        let timed = r#"{"text":"a","usage":{"type":"duration","seconds":9.5}}"#;
        assert_eq!(found(Form::Json, timed, 3), (None, Some(9.5), false));
        let failed = "data: {\"error\":{\"message\":\"no\"}}\n\n";
        assert_eq!(found(Form::Events, failed, 3), (None, None, true));
        for text in [
            "{}",
            "[]",
            "",
            "{\"usage\":3}",
            "{\"usag\\u0065\":{\"seconds\":1}}",
            "nonsense",
        ] {
            assert_eq!(found(Form::Json, text, 1), (None, None, false), "{text}");
        }
        assert_eq!(found(Form::Other, timed, 3), (None, None, false));
    }

    #[test]
    fn forms_are_told_by_content_type() {
        assert_eq!(
            Form::of(Some(b"Application/JSON; charset=utf-8")),
            Form::Json
        );
        assert_eq!(Form::of(Some(b"text/event-stream")), Form::Events);
        assert_eq!(Form::of(Some(b"audio/mpeg")), Form::Other);
        assert_eq!(Form::of(None), Form::Other);
    }

    proptest! {
        /// Whatever comes, in whatever pieces: the same, and no panic.
        #[test]
        fn pieces_do_not_matter(bytes in proptest::collection::vec(any::<u8>(), 0..200), cut in 0_usize..200) {
            for form in [Form::Json, Form::Events] {
                let mut whole = Finder::new(form);
                whole.feed(&bytes);
                let mut pieces = Finder::new(form);
                let (first, second) = bytes.split_at(cut.min(bytes.len()));
                pieces.feed(first);
                pieces.feed(second);
                prop_assert_eq!(whole.usage(), pieces.usage());
                prop_assert_eq!(whole.failed(), pieces.failed());
            }
        }
    }
}
