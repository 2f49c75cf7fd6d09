//! Server-sent events: a sans-io decoder and encoder to the WHATWG event-stream rules.
//!
//! [`Decoder`] cuts a byte stream into [`Frame`]s (one event each, as its exact bytes) and
//! [`Frame::parse`] reads the fields of one. Cutting and reading are apart because a relay passes
//! most frames on unread.
//!
//! Source: WHATWG HTML, 9.2.5 "Parsing an event stream" and 9.2.6 "Interpreting an event stream".
//! Two departures, both for a relay: fields stay bytes (no lossy UTF-8 decoding), and an event
//! cut off by the end of the stream is handed out, marked incomplete, instead of dropped.
use bytes::{BufMut, Bytes, BytesMut};
use memchr::memchr2;

const BOM: [u8; 3] = [0xEF, 0xBB, 0xBF];

/// An event is longer than the decoder may hold.
#[derive(Debug, Clone, Copy, PartialEq, Eq, thiserror::Error)]
#[error("server-sent event exceeds {limit} bytes")]
pub struct TooLarge {
    /// The bound given to [`Decoder::new`], bytes.
    pub limit: usize,
}

/// Cuts an event stream, fed in any chunking, into frames.
///
/// A frame inside one chunk is a slice of that chunk; only a frame that spans chunks is copied.
/// The events are the same for every chunking. Their raw bytes are too, but for one case: where a
/// chunk ends on the CR of a blank line, the frame is delivered without waiting to see whether an
/// LF follows, and such an LF then stands at the front of the next frame (or in
/// [`Decoder::take_rest`]), where it means nothing. Extra blank lines between events go the same
/// way, so neither makes an empty event and the raw bytes joined are always the stream.
#[derive(Debug, Clone)]
pub struct Decoder {
    limit: usize,
    /// The start of the current frame, from chunks before `chunk`.
    partial: BytesMut,
    /// Fed and not yet scanned; `scan` stands at its first byte.
    chunk: Bytes,
    scan: Scan,
    overflowed: bool,
}

impl Decoder {
    /// A decoder at the start of a stream.
    ///
    /// max_event_bytes: the longest raw event accepted, blank lines before it included, bytes.
    pub fn new(max_event_bytes: usize) -> Self {
        Self {
            limit: max_event_bytes,
            partial: BytesMut::new(),
            chunk: Bytes::new(),
            scan: Scan::new(),
            overflowed: false,
        }
    }

    /// Take the next bytes of the stream.
    ///
    /// Call [`next`](Self::next) until it gives None before feeding again: what has not been
    /// taken by then is copied together with the new chunk.
    ///
    /// Errors: an event is longer than the bound. The frames before it can still be taken; it and
    /// all after it are dropped, and every later call fails the same way.
    pub fn feed(&mut self, chunk: Bytes) -> Result<(), TooLarge> {
        let too_large = TooLarge { limit: self.limit };
        if self.overflowed {
            return Err(too_large);
        }
        if self.chunk.is_empty() {
            self.chunk = chunk;
        } else if !chunk.is_empty() {
            let mut joined = BytesMut::with_capacity(self.chunk.len() + chunk.len());
            joined.extend_from_slice(&self.chunk);
            joined.extend_from_slice(&chunk);
            self.chunk = joined.freeze();
        }
        // Nothing held can exceed the bound unless all of it together does, so the usual chunk
        // is not scanned twice.
        if self.partial.len() + self.chunk.len() > self.limit
            && let Some(end) = self.end_before_oversize()
        {
            self.overflowed = true;
            self.chunk.truncate(end);
            if end == 0 {
                self.partial.clear();
            }
            return Err(too_large);
        }
        Ok(())
    }

    /// The next whole frame, or None until more is fed.
    #[expect(
        clippy::should_implement_trait,
        reason = "None means 'feed more', not the end, so this is no iterator"
    )]
    #[inline]
    pub fn next(&mut self) -> Option<Frame> {
        if self.chunk.is_empty() {
            return None;
        }
        let Some(end) = self.scan.frame_end(&self.chunk) else {
            // Copied, not kept as a slice: a few bytes must not pin a whole read buffer.
            self.partial.extend_from_slice(&self.chunk);
            self.chunk = Bytes::new();
            return None;
        };
        let part = if end == self.chunk.len() {
            std::mem::take(&mut self.chunk)
        } else {
            self.chunk.split_to(end)
        };
        let raw = if self.partial.is_empty() {
            part
        } else {
            self.partial.extend_from_slice(&part);
            self.partial.split().freeze()
        };
        Some(Frame {
            raw,
            complete: true,
            has_bom: self.scan.take_bom(),
        })
    }

    /// What is left once the stream has ended: an event without its blank line, or None where
    /// nothing but line ends is left. Frames not yet taken come first.
    pub fn finish(&mut self) -> Option<Frame> {
        if let Some(frame) = self.next() {
            return Some(frame);
        }
        if self.partial.is_empty() || !self.scan.in_event() {
            return None;
        }
        let raw = self.partial.split().freeze();
        let has_bom = self.scan.take_bom();
        self.scan = Scan {
            bom: Bom::Past,
            ..Scan::new()
        };
        Some(Frame {
            raw,
            complete: false,
            has_bom,
        })
    }

    /// The bytes that belong to no frame, once [`finish`](Self::finish) has given None: line ends
    /// after the last event, often none.
    pub fn take_rest(&mut self) -> Bytes {
        self.partial.split().freeze()
    }

    /// Bytes held for the event that is not whole yet; never above the bound.
    pub fn buffered(&self) -> usize {
        self.partial.len()
    }

    /// Where in `chunk` the last frame before one above the bound ends; None if none is above.
    fn end_before_oversize(&self) -> Option<usize> {
        let mut scan = self.scan;
        let mut held = self.partial.len();
        let mut start = 0;
        loop {
            let rest = self.chunk.get(start..).unwrap_or_default();
            let end = scan.frame_end(rest);
            if held + end.unwrap_or(rest.len()) > self.limit {
                return Some(start);
            }
            start += end?;
            held = 0;
        }
    }
}

/// The byte order mark that may open a stream.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
enum Bom {
    /// At the stream's start, this many bytes of it matched so far: 0 to 2.
    Matched(usize),
    /// The current frame is the first one and begins with it.
    Leads,
    /// There was none, or it lies behind.
    Past,
}

/// Where the scan stands within the stream's lines; carried from chunk to chunk.
#[derive(Debug, Clone, Copy)]
struct Scan {
    bom: Bom,
    /// The frame has a line that is not blank.
    has_line: bool,
    /// The current line has a byte.
    in_line: bool,
    /// The last byte was a CR: an LF now belongs to the same line end.
    after_cr: bool,
}

impl Scan {
    const fn new() -> Self {
        Self {
            bom: Bom::Matched(0),
            has_line: false,
            in_line: false,
            after_cr: false,
        }
    }

    /// Advance to the end of the current frame, or over all of `bytes` where it has none.
    #[inline]
    fn frame_end(&mut self, bytes: &[u8]) -> Option<usize> {
        let mut at = 0;
        if let Bom::Matched(seen) = self.bom {
            at = self.skip_bom(bytes, seen);
        }
        if self.after_cr {
            match bytes.get(at) {
                Some(b'\n') => at += 1,
                Some(_) => {}
                None => return None,
            }
            self.after_cr = false;
        }
        loop {
            // At the start of a line, unless a chunk ended within it.
            if !self.in_line {
                match bytes.get(at)? {
                    b'\n' => at += 1,
                    b'\r' => at += self.cr_len(bytes, at),
                    _ => {
                        self.in_line = true;
                        self.has_line = true;
                        continue;
                    }
                }
                if std::mem::take(&mut self.has_line) {
                    return Some(at);
                }
                continue;
            }
            let rest = bytes.get(at..).unwrap_or_default();
            at += memchr2(b'\n', b'\r', rest)?;
            self.in_line = false;
            at += if bytes.get(at) == Some(&b'\r') {
                self.cr_len(bytes, at)
            } else {
                1
            };
        }
    }

    /// Length of the line end that begins with the CR at `at`: 2 with an LF, else 1.
    fn cr_len(&mut self, bytes: &[u8], at: usize) -> usize {
        match bytes.get(at + 1) {
            Some(b'\n') => 2,
            Some(_) => 1,
            None => {
                self.after_cr = true;
                1
            }
        }
    }

    /// Settle whether the stream begins with a byte order mark; gives the bytes consumed.
    #[cold]
    fn skip_bom(&mut self, bytes: &[u8], seen: usize) -> usize {
        let mark = BOM.get(seen..).unwrap_or_default();
        let same = bytes
            .iter()
            .zip(mark)
            .take_while(|(byte, mark)| byte == mark)
            .count();
        if same == mark.len() {
            self.bom = Bom::Leads;
        } else if same == bytes.len() {
            self.bom = Bom::Matched(seen + same);
        } else {
            // Bytes that only looked like a mark are the first line's.
            self.bom = Bom::Past;
            self.in_line = seen + same > 0;
            self.has_line = self.in_line;
        }
        same
    }

    /// Whether the current frame has anything but blank lines.
    fn in_event(&self) -> bool {
        self.has_line || matches!(self.bom, Bom::Matched(1..))
    }

    /// Whether the frame that ends here began with the mark; asked once a frame.
    #[inline]
    fn take_bom(&mut self) -> bool {
        std::mem::replace(&mut self.bom, Bom::Past) == Bom::Leads
    }
}

/// One event as it stood in the stream.
#[derive(Debug, Clone, PartialEq, Eq)]
pub struct Frame {
    /// The exact bytes, from the end of the frame before to the end of the blank line.
    pub raw: Bytes,
    /// False for an event that the end of the stream cut off before its blank line.
    pub complete: bool,
    /// `raw` begins with the stream's byte order mark.
    has_bom: bool,
}

impl Frame {
    /// Read every field. Values are slices of `raw`, except data of several lines, which is joined.
    pub fn parse(&self) -> Event {
        let mut event = Event::default();
        let mut data = Data::default();
        for (name, value) in self.fields() {
            match name {
                b"data" => data.push(&self.raw, value),
                b"event" => event.event = Some(self.raw.slice_ref(value)),
                // Section 9.2.6: an id with a NUL and a retry with anything but digits are ignored.
                b"id" if !value.contains(&0) => event.id = Some(self.raw.slice_ref(value)),
                b"retry" => event.retry = digits(value).or(event.retry),
                _ => {}
            }
        }
        event.data = data.into_bytes();
        event
    }

    /// The event's data alone: a slice of `raw` for one data line, joined by LF for several, None
    /// without a data field.
    #[inline]
    pub fn data(&self) -> Option<Bytes> {
        let mut data = Data::default();
        for (name, value) in self.fields() {
            if name == b"data" {
                data.push(&self.raw, value);
            }
        }
        data.into_bytes()
    }

    fn fields(&self) -> Fields<'_> {
        let skip = if self.has_bom { BOM.len() } else { 0 };
        Fields {
            rest: self.raw.get(skip..).unwrap_or_default(),
        }
    }
}

/// The (name, value) pairs of a frame's lines; comments and blank lines are passed over.
struct Fields<'a> {
    rest: &'a [u8],
}

impl<'a> Iterator for Fields<'a> {
    type Item = (&'a [u8], &'a [u8]);

    #[inline]
    fn next(&mut self) -> Option<Self::Item> {
        loop {
            // A CRLF counts as a line end and a blank line here, which within one frame is the same.
            while let [b'\n' | b'\r', rest @ ..] = self.rest {
                self.rest = rest;
            }
            if self.rest.is_empty() {
                return None;
            }
            let end = memchr2(b'\n', b'\r', self.rest).unwrap_or(self.rest.len());
            let (line, rest) = self.rest.split_at(end);
            self.rest = rest;
            let (name, value) = match line.strip_prefix(b"data:") {
                Some(value) => (&b"data"[..], value),
                None => match memchr::memchr(b':', line) {
                    Some(0) => continue,
                    Some(colon) => {
                        let (name, value) = line.split_at(colon);
                        (name, value.get(1..).unwrap_or_default())
                    }
                    None => (line, &b""[..]),
                },
            };
            return Some((name, value.strip_prefix(b" ").unwrap_or(value)));
        }
    }
}

/// Data lines as they come: the first as a slice, copied only when a second one follows.
#[derive(Default)]
enum Data {
    #[default]
    None,
    One(Bytes),
    Many(BytesMut),
}

impl Data {
    #[inline]
    fn push(&mut self, raw: &Bytes, line: &[u8]) {
        match self {
            Self::None => *self = Self::One(raw.slice_ref(line)),
            Self::One(first) => {
                let mut joined = BytesMut::with_capacity(raw.len());
                joined.put_slice(first);
                joined.put_u8(b'\n');
                joined.put_slice(line);
                *self = Self::Many(joined);
            }
            Self::Many(joined) => {
                joined.put_u8(b'\n');
                joined.put_slice(line);
            }
        }
    }

    #[inline]
    fn into_bytes(self) -> Option<Bytes> {
        match self {
            Self::None => None,
            Self::One(line) => Some(line),
            Self::Many(joined) => Some(joined.freeze()),
        }
    }
}

/// Digits only, per section 9.2.6; None for anything else or above `u64::MAX`.
fn digits(value: &[u8]) -> Option<u64> {
    if value.is_empty() {
        return None;
    }
    value.iter().try_fold(0_u64, |sum, byte| {
        let digit = byte.is_ascii_digit().then(|| u64::from(byte - b'0'))?;
        sum.checked_mul(10)?.checked_add(digit)
    })
}

/// An event's fields. Where one is given twice the last counts, except data, whose lines join.
#[derive(Debug, Clone, Default, PartialEq, Eq)]
pub struct Event {
    /// The event's type; None means `message`.
    pub event: Option<Bytes>,
    /// Data lines joined by LF. `Some` and empty for a bare `data` line.
    pub data: Option<Bytes>,
    /// The id this event sets; not carried over from earlier events.
    pub id: Option<Bytes>,
    /// Reconnection time, milliseconds.
    pub retry: Option<u64>,
}

impl Event {
    /// Whether there is no field at all: only comments (a keep-alive) or unknown fields.
    pub fn is_comment_only(&self) -> bool {
        self.event.is_none() && self.data.is_none() && self.id.is_none() && self.retry.is_none()
    }
}

/// Write an event with LF line ends, blank line included.
///
/// Data is split at LF, CR and CRLF into one `data` line each, so a decoder gets it back with LF.
/// Type and id cannot hold a line end: there each becomes a space. An id with a NUL, which every
/// decoder ignores, is left out. An event without fields becomes a bare comment, a keep-alive.
pub fn encode(event: &Event, out: &mut BytesMut) {
    let start = out.len();
    if let Some(name) = &event.event {
        put_line(b"event: ", name, out);
    }
    if let Some(id) = event.id.as_ref().filter(|id| !id.contains(&0)) {
        put_line(b"id: ", id, out);
    }
    if let Some(retry) = event.retry {
        out.put_slice(b"retry: ");
        out.put_slice(retry.to_string().as_bytes());
        out.put_u8(b'\n');
    }
    if let Some(data) = &event.data {
        out.reserve(data.len() + 8);
        let mut rest: &[u8] = data;
        while let Some(end) = memchr2(b'\n', b'\r', rest) {
            let (line, tail) = rest.split_at(end);
            put_line(b"data: ", line, out);
            rest = tail
                .strip_prefix(b"\r\n")
                .or_else(|| tail.get(1..))
                .unwrap_or_default();
        }
        put_line(b"data: ", rest, out);
    }
    if out.len() == start {
        out.put_slice(b":\n");
    }
    out.put_u8(b'\n');
}

fn put_line(field: &[u8], value: &[u8], out: &mut BytesMut) {
    out.put_slice(field);
    let start = out.len();
    out.put_slice(value);
    out.iter_mut()
        .skip(start)
        .filter(|byte| matches!(byte, b'\n' | b'\r'))
        .for_each(|byte| *byte = b' ');
    out.put_u8(b'\n');
}
