//! The ways in: each path of ours, what is spoken there, and what is asked for.
use super::Door;
use super::grpc::Method;
use crate::gateway::Endpoint;

/// A way in.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub struct Way {
    /// The path; of gRPC, the method's.
    pub path: &'static str,
    /// What is spoken.
    pub door: Door,
    /// What is asked for.
    pub endpoint: Endpoint,
}

static ALL: &[Way] = &[
    own(Endpoint::Chat),
    own(Endpoint::Completions),
    own(Endpoint::Embeddings),
    grpc(Method::ChatCompletion, Endpoint::Chat),
    grpc(Method::StreamChatCompletion, Endpoint::Chat),
    grpc(Method::Completion, Endpoint::Completions),
    grpc(Method::StreamCompletion, Endpoint::Completions),
    grpc(Method::Embed, Endpoint::Embeddings),
    grpc(Method::Rerank, Endpoint::Rerank),
    Way {
        path: "/v1/messages",
        door: Door::Messages,
        endpoint: Endpoint::Chat,
    },
    Way {
        path: "/v1/messages/count_tokens",
        door: Door::Count,
        endpoint: Endpoint::Chat,
    },
    Way {
        path: "/v1/responses",
        door: Door::Responses,
        endpoint: Endpoint::Chat,
    },
    own(Endpoint::Rerank),
    own(Endpoint::Score),
    own(Endpoint::Moderations),
    own(Endpoint::Images),
    own(Endpoint::Speech),
    // As Cohere's clients and vLLM have it.
    at("/v2/rerank", Endpoint::Rerank),
    at("/rerank", Endpoint::Rerank),
    at("/score", Endpoint::Score),
];

/// Another path to an endpoint, where the same is spoken.
const fn at(path: &'static str, endpoint: Endpoint) -> Way {
    Way {
        path,
        door: Door::OpenAi,
        endpoint,
    }
}

/// OpenAI's own way to an endpoint.
const fn own(endpoint: Endpoint) -> Way {
    Way {
        path: endpoint.path(),
        door: Door::OpenAi,
        endpoint,
    }
}

/// The way to a gRPC method.
const fn grpc(method: Method, endpoint: Endpoint) -> Way {
    Way {
        path: method.path(),
        door: Door::Grpc(method),
        endpoint,
    }
}

impl Way {
    /// All, in the order of the index by which front ends name them.
    pub fn all() -> &'static [Self] {
        ALL
    }

    /// The way at a path.
    pub fn of_path(path: &str) -> Option<&'static Self> {
        ALL.iter().find(|way| way.path == path)
    }

    /// The way at a path of HTTP: gRPC's methods are served by gRPC alone.
    pub fn of_http(path: &str) -> Option<&'static Self> {
        Self::of_path(path).filter(|way| !matches!(way.door, Door::Grpc(_)))
    }

    /// OpenAI's own way to an endpoint.
    pub fn to(endpoint: Endpoint) -> Option<&'static Self> {
        ALL.iter()
            .find(|way| way.door == Door::OpenAi && way.endpoint == endpoint)
    }
}
