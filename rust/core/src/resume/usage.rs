//! The usage of an answer that several engines made, and the events that end one.
use bytes::BytesMut;
use serde_json::value::RawValue;

use crate::relay::DONE;
use crate::resume::chunk::{Members, quoted};
use crate::resume::delivered::Head;
use crate::usage::Usage;

/// What was delivered before the join, as far as the events after it depend on it.
#[derive(Clone, Debug, Default)]
pub(super) struct Before {
    pub(super) head: Head,
    pub(super) completions: bool,
    pub(super) usage: Option<Usage>,
    /// Output tokens that the next engine does not make again.
    pub(super) tokens: u64,
}

impl Before {
    /// The usage of the whole answer from that of its last part.
    ///
    /// The prompt is that of the first request, with what was cached of it; output is what was
    /// delivered and what came since.
    pub(super) fn whole(&self, part: &Usage) -> Usage {
        let completion = self.tokens.saturating_add(part.completion);
        if let Some(first) = &self.usage {
            return Usage {
                completion,
                reasoning: first
                    .reasoning
                    .saturating_add(part.reasoning)
                    .min(completion),
                ..*first
            };
        }
        let prompt = part.prompt.saturating_sub(self.tokens);
        let cached = part.cached.min(prompt);
        Usage {
            prompt,
            completion,
            cached,
            cache_write: part.cache_write.min(prompt - cached),
            reasoning: part.reasoning,
        }
    }

    /// A usage object of the wire with the whole answer's figures in their places.
    pub(super) fn rewritten(&self, raw: &RawValue) -> Option<String> {
        let part = Usage::parse(raw.get())?;
        let whole = self.whole(&part);
        let mut json = String::from("{");
        for (key, value) in &Members::parse(raw.get())?.0 {
            let figure = match &**key {
                "prompt_tokens" => Some(whole.prompt),
                "completion_tokens" => Some(whole.completion),
                "total_tokens" => Some(whole.total()),
                "reasoning_tokens" => Some(whole.reasoning),
                _ => None,
            };
            let value = match (figure, &**key) {
                (Some(figure), _) => figure.to_string(),
                (None, "prompt_tokens_details") => details(value, |name| match name {
                    "cached_tokens" => Some(whole.cached),
                    "cache_write_tokens" | "created_cache_tokens" => Some(whole.cache_write),
                    _ => None,
                }),
                (None, "completion_tokens_details") => details(value, |name| {
                    (name == "reasoning_tokens").then_some(whole.reasoning)
                }),
                (None, _) => value.get().to_owned(),
            };
            json.extend([quoted(key), ":".to_owned(), value, ",".to_owned()]);
        }
        json.pop();
        json.push('}');
        Some(json)
    }
}

/// A member of a usage object with some of its figures replaced.
fn details(raw: &RawValue, figure: impl Fn(&str) -> Option<u64>) -> String {
    let Some(members) = Members::parse(raw.get()) else {
        return raw.get().to_owned();
    };
    let members: Vec<String> = members
        .0
        .iter()
        .map(|(key, value)| match figure(key) {
            Some(figure) if value.get() != "null" => format!("{}:{figure}", quoted(key)),
            _ => format!("{}:{}", quoted(key), value.get()),
        })
        .collect();
    format!("{{{}}}", members.join(","))
}

/// Appends what ends an answer that lacks only its end: the finish event if it lacks that too, the
/// usage, the end marker.
pub(super) fn ending(
    head: &Head,
    completions: bool,
    finish: Option<&str>,
    usage: Option<Usage>,
    out: &mut BytesMut,
) {
    let or_null = |raw: &Option<Box<str>>| raw.as_deref().unwrap_or("null").to_owned();
    let object = if completions {
        "text_completion"
    } else {
        "chat.completion.chunk"
    };
    let start = format!(
        "data: {{\"id\":{},\"object\":\"{object}\",\"created\":{},\"model\":{},\"choices\":[",
        or_null(&head.id),
        or_null(&head.created),
        or_null(&head.model),
    );
    if let Some(reason) = finish {
        let said = if completions {
            "\"text\":\"\""
        } else {
            "\"delta\":{}"
        };
        let choice = format!(
            "{{\"index\":0,{said},\"logprobs\":null,\"finish_reason\":{}}}",
            quoted(reason)
        );
        let usage = if completions { ",\"usage\":null" } else { "" };
        for part in [&start, &choice, "]", usage, "}\n\n"] {
            out.extend_from_slice(part.as_bytes());
        }
    }
    if let Some(usage) = usage {
        let figures = format!(
            "],\"usage\":{{\"prompt_tokens\":{},\"completion_tokens\":{},\"total_tokens\":{},\
             \"prompt_tokens_details\":{{\"cached_tokens\":{}}},\
             \"completion_tokens_details\":{{\"reasoning_tokens\":{}}}}}}}\n\n",
            usage.prompt,
            usage.completion,
            usage.total(),
            usage.cached,
            usage.reasoning,
        );
        out.extend_from_slice(start.as_bytes());
        out.extend_from_slice(figures.as_bytes());
    }
    out.extend_from_slice(DONE);
}
