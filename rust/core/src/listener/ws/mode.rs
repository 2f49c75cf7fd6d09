//! What a socket of requests speaks: how a message becomes a request, and an answer messages. No
//! sockets and no clock.
use bytes::{Bytes, BytesMut};
use serde::Deserialize;
use serde::de::IgnoredAny;
use tokio_tungstenite::tungstenite::Utf8Bytes;

use super::answer::Piece;
use super::responses::Responses;
use crate::dialect::json;
use crate::error::Error;

/// What a message asks for.
#[derive(Debug)]
pub(super) enum Asked {
    /// An exchange with this body.
    Exchange(Bytes),
    /// Nothing but what is said at once, if the key may use that model.
    Told {
        /// The model's name as the client has it.
        model: String,
        /// The messages.
        says: Vec<Utf8Bytes>,
    },
}

/// A refusal, apart from the error itself.
#[derive(Clone, Copy, Debug, Default)]
pub(super) struct Refusal<'a> {
    pub(super) status: u16,
    pub(super) request_id: Option<&'a str>,
    pub(super) retry_after_ms: Option<u64>,
}

/// What is spoken.
#[derive(Debug)]
pub(super) enum Mode {
    /// Chat requests as over HTTP, streamed unless they say otherwise.
    Chat,
    /// OpenAI's WebSocket mode of the Responses API.
    Responses(Box<Responses>),
}

#[derive(Deserialize)]
struct Streamed {
    #[serde(default)]
    stream: Option<IgnoredAny>,
}

impl Mode {
    /// The `type` of a message that stops the request that runs.
    pub(super) const fn cancels(&self) -> &'static str {
        match self {
            Self::Chat => "cancel",
            Self::Responses(_) => "response.cancel",
        }
    }

    /// Reads a message. `now` is the unix time in seconds, `id` random.
    pub(super) fn read(&mut self, text: &Utf8Bytes, now: u64, id: &str) -> Result<Asked, Error> {
        match self {
            Self::Chat => Ok(Asked::Exchange(streamed(text))),
            Self::Responses(responses) => responses.read(text, now, id),
        }
    }

    /// What is said of a piece of an answer.
    pub(super) fn tell(&mut self, piece: Piece) -> Vec<Utf8Bytes> {
        match piece {
            Piece::Events(events) => match self {
                Self::Chat => events.iter().map(text).collect(),
                Self::Responses(responses) => {
                    let events = events.iter().map(text);
                    let events: Vec<_> =
                        events.filter(|event| event.as_str() != "[DONE]").collect();
                    for event in &events {
                        responses.said(event);
                    }
                    events
                }
            },
            Piece::Whole(body) => vec![text(&body)],
            Piece::Refused {
                status,
                body,
                request_id,
                retry_after_ms,
            } => {
                let refusal = Refusal {
                    status,
                    request_id: request_id.as_deref(),
                    retry_after_ms,
                };
                self.failed();
                vec![self.refuse(&body, &refusal)]
            }
            // Of what is too large nothing is told but an error.
            Piece::End | Piece::TooLarge => Vec::new(),
        }
    }

    /// An error that is the answer.
    pub(super) fn fail(&mut self, error: &Error) -> Utf8Bytes {
        self.failed();
        self.turn_away(error)
    }

    /// The refusal of a message that is not the request that runs.
    pub(super) fn turn_away(&self, error: &Error) -> Utf8Bytes {
        let refusal = Refusal {
            status: error.kind.status(),
            request_id: None,
            retry_after_ms: error
                .retry_after
                .map(|wait| u64::try_from(wait.as_millis()).unwrap_or(u64::MAX).max(1)),
        };
        self.refuse(&error.openai_body(), &refusal)
    }

    /// The request that runs has failed.
    fn failed(&mut self) {
        if let Self::Responses(responses) = self {
            responses.failed();
        }
    }

    /// A refusal whose body is in OpenAI's shape.
    fn refuse(&self, body: &[u8], refusal: &Refusal<'_>) -> Utf8Bytes {
        #[derive(Deserialize)]
        struct Body<'a> {
            #[serde(borrow)]
            error: &'a serde_json::value::RawValue,
        }
        let error = serde_json::from_slice::<Body<'_>>(body).map(|body| body.error);
        let mut out = BytesMut::with_capacity(body.len() + 96);
        json::Object::write(&mut out, |message| {
            if matches!(self, Self::Responses(_)) {
                message.put("type", "error");
            }
            message.put("status", refusal.status);
            if let Ok(error) = error {
                message.put("error", error);
            }
            message.put_some("request_id", refusal.request_id);
            message.put_some("retry_after_ms", refusal.retry_after_ms);
        });
        text(&out.freeze())
    }
}

/// What a message's bytes say: text it was, or it is made so.
pub(super) fn text(bytes: &Bytes) -> Utf8Bytes {
    Utf8Bytes::try_from(bytes.clone())
        .unwrap_or_else(|_| String::from_utf8_lossy(bytes).into_owned().into())
}

/// A chat request that is streamed unless it says otherwise. What is no object is for admission to
/// refuse.
fn streamed(text: &Utf8Bytes) -> Bytes {
    let body: Bytes = text.clone().into();
    let trimmed = text.trim_ascii();
    let is_object = trimmed.starts_with('{');
    // A second one of a name is an error here, and what it says counts.
    let says = !is_object
        || !matches!(
            serde_json::from_str::<Streamed>(trimmed),
            Ok(Streamed { stream: None })
        );
    let Some(members) = trimmed.strip_suffix('}').filter(|_| !says) else {
        return body;
    };
    let mark = if members.trim_ascii_end().ends_with('{') && members.trim_ascii().len() == 1 {
        ""
    } else {
        ","
    };
    [members, mark, "\"stream\":true}"].concat().into()
}

#[cfg(test)]
mod tests {
    use super::*;
    use crate::error::Kind;

    fn asked(text: &'static str) -> String {
        match Mode::Chat.read(&text.into(), 0, "") {
            Ok(Asked::Exchange(body)) => String::from_utf8_lossy(&body).into_owned(),
            _ => String::new(),
        }
    }

    #[test]
    fn a_chat_is_streamed_unless_it_says_otherwise() {
        for (text, body) in [
            (r#"{"model":"m"}"#, r#"{"model":"m","stream":true}"#),
            (" { \"a\": {} } ", "{ \"a\": {} ,\"stream\":true}"),
            ("{}", r#"{"stream":true}"#),
            ("{ }", r#"{ "stream":true}"#),
            (r#"{"stream":null}"#, r#"{"stream":null,"stream":true}"#),
            (r#"{"stream":false}"#, r#"{"stream":false}"#),
            (r#"{"stream":true}"#, r#"{"stream":true}"#),
            (r#"{"stream":1}"#, r#"{"stream":1}"#),
            (r#"{"s\u0074ream":false}"#, r#"{"s\u0074ream":false}"#),
            (r#"{"stream":1,"stream":2}"#, r#"{"stream":1,"stream":2}"#),
        ] {
            assert_eq!(asked(text), body);
        }
    }

    #[test]
    fn what_is_no_object_is_left_alone() {
        for text in ["", "x", "[1]", "{", "}", "\"{}\"", "{\"a\":}", "null"] {
            assert_eq!(asked(text), text);
        }
    }

    #[test]
    fn a_message_that_is_turned_away_is_not_the_turn_that_runs() {
        let mut mode = Mode::Responses(Box::new(Responses::new(1000)));
        let asks = |previous: &str| {
            format!(r#"{{"type":"response.create","store":false,"input":"hi",{previous}}}"#).into()
        };
        let completed = Bytes::from_static(
            br#"{"type":"response.completed","response":{"id":"resp_1","output":[]}}"#,
        );
        assert!(mode.read(&asks(r#""model":"m""#), 0, "").is_ok());
        let refusal = mode.turn_away(&Error::new(Kind::RateLimited, "full"));
        assert!(refusal.starts_with(r#"{"type":"error","status":429,"#));
        mode.tell(Piece::Events(vec![completed]));
        let Ok(Asked::Exchange(body)) =
            mode.read(&asks(r#""previous_response_id":"resp_1""#), 0, "")
        else {
            unreachable!("a turn asks an engine");
        };
        let body = String::from_utf8_lossy(&body).into_owned();
        assert!(!body.contains("resp_1"), "{body}");
    }

    #[test]
    fn an_error_is_openais_with_what_a_status_line_would_say() {
        let error =
            Error::new(Kind::RateLimited, "slow").retry_after(std::time::Duration::from_millis(20));
        assert_eq!(
            Mode::Chat.fail(&error).as_str(),
            r#"{"status":429,"error":{"message":"slow","type":"rate_limit_error","param":null,"code":"rate_limit_exceeded"},"retry_after_ms":20}"#
        );
    }
}
