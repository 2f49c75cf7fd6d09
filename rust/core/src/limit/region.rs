//! The memory that limits live in: rows of atomic words, private to a process or shared by the
//! workers of one machine.
//!
//! A row belongs to one *subject* (an account, a key, a model, an upstream), found by its id in an
//! index of open addressing. Rows are never freed: a worker may be killed at any instruction, and
//! what it leaves behind is at worst an unused row. Every access, in every process, is one atomic
//! operation on one word, so there is no lock that a dead worker could hold.
//!
//! What a request takes and gives back (permits, reserved money), and how many wait, is counted in
//! one word per worker.
//! When a worker is dead its words are set to zero ([`Region::reclaim`]), and all of it is back.

use std::fs::File;
use std::io;
use std::os::fd::OwnedFd;
use std::sync::atomic::{AtomicU64, Ordering};
use std::sync::{Arc, OnceLock};

use memmap2::{MmapOptions, MmapRaw};
use rustix::fs::{MemfdFlags, SealFlags};

/// "forebay" and the layout's version.
const MAGIC: u64 = u64::from_be_bytes(*b"forebay2");
const WORD: usize = size_of::<u64>();

// Words of the header.
const AT_MAGIC: usize = 0;
const AT_WORKERS: usize = 1;
const AT_ROWS: usize = 2;
const AT_NEXT: usize = 3;
const HEADER: usize = 64;

// Words of a row.
const ID: usize = 0;
const PLAN: usize = 1;
const CELLS: usize = 2;
const WORKERS: usize = CELLS + Cell::COUNT;
/// Per worker: permits, reserved money, requests that wait.
const PER_WORKER: usize = 3;

/// Most workers of one region.
pub const MAX_WORKERS: usize = 256;

/// A cell of a row that all workers share.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub(super) enum Cell {
    /// Theoretical arrival time of requests per second.
    PerSecond,
    /// Theoretical arrival time of requests per minute.
    PerMinute,
    /// Theoretical arrival time of tokens per minute.
    Tokens,
}

impl Cell {
    const COUNT: usize = 3;
}

enum Backing {
    Heap(Box<[AtomicU64]>),
    Map(MmapRaw),
}

/// Rows of atomic words.
pub struct Region {
    backing: Backing,
    len: usize,
    rows: usize,
    workers: usize,
    worker: usize,
    /// Where rows go when there are no more: private, so limits of those subjects count per worker.
    overflow: OnceLock<Arc<Region>>,
}

impl std::fmt::Debug for Region {
    fn fmt(&self, f: &mut std::fmt::Formatter<'_>) -> std::fmt::Result {
        write!(
            f,
            "Region({} of {} rows, worker {} of {})",
            self.used(),
            self.rows,
            self.worker,
            self.workers
        )
    }
}

/// Where everything of a region lies, in words.
struct Layout {
    index: usize,
    width: usize,
    len: usize,
}

impl Layout {
    fn of(rows: usize, workers: usize) -> Self {
        // Half full at most; whole cache lines.
        let index = (2 * rows).next_power_of_two();
        let width = (WORKERS + PER_WORKER * workers).next_multiple_of(8);
        Self {
            index,
            width,
            len: HEADER + index + rows * width,
        }
    }
}

/// The id of a subject: equal in every process.
pub fn subject_id(subject: &str) -> u64 {
    use sha2::{Digest, Sha256};
    let digest = Sha256::digest(subject.as_bytes());
    let head = digest.first_chunk::<8>().copied().unwrap_or([1; 8]);
    u64::from_le_bytes(head).max(1)
}

impl Region {
    /// A region of this process alone. Its pages are taken when rows are.
    ///
    /// # Errors
    /// The system's, when it has no memory to map.
    pub fn private(rows: usize) -> io::Result<Self> {
        let len = Layout::of(rows, 1).len;
        let map = MmapOptions::new().len(len * WORD).map_anon()?;
        let region = Self::over(Backing::Map(MmapRaw::from(map)), len, rows, 1, 0);
        region.set_up();
        Ok(region)
    }

    /// A region of few rows on the heap.
    pub fn small(rows: usize, workers: usize, worker: usize) -> Self {
        let workers = workers.clamp(1, MAX_WORKERS);
        let len = Layout::of(rows, workers).len;
        let words = (0..len).map(|_| AtomicU64::new(0)).collect();
        let region = Self::over(
            Backing::Heap(words),
            len,
            rows,
            workers,
            worker.min(workers - 1),
        );
        region.set_up();
        region
    }

    /// A region for the workers of one machine, each of which attaches to the returned descriptor.
    /// It is inherited by child processes.
    ///
    /// # Errors
    /// [`io::ErrorKind::InvalidInput`] for no workers, too many, or no rows; else the system's.
    pub fn shared(workers: usize, rows: usize) -> io::Result<(OwnedFd, Self)> {
        if !(1..=MAX_WORKERS).contains(&workers) || !(1..=1 << 31).contains(&rows) {
            return Err(io::Error::new(
                io::ErrorKind::InvalidInput,
                format!("a limit table has 1 to {MAX_WORKERS} workers and 1 to 2^31 rows"),
            ));
        }
        let len = Layout::of(rows, workers).len;
        let fd = rustix::fs::memfd_create("forebay-limits", MemfdFlags::ALLOW_SEALING)?;
        rustix::fs::ftruncate(&fd, (len * WORD) as u64)?;
        // A region that shrank under a worker would end it.
        rustix::fs::fcntl_add_seals(&fd, SealFlags::SHRINK | SealFlags::GROW | SealFlags::SEAL)?;
        let file = File::from(fd);
        let map = MmapRaw::map_raw(&file)?;
        let region = Self::over(Backing::Map(map), len, rows, workers, 0);
        region.set_up();
        Ok((file.into(), region))
    }

    /// Attaches to a region that [`Region::shared`] made, as its `worker`.
    ///
    /// # Errors
    /// [`io::ErrorKind::InvalidData`] if the descriptor holds no such region;
    /// [`io::ErrorKind::InvalidInput`] if it has no such worker.
    pub fn attach(fd: OwnedFd, worker: usize) -> io::Result<Self> {
        let bad = || io::Error::new(io::ErrorKind::InvalidData, "this is no limit table");
        let file = File::from(fd);
        let size = usize::try_from(file.metadata()?.len()).map_err(|_| bad())?;
        let seals = rustix::fs::fcntl_get_seals(&file)?;
        if size < HEADER * WORD || !seals.contains(SealFlags::SHRINK) {
            return Err(bad());
        }
        let map = MmapRaw::map_raw(&file)?;
        let mut region = Self::over(Backing::Map(map), size / WORD, 0, 1, 0);
        let header = |at| region.word(at).load(Ordering::Acquire) as usize;
        let (workers, rows) = (header(AT_WORKERS), header(AT_ROWS));
        if region.word(AT_MAGIC).load(Ordering::Acquire) != MAGIC
            || !(1..=MAX_WORKERS).contains(&workers)
            || !(1..=1 << 31).contains(&rows)
            || Layout::of(rows, workers).len != region.len
        {
            return Err(bad());
        }
        if worker >= workers {
            return Err(io::Error::new(
                io::ErrorKind::InvalidInput,
                format!("the limit table has {workers} workers, none of which is number {worker}"),
            ));
        }
        (region.rows, region.workers, region.worker) = (rows, workers, worker);
        Ok(region)
    }

    fn over(backing: Backing, len: usize, rows: usize, workers: usize, worker: usize) -> Self {
        Self {
            backing,
            len,
            rows,
            workers,
            worker,
            overflow: OnceLock::new(),
        }
    }

    fn set_up(&self) {
        let (workers, rows) = (self.workers as u64, self.rows as u64);
        self.word(AT_WORKERS).store(workers, Ordering::Relaxed);
        self.word(AT_ROWS).store(rows, Ordering::Relaxed);
        self.word(AT_MAGIC).store(MAGIC, Ordering::Release);
    }

    #[inline]
    fn words(&self) -> &[AtomicU64] {
        match &self.backing {
            Backing::Heap(words) => words,
            #[expect(clippy::cast_ptr_alignment, reason = "a mapping is page-aligned")]
            // SAFETY: the mapping is page-aligned, at least `len` words long, and stays until
            // `self` is dropped; its file cannot shrink (sealed; anonymous memory has none). It is
            // only ever accessed through atomics, here and in every process that shares it.
            Backing::Map(map) => unsafe {
                std::slice::from_raw_parts(map.as_ptr().cast::<AtomicU64>(), self.len)
            },
        }
    }

    #[inline]
    #[expect(
        clippy::indexing_slicing,
        reason = "all offsets come from the layout, which `len` was checked against"
    )]
    fn word(&self, at: usize) -> &AtomicU64 {
        &self.words()[at]
    }

    /// Workers that share the region.
    pub fn workers(&self) -> usize {
        self.workers
    }

    /// Rows handed out.
    pub fn used(&self) -> usize {
        (self.word(AT_NEXT).load(Ordering::Relaxed) as usize).min(self.rows)
    }

    /// Rows that did not fit: their subjects' limits count in this process alone.
    pub fn overflowed(&self) -> usize {
        self.overflow
            .get()
            .map_or(0, |more| more.used() + more.overflowed())
    }

    /// The word offset of the row of `id`, made if there is none; `None` when all are taken.
    fn find(&self, id: u64) -> Option<usize> {
        let Layout { index, width, .. } = Layout::of(self.rows, self.workers);
        let row_at = |row: u64| HEADER + index + row as usize * width;
        let mut mine = None;
        let mut slot = id as usize & (index - 1);
        loop {
            let entry = self.word(HEADER + slot);
            let mut seen = entry.load(Ordering::Acquire);
            if seen == 0 {
                let row = if let Some(row) = mine {
                    row
                } else {
                    let row = self.word(AT_NEXT).fetch_add(1, Ordering::Relaxed);
                    if row >= self.rows as u64 {
                        self.word(AT_NEXT).fetch_sub(1, Ordering::Relaxed);
                        return None;
                    }
                    self.word(row_at(row) + ID).store(id, Ordering::Relaxed);
                    *mine.insert(row)
                };
                match entry.compare_exchange(0, row + 1, Ordering::AcqRel, Ordering::Acquire) {
                    Ok(_) => return Some(row_at(row)),
                    // Another row came into this place, perhaps of the same id: then ours is left
                    // over, as its id leads nowhere.
                    Err(now) => seen = now,
                }
            }
            let at = row_at(seen - 1);
            if self.word(at + ID).load(Ordering::Relaxed) == id {
                return Some(at);
            }
            slot = (slot + 1) & (index - 1);
        }
    }

    /// Gives back what a worker held: its permits, the money that it had reserved, its places in
    /// queues.
    ///
    /// Only for a worker that is dead: a living one would then give back what it no longer has.
    pub fn reclaim(&self, worker: usize) {
        let Layout { index, width, .. } = Layout::of(self.rows, self.workers);
        if worker >= self.workers {
            return;
        }
        for row in 0..self.used() {
            let at = HEADER + index + row * width + WORKERS + PER_WORKER * worker;
            for word in at..at + PER_WORKER {
                if self.word(word).load(Ordering::Relaxed) != 0 {
                    self.word(word).store(0, Ordering::SeqCst);
                }
            }
        }
    }
}

/// Where the rows of one subject's limits lie: in one region, and one of them is the subject's own.
#[derive(Clone, Debug)]
pub(super) struct Rows {
    region: Arc<Region>,
    /// Permits and reserved money. Offset 0 is the header: no row.
    own: usize,
    /// Arrival times, which are in units of their limits' quotas.
    rates: usize,
    /// What was spent in periods of the budget's kind.
    spend: usize,
}

impl Rows {
    /// No rows yet.
    pub(super) fn none(region: &Arc<Region>) -> Self {
        Self {
            region: Arc::clone(region),
            own: 0,
            rates: 0,
            spend: 0,
        }
    }

    /// The rows of a subject for limits that `plan` tells from others (not zero), with spend in
    /// periods of a kind. When the region is full they are in this process alone.
    ///
    /// The first plan that comes has its arrival times in the subject's own row. Each kind of period
    /// has a row to itself: workers that take a change in at different times each count their own.
    pub(super) fn of(region: &Arc<Region>, id: u64, plan: u64, kind: Option<u64>) -> Self {
        if let Some(rows) = Self::within(region, id, plan, kind) {
            return rows;
        }
        let more = region.overflow.get_or_init(|| {
            let rows = region.rows.max(1024);
            Arc::new(Region::private(rows).unwrap_or_else(|_| Region::small(1024, 1, 0)))
        });
        Self::of(more, id, plan, kind)
    }

    fn within(region: &Arc<Region>, id: u64, plan: u64, kind: Option<u64>) -> Option<Self> {
        let own = region.find(id)?;
        let first = region.word(own + PLAN);
        let rates = match first.compare_exchange(0, plan, Ordering::Relaxed, Ordering::Relaxed) {
            Ok(_) => own,
            Err(now) if now == plan => own,
            Err(_) => region.find((id ^ plan.rotate_left(32)).max(1))?,
        };
        let spend = match kind {
            None => 0,
            Some(kind) => {
                let mix = kind.wrapping_mul(0x9E37_79B9_7F4A_7C15);
                region.find((id ^ mix).max(1))?
            }
        };
        Some(Self {
            region: Arc::clone(region),
            own,
            rates,
            spend,
        })
    }

    /// The region.
    pub(super) fn region(&self) -> &Arc<Region> {
        &self.region
    }

    /// Whether there are none.
    #[inline]
    pub(super) fn is_none(&self) -> bool {
        self.own == 0
    }

    /// The state of a rate.
    #[inline]
    pub(super) fn cell(&self, cell: Cell) -> &AtomicU64 {
        self.region.word(self.rates + CELLS + cell as usize)
    }

    /// What was spent; see [`super::budget`].
    #[inline]
    pub(super) fn spent(&self) -> Option<&AtomicU64> {
        (self.spend != 0).then(|| self.region.word(self.spend + CELLS))
    }

    /// What workers hold: permits.
    #[inline]
    pub(super) fn permits(&self) -> Held<'_> {
        self.held(0)
    }

    /// What workers hold: reserved money.
    #[inline]
    pub(super) fn reserved(&self) -> Held<'_> {
        self.held(1)
    }

    /// How many requests wait at each worker.
    pub(super) fn waiting(&self) -> Held<'_> {
        self.held(2)
    }

    #[inline]
    fn held(&self, offset: usize) -> Held<'_> {
        Held {
            region: &self.region,
            first: self.own + WORKERS + offset,
        }
    }

    /// Whether other workers share the rows.
    pub(super) fn is_shared(&self) -> bool {
        self.region.workers > 1
    }

    /// How many workers hold permits or have requests that wait, if another one has such.
    pub(super) fn contenders(&self) -> Option<u64> {
        let (permits, waiting) = (self.permits(), self.waiting());
        if waiting.others() == 0 {
            return None;
        }
        let counts = |worker: &usize| {
            permits.word(*worker).load(Ordering::Relaxed) > 0
                || waiting.word(*worker).load(Ordering::Relaxed) > 0
        };
        Some((0..self.region.workers).filter(counts).count() as u64)
    }
}

/// A quantity that is counted in one word per worker.
///
/// Taking is: add to one's own word, then look at all of them, and step back if it is too much.
/// Operations are sequentially consistent, so of two that take the last at once at least one sees
/// the other: never is more held than allowed.
#[derive(Clone, Copy)]
pub(super) struct Held<'a> {
    region: &'a Region,
    /// The word of worker 0.
    first: usize,
}

impl<'a> Held<'a> {
    #[inline]
    fn word(&self, worker: usize) -> &'a AtomicU64 {
        self.region.word(self.first + PER_WORKER * worker)
    }

    #[inline]
    fn own(&self) -> &'a AtomicU64 {
        self.word(self.region.worker)
    }

    /// Held by all workers.
    #[inline]
    pub(super) fn sum(self) -> u64 {
        (0..self.region.workers)
            .map(|worker| self.word(worker).load(Ordering::SeqCst))
            .fold(0, u64::saturating_add)
    }

    #[inline]
    fn others(&self) -> u64 {
        (0..self.region.workers)
            .filter(|worker| *worker != self.region.worker)
            .map(|worker| self.word(worker).load(Ordering::SeqCst))
            .fold(0, u64::saturating_add)
    }

    /// Takes `n` if, with it, no more than `max()` are held.
    #[inline]
    pub(super) fn take(self, n: u64, max: impl Fn() -> u64) -> bool {
        // Two workers that meet at the limit both step back; soon one of them comes alone.
        const TRIES: u32 = 64;
        for _ in 0..TRIES {
            let own = self.own().load(Ordering::SeqCst);
            let more = own.saturating_add(n);
            if more.saturating_add(self.others()) > max() {
                return false;
            }
            if self
                .own()
                .compare_exchange(own, more, Ordering::SeqCst, Ordering::SeqCst)
                .is_err()
            {
                continue;
            }
            if self.region.workers == 1 {
                return true;
            }
            if self.sum() <= max() {
                return true;
            }
            self.give(n);
            std::hint::spin_loop();
        }
        false
    }

    /// Held by this worker.
    pub(super) fn mine(self) -> u64 {
        self.own().load(Ordering::Relaxed)
    }

    /// Sets what this worker holds.
    pub(super) fn set(self, n: u64) {
        self.own().store(n, Ordering::Relaxed);
    }

    /// Gives `n` back; what is not held stays so.
    #[inline]
    pub(super) fn give(self, n: u64) {
        let mut held = self.own().load(Ordering::Relaxed);
        while held > 0 {
            let left = held.saturating_sub(n);
            match self
                .own()
                .compare_exchange_weak(held, left, Ordering::SeqCst, Ordering::Relaxed)
            {
                Ok(_) => return,
                Err(seen) => held = seen,
            }
        }
    }
}
