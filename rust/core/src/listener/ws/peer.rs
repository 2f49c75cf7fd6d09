//! One end of a WebSocket: what goes out in order and bounded, what comes in, and whether the other
//! side is still there.
use std::collections::VecDeque;
use std::future::poll_fn;
use std::pin::Pin;
use std::task::{Context, Poll, ready};
use std::time::Duration;

use bytes::Bytes;
use futures_util::{Sink, Stream};
use tokio::io::{AsyncRead, AsyncWrite, ReadBuf};
use tokio::time::{Instant, Sleep, sleep, timeout};
use tokio_tungstenite::WebSocketStream;
use tokio_tungstenite::tungstenite::error::{CapacityError, Error, ProtocolError};
use tokio_tungstenite::tungstenite::protocol::frame::coding::CloseCode;
use tokio_tungstenite::tungstenite::protocol::{CloseFrame, Role, WebSocketConfig};
use tokio_tungstenite::tungstenite::{Message, Utf8Bytes};

/// How long a connection waits for the other side's half of a close (RFC 6455 §7.1.1).
const CLOSE_WAIT: Duration = Duration::from_secs(5);
/// Pings in a row that may stay without any sign of life.
const MISSED_PINGS: u32 = 2;
/// What one read takes off the socket: few bytes, as most connections wait, and each try to read fills
/// them with zeros first.
const READ_BYTES: usize = 4 * 1024;
/// What is in line leaves in pieces of this size at least, and at the latest once all of it is there.
const WRITE_BYTES: usize = 16 * 1024;
/// How much is read and dropped of a side that goes on sending, bytes.
const MAX_DRAIN: usize = 64 << 20;
/// The longest reason that a close frame can carry (RFC 6455 §5.5), bytes.
const MAX_REASON: usize = 123;

/// What came from the other side.
#[derive(Debug)]
pub(super) enum Came {
    /// A text message.
    Text(Utf8Bytes),
    /// A binary message.
    Binary(Bytes),
    /// All that was to go out has gone.
    Flushed,
    /// Nothing more will come.
    Gone(Gone),
}

/// How a connection ended.
#[derive(Clone, Debug, PartialEq, Eq)]
pub(super) enum Gone {
    /// The other side closed it, and may have said why.
    Closed(Option<CloseFrame>),
    /// It broke the protocol: to be closed with this.
    Wrong(CloseCode, &'static str),
    /// It sends no sign of life.
    Silent,
    /// The connection broke.
    Lost,
}

/// One end of a WebSocket.
pub(super) struct Peer<S> {
    ws: WebSocketStream<S>,
    out: VecDeque<Message>,
    /// Something has been handed on that has not been written yet.
    unflushed: bool,
    /// A ping goes out then.
    tick: Pin<Box<Sleep>>,
    every: Duration,
    /// Pings since the last sign of life.
    missed: u32,
    /// What came cannot be read any more.
    is_broken: bool,
    /// How long one message may take to go out, where nothing else bounds that.
    stall: Option<Duration>,
    stalls: Option<Pin<Box<Sleep>>>,
}

impl<S: AsyncRead + AsyncWrite + Unpin> Peer<S> {
    /// A connection after its handshake. `max_message` bytes are the most that one message may have,
    /// `ping` is the time between two pings.
    pub(super) async fn new(stream: S, role: Role, max_message: usize, ping: Duration) -> Self {
        let config = WebSocketConfig::default()
            .read_buffer_size(READ_BYTES)
            .write_buffer_size(WRITE_BYTES)
            .max_message_size(Some(max_message))
            .max_frame_size(Some(max_message));
        Self {
            ws: WebSocketStream::from_raw_socket(stream, role, Some(config)).await,
            out: VecDeque::new(),
            unflushed: false,
            tick: Box::pin(sleep(ping)),
            every: ping,
            missed: 0,
            is_broken: false,
            stall: None,
            stalls: None,
        }
    }

    /// Gives up on the other side once it has not taken a message for so long.
    pub(super) fn stalling(mut self, after: Duration) -> Self {
        self.stall = Some(after);
        self
    }

    /// Puts a message in line.
    pub(super) fn push(&mut self, message: Message) {
        self.out.push_back(message);
    }

    /// Whether something has still to go out.
    pub(super) fn is_busy(&self) -> bool {
        self.unflushed || !self.out.is_empty()
    }

    /// How many messages are in line.
    pub(super) fn waiting(&self) -> usize {
        self.out.len()
    }

    /// Writes what is in line. Ready once all of it has gone.
    pub(super) fn poll_write(&mut self, cx: &mut Context<'_>) -> Poll<Result<(), Gone>> {
        let written = self.poll_out(cx);
        match self.stall {
            Some(after) if written.is_pending() => self
                .stalls
                .get_or_insert_with(|| Box::pin(sleep(after)))
                .as_mut()
                .poll(cx)
                .map(|()| Err(Gone::Lost)),
            _ => {
                self.stalls = None;
                written
            }
        }
    }

    fn poll_out(&mut self, cx: &mut Context<'_>) -> Poll<Result<(), Gone>> {
        while !self.out.is_empty() {
            ready!(Pin::new(&mut self.ws).poll_ready(cx)).map_err(|error| gone(&error))?;
            if let Some(message) = self.out.pop_front() {
                self.unflushed = true;
                let sent = Pin::new(&mut self.ws).start_send(message);
                sent.map_err(|error| gone(&error))?;
            }
        }
        if self.unflushed {
            ready!(Pin::new(&mut self.ws).poll_flush(cx)).map_err(|error| gone(&error))?;
            self.unflushed = false;
        }
        Poll::Ready(Ok(()))
    }

    /// The next message, or the end. Pings are answered, and sent.
    pub(super) fn poll_read(&mut self, cx: &mut Context<'_>) -> Poll<Came> {
        loop {
            let came = match Pin::new(&mut self.ws).poll_next(cx) {
                Poll::Ready(came) => came,
                Poll::Pending => break,
            };
            self.missed = 0;
            match came {
                Some(Ok(Message::Text(text))) => return Poll::Ready(Came::Text(text)),
                Some(Ok(Message::Binary(bytes))) => return Poll::Ready(Came::Binary(bytes)),
                Some(Ok(Message::Close(frame))) => {
                    return Poll::Ready(Came::Gone(Gone::Closed(frame)));
                }
                Some(Ok(Message::Ping(_) | Message::Pong(_) | Message::Frame(_))) => {}
                Some(Err(error)) => {
                    let gone = gone(&error);
                    self.is_broken = matches!(gone, Gone::Wrong(..));
                    return Poll::Ready(Came::Gone(gone));
                }
                None => return Poll::Ready(Came::Gone(Gone::Lost)),
            }
        }
        while self.tick.as_mut().poll(cx).is_ready() {
            let next = Instant::now() + self.every;
            self.tick.as_mut().reset(next);
            // Behind what the other side does not take no ping gets there; the write's own bound
            // ends that.
            if self.is_busy() {
                continue;
            }
            if self.missed >= MISSED_PINGS {
                return Poll::Ready(Came::Gone(Gone::Silent));
            }
            self.missed += 1;
            self.out.push_back(Message::Ping(Bytes::new()));
            if let Poll::Ready(Err(gone)) = self.poll_write(cx) {
                return Poll::Ready(Came::Gone(gone));
            }
        }
        Poll::Pending
    }

    /// What comes next, while what is in line goes out. Nothing is lost when this is dropped. Unless it
    /// `reads`, nothing is taken off the socket before all that is in line has gone.
    pub(super) async fn came(&mut self, reads: bool) -> Came {
        poll_fn(|cx| {
            if self.is_busy() {
                match self.poll_write(cx) {
                    Poll::Ready(Ok(())) => return Poll::Ready(Came::Flushed),
                    Poll::Ready(Err(gone)) => return Poll::Ready(Came::Gone(gone)),
                    Poll::Pending if !reads => return Poll::Pending,
                    Poll::Pending => {}
                }
            }
            self.poll_read(cx)
        })
        .await
    }

    /// Says goodbye: what is in line goes out first, and the other side has a moment to answer.
    pub(super) async fn close(mut self, code: CloseCode, reason: &str) {
        self.push(Message::Close(Some(CloseFrame {
            code,
            reason: short(reason).into(),
        })));
        self.end().await;
    }

    /// Ends a connection that is over: what is in line goes out, the answer to a close too.
    pub(super) async fn end(mut self) {
        let ending = async {
            let written = poll_fn(|cx| self.poll_write(cx)).await;
            // The answer to the other side's close waits there.
            self.unflushed = true;
            let flushed = poll_fn(|cx| self.poll_write(cx)).await;
            if written.and(flushed).is_ok() {
                while !matches!(poll_fn(|cx| self.poll_read(cx)).await, Came::Gone(_)) {}
                if self.is_broken {
                    self.linger().await;
                }
            }
        };
        // One that takes longer finds the connection closed.
        let _ = timeout(CLOSE_WAIT, ending).await;
    }
}

impl<S: AsyncRead + AsyncWrite + Unpin> Peer<S> {
    /// Closes for writing, and drops what comes until the other side closes too, up to a bound:
    /// unread, what is still on its way of a message that was refused would turn the close into a
    /// reset before it is read.
    async fn linger(&mut self) {
        let stream = self.ws.get_mut();
        let shut = poll_fn(|cx| Pin::new(&mut *stream).poll_shutdown(cx)).await;
        if shut.is_err() {
            return;
        }
        let mut left = MAX_DRAIN;
        let mut bytes = [0; 4096];
        while left > 0 {
            let mut read = ReadBuf::new(&mut bytes);
            let stream = self.ws.get_mut();
            let came = poll_fn(|cx| Pin::new(&mut *stream).poll_read(cx, &mut read)).await;
            if came.is_err() || read.filled().is_empty() {
                return;
            }
            left = left.saturating_sub(read.filled().len());
        }
    }
}

/// As much of a reason as a close frame carries.
fn short(reason: &str) -> String {
    let mut end = reason.len().min(MAX_REASON);
    while !reason.is_char_boundary(end) {
        end -= 1;
    }
    reason.get(..end).unwrap_or_default().to_owned()
}

/// What an error means for the connection.
fn gone(error: &Error) -> Gone {
    match error {
        Error::Capacity(CapacityError::MessageTooLong { .. }) => {
            Gone::Wrong(CloseCode::Size, "the message is too large")
        }
        Error::Capacity(_) => Gone::Wrong(CloseCode::Size, "too large"),
        Error::Utf8(_) => Gone::Wrong(CloseCode::Invalid, "text is not UTF-8"),
        Error::Protocol(ProtocolError::ResetWithoutClosingHandshake)
        | Error::ConnectionClosed
        | Error::AlreadyClosed => Gone::Lost,
        Error::Protocol(ProtocolError::UnmaskedFrameFromClient) => {
            Gone::Wrong(CloseCode::Protocol, "a frame is not masked")
        }
        Error::Protocol(_) => Gone::Wrong(CloseCode::Protocol, "a frame breaks RFC 6455"),
        _ => Gone::Lost,
    }
}

#[cfg(test)]
mod tests {
    use tokio::io::{AsyncReadExt, AsyncWriteExt, DuplexStream, duplex};
    use tokio::time::advance;

    use super::*;

    const PING: Duration = Duration::from_secs(20);

    /// A server's end, with room for `bytes` on the way, and the raw other end.
    async fn server(bytes: usize) -> (Peer<DuplexStream>, DuplexStream) {
        let (ours, theirs) = duplex(bytes);
        (Peer::new(ours, Role::Server, 1000, PING).await, theirs)
    }

    /// What has come at the other end, at most `length` bytes.
    async fn sent(theirs: &mut DuplexStream, length: usize) -> Vec<u8> {
        let mut bytes = vec![0; length];
        let read = theirs.read(&mut bytes).await.unwrap_or_default();
        bytes.truncate(read);
        bytes
    }

    #[tokio::test(start_paused = true)]
    async fn one_that_answers_pings_is_there_and_one_that_does_not_is_not() {
        let (mut peer, mut theirs) = server(1000).await;
        let pong = [0x8a, 0x80, 0, 0, 0, 0];
        for _ in 0..5 {
            let quiet = timeout(Duration::from_secs(21), peer.came(true)).await;
            assert!(quiet.is_err());
            assert_eq!(sent(&mut theirs, 10).await, [0x89, 0]);
            assert!(theirs.write_all(&pong).await.is_ok());
        }
        let since = Instant::now();
        assert!(matches!(peer.came(true).await, Came::Gone(Gone::Silent)));
        let waited = since.elapsed();
        assert!(waited >= 2 * PING && waited <= 4 * PING, "{waited:?}");
    }

    #[tokio::test(start_paused = true)]
    async fn what_is_not_taken_has_no_pings_behind_it() {
        let (mut peer, _theirs) = server(16).await;
        peer.push(Message::Text("x".repeat(500).into()));
        assert!(timeout(10 * PING, peer.came(true)).await.is_err());
        assert!(peer.is_busy());
        assert_eq!(peer.waiting(), 0);
    }

    #[tokio::test(start_paused = true)]
    async fn a_side_that_takes_nothing_is_given_up_where_that_is_asked_for() {
        let (peer, _theirs) = server(16).await;
        let mut peer = peer.stalling(Duration::from_secs(30));
        peer.push(Message::Text("x".repeat(500).into()));
        let since = Instant::now();
        assert!(matches!(peer.came(true).await, Came::Gone(Gone::Lost)));
        assert_eq!(since.elapsed().as_secs(), 30);
    }

    #[tokio::test(start_paused = true)]
    async fn nothing_is_read_before_what_is_in_line_has_gone_where_that_is_asked_for() {
        let (mut peer, mut theirs) = server(16).await;
        peer.push(Message::Text("x".repeat(100).into()));
        // A masked "a".
        assert!(
            theirs
                .write_all(&[0x81, 0x81, 0, 0, 0, 0, b'a'])
                .await
                .is_ok()
        );
        assert!(timeout(PING, peer.came(false)).await.is_err());
        assert!(matches!(peer.came(true).await, Came::Text(_)));
        let reading =
            tokio::spawn(async move { sent(&mut theirs, 1).await.len() + drained(theirs).await });
        assert!(matches!(peer.came(false).await, Came::Flushed));
        drop(peer);
        assert!(reading.await.is_ok_and(|read| read == 102));
    }

    async fn drained(mut theirs: DuplexStream) -> usize {
        theirs
            .read_to_end(&mut Vec::new())
            .await
            .unwrap_or_default()
    }

    #[tokio::test]
    async fn all_in_line_goes_out_before_it_is_told() {
        let (mut peer, mut theirs) = server(1000).await;
        for text in ["a", "b"] {
            peer.push(Message::Text(text.into()));
        }
        assert!(peer.is_busy());
        assert!(matches!(peer.came(true).await, Came::Flushed));
        assert!(!peer.is_busy());
        assert_eq!(sent(&mut theirs, 10).await, b"\x81\x01a\x81\x01b");
    }

    #[tokio::test(start_paused = true)]
    async fn a_close_says_why_and_waits_a_moment() {
        let (peer, mut theirs) = server(1000).await;
        let closing = tokio::spawn(async move {
            peer.close(CloseCode::Away, &"ü".repeat(100)).await;
        });
        let frame = sent(&mut theirs, 200).await;
        // A reason of 100 letters of two bytes is cut between two of them.
        assert_eq!(frame.get(..4), Some(&[0x88, 124, 0x03, 0xe9][..]));
        assert_eq!(frame.len(), 2 + 2 + 122);
        advance(CLOSE_WAIT).await;
        assert!(closing.await.is_ok());
    }

    #[test]
    fn reasons_are_cut_at_a_letter() {
        assert_eq!(short("why"), "why");
        assert_eq!(short(&"ü".repeat(100)).len(), 122);
    }
}
