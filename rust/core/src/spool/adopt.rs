//! What processes that have gone left is taken over.
use std::fs::File;
use std::io;
use std::path::{Path, PathBuf};
use std::sync::atomic::Ordering;
use std::time::Duration;

use super::dead::{self, Dead};
use super::row::{ENTRY, Rate, USAGE};
use super::{Spool, folder};

/// A spool that has not been finished for so long never will be: its process was killed.
const MAKING: Duration = Duration::from_secs(3600);

/// A spool that was taken over.
pub(super) struct Adopted {
    pub(super) folder: PathBuf,
    /// Held until everything is shipped.
    _lock: File,
    pub(super) usage: Dead,
    pub(super) logs: Dead,
    /// Something in it is damaged and could not be put aside by itself.
    stays: bool,
}

impl Spool {
    /// Looks for spools whose processes have gone, and takes them over. Gives how many it took.
    pub fn adopt(&self, rate: Rate<'_>) -> io::Result<usize> {
        let mut taken = 0;
        let mut outcome = Ok(());
        for entry in std::fs::read_dir(&self.config.root)? {
            let folder = entry?.path();
            let name = folder.file_name().and_then(|name| name.to_str());
            if name.is_some_and(|name| name.starts_with(folder::GONE)) {
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
                if folder::is_older(&folder, MAKING) {
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

    /// Removes adopted spools of which everything is shipped.
    pub(super) fn clear_adopted(&self) {
        let mut all = self.adopted.lock();
        all.retain(|adopted| {
            let waits = adopted.usage.waiting() + adopted.logs.waiting() > 0;
            if !waits && adopted.stays {
                let kept = adopted.folder.with_extension("damaged");
                // Where not even that can be done, it is found again, and shipped again in vain.
                let _ = std::fs::rename(&adopted.folder, kept);
            } else if !waits {
                folder::remove(&adopted.folder);
            }
            waits
        });
        let waiting = all.iter().map(|adopted| adopted.usage.waiting()).sum();
        self.adopted_waiting.store(waiting, Ordering::Relaxed);
    }
}
