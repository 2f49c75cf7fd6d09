//! AWS Signature Version 4 in a request's headers.
//!
//! Source: AWS Identity and Access Management User Guide, "Create a signed AWS API request".
//! Pure: the time is passed in, the body is hashed in the pieces that it has.
use std::fmt::Write;

use ring::{digest, hmac};

use super::credentials::AwsCredentials;

const ALGORITHM: &str = "AWS4-HMAC-SHA256";

/// What is signed of a request, beside what signing itself adds.
#[derive(Clone, Copy, Debug)]
pub struct Signable<'a> {
    /// `POST`.
    pub method: &'a str,
    /// The host, with its port where that is not the scheme's own.
    pub host: &'a str,
    /// The path as it is sent, percent-encoded.
    pub path: &'a str,
    /// The query as it is sent.
    pub query: &'a str,
    /// More headers to sign, names in lower case; not host, date or token.
    pub headers: &'a [(&'a str, &'a str)],
    /// The SHA-256 of the body in hexadecimal; see [`hash`].
    pub body: &'a str,
}

/// What a signature is good for.
#[derive(Clone, Copy, Debug)]
pub struct Scope<'a> {
    /// `us-east-1`.
    pub region: &'a str,
    /// `bedrock`.
    pub service: &'a str,
}

/// The headers that a signature adds.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct Signature {
    /// `authorization`.
    pub authorization: String,
    /// `x-amz-date`.
    pub date: String,
}

/// The SHA-256 of `parts` one after the other, in lower-case hexadecimal.
pub fn hash<'a>(parts: impl IntoIterator<Item = &'a [u8]>) -> String {
    let mut context = digest::Context::new(&digest::SHA256);
    for part in parts {
        context.update(part);
    }
    hex(context.finish().as_ref())
}

/// Signs a request at `unix_s`, seconds since 1970. The token goes into `x-amz-security-token`,
/// which is signed.
pub fn sign(
    request: &Signable<'_>,
    keys: &AwsCredentials,
    scope: Scope<'_>,
    unix_s: u64,
) -> Signature {
    let date = timestamp(unix_s);
    let day = date.get(..8).unwrap_or_default();
    let mut headers: Vec<(&str, String)> = request
        .headers
        .iter()
        .map(|(name, value)| (*name, folded(value)))
        .collect();
    headers.push(("host", folded(request.host)));
    headers.push(("x-amz-date", date.clone()));
    if let Some(token) = &keys.session_token {
        headers.push(("x-amz-security-token", folded(token)));
    }
    headers.sort_unstable_by(|a, b| a.0.cmp(b.0));
    let signed = headers
        .iter()
        .map(|(name, _)| *name)
        .collect::<Vec<_>>()
        .join(";");
    let mut canonical = format!(
        "{}\n{}\n{}\n",
        request.method,
        canonical_path(request.path),
        canonical_query(request.query)
    );
    for (name, value) in &headers {
        canonical.push_str(name);
        canonical.push(':');
        canonical.push_str(value);
        canonical.push('\n');
    }
    canonical.push('\n');
    canonical.push_str(&signed);
    canonical.push('\n');
    canonical.push_str(request.body);

    let place = format!("{day}/{}/{}/aws4_request", scope.region, scope.service);
    let text = format!(
        "{ALGORITHM}\n{date}\n{place}\n{}",
        hash([canonical.as_bytes()])
    );
    let secret = format!("AWS4{}", keys.secret_key);
    let key = [day, scope.region, scope.service, "aws4_request"]
        .iter()
        .fold(mac_key(secret.as_bytes()), |key, part| {
            mac_key(hmac::sign(&key, part.as_bytes()).as_ref())
        });
    let signature = hex(hmac::sign(&key, text.as_bytes()).as_ref());
    Signature {
        authorization: format!(
            "{ALGORITHM} Credential={}/{place}, SignedHeaders={signed}, Signature={signature}",
            keys.access_key
        ),
        date,
    }
}

fn mac_key(bytes: &[u8]) -> hmac::Key {
    hmac::Key::new(hmac::HMAC_SHA256, bytes)
}

/// The path without empty, `.` and `..` segments, each segment encoded once more than it is sent,
/// as every service but S3 has it.
fn canonical_path(path: &str) -> String {
    let mut segments = Vec::new();
    for segment in path.split('/') {
        match segment {
            "" | "." => {}
            ".." => {
                segments.pop();
            }
            name => segments.push(name),
        }
    }
    let mut out = String::with_capacity(path.len() + 16);
    for segment in &segments {
        out.push('/');
        for byte in segment.bytes() {
            if byte.is_ascii_alphanumeric() || matches!(byte, b'-' | b'.' | b'_' | b'~') {
                out.push(char::from(byte));
            } else {
                // Writing to a string cannot fail.
                let _ = write!(out, "%{byte:02X}");
            }
        }
    }
    if out.is_empty() || path.ends_with('/') {
        out.push('/');
    }
    out
}

/// The query's pairs as they are sent, sorted.
fn canonical_query(query: &str) -> String {
    if query.is_empty() {
        return String::new();
    }
    let mut pairs: Vec<(&str, &str)> = query
        .split('&')
        .map(|pair| pair.split_once('=').unwrap_or((pair, "")))
        .collect();
    pairs.sort_unstable();
    let pairs: Vec<String> = pairs
        .iter()
        .map(|(name, value)| format!("{name}={value}"))
        .collect();
    pairs.join("&")
}

/// A header's value without outer space, inner space made one blank each.
fn folded(value: &str) -> String {
    value.split_whitespace().collect::<Vec<_>>().join(" ")
}

/// `20261126T054439Z`.
fn timestamp(unix_s: u64) -> String {
    // Days since 0000-03-01, then Howard Hinnant's `civil_from_days`.
    let days = unix_s / 86_400 + 719_468;
    let (era, day_of_era) = (days / 146_097, days % 146_097);
    let year_of_era =
        (day_of_era - day_of_era / 1_460 + day_of_era / 36_524 - day_of_era / 146_096) / 365;
    let day_of_year = day_of_era - (365 * year_of_era + year_of_era / 4 - year_of_era / 100);
    let shifted = (5 * day_of_year + 2) / 153;
    let day = day_of_year - (153 * shifted + 2) / 5 + 1;
    let month = if shifted < 10 {
        shifted + 3
    } else {
        shifted - 9
    };
    let year = year_of_era + era * 400 + u64::from(month <= 2);
    let second = unix_s % 86_400;
    format!(
        "{year:04}{month:02}{day:02}T{:02}{:02}{:02}Z",
        second / 3600,
        second / 60 % 60,
        second % 60
    )
}

fn hex(bytes: &[u8]) -> String {
    let mut out = String::with_capacity(bytes.len() * 2);
    for byte in bytes {
        // Writing to a string cannot fail.
        let _ = write!(out, "{byte:02x}");
    }
    out
}

#[cfg(test)]
mod tests {
    use super::*;

    /// The example "get-vanilla-query-order-key-case" of AWS's signature test suite.
    #[test]
    fn the_vendors_example() {
        let keys = AwsCredentials {
            access_key: "AKIDEXAMPLE".to_owned(),
            secret_key: "wJalrXUtnFEMI/K7MDENG+bPxRfiCYEXAMPLEKEY".to_owned(),
            session_token: None,
        };
        let request = Signable {
            method: "GET",
            host: "example.amazonaws.com",
            path: "/",
            query: "Param2=value2&Param1=value1",
            headers: &[],
            body: &hash([]),
        };
        let scope = Scope {
            region: "us-east-1",
            service: "service",
        };
        let signature = sign(&request, &keys, scope, 1_440_938_160);
        assert_eq!(signature.date, "20150830T123600Z");
        assert_eq!(
            signature.authorization,
            "AWS4-HMAC-SHA256 Credential=AKIDEXAMPLE/20150830/us-east-1/service/aws4_request, SignedHeaders=host;x-amz-date, Signature=b97d918cfa904a5beff61c982a1b6f458b799221646efd99d3219ec94cdf2500"
        );
    }

    #[test]
    fn a_path_is_encoded_once_more() {
        for (path, expected) in [
            ("", "/"),
            ("/", "/"),
            ("/model/a.b-v2%3A0/converse", "/model/a.b-v2%253A0/converse"),
            ("/a//b/./c/../d/", "/a/b/d/"),
            ("/..", "/"),
        ] {
            assert_eq!(canonical_path(path), expected);
        }
    }

    #[test]
    fn a_body_is_hashed_as_one() {
        assert_eq!(hash([&b"ab"[..], b"", b"c"]), hash([&b"abc"[..]]));
        assert_eq!(
            hash([]),
            "e3b0c44298fc1c149afbf4c8996fb92427ae41e4649b934ca495991b7852b855"
        );
    }

    #[test]
    fn dates() {
        for (unix_s, expected) in [
            (0, "19700101T000000Z"),
            (951_782_399, "20000228T235959Z"),
            (951_782_400, "20000229T000000Z"),
            (4_107_542_400, "21000301T000000Z"),
        ] {
            assert_eq!(timestamp(unix_s), expected);
        }
    }
}
