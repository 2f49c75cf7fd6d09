//! How an exchange's answer is told to a gRPC client.
use bytes::{Bytes, BytesMut};

use crate::door;
use crate::error::{Error, Kind};
use crate::sse::Decoder;

use super::Method;
use super::to_proto::{Nulls, to_proto};

/// Longest event: no answer may be longer, and the exchange bounds events before.
const MAX_EVENT: usize = 64 * 1024 * 1024;

/// Turns OpenAI's JSON and event streams into messages, each behind gRPC's prefix: a zero byte (not
/// compressed) and the message's length, four bytes, big-endian.
///
/// Failures are not in the bytes: a call ends with a status, which is made of the slot's failure.
/// Source: "gRPC over HTTP2", Length-Prefixed-Message.
pub struct Voice {
    method: Method,
    events: Decoder,
    /// The message that is being written; kept for its memory.
    message: Vec<u8>,
}

impl Voice {
    /// The voice of one call of `method`.
    pub fn new(method: Method) -> Self {
        Self {
            method,
            events: Decoder::new(MAX_EVENT),
            message: Vec::new(),
        }
    }

    fn turn(&self, json: &[u8], message: &mut Vec<u8>) -> Result<(), Error> {
        to_proto(self.method.answer(), json, Nulls::Dropped, message).map_err(broken)
    }
}

impl door::Voice for Voice {
    /// One message. Errors: it is no answer of this method.
    fn answer(&self, body: &[u8]) -> Result<Bytes, Error> {
        let mut message = Vec::with_capacity(body.len());
        self.turn(body, &mut message)?;
        let mut out = BytesMut::with_capacity(message.len() + 5);
        frame(&message, &mut out)?;
        Ok(out.freeze())
    }

    /// A message for each event. Errors: one is no chunk of this method.
    fn feed(&mut self, sse: Bytes, out: &mut BytesMut) -> Result<(), Error> {
        self.events.feed(sse).map_err(broken)?;
        while let Some(event) = self.events.next() {
            let Some(data) = event.data() else {
                continue;
            };
            if data.is_empty() || &data[..] == b"[DONE]" {
                continue;
            }
            let mut message = std::mem::take(&mut self.message);
            message.clear();
            self.turn(&data, &mut message)?;
            frame(&message, out)?;
            self.message = message;
        }
        Ok(())
    }

    /// Nothing: the call's status tells it.
    fn end(&mut self, _out: &mut BytesMut) -> Result<(), Error> {
        Ok(())
    }

    /// Nothing: the call's status tells it.
    fn cut(&mut self, _error: &Error, _out: &mut BytesMut) {}

    /// Nothing: HTTP/2 has pings.
    fn keep_alive(&self, _out: &mut BytesMut) {}
}

/// Appends a message behind its prefix.
fn frame(message: &[u8], out: &mut BytesMut) -> Result<(), Error> {
    let len = u32::try_from(message.len()).map_err(broken)?;
    out.reserve(message.len() + 5);
    out.extend_from_slice(&[0]);
    out.extend_from_slice(&len.to_be_bytes());
    out.extend_from_slice(message);
    Ok(())
}

fn broken(cause: impl std::fmt::Display) -> Error {
    Error::new(
        Kind::UpstreamError,
        "The engine's answer could not be read.",
    )
    .cause(cause)
}
