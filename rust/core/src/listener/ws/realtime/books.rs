//! The responses of a Realtime session: each is admitted, and booked once.
use std::collections::VecDeque;

use super::events::Done;
use crate::error::Kind;
use crate::record::{Outcome, Progress, Record};

/// Most responses at once: a session has one in its conversation, and few beside it.
pub(super) const MAX_OPEN: usize = 16;

/// How a session ends for the responses that are not done.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub(super) enum Cut {
    /// Its client has left.
    Client,
    /// The provider has.
    Provider,
    /// The gateway stops.
    Gateway,
}

/// A response that was asked for, and has not begun.
struct Asked {
    /// The client's name for its event.
    event: Option<String>,
    record: Record,
}

/// A response that has begun.
struct Running {
    id: String,
    record: Record,
    progress: Progress,
}

/// What a session's responses are booked with.
#[derive(Default)]
pub(super) struct Books {
    asked: VecDeque<Asked>,
    running: Vec<Running>,
    context: u64,
    used: u64,
}

impl Books {
    /// How many responses are not done.
    pub(super) fn open(&self) -> usize {
        self.asked.len() + self.running.len()
    }

    /// Tokens that the next response has as its input at least: all of the latest one.
    pub(super) const fn context(&self) -> u64 {
        self.context
    }

    /// Tokens of all responses that are done.
    pub(super) const fn used(&self) -> u64 {
        self.used
    }

    /// A response was asked for by the client's event of that name.
    pub(super) fn ask(&mut self, event: Option<String>, record: Record) {
        self.asked.push_back(Asked { event, record });
    }

    /// A response has begun. Whether it was asked for: the longest asked one is it.
    pub(super) fn begin(&mut self, id: &str) -> bool {
        let Some(asked) = self.asked.pop_front() else {
            return false;
        };
        self.adopt(id, asked.record);
        true
    }

    /// A response has begun that nobody asked for, as the provider heard a turn end.
    pub(super) fn adopt(&mut self, id: &str, record: Record) {
        self.running.push(Running {
            id: id.to_owned(),
            record,
            progress: Progress {
                answered: true,
                ..Progress::default()
            },
        });
    }

    /// A part of a response goes by.
    pub(super) fn delta(&mut self) {
        // They name their response; the one that began last is nearly always it, and this is for the
        // case alone that no usage comes.
        if let Some(running) = self.running.last_mut() {
            running.record.committed(200);
            running.progress.content_events += 1;
            running.record.advance(running.progress);
        }
    }

    /// A response is done.
    pub(super) fn done(&mut self, done: &Done) {
        let Some(at) = self
            .running
            .iter()
            .position(|running| running.id == done.id)
        else {
            return;
        };
        let mut running = self.running.swap_remove(at);
        if let Some(usage) = done.usage {
            self.context = usage.total();
            self.used = self.used.saturating_add(usage.total());
            running.progress.reported = Some((usage, true));
        }
        let record = &mut running.record;
        record.progress = running.progress;
        match done.status.as_str() {
            "failed" => {
                record.progress.answered = running.progress.content_events > 0;
                record.close(Outcome::Error, 502, Some(Kind::UpstreamError), None);
            }
            status => {
                let finish = match (status, done.reason.as_deref()) {
                    ("completed", _) => "stop",
                    (_, Some("max_output_tokens")) => "length",
                    (_, Some("content_filter")) => "content_filter",
                    _ => "cancelled",
                };
                record.committed(200);
                record.close(Outcome::Ok, 200, None, Some(finish));
            }
        }
        record.book();
    }

    /// The provider refuses the client's event of that name, or one that has none: then it is the
    /// longest asked of those.
    pub(super) fn fail(&mut self, event: Option<&str>) {
        let mut all = self.asked.iter();
        let Some(at) = all.position(|asked| asked.event.as_deref() == event) else {
            return;
        };
        if let Some(mut asked) = self.asked.remove(at) {
            let kind = Kind::InvalidRequest;
            asked
                .record
                .close(Outcome::Error, kind.status(), Some(kind), None);
            asked.record.book();
        }
    }

    /// The session is over: what is not done is booked as far as it has come.
    pub(super) fn end(self, cut: Cut) {
        let asked = self.asked.into_iter().map(|asked| asked.record);
        let running = self.running.into_iter().map(|running| running.record);
        for mut record in asked.chain(running) {
            match cut {
                Cut::Client => record.client_gone(),
                Cut::Provider => {
                    let kind = Kind::UpstreamError;
                    record.close(Outcome::UpstreamCut, 200, Some(kind), None);
                }
                // A record that is dropped without an end says so.
                Cut::Gateway => {}
            }
            record.book();
        }
    }
}
