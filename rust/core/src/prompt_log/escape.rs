//! Escapes before a secret, whose letters and digits are no part of it.

/// Longest parameters of a terminal's sequence that are looked at: `1;38;2;255;255;255`.
const MAX_PARAMETERS: usize = 24;

/// The end of the escape with the byte before `at` in it: `\uXXXX`, `\xXX` or `%XX`. It may lie beyond
/// `at`.
pub(super) fn hex_end(text: &[u8], at: usize) -> Option<usize> {
    [
        (b"\\u".as_slice(), 4_usize),
        (b"\\x".as_slice(), 2),
        (b"%".as_slice(), 2),
    ]
    .iter()
    .find_map(|(mark, digits)| {
        (0..=*digits).find_map(|inside| {
            let first = at.checked_sub(inside)?;
            let hex = text.get(first..first + digits)?;
            let marked = text.get(..first)?.ends_with(mark);
            (marked && hex.iter().all(u8::is_ascii_hexdigit)).then_some(first + digits)
        })
    })
}

/// Whether an escape ends at `at`: one of JSON, of addresses, or a terminal's colour.
pub(super) fn ends(text: &[u8], at: usize) -> bool {
    let Some((last, before)) = text.get(..at).and_then(<[u8]>::split_last) else {
        return false;
    };
    let control = matches!(last, b'n' | b't' | b'r' | b'b' | b'f') && before.ends_with(b"\\");
    control || hex_end(text, at) == Some(at) || last.is_ascii_alphabetic() && opens(before)
}

/// Whether `text` ends like a terminal's sequence before its last letter: `ESC [ 31`. Where there are
/// parameters the rest goes without saying; without, `ESC` must be there, in one of its spellings.
fn opens(text: &[u8]) -> bool {
    let parameters = text
        .iter()
        .rev()
        .take(MAX_PARAMETERS)
        .take_while(|byte| byte.is_ascii_digit() || **byte == b';')
        .count();
    let Some(before) = text
        .get(..text.len() - parameters)
        .and_then(|text| text.strip_suffix(b"["))
    else {
        return false;
    };
    let spellings: [&[u8]; 6] = [b"\x1b", b"\\u001b", b"\\u001B", b"\\x1b", b"\\033", b"\\e"];
    parameters > 0 || spellings.iter().any(|escape| before.ends_with(escape))
}
