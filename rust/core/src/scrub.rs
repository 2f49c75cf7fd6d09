//! What an upstream says of a failure, turned into what a client may read.
//!
//! Engines answer in many shapes (an envelope, a flat object, a string under `error`, a `detail`,
//! plain text) and quote their own file paths and the client's input. Here the shape is read, its
//! meaning found by the upstream's own rules, by words that are the same everywhere, or by the
//! status; the message freed of internals, and the parameter named as the client knows it.
mod error;
mod message;
mod reason;
mod rules;
mod said;
mod wait;

pub(crate) use error::fallback;
pub use error::{kind_of_status, stream_error, upstream_error};
pub use message::scrub;
pub use rules::ErrorRules;
pub use wait::{sent_at, wait};

/// What a client sent, so far as a message may name it.
#[derive(Clone, Copy, Debug, Default)]
pub struct Asked {
    /// The client used `max_completion_tokens` rather than `max_tokens`.
    pub max_completion_tokens: bool,
}
