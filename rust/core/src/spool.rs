//! What was admitted is written down before anything is sent, and kept until the database has it.
//!
//! A spool is a folder of one process: a lane of usage records, a lane of prompt logs, and a lock
//! that the process holds while it lives. Records go into mapped files, so that writing one is a
//! copy in memory and survives the process; a thread brings them to the disk in groups. Rows leave
//! in batches that the database takes as they are; what it has is removed. A spool whose process has
//! gone is adopted by any other of the same folder: what it had not shipped is shipped, and each
//! request that it had not ended is ended there, as of when it was last heard of.
mod batch;
mod counters;
mod dead;
mod disk;
pub mod frame;
mod keeper;
mod lane;
pub mod row;
mod segment;

use std::ffi::OsString;
use std::fs::{DirBuilder, File};
use std::io;
use std::os::unix::fs::DirBuilderExt;
use std::path::{Path, PathBuf};
use std::sync::Arc;
use std::sync::atomic::{AtomicBool, AtomicUsize, Ordering};
use std::time::Duration;

use parking_lot::Mutex;
use tokio::sync::watch;

pub use self::batch::Batch;
use self::batch::Origin;
pub use self::counters::SpoolCounters;
use self::dead::Dead;
pub use self::disk::{Disk, System};
use self::keeper::{Bell, Keeper};
pub use self::lane::{Full, Opened, Standing};
use self::lane::{Lane, Layout};
use self::row::{Column, ENTRY, Rate, USAGE};
use crate::error::{Error, Kind};

/// When a client may come again that was refused for want of space.
const RETRY: Duration = Duration::from_secs(1);
/// How long the end of an answer waits for a disk that fails.
const DURABLE: Duration = Duration::from_secs(30);
/// A spool that has not been finished for so long never will be: its process was killed.
const MAKING: Duration = Duration::from_secs(3600);
/// Begins the name of a folder that is being removed.
const GONE: &str = ".gone-";
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

/// A spool that was taken over.
struct Adopted {
    folder: PathBuf,
    /// Held until everything is shipped.
    _lock: File,
    usage: Dead,
    logs: Dead,
    /// Something in it is damaged and could not be put aside by itself.
    stays: bool,
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
        let (folder, lock) = match make_folder(&config.root, id) {
            // Another process, whose spool was the last, has just removed the root.
            Err(error) if error.kind() == io::ErrorKind::NotFound => make_folder(&config.root, id)?,
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
                remove(&spool.folder);
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
        let is_unsafe = failed && synced == 0 && self.config.durability == Durability::Machine;
        self.is_unsafe.store(is_unsafe, Ordering::Relaxed);
        *self.trouble.lock() = outcome.err().map(|error| error.to_string());
        failed || self.usage.is_busy() || self.logs.is_busy()
    }

    /// Looks for spools whose processes have gone, and takes them over. Gives how many it took.
    pub fn adopt(&self, rate: Rate<'_>) -> io::Result<usize> {
        let mut taken = 0;
        let mut outcome = Ok(());
        for entry in std::fs::read_dir(&self.config.root)? {
            let folder = entry?.path();
            let name = folder.file_name().and_then(|name| name.to_str());
            if name.is_some_and(|name| name.starts_with(GONE)) {
                // Its process was killed while it removed it; another may do so at this moment.
                let _ = std::fs::remove_dir_all(&folder);
                continue;
            }
            let is_id =
                |name: &str| name.len() == 32 && name.bytes().all(|byte| byte.is_ascii_hexdigit());
            if name
                .and_then(|name| name.strip_prefix('.'))
                .is_some_and(is_id)
            {
                if is_older(&folder, MAKING) {
                    let _ = std::fs::remove_dir_all(&folder);
                }
                continue;
            }
            let is_spool = name.is_some_and(is_id);
            if !is_spool || folder == self.folder {
                continue;
            }
            if self
                .adopted
                .lock()
                .iter()
                .any(|other| other.folder == folder)
            {
                continue;
            }
            // One that cannot be read keeps no other from being taken over.
            match self.adopt_one(folder, rate) {
                Ok(one) => taken += usize::from(one),
                Err(error) => outcome = Err(error),
            }
        }
        self.clear_adopted();
        outcome.map(|()| taken)
    }

    /// Takes a spool over, unless its process lives.
    fn adopt_one(&self, folder: PathBuf, rate: Rate<'_>) -> io::Result<bool> {
        let Some(lock) = dead::lock(&folder)? else {
            return Ok(false);
        };
        let mut adopted = Adopted {
            usage: Dead::read(&folder.join("usage"), &USAGE, rate)?,
            logs: Dead::read(&folder.join("logs"), &ENTRY, rate)?,
            folder,
            stays: false,
            _lock: lock,
        };
        for damaged in adopted.usage.damaged.iter().chain(&adopted.logs.damaged) {
            self.counters.damaged.inc();
            adopted.stays |= self.quarantine(damaged).is_err();
        }
        self.counters.adopted.inc();
        let interrupted = adopted.usage.interrupted as u64;
        self.counters.interrupted.add(interrupted);
        self.adopted.lock().push(adopted);
        Ok(true)
    }

    /// A damaged file stays, beside the spools, where a person can look at it; what could be read of
    /// it is shipped.
    fn quarantine(&self, file: &Path) -> io::Result<()> {
        let folder = self.config.root.join("quarantine");
        std::fs::create_dir_all(&folder)?;
        let spool = file
            .ancestors()
            .nth(2)
            .and_then(Path::file_name)
            .unwrap_or_default();
        let mut name = spool.to_owned();
        name.push("-");
        name.push(file.file_name().unwrap_or_default());
        match std::fs::hard_link(file, folder.join(name)) {
            // It was found before, by a process that did not get to ship it.
            Err(error) if error.kind() == io::ErrorKind::AlreadyExists => Ok(()),
            other => other,
        }
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

    /// Removes adopted spools of which everything is shipped.
    fn clear_adopted(&self) {
        let mut all = self.adopted.lock();
        all.retain(|adopted| {
            let waits = adopted.usage.waiting() + adopted.logs.waiting() > 0;
            if !waits && adopted.stays {
                let kept = adopted.folder.with_extension("damaged");
                // Where not even that can be done, it is found again, and shipped again in vain.
                let _ = std::fs::rename(&adopted.folder, kept);
            } else if !waits {
                remove(&adopted.folder);
            }
            waits
        });
        let waiting = all.iter().map(|adopted| adopted.usage.waiting()).sum();
        self.adopted_waiting.store(waiting, Ordering::Relaxed);
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
            remove(&self.folder);
            // The root goes with the last spool in it.
            let _ = std::fs::remove_dir(&self.config.root);
        }
    }
}

/// Removes a spool's folder. It gets another name first: a process may be killed half-way, and what
/// is left then, without its lock or its segments, is no spool.
fn remove(folder: &Path) {
    let Some(name) = folder.file_name() else {
        return;
    };
    let mut gone = OsString::from(GONE);
    gone.push(name);
    let gone = folder.with_file_name(gone);
    // What cannot be removed is adopted, and found empty, by the next.
    if std::fs::rename(folder, &gone).is_ok() {
        let _ = std::fs::remove_dir_all(&gone);
    }
}

/// Whether the folder was last changed so long ago.
fn is_older(folder: &Path, age: Duration) -> bool {
    let changed = std::fs::metadata(folder).and_then(|metadata| metadata.modified());
    changed.is_ok_and(|changed| changed.elapsed().is_ok_and(|passed| passed > age))
}

/// Makes a spool's folder and takes its lock.
fn make_folder(root: &Path, id: [u8; 16]) -> io::Result<(PathBuf, File)> {
    let name = uuid::Uuid::from_bytes(id).simple().to_string();
    // Under another name until its lock is held: else it looks as if its process had gone.
    let making = root.join(format!(".{name}"));
    // What is in it is nobody else's to read.
    let mut private = DirBuilder::new();
    private.recursive(true).mode(0o700);
    private.create(making.join("usage"))?;
    private.create(making.join("logs"))?;
    File::create(making.join("lock"))?;
    let lock =
        dead::lock(&making)?.ok_or_else(|| io::Error::other("the new spool's lock is taken"))?;
    let folder = root.join(&name);
    std::fs::rename(&making, &folder)?;
    Ok((folder, lock))
}

impl Drop for Spool {
    fn drop(&mut self) {
        // Not waited for: it may be the keeper that drops the spool.
        self.bell.stop();
    }
}
