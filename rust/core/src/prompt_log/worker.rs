//! The log's thread: from the bytes that went by to entries.
use std::sync::Arc;
use std::sync::mpsc::Receiver;

use rustc_hash::FxHashMap;

use super::capture::Meta;
use super::queue::{Message, Queue, Texts};
use super::redact::{MARGIN, Redacted, floor};
use super::seal::Part;
use super::settings::{Level, Settings};
use super::text::{StreamText, plain};
use super::{Counts, Entry, Sink};

/// What the thread works with.
pub(super) struct Worker {
    sink: Box<dyn Sink>,
    counts: Arc<Counts>,
    queue: Arc<Queue>,
    /// Streams of which pieces have come.
    streams: FxHashMap<[u8; 16], StreamText>,
}

impl Worker {
    pub(super) fn new(sink: Box<dyn Sink>, counts: Arc<Counts>, queue: Arc<Queue>) -> Self {
        Self {
            sink,
            counts,
            queue,
            streams: FxHashMap::default(),
        }
    }

    /// Works until it is stopped.
    pub(super) fn run(mut self, messages: &Receiver<Message>) {
        while let Ok(message) = messages.recv() {
            let size = message.size();
            match message {
                Message::Piece {
                    event_id,
                    settings,
                    bytes,
                } => {
                    let text = self.streams.entry(event_id);
                    let text = text.or_insert_with(|| stream(&settings));
                    self.queue.taken(text.size());
                    text.feed(bytes);
                    self.queue.kept(text.size());
                }
                Message::End(end) => {
                    let (meta, texts) = *end;
                    self.end(meta, texts);
                }
                Message::Forget(event_id) => {
                    self.taken(&event_id);
                }
                Message::Stop(done) => {
                    drop(done);
                    return;
                }
            }
            self.queue.taken(size);
        }
    }

    fn end(&mut self, meta: Meta, texts: Option<Texts>) {
        if meta.wanted == Level::Full && texts.is_some() {
            self.counts.complete.inc();
        } else {
            self.counts.metadata.inc();
        }
        let mut entry = Entry {
            event_id: meta.event_id,
            request_id: meta.request_id,
            account: meta.account,
            key_id: meta.key_id,
            model: meta.model,
            at_us: meta.at_us,
            level: Level::Metadata.name(),
            status: meta.status,
            request_bytes: meta.request_bytes,
            answer_bytes: meta.answer_bytes,
            request_truncated: false,
            answer_truncated: false,
            redactions: 0,
            enc_key: None,
            request: None,
            answer: None,
        };
        if let Some(texts) = texts
            && !self.fill(&mut entry, meta.stream, texts)
        {
            self.counts.unsealed.inc();
            return;
        }
        self.counts.redactions.add(u64::from(entry.redactions));
        if !self.sink.keep(entry) {
            self.counts.refused.inc();
        }
    }

    /// What has come of a stream; it is kept no longer.
    fn taken(&mut self, event_id: &[u8; 16]) -> Option<StreamText> {
        let text = self.streams.remove(event_id)?;
        self.queue.taken(text.size());
        Some(text)
    }

    /// Puts the texts in; false when they could not be sealed.
    fn fill(&mut self, entry: &mut Entry, streamed: bool, texts: Texts) -> bool {
        let settings = &texts.settings;
        let request = json(settings, &texts.request);
        let answer = if streamed {
            let known = self.taken(&entry.event_id);
            let mut text = known.unwrap_or_else(|| stream(settings));
            text.feed(texts.answer);
            said(settings, &text.finish())
        } else {
            json(settings, &texts.answer)
        };
        let key = &settings.sealer;
        let Some(request_text) = key.seal(&entry.event_id, Part::Request, &request.text) else {
            return false;
        };
        let Some(answer_text) = key.seal(&entry.event_id, Part::Answer, &answer.text) else {
            return false;
        };
        entry.level = Level::Full.name();
        entry.request_truncated = request.truncated;
        entry.answer_truncated = answer.truncated;
        entry.redactions = request.count.saturating_add(answer.count);
        entry.enc_key = Some(Arc::clone(key.name()));
        entry.request = Some(request_text);
        entry.answer = Some(answer_text);
        true
    }
}

/// The text of a stream of which nothing has come.
fn stream(settings: &Settings) -> StreamText {
    StreamText::new(settings.max_bytes.saturating_add(MARGIN))
}

/// The text of a stream, without what must not be written down. It may quote JSON, or be some.
fn said(settings: &Settings, text: &str) -> Redacted {
    let mut redacted = settings.redactor.redact(&plain(text), settings.max_bytes);
    // Escapes that were undone may have made room for all that there is.
    redacted.truncated |= text.len() >= settings.max_bytes.saturating_add(MARGIN);
    redacted
}

/// The text of a JSON document, without what must not be written down.
fn json(settings: &Settings, document: &[u8]) -> Redacted {
    // What is beyond is not needed, and need not be searched; escapes are up to six times as long.
    let most = settings.max_bytes.saturating_add(MARGIN).saturating_mul(6);
    let all = String::from_utf8_lossy(document.get(..most).unwrap_or(document));
    let text = plain(&all);
    let window = settings.max_bytes.saturating_add(MARGIN);
    let seen = text.get(..floor(&text, window)).unwrap_or_default();
    let mut redacted = settings.redactor.redact(seen, settings.max_bytes);
    redacted.truncated |= seen.len() < text.len() || all.len() < document.len();
    redacted
}
