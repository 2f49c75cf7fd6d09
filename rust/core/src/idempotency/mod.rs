//! Requests with an `Idempotency-Key`: each is worked on once, and its answer given again.
//!
//! Who works on one is decided by the store, which the core asks ([`wire`]); what is kept of an
//! answer, and whether, is decided here. Pure, but for the request's course in `once`.
use http::{HeaderName, HeaderValue};
use ring::digest::{Context, SHA256};

use crate::error::{Error, Kind};
use crate::slot::{Head, Headers};

mod once;
pub mod wire;

pub(crate) use once::Entry;
use wire::AnswerHead;

/// The header, and gRPC's metadata.
pub const HEADER: &str = "idempotency-key";
/// The longest key, characters.
pub const MAX_KEY: usize = 255;
/// Marks an answer that was given before.
const REPLAY: &str = "x-forebay-idempotent-replay";
/// Whose answer it was.
const ORIGINAL: &str = "x-forebay-original-request-id";

/// Headers that are of the one exchange, or of the connection that carried it.
const ITS_OWN: [&str; 10] = [
    "x-request-id",
    "request-id",
    "date",
    "connection",
    "keep-alive",
    "transfer-encoding",
    "content-length",
    "server",
    "set-cookie",
    "retry-after",
];
const LIMITS: [&str; 2] = ["x-ratelimit-", "anthropic-ratelimit-"];

/// The key, which has 1 to 255 printable ASCII characters.
pub fn check(key: &[u8]) -> Result<&str, Error> {
    let printable = key.iter().all(|byte| (b' '..=b'~').contains(byte));
    if (1..=MAX_KEY).contains(&key.len())
        && printable
        && let Ok(text) = std::str::from_utf8(key)
    {
        return Ok(text);
    }
    Err(Error::new(
        Kind::InvalidRequest,
        "The header Idempotency-Key must have 1 to 255 printable ASCII characters.",
    )
    .param("Idempotency-Key")
    .code("invalid_idempotency_key"))
}

/// What makes two requests the same: the way in, and the body byte for byte. SHA-256 in hex.
pub fn fingerprint(way: &str, body: &[u8]) -> String {
    let mut hash = Context::new(&SHA256);
    hash.update(way.as_bytes());
    // No path has it.
    hash.update(&[0]);
    hash.update(body);
    hash.finish()
        .as_ref()
        .iter()
        .flat_map(|byte| [byte >> 4, byte & 15])
        .filter_map(|digit| char::from_digit(u32::from(digit), 16))
        .collect()
}

/// What becomes of an answer that was given.
#[derive(Debug, PartialEq, Eq)]
pub enum Kept {
    /// It is given again.
    Answer(AnswerHead, Vec<u8>),
    /// It is too large for that.
    TooLarge,
    /// It is no answer to keep: the next one is worked on anew.
    Nothing,
}

/// An answer as it is given, and what of it is to be kept.
pub struct Keeping {
    head: Option<AnswerHead>,
    body: Vec<u8>,
    most: usize,
    over: bool,
}

impl Keeping {
    /// Of an answer that begins so; `most` bytes of its body are kept. Only successes are.
    pub fn new(head: &Head, most: usize) -> Self {
        let success = (200..300).contains(&head.status);
        let mut keeping = Self {
            head: success.then(|| kept_head(head)),
            body: Vec::new(),
            most,
            over: false,
        };
        keeping.take(&head.body);
        keeping
    }

    /// More of its body was given.
    pub fn take(&mut self, bytes: &[u8]) {
        if self.over || self.head.is_none() {
            return;
        }
        if self.body.len() + bytes.len() > self.most {
            self.over = true;
            self.body = Vec::new();
            return;
        }
        self.body.extend_from_slice(bytes);
    }

    /// Its end: `whole`, or by a failure.
    pub fn end(self, whole: bool) -> Kept {
        match self.head {
            Some(_) if whole && self.over => Kept::TooLarge,
            Some(head) if whole => Kept::Answer(head, self.body),
            _ => Kept::Nothing,
        }
    }
}

fn kept_head(head: &Head) -> AnswerHead {
    let of_all = |name: &HeaderName| {
        let name = name.as_str();
        !ITS_OWN.contains(&name) && !LIMITS.iter().any(|prefix| name.starts_with(prefix))
    };
    let id = head.headers.iter().find(|(name, _)| name == "x-request-id");
    AnswerHead {
        status: head.status,
        headers: head
            .headers
            .iter()
            .filter(|(name, _)| of_all(name))
            .filter_map(|(name, value)| {
                Some((name.as_str().to_owned(), value.to_str().ok()?.to_owned()))
            })
            .collect(),
        stream: head.more,
        request_id: id
            .and_then(|(_, value)| value.to_str().ok())
            .unwrap_or_default()
            .to_owned(),
    }
}

/// The headers of an answer that is given again; `own` are those of the request that gets it.
pub fn replayed(kept: &AnswerHead, mut own: Headers) -> Headers {
    let pairs = kept.headers.iter().filter_map(|(name, value)| {
        Some((
            HeaderName::from_bytes(name.as_bytes()).ok()?,
            HeaderValue::from_str(value).ok()?,
        ))
    });
    own.extend(pairs);
    own.push((
        HeaderName::from_static(REPLAY),
        HeaderValue::from_static("true"),
    ));
    if let Ok(id) = HeaderValue::from_str(&kept.request_id)
        && !id.is_empty()
    {
        own.push((HeaderName::from_static(ORIGINAL), id));
    }
    own
}

/// The key belongs to a request that was another one.
fn reused() -> Error {
    Error::new(
        Kind::KeyReused,
        "This Idempotency-Key was used for another request: the path and the body must be the same.",
    )
    .param("Idempotency-Key")
}

/// Another request with the key still runs.
fn busy() -> Error {
    Error::new(
        Kind::Conflict,
        "A request with this Idempotency-Key is still being answered. Please try again.",
    )
    .code("idempotency_in_progress")
    .retry_after(std::time::Duration::from_secs(1))
}

/// Too much waits already.
fn crowded() -> Error {
    Error::new(
        Kind::Unavailable,
        "Too many requests with an Idempotency-Key wait for others. Please try again.",
    )
    .retry_after(std::time::Duration::from_secs(1))
}

/// The answer cannot be given again.
fn too_large() -> Error {
    let mut error = Error::new(
        Kind::Conflict,
        "This request was answered, and its answer was too large to be kept for a repeat.",
    )
    .param("Idempotency-Key")
    .code("idempotency_answer_too_large");
    error.should_retry = Some(false);
    error
}

/// A form with files is not kept, so that a repeat cannot be compared with it.
fn unsupported() -> Error {
    Error::new(
        Kind::InvalidRequest,
        "The header Idempotency-Key is not supported for requests with files.",
    )
    .param("Idempotency-Key")
    .code("idempotency_key_unsupported")
}

/// Nobody can say whether the request was answered before.
fn unknown(cause: &Error) -> Error {
    Error::new(
        Kind::Unavailable,
        "It cannot be checked now whether a request with this Idempotency-Key was answered before. Please try again.",
    )
    .cause(cause)
}
