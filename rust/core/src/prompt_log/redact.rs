//! What must not be written down: keys, e-mail addresses, card numbers, and what own patterns find.
//!
//! Pure, and linear in the text: no search looks further ahead than the length of a key. Nothing found
//! is still reported to be something: too much is taken out rather than too little.
use std::fmt;
use std::ops::Range;
use std::sync::LazyLock;

use memchr::memmem;
use regex_automata::Input;
use regex_automata::meta::{BuildError, Regex};
use regex_automata::util::syntax;

use super::card::{DIGITS, cards};
use super::email::emails;
use super::escape;

/// Bytes beyond a limit that are looked at, so that what begins before the limit is seen whole. An
/// address has at most 64 + 1 + 255 (RFC 5321 §4.5.3.1).
pub(super) const MARGIN: usize = 1024;

/// Whether a character belongs to a secret that has begun.
type GoesOn = fn(u8) -> bool;

fn word(byte: u8) -> bool {
    byte.is_ascii_alphanumeric() || matches!(byte, b'_' | b'-')
}

fn token(byte: u8) -> bool {
    word(byte) || matches!(byte, b'.' | b'~' | b'+' | b'/' | b'=')
}

/// How keys begin, and which characters go on. No pattern is open at its end, so that a search never
/// looks far ahead in vain.
const KEYS: [(&str, GoesOn); 13] = [
    (r"(?i:bearer)\s{1,8}[A-Za-z0-9._~+/=-]{16}", token),
    (r"fb-[A-Za-z0-9]{16}", word),
    (r"sk-[A-Za-z0-9_-]{16}", word),
    (r"(?:AKIA|ASIA)[A-Z0-9]{16}", word),
    (r"gh[opsur]_[A-Za-z0-9]{30}", word),
    (r"github_pat_[A-Za-z0-9_]{20}", word),
    (r"glpat-[A-Za-z0-9_-]{16}", word),
    (r"[rs]k_(?:live|test)_[A-Za-z0-9]{16}", word),
    (r"xox[abprs]-[A-Za-z0-9-]{10}", word),
    (r"gsk_[A-Za-z0-9]{20}", word),
    (r"hf_[A-Za-z0-9]{30}", word),
    (r"AIza[A-Za-z0-9_-]{35}", word),
    // A JSON Web Token: `{"` in base64.
    (r"eyJ[A-Za-z0-9_-]{8}", token),
];

/// The first line of a private key in PEM (RFC 7468), or of one for PGP.
const BLOCK: &str = r"-----BEGIN (?:[A-Z0-9]{1,16} ){0,3}PRIVATE KEY(?: BLOCK)?-----";
const BLOCK_END: &[u8] = b"-----END ";

/// Takes secrets out of texts.
pub struct Redactor {
    keys: Regex,
    blocks: Regex,
    digits: Regex,
    own: Option<Regex>,
}

/// An own pattern that is none, is too large, or would match nothing at all.
#[derive(Debug, PartialEq, Eq)]
pub struct BadPattern {
    /// Which one, from 0; `None`: all together are too large.
    pub at: Option<usize>,
    /// Why, in one line.
    pub reason: String,
}

impl fmt::Display for BadPattern {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        match self.at {
            Some(at) => write!(f, "patterns[{at}]: {}", self.reason),
            None => write!(f, "patterns: {}", self.reason),
        }
    }
}

/// What is wrong, without the picture of the pattern that the parser draws above.
fn last_line(error: &impl fmt::Display) -> String {
    let text = error.to_string();
    let line = text.lines().last().unwrap_or_default();
    line.trim_start_matches("error: ").to_owned()
}

fn too_large(error: &BuildError) -> String {
    match error.size_limit() {
        Some(limit) => format!("too large: compiled, more than {limit} bytes"),
        None => last_line(error),
    }
}

static PLAIN: LazyLock<Option<Redactor>> = LazyLock::new(|| Redactor::new(&[]).ok());

/// The text without keys, addresses and cards, for a log of another kind.
pub fn without_secrets(text: &str) -> String {
    let redacted = PLAIN
        .as_ref()
        .map(|redactor| redactor.redact(text, usize::MAX).text);
    redacted.unwrap_or_default()
}

type Found = Vec<(Range<usize>, &'static str)>;

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
    /// Looks for `own` patterns (Rust's `regex` syntax) besides keys, addresses and cards.
    pub fn new(own: &[String]) -> Result<Self, BadPattern> {
        for (at, pattern) in own.iter().enumerate() {
            let bad = |reason| BadPattern {
                at: Some(at),
                reason,
            };
            let parsed = syntax::parse(pattern).map_err(|e| bad(last_line(&e)))?;
            if parsed
                .properties()
                .minimum_len()
                .is_none_or(|least| least == 0)
            {
                return Err(bad("it matches nothing at all".to_owned()));
            }
            Regex::new(pattern).map_err(|e| bad(too_large(&e)))?;
        }
        let many = |patterns: &[&str]| {
            Regex::new_many(patterns).map_err(|e| BadPattern {
                at: None,
                reason: too_large(&e),
            })
        };
        let own: Vec<&str> = own.iter().map(String::as_str).collect();
        Ok(Self {
            keys: many(&KEYS.map(|(pattern, _)| pattern))?,
            blocks: many(&[BLOCK])?,
            digits: many(&[DIGITS])?,
            own: (!own.is_empty()).then(|| many(&own)).transpose()?,
        })
    }

    /// The text up to `limit` bytes without what must not be written down. `text` may go on beyond
    /// the limit, so that a secret across it is seen.
    pub fn redact(&self, text: &str, limit: usize) -> Redacted {
        let mut spans = self.find(text);
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

    /// All that must not be written down, in no order.
    fn find(&self, text: &str) -> Found {
        let mut found: Found = Vec::new();
        found.extend(emails(text).into_iter().map(|span| (span, "email")));
        self.find_keys(text, &mut found);
        self.find_blocks(text, &mut found);
        for run in self.digits.find_iter(text) {
            // An escape's digits may stand before the card's, or what looks like one be the card's.
            let escaped = escape::hex_end(text.as_bytes(), run.start());
            let after = escaped.filter(|end| (run.start() + 1..run.end()).contains(end));
            for start in [Some(run.start()), after].into_iter().flatten() {
                let digits = text.as_bytes().get(start..run.end()).unwrap_or_default();
                let cards = cards(digits).into_iter();
                found.extend(cards.map(|card| (start + card.start..start + card.end, "card")));
            }
        }
        if let Some(own) = &self.own {
            found.extend(own.find_iter(text).map(|hit| (hit.range(), "pattern")));
        }
        found
    }

    fn find_keys(&self, text: &str, found: &mut Found) {
        let mut from = 0;
        while let Some(hit) = self.keys.find(Input::new(text).range(from..)) {
            if !begins_word(text.as_bytes(), hit.start()) {
                // All of these patterns begin with ASCII.
                from = hit.start() + 1;
                continue;
            }
            let goes_on = KEYS
                .get(hit.pattern().as_usize())
                .map_or(word as GoesOn, |(_, goes_on)| *goes_on);
            let rest = text.as_bytes().get(hit.end()..).unwrap_or_default();
            from = hit.end() + rest.iter().take_while(|byte| goes_on(**byte)).count();
            found.push((hit.start()..from, "key"));
        }
    }

    /// Private keys from their first line to their last, or to the text's end.
    fn find_blocks(&self, text: &str, found: &mut Found) {
        let mut from = 0;
        while let Some(hit) = self.blocks.find(Input::new(text).range(from..)) {
            let rest = text.as_bytes().get(hit.end()..).unwrap_or_default();
            from = memmem::find(rest, BLOCK_END).map_or(text.len(), |at| {
                let last = rest.get(at + BLOCK_END.len()..).unwrap_or_default();
                let goes_on = |byte: &&u8| {
                    byte.is_ascii_uppercase()
                        || byte.is_ascii_digit()
                        || matches!(byte, b' ' | b'-')
                };
                let length = last.iter().take_while(goes_on).count();
                hit.end() + at + BLOCK_END.len() + length
            });
            found.push((hit.start()..from, "key"));
        }
    }
}

/// Whether a word begins at `at`: after anything but a letter or digit, or after an escape, whose
/// letters and digits belong to no word.
fn begins_word(text: &[u8], at: usize) -> bool {
    let before = text.get(..at).and_then(<[u8]>::last);
    !before.is_some_and(u8::is_ascii_alphanumeric) || escape::ends(text, at)
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
