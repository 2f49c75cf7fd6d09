//! What an upstream's message may tell a client: no file, address or stack, and the parameters'
//! names as the client knows them.
use super::Asked;

/// Longest message passed on, in characters.
const MAX_MESSAGE: usize = 1000;

/// A message freed of internals, and the parameter it names.
pub(super) fn client_message(message: &str, asked: Asked) -> (String, Option<String>) {
    if let Some((text, param)) = validation(message) {
        return (scrub(&text, asked), param.map(|p| client_name(&p, asked)));
    }
    (scrub(message, asked), None)
}

/// SGLang's schema errors (`N validation error: {'loc': (…), 'msg': '…'} … File "…"`): the first
/// one's place and reason, without the server's file and the echoed input.
fn validation(message: &str) -> Option<(String, Option<String>)> {
    if !message.contains(" validation error") {
        return None;
    }
    let reason = quoted_after(message, "'msg': ")?;
    let reason = reason
        .strip_prefix("Value error, ")
        .unwrap_or(&reason)
        .to_owned();
    let place = location(message);
    let text = match &place {
        Some(place) => format!("{place}: {reason}"),
        None => reason,
    };
    Some((text, place))
}

/// `'loc': ('body', 'messages', 0, 'role')` as `messages[0].role`. Pydantic's inner validator
/// names (`function-after[…]`, union members) are not part of a client's path.
fn location(message: &str) -> Option<String> {
    let rest = message.split_once("'loc': (")?.1;
    let list = rest.split_once(')').map_or(rest, |(list, _)| list);
    let mut path = String::new();
    for (index, part) in list.split(", ").enumerate() {
        let part = part.trim_end_matches(',');
        let name = part.trim_matches('\'');
        if index == 0 && name == "body" {
            continue;
        }
        if part.starts_with('\'') {
            if !name
                .bytes()
                .all(|b| b.is_ascii_lowercase() || b.is_ascii_digit() || b == b'_')
            {
                // The list is cut at the first ')' inside a validator's name: stop there.
                break;
            }
            if !path.is_empty() {
                path.push('.');
            }
            path.push_str(name);
        } else if name.bytes().all(|b| b.is_ascii_digit()) && !path.is_empty() && !name.is_empty() {
            path.push('[');
            path.push_str(name);
            path.push(']');
        }
    }
    (!path.is_empty()).then_some(path)
}

/// The Python string literal that follows `marker`.
fn quoted_after(text: &str, marker: &str) -> Option<String> {
    let rest = text.split_once(marker)?.1;
    let mut chars = rest.chars();
    let quote = chars.next().filter(|c| *c == '\'' || *c == '"')?;
    let mut out = String::new();
    let mut escaped = false;
    for c in chars {
        match c {
            _ if escaped => {
                out.push(c);
                escaped = false;
            }
            '\\' => escaped = true,
            c if c == quote => return Some(out),
            c => out.push(c),
        }
    }
    None
}

pub(super) fn client_name(param: &str, asked: Asked) -> String {
    match param {
        "max_new_tokens" if asked.max_completion_tokens => "max_completion_tokens".to_owned(),
        "max_new_tokens" => "max_tokens".to_owned(),
        other => other.to_owned(),
    }
}

/// Removes file paths, addresses and stack frames; renames engine parameters; bounds the length.
pub fn scrub(message: &str, asked: Asked) -> String {
    let head = [
        "\n\n  File \"",
        "\n  File \"",
        "Traceback (most recent call last)",
    ]
    .iter()
    .filter_map(|marker| message.find(marker))
    .min()
    .map_or(message, |at| message.get(..at).unwrap_or(message));
    let mut out = String::with_capacity(head.len());
    for word in head.split_inclusive(char::is_whitespace) {
        let bare = word.trim_matches(|c: char| !(c.is_alphanumeric() || c == '/' || c == '_'));
        if bare.split(is_quote).any(is_internal) {
            out.push_str(&word.replace(bare, "[redacted]"));
        } else if bare.contains("max_new_tokens") {
            out.push_str(&word.replace("max_new_tokens", &client_name("max_new_tokens", asked)));
        } else {
            out.push_str(word);
        }
        if out.len() > MAX_MESSAGE * 4 {
            break;
        }
    }
    out.trim().chars().take(MAX_MESSAGE).collect()
}

/// What may stand around an address in an engine's message: `HTTPConnectionPool(host='10.0.0.5',`.
fn is_quote(c: char) -> bool {
    matches!(c, '\'' | '"' | '`' | '(' | ')' | '<' | '>' | '=' | ',')
}

/// A path of the server, a URL, or an address with a port.
fn is_internal(word: &str) -> bool {
    let path = word.starts_with('/')
        && word.get(1..).is_some_and(|rest| rest.contains('/'))
        && !word.starts_with("/v1/");
    let address = word.rsplit_once(':').is_some_and(|(host, port)| {
        !port.is_empty()
            && port.bytes().all(|b| b.is_ascii_digit())
            && (host.parse::<std::net::IpAddr>().is_ok()
                || host.contains('.')
                || host == "localhost")
    });
    path || word.contains("://") || address || word.parse::<std::net::IpAddr>().is_ok()
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn addresses_are_taken_out_wherever_they_stand() {
        for text in [
            "HTTPConnectionPool(host='10.0.0.5', port=1) failed",
            "see url=http://gpu-a:30000/generate",
            "at (10.0.0.5:30000)",
            "from gpu-a.internal:30000.",
            "open('/opt/engine/model.py')",
            "<fe80::1>",
        ] {
            let clean = scrub(text, Asked::default());
            assert!(clean.contains("[redacted]"), "{clean}");
            for secret in ["10.0.0.5", "gpu-a", "/opt", "fe80"] {
                assert!(!clean.contains(secret), "{clean}");
            }
        }
        for text in ["'role' must be one of 'system', 'user'", "a/b or c=d: 3"] {
            assert_eq!(scrub(text, Asked::default()), text);
        }
    }

    #[test]
    fn addresses_and_paths_go() {
        let text = scrub(
            "cannot reach http://10.0.0.5:30000/x or /opt/a/b.py at 10.0.0.5:30000",
            Asked::default(),
        );
        assert!(
            !text.contains("10.0.0.5") && !text.contains("/opt"),
            "{text}"
        );
    }
}
