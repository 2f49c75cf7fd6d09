//! One upstream's health: the machines together, and what is read of them at every request.
use std::sync::Arc;
use std::sync::atomic::{AtomicBool, AtomicU8, AtomicU64, Ordering};
use std::time::Duration;

use arc_swap::ArcSwap;
use parking_lot::Mutex;
use tokio::sync::Notify;
use tokio::sync::futures::Notified;

use super::ejection::Ejections;
use super::load::{LastLoad, Load, Report};
use super::outlier::{Detector, Interval};
use super::peak::Peak;
use super::siblings::{self, Group};
use super::standing::{AgentState, Availability, Engine, Settings};
use super::verdict::{Cause, Verdict};
use super::view::{Ejected, View};
use super::{nanos, ramp, span};
use crate::counters::OfHealth;
use crate::error::Error;
use crate::limit::Nanos;
use crate::snapshot::OutlierSpec;

/// No upstream is left alone for longer because it said that it has too much to do.
const MAX_BACK_OFF: Duration = Duration::from_secs(60);

/// What changes with requests' outcomes.
#[derive(Debug, Default)]
struct Machines {
    settings: Settings,
    detector: Detector,
    ejections: Ejections,
    peak: Peak,
    cause: Option<Cause>,
}

/// One upstream's health. All methods may be called from any thread; `now` is
/// [`crate::gateway::monotonic`]'s, in tests whatever they like.
pub struct Health {
    engine: AtomicU8,
    agent: AtomicU8,
    /// By the configuration.
    configured_draining: AtomicBool,
    /// By an administrator.
    drained: AtomicBool,
    /// Until when it is ejected, half open from then on; 0: not ejected.
    out_until: AtomicU64,
    /// The trial under way; 0: none.
    trial: AtomicU64,
    /// Until when it is left alone as it has too much to do; 0: it is not.
    backs_off_until: AtomicU64,
    /// When its slow start began; 0: it is in none.
    ramp_from: AtomicU64,
    slow_start: AtomicU64,
    /// Moving average of the time to first token, nanoseconds; 0: none.
    first_token: AtomicU64,
    /// Mean time to first token of the last interval that had enough requests, and when it ended.
    interval_first_token: AtomicU64,
    interval_ended: AtomicU64,
    load: LastLoad,
    trials: AtomicU64,
    wanted: AtomicBool,
    /// It was added beside others, and has not been seen warm yet.
    joins: AtomicBool,
    changed: Notify,
    machines: Mutex<Machines>,
    groups: ArcSwap<Vec<Group>>,
    counters: OfHealth,
}

/// The one request that finds out whether an upstream is back. Dropping it without an outcome told lets
/// another one try.
#[must_use = "a trial that is dropped is over"]
pub struct Trial {
    health: Arc<Health>,
    number: u64,
}

impl Trial {
    /// Ends it; false if it had ended before.
    fn end(&self) -> bool {
        let ended =
            self.health
                .trial
                .compare_exchange(self.number, 0, Ordering::AcqRel, Ordering::Relaxed);
        ended.is_ok()
    }
}

impl Drop for Trial {
    fn drop(&mut self) {
        if self.end() {
            self.health.changed.notify_waiters();
        }
    }
}

impl Health {
    /// The health of an upstream of which nothing is known, which is taken for good. One that `joins`
    /// others begins with a slow start once a probe has found it warm.
    pub fn new(settings: Settings, counters: OfHealth, joins: bool) -> Self {
        let health = Self {
            engine: AtomicU8::new(Engine::Unknown as u8),
            agent: AtomicU8::new(AgentState::None as u8),
            configured_draining: AtomicBool::new(false),
            drained: AtomicBool::new(false),
            out_until: AtomicU64::new(0),
            trial: AtomicU64::new(0),
            backs_off_until: AtomicU64::new(0),
            ramp_from: AtomicU64::new(0),
            slow_start: AtomicU64::new(0),
            first_token: AtomicU64::new(0),
            interval_first_token: AtomicU64::new(0),
            interval_ended: AtomicU64::new(0),
            load: LastLoad::default(),
            trials: AtomicU64::new(0),
            wanted: AtomicBool::new(false),
            joins: AtomicBool::new(joins),
            changed: Notify::new(),
            machines: Mutex::default(),
            groups: ArcSwap::default(),
            counters,
        };
        health.configure(settings);
        health
    }

    /// Follows a new configuration. What is known of the upstream stays.
    pub fn configure(&self, settings: Settings) {
        let mut machines = self.machines.lock();
        machines.settings = settings;
        self.slow_start
            .store(nanos(settings.slow_start), Ordering::Relaxed);
        self.configured_draining
            .store(settings.draining, Ordering::Relaxed);
        if !settings.agent {
            self.agent.store(AgentState::None as u8, Ordering::Relaxed);
        }
        if settings.outlier.is_none() {
            machines.ejections = Ejections::default();
            self.out_until.store(0, Ordering::Release);
        }
        drop(machines);
        self.changed.notify_waiters();
    }

    /// Sets which upstreams stand beside it: the tiers that it serves in.
    pub fn set_groups(&self, groups: Vec<Group>) {
        self.groups.store(Arc::new(groups));
    }

    /// Whether it takes requests now. Reads atomics only.
    pub fn availability(&self, now: Nanos) -> Availability {
        if self.is_draining() {
            return Availability::Draining;
        }
        match self.engine() {
            Engine::Unknown | Engine::Warm => {}
            Engine::Loading => return Availability::Loading,
            Engine::Cold => return Availability::Cold,
            Engine::Down => return Availability::Out,
            Engine::Draining => return Availability::Draining,
        }
        let out_until = self.out_until.load(Ordering::Acquire);
        if out_until != 0 {
            let half_open = now >= out_until && self.trial.load(Ordering::Acquire) == 0;
            return if half_open {
                Availability::Trial
            } else {
                Availability::Out
            };
        }
        if now < self.backs_off_until.load(Ordering::Relaxed) {
            return Availability::Out;
        }
        let share = match self.ramp_from.load(Ordering::Relaxed) {
            0 => 1.0,
            from => {
                let window = Duration::from_nanos(self.slow_start.load(Ordering::Relaxed));
                ramp::share(from, window, now)
            }
        };
        Availability::Open { share }
    }

    /// The right to be its one request while it is half open ([`Availability::Trial`]). None when it
    /// is not, or another request has it. Keep it as long as the attempt runs.
    pub fn take_trial(self: &Arc<Self>, now: Nanos) -> Option<Trial> {
        if self.availability(now) != Availability::Trial {
            return None;
        }
        let number = self.trials.fetch_add(1, Ordering::Relaxed) + 1;
        self.trial
            .compare_exchange(0, number, Ordering::AcqRel, Ordering::Relaxed)
            .ok()?;
        Some(Trial {
            health: Arc::clone(self),
            number,
        })
    }

    /// A stream's first token came after `ttft`: its `trial`, if it is one, has gone well. What comes of
    /// the stream is told afterwards, by [`Health::succeeded`] or [`Health::failed`].
    pub fn first_token(&self, trial: Option<&Trial>, ttft: Duration, now: Nanos) {
        let mut machines = self.machines.lock();
        let average = nanos(machines.peak.add(ttft, now)).max(1);
        self.first_token.store(average, Ordering::Relaxed);
        if let Some(spec) = self.in_order(&mut machines, trial, now) {
            let ended = machines.detector.first_token(&spec, ttft, now);
            self.judge_latency(&mut machines, &spec, ended, now);
        }
    }

    /// An answer was whole. `ttft`: when its first token came, unless that was told.
    pub fn succeeded(&self, trial: Option<&Trial>, ttft: Option<Duration>, now: Nanos) {
        if let Some(ttft) = ttft {
            self.first_token(trial, ttft, now);
        }
        self.counters.successes.inc();
        let mut machines = self.machines.lock();
        if let Some(spec) = self.in_order(&mut machines, trial, now) {
            let ended = machines.detector.succeeded(&spec, now);
            self.judge_latency(&mut machines, &spec, ended, now);
        }
    }

    /// An attempt goes well. The settings to judge it by; none where it is not judged, as it began
    /// before an ejection, was a last resort, or has ended one as its trial.
    fn in_order(
        &self,
        machines: &mut Machines,
        trial: Option<&Trial>,
        now: Nanos,
    ) -> Option<OutlierSpec> {
        let spec = machines.settings.outlier?;
        if machines.ejections.until().is_none() {
            return Some(spec);
        }
        if trial.is_some_and(Trial::end) {
            self.come_in(machines, now);
        }
        None
    }

    /// An attempt failed with `error`; see [`Verdict::of`] for what that says. Not for what the gateway
    /// itself refused before it tried, as a full queue does.
    pub fn failed(&self, trial: Option<&Trial>, error: &Error, now: Nanos) {
        let verdict = Verdict::of(error);
        if verdict == Verdict::Neutral {
            return;
        }
        let mut machines = self.machines.lock();
        match verdict {
            Verdict::Neutral => {}
            Verdict::Overload(wait) => {
                let until = now.saturating_add(nanos(wait.min(MAX_BACK_OFF)));
                self.backs_off_until.fetch_max(until, Ordering::Relaxed);
            }
            Verdict::Failure => {
                self.counters.failures.inc();
                let Some(spec) = machines.settings.outlier else {
                    return;
                };
                if machines.ejections.until().is_some() {
                    if trial.is_some_and(Trial::end) {
                        // It is out already, which no percentage forbids.
                        self.eject(&mut machines, &spec, Cause::Trial, now);
                    }
                    return;
                }
                if let Some(cause) = machines.detector.failed(&spec, now) {
                    self.eject_if_borne(&mut machines, &spec, cause, now);
                }
            }
        }
    }

    /// A probe found the engine in this state.
    pub fn report(&self, engine: Engine, now: Nanos) {
        self.counters.probed(engine);
        let mut machines = self.machines.lock();
        let before = Engine::of(self.engine.swap(engine as u8, Ordering::AcqRel));
        let mut changed = before != engine;
        if engine == Engine::Warm {
            if machines.ejections.end_early(now) {
                self.publish(&machines);
                changed = true;
            }
            let was_away = !matches!(before, Engine::Unknown | Engine::Warm);
            if self.joins.swap(false, Ordering::Relaxed) || was_away {
                self.ramp_from.store(now.max(1), Ordering::Relaxed);
                machines.detector.clear(now);
            }
        } else {
            machines.ejections.probe_failed();
        }
        drop(machines);
        if changed {
            self.changed.notify_waiters();
        }
    }

    /// The engine said so of its load.
    pub fn report_load(&self, load: Report, now: Nanos) {
        self.load.set(load, now);
    }

    /// Its agent answers, or does not.
    pub fn report_agent(&self, answers: bool) {
        let state = if answers {
            AgentState::Answers
        } else {
            AgentState::Away
        };
        self.agent.store(state as u8, Ordering::Relaxed);
    }

    /// What is known of its agent.
    pub fn agent(&self) -> AgentState {
        AgentState::of(self.agent.load(Ordering::Relaxed))
    }

    /// From now on it takes no new requests, or does again. It is drained, too, while its
    /// configuration says so.
    pub fn drain(&self, draining: bool) {
        self.drained.store(draining, Ordering::Release);
        self.changed.notify_waiters();
    }

    /// Whether an administrator drains it.
    pub fn is_drained(&self) -> bool {
        self.drained.load(Ordering::Relaxed)
    }

    /// Whether it takes no new requests by decision.
    pub fn is_draining(&self) -> bool {
        self.is_drained() || self.configured_draining.load(Ordering::Relaxed)
    }

    /// What probes found last.
    pub fn engine(&self) -> Engine {
        Engine::of(self.engine.load(Ordering::Relaxed))
    }

    /// Moving average of the time to first token, sensitive to peaks ([`Peak`]).
    pub fn ttft(&self) -> Option<Duration> {
        let nanos = self.first_token.load(Ordering::Relaxed);
        (nanos != 0).then(|| Duration::from_nanos(nanos))
    }

    /// What the engine said last of its load.
    pub fn load(&self, now: Nanos) -> Option<Load> {
        self.load.get(now)
    }

    /// Whether it is out, but may be tried where there is nothing else: what its requests came to, or
    /// what a probe found, is a guess of what the next one comes to.
    pub fn is_last_resort(&self, now: Nanos) -> bool {
        matches!(
            self.availability(now),
            Availability::Out | Availability::Trial
        )
    }

    /// When it is next worth asking, so far as that is known beforehand: an ejection's end, or that of
    /// a back-off. None when it takes requests, or when only a probe can tell.
    pub fn back_at(&self, now: Nanos) -> Option<Nanos> {
        let ejected = self.out_until.load(Ordering::Acquire);
        let backs_off = self.backs_off_until.load(Ordering::Relaxed);
        let at = ejected.max(backs_off);
        (at > now).then_some(at)
    }

    /// Resolves when something about it has changed since the call: an engine that has become warm,
    /// a drain. Not when time alone changes it ([`Health::back_at`]). Enable it before looking.
    pub fn changed(&self) -> Notified<'_> {
        self.changed.notified()
    }

    /// A request wants this engine awake.
    pub fn want(&self) {
        // A plain load first, as every request that is held says so.
        if !self.wanted.load(Ordering::Relaxed) {
            self.wanted.store(true, Ordering::Release);
        }
    }

    /// Whether one wanted it since the last call.
    pub fn take_wanted(&self) -> bool {
        self.wanted.load(Ordering::Relaxed) && self.wanted.swap(false, Ordering::AcqRel)
    }

    /// Everything for who looks.
    pub fn view(&self, now: Nanos) -> View {
        let availability = self.availability(now);
        let machines = self.machines.lock();
        let seconds_to = |at: Nanos| Duration::from_nanos(at.saturating_sub(now)).as_secs_f64();
        let backs_off = self.backs_off_until.load(Ordering::Relaxed);
        View {
            state: self.engine().name(),
            agent: self.agent().name(),
            availability: availability.name(),
            share: match availability {
                Availability::Open { share } => share,
                _ => 0.0,
            },
            ejection: machines
                .ejections
                .until()
                .zip(machines.cause)
                .map(|(until, reason)| Ejected {
                    reason,
                    ends_in_s: seconds_to(until),
                    streak: machines.ejections.streak(),
                }),
            ejections: self.counters.ejections(),
            backs_off_s: (backs_off > now).then(|| seconds_to(backs_off)),
            draining: self.is_draining(),
            successes: self.counters.successes.get(),
            failures: self.counters.failures.get(),
            first_token_ms: self.ttft().map(|ttft| ttft.as_secs_f64() * 1e3),
            load: self.load(now).map(Into::into),
        }
    }

    /// Sets the gauges to what holds at `now`.
    pub fn show(&self, now: Nanos) {
        self.counters
            .show(self.availability(now), self.ttft(), self.agent());
    }

    /// Whether requests have it ejected, half open included.
    pub(super) fn is_ejected(&self) -> bool {
        self.out_until.load(Ordering::Acquire) != 0
    }

    /// Mean time to first token of its last interval that had enough requests, unless that ended
    /// before `since`.
    pub(super) fn interval_first_token(&self, since: Nanos) -> Option<Duration> {
        let mean = self.interval_first_token.load(Ordering::Relaxed);
        let ended = self.interval_ended.load(Ordering::Relaxed);
        (mean != 0 && ended >= since).then(|| Duration::from_nanos(mean))
    }

    fn judge_latency(
        &self,
        machines: &mut Machines,
        spec: &OutlierSpec,
        ended: Option<Interval>,
        now: Nanos,
    ) {
        let Some(mean) = ended.and_then(|ended| ended.first_token) else {
            return;
        };
        self.interval_first_token
            .store(nanos(mean).max(1), Ordering::Relaxed);
        self.interval_ended.store(now, Ordering::Relaxed);
        let since = now.saturating_sub(nanos(span(spec.interval_s)).saturating_mul(3));
        // Models differ, so a tier is compared with itself; where it cannot be, it says nothing.
        let mut compared = false;
        let slow = self.groups.load().iter().all(|group| {
            let mut others = siblings::first_tokens(group, self, since);
            compared |= !others.is_empty();
            others.is_empty() || Detector::is_slow(spec, mean, &mut others)
        });
        if compared && slow {
            self.eject_if_borne(machines, spec, Cause::Latency, now);
        }
    }

    fn eject_if_borne(
        &self,
        machines: &mut Machines,
        spec: &OutlierSpec,
        cause: Cause,
        now: Nanos,
    ) {
        siblings::eject_if_borne(&self.groups.load(), spec.max_ejection_percent, || {
            self.eject(machines, spec, cause, now);
        });
    }

    fn eject(&self, machines: &mut Machines, spec: &OutlierSpec, cause: Cause, now: Nanos) {
        machines.ejections.eject(spec, now);
        machines.cause = Some(cause);
        machines.detector.clear(now);
        self.counters.ejected(cause);
        self.trial.store(0, Ordering::Release);
        self.publish(machines);
        self.changed.notify_waiters();
    }

    fn come_in(&self, machines: &mut Machines, now: Nanos) {
        machines.ejections.close(now);
        machines.cause = None;
        machines.detector.clear(now);
        self.ramp_from.store(now.max(1), Ordering::Relaxed);
        self.publish(machines);
        self.changed.notify_waiters();
    }

    fn publish(&self, machines: &Machines) {
        let until = machines.ejections.until().map_or(0, |until| until.max(1));
        self.out_until.store(until, Ordering::Release);
    }
}
