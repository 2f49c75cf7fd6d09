//! The fields that the gateway acts on: read as they come, judged at the end.
use std::borrow::Cow;
use std::ops::Range;

use super::reader::{Ids, Kind, Reader, Syntax, Tally, Text, number};
use super::{
    CONTROL_FIELDS, MAX_N, MAX_TOKEN_CAP, Peek, PeekError, PeekErrorKind, RANK_FIELDS,
    StreamOptions, TOKEN_FIELDS, TokenIds, text,
};

/// Where `logit_bias` stands in [`Found::token_ids`].
const LOGIT_BIAS: usize = 0;
/// How many of [`TOKEN_FIELDS`] may hold texts: the first two, and the last two.
const TEXT_FIELDS: usize = 2;
/// Where `query` and `items` stand in [`RANK_FIELDS`].
const QUERY: usize = 0;
const ITEMS: usize = 5;

/// A field's value so far. Wrong values wait, as a later duplicate may mend them, and as a body
/// that is no JSON must be called that first.
#[derive(Debug, Clone, Copy, Default)]
enum Slot<T> {
    #[default]
    Absent,
    Good(T),
    WrongType(usize),
    OutOfRange(usize),
}

impl<T> Slot<T> {
    /// The value, if good. A complaint goes to `refusal` and not into the result, which so stays
    /// a pointer.
    #[inline]
    fn take(
        &self,
        refusal: &mut Option<PeekError>,
        field: &'static str,
        expected: &'static str,
    ) -> Option<&T> {
        match self {
            Self::Absent => None,
            Self::Good(value) => Some(value),
            Self::WrongType(offset) | Self::OutOfRange(offset) => {
                let kind = PeekErrorKind::WrongType { field, expected };
                refusal.get_or_insert(PeekError {
                    offset: *offset,
                    kind,
                });
                None
            }
        }
    }
}

impl Slot<u64> {
    #[inline]
    fn number(
        &self,
        refusal: &mut Option<PeekError>,
        field: &'static str,
        max: u64,
    ) -> Option<u64> {
        if let Self::OutOfRange(offset) = self {
            let kind = PeekErrorKind::OutOfRange { field, min: 1, max };
            refusal.get_or_insert(PeekError {
                offset: *offset,
                kind,
            });
            return None;
        }
        self.take(refusal, field, "an integer").copied()
    }
}

/// A span kept as two words.
type Span = (usize, usize);

fn range((start, end): Span) -> Range<usize> {
    start..end
}

/// An array or a string of prompt text.
#[derive(Debug, Clone, Copy)]
struct Content {
    tally: Tally,
    is_empty_array: bool,
    span: Span,
}

/// A boolean and where it stands; `None` is a null.
type Flag = (Option<bool>, Span);

#[derive(Debug, Clone, Copy)]
struct Options {
    body_start: usize,
    empty: bool,
    include_usage: Slot<Flag>,
    continuous_usage_stats: Slot<Flag>,
}

#[derive(Debug, Default)]
pub(super) struct Found {
    model: Slot<Text>,
    stream: Slot<Flag>,
    n: Slot<u64>,
    max_tokens: Slot<u64>,
    max_completion_tokens: Slot<u64>,
    user: Slot<Text>,
    rid: Option<Span>,
    stream_options_span: Option<Span>,
    stream_options: Slot<Options>,
    messages: Slot<Content>,
    prompt: Slot<Content>,
    input: Slot<Content>,
    /// By their number in [`TOKEN_FIELDS`], without those that may hold texts.
    token_ids: [Ids; TOKEN_FIELDS.len() - 2 * TEXT_FIELDS],
    /// By their number in [`RANK_FIELDS`]; none where it is absent or null.
    ranked: [Option<Tally>; RANK_FIELDS.len()],
    priority: Option<Span>,
    /// Whether each of [`CONTROL_FIELDS`] says anything.
    control: [bool; CONTROL_FIELDS.len()],
}

impl Found {
    /// Read one member of the body; its value is next.
    #[inline]
    pub(super) fn member(&mut self, reader: &mut Reader<'_>, body: &[u8]) -> Result<(), Syntax> {
        let key = reader.text();
        let mut buffer = [0; text::MAX_KEY];
        let raw = body.get(key.start..key.end).unwrap_or_default();
        match text::key(raw, key.escaped, &mut buffer).unwrap_or_default() {
            b"model" => string(&mut self.model, reader, false)?,
            b"stream" => flag(&mut self.stream, reader, 1)?,
            b"n" => integer(&mut self.n, reader, body, u64::from(MAX_N))?,
            b"max_tokens" => integer(&mut self.max_tokens, reader, body, MAX_TOKEN_CAP)?,
            b"max_completion_tokens" => {
                integer(&mut self.max_completion_tokens, reader, body, MAX_TOKEN_CAP)?;
            }
            b"user" => string(&mut self.user, reader, true)?,
            b"rid" => {
                let start = reader.pos();
                reader.value(1, &mut Tally::default())?;
                self.rid = Some((start, reader.pos()));
            }
            b"stream_options" => {
                let start = reader.pos();
                options(&mut self.stream_options, reader, body)?;
                self.stream_options_span = Some((start, reader.pos()));
            }
            b"messages" => content(&mut self.messages, reader, false)?,
            b"prompt" => content(&mut self.prompt, reader, true)?,
            b"input" => content(&mut self.input, reader, true)?,
            b"priority" => {
                let start = reader.pos();
                reader.value(1, &mut Tally::default())?;
                self.priority = Some((start, reader.pos()));
            }
            b"logit_bias" => self.token_ids[LOGIT_BIAS] = bias(reader, body)?,
            other => self.rare(other, reader)?,
        }
        Ok(())
    }

    /// Read a member that few requests have.
    fn rare(&mut self, key: &[u8], reader: &mut Reader<'_>) -> Result<(), Syntax> {
        let mut tally = Tally::default();
        let kind = reader.value(1, &mut tally)?;
        let named = |fields: &[&str]| fields.iter().position(|field| field.as_bytes() == key);
        if let Some(ids) = named(&TOKEN_FIELDS)
            .and_then(|at| at.checked_sub(TEXT_FIELDS))
            .and_then(|at| self.token_ids.get_mut(at))
        {
            *ids = tally.ids.without_texts();
        } else if let Some(ranked) = named(&RANK_FIELDS).and_then(|at| self.ranked.get_mut(at)) {
            *ranked = (!matches!(kind, Kind::Null)).then_some(tally);
        } else if let Some(said) = named(&CONTROL_FIELDS).and_then(|at| self.control.get_mut(at)) {
            *said = !matches!(kind, Kind::Null);
        }
        Ok(())
    }

    /// Turn what was found into the answer, or into the first complaint.
    pub(super) fn settle<'a>(
        &self,
        text: &'a str,
        body_start: usize,
        empty_object: bool,
    ) -> Result<Peek<'a>, PeekError> {
        let mut refusal = None;
        let first = &mut refusal;
        let model = self.model.take(first, "model", "a string");
        let stream = self.stream.take(first, "stream", "a boolean");
        let n = self.n.number(first, "n", u64::from(MAX_N));
        let max_tokens = self.max_tokens.number(first, "max_tokens", MAX_TOKEN_CAP);
        let max_completion_tokens =
            self.max_completion_tokens
                .number(first, "max_completion_tokens", MAX_TOKEN_CAP);
        let user = self.user.take(first, "user", "a string");
        let messages = self.messages.take(first, "messages", "an array");
        let prompt = self.prompt.take(first, "prompt", "a string or an array");
        let input = self.input.take(first, "input", "a string or an array");
        let options = self
            .stream_options
            .take(first, "stream_options", "an object");
        let include = options.and_then(|options| {
            options
                .include_usage
                .take(first, "stream_options.include_usage", "a boolean")
        });
        let continuous = options.and_then(|options| {
            let field = "stream_options.continuous_usage_stats";
            options
                .continuous_usage_stats
                .take(first, field, "a boolean")
        });
        if let Some(refusal) = refusal {
            return Err(refusal);
        }
        let bytes = |content: Option<&Content>| content.map_or(0, |c| c.tally.string_bytes);
        let integers = |content: Option<&Content>| content.map_or(0, |c| c.tally.integers);
        Ok(Peek {
            model: model.map(|model| unescaped(text, *model)).transpose()?,
            model_span: model.map(|model| model.start - 1..model.end + 1),
            stream: is_set(stream),
            n: n.map(|n| n as u32),
            max_tokens,
            max_completion_tokens,
            user: user.map(|user| unescaped(text, *user)).transpose()?,
            rid_span: self.rid.map(range),
            priority_span: self.priority.map(range),
            token_ids: self.ids(prompt, input),
            control: self
                .control
                .iter()
                .zip(CONTROL_FIELDS)
                .find_map(|(said, field)| said.then_some(field)),
            stream_options_span: self.stream_options_span.map(range),
            prompt_bytes: bytes(messages) + bytes(prompt) + bytes(input),
            prompt_span: messages
                .or(prompt)
                .or(input)
                .map(|content| range(content.span)),
            prompt_token_ids: integers(prompt) + integers(input),
            prompt_items: prompt
                .or(input)
                .map_or(1, |content| content.tally.items.max(1)),
            has_messages: messages.is_some(),
            messages_empty: messages.is_some_and(|messages| messages.is_empty_array),
            has_prompt: prompt.is_some(),
            has_input: input.is_some(),
            stream_options: options.map(|options| StreamOptions {
                body_start: options.body_start,
                empty: options.empty,
                include_usage_span: include.map(|(_, span)| range(*span)),
                continuous_usage_stats_span: continuous.map(|(_, span)| range(*span)),
            }),
            include_usage: is_set(include),
            continuous_usage_stats: is_set(continuous),
            ranked: self.ranked.map(|tally| tally.is_some()),
            rank_bytes: self.ranked.iter().flatten().map(|t| t.string_bytes).sum(),
            rank_token_ids: self.ranked.iter().flatten().map(|t| t.integers).sum(),
            body_start,
            empty_object,
        })
    }
}

impl Found {
    /// The token ids of each field that has any.
    fn ids(
        &self,
        prompt: Option<&Content>,
        input: Option<&Content>,
    ) -> [TokenIds; TOKEN_FIELDS.len()] {
        let of = |content: Option<&Content>| content.map(|content| content.tally.ids);
        let [bias, stop, allowed, given, scored, labels] = self.token_ids.map(Some);
        let [query, items] = [QUERY, ITEMS].map(|at| {
            let tally = self.ranked.get(at).copied().flatten();
            tally.map(|tally| tally.ids)
        });
        [
            of(prompt),
            of(input),
            bias,
            stop,
            allowed,
            given,
            scored,
            labels,
            query,
            items,
        ]
        .map(|ids| {
            let ids = ids.unwrap_or_default();
            TokenIds {
                largest: ids.largest,
                is_wrong: ids.is_mixed(),
            }
        })
    }
}

/// Read `logit_bias`: the token ids are its keys.
fn bias(reader: &mut Reader<'_>, body: &[u8]) -> Result<Ids, Syntax> {
    let mut ids = Ids::default();
    if reader.byte() != Some(b'{') {
        reader.value(1, &mut Tally::default())?;
        return Ok(ids);
    }
    reader.object(|reader| {
        let key = reader.text();
        let mut buffer = [0; text::MAX_KEY];
        let raw = body.get(key.start..key.end).unwrap_or_default();
        match text::key(raw, key.escaped, &mut buffer).and_then(number) {
            Some(id) => ids.largest = ids.largest.max(Some(id)),
            None => ids.is_wrong = true,
        }
        reader.value(2, &mut Tally::default())?;
        Ok(())
    })?;
    Ok(ids)
}

fn is_set(flag: Option<&Flag>) -> bool {
    matches!(flag, Some((Some(true), _)))
}

/// The text of a string value, borrowed where it has no escapes.
fn unescaped(body: &str, at: Text) -> Result<Cow<'_, str>, PeekError> {
    let raw = body.get(at.start..at.end).unwrap_or_default();
    if !at.escaped {
        return Ok(Cow::Borrowed(raw));
    }
    text::unescape(raw).map(Cow::Owned).ok_or(PeekError {
        offset: at.start - 1,
        kind: PeekErrorKind::InvalidJson("half of a surrogate pair in a string"),
    })
}

fn string(slot: &mut Slot<Text>, reader: &mut Reader<'_>, nullable: bool) -> Result<(), Syntax> {
    let start = reader.pos();
    *slot = match reader.value(1, &mut Tally::default())? {
        Kind::String => Slot::Good(reader.text()),
        Kind::Null if nullable => Slot::Absent,
        _ => Slot::WrongType(start),
    };
    Ok(())
}

fn flag(slot: &mut Slot<Flag>, reader: &mut Reader<'_>, depth: u32) -> Result<(), Syntax> {
    let start = reader.pos();
    let kind = reader.value(depth, &mut Tally::default())?;
    let span = (start, reader.pos());
    *slot = match kind {
        Kind::Bool(set) => Slot::Good((Some(set), span)),
        Kind::Null => Slot::Good((None, span)),
        _ => Slot::WrongType(start),
    };
    Ok(())
}

fn integer(
    slot: &mut Slot<u64>,
    reader: &mut Reader<'_>,
    body: &[u8],
    max: u64,
) -> Result<(), Syntax> {
    let start = reader.pos();
    *slot = match reader.value(1, &mut Tally::default())? {
        Kind::Integer => {
            let digits = body.get(start..reader.pos()).unwrap_or_default();
            // None for a minus sign, which is out of range as 0 is, and on overflow.
            match number(digits) {
                Some(value) if (1..=max).contains(&value) => Slot::Good(value),
                _ => Slot::OutOfRange(start),
            }
        }
        Kind::Null => Slot::Absent,
        _ => Slot::WrongType(start),
    };
    Ok(())
}

fn content(
    slot: &mut Slot<Content>,
    reader: &mut Reader<'_>,
    or_string: bool,
) -> Result<(), Syntax> {
    let start = reader.pos();
    let mut tally = Tally::default();
    let kind = reader.value(1, &mut tally)?;
    let span = (start, reader.pos());
    *slot = match kind {
        Kind::Array => Slot::Good(Content {
            tally,
            is_empty_array: tally.is_empty,
            span,
        }),
        Kind::String if or_string => Slot::Good(Content {
            tally,
            is_empty_array: false,
            span,
        }),
        Kind::Null => Slot::Absent,
        _ => Slot::WrongType(start),
    };
    Ok(())
}

fn options(slot: &mut Slot<Options>, reader: &mut Reader<'_>, body: &[u8]) -> Result<(), Syntax> {
    let start = reader.pos();
    if reader.byte() != Some(b'{') {
        *slot = match reader.value(1, &mut Tally::default())? {
            Kind::Null => Slot::Absent,
            _ => Slot::WrongType(start),
        };
        return Ok(());
    }
    let mut include_usage = Slot::Absent;
    let mut continuous_usage_stats = Slot::Absent;
    let has_members = reader.object(|reader| {
        let key = reader.text();
        let mut buffer = [0; text::MAX_KEY];
        let raw = body.get(key.start..key.end).unwrap_or_default();
        match text::key(raw, key.escaped, &mut buffer).unwrap_or_default() {
            b"include_usage" => flag(&mut include_usage, reader, 2)?,
            b"continuous_usage_stats" => flag(&mut continuous_usage_stats, reader, 2)?,
            _ => {
                reader.value(2, &mut Tally::default())?;
            }
        }
        Ok(())
    })?;
    *slot = Slot::Good(Options {
        body_start: start + 1,
        empty: !has_members,
        include_usage,
        continuous_usage_stats,
    });
    Ok(())
}
