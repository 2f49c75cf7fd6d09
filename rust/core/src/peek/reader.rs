//! A validating JSON reader: one pass, no tree, no recursion, no allocation.
//!
//! Source: RFC 8259. The input is known to be UTF-8; this checks everything else.

/// Containers within containers, the outermost one included.
pub(super) const MAX_DEPTH: u32 = 128;

/// As so much text counts what an image, a recording or a file holds, bytes: at four bytes a token a
/// thousand tokens, which an image of a megapixel has about.
pub(super) const MEDIA_BYTES: usize = 4000;
/// Members with such contents: a `data:` URL (RFC 2397), and `data` in base64 alone.
const MEDIA_KEYS: [&[u8]; 6] = [
    b"url",
    b"data",
    b"file_data",
    b"image_url",
    b"video_url",
    b"audio_url",
];

/// What makes a text no JSON, or JSON nested too deep.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub(super) enum Fault {
    ByteOrderMark,
    UnexpectedEnd,
    ExpectedValue,
    ExpectedKey,
    ExpectedColon,
    ExpectedCommaOrBrace,
    ExpectedCommaOrBracket,
    UnterminatedString,
    ControlCharacter,
    BadEscape,
    BadNumber,
    TrailingData,
    TooDeep,
}

impl Fault {
    pub(super) const fn message(self) -> &'static str {
        match self {
            Self::ByteOrderMark => "a byte order mark is not allowed",
            Self::UnexpectedEnd => "the text ends too early",
            Self::ExpectedValue => "expected a value",
            Self::ExpectedKey => "expected a key in double quotes",
            Self::ExpectedColon => "expected ':' after the key",
            Self::ExpectedCommaOrBrace => "expected ',' or '}'",
            Self::ExpectedCommaOrBracket => "expected ',' or ']'",
            Self::UnterminatedString => "the string is not closed",
            Self::ControlCharacter => "a control character in a string must be escaped",
            Self::BadEscape => "unknown escape in a string",
            Self::BadNumber => "malformed number",
            Self::TrailingData => "unexpected text after the value",
            Self::TooDeep => "nested too deep",
        }
    }
}

/// A fault and the byte it lies at. Two words, so that results travel in registers.
#[derive(Debug, Clone, Copy)]
pub(super) struct Syntax {
    pub(super) offset: usize,
    pub(super) fault: Fault,
}

/// A string's inside, without the quotes.
#[derive(Debug, Clone, Copy, Default)]
pub(super) struct Text {
    pub(super) start: usize,
    pub(super) end: usize,
    pub(super) escaped: bool,
}

#[derive(Debug, Clone, Copy)]
pub(super) enum Kind {
    Null,
    Bool(bool),
    /// A number without fraction and exponent.
    Integer,
    /// Any other number.
    Fraction,
    String,
    Array,
    Object,
}

/// What a value holds, counted on the way.
#[derive(Debug, Clone, Copy, Default)]
pub(super) struct Tally {
    /// Bytes between the quotes of string values, as they stand (escapes not undone); of contents of
    /// images and files at most [`MEDIA_BYTES`] each.
    pub(super) string_bytes: usize,
    /// Integers anywhere in the value.
    pub(super) integers: u64,
    /// Direct elements of an array value that are strings or arrays.
    pub(super) items: u32,
    /// The value is a container without elements.
    pub(super) is_empty: bool,
    /// Token ids: integers in an array, or in arrays of an array.
    pub(super) ids: Ids,
}

/// The integers of an array, or of arrays within it, taken for token ids.
#[derive(Debug, Clone, Copy, Default)]
pub(super) struct Ids {
    /// The largest.
    pub(super) largest: Option<u64>,
    /// One that is none: negative, with a fraction, or a text where token ids stand.
    pub(super) is_wrong: bool,
    has_text: bool,
    has_other: bool,
}

impl Ids {
    /// Takes an element; `digits` is how it is written.
    fn element(&mut self, kind: Kind, digits: &[u8], is_nested: bool) {
        match kind {
            Kind::Integer => match number(digits) {
                Some(id) => self.largest = self.largest.max(Some(id)),
                None => self.is_wrong = true,
            },
            Kind::Fraction => self.is_wrong = true,
            // Engines may read a text among numbers, or in an array of arrays, as a number.
            Kind::String if is_nested => self.is_wrong = true,
            Kind::String => self.has_text = true,
            Kind::Null | Kind::Bool(_) | Kind::Array | Kind::Object => self.has_other = true,
        }
    }

    /// The same where no text may stand at all.
    pub(super) const fn without_texts(mut self) -> Self {
        self.is_wrong |= self.has_text;
        self
    }

    /// Whether something is there that cannot be a token id beside others.
    pub(super) const fn is_mixed(&self) -> bool {
        self.is_wrong || self.largest.is_some() && (self.has_text || self.has_other)
    }
}

/// Digits as a number; None for a minus sign and on overflow.
pub(super) fn number(digits: &[u8]) -> Option<u64> {
    if digits.is_empty() {
        return None;
    }
    digits.iter().try_fold(0_u64, |sum, byte| {
        let digit = byte.checked_sub(b'0').filter(|digit| *digit < 10)?;
        sum.checked_mul(10)?.checked_add(u64::from(digit))
    })
}

#[derive(Debug)]
pub(super) struct Reader<'a> {
    bytes: &'a [u8],
    pos: usize,
    /// The last string read. Here and not in results, which must stay small: see [`Syntax`].
    text: Text,
}

impl<'a> Reader<'a> {
    pub(super) fn new(bytes: &'a [u8]) -> Self {
        Self {
            bytes,
            pos: 0,
            text: Text::default(),
        }
    }

    #[inline]
    pub(super) const fn pos(&self) -> usize {
        self.pos
    }

    /// The key or string value read last.
    #[inline]
    pub(super) const fn text(&self) -> Text {
        self.text
    }

    #[inline]
    pub(super) fn byte(&self) -> Option<u8> {
        self.bytes.get(self.pos).copied()
    }

    #[inline]
    pub(super) fn skip_space(&mut self) {
        while let Some(b' ' | b'\n' | b'\r' | b'\t') = self.byte() {
            self.pos += 1;
        }
    }

    /// `fault`, or the text's end where there is nothing left to blame.
    #[cold]
    fn fault(&self, fault: Fault) -> Syntax {
        let fault = if self.pos < self.bytes.len() {
            fault
        } else {
            Fault::UnexpectedEnd
        };
        Syntax {
            offset: self.pos,
            fault,
        }
    }

    /// The text must end here, white space aside.
    pub(super) fn end(&mut self) -> Result<(), Syntax> {
        self.skip_space();
        if self.pos < self.bytes.len() {
            Err(self.fault(Fault::TrailingData))
        } else {
            Ok(())
        }
    }

    /// Read the object whose `{` is next; `member` is called at each value, with its key
    /// in [`text`](Self::text), and must read the value.
    /// Gives whether it had members.
    #[inline]
    pub(super) fn object<F>(&mut self, mut member: F) -> Result<bool, Syntax>
    where
        F: FnMut(&mut Self) -> Result<(), Syntax>,
    {
        self.pos += 1;
        self.skip_space();
        if self.byte() == Some(b'}') {
            self.pos += 1;
            return Ok(false);
        }
        loop {
            self.key()?;
            member(self)?;
            self.skip_space();
            match self.byte() {
                Some(b',') => self.pos += 1,
                Some(b'}') => {
                    self.pos += 1;
                    return Ok(true);
                }
                _ => return Err(self.fault(Fault::ExpectedCommaOrBrace)),
            }
            self.skip_space();
        }
    }

    /// Read a key, its colon and the space up to the value.
    #[inline]
    fn key(&mut self) -> Result<(), Syntax> {
        if self.byte() != Some(b'"') {
            return Err(self.fault(Fault::ExpectedKey));
        }
        self.string()?;
        self.skip_space();
        if self.byte() != Some(b':') {
            return Err(self.fault(Fault::ExpectedColon));
        }
        self.pos += 1;
        self.skip_space();
        Ok(())
    }

    /// Read the value that is next, in a container at `depth` (1 is the outermost).
    #[inline]
    pub(super) fn value(&mut self, depth: u32, tally: &mut Tally) -> Result<Kind, Syntax> {
        match self.byte() {
            Some(b'{') => self.container(depth, tally).map(|()| Kind::Object),
            Some(b'[') => self.container(depth, tally).map(|()| Kind::Array),
            _ => self.scalar(tally),
        }
    }

    /// Read a container and all within it, keeping one bit a level instead of a call stack.
    fn container(&mut self, depth: u32, tally: &mut Tally) -> Result<(), Syntax> {
        // Bit 0 is the innermost open container: 1 for an object.
        let mut stack: u128 = 0;
        let mut levels: u32 = 0;
        let mut key = Text::default();
        loop {
            let first = self.byte();
            if levels == 1 && stack & 1 == 0 && matches!(first, Some(b'"' | b'[')) {
                tally.items = tally.items.saturating_add(1);
            }
            if let Some(open @ (b'{' | b'[')) = first {
                if depth + levels >= MAX_DEPTH {
                    return Err(self.fault(Fault::TooDeep));
                }
                let is_object = open == b'{';
                stack = (stack << 1) | u128::from(is_object);
                levels += 1;
                self.pos += 1;
                self.skip_space();
                let closer = if is_object { b'}' } else { b']' };
                if self.byte() != Some(closer) {
                    if is_object {
                        self.key()?;
                        key = self.text;
                    }
                    continue;
                }
                tally.is_empty = levels == 1;
            } else {
                let start = self.pos;
                let kind = self.scalar(tally)?;
                if stack & 1 == 1 && matches!(kind, Kind::String) {
                    self.shorten(key, tally);
                }
                // Arrays all the way up.
                if stack == 0 {
                    let digits = self.bytes.get(start..self.pos).unwrap_or_default();
                    tally.ids.element(kind, digits, levels > 1);
                }
                self.skip_space();
            }
            // A value has ended, or an empty container is about to.
            loop {
                let in_object = stack & 1 == 1;
                match self.byte() {
                    Some(b',') => {
                        self.pos += 1;
                        self.skip_space();
                        if in_object {
                            self.key()?;
                            key = self.text;
                        }
                        break;
                    }
                    Some(b'}') if in_object => {}
                    Some(b']') if !in_object => {}
                    _ if in_object => return Err(self.fault(Fault::ExpectedCommaOrBrace)),
                    _ => return Err(self.fault(Fault::ExpectedCommaOrBracket)),
                }
                self.pos += 1;
                stack >>= 1;
                levels -= 1;
                if levels == 0 {
                    return Ok(());
                }
                self.skip_space();
            }
        }
    }

    #[inline]
    fn scalar(&mut self, tally: &mut Tally) -> Result<Kind, Syntax> {
        match self.byte() {
            Some(b'"') => {
                self.string()?;
                tally.string_bytes += self.text.end - self.text.start;
                Ok(Kind::String)
            }
            Some(b'-' | b'0'..=b'9') => {
                let kind = self.number()?;
                tally.integers += u64::from(matches!(kind, Kind::Integer));
                Ok(kind)
            }
            Some(b't') => self.word(b"true", Kind::Bool(true)),
            Some(b'f') => self.word(b"false", Kind::Bool(false)),
            Some(b'n') => self.word(b"null", Kind::Null),
            _ => Err(self.fault(Fault::ExpectedValue)),
        }
    }

    /// Takes back what the string that was just read counts too much, where it is no text.
    #[inline]
    fn shorten(&self, key: Text, tally: &mut Tally) {
        let Text { start, end, .. } = self.text;
        if end - start > MEDIA_BYTES && self.is_media(key) {
            tally.string_bytes -= end - start - MEDIA_BYTES;
        }
    }

    /// Whether the string that was just read is what an image or a file holds.
    fn is_media(&self, key: Text) -> bool {
        let key = self.bytes.get(key.start..key.end).unwrap_or_default();
        let value = self.bytes.get(self.text.start..).unwrap_or_default();
        MEDIA_KEYS.contains(&key) && (key == b"data" || value.starts_with(b"data:"))
    }

    fn word(&mut self, word: &[u8], kind: Kind) -> Result<Kind, Syntax> {
        let rest = self.bytes.get(self.pos..).unwrap_or_default();
        if rest.starts_with(word) {
            self.pos += word.len();
            return Ok(kind);
        }
        let same = rest
            .iter()
            .zip(word)
            .take_while(|(byte, want)| byte == want)
            .count();
        self.pos += same;
        Err(self.fault(Fault::ExpectedValue))
    }

    /// `-? (0 | [1-9][0-9]*) (\.[0-9]+)? ([eE][+-]?[0-9]+)?`
    #[inline]
    fn number(&mut self) -> Result<Kind, Syntax> {
        if self.byte() == Some(b'-') {
            self.pos += 1;
        }
        if self.byte() == Some(b'0') {
            self.pos += 1;
            if matches!(self.byte(), Some(b'0'..=b'9')) {
                return Err(self.fault(Fault::BadNumber));
            }
        } else {
            self.digits()?;
        }
        let mut kind = Kind::Integer;
        if self.byte() == Some(b'.') {
            kind = Kind::Fraction;
            self.pos += 1;
            self.digits()?;
        }
        if matches!(self.byte(), Some(b'e' | b'E')) {
            kind = Kind::Fraction;
            self.pos += 1;
            if matches!(self.byte(), Some(b'+' | b'-')) {
                self.pos += 1;
            }
            self.digits()?;
        }
        Ok(kind)
    }

    #[inline]
    fn digits(&mut self) -> Result<(), Syntax> {
        let start = self.pos;
        while let Some(b'0'..=b'9') = self.byte() {
            self.pos += 1;
        }
        if self.pos == start {
            Err(self.fault(Fault::BadNumber))
        } else {
            Ok(())
        }
    }

    /// Read the string whose opening quote is next.
    #[inline]
    fn string(&mut self) -> Result<(), Syntax> {
        let start = self.pos + 1;
        let rest = self.bytes.get(start..).unwrap_or_default();
        // Keys and most values are short and plain: worth a path of their own, inlined.
        if let Some(at) = rest.first_chunk().and_then(special_in_block)
            && rest.get(at) == Some(&b'"')
        {
            let end = start + at;
            self.pos = end + 1;
            self.text = Text {
                start,
                end,
                escaped: false,
            };
            return Ok(());
        }
        self.long_string(start)
    }

    #[inline(never)]
    fn long_string(&mut self, start: usize) -> Result<(), Syntax> {
        let mut escaped = false;
        let mut at = start;
        loop {
            at = special(self.bytes, at);
            match self.bytes.get(at) {
                Some(b'"') => {
                    self.pos = at + 1;
                    self.text = Text {
                        start,
                        end: at,
                        escaped,
                    };
                    return Ok(());
                }
                Some(b'\\') => {
                    escaped = true;
                    at = self.escape(at)?;
                }
                Some(_) => {
                    return Err(Syntax {
                        offset: at,
                        fault: Fault::ControlCharacter,
                    });
                }
                None => {
                    return Err(Syntax {
                        offset: at,
                        fault: Fault::UnterminatedString,
                    });
                }
            }
        }
    }

    /// Check the escape at `at`; gives where it ends.
    #[inline]
    fn escape(&self, at: usize) -> Result<usize, Syntax> {
        match self.bytes.get(at + 1) {
            Some(b'"' | b'\\' | b'/' | b'b' | b'f' | b'n' | b'r' | b't') => Ok(at + 2),
            Some(b'u') => match self.bytes.get(at + 2..at + 6) {
                Some(hex) if hex.iter().all(u8::is_ascii_hexdigit) => Ok(at + 6),
                Some(_) => Err(Syntax {
                    offset: at,
                    fault: Fault::BadEscape,
                }),
                None => Err(Syntax {
                    offset: self.bytes.len(),
                    fault: Fault::UnterminatedString,
                }),
            },
            Some(_) => Err(Syntax {
                offset: at,
                fault: Fault::BadEscape,
            }),
            None => Err(Syntax {
                offset: self.bytes.len(),
                fault: Fault::UnterminatedString,
            }),
        }
    }
}

/// Where the next `"`, `\` or control character is, at or after `from`; the length if nowhere.
///
/// Keys and short values end within a few blocks of 16 bytes, each one vector compare. Longer ones
/// go on in blocks of 64 that the compiler turns into vector compares too. memchr would be no
/// faster, as it takes three bytes at most, and control characters are 32.
#[inline]
fn special(bytes: &[u8], from: usize) -> usize {
    let mut rest = bytes.get(from..).unwrap_or_default();
    loop {
        for _ in 0..4 {
            let Some((block, after)) = rest.split_first_chunk::<16>() else {
                let tail = rest.iter().position(|byte| is_special(*byte));
                return bytes.len() - rest.len() + tail.unwrap_or(rest.len());
            };
            if let Some(at) = special_in_block(block) {
                return bytes.len() - rest.len() + at;
            }
            rest = after;
        }
        while let Some((block, after)) = rest.split_first_chunk::<64>() {
            if block
                .iter()
                .fold(false, |any, byte| any | is_special(*byte))
            {
                break;
            }
            rest = after;
        }
    }
}

#[inline]
const fn is_special(byte: u8) -> bool {
    byte == b'"' || byte == b'\\' || byte < 0x20
}

#[cfg(target_arch = "x86_64")]
#[inline]
fn special_in_block(block: &[u8; 16]) -> Option<usize> {
    use std::arch::x86_64::{
        _mm_cmpeq_epi8, _mm_loadu_si128, _mm_max_epu8, _mm_movemask_epi8, _mm_or_si128,
        _mm_set1_epi8,
    };
    // SAFETY: every x86-64 processor has SSE2, and the unaligned load reads the array's 16 bytes.
    let hits = unsafe {
        let block = _mm_loadu_si128(block.as_ptr().cast());
        let quote = _mm_cmpeq_epi8(block, _mm_set1_epi8(b'"'.cast_signed()));
        let slash = _mm_cmpeq_epi8(block, _mm_set1_epi8(b'\\'.cast_signed()));
        let top = _mm_set1_epi8(0x1F);
        let control = _mm_cmpeq_epi8(_mm_max_epu8(block, top), top);
        _mm_movemask_epi8(_mm_or_si128(_mm_or_si128(quote, slash), control))
    };
    (hits != 0).then(|| hits.trailing_zeros() as usize)
}

#[cfg(not(target_arch = "x86_64"))]
#[inline]
fn special_in_block(block: &[u8; 16]) -> Option<usize> {
    block.iter().position(|byte| is_special(*byte))
}
