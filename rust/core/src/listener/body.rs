//! Request bodies read within bounds, and answers written from where they wait.
use std::pin::Pin;
use std::sync::Arc;
use std::task::{Context, Poll};
use std::time::Duration;

use bytes::{Bytes, BytesMut};
use http_body::{Body, Frame, SizeHint};
use hyper::body::Incoming;

use crate::slot::Slot;

/// How much of a refused body is read, and for how long, so that its sender gets to read why.
const DRAIN_BYTES: u64 = 64 << 20;
const DRAIN_TIME: Duration = Duration::from_secs(10);

/// Why a body could not be had.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub(super) enum Unread {
    /// Over the limit.
    TooLarge,
    /// Broken off, or broken framing.
    Broken,
    /// Not in time.
    TooSlow,
}

/// The whole body, at most `limit` bytes. A refused body has been drained within bounds, but not
/// one that `waits` to be asked for.
pub(super) async fn read(
    mut body: Incoming,
    limit: usize,
    time: Duration,
    waits: bool,
) -> Result<Bytes, Unread> {
    let declared = body.size_hint().exact();
    if declared.is_some_and(|length| length > limit as u64) {
        if !waits {
            drain(body).await;
        }
        return Err(Unread::TooLarge);
    }
    let result = tokio::time::timeout(time, collect(&mut body, declared, limit)).await;
    match result {
        Ok(Err(Unread::TooLarge)) => {
            drain(body).await;
            Err(Unread::TooLarge)
        }
        Ok(result) => result,
        Err(_) => Err(Unread::TooSlow),
    }
}

async fn collect(
    body: &mut Incoming,
    declared: Option<u64>,
    limit: usize,
) -> Result<Bytes, Unread> {
    let Some(first) = next(body).await? else {
        return Ok(Bytes::new());
    };
    if declared == Some(first.len() as u64) {
        return Ok(first);
    }
    let mut out =
        BytesMut::with_capacity(declared.map_or(first.len() * 2, |length| length as usize));
    out.extend_from_slice(&first);
    drop(first);
    while let Some(chunk) = next(body).await? {
        if out.len() + chunk.len() > limit {
            return Err(Unread::TooLarge);
        }
        out.extend_from_slice(&chunk);
    }
    if out.len() > limit {
        Err(Unread::TooLarge)
    } else {
        Ok(out.freeze())
    }
}

async fn next(body: &mut Incoming) -> Result<Option<Bytes>, Unread> {
    std::future::poll_fn(|cx| {
        loop {
            match Pin::new(&mut *body).poll_frame(cx) {
                Poll::Ready(Some(Ok(frame))) => {
                    if let Ok(data) = frame.into_data() {
                        return Poll::Ready(Ok(Some(data)));
                    }
                }
                Poll::Ready(Some(Err(_))) => return Poll::Ready(Err(Unread::Broken)),
                Poll::Ready(None) => return Poll::Ready(Ok(None)),
                Poll::Pending => return Poll::Pending,
            }
        }
    })
    .await
}

/// Reads and drops what a refused request still sends.
pub(super) async fn drain(mut body: Incoming) {
    let reading = async {
        let mut left = DRAIN_BYTES;
        while let Ok(Some(chunk)) = next(&mut body).await {
            left = left.saturating_sub(chunk.len() as u64);
            if left == 0 {
                break;
            }
        }
    };
    // A sender that takes longer sees its connection closed instead.
    let _ = tokio::time::timeout(DRAIN_TIME, reading).await;
}

/// Cancels the exchange of a client that goes away: dropped with the connection's request.
pub(super) struct Guard(pub(super) Arc<Slot>);

impl Drop for Guard {
    fn drop(&mut self) {
        self.0.cancel();
    }
}

/// An answer broke off: the connection is, too, so that nobody takes what came for the whole.
#[derive(Debug, thiserror::Error)]
#[error("the answer broke off")]
pub(super) struct Broken;

/// The body of an answer.
pub(super) enum Answer {
    /// All of it.
    Whole(Option<Bytes>),
    /// What an exchange delivers.
    Stream(Guard),
    /// What the application answers.
    App(Incoming),
}

impl Body for Answer {
    type Data = Bytes;
    type Error = Broken;

    fn poll_frame(
        mut self: Pin<&mut Self>,
        cx: &mut Context<'_>,
    ) -> Poll<Option<Result<Frame<Bytes>, Broken>>> {
        match &mut *self {
            Self::Whole(bytes) => Poll::Ready(bytes.take().map(|bytes| Ok(Frame::data(bytes)))),
            Self::Stream(guard) => guard.0.poll_bytes(cx).map(|bytes| match bytes {
                Some(bytes) => Some(Ok(Frame::data(bytes))),
                None if guard.0.is_broken() => Some(Err(Broken)),
                None => None,
            }),
            Self::App(body) => Pin::new(body)
                .poll_frame(cx)
                .map(|frame| frame.map(|frame| frame.map_err(|_| Broken))),
        }
    }

    fn is_end_stream(&self) -> bool {
        match self {
            Self::Whole(bytes) => bytes.as_ref().is_none_or(Bytes::is_empty),
            Self::Stream(guard) => guard.0.is_drained(),
            Self::App(body) => body.is_end_stream(),
        }
    }

    fn size_hint(&self) -> SizeHint {
        match self {
            Self::Whole(bytes) => {
                SizeHint::with_exact(bytes.as_ref().map_or(0, |b| b.len() as u64))
            }
            Self::Stream(_) => SizeHint::default(),
            Self::App(body) => body.size_hint(),
        }
    }
}
