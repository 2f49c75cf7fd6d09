//! A map of fixed size from hashes to small values, which forgets what was used longest ago.

/// Entries that a key may lie in.
const WAYS: usize = 8;

/// One entry. Key 0 is none.
#[derive(Clone, Copy, Debug, Default)]
struct Entry<V> {
    key: u64,
    used: u64,
    value: V,
}

/// A set-associative table, as a processor's cache: a key lies in one set of eight entries, and a new
/// one takes the place of the one there that was used longest ago. Memory is taken once.
#[derive(Debug)]
pub struct Table<V> {
    sets: Box<[[Entry<V>; WAYS]]>,
    clock: u64,
}

impl<V: Copy + Default> Table<V> {
    /// Room for so many entries, rounded up to a power of two.
    pub fn new(entries: usize) -> Self {
        let sets = entries.div_ceil(WAYS).next_power_of_two();
        Self {
            sets: vec![[Entry::default(); WAYS]; sets].into_boxed_slice(),
            clock: 0,
        }
    }

    /// How many entries there is room for.
    pub fn capacity(&self) -> usize {
        self.sets.len() * WAYS
    }

    /// The value of a key.
    pub fn get(&self, key: u64) -> Option<V> {
        let key = key.max(1);
        let set = self.sets.get(self.set_of(key))?;
        let entry = set.iter().find(|entry| entry.key == key)?;
        Some(entry.value)
    }

    /// The value of a key, to be changed, used now; a default one where there was none, and what gave
    /// way to that.
    pub fn entry(&mut self, key: u64) -> Option<(&mut V, Option<V>)> {
        let key = key.max(1);
        self.clock += 1;
        let clock = self.clock;
        let at = self.set_of(key);
        let set = self.sets.get_mut(at)?;
        let known = set.iter().position(|entry| entry.key == key);
        let oldest = || {
            let entries = set.iter().enumerate();
            entries.min_by_key(|(_, entry)| entry.used)
        };
        let place = known.or_else(|| oldest().map(|(place, _)| place))?;
        let entry = set.get_mut(place)?;
        let gone = (known.is_none() && entry.key != 0).then_some(entry.value);
        if known.is_none() {
            entry.value = V::default();
        }
        entry.key = key;
        entry.used = clock;
        Some((&mut entry.value, gone))
    }

    /// The upper bits: keys are hashes whose last step was a multiplication.
    fn set_of(&self, key: u64) -> usize {
        let sets = self.sets.len() as u64;
        ((u128::from(super::draw::mix(key)) * u128::from(sets)) >> 64) as usize
    }
}
