//! The wait queue of one upstream: who starts next when a place comes free.
//!
//! Fair by tokens: of the accounts that wait, the one that was served least for its weight goes
//! next (the Virtual Token Counter of Sheng et al., "Fairness in Serving Large Language Models",
//! OSDI 2024; the floor is that of start-time fair queueing, Goyal et al., SIGCOMM 1996). Within an
//! account and class it is first come, first served. `interactive` goes before `batch`, except that
//! while both wait one start in [`BATCH_SHARE`] is a batch request's.
//!
//! A request is charged at its start with what it is expected to cost, times what earlier ones cost
//! of what they were expected to, and at its end with what it did cost: reservations are made for
//! the longest answer, and a charge far too high would keep an account's next request waiting.
//!
//! Bounded: a full queue takes a request in only if another one gives way. Time is an argument.

mod lanes;
mod learned;

use std::sync::Arc;
use std::time::Duration;

use crate::limit::Nanos;
use lanes::Lanes;
use learned::{Pace, Ratio};

/// While both classes wait, one start in so many is a batch request's.
pub const BATCH_SHARE: u32 = 10;

/// How urgent a request is.
#[derive(Clone, Copy, Debug, Default, PartialEq, Eq, Hash)]
pub enum Priority {
    /// Somebody waits for it.
    #[default]
    Interactive,
    /// Nobody does: it yields to interactive requests.
    Batch,
}

/// What a request asks of an upstream, and for whom.
#[derive(Clone, Debug)]
pub struct Ask {
    /// Whose share it comes out of.
    pub account: Arc<str>,
    /// The account's share against that of others, from 0.001 to 1000.
    pub weight: f32,
    /// Its class.
    pub priority: Priority,
    /// What it is expected to cost, tokens.
    pub tokens: u64,
}

/// A place in the queue.
#[derive(Clone, Debug, PartialEq, Eq, Hash)]
pub struct Ticket {
    account: Arc<str>,
    priority: Priority,
    number: u64,
}

/// A request that has started, and what it was charged.
#[derive(Clone, Debug)]
pub struct Started {
    /// Whose share it came out of.
    pub account: Arc<str>,
    /// Its class.
    pub priority: Priority,
    /// What it was expected to cost, tokens.
    pub expected: u64,
    charged: u64,
}

/// Why a request is not to start.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum Reason {
    /// Too many wait, and none that should give way to it.
    Full,
    /// It waited, and gave way to another.
    Displaced,
    /// It could not start before its deadline.
    Late,
    /// Its deadline came while it waited.
    Timeout,
}

impl Reason {
    /// All, in the order of their index.
    pub const ALL: [Self; 4] = [Self::Full, Self::Displaced, Self::Late, Self::Timeout];

    /// The name in metrics.
    pub const fn name(self) -> &'static str {
        match self {
            Self::Full => "full",
            Self::Displaced => "displaced",
            Self::Late => "late",
            Self::Timeout => "timeout",
        }
    }
}

/// A request that is not to start, and when one like it might; `None` where nothing is known.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub struct Refusal {
    /// Why.
    pub reason: Reason,
    /// The estimated wait.
    pub retry_after: Option<Duration>,
}

/// A request that now waits.
#[derive(Debug)]
pub struct Placed<T> {
    /// Its place.
    pub ticket: Ticket,
    /// The request that gave way to it; it waits no more.
    pub displaced: Option<T>,
}

/// Requests that wait for a place at one upstream. `T` is what the owner knows each by.
#[derive(Debug)]
pub struct WaitQueue<T> {
    max_waiting: usize,
    interactive: Lanes<T>,
    batch: Lanes<T>,
    /// Interactive starts since a batch request began to wait or was last started.
    passed_over: u32,
    next: u64,
    pace: Pace,
    ratio: Ratio,
}

impl<T> WaitQueue<T> {
    /// An empty queue for up to `max_waiting` requests.
    pub fn new(max_waiting: usize) -> Self {
        Self {
            max_waiting,
            interactive: Lanes::default(),
            batch: Lanes::default(),
            passed_over: 0,
            next: 0,
            pace: Pace::default(),
            ratio: Ratio::default(),
        }
    }

    /// How many wait.
    pub fn len(&self) -> usize {
        self.interactive.len() + self.batch.len()
    }

    /// Whether none waits.
    pub fn is_empty(&self) -> bool {
        self.len() == 0
    }

    /// Accounts that are remembered, waiting or not.
    pub fn accounts(&self) -> usize {
        self.interactive.accounts() + self.batch.accounts()
    }

    /// Lets a request wait until `deadline`.
    ///
    /// Refused at once if it cannot start by then as far as is known, or if the queue is full and
    /// none of these gives way: for an interactive request, the newest batch request of the account
    /// that has most of them waiting; else the newest of its class of the account that has most
    /// waiting there, if those are more than the request's own account would have.
    pub fn push(
        &mut self,
        ask: &Ask,
        deadline: Nanos,
        now: Nanos,
        value: T,
    ) -> Result<Placed<T>, Refusal> {
        let wait = self.expected_wait(ask, now);
        let refused = |reason| Refusal {
            reason,
            retry_after: wait,
        };
        let left = Duration::from_nanos(deadline.saturating_sub(now));
        if wait.is_some_and(|wait| wait > left) {
            return Err(refused(Reason::Late));
        }
        let displaced = if self.len() < self.max_waiting {
            None
        } else {
            Some(self.displace(ask).ok_or_else(|| refused(Reason::Full))?)
        };
        let number = self.next;
        self.next += 1;
        self.class(ask.priority).push(ask, number, value);
        let ticket = Ticket {
            account: Arc::clone(&ask.account),
            priority: ask.priority,
            number,
        };
        Ok(Placed { ticket, displaced })
    }

    /// Takes out who gives way to `ask`.
    fn displace(&mut self, ask: &Ask) -> Option<T> {
        if self.max_waiting == 0 {
            return None;
        }
        if ask.priority == Priority::Interactive && self.batch.len() > 0 {
            return self.batch.pop_newest(0);
        }
        let class = self.class(ask.priority);
        let own = class.waiting_of(&ask.account) + 1;
        class.pop_newest(own)
    }

    /// Takes out the request whose turn it is: it has started.
    pub fn pop(&mut self, now: Nanos) -> Option<(Started, T)> {
        let both = self.interactive.len() > 0 && self.batch.len() > 0;
        let batch = self.interactive.len() == 0 || (both && self.passed_over + 1 >= BATCH_SHARE);
        self.passed_over = if batch || !both {
            0
        } else {
            self.passed_over + 1
        };
        let priority = if batch {
            Priority::Batch
        } else {
            Priority::Interactive
        };
        let ratio = self.ratio;
        let class = self.class(priority);
        let (account, expected, charged, value) = class.pop(|tokens| ratio.of(tokens))?;
        self.pace.started(now);
        let started = Started {
            account,
            priority,
            expected,
            charged,
        };
        Some((started, value))
    }

    /// Takes out a request that no longer waits for its turn; `None` if it had left the queue.
    pub fn remove(&mut self, ticket: &Ticket) -> Option<T> {
        self.class(ticket.priority)
            .remove(&ticket.account, ticket.number)
    }

    /// A request started that never waited.
    pub fn started(&mut self, ask: &Ask, now: Nanos) -> Started {
        let charged = self.ratio.of(ask.tokens);
        self.class(ask.priority).started(ask, charged);
        self.pace.started(now);
        Started {
            account: Arc::clone(&ask.account),
            priority: ask.priority,
            expected: ask.tokens,
            charged,
        }
    }

    /// A request has ended, `held` after its start. `used`: what it did cost, tokens; `None` if that
    /// is not known, and then it keeps its charge.
    pub fn ended(&mut self, started: &Started, used: Option<u64>, held: Duration, now: Nanos) {
        if let Some(used) = used {
            self.ratio.learn(started.expected, used);
        }
        let due = used.unwrap_or(started.charged);
        self.class(started.priority)
            .ended(&started.account, started.charged, due);
        self.pace.ended(held, now);
    }

    /// How long a request like this would wait, by its fair place in the queue and the time that
    /// requests hold their places; `None` until enough has been seen.
    pub fn expected_wait(&self, ask: &Ask, now: Nanos) -> Option<Duration> {
        let share = u64::from(BATCH_SHARE);
        let ahead = match ask.priority {
            Priority::Interactive => {
                let ahead = self.interactive.ahead(&ask.account, ask.weight);
                ahead + (ahead / (share - 1)).min(self.batch.len() as u64)
            }
            Priority::Batch => {
                let ahead = self.batch.ahead(&ask.account, ask.weight);
                let before = (ahead + 1).saturating_mul(share - 1);
                ahead + before.min(self.interactive.len() as u64)
            }
        };
        self.pace.wait(ahead, now)
    }

    fn class(&mut self, priority: Priority) -> &mut Lanes<T> {
        match priority {
            Priority::Interactive => &mut self.interactive,
            Priority::Batch => &mut self.batch,
        }
    }
}
