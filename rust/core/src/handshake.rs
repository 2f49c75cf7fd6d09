//! The opening handshake (RFC 6455 §4), the server's side. Pure.
use http::header::{
    AUTHORIZATION, CONNECTION, HeaderMap, HeaderName, HeaderValue, SEC_WEBSOCKET_KEY,
    SEC_WEBSOCKET_PROTOCOL, SEC_WEBSOCKET_VERSION, UPGRADE,
};
use http::{Method, Version};
use ring::digest;

use crate::dialect::base64;
use crate::error::{Error, Kind};

/// What the accept key is made with (RFC 6455 §1.3).
const GUID: &[u8] = b"258EAFA5-E914-47DA-95CA-C5AB0DC85B11";
/// A browser, which cannot set headers, brings its key in a subprotocol of this beginning, as OpenAI's
/// clients do.
const KEY_PROTOCOL: &str = "openai-insecure-api-key.";
/// The subprotocols that are spoken: names for what the path says anyway.
const PROTOCOLS: [&str; 2] = ["realtime", "openai-beta.responses.v1"];

/// A handshake that can be answered.
#[derive(Debug)]
pub(crate) struct Opening {
    /// `sec-websocket-accept` of the answer.
    pub(crate) accept: HeaderValue,
    /// `sec-websocket-protocol` of the answer.
    pub(crate) protocol: Option<HeaderValue>,
}

/// Why there is no handshake.
#[derive(Debug)]
pub(crate) enum Bad {
    /// A malformed request: 400.
    Request(Error),
    /// Another version of the protocol: 426, which names ours.
    Version,
}

/// Whether a request asks for a WebSocket. On HTTP/2 it would be an extended CONNECT (RFC 8441), which
/// is not there.
pub(crate) fn wanted(method: &Method, version: Version, headers: &HeaderMap) -> bool {
    *method == Method::GET && version == Version::HTTP_11 && lists(headers, &UPGRADE, "websocket")
}

/// Reads the handshake of a request that is [`wanted`].
pub(crate) fn read(headers: &HeaderMap) -> Result<Opening, Bad> {
    let bad = |text: &'static str| {
        Bad::Request(Error::new(Kind::InvalidRequest, text).code("bad_handshake"))
    };
    if !lists(headers, &CONNECTION, "upgrade") {
        return Err(bad("The Connection header has to list 'Upgrade'."));
    }
    let mut versions = headers.get_all(SEC_WEBSOCKET_VERSION).iter();
    match (versions.next(), versions.next()) {
        (Some(version), None) if version.as_bytes() == b"13" => {}
        _ => return Err(Bad::Version),
    }
    let mut keys = headers.get_all(SEC_WEBSOCKET_KEY).iter();
    let (Some(key), None) = (keys.next(), keys.next()) else {
        return Err(bad("Exactly one Sec-WebSocket-Key is needed."));
    };
    let key = key.to_str().unwrap_or_default().trim();
    // 16 bytes are 22 digits.
    if key.len() != 24 || !key.ends_with("==") || !base64::is_base64(key) {
        return Err(bad("The Sec-WebSocket-Key is not 16 bytes in base64."));
    }
    Ok(Opening {
        accept: accept(key),
        protocol: PROTOCOLS
            .into_iter()
            .find(|known| lists(headers, &SEC_WEBSOCKET_PROTOCOL, known))
            .map(HeaderValue::from_static),
    })
}

/// `sec-websocket-accept` for a `sec-websocket-key`.
pub(crate) fn accept(key: &str) -> HeaderValue {
    let mut sha1 = digest::Context::new(&digest::SHA1_FOR_LEGACY_USE_ONLY);
    sha1.update(key.as_bytes());
    sha1.update(GUID);
    let text = base64::encode(sha1.finish().as_ref());
    // Base64 is what a header can carry.
    HeaderValue::try_from(text).unwrap_or_else(|_| HeaderValue::from_static(""))
}

/// A fresh `sec-websocket-key` of a client.
pub(crate) fn fresh_key() -> String {
    base64::encode(uuid::Uuid::new_v4().as_bytes())
}

/// The `authorization` that a request comes with: that header, or the key of `x-api-key` or of a
/// subprotocol, as a bearer token.
pub(crate) fn authorization(headers: &HeaderMap) -> Option<Vec<u8>> {
    if let Some(header) = headers.get(AUTHORIZATION) {
        return Some(header.as_bytes().to_vec());
    }
    let bearer = |key: &[u8]| [b"Bearer ", key].concat();
    if let Some(key) = headers.get(HeaderName::from_static("x-api-key")) {
        return Some(bearer(key.as_bytes()));
    }
    tokens(headers, &SEC_WEBSOCKET_PROTOCOL)
        .find_map(|token| token.strip_prefix(KEY_PROTOCOL))
        .map(|key| bearer(key.as_bytes()))
}

/// Whether a header's list has this token, in any case.
fn lists(headers: &HeaderMap, name: &HeaderName, token: &str) -> bool {
    tokens(headers, name).any(|listed| listed.eq_ignore_ascii_case(token))
}

fn tokens<'h>(headers: &'h HeaderMap, name: &HeaderName) -> impl Iterator<Item = &'h str> {
    headers
        .get_all(name)
        .iter()
        .filter_map(|value| value.to_str().ok())
        .flat_map(|list| list.split(','))
        .map(str::trim)
}

#[cfg(test)]
mod tests {
    use super::*;

    fn headers(list: &[(&'static str, &'static str)]) -> HeaderMap {
        list.iter()
            .map(|(name, value)| {
                (
                    HeaderName::from_static(name),
                    HeaderValue::from_static(value),
                )
            })
            .collect()
    }

    const GOOD: [(&str, &str); 4] = [
        ("upgrade", "h2c, WebSocket"),
        ("connection", "keep-alive, Upgrade"),
        ("sec-websocket-version", "13"),
        ("sec-websocket-key", "dGhlIHNhbXBsZSBub25jZQ=="),
    ];

    fn with(name: &'static str, value: &'static str) -> HeaderMap {
        let mut headers = headers(&GOOD);
        headers.insert(
            HeaderName::from_static(name),
            HeaderValue::from_static(value),
        );
        headers
    }

    #[test]
    fn the_example_of_rfc_6455() {
        let headers = headers(&GOOD);
        assert!(wanted(&Method::GET, Version::HTTP_11, &headers));
        assert!(!wanted(&Method::POST, Version::HTTP_11, &headers));
        assert!(!wanted(&Method::GET, Version::HTTP_2, &headers));
        assert!(!wanted(&Method::GET, Version::HTTP_10, &headers));
        let opening = read(&headers).ok();
        let accept = opening.as_ref().map(|opening| opening.accept.as_bytes());
        assert_eq!(accept, Some(&b"s3pPLMBiTxaQ9kYGzzhZRbK+xOo="[..]));
        assert!(opening.is_some_and(|opening| opening.protocol.is_none()));
    }

    #[test]
    fn what_is_no_handshake_is_told() {
        for (name, value) in [
            ("connection", "close"),
            ("sec-websocket-key", ""),
            ("sec-websocket-key", "dGhlIHNhbXBsZSBub25jZQ"),
            ("sec-websocket-key", "dGhlIHNhbXBsZSBub25jZSE="),
            ("sec-websocket-key", "!GhlIHNhbXBsZSBub25jZQ=="),
        ] {
            let bad = read(&with(name, value)).err();
            assert!(matches!(bad, Some(Bad::Request(_))), "{name}: {value}");
        }
        for version in ["12", "", "13, 8"] {
            let bad = read(&with("sec-websocket-version", version)).err();
            assert!(matches!(bad, Some(Bad::Version)), "{version}");
        }
        let mut twice = headers(&GOOD);
        twice.append(
            SEC_WEBSOCKET_KEY,
            HeaderValue::from_static("dGhlIHNhbXBsZSBub25jZQ=="),
        );
        assert!(matches!(read(&twice), Err(Bad::Request(_))));
    }

    #[test]
    fn a_key_is_never_a_protocol_of_ours() {
        let offered = "openai-insecure-api-key.fb-1, realtime, openai-beta.realtime-v1";
        let headers = with("sec-websocket-protocol", offered);
        let protocol = read(&headers).ok().and_then(|opening| opening.protocol);
        assert_eq!(protocol, Some(HeaderValue::from_static("realtime")));
        assert_eq!(
            authorization(&headers).as_deref(),
            Some(&b"Bearer fb-1"[..])
        );
        let only_key = with("sec-websocket-protocol", "openai-insecure-api-key.fb-1");
        assert!(read(&only_key).is_ok_and(|opening| opening.protocol.is_none()));
    }

    #[test]
    fn headers_go_before_subprotocols() {
        let mut headers = with("sec-websocket-protocol", "openai-insecure-api-key.c");
        headers.insert("x-api-key", HeaderValue::from_static("b"));
        assert_eq!(authorization(&headers).as_deref(), Some(&b"Bearer b"[..]));
        headers.insert(AUTHORIZATION, HeaderValue::from_static("Bearer a"));
        assert_eq!(authorization(&headers).as_deref(), Some(&b"Bearer a"[..]));
        assert_eq!(authorization(&HeaderMap::new()), None);
    }

    #[test]
    fn fresh_keys_are_good_ones() {
        let (one, two) = (fresh_key(), fresh_key());
        assert!(one != two && one.len() == 24 && base64::is_base64(&one));
    }
}
