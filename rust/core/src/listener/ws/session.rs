//! What a socket of requests has before it: one request at a time, few in line. Sans-io.
use std::collections::VecDeque;

use serde::Deserialize;
use serde::de::IgnoredAny;
use tokio_tungstenite::tungstenite::Utf8Bytes;

use crate::error::{Error, Kind};

/// Most requests that wait behind the one that runs.
pub(super) const MAX_WAITING: usize = 8;
/// No longer message is looked at for being one that cancels.
const MAX_CANCEL: usize = 256;

/// What becomes of a message that came.
#[derive(Debug)]
pub(super) enum Taken {
    /// It is in line.
    Waits,
    /// The request that runs is to be stopped.
    Cancel,
    /// There is no room in line.
    Refused(Error),
}

/// The requests of a socket, in the order in which they came.
#[derive(Debug)]
pub(super) struct Session {
    /// The `type` of a message that stops the request that runs.
    cancels: &'static str,
    /// Most bytes in line.
    most: usize,
    waiting: VecDeque<Utf8Bytes>,
    bytes: usize,
}

#[derive(Deserialize)]
struct Typed<'a> {
    #[serde(borrow, default)]
    r#type: Option<std::borrow::Cow<'a, str>>,
    #[serde(default)]
    model: Option<IgnoredAny>,
}

impl Session {
    /// One with nothing in line, for at most `most` bytes.
    pub(super) fn new(cancels: &'static str, most: usize) -> Self {
        Self {
            cancels,
            most,
            waiting: VecDeque::new(),
            bytes: 0,
        }
    }

    /// Takes a message in.
    pub(super) fn take(&mut self, text: Utf8Bytes) -> Taken {
        if self.is_cancel(&text) {
            return Taken::Cancel;
        }
        // The first is never too large: a message has a bound of its own.
        let fits = self.waiting.is_empty()
            || self.waiting.len() < MAX_WAITING && self.bytes + text.len() <= self.most;
        if !fits {
            let message = "Too many requests wait on this connection. Wait for their answers.";
            return Taken::Refused(Error::new(Kind::RateLimited, message).code("queue_full"));
        }
        self.bytes += text.len();
        self.waiting.push_back(text);
        Taken::Waits
    }

    /// The next request.
    pub(super) fn next(&mut self) -> Option<Utf8Bytes> {
        let text = self.waiting.pop_front()?;
        self.bytes -= text.len();
        Some(text)
    }

    fn is_cancel(&self, text: &str) -> bool {
        // An array would be read as an object whose members come in order.
        text.len() <= MAX_CANCEL
            && text.trim_ascii_start().starts_with('{')
            && serde_json::from_str::<Typed<'_>>(text).is_ok_and(|typed| {
                typed.model.is_none() && typed.r#type.as_deref() == Some(self.cancels)
            })
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    fn session() -> Session {
        Session::new("cancel", 100)
    }

    fn text(length: usize) -> Utf8Bytes {
        "x".repeat(length).into()
    }

    #[test]
    fn requests_keep_their_order() {
        let mut session = session();
        for message in ["a", "b", "c"] {
            assert!(matches!(session.take(message.into()), Taken::Waits));
        }
        for message in ["a", "b", "c"] {
            assert_eq!(session.next().as_deref(), Some(message));
        }
        assert!(session.next().is_none());
    }

    #[test]
    fn the_line_is_bounded_in_number_and_bytes() {
        let mut session = session();
        for _ in 0..MAX_WAITING {
            assert!(matches!(session.take(text(1)), Taken::Waits));
        }
        let full = session.take(text(1));
        assert!(
            matches!(full, Taken::Refused(error) if error.code.as_deref() == Some("queue_full"))
        );
        assert!(session.next().is_some());
        assert!(matches!(session.take(text(93)), Taken::Waits));
        assert!(session.next().is_some());
        assert!(matches!(session.take(text(2)), Taken::Refused(_)));
        assert!(matches!(session.take(text(1)), Taken::Waits));
    }

    #[test]
    fn one_message_has_room_however_large() {
        assert!(matches!(session().take(text(1000)), Taken::Waits));
    }

    #[test]
    fn only_a_cancel_cancels() {
        let mut session = session();
        for cancel in [
            r#"{"type":"cancel"}"#,
            r#" {"id": 1, "type": "can\u0063el"}"#,
        ] {
            assert!(
                matches!(session.take(cancel.into()), Taken::Cancel),
                "{cancel}"
            );
        }
        for request in [
            r#"{"type":"cancel","model":"m"}"#,
            r#"{"type":"response.create"}"#,
            r#"["cancel"]"#,
            "cancel",
            "",
        ] {
            assert!(
                matches!(session.take(request.into()), Taken::Waits),
                "{request}"
            );
        }
    }
}
