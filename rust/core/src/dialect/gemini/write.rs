//! A stream, written: pieces of a `GenerateContentResponse` as server-sent events.
use bytes::{BufMut, BytesMut};

use crate::error::{Error, Kind};
use crate::usage::Usage;

use super::super::Context;
use super::super::chat::{Event, Signature, Stop, ToolCall};
use super::super::json::{List, Object};
use super::answer::{
    put_call, put_context, put_signature, put_text, put_thought, put_usage, reason,
};

/// Most bytes of calls that wait for their ends; Gemini's calls are whole.
const MAX_CALLS: usize = 16 << 20;
/// What a call without a letter counts, bytes.
const MIN_CALL: usize = 256;

/// Writes the bytes of a stream.
pub(crate) struct Writer {
    context: Context,
    calls: Vec<Call>,
    /// Bytes in `calls`.
    held: usize,
    stop: Option<Stop>,
    usage: Option<Usage>,
}

/// A call whose arguments still come.
struct Call {
    index: u32,
    call: ToolCall<'static>,
}

impl Writer {
    /// A stream at its start.
    pub(crate) fn new(context: Context) -> Self {
        Self {
            context,
            calls: Vec::new(),
            held: 0,
            stop: None,
            usage: None,
        }
    }

    /// Writes what an event makes. Errors: `UpstreamError` for a call that is no call, or too long.
    pub(crate) fn event(&mut self, event: &Event<'_>, out: &mut BytesMut) -> Result<(), Error> {
        match event {
            Event::Start | Event::Ping | Event::Logprobs(_) => Ok(()),
            Event::Text(text) | Event::Refusal(text) => {
                self.put(out, |list| put_text(list, text, None));
                Ok(())
            }
            Event::Reasoning(text) => {
                self.put(out, |list| put_thought(list, text, None));
                Ok(())
            }
            Event::Signature(signature) => {
                self.put(out, |list| put_thought(list, "", Some(signature)));
                Ok(())
            }
            Event::Redacted(signature) => {
                self.put(out, |list| put_signature(list, signature));
                Ok(())
            }
            Event::ToolStart {
                index,
                id,
                name,
                signature,
            } => {
                let call = ToolCall {
                    id: id.to_string().into(),
                    name: name.to_string().into(),
                    arguments: String::new().into(),
                    signature: signature.as_ref().map(|signature| Signature {
                        value: signature.value.to_string().into(),
                        by: signature.by,
                    }),
                };
                self.calls.push(Call {
                    index: *index,
                    call,
                });
                self.hold(MIN_CALL + id.len() + name.len())
            }
            Event::ToolArguments { index, json } => {
                let mut calls = self.calls.iter_mut();
                if let Some(call) = calls.find(|call| call.index == *index) {
                    call.call.arguments.to_mut().push_str(json);
                }
                self.hold(json.len())
            }
            Event::ToolEnd { index } => match self.calls.iter().position(|c| c.index == *index) {
                Some(at) => {
                    let call = self.calls.remove(at);
                    self.call(&call.call, out)
                }
                None => Ok(()),
            },
            Event::Finish { stop, .. } => {
                for call in std::mem::take(&mut self.calls) {
                    self.call(&call.call, out)?;
                }
                self.stop = Some(*stop);
                Ok(())
            }
            Event::Usage(usage) => {
                self.usage = Some(*usage);
                Ok(())
            }
            Event::End => {
                self.end(out);
                Ok(())
            }
        }
    }

    fn hold(&mut self, bytes: usize) -> Result<(), Error> {
        self.held += bytes;
        if self.held > MAX_CALLS {
            return Err(Error::new(
                Kind::UpstreamError,
                "The engine's tool calls are too long.",
            ));
        }
        Ok(())
    }

    fn call(&mut self, call: &ToolCall<'_>, out: &mut BytesMut) -> Result<(), Error> {
        self.held = self
            .held
            .saturating_sub(MIN_CALL + call.id.len() + call.name.len() + call.arguments.len());
        self.put(out, |list| put_call(list, call))
    }

    /// One event with what `fill` puts into the candidate's parts; none where that is nothing.
    fn put<T>(&self, out: &mut BytesMut, fill: impl FnOnce(&mut List<'_>) -> T) -> T {
        let mut parts = BytesMut::new();
        let filled = List::write(&mut parts, fill);
        if &parts[..] != b"[]" {
            self.piece(&parts, None, None, out);
        }
        filled
    }

    fn end(&self, out: &mut BytesMut) {
        self.piece(br#"[{"text":""}]"#, self.stop, self.usage.as_ref(), out);
    }

    fn piece(&self, parts: &[u8], stop: Option<Stop>, usage: Option<&Usage>, out: &mut BytesMut) {
        out.put_slice(b"data: ");
        Object::write(out, |body| {
            body.list("candidates", |candidates| {
                candidates.object(|candidate| {
                    candidate.object("content", |content| {
                        content.member("parts").put_slice(parts);
                        content.put("role", "model");
                    });
                    candidate.put_some("finishReason", stop.map(reason));
                    candidate.put("index", 0);
                });
            });
            if let Some(usage) = usage {
                put_usage(body, usage);
            }
            put_context(body, &self.context);
        });
        out.put_slice(b"\r\n\r\n");
    }
}
