//! What the gateway must know of a request body, found in one pass without building a tree.
//!
//! The whole body is checked to be one JSON object in UTF-8 (RFC 8259, nested at most 128 deep),
//! so a body that passes is JSON to every engine behind the gateway too. Of a key given twice the
//! last one counts, as in Python's `json`, orjson and JavaScript: the engine sees what the gateway
//! acted on. Keys are compared with their escapes undone.
use std::borrow::Cow;
use std::fmt;
use std::ops::Range;

use fields::Found;
use reader::{Fault, Reader, Syntax, Tally};

mod fields;
mod reader;
mod text;

/// Most answers that one request may ask for (`n`), as OpenAI's API reference has it.
pub const MAX_N: u32 = 128;
/// Largest token cap: engines keep it in 32 signed bits.
pub const MAX_TOKEN_CAP: u64 = (1 << 31) - 1;

/// Fields that hold token ids: arrays of them, or arrays of such arrays; `logit_bias` has them as keys.
pub const TOKEN_FIELDS: [&str; 10] = [
    "prompt",
    "input",
    "logit_bias",
    "stop_token_ids",
    "allowed_token_ids",
    "input_ids",
    "token_ids_logprob",
    "label_token_ids",
    "query",
    "items",
];

/// Fields that hold what is ranked or scored, by vLLM's names and SGLang's: the first four what the
/// others are compared with.
pub const RANK_FIELDS: [&str; 8] = [
    "query",
    "queries",
    "text_1",
    "data_1",
    "documents",
    "items",
    "text_2",
    "data_2",
];

/// Fields by which whoever runs an engine controls it, and a client must not: which weights, worker,
/// session or cached state of others it uses, and what code runs in it.
pub const CONTROL_FIELDS: [&str; 15] = [
    "lora_path",
    "session_params",
    "bootstrap_host",
    "bootstrap_port",
    "bootstrap_room",
    "routed_dp_rank",
    "data_parallel_rank",
    "disagg_prefill_dp_rank",
    "kv_transfer_params",
    "custom_logit_processor",
    "custom_labels",
    "input_embeds",
    "prompt_embeds",
    "request_id",
    "lora_request",
];

/// The token ids that a field holds.
#[derive(Debug, Clone, Copy, PartialEq, Eq, Default)]
pub struct TokenIds {
    /// The largest, if there is any.
    pub largest: Option<u64>,
    /// Something is there that is no token id, where all have to be: a negative number or one with a
    /// fraction, or a text or something else beside numbers.
    pub is_wrong: bool,
}

/// Why a body is refused, and where.
#[derive(Debug, Clone, PartialEq, Eq, thiserror::Error)]
#[error("{kind} (byte {offset})")]
pub struct PeekError {
    /// Index into the body of the byte to blame; its length where the text ends too early.
    pub offset: usize,
    /// What is wrong there.
    pub kind: PeekErrorKind,
}

/// What is wrong with a body. The text of each is safe to show to the client.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub enum PeekErrorKind {
    /// Not UTF-8.
    InvalidUtf8,
    /// Not JSON, or a string the gateway needs holds half of a surrogate pair.
    InvalidJson(&'static str),
    /// JSON, but no object.
    NotAnObject,
    /// Containers nested more than 128 deep.
    TooDeep,
    /// A field is of another type than it must be.
    WrongType {
        /// The field as the client writes it, with a dot for one within another.
        field: &'static str,
        /// The type it must be, with its article.
        expected: &'static str,
    },
    /// A number is out of its range.
    OutOfRange {
        /// The field as the client writes it.
        field: &'static str,
        /// Smallest value allowed.
        min: u64,
        /// Largest value allowed.
        max: u64,
    },
}

impl fmt::Display for PeekErrorKind {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        match self {
            Self::InvalidUtf8 => f.write_str("the body is not valid UTF-8"),
            Self::InvalidJson(what) => write!(f, "the body is not valid JSON: {what}"),
            Self::NotAnObject => f.write_str("the body must be a JSON object"),
            Self::TooDeep => {
                write!(
                    f,
                    "the body is nested more than {} levels deep",
                    reader::MAX_DEPTH
                )
            }
            Self::WrongType { field, expected } => write!(f, "'{field}' must be {expected}"),
            Self::OutOfRange { field, min, max } => {
                write!(f, "'{field}' must be between {min} and {max}")
            }
        }
    }
}

/// Refuses a body that is nested deeper than any may be. Whether it is JSON is left to others.
pub(crate) fn bounded(body: &[u8]) -> Result<(), PeekError> {
    let mut reader = Reader::new(body);
    reader.skip_space();
    match reader.value(0, &mut Tally::default()) {
        Err(syntax) if syntax.fault == Fault::TooDeep => Err(syntax.into()),
        _ => Ok(()),
    }
}

/// Where a `stream_options` object lies in the body, to change it in place.
#[derive(Debug, Clone, PartialEq, Eq)]
pub struct StreamOptions {
    /// Just after its `{`: where members can be inserted.
    pub body_start: usize,
    /// It has no members, so one inserted needs no comma.
    pub empty: bool,
    /// The value of the `include_usage` that counts (the last), if any.
    pub include_usage_span: Option<Range<usize>>,
    /// The value of the `continuous_usage_stats` that counts (the last), if any.
    pub continuous_usage_stats_span: Option<Range<usize>>,
}

/// What a request body says, as far as the gateway acts on it. Spans are byte ranges of the body.
///
/// A null counts as absent, except for `model`, which must be a string.
#[derive(Debug, Clone, PartialEq, Eq, Default)]
#[expect(
    clippy::struct_excessive_bools,
    reason = "independent facts about one body"
)]
pub struct Peek<'a> {
    /// `model`, escapes undone.
    pub model: Option<Cow<'a, str>>,
    /// The value of `model`, quotes included.
    pub model_span: Option<Range<usize>>,
    /// `stream`; false where absent.
    pub stream: bool,
    /// `n`, 1 to [`MAX_N`].
    pub n: Option<u32>,
    /// `max_tokens`, 1 to [`MAX_TOKEN_CAP`].
    pub max_tokens: Option<u64>,
    /// `max_completion_tokens`, 1 to [`MAX_TOKEN_CAP`].
    pub max_completion_tokens: Option<u64>,
    /// `user`, escapes undone.
    pub user: Option<Cow<'a, str>>,
    /// The value of `rid`, of whatever type, null included.
    pub rid_span: Option<Range<usize>>,
    /// The value of `priority`, of whatever type, null included.
    pub priority_span: Option<Range<usize>>,
    /// Token ids, by the field's place in [`TOKEN_FIELDS`].
    pub token_ids: [TokenIds; TOKEN_FIELDS.len()],
    /// The first of [`CONTROL_FIELDS`] that is there and not null.
    pub control: Option<&'static str>,
    /// The value of `stream_options`, an object or null.
    pub stream_options_span: Option<Range<usize>>,
    /// The inside of `stream_options` where it is an object.
    pub stream_options: Option<StreamOptions>,
    /// `stream_options.include_usage`; false where absent.
    pub include_usage: bool,
    /// `stream_options.continuous_usage_stats`; false where absent.
    pub continuous_usage_stats: bool,
    /// Bytes of all string values within `messages`, `prompt` and `input`, as they stand between
    /// their quotes; keys not counted.
    pub prompt_bytes: usize,
    /// The value of `messages`, else of `prompt`, else of `input`.
    pub prompt_span: Option<Range<usize>>,
    /// Integers within `prompt` and `input`: prompts given as token ids.
    pub prompt_token_ids: u64,
    /// Prompts asked about: the length of a `prompt` (or else `input`) array of strings or of
    /// arrays, otherwise 1.
    pub prompt_items: u32,
    /// `messages` is there, an array.
    pub has_messages: bool,
    /// `messages` is an array without elements.
    pub messages_empty: bool,
    /// `prompt` is there, a string or an array.
    pub has_prompt: bool,
    /// `input` is there, a string or an array.
    pub has_input: bool,
    /// Which of [`RANK_FIELDS`] are there and not null.
    pub ranked: [bool; RANK_FIELDS.len()],
    /// Bytes of all string values within them.
    pub rank_bytes: usize,
    /// Integers within them: texts given as token ids.
    pub rank_token_ids: u64,
    /// Just after the body's `{`: where members can be inserted. A later member of the same key
    /// overrides one inserted here, so replace at its span instead where there is one.
    pub body_start: usize,
    /// The body has no members, so one inserted needs no comma.
    pub empty_object: bool,
}

impl Peek<'_> {
    /// Whether one of [`RANK_FIELDS`] is there.
    pub fn has(&self, field: &str) -> bool {
        let at = RANK_FIELDS.iter().position(|known| *known == field);
        at.and_then(|at| self.ranked.get(at)).is_some_and(|is| *is)
    }

    /// The most tokens one answer may have, as far as the request caps it. Where both caps are
    /// given this is the larger: engines differ in which one they follow.
    pub fn output_cap(&self) -> Option<u64> {
        self.max_tokens.max(self.max_completion_tokens)
    }
}

/// Inspect a request body.
///
/// Errors: the body is not UTF-8, not JSON, no object or nested too deep; or else a field the
/// gateway acts on has the wrong type or range.
pub fn peek(body: &[u8]) -> Result<Peek<'_>, PeekError> {
    let Ok(text) = simdutf8::basic::from_utf8(body) else {
        // The fast check does not say where.
        let offset = std::str::from_utf8(body).map_or_else(|bad| bad.valid_up_to(), str::len);
        return Err(PeekError {
            offset,
            kind: PeekErrorKind::InvalidUtf8,
        });
    };
    if body.starts_with("\u{FEFF}".as_bytes()) {
        return Err(Syntax {
            offset: 0,
            fault: Fault::ByteOrderMark,
        }
        .into());
    }
    let mut reader = Reader::new(body);
    let mut found = Found::default();
    reader.skip_space();
    let start = reader.pos();
    if reader.byte() != Some(b'{') {
        reader.value(0, &mut Tally::default())?;
        reader.end()?;
        return Err(PeekError {
            offset: start,
            kind: PeekErrorKind::NotAnObject,
        });
    }
    let has_members = reader.object(|reader| found.member(reader, body))?;
    reader.end()?;
    found.settle(text, start + 1, !has_members)
}

impl From<Syntax> for PeekError {
    fn from(syntax: Syntax) -> Self {
        let kind = match syntax.fault {
            Fault::TooDeep => PeekErrorKind::TooDeep,
            fault => PeekErrorKind::InvalidJson(fault.message()),
        };
        Self {
            offset: syntax.offset,
            kind,
        }
    }
}
