//! The end of connections: none is closed under a request that is on its way.
//!
//! A proxy sends a request on a connection that it has kept, and cannot know that the other end has
//! just closed it: a POST that meets this fails, as nobody may send it twice. So while the listener
//! closes, a connection that has become idle stays open for a moment more, for one last request,
//! whose answer says `connection: close`. HTTP/2 is told at once: its GOAWAY says which requests were
//! taken. Those that cross it come in the same moment, and all of them have as long as any other.
use std::pin::Pin;
use std::sync::Arc;
use std::sync::atomic::{AtomicUsize, Ordering};
use std::task::{Context, Poll, Waker};
use std::time::Duration;

use bytes::Bytes;
use http::Version;
use http_body::{Body, Frame, SizeHint};
use parking_lot::Mutex;
use tokio::sync::{Notify, watch};
use tokio::time::Instant;

use super::body::{Answer, Broken};

/// The listener takes no more connections.
#[derive(Clone, Copy, Debug)]
struct Closed {
    since: Instant,
    /// How long an idle connection may still bring a request.
    idle: Duration,
}

/// The connections of a listener.
pub(super) struct Connections {
    closed: watch::Sender<Option<Closed>>,
    open: AtomicUsize,
    /// Those that may bring another inference request, or have one.
    expecting: AtomicUsize,
    last: Notify,
}

impl Connections {
    pub(super) fn new() -> Arc<Self> {
        Arc::new(Self {
            closed: watch::Sender::new(None),
            open: AtomicUsize::new(0),
            expecting: AtomicUsize::new(0),
            last: Notify::new(),
        })
    }

    /// From now on connections end; idle ones after `idle`.
    pub(super) fn close(&self, idle: Duration) {
        let since = Instant::now();
        self.closed.send_replace(Some(Closed { since, idle }));
    }

    /// Ends once [`Connections::close`] was called.
    pub(super) async fn closing(&self) {
        // The sender is ours, and lives.
        let _ = self.closed.subscribe().wait_for(Option::is_some).await;
    }

    /// A new connection.
    pub(super) fn enter(self: &Arc<Self>) -> Arc<Life> {
        self.open.fetch_add(1, Ordering::AcqRel);
        self.expecting.fetch_add(1, Ordering::AcqRel);
        Arc::new(Life {
            all: Arc::clone(self),
            state: Mutex::new(State {
                requests: 0,
                running: 0,
                inferences: 0,
                since: Instant::now(),
                reader: None,
                multiplexed: false,
                expects: true,
                told: false,
            }),
            changed: Notify::new(),
        })
    }

    /// Connections that may bring another inference request, or have one.
    pub(super) fn expecting(&self) -> usize {
        self.expecting.load(Ordering::Acquire)
    }

    /// Ends once none is open.
    pub(super) async fn ended(&self) {
        loop {
            let mut last = std::pin::pin!(self.last.notified());
            last.as_mut().enable();
            if self.open.load(Ordering::Acquire) == 0 {
                return;
            }
            last.await;
        }
    }
}

struct State {
    /// Requests that have come.
    requests: u64,
    /// Those that have not been answered whole.
    running: usize,
    /// Those of them that the end waits for.
    inferences: usize,
    /// When it last changed between idle and busy.
    since: Instant,
    /// Who waits for the next request, and is to be told when the last one has been answered.
    reader: Option<Waker>,
    /// HTTP/2, or no HTTP any more.
    multiplexed: bool,
    /// Whether it counts among [`Connections::expecting`].
    expects: bool,
    /// It was told to end, and brings no more requests.
    told: bool,
}

/// One connection, open until this and its requests are dropped.
pub(super) struct Life {
    all: Arc<Connections>,
    state: Mutex<State>,
    changed: Notify,
}

impl Life {
    /// A request has come; it runs until what is returned is dropped. `inference`: the end waits for
    /// it, not only for a moment.
    pub(super) fn begin(self: &Arc<Self>, version: Version, inference: bool) -> Running {
        let mut state = self.state.lock();
        state.requests += 1;
        state.running += 1;
        state.inferences += usize::from(inference);
        state.since = Instant::now();
        state.multiplexed |= version >= Version::HTTP_2;
        self.count(&mut state);
        drop(state);
        self.changed.notify_one();
        Running {
            life: Arc::clone(self),
            inference,
        }
    }

    /// Wakes the task once no request runs.
    pub(super) fn when_idle(&self, cx: &Context<'_>) {
        let mut state = self.state.lock();
        match &mut state.reader {
            Some(known) => known.clone_from(cx.waker()),
            none => *none = Some(cx.waker().clone()),
        }
    }

    /// Requests that have come so far, and whether any runs.
    pub(super) fn requests(&self) -> (u64, bool) {
        let state = self.state.lock();
        (state.requests, state.running > 0)
    }

    /// HTTP/2 is spoken.
    pub(super) fn is_http2(&self) {
        self.state.lock().multiplexed = true;
    }

    /// Whether it is no HTTP/1 any more.
    pub(super) fn is_multiplexed(&self) -> bool {
        self.state.lock().multiplexed
    }

    fn end(&self, inference: bool) {
        let mut state = self.state.lock();
        state.running -= 1;
        state.inferences -= usize::from(inference);
        state.since = Instant::now();
        self.count(&mut state);
        let mut reader = None;
        if state.running == 0 {
            reader = state.reader.take();
        }
        drop(state);
        self.changed.notify_one();
        if let Some(reader) = reader {
            reader.wake();
        }
    }

    /// Counts it among those that expect something, or no longer.
    fn count(&self, state: &mut State) {
        let expects = state.inferences > 0 || (state.running == 0 && !state.told);
        if expects && !state.expects {
            self.all.expecting.fetch_add(1, Ordering::AcqRel);
        } else if !expects && state.expects {
            self.all.expecting.fetch_sub(1, Ordering::AcqRel);
        }
        state.expects = expects;
    }

    /// Ends once the connection is to take no more requests. Returns how long some may still come
    /// that crossed the news of it; then [`Life::tell`].
    pub(super) async fn over(&self) -> Duration {
        let mut closed = self.all.closed.subscribe();
        loop {
            let now = *closed.borrow_and_update();
            let at = match now {
                None => None,
                Some(Closed { since, idle }) => {
                    let state = self.state.lock();
                    if state.multiplexed || idle.is_zero() {
                        return idle;
                    }
                    (state.running == 0).then(|| state.since.max(since) + idle)
                }
            };
            let reached = async {
                match at {
                    Some(at) => tokio::time::sleep_until(at).await,
                    None => std::future::pending().await,
                }
            };
            tokio::select! {
                changed = closed.changed() => if changed.is_err() {
                    return std::future::pending().await;
                },
                () = self.changed.notified(), if now.is_some() => {}
                () = reached => {
                    if self.state.lock().running == 0 {
                        return Duration::ZERO;
                    }
                }
            }
        }
    }

    /// It brings no more requests.
    pub(super) fn tell(&self) {
        let mut state = self.state.lock();
        state.told = true;
        self.count(&mut state);
    }
}

impl Drop for Life {
    fn drop(&mut self) {
        let state = self.state.get_mut();
        if state.expects {
            self.all.expecting.fetch_sub(1, Ordering::AcqRel);
        }
        if self.all.open.fetch_sub(1, Ordering::AcqRel) == 1 {
            self.all.last.notify_waiters();
        }
    }
}

/// A request that runs.
pub(super) struct Running {
    life: Arc<Life>,
    inference: bool,
}

impl Running {
    /// Its connection has become something else, which knows its own end and deadlines.
    pub(super) fn is_upgraded(&mut self) {
        let mut state = self.life.state.lock();
        state.multiplexed = true;
        state.told = true;
        state.inferences -= usize::from(std::mem::take(&mut self.inference));
        self.life.count(&mut state);
    }
}

impl Drop for Running {
    fn drop(&mut self) {
        self.life.end(self.inference);
    }
}

/// An answer whose request runs until it has left.
pub(super) struct Held {
    pub(super) answer: Answer,
    pub(super) _running: Running,
}

impl Body for Held {
    type Data = Bytes;
    type Error = Broken;

    fn poll_frame(
        mut self: Pin<&mut Self>,
        cx: &mut Context<'_>,
    ) -> Poll<Option<Result<Frame<Bytes>, Broken>>> {
        Pin::new(&mut self.answer).poll_frame(cx)
    }

    fn is_end_stream(&self) -> bool {
        self.answer.is_end_stream()
    }

    fn size_hint(&self) -> SizeHint {
        self.answer.size_hint()
    }
}
