//! Where an upstream is, and where each API is there.
use std::fmt::Write;

use http::Uri;
use http::uri::{Authority, PathAndQuery, Scheme};

use crate::gateway::Endpoint;
use crate::snapshot::PathsSpec;

/// What stands for the model's name in a path.
const MODEL: &str = "{model}";

/// Scheme, host and port, and what every path and query begin with.
#[derive(Clone, Debug, PartialEq, Eq)]
pub(super) struct Address {
    scheme: Scheme,
    authority: Authority,
    prefix: String,
    query: Option<String>,
}

impl Address {
    /// Reads a configured address. Fails without a scheme or a host.
    pub(super) fn parse(url: &str) -> Result<Self, String> {
        let uri: Uri = url.parse().map_err(|e| format!("{e}"))?;
        let parts = uri.into_parts();
        let (Some(scheme), Some(authority)) = (parts.scheme, parts.authority) else {
            return Err("the address needs a scheme and a host".to_owned());
        };
        if scheme != Scheme::HTTP && scheme != Scheme::HTTPS {
            return Err("the address has to begin with http:// or https://".to_owned());
        }
        let has_port = !authority.as_str().ends_with(authority.host());
        if authority.host().is_empty() || (has_port && authority.port_u16().is_none()) {
            return Err("the address has no host, or a port that is none".to_owned());
        }
        let path = parts.path_and_query;
        let prefix = path.as_ref().map_or("", PathAndQuery::path);
        Ok(Self {
            scheme,
            authority,
            prefix: prefix.trim_end_matches('/').to_owned(),
            query: path
                .as_ref()
                .and_then(|path| path.query())
                .filter(|query| !query.is_empty())
                .map(str::to_owned),
        })
    }

    pub(super) fn scheme(&self) -> &Scheme {
        &self.scheme
    }

    /// Whether what is sent there reaches the same server.
    pub(super) fn same_origin(&self, other: &Self) -> bool {
        self.scheme == other.scheme && self.authority == other.authority
    }

    /// `path`, which may have a query, below the address.
    pub(super) fn uri(&self, path: &str) -> Result<Uri, http::Error> {
        let (path, own) = match path.split_once('?') {
            Some((path, query)) => (path, Some(query)),
            None => (path, None),
        };
        let mut whole = String::with_capacity(self.prefix.len() + path.len() + 32);
        whole.push_str(&self.prefix);
        if !path.starts_with('/') {
            whole.push('/');
        }
        whole.push_str(path);
        let queries = [self.query.as_deref(), own];
        for (query, mark) in queries.into_iter().flatten().zip(['?', '&']) {
            whole.push(mark);
            whole.push_str(query);
        }
        Uri::builder()
            .scheme(self.scheme.clone())
            .authority(self.authority.clone())
            .path_and_query(whole)
            .build()
    }
}

impl Address {
    /// The path and query of a place here, without what all of them begin with.
    pub(super) fn own(&self, uri: &Uri) -> String {
        let path = uri.path();
        let path = path.strip_prefix(&self.prefix).unwrap_or(path);
        let query = uri.query().unwrap_or_default();
        let rest = match &self.query {
            None => query,
            Some(all) => {
                let rest = query.strip_prefix(all.as_str()).unwrap_or(query);
                rest.trim_start_matches('&')
            }
        };
        if rest.is_empty() {
            path.to_owned()
        } else {
            format!("{path}?{rest}")
        }
    }
}

/// Where one API is.
#[derive(Clone, Debug)]
enum Place {
    /// The same for every model.
    Fixed(Uri),
    /// A path with `{model}` in it.
    OfModel(String),
}

impl Place {
    fn new(address: &Address, path: &str) -> Result<Self, String> {
        let invalid = |e: http::Error| format!("the path {path:?} is none: {e}");
        if path.contains(MODEL) {
            // Any name is as good as another once it is encoded.
            address
                .uri(&path.replace(MODEL, "m"))
                .map_err(invalid)
                .map(|_| Self::OfModel(path.to_owned()))
        } else {
            address.uri(path).map_err(invalid).map(Self::Fixed)
        }
    }
}

/// Where each API of an upstream is.
#[derive(Clone, Debug)]
pub(super) struct Places {
    /// By the index of their API.
    all: [Option<Place>; Endpoint::ALL.len()],
    chat_stream: Option<Place>,
    responses: Option<Place>,
}

impl Places {
    /// Fails on a path that no address can have.
    pub(super) fn new(address: &Address, paths: &PathsSpec) -> Result<Self, String> {
        let place = |path: &Option<String>| {
            path.as_deref()
                .map(|path| Place::new(address, path))
                .transpose()
        };
        let mut all = [const { None }; Endpoint::ALL.len()];
        for (slot, endpoint) in all.iter_mut().zip(Endpoint::ALL) {
            *slot = place(paths.of(endpoint))?;
        }
        Ok(Self {
            all,
            chat_stream: place(&paths.chat_stream)?,
            responses: place(&paths.responses)?,
        })
    }

    fn place(&self, endpoint: Endpoint, stream: bool) -> Option<&Place> {
        let streamed = self.chat_stream.as_ref();
        streamed
            .filter(|_| stream && endpoint == Endpoint::Chat)
            .or_else(|| self.all.get(endpoint as usize)?.as_ref())
    }

    /// Whether there is such an API.
    pub(super) fn offers(&self, endpoint: Endpoint) -> bool {
        self.place(endpoint, false).is_some()
    }

    /// Whether there are Responses beside chat.
    pub(super) const fn offers_responses(&self) -> bool {
        self.responses.is_some()
    }

    /// Where a call of Responses goes; `None` where there are none.
    pub(super) fn responses(
        &self,
        address: &Address,
        model: &str,
    ) -> Option<Result<Uri, http::Error>> {
        self.responses
            .as_ref()
            .map(|place| place.of(address, model))
    }

    /// Where something below a collection is; `None` where there is no such API.
    pub(super) fn below(
        &self,
        endpoint: Endpoint,
        below: &str,
    ) -> Option<Result<Uri, http::Error>> {
        let Place::Fixed(uri) = self.place(endpoint, false)? else {
            return None;
        };
        let query = uri
            .query()
            .map_or_else(String::new, |query| format!("?{query}"));
        let mut parts = uri.clone().into_parts();
        let path = format!("{}{below}{query}", uri.path());
        Some(match PathAndQuery::try_from(path) {
            Ok(path) => {
                parts.path_and_query = Some(path);
                Uri::from_parts(parts).map_err(Into::into)
            }
            Err(error) => Err(error.into()),
        })
    }

    /// Where a call goes; `None` where there is no such API.
    pub(super) fn uri(
        &self,
        address: &Address,
        endpoint: Endpoint,
        stream: bool,
        model: &str,
    ) -> Option<Result<Uri, http::Error>> {
        let place = self.place(endpoint, stream)?;
        Some(place.of(address, model))
    }
}

impl Place {
    fn of(&self, address: &Address, model: &str) -> Result<Uri, http::Error> {
        match self {
            Self::Fixed(uri) => Ok(uri.clone()),
            Self::OfModel(path) => address.uri(&path.replace(MODEL, &encoded(model))),
        }
    }
}

/// `text` as one segment of a path: all but RFC 3986's unreserved characters are percent-encoded.
fn encoded(text: &str) -> String {
    let mut out = String::with_capacity(text.len() + 8);
    for byte in text.bytes() {
        if byte.is_ascii_alphanumeric() || matches!(byte, b'-' | b'.' | b'_' | b'~') {
            out.push(char::from(byte));
        } else {
            // Writing to a string cannot fail.
            let _ = write!(out, "%{byte:02X}");
        }
    }
    out
}

#[cfg(test)]
mod tests {
    use super::*;

    fn uri(url: &str, paths: &PathsSpec, call: (Endpoint, bool), model: &str) -> Option<String> {
        let address = Address::parse(url).ok()?;
        let places = Places::new(&address, paths).ok()?;
        assert_eq!(
            places.offers(call.0),
            places.uri(&address, call.0, call.1, model).is_some()
        );
        let uri = places.uri(&address, call.0, call.1, model)?.ok()?;
        Some(uri.to_string())
    }

    fn chat(url: &str, path: &str, model: &str) -> Option<String> {
        let paths = PathsSpec {
            chat: Some(path.to_owned()),
            ..PathsSpec::default()
        };
        uri(url, &paths, (Endpoint::Chat, false), model)
    }

    #[test]
    fn prefixes_and_queries_are_kept() {
        for (url, path, expected) in [
            ("http://h:1", "/v1/x", "http://h:1/v1/x"),
            ("http://h/", "/v1/x", "http://h/v1/x"),
            ("https://h/a/b/", "/v1/x", "https://h/a/b/v1/x"),
            ("https://h/a", "/x?alt=sse", "https://h/a/x?alt=sse"),
            (
                "https://h/a?api-version=1",
                "/x?alt=sse",
                "https://h/a/x?api-version=1&alt=sse",
            ),
            ("https://h?api-version=1", "/x", "https://h/x?api-version=1"),
        ] {
            assert_eq!(chat(url, path, "m").as_deref(), Some(expected));
        }
    }

    #[test]
    fn a_models_name_is_one_segment() {
        for (model, expected) in [
            ("gpt-4.1_x~", "gpt-4.1_x~"),
            ("a.claude-v2:0", "a.claude-v2%3A0"),
            ("org/name", "org%2Fname"),
            ("a b?c#d%é", "a%20b%3Fc%23d%25%C3%A9"),
            ("{model}", "%7Bmodel%7D"),
        ] {
            assert_eq!(
                chat("http://h", "/m/{model}:generate?k=1", model),
                Some(format!("http://h/m/{expected}:generate?k=1"))
            );
        }
    }

    #[test]
    fn a_stream_may_have_a_path_of_its_own() {
        let paths = PathsSpec {
            chat: Some("/c".to_owned()),
            chat_stream: Some("/s".to_owned()),
            completions: None,
            embeddings: None,
            realtime: Some("/r?model={model}".to_owned()),
            rerank: Some("/rank".to_owned()),
            ..PathsSpec::default()
        };
        let at = |endpoint, stream| uri("http://h", &paths, (endpoint, stream), "m");
        assert_eq!(at(Endpoint::Chat, false).as_deref(), Some("http://h/c"));
        assert_eq!(at(Endpoint::Chat, true).as_deref(), Some("http://h/s"));
        assert_eq!(at(Endpoint::Completions, true), None);
        assert_eq!(at(Endpoint::Embeddings, false), None);
        let session = at(Endpoint::Realtime, false);
        assert_eq!(session.as_deref(), Some("http://h/r?model=m"));
        let ranked = at(Endpoint::Rerank, false);
        assert_eq!(ranked.as_deref(), Some("http://h/rank"));
        assert_eq!(at(Endpoint::Files, false), None);
    }

    #[test]
    fn what_is_no_address_is_refused() {
        for url in [
            "",
            "h",
            "/v1",
            "ftp://h",
            "http://",
            "http://h:x",
            "http://:80",
        ] {
            assert!(Address::parse(url).is_err(), "{url}");
        }
        assert_eq!(chat("http://h", "/a b", "m"), None);
    }
}
