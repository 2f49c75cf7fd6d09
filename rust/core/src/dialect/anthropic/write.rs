//! Writing a stream.
use bytes::BytesMut;

use crate::error::{Error, Kind};

use super::super::Context;
use super::super::chat::{Event, Stop, Usage};
use super::super::json::Object;
use super::answer::reason;
use super::block::{redacted, signed, thinking};
use super::count;

/// Writes named events: blocks one after the other, each closed before the next, and the end only
/// once all is known. The message starts with its first content, as usage may come with that; it is 0
/// where it does not, and told in full where the message ends.
pub(crate) struct Writer {
    context: Context,
    started: bool,
    open: Open,
    /// The number of the open block, else of the next one.
    block: u32,
    finish: Option<(Stop, Option<String>)>,
    usage: Option<Usage>,
}

#[derive(Clone, Copy, PartialEq, Eq)]
enum Open {
    Nothing,
    Text,
    Thinking,
    Call(u32),
}

impl Writer {
    /// context: what the message says of itself.
    pub(crate) const fn new(context: Context) -> Self {
        Self {
            context,
            started: false,
            open: Open::Nothing,
            block: 0,
            finish: None,
            usage: None,
        }
    }

    /// Appends what `event` is. Errors: a call goes on after the next block has begun.
    pub(crate) fn event(&mut self, event: &Event<'_>, out: &mut BytesMut) -> Result<(), Error> {
        match event {
            Event::Usage(usage) => {
                self.usage = Some(*usage);
                return Ok(());
            }
            Event::Ping => {
                say(out, "ping", |_| {});
                return Ok(());
            }
            Event::Start => return Ok(()),
            _ => {}
        }
        if !std::mem::replace(&mut self.started, true) {
            self.start(out);
        }
        match event {
            Event::Start | Event::Usage(_) | Event::Ping | Event::Logprobs(_) => {}
            Event::Text(text) | Event::Refusal(text) => {
                self.open(Open::Text, out, |block| {
                    block.put("type", "text");
                    block.put("text", "");
                });
                self.delta(out, "text_delta", "text", text);
            }
            Event::Reasoning(text) => {
                self.think(out);
                self.delta(out, "thinking_delta", "thinking", text);
            }
            Event::Signature(value) => {
                self.think(out);
                self.delta(out, "signature_delta", "signature", &signed(value));
                self.close(out);
            }
            Event::Redacted(data) => {
                self.close(out);
                self.open(Open::Thinking, out, |block| redacted(block, data));
                self.close(out);
            }
            Event::ToolStart {
                index,
                id,
                name,
                signature,
            } => {
                self.close(out);
                if let Some(value) = signature {
                    self.think(out);
                    self.delta(out, "signature_delta", "signature", &signed(value));
                    self.close(out);
                }
                self.open(Open::Call(*index), out, |block| {
                    block.put("type", "tool_use");
                    block.put("id", id);
                    block.put("name", name);
                    block.object("input", |_| {});
                });
            }
            Event::ToolArguments { index, json } => {
                if self.open != Open::Call(*index) {
                    return Err(Error::new(
                        Kind::UpstreamError,
                        "The engine mixed tool calls with each other.",
                    ));
                }
                self.delta(out, "input_json_delta", "partial_json", json);
            }
            Event::ToolEnd { index } => {
                if self.open == Open::Call(*index) {
                    self.close(out);
                }
            }
            Event::Finish { stop, sequence } => {
                self.close(out);
                self.finish = Some((*stop, sequence.as_deref().map(str::to_owned)));
            }
            Event::End => self.end(out),
        }
        Ok(())
    }

    fn start(&self, out: &mut BytesMut) {
        say(out, "message_start", |event| {
            event.object("message", |message| {
                message.put("id", &self.context.id);
                message.put("type", "message");
                message.put("role", "assistant");
                message.put("model", &self.context.model);
                message.list("content", |_| {});
                message.put("stop_reason", ());
                message.put("stop_sequence", ());
                message.object("usage", |usage| {
                    count::write(self.usage.unwrap_or_default(), usage);
                });
            });
        });
    }

    fn think(&mut self, out: &mut BytesMut) {
        self.open(Open::Thinking, out, |block| thinking(block, "", None));
    }

    /// Begins a block, unless one of its kind is open.
    fn open(&mut self, kind: Open, out: &mut BytesMut, fill: impl FnOnce(&mut Object<'_>)) {
        if self.open == kind {
            return;
        }
        self.close(out);
        self.open = kind;
        say(out, "content_block_start", |event| {
            event.put("index", self.block);
            event.object("content_block", fill);
        });
    }

    fn delta(&self, out: &mut BytesMut, kind: &str, name: &str, text: &str) {
        say(out, "content_block_delta", |event| {
            event.put("index", self.block);
            event.object("delta", |delta| {
                delta.put("type", kind);
                delta.put(name, text);
            });
        });
    }

    fn close(&mut self, out: &mut BytesMut) {
        if self.open == Open::Nothing {
            return;
        }
        self.open = Open::Nothing;
        say(out, "content_block_stop", |event| {
            event.put("index", self.block);
        });
        self.block += 1;
    }

    fn end(&mut self, out: &mut BytesMut) {
        self.close(out);
        if let Some((stop, sequence)) = &self.finish {
            say(out, "message_delta", |event| {
                event.object("delta", |delta| {
                    delta.put("stop_reason", reason(*stop));
                    delta.put("stop_sequence", sequence);
                });
                event.object("usage", |usage| {
                    count::write(self.usage.unwrap_or_default(), usage);
                });
            });
        }
        say(out, "message_stop", |_| {});
    }
}

/// Writes one event.
fn say(out: &mut BytesMut, name: &str, fill: impl FnOnce(&mut Object<'_>)) {
    out.extend_from_slice(b"event: ");
    out.extend_from_slice(name.as_bytes());
    out.extend_from_slice(b"\ndata: ");
    Object::write(out, |event| {
        event.put("type", name);
        fill(event);
    });
    out.extend_from_slice(b"\n\n");
}
