//! The beginning of a prompt as a chain of hashes.
use std::hash::Hasher;

use rustc_hash::FxHasher;

/// Most blocks of a prompt.
pub const BLOCKS: usize = 32;

/// How long a block is, bytes: short at first, as system prompts differ early and are short, and long
/// later. What follows the last one tells no more: 24 KiB are enough to know a conversation.
const fn length(block: usize) -> usize {
    match block {
        0..2 => 128,
        2..17 => 256,
        17..25 => 512,
        _ => 2304,
    }
}

/// A prompt's beginning: for each block that is whole, a hash of all up to its end. Two prompts share a
/// beginning as far as their hashes are equal.
///
/// What is hashed are the bytes of `messages` (or `prompt`) as they stand in the request: a
/// conversation that grows keeps them, and chat templates put them in their order.
#[derive(Clone, Copy, Debug)]
pub struct Prefix {
    hashes: [u64; BLOCKS],
    count: usize,
}

impl Default for Prefix {
    fn default() -> Self {
        Self {
            hashes: [0; BLOCKS],
            count: 0,
        }
    }
}

impl Prefix {
    /// Of a JSON value: an array or a string. Its last byte, which closes it, is left out.
    pub fn of(value: &[u8]) -> Self {
        let mut prefix = Self::default();
        let text = value.split_last().map_or(value, |(_, rest)| rest);
        let (mut rest, mut before) = (text, 0);
        for (number, hash) in prefix.hashes.iter_mut().enumerate() {
            let Some((block, after)) = rest.split_at_checked(length(number)) else {
                break;
            };
            let mut hasher = FxHasher::default();
            hasher.write_u64(before);
            hasher.write(block);
            before = super::draw::mix(hasher.finish());
            *hash = before;
            rest = after;
            prefix.count += 1;
        }
        prefix
    }

    /// The hashes, the longest beginning last.
    pub fn hashes(&self) -> &[u64] {
        self.hashes.get(..self.count).unwrap_or_default()
    }
}
