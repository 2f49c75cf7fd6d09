//! The attempts of one request: where each went, why it was made and what came of it. Pure:
//! times are handed in.
use std::fmt::Write as _;
use std::sync::Arc;

use serde::{Serialize, Serializer};

use crate::error::Error;

/// Attempts of one request that are kept; of more than these the first stay, and the last.
pub const MAX_KEPT: usize = 16;

/// Bytes of the usage table's list; where it would be longer, attempts before the last are left out.
pub const MAX_JSON: usize = 2048;

/// Why an attempt was made.
#[derive(Clone, Copy, Debug, PartialEq, Eq, Serialize)]
#[serde(rename_all = "snake_case")]
pub enum Why {
    /// It is the request's first.
    First,
    /// The one before failed.
    Retry,
    /// The model before had no target left.
    Fallback,
    /// The one beside it was late.
    Hedge,
    /// The stream before broke off.
    Resume,
}

/// One attempt.
#[derive(Clone, Debug, PartialEq, Eq, Serialize)]
pub struct Attempt {
    /// Which one of the request's it is, from 1.
    pub number: u32,
    /// Where it went.
    #[serde(serialize_with = "text")]
    pub upstream: Arc<str>,
    /// The model's name there.
    #[serde(serialize_with = "text")]
    pub model: Arc<str>,
    /// Why it was made.
    pub why: Why,
    /// What came of it: `ok`, the error kind's name, `hedge_lost`, `client_closed`, `gateway_died`.
    pub reason: &'static str,
    /// The upstream's HTTP status, where the attempt failed with one.
    #[serde(skip_serializing_if = "Option::is_none")]
    pub status: Option<u16>,
    /// From the request's arrival to its start, microseconds.
    pub start_us: u64,
    /// From its start to its end, microseconds; 0 while it runs.
    pub duration_us: u64,
}

fn text<S: Serializer>(text: &Arc<str>, out: S) -> Result<S::Ok, S::Error> {
    out.serialize_str(text)
}

/// What is said of an attempt that has not failed.
pub const OK: &str = "ok";
/// What is said of an attempt whose sibling was quicker.
pub const HEDGE_LOST: &str = "hedge_lost";

/// The attempts of one request, in the order in which they were made.
#[derive(Clone, Debug, Default)]
pub struct Attempts {
    kept: Vec<Attempt>,
    /// The one that runs, by its place.
    running: Option<usize>,
    /// The next one is made for this.
    next: Option<Why>,
}

impl Attempts {
    /// The next attempt is made for `why`; without this, because the one before failed.
    pub fn next_is(&mut self, why: Why) {
        self.next = Some(why);
    }

    /// The `number`th attempt begins, `at_us` after the request came.
    pub fn begin(&mut self, number: u32, upstream: &Arc<str>, model: &Arc<str>, at_us: u64) {
        let why = self.next.take();
        let why = if self.kept.is_empty() {
            Why::First
        } else {
            why.unwrap_or(Why::Retry)
        };
        if self.kept.len() >= MAX_KEPT {
            self.kept.pop();
        }
        if self.kept.is_empty() {
            // As a rule there is one.
            self.kept.reserve_exact(1);
        }
        self.kept.push(Attempt {
            number,
            upstream: Arc::clone(upstream),
            model: Arc::clone(model),
            why,
            reason: OK,
            status: None,
            start_us: at_us,
            duration_us: 0,
        });
        self.running = Some(self.kept.len() - 1);
    }

    /// The running attempt ends, if one does: with `reason`, and an upstream's status.
    pub fn end(
        &mut self,
        reason: &'static str,
        status: Option<u16>,
        at_us: u64,
    ) -> Option<&Attempt> {
        let last = self.kept.get_mut(self.running.take()?)?;
        last.reason = reason;
        last.status = status;
        last.duration_us = at_us.saturating_sub(last.start_us);
        Some(last)
    }

    /// The running attempt fails, if one does.
    pub fn fail(&mut self, error: &Error, at_us: u64) -> Option<&Attempt> {
        self.end(error.kind.name(), error.upstream_status, at_us)
    }

    /// Another attempt was made beside the running one, which goes on.
    pub fn beside(&mut self, attempt: Attempt) {
        if self.kept.len() < MAX_KEPT {
            self.kept.push(attempt);
        }
    }

    /// All that are kept.
    pub fn all(&self) -> &[Attempt] {
        &self.kept
    }

    /// As an answer's header says it, a list of structured fields (RFC 9651): nothing where there
    /// was one attempt at most.
    pub fn header(&self) -> Option<String> {
        if self.kept.len() < 2 {
            return None;
        }
        let mut out = String::with_capacity(self.kept.len() * 48);
        for attempt in &self.kept {
            if !out.is_empty() {
                out.push_str(", ");
            }
            out.push('"');
            for letter in attempt.upstream.chars() {
                match letter {
                    '"' | '\\' => out.extend(['\\', letter]),
                    ' '..='~' => out.push(letter),
                    _ => out.push('?'),
                }
            }
            out.push('"');
            // Writing to a string cannot fail.
            let _ = write!(out, ";reason={}", attempt.reason);
            if attempt.why != Why::First && attempt.why != Why::Retry {
                let _ = write!(out, ";why={}", attempt.why.name());
            }
            if let Some(status) = attempt.status {
                let _ = write!(out, ";status={status}");
            }
            if attempt.duration_us > 0 {
                let _ = write!(out, ";ms={}", attempt.duration_us / 1000);
            }
        }
        Some(out)
    }

    /// As the usage table keeps it, a JSON array: nothing where there was one attempt at most.
    pub fn json(&self) -> Option<Box<str>> {
        let mut kept: Vec<&Attempt> = self.kept.iter().collect();
        while kept.len() > 1 {
            let text = serde_json::to_string(&kept).ok()?;
            if text.len() <= MAX_JSON {
                return Some(text.into());
            }
            // The first ones tell how it began, the last one how it ended.
            kept.remove(kept.len() - 2);
        }
        None
    }
}

impl Why {
    /// The name in headers, logs and the usage table.
    pub const fn name(self) -> &'static str {
        match self {
            Self::First => "first",
            Self::Retry => "retry",
            Self::Fallback => "fallback",
            Self::Hedge => "hedge",
            Self::Resume => "resume",
        }
    }
}
