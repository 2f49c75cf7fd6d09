//! Time: the monotonic clock in nanoseconds, and waits finer than tokio's one millisecond.

use std::cell::{Cell, RefCell};
use std::cmp::{Ordering, Reverse};
use std::collections::BinaryHeap;
use std::future::poll_fn;
use std::io;
use std::os::fd::OwnedFd;
use std::rc::Rc;
use std::task::{Poll, Waker};

use rustix::time::{
    ClockId, Itimerspec, TimerfdClockId, TimerfdFlags, TimerfdTimerFlags, Timespec, clock_gettime,
    timerfd_create, timerfd_settime,
};
use tokio::io::Interest;
use tokio::io::unix::AsyncFd;

/// Nanoseconds in a second.
pub(crate) const SECOND: u64 = 1_000_000_000;

/// `CLOCK_MONOTONIC` in nanoseconds: the same clock in every process of one machine, so a time
/// written by the upstream can be subtracted from one read by the client.
pub(crate) fn now_ns() -> u64 {
    let t = clock_gettime(ClockId::Monotonic);
    t.tv_sec as u64 * SECOND + t.tv_nsec as u64
}

/// Wakes tasks of one thread at given times with the precision of a kernel timer.
///
/// tokio's timers tick once a millisecond: with 1,000 streams of 20 events a second that would
/// hand a gateway 20 events at once and then none, which is kinder than a real spread. A
/// `quantum_ns` above 0 makes [`Pacer::round`] ask for that shape on purpose.
#[derive(Clone)]
pub(crate) struct Pacer {
    inner: Rc<Inner>,
}

struct Inner {
    heap: RefCell<BinaryHeap<Reverse<Entry>>>,
    timer: AsyncFd<OwnedFd>,
    armed_ns: Cell<u64>,
    quantum_ns: u64,
}

struct Entry {
    due_ns: u64,
    waker: Waker,
}

impl PartialEq for Entry {
    fn eq(&self, other: &Self) -> bool {
        self.due_ns == other.due_ns
    }
}
impl Eq for Entry {}
impl PartialOrd for Entry {
    fn partial_cmp(&self, other: &Self) -> Option<Ordering> {
        Some(self.cmp(other))
    }
}
impl Ord for Entry {
    fn cmp(&self, other: &Self) -> Ordering {
        self.due_ns.cmp(&other.due_ns)
    }
}

impl Pacer {
    /// A pacer whose driver runs on the current `LocalSet`.
    pub(crate) fn start(quantum_ns: u64) -> io::Result<Self> {
        let flags = TimerfdFlags::NONBLOCK | TimerfdFlags::CLOEXEC;
        let descriptor = timerfd_create(TimerfdClockId::Monotonic, flags)?;
        // SAFETY: an `OwnedFd` is open and stays the same descriptor until it is dropped, and the
        // `AsyncFd` owns it.
        let timer = unsafe { AsyncFd::register_with_interest(descriptor, Interest::READABLE) };
        let timer = timer.map_err(|error| error.into_parts().1)?;
        let inner = Rc::new(Inner {
            heap: RefCell::new(BinaryHeap::new()),
            timer,
            armed_ns: Cell::new(u64::MAX),
            quantum_ns,
        });
        tokio::task::spawn_local(drive(Rc::clone(&inner)));
        Ok(Self { inner })
    }

    /// `due_ns` rounded up to a multiple of the quantum; itself when there is none.
    pub(crate) fn round(&self, due_ns: u64) -> u64 {
        match self.inner.quantum_ns {
            0 => due_ns,
            quantum => due_ns.div_ceil(quantum) * quantum,
        }
    }

    /// Returns once `now_ns()` has reached `due_ns`; at once if it has.
    pub(crate) async fn until(&self, due_ns: u64) {
        let mut registered: Option<Waker> = None;
        poll_fn(|cx| {
            if now_ns() >= due_ns {
                return Poll::Ready(());
            }
            if !registered.as_ref().is_some_and(|w| w.will_wake(cx.waker())) {
                registered = Some(cx.waker().clone());
                self.inner.push(due_ns, cx.waker().clone());
            }
            Poll::Pending
        })
        .await;
    }
}

impl Inner {
    fn push(&self, due_ns: u64, waker: Waker) {
        self.heap
            .borrow_mut()
            .push(Reverse(Entry { due_ns, waker }));
        if due_ns < self.armed_ns.get() {
            self.arm(due_ns);
        }
    }

    fn arm(&self, due_ns: u64) {
        self.armed_ns.set(due_ns);
        let zero = Timespec {
            tv_sec: 0,
            tv_nsec: 0,
        };
        let at = Timespec {
            tv_sec: (due_ns / SECOND).cast_signed(),
            tv_nsec: (due_ns % SECOND).cast_signed(),
        };
        let spec = Itimerspec {
            it_interval: zero,
            it_value: at,
        };
        // Fails only for a bad descriptor or time, neither of which this code can make.
        let _ = timerfd_settime(self.timer.get_ref(), TimerfdTimerFlags::ABSTIME, &spec);
    }

    fn wake_due(&self) {
        let now = now_ns();
        let mut heap = self.heap.borrow_mut();
        while let Some(Reverse(top)) = heap.peek() {
            if top.due_ns > now {
                break;
            }
            if let Some(Reverse(entry)) = heap.pop() {
                entry.waker.wake();
            }
        }
        let next = heap.peek().map(|Reverse(entry)| entry.due_ns);
        drop(heap);
        match next {
            Some(due_ns) => self.arm(due_ns),
            None => self.armed_ns.set(u64::MAX),
        }
    }
}

async fn drive(inner: Rc<Inner>) {
    loop {
        let Ok(mut guard) = inner.timer.readable().await else {
            return;
        };
        let mut count = [0_u8; 8];
        // An empty read is a timer that was set anew in between: arming again is right then too.
        let _ = rustix::io::read(inner.timer.get_ref(), &mut count);
        guard.clear_ready();
        inner.wake_due();
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn waits_end_in_order_and_never_early() {
        let runtime = tokio::runtime::Builder::new_current_thread()
            .enable_io()
            .build()
            .unwrap();
        tokio::task::LocalSet::new().block_on(&runtime, async {
            let pacer = Pacer::start(0).unwrap();
            let start = now_ns();
            let seen = Rc::new(RefCell::new(Vec::new()));
            let tasks: Vec<_> = [3_u64, 1, 2]
                .into_iter()
                .map(|ms| {
                    let (pacer, seen) = (pacer.clone(), Rc::clone(&seen));
                    tokio::task::spawn_local(async move {
                        pacer.until(start + ms * 1_000_000).await;
                        assert!(now_ns() >= start + ms * 1_000_000);
                        seen.borrow_mut().push(ms);
                    })
                })
                .collect();
            for task in tasks {
                task.await.unwrap();
            }
            assert_eq!(*seen.borrow(), [1, 2, 3]);
        });
    }

    #[test]
    fn a_quantum_rounds_up() {
        let runtime = tokio::runtime::Builder::new_current_thread()
            .enable_io()
            .build()
            .unwrap();
        tokio::task::LocalSet::new().block_on(&runtime, async {
            let pacer = Pacer::start(2_000_000).unwrap();
            assert_eq!(pacer.round(2_000_001), 4_000_000);
            assert_eq!(pacer.round(4_000_000), 4_000_000);
        });
    }
}
