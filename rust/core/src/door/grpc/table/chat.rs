//! Chat completions.
use super::shared::{FINISH_REASON, STREAM_OPTIONS, USAGE};
use super::{
    Enum, Field, Form, Kind, Message, Shape, filled, list, map, one_of, optional, repeated,
    required,
};

static ROLE: Enum = Enum {
    name: "Role",
    values: &[
        "developer",
        "system",
        "user",
        "assistant",
        "tool",
        "function",
    ],
};

static IMAGE_DETAIL: Enum = Enum {
    name: "ImageDetail",
    values: &["auto", "low", "high"],
};

static REASONING_EFFORT: Enum = Enum {
    name: "ReasoningEffort",
    values: &["none", "minimal", "low", "medium", "high", "xhigh"],
};

static VERBOSITY: Enum = Enum {
    name: "Verbosity",
    values: &["low", "medium", "high"],
};

static TOOL_TYPE: Enum = Enum {
    name: "ToolType",
    values: &["function", "custom"],
};

static TOOL_CHOICE_MODE: Enum = Enum {
    name: "ToolChoiceMode",
    values: &["none", "auto", "required"],
};

static RESPONSE_FORMAT_TYPE: Enum = Enum {
    name: "ResponseFormatType",
    values: &["text", "json_object", "json_schema"],
};

pub(in super::super) static CHAT_COMPLETION_REQUEST: Message = Message::object(
    "ChatCompletionRequest",
    &[
        filled(1, "model", Kind::Text),
        repeated(2, "messages", Kind::Message(&CHAT_MESSAGE)),
        optional(3, "max_completion_tokens", Kind::Int32),
        optional(4, "max_tokens", Kind::Int32),
        optional(5, "temperature", Kind::Double),
        optional(6, "top_p", Kind::Double),
        optional(7, "n", Kind::Int32),
        Field::new(8, "stop", Kind::Text, Shape::RepeatedOrOne),
        repeated(9, "tools", Kind::Message(&TOOL)),
        optional(10, "tool_choice", Kind::Message(&TOOL_CHOICE)),
        optional(11, "parallel_tool_calls", Kind::Bool),
        optional(12, "response_format", Kind::Message(&RESPONSE_FORMAT)),
        filled(13, "reasoning_effort", Kind::Enum(&REASONING_EFFORT)),
        optional(14, "stream_options", Kind::Message(&STREAM_OPTIONS)),
        optional(16, "seed", Kind::Int64),
        optional(17, "logprobs", Kind::Bool),
        optional(18, "top_logprobs", Kind::Int32),
        Field::new(19, "logit_bias", Kind::Double, Shape::IntMap),
        optional(20, "frequency_penalty", Kind::Double),
        optional(21, "presence_penalty", Kind::Double),
        optional(22, "user", Kind::Text),
        map(23, "metadata", Kind::Text),
        optional(24, "service_tier", Kind::Text),
        optional(25, "store", Kind::Bool),
        filled(26, "verbosity", Kind::Enum(&VERBOSITY)),
        repeated(27, "modalities", Kind::Text),
        optional(28, "audio", Kind::Message(&AUDIO_OUTPUT)),
        optional(29, "prediction", Kind::Message(&PREDICTION)),
        optional(30, "prompt_cache_key", Kind::Text),
        optional(31, "prompt_cache_retention", Kind::Text),
        optional(32, "safety_identifier", Kind::Text),
    ],
);

static CHAT_MESSAGE: Message = Message::object(
    "ChatMessage",
    &[
        filled(1, "role", Kind::Enum(&ROLE)),
        optional(2, "content", Kind::Text),
        repeated(3, "parts", Kind::Message(&CONTENT_PART)).json("content"),
        optional(4, "name", Kind::Text),
        optional(7, "reasoning_content", Kind::Text).alias("reasoning"),
        repeated(5, "tool_calls", Kind::Message(&TOOL_CALL)),
        optional(6, "tool_call_id", Kind::Text),
        optional(8, "refusal", Kind::Text),
        optional(9, "audio", Kind::Message(&AUDIO)),
        repeated(10, "annotations", Kind::Message(&ANNOTATION)),
    ],
);

static CONTENT_PART: Message = Message::object(
    "ContentPart",
    &[
        one_of(1, "text", Kind::Text),
        one_of(2, "image_url", Kind::Message(&IMAGE_URL)),
        one_of(3, "input_audio", Kind::Message(&INPUT_AUDIO)),
        one_of(4, "file", Kind::Message(&FILE_INPUT)),
        one_of(5, "refusal", Kind::Text),
        one_of(6, "video_url", Kind::Message(&MEDIA_URL)),
        one_of(7, "audio_url", Kind::Message(&MEDIA_URL)),
    ],
)
.form(Form::Tagged);

static IMAGE_URL: Message = Message::object(
    "ImageUrl",
    &[
        required(1, "url", Kind::Text),
        filled(2, "detail", Kind::Enum(&IMAGE_DETAIL)),
    ],
);

static MEDIA_URL: Message = Message::object("MediaUrl", &[required(1, "url", Kind::Text)]);

static INPUT_AUDIO: Message = Message::object(
    "InputAudio",
    &[
        required(1, "data", Kind::Base64),
        required(2, "format", Kind::Text),
    ],
);

static FILE_INPUT: Message = Message::object(
    "FileInput",
    &[
        optional(1, "file_data", Kind::Text),
        optional(2, "file_id", Kind::Text),
        optional(3, "filename", Kind::Text),
    ],
);

static AUDIO: Message = Message::object(
    "Audio",
    &[
        filled(1, "id", Kind::Text),
        optional(2, "data", Kind::Base64),
        optional(3, "expires_at", Kind::Int64),
        optional(4, "transcript", Kind::Text),
    ],
);

static ANNOTATION: Message = Message::object(
    "Annotation",
    &[
        optional(1, "type", Kind::Text),
        optional(2, "url_citation", Kind::Message(&URL_CITATION)),
    ],
);

static URL_CITATION: Message = Message::object(
    "UrlCitation",
    &[
        required(1, "start_index", Kind::Int64),
        required(2, "end_index", Kind::Int64),
        required(3, "url", Kind::Text),
        optional(4, "title", Kind::Text),
    ],
);

static TOOL: Message = Message::object(
    "Tool",
    &[
        one_of(1, "function", Kind::Message(&FUNCTION_TOOL)),
        one_of(2, "custom", Kind::Message(&CUSTOM_TOOL)),
    ],
)
.form(Form::Tagged);

static FUNCTION_TOOL: Message = Message::object(
    "FunctionTool",
    &[
        required(1, "name", Kind::Text),
        optional(2, "description", Kind::Text),
        optional(3, "parameters", Kind::Struct),
        optional(4, "strict", Kind::Bool),
    ],
);

static CUSTOM_TOOL: Message = Message::object(
    "CustomTool",
    &[
        required(1, "name", Kind::Text),
        optional(2, "description", Kind::Text),
        optional(3, "format", Kind::Struct),
    ],
);

static TOOL_CHOICE: Message = Message::object(
    "ToolChoice",
    &[
        one_of(1, "mode", Kind::Enum(&TOOL_CHOICE_MODE)),
        one_of(2, "function", Kind::Message(&TOOL_NAME)),
        one_of(3, "custom", Kind::Message(&TOOL_NAME)),
        one_of(4, "allowed_tools", Kind::Message(&ALLOWED_TOOLS)),
    ],
)
.form(Form::TaggedOrFirst);

static TOOL_NAME: Message = Message::object("ToolName", &[required(1, "name", Kind::Text)]);

static ALLOWED_TOOLS: Message = Message::object(
    "AllowedTools",
    &[
        filled(1, "mode", Kind::Enum(&TOOL_CHOICE_MODE)),
        list(2, "tools", Kind::Struct),
    ],
);

static TOOL_CALL: Message = Message::object(
    "ToolCall",
    &[
        required(1, "id", Kind::Text),
        one_of(2, "function", Kind::Message(&FUNCTION_CALL)),
        one_of(3, "custom", Kind::Message(&CUSTOM_TOOL_CALL)),
    ],
)
.form(Form::Tagged);

static FUNCTION_CALL: Message = Message::object(
    "FunctionCall",
    &[
        required(1, "name", Kind::Text),
        required(2, "arguments", Kind::Text),
    ],
);

static CUSTOM_TOOL_CALL: Message = Message::object(
    "CustomToolCall",
    &[
        required(1, "name", Kind::Text),
        required(2, "input", Kind::Text),
    ],
);

static RESPONSE_FORMAT: Message = Message::object(
    "ResponseFormat",
    &[
        filled(1, "type", Kind::Enum(&RESPONSE_FORMAT_TYPE)),
        optional(2, "json_schema", Kind::Message(&JSON_SCHEMA)),
    ],
);

static JSON_SCHEMA: Message = Message::object(
    "JsonSchema",
    &[
        required(1, "name", Kind::Text),
        optional(2, "description", Kind::Text),
        optional(3, "schema", Kind::Struct),
        optional(4, "strict", Kind::Bool),
    ],
);

static AUDIO_OUTPUT: Message = Message::object(
    "AudioOutput",
    &[
        filled(1, "voice", Kind::Text),
        required(2, "format", Kind::Text),
    ],
);

static PREDICTION: Message = Message::object(
    "Prediction",
    &[
        optional(1, "content", Kind::Text),
        repeated(2, "parts", Kind::Message(&CONTENT_PART)).json("content"),
    ],
)
.fixed("type", "content");

pub(in super::super) static CHAT_COMPLETION_RESPONSE: Message = Message::object(
    "ChatCompletionResponse",
    &[
        required(1, "id", Kind::Text),
        required(2, "created", Kind::Int64),
        required(3, "model", Kind::Text),
        list(4, "choices", Kind::Message(&CHAT_CHOICE)),
        optional(5, "usage", Kind::Message(&USAGE)),
        optional(6, "service_tier", Kind::Text),
        optional(7, "system_fingerprint", Kind::Text),
    ],
)
.fixed("object", "chat.completion");

static CHAT_CHOICE: Message = Message::object(
    "ChatChoice",
    &[
        required(1, "index", Kind::Int32),
        required(2, "message", Kind::Message(&CHAT_MESSAGE)),
        optional(4, "logprobs", Kind::Message(&LOGPROBS)),
        filled(3, "finish_reason", Kind::Enum(&FINISH_REASON)),
    ],
);

pub(in super::super) static CHAT_COMPLETION_CHUNK: Message = Message::object(
    "ChatCompletionChunk",
    &[
        required(1, "id", Kind::Text),
        required(2, "created", Kind::Int64),
        required(3, "model", Kind::Text),
        list(4, "choices", Kind::Message(&CHAT_CHUNK_CHOICE)),
        optional(5, "usage", Kind::Message(&USAGE)),
        optional(6, "service_tier", Kind::Text),
        optional(7, "system_fingerprint", Kind::Text),
    ],
)
.fixed("object", "chat.completion.chunk");

static CHAT_CHUNK_CHOICE: Message = Message::object(
    "ChatChunkChoice",
    &[
        required(1, "index", Kind::Int32),
        required(2, "delta", Kind::Message(&CHAT_DELTA)),
        optional(4, "logprobs", Kind::Message(&LOGPROBS)),
        filled(3, "finish_reason", Kind::Enum(&FINISH_REASON)),
    ],
);

static CHAT_DELTA: Message = Message::object(
    "ChatDelta",
    &[
        optional(4, "reasoning_content", Kind::Text).alias("reasoning"),
        filled(1, "role", Kind::Enum(&ROLE)),
        optional(2, "content", Kind::Text),
        repeated(3, "tool_calls", Kind::Message(&TOOL_CALL_DELTA)),
        optional(5, "refusal", Kind::Text),
        optional(6, "audio", Kind::Message(&AUDIO)),
        repeated(7, "annotations", Kind::Message(&ANNOTATION)),
    ],
);

static TOOL_CALL_DELTA: Message = Message::object(
    "ToolCallDelta",
    &[
        required(1, "index", Kind::Int32),
        optional(2, "id", Kind::Text),
        filled(3, "type", Kind::Enum(&TOOL_TYPE)),
        optional(4, "function", Kind::Message(&FUNCTION_CALL_DELTA)),
        optional(5, "custom", Kind::Message(&CUSTOM_TOOL_CALL_DELTA)),
    ],
);

static FUNCTION_CALL_DELTA: Message = Message::object(
    "FunctionCallDelta",
    &[
        optional(1, "name", Kind::Text),
        optional(2, "arguments", Kind::Text),
    ],
);

static CUSTOM_TOOL_CALL_DELTA: Message = Message::object(
    "CustomToolCallDelta",
    &[
        optional(1, "name", Kind::Text),
        optional(2, "input", Kind::Text),
    ],
);

static LOGPROBS: Message = Message::object(
    "Logprobs",
    &[
        repeated(1, "content", Kind::Message(&TOKEN_LOGPROB)),
        repeated(2, "refusal", Kind::Message(&TOKEN_LOGPROB)),
    ],
);

static TOKEN_LOGPROB: Message = Message::object(
    "TokenLogprob",
    &[
        required(1, "token", Kind::Text),
        optional(3, "bytes", Kind::Octets),
        required(2, "logprob", Kind::Double),
        list(4, "top_logprobs", Kind::Message(&TOP_LOGPROB)),
    ],
);

static TOP_LOGPROB: Message = Message::object(
    "TopLogprob",
    &[
        required(1, "token", Kind::Text),
        optional(3, "bytes", Kind::Octets),
        required(2, "logprob", Kind::Double),
    ],
);
