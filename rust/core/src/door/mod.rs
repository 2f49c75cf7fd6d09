//! Doors: what clients speak, each turned into the one language of the exchange and back.
//!
//! An exchange speaks OpenAI inside. A door reads a client's request into an OpenAI-shaped one before
//! it is admitted, and tells the exchange's answer in its own words as that is written. So every door
//! has the same admission, limits, routing, fallback, metering and errors. Pure: bytes in, bytes out.
pub mod grpc;
mod messages;
pub(crate) mod responses;
mod way;

use bytes::{Bytes, BytesMut};
use http::{HeaderName, HeaderValue};

use std::ops::Range;

use crate::dialect::{Dialect, Unsaid};
use crate::error::Error;
use crate::slot::{Headers, error_headers};
use crate::upstream::Rope;

pub use way::Way;

/// What a client speaks.
#[derive(Clone, Copy, Debug, Default, PartialEq, Eq)]
pub enum Door {
    /// OpenAI's chat, completions and embeddings.
    #[default]
    OpenAi,
    /// Messages of `forebay.v1`.
    Grpc(grpc::Method),
    /// Anthropic's Messages.
    Messages,
    /// How many tokens a request of Messages would have.
    Count,
    /// OpenAI's Responses.
    Responses,
}

/// How a client is connected.
#[derive(Clone, Copy, Debug, Default, PartialEq, Eq)]
pub enum Front {
    /// HTTP.
    #[default]
    Http,
    /// A WebSocket.
    WebSocket,
    /// gRPC.
    Grpc,
}

impl Front {
    /// The name in usage.
    pub const fn name(self) -> &'static str {
        match self {
            Self::Http => "http",
            Self::WebSocket => "ws",
            Self::Grpc => "grpc",
        }
    }

    /// The front of that name: the inverse of [`Front::name`].
    pub fn from_name(name: &str) -> Option<Self> {
        [Self::Http, Self::WebSocket, Self::Grpc]
            .into_iter()
            .find(|front| front.name() == name)
    }
}

/// A client's own request, for upstreams that speak as it does.
#[derive(Clone, Debug)]
pub struct Native {
    /// What both speak.
    pub dialect: Dialect,
    /// The client's bytes.
    pub body: Bytes,
    /// Where in them the model's name stands, quotes included.
    pub model: Range<usize>,
    /// What of them OpenAI's dialect has no words for.
    pub unsaid: Option<Unsaid>,
    /// What the client says of them in `anthropic-beta`.
    pub beta: Option<HeaderValue>,
}

impl Native {
    /// The client's own bytes, with another name for the model; all else stays as it is.
    pub fn for_model(&self, name: &str) -> Rope {
        let name = serde_json::to_string(name).unwrap_or_default();
        let body = &self.body;
        if body.get(self.model.clone()) == Some(name.as_bytes()) {
            return Rope::new(vec![body.clone()]);
        }
        Rope::new(vec![
            body.slice(..self.model.start),
            Bytes::from(name),
            body.slice(self.model.end..),
        ])
    }

    /// With what `anthropic-beta` says; what no header can say is left out.
    #[must_use]
    pub fn asking(mut self, beta: Option<&[u8]>) -> Self {
        self.beta = beta
            .filter(|_| self.dialect == Dialect::Anthropic)
            .and_then(|beta| HeaderValue::from_bytes(beta).ok());
        self
    }
}

/// A request as its door has read it.
pub struct Entered {
    /// The OpenAI-shaped body for the way's endpoint.
    pub body: Bytes,
    /// The client's own request.
    pub native: Option<Native>,
    /// How the answer is told; `None`: as it is.
    pub voice: Option<Box<dyn Voice>>,
}

/// Tells one exchange's answer in the words of a door.
pub trait Voice: Send {
    /// A whole answer of OpenAI's as the door's. Errors: it cannot be told, and counts as no answer.
    fn answer(&self, body: &[u8]) -> Result<Bytes, Error>;

    /// Appends what a piece of OpenAI's stream comes to. A piece is whole events.
    fn feed(&mut self, sse: Bytes, out: &mut BytesMut) -> Result<(), Error>;

    /// Appends what is left to say once the stream was whole.
    fn end(&mut self, out: &mut BytesMut) -> Result<(), Error>;

    /// Appends `error` as the stream's last event.
    fn cut(&mut self, error: &Error, out: &mut BytesMut);

    /// Appends a sign of life, while there is nothing to say yet.
    fn keep_alive(&self, out: &mut BytesMut);

    /// Appends a piece of a stream that is in the door's own words already.
    fn pass(&mut self, told: Bytes, out: &mut BytesMut) -> Result<(), Error> {
        out.extend_from_slice(&told);
        Ok(())
    }

    /// Appends what is left to say once such a stream was whole.
    fn passed(&mut self, out: &mut BytesMut) -> Result<(), Error> {
        let _ = out;
        Ok(())
    }

    /// A whole answer that is in the door's own words already.
    fn own(&self, body: Bytes) -> Result<Bytes, Error> {
        Ok(body)
    }

    /// An error with the field's name as the client wrote it, where that is another one.
    fn named(&self, error: &Error) -> Option<Error> {
        let _ = error;
        None
    }

    /// What is to be kept before the end is told, a JSON object. whole: the answer as it is told, where
    /// it is no stream.
    fn keeps(&self, whole: Option<&Bytes>) -> Option<Bytes> {
        let _ = whole;
        None
    }

    /// Says whether the store has it; a whole answer tells that.
    fn kept(&mut self, stored: bool, whole: Option<Bytes>) -> Option<Bytes> {
        let _ = stored;
        whole
    }
}

impl Door {
    /// The media type of an answer.
    pub const fn media(self, stream: bool) -> &'static str {
        match self {
            Self::Grpc(_) => "application/grpc+proto",
            _ if stream => "text/event-stream",
            _ => "application/json",
        }
    }

    /// What the head of every answer says first: the request's id, as `x-request-id` and as this
    /// door's clients look for it.
    pub fn greeting(self, request_id: (HeaderName, HeaderValue)) -> Headers {
        let mut headers = Vec::with_capacity(8);
        match self {
            Self::OpenAi | Self::Responses | Self::Grpc(_) => headers.push(request_id),
            Self::Messages | Self::Count => {
                let again = messages::request_id(request_id.1.clone());
                headers.push(request_id);
                headers.push(again);
            }
        }
        headers
    }

    /// Whether an answer of this door begins with what its input has cost: its voice is told of usage as
    /// soon as there is any.
    pub const fn counts_early(self) -> bool {
        match self {
            Self::OpenAi | Self::Count | Self::Responses | Self::Grpc(_) => false,
            Self::Messages => true,
        }
    }

    /// Adds how this door's clients are told of limits to what `headers` say of them. unix_s: now.
    pub fn limits(self, headers: &mut Headers, unix_s: i64) {
        match self {
            Self::OpenAi | Self::Responses | Self::Grpc(_) => {}
            Self::Messages | Self::Count => messages::rates(headers, unix_s),
        }
    }

    /// An error in an answer's place: its body; what its head says is added to the answer's headers,
    /// which begin with the request's id.
    pub fn refuse(self, error: &Error, headers: &mut Headers) -> Bytes {
        match self {
            Self::OpenAi | Self::Responses => {
                headers.extend(error_headers(error));
                error.openai_body()
            }
            Self::Grpc(_) => {
                headers.extend(grpc::error_metadata(error));
                Bytes::new()
            }
            Self::Messages | Self::Count => {
                let id = headers.first().and_then(|(_, id)| id.to_str().ok());
                let body = messages::error_body(error, id);
                headers.extend(error_headers(error));
                body
            }
        }
    }
}

/// Reads a client's request.
///
/// request_id: as the answer's headers tell it.
/// Errors: the request is malformed, or asks for what cannot be had here; `param` is the field at
/// fault, as the client named it.
pub fn enter(way: &Way, body: Bytes, request_id: &str) -> Result<Entered, Error> {
    match way.door {
        Door::OpenAi => Ok(Entered {
            body,
            native: None,
            voice: None,
        }),
        Door::Grpc(method) => Ok(Entered {
            body: grpc::request(method, &body)?,
            native: None,
            voice: Some(Box::new(grpc::Voice::new(method))),
        }),
        Door::Messages => messages::enter(&body, request_id),
        Door::Count => messages::count(&body),
        Door::Responses => responses::enter(&body, 0),
    }
}
