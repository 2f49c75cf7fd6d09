//! `GenerateContentResponse`, whole or a stream's piece of it.
use std::borrow::Cow;
use std::time::Duration;

use serde::Deserialize;
use serde::de::IgnoredAny;
use serde_json::value::RawValue;

use crate::error::{Error, Kind};
use crate::scrub::kind_of_status;
use crate::usage::{MAX_TOKENS, Usage};

use super::super::carry::broken;
use super::super::chat::{Signature, Signer, Stop};
use super::super::failure::told;
use super::super::json::Text;

/// What of an answer is read.
#[derive(Deserialize)]
#[serde(rename_all = "camelCase")]
pub(super) struct Response<'a> {
    #[serde(borrow, default)]
    candidates: Option<Vec<Candidate<'a>>>,
    #[serde(borrow, default)]
    prompt_feedback: Option<Feedback<'a>>,
    #[serde(default)]
    usage_metadata: Option<Counts>,
    #[serde(borrow, default)]
    error: Option<&'a RawValue>,
}

#[derive(Deserialize)]
#[serde(rename_all = "camelCase")]
struct Candidate<'a> {
    #[serde(borrow, default)]
    content: Option<Body<'a>>,
    #[serde(borrow, default)]
    finish_reason: Option<Text<'a>>,
    #[serde(borrow, default)]
    finish_message: Option<Text<'a>>,
    #[serde(default)]
    index: Option<u32>,
}

#[derive(Deserialize)]
struct Body<'a> {
    #[serde(borrow, default)]
    parts: Option<Vec<Part<'a>>>,
}

#[derive(Deserialize)]
#[serde(rename_all = "camelCase")]
struct Part<'a> {
    #[serde(borrow, default)]
    text: Option<Text<'a>>,
    #[serde(default)]
    thought: Option<bool>,
    #[serde(borrow, default)]
    thought_signature: Option<Text<'a>>,
    #[serde(borrow, default)]
    function_call: Option<Call<'a>>,
    #[serde(default)]
    inline_data: Option<IgnoredAny>,
    #[serde(default)]
    file_data: Option<IgnoredAny>,
    #[serde(default)]
    executable_code: Option<IgnoredAny>,
    #[serde(default)]
    code_execution_result: Option<IgnoredAny>,
}

#[derive(Deserialize)]
#[serde(rename_all = "camelCase")]
struct Call<'a> {
    #[serde(borrow, default)]
    id: Option<Text<'a>>,
    #[serde(borrow)]
    name: Text<'a>,
    #[serde(borrow, default)]
    args: Option<&'a RawValue>,
    #[serde(default)]
    partial_args: Option<IgnoredAny>,
}

#[derive(Deserialize)]
#[serde(rename_all = "camelCase")]
struct Feedback<'a> {
    #[serde(borrow, default)]
    block_reason: Option<Text<'a>>,
}

#[derive(Deserialize)]
#[serde(rename_all = "camelCase")]
#[expect(clippy::struct_field_names, reason = "the names of the wire")]
struct Counts {
    #[serde(default)]
    prompt_token_count: Option<u64>,
    #[serde(default)]
    candidates_token_count: Option<u64>,
    #[serde(default)]
    thoughts_token_count: Option<u64>,
    #[serde(default)]
    tool_use_prompt_token_count: Option<u64>,
    #[serde(default)]
    cached_content_token_count: Option<u64>,
}

/// What a part of an answer is.
pub(super) enum Piece<'a> {
    Text(Cow<'a, str>),
    Thought(Cow<'a, str>),
    /// Of the thought before it.
    ThoughtSignature(Signature<'a>),
    /// Of text, or of nothing that is told.
    Signature(Signature<'a>),
    Call {
        id: Option<Cow<'a, str>>,
        name: Cow<'a, str>,
        /// JSON text of an object.
        arguments: &'a str,
        signature: Option<Signature<'a>>,
    },
}

impl<'a> Response<'a> {
    /// Reads one JSON object; an error in its place, alone or the one item of a list, is an `Err` of
    /// its kind.
    pub(super) fn parse(json: &'a str) -> Result<Self, Error> {
        let json = json.trim_ascii();
        // A struct can be read from a list as well, member by member; here a list holds an error.
        if json.starts_with('[') {
            let [only] = serde_json::from_str::<[&RawValue; 1]>(json).map_err(broken)?;
            return Self::parse_object(only.get());
        }
        Self::parse_object(json)
    }

    fn parse_object(json: &'a str) -> Result<Self, Error> {
        if !json.starts_with('{') {
            return Err(broken("not an object"));
        }
        let response: Self = serde_json::from_str(json).map_err(broken)?;
        match response.error {
            Some(raw) if raw.get() != "null" => Err(failure(raw)),
            _ => Ok(response),
        }
    }

    /// All counts so far. Cached tokens are among the prompt's; thoughts are not among the
    /// candidates', nor what tools of Google's own put in among the prompt's.
    pub(super) fn usage(&self) -> Option<Usage> {
        let counts = self.usage_metadata.as_ref()?;
        let prompt = counts.prompt_token_count?;
        let prompt = prompt.checked_add(counts.tool_use_prompt_token_count.unwrap_or(0))?;
        let reasoning = counts.thoughts_token_count.unwrap_or(0);
        // Absent while nothing but thoughts was made, and where the prompt was refused.
        let answer = counts.candidates_token_count.unwrap_or(0);
        let completion = answer.checked_add(reasoning)?;
        (prompt < MAX_TOKENS && completion < MAX_TOKENS).then(|| Usage {
            prompt,
            completion,
            cached: counts.cached_content_token_count.unwrap_or(0).min(prompt),
            cache_write: 0,
            reasoning,
        })
    }

    /// Whether the prompt was refused.
    pub(super) fn is_blocked(&self) -> bool {
        let reason = self
            .prompt_feedback
            .as_ref()
            .and_then(|feedback| feedback.block_reason.as_ref());
        reason.is_some_and(|reason| reason.0 != "BLOCKED_REASON_UNSPECIFIED")
    }

    /// Gives the first candidate's pieces to `each`, in order; then how it ended, so far as it has.
    ///
    /// called: a tool was called before this piece of a stream. Errors: those of `each`; a part that
    /// cannot be carried; an end that is a failure.
    pub(super) fn pieces(
        self,
        mut called: bool,
        mut each: impl FnMut(Piece<'a>) -> Result<(), Error>,
    ) -> Result<Option<Stop>, Error> {
        let candidates = self.candidates.unwrap_or_default();
        let first = |candidate: &Candidate<'_>| candidate.index.unwrap_or(0) == 0;
        let Some(candidate) = candidates.into_iter().find(first) else {
            return Ok(None);
        };
        let parts = candidate.content.and_then(|content| content.parts);
        for part in parts.unwrap_or_default() {
            called |= part.function_call.is_some();
            part.pieces(&mut each)?;
        }
        match candidate.finish_reason {
            Some(reason) if reason.0 != "FINISH_REASON_UNSPECIFIED" => {
                let message = candidate.finish_message.map(|message| message.0);
                stop(&reason.0, message.as_deref(), called).map(Some)
            }
            _ => Ok(None),
        }
    }
}

impl<'a> Part<'a> {
    fn pieces(self, each: &mut impl FnMut(Piece<'a>) -> Result<(), Error>) -> Result<(), Error> {
        let signature = self.thought_signature.map(|value| Signature {
            value: value.0,
            by: Signer::Gemini,
        });
        if let Some(call) = self.function_call {
            if call.partial_args.is_some() {
                return Err(broken("a function call in pieces"));
            }
            let arguments = call.args.map_or("{}", RawValue::get);
            return each(Piece::Call {
                id: call.id.map(|id| id.0).filter(|id| !id.is_empty()),
                name: call.name.0,
                arguments: if arguments == "null" { "{}" } else { arguments },
                signature,
            });
        }
        if self.inline_data.is_some() || self.file_data.is_some() {
            return Err(broken("an answer that is not text"));
        }
        if self.executable_code.is_some() || self.code_execution_result.is_some() {
            return Err(broken("code that was run by the provider"));
        }
        let is_thought = self.thought == Some(true);
        if let Some(text) = self.text.filter(|text| !text.0.is_empty()) {
            each(if is_thought {
                Piece::Thought(text.0)
            } else {
                Piece::Text(text.0)
            })?;
        }
        match signature {
            Some(signature) if is_thought => each(Piece::ThoughtSignature(signature)),
            Some(signature) => each(Piece::Signature(signature)),
            None => Ok(()),
        }
    }
}

/// A finish reason in our terms. One that is unknown is a failure: all added since 2024 are.
fn stop(reason: &str, message: Option<&str>, called: bool) -> Result<Stop, Error> {
    match reason {
        "STOP" if called => Ok(Stop::Tools),
        "STOP" => Ok(Stop::End),
        "MAX_TOKENS" => Ok(Stop::Length),
        "SAFETY"
        | "RECITATION"
        | "BLOCKLIST"
        | "PROHIBITED_CONTENT"
        | "SPII"
        | "IMAGE_SAFETY"
        | "IMAGE_PROHIBITED_CONTENT"
        | "IMAGE_RECITATION" => Ok(Stop::Filtered),
        _ => Err(told(
            Kind::UpstreamError,
            None,
            format_args!("ended with {reason}: {}", message.unwrap_or_default()),
        )),
    }
}

#[derive(Deserialize)]
struct Status<'a> {
    #[serde(default)]
    code: Option<u16>,
    #[serde(borrow, default)]
    message: Option<Text<'a>>,
    #[serde(borrow, default, rename = "status")]
    name: Option<Text<'a>>,
    #[serde(borrow, default)]
    details: Option<Vec<Detail<'a>>>,
}

#[derive(Deserialize)]
#[serde(rename_all = "camelCase")]
struct Detail<'a> {
    #[serde(borrow, default)]
    retry_delay: Option<Text<'a>>,
}

/// A `google.rpc.Status` as our error.
fn failure(raw: &RawValue) -> Error {
    let Ok(status) = serde_json::from_str::<Status<'_>>(raw.get()) else {
        return told(Kind::UpstreamError, None, raw.get());
    };
    let name = status.name.as_ref().map_or("", |name| &*name.0);
    let kind = match name {
        "INVALID_ARGUMENT" | "OUT_OF_RANGE" => Kind::InvalidRequest,
        "NOT_FOUND" => Kind::ModelNotFound,
        "RESOURCE_EXHAUSTED" => Kind::RateLimited,
        "UNAVAILABLE" => Kind::Unavailable,
        "DEADLINE_EXCEEDED" => Kind::UpstreamTimeout,
        // Our account's, or the provider's.
        "FAILED_PRECONDITION"
        | "PERMISSION_DENIED"
        | "UNAUTHENTICATED"
        | "INTERNAL"
        | "CANCELLED"
        | "UNKNOWN"
        | "ABORTED"
        | "DATA_LOSS" => Kind::UpstreamError,
        _ => status.code.map_or(Kind::UpstreamError, kind_of_status),
    };
    let said = status.message.as_ref().map(|message| &*message.0);
    // Where the client is at fault, its input may be quoted: that is for the client alone.
    let quoted = match kind {
        Kind::InvalidRequest => "",
        _ => said.unwrap_or_default(),
    };
    let mut error = told(kind, said, format_args!("in the stream: {name} {quoted}"));
    error.retry_after = status
        .details
        .unwrap_or_default()
        .iter()
        .find_map(|detail| delay(&detail.retry_delay.as_ref()?.0));
    error
}

/// A `google.protobuf.Duration` as JSON has it: `45.837906927s`.
fn delay(text: &str) -> Option<Duration> {
    let seconds = text.strip_suffix('s')?.parse::<f64>().ok()?;
    Duration::try_from_secs_f64(seconds)
        .ok()
        .filter(|wait| wait.as_secs() < 86_400)
}
