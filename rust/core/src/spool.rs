//! What was admitted is written down before anything is sent, and kept until the database has it.
//!
//! A spool is a folder of one process: a lane of usage records, a lane of prompt logs, and a lock
//! that the process holds while it lives. Records go into mapped files, so that writing one is a
//! copy in memory and survives the process; a thread brings them to the disk in groups. Rows leave
//! in batches that the database takes as they are; what it has is removed. A spool whose process has
//! gone is adopted by any other of the same folder: what it had not shipped is shipped, and each
//! request that it had not ended is ended there, as of when it was last heard of.
mod adopt;
mod batch;
mod counters;
mod dead;
mod disk;
mod folder;
pub mod frame;
mod keeper;
mod lane;
pub mod row;
mod segment;

use std::fs::File;
use std::io;
use std::path::PathBuf;
use std::sync::Arc;
use std::sync::atomic::{AtomicBool, AtomicUsize, Ordering};
use std::time::Duration;

use parking_lot::Mutex;
use tokio::sync::watch;

use self::adopt::Adopted;
pub use self::batch::Batch;
use self::batch::Origin;
pub use self::counters::SpoolCounters;
use self::dead::Dead;
pub use self::disk::{Disk, System};
use self::keeper::{Bell, Keeper};
pub use self::lane::{Full, Opened, Standing};
use self::lane::{Lane, Layout};
use self::row::{Column, ENTRY, USAGE};
use crate::error::{Error, Kind};

/// When a client may come again that was refused for want of space.
const RETRY: Duration = Duration::from_secs(1);
/// How long the end of an answer waits for a disk that fails.
const DURABLE: Duration = Duration::from_secs(30);
/// A part of what usage may take is kept for prompt logs.
const LOG_SHARE: u64 = 4;
/// Above this part of its space the usage lane is given all there is: prompt logs are dropped.
const LOGS_UNTIL: f64 = 0.8;

/// What a process may lose.
#[derive(Clone, Copy, Debug, Default, PartialEq, Eq)]
pub enum Durability {
    /// Nothing when it dies; when the machine dies, what was written in the last 100 ms or so.
    #[default]
    Process,
    /// Nothing that a client has seen the end of.
    Machine,
}

/// What becomes of requests that cannot be recorded.
#[derive(Clone, Copy, Debug, Default, PartialEq, Eq)]
pub enum OnFull {
    /// They are refused.
    #[default]
    Refuse,
    /// They are served, and counted.
    ServeUnmetered,
}

/// Where a spool is, and how large it may be.
#[derive(Clone, Debug)]
pub struct Config {
    /// The folder of all spools whose rows go to one database.
    pub root: PathBuf,
    /// The machine.
    pub node: String,
    /// Bytes of one file.
    pub segment_bytes: u64,
    /// Bytes of all files with usage of this process; prompt logs may have a quarter as much more.
    pub max_bytes: u64,
    /// What may be lost.
    pub durability: Durability,
    /// What becomes of requests that cannot be recorded.
    pub on_full: OnFull,
}

/// The spool of this process.
pub struct Spool {
    id: [u8; 16],
    config: Config,
    folder: PathBuf,
    /// Held while the process lives: the system gives it back when it goes, however it goes.
    _lock: File,
    usage: Lane,
    logs: Lane,
    bell: Arc<Bell>,
    /// Usage records known to be on the disk.
    synced: watch::Sender<u64>,
    keeper: Mutex<Option<Keeper>>,
    adopted: Mutex<Vec<Adopted>>,
    adopted_waiting: AtomicUsize,
    trouble: Mutex<Option<String>>,
    /// What is recorded does not get to the disk, though it must.
    is_unsafe: AtomicBool,
    /// What happens to it.
    pub counters: SpoolCounters,
}

impl Spool {
    /// Makes this process's spool.
    pub fn create(
        config: Config,
        id: [u8; 16],
        disk: &Arc<dyn Disk>,
        counters: SpoolCounters,
    ) -> io::Result<Arc<Self>> {
        let (folder, lock) = match folder::make(&config.root, id) {
            // Another process, whose spool was the last, has just removed the root.
            Err(error) if error.kind() == io::ErrorKind::NotFound => {
                folder::make(&config.root, id)?
            }
            made => made?,
        };
        let bell = Arc::new(Bell::default());
        let lane = |part: &str, max_bytes: u64, at_once: bool| {
            let layout = Layout {
                folder: folder.join(part),
                spool: id,
                node: config.node.clone(),
                segment_bytes: config.segment_bytes,
                max_bytes,
            };
            let bell = Arc::clone(&bell);
            let wake = Box::new(move |now: bool| bell.ring(now || at_once));
            Lane::create(layout, Arc::clone(disk), wake)
        };
        let usage = lane(
            "usage",
            config.max_bytes,
            config.durability == Durability::Machine,
        );
        let logs = lane(
            "logs",
            (config.max_bytes / LOG_SHARE).max(2 * config.segment_bytes),
            false,
        );
        let spool = Arc::new(Self {
            id,
            folder,
            _lock: lock,
            usage,
            logs,
            bell,
            synced: watch::Sender::new(0),
            keeper: Mutex::default(),
            adopted: Mutex::default(),
            adopted_waiting: AtomicUsize::new(0),
            trouble: Mutex::default(),
            is_unsafe: AtomicBool::new(false),
            counters,
            config,
        });
        match Keeper::start(&spool, Arc::clone(&spool.bell)) {
            Ok(keeper) => *spool.keeper.lock() = Some(keeper),
            Err(error) => {
                folder::remove(&spool.folder);
                return Err(error);
            }
        }
        Ok(spool)
    }

    /// The spool's id.
    pub const fn id(&self) -> [u8; 16] {
        self.id
    }

    /// Records that a request begins; `row` is what [`row::put_usage`] makes of it.
    pub fn begin(&self, row: &[u8]) -> Result<Opened, Full> {
        if self.is_unsafe.load(Ordering::Relaxed) {
            // What ends could not be made as safe as was asked for.
            return Err(Full);
        }
        self.usage.begin(row)
    }

    /// Records that an upstream is tried.
    pub fn attempt(&self, opened: &Opened, upstream: &str) {
        self.usage.attempt(opened, upstream);
    }

    /// Records how a request ended. What it gives is for [`Spool::durable`].
    pub fn end(&self, opened: &Opened, row: &[u8]) -> u64 {
        self.usage.end(opened, row).unwrap_or_else(|Full| {
            self.counters.lost.inc();
            0
        })
    }

    /// What becomes of a request that could not be recorded.
    ///
    /// Errors: it is not served.
    pub fn full(&self) -> Result<(), Error> {
        if self.config.on_full == OnFull::ServeUnmetered {
            self.counters.unmetered.inc();
            return Ok(());
        }
        self.counters.refused.inc();
        let error = Error::new(
            Kind::Unavailable,
            "The gateway cannot record usage now, and serves nothing that it cannot record. Please try again later.",
        );
        Err(error.code("usage_spool_full").retry_after(RETRY))
    }

    /// What may be lost.
    pub fn durability(&self) -> Durability {
        self.config.durability
    }

    /// Records a prompt log's row. False: there is no space for it.
    pub fn log(&self, row: &[u8]) -> bool {
        let usage = self.usage.standing();
        let scarce = usage.bytes as f64 > usage.max_bytes as f64 * LOGS_UNTIL;
        !scarce && self.logs.entry(row).is_ok()
    }

    /// Waits until what was recorded is as safe as was asked for. At once with
    /// [`Durability::Process`].
    pub async fn durable(&self, recorded: u64) {
        if self.config.durability == Durability::Process {
            return;
        }
        let mut synced = self.synced.subscribe();
        let on_disk = synced.wait_for(|synced| *synced >= recorded);
        if tokio::time::timeout(DURABLE, on_disk).await.is_err() {
            // The disk has failed for long, which the log and the metrics say; a client that waited
            // for its answer would not be helped by waiting on.
            self.counters.failures.inc();
        }
    }

    /// The keeper's work. Whether it should come again soon.
    fn keep(&self) -> bool {
        let (synced, usage) = self.usage.keep();
        let machine = self.config.durability == Durability::Machine;
        // First: who waits for what is on the disk may begin the next request at once.
        self.is_unsafe
            .store(machine && usage.is_err() && synced == 0, Ordering::Relaxed);
        self.synced.send_if_modified(|known| {
            let more = synced > *known;
            *known = synced.max(*known);
            more
        });
        let (_, logs) = self.logs.keep();
        let outcome = usage.and(logs);
        if outcome.is_err() {
            self.counters.failures.inc();
        }
        let failed = outcome.is_err();
        *self.trouble.lock() = outcome.err().map(|error| error.to_string());
        failed || self.usage.is_busy() || self.logs.is_busy()
    }

    /// Up to `limit` usage rows that wait, those of spools that were taken over first; the same
    /// again until [`Spool::done`].
    pub fn batch(&self, limit: usize) -> Option<Batch> {
        self.batch_of(limit, &USAGE, &self.usage, |adopted| &adopted.usage)
    }

    /// Up to `limit` prompt logs that wait; the same again until [`Spool::done`].
    pub fn log_batch(&self, limit: usize) -> Option<Batch> {
        self.batch_of(limit, &ENTRY, &self.logs, |adopted| &adopted.logs)
    }

    fn batch_of(
        &self,
        limit: usize,
        columns: &'static [Column],
        own: &Lane,
        lane: impl Fn(&Adopted) -> &Dead,
    ) -> Option<Batch> {
        let adopted = self.adopted.lock();
        if let Some(batch) = adopted
            .iter()
            .find_map(|adopted| lane(adopted).batch(limit))
        {
            return Some(batch);
        }
        drop(adopted);
        let (pieces, passage, position) = own.batch(limit)?;
        Some(Batch {
            spool: self.id,
            node: self.config.node.clone(),
            position,
            pieces,
            columns,
            origin: Origin::Own(passage),
        })
    }

    /// The rows of a batch are in the database.
    pub fn done(&self, batch: &Batch) {
        let is_log = batch.columns.len() == ENTRY.len();
        match batch.origin {
            Origin::Own(passage) if is_log => self.logs.done(passage),
            Origin::Own(passage) => self.usage.done(passage),
            Origin::Adopted(until) => {
                let mut all = self.adopted.lock();
                for adopted in &mut *all {
                    let dead = if is_log {
                        &mut adopted.logs
                    } else {
                        &mut adopted.usage
                    };
                    if dead.spool() == batch.spool {
                        dead.done(until);
                    }
                }
                drop(all);
                self.clear_adopted();
            }
        }
    }

    /// How usage stands. What other spools had left is counted as waiting.
    pub fn standing(&self) -> Standing {
        let mut standing = self.usage.standing();
        standing.waiting += self.adopted_waiting.load(Ordering::Relaxed) as u64;
        standing
    }

    /// How long ago the request ended whose usage has waited longest; zero if none waits.
    pub fn lag(&self) -> Duration {
        let ended = self.batch(1).and_then(|batch| batch.ended_us(0));
        let now = std::time::SystemTime::now().duration_since(std::time::UNIX_EPOCH);
        let (Some(ended), Ok(now)) = (ended, now) else {
            return Duration::ZERO;
        };
        let ended = Duration::from_micros(u64::try_from(ended).unwrap_or(0));
        now.saturating_sub(ended)
    }

    /// How prompt logs stand.
    pub fn log_standing(&self) -> Standing {
        self.logs.standing()
    }

    /// Brings the gauges up to date.
    pub fn show(&self) {
        let count = |n: u64| i64::try_from(n).unwrap_or(i64::MAX);
        let standing = self.usage.standing();
        self.counters.bytes.set(count(standing.bytes));
        self.counters.max_bytes.set(count(standing.max_bytes));
        self.counters.lag.set(count(self.lag().as_secs()));
        let logs = self.logs.standing().waiting;
        self.counters.logs_waiting.set(count(logs));
    }

    /// Why the disk does not take what it should; `None` while it does.
    pub fn trouble(&self) -> Option<String> {
        self.trouble.lock().clone()
    }

    /// Ends the keeper; nothing may be recorded after. A spool with nothing in it goes, any other
    /// waits for the next process to adopt it.
    pub fn close(&self) {
        if let Some(keeper) = self.keeper.lock().take() {
            keeper.stop(&self.bell);
        }
        self.keep();
        if self.usage.is_empty() && self.logs.is_empty() {
            folder::remove(&self.folder);
            // The root goes with the last spool in it.
            let _ = std::fs::remove_dir(&self.config.root);
        }
    }
}

impl Drop for Spool {
    fn drop(&mut self) {
        // Not waited for: it may be the keeper that drops the spool.
        self.bell.stop();
    }
}
