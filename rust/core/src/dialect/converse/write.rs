//! A stream, written: messages of AWS's event stream.
use bytes::BytesMut;

use crate::error::{Error, Kind};
use crate::usage::Usage;

use super::super::chat::{Event, Signature};
use super::super::eventstream::{Value, encode};
use super::super::json::Object;
use super::block::call_id;
use super::wire::{own, put_usage, reason};

/// Writes the bytes of a stream, which says nothing of its id and model.
#[derive(Default)]
pub(crate) struct Writer {
    /// The open block of text or thoughts.
    open: Option<(Block, u32)>,
    /// Open blocks of calls: the call's number, the block's place.
    calls: Vec<(u32, u32)>,
    next_block: u32,
    usage: Usage,
}

#[derive(Clone, Copy, PartialEq, Eq)]
enum Block {
    Text,
    Reasoning,
}

impl Writer {
    /// Writes what an event makes. Errors: `Internal` for what no frame can hold.
    pub(crate) fn event(&mut self, event: &Event<'_>, out: &mut BytesMut) -> Result<(), Error> {
        match event {
            Event::Start => frame("messageStart", out, |body| body.put("role", "assistant")),
            Event::Ping | Event::Logprobs(_) => Ok(()),
            Event::Text(text) | Event::Refusal(text) => {
                self.delta(Block::Text, out, |delta| delta.put("text", text))
            }
            Event::Reasoning(text) => self.reasoning("text", text, out),
            Event::Signature(signature) => match own(Some(signature)) {
                Some(value) => {
                    self.reasoning("signature", value, out)?;
                    self.close(out)
                }
                None => Ok(()),
            },
            Event::Redacted(signature) => self.redacted(signature, out),
            Event::ToolStart {
                index, id, name, ..
            } => {
                self.close(out)?;
                let block = self.next_block;
                self.next_block += 1;
                self.calls.push((*index, block));
                frame("contentBlockStart", out, |body| {
                    body.object("start", |start| {
                        start.object("toolUse", |tool| {
                            tool.put("toolUseId", call_id(id));
                            tool.put("name", name);
                        });
                    });
                    body.put("contentBlockIndex", block);
                })
            }
            Event::ToolArguments { index, json } => {
                match self.calls.iter().find(|(call, _)| call == index) {
                    Some((_, block)) => delta(*block, out, |delta| {
                        delta.object("toolUse", |tool| tool.put("input", json));
                    }),
                    None => Ok(()),
                }
            }
            Event::ToolEnd { index } => {
                match self.calls.iter().position(|(call, _)| call == index) {
                    Some(at) => stop(self.calls.remove(at).1, out),
                    None => Ok(()),
                }
            }
            Event::Finish {
                stop: end,
                sequence,
            } => {
                self.close(out)?;
                for (_, block) in std::mem::take(&mut self.calls) {
                    stop(block, out)?;
                }
                frame("messageStop", out, |body| {
                    body.put("stopReason", reason(*end));
                    if let Some(sequence) = sequence {
                        body.object("additionalModelResponseFields", |fields| {
                            fields.put("stop_sequence", sequence);
                        });
                    }
                })
            }
            Event::Usage(usage) => {
                self.usage = *usage;
                Ok(())
            }
            Event::End => frame("metadata", out, |body| {
                put_usage(body, &self.usage);
                // Required, and not known here.
                body.object("metrics", |metrics| metrics.put("latencyMs", 0));
            }),
        }
    }

    fn reasoning(&mut self, key: &str, value: &str, out: &mut BytesMut) -> Result<(), Error> {
        self.delta(Block::Reasoning, out, |delta| {
            delta.object("reasoningContent", |reasoning| reasoning.put(key, value));
        })
    }

    fn redacted(&mut self, thought: &Signature<'_>, out: &mut BytesMut) -> Result<(), Error> {
        let Some(data) = own(Some(thought)) else {
            return Ok(());
        };
        self.close(out)?;
        self.reasoning("redactedContent", data, out)?;
        self.close(out)
    }

    /// A delta of a block of that kind, which is opened if it is not.
    fn delta(
        &mut self,
        kind: Block,
        out: &mut BytesMut,
        fill: impl FnOnce(&mut Object<'_>),
    ) -> Result<(), Error> {
        let block = match self.open {
            Some((open, block)) if open == kind => block,
            _ => {
                self.close(out)?;
                let block = self.next_block;
                self.next_block += 1;
                self.open = Some((kind, block));
                block
            }
        };
        delta(block, out, fill)
    }

    fn close(&mut self, out: &mut BytesMut) -> Result<(), Error> {
        match self.open.take() {
            Some((_, block)) => stop(block, out),
            None => Ok(()),
        }
    }
}

fn delta(block: u32, out: &mut BytesMut, fill: impl FnOnce(&mut Object<'_>)) -> Result<(), Error> {
    frame("contentBlockDelta", out, |body| {
        body.object("delta", fill);
        body.put("contentBlockIndex", block);
    })
}

fn stop(block: u32, out: &mut BytesMut) -> Result<(), Error> {
    frame("contentBlockStop", out, |body| {
        body.put("contentBlockIndex", block);
    })
}

fn frame(event: &str, out: &mut BytesMut, fill: impl FnOnce(&mut Object<'_>)) -> Result<(), Error> {
    let mut payload = BytesMut::new();
    Object::write(&mut payload, fill);
    let headers = [
        (":message-type", Value::Text("event")),
        (":event-type", Value::Text(event)),
        (":content-type", Value::Text("application/json")),
    ];
    encode(&headers, &payload, out)
        .map_err(|cause| Error::new(Kind::Internal, "An event is too large.").cause(cause))
}
