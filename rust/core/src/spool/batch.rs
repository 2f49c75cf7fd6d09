//! Rows on their way to the database, as it takes them.
use std::sync::Arc;

use super::frame::Frame;
use super::lane::Passage;
use super::row::{self, Column};
use super::segment::Segment;
use crate::copy;

/// One row, where it is.
pub(super) enum Piece {
    /// In a segment.
    Written(Arc<Segment>, Frame),
    /// Made when the spool was taken over: number of the admission, row.
    Made(u64, Arc<[u8]>),
}

impl Piece {
    /// Another reference to the same row.
    pub(super) fn share(&self) -> Self {
        match self {
            Self::Written(segment, frame) => Self::Written(Arc::clone(segment), *frame),
            Self::Made(seq, row) => Self::Made(*seq, Arc::clone(row)),
        }
    }

    fn seq(&self) -> u64 {
        match self {
            Self::Written(_, frame) => frame.seq,
            Self::Made(seq, _) => *seq,
        }
    }

    fn row(&self) -> &[u8] {
        match self {
            Self::Written(segment, frame) => segment.payload(frame),
            Self::Made(_, row) => row,
        }
    }
}

/// Whose rows a batch has, and what they are.
#[derive(Clone, Copy, Debug)]
pub(super) enum Origin {
    /// This process's own.
    Own(Passage),
    /// Of a spool that was taken over: rows of it that are shipped then.
    Adopted(usize),
}

/// Rows of one spool, in the order they were written.
pub struct Batch {
    /// The spool's id.
    pub spool: [u8; 16],
    /// The machine that wrote them.
    pub node: String,
    /// Rows of the spool that are shipped once these are.
    pub position: u64,
    pub(super) pieces: Vec<Piece>,
    pub(super) columns: &'static [Column],
    pub(super) origin: Origin,
}

impl Batch {
    /// How many rows there are.
    pub fn len(&self) -> usize {
        self.pieces.len()
    }

    /// Whether there are none.
    pub fn is_empty(&self) -> bool {
        self.pieces.is_empty()
    }

    /// A complete binary COPY of the rows from `start` to before `stop`.
    pub fn copy(&self, start: usize, stop: usize) -> Vec<u8> {
        let pieces = self.pieces.get(start..stop).unwrap_or_default();
        let bytes: usize = pieces.iter().map(|piece| piece.row().len() + 64).sum();
        let mut out = Vec::with_capacity(bytes + self.node.len() * pieces.len() + 32);
        out.extend_from_slice(&copy::HEADER);
        for piece in pieces {
            self.put(piece, &mut out);
        }
        out.extend_from_slice(&copy::TRAILER);
        out
    }

    fn put(&self, piece: &Piece, out: &mut Vec<u8>) {
        let row = piece.row();
        if self.columns.len() == row::ENTRY.len() {
            out.extend_from_slice(row);
            return;
        }
        // The id comes first; then what holds for all rows of the spool.
        let (head, tail) = row.split_at_checked(row::HEAD).unwrap_or((row, &[]));
        let id = head.get(2..).unwrap_or_default();
        out.extend_from_slice(&(self.columns.len() as u16).to_be_bytes());
        out.extend_from_slice(id);
        row::put_origin(&self.node, self.spool, piece.seq(), out);
        out.extend_from_slice(tail);
        out.extend_from_slice(row::missing(row));
    }

    /// When the request of a usage row ended, unix microseconds.
    pub(super) fn ended_us(&self, index: usize) -> Option<i64> {
        row::ended_us(self.pieces.get(index)?.row())
    }

    /// One row as a JSON object, for a person to look at.
    pub fn json(&self, index: usize) -> Option<String> {
        let mut out = Vec::new();
        self.put(self.pieces.get(index)?, &mut out);
        row::to_json(self.columns, &out)
    }
}
