//! Finished requests of a gateway that has no spool, for who embeds the core and takes them himself.
use std::sync::atomic::{AtomicUsize, Ordering};

use crossbeam_queue::SegQueue;

use crate::record::UsageEvent;

/// Events that nobody takes beyond this are dropped, and counted.
const MAX_EVENTS: usize = 500_000;

/// The usage events that wait to be taken. With a [`crate::spool::Spool`] there are none.
#[derive(Default)]
pub struct Events {
    queue: SegQueue<UsageEvent>,
    waiting: AtomicUsize,
}

impl Events {
    /// Books one event.
    pub fn push(&self, event: UsageEvent) -> bool {
        if self.waiting.fetch_add(1, Ordering::Relaxed) >= MAX_EVENTS {
            self.waiting.fetch_sub(1, Ordering::Relaxed);
            return false;
        }
        self.queue.push(event);
        true
    }

    /// Takes up to `limit` events, oldest first.
    pub fn take(&self, limit: usize) -> Vec<UsageEvent> {
        let mut taken = Vec::with_capacity(limit.min(self.len()));
        while taken.len() < limit
            && let Some(event) = self.queue.pop()
        {
            taken.push(event);
        }
        self.waiting.fetch_sub(taken.len(), Ordering::Relaxed);
        taken
    }

    /// How many wait.
    pub fn len(&self) -> usize {
        self.waiting.load(Ordering::Relaxed)
    }

    /// Whether none waits.
    pub fn is_empty(&self) -> bool {
        self.len() == 0
    }
}
