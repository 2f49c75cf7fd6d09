//! A client's connection with the deadlines that the HTTP implementation does not keep.
//!
//! Its own deadline for a request's head runs from the last answer on, and so would close a
//! connection that is merely idle as soon as a slow head. Proxies keep theirs for a minute.
use std::io;
use std::pin::Pin;
use std::sync::Arc;
use std::task::{Context, Poll};
use std::time::Duration;

use tokio::io::{AsyncRead, AsyncWrite, ReadBuf};
use tokio::net::TcpStream;
use tokio::time::{Sleep, sleep};

use super::life::Life;

/// What an HTTP/2 client sends first (RFC 9113 §3.4). While a connection may still become one,
/// nothing else bounds the wait for its next byte.
const PREFACE: &[u8; 24] = b"PRI * HTTP/2.0\r\n\r\nSM\r\n\r\n";

/// How long a client may take over what.
#[derive(Clone, Copy)]
pub(super) struct Deadlines {
    /// To say what it speaks, and for a request's head.
    pub(super) head: Duration,
    /// Between two requests over HTTP/1.
    pub(super) idle: Duration,
    /// To take what is written.
    pub(super) write: Duration,
}

/// A connection that must say soon what it speaks, and whose peer must go on reading.
pub(super) struct Socket {
    stream: TcpStream,
    /// How much of the preface has come; `None` once it is clear what is spoken.
    opening: Option<usize>,
    within: Deadlines,
    life: Arc<Life>,
    /// Requests that had come when `reads` was set.
    requests: u64,
    /// A part of a head is there.
    head: bool,
    reads: Option<Pin<Box<Sleep>>>,
    writes: Option<Pin<Box<Sleep>>>,
}

impl Socket {
    /// `life`: what is known of its requests.
    pub(super) fn new(stream: TcpStream, within: Deadlines, life: Arc<Life>) -> Self {
        Self {
            stream,
            opening: Some(0),
            within,
            life,
            requests: 0,
            head: false,
            reads: None,
            writes: None,
        }
    }

    /// Nothing came: fails once that has lasted too long.
    fn nothing(&mut self, cx: &mut Context<'_>) -> Poll<io::Result<()>> {
        let (requests, running) = self.life.requests();
        if self.opening.is_none() {
            if self.life.is_multiplexed() {
                return Poll::Pending;
            }
            if requests != self.requests || running {
                (self.requests, self.head, self.reads) = (requests, false, None);
            }
            if running {
                self.life.when_idle(cx);
                return Poll::Pending;
            }
        }
        let time = if self.head || self.requests == 0 {
            self.within.head
        } else {
            self.within.idle
        };
        late(&mut self.reads, time, cx).map(Err)
    }

    /// Something came: where no request runs it is the begin of one's head, or more of it.
    fn something(&mut self) {
        let (requests, running) = self.life.requests();
        let known = self.head && requests == self.requests;
        if !(running || known) {
            (self.requests, self.head, self.reads) = (requests, true, None);
        }
    }

    /// Looks at what was read while the protocol is open.
    fn opened(&mut self, bytes: &[u8]) {
        let Some(seen) = self.opening else { return };
        let rest = PREFACE.get(seen..).unwrap_or_default();
        let same = bytes.iter().zip(rest).take_while(|(a, b)| a == b).count();
        let open = !bytes.is_empty() && same == bytes.len() && same < rest.len();
        self.opening = open.then_some(seen + same);
        if seen + same == PREFACE.len() {
            self.life.is_http2();
        }
    }

    /// Passes a write's result on; a peer that has stood still for too long fails it.
    fn moved<T>(
        &mut self,
        cx: &mut Context<'_>,
        result: Poll<io::Result<T>>,
    ) -> Poll<io::Result<T>> {
        if result.is_ready() {
            self.writes = None;
            return result;
        }
        late(&mut self.writes, self.within.write, cx).map(Err)
    }
}

/// Ready, with the error, once `time` has passed since the first call.
fn late(
    deadline: &mut Option<Pin<Box<Sleep>>>,
    time: Duration,
    cx: &mut Context<'_>,
) -> Poll<io::Error> {
    deadline
        .get_or_insert_with(|| Box::pin(sleep(time)))
        .as_mut()
        .poll(cx)
        .map(|()| io::ErrorKind::TimedOut.into())
}

impl AsyncRead for Socket {
    fn poll_read(
        mut self: Pin<&mut Self>,
        cx: &mut Context<'_>,
        buf: &mut ReadBuf<'_>,
    ) -> Poll<io::Result<()>> {
        let before = buf.filled().len();
        let read = Pin::new(&mut self.stream).poll_read(cx, buf);
        if read.is_pending() {
            return self.nothing(cx);
        }
        self.opened(buf.filled().get(before..).unwrap_or_default());
        self.something();
        read
    }
}

impl AsyncWrite for Socket {
    fn poll_write(
        mut self: Pin<&mut Self>,
        cx: &mut Context<'_>,
        buf: &[u8],
    ) -> Poll<io::Result<usize>> {
        let result = Pin::new(&mut self.stream).poll_write(cx, buf);
        self.moved(cx, result)
    }

    fn poll_write_vectored(
        mut self: Pin<&mut Self>,
        cx: &mut Context<'_>,
        bufs: &[io::IoSlice<'_>],
    ) -> Poll<io::Result<usize>> {
        let result = Pin::new(&mut self.stream).poll_write_vectored(cx, bufs);
        self.moved(cx, result)
    }

    fn is_write_vectored(&self) -> bool {
        self.stream.is_write_vectored()
    }

    fn poll_flush(mut self: Pin<&mut Self>, cx: &mut Context<'_>) -> Poll<io::Result<()>> {
        Pin::new(&mut self.stream).poll_flush(cx)
    }

    fn poll_shutdown(mut self: Pin<&mut Self>, cx: &mut Context<'_>) -> Poll<io::Result<()>> {
        Pin::new(&mut self.stream).poll_shutdown(cx)
    }
}
