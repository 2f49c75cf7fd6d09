//! The labels that a client gives its requests, `x-forebay-tags: team=search, env=prod`.
//!
//! Pure. They are kept with the usage and go nowhere else.
use crate::error::{Error, Kind};

/// The header.
pub const HEADER: &str = "x-forebay-tags";

/// Pairs that one request may have.
const MAX_PAIRS: usize = 16;
/// Longest key, characters.
const MAX_KEY: usize = 64;
/// Longest value, characters.
const MAX_VALUE: usize = 256;

/// The header's pairs as the text of a JSON object of strings, in their order; `None` where there is
/// none.
///
/// Errors: more than 16 pairs, a key that is not 1 to 64 of `[A-Za-z0-9._-]` or is given twice, a
/// value that is longer than 256 or not printable ASCII.
pub fn parse(header: &[u8]) -> Result<Option<Box<str>>, Error> {
    let header = header.trim_ascii();
    if header.is_empty() {
        return Ok(None);
    }
    let mut keys: Vec<&str> = Vec::new();
    let mut out = String::with_capacity(header.len() + 16);
    for pair in header.split(|byte| *byte == b',') {
        let (key, value) = read(pair.trim_ascii())?;
        if keys.contains(&key) {
            return Err(bad(&format!("has the key '{key}' twice")));
        }
        if keys.len() == MAX_PAIRS {
            return Err(bad("has more than 16 pairs"));
        }
        out.push(if keys.is_empty() { '{' } else { ',' });
        keys.push(key);
        out.push('"');
        out.push_str(key);
        out.push_str("\":\"");
        for character in value.chars() {
            if matches!(character, '"' | '\\') {
                out.push('\\');
            }
            out.push(character);
        }
        out.push('"');
    }
    out.push('}');
    Ok(Some(out.into_boxed_str()))
}

/// One `key=value`.
fn read(pair: &[u8]) -> Result<(&str, &str), Error> {
    let text = std::str::from_utf8(pair)
        .ok()
        .filter(|text| text.bytes().all(|byte| matches!(byte, b' '..=b'~')))
        .ok_or_else(|| bad("has characters that are not printable ASCII"))?;
    let (key, value) = text
        .split_once('=')
        .ok_or_else(|| bad("must be pairs of key=value with commas between them"))?;
    let (key, value) = (key.trim_ascii(), value.trim_ascii());
    let plain = |byte: u8| byte.is_ascii_alphanumeric() || b"._-".contains(&byte);
    if !(1..=MAX_KEY).contains(&key.len()) || !key.bytes().all(plain) {
        return Err(bad("has a key that is not 1 to 64 of A-Z a-z 0-9 . _ -"));
    }
    if value.len() > MAX_VALUE {
        return Err(bad("has a value of more than 256 characters"));
    }
    Ok((key, value))
}

fn bad(what: &str) -> Error {
    Error::new(
        Kind::InvalidRequest,
        format!("The header '{HEADER}' {what}."),
    )
    .param(HEADER)
    .code("invalid_value")
}
