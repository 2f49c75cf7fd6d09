//! The little HTTP/1.1 that both sides need: heads, chunked bodies, server-sent events.

use std::io;

use memchr::memmem;

/// What a message head says about its body and its connection.
#[derive(Clone, Copy, Debug, Default, PartialEq, Eq)]
pub(crate) struct Framing {
    /// `content-length`, when given.
    pub(crate) length: Option<usize>,
    /// `transfer-encoding: chunked`.
    pub(crate) chunked: bool,
    /// `connection: close`.
    pub(crate) close: bool,
    /// `expect: 100-continue`.
    pub(crate) expects_continue: bool,
}

/// An `InvalidData` error with a message.
pub(crate) fn bad(message: &str) -> io::Error {
    io::Error::new(io::ErrorKind::InvalidData, message)
}

/// Reads the framing out of parsed headers. Fails on a length that is not a number.
pub(crate) fn framing(headers: &[httparse::Header<'_>]) -> io::Result<Framing> {
    let mut out = Framing::default();
    for header in headers {
        let value = header.value.trim_ascii();
        if header.name.eq_ignore_ascii_case("content-length") {
            let number = std::str::from_utf8(value).ok().and_then(|s| s.parse().ok());
            out.length = Some(number.ok_or_else(|| bad("content-length is not a number"))?);
        } else if header.name.eq_ignore_ascii_case("transfer-encoding") {
            out.chunked = value.to_ascii_lowercase().ends_with(b"chunked");
        } else if header.name.eq_ignore_ascii_case("connection") {
            out.close = value.eq_ignore_ascii_case(b"close");
        } else if header.name.eq_ignore_ascii_case("expect") {
            out.expects_continue = value.eq_ignore_ascii_case(b"100-continue");
        }
    }
    Ok(out)
}

/// Takes chunked coding off a body, however it is cut. Trailers are skipped.
#[derive(Debug, Default)]
pub(crate) struct Dechunker {
    state: ChunkState,
}

#[derive(Clone, Copy, Debug, PartialEq, Eq)]
enum ChunkState {
    Size { value: usize, digits: u8 },
    Extension { value: usize },
    SizeLf { value: usize },
    Data { left: usize },
    DataCr,
    DataLf,
    TrailerStart,
    Trailer,
    TrailerLf,
    LastLf,
    Done,
}

impl Default for ChunkState {
    fn default() -> Self {
        Self::Size {
            value: 0,
            digits: 0,
        }
    }
}

impl Dechunker {
    /// True once the last chunk and its trailers have been read.
    pub(crate) fn done(&self) -> bool {
        self.state == ChunkState::Done
    }

    /// Feeds `input`, hands each piece of body to `sink`, returns how many bytes were used: fewer
    /// than all only when the body ended. Fails on malformed coding.
    pub(crate) fn feed(&mut self, input: &[u8], mut sink: impl FnMut(&[u8])) -> io::Result<usize> {
        let mut at = 0;
        while let Some(&byte) = input.get(at) {
            self.state = match self.state {
                ChunkState::Data { left } => {
                    let end = input.len().min(at + left);
                    sink(input.get(at..end).unwrap_or_default());
                    let left = left - (end - at);
                    at = end;
                    if left == 0 {
                        ChunkState::DataCr
                    } else {
                        ChunkState::Data { left }
                    }
                }
                ChunkState::Done => return Ok(at),
                other => {
                    at += 1;
                    step(other, byte)?
                }
            };
        }
        Ok(at)
    }
}

fn step(state: ChunkState, byte: u8) -> io::Result<ChunkState> {
    let after_size = |value: usize| match value {
        0 => ChunkState::TrailerStart,
        left => ChunkState::Data { left },
    };
    match (state, byte) {
        (ChunkState::Size { value, digits }, b'\r') if digits > 0 => {
            Ok(ChunkState::SizeLf { value })
        }
        (ChunkState::Size { value, digits }, b';' | b' ' | b'\t') if digits > 0 => {
            Ok(ChunkState::Extension { value })
        }
        (ChunkState::Size { value, digits }, _) => {
            let digit = (byte as char).to_digit(16).filter(|_| digits < 8);
            let digit = digit.ok_or_else(|| bad("chunk size is not a number"))?;
            Ok(ChunkState::Size {
                value: value << 4 | digit as usize,
                digits: digits + 1,
            })
        }
        (ChunkState::Extension { value }, b'\r') => Ok(ChunkState::SizeLf { value }),
        (ChunkState::Extension { .. }, _) => Ok(state),
        (ChunkState::SizeLf { value }, b'\n') => Ok(after_size(value)),
        (ChunkState::DataCr, b'\r') => Ok(ChunkState::DataLf),
        (ChunkState::DataLf, b'\n') => Ok(ChunkState::default()),
        (ChunkState::TrailerStart, b'\r') => Ok(ChunkState::LastLf),
        (ChunkState::TrailerStart | ChunkState::Trailer, b) if b != b'\r' => {
            Ok(ChunkState::Trailer)
        }
        (ChunkState::Trailer, _) => Ok(ChunkState::TrailerLf),
        (ChunkState::TrailerLf, b'\n') => Ok(ChunkState::TrailerStart),
        (ChunkState::LastLf, b'\n') => Ok(ChunkState::Done),
        _ => Err(bad("malformed chunked body")),
    }
}

/// Splits a stream into events at blank lines (`\n\n`, as every engine and gateway measured here
/// writes them), however it is cut.
#[derive(Debug, Default)]
pub(crate) struct EventSplitter {
    carry: Vec<u8>,
}

/// Longest event that the client keeps while it waits for its end.
const MAX_EVENT: usize = 1 << 20;

impl EventSplitter {
    /// Feeds `input` and hands each whole event, without its blank line, to `sink`.
    pub(crate) fn feed(&mut self, input: &[u8], mut sink: impl FnMut(&[u8])) -> io::Result<()> {
        let mut rest = input;
        if !self.carry.is_empty() {
            // The blank line itself may be cut in two: look from one byte before the seam.
            let seam = self.carry.len() - 1;
            self.carry.extend_from_slice(rest);
            let tail = self.carry.get(seam..).unwrap_or_default();
            let Some(found) = memmem::find(tail, b"\n\n") else {
                return self.bounded();
            };
            let end = seam + found;
            sink(self.carry.get(..end).unwrap_or_default());
            rest = rest.get(end + 1 - seam..).unwrap_or_default();
            self.carry.clear();
        }
        while let Some(end) = memmem::find(rest, b"\n\n") {
            let (event, after) = rest.split_at(end);
            sink(event);
            rest = after.get(2..).unwrap_or_default();
        }
        self.carry.extend_from_slice(rest);
        self.bounded()
    }

    /// Bytes held of an event that has not ended.
    pub(crate) fn held(&self) -> usize {
        self.carry.len()
    }

    fn bounded(&self) -> io::Result<()> {
        if self.carry.len() > MAX_EVENT {
            Err(bad("event over 1 MiB"))
        } else {
            Ok(())
        }
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    fn cuts(input: &[u8], size: usize) -> impl Iterator<Item = &[u8]> {
        input.chunks(size)
    }

    #[test]
    fn chunked_bodies_come_out_whole_in_every_cut() {
        let coded = b"5\r\nhello\r\n1;x=y\r\n \r\n00000005 \r\nworld\r\n0\r\nA: b\r\n\r\nNEXT";
        for size in 1..=coded.len() {
            let (mut decoder, mut body, mut used) = (Dechunker::default(), Vec::new(), 0);
            for piece in cuts(coded, size) {
                if !decoder.done() {
                    used += decoder
                        .feed(piece, |part| body.extend_from_slice(part))
                        .unwrap();
                }
            }
            assert!(decoder.done());
            assert_eq!(body, b"hello world");
            assert_eq!(&coded[used..], b"NEXT");
        }
    }

    #[test]
    fn malformed_chunks_are_refused() {
        for wrong in [
            &b"x\r\n"[..],
            b"\r\n",
            b"1\r\naX",
            b"0\r\n\rX",
            b"123456789\r\n",
        ] {
            assert!(
                Dechunker::default().feed(wrong, |_| ()).is_err(),
                "{wrong:?}"
            );
        }
    }

    #[test]
    fn events_are_the_same_in_every_cut() {
        let stream = b"data: a\n\ndata: b\nid: 1\n\n\n\ndata: c\n\nrest";
        for size in 1..=stream.len() {
            let (mut splitter, mut events) = (EventSplitter::default(), Vec::new());
            for piece in cuts(stream, size) {
                splitter
                    .feed(piece, |event| events.push(event.to_vec()))
                    .unwrap();
            }
            let want: [&[u8]; 4] = [b"data: a", b"data: b\nid: 1", b"", b"data: c"];
            assert_eq!(events, want, "cut at {size}");
            assert_eq!(splitter.held(), 4);
        }
    }

    #[test]
    fn framing_reads_what_matters() {
        let header = |name, value: &'static str| httparse::Header {
            name,
            value: value.as_bytes(),
        };
        let got = framing(&[
            header("Content-Length", "12"),
            header("CONNECTION", "Close"),
        ]);
        let want = Framing {
            length: Some(12),
            close: true,
            ..Framing::default()
        };
        assert_eq!(got.unwrap(), want);
        assert!(
            framing(&[header("transfer-encoding", "gzip, chunked")])
                .unwrap()
                .chunked
        );
        assert!(framing(&[header("content-length", "1x")]).is_err());
    }
}
