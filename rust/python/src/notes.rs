//! What the log is told of failures, until Python takes it.
use std::sync::Arc;

use crossbeam_queue::ArrayQueue;
use forebay_core::error::Kind;
use forebay_core::gateway::{Failure, Gateway};
use forebay_core::prompt_log::without_secrets;

/// Failures that wait for the log beyond this are counted only.
const MAX_NOTES: usize = 10_000;

/// Of an attempt that failed: upstream, number, why it was made, the upstream's status, milliseconds.
type Tried = (String, u32, &'static str, Option<u16>, f64);

/// One failure: kind, message, private cause, request id, attempt.
pub(crate) type Note = (&'static str, String, String, String, Option<Tried>);

/// The failures of a gateway from now on.
pub(crate) fn collect(gateway: &Gateway) -> Arc<ArrayQueue<Note>> {
    let notes = Arc::new(ArrayQueue::new(MAX_NOTES));
    let sink = Arc::clone(&notes);
    gateway.on_failure(Box::new(move |failure: &Failure<'_>| {
        // Full: the log is behind, and the counters have it.
        let _ = sink.push(note(failure));
    }));
    notes
}

fn note(failure: &Failure<'_>) -> Note {
    let error = failure.error;
    // Engines quote what clients sent: above all in what is the client's fault.
    let message = match error.kind {
        Kind::InvalidRequest | Kind::PayloadTooLarge => {
            "The engine refused the request.".to_owned()
        }
        _ => without_secrets(&error.message),
    };
    let cause = without_secrets(error.cause.as_deref().unwrap_or_default());
    let tried = failure.attempt.map(|attempt| {
        (
            attempt.upstream.to_string(),
            attempt.number,
            attempt.why.name(),
            attempt.status,
            attempt.duration_us as f64 / 1e3,
        )
    });
    (
        error.kind.name(),
        message,
        cause,
        failure.request_id.to_owned(),
        tried,
    )
}
