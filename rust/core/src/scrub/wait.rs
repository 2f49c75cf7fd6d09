//! How long an upstream asks to wait.
use std::time::{Duration, SystemTime};

use http::HeaderMap;
use serde_json::Value;

use super::said::Said;

/// Longer waits are taken for a mistake, or for one that nobody waits out.
const MOST: Duration = Duration::from_secs(86_400);

/// What rate limits' headers begin with.
const LIMITS: [&str; 3] = ["x-ratelimit-", "x-tokenlimit-", "anthropic-ratelimit-"];

/// When an answer was sent, by its own clock: dates in it are compared with that.
pub fn sent_at(headers: &HeaderMap) -> Option<SystemTime> {
    httpdate::parse_http_date(headers.get("date")?.to_str().ok()?).ok()
}

/// The wait that an answer asks for, above 0 and below a day: in `retry-after-ms`, in
/// `retry-after` (seconds or a date), in Google's `RetryInfo` in the body, or, of a 429, in the
/// reset of the limit that is used up. Dates count where `now` is known.
pub fn wait(
    status: u16,
    headers: &HeaderMap,
    body: &[u8],
    now: Option<SystemTime>,
) -> Option<Duration> {
    hint(status, headers, &Said::parse(headers, body), now)
}

pub(super) fn hint(
    status: u16,
    headers: &HeaderMap,
    said: &Said<'_>,
    now: Option<SystemTime>,
) -> Option<Duration> {
    let text = |name: &str| headers.get(name)?.to_str().ok().map(str::trim);
    let number = |name: &str| text(name)?.parse::<f64>().ok();
    number("retry-after-ms")
        .and_then(|ms| bounded(ms / 1000.0))
        .or_else(|| number("retry-after").and_then(bounded))
        .or_else(|| {
            let date = httpdate::parse_http_date(text("retry-after")?).ok()?;
            until(date, now?)
        })
        .or_else(|| retry_info(&said.details))
        .or_else(|| (status == 429).then(|| reset(headers, now)).flatten())
}

fn bounded(seconds: f64) -> Option<Duration> {
    Duration::try_from_secs_f64(seconds)
        .ok()
        .filter(|wait| !wait.is_zero() && *wait < MOST)
}

fn until(date: SystemTime, now: SystemTime) -> Option<Duration> {
    bounded(date.duration_since(now).ok()?.as_secs_f64())
}

/// `google.rpc.RetryInfo`: `{"retryDelay": "45.837906927s"}`.
fn retry_info(details: &[Value]) -> Option<Duration> {
    details
        .iter()
        .find_map(|detail| detail.get("retryDelay")?.as_str())
        .and_then(duration)
        .and_then(bounded)
}

/// The reset of the limits that are used up: the last one's. Where none says that it is, the first
/// reset of all.
fn reset(headers: &HeaderMap, now: Option<SystemTime>) -> Option<Duration> {
    let mut used_up = None;
    let mut first = None;
    for (name, value) in headers {
        let name = name.as_str();
        if !name.contains("reset") || !LIMITS.iter().any(|start| name.starts_with(start)) {
            continue;
        }
        let Some(wait) = value
            .to_str()
            .ok()
            .and_then(|text| moment(text.trim(), now))
        else {
            continue;
        };
        first = Some(first.map_or(wait, |earlier: Duration| earlier.min(wait)));
        let remaining = headers
            .get(name.replace("reset", "remaining"))
            .and_then(|value| value.to_str().ok()?.trim().parse::<f64>().ok());
        if remaining == Some(0.0) {
            used_up = used_up.max(Some(wait));
        }
    }
    used_up.or(first)
}

/// A wait in any of the forms that a reset has: seconds, a duration, RFC 3339, or seconds or
/// milliseconds since 1970.
fn moment(text: &str, now: Option<SystemTime>) -> Option<Duration> {
    if let Ok(number) = text.parse::<f64>() {
        let since_1970 = match number {
            ..1e9 => return bounded(number),
            ..1e12 => number,
            _ => number / 1000.0,
        };
        let date = Duration::try_from_secs_f64(since_1970).ok()?;
        return until(SystemTime::UNIX_EPOCH.checked_add(date)?, now?);
    }
    if let Some(seconds) = duration(text) {
        return bounded(seconds);
    }
    until(rfc3339(text)?, now?)
}

/// Go's form of a duration, `1d2h3m4.5s6ms`, in seconds.
fn duration(text: &str) -> Option<f64> {
    let mut seconds = 0.0;
    let mut rest = text;
    while !rest.is_empty() {
        let digits = rest
            .find(|c: char| !(c.is_ascii_digit() || c == '.'))
            .filter(|at| *at > 0)?;
        let (number, tail) = rest.split_at_checked(digits)?;
        let unit = tail
            .find(|c: char| c.is_ascii_digit() || c == '.')
            .unwrap_or(tail.len());
        let (unit, tail) = tail.split_at_checked(unit)?;
        let scale = match unit {
            "d" => 86_400.0,
            "h" => 3600.0,
            "m" => 60.0,
            "s" => 1.0,
            "ms" => 1e-3,
            "us" | "µs" | "μs" => 1e-6,
            "ns" => 1e-9,
            _ => return None,
        };
        seconds += number.parse::<f64>().ok()? * scale;
        rest = tail;
    }
    (!text.is_empty()).then_some(seconds)
}

/// `2026-11-26T05:44:39Z`, with a fraction or an offset (RFC 3339 §5.6).
fn rfc3339(text: &str) -> Option<SystemTime> {
    let (date, time) = text.split_once(['T', 't', ' '])?;
    let [year, month, day] = numbers(date, '-')?;
    let at = time.find(['Z', 'z', '+', '-'])?;
    let (clock, zone) = time.split_at_checked(at)?;
    let (clock, fraction) = clock.split_once('.').unwrap_or((clock, "0"));
    let [hour, minute, second] = numbers(clock, ':')?;
    let fraction: f64 = format!("0.{fraction}").parse().ok()?;
    let offset = match zone.split_at_checked(1)? {
        ("Z" | "z", "") => 0,
        (sign, zone) => {
            let [hours, minutes] = numbers(zone, ':')?;
            if hours > 23 || minutes > 59 {
                return None;
            }
            let minutes = hours * 60 + minutes;
            if sign == "+" { minutes } else { -minutes }
        }
    };
    let valid = (1970..=9999).contains(&year)
        && (1..=12).contains(&month)
        && (1..=31).contains(&day)
        && hour < 24
        && minute < 60
        && second <= 60;
    if !valid {
        return None;
    }
    // Howard Hinnant's `days_from_civil`, from March on.
    let shifted = if month > 2 { year } else { year - 1 };
    let (era, of_era) = (shifted / 400, shifted % 400);
    let day_of_year = (153 * ((month + 9) % 12) + 2) / 5 + day - 1;
    let days = era * 146_097 + of_era * 365 + of_era / 4 - of_era / 100 + day_of_year - 719_468;
    let seconds = ((days * 24 + hour) * 60 + minute - offset) * 60 + second;
    let since = Duration::from_secs(u64::try_from(seconds).ok()?);
    let whole = SystemTime::UNIX_EPOCH.checked_add(since)?;
    whole.checked_add(Duration::try_from_secs_f64(fraction).ok()?)
}

/// Exactly `N` numbers of digits alone, up to four each.
fn numbers<const N: usize>(text: &str, between: char) -> Option<[i64; N]> {
    let mut out = [0; N];
    let mut parts = text.split(between);
    for place in &mut out {
        let part = parts.next()?;
        if part.is_empty() || part.len() > 4 || !part.bytes().all(|b| b.is_ascii_digit()) {
            return None;
        }
        *place = part.parse().ok()?;
    }
    parts.next().is_none().then_some(out)
}
