//! One file of records, mapped into memory: a record is written by copying it there, which costs no
//! system call and survives the process.
//!
//! ```text
//! magic 8 | version u32 | crc32c u32 | spool 16 | number u64 | ends before u64 | node len u8 | node
//! ```
//! then records from [`START`] on. A segment without a header was made ahead and never used.
use std::fs::{File, OpenOptions};
use std::io;
use std::path::{Path, PathBuf};
use std::sync::atomic::{AtomicBool, AtomicU64, AtomicUsize, Ordering};

use memmap2::{MmapOptions, MmapRaw, UncheckedAdvice};

use super::disk::Disk;
use super::frame::{self, Damaged, Frame, Kind};

const MAGIC: [u8; 8] = *b"FBSPOOL\0";
/// The rows' columns are part of it: the usage rows of version 1 lack the last one.
pub(super) const VERSION: u32 = 2;
/// The oldest one that can be read.
const OLDEST: u32 = 1;
/// Offset of the first record.
pub(super) const START: usize = 192;
/// Bytes of a node's name that are kept.
const NODE: usize = 128;
/// In place of what is synced, of a file that is not relied on.
const GIVEN_UP: usize = usize::MAX;
/// Words of progress.
const WORDS: usize = frame::PROGRESS / size_of::<u64>();

/// Whether spools of this version can be taken over.
fn is_read(version: u32) -> bool {
    (OLDEST..=VERSION).contains(&version)
}

/// What the header says.
#[derive(Clone, Debug, PartialEq, Eq)]
pub(super) struct Label {
    /// The spool's id.
    pub spool: [u8; 16],
    /// The machine.
    pub node: String,
    /// Place among the spool's segments, from 1.
    pub number: u64,
    /// [`Kind::End`] and [`Kind::Entry`] records in the segments before.
    pub ends_before: u64,
}

/// A mapped file of records.
pub(super) struct Segment {
    path: PathBuf,
    file: File,
    map: MmapRaw,
    /// Bytes that hold header and records; what is below never changes but for progress.
    written: AtomicUsize,
    /// Bytes known to be on disk.
    synced: AtomicUsize,
    /// Requests whose [`Kind::Begin`] is here and whose end is not written yet.
    pub open: AtomicU64,
    unloaded: AtomicBool,
    /// A sync has failed.
    failed: AtomicBool,
    label: Label,
}

impl Segment {
    /// A new file of zeros. It becomes part of a spool by [`Segment::label`].
    pub(super) fn allocate(disk: &dyn Disk, path: PathBuf, bytes: u64) -> io::Result<Self> {
        let file = disk.allocate(&path, bytes)?;
        Self::map(path, file, Label::unused())
    }

    /// Opens a segment of a spool whose owner has gone, up to its first damage. `None`: it was
    /// never used.
    pub(super) fn open(path: PathBuf) -> io::Result<Option<Self>> {
        let file = OpenOptions::new().read(true).write(true).open(&path)?;
        if file.metadata()?.len() < START as u64 {
            // Its process went while it made the file.
            return Ok(None);
        }
        let mut segment = Self::map(path, file, Label::unused())?;
        let len = segment.map.len();
        // SAFETY: nobody else has this file: its spool's lock is held by the caller.
        let bytes = unsafe { std::slice::from_raw_parts(segment.map.as_ptr(), len) };
        if bytes.iter().take(START).all(|byte| *byte == 0) {
            return Ok(None);
        }
        let version = bytes.get(8..12).and_then(|word| word.try_into().ok());
        if bytes.starts_with(&MAGIC) && !version.map(u32::from_le_bytes).is_some_and(is_read) {
            return Err(io::Error::new(
                io::ErrorKind::Unsupported,
                "a spool of another version of the program is left to that version",
            ));
        }
        let label = Label::decode(bytes)
            .ok_or_else(|| io::Error::new(io::ErrorKind::InvalidData, "no header of a segment"))?;
        segment.label = label;
        *segment.written.get_mut() = len;
        Ok(Some(segment))
    }

    fn map(path: PathBuf, file: File, label: Label) -> io::Result<Self> {
        let map = MmapOptions::new().map_raw(&file)?;
        if map.len() < START {
            return Err(io::Error::new(
                io::ErrorKind::InvalidData,
                "too short for a segment",
            ));
        }
        Ok(Self {
            path,
            file,
            map,
            written: AtomicUsize::new(0),
            synced: AtomicUsize::new(0),
            open: AtomicU64::new(0),
            unloaded: AtomicBool::new(false),
            failed: AtomicBool::new(false),
            label,
        })
    }

    /// Makes it a part of a spool.
    pub(super) fn label(&mut self, label: Label) {
        let header = label.encode();
        self.put(0, &header);
        *self.written.get_mut() = START;
        self.label = label;
    }

    /// What its header says.
    pub(super) fn labelled(&self) -> &Label {
        &self.label
    }

    /// Where it is.
    pub(super) fn path(&self) -> &Path {
        &self.path
    }

    /// Bytes of the file.
    pub(super) fn len(&self) -> usize {
        self.map.len()
    }

    /// Bytes that hold header and records.
    pub(super) fn written(&self) -> usize {
        self.written.load(Ordering::Acquire)
    }

    /// Bytes known to be on disk.
    pub(super) fn synced(&self) -> usize {
        self.synced.load(Ordering::Acquire)
    }

    /// Whether there is something to bring to the disk: records, or progress.
    pub(super) fn is_unsynced(&self) -> bool {
        let synced = self.synced();
        let is_open = self.open.load(Ordering::Relaxed) > 0;
        synced != GIVEN_UP && (is_open || synced < self.written())
    }

    /// Brings all that was written to the disk. Once it has failed it fails.
    pub(super) fn sync(&self, disk: &dyn Disk) -> io::Result<()> {
        if self.failed.load(Ordering::Relaxed) {
            return Err(io::Error::other("an earlier sync of the file failed"));
        }
        let written = self.written();
        if let Err(error) = disk.sync(&self.file) {
            self.failed.store(true, Ordering::Relaxed);
            return Err(error);
        }
        self.synced.fetch_max(written, Ordering::AcqRel);
        Ok(())
    }

    /// What was written is elsewhere now.
    pub(super) fn give_up_sync(&self) {
        self.synced.store(GIVEN_UP, Ordering::Release);
    }

    /// Gives the memory of its pages back, once; they come again from the file when they are read.
    pub(super) fn unload(&self) {
        if self.unloaded.swap(true, Ordering::Relaxed) {
            return;
        }
        // SAFETY: of a shared mapping of a file nothing is lost: what was written stays in the
        // system's cache and is written back from there.
        let unloaded = unsafe { self.map.unchecked_advise(UncheckedAdvice::DontNeed) };
        // Advice that is not taken costs memory, and nothing else.
        let _ = unloaded;
    }

    /// Appends a record; `None` if it does not fit. Calls must not overlap: the lane's lock is held.
    pub(super) fn append(
        &self,
        kind: Kind,
        seq: u64,
        payload: &[u8],
        payload_crc: u32,
    ) -> Option<Frame> {
        let at = self.written.load(Ordering::Relaxed);
        let len = u32::try_from(payload.len()).ok()?;
        let frame = Frame {
            kind,
            seq,
            at: at + frame::HEADER,
            len: payload.len(),
        };
        if frame.end() > self.map.len() {
            return None;
        }
        // The payload comes first: a record whose header is whole is whole, as far as this process
        // goes; after a crash of the machine the checksum tells.
        self.put(frame.at, payload);
        self.put(at, &frame::header(kind, seq, len, payload_crc));
        self.written.store(frame.end(), Ordering::Release);
        Some(frame)
    }

    fn put(&self, at: usize, bytes: &[u8]) {
        assert!(
            at.checked_add(bytes.len())
                .is_some_and(|end| end <= self.map.len()),
            "a record outside of its segment"
        );
        // SAFETY: the range is inside of the mapping. It lies at or above `written`, where no slice
        // is ever made, and one thread at a time writes (`append` and `label`).
        unsafe {
            std::ptr::copy_nonoverlapping(
                bytes.as_ptr(),
                self.map.as_mut_ptr().add(at),
                bytes.len(),
            );
        }
    }

    /// A range of what was written, without progress in it.
    fn bytes(&self, at: usize, len: usize) -> Option<&[u8]> {
        if at.checked_add(len)? > self.written() {
            return None;
        }
        // SAFETY: the range is inside of the mapping and below `written`, where nothing but progress
        // changes; callers ask for headers and payloads alone.
        Some(unsafe { std::slice::from_raw_parts(self.map.as_ptr().add(at), len) })
    }

    /// The payload of one of its records.
    pub(super) fn payload(&self, frame: &Frame) -> &[u8] {
        self.bytes(frame.at, frame.len).unwrap_or_default()
    }

    /// The record at `at` of a segment that this process wrote, unchecked; `None` at the end.
    pub(super) fn written_at(&self, at: usize) -> Option<Frame> {
        frame::parse(self.bytes(at, frame::HEADER)?, at)
    }

    /// The record at `at` of a segment that another process wrote, checked.
    ///
    /// Errors: [`Damaged`], with the offset of the next whole record, if there is one.
    pub(super) fn checked_at(&self, at: usize) -> Result<Option<Frame>, (Damaged, Option<usize>)> {
        // SAFETY: as in `open`: nobody else has this file, and this process writes no progress of
        // segments that it did not write.
        let bytes = unsafe { std::slice::from_raw_parts(self.map.as_ptr(), self.map.len()) };
        frame::read(bytes, at).map_err(|damaged| (damaged, frame::resync(bytes, at + 1)))
    }

    /// The progress of one of its [`Kind::Begin`] records.
    pub(super) fn progress(&self, frame: &Frame) -> &[AtomicU64; WORDS] {
        let at = frame.progress();
        assert!(
            frame.kind == Kind::Begin && at.is_multiple_of(8) && frame.end() <= self.written(),
            "progress of a record that has none"
        );
        #[expect(
            clippy::cast_ptr_alignment,
            reason = "a mapping is aligned to pages, and the offset to words"
        )]
        // SAFETY: inside of the mapping, aligned, and accessed as atomics alone; the mapping lives
        // as long as `self`.
        unsafe {
            &*self.map.as_ptr().add(at).cast::<[AtomicU64; WORDS]>()
        }
    }
}

impl Label {
    fn unused() -> Self {
        Self {
            spool: [0; 16],
            node: String::new(),
            number: 0,
            ends_before: 0,
        }
    }

    fn encode(&self) -> Vec<u8> {
        let mut end = self.node.len().min(NODE);
        while !self.node.is_char_boundary(end) {
            end -= 1;
        }
        let node = self.node.get(..end).unwrap_or_default();
        let mut rest = Vec::with_capacity(START);
        rest.extend_from_slice(&self.spool);
        rest.extend_from_slice(&self.number.to_le_bytes());
        rest.extend_from_slice(&self.ends_before.to_le_bytes());
        rest.push(node.len() as u8);
        rest.extend_from_slice(node.as_bytes());
        rest.resize(START - 16, 0);
        let mut out = Vec::with_capacity(START);
        out.extend_from_slice(&MAGIC);
        out.extend_from_slice(&VERSION.to_le_bytes());
        out.extend_from_slice(&crc32c::crc32c(&rest).to_le_bytes());
        out.append(&mut rest);
        out
    }

    fn decode(bytes: &[u8]) -> Option<Self> {
        let rest = bytes.get(16..START)?;
        let word = |at: usize| {
            rest.get(at..at + 8)?
                .try_into()
                .ok()
                .map(u64::from_le_bytes)
        };
        let version = bytes.get(8..12)?.try_into().ok().map(u32::from_le_bytes)?;
        let crc = bytes.get(12..16)?.try_into().ok().map(u32::from_le_bytes)?;
        if bytes.get(..8)? != MAGIC || !is_read(version) || crc != crc32c::crc32c(rest) {
            return None;
        }
        let node_len = usize::from(*rest.get(32)?);
        Some(Self {
            spool: rest.get(..16)?.try_into().ok()?,
            number: word(16)?,
            ends_before: word(24)?,
            node: std::str::from_utf8(rest.get(33..33 + node_len)?)
                .ok()?
                .to_owned(),
        })
    }
}
