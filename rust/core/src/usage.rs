//! What an answer says of tokens and of its end, read without building a tree.
use std::borrow::Cow;

use serde::Deserialize;
use serde_json::value::RawValue;

/// Largest token count taken as one; more is a broken upstream.
pub(crate) const MAX_TOKENS: u64 = 1 << 40;

/// Token counts of one request. Units: tokens.
#[derive(Clone, Copy, Debug, Default, PartialEq, Eq)]
pub struct Usage {
    /// Input tokens, cached ones included.
    pub prompt: u64,
    /// Output tokens, reasoning included.
    pub completion: u64,
    /// Input tokens served from the engine's cache.
    pub cached: u64,
    /// Input tokens written to the engine's cache; none of them cached.
    pub cache_write: u64,
    /// Output tokens spent on reasoning.
    pub reasoning: u64,
}

/// Where the counts come from.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum Source {
    /// The engine's final usage.
    Reported,
    /// The engine's running usage, up to the last event that was delivered.
    Counted,
    /// The gateway's own estimate.
    Estimated,
}

impl Source {
    /// The name in the usage table.
    pub const fn name(self) -> &'static str {
        match self {
            Self::Reported => "reported",
            Self::Counted => "counted",
            Self::Estimated => "estimated",
        }
    }
}

#[derive(Deserialize, Default)]
struct WireUsage {
    #[serde(default)]
    prompt_tokens: Option<u64>,
    #[serde(default)]
    completion_tokens: Option<u64>,
    /// The name in Responses, images and audio, as the two that follow.
    #[serde(default)]
    input_tokens: Option<u64>,
    #[serde(default)]
    output_tokens: Option<u64>,
    #[serde(default)]
    input_tokens_details: Option<PromptDetails>,
    #[serde(default)]
    total_tokens: Option<u64>,
    #[serde(default)]
    reasoning_tokens: Option<u64>,
    #[serde(default)]
    prompt_tokens_details: Option<PromptDetails>,
    #[serde(default)]
    completion_tokens_details: Option<CompletionDetails>,
}

/// Of what has no output.
#[derive(Deserialize, Default)]
struct WireInput {
    #[serde(default)]
    prompt_tokens: Option<u64>,
    #[serde(default)]
    input_tokens: Option<u64>,
    #[serde(default)]
    total_tokens: Option<u64>,
    #[serde(default)]
    tokens: Option<Billed>,
    #[serde(default)]
    billed_units: Option<Billed>,
}

#[derive(Deserialize, Default)]
struct Billed {
    #[serde(default)]
    input_tokens: Option<u64>,
}

#[derive(Deserialize, Default)]
#[expect(clippy::struct_field_names, reason = "the names of the wire")]
struct PromptDetails {
    #[serde(default)]
    cached_tokens: Option<u64>,
    /// OpenAI's name.
    #[serde(default)]
    cache_write_tokens: Option<u64>,
    /// vLLM's name.
    #[serde(default)]
    created_cache_tokens: Option<u64>,
}

#[derive(Deserialize, Default)]
struct CompletionDetails {
    #[serde(default)]
    reasoning_tokens: Option<u64>,
}

impl Usage {
    /// Reads OpenAI's usage object; `None` when it is null, broken or out of range, or does not tell
    /// both input and output: a zero is a value, an absence is none.
    ///
    /// The details are read where OpenAI, SGLang and vLLM put them. Parts are never more than what
    /// they are part of.
    pub fn parse(json: &str) -> Option<Self> {
        // An array would be read as an object whose members come in order.
        if !json.starts_with('{') {
            return None;
        }
        let wire = serde_json::from_str::<Option<WireUsage>>(json).ok()??;
        // Embeddings have a total and no output.
        let rest = |part: Option<u64>| Some(wire.total_tokens?.saturating_sub(part?));
        let input = wire.prompt_tokens.or(wire.input_tokens);
        let output = wire.completion_tokens.or(wire.output_tokens);
        let prompt = input.or_else(|| rest(output))?;
        let completion = output.or_else(|| rest(input))?;
        let details = wire
            .prompt_tokens_details
            .or(wire.input_tokens_details)
            .unwrap_or_default();
        let cached = details.cached_tokens.unwrap_or(0);
        let cache_write = details
            .cache_write_tokens
            .or(details.created_cache_tokens)
            .unwrap_or(0);
        let reasoning = wire
            .completion_tokens_details
            .and_then(|d| d.reasoning_tokens)
            .or(wire.reasoning_tokens)
            .unwrap_or(0);
        if [prompt, completion, cached, cache_write, reasoning]
            .iter()
            .any(|n| *n >= MAX_TOKENS)
        {
            return None;
        }
        let cached = cached.min(prompt);
        Some(Self {
            prompt,
            completion,
            cached,
            cache_write: cache_write.min(prompt - cached),
            reasoning: reasoning.min(completion),
        })
    }

    /// Reads what is said of input alone: rankings, scores, moderations.
    ///
    /// A total is the input there. Cohere's `meta` may have it, as tokens or as billed units.
    pub fn parse_input(json: &str) -> Option<Self> {
        let wire = serde_json::from_str::<Option<WireInput>>(json).ok()??;
        let billed = wire.tokens.or(wire.billed_units).unwrap_or_default();
        let prompt = wire
            .prompt_tokens
            .or(wire.input_tokens)
            .or(wire.total_tokens)
            .or(billed.input_tokens)?;
        (prompt < MAX_TOKENS).then_some(Self {
            prompt,
            ..Self::default()
        })
    }

    /// Input and output together: what a token limit counts.
    pub const fn total(&self) -> u64 {
        self.prompt.saturating_add(self.completion)
    }
}

/// The members of an answer or a chunk that the gateway acts on.
#[derive(Deserialize)]
pub struct Inspected<'a> {
    /// The raw usage object.
    #[serde(borrow, default)]
    pub usage: Option<&'a RawValue>,
    /// The raw error member.
    #[serde(borrow, default)]
    pub error: Option<&'a RawValue>,
    /// How each choice ended, so far as it has.
    #[serde(borrow, default)]
    pub choices: Option<Vec<Choice<'a>>>,
}

/// One choice of an answer or chunk.
#[derive(Deserialize)]
pub struct Choice<'a> {
    /// `stop`, `length`, `tool_calls` …; `None` while running.
    #[serde(borrow, default)]
    pub finish_reason: Option<Cow<'a, str>>,
    /// What a completion says, raw.
    #[serde(borrow, default)]
    pub text: Option<&'a RawValue>,
}

impl Choice<'_> {
    /// Whether a completion's text goes on here: its end may come with some.
    pub fn has_text(&self) -> bool {
        self.text
            .is_some_and(|raw| !matches!(raw.get(), "null" | "\"\""))
    }
}

impl<'a> Inspected<'a> {
    /// Reads the members of one JSON object; anything else is an error.
    pub fn parse(json: &'a [u8]) -> Result<Self, serde_json::Error> {
        // An array would be read as an object whose members come in order.
        if !json.trim_ascii_start().starts_with(b"{") {
            return Err(serde::de::Error::custom("not an object"));
        }
        serde_json::from_slice(json)
    }

    /// The usage, if there is one.
    pub fn usage(&self) -> Option<Usage> {
        Usage::parse(self.usage?.get())
    }

    /// Whether the error member says that something failed (null, false and "" do not).
    pub fn failed(&self) -> bool {
        self.error
            .is_some_and(|raw| !matches!(raw.get(), "null" | "false" | "\"\"" | "{}"))
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn reads_sglang_and_openai_places() {
        let sglang = r#"{"prompt_tokens":22,"total_tokens":32,"completion_tokens":10,"prompt_tokens_details":{"cached_tokens":4},"reasoning_tokens":3,"completion_tokens_details":null}"#;
        assert_eq!(
            Usage::parse(sglang),
            Some(Usage {
                prompt: 22,
                completion: 10,
                cached: 4,
                cache_write: 0,
                reasoning: 3
            })
        );
        let openai = r#"{"prompt_tokens":1,"completion_tokens":2,"completion_tokens_details":{"reasoning_tokens":1}}"#;
        assert_eq!(Usage::parse(openai).map(|u| u.reasoning), Some(1));
    }

    #[test]
    fn tokens_written_to_a_cache_have_two_names() {
        for name in ["cache_write_tokens", "created_cache_tokens"] {
            let json = format!(
                r#"{{"prompt_tokens":9,"completion_tokens":2,"prompt_tokens_details":{{"cached_tokens":3,"{name}":5}}}}"#
            );
            let usage = Usage::parse(&json).unwrap_or_default();
            assert_eq!((usage.cached, usage.cache_write), (3, 5), "{name}");
        }
    }

    #[test]
    fn a_part_is_never_more_than_its_whole() {
        let json = r#"{"prompt_tokens":9,"completion_tokens":2,"reasoning_tokens":7,"prompt_tokens_details":{"cached_tokens":8,"cache_write_tokens":5}}"#;
        let usage = Usage::parse(json).unwrap_or_default();
        assert_eq!(
            (usage.cached, usage.cache_write, usage.reasoning),
            (8, 1, 2)
        );
    }

    #[test]
    fn an_absence_is_no_zero() {
        let counts = |json| Usage::parse(json).map(|usage| (usage.prompt, usage.completion));
        assert_eq!(
            counts(r#"{"prompt_tokens":0,"completion_tokens":0}"#),
            Some((0, 0))
        );
        assert_eq!(
            counts(r#"{"prompt_tokens":8,"total_tokens":8}"#),
            Some((8, 0))
        );
        assert_eq!(
            counts(r#"{"completion_tokens":3,"total_tokens":8}"#),
            Some((5, 3))
        );
        for json in ["{}", r#"{"prompt_tokens":8}"#, r#"{"total_tokens":8}"#] {
            assert_eq!(counts(json), None, "{json}");
        }
    }

    #[test]
    fn refuses_nonsense() {
        for json in [
            "null",
            "{\"prompt_tokens\":-1,\"completion_tokens\":1}",
            "{\"prompt_tokens\":1e30,\"completion_tokens\":1}",
            "[]",
            "{\"prompt_tokens\":9999999999999,\"completion_tokens\":1}",
        ] {
            assert_eq!(Usage::parse(json), None, "{json}");
        }
    }
}
