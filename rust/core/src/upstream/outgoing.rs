//! A request's body as it is sent: bytes that are there, or a client's that still come.
use std::pin::Pin;
use std::task::{Context, Poll};

use bytes::Bytes;
use http_body::{Body, Frame, SizeHint};

use super::rope::Rope;
use crate::pass::upload::{Unread, UploadBody};

/// A request's body.
pub enum Outgoing {
    /// All of it is there.
    Rope(Rope),
    /// It is read while it is sent.
    Upload(Box<UploadBody>),
}

impl From<Rope> for Outgoing {
    fn from(rope: Rope) -> Self {
        Self::Rope(rope)
    }
}

impl From<UploadBody> for Outgoing {
    fn from(body: UploadBody) -> Self {
        Self::Upload(Box::new(body))
    }
}

impl Outgoing {
    /// What is there of it, in order: all, or None where it still comes.
    pub(super) fn parts(&self) -> Option<&[Bytes]> {
        match self {
            Self::Rope(rope) => Some(rope.parts()),
            Self::Upload(_) => None,
        }
    }
}

impl Body for Outgoing {
    type Data = Bytes;
    type Error = Unread;

    fn poll_frame(
        mut self: Pin<&mut Self>,
        cx: &mut Context<'_>,
    ) -> Poll<Option<Result<Frame<Bytes>, Unread>>> {
        match &mut *self {
            Self::Rope(rope) => match Pin::new(rope).poll_frame(cx) {
                Poll::Ready(frame) => {
                    Poll::Ready(frame.map(|frame| frame.map_err(|never| match never {})))
                }
                Poll::Pending => Poll::Pending,
            },
            Self::Upload(body) => Pin::new(&mut **body).poll_frame(cx),
        }
    }

    fn is_end_stream(&self) -> bool {
        match self {
            Self::Rope(rope) => rope.is_end_stream(),
            Self::Upload(body) => body.is_end_stream(),
        }
    }

    fn size_hint(&self) -> SizeHint {
        match self {
            Self::Rope(rope) => rope.size_hint(),
            Self::Upload(body) => body.size_hint(),
        }
    }
}
