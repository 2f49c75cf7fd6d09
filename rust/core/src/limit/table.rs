//! A concurrent map from ids to shared values, read far more often than written.

use std::sync::Arc;

use parking_lot::RwLock;
use rustc_hash::FxHashMap;

/// A map from ids to `Arc<V>`, cut into shards that lock apart.
#[derive(Debug)]
pub struct Table<V> {
    shards: Box<[Shard<V>]>,
    /// 64 − log₂(shards): an id's shard is the top bits of its product.
    shift: u32,
}

/// On a cache line of its own: neighbours' locks would slow each other down.
#[derive(Debug)]
#[repr(align(128))]
struct Shard<V>(RwLock<FxHashMap<u64, Arc<V>>>);

impl<V> Table<V> {
    /// An empty table of at least `shards` shards: a power of two from 2 to 65,536.
    pub fn new(shards: usize) -> Self {
        let shards = shards.clamp(2, 1 << 16).next_power_of_two();
        Self {
            shards: (0..shards).map(|_| Shard(RwLock::default())).collect(),
            shift: 64 - shards.trailing_zeros(),
        }
    }

    #[inline]
    #[expect(
        clippy::indexing_slicing,
        reason = "2^(64 − shift) shards: no shifted id reaches more"
    )]
    fn shard(&self, id: u64) -> &RwLock<FxHashMap<u64, Arc<V>>> {
        // Fibonacci hashing, with a factor that is not FxHash's: a shard's ids stay spread.
        &self.shards[(id.wrapping_mul(0x9E37_79B9_7F4A_7C15) >> self.shift) as usize].0
    }

    /// The value of `id`.
    #[inline]
    pub fn get(&self, id: u64) -> Option<Arc<V>> {
        self.shard(id).read().get(&id).cloned()
    }

    /// Lends the value of `id` to `f`; cheaper than [`Self::get`] by the reference count.
    ///
    /// The shard is locked for reading meanwhile, so `f` must be short and not write to the table.
    #[inline]
    pub fn with<R>(&self, id: u64, f: impl FnOnce(&Arc<V>) -> R) -> Option<R> {
        self.shard(id).read().get(&id).map(f)
    }

    /// Sets the value of `id`; returns the one it replaced.
    pub fn insert(&self, id: u64, value: Arc<V>) -> Option<Arc<V>> {
        self.shard(id).write().insert(id, value)
    }

    /// The value of `id`, made by `make` if there is none; `make` runs once even in a race.
    pub fn get_or_insert_with(&self, id: u64, make: impl FnOnce() -> V) -> Arc<V> {
        if let Some(value) = self.get(id) {
            return value;
        }
        Arc::clone(
            self.shard(id)
                .write()
                .entry(id)
                .or_insert_with(|| Arc::new(make())),
        )
    }

    /// Replaces the value of `id`, if there is one, by what `f` makes of it; returns the new one.
    ///
    /// No other write to `id` comes in between.
    pub fn update(&self, id: u64, f: impl FnOnce(&Arc<V>) -> Arc<V>) -> Option<Arc<V>> {
        let mut shard = self.shard(id).write();
        let slot = shard.get_mut(&id)?;
        *slot = f(slot);
        Some(Arc::clone(slot))
    }

    /// Takes `id` out; returns its value.
    pub fn remove(&self, id: u64) -> Option<Arc<V>> {
        self.shard(id).write().remove(&id)
    }

    /// How many ids there are, counted shard by shard.
    pub fn len(&self) -> usize {
        self.shards.iter().map(|shard| shard.0.read().len()).sum()
    }

    /// Whether there is no id.
    pub fn is_empty(&self) -> bool {
        self.len() == 0
    }

    /// Keeps what `keep` approves of; shards are locked one after another.
    pub fn retain(&self, mut keep: impl FnMut(u64, &Arc<V>) -> bool) {
        for shard in &self.shards {
            shard.0.write().retain(|&id, value| keep(id, value));
        }
    }

    /// Shows every value to `f`, which must not write to the table.
    pub fn for_each(&self, mut f: impl FnMut(u64, &Arc<V>)) {
        for shard in &self.shards {
            for (&id, value) in shard.0.read().iter() {
                f(id, value);
            }
        }
    }
}

impl<V> Default for Table<V> {
    /// 256 shards: a few per core on any machine.
    fn default() -> Self {
        Self::new(256)
    }
}
