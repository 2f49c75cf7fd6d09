//! What a refusal is about, by the words that engines and providers have for it.
use crate::snapshot::Reason;

use super::said::Said;

/// Codes and what they are about, as OpenAI, Azure, Anthropic, Bedrock, Together and LiteLLM have
/// them.
const CODES: [(&str, Reason); 17] = [
    ("context_length_exceeded", Reason::ContextOverflow),
    ("context_window_exceeded", Reason::ContextOverflow),
    ("ContextWindowExceededError", Reason::ContextOverflow),
    ("model_context_window_exceeded", Reason::ContextOverflow),
    ("content_filter", Reason::ContentFilter),
    ("content_filter_error", Reason::ContentFilter),
    ("content_policy_violation", Reason::ContentFilter),
    ("ResponsibleAIPolicyViolation", Reason::ContentFilter),
    ("ContentPolicyViolationError", Reason::ContentFilter),
    ("ModelNotReadyException", Reason::Loading),
    ("model_not_ready", Reason::Loading),
    ("insufficient_quota", Reason::Quota),
    ("credit_balance_exhausted", Reason::Quota),
    ("billing_hard_limit_reached", Reason::Quota),
    ("billing_error", Reason::Quota),
    ("budget_exceeded", Reason::Quota),
    ("insufficient_credits", Reason::Quota),
];

/// Words within a message, in lower case: all of a line have to be there.
const WORDS: [(&[&str], Reason); 25] = [
    // vLLM, OpenAI, OpenRouter, Fireworks; SGLang's "maximum context length of".
    (&["maximum context length"], Reason::ContextOverflow),
    // SGLang: "The input (9 tokens) is longer than the model's context length (8 tokens)."
    (&["longer than", "context length"], Reason::ContextOverflow),
    // SGLang: "Input length (9 tokens) exceeds the maximum allowed length (8 tokens)".
    (
        &["input length", "exceeds the maximum allowed length"],
        Reason::ContextOverflow,
    ),
    (
        &["longer than the maximum model length"],
        Reason::ContextOverflow,
    ),
    (&["max_model_len"], Reason::ContextOverflow),
    // TensorRT-LLM.
    (&["should not exceed max_seq_len"], Reason::ContextOverflow),
    (
        &["prompt length", "max_num_tokens"],
        Reason::ContextOverflow,
    ),
    // TGI, and Together in front of it.
    (
        &["`inputs` tokens + `max_new_tokens` must be"],
        Reason::ContextOverflow,
    ),
    (
        &["`inputs` must have less than", "tokens"],
        Reason::ContextOverflow,
    ),
    // Anthropic.
    (&["prompt is too long"], Reason::ContextOverflow),
    (&["exceed context limit"], Reason::ContextOverflow),
    // Gemini.
    (
        &["exceeds the maximum number of tokens allowed"],
        Reason::ContextOverflow,
    ),
    // Bedrock.
    (
        &["input is too long for requested model"],
        Reason::ContextOverflow,
    ),
    (&["too many input tokens"], Reason::ContextOverflow),
    (&["exceeds the context window"], Reason::ContextOverflow),
    // Azure, Anthropic, Bedrock.
    (&["content management policy"], Reason::ContentFilter),
    (
        &["blocked by content filtering policy"],
        Reason::ContentFilter,
    ),
    (&["content filter", "blocked"], Reason::ContentFilter),
    // OpenAI, as `invalid_prompt`.
    (&["flagged as potentially violating"], Reason::ContentFilter),
    // LiteLLM names its own classes in front of the provider's words.
    (&["contextwindowexceedederror"], Reason::ContextOverflow),
    (&["contentpolicyviolationerror"], Reason::ContentFilter),
    // Hugging Face, Bedrock.
    (&["currently loading"], Reason::Loading),
    (&["model is not ready"], Reason::Loading),
    // Anthropic (as a 400), OpenAI.
    (&["credit balance is too low"], Reason::Quota),
    (&["exceeded your current quota", "billing"], Reason::Quota),
];

/// What an error is about. Words count in its message alone, of which the client's own input is no
/// part that engines quote beyond a few words.
pub(super) fn detect(said: &Said<'_>, status: u16) -> Option<Reason> {
    let by_code = CODES
        .iter()
        .find(|(code, _)| said.has_code(code))
        .map(|(_, reason)| *reason);
    by_code
        .or_else(|| (status == 402).then_some(Reason::Quota))
        .or_else(|| per_day(said).then_some(Reason::Quota))
        .or_else(|| {
            let message = said.message.as_deref()?;
            // A schema error quotes the input after its reason.
            let message = message.split("'input':").next().unwrap_or(message);
            let message = message.to_lowercase();
            WORDS
                .iter()
                .find(|(words, _)| words.iter().all(|word| message.contains(word)))
                .map(|(_, reason)| *reason)
                // Google says the same words of a minute's quota; its details tell which it was.
                .filter(|reason| *reason != Reason::Quota || said.details.is_empty())
        })
        .filter(|reason| fits(*reason, status))
}

/// A server's fault is not about what was asked, whatever words are in its trace.
fn fits(reason: Reason, status: u16) -> bool {
    match reason {
        Reason::ContextOverflow | Reason::ContentFilter => matches!(status, 400..=499),
        Reason::Loading => matches!(status, 400..=599),
        Reason::Quota => matches!(status, 400..=429),
    }
}

/// Gemini's quota of a day, which a wait of seconds does not cure.
fn per_day(said: &Said<'_>) -> bool {
    said.details
        .iter()
        .filter_map(|detail| detail.get("violations")?.as_array())
        .flatten()
        .filter_map(|violation| violation.get("quotaId")?.as_str())
        .any(|id| id.contains("PerDay"))
}
