//! What is kept of an answer before its client is told of its end.
use std::time::Duration;

use bytes::Bytes;
use serde::{Deserialize, Serialize};

use super::Job;
use crate::door::Door;
use crate::error::{Error, Kind};

/// How long the end of an answer waits for the store.
const SAVE_WAIT: Duration = Duration::from_secs(3);

/// Who it is kept for.
#[derive(Serialize)]
struct Owner<'a> {
    account: &'a str,
    key_id: &'a str,
}

/// What the store says.
#[derive(Deserialize)]
struct Answer {
    saved: bool,
}

/// Keeps what the client may come back to, and has the answer say whether that came about. whole: the
/// answer, where it is no stream. The answer is the client's either way.
pub(super) async fn keep(job: &Job, whole: Option<Bytes>) -> Option<Bytes> {
    if job.slot.door() != Door::Responses {
        return whole;
    }
    // Too much to be kept, or not to be; or nobody keeps anything here.
    let keep = job.slot.keeps(whole.as_ref());
    let Some(keep) = keep.filter(|_| job.gateway.port.is_served()) else {
        return job.slot.kept(false, whole);
    };
    let owner = Owner {
        account: &job.account,
        key_id: job.key_id.as_str(),
    };
    let saved = save(job, &owner, &keep).await;
    if let Err(error) = &saved {
        job.gateway.metrics.unsaved_responses.inc();
        job.gateway.log(error, &job.answer_headers);
    }
    job.slot.kept(saved.is_ok(), whole)
}

async fn save(job: &Job, owner: &Owner<'_>, entry: &[u8]) -> Result<(), Error> {
    let not_saved = |cause: &dyn std::fmt::Display| {
        Error::new(Kind::Unavailable, "The response could not be stored.").cause(cause)
    };
    let mut json = serde_json::to_vec(owner).map_err(|cause| not_saved(&cause))?;
    // The members of both in one object.
    json.pop();
    json.push(b',');
    json.extend_from_slice(entry.get(1..).unwrap_or_default());
    let json = Bytes::from(json);
    let asked = job.gateway.ask("response.save", json, SAVE_WAIT);
    let answer = asked.await.map_err(|error| not_saved(&error))?;
    match serde_json::from_slice::<Answer>(&answer) {
        Ok(Answer { saved: true }) => Ok(()),
        Ok(Answer { saved: false }) => Err(not_saved(&"the store did not take it")),
        Err(cause) => Err(not_saved(&cause)),
    }
}
