//! Protobuf's wire format: tags, varints, fixed and length-delimited values.
//!
//! Source: protobuf.dev, "Encoding". Reading trusts nothing: whatever the bytes, it ends with a value
//! or a [`Broken`].

/// What makes bytes no message.
#[derive(Clone, Copy, Debug, PartialEq, Eq, thiserror::Error)]
pub(super) enum Broken {
    #[error("it ends in the middle of a field")]
    Truncated,
    #[error("a varint has more than 64 bits")]
    Varint,
    #[error("a field's number or wire type is none")]
    Tag,
    #[error("its groups are nested too deep, or not closed")]
    Group,
}

/// Groups within groups that are skipped; nobody has made any since 2008.
const MAX_GROUPS: u32 = 16;

/// A field's value as it stands on the wire.
#[derive(Clone, Copy, Debug)]
pub(super) enum Value<'a> {
    Varint(u64),
    Fixed64([u8; 8]),
    Fixed32([u8; 4]),
    Bytes(&'a [u8]),
    /// A group, skipped.
    Group,
}

/// Reads fields one by one.
#[derive(Clone, Copy)]
pub(super) struct Reader<'a> {
    bytes: &'a [u8],
    at: usize,
}

impl<'a> Reader<'a> {
    /// At the start of a message.
    pub(super) const fn new(bytes: &'a [u8]) -> Self {
        Self { bytes, at: 0 }
    }

    /// At a place where [`at`](Self::at) was, up to another.
    pub(super) fn between(bytes: &'a [u8], start: usize, end: usize) -> Self {
        let bytes = bytes.get(..end).unwrap_or(bytes);
        Self { bytes, at: start }
    }

    /// Where the next field begins.
    pub(super) const fn at(&self) -> usize {
        self.at
    }

    /// Whether nothing is left.
    pub(super) const fn is_empty(&self) -> bool {
        self.at >= self.bytes.len()
    }

    /// The next field: its number and value. None at the end.
    #[inline]
    pub(super) fn next(&mut self) -> Result<Option<(u32, Value<'a>)>, Broken> {
        if self.is_empty() {
            return Ok(None);
        }
        let (number, kind) = self.tag()?;
        match kind {
            4 => Err(Broken::Group),
            _ => Ok(Some((number, self.value(number, kind, 0)?))),
        }
    }

    /// The next varint of a packed list.
    #[inline]
    pub(super) fn varint(&mut self) -> Result<u64, Broken> {
        let first = *self.bytes.get(self.at).ok_or(Broken::Truncated)?;
        if first < 0x80 {
            self.at += 1;
            return Ok(u64::from(first));
        }
        self.long_varint()
    }

    fn long_varint(&mut self) -> Result<u64, Broken> {
        let mut value = 0_u64;
        for shift in 0..10 {
            let byte = *self.bytes.get(self.at).ok_or(Broken::Truncated)?;
            self.at += 1;
            // The tenth byte has room for one bit.
            if shift == 9 && byte > 1 {
                return Err(Broken::Varint);
            }
            value |= u64::from(byte & 0x7F) << (7 * shift);
            if byte < 0x80 {
                return Ok(value);
            }
        }
        Err(Broken::Varint)
    }

    /// The next `N` bytes of a packed list.
    #[inline]
    pub(super) fn fixed<const N: usize>(&mut self) -> Result<[u8; N], Broken> {
        let rest = self.bytes.get(self.at..).unwrap_or_default();
        let value = rest.first_chunk::<N>().ok_or(Broken::Truncated)?;
        self.at += N;
        Ok(*value)
    }

    fn tag(&mut self) -> Result<(u32, u32), Broken> {
        let tag = u32::try_from(self.varint()?).map_err(|_| Broken::Tag)?;
        match (tag >> 3, tag & 7) {
            (0, _) => Err(Broken::Tag),
            tag => Ok(tag),
        }
    }

    fn value(&mut self, number: u32, kind: u32, groups: u32) -> Result<Value<'a>, Broken> {
        Ok(match kind {
            0 => Value::Varint(self.varint()?),
            1 => Value::Fixed64(self.fixed()?),
            2 => {
                let len = usize::try_from(self.varint()?).map_err(|_| Broken::Truncated)?;
                let end = self.at.checked_add(len).ok_or(Broken::Truncated)?;
                let bytes = self.bytes.get(self.at..end).ok_or(Broken::Truncated)?;
                self.at = end;
                Value::Bytes(bytes)
            }
            3 => {
                self.skip_group(number, groups)?;
                Value::Group
            }
            5 => Value::Fixed32(self.fixed()?),
            _ => return Err(Broken::Tag),
        })
    }

    fn skip_group(&mut self, number: u32, groups: u32) -> Result<(), Broken> {
        if groups >= MAX_GROUPS {
            return Err(Broken::Group);
        }
        loop {
            match self.tag()? {
                (end, 4) if end == number => return Ok(()),
                (_, 4) => return Err(Broken::Group),
                (inner, kind) => self.value(inner, kind, groups + 1)?,
            };
        }
    }
}

/// Appends a varint.
#[inline]
pub(super) fn put_varint(mut value: u64, out: &mut Vec<u8>) {
    while value >= 0x80 {
        out.push(value as u8 | 0x80);
        value >>= 7;
    }
    out.push(value as u8);
}

/// Appends the tag of a varint field and its value.
pub(super) fn put_uint(number: u32, value: u64, out: &mut Vec<u8>) {
    put_varint(u64::from(number << 3), out);
    put_varint(value, out);
}

/// Appends the tag of a double field and its value.
pub(super) fn put_double(number: u32, value: f64, out: &mut Vec<u8>) {
    put_varint(u64::from(number << 3 | 1), out);
    out.extend_from_slice(&value.to_le_bytes());
}

/// Appends a string or bytes field.
pub(super) fn put_bytes(number: u32, value: &[u8], out: &mut Vec<u8>) {
    put_varint(u64::from(number << 3 | 2), out);
    put_varint(value.len() as u64, out);
    out.extend_from_slice(value);
}

/// Appends a length-delimited field of what `fill` appends.
#[inline]
pub(super) fn put_nested<E>(
    number: u32,
    out: &mut Vec<u8>,
    fill: impl FnOnce(&mut Vec<u8>) -> Result<(), E>,
) -> Result<(), E> {
    put_varint(u64::from(number << 3 | 2), out);
    let at = out.len();
    // Room for the length of what is short, as most is.
    out.push(0);
    fill(out)?;
    let len = out.len() - at - 1;
    if len < 0x80 {
        if let Some(place) = out.get_mut(at) {
            *place = len as u8;
        }
    } else {
        widen(at, len, out);
    }
    Ok(())
}

/// Makes room for a length of several bytes in place of one.
fn widen(at: usize, len: usize, out: &mut Vec<u8>) {
    let mut width = 1;
    let mut rest = len >> 7;
    while rest > 0 {
        width += 1;
        rest >>= 7;
    }
    let end = out.len();
    out.resize(end + width - 1, 0);
    out.copy_within(at + 1..end, at + width);
    let mut left = len;
    for (index, place) in out.iter_mut().skip(at).take(width).enumerate() {
        *place = (left & 0x7F) as u8 | if index + 1 < width { 0x80 } else { 0 };
        left >>= 7;
    }
}
