//! The events of a stream of server-sent events, one after the other.
use bytes::Bytes;

use crate::error::{Error, Kind};
use crate::sse::Decoder;

/// Cuts a stream into its events' data.
pub(crate) struct Frames {
    decoder: Decoder,
}

impl Frames {
    /// max_event_bytes: the longest event taken.
    pub(crate) fn new(max_event_bytes: usize) -> Self {
        Self {
            decoder: Decoder::new(max_event_bytes),
        }
    }

    /// Gives each event's data that `chunk` completes to `each`; comments have none.
    ///
    /// Errors: those of `each`; `UpstreamError` if an event is too large, after all before it.
    pub(crate) fn feed(
        &mut self,
        chunk: Bytes,
        mut each: impl FnMut(&str) -> Result<(), Error>,
    ) -> Result<(), Error> {
        let overflow = self.decoder.feed(chunk).err();
        while let Some(frame) = self.decoder.next() {
            if let Some(data) = frame.data() {
                each(text(&data)?)?;
            }
        }
        overflow.map_or(Ok(()), |cause| Err(Error::oversized_event(cause)))
    }

    /// Gives what is left at the stream's end, which lacks its blank line.
    pub(crate) fn end(
        &mut self,
        mut each: impl FnMut(&str) -> Result<(), Error>,
    ) -> Result<(), Error> {
        match self.decoder.finish().and_then(|frame| frame.data()) {
            Some(data) => each(text(&data)?),
            None => Ok(()),
        }
    }
}

fn text(data: &Bytes) -> Result<&str, Error> {
    simdutf8::basic::from_utf8(data).map_err(|cause| unreadable(cause.to_string()))
}

/// An event that cannot be read.
pub(crate) fn unreadable(cause: impl std::fmt::Display) -> Error {
    Error::new(
        Kind::UpstreamError,
        "The engine sent an event that could not be read.",
    )
    .cause(cause)
}

/// The stream's end came before the dialect's terminal event.
pub(crate) fn cut_off() -> Error {
    Error::new(
        Kind::UpstreamError,
        "The engine closed the stream before it had finished.",
    )
}
