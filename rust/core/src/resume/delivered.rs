//! What a client has been given of a stream with one choice.
use bytes::Bytes;
use serde_json::value::RawValue;

use crate::resume::Why;
use crate::resume::chunk::{Chunk, is_something, text};
use crate::usage::Usage;

/// Longest text that is kept, bytes: a longer answer is not carried on.
pub const MAX_TEXT: usize = 1 << 20;

/// What the first event says of the answer; its values as JSON.
#[derive(Clone, Debug, Default, PartialEq, Eq)]
pub(super) struct Head {
    pub(super) id: Option<Box<str>>,
    pub(super) created: Option<Box<str>>,
    pub(super) model: Option<Box<str>>,
    pub(super) fingerprint: Option<Box<str>>,
}

/// What a client has been given of a stream, followed event by event as it is passed on.
#[derive(Clone, Debug, Default)]
pub struct Delivered {
    pub(super) head: Option<Head>,
    pub(super) text: String,
    /// The latest usage: prompt and its parts are those of the whole answer.
    pub(super) usage: Option<Usage>,
    /// Output tokens of all that was delivered.
    tokens: u64,
    /// Output tokens up to the last event that was not white space alone.
    pub(super) solid: u64,
    /// An event with text came without the engine's count.
    guessed: bool,
    finish: Option<Box<str>>,
    /// The usage that follows the last choice.
    closed: bool,
    obstacle: Option<Why>,
}

impl Delivered {
    /// Takes the data of one event that was passed on, before anything was taken out of it.
    ///
    /// Whatever cannot be read or carried on is remembered as the obstacle.
    pub fn event(&mut self, data: &Bytes) {
        let Some(chunk) = Chunk::parse(data) else {
            self.obstructed(Why::Unreadable);
            return;
        };
        if self.head.is_none() {
            let own = |raw: Option<&RawValue>| raw.map(|raw| Box::from(raw.get()));
            self.head = Some(Head {
                id: own(chunk.id),
                created: own(chunk.created),
                model: own(chunk.model),
                fingerprint: own(chunk.system_fingerprint),
            });
        }
        let usage = chunk.usage.and_then(|raw| Usage::parse(raw.get()));
        if let Some(usage) = usage {
            self.usage = Some(usage);
            self.tokens = usage.completion;
        }
        let choices = chunk.choices.unwrap_or_default();
        if choices.len() > 1 || choices.iter().any(|choice| choice.index.unwrap_or(0) > 0) {
            self.obstructed(Why::Choices);
            return;
        }
        let Some(choice) = choices.first() else {
            self.closed |= usage.is_some();
            return;
        };
        if let Some(delta) = &choice.delta {
            if delta.calls() {
                self.obstructed(Why::ToolCall);
            }
            if delta.reasons() {
                self.obstructed(Why::Reasoning);
            }
            if delta.other() {
                self.obstructed(Why::NotText);
            }
        }
        if let Some(said) = choice.said().filter(|said| is_something(Some(said))) {
            match text(said) {
                Some(piece) => self.say(&piece, usage.is_some()),
                None => self.obstructed(Why::Unreadable),
            }
        }
        if let Some(reason) = choice.finish_reason.and_then(text) {
            self.finish = Some(reason.into());
        }
    }

    fn say(&mut self, piece: &str, counted: bool) {
        if !counted {
            self.guessed = true;
            self.tokens += 1;
        }
        if piece.chars().any(|c| !c.is_whitespace()) {
            self.solid = self.tokens;
        }
        if self.text.len() + piece.len() > MAX_TEXT {
            self.text = String::new();
            self.obstructed(Why::TooLong);
        }
        if self.obstacle.is_none() {
            self.text.push_str(piece);
        }
    }

    /// The first obstacle counts, and the text is of no more use.
    fn obstructed(&mut self, why: Why) {
        self.obstacle.get_or_insert(why);
    }

    /// The text so far: a chat's content, a completion's text.
    pub fn text(&self) -> &str {
        &self.text
    }

    /// The text without the white space at its end: what an engine is given to go on from.
    pub(super) fn solid_text(&self) -> &str {
        self.text.trim_end()
    }

    /// Output tokens delivered: the engine's count where it gave one, else events.
    pub const fn tokens(&self) -> u64 {
        self.tokens
    }

    /// Whether every token was counted by an engine.
    pub const fn is_counted(&self) -> bool {
        !self.guessed
    }

    /// How the answer ended, if it did: only what follows the last choice may be missing.
    pub fn finish_reason(&self) -> Option<&str> {
        self.finish.as_deref()
    }

    /// Whether the usage that follows the last choice has come.
    pub(super) const fn is_closed(&self) -> bool {
        self.closed
    }

    /// Why it cannot be carried on, as far as what was delivered says.
    pub fn can_resume(&self) -> Result<(), Why> {
        match self.obstacle {
            Some(why) => Err(why),
            // A character that an engine had not whole: what follows it nobody knows.
            None if self.text.ends_with('\u{FFFD}') => Err(Why::Unreadable),
            None => Ok(()),
        }
    }
}
