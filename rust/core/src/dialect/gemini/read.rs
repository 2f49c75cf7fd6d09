//! A stream, read.
//!
//! Pieces of a `GenerateContentResponse` as server-sent events, without an end marker: it has ended
//! well once a finish reason was told, or the prompt refused. An error comes as bare JSON of several
//! lines, without `data:`, and in some versions as the one item of a list.
use std::borrow::Cow;

use bytes::Bytes;

use crate::error::Error;
use crate::sse::{Decoder, Frame};

use super::super::Sink;
use super::super::calls::call_id;
use super::super::chat::{Event, Stop};
use super::super::frames::{cut_off, unreadable};
use super::wire::{Piece, Response};

/// Reads the bytes of a stream.
pub(crate) struct Reader {
    decoder: Decoder,
    state: State,
}

struct State {
    id: String,
    started: bool,
    calls: u32,
    finished: bool,
}

impl Reader {
    /// id: the answer's, of which ids of calls are made that come without. max_event_bytes: the
    /// longest event taken.
    pub(crate) fn new(id: String, max_event_bytes: usize) -> Self {
        Self {
            decoder: Decoder::new(max_event_bytes),
            state: State {
                id,
                started: false,
                calls: 0,
                finished: false,
            },
        }
    }

    /// Takes the stream's next bytes. Errors: the sink's, a failure that the stream tells, or
    /// `UpstreamError` for what is no stream; after all events before it.
    pub(crate) fn feed(&mut self, chunk: Bytes, sink: &mut impl Sink) -> Result<(), Error> {
        let overflow = self.decoder.feed(chunk).err();
        while let Some(frame) = self.decoder.next() {
            self.state.frame(&frame, sink)?;
        }
        overflow.map_or(Ok(()), |cause| Err(Error::oversized_event(cause)))
    }

    /// The stream has ended. Errors: as for [`Reader::feed`]; `UpstreamError` if it was cut off.
    pub(crate) fn end(&mut self, sink: &mut impl Sink) -> Result<(), Error> {
        while let Some(frame) = self.decoder.finish() {
            self.state.frame(&frame, sink)?;
        }
        if self.state.finished {
            sink.event(Event::End)
        } else {
            Err(cut_off())
        }
    }
}

impl State {
    fn frame(&mut self, frame: &Frame, sink: &mut impl Sink) -> Result<(), Error> {
        if let Some(data) = frame.data() {
            let data = text(&data)?;
            // Google sends no end marker; some proxies before it do.
            if data == "[DONE]" {
                return Ok(());
            }
            return self.response(data, sink);
        }
        let raw = text(&frame.raw)?.trim_ascii();
        if raw.starts_with(['{', '[']) {
            return self.response(raw, sink);
        }
        Ok(())
    }

    fn response(&mut self, json: &str, sink: &mut impl Sink) -> Result<(), Error> {
        let response = Response::parse(json)?;
        if !std::mem::replace(&mut self.started, true) {
            sink.event(Event::Start)?;
        }
        let usage = response.usage();
        let is_blocked = response.is_blocked();
        let stop = response.pieces(self.calls > 0, |piece| self.piece(piece, sink))?;
        let stop = stop.or(is_blocked.then_some(Stop::Filtered));
        // Some versions tell the reason again with the last counts.
        if let Some(stop) = stop
            && !std::mem::replace(&mut self.finished, true)
        {
            sink.event(Event::Finish {
                stop,
                sequence: None,
            })?;
        }
        match usage {
            Some(usage) => sink.event(Event::Usage(usage)),
            None => Ok(()),
        }
    }

    fn piece(&mut self, piece: Piece<'_>, sink: &mut impl Sink) -> Result<(), Error> {
        if self.finished {
            return Err(unreadable("more of an answer that had ended"));
        }
        match piece {
            Piece::Text(text) => sink.event(Event::Text(text)),
            Piece::Thought(text) => sink.event(Event::Reasoning(text)),
            Piece::ThoughtSignature(signature) => sink.event(Event::Signature(signature)),
            Piece::Signature(signature) => sink.event(Event::Redacted(signature)),
            Piece::Call {
                id,
                name,
                arguments,
                signature,
            } => {
                let index = self.calls;
                self.calls += 1;
                sink.event(Event::ToolStart {
                    index,
                    id: id.unwrap_or_else(|| Cow::Owned(call_id(&self.id, index))),
                    name,
                    signature,
                })?;
                sink.event(Event::ToolArguments {
                    index,
                    json: Cow::Borrowed(arguments),
                })?;
                sink.event(Event::ToolEnd { index })
            }
        }
    }
}

fn text(bytes: &Bytes) -> Result<&str, Error> {
    simdutf8::basic::from_utf8(bytes).map_err(unreadable)
}
