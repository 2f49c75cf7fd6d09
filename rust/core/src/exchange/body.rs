//! The client's body as one attempt sends it.
use bytes::Bytes;

use super::Job;
use super::native::native;
use crate::dialect::{self, Dialect, Options};
use crate::edits::{Edits, Wanted};
use crate::error::Error;
use crate::gateway::Endpoint;
use crate::snapshot::Target;
use crate::upstream::Rope;

/// The client's body, or what stands in for it, as this target needs it. `whole`: the answer to all of
/// it is wanted, not what is missing of one.
///
/// Errors: the target's dialect has no words for it, and another one may; or it is malformed.
pub(super) fn body_for(
    job: &Job,
    (body, edits): (&Bytes, &Edits),
    target: &Target,
    rid: Option<&str>,
    whole: bool,
) -> Result<Rope, Error> {
    let upstream = &target.upstream;
    if let Some(native) = native(job, target).filter(|_| whole) {
        return Ok(native.for_model(&target.model));
    }
    if job.object.is_some() {
        return Ok(Rope::new(vec![body.clone()]));
    }
    let plain = speaks(job, target) == Dialect::OpenAi;
    if let Some(unsaid) = job.native.as_ref().and_then(|own| own.unsaid.as_ref())
        && (plain || !whole)
        && !(unsaid.droppable && upstream.drop_params)
    {
        return Err(unsaid.error.clone());
    }
    if !plain {
        let options = Options {
            model: &target.model,
            stream: job.stream,
            drop_params: upstream.drop_params,
            max_output_tokens: upstream.max_output_tokens,
        };
        let translated = match job.native.as_ref().filter(|_| whole) {
            // What only these two can say would be lost on the way over a third.
            Some(native) => {
                dialect::request(native.dialect, upstream.dialect, &native.body, &options)
                    .map_err(|error| error.sibling(true))?
            }
            None => dialect::request(Dialect::OpenAi, upstream.dialect, body, &options)?,
        };
        return Ok(Rope::new(vec![Bytes::from(translated.body)]));
    }
    let traits = &upstream.traits;
    let usage = [
        job.stream && traits.include_usage && !job.shape.include_usage,
        job.stream
            && traits.continuous_usage
            && job.single
            && (!job.shape.continuous_usage || job.slot.is_voiced()),
    ];
    let wanted = Wanted {
        model: (*target.model != *job.model_asked).then_some(&*target.model),
        rid,
        hides_rid: traits.rid,
        usage,
    };
    Ok(Rope::new(edits.apply(body, &wanted)))
}

/// What is spoken with a target about this request: other dialects are of chat alone.
pub(super) fn speaks(job: &Job, target: &Target) -> Dialect {
    if job.endpoint == Endpoint::Chat {
        target.upstream.dialect
    } else {
        Dialect::OpenAi
    }
}

/// Each attempt has a name of its own: an engine refuses a second running request of one name.
pub(super) fn attempt_rid(rid: &str, attempt: u32) -> String {
    if attempt <= 1 {
        rid.to_owned()
    } else {
        format!("{rid}-{attempt}")
    }
}
