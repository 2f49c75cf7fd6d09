//! What is asked of the store about a request with a key, and what it answers: a line of JSON, then
//! the answer's body as it is.
//!
//! `idempotency.begin` has [`Begin`] and gets [`Begun`], with the body where there is an answer.
//! `idempotency.finish` has [`Finish`] and the body. `idempotency.leave` has [`Leave`].
use bytes::Bytes;
use serde::{Deserialize, Serialize, Serializer};
use uuid::Uuid;

/// What is to be done with a request?
#[derive(Debug, Serialize)]
pub struct Begin<'a> {
    /// Whose request.
    pub account: &'a str,
    /// Its key.
    pub key: &'a str,
    /// What it asks for, see [`super::fingerprint`].
    pub fingerprint: String,
    /// Whoever asks, this time alone.
    #[serde(serialize_with = "text")]
    pub owner: Uuid,
    /// How long it waits for another one, seconds.
    pub wait_s: f64,
}

/// An answer without its body.
#[derive(Clone, Debug, PartialEq, Eq, Serialize, Deserialize)]
pub struct AnswerHead {
    /// HTTP status.
    pub status: u16,
    /// Those that matter to whoever gets it again.
    pub headers: Vec<(String, String)>,
    /// It was sent in pieces.
    pub stream: bool,
    /// `x-request-id` of the request that it answered.
    pub request_id: String,
}

/// What is to be done.
#[derive(Debug, PartialEq, Eq, Deserialize)]
#[serde(tag = "do", rename_all = "snake_case")]
pub enum Begun {
    /// Work on it, and keep answers of up to so many bytes.
    Run {
        /// Bytes.
        max_bytes: usize,
    },
    /// It was answered.
    Replay {
        /// How.
        answer: AnswerHead,
    },
    /// The key is another request's.
    Reused,
    /// It was answered, and the answer is not there any more.
    TooLarge,
    /// Another one works on it, for longer than this one would wait.
    Busy,
    /// It was given up.
    Left,
}

/// A request has ended.
#[derive(Debug, Serialize)]
pub struct Finish<'a> {
    /// As it began.
    #[serde(serialize_with = "text")]
    pub owner: Uuid,
    /// `None`: it was too large to be kept.
    pub answer: Option<&'a AnswerHead>,
}

/// A request is given up: whoever repeats it begins anew.
#[derive(Debug, Serialize)]
pub struct Leave {
    /// As it began.
    #[serde(serialize_with = "text")]
    pub owner: Uuid,
}

fn text<S: Serializer>(id: &Uuid, serializer: S) -> Result<S::Ok, S::Error> {
    serializer.collect_str(id)
}

/// A line of JSON, then `body`.
pub fn pack(head: &impl Serialize, body: &[u8]) -> Bytes {
    // Text and numbers alone cannot fail to serialise.
    let mut out = serde_json::to_vec(head).unwrap_or_default();
    out.reserve(1 + body.len());
    out.push(b'\n');
    out.extend_from_slice(body);
    out.into()
}

/// What is to be done, and the body of the answer.
pub fn begun(payload: &Bytes) -> Result<(Begun, Bytes), serde_json::Error> {
    let end = memchr::memchr(b'\n', payload).unwrap_or(payload.len());
    let begun = serde_json::from_slice(payload.get(..end).unwrap_or_default())?;
    Ok((begun, payload.slice((end + 1).min(payload.len())..)))
}
