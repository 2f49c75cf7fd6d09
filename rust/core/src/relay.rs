//! The stream between engine and client, sans-io: bytes in, bytes out, and what they said.
//!
//! Frames pass as they came. The relay looks into the JSON of those that may hold usage, a finish
//! reason or an error, found by a substring search that cannot match inside a JSON string (there
//! the quotes are escaped). It takes out usage that only the gateway asked for, and never lets a
//! stream end as if it were whole when it is not.
use std::sync::LazyLock;

use bytes::{Bytes, BytesMut};
use memchr::memmem::Finder;

use crate::error::{Error, Kind};
use crate::resume::Delivered;
use crate::scrub::{self, Asked};
use crate::sse::{Decoder, Frame};
use crate::usage::{Choice, Inspected, Usage};

static USAGE: LazyLock<Finder<'static>> = LazyLock::new(|| Finder::new(b"\"usage\""));
static FINISH: LazyLock<Finder<'static>> = LazyLock::new(|| Finder::new(b"\"finish_reason\""));
static ERROR: LazyLock<Finder<'static>> = LazyLock::new(|| Finder::new(b"\"error\""));
static NULL_TEXT: LazyLock<Finder<'static>> = LazyLock::new(|| Finder::new(b"\"text\":null"));
static EMPTY_CONTENT: LazyLock<Finder<'static>> =
    LazyLock::new(|| Finder::new(b"\"content\":\"\""));
static TOOL_CALLS: LazyLock<Finder<'static>> = LazyLock::new(|| Finder::new(b"\"tool_calls\":["));

/// The end marker of an OpenAI-shaped stream.
pub const DONE: &[u8] = b"data: [DONE]\n\n";

/// What the relay has to know of the request.
#[derive(Clone, Copy, Debug)]
pub struct Shape {
    /// The client asked for the final usage chunk.
    pub include_usage: bool,
    /// The client asked for usage on every chunk.
    pub continuous_usage: bool,
    /// `/v1/completions`: every chunk has a `usage` member, null where it says nothing.
    pub completions: bool,
    /// Choices that have to finish: `n` times the number of prompts.
    pub choices: u32,
    /// Largest event taken, in bytes.
    pub max_event_bytes: usize,
    /// How errors name the request's parameters.
    pub asked: Asked,
}

/// One stream in flight.
#[derive(Clone)]
pub struct StreamRelay {
    shape: Shape,
    decoder: Decoder,
    usage: Option<Usage>,
    final_usage: bool,
    content_events: u64,
    finishes: u32,
    finish_reason: Option<String>,
    started: bool,
    done: bool,
    delivered: Option<Delivered>,
    /// Usage that came with a finish reason, as the event of its own that the client asked for.
    owed: Option<Bytes>,
}

impl StreamRelay {
    /// A relay at the start of a stream.
    pub fn new(shape: Shape) -> Self {
        Self {
            decoder: Decoder::new(shape.max_event_bytes),
            shape,
            usage: None,
            final_usage: false,
            content_events: 0,
            finishes: 0,
            finish_reason: None,
            started: false,
            done: false,
            delivered: None,
            owed: None,
        }
    }

    /// Remembers what it passes on, so that another engine can carry it on.
    #[must_use]
    pub fn followed(mut self) -> Self {
        self.delivered = Some(Delivered::default());
        self
    }

    /// What was passed on, if that is remembered.
    pub const fn delivered(&self) -> Option<&Delivered> {
        self.delivered.as_ref()
    }

    /// Another engine's bytes follow: half an event of the one before is dropped.
    pub fn rejoin(&mut self) {
        self.decoder = Decoder::new(self.shape.max_event_bytes);
        if self.finishes == 0 {
            // That of an engine that gave up.
            self.finish_reason = None;
        }
    }

    /// Takes what the engine sent and appends what the client gets.
    ///
    /// Errors: the engine reported a failure, sent something that is no stream, or ended without
    /// finishing. `out` then holds all that came before; the caller renders the error.
    pub fn feed(&mut self, chunk: Bytes, out: &mut BytesMut) -> Result<(), Error> {
        if self.done {
            return Ok(());
        }
        let overflow = self.decoder.feed(chunk).err();
        while let Some(frame) = self.decoder.next() {
            self.frame(&frame, out)?;
            if self.done {
                return Ok(());
            }
        }
        overflow.map_or(Ok(()), |cause| Err(Error::oversized_event(cause)))
    }

    /// The engine closed its side. Appends what is missing of a stream that had finished.
    pub fn end(&mut self, out: &mut BytesMut) -> Result<(), Error> {
        if self.done {
            return Ok(());
        }
        if let Some(frame) = self.decoder.finish()
            && let Some(data) = frame.data()
            && (data.starts_with(b"[DONE]") || Inspected::parse(&data).is_ok())
        {
            // The last event lacks only its blank line.
            let mut whole = BytesMut::from(&frame.raw[..]);
            whole.extend_from_slice(if frame.raw.ends_with(b"\n") {
                b"\n"
            } else {
                b"\n\n"
            });
            self.decoder = Decoder::new(self.shape.max_event_bytes);
            self.feed(whole.freeze(), out)?;
        }
        if self.done {
            return Ok(());
        }
        if self.finishes > 0 && self.finishes >= self.shape.choices {
            self.pay(out);
            out.extend_from_slice(DONE);
            self.done = true;
            return Ok(());
        }
        Err(Error::new(
            Kind::UpstreamError,
            "The engine closed the stream before it had finished.",
        ))
    }

    fn frame(&mut self, frame: &Frame, out: &mut BytesMut) -> Result<(), Error> {
        let Some(data) = frame.data() else {
            // Comments are keep-alives for the client too. Lines that mean nothing are no stream's.
            if frame
                .raw
                .split(|b| matches!(b, b'\n' | b'\r'))
                .all(is_known)
            {
                out.extend_from_slice(&frame.raw);
            }
            return Ok(());
        };
        if data.starts_with(b"[DONE]") {
            if self.finishes == 0 {
                return Err(Error::new(
                    Kind::UpstreamError,
                    "The engine ended the stream without a finish reason.",
                ));
            }
            self.done = true;
            self.pay(out);
            out.extend_from_slice(&frame.raw);
            return Ok(());
        }
        if !(data.starts_with(b"{") && data.trim_ascii_end().ends_with(b"}")) {
            return Err(not_json(&data));
        }
        if says(&USAGE, &data) || says(&FINISH, &data) || says(&ERROR, &data) {
            return self.inspect(frame, &data, out);
        }
        if self.started || EMPTY_CONTENT.find(&data).is_none() {
            self.content_events += 1;
        }
        self.follow(&data);
        self.pass(frame, &data, out);
        Ok(())
    }

    fn follow(&mut self, data: &Bytes) {
        if let Some(delivered) = &mut self.delivered {
            delivered.event(data);
        }
    }

    /// A frame whose JSON says something: usage, an end, or a failure.
    fn inspect(&mut self, frame: &Frame, data: &Bytes, out: &mut BytesMut) -> Result<(), Error> {
        let seen = Inspected::parse(data).map_err(|cause| not_json(data).cause(cause))?;
        if seen.failed() {
            return Err(scrub::stream_error(data, self.shape.asked));
        }
        let choices = seen.choices.as_deref().unwrap_or_default();
        if let Some(reason) = choices
            .iter()
            .filter_map(|choice| choice.finish_reason.as_deref())
            .find(|reason| gave_up(reason))
        {
            self.finish_reason = Some(reason.to_owned());
            return Err(given_up(reason));
        }
        self.follow(data);
        let mut finished = false;
        for reason in choices
            .iter()
            .filter_map(|choice| choice.finish_reason.as_deref())
        {
            finished = true;
            self.finishes += 1;
            self.finish_reason = Some(reason.to_owned());
        }
        if !choices.is_empty() && (!finished || choices.iter().any(Choice::has_text)) {
            self.content_events += 1;
        }
        let Some(raw_usage) = seen.usage.filter(|raw| raw.get() != "null") else {
            self.pass(frame, data, out);
            return Ok(());
        };
        if let Some(usage) = seen.usage() {
            self.usage = Some(usage);
            self.final_usage = choices.is_empty() || finished;
        }
        let wanted = if choices.is_empty() {
            self.shape.include_usage
        } else {
            self.shape.continuous_usage
        };
        if choices.is_empty() {
            self.owed = None;
        } else if finished && self.shape.include_usage && !self.shape.continuous_usage {
            // Some say it here alone.
            self.owed = usage_event(data);
        }
        if wanted {
            self.pass(frame, data, out);
        } else if !choices.is_empty() {
            let null = self.shape.completions || TOOL_CALLS.find(data).is_some();
            without_usage(frame, data, raw_usage.get(), null, out);
            self.started = true;
        }
        Ok(())
    }

    /// Tells the usage that the client asked for, where the engine had no event for it.
    fn pay(&mut self, out: &mut BytesMut) {
        if let Some(event) = self.owed.take() {
            out.extend_from_slice(&event);
        }
    }

    fn pass(&mut self, frame: &Frame, data: &[u8], out: &mut BytesMut) {
        self.started = true;
        if self.shape.completions && NULL_TEXT.find(data).is_some() {
            mend_null_text(&frame.raw, out);
            return;
        }
        out.extend_from_slice(&frame.raw);
    }

    /// The end marker, or an equivalent, has been passed on.
    pub const fn is_done(&self) -> bool {
        self.done
    }

    /// Something of the answer has been passed on: the point of no return.
    pub const fn is_started(&self) -> bool {
        self.started
    }

    /// Events that carried text or part of a tool call.
    pub const fn content_events(&self) -> u64 {
        self.content_events
    }

    /// The engine's latest usage, and whether it was the final one.
    pub const fn usage(&self) -> Option<(Usage, bool)> {
        match self.usage {
            Some(usage) => Some((usage, self.final_usage)),
            None => None,
        }
    }

    /// The last finish reason that was seen.
    pub fn finish_reason(&self) -> Option<&str> {
        self.finish_reason.as_deref()
    }
}

/// Whether a finish reason says that the engine gave up, in an answer that looks whole: vLLM and
/// SGLang say `abort` of a request that was stopped, OpenRouter `error` of a provider that failed.
pub fn gave_up(finish_reason: &str) -> bool {
    matches!(finish_reason, "abort" | "error")
}

/// What an answer is that ends so.
pub fn given_up(finish_reason: &str) -> Error {
    Error::new(
        Kind::UpstreamError,
        "The engine gave up before it had finished.",
    )
    .cause(format_args!("finish reason {finish_reason}"))
}

/// Appends `error` as the stream's last event. No end marker follows: an SDK raises on the event.
pub fn error_event(error: &Error, out: &mut BytesMut) {
    out.extend_from_slice(b"data: ");
    out.extend_from_slice(&error.openai_body());
    out.extend_from_slice(b"\n\n");
}

/// Replaces `"text":null` by `"text":""`, which SDKs can concatenate.
pub fn mend_null_text(raw: &[u8], out: &mut BytesMut) {
    let mut from = 0;
    for at in NULL_TEXT.find_iter(raw) {
        out.extend_from_slice(raw.get(from..at).unwrap_or_default());
        out.extend_from_slice(b"\"text\":\"\"");
        from = at + NULL_TEXT.needle().len();
    }
    out.extend_from_slice(raw.get(from..).unwrap_or_default());
}

/// Whether `data` has the member with a value other than null.
fn says(key: &Finder<'_>, data: &[u8]) -> bool {
    key.find_iter(data).any(|at| {
        let rest = data
            .get(at + key.needle().len()..)
            .unwrap_or_default()
            .trim_ascii_start();
        rest.strip_prefix(b":")
            .is_some_and(|value| !value.trim_ascii_start().starts_with(b"null"))
    })
}

/// The usage in an event's data as an event of its own, without choices.
fn usage_event(data: &[u8]) -> Option<Bytes> {
    let mut chunk: serde_json::Map<String, serde_json::Value> =
        serde_json::from_slice(data).ok()?;
    chunk.insert("choices".into(), serde_json::Value::Array(Vec::new()));
    let mut event = b"data: ".to_vec();
    serde_json::to_writer(&mut event, &chunk).ok()?;
    event.extend_from_slice(b"\n\n");
    Some(event.into())
}

/// Appends `frame` with its usage member taken out, or set to null.
fn without_usage(frame: &Frame, data: &Bytes, usage: &str, null: bool, out: &mut BytesMut) {
    let Some((start, end)) = member(data, usage, null) else {
        out.extend_from_slice(&frame.raw);
        return;
    };
    let head = data.get(..start).unwrap_or_default();
    let tail = data.get(end..).unwrap_or_default();
    // Where the data stands in the frame; an event of several data lines is written as one.
    let offset = (data.as_ptr() as usize).wrapping_sub(frame.raw.as_ptr() as usize);
    let in_place = offset
        .checked_add(data.len())
        .is_some_and(|stop| stop <= frame.raw.len());
    let (before, after) = if in_place {
        (
            frame.raw.get(..offset),
            frame.raw.get(offset + data.len()..),
        )
    } else {
        (Some(&b"data: "[..]), Some(&b"\n\n"[..]))
    };
    out.extend_from_slice(before.unwrap_or_default());
    out.extend_from_slice(head);
    if null {
        out.extend_from_slice(b"null");
    }
    out.extend_from_slice(tail);
    out.extend_from_slice(after.unwrap_or_default());
}

/// The bytes to cut: the value alone, or the whole member with one comma beside it.
fn member(data: &[u8], value: &str, value_only: bool) -> Option<(usize, usize)> {
    let start = (value.as_ptr() as usize).checked_sub(data.as_ptr() as usize)?;
    let end = start
        .checked_add(value.len())
        .filter(|end| *end <= data.len())?;
    if value_only {
        return Some((start, end));
    }
    let key = data
        .get(..start)?
        .trim_ascii_end()
        .strip_suffix(b":")?
        .trim_ascii_end();
    let before = key.strip_suffix(b"\"usage\"")?.trim_ascii_end();
    if let Some(left) = before.strip_suffix(b",") {
        return Some((left.len(), end));
    }
    let tail = data.get(end..)?;
    let rest = tail.trim_ascii_start();
    let gap = tail.len() - rest.len();
    let comma = usize::from(rest.starts_with(b","));
    Some((before.len(), end + if comma == 1 { gap + 1 } else { 0 }))
}

/// Whether a line is blank, a comment or a field of WHATWG HTML §9.2.6 other than data.
fn is_known(line: &[u8]) -> bool {
    line.is_empty()
        || [&b":"[..], b"event:", b"id:", b"retry:"]
            .iter()
            .any(|start| line.starts_with(start))
}

fn not_json(data: &[u8]) -> Error {
    let excerpt = String::from_utf8_lossy(data.get(..200).unwrap_or(data)).into_owned();
    Error::new(
        Kind::UpstreamError,
        "The engine sent an event that is not JSON.",
    )
    .cause(excerpt)
}
