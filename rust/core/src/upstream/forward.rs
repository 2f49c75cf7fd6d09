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
const OWN: [&str; 22] = [
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
    "request-id",
    "apim-request-id",
    "openai-organization",
    "openai-project",
    "anthropic-organization-id",
    "nel",
    "report-to",
    "server-timing",
];

/// What the names of such headers begin with: our own, limits of our account there, and what clouds,
/// providers and their proxies say of themselves.
const OWN_PREFIXES: [&str; 17] = [
    "x-ratelimit-",
    "x-tokenlimit-",
    "anthropic-ratelimit-",
    "x-forebay-",
    "access-control-",
    "llm_provider-",
    "x-litellm-",
    "x-amzn-",
    "x-ms-",
    "azureml-",
    "x-goog-",
    "modal-",
    "x-modal-",
    "x-baseten-",
    "x-runpod-",
    "x-envoy-",
    "cf-",
];

/// Whether an upstream's response header reaches the client.
pub fn passes(name: &HeaderName, headers: &HeaderMap) -> bool {
    let text = name.as_str();
    let own = OWN.contains(&text) || OWN_PREFIXES.iter().any(|start| text.starts_with(start));
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

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn what_tells_of_the_upstream_stays_inside() {
        let headers = HeaderMap::new();
        let through = |name: &'static str| passes(&HeaderName::from_static(name), &headers);
        for name in [
            "server",
            "location",
            "openai-organization",
            "anthropic-organization-id",
            "anthropic-ratelimit-tokens-remaining",
            "x-amzn-requestid",
            "x-ms-region",
            "cf-ray",
            "llm_provider-x-request-id",
            "transfer-encoding",
        ] {
            assert!(!through(name), "{name}");
        }
        for name in ["content-type", "openai-processing-ms", "x-queue-time"] {
            assert!(through(name), "{name}");
        }
    }
}
