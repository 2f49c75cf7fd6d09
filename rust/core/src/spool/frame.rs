//! How records stand in a segment: length, checksum, sequence number, kind, payload.
//!
//! ```text
//! len u32 | crc32c u32 | seq u64 | kind u8 | 7 zero bytes | payload | zeros to 8 bytes | progress
//! ```
//! Little-endian. The checksum covers the payload and then `len`, `seq` and `kind`. Progress, 64
//! bytes of atomic words, follows the payload of a [`Kind::Begin`] alone and is not covered: it
//! changes while the request runs. Where no record was written there are zeros, which are no record.

/// Bytes before the payload.
pub const HEADER: usize = 24;
/// Bytes of progress behind the payload of a [`Kind::Begin`].
pub const PROGRESS: usize = 64;
const ALIGN: usize = 8;

/// What a record says.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
#[repr(u8)]
pub enum Kind {
    /// A request was admitted; the payload is its row as it is if nothing more is known.
    Begin = 1,
    /// An upstream is tried; the payload is its name.
    Attempt = 2,
    /// The request ended; the payload is its row.
    End = 3,
    /// A row that stands for itself.
    Entry = 4,
}

impl Kind {
    const fn of(byte: u8) -> Option<Self> {
        match byte {
            1 => Some(Self::Begin),
            2 => Some(Self::Attempt),
            3 => Some(Self::End),
            4 => Some(Self::Entry),
            _ => None,
        }
    }

    const fn progress(self) -> usize {
        match self {
            Self::Begin => PROGRESS,
            Self::Attempt | Self::End | Self::Entry => 0,
        }
    }
}

/// One record, where it stands.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub struct Frame {
    /// What it says.
    pub kind: Kind,
    /// Number of the admission that it is about; of an entry, its own.
    pub seq: u64,
    /// Offset of the payload.
    pub at: usize,
    /// Bytes of the payload.
    pub len: usize,
}

impl Frame {
    /// Offset of its progress, if it has one.
    pub const fn progress(&self) -> usize {
        self.at + padded(self.len)
    }

    /// Offset of what follows.
    pub const fn end(&self) -> usize {
        self.progress() + self.kind.progress()
    }
}

/// The bytes are no record: torn while it was written, or damaged since.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub struct Damaged;

const fn padded(len: usize) -> usize {
    len.div_ceil(ALIGN) * ALIGN
}

/// Bytes that a record of `len` bytes of payload takes.
pub const fn size(kind: Kind, len: usize) -> usize {
    HEADER + padded(len) + kind.progress()
}

/// The header of a record. `payload_crc` is the CRC-32C of the payload of `len` bytes.
pub fn header(kind: Kind, seq: u64, len: u32, payload_crc: u32) -> [u8; HEADER] {
    let mut out = [0; HEADER];
    let crc = sealed(kind as u8, seq, len, payload_crc);
    let fields: [(usize, &[u8]); 4] = [
        (0, &len.to_le_bytes()),
        (4, &crc.to_le_bytes()),
        (8, &seq.to_le_bytes()),
        (16, &[kind as u8]),
    ];
    for (at, bytes) in fields {
        if let Some(place) = out.get_mut(at..at + bytes.len()) {
            place.copy_from_slice(bytes);
        }
    }
    out
}

fn sealed(kind: u8, seq: u64, len: u32, payload_crc: u32) -> u32 {
    let mut tail = [0; 13];
    let (front, rest) = tail.split_at_mut(4);
    front.copy_from_slice(&len.to_le_bytes());
    let (middle, last) = rest.split_at_mut(8);
    middle.copy_from_slice(&seq.to_le_bytes());
    last.copy_from_slice(&[kind]);
    crc32c::crc32c_append(payload_crc, &tail)
}

/// Reads the record at offset `at` of a segment's `bytes`; `None` where nothing was written.
///
/// Errors: [`Damaged`].
pub fn read(bytes: &[u8], at: usize) -> Result<Option<Frame>, Damaged> {
    let Some(header) = bytes.get(at..at.saturating_add(HEADER)) else {
        return Ok(None);
    };
    if header.iter().all(|byte| *byte == 0) {
        return Ok(None);
    }
    let frame = parse(header, at).ok_or(Damaged)?;
    let payload = bytes.get(frame.at..frame.at + frame.len).ok_or(Damaged)?;
    if frame.end() > bytes.len() {
        return Err(Damaged);
    }
    let (len, crc) = (u32_at(header, 0), u32_at(header, 4));
    if crc != sealed(frame.kind as u8, frame.seq, len, crc32c::crc32c(payload)) {
        return Err(Damaged);
    }
    Ok(Some(frame))
}

/// What a header says of the record at `at`, unchecked.
pub fn parse(header: &[u8], at: usize) -> Option<Frame> {
    let seq = header.get(8..16)?.try_into().ok().map(u64::from_le_bytes)?;
    Some(Frame {
        kind: Kind::of(*header.get(16)?)?,
        seq,
        at: at + HEADER,
        len: u32_at(header, 0) as usize,
    })
}

fn u32_at(bytes: &[u8], at: usize) -> u32 {
    bytes
        .get(at..at + 4)
        .and_then(|four| four.try_into().ok())
        .map_or(0, u32::from_le_bytes)
}

/// Offset of the first whole record at `from` or behind it, past what is damaged.
pub fn resync(bytes: &[u8], from: usize) -> Option<usize> {
    (from.next_multiple_of(ALIGN)..bytes.len())
        .step_by(ALIGN)
        .find(|at| matches!(read(bytes, *at), Ok(Some(_))))
}
