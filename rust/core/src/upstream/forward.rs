//! Which headers pass from an upstream to a client.
use http::header::{CONNECTION, HeaderMap, HeaderName};

/// Headers of one hop (RFC 9110 §7.6.1), which a proxy never passes on.
const HOP_BY_HOP: [&str; 9] = [
    "connection",
    "keep-alive",
    "proxy-authenticate",
    "proxy-authorization",
    "proxy-connection",
    "te",
    "trailer",
    "transfer-encoding",
    "upgrade",
];

/// Headers that are the gateway's own to set, or that would tell what stands behind it.
const OWN: [&str; 14] = [
    "content-length",
    "date",
    "server",
    "via",
    "x-powered-by",
    "set-cookie",
    "alt-svc",
    "strict-transport-security",
    "www-authenticate",
    "location",
    "retry-after",
    "retry-after-ms",
    "x-should-retry",
    "x-request-id",
];

/// Whether an upstream's response header reaches the client.
pub fn passes(name: &HeaderName, headers: &HeaderMap) -> bool {
    let text = name.as_str();
    let own = OWN.contains(&text)
        || text.starts_with("x-ratelimit-")
        || text.starts_with("x-forebay-")
        || text.starts_with("access-control-");
    !own && !is_hop_by_hop(name, headers)
}

/// Whether a header belongs to one hop, by its name or because `Connection` lists it.
pub fn is_hop_by_hop(name: &HeaderName, headers: &HeaderMap) -> bool {
    let text = name.as_str();
    HOP_BY_HOP.contains(&text)
        || headers.get_all(CONNECTION).iter().any(|listed| {
            listed.to_str().is_ok_and(|list| {
                list.split(',')
                    .any(|token| token.trim().eq_ignore_ascii_case(text))
            })
        })
}
