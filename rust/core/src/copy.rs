//! PostgreSQL's binary COPY format: rows as bytes that the server takes without parsing text.
//!
//! Pure: bytes come out. Source: PostgreSQL 17, `COPY`, "Binary Format"; all numbers are big-endian.

/// What a complete COPY begins with: signature, flags, length of the header's extension.
pub const HEADER: [u8; 19] = *b"PGCOPY\n\xff\r\n\0\0\0\0\0\0\0\0\0";

/// What a complete COPY ends with.
pub const TRAILER: [u8; 2] = [0xff, 0xff];

/// PostgreSQL counts time from 2000-01-01; so many microseconds of unix time lie before it.
const EPOCH_US: i64 = 946_684_800_000_000;

/// A value of a column. `None` is null.
pub trait Value: Sized {
    /// Appends the value's bytes without their length. False: it is null, and nothing was appended.
    fn put(self, out: &mut Vec<u8>) -> bool;
}

/// Appends one row of `columns` values: [`Row::put`] each, in the table's order.
pub fn row(out: &mut Vec<u8>, columns: u16) -> Row<'_> {
    out.extend_from_slice(&columns.to_be_bytes());
    Row { out, left: columns }
}

/// A row that is being written.
pub struct Row<'a> {
    out: &'a mut Vec<u8>,
    left: u16,
}

impl Row<'_> {
    /// Appends the next column.
    #[must_use = "a row goes on, or ends with `end`"]
    pub fn put(mut self, value: impl Value) -> Self {
        debug_assert!(self.left > 0, "more values than columns");
        self.left = self.left.saturating_sub(1);
        let at = self.out.len();
        // The length of null, and the place of any other's.
        self.out.extend_from_slice(&(-1_i32).to_be_bytes());
        if value.put(self.out) {
            let len = i32::try_from(self.out.len() - at - 4).unwrap_or(i32::MAX);
            if let Some(place) = self.out.get_mut(at..at + 4) {
                place.copy_from_slice(&len.to_be_bytes());
            }
        }
        self
    }

    /// The row is complete.
    pub fn end(self) {
        debug_assert_eq!(self.left, 0, "columns without a value");
    }
}

/// `uuid`.
#[derive(Clone, Copy, Debug)]
pub struct Uuid(pub [u8; 16]);

/// `timestamptz`, unix microseconds.
#[derive(Clone, Copy, Debug)]
pub struct Timestamp(pub i64);

/// `jsonb`, a JSON document's text.
#[derive(Clone, Copy, Debug)]
pub struct Jsonb<'a>(pub &'a str);

/// `bytea`.
#[derive(Clone, Copy, Debug)]
pub struct Bytea<'a>(pub &'a [u8]);

impl<T: Value> Value for Option<T> {
    fn put(self, out: &mut Vec<u8>) -> bool {
        self.is_some_and(|value| value.put(out))
    }
}

impl Value for Uuid {
    fn put(self, out: &mut Vec<u8>) -> bool {
        out.extend_from_slice(&self.0);
        true
    }
}

impl Value for Timestamp {
    fn put(self, out: &mut Vec<u8>) -> bool {
        self.0.saturating_sub(EPOCH_US).put(out)
    }
}

impl Value for Jsonb<'_> {
    fn put(self, out: &mut Vec<u8>) -> bool {
        // The format's version.
        out.push(1);
        out.extend_from_slice(self.0.as_bytes());
        true
    }
}

impl Value for Bytea<'_> {
    fn put(self, out: &mut Vec<u8>) -> bool {
        out.extend_from_slice(self.0);
        true
    }
}

/// `text`. No text of PostgreSQL can hold U+0000; it becomes U+FFFD.
impl Value for &str {
    fn put(self, out: &mut Vec<u8>) -> bool {
        let mut parts = self.split('\0');
        out.extend_from_slice(parts.next().unwrap_or_default().as_bytes());
        for part in parts {
            out.extend_from_slice("\u{fffd}".as_bytes());
            out.extend_from_slice(part.as_bytes());
        }
        true
    }
}

/// `bool`.
impl Value for bool {
    fn put(self, out: &mut Vec<u8>) -> bool {
        out.push(u8::from(self));
        true
    }
}

macro_rules! numbers {
    ($($(#[$doc:meta])* $number:ty),*) => {$(
        $(#[$doc])*
        impl Value for $number {
            fn put(self, out: &mut Vec<u8>) -> bool {
                out.extend_from_slice(&self.to_be_bytes());
                true
            }
        }
    )*};
}

numbers!(
    /// `int4`.
    i32,
    /// `int8`.
    i64,
    /// `float8`.
    f64
);

/// A `timestamptz` as unix microseconds.
pub const fn unix_us(timestamp: i64) -> i64 {
    timestamp.saturating_add(EPOCH_US)
}
