//! Limits shared by several processes, as their syncer and the tests hold them.
use std::os::fd::{AsFd, AsRawFd, OwnedFd};
use std::sync::Arc;
use std::time::Duration;

use forebay_core::gateway::Gateway;
use forebay_core::limit::lease::{self, LeaseQuote, OnStoreLoss, Round, Terms, Ticket};
use parking_lot::Mutex;
use pyo3::exceptions::{PyOSError, PyValueError};
use pyo3::prelude::*;
use rustix::event::{EventfdFlags, eventfd};

/// Calls to send: a number for the reply, keys, and arguments after the participant's name.
type Calls = Vec<(usize, Vec<String>, Vec<String>)>;

/// The leases of a process, and the bell that says that one of them wants to ask.
#[pyclass(frozen, module = "forebay._core")]
pub(crate) struct Leases {
    gateway: Arc<Gateway>,
    bell: Arc<OwnedFd>,
    /// Sent and not answered yet, each call by itself.
    open: Mutex<Vec<Option<(u64, lease::Call)>>>,
}

impl Leases {
    pub(crate) fn new(gateway: Arc<Gateway>, expected: u64) -> PyResult<Self> {
        let bell = eventfd(0, EventfdFlags::NONBLOCK | EventfdFlags::CLOEXEC);
        let bell = Arc::new(bell.map_err(|e| PyOSError::new_err(e.to_string()))?);
        let ringing = Arc::clone(&bell);
        gateway.leases.activate(expected, move || {
            // It fails only when the counter is full, and then the bell is ringing already.
            let _ = rustix::io::write(&*ringing, &1_u64.to_ne_bytes());
        });
        Ok(Self {
            gateway,
            bell,
            open: Mutex::default(),
        })
    }

    fn open(&self, round: Round) -> Calls {
        let mut open = self.open.lock();
        let mut calls = Vec::with_capacity(round.calls.len());
        for call in round.calls {
            let number = open.iter().position(Option::is_none).unwrap_or(open.len());
            calls.push((number, call.keys(), call.arguments()));
            let place = Some((round.sent, call));
            match open.get_mut(number) {
                Some(free) => *free = place,
                None => open.push(place),
            }
        }
        calls
    }

    fn lease(&self, id: &str, tag: &str, terms: Terms) -> Lease {
        Lease {
            lease: self.gateway.leases.get_or_create(id, tag, terms),
            gateway: Arc::clone(&self.gateway),
        }
    }
}

#[pymethods]
impl Leases {
    /// The descriptor that becomes readable when `collect` should be called early.
    #[getter]
    fn fd(&self) -> i32 {
        self.bell.as_fd().as_raw_fd()
    }

    /// What to send now, and the seconds until the next look unless the bell rings.
    fn collect(&self) -> (Calls, f64) {
        let mut count = [0; 8];
        // Nothing to read: it was called by the clock.
        let _ = rustix::io::read(&*self.bell, &mut count);
        let now = self.gateway.now().mono;
        let (round, next) = self.gateway.leases.collect(now);
        let calls = round.map(|round| self.open(round)).unwrap_or_default();
        let wait = Duration::from_nanos(next.saturating_sub(now));
        (calls, wait.as_secs_f64())
    }

    /// The last calls of a process that ends: everything unused goes back.
    fn farewell(&self) -> Calls {
        self.open(self.gateway.leases.farewell(self.gateway.now().mono))
    }

    /// The reply to a call, or `None` if it failed.
    #[pyo3(signature = (number, reply))]
    fn answer(&self, number: usize, reply: Option<Vec<i64>>) -> PyResult<()> {
        let place = self.open.lock().get_mut(number).and_then(Option::take);
        let Some((sent, call)) = place else {
            return Err(PyValueError::new_err("no such call is open"));
        };
        let grants = reply.and_then(|reply| call.grants(&reply));
        let now = self.gateway.now().mono;
        self.gateway
            .leases
            .answer(sent, now, &call, grants.as_deref());
        Ok(())
    }

    /// The store is given up; everything is spent from shares.
    fn store_lost(&self) {
        self.gateway.leases.store_lost(self.gateway.now().mono);
    }

    /// The store answers again.
    fn store_back(&self) {
        self.gateway.leases.store_back();
    }

    /// Participants alive, as far as is known.
    #[getter]
    fn live(&self) -> u64 {
        self.gateway.leases.live()
    }

    fn __len__(&self) -> usize {
        self.gateway.leases.len()
    }

    /// The lease of a rate: `units` per `period_s` seconds.
    #[pyo3(signature = (id, tag, *, units, period_s, burst, deny=false))]
    fn rate(
        &self,
        id: &str,
        tag: &str,
        units: u64,
        period_s: f64,
        burst: u64,
        deny: bool,
    ) -> PyResult<Lease> {
        let period = Duration::try_from_secs_f64(period_s)
            .map_err(|e| PyValueError::new_err(e.to_string()))?;
        Ok(self.lease(id, tag, Terms::rate(units, period, burst, on_loss(deny))))
    }

    /// The lease of a concurrency limit.
    #[pyo3(signature = (id, tag, *, capacity, deny=false))]
    fn permits(&self, id: &str, tag: &str, capacity: u64, deny: bool) -> Lease {
        self.lease(id, tag, Terms::permits(capacity, on_loss(deny)))
    }

    /// The lease of a budget, in nano-USD.
    #[pyo3(signature = (id, tag, *, capacity, deny=false))]
    fn money(&self, id: &str, tag: &str, capacity: u64, deny: bool) -> Lease {
        self.lease(id, tag, Terms::money(capacity, on_loss(deny)))
    }
}

fn on_loss(deny: bool) -> OnStoreLoss {
    if deny {
        OnStoreLoss::Deny
    } else {
        OnStoreLoss::Share
    }
}

/// One lease on its own: for tests, benches and tools.
#[pyclass(frozen, module = "forebay._core")]
pub(crate) struct Lease {
    lease: Arc<lease::Lease>,
    gateway: Arc<Gateway>,
}

#[pymethods]
impl Lease {
    /// Takes `cost`: -1 if taken, -2 if the store must be asked, -3 if no wait cures it, else the
    /// wait in nanoseconds.
    fn take(&self, cost: u64) -> i64 {
        let now = self.gateway.now().mono;
        let found = match self.lease.quote(now, cost) {
            LeaseQuote::Pass { .. } => self.lease.take(now, cost),
            found => found,
        };
        match found {
            LeaseQuote::Pass { .. } => -1,
            LeaseQuote::NeedGrant => -2,
            LeaseQuote::Never => -3,
            LeaseQuote::Wait { until } => {
                i64::try_from(until.saturating_sub(now)).unwrap_or(i64::MAX)
            }
        }
    }

    /// Has the store asked for `cost`; a number for `is_answered`.
    fn request(&self, cost: u64) -> u64 {
        self.lease.request(self.gateway.now().mono, cost).number()
    }

    /// Whether the store has answered that request, or failed.
    fn is_answered(&self, ticket: u64) -> bool {
        self.lease.is_answered(Ticket::from(ticket))
    }

    /// Replaces what was taken by what was used.
    fn settle(&self, taken: u64, used: u64) {
        self.lease.settle(taken, used);
    }

    /// Whole units that could be had now, as far as is known.
    #[getter]
    fn remaining(&self) -> u64 {
        self.lease.state(self.gateway.now().mono).remaining
    }

    /// Whether it spends its share, as the store is lost.
    #[getter]
    fn in_share(&self) -> bool {
        self.lease.in_share()
    }
}
