//! Headers that Anthropic's SDK and tools look for, beside the gateway's own.
use std::time::Duration;

use http::{HeaderName, HeaderValue};

use crate::headers::wait;
use crate::slot::{Headers, header_text};

/// The gateway's headers of limits, and Anthropic's. Its limits of input and of output apart have none
/// here: the gateway counts both together.
const LIMITS: [(&str, &str); 6] = [
    (
        "x-ratelimit-limit-requests",
        "anthropic-ratelimit-requests-limit",
    ),
    (
        "x-ratelimit-remaining-requests",
        "anthropic-ratelimit-requests-remaining",
    ),
    (
        "x-ratelimit-reset-requests",
        "anthropic-ratelimit-requests-reset",
    ),
    (
        "x-ratelimit-limit-tokens",
        "anthropic-ratelimit-tokens-limit",
    ),
    (
        "x-ratelimit-remaining-tokens",
        "anthropic-ratelimit-tokens-remaining",
    ),
    (
        "x-ratelimit-reset-tokens",
        "anthropic-ratelimit-tokens-reset",
    ),
];

/// The request's id where Anthropic's SDK looks for it.
pub(crate) fn request_id(id: HeaderValue) -> (HeaderName, HeaderValue) {
    (HeaderName::from_static("request-id"), id)
}

/// Adds `anthropic-ratelimit-*` to the gateway's, where they are not there yet. `unix_s`: now, from
/// which a time of reset is counted, rounded up.
pub(crate) fn rates(headers: &mut Headers, unix_s: i64) {
    let has = |headers: &Headers, name: &str| headers.iter().any(|(known, _)| known == name);
    let mut more = Vec::new();
    for (name, value) in headers.iter() {
        let Some((_, theirs)) = LIMITS.iter().find(|(ours, _)| name == ours) else {
            continue;
        };
        if has(headers, theirs) {
            continue;
        }
        let value = if theirs.ends_with("-reset") {
            let Some(left) = value.to_str().ok().and_then(wait) else {
                continue;
            };
            at(unix_s, left)
        } else {
            value.clone()
        };
        more.push((HeaderName::from_static(theirs), value));
    }
    headers.extend(more);
}

/// The instant as RFC 3339 has it.
fn at(unix_s: i64, left: Duration) -> HeaderValue {
    let seconds = left.as_secs() + u64::from(left.subsec_nanos() > 0);
    let at = unix_s.saturating_add(i64::try_from(seconds).unwrap_or(i64::MAX));
    header_text(rfc3339(at))
}

/// Unix seconds as `2026-01-31T09:05:00Z`. Source of the calendar: H. Hinnant, "chrono-Compatible
/// Low-Level Date Algorithms", `civil_from_days`.
fn rfc3339(unix_s: i64) -> String {
    // No answer is of a time before 1970; the year has four digits.
    let unix_s = unix_s.clamp(0, 253_402_300_799);
    let (days, second) = (unix_s / 86_400 + 719_468, unix_s % 86_400);
    let (era, day_of_era) = (days / 146_097, days % 146_097);
    let year_of_era =
        (day_of_era - day_of_era / 1_460 + day_of_era / 36_524 - day_of_era / 146_096) / 365;
    let day_of_year = day_of_era - (365 * year_of_era + year_of_era / 4 - year_of_era / 100);
    let month_from_march = (5 * day_of_year + 2) / 153;
    let day = day_of_year - (153 * month_from_march + 2) / 5 + 1;
    let month = if month_from_march < 10 {
        month_from_march + 3
    } else {
        month_from_march - 9
    };
    let year = year_of_era + era * 400 + i64::from(month <= 2);
    let (hour, minute, second) = (second / 3_600, second / 60 % 60, second % 60);
    format!("{year:04}-{month:02}-{day:02}T{hour:02}:{minute:02}:{second:02}Z")
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn instants_are_written_as_rfc_3339_has_them() {
        for (unix_s, text) in [
            (0, "1970-01-01T00:00:00Z"),
            (951_782_400, "2000-02-29T00:00:00Z"),
            (1_767_225_599, "2025-12-31T23:59:59Z"),
            (1_795_685_103, "2026-11-26T09:25:03Z"),
        ] {
            assert_eq!(rfc3339(unix_s), text);
        }
    }

    #[test]
    fn what_the_gateway_tells_is_told_in_anthropics_words() {
        let mut headers: Headers = [
            ("x-request-id", "req_1"),
            ("x-ratelimit-limit-requests", "60"),
            ("x-ratelimit-remaining-requests", "9"),
            ("x-ratelimit-reset-requests", "1m0s"),
            ("x-ratelimit-reset-tokens", "17ms"),
        ]
        .map(|(name, value)| {
            (
                HeaderName::from_static(name),
                HeaderValue::from_static(value),
            )
        })
        .into();
        rates(&mut headers, 0);
        // They are not told twice.
        rates(&mut headers, 0);
        let told: Vec<_> = headers
            .iter()
            .skip(5)
            .map(|(name, value)| (name.as_str(), value.to_str().unwrap_or_default()))
            .collect();
        assert_eq!(
            told,
            [
                ("anthropic-ratelimit-requests-limit", "60"),
                ("anthropic-ratelimit-requests-remaining", "9"),
                ("anthropic-ratelimit-requests-reset", "1970-01-01T00:01:00Z"),
                ("anthropic-ratelimit-tokens-reset", "1970-01-01T00:00:01Z"),
            ]
        );
    }
}
