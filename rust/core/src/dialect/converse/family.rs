//! What models take beyond Converse, by whose they are.

/// Whose a model is, so far as its parameters differ.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub(super) enum Family {
    /// `top_k`, `thinking`; effort as Converse's own.
    Claude,
    /// Amazon Nova: `inferenceConfig.topK`, `reasoningConfig`.
    Nova,
    /// OpenAI's open weights: `reasoning_effort`.
    Gpt,
    /// Mistral: `top_k`.
    Mistral,
    /// Others, and models behind an ARN that does not name them.
    Other,
}

impl Family {
    /// By the model's id, inference profile or ARN.
    pub(super) fn of(model: &str) -> Self {
        [
            ("anthropic.", Self::Claude),
            ("claude", Self::Claude),
            ("amazon.nova", Self::Nova),
            ("openai.", Self::Gpt),
            ("mistral.", Self::Mistral),
        ]
        .into_iter()
        .find(|(name, _)| model.contains(name))
        .map_or(Self::Other, |(_, family)| family)
    }
}
