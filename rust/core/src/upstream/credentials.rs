//! Credentials that change while requests run: tokens of clouds, keys that sign.
use std::fmt;

use arc_swap::ArcSwapOption;
use http::header::{HeaderName, HeaderValue};
use serde::Deserialize;

/// Headers as `(name, value)`; the values are marked as sensitive.
pub(super) type HeaderList = Vec<(HeaderName, HeaderValue)>;

/// What a request is let in with.
pub(super) enum Credentials {
    /// Sent as they are.
    Headers(HeaderList),
    /// Requests are signed with them.
    Aws(AwsCredentials),
}

/// The keys of AWS Signature Version 4.
#[derive(Clone, Deserialize)]
#[serde(deny_unknown_fields)]
pub struct AwsCredentials {
    /// Public: which key signs.
    pub access_key: String,
    /// Secret.
    pub secret_key: String,
    /// Of keys for a time.
    #[serde(default)]
    pub session_token: Option<String>,
}

impl fmt::Debug for AwsCredentials {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        f.write_str("AwsCredentials(…)")
    }
}

#[derive(Deserialize)]
#[serde(deny_unknown_fields)]
struct HeadersSpec {
    headers: Vec<(String, String)>,
}

impl Credentials {
    /// Reads `{"headers": [[name, value]…]}` or `{"access_key", "secret_key", "session_token"}`.
    /// Errors quote nothing of it.
    pub(super) fn parse(json: &[u8]) -> Result<Self, String> {
        if let Ok(spec) = serde_json::from_slice::<HeadersSpec>(json) {
            return headers(&spec.headers).map(Self::Headers);
        }
        if let Ok(keys) = serde_json::from_slice::<AwsCredentials>(json) {
            let token = keys.session_token.as_deref().unwrap_or_default();
            let fits = |text: &str| HeaderValue::try_from(text).is_ok();
            return if fits(&keys.access_key) && fits(token) {
                Ok(Self::Aws(keys))
            } else {
                Err("credentials have characters that no header can carry".to_owned())
            };
        }
        Err("credentials are an object with headers, or with access_key and secret_key".to_owned())
    }
}

/// Reads headers; errors name the header and never its value.
pub(super) fn headers(list: &[(String, String)]) -> Result<HeaderList, String> {
    const OURS: [&str; 4] = ["host", "content-length", "transfer-encoding", "connection"];
    list.iter()
        .map(|(name, value)| {
            let header = HeaderName::try_from(name.as_str())
                .map_err(|_| format!("{name:?} is no header's name"))?;
            if OURS.contains(&header.as_str()) {
                return Err(format!("the header {header} is not to be set"));
            }
            let mut value = HeaderValue::try_from(value.as_str())
                .map_err(|_| format!("the header {header} has characters that none can carry"))?;
            value.set_sensitive(true);
            Ok((header, value))
        })
        .collect()
}

/// The credentials of one upstream as they are now.
#[derive(Default)]
pub(super) struct Wallet(ArcSwapOption<Credentials>);

impl Wallet {
    pub(super) fn put(&self, credentials: Credentials) {
        self.0.store(Some(std::sync::Arc::new(credentials)));
    }

    pub(super) fn get(&self) -> arc_swap::Guard<Option<std::sync::Arc<Credentials>>> {
        self.0.load()
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn both_shapes_are_read() {
        let token =
            br#"{"headers": [["Authorization", "Bearer t"], ["x-goog-user-project", "p"]]}"#;
        let list = match Credentials::parse(token) {
            Ok(Credentials::Headers(list)) => list,
            _ => Vec::new(),
        };
        assert_eq!(list.len(), 2);
        assert!(list.iter().all(|(_, value)| value.is_sensitive()));
        for keys in [
            &br#"{"access_key": "a", "secret_key": "s", "session_token": null}"#[..],
            br#"{"access_key": "a", "secret_key": "s", "session_token": "t"}"#,
            br#"{"access_key": "a", "secret_key": "s"}"#,
        ] {
            assert!(matches!(Credentials::parse(keys), Ok(Credentials::Aws(_))));
        }
    }

    #[test]
    fn what_is_wrong_is_told_without_a_secret() {
        for json in [
            &b""[..],
            b"secret-1",
            br#"{"secret-1": 1}"#,
            br#"{"headers": [["x", "secret-1\n"]]}"#,
            br#"{"headers": [["host", "secret-1"]]}"#,
            br#"{"access_key": "secret-1\n", "secret_key": "secret-1"}"#,
            br#"{"access_key": "a", "secret_key": "secret-1", "more": 1}"#,
        ] {
            let error = Credentials::parse(json).err();
            assert!(
                error.as_ref().is_some_and(|e| !e.contains("secret-1")),
                "{error:?}"
            );
        }
        let keys = AwsCredentials {
            access_key: "a".to_owned(),
            secret_key: "secret-1".to_owned(),
            session_token: None,
        };
        assert!(!format!("{keys:?}").contains("secret-1"));
    }
}
