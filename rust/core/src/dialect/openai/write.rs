//! Writing a stream.
use bytes::{BufMut, BytesMut};

use crate::relay::DONE;

use super::super::Context;
use super::super::chat::{Event, Signature, Usage};
use super::super::json::{self, Object};
use super::answer::{extra, reason, usage};
use super::format;

/// Writes chunks as OpenAI does: the role, deltas, the finish reason, usage, `[DONE]`.
pub(crate) struct Writer {
    /// Everything of a chunk up to its choices.
    head: Vec<u8>,
    started: bool,
    /// Thoughts that are whole.
    thoughts: u32,
    /// One has begun and is not signed.
    thinking: bool,
    usage: Option<Usage>,
    /// JSON of the logprobs of the text that comes next.
    logprobs: String,
}

impl Writer {
    /// context: what every chunk says of the answer.
    pub(crate) fn new(context: &Context) -> Self {
        let mut head = BytesMut::from(&b"data: {\"id\":"[..]);
        json::value(&mut head, &context.id);
        head.extend_from_slice(b",\"object\":\"chat.completion.chunk\",\"created\":");
        json::value(&mut head, context.created);
        head.extend_from_slice(b",\"model\":");
        json::value(&mut head, &context.model);
        Self {
            head: head.into(),
            started: false,
            thoughts: 0,
            thinking: false,
            usage: None,
            logprobs: String::new(),
        }
    }

    /// What is told at the end, so far as it is known.
    pub(crate) const fn usage(&self) -> Option<Usage> {
        self.usage
    }

    /// Appends what `event` is.
    pub(crate) fn event(&mut self, event: &Event<'_>, out: &mut BytesMut) {
        match event {
            Event::Usage(usage) => {
                self.usage = Some(*usage);
                return;
            }
            Event::Ping => {
                out.extend_from_slice(b": ping\n\n");
                return;
            }
            Event::ToolEnd { .. } => return,
            Event::Logprobs(list) => {
                list.get().clone_into(&mut self.logprobs);
                return;
            }
            _ => {}
        }
        if !std::mem::replace(&mut self.started, true) {
            self.delta(out, |delta| {
                delta.put("role", "assistant");
                delta.put("content", "");
            });
        }
        match event {
            Event::Start
            | Event::Usage(_)
            | Event::Ping
            | Event::ToolEnd { .. }
            | Event::Logprobs(_) => {}
            Event::Text(text) => self.text(text, out),
            Event::Refusal(text) => self.delta(out, |delta| delta.put("refusal", text)),
            Event::Reasoning(text) => {
                self.thinking = true;
                self.thought(Some(text), None, out);
            }
            Event::Signature(signature) => {
                self.thought(None, Some(signature), out);
                self.thinking = false;
                self.thoughts += 1;
            }
            Event::Redacted(data) => {
                self.thoughts += u32::from(std::mem::take(&mut self.thinking));
                self.delta(out, |delta| {
                    delta.list("reasoning_details", |list| {
                        list.object(|detail| format::encrypted(detail, self.thoughts, data));
                    });
                });
                self.thoughts += 1;
            }
            Event::ToolStart {
                index,
                id,
                name,
                signature,
            } => self.call(out, *index, |call| {
                call.put("id", id);
                call.put("type", "function");
                call.object("function", |function| {
                    function.put("name", name);
                    function.put("arguments", "");
                });
                extra(signature.as_ref(), call);
            }),
            Event::ToolArguments { index, json } => self.call(out, *index, |call| {
                call.object("function", |function| function.put("arguments", json));
            }),
            Event::Finish { stop, .. } => {
                self.open(out);
                out.extend_from_slice(b"{},\"logprobs\":null,\"finish_reason\":\"");
                out.extend_from_slice(reason(*stop).as_bytes());
                out.extend_from_slice(b"\"}]}\n\n");
            }
            Event::End => self.end(out),
        }
    }

    fn text(&mut self, text: &str, out: &mut BytesMut) {
        if self.logprobs.is_empty() {
            self.delta(out, |delta| delta.put("content", text));
            return;
        }
        self.open(out);
        Object::write(out, |delta| delta.put("content", text));
        out.extend_from_slice(b",\"logprobs\":{\"content\":");
        out.extend_from_slice(self.logprobs.as_bytes());
        out.extend_from_slice(b",\"refusal\":null},\"finish_reason\":null}]}\n\n");
        self.logprobs.clear();
    }

    /// A piece of a thought: its text, and what lets it be sent back.
    fn thought(&self, text: Option<&str>, signature: Option<&Signature<'_>>, out: &mut BytesMut) {
        self.delta(out, |delta| {
            delta.put_some("reasoning_content", text);
            delta.list("reasoning_details", |list| {
                list.object(|detail| format::text(detail, self.thoughts, text, signature));
            });
        });
    }

    fn call(&self, out: &mut BytesMut, index: u32, fill: impl FnOnce(&mut Object<'_>)) {
        self.delta(out, |delta| {
            delta.list("tool_calls", |list| {
                list.object(|call| {
                    call.put("index", index);
                    fill(call);
                });
            });
        });
    }

    fn delta(&self, out: &mut BytesMut, fill: impl FnOnce(&mut Object<'_>)) {
        self.open(out);
        Object::write(out, fill);
        out.extend_from_slice(b",\"logprobs\":null,\"finish_reason\":null}]}\n\n");
    }

    fn open(&self, out: &mut BytesMut) {
        out.extend_from_slice(&self.head);
        out.extend_from_slice(b",\"choices\":[{\"index\":0,\"delta\":");
    }

    fn end(&self, out: &mut BytesMut) {
        if let Some(counts) = &self.usage {
            out.extend_from_slice(&self.head);
            out.extend_from_slice(b",\"choices\":[],\"usage\":");
            Object::write(out, |object| usage(counts, object));
            out.put_slice(b"}\n\n");
        }
        out.extend_from_slice(DONE);
    }
}
