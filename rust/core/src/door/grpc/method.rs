//! The methods of `InferenceService` that an engine answers.
use super::table::{
    CHAT_COMPLETION_CHUNK, CHAT_COMPLETION_REQUEST, CHAT_COMPLETION_RESPONSE, COMPLETION_CHUNK,
    COMPLETION_REQUEST, COMPLETION_RESPONSE, EMBED_REQUEST, EMBED_RESPONSE, Message,
    RERANK_REQUEST, RERANK_RESPONSE,
};

/// A method, by its name in `forebay.v1.InferenceService`.
#[derive(Clone, Copy, Debug, PartialEq, Eq, Hash)]
pub enum Method {
    /// A conversation's answer in one piece.
    ChatCompletion,
    /// A conversation's answer as a stream.
    StreamChatCompletion,
    /// Texts continued in one piece.
    Completion,
    /// Texts continued as a stream.
    StreamCompletion,
    /// Vectors of texts.
    Embed,
    /// Documents in order.
    Rerank,
}

impl Method {
    /// All of them.
    pub const ALL: [Self; 6] = [
        Self::ChatCompletion,
        Self::StreamChatCompletion,
        Self::Completion,
        Self::StreamCompletion,
        Self::Embed,
        Self::Rerank,
    ];

    /// Its path in gRPC: `/forebay.v1.InferenceService/ChatCompletion`.
    pub const fn path(self) -> &'static str {
        match self {
            Self::ChatCompletion => "/forebay.v1.InferenceService/ChatCompletion",
            Self::StreamChatCompletion => "/forebay.v1.InferenceService/StreamChatCompletion",
            Self::Completion => "/forebay.v1.InferenceService/Completion",
            Self::StreamCompletion => "/forebay.v1.InferenceService/StreamCompletion",
            Self::Embed => "/forebay.v1.InferenceService/Embed",
            Self::Rerank => "/forebay.v1.InferenceService/Rerank",
        }
    }

    /// The method of that path.
    pub fn of_path(path: &str) -> Option<Self> {
        Self::ALL.into_iter().find(|method| method.path() == path)
    }

    /// The path of the same in HTTP.
    pub(super) const fn http_path(self) -> &'static str {
        match self {
            Self::ChatCompletion | Self::StreamChatCompletion => "/v1/chat/completions",
            Self::Completion | Self::StreamCompletion => "/v1/completions",
            Self::Embed => "/v1/embeddings",
            Self::Rerank => "/v1/rerank",
        }
    }

    /// Whether the answer comes as a stream.
    pub const fn streams(self) -> bool {
        matches!(self, Self::StreamChatCompletion | Self::StreamCompletion)
    }

    /// The message that it takes.
    pub(super) const fn request(self) -> &'static Message {
        match self {
            Self::ChatCompletion | Self::StreamChatCompletion => &CHAT_COMPLETION_REQUEST,
            Self::Completion | Self::StreamCompletion => &COMPLETION_REQUEST,
            Self::Embed => &EMBED_REQUEST,
            Self::Rerank => &RERANK_REQUEST,
        }
    }

    /// The message that it answers with, or each message of its stream.
    pub(super) const fn answer(self) -> &'static Message {
        match self {
            Self::ChatCompletion => &CHAT_COMPLETION_RESPONSE,
            Self::StreamChatCompletion => &CHAT_COMPLETION_CHUNK,
            Self::Completion => &COMPLETION_RESPONSE,
            Self::StreamCompletion => &COMPLETION_CHUNK,
            Self::Embed => &EMBED_RESPONSE,
            Self::Rerank => &RERANK_RESPONSE,
        }
    }
}
