//! The answer of one exchange, cut into what its events hold.
use std::future::poll_fn;
use std::task::{Context, Poll, ready};

use bytes::Bytes;

use super::super::body::Guard;
use crate::error::{Error, Kind};
use crate::slot::Head;
use crate::sse::Decoder;

/// Longest event that is told. Above what an engine's may have: a voice's last ones say again what was
/// asked for, and all that was answered.
const MAX_EVENT_BYTES: usize = 64 << 20;

/// What comes of an answer.
#[derive(Debug, PartialEq, Eq)]
pub(super) enum Piece {
    /// The data of events, those that were ready together.
    Events(Vec<Bytes>),
    /// The whole answer in one piece.
    Whole(Bytes),
    /// A refusal: its status, its body, its request's id, and when to come back.
    Refused {
        status: u16,
        body: Bytes,
        request_id: Option<String>,
        retry_after_ms: Option<u64>,
    },
    /// The next event is longer than one may be: nothing more is told.
    TooLarge,
    /// Nothing more.
    End,
}

/// What the client is told of an event that is too large.
pub(super) fn too_large() -> Error {
    Error::new(
        Kind::UpstreamError,
        "An event of the answer is too large for this connection.",
    )
}

/// The answer of one exchange. Dropped, it stops the exchange.
pub(super) struct Answer {
    guard: Guard,
    decoder: Decoder,
    stage: Stage,
}

#[derive(Clone, Copy, PartialEq, Eq)]
enum Stage {
    Head,
    Body,
    TooLarge,
    Over,
}

impl Answer {
    /// Of an exchange that has started.
    pub(super) fn new(guard: Guard) -> Self {
        Self::bounded(guard, MAX_EVENT_BYTES)
    }

    /// An event has `most` bytes at most.
    fn bounded(guard: Guard, most: usize) -> Self {
        Self {
            guard,
            decoder: Decoder::new(most),
            stage: Stage::Head,
        }
    }

    /// What comes next. Nothing is lost when this is dropped.
    pub(super) async fn next(&mut self) -> Piece {
        poll_fn(|cx| self.poll_next(cx)).await
    }

    fn poll_next(&mut self, cx: &mut Context<'_>) -> Poll<Piece> {
        if self.stage == Stage::Head {
            let Some(head) = ready!(self.guard.0.poll_head(cx)) else {
                self.stage = Stage::Over;
                return Poll::Ready(Piece::End);
            };
            if !head.more {
                self.stage = Stage::Over;
                return Poll::Ready(whole(head));
            }
            self.stage = Stage::Body;
        }
        while self.stage == Stage::Body {
            let events: Vec<Bytes> = if let Some(bytes) = ready!(self.guard.0.poll_bytes(cx)) {
                if self.decoder.feed(bytes).is_err() {
                    self.stage = Stage::TooLarge;
                }
                std::iter::from_fn(|| self.decoder.next())
                    .filter_map(|frame| frame.data())
                    .collect()
            } else {
                self.stage = Stage::Over;
                let last = self.decoder.finish();
                last.and_then(|frame| frame.data()).into_iter().collect()
            };
            if !events.is_empty() {
                return Poll::Ready(Piece::Events(events));
            }
        }
        if self.stage == Stage::TooLarge {
            self.stage = Stage::Over;
            return Poll::Ready(Piece::TooLarge);
        }
        Poll::Ready(Piece::End)
    }
}

fn whole(head: Head) -> Piece {
    if head.status < 400 {
        return Piece::Whole(head.body);
    }
    let header = |wanted: &str| {
        let found = head.headers.iter().find(|(name, _)| name == wanted);
        found.and_then(|(_, value)| value.to_str().ok())
    };
    Piece::Refused {
        status: head.status,
        request_id: header("x-request-id").map(str::to_owned),
        retry_after_ms: header("retry-after-ms").and_then(|text| text.parse().ok()),
        body: head.body.clone(),
    }
}

#[cfg(test)]
mod tests {
    use std::sync::Arc;
    use std::task::Waker;

    use http::{HeaderName, HeaderValue};

    use super::*;
    use crate::slot::Slot;

    fn head(status: u16, body: &'static [u8], more: bool) -> Head {
        Head {
            status,
            headers: vec![
                (
                    HeaderName::from_static("x-request-id"),
                    HeaderValue::from_static("req_1"),
                ),
                (
                    HeaderName::from_static("retry-after-ms"),
                    HeaderValue::from_static("1500"),
                ),
            ],
            body: Bytes::from_static(body),
            more,
        }
    }

    fn next(answer: &mut Answer) -> Option<Piece> {
        match answer.poll_next(&mut Context::from_waker(Waker::noop())) {
            Poll::Ready(piece) => Some(piece),
            Poll::Pending => None,
        }
    }

    #[test]
    fn events_are_their_data_and_comments_are_none() {
        let slot = Arc::new(Slot::new());
        let mut answer = Answer::new(Guard(Arc::clone(&slot)));
        assert_eq!(next(&mut answer), None);
        slot.start(head(200, b"", true));
        slot.write(|out| out.extend_from_slice(b": wait\n\ndata: 1\n\nevent: x\ndata: 2\n\nda"));
        let events = |list: &[&'static str]| {
            Some(Piece::Events(
                list.iter()
                    .map(|text| Bytes::from_static(text.as_bytes()))
                    .collect(),
            ))
        };
        assert_eq!(next(&mut answer), events(&["1", "2"]));
        assert_eq!(next(&mut answer), None);
        slot.write(|out| out.extend_from_slice(b"ta: [DONE]\n\n"));
        assert_eq!(next(&mut answer), events(&["[DONE]"]));
        slot.finish();
        assert_eq!(next(&mut answer), Some(Piece::End));
        assert_eq!(next(&mut answer), Some(Piece::End));
    }

    #[test]
    fn an_event_that_is_too_large_is_no_end() {
        let slot = Arc::new(Slot::new());
        let mut answer = Answer::bounded(Guard(Arc::clone(&slot)), 20);
        slot.start(head(200, b"", true));
        slot.write(|out| {
            out.extend_from_slice(b"data: 1\n\ndata: 345678901234567890\n\ndata: 3\n\n");
        });
        let first = Piece::Events(vec![Bytes::from_static(b"1")]);
        assert_eq!(next(&mut answer), Some(first));
        assert_eq!(next(&mut answer), Some(Piece::TooLarge));
        assert_eq!(next(&mut answer), Some(Piece::End));
    }

    #[test]
    fn whole_answers_and_refusals_are_told_apart() {
        let slot = Arc::new(Slot::new());
        slot.start(head(200, b"{}", false));
        let mut answer = Answer::new(Guard(slot));
        assert_eq!(
            next(&mut answer),
            Some(Piece::Whole(Bytes::from_static(b"{}")))
        );
        assert_eq!(next(&mut answer), Some(Piece::End));
        let slot = Arc::new(Slot::new());
        slot.start(head(429, b"{\"error\":{}}", false));
        let mut answer = Answer::new(Guard(slot));
        let refused = Piece::Refused {
            status: 429,
            body: Bytes::from_static(b"{\"error\":{}}"),
            request_id: Some("req_1".to_owned()),
            retry_after_ms: Some(1500),
        };
        assert_eq!(next(&mut answer), Some(refused));
    }

    #[test]
    fn a_dropped_answer_stops_its_exchange() {
        let slot = Arc::new(Slot::new());
        drop(Answer::new(Guard(Arc::clone(&slot))));
        assert!(slot.is_cancelled());
    }
}
