//! Money: what may be spent in a calendar period, and what has been.
//!
//! Amounts are nano-USD in integers. The spend of a period is one word: the period's tag above, the
//! amount below, so that a new period begins with nothing spent in one atomic step, whoever comes
//! first. What a request may cost is held as reserved until it is known.

use std::sync::atomic::{AtomicU64, Ordering};

/// Bits of the amount: up to 18 million USD.
const AMOUNT_BITS: u32 = 54;
const AMOUNT: u64 = (1 << AMOUNT_BITS) - 1;
/// The bits of a tag: some period's, and which one.
const USED: u64 = 1 << 9;
const INDEX: u64 = USED - 1;
/// The largest budget, nano-USD.
pub const MAX_BUDGET: u64 = AMOUNT;
const DAY_S: i64 = 86_400;

/// What a budget is for. Days and months are those of the calendar in UTC.
#[derive(Clone, Copy, Debug, PartialEq, Eq, Hash)]
pub enum Period {
    /// From midnight to midnight.
    Day,
    /// From the first of a month to the next.
    Month,
    /// For ever.
    Total,
}

impl Period {
    /// The period of that name.
    pub fn from_name(name: &str) -> Option<Self> {
        match name {
            "day" => Some(Self::Day),
            "month" => Some(Self::Month),
            "total" => Some(Self::Total),
            _ => None,
        }
    }

    /// Its name.
    pub const fn as_str(self) -> &'static str {
        match self {
            Self::Day => "day",
            Self::Month => "month",
            Self::Total => "total",
        }
    }

    /// When the period of this instant began and when it ends, unix seconds; it has no end if that
    /// is never.
    pub fn bounds(self, unix_s: i64) -> (i64, Option<i64>) {
        match self {
            Self::Day => {
                let start = unix_s.div_euclid(DAY_S) * DAY_S;
                (start, Some(start + DAY_S))
            }
            Self::Month => {
                let (year, month) = month_of(unix_s);
                let (next_year, next) = if month == 12 {
                    (year + 1, 1)
                } else {
                    (year, month + 1)
                };
                (
                    first_day(year, month) * DAY_S,
                    Some(first_day(next_year, next) * DAY_S),
                )
            }
            Self::Total => (0, None),
        }
    }

    /// Tells one period from those around it: never zero.
    fn tag(self, unix_s: i64) -> u64 {
        let index = match self {
            Self::Day => unix_s.div_euclid(DAY_S),
            Self::Month => {
                let (year, month) = month_of(unix_s);
                year * 12 + month
            }
            Self::Total => 0,
        };
        USED | (index.cast_unsigned() & INDEX)
    }

    /// Tells the kinds apart, never zero.
    pub(super) const fn kind(self) -> u64 {
        match self {
            Self::Day => 1,
            Self::Month => 2,
            Self::Total => 3,
        }
    }
}

/// Whether tag `a` is of a later period than `b`: ahead of it by less than half of the tags' circle,
/// or `b` is of none.
fn is_later(a: u64, b: u64) -> bool {
    let ahead = a.wrapping_sub(b) & INDEX;
    b & USED == 0 || (ahead != 0 && ahead <= INDEX / 2)
}

/// Year and month, by Howard Hinnant's `civil_from_days` (chrono-compatible low-level date
/// algorithms): years begin in March, so that the leap day is the last.
fn month_of(unix_s: i64) -> (i64, i64) {
    let days = unix_s.div_euclid(DAY_S) + 719_468;
    let era = days.div_euclid(146_097);
    let day = days.rem_euclid(146_097);
    let year = (day - day / 1_460 + day / 36_524 - day / 146_096) / 365;
    let day_of_year = day - (365 * year + year / 4 - year / 100);
    let month = (5 * day_of_year + 2) / 153;
    let month = if month < 10 { month + 3 } else { month - 9 };
    (year + era * 400 + i64::from(month <= 2), month)
}

/// Days from the epoch to the first of a month, by `days_from_civil` of the same source.
fn first_day(year: i64, month: i64) -> i64 {
    let year = if month <= 2 { year - 1 } else { year };
    let era = year.div_euclid(400);
    let of_era = year.rem_euclid(400);
    let shifted = if month > 2 { month - 3 } else { month + 9 };
    let day_of_year = (153 * shifted + 2) / 5;
    era * 146_097 + of_era * 365 + of_era / 4 - of_era / 100 + day_of_year - 719_468
}

/// So much money in each period.
#[derive(Clone, Copy, Debug, PartialEq, Eq, Hash)]
pub struct Budget {
    /// Nano-USD, at most [`MAX_BUDGET`].
    pub nano: u64,
    /// Of which period.
    pub period: Period,
}

/// The word that holds what was spent.
pub(super) struct Spent<'a> {
    pub(super) word: &'a AtomicU64,
    pub(super) period: Period,
}

impl Spent<'_> {
    /// Nano-USD spent in the period of `unix_s`, or in the one that has begun since.
    #[inline]
    pub(super) fn get(&self, unix_s: i64) -> u64 {
        let word = self.word.load(Ordering::SeqCst);
        if is_later(self.period.tag(unix_s), word >> AMOUNT_BITS) {
            return 0;
        }
        word & AMOUNT
    }

    /// Moves the word on to the period of `unix_s`, if that is a later one. Never back: a clock that
    /// was read before midnight, or that steps back, forgets nothing.
    pub(super) fn roll(&self, unix_s: i64) {
        let tag = self.period.tag(unix_s);
        let word = self.word.load(Ordering::SeqCst);
        if is_later(tag, word >> AMOUNT_BITS) {
            // Whoever comes first; the others find it done.
            let _ = self.word.compare_exchange(
                word,
                tag << AMOUNT_BITS,
                Ordering::SeqCst,
                Ordering::SeqCst,
            );
        }
    }

    /// Changes the spend of the period of `unix_s`, unless another has begun.
    fn update(&self, unix_s: i64, change: impl Fn(u64) -> u64) {
        let tag = self.period.tag(unix_s);
        let mut word = self.word.load(Ordering::SeqCst);
        while word >> AMOUNT_BITS == tag {
            let next = tag << AMOUNT_BITS | change(word & AMOUNT).min(AMOUNT);
            match self
                .word
                .compare_exchange_weak(word, next, Ordering::SeqCst, Ordering::SeqCst)
            {
                Ok(_) => return,
                Err(seen) => word = seen,
            }
        }
    }

    pub(super) fn add(&self, unix_s: i64, nano: u64) {
        self.update(unix_s, |spent| spent.saturating_add(nano));
    }

    pub(super) fn subtract(&self, unix_s: i64, nano: u64) {
        self.update(unix_s, |spent| spent.saturating_sub(nano));
    }

    /// At least `nano` were spent in the period that began at `start`; nothing if it is over.
    pub(super) fn raise(&self, now_s: i64, start: i64, nano: u64) {
        if self.period.bounds(now_s).0 == start {
            self.roll(now_s);
            self.update(now_s, |spent| spent.max(nano));
        }
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    /// 2026-11-25 22:24:17 UTC.
    const NOW: i64 = 1_795_645_457;

    #[test]
    fn periods_follow_the_calendar() {
        assert_eq!(
            Period::Day.bounds(NOW),
            (1_795_564_800, Some(1_795_651_200))
        );
        // 1 November to 1 December 2026.
        assert_eq!(
            Period::Month.bounds(NOW),
            (1_793_491_200, Some(1_796_083_200))
        );
        // February of a leap year, and the turn of a year.
        assert_eq!(
            Period::Month.bounds(1_709_164_800),
            (1_706_745_600, Some(1_709_251_200))
        );
        assert_eq!(
            Period::Month.bounds(1_798_761_599),
            (1_796_083_200, Some(1_798_761_600))
        );
        assert_eq!(Period::Total.bounds(NOW), (0, None));
    }

    #[test]
    fn months_agree_with_their_own_first_days() {
        let mut start = 0;
        for months in 1..=1_200 {
            let (from, to) = Period::Month.bounds(start);
            assert_eq!(from, start, "month {months}");
            let to = to.unwrap_or_default();
            assert!([28, 29, 30, 31].contains(&((to - from) / DAY_S)));
            assert_eq!(Period::Month.bounds(to - 1).0, from);
            assert_ne!(Period::Month.tag(to - 1), Period::Month.tag(to));
            start = to;
        }
        // 100 years later: 1 January 2070.
        assert_eq!(start, 3_155_760_000);
    }

    #[test]
    fn a_new_period_starts_with_nothing_spent() {
        let word = AtomicU64::new(0);
        let spent = Spent {
            word: &word,
            period: Period::Day,
        };
        spent.roll(NOW);
        spent.add(NOW, 700);
        spent.subtract(NOW, 200);
        assert_eq!(spent.get(NOW), 500);
        let tomorrow = NOW + DAY_S;
        assert_eq!(spent.get(tomorrow), 0);
        spent.roll(tomorrow);
        // A request of yesterday ends: that day is over.
        spent.add(NOW, 900);
        assert_eq!(spent.get(tomorrow), 0);
        spent.raise(tomorrow, Period::Day.bounds(tomorrow).0, 40);
        spent.raise(tomorrow, Period::Day.bounds(NOW).0, 4_000);
        spent.raise(tomorrow, Period::Day.bounds(tomorrow).0, 30);
        assert_eq!(spent.get(tomorrow), 40);
        // A clock that steps back forgets nothing, and a late reader sees what counts now.
        spent.roll(NOW);
        assert_eq!((spent.get(tomorrow), spent.get(NOW)), (40, 40));
    }

    #[test]
    fn periods_follow_each_other_around_the_circle_of_tags() {
        let word = AtomicU64::new(0);
        let spent = Spent {
            word: &word,
            period: Period::Day,
        };
        for day in 0..1_200 {
            let now = NOW + day * DAY_S;
            assert_eq!(spent.get(now), 0, "day {day}");
            spent.roll(now);
            spent.add(now, 5);
            assert_eq!(spent.get(now), 5);
        }
    }
}
