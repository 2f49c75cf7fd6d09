//! Card numbers in runs of digits (ISO/IEC 7812: 13 to 19 digits, the last a Luhn check).
use std::ops::Range;

const SHORTEST: usize = 13;
const LONGEST: usize = 19;
/// Cards are written in groups of 4, 5 or 6 digits; columns of small numbers are no cards.
const SMALLEST_GROUP: usize = 3;
/// Between other groups a point is one of a number.
const POINTED: std::ops::RangeInclusive<usize> = 4..=6;

/// A run of digits in which cards may stand, with at most one separator between any two: blanks and
/// hyphens of all sorts, a point, or `%20`.
pub(super) const DIGITS: &str = concat!(
    r"[0-9](?:(?:[ .\-\u{a0}\u{2007}\u{2009}\u{202f}\u{2010}\u{2011}\u{2013}]|%20)?",
    r"[0-9]){12,}"
);

/// Where in `run`, which is a part of what [`DIGITS`] finds, card numbers stand.
pub(super) fn cards(run: &[u8]) -> Vec<Range<usize>> {
    let groups = groups(run);
    let mut found = Vec::new();
    let mut at = 0;
    while let Some(first) = groups.get(at) {
        if first.len() > LONGEST {
            // A number too long for a card, unless something else stands right before or after it.
            if hides_card(run.get(first.clone()).unwrap_or_default()) {
                found.push(first.clone());
            }
            at += 1;
            continue;
        }
        match longest(run, groups.get(at..).unwrap_or_default()) {
            Some((count, card)) => {
                found.push(card);
                at += count;
            }
            None => at += 1,
        }
    }
    found
}

fn groups(run: &[u8]) -> Vec<Range<usize>> {
    let mut groups = Vec::new();
    let mut at = 0;
    while let Some(rest) = run.get(at..).filter(|rest| !rest.is_empty()) {
        let digits = rest.iter().take_while(|b| b.is_ascii_digit()).count();
        if digits > 0 {
            groups.push(at..at + digits);
        }
        let escaped = rest.get(digits) == Some(&b'%');
        at += digits + if escaped { 3 } else { 1 };
    }
    groups
}

/// The longest card number of the first groups, and how many they are.
fn longest(run: &[u8], groups: &[Range<usize>]) -> Option<(usize, Range<usize>)> {
    let start = groups.first()?.start;
    let mut digits = Vec::with_capacity(LONGEST);
    let mut found = None;
    let mut last = 0;
    for (at, group) in groups.iter().enumerate() {
        if group.len() < SMALLEST_GROUP || digits.len() + group.len() > LONGEST {
            break;
        }
        let pointed = at > 0 && run.get(..group.start)?.ends_with(b".");
        if pointed && !(POINTED.contains(&last) && group.len() <= *POINTED.end()) {
            break;
        }
        last = group.len();
        digits.extend_from_slice(run.get(group.clone())?);
        if is_card(&digits) {
            found = Some((at + 1, start..group.end));
        }
    }
    found
}

fn hides_card(digits: &[u8]) -> bool {
    (SHORTEST..=LONGEST).any(|length| digits.windows(length).any(is_card))
}

fn is_card(digits: &[u8]) -> bool {
    if !(SHORTEST..=LONGEST).contains(&digits.len()) {
        return false;
    }
    // Unix milliseconds: 13 digits that begin with 1, as no card of 13 digits does.
    if digits.len() == SHORTEST && digits.first() == Some(&b'1') {
        return false;
    }
    luhn(digits)
}

fn luhn(digits: &[u8]) -> bool {
    let sum: u32 = digits
        .iter()
        .rev()
        .enumerate()
        .map(|(place, digit)| {
            let value = u32::from(digit - b'0') << (place % 2);
            if value > 9 { value - 9 } else { value }
        })
        .sum();
    sum.is_multiple_of(10)
}
