//! `generationConfig`, written.
use bytes::BytesMut;

use crate::error::Error;

use super::super::carry::Carry;
use super::super::chat::{Format, Param, Request, Thinking};
use super::super::json::Object;
use super::generation::Generation;

/// Writes it, if there is anything to say. Errors: `InvalidRequest` for what cannot be said.
pub(super) fn config(
    request: &Request<'_>,
    generation: Generation,
    carry: &mut Carry,
    body: &mut Object<'_>,
) -> Result<(), Error> {
    let seed = request.seed.map(i32::try_from);
    for (is_asked, param) in [
        (request.n.is_some_and(|n| n > 1), Param::N),
        (request.logprobs == Some(true), Param::Logprobs),
        (request.top_logprobs.is_some(), Param::TopLogprobs),
        (request.logit_bias.is_some(), Param::LogitBias),
        (matches!(seed, Some(Err(_))), Param::Seed),
    ] {
        if is_asked {
            carry.leave_param(param)?;
        }
    }
    let mut config = BytesMut::new();
    Object::write(&mut config, |config| {
        config.put_some("maxOutputTokens", request.max_tokens);
        config.put_some("temperature", request.temperature);
        config.put_some("topP", request.top_p);
        config.put_some("topK", request.top_k);
        if !request.stop.is_empty() {
            config.put("stopSequences", &request.stop);
        }
        config.put_some("seed", seed.and_then(Result::ok));
        config.put_some("frequencyPenalty", request.frequency_penalty);
        config.put_some("presencePenalty", request.presence_penalty);
        if let Some(format) = &request.format {
            config.put("responseMimeType", "application/json");
            if let Format::Schema { schema, .. } = format {
                config.put("responseJsonSchema", schema);
            }
        }
        thinking(request, generation, config);
    });
    if &config[..] != b"{}" {
        body.member("generationConfig").extend_from_slice(&config);
    }
    Ok(())
}

/// Thinking: a budget as it is; effort as a level, or as the budget that Google's compatible API
/// gives it for the models before levels. Whoever asks for thinking gets to see it.
fn thinking(request: &Request<'_>, generation: Generation, config: &mut Object<'_>) {
    let is_two = generation == Generation::Two;
    let effort = request.effort.as_deref();
    let is_off = effort == Some("none") || request.thinking == Some(Thinking::Disabled);
    let budget = match (request.thinking, effort) {
        _ if is_off => is_two.then_some(0),
        (Some(Thinking::Budget(tokens)), _) => Some(i64::from(tokens)),
        (_, Some("minimal" | "low")) if is_two => Some(1024),
        (_, Some("medium")) if is_two => Some(8192),
        (_, Some(_)) if is_two => Some(24576),
        (Some(Thinking::Adaptive), None) if is_two => Some(-1),
        _ => None,
    };
    // Levels cannot be switched off: the lowest is the nearest.
    let level = match effort {
        _ if budget.is_some() => None,
        _ if is_off => Some("MINIMAL"),
        None => None,
        Some("minimal") => Some("MINIMAL"),
        Some("low") => Some("LOW"),
        Some("medium") => Some("MEDIUM"),
        Some(_) => Some("HIGH"),
    };
    if request.thinking.is_none() && effort.is_none() {
        return;
    }
    config.object("thinkingConfig", |thinking| {
        thinking.put_some("thinkingBudget", budget);
        thinking.put_some("thinkingLevel", level);
        if !is_off {
            thinking.put("includeThoughts", true);
        }
    });
}
