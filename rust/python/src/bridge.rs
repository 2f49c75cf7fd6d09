//! The way from the runtime's thread to the event loop: one queue, one eventfd.
//!
//! A finished wait pushes its id and nothing else; Python objects stay on the Python side. The
//! loop is woken by one write for all that is ready: the write happens when the runtime's thread
//! is about to sleep, so what became ready in one turn is joined, and at most once per
//! [`JOIN`], so that under load more is. When idle, it happens at once.
use std::os::fd::{AsFd, AsRawFd, OwnedFd};
use std::sync::Arc;
use std::sync::atomic::{AtomicBool, AtomicU64, Ordering};
use std::task::Wake;
use std::time::{Duration, Instant};

use crossbeam_queue::SegQueue;
use forebay_core::metrics::Counter;
use rustix::event::{EventfdFlags, eventfd};
use tokio::runtime::{Builder, Handle, Runtime};
use tokio::sync::oneshot;

/// Under load, wake-ups of the event loop are at least this far apart.
pub(crate) const JOIN: Duration = Duration::from_micros(100);

/// Ids that are ready, and the bell that says so.
pub(crate) struct Queue {
    ready: SegQueue<u64>,
    /// The bell has rung and the loop has not come yet: what is pushed now will be seen.
    woken: AtomicBool,
    /// Something was pushed since the bell last rang.
    pending: AtomicBool,
    /// When the bell last rang, nanoseconds since `epoch`.
    rang: AtomicU64,
    epoch: Instant,
    bell: OwnedFd,
    wakeups: Arc<Counter>,
    completions: Arc<Counter>,
}

impl Queue {
    pub(crate) fn new(wakeups: Arc<Counter>, completions: Arc<Counter>) -> std::io::Result<Self> {
        Ok(Self {
            ready: SegQueue::new(),
            woken: AtomicBool::new(false),
            pending: AtomicBool::new(false),
            rang: AtomicU64::new(0),
            epoch: Instant::now(),
            bell: eventfd(0, EventfdFlags::NONBLOCK | EventfdFlags::CLOEXEC)?,
            wakeups,
            completions,
        })
    }

    /// The descriptor that the event loop watches.
    pub(crate) fn fd(&self) -> i32 {
        self.bell.as_fd().as_raw_fd()
    }

    fn now(&self) -> u64 {
        self.epoch.elapsed().as_nanos() as u64
    }

    fn push(&self, id: u64) {
        self.ready.push(id);
        if self.woken.load(Ordering::SeqCst) {
            return;
        }
        self.pending.store(true, Ordering::SeqCst);
        // A runtime that never gets to sleep must not hold results back.
        if self.now().saturating_sub(self.rang.load(Ordering::Relaxed))
            > 10 * JOIN.as_nanos() as u64
        {
            self.ring();
        }
    }

    fn ring(&self) {
        if self.pending.swap(false, Ordering::SeqCst) && !self.woken.swap(true, Ordering::SeqCst) {
            self.rang.store(self.now(), Ordering::Relaxed);
            self.wakeups.inc();
            // It fails only when the counter is full, and then the bell is ringing already.
            let _ = rustix::io::write(&self.bell, &1_u64.to_ne_bytes());
        }
    }

    /// The runtime's thread has nothing more to do.
    fn before_sleep(&self) {
        if !self.pending.load(Ordering::SeqCst) || self.woken.load(Ordering::SeqCst) {
            return;
        }
        let since = self.now().saturating_sub(self.rang.load(Ordering::Relaxed));
        if let Some(rest) = JOIN.checked_sub(Duration::from_nanos(since)) {
            std::thread::sleep(rest);
        }
        self.ring();
    }

    /// Takes the ids that are ready; what comes later rings again.
    pub(crate) fn take(&self, mut each: impl FnMut(u64)) {
        let mut count = [0; 8];
        // Nothing to read: a spurious call.
        let _ = rustix::io::read(&self.bell, &mut count);
        self.woken.store(false, Ordering::SeqCst);
        while let Some(id) = self.ready.pop() {
            self.completions.inc();
            each(id);
        }
    }
}

/// Wakes the wait of one exchange.
pub(crate) struct Token {
    pub(crate) queue: Arc<Queue>,
    pub(crate) id: u64,
}

impl Wake for Token {
    fn wake(self: Arc<Self>) {
        self.queue.push(self.id);
    }

    fn wake_by_ref(self: &Arc<Self>) {
        self.queue.push(self.id);
    }
}

/// The runtime's one thread. Made in the process that uses it: a forked runtime hangs.
pub(crate) struct Reactor {
    handle: Handle,
    stop: parking_lot::Mutex<Option<oneshot::Sender<()>>>,
    thread: parking_lot::Mutex<Option<std::thread::JoinHandle<()>>>,
}

impl Reactor {
    pub(crate) fn start(queue: &Arc<std::sync::OnceLock<Arc<Queue>>>) -> std::io::Result<Self> {
        let bell = Arc::clone(queue);
        let runtime: Runtime = Builder::new_current_thread()
            .enable_all()
            .on_thread_park(move || {
                if let Some(queue) = bell.get() {
                    queue.before_sleep();
                }
            })
            .build()?;
        let handle = runtime.handle().clone();
        let (stop, stopped) = oneshot::channel();
        let thread = std::thread::Builder::new()
            .name("forebay-core".to_owned())
            .spawn(move || {
                // An error means that the sender is gone, which is a stop as well.
                let _ = runtime.block_on(stopped);
                runtime.shutdown_timeout(Duration::from_secs(1));
            })?;
        Ok(Self {
            handle,
            stop: parking_lot::Mutex::new(Some(stop)),
            thread: parking_lot::Mutex::new(Some(thread)),
        })
    }

    pub(crate) fn handle(&self) -> &Handle {
        &self.handle
    }

    /// Drops every running exchange and ends the thread. Blocks for up to a second.
    pub(crate) fn stop(&self) {
        if let Some(stop) = self.stop.lock().take() {
            // The thread may have ended by itself.
            let _ = stop.send(());
        }
        if let Some(thread) = self.thread.lock().take() {
            let _ = thread.join();
        }
    }
}
