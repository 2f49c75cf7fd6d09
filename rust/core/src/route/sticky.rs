//! Sessions that stay where they are.
use std::time::Duration;

use parking_lot::Mutex;

use super::table::Table;
use crate::limit::Nanos;

/// Sessions that are remembered; of more, those are forgotten that came longest ago. 2 MiB.
pub const SESSIONS: usize = 65_536;

#[derive(Clone, Copy, Debug, Default)]
struct Place {
    target: u16,
    until: Nanos,
}

/// Where each session's last request went.
#[derive(Debug)]
pub struct Sticky {
    ttl: Nanos,
    places: Mutex<Table<Place>>,
}

impl Sticky {
    /// Sessions are remembered for `ttl` after their last request.
    pub fn new(ttl: Duration) -> Self {
        Self::of(SESSIONS, ttl)
    }

    /// The same for so many sessions.
    pub fn of(sessions: usize, ttl: Duration) -> Self {
        Self {
            ttl: u64::try_from(ttl.as_nanos()).unwrap_or(Nanos::MAX),
            places: Mutex::new(Table::new(sessions)),
        }
    }

    /// The target of a session, while it is remembered.
    pub fn get(&self, session: u64, now: Nanos) -> Option<usize> {
        let place = self.places.lock().get(session)?;
        (now < place.until).then_some(usize::from(place.target))
    }

    /// A session's request goes to `target`: it stays there from now on.
    pub fn set(&self, session: u64, target: usize, now: Nanos) {
        let Ok(target) = u16::try_from(target) else {
            return;
        };
        if let Some((place, _)) = self.places.lock().entry(session) {
            *place = Place {
                target,
                until: now.saturating_add(self.ttl),
            };
        }
    }
}
