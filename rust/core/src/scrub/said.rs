//! What an error's body says, whatever its shape.
use std::borrow::Cow;
use std::cell::OnceCell;

use http::HeaderMap;
use serde_json::Value;

/// Fields that hold an error's own code, here and there; `__type` is AWS's.
const CODES: [&str; 5] = ["code", "type", "status", "error_type", "__type"];

/// Fields that hold text for people.
const TEXTS: [&str; 5] = ["message", "Message", "detail", "msg", "error_message"];

/// A body as it was understood.
#[derive(Debug, Default)]
pub(super) struct Said<'a> {
    raw: &'a [u8],
    lower: OnceCell<String>,
    /// For people, as it was sent.
    pub(super) message: Option<String>,
    /// The field at fault.
    pub(super) param: Option<String>,
    /// The error's `code`, where that is a string.
    pub(super) code: Option<String>,
    /// Every code, type and status that the error has, numbers too.
    codes: Vec<String>,
    /// `details` of Google's errors.
    pub(super) details: Vec<Value>,
    /// It came as JSON.
    pub(super) structured: bool,
}

impl<'a> Said<'a> {
    /// Reads a body. Anything will do.
    pub(super) fn parse(headers: &HeaderMap, body: &'a [u8]) -> Self {
        let mut said = Self {
            raw: body,
            ..Self::default()
        };
        if let Some(name) = headers
            .get("x-amzn-errortype")
            .and_then(|v| v.to_str().ok())
        {
            said.add_code(name);
        }
        match serde_json::from_slice::<Value>(body) {
            Ok(value) => {
                said.structured = true;
                said.read(&value);
            }
            Err(_) => said.message = plain(body),
        }
        said
    }

    fn read(&mut self, value: &Value) {
        match value {
            Value::Array(list) => {
                if let Some(first @ Value::Object(_)) = list.first() {
                    self.read(first);
                }
            }
            Value::String(text) => self.message = Some(text.clone()),
            Value::Object(_) => {
                let error = value.get("error").or_else(|| value.get("errors"));
                let error = match error {
                    Some(Value::Array(list)) => list.first(),
                    other => other,
                };
                if let Some(inner @ Value::Object(_)) = error {
                    self.read_fields(inner);
                }
                if let (None, Some(Value::String(text))) = (&self.message, error) {
                    self.message = Some(text.clone());
                }
                self.read_fields(value);
            }
            _ => {}
        }
    }

    /// The members of an error; what is known already stays.
    fn read_fields(&mut self, value: &Value) {
        for name in CODES {
            match value.get(name) {
                Some(Value::String(text)) => self.add_code(text),
                Some(Value::Number(number)) => self.add_code(&number.to_string()),
                _ => {}
            }
        }
        if self.code.is_none() {
            self.code = value.get("code").and_then(Value::as_str).map(str::to_owned);
        }
        if self.param.is_none() {
            self.param = value
                .get("param")
                .and_then(Value::as_str)
                .map(str::to_owned);
        }
        if self.message.is_none() {
            self.message = TEXTS
                .iter()
                .find_map(|name| value.get(*name)?.as_str())
                .map(str::to_owned);
        }
        // FastAPI's: a list of places and reasons.
        if let (None, Some(first)) = (&self.message, value.get("detail").and_then(|d| d.get(0))) {
            self.message = first.get("msg").and_then(Value::as_str).map(str::to_owned);
            self.param = self.param.take().or_else(|| place(first.get("loc")?));
        }
        // Azure's filter says it one level down, and so do some applications.
        for name in ["innererror", "detail"] {
            if let Some(inner @ Value::Object(_)) = value.get(name) {
                self.read_fields(inner);
            }
        }
        if let Some(Value::Array(details)) = value.get("details") {
            self.details.extend(details.iter().cloned());
        }
        if let Some(metadata) = value.get("metadata") {
            self.read_metadata(metadata);
        }
    }

    /// OpenRouter's: what its provider said, as text, or what a filter found.
    fn read_metadata(&mut self, metadata: &Value) {
        if metadata.get("flagged_input").is_some() {
            self.codes.push("content_filter".to_owned());
        }
        let Some(raw) = metadata.get("raw").and_then(Value::as_str) else {
            return;
        };
        let inner = Said::parse(&HeaderMap::new(), raw.as_bytes());
        self.codes.extend(inner.codes);
        self.details.extend(inner.details);
        self.code = inner.code.or(self.code.take());
        self.param = inner.param.or(self.param.take());
        if inner.structured {
            // "Provider returned error" says less.
            self.message = inner.message.or(self.message.take());
        }
    }

    /// AWS writes `ns#Name` or `Name:http://…`.
    fn add_code(&mut self, code: &str) {
        let name = code.rsplit('#').next().unwrap_or(code);
        let name = name.split(':').next().unwrap_or(name).trim();
        // Anthropic's envelope is of the type "error".
        if !name.is_empty() && name != "error" && name.len() <= 128 {
            self.codes.push(name.to_owned());
        }
    }

    /// Whether the error calls itself that.
    pub(super) fn has_code(&self, code: &str) -> bool {
        self.codes.iter().any(|own| own.eq_ignore_ascii_case(code))
    }

    /// Every code, type and status that the error has.
    pub(super) fn codes(&self) -> impl Iterator<Item = &str> {
        self.codes.iter().map(String::as_str)
    }

    /// The whole body in lower case.
    pub(super) fn body(&self) -> &str {
        self.lower
            .get_or_init(|| String::from_utf8_lossy(self.raw).to_lowercase())
    }

    /// The body's beginning, for the log.
    pub(super) fn excerpt(&self) -> Cow<'a, str> {
        String::from_utf8_lossy(self.raw.get(..400).unwrap_or(self.raw))
    }
}

/// Text that is no page of markup.
fn plain(body: &[u8]) -> Option<String> {
    let text = std::str::from_utf8(body).ok()?.trim();
    (!text.is_empty() && !text.starts_with(['<', '{', '['])).then(|| text.to_owned())
}

/// `["body", "messages", 0, "role"]` as `messages[0].role`.
fn place(list: &Value) -> Option<String> {
    let mut path = String::new();
    for (index, part) in list.as_array()?.iter().take(16).enumerate() {
        match part {
            Value::String(name) if index == 0 && name == "body" => {}
            Value::String(name) => {
                if !path.is_empty() {
                    path.push('.');
                }
                path.push_str(name);
            }
            Value::Number(number) if !path.is_empty() => {
                path.push('[');
                path.push_str(&number.to_string());
                path.push(']');
            }
            _ => {}
        }
    }
    (!path.is_empty()).then_some(path)
}
