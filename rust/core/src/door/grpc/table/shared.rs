//! What several endpoints have.
use super::{Enum, Field, Form, Kind, Message, list, optional, required};

pub(super) static FINISH_REASON: Enum = Enum {
    name: "FinishReason",
    values: &[
        "stop",
        "length",
        "tool_calls",
        "content_filter",
        "function_call",
    ],
};

pub(super) static USAGE: Message = Message::object(
    "Usage",
    &[
        required(1, "prompt_tokens", Kind::Int64),
        required(2, "completion_tokens", Kind::Int64),
        required(3, "total_tokens", Kind::Int64),
        optional(4, "prompt_tokens_details", Kind::Message(&PROMPT_DETAILS)),
        optional(
            5,
            "completion_tokens_details",
            Kind::Message(&COMPLETION_DETAILS),
        ),
    ],
);

static PROMPT_DETAILS: Message = Message::object(
    "PromptTokensDetails",
    &[
        optional(1, "cached_tokens", Kind::Int64),
        optional(2, "cache_write_tokens", Kind::Int64),
        optional(3, "audio_tokens", Kind::Int64),
    ],
);

static COMPLETION_DETAILS: Message = Message::object(
    "CompletionTokensDetails",
    &[
        optional(1, "reasoning_tokens", Kind::Int64),
        optional(2, "audio_tokens", Kind::Int64),
        optional(3, "accepted_prediction_tokens", Kind::Int64),
        optional(4, "rejected_prediction_tokens", Kind::Int64),
    ],
);

pub(super) static STREAM_OPTIONS: Message = Message::object(
    "StreamOptions",
    &[
        Field::new(
            1,
            "include_usage",
            Kind::Bool,
            super::Shape::Default("true"),
        ),
        optional(2, "include_obfuscation", Kind::Bool),
    ],
);

/// Token ids alone: an array in JSON.
pub(super) static TOKEN_IDS: Message =
    Message::object("TokenIds", &[list(1, "ids", Kind::Int32)]).form(Form::First);
