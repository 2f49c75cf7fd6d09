//! How long an ejection lasts, and how an upstream comes back from one.
use super::{nanos, span};
use crate::limit::Nanos;
use crate::snapshot::OutlierSpec;

/// The ejections of one upstream: *in* → *out* until a time → *half open* → *in*, or *out* again for
/// longer.
///
/// The n-th ejection in succession lasts n × `base_ejection`, at most `max_ejection`. With every
/// `interval` that the upstream stays in, n falls by one (Envoy's rule).
#[derive(Clone, Debug, Default)]
pub struct Ejections {
    /// How many ejections in succession the next one follows, as of `since`.
    streak: u32,
    /// Since when it is in.
    since: Nanos,
    /// Until when it is out; half open from then on. None: in.
    until: Option<Nanos>,
    /// A good probe has ended this ejection, or the one whose trial failed, before its time.
    ended_early: bool,
}

impl Ejections {
    /// Takes it out, from in or half open. Gives until when.
    pub fn eject(&mut self, spec: &OutlierSpec, now: Nanos) -> Nanos {
        if self.until.is_none() {
            let interval = nanos(span(spec.interval_s)).max(1);
            let calm = now.saturating_sub(self.since) / interval;
            let calm = u32::try_from(calm).unwrap_or(u32::MAX);
            self.streak = self.streak.saturating_sub(calm);
        }
        self.streak = self.streak.saturating_add(1);
        let time = span(spec.base_ejection_s)
            .saturating_mul(self.streak)
            .min(span(spec.max_ejection_s));
        let until = now.saturating_add(nanos(time));
        self.until = Some(until);
        until
    }

    /// The trial went well: it is in.
    pub fn close(&mut self, now: Nanos) {
        self.until = None;
        self.since = now;
        self.ended_early = false;
    }

    /// A probe found it well: the ejection ends now, half open. Once only, as its requests may fail
    /// though its probes do not; again after a probe has failed ([`Ejections::probe_failed`]).
    /// Whether that changed anything.
    pub fn end_early(&mut self, now: Nanos) -> bool {
        match &mut self.until {
            Some(until) if *until > now && !self.ended_early => {
                *until = now;
                self.ended_early = true;
                true
            }
            _ => false,
        }
    }

    /// A probe failed; the next good one says something new.
    pub fn probe_failed(&mut self) {
        self.ended_early = false;
    }

    /// Until when it is out; from then on it is half open. None: it is in.
    pub fn until(&self) -> Option<Nanos> {
        self.until
    }

    /// How many ejections in succession there have been.
    pub fn streak(&self) -> u32 {
        self.streak
    }
}
