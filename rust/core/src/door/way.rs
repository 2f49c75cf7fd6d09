//! The ways in: each path of ours, what is spoken there, and what is asked for.
use super::Door;
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

static ALL: [Way; 11] = [
    own(Endpoint::Chat),
    own(Endpoint::Completions),
    own(Endpoint::Embeddings),
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

impl Way {
    /// All, in the order of the index by which front ends name them.
    pub fn all() -> &'static [Self] {
        &ALL
    }

    /// The way at a path.
    pub fn of_path(path: &str) -> Option<&'static Self> {
        ALL.iter().find(|way| way.path == path)
    }

    /// OpenAI's own way to an endpoint.
    pub fn to(endpoint: Endpoint) -> Option<&'static Self> {
        ALL.iter()
            .find(|way| way.door == Door::OpenAi && way.endpoint == endpoint)
    }
}
