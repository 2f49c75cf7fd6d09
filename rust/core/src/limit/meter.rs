//! Every limit of one key, decided together.

use std::sync::Arc;
use std::sync::atomic::{AtomicI64, AtomicU32, Ordering::Relaxed};

use super::gcra::{Quote, Tat};
use super::permits::Holders;
use super::plan::Plan;
use super::{Nanos, Quota, State};

/// The wait suggested to a request refused for concurrency: no clock tells when another one ends.
pub const CONCURRENCY_RETRY: Nanos = 1_000_000_000;

/// A key's limits as configured; `None` is no limit and 0 refuses everything.
#[derive(Clone, Copy, Debug, Default, PartialEq, Eq, Hash)]
pub struct Limits {
    /// Requests per minute.
    pub rpm: Option<u64>,
    /// Requests at once; a sixth of `rpm` (ten seconds' worth), at least 1, unless given.
    pub rpm_burst: Option<u64>,
    /// Tokens per minute.
    pub tpm: Option<u64>,
    /// Tokens at once; all of `tpm` unless given.
    pub tpm_burst: Option<u64>,
    /// Requests in flight.
    pub concurrency: Option<u32>,
}

impl Limits {
    pub(super) fn requests(&self) -> Option<Quota> {
        let burst = |rpm: u64| self.rpm_burst.unwrap_or((rpm / 6).max(1));
        self.rpm
            .map(|rpm| Quota::per_minute_clamped(rpm, burst(rpm)))
    }

    pub(super) fn tokens(&self) -> Option<Quota> {
        self.tpm
            .map(|tpm| Quota::per_minute_clamped(tpm, self.tpm_burst.unwrap_or(tpm)))
    }
}

/// Which limit refused.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum Dimension {
    /// Requests per minute.
    Requests,
    /// Tokens per minute.
    Tokens,
    /// Requests in flight.
    Concurrency,
}

impl Dimension {
    /// The name used in headers, metrics and messages.
    pub fn as_str(self) -> &'static str {
        match self {
            Self::Requests => "requests",
            Self::Tokens => "tokens",
            Self::Concurrency => "concurrency",
        }
    }
}

/// An admission, with the fill that it left for the headers of the answer.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub struct Admitted {
    /// Tokens reserved, to be passed to [`Meter::settle`] or [`Meter::cancel`].
    pub reserved: u64,
    /// Absent without a limit on requests.
    pub requests: Option<State>,
    /// Absent without a limit on tokens.
    pub tokens: Option<State>,
}

/// A refusal. It cost nothing.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub struct Refusal {
    /// The limit to name: one that no wait cures, else the one with the longest wait.
    pub dimension: Dimension,
    /// The wait after which all limits would admit the same request ([`CONCURRENCY_RETRY`] for
    /// concurrency, which is a guess). `None`: the cost exceeds the burst, so no wait cures it.
    pub retry_after: Option<Nanos>,
    /// Units per minute, or requests in flight, as configured.
    pub limit: u64,
    /// The most that one request may cost in that dimension.
    pub burst: u64,
    /// The fill of all limits.
    pub state: MeterState,
}

/// The fill of every limit of a key.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub struct MeterState {
    /// Absent without a limit on requests.
    pub requests: Option<State>,
    /// Absent without a limit on tokens.
    pub tokens: Option<State>,
    /// Requests in flight; counted with or without a limit.
    pub in_flight: u64,
    /// The limit on requests in flight.
    pub max_in_flight: Option<u32>,
}

/// What the successive meters of one key share, so that a request admitted under the old limits is
/// released and settled under the new ones.
#[derive(Debug, Default)]
struct Ledger {
    holders: Holders,
    /// How often the limits have changed; a meter with a lower number is retired.
    generation: AtomicU32,
    /// Settled through a retired meter and not yet applied, in units: above 0 is owed.
    late_requests: AtomicI64,
    late_tokens: AtomicI64,
}

/// Every limit of one key: requests, tokens and concurrency, each optional.
///
/// Meters of equal limits share their quotas, and what is left fills one cache line: with a million
/// keys, an admission costs what the cache misses cost.
#[derive(Debug)]
#[repr(align(64))]
pub struct Meter {
    plan: Arc<Plan>,
    requests: Tat,
    tokens: Tat,
    generation: u32,
    /// In use unless there is a `first`.
    own: Ledger,
    /// The key's first meter, which owns the ledger.
    first: Option<Arc<Meter>>,
}

const _: () = assert!(size_of::<Meter>() == 64);

impl Meter {
    /// Full buckets and no request in flight.
    pub fn new(limits: &Limits) -> Self {
        Self {
            plan: Plan::of(limits),
            requests: Tat::default(),
            tokens: Tat::default(),
            generation: 0,
            own: Ledger::default(),
            first: None,
        }
    }

    /// A meter with other limits that takes this one's place and retires it.
    ///
    /// What is outstanding carries over in units, rounded up; a smaller burst makes no new debt and
    /// debt is kept. Requests in flight stay counted, and what they release, settle or cancel
    /// through the retired meter reaches the current one (a settlement that races this very call
    /// may miss it).
    #[must_use]
    pub fn reconfigured(self: &Arc<Self>, limits: &Limits, now: Nanos) -> Self {
        self.absorb_late();
        let plan = Plan::of(limits);
        let carry = |tat: &Tat, old: &Option<Quota>, new: &Option<Quota>| match (old, new) {
            (Some(old), Some(new)) => tat.carried(old, new, now),
            _ => Tat::default(),
        };
        Self {
            requests: carry(&self.requests, &self.plan.requests, &plan.requests),
            tokens: carry(&self.tokens, &self.plan.tokens, &plan.tokens),
            plan,
            generation: self
                .ledger()
                .generation
                .fetch_add(1, Relaxed)
                .wrapping_add(1),
            own: Ledger::default(),
            first: Some(Arc::clone(self.first.as_ref().unwrap_or(self))),
        }
    }

    #[inline]
    fn requests(&self) -> Option<Bucket<'_>> {
        Some(Bucket {
            tat: &self.requests,
            quota: self.plan.requests.as_ref()?,
        })
    }

    #[inline]
    fn tokens(&self) -> Option<Bucket<'_>> {
        Some(Bucket {
            tat: &self.tokens,
            quota: self.plan.tokens.as_ref()?,
        })
    }

    #[inline]
    fn ledger(&self) -> &Ledger {
        match &self.first {
            Some(first) => &first.own,
            None => &self.own,
        }
    }

    /// Takes one request, `tokens` tokens and one permit, or nothing.
    ///
    /// Checks all limits first, then commits permit, request, tokens; when a race is lost in
    /// between, what was taken is returned.
    ///
    /// # Errors
    /// [`Refusal`] names the limit and the wait.
    pub fn admit(&self, now: Nanos, tokens: u64) -> Result<Admitted, Refusal> {
        self.absorb_late();
        let asked = Asked::new(self.requests(), now, 1);
        let asked_tokens = Asked::new(self.tokens(), now, tokens);
        if !(passes(asked)
            && passes(asked_tokens)
            && self.ledger().holders.try_acquire(self.plan.max_in_flight))
        {
            return Err(self.refusal(now, asked, asked_tokens));
        }
        let taken = asked.map(Asked::take);
        if !passes(taken) {
            self.ledger().holders.release();
            return Err(self.refusal(now, taken, asked_tokens));
        }
        let taken_tokens = asked_tokens.map(Asked::take);
        if !passes(taken_tokens) {
            if let Some(bucket) = self.requests() {
                bucket.tat.refund(bucket.quota, 1);
            }
            self.ledger().holders.release();
            return Err(self.refusal(now, asked, taken_tokens));
        }
        Ok(Admitted {
            reserved: tokens,
            requests: taken.map(|asked| asked.state(now)),
            tokens: taken_tokens.map(|asked| asked.state(now)),
        })
    }

    /// The fill of every limit; takes nothing.
    pub fn state(&self, now: Nanos) -> MeterState {
        self.absorb_late();
        MeterState {
            requests: self
                .requests()
                .map(|bucket| bucket.tat.peek(bucket.quota, now)),
            tokens: self
                .tokens()
                .map(|bucket| bucket.tat.peek(bucket.quota, now)),
            in_flight: self.ledger().holders.count(),
            max_in_flight: u32::try_from(self.plan.max_in_flight).ok(),
        }
    }

    /// The most tokens that one request may reserve; `None` without a limit.
    pub fn token_burst(&self) -> Option<u64> {
        self.plan.tokens.as_ref().map(Quota::burst)
    }

    /// Replaces a reservation by what was used: refunds what is over, charges what is missing.
    pub fn settle(&self, reserved: u64, used: u64) {
        apply(
            self.tokens(),
            self.retired().then_some(&self.ledger().late_tokens),
            reserved,
            used,
        );
    }

    /// Takes an admission back: its request and its tokens. For a request whose upstream was never
    /// contacted.
    pub fn cancel(&self, reserved: u64) {
        self.settle(reserved, 0);
        apply(
            self.requests(),
            self.retired().then_some(&self.ledger().late_requests),
            1,
            0,
        );
    }

    /// Returns the permit of an admission.
    pub fn release(&self) {
        self.ledger().holders.release();
    }

    fn retired(&self) -> bool {
        self.ledger().generation.load(Relaxed) != self.generation
    }

    /// Applies what was settled through retired meters.
    #[inline]
    fn absorb_late(&self) {
        let ledger = self.ledger();
        if (ledger.late_tokens.load(Relaxed) | ledger.late_requests.load(Relaxed)) != 0 {
            self.absorb();
        }
    }

    #[cold]
    fn absorb(&self) {
        if self.retired() {
            return;
        }
        let ledger = self.ledger();
        for (late, bucket) in [
            (&ledger.late_requests, self.requests()),
            (&ledger.late_tokens, self.tokens()),
        ] {
            let owed = late.swap(0, Relaxed);
            if let Some(Bucket { tat, quota }) = bucket {
                if owed > 0 {
                    tat.charge(quota, owed.unsigned_abs());
                } else {
                    tat.refund(quota, owed.unsigned_abs());
                }
            }
        }
    }

    #[cold]
    fn refusal(&self, now: Nanos, requests: Option<Asked>, tokens: Option<Asked>) -> Refusal {
        let asked = [(Dimension::Requests, requests), (Dimension::Tokens, tokens)];
        let mut worst: Option<(Dimension, Option<Nanos>, &Quota)> = None;
        for (dimension, asked) in asked {
            let Some(asked) = asked else { continue };
            let wait = match asked.quote {
                Quote::Pass(..) => continue,
                Quote::Wait(until) => Some(asked.bucket.quota.wait(until, now)),
                Quote::Never => None,
            };
            // No wait outranks any wait.
            let rank = |wait: Option<Nanos>| (wait.is_none(), wait);
            if worst.is_none_or(|(_, known, _)| rank(wait) > rank(known)) {
                worst = Some((dimension, wait, asked.bucket.quota));
            }
        }
        let state = self.state(now);
        if let Some((dimension, retry_after, quota)) = worst {
            let (limit, burst) = (quota.limit(), quota.burst());
            return Refusal {
                dimension,
                retry_after,
                limit,
                burst,
                state,
            };
        }
        let max = self.plan.max_in_flight;
        Refusal {
            dimension: Dimension::Concurrency,
            retry_after: (max > 0).then_some(CONCURRENCY_RETRY),
            limit: max,
            burst: max,
            state,
        }
    }
}

/// One limit of a meter with its state.
#[derive(Clone, Copy)]
struct Bucket<'a> {
    tat: &'a Tat,
    quota: &'a Quota,
}

/// One bucket's part in an admission.
#[derive(Clone, Copy)]
struct Asked<'a> {
    bucket: Bucket<'a>,
    clock: u64,
    cost: u64,
    quote: Quote,
}

impl<'a> Asked<'a> {
    #[inline]
    fn new(bucket: Option<Bucket<'a>>, now: Nanos, cost: u64) -> Option<Self> {
        let bucket = bucket?;
        let clock = bucket.quota.ticks(now);
        Some(Self {
            bucket,
            clock,
            cost,
            quote: bucket.tat.quote(bucket.quota, clock, cost),
        })
    }

    #[inline]
    fn take(self) -> Self {
        let Bucket { tat, quota } = self.bucket;
        Self {
            quote: tat.take(quota, self.clock, self.quote, self.cost),
            ..self
        }
    }

    #[inline]
    fn state(self, now: Nanos) -> State {
        let Bucket { tat, quota } = self.bucket;
        match self.quote {
            Quote::Pass(_, new) => quota.state(new, self.clock, now),
            Quote::Wait(_) | Quote::Never => tat.peek(quota, now),
        }
    }
}

#[inline]
fn passes(asked: Option<Asked>) -> bool {
    asked.is_none_or(|asked| matches!(asked.quote, Quote::Pass(..)))
}

/// Moves the difference onto the bucket, or onto `late` where the bucket is retired.
fn apply(bucket: Option<Bucket>, late: Option<&AtomicI64>, reserved: u64, used: u64) {
    if reserved == used {
        return;
    }
    if let Some(late) = late {
        let size = i64::try_from(used.abs_diff(reserved)).unwrap_or(i64::MAX);
        let owed = if used > reserved { size } else { -size };
        let mut seen = late.load(Relaxed);
        while let Err(now) =
            late.compare_exchange_weak(seen, seen.saturating_add(owed), Relaxed, Relaxed)
        {
            seen = now;
        }
    } else if let Some(Bucket { tat, quota }) = bucket {
        if used > reserved {
            tat.charge(quota, used - reserved);
        } else {
            tat.refund(quota, reserved - used);
        }
    }
}
