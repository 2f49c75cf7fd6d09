//! The ends of a stream's parts and items.
use bytes::BytesMut;

use super::super::super::json::Object;
use super::super::items::argument_of;
use super::super::output::{Item, Said, Status, item, raw_list};
use super::{Writer, begin};

impl Writer {
    /// The arguments of a call are whole.
    pub(super) fn call_done(&mut self, index: u32, status: Status, out: &mut BytesMut) {
        let Some(at) = self.call(index) else {
            return;
        };
        self.calls.retain(|(number, _)| *number != index);
        let Some(Item::Call {
            name,
            arguments,
            custom,
            ..
        }) = self.items.get(at)
        else {
            return;
        };
        if *custom {
            let text = argument_of(arguments).into_owned();
            self.of(at, "response.custom_tool_call_input.delta", out, |event| {
                event.put("delta", &text);
            });
            self.of(at, "response.custom_tool_call_input.done", out, |event| {
                event.put("input", &text);
            });
        } else {
            let (name, arguments) = (name.clone(), arguments.clone());
            self.of(at, "response.function_call_arguments.done", out, |event| {
                event.put("name", name);
                event.put("arguments", arguments);
            });
        }
        self.item_done(at, status, out);
    }

    fn item_done(&mut self, at: usize, status: Status, out: &mut BytesMut) {
        let sequence = self.next();
        let Some(done) = self.items.get(at) else {
            return;
        };
        let id = self.ids.id(done, at);
        let name = "response.output_item.done";
        begin(name, out);
        Object::write(out, |event| {
            event.put("type", name);
            event.put("sequence_number", sequence);
            event.put("output_index", at);
            event.object("item", |object| {
                item(object, done, &id, status, &self.asked.telling);
            });
        });
        out.extend_from_slice(b"\n\n");
    }

    /// The message or thought that grew is whole.
    pub(super) fn close(&mut self, status: Status, out: &mut BytesMut) {
        if !self.open {
            return;
        }
        self.part_done(out);
        self.open = false;
        let at = self.items.len().saturating_sub(1);
        self.item_done(at, status, out);
    }

    /// The last part of what grows is whole.
    pub(super) fn part_done(&mut self, out: &mut BytesMut) {
        match self.items.last() {
            Some(Item::Message(parts)) => match parts.last() {
                Some(Said::Text { text, logprobs }) => {
                    let (text, logprobs) = (text.clone(), logprobs.clone());
                    self.part("response.output_text.done", out, |event| {
                        event.put("text", text);
                        raw_list(event, "logprobs", &logprobs);
                    });
                    self.part_event("response.content_part.done", out);
                }
                Some(Said::Refusal(text)) => {
                    let text = text.clone();
                    self.part("response.refusal.done", out, |event| {
                        event.put("refusal", text);
                    });
                    self.part_event("response.content_part.done", out);
                }
                None => {}
            },
            Some(Item::Reasoning { text, .. }) if !text.is_empty() => {
                let text = text.clone();
                let names = Thought::of(self.asked.telling.summary);
                self.part(names.done, out, |event| event.put("text", &text));
                self.part(names.part_done, out, |event| names.part(event, &text));
            }
            _ => {}
        }
    }
}

/// How a thought is told.
#[derive(Clone, Copy)]
pub(super) struct Thought {
    pub(super) kind: &'static str,
    pub(super) added: &'static str,
    pub(super) delta: &'static str,
    pub(super) done: &'static str,
    pub(super) part_done: &'static str,
}

impl Thought {
    pub(super) const fn of(summary: bool) -> Self {
        if summary {
            Self {
                kind: "summary_text",
                added: "response.reasoning_summary_part.added",
                delta: "response.reasoning_summary_text.delta",
                done: "response.reasoning_summary_text.done",
                part_done: "response.reasoning_summary_part.done",
            }
        } else {
            Self {
                kind: "reasoning_text",
                added: "response.content_part.added",
                delta: "response.reasoning_text.delta",
                done: "response.reasoning_text.done",
                part_done: "response.content_part.done",
            }
        }
    }

    pub(super) fn part(self, event: &mut Object<'_>, text: &str) {
        event.object("part", |part| {
            part.put("type", self.kind);
            part.put("text", text);
        });
    }
}
