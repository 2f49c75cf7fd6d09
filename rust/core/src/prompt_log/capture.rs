//! What one request keeps for the prompt log while it runs.
use std::sync::Arc;

use bytes::{Bytes, BytesMut};

use super::queue::{Message, Queue, Texts};
use super::settings::{Level, Settings};
use crate::record::UsageEvent;

/// A stream's bytes are handed on in pieces of about this size.
const PIECE: usize = 16 * 1024;

/// The parts of a usage event that a log entry has too.
pub(super) struct Meta {
    pub(super) event_id: [u8; 16],
    pub(super) request_id: String,
    pub(super) account: Arc<str>,
    pub(super) key_id: crate::keys::KeyId,
    pub(super) model: Arc<str>,
    pub(super) at_us: i64,
    pub(super) status: u16,
    pub(super) request_bytes: u64,
    pub(super) answer_bytes: u64,
    pub(super) stream: bool,
    pub(super) wanted: Level,
}

/// What is kept of one request. On the request's path it copies the bytes that go by, and no more.
pub struct Capture {
    queue: Arc<Queue>,
    event_id: [u8; 16],
    level: Level,
    /// `None` where only sizes are kept.
    settings: Option<Arc<Settings>>,
    request: Bytes,
    answer: Answer,
    answer_bytes: u64,
    /// The client has gone.
    over: bool,
}

enum Answer {
    /// So far nothing, or a stream's last bytes. `sent`: pieces went before.
    Stream {
        bytes: BytesMut,
        sent: bool,
    },
    Whole(Bytes),
    /// There was no room for a piece: the entry is lost.
    Lost,
}

impl Capture {
    /// Of a request that is to be logged at `level`. Without settings there is no key to seal with,
    /// and only metadata are kept.
    pub(super) fn new(
        queue: &Arc<Queue>,
        event_id: [u8; 16],
        level: Level,
        settings: Option<&Arc<Settings>>,
        request: &Bytes,
    ) -> Self {
        Self {
            queue: Arc::clone(queue),
            event_id,
            level,
            settings: settings.filter(|_| level == Level::Full).cloned(),
            request: request.clone(),
            answer: Answer::Stream {
                bytes: BytesMut::new(),
                sent: false,
            },
            answer_bytes: 0,
            over: false,
        }
    }

    /// The client has gone: what comes now it does not get.
    pub fn client_gone(&mut self) {
        self.over = true;
    }

    /// The client gets more of a stream.
    pub fn streamed(&mut self, more: &[u8]) {
        if self.over {
            return;
        }
        self.answer_bytes += more.len() as u64;
        let (Some(settings), Answer::Stream { bytes, sent }) = (&self.settings, &mut self.answer)
        else {
            return;
        };
        bytes.extend_from_slice(more);
        if bytes.len() < PIECE {
            return;
        }
        let piece = Message::Piece {
            event_id: self.event_id,
            settings: Arc::clone(settings),
            bytes: bytes.split().freeze(),
        };
        *sent = true;
        if !self.queue.push(piece) {
            self.answer = Answer::Lost;
            self.queue.forget(self.event_id);
        }
    }

    /// The client gets a whole answer.
    pub fn answered(&mut self, body: &Bytes) {
        if self.over {
            return;
        }
        self.answer_bytes = body.len() as u64;
        if self.settings.is_some() {
            self.answer = Answer::Whole(body.clone());
        }
    }

    /// Nothing of what an engine said has reached the client, nor will it.
    pub fn unanswered(&mut self) {
        let Answer::Stream { sent, .. } = self.answer else {
            return;
        };
        if sent {
            self.queue.forget(self.event_id);
        }
        self.answer = Answer::Stream {
            bytes: BytesMut::new(),
            sent: false,
        };
        self.answer_bytes = 0;
    }

    /// The request has ended: all that is known goes to the log's thread, if there is room.
    pub fn end(mut self, event: &UsageEvent) {
        if event.first_byte_us.is_none() {
            self.unanswered();
        }
        let meta = Meta {
            event_id: event.event_id,
            request_id: event.request_id.clone(),
            account: Arc::clone(&event.account),
            key_id: event.key_id,
            model: Arc::clone(&event.model_served),
            at_us: event.admitted_us,
            status: event.status,
            request_bytes: self.request.len() as u64,
            answer_bytes: self.answer_bytes,
            stream: matches!(self.answer, Answer::Stream { .. }),
            wanted: self.level,
        };
        let (answer, sent) = match self.answer {
            Answer::Stream { bytes, sent } => (bytes.freeze(), sent),
            Answer::Whole(body) => (body, false),
            Answer::Lost => return,
        };
        let texts = self.settings.map(|settings| Texts {
            settings,
            request: self.request,
            answer,
        });
        let end = Message::End(Box::new((meta, texts)));
        if !self.queue.push(end) && sent {
            self.queue.forget(event.event_id);
        }
    }
}
