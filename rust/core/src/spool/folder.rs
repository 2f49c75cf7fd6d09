//! A spool's folder and its lock.
use std::ffi::OsString;
use std::fs::{DirBuilder, File};
use std::io;
use std::os::unix::fs::DirBuilderExt;
use std::path::{Path, PathBuf};
use std::time::Duration;

use super::dead;

/// Begins the name of a folder that is being removed.
pub(super) const GONE: &str = ".gone-";

/// Makes a spool's folder and takes its lock.
pub(super) fn make(root: &Path, id: [u8; 16]) -> io::Result<(PathBuf, File)> {
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

/// Removes a spool's folder. It gets another name first: a process may be killed half-way, and what
/// is left then, without its lock or its segments, is no spool.
pub(super) fn remove(folder: &Path) {
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
pub(super) fn is_older(folder: &Path, age: Duration) -> bool {
    let changed = std::fs::metadata(folder).and_then(|metadata| metadata.modified());
    changed.is_ok_and(|changed| changed.elapsed().is_ok_and(|passed| passed > age))
}
