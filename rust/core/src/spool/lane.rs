//! Segments in a row: records go in at one end, batches of rows come out at the other.
//!
//! What was written is never moved. A segment is removed once every row in it has been shipped and
//! no running request began in it. Space for the ends of running requests is there before a request
//! begins: what was admitted can be recorded, whatever the disk does meanwhile.
use std::collections::VecDeque;
use std::io;
use std::path::PathBuf;
use std::sync::Arc;
use std::sync::atomic::{AtomicBool, Ordering};
use std::time::{Duration, Instant};

use parking_lot::Mutex;

use super::batch::Piece;
use super::disk::Disk;
use super::frame::{self, Frame, Kind};
use super::segment::{Label, START, Segment};
use crate::attempts::MAX_JSON;

/// A record never spans two segments: this much of each may stay empty.
const SLACK: usize = 16 * 1024;
/// What an end may have more than its beginning: upstream, finish reason, numbers, attempts.
const END_MORE: usize = 1024 + MAX_JSON;

/// How long a disk that failed is left alone, at first and at most.
const FIRST_WAIT: Duration = Duration::from_millis(100);
const LAST_WAIT: Duration = Duration::from_secs(5);

/// A disk that fails.
struct Failure {
    until: Instant,
    wait: Duration,
    cause: String,
}

/// There is no space.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub struct Full;

/// How a lane is laid out.
#[derive(Clone, Debug)]
pub(super) struct Layout {
    /// Where its files are.
    pub folder: PathBuf,
    /// The spool's id.
    pub spool: [u8; 16],
    /// The machine.
    pub node: String,
    /// Bytes of one file.
    pub segment_bytes: u64,
    /// Bytes of all files.
    pub max_bytes: u64,
}

/// A running request's place in the lane.
pub struct Opened {
    segment: Arc<Segment>,
    begin: Frame,
    reserve: usize,
}

impl Opened {
    /// Number of the admission.
    pub const fn seq(&self) -> u64 {
        self.begin.seq
    }

    /// The words that tell how far the request has come.
    pub fn progress(&self) -> &[std::sync::atomic::AtomicU64; frame::PROGRESS / 8] {
        self.segment.progress(&self.begin)
    }
}

/// How far the lane has been read.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
struct Cursor {
    /// The segment's number.
    number: u64,
    /// Offset there.
    at: usize,
    /// Rows passed.
    rows: u64,
}

/// What a batch of the lane passes.
#[derive(Clone, Copy, Debug)]
pub(super) struct Passage {
    from: Cursor,
    until: Cursor,
}

struct State {
    /// In order; records go to the last.
    segments: VecDeque<Arc<Segment>>,
    /// Made ahead.
    spares: Vec<Segment>,
    /// How many are being made.
    making: u64,
    files: u64,
    number: u64,
    next_seq: u64,
    rows: u64,
    /// Bytes promised to the ends of running requests.
    reserved: usize,
    shipped: Cursor,
    /// Records ever appended: what `synced` of the lane is measured by.
    appended: u64,
}

/// What a look at a lane finds.
#[derive(Clone, Copy, Debug, Default, PartialEq, Eq)]
pub struct Standing {
    /// Bytes of all its files.
    pub bytes: u64,
    /// Bytes that it may have.
    pub max_bytes: u64,
    /// Rows that wait to be shipped.
    pub waiting: u64,
    /// Nothing more would be taken in now.
    pub full: bool,
}

/// Segments in a row.
pub(super) struct Lane {
    layout: Layout,
    disk: Arc<dyn Disk>,
    state: Mutex<State>,
    /// Something was appended since the keeper looked.
    dirty: AtomicBool,
    /// The last segment could not be made.
    starved: AtomicBool,
    failing: Mutex<Option<Failure>>,
    wake: Box<dyn Fn(bool) + Send + Sync>,
}

impl Lane {
    /// An empty lane, with one segment if there is space. `wake` is called when [`Lane::keep`] has something to do, and
    /// whether at once.
    pub(super) fn create(
        layout: Layout,
        disk: Arc<dyn Disk>,
        wake: Box<dyn Fn(bool) + Send + Sync>,
    ) -> Self {
        let lane = Self {
            layout,
            disk,
            state: Mutex::new(State {
                segments: VecDeque::new(),
                spares: Vec::new(),
                making: 0,
                files: 0,
                number: 0,
                next_seq: 0,
                rows: 0,
                reserved: 0,
                shipped: Cursor {
                    number: 1,
                    at: START,
                    rows: 0,
                },
                appended: 0,
            }),
            dirty: AtomicBool::new(false),
            starved: AtomicBool::new(false),
            failing: Mutex::default(),
            wake,
        };
        // Without space nothing begins, but what others left can be shipped, which makes some.
        let _ = lane.allocate();
        lane
    }

    /// Records that a request begins, and keeps space for its end.
    pub(super) fn begin(&self, row: &[u8]) -> Result<Opened, Full> {
        let crc = crc32c::crc32c(row);
        let reserve = frame::size(Kind::End, row.len() + END_MORE);
        let need = frame::size(Kind::Begin, row.len());
        let mut state = self.state.lock();
        if self.room(&state) < need + reserve + state.reserved {
            drop(state);
            self.expand()?;
            state = self.state.lock();
            if self.room(&state) < need + reserve + state.reserved {
                return Err(Full);
            }
        }
        let seq = state.next_seq;
        let (segment, begin) = self.append(&mut state, Kind::Begin, seq, row, crc)?;
        state.next_seq += 1;
        state.reserved += reserve;
        segment.open.fetch_add(1, Ordering::Relaxed);
        let scarce = !self.is_ahead(&state);
        drop(state);
        self.appended();
        if scarce {
            (self.wake)(true);
        }
        Ok(Opened {
            segment,
            begin,
            reserve,
        })
    }

    /// Records that an upstream is tried. Without space it is not recorded.
    pub(super) fn attempt(&self, opened: &Opened, upstream: &str) {
        let upstream = upstream.as_bytes();
        let need = frame::size(Kind::Attempt, upstream.len());
        let crc = crc32c::crc32c(upstream);
        let mut state = self.state.lock();
        if self.room(&state) >= need + state.reserved {
            // It fits.
            let _ = self.append(&mut state, Kind::Attempt, opened.seq(), upstream, crc);
        }
        drop(state);
        self.appended();
    }

    /// Records how a request ended. Gives how many records there are then.
    pub(super) fn end(&self, opened: &Opened, row: &[u8]) -> Result<u64, Full> {
        let crc = crc32c::crc32c(row);
        let mut state = self.state.lock();
        state.reserved = state.reserved.saturating_sub(opened.reserve);
        let ended = self.append(&mut state, Kind::End, opened.seq(), row, crc);
        state.rows += u64::from(ended.is_ok());
        let appended = state.appended;
        drop(state);
        // Last: until here the segment with the beginning stays.
        opened.segment.open.fetch_sub(1, Ordering::Release);
        self.appended();
        ended.map(|_| appended)
    }

    /// Records a row that stands for itself.
    pub(super) fn entry(&self, row: &[u8]) -> Result<(), Full> {
        let crc = crc32c::crc32c(row);
        let mut state = self.state.lock();
        if self.room(&state) < frame::size(Kind::Entry, row.len()) + state.reserved {
            return Err(Full);
        }
        let seq = state.next_seq;
        self.append(&mut state, Kind::Entry, seq, row, crc)?;
        state.next_seq += 1;
        state.rows += 1;
        drop(state);
        self.appended();
        Ok(())
    }

    fn appended(&self) {
        if !self.dirty.load(Ordering::Relaxed) && !self.dirty.swap(true, Ordering::AcqRel) {
            (self.wake)(false);
        }
    }

    fn append(
        &self,
        state: &mut State,
        kind: Kind,
        seq: u64,
        payload: &[u8],
        crc: u32,
    ) -> Result<(Arc<Segment>, Frame), Full> {
        loop {
            if let Some(active) = state.segments.back()
                && let Some(frame) = active.append(kind, seq, payload, crc)
            {
                state.appended += 1;
                return Ok((Arc::clone(active), frame));
            }
            if frame::size(kind, payload.len()) > self.usable() {
                return Err(Full);
            }
            self.rotate(state)?;
        }
    }

    /// Goes on in a segment that was made ahead.
    fn rotate(&self, state: &mut State) -> Result<(), Full> {
        let mut segment = state.spares.pop().ok_or(Full)?;
        state.number += 1;
        segment.label(Label {
            spool: self.layout.spool,
            node: self.layout.node.clone(),
            number: state.number,
            ends_before: state.rows,
        });
        state.segments.push_back(Arc::new(segment));
        (self.wake)(true);
        Ok(())
    }

    /// Bytes of records that a segment can hold.
    fn usable(&self) -> usize {
        usize::try_from(self.layout.segment_bytes)
            .unwrap_or(usize::MAX)
            .saturating_sub(START)
    }

    /// Bytes that records may take, whatever their sizes are.
    fn room(&self, state: &State) -> usize {
        let active = state.segments.back().map_or(0, |active| {
            (active.len() - active.written()).saturating_sub(SLACK)
        });
        let spare = self.usable().saturating_sub(SLACK);
        active + spare * state.spares.len()
    }

    /// Whether there is as much space as there should be.
    fn is_ahead(&self, state: &State) -> bool {
        self.room(state) >= state.reserved + self.usable() / 2 + SLACK
    }

    /// Requests came faster than the keeper makes space: one of them does it, unless it cannot be
    /// done.
    fn expand(&self) -> Result<(), Full> {
        if !self.starved.load(Ordering::Relaxed) && matches!(self.allocate(), Ok(true)) {
            return Ok(());
        }
        (self.wake)(true);
        Err(Full)
    }

    /// Makes a segment ahead. False: there may be none more. Those that are being made count: the
    /// keeper and requests may do so at the same time.
    fn allocate(&self) -> io::Result<bool> {
        let number = {
            let mut state = self.state.lock();
            let files = (state.segments.len() + state.spares.len()) as u64 + state.making;
            if (files + 1) * self.layout.segment_bytes > self.layout.max_bytes {
                return Ok(false);
            }
            state.making += 1;
            state.files += 1;
            state.files
        };
        let path = self.layout.folder.join(format!("{number:010}.seg"));
        let segment = Segment::allocate(&*self.disk, path, self.layout.segment_bytes);
        self.starved.store(segment.is_err(), Ordering::Relaxed);
        let mut state = self.state.lock();
        state.making -= 1;
        state.spares.push(segment?);
        Ok(true)
    }

    /// The keeper's work: segments made ahead, records brought to the disk, what is shipped removed.
    /// Gives how many records are on the disk for sure, and the first failure.
    pub(super) fn keep(&self) -> (u64, io::Result<()>) {
        self.dirty.store(false, Ordering::Release);
        let mut outcome = self.prepare();
        if let Some(failure) = self.failing.lock().as_ref()
            && Instant::now() < failure.until
        {
            // A disk that fails is not filled with copies of what it does not take.
            let cause = io::Error::other(failure.cause.clone());
            return (0, outcome.and(Err(cause)));
        }
        let (appended, unsynced) = {
            let state = self.state.lock();
            let unsynced: Vec<_> = state
                .segments
                .iter()
                .filter(|segment| segment.is_unsynced())
                .cloned()
                .collect();
            (state.appended, unsynced)
        };
        let mut synced = appended;
        let mut failed = None;
        for segment in unsynced {
            if let Err(error) = segment.sync(&*self.disk) {
                // Nothing is said to be on the disk before what is unconfirmed is elsewhere.
                synced = 0;
                self.replace(&segment);
                failed = Some(error.to_string());
                outcome = outcome.and(Err(error));
            }
        }
        self.note_failure(failed);
        self.tidy();
        (synced, outcome)
    }

    /// After a failure the disk is given time, more after each.
    fn note_failure(&self, cause: Option<String>) {
        let mut failing = self.failing.lock();
        *failing = cause.map(|cause| {
            let wait = failing
                .as_ref()
                .map_or(FIRST_WAIT, |failure| (failure.wait * 2).min(LAST_WAIT));
            Failure {
                until: Instant::now() + wait,
                wait,
                cause,
            }
        });
    }

    /// Whether the keeper should look again soon without being woken.
    pub(super) fn is_busy(&self) -> bool {
        let state = self.state.lock();
        state.reserved > 0 || self.dirty.load(Ordering::Relaxed)
    }

    fn prepare(&self) -> io::Result<()> {
        while !self.is_ahead(&self.state.lock()) && self.allocate()? {}
        Ok(())
    }

    /// After a failed sync nobody knows what of the file is on the disk, and a later sync that
    /// succeeds says nothing: what is unconfirmed is written again, elsewhere. What is read twice
    /// for that is dropped by the ledger.
    fn replace(&self, segment: &Arc<Segment>) {
        let is_spare = !self.state.lock().spares.is_empty();
        if !is_spare {
            // Without one it is tried again in the next round.
            let _ = self.allocate();
        }
        let mut state = self.state.lock();
        let from = segment.synced().max(START);
        let until = segment.written();
        let active = state.segments.back();
        if active.is_some_and(|active| Arc::ptr_eq(active, segment))
            && self.rotate(&mut state).is_err()
        {
            return;
        }
        if self.room(&state) < until.saturating_sub(from) + state.reserved {
            // The ends of running requests go first.
            return;
        }
        let mut at = from;
        while at < until
            && let Some(frame) = segment.written_at(at)
        {
            let payload = segment.payload(&frame);
            let crc = crc32c::crc32c(payload);
            if self
                .append(&mut state, frame.kind, frame.seq, payload, crc)
                .is_err()
            {
                return;
            }
            state.rows += u64::from(matches!(frame.kind, Kind::End | Kind::Entry));
            at = frame.end();
        }
        segment.give_up_sync();
    }

    /// Removes segments that nobody needs any more.
    fn tidy(&self) {
        let mut gone = Vec::new();
        {
            let mut state = self.state.lock();
            let shipped = state.shipped.number;
            let active = state.number;
            state.segments.retain(|segment| {
                let number = segment.labelled().number;
                let needed = number >= shipped
                    || number == active
                    || segment.open.load(Ordering::Acquire) > 0;
                if !needed {
                    gone.push(Arc::clone(segment));
                }
                needed
            });
            for segment in &state.segments {
                if segment.labelled().number != active {
                    segment.unload();
                }
            }
        }
        for segment in gone {
            // A file that stays is removed with the spool.
            let _ = std::fs::remove_file(segment.path());
        }
    }

    /// Up to `limit` rows that wait to be shipped, and how many of the lane are shipped once these
    /// are; the same again until [`Lane::done`].
    pub(super) fn batch(&self, limit: usize) -> Option<(Vec<Piece>, Passage, u64)> {
        let from = self.state.lock().shipped;
        let mut until = from;
        let mut pieces = Vec::new();
        while pieces.len() < limit {
            let (segment, is_last) = {
                let state = self.state.lock();
                let at = state
                    .segments
                    .partition_point(|segment| segment.labelled().number < until.number);
                match state.segments.get(at) {
                    None => break,
                    Some(segment) => (Arc::clone(segment), at + 1 == state.segments.len()),
                }
            };
            if segment.labelled().number != until.number {
                until.number = segment.labelled().number;
                until.at = START;
            }
            while pieces.len() < limit
                && let Some(frame) = segment.written_at(until.at)
            {
                until.at = frame.end();
                if matches!(frame.kind, Kind::End | Kind::Entry) {
                    until.rows += 1;
                    pieces.push(Piece::Written(Arc::clone(&segment), frame));
                }
            }
            if pieces.len() < limit {
                if is_last {
                    break;
                }
                until.number += 1;
                until.at = START;
            }
        }
        if pieces.is_empty() {
            // What was passed has no rows: the segments may go.
            self.pass(from, until);
            return None;
        }
        Some((pieces, Passage { from, until }, until.rows))
    }

    /// The rows of a batch are in the ledger.
    pub(super) fn done(&self, passage: Passage) {
        if self.pass(passage.from, passage.until) {
            self.tidy();
            if !self.is_ahead(&self.state.lock()) {
                // There is space again, and perhaps nobody who asks for it.
                (self.wake)(true);
            }
        }
    }

    fn pass(&self, from: Cursor, until: Cursor) -> bool {
        let mut state = self.state.lock();
        let same = state.shipped == from;
        if same {
            state.shipped = until;
        }
        same
    }

    /// How it stands.
    pub(super) fn standing(&self) -> Standing {
        let state = self.state.lock();
        let files = (state.segments.len() + state.spares.len()) as u64;
        Standing {
            bytes: files * self.layout.segment_bytes,
            max_bytes: self.layout.max_bytes,
            waiting: state.rows - state.shipped.rows,
            full: self.room(&state) < state.reserved + SLACK,
        }
    }

    /// Whether every row was shipped and no request runs.
    pub(super) fn is_empty(&self) -> bool {
        let state = self.state.lock();
        state.rows == state.shipped.rows && state.reserved == 0
    }
}
