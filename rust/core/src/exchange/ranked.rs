//! Answers about input alone: rankings, scores, moderations. Read for their usage, and rankings in
//! one shape.
//!
//! `/v1/rerank` answers as Jina and vLLM do: `{id, model, usage, results: [{index, relevance_score,
//! document?}]}`. SGLang and Text Embeddings Inference answer with a bare list of `{index, score}`,
//! which is turned into that. What has another shape passes as it came.
use bytes::Bytes;
use serde::{Deserialize, Serialize};
use serde_json::value::RawValue;

use super::Job;
use super::unary::Whole;
use crate::endpoint::Endpoint;
use crate::error::{Error, Kind};
use crate::record::Progress;
use crate::scrub;
use crate::usage::{Inspected, Usage};

/// The members in which counts may be.
#[derive(Deserialize)]
struct Counted<'a> {
    #[serde(borrow, default)]
    usage: Option<&'a RawValue>,
    /// Cohere's.
    #[serde(borrow, default)]
    meta: Option<&'a RawValue>,
}

/// One element of a bare list.
#[derive(Deserialize)]
struct Item<'a> {
    index: u64,
    #[serde(borrow)]
    score: &'a RawValue,
    #[serde(borrow, default)]
    document: Option<&'a RawValue>,
    /// Text Embeddings Inference's name for the document.
    #[serde(borrow, default)]
    text: Option<&'a RawValue>,
    #[serde(default)]
    meta_info: Option<MetaInfo>,
}

#[derive(Deserialize)]
struct MetaInfo {
    #[serde(default)]
    prompt_tokens: Option<u64>,
}

#[derive(Serialize)]
struct Ranking<'a> {
    id: String,
    model: &'a str,
    #[serde(skip_serializing_if = "Option::is_none")]
    usage: Option<InputUsage>,
    results: Vec<Rank<'a>>,
}

#[derive(Serialize)]
struct InputUsage {
    prompt_tokens: u64,
    total_tokens: u64,
}

#[derive(Serialize)]
struct Rank<'a> {
    index: u64,
    relevance_score: &'a RawValue,
    #[serde(skip_serializing_if = "Option::is_none")]
    document: Option<Document<'a>>,
}

#[derive(Serialize)]
#[serde(untagged)]
enum Document<'a> {
    /// A text of its own, as vLLM writes it.
    Text { text: &'a RawValue },
    /// Something else, which is left as it is.
    Other(&'a RawValue),
}

/// Checks an answer and reads its usage. Of one that is none: why, and what it has cost all the same.
pub(super) fn inspect(job: &Job, body: &Bytes) -> Result<Whole, Box<(Error, Progress)>> {
    let nothing = |error: Error| Box::new((error, Progress::default()));
    if body.trim_ascii_start().starts_with(b"[") && job.endpoint == Endpoint::Rerank {
        let id = format!("rerank-{}", job.rid);
        let (body, usage) = turned(body, id, &job.model_asked).map_err(nothing)?;
        return told(job, body, progress(usage));
    }
    let seen = Inspected::parse(body).map_err(|cause| nothing(not_json(cause)))?;
    if seen.failed() {
        return Err(nothing(scrub::stream_error(body, job.shape.asked)));
    }
    told(job, body.clone(), progress(counted(body)))
}

/// An answer in its reader's words.
fn told(job: &Job, body: Bytes, progress: Progress) -> Result<Whole, Box<(Error, Progress)>> {
    let told = job.slot.turned(&body);
    let told = told.map_err(|error| Box::new((error, progress)))?;
    Ok(Whole {
        body,
        told,
        native: false,
        finish: None,
        progress,
    })
}

fn not_json(cause: impl std::fmt::Display) -> Error {
    Error::new(Kind::UpstreamError, "The engine's answer is not JSON.").cause(cause)
}

/// What an answer says of its input.
fn counted(body: &[u8]) -> Option<Usage> {
    let counted: Counted<'_> = serde_json::from_slice(body).ok()?;
    [counted.usage, counted.meta]
        .into_iter()
        .flatten()
        .find_map(|raw| Usage::parse_input(raw.get()))
}

fn progress(usage: Option<Usage>) -> Progress {
    Progress {
        reported: usage.map(|usage| (usage, true)),
        content_events: 0,
        answered: true,
    }
}

/// A bare list as a ranking, and its usage; one that is none passes as it is.
fn turned(body: &Bytes, id: String, model: &str) -> Result<(Bytes, Option<Usage>), Error> {
    let items: Vec<Item<'_>> = match serde_json::from_slice(body) {
        Ok(items) => items,
        Err(error) if error.is_data() => return Ok((body.clone(), None)),
        Err(error) => return Err(not_json(error)),
    };
    let tokens = |item: &Item<'_>| item.meta_info.as_ref()?.prompt_tokens;
    // Counted only if every document is.
    let total: Option<u64> = items.iter().map(tokens).sum();
    let total = total.filter(|total| *total > 0);
    let ranking = Ranking {
        id,
        model,
        usage: total.map(|total| InputUsage {
            prompt_tokens: total,
            total_tokens: total,
        }),
        results: items
            .iter()
            .map(|item| Rank {
                index: item.index,
                relevance_score: item.score,
                document: item.document.or(item.text).map(document),
            })
            .collect(),
    };
    let json = serde_json::to_vec(&ranking).map_err(not_json)?;
    let usage = total.map(|prompt| Usage {
        prompt,
        ..Usage::default()
    });
    Ok((json.into(), usage))
}

fn document(raw: &RawValue) -> Document<'_> {
    if raw.get().starts_with('"') {
        Document::Text { text: raw }
    } else {
        Document::Other(raw)
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    fn list(json: &str) -> Option<(String, Option<u64>)> {
        let json = Bytes::from(json.to_owned());
        let (body, usage) = turned(&json, "rerank-1".to_owned(), "m").ok()?;
        let usage = usage.map(|usage| usage.prompt);
        Some((String::from_utf8(body.to_vec()).ok()?, usage))
    }

    #[test]
    fn a_bare_list_becomes_a_ranking() {
        let sglang = r#"[{"score":0.98765432109876543,"document":"b","index":1,"meta_info":{"prompt_tokens":7}},{"score":-1,"document":null,"index":0,"meta_info":{"prompt_tokens":5}}]"#;
        let turned = r#"{"id":"rerank-1","model":"m","usage":{"prompt_tokens":12,"total_tokens":12},"results":[{"index":1,"relevance_score":0.98765432109876543,"document":{"text":"b"}},{"index":0,"relevance_score":-1}]}"#;
        assert_eq!(list(sglang), Some((turned.to_owned(), Some(12))));
        let inference = r#"[{"index":0,"score":0.5,"text":"a"},{"index":1,"score":0.1}]"#;
        let turned = r#"{"id":"rerank-1","model":"m","results":[{"index":0,"relevance_score":0.5,"document":{"text":"a"}},{"index":1,"relevance_score":0.1}]}"#;
        assert_eq!(list(inference), Some((turned.to_owned(), None)));
    }

    #[test]
    fn another_list_passes_and_half_a_list_does_not() {
        assert_eq!(list("[1,2]"), Some(("[1,2]".to_owned(), None)));
        assert_eq!(list("[{\"index\":0,"), None);
    }

    #[test]
    fn counts_have_several_places() {
        for (json, tokens) in [
            (r#"{"usage":{"prompt_tokens":9,"total_tokens":9}}"#, Some(9)),
            (r#"{"usage":{"total_tokens":15}}"#, Some(15)),
            (
                r#"{"meta":{"billed_units":{"search_units":1},"tokens":{"input_tokens":4}}}"#,
                Some(4),
            ),
            (r#"{"meta":{"billed_units":{"search_units":1}}}"#, None),
            (r#"{"usage":null}"#, None),
            (r#"{"usage":{"total_tokens":-1}}"#, None),
        ] {
            let found = counted(json.as_bytes()).map(|usage| usage.prompt);
            assert_eq!(found, tokens, "{json}");
        }
    }
}
