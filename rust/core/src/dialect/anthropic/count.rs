//! Counts of tokens: Anthropic's parts of the input are disjoint, its output is cumulative.
use serde::Deserialize;

use crate::usage::MAX_TOKENS;

use super::super::chat::Usage;
use super::super::json::Object;

/// A usage object; of a stream, what has been told so far.
#[derive(Clone, Copy, Debug, Default, Deserialize)]
pub(super) struct Counts {
    #[serde(default)]
    input_tokens: Option<u64>,
    #[serde(default)]
    cache_creation_input_tokens: Option<u64>,
    #[serde(default)]
    cache_read_input_tokens: Option<u64>,
    #[serde(default)]
    output_tokens: Option<u64>,
    #[serde(default)]
    output_tokens_details: Option<Details>,
}

#[derive(Clone, Copy, Debug, Default, Deserialize)]
struct Details {
    #[serde(default)]
    thinking_tokens: Option<u64>,
}

impl Counts {
    /// Takes over what `later` tells.
    pub(super) fn update(&mut self, later: &Self) {
        let take = |old: &mut Option<u64>, new: Option<u64>| *old = new.or(*old);
        take(&mut self.input_tokens, later.input_tokens);
        take(
            &mut self.cache_creation_input_tokens,
            later.cache_creation_input_tokens,
        );
        take(
            &mut self.cache_read_input_tokens,
            later.cache_read_input_tokens,
        );
        take(&mut self.output_tokens, later.output_tokens);
        self.output_tokens_details = later.output_tokens_details.or(self.output_tokens_details);
    }

    /// The counts as all doors have them; none if neither input nor output is told, or if one is out
    /// of range.
    pub(super) fn usage(&self) -> Option<Usage> {
        let completion = self.output_tokens?;
        let cached = self.cache_read_input_tokens.unwrap_or(0);
        let cache_write = self.cache_creation_input_tokens.unwrap_or(0);
        let reasoning = self
            .output_tokens_details
            .and_then(|details| details.thinking_tokens)
            .unwrap_or(0);
        let parts = [self.input_tokens?, cached, cache_write];
        if parts.iter().chain([&completion]).any(|n| *n >= MAX_TOKENS) {
            return None;
        }
        Some(Usage {
            prompt: parts.iter().sum(),
            completion,
            cached,
            cache_write,
            reasoning: reasoning.min(completion),
        })
    }
}

/// Writes the usage object.
pub(super) fn write(usage: Usage, object: &mut Object<'_>) {
    let cached = usage.cached.min(usage.prompt);
    let cache_write = usage.cache_write.min(usage.prompt - cached);
    object.put("input_tokens", usage.prompt - cached - cache_write);
    object.put("cache_creation_input_tokens", cache_write);
    object.put("cache_read_input_tokens", cached);
    object.put("output_tokens", usage.completion);
    if usage.reasoning > 0 {
        object.object("output_tokens_details", |details| {
            details.put("thinking_tokens", usage.reasoning);
        });
    }
}
