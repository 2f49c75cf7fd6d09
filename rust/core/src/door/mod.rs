//! Doors: what clients speak, each turned into the one language of the exchange and back.
//!
//! An exchange speaks OpenAI inside. A door reads a client's request into an OpenAI-shaped one before
//! it is admitted, and tells the exchange's answer in its own words as that is written. So every door
//! has the same admission, limits, routing, fallback, metering and errors. Pure: bytes in, bytes out.
mod way;

use bytes::{Bytes, BytesMut};
use http::{HeaderName, HeaderValue};

use crate::dialect::Dialect;
use crate::error::Error;
use crate::slot::{Headers, error_headers};

pub use way::Way;

/// What a client speaks.
#[derive(Clone, Copy, Debug, Default, PartialEq, Eq)]
pub enum Door {
    /// OpenAI's chat, completions and embeddings.
    #[default]
    OpenAi,
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
}

impl Door {
    /// The media type of an answer.
    pub const fn media(self, stream: bool) -> &'static str {
        match self {
            Self::OpenAi if stream => "text/event-stream",
            Self::OpenAi => "application/json",
        }
    }

    /// What the head of every answer says first: the request's id, as `x-request-id` and as this
    /// door's clients look for it.
    pub fn greeting(self, request_id: (HeaderName, HeaderValue)) -> Headers {
        let mut headers = Vec::with_capacity(8);
        headers.push(request_id);
        match self {
            Self::OpenAi => {}
        }
        headers
    }

    /// An error in an answer's place: its body; what its head says is added to the answer's headers,
    /// which begin with the request's id.
    pub fn refuse(self, error: &Error, headers: &mut Headers) -> Bytes {
        match self {
            Self::OpenAi => {
                headers.extend(error_headers(error));
                error.openai_body()
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
    let _ = request_id;
    match way.door {
        Door::OpenAi => Ok(Entered {
            body,
            native: None,
            voice: None,
        }),
    }
}
