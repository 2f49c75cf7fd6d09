//! What routing has to know of a request.
use std::hash::Hasher;
use std::sync::Arc;

use rustc_hash::FxHasher;

use super::Prefix;
use crate::gateway::Endpoint;
use crate::price::PriceBook;
use crate::queue;
use crate::snapshot::StickyBy;
use crate::usage::Usage;

/// What routing has to know of a request.
#[derive(Clone, Debug)]
pub struct Ask {
    /// How it stands in a queue.
    pub queue: queue::Ask,
    /// Which API.
    pub endpoint: Endpoint,
    /// The context that it needs, tokens: what its prompt is estimated to have, and the output that it
    /// asks for at most.
    pub context_tokens: u64,
    /// A hash of its session, where the model keeps sessions together.
    pub session: Option<u64>,
    /// The prompt's beginning, where the model's policy looks at it.
    pub prefix: Prefix,
    /// What it costs where, if the model has a target that must not cost too much.
    pub pricing: Option<Pricing>,
    /// Random, of its own.
    pub seed: u64,
}

/// Tells what a request may cost at a target.
#[derive(Clone, Debug)]
pub struct Pricing {
    /// The prices.
    pub book: Arc<PriceBook>,
    /// Whose request it is.
    pub account: Arc<str>,
    /// When it was admitted, unix microseconds.
    pub admitted_us: i64,
    /// What it may use at most.
    pub usage: Usage,
}

impl Pricing {
    /// What the request may cost at an upstream, nano-USD; time not counted. None without a price.
    pub fn nano(&self, model: &str, upstream: &str) -> Option<u64> {
        let rates = self.book.rates(model, &self.account);
        let price = rates.at(upstream, self.admitted_us)?;
        Some(price.nano(&self.usage, 0))
    }
}

/// A request's session: what it is told apart by, as far as the request names it, within its key.
pub fn session(by: StickyBy, key: &str, header: Option<&[u8]>, user: Option<&str>) -> u64 {
    let user = user.map(str::as_bytes);
    let named = match by {
        StickyBy::Session => header
            .map(|header| (1, header))
            .or(user.map(|user| (2, user))),
        StickyBy::User => user.map(|user| (2, user)),
        StickyBy::Key => None,
    };
    let mut hasher = FxHasher::default();
    hasher.write(key.as_bytes());
    let (tag, name) = named.unwrap_or((0, b""));
    hasher.write_u8(tag);
    hasher.write(name);
    super::draw::mix(hasher.finish())
}
