//! Deadlines of one exchange.
use std::future::Future;
use std::pin::{Pin, pin};
use std::task::Poll;

use tokio::time::{Instant, Sleep};

/// One timer for a whole exchange. Deadlines that only move later cost no timer operation.
pub struct Alarm {
    sleep: Pin<Box<Sleep>>,
}

/// The deadline came first.
pub struct Elapsed;

impl Alarm {
    /// A timer that first looks at `at`.
    pub fn new(at: Instant) -> Self {
        Self {
            sleep: Box::pin(tokio::time::sleep_until(at)),
        }
    }

    /// What `future` gives, unless `until` comes first.
    pub async fn within<F: Future>(
        &mut self,
        until: Instant,
        future: F,
    ) -> Result<F::Output, Elapsed> {
        let mut future = pin!(future);
        std::future::poll_fn(|cx| {
            if let Poll::Ready(value) = future.as_mut().poll(cx) {
                return Poll::Ready(Ok(value));
            }
            if self.sleep.deadline() > until {
                self.sleep.as_mut().reset(until);
            }
            while self.sleep.as_mut().poll(cx).is_ready() {
                if Instant::now() >= until {
                    return Poll::Ready(Err(Elapsed));
                }
                self.sleep.as_mut().reset(until);
            }
            Poll::Pending
        })
        .await
    }
}
