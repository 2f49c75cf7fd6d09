//! A stream, read: messages of AWS's event stream.
use bytes::Bytes;
use serde::Deserialize;
use serde::de::{DeserializeOwned, IgnoredAny};

use crate::error::{Error, Kind};

use super::super::Sink;
use super::super::chat::Event;
use super::super::eventstream::{Decoder, Malformed, Message};
use super::super::failure::told;
use super::super::frames::{cut_off, unreadable};
use super::wire::{Counts, exception, signature, stop};

/// Most calls that are open at once; models make them one after the other.
const MAX_OPEN: usize = 128;

/// Reads the bytes of a stream.
pub(crate) struct Reader {
    decoder: Decoder,
    state: State,
}

#[derive(Default)]
struct State {
    started: bool,
    /// Calls that are not closed.
    calls: Vec<Call>,
    next_call: u32,
    finished: bool,
}

struct Call {
    /// Its block's place.
    block: u32,
    index: u32,
    has_input: bool,
}

#[derive(Deserialize)]
#[serde(rename_all = "camelCase")]
struct BlockStart {
    content_block_index: u32,
    start: Start,
}

#[derive(Deserialize)]
#[serde(rename_all = "camelCase")]
struct Start {
    #[serde(default)]
    tool_use: Option<ToolStart>,
}

#[derive(Deserialize)]
#[serde(rename_all = "camelCase")]
struct ToolStart {
    tool_use_id: String,
    name: String,
}

#[derive(Deserialize)]
#[serde(rename_all = "camelCase")]
struct BlockDelta {
    content_block_index: u32,
    delta: Delta,
}

/// A union: one of them is there.
#[derive(Deserialize)]
#[serde(rename_all = "camelCase")]
struct Delta {
    #[serde(default)]
    text: Option<String>,
    #[serde(default)]
    tool_use: Option<ToolDelta>,
    #[serde(default)]
    reasoning_content: Option<ReasoningDelta>,
    #[serde(default)]
    image: Option<IgnoredAny>,
}

#[derive(Deserialize)]
struct ToolDelta {
    input: String,
}

#[derive(Deserialize)]
#[serde(rename_all = "camelCase")]
struct ReasoningDelta {
    #[serde(default)]
    text: Option<String>,
    #[serde(default)]
    signature: Option<String>,
    #[serde(default)]
    redacted_content: Option<String>,
}

#[derive(Deserialize)]
#[serde(rename_all = "camelCase")]
struct BlockStop {
    content_block_index: u32,
}

#[derive(Deserialize)]
#[serde(rename_all = "camelCase")]
struct MessageStop {
    stop_reason: String,
    #[serde(default)]
    additional_model_response_fields: Option<Additional>,
}

#[derive(Deserialize)]
struct Additional {
    #[serde(default)]
    stop_sequence: Option<String>,
}

#[derive(Deserialize)]
struct Metadata {
    #[serde(default)]
    usage: Option<Counts>,
}

impl Reader {
    /// max_event_bytes: the longest message taken.
    pub(crate) fn new(max_event_bytes: usize) -> Self {
        Self {
            decoder: Decoder::new(max_event_bytes),
            state: State::default(),
        }
    }

    /// Takes the stream's next bytes. Errors: the sink's, an exception that the stream tells, or
    /// `UpstreamError` for what is no stream; after all events before it.
    pub(crate) fn feed(&mut self, chunk: Bytes, sink: &mut impl Sink) -> Result<(), Error> {
        self.decoder.feed(chunk);
        while let Some(message) = self.decoder.next().map_err(malformed)? {
            self.state.message(&message, sink)?;
        }
        Ok(())
    }

    /// The stream has ended. Errors: `UpstreamError` if it was cut off.
    pub(crate) fn end(&mut self, sink: &mut impl Sink) -> Result<(), Error> {
        if self.decoder.finish().is_err() || !self.state.finished {
            return Err(cut_off());
        }
        sink.event(Event::End)
    }
}

fn malformed(cause: Malformed) -> Error {
    let message = match cause {
        Malformed::TooLarge { .. } => "The engine sent an event that is too large.",
        _ => "The engine sent an event that could not be read.",
    };
    Error::new(Kind::UpstreamError, message).cause(cause)
}

impl State {
    fn message(&mut self, message: &Message, sink: &mut impl Sink) -> Result<(), Error> {
        match message.text(":message-type") {
            Some("event") => {}
            Some("exception") => {
                let name = message.text(":exception-type").unwrap_or_default();
                return Err(exception(name, &message.payload));
            }
            Some("error") => {
                let code = message.text(":error-code").unwrap_or_default();
                let said = message.text(":error-message").unwrap_or_default();
                let cause = format!("in the stream: {code} {said}");
                return Err(told(Kind::UpstreamError, None, cause));
            }
            _ => return Err(unreadable("a message of no known type")),
        }
        if !std::mem::replace(&mut self.started, true) {
            sink.event(Event::Start)?;
        }
        let payload = &message.payload;
        match message.text(":event-type") {
            Some("contentBlockStart") => self.start(read(payload)?, sink),
            Some("contentBlockDelta") => self.delta(read(payload)?, sink),
            Some("contentBlockStop") => self.stop(&read(payload)?, sink),
            Some("messageStop") => {
                let end: MessageStop = read(payload)?;
                if std::mem::replace(&mut self.finished, true) {
                    return Ok(());
                }
                let fields = end.additional_model_response_fields;
                sink.event(Event::Finish {
                    stop: stop(&end.stop_reason)?,
                    sequence: fields
                        .and_then(|fields| fields.stop_sequence)
                        .map(Into::into),
                })
            }
            Some("metadata") => {
                let metadata: Metadata = read(payload)?;
                match metadata.usage.and_then(|counts| counts.usage()) {
                    Some(usage) => sink.event(Event::Usage(usage)),
                    None => Ok(()),
                }
            }
            // `messageStart`, which says nothing more, and events not known yet.
            _ => Ok(()),
        }
    }

    fn start(&mut self, block: BlockStart, sink: &mut impl Sink) -> Result<(), Error> {
        self.runs()?;
        // Text and thoughts begin with their first delta.
        let Some(call) = block.start.tool_use else {
            return Ok(());
        };
        if self.calls.len() == MAX_OPEN {
            return Err(unreadable("too many open calls"));
        }
        let index = self.next_call;
        self.next_call += 1;
        self.calls.push(Call {
            block: block.content_block_index,
            index,
            has_input: false,
        });
        sink.event(Event::ToolStart {
            index,
            id: call.tool_use_id.into(),
            name: call.name.into(),
            signature: None,
        })
    }

    fn delta(&mut self, block: BlockDelta, sink: &mut impl Sink) -> Result<(), Error> {
        self.runs()?;
        let delta = block.delta;
        if let Some(text) = delta.text {
            return sink.event(Event::Text(text.into()));
        }
        if let Some(call) = delta.tool_use {
            let at = block.content_block_index;
            let Some(open) = self.calls.iter_mut().find(|call| call.block == at) else {
                return Err(unreadable("arguments of a call that had not begun"));
            };
            if call.input.is_empty() {
                return Ok(());
            }
            open.has_input = true;
            return sink.event(Event::ToolArguments {
                index: open.index,
                json: call.input.into(),
            });
        }
        if let Some(reasoning) = delta.reasoning_content {
            if let Some(text) = reasoning.text {
                sink.event(Event::Reasoning(text.into()))?;
            }
            if let Some(value) = reasoning.signature {
                sink.event(Event::Signature(signature(value.into())))?;
            }
            if let Some(data) = reasoning.redacted_content {
                sink.event(Event::Redacted(signature(data.into())))?;
            }
            return Ok(());
        }
        if delta.image.is_some() {
            return Err(unreadable("an answer that is not text"));
        }
        // Citations have no place elsewhere; what they quote is in the text.
        Ok(())
    }

    fn stop(&mut self, stop: &BlockStop, sink: &mut impl Sink) -> Result<(), Error> {
        let at = stop.content_block_index;
        let Some(open) = self.calls.iter().position(|call| call.block == at) else {
            return Ok(());
        };
        let call = self.calls.remove(open);
        // Of a call without arguments none are sent.
        if !call.has_input {
            sink.event(Event::ToolArguments {
                index: call.index,
                json: "{}".into(),
            })?;
        }
        sink.event(Event::ToolEnd { index: call.index })
    }

    fn runs(&self) -> Result<(), Error> {
        if self.finished {
            return Err(unreadable("more of an answer that had ended"));
        }
        Ok(())
    }
}

fn read<T: DeserializeOwned>(payload: &[u8]) -> Result<T, Error> {
    // An array would be read as an object whose members come in order.
    if !payload.trim_ascii_start().starts_with(b"{") {
        return Err(unreadable("not an object"));
    }
    serde_json::from_slice(payload).map_err(unreadable)
}
