//! E-mail addresses in a text.
use std::ops::Range;

use memchr::memchr_iter;

use super::escape;

/// Where addresses stand: around each `@`, a local part before and a domain of two labels or more
/// after it, of letters and digits of any script (RFC 6531). By hand, as a pattern that begins with
/// any number of letters would look to the end of the text from every one of them.
pub(super) fn emails(text: &str) -> Vec<Range<usize>> {
    let mut found: Vec<Range<usize>> = Vec::new();
    for at in memchr_iter(b'@', text.as_bytes()) {
        let (before, after) = text.split_at(at);
        let after = after.get(1..).unwrap_or_default();
        let local: usize = before
            .chars()
            .rev()
            .take_while(|c| c.is_alphanumeric() || "._%+'-".contains(*c))
            .map(char::len_utf8)
            .sum();
        let domain = domain(after);
        if local > 0 && domain > 0 {
            let start = at - local;
            // What an escape in a JSON string is made of is no part of it.
            let escaped = (1..=5).find(|length| {
                *length < local
                    && before
                        .as_bytes()
                        .get(..start)
                        .is_some_and(|b| b.ends_with(b"\\"))
                    && escape::ends(before.as_bytes(), start + length)
            });
            found.push(start + escaped.unwrap_or(0)..at + 1 + domain);
        }
    }
    found
}

/// The length of the domain that `text` begins with; 0 for none.
fn domain(text: &str) -> usize {
    let end = text
        .find(|c: char| !(c.is_alphanumeric() || matches!(c, '.' | '-')))
        .unwrap_or(text.len());
    let mut length = 0;
    let mut labels = 0;
    for label in text.get(..end).unwrap_or_default().split('.') {
        if label.is_empty() {
            break;
        }
        length += label.len() + usize::from(labels > 0);
        labels += 1;
    }
    if labels > 1 { length } else { 0 }
}
