//! Streams that outlive their engine: what a client was given, the request that has it carried on,
//! and the join.
//!
//! A stream whose engine dies is carried on by a sibling that can go on from a last message of the
//! assistant's (`continue_final_message`; a completion goes on from its prompt). [`Resume`] is the
//! state of one stream over all its attempts: [`Delivered`] follows what the relay passes on,
//! [`Resume::next`] gives the next attempt's body and the [`Splice`] that its answer goes through.
//! Pure.
use bytes::{Bytes, BytesMut};

mod chunk;
mod continuation;
mod delivered;
mod splice;
mod stops;
mod usage;

pub use delivered::{Delivered, MAX_TEXT};
pub use splice::Splice;

use continuation::Request;

/// Why a stream is not carried on.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum Why {
    /// A tool call has begun: half a call cannot be given to an engine.
    ToolCall,
    /// The engine has reasoned: chains of thought are no part of the messages that engines go on
    /// from, and a second one would not fit the first.
    Reasoning,
    /// Something that is no text was delivered: a refusal, audio.
    NotText,
    /// Several choices.
    Choices,
    /// Several prompts, or one of token ids.
    Prompts,
    /// Log probabilities were asked for: those at the join would not be the answer's.
    Logprobs,
    /// The output is bound to a grammar, which an engine begins anew.
    Grammar,
    /// The request asks for something else that does not survive a join.
    Request,
    /// The text is longer than [`MAX_TEXT`].
    TooLong,
    /// An event that cannot be read, or a character that was not whole.
    Unreadable,
}

impl Why {
    /// For the log: how the sentence "not continued: …" ends.
    pub const fn text(self) -> &'static str {
        match self {
            Self::ToolCall => "a tool call has begun",
            Self::Reasoning => "the engine has reasoned",
            Self::NotText => "the answer is not text alone",
            Self::Choices => "several choices were asked for",
            Self::Prompts => "the prompt is not one string",
            Self::Logprobs => "log probabilities were asked for",
            Self::Grammar => "the output is bound to a grammar",
            Self::Request => "the request does not allow it",
            Self::TooLong => "the text is too long",
            Self::Unreadable => "what was delivered cannot be read",
        }
    }
}

/// What comes next for a stream that broke off.
pub enum Next {
    /// Another engine goes on.
    Attempt(Box<Attempt>),
    /// The answer is whole but for its end: these events end it, and are the relay's to pass on.
    End(Bytes),
}

/// A request to another engine.
pub struct Attempt {
    /// The body in place of the client's, to be inspected and edited as that was; `None`: the
    /// client's own, as no text was delivered yet.
    pub body: Option<Bytes>,
    /// What the answer goes through before the relay.
    pub splice: Splice,
}

impl Attempt {
    /// Whether the engine must be able to go on from a message.
    pub const fn continues(&self) -> bool {
        self.body.is_some()
    }
}

/// One stream over all its attempts.
#[derive(Debug, Default)]
pub struct Resume {
    completions: bool,
}

impl Resume {
    /// For a chat with one choice, or a completion of one prompt.
    pub const fn new(completions: bool) -> Self {
        Self { completions }
    }

    /// What to do once the stream broke off: `delivered` is what the client has, `body` what it
    /// asked for, `max_event_bytes` the bound of the next engine's events.
    pub fn next(
        &self,
        delivered: &Delivered,
        body: &Bytes,
        max_event_bytes: usize,
    ) -> Result<Next, Why> {
        if delivered.finish_reason().is_some() {
            return Ok(self.end(delivered, None));
        }
        delivered.can_resume()?;
        let request = Request::parse(body, self.completions)?;
        if request.left(delivered.tokens()) == Some(0) && !delivered.text().is_empty() {
            return Ok(self.end(delivered, Some("length")));
        }
        let solid = delivered.solid_text();
        let continued = if solid.is_empty() {
            None
        } else {
            Some(Bytes::from(request.continued(solid, delivered.solid)?))
        };
        let splice = Splice::new(
            delivered,
            self.completions,
            request.stops(),
            max_event_bytes,
        );
        Ok(Next::Attempt(Box::new(Attempt {
            body: continued,
            splice,
        })))
    }

    fn end(&self, delivered: &Delivered, finish: Option<&str>) -> Next {
        let head = delivered.head.clone().unwrap_or_default();
        let mut out = BytesMut::new();
        let usage = delivered.usage.filter(|_| !delivered.is_closed());
        usage::ending(&head, self.completions, finish, usage, &mut out);
        Next::End(out.freeze())
    }
}
