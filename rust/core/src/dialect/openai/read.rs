//! Reading a stream.
use bytes::Bytes;
use serde::Deserialize;
use serde_json::value::RawValue;

use crate::error::{Error, Kind};
use crate::scrub::{self, Asked};

use super::super::Sink;
use super::super::calls::call_id;
use super::super::chat::{Event, Usage};
use super::super::frames::{Frames, cut_off, unreadable};
use super::super::json::{Path, Text};
use super::answer::{Extra, Logprobs, known_id, says_something, sequence, stop};
use super::format::{Detail, Piece};

/// Most calls of one answer.
const MAX_CALLS: usize = 1024;

#[derive(Deserialize)]
struct Chunk<'a> {
    #[serde(borrow, default)]
    choices: Option<Vec<Choice<'a>>>,
    #[serde(borrow, default)]
    usage: Option<&'a RawValue>,
    #[serde(borrow, default)]
    error: Option<&'a RawValue>,
}

#[derive(Deserialize)]
struct Choice<'a> {
    #[serde(default)]
    index: Option<u32>,
    #[serde(borrow, default)]
    delta: Option<Delta<'a>>,
    #[serde(borrow, default)]
    finish_reason: Option<Text<'a>>,
    #[serde(borrow, default)]
    logprobs: Option<Logprobs<'a>>,
    #[serde(borrow, default)]
    matched_stop: Option<&'a RawValue>,
    #[serde(borrow, default)]
    stop_reason: Option<&'a RawValue>,
}

#[derive(Deserialize)]
struct Delta<'a> {
    #[serde(borrow, default)]
    content: Option<Text<'a>>,
    #[serde(borrow, default)]
    refusal: Option<Text<'a>>,
    #[serde(borrow, default)]
    reasoning_content: Option<Text<'a>>,
    /// vLLM's name.
    #[serde(borrow, default)]
    reasoning: Option<Text<'a>>,
    #[serde(borrow, default)]
    reasoning_details: Option<Vec<&'a RawValue>>,
    #[serde(borrow, default)]
    tool_calls: Option<Vec<CallDelta<'a>>>,
}

#[derive(Deserialize)]
struct CallDelta<'a> {
    #[serde(default)]
    index: Option<u32>,
    #[serde(borrow, default)]
    id: Option<Text<'a>>,
    #[serde(borrow, default)]
    function: Option<FunctionDelta<'a>>,
    #[serde(borrow, default)]
    extra_content: Option<Extra<'a>>,
}

#[derive(Deserialize)]
struct FunctionDelta<'a> {
    #[serde(borrow, default)]
    name: Option<Text<'a>>,
    #[serde(borrow, default)]
    arguments: Option<Text<'a>>,
}

/// Reads chunks.
pub(crate) struct Reader {
    frames: Frames,
    state: State,
}

#[derive(Default)]
struct State {
    started: bool,
    finished: bool,
    ended: bool,
    /// The answer's id, for calls that have none.
    id: String,
    /// The engine's number and id of each call, in order of their beginning.
    calls: Vec<(u32, String)>,
}

impl Reader {
    /// id: the answer's, for calls that have none. max_event_bytes: the longest event taken.
    pub(crate) fn new(id: String, max_event_bytes: usize) -> Self {
        Self {
            frames: Frames::new(max_event_bytes),
            state: State {
                id,
                ..State::default()
            },
        }
    }

    /// Takes bytes of the stream.
    pub(crate) fn feed(&mut self, chunk: Bytes, sink: &mut impl Sink) -> Result<(), Error> {
        let state = &mut self.state;
        self.frames.feed(chunk, |data| state.event(data, sink))
    }

    /// Takes the stream's end.
    pub(crate) fn end(&mut self, sink: &mut impl Sink) -> Result<(), Error> {
        let state = &mut self.state;
        self.frames.end(|data| state.event(data, sink))?;
        match (state.ended, state.finished) {
            (true, _) => Ok(()),
            // What is missing is only the marker.
            (false, true) => state.done(sink),
            (false, false) => Err(cut_off()),
        }
    }
}

impl State {
    fn done(&mut self, sink: &mut impl Sink) -> Result<(), Error> {
        self.ended = true;
        sink.event(Event::End)
    }

    fn event(&mut self, data: &str, sink: &mut impl Sink) -> Result<(), Error> {
        if self.ended {
            return Ok(());
        }
        if data.starts_with("[DONE]") {
            if !self.finished {
                return Err(Error::new(
                    Kind::UpstreamError,
                    "The engine ended the stream without a finish reason.",
                ));
            }
            return self.done(sink);
        }
        let chunk: Chunk<'_> = serde_json::from_str(data).map_err(unreadable)?;
        if chunk.error.is_some_and(says_something) {
            return Err(scrub::stream_error(data.as_bytes(), Asked::default()));
        }
        if !std::mem::replace(&mut self.started, true) {
            sink.event(Event::Start)?;
        }
        // Before what it counts: the input's is known with the first token.
        if let Some(usage) = chunk.usage.and_then(|raw| Usage::parse(raw.get())) {
            sink.event(Event::Usage(usage))?;
        }
        for choice in chunk.choices.into_iter().flatten() {
            if choice.index.unwrap_or(0) == 0 {
                self.choice(choice, sink)?;
            }
        }
        Ok(())
    }

    fn choice(&mut self, choice: Choice<'_>, sink: &mut impl Sink) -> Result<(), Error> {
        if let Some(list) = choice.logprobs.and_then(Logprobs::listed) {
            sink.event(Event::Logprobs(list))?;
        }
        if let Some(delta) = choice.delta {
            self.delta(delta, sink)?;
        }
        // Some say "" until they know.
        let Some(reason) = choice.finish_reason.filter(|reason| !reason.0.is_empty()) else {
            return Ok(());
        };
        let sequence = choice
            .matched_stop
            .or(choice.stop_reason)
            .and_then(sequence);
        let stop = stop(Some(&reason.0), !self.calls.is_empty(), sequence.is_some())?;
        if std::mem::replace(&mut self.finished, true) {
            return Ok(());
        }
        sink.event(Event::Finish { stop, sequence })
    }

    fn delta(&mut self, delta: Delta<'_>, sink: &mut impl Sink) -> Result<(), Error> {
        let full = |text: &Text<'_>| !text.0.is_empty();
        let mut told = false;
        if let Some(text) = delta.reasoning_content.or(delta.reasoning).filter(full) {
            told = true;
            sink.event(Event::Reasoning(text.0))?;
        }
        for raw in delta.reasoning_details.into_iter().flatten() {
            match Detail::parse(raw, &Path::ROOT)
                .map_err(unreadable)?
                .into_piece()
            {
                Piece::Thought { text, signature } => {
                    if let Some(text) = text.filter(|text| !told && !text.is_empty()) {
                        sink.event(Event::Reasoning(text))?;
                    }
                    if let Some(signature) = signature {
                        sink.event(Event::Signature(signature))?;
                    }
                }
                Piece::Redacted(data) => sink.event(Event::Redacted(data))?,
                Piece::Nothing => {}
            }
        }
        if let Some(text) = delta.content.filter(full) {
            sink.event(Event::Text(text.0))?;
        }
        if let Some(text) = delta.refusal.filter(full) {
            sink.event(Event::Refusal(text.0))?;
        }
        for call in delta.tool_calls.into_iter().flatten() {
            self.call(call, sink)?;
        }
        Ok(())
    }

    fn call(&mut self, call: CallDelta<'_>, sink: &mut impl Sink) -> Result<(), Error> {
        let (name, arguments) = match call.function {
            Some(function) => (function.name, function.arguments),
            None => (None, None),
        };
        let name = name.filter(|name| !name.0.is_empty());
        let id = known_id(call.id);
        let known = match call.index {
            // Some engines number all their calls alike: another id and name begin another one.
            Some(number) => self.calls.iter().rposition(|(other, known)| {
                let another = id.as_ref().is_some_and(|id| id != known) && name.is_some();
                *other == number && !another
            }),
            // Without a number, what has an id begins a call.
            None if id.is_some() => None,
            None => self.calls.len().checked_sub(1),
        };
        let index = if let Some(index) = known {
            index as u32
        } else {
            let Some(name) = name else {
                return Err(unreadable("a tool call without a name"));
            };
            if self.calls.len() >= MAX_CALLS {
                return Err(unreadable("too many tool calls"));
            }
            let index = self.calls.len() as u32;
            let id = id.unwrap_or_else(|| call_id(&self.id, index).into());
            self.calls
                .push((call.index.unwrap_or(index), id.clone().into_owned()));
            sink.event(Event::ToolStart {
                index,
                id,
                name: name.0,
                signature: call.extra_content.and_then(Extra::signature),
            })?;
            index
        };
        match arguments.filter(|json| !json.0.is_empty()) {
            Some(json) => sink.event(Event::ToolArguments {
                index,
                json: json.0,
            }),
            None => Ok(()),
        }
    }
}
