//! A set of targets by index.

/// A set of indices. The first 256 need no memory of their own.
#[derive(Clone, Debug, Default)]
pub struct Set {
    first: [u64; 4],
    more: Vec<u64>,
}

impl Set {
    /// Whether `at` is in it.
    #[inline]
    pub fn has(&self, at: usize) -> bool {
        let (word, bit) = (at / 64, at % 64);
        let word = match self.first.get(word) {
            Some(word) => *word,
            None => self.more.get(word - 4).copied().unwrap_or(0),
        };
        word >> bit & 1 == 1
    }

    /// Puts `at` in.
    pub fn add(&mut self, at: usize) {
        let (word, bit) = (at / 64, at % 64);
        if word >= 4 && self.more.len() <= word - 4 {
            self.more.resize(word - 3, 0);
        }
        let place = match self.first.get_mut(word) {
            Some(place) => Some(place),
            None => self.more.get_mut(word.saturating_sub(4)),
        };
        if let Some(place) = place {
            *place |= 1 << bit;
        }
    }

    /// Takes all out.
    pub fn clear(&mut self) {
        self.first = [0; 4];
        self.more.clear();
    }
}
