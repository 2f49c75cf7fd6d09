//! The way in to one upstream: its permits, its adaptive limit, and the queue before them.
//!
//! A [`Permit`] is taken at once when one is free and nobody waits; else the request waits for its
//! turn ([`crate::queue`]), its deadline, or its client's going. A permit comes back when it is dropped,
//! a place in the queue when the wait is.
use std::sync::Arc;
use std::time::Duration;

use parking_lot::Mutex;
use tokio::sync::oneshot;
use tokio::time::Instant;

use crate::adaptive::Adaptive;
use crate::counters::OfGate;
use crate::error::{Error, Kind};
use crate::limit::{Nanos, Permits};
use crate::queue::{Ask, Placed, Reason, Refusal, Started, Ticket, WaitQueue};

/// While requests wait, permits are looked at so often: other processes of this machine may share
/// them, and tell nobody when one comes free.
const POLL: Duration = Duration::from_millis(2);

/// What a refused client is told to wait, at least and at most.
const LEAST_RETRY: Duration = Duration::from_secs(1);
const MAX_RETRY: Duration = Duration::from_secs(60);

/// What a gate is made of.
pub struct GateSpec {
    /// Requests in flight, bounded or only counted. Others may take and return them too.
    pub permits: Arc<Permits>,
    /// Finds out how many of them the upstream can take.
    pub adaptive: Option<Adaptive>,
    /// Requests that may wait; 0 refuses what cannot start at once.
    pub max_waiting: usize,
    /// Longest wait.
    pub timeout: Duration,
}

type Turn = oneshot::Sender<Result<Permit, Refusal>>;

struct Managed {
    queue: WaitQueue<Turn>,
    adaptive: Option<Adaptive>,
    polled: bool,
    /// What comes free before is for other workers.
    yields_until: Nanos,
}

/// The capacity of one upstream, and who waits for it.
pub struct Gate {
    permits: Arc<Permits>,
    timeout: Duration,
    max_waiting: usize,
    /// `None` where permits alone decide, without a lock.
    managed: Option<Mutex<Managed>>,
    adapts: bool,
    metrics: Option<OfGate>,
    epoch: Instant,
}

impl Gate {
    /// A gate with nobody before it. `metrics`: of a gate that is bounded.
    pub fn new(spec: GateSpec, metrics: Option<OfGate>) -> Arc<Self> {
        let bounded = spec.permits.max().is_some();
        let managed = (bounded && spec.max_waiting > 0) || spec.adaptive.is_some();
        let gate = Self {
            adapts: spec.adaptive.is_some(),
            timeout: spec.timeout,
            max_waiting: spec.max_waiting,
            managed: managed.then(|| {
                Mutex::new(Managed {
                    queue: WaitQueue::new(spec.max_waiting),
                    adaptive: spec.adaptive,
                    polled: false,
                    yields_until: 0,
                })
            }),
            permits: spec.permits,
            metrics,
            epoch: Instant::now(),
        };
        gate.show_limit();
        Arc::new(gate)
    }

    /// Requests in flight.
    pub fn in_use(&self) -> u64 {
        self.permits.in_use()
    }

    /// Whether there is a place free while so many requests are in flight.
    #[inline]
    pub fn has_room(&self, in_use: u64) -> bool {
        self.permits.max().is_none_or(|max| in_use < u64::from(max))
    }

    /// Requests that wait.
    pub fn waiting(&self) -> usize {
        self.managed
            .as_ref()
            .map_or(0, |managed| managed.lock().queue.len())
    }

    /// Requests that may be in flight now; `None`: any number.
    pub fn limit(&self) -> Option<u64> {
        let adaptive = self.managed.as_ref().and_then(|managed| {
            let managed = managed.lock();
            managed.adaptive.as_ref().map(Adaptive::limit)
        });
        adaptive.or_else(|| self.permits.max().map(u64::from))
    }

    /// A permit, if one is free and nobody waits for it.
    pub fn try_acquire(self: &Arc<Self>, ask: &Ask) -> Option<Permit> {
        let Some(managed) = &self.managed else {
            return self.permits.try_acquire().then(|| self.permit(None));
        };
        let mut managed = managed.lock();
        let free = managed.queue.is_empty() && self.take(&managed);
        free.then(|| {
            let started = managed.queue.started(ask, self.now());
            self.permit(Some(started))
        })
    }

    /// How long a request would wait, as far as is known, and how many wait; for comparison.
    pub fn backlog(&self, ask: &Ask) -> (Duration, usize) {
        let Some(managed) = &self.managed else {
            return (Duration::ZERO, 0);
        };
        let queue = &managed.lock().queue;
        let wait = queue.expected_wait(ask, self.now());
        (wait.unwrap_or_default(), queue.len())
    }

    /// Lets a request wait for its turn, no longer than until `deadline` and the gate's own time-out.
    /// To be called within a tokio runtime.
    pub fn wait(self: &Arc<Self>, ask: &Ask, deadline: Instant) -> Result<Waiting, Error> {
        let since = Instant::now();
        let until = deadline.min(since + self.timeout);
        let Some(managed) = &self.managed else {
            return Err(self.refused(Refusal {
                reason: Reason::Full,
                retry_after: None,
            }));
        };
        let (sender, turn) = oneshot::channel();
        let mut managed = managed.lock();
        let placed = managed
            .queue
            .push(ask, self.at(until), self.at(since), sender);
        let Placed { ticket, displaced } = match placed {
            Ok(placed) => placed,
            Err(refusal) => {
                drop(managed);
                return Err(self.refused(refusal));
            }
        };
        let retry_after = managed.queue.expected_wait(ask, self.at(since));
        let granted = self.pump(&mut managed);
        if !managed.queue.is_empty() && !managed.polled {
            managed.polled = true;
            let poller = Poller {
                gate: Arc::clone(self),
                over: false,
            };
            tokio::spawn(poller.run());
        }
        drop(managed);
        if let Some(displaced) = displaced {
            let refusal = Refusal {
                reason: Reason::Displaced,
                retry_after,
            };
            // Who has left meanwhile needs no refusal.
            let _ = displaced.send(Err(refusal));
        }
        deliver(granted);
        Ok(Waiting {
            gate: Arc::clone(self),
            ask: ask.clone(),
            ticket,
            turn,
            since,
            until,
        })
    }

    /// Tells the metrics of a refusal, and makes it one that a client can read.
    fn refused(&self, refusal: Refusal) -> Error {
        if let Some(metrics) = &self.metrics {
            metrics.shed(refusal.reason).inc();
        }
        let (message, code) = match refusal.reason {
            Reason::Full if self.max_waiting == 0 => (
                "The engine is at its concurrency limit. Please try again later.",
                "queue_full",
            ),
            Reason::Full | Reason::Displaced => (
                "Too many requests wait for the engine. Please try again later.",
                "queue_full",
            ),
            Reason::Late | Reason::Timeout => (
                "The engine is busy, and the request could not start in time. Please try again later.",
                "queue_timeout",
            ),
        };
        let mut error = Error::new(Kind::Unavailable, message).code(code);
        error.retry_after = refusal
            .retry_after
            .map(|wait| wait.clamp(LEAST_RETRY, MAX_RETRY));
        error
    }

    fn now(&self) -> Nanos {
        self.at(Instant::now())
    }

    fn at(&self, instant: Instant) -> Nanos {
        let since = instant.saturating_duration_since(self.epoch);
        u64::try_from(since.as_nanos()).unwrap_or(u64::MAX)
    }

    /// Takes a permit under the adaptive limit. Within a process this is exact; processes that share
    /// permits may go over the adaptive limit by one each, over the permits' own never.
    fn take(&self, managed: &Managed) -> bool {
        let below = |limit: &Adaptive| self.permits.in_use() < limit.limit();
        managed.adaptive.as_ref().is_none_or(below)
            && self.is_our_turn(managed)
            && self.permits.try_acquire()
    }

    /// Workers that share permits take turns: one that has its share leaves what comes free to those
    /// that wait at others, for as long as they may need to see it.
    fn is_our_turn(&self, managed: &Managed) -> bool {
        self.permits.has_share(most(&self.permits, managed)) != Some(true)
            || self.now() >= managed.yields_until
    }

    /// Gives a permit back.
    fn release(&self) {
        self.permits.release();
        if let Some(managed) = &self.managed
            && self.permits.is_shared()
        {
            let mut managed = managed.lock();
            if self.permits.has_share(most(&self.permits, &managed)) == Some(true) {
                managed.yields_until = self.at(Instant::now() + 2 * POLL);
            }
        }
    }

    fn permit(self: &Arc<Self>, started: Option<Started>) -> Permit {
        Permit {
            gate: Arc::clone(self),
            started,
            used: None,
            since: Instant::now(),
            in_flight: self.permits.in_use(),
            given_back: false,
        }
    }

    /// Starts who can start now. The permits go to [`deliver`] once the lock is free: one that is
    /// dropped takes the lock.
    fn pump(self: &Arc<Self>, managed: &mut Managed) -> Vec<(Turn, Permit)> {
        let mut granted = Vec::new();
        while !managed.queue.is_empty() && self.take(managed) {
            let Some((started, turn)) = managed.queue.pop(self.now()) else {
                // Nobody could start after all.
                self.permits.release();
                break;
            };
            granted.push((turn, self.permit(Some(started))));
        }
        self.show_waiting(managed);
        granted
    }

    /// Changes something that may let others start.
    fn update(self: &Arc<Self>, change: impl FnOnce(&mut Managed, Nanos)) {
        let Some(managed) = &self.managed else { return };
        let mut managed = managed.lock();
        change(&mut managed, self.now());
        let granted = self.pump(&mut managed);
        drop(managed);
        deliver(granted);
    }

    fn show_waiting(&self, managed: &Managed) {
        self.permits.set_waiting(managed.queue.len());
        if let Some(metrics) = &self.metrics {
            let waiting = i64::try_from(managed.queue.len());
            metrics.waiting.set(waiting.unwrap_or(i64::MAX));
        }
    }

    fn show_limit(&self) {
        if let (Some(metrics), Some(limit)) = (&self.metrics, self.limit()) {
            metrics.limit.set(i64::try_from(limit).unwrap_or(i64::MAX));
        }
    }
}

/// Requests that may be in flight now.
fn most(permits: &Permits, managed: &Managed) -> u64 {
    let bound = permits.max().map_or(u64::MAX, u64::from);
    managed
        .adaptive
        .as_ref()
        .map_or(bound, |adaptive| adaptive.limit().min(bound))
}

fn deliver(granted: Vec<(Turn, Permit)>) {
    for (turn, permit) in granted {
        // One whose waiter has just left comes back, and goes to the next.
        let _ = turn.send(Ok(permit));
    }
}

/// Looks for free permits while requests wait. A runtime that goes down drops it, and the next that
/// waits starts another.
struct Poller {
    gate: Arc<Gate>,
    over: bool,
}

impl Poller {
    async fn run(mut self) {
        while !self.over {
            tokio::time::sleep(POLL).await;
            self.look();
        }
    }

    fn look(&mut self) {
        let Some(managed) = &self.gate.managed else {
            self.over = true;
            return;
        };
        let mut managed = managed.lock();
        let granted = self.gate.pump(&mut managed);
        self.over = managed.queue.is_empty();
        managed.polled = !self.over;
        drop(managed);
        deliver(granted);
    }
}

impl Drop for Poller {
    fn drop(&mut self) {
        if let Some(managed) = &self.gate.managed
            && !self.over
        {
            managed.lock().polled = false;
        }
    }
}

/// A request in the queue. Dropped, it leaves at once.
pub struct Waiting {
    gate: Arc<Gate>,
    ask: Ask,
    ticket: Ticket,
    turn: oneshot::Receiver<Result<Permit, Refusal>>,
    since: Instant,
    until: Instant,
}

impl Waiting {
    /// When the wait is over, whatever comes of it.
    pub fn until(&self) -> Instant {
        self.until
    }

    /// The permit, when it is this request's turn, or why it is never to be. Cancel-safe.
    pub async fn turn(&mut self) -> Result<Permit, Error> {
        match (&mut self.turn).await {
            Ok(Ok(permit)) => {
                if let Some(metrics) = &self.gate.metrics {
                    metrics.wait.observe_duration(self.since.elapsed());
                }
                Ok(permit)
            }
            Ok(Err(refusal)) => Err(self.gate.refused(refusal)),
            // The queue drops no sender of a request that waits.
            Err(_) => Err(Error::new(Kind::Internal, "The request lost its turn.")),
        }
    }

    /// What a request is told whose wait took too long.
    pub fn timed_out(&self) -> Error {
        let (wait, _) = self.gate.backlog(&self.ask);
        self.gate.refused(Refusal {
            reason: Reason::Timeout,
            retry_after: Some(wait),
        })
    }
}

impl Drop for Waiting {
    fn drop(&mut self) {
        let Some(managed) = &self.gate.managed else {
            return;
        };
        let mut managed = managed.lock();
        let removed = managed.queue.remove(&self.ticket);
        self.gate.show_waiting(&managed);
        drop(managed);
        drop(removed);
    }
}

/// A place at an upstream. Its drop gives it back, to whoever is next.
pub struct Permit {
    gate: Arc<Gate>,
    /// `None` where nobody ever waits.
    started: Option<Started>,
    used: Option<u64>,
    since: Instant,
    in_flight: u64,
    given_back: bool,
}

impl Permit {
    /// Gives the place back before the permit is dropped.
    pub fn give_back(&mut self) {
        if std::mem::replace(&mut self.given_back, true) {
            return;
        }
        self.gate.release();
        let Some(started) = &self.started else { return };
        self.gate.update(|managed, now| {
            let held = self.since.elapsed();
            managed.queue.ended(started, self.used, held, now);
        });
    }

    /// What the request has cost so far, tokens; its account is charged for it instead of for what
    /// was expected.
    pub fn used(&mut self, tokens: u64) {
        self.used = Some(tokens);
    }

    /// The first token of a streamed answer is there.
    pub fn first_token(&self) {
        self.learn(|adaptive, held, now| adaptive.first_token(held, self.in_flight, now));
    }

    /// The upstream has too much to do: it said so, or never began.
    pub fn overloaded(&self) {
        self.learn(Adaptive::overloaded);
    }

    fn learn(&self, what: impl FnOnce(&mut Adaptive, Duration, Nanos)) {
        if !self.gate.adapts {
            return;
        }
        self.gate.update(|managed, now| {
            if let Some(adaptive) = &mut managed.adaptive {
                what(adaptive, self.since.elapsed(), now);
            }
        });
        self.gate.show_limit();
    }
}

impl Drop for Permit {
    fn drop(&mut self) {
        self.give_back();
    }
}
