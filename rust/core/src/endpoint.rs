//! The APIs of inference. Pure.

/// Which inference API.
#[derive(Clone, Copy, Debug, PartialEq, Eq, Hash)]
pub enum Endpoint {
    /// `/v1/chat/completions`
    Chat,
    /// `/v1/completions`
    Completions,
    /// `/v1/embeddings`
    Embeddings,
    /// `/v1/rerank`
    Rerank,
    /// `/v1/score`
    Score,
    /// `/v1/moderations`
    Moderations,
    /// `/v1/images/generations`
    Images,
    /// `/v1/images/edits`
    ImageEdits,
    /// `/v1/images/variations`
    ImageVariations,
    /// `/v1/audio/speech`
    Speech,
    /// `/v1/audio/transcriptions`
    Transcriptions,
    /// `/v1/audio/translations`
    Translations,
    /// `/v1/files`, and what lies below it.
    Files,
    /// `/v1/batches`, and what lies below it.
    Batches,
    /// `/v1/realtime`: sessions.
    Realtime,
}

impl Endpoint {
    /// All, in the order of their index.
    pub const ALL: [Self; 15] = [
        Self::Chat,
        Self::Completions,
        Self::Embeddings,
        Self::Rerank,
        Self::Score,
        Self::Moderations,
        Self::Images,
        Self::ImageEdits,
        Self::ImageVariations,
        Self::Speech,
        Self::Transcriptions,
        Self::Translations,
        Self::Files,
        Self::Batches,
        Self::Realtime,
    ];

    /// Those that most engines have: whether one has any other is asked of each request.
    pub const COMMON: [Self; 3] = [Self::Chat, Self::Completions, Self::Embeddings];

    /// The path, ours and the engine's.
    pub const fn path(self) -> &'static str {
        match self {
            Self::Chat => "/v1/chat/completions",
            Self::Completions => "/v1/completions",
            Self::Embeddings => "/v1/embeddings",
            Self::Rerank => "/v1/rerank",
            Self::Score => "/v1/score",
            Self::Moderations => "/v1/moderations",
            Self::Images => "/v1/images/generations",
            Self::ImageEdits => "/v1/images/edits",
            Self::ImageVariations => "/v1/images/variations",
            Self::Speech => "/v1/audio/speech",
            Self::Transcriptions => "/v1/audio/transcriptions",
            Self::Translations => "/v1/audio/translations",
            Self::Files => "/v1/files",
            Self::Batches => "/v1/batches",
            Self::Realtime => "/v1/realtime",
        }
    }

    /// The name in metrics and usage.
    pub const fn name(self) -> &'static str {
        match self {
            Self::Chat => "chat",
            Self::Completions => "completions",
            Self::Embeddings => "embeddings",
            Self::Rerank => "rerank",
            Self::Score => "score",
            Self::Moderations => "moderations",
            Self::Images => "images",
            Self::ImageEdits => "image_edits",
            Self::ImageVariations => "image_variations",
            Self::Speech => "speech",
            Self::Transcriptions => "transcriptions",
            Self::Translations => "translations",
            Self::Files => "files",
            Self::Batches => "batches",
            Self::Realtime => "realtime",
        }
    }

    /// Whether an answer is text that a model makes token by token: it may be a stream of OpenAI's
    /// chunks, has choices, and other dialects and continuations are of it alone.
    pub const fn is_text(self) -> bool {
        matches!(self, Self::Chat | Self::Completions)
    }

    /// Whether an answer goes by, and is not read whole: its size has no bound that memory could have.
    pub const fn passes(self, stream: bool) -> bool {
        match self {
            Self::Chat
            | Self::Completions
            | Self::Embeddings
            | Self::Rerank
            | Self::Score
            | Self::Moderations
            | Self::Realtime => false,
            Self::Images => stream,
            Self::ImageEdits
            | Self::ImageVariations
            | Self::Speech
            | Self::Transcriptions
            | Self::Translations
            | Self::Files
            | Self::Batches => true,
        }
    }

    /// Whether an answer has output tokens. What a speech is made of is no token of the gateway's.
    pub const fn has_output(self) -> bool {
        matches!(
            self,
            Self::Chat
                | Self::Completions
                | Self::Images
                | Self::ImageEdits
                | Self::ImageVariations
                | Self::Transcriptions
                | Self::Translations
        )
    }
}
