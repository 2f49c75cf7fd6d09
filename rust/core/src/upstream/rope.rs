//! A request's body in the pieces that it is made of.
use std::pin::Pin;
use std::task::{Context, Poll};

use bytes::Bytes;
use http_body::{Body, Frame, SizeHint};

/// A request body of known length in a few slices: the client's own bytes with ours between them.
#[derive(Debug)]
pub struct Rope {
    parts: std::vec::IntoIter<Bytes>,
    remaining: u64,
}

impl Rope {
    /// A body of `parts`, in order; empty parts are dropped.
    pub fn new(mut parts: Vec<Bytes>) -> Self {
        parts.retain(|part| !part.is_empty());
        let remaining = parts.iter().map(|part| part.len() as u64).sum();
        Self {
            parts: parts.into_iter(),
            remaining,
        }
    }

    /// No body.
    pub fn empty() -> Self {
        Self::new(Vec::new())
    }

    /// What is still to be sent, in order.
    pub fn parts(&self) -> &[Bytes] {
        self.parts.as_slice()
    }
}

impl Body for Rope {
    type Data = Bytes;
    type Error = std::convert::Infallible;

    fn poll_frame(
        mut self: Pin<&mut Self>,
        _: &mut Context<'_>,
    ) -> Poll<Option<Result<Frame<Bytes>, Self::Error>>> {
        let part = self.parts.next();
        if let Some(part) = &part {
            self.remaining -= part.len() as u64;
        }
        Poll::Ready(part.map(|part| Ok(Frame::data(part))))
    }

    fn is_end_stream(&self) -> bool {
        self.remaining == 0
    }

    fn size_hint(&self) -> SizeHint {
        SizeHint::with_exact(self.remaining)
    }
}
