//! The prompt log: what clients asked and were answered, for those accounts and keys that want it.
//!
//! On the request's path the bytes that go by are kept, and no more ([`capture`]). A thread takes
//! texts out of them ([`text`]), secrets out of those ([`redact`]), seals what is left ([`seal`]) and
//! hands on an [`Entry`] a request. What is too much for it is dropped and counted; no request waits
//! for its log.
mod capture;
mod card;
mod email;
mod entry;
mod escape;
mod queue;
mod redact;
mod seal;
mod settings;
mod text;
mod worker;

use std::sync::Arc;
use std::sync::mpsc::channel;
use std::thread::JoinHandle;
use std::time::Duration;

use bytes::Bytes;
use parking_lot::Mutex;

use crate::metrics::{Counter, Gauge, Registry};

pub use capture::Capture;
pub use entry::{COLUMNS, Entry};
pub use redact::{BadPattern, Redacted, Redactor, without_secrets};
pub use seal::{Part, Sealer};
pub use settings::{Choice, ChoiceSpec, Level, Settings, SettingsSpec};

use queue::Queue;

/// Bytes of requests, answers and running streams that may wait to be logged.
pub const MAX_WAITING: usize = 32 << 20;

/// Where entries go.
pub trait Sink: Send {
    /// Keeps an entry. It may block: only the log's thread waits. False: it was not kept, which is
    /// counted.
    fn keep(&mut self, entry: Entry) -> bool;
}

/// What the prompt log counts.
pub(crate) struct Counts {
    metadata: Arc<Counter>,
    complete: Arc<Counter>,
    without_key: Arc<Counter>,
    full: Arc<Counter>,
    unsealed: Arc<Counter>,
    refused: Arc<Counter>,
    redactions: Arc<Counter>,
    waiting: Arc<Gauge>,
}

impl Counts {
    /// Registers them.
    fn registered(registry: &Registry) -> Self {
        let entries = registry.counters(
            "forebay_prompt_logs_total",
            "Requests logged, by level.",
            ["level"],
        );
        let dropped = registry.counters(
            "forebay_prompt_logs_dropped_total",
            "Log entries lost: too many waited, they could not be encrypted, or not be kept.",
            ["reason"],
        );
        let of = |reason| dropped.get_or_create(&[reason]);
        Self {
            metadata: entries.get_or_create(&["metadata"]),
            complete: entries.get_or_create(&["full"]),
            without_key: registry.counter(
                "forebay_prompt_logs_without_key_total",
                "Requests of level full of which only metadata were logged, for want of a key.",
            ),
            full: of("queue_full"),
            unsealed: of("encryption"),
            refused: of("spool"),
            redactions: registry.counter(
                "forebay_prompt_log_redactions_total",
                "Secrets taken out of what was logged.",
            ),
            waiting: registry.gauge(
                "forebay_prompt_log_waiting_bytes",
                "Bytes of requests and answers that wait to be logged.",
            ),
        }
    }
}

/// A running prompt log.
pub struct PromptLog {
    queue: Arc<Queue>,
    counts: Arc<Counts>,
    thread: Mutex<Option<JoinHandle<()>>>,
}

impl PromptLog {
    /// Starts the log's thread. `most_waiting`: bytes, see [`MAX_WAITING`].
    pub fn start(
        sink: Box<dyn Sink>,
        registry: &Registry,
        most_waiting: usize,
    ) -> std::io::Result<Self> {
        let counts = Arc::new(Counts::registered(registry));
        let (queue, messages) = Queue::new(most_waiting, &counts);
        let worker = worker::Worker::new(sink, Arc::clone(&counts), Arc::clone(&queue));
        let thread = std::thread::Builder::new()
            .name("forebay-logs".to_owned())
            .spawn(move || worker.run(&messages))?;
        Ok(Self {
            queue,
            counts,
            thread: Mutex::new(Some(thread)),
        })
    }

    /// What is to be kept of the request with this event id and body; `None`: nothing.
    #[inline]
    pub fn capture(
        &self,
        choice: Choice,
        event_id: [u8; 16],
        settings: Option<&Arc<Settings>>,
        request: &Bytes,
    ) -> Option<Box<Capture>> {
        let level = choice.of(&event_id)?;
        if level == Level::Full && settings.is_none() {
            self.counts.without_key.inc();
        }
        let capture = Capture::new(&self.queue, event_id, level, settings, request);
        Some(Box::new(capture))
    }

    /// Brings the gauge of what waits up to date.
    pub fn show(&self) {
        let bytes = i64::try_from(self.queue.bytes()).unwrap_or(i64::MAX);
        self.counts.waiting.set(bytes);
    }

    /// Deals with all that has come, for at most `within`, and ends the thread. What comes later is
    /// dropped. Whether all was dealt with; blocks.
    pub fn stop(&self, within: Duration) -> bool {
        let Some(thread) = self.thread.lock().take() else {
            return true;
        };
        let (sender, done) = channel();
        self.queue.stop(sender);
        // The sender is dropped at the end, which is an error here; another one is the time-out.
        let timed_out =
            done.recv_timeout(within) == Err(std::sync::mpsc::RecvTimeoutError::Timeout);
        !timed_out && thread.join().is_ok()
    }
}

impl Drop for PromptLog {
    fn drop(&mut self) {
        // A thread that still works ends after what it has, without anybody who waits.
        let (done, _) = channel();
        self.queue.stop(done);
    }
}
