//! What the spool asks of a file system; tests bring one that fails.
use std::fs::{File, OpenOptions};
use std::io;
use std::path::Path;

use rustix::fs::FallocateFlags;
use rustix::io::Errno;

/// A file system.
pub trait Disk: Send + Sync {
    /// Makes a file of `bytes` zeros whose every block is there already: writing to it later cannot
    /// run out of space. Its name is on disk when this returns.
    fn allocate(&self, path: &Path, bytes: u64) -> io::Result<File>;

    /// Brings what was written to the file to the disk.
    fn sync(&self, file: &File) -> io::Result<()>;
}

/// The operating system's.
pub struct System;

impl Disk for System {
    fn allocate(&self, path: &Path, bytes: u64) -> io::Result<File> {
        let file = OpenOptions::new()
            .read(true)
            .write(true)
            .create_new(true)
            .open(path)?;
        let filled = fill(&file, bytes).and_then(|()| sync_parent(path));
        if filled.is_err() {
            // Half a file is worth nothing; that it cannot be removed is found by the next.
            let _ = std::fs::remove_file(path);
        }
        filled.map(|()| file)
    }

    fn sync(&self, file: &File) -> io::Result<()> {
        file.sync_data()
    }
}

fn fill(file: &File, bytes: u64) -> io::Result<()> {
    match rustix::fs::fallocate(file, FallocateFlags::empty(), 0, bytes) {
        Ok(()) => Ok(()),
        Err(Errno::OPNOTSUPP | Errno::NOSYS) => write_zeros(file, bytes),
        Err(error) => Err(error.into()),
    }
}

/// For file systems that cannot allocate ahead.
fn write_zeros(file: &File, bytes: u64) -> io::Result<()> {
    use std::os::unix::fs::FileExt;
    let zeros = vec![0; 64 * 1024];
    let mut at = 0;
    while at < bytes {
        let rest = usize::try_from(bytes - at).unwrap_or(usize::MAX);
        let piece = zeros.get(..rest.min(zeros.len())).unwrap_or(&zeros);
        file.write_all_at(piece, at)?;
        at += piece.len() as u64;
    }
    Ok(())
}

fn sync_parent(path: &Path) -> io::Result<()> {
    match path.parent() {
        Some(folder) => File::open(folder)?.sync_all(),
        None => Ok(()),
    }
}
