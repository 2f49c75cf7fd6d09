//! A spool whose process has gone: what it had not shipped, and the requests it had not ended.
use std::collections::HashMap;
use std::fs::File;
use std::io;
use std::path::{Path, PathBuf};
use std::sync::Arc;

use super::batch::{Batch, Origin, Piece};
use super::frame::{Frame, Kind};
use super::row::{self, Column, Rate, Reached};
use super::segment::{START, Segment};

/// The rows of one lane of a spool that was taken over.
pub(super) struct Dead {
    spool: [u8; 16],
    node: String,
    columns: &'static [Column],
    pieces: Vec<Piece>,
    before: u64,
    shipped: usize,
    /// Requests that were running.
    pub interrupted: usize,
    /// Segments in which something was damaged that was not being written at the end.
    pub damaged: Vec<PathBuf>,
}

/// A segment and a record in it.
type Place = (Arc<Segment>, Frame);

impl Dead {
    /// Reads the segments in `folder`. Requests that have no end get one, as of when they were last
    /// heard of, rated by `rate`.
    pub(super) fn read(
        folder: &Path,
        columns: &'static [Column],
        rate: Rate<'_>,
    ) -> io::Result<Self> {
        let mut dead = Self {
            spool: [0; 16],
            node: String::new(),
            columns,
            pieces: Vec::new(),
            before: 0,
            shipped: 0,
            interrupted: 0,
            damaged: Vec::new(),
        };
        let segments = dead.segments(folder)?;
        if let Some(first) = segments.first() {
            let label = first.labelled();
            dead.spool = label.spool;
            dead.node.clone_from(&label.node);
            dead.before = label.ends_before;
        }
        let mut running: HashMap<u64, (Place, Option<Place>)> = HashMap::new();
        let last = segments.len();
        for (at, segment) in segments.iter().enumerate() {
            let whole = dead.scan(segment, &mut running);
            // Where it was being written a record may be torn; anywhere else that is damage.
            if !whole && at + 1 < last {
                dead.damaged.push(segment.path().to_owned());
            }
        }
        let mut running: Vec<_> = running.into_iter().collect();
        running.sort_unstable_by_key(|(seq, _)| *seq);
        for (seq, ((segment, begin), attempt)) in running {
            let upstream = attempt
                .as_ref()
                .and_then(|(segment, frame)| std::str::from_utf8(segment.payload(frame)).ok());
            let reached = Reached::load(segment.progress(&begin));
            if let Some(row) = row::interrupted(segment.payload(&begin), upstream, &reached, rate) {
                dead.pieces.push(Piece::Made(seq, row.into()));
                dead.interrupted += 1;
            }
        }
        for segment in segments {
            segment.unload();
        }
        Ok(dead)
    }

    fn segments(&mut self, folder: &Path) -> io::Result<Vec<Arc<Segment>>> {
        let mut segments = Vec::new();
        let entries = match std::fs::read_dir(folder) {
            Ok(entries) => entries,
            Err(error) if error.kind() == io::ErrorKind::NotFound => return Ok(segments),
            Err(error) => return Err(error),
        };
        for entry in entries {
            let path = entry?.path();
            if path.extension().is_none_or(|extension| extension != "seg") {
                continue;
            }
            match Segment::open(path.clone()) {
                Ok(Some(segment)) => segments.push(Arc::new(segment)),
                // Made ahead, never used.
                Ok(None) => {}
                Err(error) if error.kind() == io::ErrorKind::InvalidData => self.damaged.push(path),
                Err(error) => return Err(error),
            }
        }
        segments.sort_by_key(|segment| segment.labelled().number);
        Ok(segments)
    }

    /// Reads one segment. False: something in it was damaged.
    fn scan(
        &mut self,
        segment: &Arc<Segment>,
        running: &mut HashMap<u64, (Place, Option<Place>)>,
    ) -> bool {
        let mut at = START;
        let mut whole = true;
        loop {
            let frame = match segment.checked_at(at) {
                Ok(None) => return whole,
                Ok(Some(frame)) => frame,
                Err((_, next)) => {
                    whole = false;
                    match next {
                        Some(next) => at = next,
                        None => return false,
                    }
                    continue;
                }
            };
            at = frame.end();
            let place = (Arc::clone(segment), frame);
            match frame.kind {
                Kind::Begin => {
                    running.entry(frame.seq).or_insert((place, None));
                }
                Kind::Attempt => {
                    if let Some((_, attempt)) = running.get_mut(&frame.seq) {
                        *attempt = Some(place);
                    }
                }
                Kind::End => {
                    running.remove(&frame.seq);
                    self.pieces.push(Piece::Written(place.0, frame));
                }
                Kind::Entry => self.pieces.push(Piece::Written(place.0, frame)),
            }
        }
    }

    /// Rows that wait.
    pub(super) fn waiting(&self) -> usize {
        self.pieces.len() - self.shipped
    }

    /// Up to `limit` rows that wait.
    pub(super) fn batch(&self, limit: usize) -> Option<Batch> {
        let until = self.pieces.len().min(self.shipped.saturating_add(limit));
        let pieces: Vec<_> = self
            .pieces
            .get(self.shipped..until)?
            .iter()
            .map(Piece::share)
            .collect();
        (!pieces.is_empty()).then(|| Batch {
            spool: self.spool,
            node: self.node.clone(),
            position: self.before + until as u64,
            pieces,
            columns: self.columns,
            origin: Origin::Adopted(until),
        })
    }

    /// The rows up to `until` are in the ledger.
    pub(super) fn done(&mut self, until: usize) {
        self.shipped = self.shipped.max(until.min(self.pieces.len()));
    }

    /// The spool's id.
    pub(super) fn spool(&self) -> [u8; 16] {
        self.spool
    }
}

/// Takes the lock of a spool; `None` while its process lives.
pub(super) fn lock(folder: &Path) -> io::Result<Option<File>> {
    let file = match File::options()
        .read(true)
        .write(true)
        .open(folder.join("lock"))
    {
        Ok(file) => file,
        Err(error) if error.kind() == io::ErrorKind::NotFound => return Ok(None),
        Err(error) => return Err(error),
    };
    match rustix::fs::flock(&file, rustix::fs::FlockOperation::NonBlockingLockExclusive) {
        Ok(()) => Ok(Some(file)),
        Err(rustix::io::Errno::WOULDBLOCK) => Ok(None),
        Err(error) => Err(error.into()),
    }
}
