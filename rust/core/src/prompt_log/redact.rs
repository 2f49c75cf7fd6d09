//! What must not be written down: keys, e-mail addresses, card numbers, and what own patterns find.
//!
//! Pure. Every text is searched twice, in linear time: once for all patterns together, once for runs
//! of digits. Nothing found is still reported to be something: too much is taken out rather than too
//! little.
use std::ops::Range;

use regex_automata::Input;
use regex_automata::meta::Regex;
use regex_automata::util::syntax;

/// Bytes beyond a limit that are looked at, so that what begins before the limit is seen whole. An
/// address has at most 64 + 1 + 255 (RFC 5321 §4.5.3.1).
pub(super) const MARGIN: usize = 1024;

/// Whether a character belongs to a secret that has begun.
type GoesOn = fn(u8) -> bool;

/// What a pattern finds, and how far it goes on.
#[derive(Clone, Copy)]
struct Kind {
    name: &'static str,
    /// Only at the beginning of a word.
    begins: bool,
    /// Characters that belong to it too, as many as follow.
    goes_on: GoesOn,
}

fn ends(_: u8) -> bool {
    false
}

fn word(byte: u8) -> bool {
    byte.is_ascii_alphanumeric() || matches!(byte, b'_' | b'-')
}

fn token(byte: u8) -> bool {
    word(byte) || matches!(byte, b'.' | b'~' | b'+' | b'/' | b'=')
}

/// Of fixed length each, and the rest by [`Kind::goes_on`]: a search never looks far ahead in vain.
const KEYS: [(&str, GoesOn); 8] = [
    (r"(?i:bearer)\s{1,8}[A-Za-z0-9._~+/=-]{16}", token),
    (r"fb-[A-Za-z0-9]{16}", word),
    (r"sk-[A-Za-z0-9_-]{16}", word),
    (r"(?:AKIA|ASIA)[A-Z0-9]{16}", word),
    (r"gh[opsur]_[A-Za-z0-9]{30}", word),
    (r"hf_[A-Za-z0-9]{30}", word),
    (r"AIza[A-Za-z0-9_-]{35}", word),
    // A JSON Web Token: `{"…` in base64, twice.
    (r"eyJ[A-Za-z0-9_-]{8}", token),
];

const EMAIL: &str = r"[\w.%+'-]+@[\w-]+(?:\.[\w-]+)+";
const DIGITS: &str = r"[0-9](?:[ -]?[0-9]){12,}";

/// Takes secrets out of texts.
pub struct Redactor {
    regex: Regex,
    digits: Regex,
    kinds: Vec<Kind>,
}

/// What is left of a text.
#[derive(Debug, PartialEq, Eq)]
pub struct Redacted {
    /// The text, with `[redacted:…]` for what was taken out.
    pub text: String,
    /// How often something was.
    pub count: u32,
    /// The limit cut it.
    pub truncated: bool,
}

impl Redactor {
    /// Looks for `own` patterns (Rust's `regex` syntax) besides the built-in ones.
    ///
    /// Fails on a pattern that is none, or is too large; the error names it by its number, from 1.
    pub fn new(own: &[String]) -> Result<Self, String> {
        let mut patterns = vec![EMAIL.to_owned()];
        let mut kinds = vec![Kind {
            name: "email",
            begins: false,
            goes_on: ends,
        }];
        for (at, pattern) in own.iter().enumerate() {
            let bad = |e: &dyn std::fmt::Display| format!("pattern {}: {e}", at + 1);
            let parsed = syntax::parse(pattern).map_err(|e| bad(&e))?;
            if parsed
                .properties()
                .minimum_len()
                .is_none_or(|least| least == 0)
            {
                return Err(bad(&"it matches nothing at all"));
            }
            Regex::new(pattern).map_err(|e| bad(&e))?;
            patterns.push(pattern.clone());
            kinds.push(Kind {
                name: "pattern",
                begins: false,
                goes_on: ends,
            });
        }
        for (pattern, goes_on) in KEYS {
            patterns.push(pattern.to_owned());
            kinds.push(Kind {
                name: "key",
                begins: true,
                goes_on,
            });
        }
        let regex = Regex::new_many(&patterns).map_err(|e| format!("patterns: {e}"))?;
        let digits = Regex::new(DIGITS).map_err(|e| format!("patterns: {e}"))?;
        Ok(Self {
            regex,
            digits,
            kinds,
        })
    }

    /// The text up to `limit` bytes without what must not be written down. `text` may go on beyond
    /// the limit, so that a secret across it is seen.
    pub fn redact(&self, text: &str, limit: usize) -> Redacted {
        let mut spans = self.named(text);
        self.cards(text, &mut spans);
        spans.sort_by_key(|(span, _)| (span.start, std::cmp::Reverse(span.end)));
        let mut out = String::with_capacity(text.len().min(limit));
        let mut from = 0;
        let mut count = 0;
        for (span, name) in spans {
            if span.start >= limit {
                break;
            }
            if span.start < from {
                // Within another one, or across its end.
                from = from.max(span.end);
                continue;
            }
            out.push_str(text.get(from..span.start).unwrap_or_default());
            out.push_str("[redacted:");
            out.push_str(name);
            out.push(']');
            count += 1;
            from = span.end;
        }
        let end = floor(text, limit).max(from);
        out.push_str(text.get(from..end).unwrap_or_default());
        let kept = floor(&out, limit);
        let truncated = end < text.len() || kept < out.len();
        out.truncate(kept);
        Redacted {
            text: out,
            count,
            truncated,
        }
    }

    /// Addresses, keys, and what own patterns find.
    fn named(&self, text: &str) -> Vec<(Range<usize>, &'static str)> {
        let mut found = Vec::new();
        let mut from = 0;
        while from < text.len() {
            let input = Input::new(text).range(from..);
            let Some(hit) = self.regex.find(input) else {
                break;
            };
            let Some(kind) = self.kinds.get(hit.pattern().as_usize()) else {
                break;
            };
            if kind.begins && !begins_word(text.as_bytes(), hit.start()) {
                from = ceil(text, hit.start() + 1);
                continue;
            }
            let rest = text.as_bytes().get(hit.end()..).unwrap_or_default();
            let more = rest.iter().take_while(|byte| (kind.goes_on)(**byte));
            let end = hit.end() + more.count();
            found.push((hit.start()..end, kind.name));
            from = end;
        }
        found
    }

    /// Card numbers.
    fn cards(&self, text: &str, found: &mut Vec<(Range<usize>, &'static str)>) {
        for run in self.digits.find_iter(text) {
            let bytes = text.as_bytes().get(run.range()).unwrap_or_default();
            let cards = super::card::cards(bytes);
            found.extend(
                cards
                    .into_iter()
                    .map(|card| (run.start() + card.start..run.start() + card.end, "card")),
            );
        }
    }
}

/// Whether a word begins at `at`: after anything but a letter or digit, or after a JSON string's
/// escape for a control character, whose letter belongs to no word.
fn begins_word(text: &[u8], at: usize) -> bool {
    let Some((before, rest)) = text.get(..at).and_then(<[u8]>::split_last) else {
        return true;
    };
    !before.is_ascii_alphanumeric()
        || matches!(before, b'n' | b't' | b'r' | b'b' | b'f') && rest.ends_with(b"\\")
}

/// The last place for a cut at or before `at`.
pub(super) fn floor(text: &str, at: usize) -> usize {
    if at >= text.len() {
        return text.len();
    }
    (0..=at)
        .rev()
        .find(|at| text.is_char_boundary(*at))
        .unwrap_or(0)
}

fn ceil(text: &str, at: usize) -> usize {
    (at..text.len())
        .find(|at| text.is_char_boundary(*at))
        .unwrap_or(text.len())
}
