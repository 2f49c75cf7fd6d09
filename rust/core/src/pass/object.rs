//! Files and batches: which of their paths there are, and what each does. Pure.
use http::Method;
use serde::Deserialize;

use crate::endpoint::Endpoint;
use crate::error::{Error, Kind};

/// Longest id of a file or batch.
const MAX_ID: usize = 128;
/// Most objects of one page, and how many there are where nothing is said.
const MAX_PAGE: u32 = 100;
const PAGE: u32 = 20;

/// What is done.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum Act {
    /// `POST` at the collection.
    Create,
    /// `GET` at the collection.
    List,
    /// `GET` of one.
    Get,
    /// `DELETE` of a file.
    Delete,
    /// `GET` of what is in a file.
    Content,
    /// `POST` that ends a batch.
    Cancel,
}

/// One request about files or batches.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct Object {
    /// Files or batches.
    pub endpoint: Endpoint,
    /// What is done.
    pub act: Act,
    /// With which one; empty where it is none yet, or all.
    pub id: String,
    /// The query, as it came.
    pub query: String,
}

/// Which page of a list.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct Page {
    /// Those after this one.
    pub after: Option<String>,
    /// So many at most.
    pub limit: u32,
    /// The oldest first.
    pub ascending: bool,
    /// Files for this.
    pub purpose: Option<String>,
}

impl Object {
    /// Whether it makes something, or deletes it: what has come of that is to be recorded.
    pub fn changes(&self) -> bool {
        matches!(self.act, Act::Create | Act::Delete)
    }

    /// What a path and a method ask for. None: it is no such path. An error: which methods it has.
    pub fn of(method: &Method, path: &str, query: &str) -> Option<Result<Self, &'static str>> {
        let endpoint = [Endpoint::Files, Endpoint::Batches]
            .into_iter()
            .find(|endpoint| path.starts_with(endpoint.path()))?;
        let rest = path.strip_prefix(endpoint.path())?;
        let mut parts = rest.split('/');
        if !parts.next()?.is_empty() {
            return None;
        }
        let (id, verb) = (parts.next(), parts.next());
        if parts.next().is_some() || id.is_some_and(|id| !is_id(id)) {
            return None;
        }
        let is_file = endpoint == Endpoint::Files;
        let (found, allow) = match (id, verb) {
            (None, _) => (
                match *method {
                    Method::GET => Some(Act::List),
                    Method::POST => Some(Act::Create),
                    _ => None,
                },
                "GET, POST",
            ),
            (Some(_), None) => (
                match *method {
                    Method::GET => Some(Act::Get),
                    Method::DELETE if is_file => Some(Act::Delete),
                    _ => None,
                },
                if is_file { "GET, DELETE" } else { "GET" },
            ),
            (Some(_), Some("content")) if is_file => {
                ((*method == Method::GET).then_some(Act::Content), "GET")
            }
            (Some(_), Some("cancel")) if !is_file => {
                ((*method == Method::POST).then_some(Act::Cancel), "POST")
            }
            _ => return None,
        };
        Some(found.ok_or(allow).map(|act| Self {
            endpoint,
            act,
            id: id.unwrap_or_default().to_owned(),
            query: query.to_owned(),
        }))
    }

    /// The method that it has at the upstream too.
    pub fn method(&self) -> Method {
        match self.act {
            Act::Create | Act::Cancel => Method::POST,
            Act::List | Act::Get | Act::Content => Method::GET,
            Act::Delete => Method::DELETE,
        }
    }

    /// The path below the collection.
    pub fn below(&self) -> String {
        match self.act {
            Act::Create | Act::List => String::new(),
            Act::Get | Act::Delete => format!("/{}", self.id),
            Act::Content => format!("/{}/content", self.id),
            Act::Cancel => format!("/{}/cancel", self.id),
        }
    }

    /// The kind's name where it is recorded whose it is.
    pub fn kind(&self) -> &'static str {
        if self.endpoint == Endpoint::Files {
            "file"
        } else {
            "batch"
        }
    }

    /// Which page a list is asked for.
    ///
    /// Errors: a parameter that is none, by its name.
    pub fn page(&self) -> Result<Page, Error> {
        let mut page = Page {
            after: None,
            limit: PAGE,
            ascending: false,
            purpose: None,
        };
        for pair in self.query.split('&').filter(|pair| !pair.is_empty()) {
            let (key, value) = pair.split_once('=').unwrap_or((pair, ""));
            match key {
                "after" if is_id(value) => page.after = Some(value.to_owned()),
                "purpose" if is_id(value) => page.purpose = Some(value.to_owned()),
                "limit" => match value.parse() {
                    // OpenAI's files have pages of 10,000: what is over a page of ours is the next one.
                    Ok(limit) if limit > 0 => page.limit = MAX_PAGE.min(limit),
                    _ => return Err(wrong("limit")),
                },
                "order" if value == "asc" => page.ascending = true,
                "order" if value == "desc" => page.ascending = false,
                "after" => return Err(wrong("after")),
                "purpose" => return Err(wrong("purpose")),
                "order" => return Err(wrong("order")),
                _ => {}
            }
        }
        Ok(page)
    }
}

/// The file that a batch takes its requests from.
///
/// Errors: there is none.
pub fn input_file(body: &[u8]) -> Result<String, Error> {
    #[derive(Deserialize)]
    struct Batch {
        #[serde(default)]
        input_file_id: Option<String>,
    }
    let batch: Batch = serde_json::from_slice(body).map_err(|cause| {
        Error::new(
            Kind::InvalidRequest,
            "We could not read the request: it must be a JSON object of a batch.",
        )
        .code("invalid_json")
        .cause(cause)
    })?;
    match batch.input_file_id {
        Some(id) if is_id(&id) => Ok(id),
        Some(_) => Err(wrong("input_file_id")),
        None => Err(Error::new(
            Kind::InvalidRequest,
            "Missing required parameter: 'input_file_id'.",
        )
        .param("input_file_id")
        .code("missing_required_parameter")),
    }
}

/// There is none of that id, or it is another account's: nobody learns which.
pub fn unknown(kind: &str, id: &str) -> Error {
    Error::new(Kind::NotFound, format!("No such {kind}: '{id}'."))
        .param("id")
        .code("object_not_found")
}

fn wrong(param: &'static str) -> Error {
    Error::new(
        Kind::InvalidRequest,
        format!("'{param}' has no valid value."),
    )
    .param(param)
    .code("invalid_value")
}

/// What can stand in a path as it is, and is one segment of it.
fn is_id(text: &str) -> bool {
    (1..=MAX_ID).contains(&text.len())
        && text.bytes().any(|byte| byte != b'.')
        && text
            .bytes()
            .all(|byte| byte.is_ascii_alphanumeric() || matches!(byte, b'-' | b'_' | b'.' | b'='))
}

#[cfg(test)]
mod tests {
    use super::*;

    fn of(method: &str, path: &str) -> Option<Result<(Act, String), &'static str>> {
        let method = Method::from_bytes(method.as_bytes()).ok()?;
        Object::of(&method, path, "").map(|found| found.map(|object| (object.act, object.below())))
    }

    #[test]
    fn each_path_does_one_thing() {
        for (method, path, act, below) in [
            ("POST", "/v1/files", Act::Create, ""),
            ("GET", "/v1/files", Act::List, ""),
            ("GET", "/v1/files/file-a1", Act::Get, "/file-a1"),
            ("DELETE", "/v1/files/file-a1", Act::Delete, "/file-a1"),
            (
                "GET",
                "/v1/files/file-a1/content",
                Act::Content,
                "/file-a1/content",
            ),
            ("POST", "/v1/batches", Act::Create, ""),
            ("GET", "/v1/batches", Act::List, ""),
            ("GET", "/v1/batches/batch_1", Act::Get, "/batch_1"),
            (
                "POST",
                "/v1/batches/batch_1/cancel",
                Act::Cancel,
                "/batch_1/cancel",
            ),
        ] {
            assert_eq!(
                of(method, path),
                Some(Ok((act, below.to_owned()))),
                "{path}"
            );
        }
        for (method, path, allow) in [
            ("PUT", "/v1/files", "GET, POST"),
            ("POST", "/v1/files/file-a1", "GET, DELETE"),
            ("DELETE", "/v1/batches/batch_1", "GET"),
            ("POST", "/v1/files/file-a1/content", "GET"),
            ("GET", "/v1/batches/batch_1/cancel", "POST"),
        ] {
            assert_eq!(of(method, path), Some(Err(allow)), "{path}");
        }
    }

    #[test]
    fn nothing_else_is_reached() {
        for path in [
            "/v1/filesx",
            "/v1/files/",
            "/v1/files/..",
            "/v1/files/../models",
            "/v1/files/a%2Fb",
            "/v1/files/a/b",
            "/v1/files/a/content/x",
            "/v1/files/a/cancel",
            "/v1/batches/a/content",
            "/v1/batches/a?x",
            "/v1/chat/completions",
        ] {
            assert_eq!(of("GET", path), None, "{path}");
        }
    }

    #[test]
    fn pages_are_bounded() {
        let page = |query: &str| {
            let found = Object::of(&Method::GET, "/v1/files", query)?.ok()?;
            found.page().ok()
        };
        assert_eq!(page("").map(|page| page.limit), Some(20));
        assert_eq!(page("limit=10000").map(|page| page.limit), Some(100));
        let asked = page("after=file-1&order=asc&purpose=batch&x=y");
        assert!(asked.is_some_and(|asked| {
            asked.after.as_deref() == Some("file-1")
                && asked.ascending
                && asked.purpose.as_deref() == Some("batch")
        }));
        for query in ["limit=0", "limit=x", "after=", "order=up", "purpose=a/b"] {
            assert_eq!(page(query), None, "{query}");
        }
    }
}
