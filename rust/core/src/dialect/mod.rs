//! What is spoken with an upstream, and what it is turned from and into.
pub mod eventstream;

use serde::Deserialize;

/// A protocol of chat.
#[derive(Clone, Copy, Debug, Default, PartialEq, Eq, Hash, Deserialize)]
#[serde(rename_all = "snake_case")]
pub enum Dialect {
    /// OpenAI's chat completions.
    #[default]
    OpenAi,
    /// Anthropic's Messages.
    Anthropic,
    /// Gemini's `generateContent`.
    Gemini,
    /// Bedrock's Converse, its streams in binary frames.
    Converse,
}
