//! Reading what an upstream sends.
use std::future::Future;
use std::pin::{Pin, pin};
use std::task::Poll;
use std::time::Duration;

use bytes::{Bytes, BytesMut};
use http_body::Body;
use hyper::body::Incoming;
use tokio::time::Instant;

use crate::alarm::Alarm;
use crate::slot::Slot;
use crate::upstream;

/// Most bytes of an upstream's error body that are read.
const MAX_ERROR_BODY: usize = 64 * 1024;

/// Reads the last chunk of a body whose content is complete, so that the connection can be reused.
pub(super) async fn drain(incoming: &mut Incoming) {
    let rest = async { while let Some(Ok(_)) = frame(incoming).await {} };
    // An engine that keeps the stream open past its end marker loses the connection.
    let _ = tokio::time::timeout(Duration::from_millis(50), rest).await;
}

/// The next data of a stream. What was written before is told to the reader only when nothing more
/// is ready: a burst that the engine sent at once leaves at once, in one write instead of ten. The
/// connection that reads for us gets one turn to hand on what it has already.
pub(super) async fn joined_frame(
    body: &mut Incoming,
    slot: &Slot,
    committed: bool,
) -> Option<Result<Bytes, String>> {
    let mut next = pin!(frame(body));
    let mut gave_way = !committed;
    std::future::poll_fn(|cx| {
        let polled = next.as_mut().poll(cx);
        if polled.is_pending() {
            if gave_way {
                slot.notify();
            } else {
                gave_way = true;
                cx.waker().wake_by_ref();
            }
        }
        polled
    })
    .await
}

/// The next data of a body; trailers are passed over.
pub(super) async fn frame(body: &mut Incoming) -> Option<Result<Bytes, String>> {
    std::future::poll_fn(|cx| {
        loop {
            match Pin::new(&mut *body).poll_frame(cx) {
                Poll::Ready(Some(Ok(frame))) => {
                    if let Ok(data) = frame.into_data() {
                        return Poll::Ready(Some(Ok(data)));
                    }
                }
                Poll::Ready(Some(Err(error))) => {
                    return Poll::Ready(Some(Err(upstream::chain(&error))));
                }
                Poll::Ready(None) => return Poll::Ready(None),
                Poll::Pending => return Poll::Pending,
            }
        }
    })
    .await
}

pub(super) async fn read_error(body: &mut Incoming, until: Instant, alarm: &mut Alarm) -> BytesMut {
    let mut out = BytesMut::new();
    while let Ok(Some(Ok(chunk))) = alarm.within(until, frame(body)).await {
        out.extend_from_slice(chunk.get(..MAX_ERROR_BODY - out.len()).unwrap_or(&chunk));
        if out.len() >= MAX_ERROR_BODY {
            break;
        }
    }
    out
}
