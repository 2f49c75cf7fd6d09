//! One line of the prompt log, as its table keeps it.
use std::sync::Arc;

use crate::copy::{Bytea, Timestamp, Uuid, row};
use crate::keys::KeyId;

/// Columns of an entry, in the order of [`Entry::copy`]: `event_id uuid, request_id text, account
/// text, key_id text, model text, at timestamptz, level text, status int4, request_bytes int4,
/// answer_bytes int4, request_truncated bool, answer_truncated bool, redactions int4, enc_key text,
/// request bytea, answer bytea`.
pub const COLUMNS: u16 = 16;

/// One logged request. Its texts are redacted, cut and sealed.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct Entry {
    /// The usage event's id.
    pub event_id: [u8; 16],
    /// As in `x-request-id`.
    pub request_id: String,
    /// Whose.
    pub account: Arc<str>,
    /// The key's public id.
    pub key_id: KeyId,
    /// The model's own name.
    pub model: Arc<str>,
    /// When the request was admitted, unix microseconds.
    pub at_us: i64,
    /// `metadata` or `full`.
    pub level: &'static str,
    /// The HTTP status.
    pub status: u16,
    /// Size of the request's body.
    pub request_bytes: u64,
    /// Size of the answer as far as the client got it.
    pub answer_bytes: u64,
    /// `request` is not all of it.
    pub request_truncated: bool,
    /// `answer` is not all of it.
    pub answer_truncated: bool,
    /// How often something was taken out of both.
    pub redactions: u32,
    /// The name of the key that `request` and `answer` are sealed with.
    pub enc_key: Option<Arc<str>>,
    /// The request's body.
    pub request: Option<Vec<u8>>,
    /// The answer: JSON, or the text of a stream.
    pub answer: Option<Vec<u8>>,
}

impl Entry {
    /// Appends the entry as a row of PostgreSQL's binary COPY.
    pub fn copy(&self, out: &mut Vec<u8>) {
        let small = |n: u64| i32::try_from(n).unwrap_or(i32::MAX);
        row(out, COLUMNS)
            .put(Uuid(self.event_id))
            .put(self.request_id.as_str())
            .put(&*self.account)
            .put(self.key_id.as_str())
            .put(&*self.model)
            .put(Timestamp(self.at_us))
            .put(self.level)
            .put(i32::from(self.status))
            .put(small(self.request_bytes))
            .put(small(self.answer_bytes))
            .put(self.request_truncated)
            .put(self.answer_truncated)
            .put(small(u64::from(self.redactions)))
            .put(self.enc_key.as_deref())
            .put(self.request.as_deref().map(Bytea))
            .put(self.answer.as_deref().map(Bytea))
            .end();
    }
}
