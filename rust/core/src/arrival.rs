//! When a request came: one reading of the clocks, and the id that is made of it.
use std::time::{Duration, Instant, SystemTime, UNIX_EPOCH};

use uuid::{Timestamp, Uuid};

/// A request's arrival.
#[derive(Clone, Copy, Debug)]
pub struct Arrival {
    /// UUIDv7 of that instant.
    pub id: Uuid,
    /// Unix microseconds.
    pub unix_us: i64,
    /// On the monotonic clock.
    pub at: Instant,
}

impl Arrival {
    /// The present.
    pub fn now() -> Self {
        let unix = SystemTime::now()
            .duration_since(UNIX_EPOCH)
            .unwrap_or_default();
        Self {
            id: id(unix),
            unix_us: i64::try_from(unix.as_micros()).unwrap_or(i64::MAX),
            at: Instant::now(),
        }
    }
}

/// A UUIDv7 of so much unix time, with the part of its millisecond in its first 12 bits after that:
/// ids sort by time to a quarter of a microsecond (RFC 9562 §6.2, method 3).
fn id(unix: Duration) -> Uuid {
    let in_milli = u128::from(unix.subsec_nanos() % 1_000_000);
    let part = in_milli * 4096 / 1_000_000;
    Uuid::new_v7(Timestamp::from_unix_time(
        unix.as_secs(),
        unix.subsec_nanos(),
        part,
        12,
    ))
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn an_id_tells_its_time_and_sorts_by_it() {
        let mut last = Uuid::nil();
        for nanos in (0..5_000_000_u64).step_by(250) {
            let unix = Duration::new(1_780_000_000, 0) + Duration::from_nanos(nanos);
            let id = id(unix);
            let bytes = id.as_bytes();
            let millis = bytes
                .iter()
                .take(6)
                .fold(0, |sum, byte| sum << 8 | u128::from(*byte));
            assert_eq!(millis, unix.as_millis());
            assert_eq!(id.get_version_num(), 7);
            assert!(id > last, "{nanos}");
            last = id;
        }
    }

    #[test]
    fn id_and_time_agree() {
        let arrival = Arrival::now();
        let (seconds, nanos) = arrival
            .id
            .get_timestamp()
            .map(|at| at.to_unix())
            .unwrap_or_default();
        let millis = seconds.cast_signed() * 1000 + i64::from(nanos / 1_000_000);
        assert_eq!(millis, arrival.unix_us / 1000);
    }
}
