//! The way from requests to the log's thread: bounded by bytes, and never waited for.
use std::sync::Arc;
use std::sync::atomic::{AtomicUsize, Ordering};
use std::sync::mpsc::{Receiver, Sender, channel};

use bytes::Bytes;

use super::Counts;
use super::capture::Meta;
use super::settings::Settings;

/// What a message holds besides its texts, about.
const OVERHEAD: usize = 512;

/// What was said.
pub(super) struct Texts {
    /// How it is kept.
    pub(super) settings: Arc<Settings>,
    /// The request's body.
    pub(super) request: Bytes,
    /// The answer's, or the last bytes of a stream.
    pub(super) answer: Bytes,
}

/// What the log's thread is told.
pub(super) enum Message {
    /// A stream's next bytes.
    Piece {
        event_id: [u8; 16],
        settings: Arc<Settings>,
        bytes: Bytes,
    },
    /// A request has ended.
    End(Box<(Meta, Option<Texts>)>),
    /// No more comes of this one.
    Forget([u8; 16]),
    /// All that came before is to be dealt with; then the sender is dropped, and the thread ends.
    Stop(Sender<()>),
}

impl Message {
    /// The memory that it holds on to, about.
    pub(super) fn size(&self) -> usize {
        let texts = match self {
            Self::Piece { bytes, .. } => bytes.len(),
            Self::End(end) => match &end.1 {
                Some(texts) => texts.request.len() + texts.answer.len(),
                None => 0,
            },
            Self::Forget(_) | Self::Stop(_) => return 0,
        };
        texts + OVERHEAD
    }
}

/// Messages that wait for the log's thread.
pub(super) struct Queue {
    sender: Sender<Message>,
    bytes: AtomicUsize,
    most_bytes: usize,
    counts: Arc<Counts>,
}

impl Queue {
    /// A queue that holds so many bytes, and its other end.
    pub(super) fn new(most_bytes: usize, counts: &Arc<Counts>) -> (Arc<Self>, Receiver<Message>) {
        let (sender, receiver) = channel();
        let queue = Self {
            sender,
            bytes: AtomicUsize::new(0),
            most_bytes,
            counts: Arc::clone(counts),
        };
        (Arc::new(queue), receiver)
    }

    /// Hands a message on. False, and counted: it was one too many, and its entry is lost.
    pub(super) fn push(&self, message: Message) -> bool {
        let size = message.size();
        let before = self.bytes.fetch_add(size, Ordering::Relaxed);
        if before + size > self.most_bytes || self.sender.send(message).is_err() {
            self.bytes.fetch_sub(size, Ordering::Relaxed);
            self.counts.full.inc();
            return false;
        }
        true
    }

    /// The pieces of a lost entry need not be kept.
    pub(super) fn forget(&self, event_id: [u8; 16]) {
        // Without a thread there is nothing to forget.
        let _ = self.sender.send(Message::Forget(event_id));
    }

    /// Asks the thread to end after all that came before; `done` is dropped then.
    pub(super) fn stop(&self, done: Sender<()>) {
        let _ = self.sender.send(Message::Stop(done));
    }

    /// So much more is kept of a stream that runs.
    pub(super) fn kept(&self, size: usize) {
        self.bytes.fetch_add(size, Ordering::Relaxed);
    }

    /// A message was dealt with, or what was kept of a stream.
    pub(super) fn taken(&self, size: usize) {
        self.bytes.fetch_sub(size, Ordering::Relaxed);
    }

    /// Bytes that wait.
    pub(super) fn bytes(&self) -> usize {
        self.bytes.load(Ordering::Relaxed)
    }
}
