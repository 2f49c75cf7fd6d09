//! Undoing escapes, for the few strings whose text matters.

/// Room for the longest key that is looked for, bytes.
pub(super) const MAX_KEY: usize = 24;

/// A key with its escapes undone into `buffer`; None where it is none that is looked for: too
/// long or not ASCII.
#[inline]
pub(super) fn key<'b>(
    raw: &'b [u8],
    escaped: bool,
    buffer: &'b mut [u8; MAX_KEY],
) -> Option<&'b [u8]> {
    if escaped {
        unescape_key(raw, buffer)
    } else {
        Some(raw)
    }
}

#[cold]
fn unescape_key<'b>(raw: &[u8], buffer: &'b mut [u8; MAX_KEY]) -> Option<&'b [u8]> {
    let mut used = 0;
    let mut rest = raw;
    while let Some((&first, after)) = rest.split_first() {
        let (unit, after) = if first == b'\\' {
            escape(rest)?
        } else {
            (u32::from(first), after)
        };
        *buffer.get_mut(used)? = u8::try_from(unit).ok().filter(u8::is_ascii)?;
        used += 1;
        rest = after;
    }
    buffer.get(..used)
}

/// A string with its escapes undone; None where one stands for half of a surrogate pair, which
/// JSON's grammar allows and UTF-8 cannot hold.
pub(super) fn unescape(raw: &str) -> Option<String> {
    let mut text = String::with_capacity(raw.len());
    let mut rest = raw;
    while let Some((plain, _)) = rest.split_once('\\') {
        text.push_str(plain);
        let (mut unit, mut after) = escape(rest.as_bytes().get(plain.len()..)?)?;
        if let 0xD800..=0xDBFF = unit
            && let Some((low @ 0xDC00..=0xDFFF, past)) = escape(after)
        {
            unit = 0x1_0000 + ((unit - 0xD800) << 10) + (low - 0xDC00);
            after = past;
        }
        // Fails for what is still a surrogate.
        text.push(char::from_u32(unit)?);
        rest = rest.get(rest.len() - after.len()..)?;
    }
    text.push_str(rest);
    Some(text)
}

/// The UTF-16 unit of the escape that `raw` begins with, and what follows it; None where it
/// begins with none.
fn escape(raw: &[u8]) -> Option<(u32, &[u8])> {
    let (unit, after) = match raw {
        [b'\\', b'u', a, b, c, d, after @ ..] => {
            let hex = [a, b, c, d];
            let unit = hex.iter().try_fold(0, |unit, digit| {
                char::from(**digit)
                    .to_digit(16)
                    .map(|digit| unit * 16 + digit)
            })?;
            return Some((unit, after));
        }
        [b'\\', b'b', after @ ..] => (8, after),
        [b'\\', b'f', after @ ..] => (12, after),
        [b'\\', b'n', after @ ..] => (10, after),
        [b'\\', b'r', after @ ..] => (13, after),
        [b'\\', b't', after @ ..] => (9, after),
        [b'\\', same @ (b'"' | b'\\' | b'/'), after @ ..] => (u32::from(*same), after),
        _ => return None,
    };
    Some((unit, after))
}
