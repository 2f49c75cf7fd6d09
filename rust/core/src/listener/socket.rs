//! A client's connection with the deadlines that the HTTP implementation does not keep.
use std::io;
use std::pin::Pin;
use std::task::{Context, Poll};
use std::time::Duration;

use tokio::io::{AsyncRead, AsyncWrite, ReadBuf};
use tokio::net::TcpStream;
use tokio::time::{Sleep, sleep};

/// What an HTTP/2 client sends first (RFC 9113 §3.4). While a connection may still become one,
/// nothing else bounds the wait for its next byte.
const PREFACE: &[u8; 24] = b"PRI * HTTP/2.0\r\n\r\nSM\r\n\r\n";

/// A connection that must say soon what it speaks, and whose peer must go on reading.
pub(super) struct Socket {
    stream: TcpStream,
    /// How much of the preface has come; `None` once it is clear what is spoken.
    opening: Option<usize>,
    open_within: Duration,
    opens: Option<Pin<Box<Sleep>>>,
    write_within: Duration,
    writes: Option<Pin<Box<Sleep>>>,
}

impl Socket {
    /// `open_within` bounds the wait for the protocol, `write_within` that for a peer that does
    /// not take what is written.
    pub(super) fn new(stream: TcpStream, open_within: Duration, write_within: Duration) -> Self {
        Self {
            stream,
            opening: Some(0),
            open_within,
            opens: None,
            write_within,
            writes: None,
        }
    }

    /// Looks at what was read while the protocol is open.
    fn opened(&mut self, bytes: &[u8]) {
        let Some(seen) = self.opening else { return };
        let rest = PREFACE.get(seen..).unwrap_or_default();
        let same = bytes.iter().zip(rest).take_while(|(a, b)| a == b).count();
        let open = !bytes.is_empty() && same == bytes.len() && same < rest.len();
        self.opening = open.then_some(seen + same);
        if !open {
            self.opens = None;
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
        late(&mut self.writes, self.write_within, cx).map(Err)
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
        if self.opening.is_none() {
            return read;
        }
        if read.is_pending() {
            let this = &mut *self;
            return late(&mut this.opens, this.open_within, cx).map(Err);
        }
        self.opened(buf.filled().get(before..).unwrap_or_default());
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
