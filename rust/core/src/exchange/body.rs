//! The client's body as one attempt sends it.
use bytes::Bytes;

use super::Job;
use crate::edits::{Edits, Wanted};
use crate::snapshot::Target;
use crate::upstream::Rope;

/// The client's body, or what stands in for it, as this target needs it.
pub(super) fn body_for(
    job: &Job,
    (body, edits): (&Bytes, &Edits),
    target: &Target,
    rid: Option<&str>,
) -> Rope {
    let traits = &target.upstream.traits;
    let usage = [
        job.stream && traits.include_usage && !job.shape.include_usage,
        job.stream && traits.continuous_usage && job.single && !job.shape.continuous_usage,
    ];
    let wanted = Wanted {
        model: (*target.model != *job.model_asked).then_some(&*target.model),
        rid,
        hides_rid: traits.rid,
        usage,
    };
    Rope::new(edits.apply(body, &wanted))
}

/// Each attempt has a name of its own: an engine refuses a second running request of one name.
pub(super) fn attempt_rid(rid: &str, attempt: u32) -> String {
    if attempt <= 1 {
        rid.to_owned()
    } else {
        format!("{rid}-{attempt}")
    }
}
