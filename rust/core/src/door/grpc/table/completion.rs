//! Completions of bare texts.
use super::shared::{FINISH_REASON, STREAM_OPTIONS, TOKEN_IDS, USAGE};
use super::{Field, Form, Kind, Message, Shape, filled, list, map, optional, repeated, required};

pub(in super::super) static COMPLETION_REQUEST: Message = Message::object(
    "CompletionRequest",
    &[
        filled(1, "model", Kind::Text),
        optional(2, "prompt", Kind::Text),
        repeated(3, "prompts", Kind::Text).json("prompt"),
        repeated(4, "prompt_tokens", Kind::Int32).json("prompt"),
        repeated(5, "prompt_token_lists", Kind::Message(&TOKEN_IDS)).json("prompt"),
        optional(6, "max_tokens", Kind::Int32),
        optional(7, "temperature", Kind::Double),
        optional(8, "top_p", Kind::Double),
        optional(9, "n", Kind::Int32),
        Field::new(10, "stop", Kind::Text, Shape::RepeatedOrOne),
        optional(11, "seed", Kind::Int64),
        optional(12, "stream_options", Kind::Message(&STREAM_OPTIONS)),
        optional(13, "logprobs", Kind::Int32),
        optional(14, "echo", Kind::Bool),
        optional(16, "suffix", Kind::Text),
        optional(17, "best_of", Kind::Int32),
        Field::new(18, "logit_bias", Kind::Double, Shape::IntMap),
        optional(19, "frequency_penalty", Kind::Double),
        optional(20, "presence_penalty", Kind::Double),
        optional(21, "user", Kind::Text),
    ],
);

const ANSWER: &[Field] = &[
    required(1, "id", Kind::Text),
    required(2, "created", Kind::Int64),
    required(3, "model", Kind::Text),
    list(4, "choices", Kind::Message(&COMPLETION_CHOICE)),
    optional(5, "usage", Kind::Message(&USAGE)),
    optional(6, "system_fingerprint", Kind::Text),
];

pub(in super::super) static COMPLETION_RESPONSE: Message =
    Message::object("CompletionResponse", ANSWER).fixed("object", "text_completion");

pub(in super::super) static COMPLETION_CHUNK: Message =
    Message::object("CompletionChunk", ANSWER).fixed("object", "text_completion");

static COMPLETION_CHOICE: Message = Message::object(
    "CompletionChoice",
    &[
        required(1, "index", Kind::Int32),
        required(2, "text", Kind::Text),
        optional(4, "logprobs", Kind::Message(&COMPLETION_LOGPROBS)),
        filled(3, "finish_reason", Kind::Enum(&FINISH_REASON)),
    ],
);

static COMPLETION_LOGPROBS: Message = Message::object(
    "CompletionLogprobs",
    &[
        repeated(4, "text_offset", Kind::Int32),
        repeated(2, "token_logprobs", Kind::Message(&OPTIONAL_LOGPROB)),
        list(1, "tokens", Kind::Text),
        repeated(3, "top_logprobs", Kind::Message(&LOGPROBS_BY_TOKEN)),
    ],
);

static OPTIONAL_LOGPROB: Message =
    Message::object("OptionalLogprob", &[optional(1, "logprob", Kind::Double)]).form(Form::First);

static LOGPROBS_BY_TOKEN: Message =
    Message::object("LogprobsByToken", &[map(1, "logprobs", Kind::Double)]).form(Form::First);
