//! Files and batches belong to the account that made them: whose each is stands in the gateway's
//! store, and the upstream, which has one account for all of ours, is never asked for a list.
use std::time::Duration;

use bytes::Bytes;
use http::Method;
use http::header::CONTENT_TYPE;
use http::{HeaderMap, HeaderName, HeaderValue};
use serde::{Deserialize, Serialize};
use serde_json::value::RawValue;
use tokio::time::Instant;

use super::Job;
use super::fetch;
use super::refuse::{attempt_headers, refuse};
use super::unary::Whole;
use crate::endpoint::Endpoint;
use crate::error::{Error, Kind};
use crate::pass::object::{Act, Object, input_file, unknown};
use crate::record::{Outcome, Progress, Record};
use crate::scrub;
use crate::slot::Head;
use crate::snapshot::Target;
use crate::upstream::Rope;
use crate::usage::Inspected;

/// Longest wait for the store.
const STORE_TIME: Duration = Duration::from_secs(5);
/// Longest wait for one object that is asked for anew, and for all of a page.
const REFRESH_TIME: Duration = Duration::from_secs(5);
const REFRESH_ALL: Duration = Duration::from_secs(15);
/// States in which a batch stays.
const FINAL: [&str; 4] = ["completed", "failed", "expired", "cancelled"];

/// A question to the store.
#[derive(Serialize)]
struct Question<'a> {
    account: &'a str,
    upstream: &'a str,
    kind: &'a str,
    /// Of what is checked or claimed.
    #[serde(skip_serializing_if = "Vec::is_empty")]
    objects: Vec<Claim<'a>>,
    #[serde(skip_serializing_if = "Option::is_none")]
    after: Option<&'a str>,
    #[serde(skip_serializing_if = "Option::is_none")]
    purpose: Option<&'a str>,
    limit: u32,
    ascending: bool,
}

#[derive(Serialize)]
struct Claim<'a> {
    id: &'a str,
    kind: &'a str,
    /// As the upstream told it last.
    #[serde(skip_serializing_if = "Option::is_none")]
    object: Option<&'a RawValue>,
}

#[derive(Deserialize)]
struct Verdict {
    ok: bool,
}

#[derive(Deserialize)]
struct Listed<'a> {
    #[serde(borrow)]
    objects: Vec<&'a RawValue>,
    has_more: bool,
}

/// What of an object is looked at.
#[derive(Deserialize)]
struct Seen {
    #[serde(default)]
    id: Option<String>,
    #[serde(default)]
    status: Option<String>,
    #[serde(default)]
    deleted: Option<bool>,
    #[serde(default)]
    output_file_id: Option<String>,
    #[serde(default)]
    error_file_id: Option<String>,
}

#[derive(Serialize)]
struct List<'a> {
    object: &'static str,
    data: Vec<&'a RawValue>,
    has_more: bool,
    #[serde(skip_serializing_if = "Option::is_none")]
    first_id: Option<String>,
    #[serde(skip_serializing_if = "Option::is_none")]
    last_id: Option<String>,
}

/// Checks an answer about an object. Of one that is none: why, and what it has cost all the same.
pub(super) fn inspect(job: &Job, body: Bytes) -> Result<Whole, Box<(Error, Progress)>> {
    let nothing = |error: Error| Box::new((error, Progress::default()));
    let seen = Inspected::parse(&body).map_err(|cause| {
        let text = "The upstream's answer is not JSON.";
        nothing(Error::new(Kind::UpstreamError, text).cause(cause))
    })?;
    // A batch has errors of its requests in "errors"; this one is of the answer.
    if seen.failed() {
        return Err(nothing(scrub::stream_error(&body, job.shape.asked)));
    }
    Ok(Whole {
        told: body.clone(),
        body,
        native: false,
        finish: None,
        progress: Progress {
            answered: true,
            ..Progress::default()
        },
    })
}

fn question<'a>(job: &'a Job, upstream: &'a str, kind: &'a str) -> Question<'a> {
    Question {
        account: &job.ask.queue.account,
        upstream,
        kind,
        objects: Vec::new(),
        after: None,
        purpose: None,
        limit: 0,
        ascending: false,
    }
}

async fn ask(job: &Job, kind: &'static str, question: &Question<'_>) -> Result<Bytes, Error> {
    let json = serde_json::to_vec(question).map_err(|cause| strange(&cause))?;
    job.gateway.ask(kind, json.into(), STORE_TIME).await
}

async fn agrees(job: &Job, kind: &'static str, question: &Question<'_>) -> Result<bool, Error> {
    let answer = ask(job, kind, question).await?;
    let verdict: Verdict = serde_json::from_slice(&answer).map_err(|cause| strange(&cause))?;
    Ok(verdict.ok)
}

fn strange(cause: &serde_json::Error) -> Error {
    Error::new(Kind::Internal, "The gateway failed. Please try again.").cause(cause)
}

/// Refuses what belongs to another account, or to nobody.
pub(super) async fn check(job: &Job, object: &Object) -> Result<(), Error> {
    let (kind, id) = match (object.endpoint, object.act) {
        (_, Act::List) | (Endpoint::Files, Act::Create) => return Ok(()),
        (_, Act::Create) => ("file", input_file(&job.body)?),
        _ => (object.kind(), object.id.clone()),
    };
    let upstream = upstream_of(job);
    let mut question = question(job, &upstream, kind);
    question.objects.push(Claim {
        id: &id,
        kind,
        object: None,
    });
    if agrees(job, "object.check", &question).await? {
        return Ok(());
    }
    let error = unknown(kind, &id);
    Err(if object.act == Act::Create {
        error.param("input_file_id")
    } else {
        error
    })
}

fn upstream_of(job: &Job) -> String {
    let target = job.model.targets.first();
    target.map_or_else(String::new, |target| target.upstream.name.to_string())
}

/// Records whose an object is before its client learns of it.
///
/// Errors: it could not be recorded. What was made is then taken back, as far as that can be.
pub(super) async fn settle(
    job: &Job,
    object: &Object,
    target: &Target,
    body: &[u8],
) -> Result<(), Error> {
    let seen: Seen = serde_json::from_slice(body).map_err(|cause| {
        let text = "The upstream's answer could not be read.";
        Error::new(Kind::UpstreamError, text).cause(cause)
    })?;
    let Some(id) = seen.id.as_deref() else {
        let text = "The upstream's answer has no id.";
        return Err(Error::new(Kind::UpstreamError, text));
    };
    let raw: &RawValue = serde_json::from_slice(body).map_err(|cause| strange(&cause))?;
    let mut question = question(job, &target.upstream.name, object.kind());
    question.objects.push(Claim {
        id,
        kind: object.kind(),
        object: Some(raw),
    });
    if object.act == Act::Delete {
        if seen.deleted == Some(true) {
            return agrees(job, "object.forget", &question).await.map(|_| ());
        }
        return Ok(());
    }
    // What a batch has written belongs to who has made the batch.
    let written = [&seen.output_file_id, &seen.error_file_id];
    for file in written.into_iter().flatten() {
        question.objects.push(Claim {
            id: file,
            kind: "file",
            object: None,
        });
    }
    let claimed = match agrees(job, "object.claim", &question).await {
        Ok(true) => return Ok(()),
        Ok(false) => Error::new(
            Kind::UpstreamError,
            "The upstream gave an id that another account has.",
        ),
        Err(error) => error,
    };
    if object.act == Act::Create {
        take_back(object, target, id).await;
    }
    Err(claimed)
}

/// Ends what nobody could use: best effort.
async fn take_back(object: &Object, target: &Target, id: &str) {
    let undo = Object {
        act: if object.endpoint == Endpoint::Files {
            Act::Delete
        } else {
            Act::Cancel
        },
        id: id.to_owned(),
        ..object.clone()
    };
    if let Some(path) = target.upstream.path_below(undo.endpoint, &undo.below()) {
        let none = HeaderMap::new();
        let asked = fetch(
            &target.upstream,
            undo.method(),
            &path,
            (&none, Rope::empty()),
            REFRESH_TIME,
        );
        // An upstream that does not take it keeps what nobody can see.
        let _ = asked.await;
    }
}

/// Answers for a list, from the store.
pub(super) async fn list(job: &Job, object: &Object, record: &mut Record) {
    if let Some(target) = job.model.targets.first() {
        record.attempt(target);
    }
    record.contacted();
    match listed(job, object).await {
        Ok(body) => {
            record.progress.answered = true;
            record.first_byte();
            record.close(Outcome::Ok, 200, None, None);
            let mut headers = job.answer_headers.clone();
            let json = HeaderValue::from_static("application/json");
            headers.push((CONTENT_TYPE, json));
            if let Some((upstream, attempts)) = record.attempted() {
                let told: [(HeaderName, HeaderValue); 2] = attempt_headers(&upstream, attempts);
                headers.extend(told);
            }
            record.book_durably().await;
            job.slot.start(Head {
                status: 200,
                headers,
                body,
                more: false,
            });
        }
        Err(error) => refuse(job, &error, record).await,
    }
}

async fn listed(job: &Job, object: &Object) -> Result<Bytes, Error> {
    let page = object.page()?;
    let upstream = upstream_of(job);
    let mut question = question(job, &upstream, object.kind());
    question.after = page.after.as_deref();
    question.purpose = page.purpose.as_deref();
    question.limit = page.limit;
    question.ascending = page.ascending;
    let answer = ask(job, "object.list", &question).await?;
    let listed: Listed<'_> = serde_json::from_slice(&answer).map_err(|cause| strange(&cause))?;
    let fresh = if object.endpoint == Endpoint::Batches {
        refreshed(job, object, &listed.objects).await
    } else {
        Vec::new()
    };
    let mut data = Vec::with_capacity(listed.objects.len());
    for (at, known) in listed.objects.iter().enumerate() {
        let new = fresh.get(at).and_then(Option::as_deref);
        let new = new.and_then(|bytes| serde_json::from_slice::<&RawValue>(bytes).ok());
        data.push(new.unwrap_or(known));
    }
    let id = |raw: Option<&&RawValue>| {
        let seen: Seen = serde_json::from_str(raw?.get()).ok()?;
        seen.id
    };
    let list = List {
        object: "list",
        first_id: id(data.first()),
        last_id: id(data.last()),
        has_more: listed.has_more,
        data,
    };
    serde_json::to_vec(&list)
        .map(Bytes::from)
        .map_err(|cause| strange(&cause))
}

/// The batches of a page that still go on, as they are now; what cannot be had stays as it was.
async fn refreshed(job: &Job, object: &Object, known: &[&RawValue]) -> Vec<Option<Bytes>> {
    let mut fresh = vec![None; known.len()];
    let Some(target) = job.model.targets.first() else {
        return fresh;
    };
    let until = Instant::now() + REFRESH_ALL;
    for (raw, slot) in known.iter().zip(&mut fresh) {
        let Ok(seen) = serde_json::from_str::<Seen>(raw.get()) else {
            continue;
        };
        let ended = seen.status.is_none_or(|status| FINAL.contains(&&*status));
        let Some(id) = seen.id.filter(|_| !ended && Instant::now() < until) else {
            continue;
        };
        let one = Object {
            act: Act::Get,
            id,
            ..object.clone()
        };
        let path = target.upstream.path_below(one.endpoint, &one.below());
        let Some(path) = path else { continue };
        let none = HeaderMap::new();
        let asked = fetch(
            &target.upstream,
            Method::GET,
            &path,
            (&none, Rope::empty()),
            REFRESH_TIME,
        );
        if let Ok((200, body)) = asked.await
            && settle(job, &one, target, &body).await.is_ok()
        {
            *slot = Some(body);
        }
    }
    fresh
}
