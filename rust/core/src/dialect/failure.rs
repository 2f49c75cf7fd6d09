//! Failures that an upstream tells inside of an answer that began well.
use std::borrow::Cow;
use std::fmt;

use crate::error::{Error, Kind};
use crate::scrub::{self, Asked};

/// The failure as our error. said: the upstream's own words; shown, freed of internals, where they
/// are about the request and not about our account. cause: for the log.
pub(crate) fn told(kind: Kind, said: Option<&str>, cause: impl fmt::Display) -> Error {
    let said = match kind {
        Kind::InvalidRequest | Kind::PayloadTooLarge | Kind::ModelNotFound | Kind::Unavailable => {
            said.map(|said| scrub::scrub(said, Asked::default()))
        }
        _ => None,
    };
    let message = said
        .filter(|said| !said.is_empty())
        .map_or(Cow::Borrowed(scrub::fallback(kind, None)), Cow::Owned);
    Error::new(kind, message).cause(cause)
}
