//! What becomes of an exchange whose client has left: the engine is stopped, or read to its end.
use std::sync::Arc;
use std::time::Duration;

use crate::error::{Error, Kind};
use crate::limit::Places;
use crate::record::Record;
use crate::slot::Slot;

/// What an upstream's requests do when their client leaves.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum OnDisconnect {
    /// The engine is stopped at once, and what was delivered is billed.
    Abort,
    /// The engine bills the whole anyway, so the answer is read to its end, and billed whole.
    Drain(Cap),
}

/// How far an answer is read that nobody waits for.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub struct Cap {
    /// Longest, from the client's going.
    pub time: Duration,
    /// Most bytes, from there.
    pub bytes: u64,
}

/// What a driver that goes on without a client holds, and for how long.
#[derive(Clone, Debug)]
pub struct Linger {
    /// The client's permits, which it gives back when it leaves.
    pub places: Arc<Places>,
    /// How far.
    pub cap: Cap,
}

/// Ends once a client has left and the time that its exchange may take after that is over; `gone`
/// says when it has left.
pub(crate) async fn outstayed(slot: &Slot, gone: &mut bool) {
    let linger = std::future::poll_fn(|cx| slot.poll_gone(cx)).await;
    *gone = true;
    tokio::time::sleep(linger.cap.time).await;
}

/// What one attempt has read since its client left.
pub(crate) struct Unread {
    cap: Option<u64>,
    bytes: u64,
}

impl Unread {
    /// Of an attempt at an upstream with this policy.
    pub(crate) fn new(policy: OnDisconnect) -> Self {
        let cap = match policy {
            OnDisconnect::Abort => None,
            OnDisconnect::Drain(cap) => Some(cap.bytes),
        };
        Self { cap, bytes: 0 }
    }

    /// So many bytes have come. [`Kind::ClientClosed`] where the client has left and they are more
    /// than the upstream is read for that.
    pub(crate) fn came(
        &mut self,
        slot: &Slot,
        record: Option<&mut Record>,
        bytes: usize,
    ) -> Result<(), Error> {
        let Some(cap) = self.cap else { return Ok(()) };
        if !slot.is_cancelled() {
            return Ok(());
        }
        if let Some(log) = record.and_then(|record| record.log.as_mut()) {
            log.client_gone();
        }
        self.bytes += bytes as u64;
        if self.bytes <= cap {
            return Ok(());
        }
        Err(Error::new(
            Kind::ClientClosed,
            "The client left, and the rest of the answer is too long to read for nobody.",
        ))
    }
}
