//! The client's body as one attempt sends it.
use super::Job;
use crate::edits::Wanted;
use crate::snapshot::Target;
use crate::upstream::Rope;

/// The client's body as this target needs it.
pub(super) fn body_for(job: &Job, target: &Target, rid: Option<&str>) -> Rope {
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
    Rope::new(job.edits.apply(&job.body, &wanted))
}

/// Each attempt has a name of its own: an engine refuses a second running request of one name.
pub(super) fn attempt_rid(rid: &str, attempt: u32) -> String {
    if attempt <= 1 {
        rid.to_owned()
    } else {
        format!("{rid}-{attempt}")
    }
}
