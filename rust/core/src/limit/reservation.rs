//! The guard that settles an admission exactly once.

use std::sync::Arc;

use super::{Admitted, Meter, Nanos, Refusal};

/// How many tokens beyond its reservation a stream may deliver before they are charged.
pub const PROGRESS_STEP: u64 = 256;

/// One admitted request: its permit and the tokens it holds.
///
/// Ends in [`Self::settle`], [`Self::cancel`] or a drop, each by value, so exactly once. A drop
/// keeps what is held (the reservation and what [`Self::charge_progress`] added): nobody learnt the
/// true use.
#[derive(Debug)]
#[must_use = "dropping it ends the request"]
pub struct Reservation {
    meter: Arc<Meter>,
    held: u64,
}

impl Reservation {
    /// Admits a request that reserves `tokens`.
    ///
    /// # Errors
    /// [`Refusal`], at no cost, as [`Meter::admit`].
    pub fn admit(meter: &Arc<Meter>, now: Nanos, tokens: u64) -> Result<(Self, Admitted), Refusal> {
        let admitted = meter.admit(now, tokens)?;
        Ok((
            Self {
                meter: Arc::clone(meter),
                held: tokens,
            },
            admitted,
        ))
    }

    /// Tokens held: reserved, and charged since.
    pub fn held(&self) -> u64 {
        self.held
    }

    /// The meter that holds them.
    pub fn meter(&self) -> &Arc<Meter> {
        &self.meter
    }

    /// Tells how many tokens the request has used so far, input included. Charges what exceeds the
    /// reservation, in steps of [`PROGRESS_STEP`].
    #[inline]
    pub fn charge_progress(&mut self, used: u64) {
        let beyond = used.saturating_sub(self.held);
        if beyond >= PROGRESS_STEP {
            let due = beyond - beyond % PROGRESS_STEP;
            self.meter.settle(0, due);
            self.held += due;
        }
    }

    /// Ends the request with the tokens it used, input included; 0 is a value.
    pub fn settle(self, used: u64) {
        self.meter.settle(self.held, used);
    }

    /// Ends a request whose upstream was never contacted: it costs nothing.
    pub fn cancel(self) {
        self.meter.cancel(self.held);
    }
}

impl Drop for Reservation {
    fn drop(&mut self) {
        self.meter.release();
    }
}
