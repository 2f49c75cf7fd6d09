//! Waiting for an engine that is being started.
use std::future::Future;
use std::pin::Pin;
use std::sync::Arc;
use std::task::Poll;
use std::time::Duration;

use tokio::sync::futures::Notified;
use tokio::time::Instant;

use super::trail::Trail;
use crate::alarm::{Alarm, Elapsed};
use crate::gateway::monotonic;
use crate::health::Availability;
use crate::metrics::Gauge;
use crate::snapshot::Target;

/// So often a request that is held looks again, for what nobody tells: a place at a higher tier, an
/// ejection's end.
const LOOK: Duration = Duration::from_millis(250);

/// Who is told that a request is held for an engine that is being started.
pub trait Waiting {
    /// It is held, and has been for the upstream's `keep_alive` since this was last called: time for a
    /// sign of life to the client.
    fn held(&mut self);
}

/// The wait of one request at the cold engines of one tier.
pub(super) struct Hold<'a> {
    engines: Vec<&'a Target>,
    /// When it ends, whatever happens: it is time to spill, or to give up.
    ends: Instant,
    keep_alive: Duration,
    /// It is not yet time to go to another tier.
    pub(super) comes_first: bool,
}

impl<'a> Hold<'a> {
    /// Whether a target's engine is not there, but can be waited for.
    pub(super) fn is_for(target: &Target) -> bool {
        let away = || target.upstream.health.availability(monotonic());
        target.cold.is_some() && matches!(away(), Availability::Cold | Availability::Loading)
    }

    /// A request's wait at these engines, which are wanted from now on. None where there are none,
    /// where too many wait already, or where its time is over. `further`: there is another tier;
    /// `shown`: the model's count of those that wait.
    pub(super) fn at(
        engines: Vec<&'a Target>,
        trail: &mut Trail,
        further: bool,
        shown: &Arc<Gauge>,
    ) -> Option<Self> {
        let cold = || engines.iter().filter_map(|target| target.cold.as_ref());
        for target in &engines {
            target.upstream.health.want();
        }
        let longest = cold().map(|cold| cold.hold).max()?;
        if trail.held.is_none() {
            trail.held = Some(cold().find_map(|cold| cold.hold(shown))?);
        }
        let now = Instant::now();
        let since = *trail.held_since.get_or_insert(now);
        let spill = since + cold().map(|cold| cold.spill_after).min()?;
        let over = since + longest;
        let comes_first = !further || now < spill;
        let ends = if further && comes_first {
            spill.min(over)
        } else {
            over
        };
        let keep_alive = cold()
            .map(|cold| cold.keep_alive)
            .filter(|time| !time.is_zero())
            .min();
        (now < over).then(|| Self {
            ends,
            keep_alive: keep_alive.unwrap_or(crate::snapshot::MAX_TIMEOUT),
            comes_first,
            engines,
        })
    }

    /// Waits until one of the engines has changed, or it is time to look again.
    pub(super) async fn wait(
        self,
        trail: &mut Trail,
        until: Instant,
        alarm: &mut Alarm,
        waiting: &mut (dyn Waiting + Send),
    ) {
        let told = |target: &&'a Target| Box::pin(target.upstream.health.changed());
        let mut changes: Vec<Pin<Box<Notified<'_>>>> = self.engines.iter().map(told).collect();
        for change in &mut changes {
            change.as_mut().enable();
        }
        if !self.engines.iter().all(|target| Self::is_for(target)) {
            return;
        }
        let now = Instant::now();
        let last = *trail.told.get_or_insert(now);
        let tick = last + self.keep_alive;
        let look = [now + LOOK, self.ends, tick, until].into_iter().min();
        let any = std::future::poll_fn(|cx| {
            let mut polled = changes.iter_mut().map(|change| change.as_mut().poll(cx));
            if polled.any(|change| change.is_ready()) {
                Poll::Ready(())
            } else {
                Poll::Pending
            }
        });
        let ended = alarm.within(look.unwrap_or(until), any).await;
        if let Err(Elapsed) = ended
            && Instant::now() >= tick
        {
            trail.told = Some(Instant::now());
            waiting.held();
        }
    }
}
