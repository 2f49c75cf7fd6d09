//! A form as one attempt sends it.
use std::collections::VecDeque;
use std::pin::Pin;
use std::sync::Arc;
use std::task::{Context, Poll};

use bytes::{Bytes, BytesMut};
use http_body::{Body, Frame, SizeHint};
use tokio::time::{Instant, Sleep};

use super::errors::{broken, malformed, too_large, too_slow};
use super::{At, Kept, REPLAY_BYTES, Scanner, Upload, poll_next};
use crate::error::Error;

/// The body of one attempt.
pub struct UploadBody {
    upload: Arc<Upload>,
    reader: u64,
    scanner: Option<Scanner>,
    /// How much of what is kept has been sent.
    at: At,
    ready: VecDeque<Bytes>,
    remaining: Option<u64>,
    is_over: bool,
    pause: Option<Pin<Box<Sleep>>>,
}

/// The body came to no good end; [`Upload::fault`] says why.
#[derive(Clone, Copy, Debug, PartialEq, Eq, thiserror::Error)]
#[error("the body could not be read to its end")]
pub struct Unread;

impl UploadBody {
    /// remaining: its bytes, where they are known.
    pub(super) fn new(
        upload: Arc<Upload>,
        reader: u64,
        scanner: Option<Scanner>,
        remaining: Option<u64>,
    ) -> Self {
        Self {
            upload,
            reader,
            scanner,
            at: At::default(),
            ready: VecDeque::new(),
            remaining,
            is_over: false,
            pause: None,
        }
    }

    fn take(&mut self, chunk: &Bytes) -> Result<(), Error> {
        let Some(scanner) = &mut self.scanner else {
            self.ready.push_back(chunk.clone());
            return Ok(());
        };
        let mut out = BytesMut::with_capacity(chunk.len() + 64);
        scanner.feed(chunk, &mut out).map_err(malformed)?;
        if !out.is_empty() {
            self.ready.push_back(out.freeze());
        }
        Ok(())
    }

    /// More of the client's body; false at its end.
    fn poll_more(&mut self, cx: &mut Context<'_>) -> Poll<Result<bool, Error>> {
        let upload = Arc::clone(&self.upload);
        let mut state = upload.state.lock();
        if state.reader != self.reader {
            return Poll::Ready(Err(broken()));
        }
        let kept = state.kept.as_ref();
        if let Some(chunk) = kept.and_then(|kept| kept.next(&mut self.at)) {
            return Poll::Ready(self.take(&chunk).map(|()| true));
        }
        if state.ended {
            let end = self.scanner.as_ref().map_or(Ok(()), Scanner::end);
            return Poll::Ready(end.map(|()| false).map_err(malformed));
        }
        let Some(source) = &mut state.source else {
            return Poll::Ready(Err(broken()));
        };
        match poll_next(source, cx) {
            Poll::Ready(Ok(Some(chunk))) => {
                self.pause = None;
                // What was read to find the model may be more.
                let most = REPLAY_BYTES.max(self.upload.limits.head_bytes);
                state.came(&chunk, most);
                if state.read > self.upload.limits.bytes {
                    return Poll::Ready(Err(too_large(self.upload.limits.bytes)));
                }
                self.at = state.kept.as_ref().map(Kept::end).unwrap_or_default();
                Poll::Ready(self.take(&chunk).map(|()| true))
            }
            Poll::Ready(Ok(None)) => {
                state.ended = true;
                state.moved = Instant::now();
                state.source = None;
                Poll::Ready(Ok(true))
            }
            Poll::Ready(Err(error)) => Poll::Ready(Err(error)),
            Poll::Pending => {
                let idle = self.upload.limits.idle;
                let pause = self
                    .pause
                    .get_or_insert_with(|| Box::pin(tokio::time::sleep(idle)));
                pause.as_mut().poll(cx).map(|()| Err(too_slow()))
            }
        }
    }
}

impl Body for UploadBody {
    type Data = Bytes;
    type Error = Unread;

    fn poll_frame(
        mut self: Pin<&mut Self>,
        cx: &mut Context<'_>,
    ) -> Poll<Option<Result<Frame<Bytes>, Unread>>> {
        loop {
            if let Some(chunk) = self.ready.pop_front() {
                if let Some(remaining) = &mut self.remaining {
                    *remaining = remaining.saturating_sub(chunk.len() as u64);
                }
                return Poll::Ready(Some(Ok(Frame::data(chunk))));
            }
            if self.is_over {
                return Poll::Ready(None);
            }
            match self.poll_more(cx) {
                Poll::Ready(Ok(more)) => self.is_over = !more,
                Poll::Ready(Err(error)) => {
                    let mut state = self.upload.state.lock();
                    if state.reader == self.reader {
                        state.fault.get_or_insert(error);
                    }
                    drop(state);
                    self.is_over = true;
                    return Poll::Ready(Some(Err(Unread)));
                }
                Poll::Pending => return Poll::Pending,
            }
        }
    }

    fn is_end_stream(&self) -> bool {
        self.is_over && self.ready.is_empty()
    }

    fn size_hint(&self) -> SizeHint {
        self.remaining
            .map_or_else(SizeHint::default, SizeHint::with_exact)
    }
}
