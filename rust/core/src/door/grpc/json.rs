//! JSON, read value by value without a tree, and written.
//!
//! Source: RFC 8259. The text is known to be UTF-8; what is skipped is checked as what is read.
use memchr::memchr2;
use serde::Serialize;

/// Containers within containers, the outermost one included.
pub(super) const MAX_DEPTH: u32 = 128;

/// What makes a text no JSON, or JSON that is nested too deep; where, in bytes.
#[derive(Clone, Copy, Debug, PartialEq, Eq, thiserror::Error)]
#[error("{what} at byte {at}")]
pub(super) struct Fault {
    pub(super) what: &'static str,
    pub(super) at: usize,
}

/// A string's inside, as it stands.
#[derive(Clone, Copy, Debug)]
pub(super) struct Text<'a> {
    pub(super) raw: &'a str,
    pub(super) is_escaped: bool,
}

/// Reads one text.
#[derive(Clone, Copy)]
pub(super) struct Cursor<'a> {
    text: &'a str,
    at: usize,
    depth: u32,
}

impl<'a> Cursor<'a> {
    /// At the start of `text`.
    pub(super) const fn new(text: &'a str) -> Self {
        Self {
            text,
            at: 0,
            depth: 0,
        }
    }

    fn fault<T>(&self, what: &'static str) -> Result<T, Fault> {
        Err(Fault { what, at: self.at })
    }

    /// The first byte of what comes next, behind white space; 0 at the end.
    #[inline]
    pub(super) fn peek(&mut self) -> u8 {
        let bytes = self.text.as_bytes();
        loop {
            match bytes.get(self.at) {
                Some(b' ' | b'\n' | b'\t' | b'\r') => self.at += 1,
                Some(byte) => return *byte,
                None => return 0,
            }
        }
    }

    /// The first byte of the first item of the array that comes next.
    pub(super) fn peek_item(&self) -> u8 {
        let mut inner = *self;
        inner.descend();
        inner.peek()
    }

    /// Goes to the first item of the array that comes next.
    pub(super) fn descend(&mut self) {
        self.peek();
        self.at += 1;
    }

    /// The same text at another place, as deep as here.
    pub(super) const fn moved(mut self, at: usize) -> Self {
        self.at = at;
        self
    }

    /// Goes past the colon behind a key that was read before.
    pub(super) fn colon(&mut self) {
        self.peek();
        self.at += 1;
    }

    /// Nothing may come any more.
    pub(super) fn end(&mut self) -> Result<(), Fault> {
        match self.peek() {
            0 if self.at >= self.text.len() => Ok(()),
            _ => self.fault("unexpected text after the value"),
        }
    }

    fn open(&mut self) -> Result<(), Fault> {
        self.depth += 1;
        if self.depth > MAX_DEPTH {
            return self.fault("nested too deep");
        }
        self.at += 1;
        Ok(())
    }

    fn close(&mut self) {
        self.depth -= 1;
        self.at += 1;
    }

    /// Reads an object: `member` is called behind each key's colon, and has to read the value.
    #[inline]
    pub(super) fn object<E: From<Fault>>(
        &mut self,
        mut member: impl FnMut(&mut Self, usize, Text<'a>) -> Result<(), E>,
    ) -> Result<(), E> {
        self.open()?;
        if self.peek() == b'}' {
            self.close();
            return Ok(());
        }
        loop {
            self.peek();
            let start = self.at;
            let key = self.string()?;
            if self.peek() != b':' {
                return Ok(self.fault("expected ':' after the key")?);
            }
            self.at += 1;
            member(self, start, key)?;
            match self.peek() {
                b',' => self.at += 1,
                b'}' => {
                    self.close();
                    return Ok(());
                }
                _ => return Ok(self.fault("expected ',' or '}'")?),
            }
        }
    }

    /// Reads an array: `item` is called for each, and has to read it.
    #[inline]
    pub(super) fn array<E: From<Fault>>(
        &mut self,
        mut item: impl FnMut(&mut Self) -> Result<(), E>,
    ) -> Result<(), E> {
        self.open()?;
        if self.peek() == b']' {
            self.close();
            return Ok(());
        }
        loop {
            item(self)?;
            match self.peek() {
                b',' => self.at += 1,
                b']' => {
                    self.close();
                    return Ok(());
                }
                _ => return Ok(self.fault("expected ',' or ']'")?),
            }
        }
    }

    /// Reads a string.
    #[inline]
    pub(super) fn string(&mut self) -> Result<Text<'a>, Fault> {
        if self.peek() != b'"' {
            return self.fault("expected a string");
        }
        let start = self.at + 1;
        let mut at = start;
        let mut is_escaped = false;
        loop {
            let rest = self.text.as_bytes().get(at..).unwrap_or_default();
            let Some(len) = memchr2(b'"', b'\\', rest) else {
                return self.fault("the string is not closed");
            };
            if rest.iter().take(len).any(|byte| *byte < b' ') {
                return self.fault("a control character in a string must be escaped");
            }
            at += len;
            if rest.get(len) == Some(&b'"') {
                break;
            }
            is_escaped = true;
            let digits = rest.get(len + 2..len + 6);
            at += match rest.get(len + 1) {
                Some(b'"' | b'\\' | b'/' | b'b' | b'f' | b'n' | b'r' | b't') => 2,
                Some(b'u') if digits.is_some_and(|d| d.iter().all(u8::is_ascii_hexdigit)) => 6,
                _ => return self.fault("unknown escape in a string"),
            };
        }
        let raw = self.text.get(start..at).unwrap_or_default();
        self.at = at + 1;
        Ok(Text { raw, is_escaped })
    }

    /// Reads a number, as it is written.
    #[inline]
    pub(super) fn number(&mut self) -> Result<&'a str, Fault> {
        self.peek();
        let start = self.at;
        let bytes = self.text.as_bytes();
        let digits = |at: &mut usize| {
            let from = *at;
            while bytes.get(*at).is_some_and(u8::is_ascii_digit) {
                *at += 1;
            }
            *at > from
        };
        let mut at = start + usize::from(bytes.get(start) == Some(&b'-'));
        let first = at;
        let mut is_number = digits(&mut at) && (bytes.get(first) != Some(&b'0') || at == first + 1);
        if bytes.get(at) == Some(&b'.') {
            at += 1;
            is_number &= digits(&mut at);
        }
        if matches!(bytes.get(at), Some(b'e' | b'E')) {
            at += 1;
            at += usize::from(matches!(bytes.get(at), Some(b'+' | b'-')));
            is_number &= digits(&mut at);
        }
        if !is_number {
            return self.fault("expected a value");
        }
        self.at = at;
        Ok(self.text.get(start..at).unwrap_or_default())
    }

    /// Reads true, false or null.
    #[inline]
    pub(super) fn word(&mut self) -> Result<Option<bool>, Fault> {
        self.peek();
        let rest = self.text.as_bytes().get(self.at..).unwrap_or_default();
        for (word, value) in [("null", None), ("true", Some(true)), ("false", Some(false))] {
            if rest.starts_with(word.as_bytes()) {
                self.at += word.len();
                return Ok(value);
            }
        }
        self.fault("expected a value")
    }

    /// Reads past a value.
    pub(super) fn skip(&mut self) -> Result<(), Fault> {
        match self.peek() {
            b'{' => self.object(|cursor, _, _| cursor.skip()),
            b'[' => self.array(Self::skip),
            b'"' => self.string().map(drop),
            b't' | b'f' | b'n' => self.word().map(drop),
            _ => self.number().map(drop),
        }
    }
}

impl Text<'_> {
    /// Whether it is `name`, however it is written.
    #[inline]
    pub(super) fn is(&self, name: &str) -> bool {
        if self.is_escaped {
            let mut plain = Vec::new();
            self.put(&mut plain);
            plain == name.as_bytes()
        } else {
            self.raw == name
        }
    }

    /// Appends its characters. Half a surrogate pair, which is no character, becomes U+FFFD.
    #[inline]
    pub(super) fn put(&self, out: &mut Vec<u8>) {
        if self.is_escaped {
            self.unescape(out);
        } else {
            out.extend_from_slice(self.raw.as_bytes());
        }
    }

    fn unescape(&self, out: &mut Vec<u8>) {
        let mut rest = self.raw;
        while let Some((plain, escaped)) = rest.split_once('\\') {
            out.extend_from_slice(plain.as_bytes());
            rest = escaped.get(1..).unwrap_or_default();
            out.push(match escaped.as_bytes().first() {
                Some(b'b') => 8,
                Some(b'f') => 12,
                Some(b'n') => b'\n',
                Some(b'r') => b'\r',
                Some(b't') => b'\t',
                Some(b'u') => {
                    let (letter, behind) = character(rest);
                    rest = behind;
                    out.extend_from_slice(letter.encode_utf8(&mut [0; 4]).as_bytes());
                    continue;
                }
                Some(itself) => *itself,
                None => continue,
            });
        }
        out.extend_from_slice(rest.as_bytes());
    }
}

/// The character of a `\u` whose digits come next, and what is behind it.
fn character(digits: &str) -> (char, &str) {
    let unit = |text: &str| u32::from_str_radix(text.get(..4)?, 16).ok();
    let Some(first) = unit(digits) else {
        return (char::REPLACEMENT_CHARACTER, digits);
    };
    let behind = digits.get(4..).unwrap_or_default();
    if (0xD800..0xDC00).contains(&first)
        && let Some(second) = behind.strip_prefix("\\u").and_then(unit)
        && (0xDC00..0xE000).contains(&second)
    {
        let letter = 0x1_0000 + ((first - 0xD800) << 10 | (second - 0xDC00));
        let behind = behind.get(6..).unwrap_or_default();
        return (char::from_u32(letter).unwrap_or_default(), behind);
    }
    (
        char::from_u32(first).unwrap_or(char::REPLACEMENT_CHARACTER),
        behind,
    )
}

/// Appends a string with its quotes.
pub(super) fn put_string(text: &str, out: &mut Vec<u8>) {
    const HEX: &[u8; 16] = b"0123456789abcdef";
    out.push(b'"');
    let bytes = text.as_bytes();
    let mut start = 0;
    let must = |byte: u8| byte < b' ' || byte == b'"' || byte == b'\\';
    // Most strings need no escape, which one look without branches tells.
    if bytes.iter().fold(false, |found, byte| found | must(*byte)) {
        for (at, byte) in bytes.iter().enumerate().filter(|(_, byte)| must(**byte)) {
            out.extend_from_slice(bytes.get(start..at).unwrap_or_default());
            start = at + 1;
            match byte {
                b'"' => out.extend_from_slice(b"\\\""),
                b'\\' => out.extend_from_slice(b"\\\\"),
                b'\n' => out.extend_from_slice(b"\\n"),
                b'\r' => out.extend_from_slice(b"\\r"),
                b'\t' => out.extend_from_slice(b"\\t"),
                _ => {
                    let digit = |four: u8| HEX.get(usize::from(four)).copied().unwrap_or(b'0');
                    out.extend_from_slice(b"\\u00");
                    out.extend_from_slice(&[digit(byte >> 4), digit(byte & 15)]);
                }
            }
        }
    }
    out.extend_from_slice(bytes.get(start..).unwrap_or_default());
    out.push(b'"');
}

/// Appends an integer.
pub(super) fn put_integer(value: i64, out: &mut Vec<u8>) {
    put(&value, out);
}

/// Appends a number, a whole one without a fraction. False: JSON has no word for it.
pub(super) fn put_number(value: f64, out: &mut Vec<u8>) -> bool {
    /// Up to here a double tells every integer.
    const EXACT: f64 = 9_007_199_254_740_992.0;
    if !value.is_finite() {
        return false;
    }
    let is_negative_zero = value == 0.0 && value.is_sign_negative();
    if value.abs() <= EXACT && value.fract() == 0.0 && !is_negative_zero {
        put(&(value as i64), out);
    } else {
        put(&value, out);
    }
    true
}

/// The same for a float, with the fewest digits that tell it.
pub(super) fn put_float(value: f32, out: &mut Vec<u8>) -> bool {
    put(&value, out);
    value.is_finite()
}

fn put(value: &impl Serialize, out: &mut Vec<u8>) {
    // A number alone cannot fail, nor can writing to memory.
    let _ = serde_json::to_writer(out, value);
}

#[cfg(test)]
#[expect(clippy::unwrap_used, reason = "tests")]
mod tests {
    use super::*;
    use proptest::prelude::*;
    use serde_json::Value;

    /// Whether the whole text is one value.
    fn is_json(text: &str) -> bool {
        let mut cursor = Cursor::new(text);
        cursor.skip().and_then(|()| cursor.end()).is_ok()
    }

    #[test]
    fn what_is_json() {
        for text in [
            "{}",
            " [ ] ",
            "[1,-0,0.5,1e9,-1.5E-3]",
            r#"{"a":{"b":[null,true,false,"\u00e9\\"]}}"#,
        ] {
            assert!(is_json(text), "{text}");
        }
        for text in [
            "",
            "{",
            "[1,]",
            "{\"a\"}",
            "{\"a\":1,}",
            "01",
            "1.",
            ".5",
            "1e",
            "-",
            "nul",
            "[1]x",
            "\"a",
            "\"\\x\"",
            "\"\\u12g4\"",
            "\"\n\"",
            "{a:1}",
            "+1",
            "\0",
        ] {
            assert!(!is_json(text), "{text}");
        }
    }

    #[test]
    fn depth_is_bounded() {
        let nested = |depth: usize| "[".repeat(depth) + &"]".repeat(depth);
        assert!(is_json(&nested(128)));
        assert!(!is_json(&nested(129)));
    }

    #[test]
    fn surrogates() {
        let read = |text: &str| {
            let mut out = Vec::new();
            Cursor::new(text).string().unwrap().put(&mut out);
            String::from_utf8(out).unwrap()
        };
        assert_eq!(read(r#""\ud83d\ude00!""#), "😀!");
        assert_eq!(read(r#""\ud83d""#), "\u{FFFD}");
        assert_eq!(read(r#""\ud83d\u0041""#), "\u{FFFD}A");
        assert_eq!(read(r#""\ude00x""#), "\u{FFFD}x");
    }

    proptest! {
        #[test]
        fn says_what_serde_says(text in r#"[\[\]{}:,"\\a0-9eE.+\-tnu \n]{0,12}"#) {
            prop_assert_eq!(is_json(&text), serde_json::from_str::<&serde_json::value::RawValue>(&text).is_ok());
        }

        #[test]
        fn strings_there_and_back(text: String) {
            let mut written = Vec::new();
            put_string(&text, &mut written);
            let written = String::from_utf8(written).unwrap();
            prop_assert_eq!(serde_json::from_str::<Value>(&written).unwrap(), Value::from(text.clone()));
            let mut back = Vec::new();
            Cursor::new(&written).string().unwrap().put(&mut back);
            prop_assert_eq!(String::from_utf8(back).unwrap(), text);
        }

        #[test]
        fn numbers_are_told_exactly(bits: u64) {
            let value = f64::from_bits(bits);
            let mut written = Vec::new();
            if put_number(value, &mut written) {
                let text = String::from_utf8(written).unwrap();
                prop_assert_eq!(text.parse::<f64>().unwrap().to_bits(), value.to_bits());
                prop_assert!(is_json(&text));
            } else {
                prop_assert!(!value.is_finite());
            }
        }
    }
}
