//! What a request is taken to cost, in tokens, until its usage is known.
use crate::gateway::Endpoint;
use crate::peek::Peek;
use crate::snapshot::Model;

/// What a request is taken to cost until its usage is known.
pub(super) struct Cost {
    /// Input tokens.
    pub(super) prompt: u64,
    /// Output tokens.
    pub(super) output: u64,
    /// Tokens to reserve.
    pub(super) reserve: u64,
}

impl Cost {
    /// Input by the model's learned bytes per token, output by the request's cap, or by what the
    /// model's answers usually are and then at most half the burst.
    pub(super) fn of(
        body: &Peek<'_>,
        endpoint: Endpoint,
        model: &Model,
        burst: Option<u64>,
    ) -> Self {
        let (bytes, ids) = text_of(endpoint, body);
        let prompt = ids + model.estimator.prompt_tokens(bytes);
        let answers = u64::from(body.n.unwrap_or(1)) * u64::from(body.prompt_items.max(1));
        let usual = || model.estimator.output_tokens().saturating_mul(answers);
        let output = match (endpoint, body.output_cap()) {
            (endpoint, _) if !endpoint.has_output() => 0,
            (_, Some(cap)) => cap.saturating_mul(answers),
            (_, None) => usual(),
        };
        let reserve = match burst {
            None => prompt.saturating_add(output),
            // Only the input can be more than a burst holds; output is settled on what it was.
            Some(burst) if prompt > burst => prompt,
            Some(burst) => {
                let output = match body.output_cap() {
                    Some(_) => output,
                    None => output.min(burst / 2),
                };
                prompt.saturating_add(output).min(burst)
            }
        };
        Self {
            prompt,
            output,
            reserve,
        }
    }
}

/// Bytes of the text that a request is about, and what of it is given as token ids.
pub(super) fn text_of(endpoint: Endpoint, body: &Peek<'_>) -> (usize, u64) {
    match endpoint {
        Endpoint::Rerank | Endpoint::Score => (body.rank_bytes, body.rank_token_ids),
        _ => (body.prompt_bytes, body.prompt_token_ids),
    }
}
