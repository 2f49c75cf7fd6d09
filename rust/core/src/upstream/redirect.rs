//! Where an answer is to be fetched that a 303 puts off.
use http::Uri;
use http::header::{HeaderMap, LOCATION};
use http::uri::{Authority, Scheme};

/// Hops until a chain is taken to have no end: Modal's has up to twenty.
pub(super) const MAX_HOPS: usize = 20;

/// The place that `Location` names, if it is of the same origin as `from` (RFC 9110 §10.2.2).
pub(super) fn next(from: &Uri, headers: &HeaderMap) -> Option<Uri> {
    let location = headers.get(LOCATION)?.to_str().ok()?;
    // A fragment is not sent.
    let location = location.split('#').next().unwrap_or_default();
    let (scheme, authority) = (from.scheme()?, from.authority()?);
    if location.starts_with('/') && !location.starts_with("//") {
        return at(scheme, authority, location);
    }
    if location.starts_with('?') {
        return at(scheme, authority, &format!("{}{location}", from.path()));
    }
    let to: Uri = if let Some(rest) = location.strip_prefix("//") {
        format!("{scheme}://{rest}").parse().ok()?
    } else {
        location.parse().ok()?
    };
    let same = to.scheme()? == scheme
        && to.host()?.eq_ignore_ascii_case(authority.host())
        && port(&to)? == port(from)?;
    if !same {
        return None;
    }
    at(scheme, authority, to.path_and_query()?.as_str())
}

fn at(scheme: &Scheme, authority: &Authority, path: &str) -> Option<Uri> {
    Uri::builder()
        .scheme(scheme.clone())
        .authority(authority.clone())
        .path_and_query(path)
        .build()
        .ok()
}

fn port(uri: &Uri) -> Option<u16> {
    let scheme = uri.scheme()?;
    uri.port_u16().or(if *scheme == Scheme::HTTPS {
        Some(443)
    } else if *scheme == Scheme::HTTP {
        Some(80)
    } else {
        None
    })
}

#[cfg(test)]
mod tests {
    use super::*;

    fn to(from: &str, location: &str) -> Option<String> {
        let mut headers = HeaderMap::new();
        headers.insert(LOCATION, location.try_into().ok()?);
        next(&from.parse().ok()?, &headers).map(|uri| uri.to_string())
    }

    #[test]
    fn the_same_origin_is_followed() {
        for (location, expected) in [
            (
                "/x?__modal_function_call_id=fc-1",
                "https://h/x?__modal_function_call_id=fc-1",
            ),
            ("?id=1", "https://h/v1/chat?id=1"),
            ("https://h/v1/chat?id=1#part", "https://h/v1/chat?id=1"),
            ("https://H:443/y", "https://h/y"),
            ("//h/y", "https://h/y"),
        ] {
            assert_eq!(
                to("https://h/v1/chat?old=1", location).as_deref(),
                Some(expected)
            );
        }
        assert_eq!(
            to("http://127.0.0.1:8000/v1", "http://127.0.0.1:8000/r").as_deref(),
            Some("http://127.0.0.1:8000/r")
        );
    }

    #[test]
    fn any_other_place_is_not() {
        for location in [
            "https://other/y",
            "https://h.other/y",
            "https://h:8443/y",
            "http://h/y",
            "//other/y",
            "file:///etc/passwd",
            "relative/path",
            "",
        ] {
            assert_eq!(to("https://h/v1/chat", location), None, "{location}");
        }
        let from = Uri::from_static("https://h/");
        assert_eq!(next(&from, &HeaderMap::new()), None);
    }
}
