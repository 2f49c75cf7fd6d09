//! What models take beyond Converse, by whose they are.
use bytes::BytesMut;

use crate::error::Error;

use super::super::carry::Carry;
use super::super::chat::{Param, Request, Thinking};
use super::super::json::Object;

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

/// What goes to the model beyond Converse, in the names that its maker gave it.
pub(super) fn additional(
    request: &Request<'_>,
    family: Family,
    carry: &mut Carry,
    body: &mut Object<'_>,
) -> Result<(), Error> {
    let mut fields = BytesMut::new();
    Object::write(&mut fields, |fields| {
        if let Some(top_k) = request.top_k {
            match family {
                Family::Claude | Family::Mistral => fields.put("top_k", top_k),
                Family::Nova => {
                    fields.object("inferenceConfig", |config| config.put("topK", top_k));
                }
                Family::Gpt | Family::Other => carry.leave_param(Param::TopK)?,
            }
        }
        match family {
            Family::Claude => claude(request, fields),
            Family::Nova => nova(request, carry, fields)?,
            Family::Gpt => gpt(request, carry, fields)?,
            Family::Mistral | Family::Other => {
                if request.thinking.is_some() {
                    carry.leave_param(Param::Thinking)?;
                }
                if request.effort.as_deref() == Some("none") {
                    carry.leave_param(Param::Effort)?;
                }
            }
        }
        Ok::<(), Error>(())
    })?;
    if &fields[..] != b"{}" {
        body.member("additionalModelRequestFields")
            .extend_from_slice(&fields);
    }
    // Which of the stop sequences was met is told only where it is asked for.
    if family == Family::Claude && !request.stop.is_empty() {
        body.put("additionalModelResponseFieldPaths", ["/stop_sequence"]);
    }
    Ok(())
}

/// An effort is one of adaptive thinking, unless the client says how to think.
fn claude(request: &Request<'_>, fields: &mut Object<'_>) {
    let thinking = request.thinking.or(match request.effort.as_deref() {
        None => None,
        Some("none") => Some(Thinking::Disabled),
        Some(_) => Some(Thinking::Adaptive),
    });
    let Some(thinking) = thinking else {
        return;
    };
    fields.object("thinking", |object| match thinking {
        Thinking::Disabled => object.put("type", "disabled"),
        Thinking::Adaptive => object.put("type", "adaptive"),
        Thinking::Budget(tokens) => {
            object.put("type", "enabled");
            object.put("budget_tokens", tokens);
        }
    });
}

/// Nova has an effort and no budget.
fn nova(request: &Request<'_>, carry: &mut Carry, fields: &mut Object<'_>) -> Result<(), Error> {
    if matches!(request.thinking, Some(Thinking::Budget(_))) {
        carry.leave_param(Param::Thinking)?;
    }
    let effort = match (request.effort.as_deref(), request.thinking) {
        (Some("none"), _) | (None, Some(Thinking::Disabled)) => None,
        (Some("minimal" | "low"), _) => Some("low"),
        (Some("medium"), _) | (None, Some(Thinking::Adaptive)) => Some("medium"),
        (Some(_), _) => Some("high"),
        (None, Some(Thinking::Budget(_)) | None) => return Ok(()),
    };
    fields.object("reasoningConfig", |config| {
        config.put(
            "type",
            if effort.is_some() {
                "enabled"
            } else {
                "disabled"
            },
        );
        config.put_some("maxReasoningEffort", effort);
    });
    Ok(())
}

/// OpenAI's open weights always think.
fn gpt(request: &Request<'_>, carry: &mut Carry, fields: &mut Object<'_>) -> Result<(), Error> {
    if request.thinking.is_some() {
        carry.leave_param(Param::Thinking)?;
    }
    let effort = match request.effort.as_deref() {
        None => return Ok(()),
        Some("none") => return carry.leave_param(Param::Effort),
        Some("minimal" | "low") => "low",
        Some("medium") => "medium",
        Some(_) => "high",
    };
    fields.put("reasoning_effort", effort);
    Ok(())
}
