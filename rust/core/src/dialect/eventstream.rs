//! `application/vnd.amazon.eventstream`: a sans-io decoder and encoder of AWS's binary frames.
//!
//! A message is, in big-endian: u32 length of it all, u32 length of its headers, u32 CRC of those
//! eight bytes; the headers; the payload; u32 CRC of everything before. A header is u8 length of
//! its name, the name, u8 type of its value, the value. Both CRCs are CRC-32 as in gzip.
//!
//! Source: Smithy 2.0, "Amazon Event Stream Specification"; AWS, "Event stream encoding".
use bytes::{BufMut, Bytes, BytesMut};

/// Lengths and their checksum, before the headers.
const PRELUDE: usize = 12;
/// What is not headers and not payload: prelude and the checksum of all.
const OVERHEAD: usize = PRELUDE + 4;
/// The specification's bound on a message's headers, bytes.
pub const MAX_HEADERS: usize = 128 * 1024;

/// The stream is not what it says it is, or more than may be held. Nothing after it can be read,
/// as nothing says where the next message begins.
#[derive(Debug, Clone, Copy, PartialEq, Eq, thiserror::Error)]
pub enum Malformed {
    /// The lengths do not match their checksum.
    #[error("the checksum of the message's lengths is wrong")]
    PreludeChecksum,
    /// The message does not match its checksum.
    #[error("the checksum of the message is wrong")]
    MessageChecksum,
    /// The lengths contradict each other.
    #[error("a message of {total} bytes cannot have headers of {headers} bytes")]
    Lengths {
        /// Length of the whole message, bytes.
        total: u32,
        /// Length of its headers, bytes.
        headers: u32,
    },
    /// A message, or its headers, longer than may be held.
    #[error("the message exceeds {limit} bytes")]
    TooLarge {
        /// The bound that was passed, bytes.
        limit: usize,
    },
    /// A header without a name, of an unknown type, not UTF-8 where it must be, or cut off.
    #[error("the message has a header that cannot be read")]
    Header,
    /// The stream ended inside a message.
    #[error("the stream ended inside a message")]
    Truncated,
}

/// Cuts an event stream, fed in any chunking, into messages.
///
/// A message inside one chunk is a slice of that chunk; only one that spans chunks is copied.
#[derive(Debug)]
pub struct Decoder {
    limit: usize,
    /// The start of the current message, from chunks before `chunk`; never above the bound.
    partial: BytesMut,
    chunk: Bytes,
    failed: Option<Malformed>,
}

impl Decoder {
    /// A decoder at the start of a stream.
    ///
    /// max_message_bytes: the longest message accepted, with its 16 bytes of framing, bytes.
    pub fn new(max_message_bytes: usize) -> Self {
        Self {
            limit: max_message_bytes,
            partial: BytesMut::new(),
            chunk: Bytes::new(),
            failed: None,
        }
    }

    /// Take the next bytes of the stream.
    ///
    /// Call [`next`](Self::next) until it gives None before feeding again: what has not been
    /// taken by then is copied together with the new chunk.
    pub fn feed(&mut self, chunk: Bytes) {
        if self.failed.is_some() {
            return;
        }
        if self.chunk.is_empty() {
            self.chunk = chunk;
        } else if !chunk.is_empty() {
            self.chunk = [&self.chunk[..], &chunk[..]].concat().into();
        }
    }

    /// The next whole message, or None until more is fed.
    ///
    /// Errors: what follows is malformed; every later call fails the same way.
    #[expect(
        clippy::should_implement_trait,
        reason = "None means 'feed more', not the end, so this is no iterator"
    )]
    pub fn next(&mut self) -> Result<Option<Message>, Malformed> {
        if let Some(failed) = self.failed {
            return Err(failed);
        }
        self.take().inspect_err(|error| {
            self.failed = Some(*error);
            self.partial = BytesMut::new();
            self.chunk = Bytes::new();
        })
    }

    /// That the stream may end here. Messages not yet taken come first.
    ///
    /// Errors: it ends inside a message, or was malformed before.
    pub fn finish(&self) -> Result<(), Malformed> {
        match self.failed {
            Some(failed) => Err(failed),
            None if self.buffered() > 0 => Err(Malformed::Truncated),
            None => Ok(()),
        }
    }

    /// Bytes fed and not handed out; once [`next`](Self::next) gave None, never above the bound.
    pub fn buffered(&self) -> usize {
        self.partial.len() + self.chunk.len()
    }

    fn take(&mut self) -> Result<Option<Message>, Malformed> {
        if self.partial.is_empty() {
            // The usual case: the whole message lies in the chunk.
            if let Some(prelude) = self.chunk.first_chunk::<PRELUDE>() {
                let lengths = Lengths::read(prelude, self.limit)?;
                if lengths.total <= self.chunk.len() {
                    return Message::read(self.chunk.split_to(lengths.total), &lengths).map(Some);
                }
            }
        }
        self.top_up(PRELUDE);
        let Some(prelude) = self.partial.first_chunk::<PRELUDE>() else {
            return Ok(None);
        };
        let lengths = Lengths::read(prelude, self.limit)?;
        self.top_up(lengths.total);
        if self.partial.len() < lengths.total {
            return Ok(None);
        }
        Message::read(self.partial.split().freeze(), &lengths).map(Some)
    }

    /// Move bytes from the chunk until `partial` has `wanted` of them, or the chunk is used up.
    fn top_up(&mut self, wanted: usize) {
        let missing = wanted.saturating_sub(self.partial.len());
        let part = self.chunk.split_to(missing.min(self.chunk.len()));
        self.partial.extend_from_slice(&part);
        if self.chunk.is_empty() {
            // An empty slice would still pin the read buffer.
            self.chunk = Bytes::new();
        }
    }
}

/// What a prelude says, once it is known to be possible.
struct Lengths {
    total: usize,
    headers: usize,
}

impl Lengths {
    fn read(prelude: &[u8; PRELUDE], limit: usize) -> Result<Self, Malformed> {
        let mut rest = &prelude[..];
        let mut word = || fixed(&mut rest).map(u32::from_be_bytes);
        let (Some(total), Some(headers), Some(crc)) = (word(), word(), word()) else {
            return Err(Malformed::PreludeChecksum);
        };
        if crc32fast::hash(prelude.get(..8).unwrap_or_default()) != crc {
            return Err(Malformed::PreludeChecksum);
        }
        let lengths = Self {
            total: total as usize,
            headers: headers as usize,
        };
        if lengths.headers + OVERHEAD > lengths.total {
            return Err(Malformed::Lengths { total, headers });
        }
        if lengths.total > limit {
            return Err(Malformed::TooLarge { limit });
        }
        if lengths.headers > MAX_HEADERS {
            return Err(Malformed::TooLarge { limit: MAX_HEADERS });
        }
        Ok(lengths)
    }
}

/// One message, its headers known to be readable.
#[derive(Debug, Clone, PartialEq, Eq)]
pub struct Message {
    headers: Bytes,
    /// What it carries, in the form its `:content-type` names.
    pub payload: Bytes,
}

impl Message {
    fn read(mut raw: Bytes, lengths: &Lengths) -> Result<Self, Malformed> {
        let crc = raw.split_off(lengths.total - 4);
        if crc[..] != crc32fast::hash(&raw).to_be_bytes() {
            return Err(Malformed::MessageChecksum);
        }
        let payload = raw.split_off(PRELUDE + lengths.headers);
        let headers = raw.split_off(PRELUDE);
        let mut rest = &headers[..];
        while !rest.is_empty() {
            header(&mut rest).ok_or(Malformed::Header)?;
        }
        Ok(Self { headers, payload })
    }

    /// Every header, in the message's order.
    pub fn headers(&self) -> impl Iterator<Item = (&str, Value<'_>)> {
        let mut rest = &self.headers[..];
        std::iter::from_fn(move || header(&mut rest))
    }

    /// The text of the first header of that name; None where it is absent or not text.
    pub fn text(&self, name: &str) -> Option<&str> {
        let found = self.headers().find(|(found, _)| *found == name);
        match found?.1 {
            Value::Text(text) => Some(text),
            _ => None,
        }
    }
}

/// A header's value; each type has its number on the wire.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub enum Value<'a> {
    /// Types 0 (true) and 1 (false).
    Bool(bool),
    /// Type 2.
    Byte(i8),
    /// Type 3.
    Short(i16),
    /// Type 4.
    Integer(i32),
    /// Type 5.
    Long(i64),
    /// Type 6, at most 65,535 bytes.
    Bytes(&'a [u8]),
    /// Type 7, UTF-8 of at most 65,535 bytes.
    Text(&'a str),
    /// Type 8: milliseconds since 1970.
    Timestamp(i64),
    /// Type 9.
    Uuid([u8; 16]),
}

/// Takes one header from the front; None where there is none that can be read.
fn header<'a>(rest: &mut &'a [u8]) -> Option<(&'a str, Value<'a>)> {
    let [name_len] = fixed(rest)?;
    if name_len == 0 {
        return None;
    }
    let name = str::from_utf8(rest.split_off(..usize::from(name_len))?).ok()?;
    let [kind] = fixed(rest)?;
    let value = match kind {
        0 => Value::Bool(true),
        1 => Value::Bool(false),
        2 => Value::Byte(i8::from_be_bytes(fixed(rest)?)),
        3 => Value::Short(i16::from_be_bytes(fixed(rest)?)),
        4 => Value::Integer(i32::from_be_bytes(fixed(rest)?)),
        5 => Value::Long(i64::from_be_bytes(fixed(rest)?)),
        6 => Value::Bytes(sized(rest)?),
        7 => Value::Text(str::from_utf8(sized(rest)?).ok()?),
        8 => Value::Timestamp(i64::from_be_bytes(fixed(rest)?)),
        9 => Value::Uuid(fixed(rest)?),
        _ => return None,
    };
    Some((name, value))
}

fn fixed<const N: usize>(rest: &mut &[u8]) -> Option<[u8; N]> {
    rest.split_off(..N)?.try_into().ok()
}

fn sized<'a>(rest: &mut &'a [u8]) -> Option<&'a [u8]> {
    let len = u16::from_be_bytes(fixed(rest)?);
    rest.split_off(..usize::from(len))
}

/// Write one message.
///
/// Errors: [`Malformed::Header`] for a name of 0 or more than 255 bytes or a value of more than
/// 65,535; [`Malformed::TooLarge`] for headers above [`MAX_HEADERS`] or a message above `u32::MAX`.
/// Nothing is written then.
pub fn encode(
    headers: &[(&str, Value<'_>)],
    payload: &[u8],
    out: &mut BytesMut,
) -> Result<(), Malformed> {
    let start = out.len();
    let written = write(headers, payload, start, out);
    if written.is_err() {
        out.truncate(start);
    }
    written
}

fn write(
    headers: &[(&str, Value<'_>)],
    payload: &[u8],
    start: usize,
    out: &mut BytesMut,
) -> Result<(), Malformed> {
    out.put_bytes(0, PRELUDE);
    for (name, value) in headers {
        put_header(name, value, out)?;
    }
    let headers_len = out.len() - start - PRELUDE;
    if headers_len > MAX_HEADERS {
        return Err(Malformed::TooLarge { limit: MAX_HEADERS });
    }
    let total =
        u32::try_from(headers_len + payload.len() + OVERHEAD).map_err(|_| Malformed::TooLarge {
            limit: u32::MAX as usize,
        })?;
    let mut prelude = BytesMut::with_capacity(PRELUDE);
    prelude.put_u32(total);
    prelude.put_u32(headers_len as u32);
    prelude.put_u32(crc32fast::hash(&prelude));
    if let Some(place) = out.get_mut(start..start + PRELUDE) {
        place.copy_from_slice(&prelude);
    }
    out.put_slice(payload);
    let crc = crc32fast::hash(out.get(start..).unwrap_or_default());
    out.put_u32(crc);
    Ok(())
}

fn put_header(name: &str, value: &Value<'_>, out: &mut BytesMut) -> Result<(), Malformed> {
    let name_len = u8::try_from(name.len()).ok().filter(|len| *len > 0);
    out.put_u8(name_len.ok_or(Malformed::Header)?);
    out.put_slice(name.as_bytes());
    let mut put_sized = |kind, bytes: &[u8]| {
        out.put_u8(kind);
        out.put_u16(u16::try_from(bytes.len()).map_err(|_| Malformed::Header)?);
        out.put_slice(bytes);
        Ok(())
    };
    match value {
        Value::Bytes(bytes) => return put_sized(6, bytes),
        Value::Text(text) => return put_sized(7, text.as_bytes()),
        Value::Bool(true) => out.put_u8(0),
        Value::Bool(false) => out.put_u8(1),
        Value::Byte(number) => out.put_slice(&[2, number.to_be_bytes()[0]]),
        Value::Short(number) => {
            out.put_u8(3);
            out.put_i16(*number);
        }
        Value::Integer(number) => {
            out.put_u8(4);
            out.put_i32(*number);
        }
        Value::Long(number) => {
            out.put_u8(5);
            out.put_i64(*number);
        }
        Value::Timestamp(number) => {
            out.put_u8(8);
            out.put_i64(*number);
        }
        Value::Uuid(bytes) => {
            out.put_u8(9);
            out.put_slice(bytes);
        }
    }
    Ok(())
}
