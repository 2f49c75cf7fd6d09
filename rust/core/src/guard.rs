//! What would kill or mislead an engine stops here, with an error that names the field. Pure.
//!
//! SGLang (0.5.23) dies of a token id beyond its vocabulary and of a chat sent to an embedding model,
//! and lets any client choose adapters, workers and code. What is known of a model is what its engines
//! say ([`Description`]); what is not known is not checked, but for a bound that no vocabulary reaches.
use std::sync::atomic::{AtomicU8, AtomicU64, Ordering};

use rustc_hash::FxHashMap;
use serde::Deserialize;

use crate::error::{Error, Kind};
use crate::gateway::Endpoint;
use crate::peek::{Peek, TOKEN_FIELDS};
use crate::snapshot::{Model, Snapshot};

/// More tokens than any vocabulary has: the largest in use have half of it.
const MAX_VOCABULARY: u64 = 1 << 19;

/// What an upstream says of its models.
#[derive(Clone, Debug, Default, Deserialize, PartialEq, Eq)]
#[serde(deny_unknown_fields)]
pub struct Description {
    /// By the name that the upstream has for each.
    pub models: FxHashMap<String, ModelFacts>,
}

/// What an upstream says of one model.
#[derive(Clone, Copy, Debug, Default, Deserialize, PartialEq, Eq)]
#[serde(default, deny_unknown_fields)]
pub struct ModelFacts {
    /// It makes embeddings, and nothing else; false: text, and no embeddings.
    pub embedding: Option<bool>,
    /// Tokens of its vocabulary: ids are below.
    pub vocab_size: Option<u64>,
}

/// What all upstreams said.
#[derive(Debug, Default)]
pub struct Described(FxHashMap<Box<str>, Description>);

impl Described {
    /// Takes in what one said, in place of what it said before.
    pub fn take(&mut self, upstream: &str, said: Description) {
        self.0.insert(upstream.into(), said);
    }

    /// Tells every model what is known of it.
    pub fn tell(&self, snapshot: &Snapshot) {
        for model in snapshot.models.values() {
            model.known.set(self.of(model));
        }
    }

    /// What holds for all targets of a model.
    fn of(&self, model: &Model) -> ModelFacts {
        let said = |target: &crate::snapshot::Target| {
            let upstream = self.0.get(&*target.upstream.name)?;
            upstream.models.get(&*target.model).copied()
        };
        let facts: Vec<Option<ModelFacts>> = model.targets.iter().map(said).collect();
        let all = |kind: bool| {
            let is = |fact: &Option<ModelFacts>| fact.and_then(|fact| fact.embedding) == Some(kind);
            !facts.is_empty() && facts.iter().all(is)
        };
        ModelFacts {
            embedding: if all(true) {
                Some(true)
            } else {
                all(false).then_some(false)
            },
            vocab_size: facts
                .iter()
                .flatten()
                .filter_map(|fact| fact.vocab_size)
                .min(),
        }
    }
}

/// What is known of a model, told while requests look.
#[derive(Debug, Default)]
pub struct Known {
    /// 0: not known.
    vocabulary: AtomicU64,
    /// 0: not known, 1: text, 2: embeddings.
    makes: AtomicU8,
}

impl Known {
    fn set(&self, facts: ModelFacts) {
        self.vocabulary
            .store(facts.vocab_size.unwrap_or(0), Ordering::Relaxed);
        let makes = match facts.embedding {
            None => 0,
            Some(false) => 1,
            Some(true) => 2,
        };
        self.makes.store(makes, Ordering::Relaxed);
    }

    /// What it is.
    pub fn facts(&self) -> ModelFacts {
        let some = |number: u64| (number > 0).then_some(number);
        ModelFacts {
            embedding: match self.makes.load(Ordering::Relaxed) {
                0 => None,
                makes => Some(makes == 2),
            },
            vocab_size: some(self.vocabulary.load(Ordering::Relaxed)),
        }
    }
}

/// Refuses what no engine of the model may be sent.
pub fn check(endpoint: Endpoint, body: &Peek<'_>, known: &Known) -> Result<(), Error> {
    if let Some(field) = body.control {
        return Err(refused(format!("'{field}' is not for clients to set."))
            .param(field)
            .code("unsupported_parameter"));
    }
    let facts = known.facts();
    for (ids, field) in body.token_ids.iter().zip(TOKEN_FIELDS) {
        if matches!(field, "query" | "items") && endpoint != Endpoint::Score {
            // Elsewhere they hold no token ids.
            continue;
        }
        if ids.is_wrong {
            let text = format!(
                "'{field}' holds something beside token ids, which are integers from 0 up."
            );
            return Err(refused(text).param(field).code("invalid_value"));
        }
        let vocabulary = facts.vocab_size.unwrap_or(MAX_VOCABULARY);
        if let Some(id) = ids.largest.filter(|id| *id >= vocabulary) {
            let text = match facts.vocab_size {
                Some(size) => format!(
                    "'{field}' holds the token id {id}, but the model's vocabulary has {size} tokens."
                ),
                None => format!("'{field}' holds {id}, which is no token id."),
            };
            return Err(refused(text).param(field).code("invalid_value"));
        }
    }
    let wrong = match (facts.embedding, endpoint) {
        (Some(true), endpoint) if endpoint.is_text() => "This model makes embeddings only.",
        (Some(false), Endpoint::Embeddings) => "This model makes no embeddings.",
        _ => return Ok(()),
    };
    Err(refused(wrong.to_owned())
        .param("model")
        .code("model_not_supported"))
}

fn refused(message: String) -> Error {
    Error::new(Kind::InvalidRequest, message)
}
