//! Reading a stream.
use bytes::Bytes;
use serde::Deserialize;
use serde_json::value::RawValue;

use crate::error::Error;

use super::super::Sink;
use super::super::chat::{Event, Stop, Usage};
use super::super::frames::{Frames, cut_off, unreadable};
use super::super::json::Text;
use super::answer::{Fault, StopDetails, stop};
use super::block::{Block, signature};
use super::count::Counts;

/// Most blocks that are open at once; Anthropic opens one after the other.
const MAX_OPEN: usize = 64;

#[derive(Deserialize)]
struct Wire<'a> {
    #[serde(borrow)]
    r#type: Text<'a>,
    #[serde(default)]
    index: Option<u32>,
    #[serde(borrow, default)]
    delta: Option<Delta<'a>>,
    #[serde(borrow, default)]
    content_block: Option<Block<'a>>,
    #[serde(borrow, default)]
    message: Option<&'a RawValue>,
    #[serde(default)]
    usage: Option<Counts>,
    #[serde(borrow, default)]
    error: Option<Fault<'a>>,
}

#[derive(Deserialize)]
struct Delta<'a> {
    #[serde(borrow, default)]
    r#type: Option<Text<'a>>,
    #[serde(borrow, default)]
    text: Option<Text<'a>>,
    #[serde(borrow, default)]
    partial_json: Option<Text<'a>>,
    #[serde(borrow, default)]
    thinking: Option<Text<'a>>,
    #[serde(borrow, default)]
    signature: Option<Text<'a>>,
    #[serde(borrow, default)]
    stop_reason: Option<Text<'a>>,
    #[serde(borrow, default)]
    stop_sequence: Option<Text<'a>>,
    #[serde(borrow, default)]
    stop_details: Option<StopDetails<'a>>,
}

#[derive(Deserialize)]
struct MessageStart {
    #[serde(default)]
    usage: Option<Counts>,
}

/// Reads events.
pub(crate) struct Reader {
    frames: Frames,
    state: State,
}

#[derive(Default)]
struct State {
    started: bool,
    finished: bool,
    ended: bool,
    counts: Counts,
    /// Calls that have begun: numbers of calls count no other blocks.
    calls: u32,
    /// Blocks that are open, by their numbers.
    open: Vec<(u32, Open)>,
}

#[derive(Clone, Copy)]
enum Open {
    Text,
    Thinking,
    Call {
        index: u32,
        /// It has arguments.
        told: bool,
    },
    /// What no other dialect has.
    Other,
}

impl Reader {
    /// max_event_bytes: the longest event taken.
    pub(crate) fn new(max_event_bytes: usize) -> Self {
        Self {
            frames: Frames::new(max_event_bytes),
            state: State::default(),
        }
    }

    /// The counts so far: the input's come with the message's start.
    pub(crate) fn usage(&self) -> Option<Usage> {
        self.state.counts.usage()
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
        if state.ended { Ok(()) } else { Err(cut_off()) }
    }
}

impl State {
    fn event(&mut self, data: &str, sink: &mut impl Sink) -> Result<(), Error> {
        if self.ended {
            return Ok(());
        }
        let wire: Wire<'_> = serde_json::from_str(data).map_err(unreadable)?;
        match &*wire.r#type.0 {
            "content_block_delta" => self.delta(wire, sink),
            "content_block_start" => self.block_start(wire, sink),
            "content_block_stop" => self.block_stop(wire.index, sink),
            "message_start" => self.start(&wire, sink),
            "message_delta" => self.message_delta(wire, sink),
            "message_stop" => {
                if !self.finished {
                    return Err(cut_off());
                }
                self.ended = true;
                sink.event(Event::End)
            }
            "ping" => sink.event(Event::Ping),
            "error" => Err(wire
                .error
                .map_or_else(|| unreadable("an empty error"), Fault::into_error)),
            // There may be new ones any time.
            _ => Ok(()),
        }
    }

    fn start(&mut self, wire: &Wire<'_>, sink: &mut impl Sink) -> Result<(), Error> {
        let message = wire.message.ok_or_else(|| unreadable("no message"))?;
        let message: MessageStart = serde_json::from_str(message.get()).map_err(unreadable)?;
        if let Some(counts) = message.usage {
            self.counts.update(&counts);
        }
        if std::mem::replace(&mut self.started, true) {
            return Ok(());
        }
        sink.event(Event::Start)
    }

    fn block_start(&mut self, wire: Wire<'_>, sink: &mut impl Sink) -> Result<(), Error> {
        let (Some(number), Some(block)) = (wire.index, wire.content_block) else {
            return Err(unreadable("a block without a number or content"));
        };
        if self.open.len() >= MAX_OPEN {
            return Err(unreadable("too many open blocks"));
        }
        let open = match &*block.r#type.0 {
            "text" => Open::Text,
            "thinking" => Open::Thinking,
            "tool_use" => Open::Call {
                index: self.calls,
                told: false,
            },
            _ => Open::Other,
        };
        self.open.retain(|(other, _)| *other != number);
        self.open.push((number, open));
        if let Some(text) = block.text.filter(|text| !text.0.is_empty())
            && matches!(open, Open::Text)
        {
            sink.event(Event::Text(text.0))?;
        }
        if let Some(text) = block.thinking.filter(|text| !text.0.is_empty())
            && matches!(open, Open::Thinking)
        {
            sink.event(Event::Reasoning(text.0))?;
        }
        if let Some(value) = block.signature.and_then(|text| signature(text.0))
            && matches!(open, Open::Thinking)
        {
            sink.event(Event::Signature(value))?;
        }
        if block.r#type.0 == "redacted_thinking"
            && let Some(data) = block.data.and_then(|text| signature(text.0))
        {
            sink.event(Event::Redacted(data))?;
        }
        let Open::Call { index, .. } = open else {
            return Ok(());
        };
        let (Some(id), Some(name)) = (block.id, block.name) else {
            return Err(unreadable("a tool_use without an id or a name"));
        };
        self.calls += 1;
        sink.event(Event::ToolStart {
            index,
            id: id.0,
            name: name.0,
            signature: None,
        })?;
        // As a rule the input comes in deltas, and is empty here.
        match block.input.map(RawValue::get) {
            Some(json) if json.bytes().any(|byte| byte == b':') => {
                self.arguments(number, index, json.into(), sink)
            }
            _ => Ok(()),
        }
    }

    fn delta(&mut self, wire: Wire<'_>, sink: &mut impl Sink) -> Result<(), Error> {
        let open = self
            .open
            .iter()
            .find(|(number, _)| Some(*number) == wire.index)
            .copied();
        let (Some((number, open)), Some(delta)) = (open, wire.delta) else {
            return Err(unreadable("a delta outside of a block"));
        };
        let kind = delta.r#type.as_ref().map_or("", |text| &*text.0);
        match (open, kind) {
            (Open::Text, "text_delta") => match delta.text {
                Some(text) if !text.0.is_empty() => sink.event(Event::Text(text.0)),
                _ => Ok(()),
            },
            (Open::Thinking, "thinking_delta") => match delta.thinking {
                Some(text) if !text.0.is_empty() => sink.event(Event::Reasoning(text.0)),
                _ => Ok(()),
            },
            (Open::Thinking, "signature_delta") => {
                match delta.signature.and_then(|text| signature(text.0)) {
                    Some(value) => sink.event(Event::Signature(value)),
                    None => Ok(()),
                }
            }
            (Open::Call { index, .. }, "input_json_delta") => match delta.partial_json {
                Some(json) if !json.0.is_empty() => self.arguments(number, index, json.0, sink),
                _ => Ok(()),
            },
            _ => Ok(()),
        }
    }

    fn arguments(
        &mut self,
        number: u32,
        index: u32,
        json: std::borrow::Cow<'_, str>,
        sink: &mut impl Sink,
    ) -> Result<(), Error> {
        for (other, open) in &mut self.open {
            if *other == number
                && let Open::Call { told, .. } = open
            {
                *told = true;
            }
        }
        sink.event(Event::ToolArguments { index, json })
    }

    fn block_stop(&mut self, number: Option<u32>, sink: &mut impl Sink) -> Result<(), Error> {
        let at = self
            .open
            .iter()
            .position(|(other, _)| Some(*other) == number);
        let Some(at) = at else {
            return Ok(());
        };
        let (_, Open::Call { index, told }) = self.open.remove(at) else {
            return Ok(());
        };
        if !told {
            sink.event(Event::ToolArguments {
                index,
                json: "{}".into(),
            })?;
        }
        sink.event(Event::ToolEnd { index })
    }

    fn message_delta(&mut self, wire: Wire<'_>, sink: &mut impl Sink) -> Result<(), Error> {
        if let Some(counts) = wire.usage {
            self.counts.update(&counts);
        }
        if let Some(delta) = wire.delta
            && let Some(reason) = delta.stop_reason
        {
            let stop = stop(Some(&reason.0))?;
            if !std::mem::replace(&mut self.finished, true) {
                if let Some(why) = delta.stop_details.and_then(|details| details.explanation)
                    && stop == Stop::Filtered
                {
                    sink.event(Event::Refusal(why.0))?;
                }
                sink.event(Event::Finish {
                    stop,
                    sequence: delta.stop_sequence.map(|text| text.0),
                })?;
            }
        }
        match self.counts.usage() {
            Some(usage) => sink.event(Event::Usage(usage)),
            None => Ok(()),
        }
    }
}
