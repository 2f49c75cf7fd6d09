//! A chat, said in no provider's words: what every dialect is read into and written from.
//!
//! Text and raw JSON are borrowed from the body they were read from wherever they can be. A tool's
//! result is a part of a user's message, as Anthropic, Gemini and Converse have it; a message that is
//! a tool's in OpenAI's dialect has nothing else. Messages are as the client sent them: who needs
//! roles to alternate merges them when writing.
use std::borrow::Cow;

use serde_json::value::RawValue;

use super::Dialect;
use super::carry::MAX_LISTED;
use super::json::Path;
pub(crate) use crate::usage::Usage;

/// JSON that is carried as it is.
pub(crate) type Raw<'a> = Cow<'a, RawValue>;

/// What is asked. Absent members were absent, null, or what they are without being said.
#[derive(Clone, Debug, Default)]
pub(crate) struct Request<'a> {
    /// System and developer messages in their order: text only.
    pub system: Vec<Part<'a>>,
    /// All others. Never empty once read.
    pub messages: Vec<Message<'a>>,
    pub tools: Vec<Tool<'a>>,
    pub tool_choice: Option<ToolChoice<'a>>,
    pub parallel_tool_calls: Option<bool>,
    /// Most tokens of output.
    pub max_tokens: Option<u32>,
    pub temperature: Option<f64>,
    pub top_p: Option<f64>,
    pub top_k: Option<u32>,
    /// Stop sequences.
    pub stop: Vec<Cow<'a, str>>,
    pub seed: Option<i64>,
    pub frequency_penalty: Option<f64>,
    pub presence_penalty: Option<f64>,
    /// How many answers; absent for one.
    pub n: Option<u32>,
    /// Absent for false.
    pub logprobs: Option<bool>,
    pub top_logprobs: Option<u32>,
    pub logit_bias: Option<Raw<'a>>,
    /// What form the answer has; absent for text.
    pub format: Option<Format<'a>>,
    /// How hard to think, in OpenAI's words: `none`, `minimal`, `low`, `medium`, `high`, `xhigh`, `max`.
    pub effort: Option<Cow<'a, str>>,
    /// Whether to think at all, where that is said apart from the effort.
    pub thinking: Option<Thinking>,
    /// Who the end user is: `safety_identifier` before `user`.
    pub user: Option<Cow<'a, str>>,
    /// Whatever else was in the request, as `(path, value)`: fields, tools and blocks that no other
    /// dialect has. None of them null.
    pub other: Vec<(Cow<'a, str>, Raw<'a>)>,
    /// Paths of fields that no other dialect has and that do not change the answer; the first
    /// [`MAX_LISTED`].
    pub hints: Vec<String>,
}

impl<'a> Request<'a> {
    /// Notes what no other dialect has, of which the first [`MAX_LISTED`] are kept.
    pub(crate) fn elsewhere(&mut self, path: &Path<'_>, raw: &'a RawValue) {
        if self.other.len() < MAX_LISTED {
            let path = path.to_string();
            self.other.push((path.into(), Cow::Borrowed(raw)));
        }
    }

    /// Notes a field that does not change the answer.
    pub(crate) fn hint(&mut self, path: &Path<'_>) {
        if self.hints.len() < MAX_LISTED {
            self.hints.push(path.to_string());
        }
    }
}

/// Who speaks.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub(crate) enum Role {
    /// The user, and tools with their results.
    User,
    /// The model.
    Assistant,
}

/// One message.
#[derive(Clone, Debug)]
pub(crate) struct Message<'a> {
    pub role: Role,
    pub parts: Vec<Part<'a>>,
    /// The participant's name.
    pub name: Option<Cow<'a, str>>,
    /// Its place in the request.
    pub index: u32,
}

/// A piece of a message.
#[derive(Clone, Debug)]
pub(crate) struct Part<'a> {
    pub content: Content<'a>,
    /// Where it stood, for errors.
    pub spot: Spot,
    /// Anthropic's `cache_control`: the prompt is cached up to here.
    pub cache: Option<Raw<'a>>,
}

impl<'a> Part<'a> {
    /// Without `cache_control`.
    pub(crate) const fn new(content: Content<'a>, spot: Spot) -> Self {
        Self {
            content,
            spot,
            cache: None,
        }
    }
}

/// What a piece of a message is.
#[derive(Clone, Debug, PartialEq)]
pub(crate) enum Content<'a> {
    Text(Cow<'a, str>),
    /// The model's words for why it will not.
    Refusal(Cow<'a, str>),
    Image(Media<'a>),
    /// A PDF or another file.
    Document {
        media: Media<'a>,
        name: Option<Cow<'a, str>>,
    },
    Audio(Media<'a>),
    ToolCall(ToolCall<'a>),
    ToolResult(ToolResult<'a>),
    /// What the model thought. Unsigned, it is of no use to who demands signatures.
    Thinking {
        text: Cow<'a, str>,
        signature: Option<Signature<'a>>,
    },
    /// Thoughts that only their provider can read.
    Redacted(Signature<'a>),
}

/// Bytes of a media type, or where they are.
#[derive(Clone, Debug, PartialEq)]
pub(crate) enum Media<'a> {
    /// Standard base64 with padding, checked.
    Base64 {
        /// In lower case: `image/png`.
        media_type: Cow<'a, str>,
        data: Cow<'a, str>,
    },
    /// `https://…`, `http://…` or a scheme of the provider's own (`gs://…`, `s3://…`).
    Url {
        url: Cow<'a, str>,
        /// Where it is said.
        media_type: Option<Cow<'a, str>>,
    },
    /// A file that the provider holds, by its id.
    File(Cow<'a, str>),
}

/// A call of a tool.
#[derive(Clone, Debug, PartialEq)]
pub(crate) struct ToolCall<'a> {
    pub id: Cow<'a, str>,
    pub name: Cow<'a, str>,
    /// JSON text of an object. In an answer whatever the model wrote.
    pub arguments: Cow<'a, str>,
    /// Gemini's `thoughtSignature`.
    pub signature: Option<Signature<'a>>,
}

/// What came of it.
#[derive(Clone, Debug, PartialEq)]
pub(crate) struct ToolResult<'a> {
    /// The call's id; the call stands earlier in the request.
    pub id: Cow<'a, str>,
    /// The tool's name, from the call.
    pub name: Cow<'a, str>,
    /// Text, images and documents.
    pub content: Vec<Content<'a>>,
    pub is_error: bool,
}

/// Something that only its provider can check, and that has to come back to it unchanged.
#[derive(Clone, Debug, PartialEq, Eq)]
pub(crate) struct Signature<'a> {
    pub value: Cow<'a, str>,
    pub by: Signer,
}

/// Whose signature it is.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub(crate) enum Signer {
    /// Claude's, wherever it runs: Anthropic, Bedrock, Vertex.
    Anthropic,
    Gemini,
}

/// Where a part stood in the client's request; cheap, a path only once it is asked for.
#[derive(Clone, Copy, Debug, Default, PartialEq, Eq)]
pub(crate) struct Spot {
    /// Place of the message; none for what stands outside of messages (Anthropic's `system`).
    pub message: Option<u32>,
    pub place: Place,
}

/// Where in its message.
#[derive(Clone, Copy, Debug, Default, PartialEq, Eq)]
pub(crate) enum Place {
    /// Its content is no list.
    #[default]
    Whole,
    /// The content's item.
    Item(u32),
    /// One of its `tool_calls`.
    Call(u32),
    /// `reasoning_content`.
    Reasoning,
    /// `reasoning_details`.
    Detail(u32),
}

impl Spot {
    /// In a message.
    pub(crate) const fn new(message: u32, place: Place) -> Self {
        Self {
            message: Some(message),
            place,
        }
    }

    /// The field's path as the client wrote it.
    pub(crate) fn path(self, dialect: Dialect) -> String {
        if dialect == Dialect::Responses {
            return self.item();
        }
        let (messages, content) = match dialect {
            Dialect::Responses | Dialect::OpenAi | Dialect::Anthropic | Dialect::Converse => {
                ("messages", "content")
            }
            Dialect::Gemini => ("contents", "parts"),
        };
        let system = match dialect {
            Dialect::Gemini => "systemInstruction.parts",
            Dialect::OpenAi | Dialect::Anthropic | Dialect::Converse | Dialect::Responses => {
                "system"
            }
        };
        match (self.message, self.place) {
            (Some(m), Place::Whole) => format!("{messages}[{m}].{content}"),
            (Some(m), Place::Item(i)) => format!("{messages}[{m}].{content}[{i}]"),
            (Some(m), Place::Call(i)) => format!("{messages}[{m}].tool_calls[{i}]"),
            (Some(m), Place::Reasoning) => format!("{messages}[{m}].reasoning_content"),
            (Some(m), Place::Detail(i)) => format!("{messages}[{m}].reasoning_details[{i}]"),
            (None, Place::Item(i)) => format!("{system}[{i}]"),
            (None, _) => system.to_owned(),
        }
    }

    /// The path in a request of Responses.
    fn item(self) -> String {
        match (self.message, self.place) {
            (Some(m), Place::Item(i)) => format!("input[{m}].content[{i}]"),
            (Some(m), _) => format!("input[{m}]"),
            (None, _) => "instructions".to_owned(),
        }
    }
}

/// A function that the model may call.
#[derive(Clone, Debug)]
pub(crate) struct Tool<'a> {
    pub name: Cow<'a, str>,
    pub description: Option<Cow<'a, str>>,
    /// JSON Schema of an object; absent for a function without parameters.
    pub parameters: Option<Raw<'a>>,
    /// The arguments have to keep to the schema.
    pub strict: Option<bool>,
    /// Anthropic's `cache_control`.
    pub cache: Option<Raw<'a>>,
    /// Its place in the request.
    pub index: u32,
}

/// Which tools the model has to call.
#[derive(Clone, Debug, PartialEq, Eq)]
pub(crate) enum ToolChoice<'a> {
    Auto,
    /// At least one, whichever.
    Required,
    None,
    Named(Cow<'a, str>),
}

/// The form of the answer.
#[derive(Clone, Debug)]
pub(crate) enum Format<'a> {
    /// JSON, whatever its form.
    Json,
    /// JSON that keeps to a schema.
    Schema {
        name: Option<Cow<'a, str>>,
        description: Option<Cow<'a, str>>,
        schema: Raw<'a>,
        strict: Option<bool>,
    },
}

/// Whether the model thinks first.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub(crate) enum Thinking {
    Disabled,
    /// As much as the model finds right.
    Adaptive,
    /// At most so many tokens.
    Budget(u32),
}

/// A whole answer.
#[derive(Clone, Debug)]
pub(crate) struct Answer<'a> {
    /// Text, refusals, thoughts and tool calls, in order.
    pub content: Vec<Content<'a>>,
    pub stop: Stop,
    /// The stop sequence that was met, where it is told.
    pub stop_sequence: Option<Cow<'a, str>>,
    pub usage: Option<Usage>,
    /// Logprobs of its text, as OpenAI's dialects list them.
    pub logprobs: Option<Raw<'a>>,
}

/// Why an answer ends.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub(crate) enum Stop {
    /// The model was done.
    End,
    /// At a stop sequence.
    Sequence,
    /// At the bound on output.
    Length,
    /// The context is full.
    Context,
    /// For tools to be called.
    Tools,
    /// A filter, or the model itself, refused.
    Filtered,
    /// A long turn was paused; sent back as it is, it goes on.
    Paused,
}

/// What a stream says. Order: `Start`, deltas, `Finish`, `Usage` (at any time, the last one counts),
/// `End`.
#[derive(Clone, Debug)]
pub(crate) enum Event<'a> {
    Start,
    Text(Cow<'a, str>),
    Refusal(Cow<'a, str>),
    /// Logprobs of the text that comes next, as OpenAI's dialects list them.
    Logprobs(Raw<'a>),
    Reasoning(Cow<'a, str>),
    /// Of the reasoning before it, and its end.
    Signature(Signature<'a>),
    Redacted(Signature<'a>),
    /// The call with this number begins; numbers count up from 0 without gaps.
    ToolStart {
        index: u32,
        id: Cow<'a, str>,
        name: Cow<'a, str>,
        signature: Option<Signature<'a>>,
    },
    /// More of its arguments' JSON text.
    ToolArguments {
        index: u32,
        json: Cow<'a, str>,
    },
    /// Its arguments are whole.
    ToolEnd {
        index: u32,
    },
    Finish {
        stop: Stop,
        sequence: Option<Cow<'a, str>>,
    },
    /// All counts so far.
    Usage(Usage),
    /// Nothing, said to keep the connection up.
    Ping,
    /// The dialect's end marker.
    End,
}

/// A parameter that not every dialect has, for errors that name it.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub(crate) enum Param {
    Temperature,
    TopK,
    Stop,
    Seed,
    FrequencyPenalty,
    PresencePenalty,
    N,
    Logprobs,
    TopLogprobs,
    LogitBias,
    Format,
    Effort,
    Thinking,
    User,
    ToolChoice,
    ParallelToolCalls,
}

impl Param {
    /// Its name in the client's dialect. Of those that a dialect lacks, OpenAI's.
    pub(crate) const fn name(self, dialect: Dialect) -> &'static str {
        match (dialect, self) {
            (Dialect::Anthropic, Self::Stop) => "stop_sequences",
            (Dialect::Anthropic, Self::Format) => "output_config.format",
            (Dialect::Anthropic, Self::Effort) => "output_config.effort",
            (Dialect::Anthropic, Self::User) => "metadata.user_id",
            (Dialect::Anthropic, Self::ParallelToolCalls) => {
                "tool_choice.disable_parallel_tool_use"
            }
            (Dialect::Gemini, _) => self.in_gemini(),
            (Dialect::Responses, Self::Format) => "text.format",
            (Dialect::Responses, Self::Effort) => "reasoning.effort",
            (Dialect::Responses, Self::Logprobs) => "include",
            (Dialect::Converse, Self::Temperature) => "inferenceConfig.temperature",
            (Dialect::Converse, Self::TopK) => "additionalModelRequestFields.top_k",
            (Dialect::Converse, Self::Thinking) => "additionalModelRequestFields.thinking",
            (Dialect::Converse, Self::Stop) => "inferenceConfig.stopSequences",
            (Dialect::Converse, Self::Format) => "outputConfig.textFormat",
            (Dialect::Converse, Self::Effort) => "outputConfig.effort",
            (Dialect::Converse, Self::ToolChoice) => "toolConfig.toolChoice",
            (_, Self::Temperature) => "temperature",
            (_, Self::TopK) => "top_k",
            (_, Self::Stop) => "stop",
            (_, Self::Seed) => "seed",
            (_, Self::FrequencyPenalty) => "frequency_penalty",
            (_, Self::PresencePenalty) => "presence_penalty",
            (_, Self::N) => "n",
            (_, Self::Logprobs) => "logprobs",
            (_, Self::TopLogprobs) => "top_logprobs",
            (_, Self::LogitBias) => "logit_bias",
            (_, Self::Format) => "response_format",
            (_, Self::Effort) => "reasoning_effort",
            (_, Self::Thinking) => "thinking",
            (_, Self::User) => "user",
            (_, Self::ToolChoice) => "tool_choice",
            (_, Self::ParallelToolCalls) => "parallel_tool_calls",
        }
    }

    const fn in_gemini(self) -> &'static str {
        match self {
            Self::Temperature => "generationConfig.temperature",
            Self::TopK => "generationConfig.topK",
            Self::Stop => "generationConfig.stopSequences",
            Self::Seed => "generationConfig.seed",
            Self::FrequencyPenalty => "generationConfig.frequencyPenalty",
            Self::PresencePenalty => "generationConfig.presencePenalty",
            Self::N => "generationConfig.candidateCount",
            Self::Logprobs => "generationConfig.responseLogprobs",
            Self::TopLogprobs => "generationConfig.logprobs",
            Self::Format => "generationConfig.responseMimeType",
            Self::Effort => "generationConfig.thinkingConfig.thinkingLevel",
            Self::Thinking => "generationConfig.thinkingConfig",
            Self::ToolChoice => "toolConfig.functionCallingConfig",
            // Nothing of Gemini's is read as one of them.
            Self::LogitBias => "logit_bias",
            Self::User => "user",
            Self::ParallelToolCalls => "parallel_tool_calls",
        }
    }
}

impl Signer {
    /// Whose it is by [`Signer::name`].
    pub(crate) fn from_name(name: &str) -> Option<Self> {
        [Self::Anthropic, Self::Gemini]
            .into_iter()
            .find(|signer| signer.name() == name)
    }

    /// OpenRouter's name of the form of thoughts (`reasoning_details[].format`).
    pub(crate) const fn name(self) -> &'static str {
        match self {
            Self::Anthropic => "anthropic-claude-v1",
            Self::Gemini => "google-gemini-v1",
        }
    }
}
