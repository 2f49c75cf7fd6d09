//! The client's body, changed where an attempt needs it: spans found at admission, slices between.
use std::ops::Range;

use bytes::Bytes;

use crate::peek::Peek;

/// Where in the client's body something is put, and what: the edit list of one attempt.
#[derive(Clone, Debug, Default)]
pub struct Edits {
    /// The value of `model`, quotes included.
    pub model: Option<Range<usize>>,
    /// The value of `rid`.
    pub rid: Option<Range<usize>>,
    /// The value of `priority`.
    pub priority: Option<Range<usize>>,
    /// The value of `stream_options` when it is not an object.
    pub stream_options: Option<Range<usize>>,
    /// Inside an existing `stream_options` object: just after its brace, and whether it is empty.
    pub stream_options_open: Option<(usize, bool)>,
    /// The values of `include_usage` and `continuous_usage_stats` there.
    pub usage_flags: [Option<Range<usize>>; 2],
    /// Just after the body's opening brace.
    pub body_start: usize,
    /// The body is `{}`.
    pub empty: bool,
}

/// What one attempt wants of the body.
#[derive(Clone, Copy, Debug)]
pub struct Wanted<'a> {
    /// The model's name at the target, where it is not the one asked for.
    pub model: Option<&'a str>,
    /// Our name for the request, where the engine takes one.
    pub rid: Option<&'a str>,
    /// The engine knows `rid`, so a client's own must not reach it: another tenant's could be
    /// guessed at.
    pub hides_rid: bool,
    /// Whether `include_usage` and `continuous_usage_stats` have to be set.
    pub usage: [bool; 2],
}

impl Edits {
    /// Where everything is in a body that was looked at.
    pub fn of(body: &Peek<'_>) -> Self {
        let options = body.stream_options.as_ref();
        Self {
            model: body.model_span.clone(),
            rid: body.rid_span.clone(),
            priority: body.priority_span.clone(),
            stream_options: body.stream_options_span.clone(),
            stream_options_open: options.map(|options| (options.body_start, options.empty)),
            usage_flags: [
                options.and_then(|options| options.include_usage_span.clone()),
                options.and_then(|options| options.continuous_usage_stats_span.clone()),
            ],
            body_start: body.body_start,
            empty: body.empty_object,
        }
    }

    /// The body with what is wanted in it, in as few slices as that needs.
    pub fn apply(&self, body: &Bytes, wanted: &Wanted<'_>) -> Vec<Bytes> {
        let mut changes: Vec<(Range<usize>, String)> = Vec::new();
        let mut members = String::new();
        if let Some(model) = wanted.model {
            let name = serde_json::to_string(model).unwrap_or_default();
            match &self.model {
                Some(span) => changes.push((span.clone(), name)),
                None => put(&mut members, &["\"model\":", &name, ","]),
            }
        }
        match (wanted.rid, &self.rid) {
            (Some(rid), Some(span)) => changes.push((span.clone(), format!("\"{rid}\""))),
            (Some(rid), None) => put(&mut members, &["\"rid\":\"", rid, "\","]),
            (None, Some(span)) if wanted.hides_rid => {
                changes.push((span.clone(), "null".to_owned()));
            }
            (None, _) => {}
        }
        if let Some(span) = &self.priority {
            // Whose turn it is the gateway decides. SGLang reads null as none, vLLM 0.
            let none = if wanted.hides_rid { "null" } else { "0" };
            changes.push((span.clone(), none.to_owned()));
        }
        self.ask_for_usage(wanted.usage, &mut changes, &mut members);
        if !members.is_empty() {
            if self.empty {
                members.pop();
            }
            changes.push((self.body_start..self.body_start, members));
        }
        changes.sort_by_key(|(span, _)| (span.start, span.end));
        let mut parts = Vec::with_capacity(changes.len() * 2 + 1);
        let mut from = 0;
        for (span, text) in changes {
            parts.push(body.slice(from..span.start));
            parts.push(Bytes::from(text));
            from = span.end;
        }
        parts.push(body.slice(from..));
        parts
    }

    /// Makes `stream_options` ask for the usage that is wanted.
    fn ask_for_usage(
        &self,
        wanted: [bool; 2],
        changes: &mut Vec<(Range<usize>, String)>,
        members: &mut String,
    ) {
        let mut missing = Vec::new();
        for ((name, wanted), span) in USAGE_FLAGS.iter().zip(wanted).zip(&self.usage_flags) {
            match span {
                _ if !wanted => {}
                Some(span) => changes.push((span.clone(), "true".to_owned())),
                None => missing.push(format!("\"{name}\":true")),
            }
        }
        if missing.is_empty() {
            return;
        }
        let missing = missing.join(",");
        match (self.stream_options_open, &self.stream_options) {
            (Some((at, true)), _) => changes.push((at..at, missing)),
            (Some((at, false)), _) => changes.push((at..at, format!("{missing},"))),
            (None, Some(span)) => changes.push((span.clone(), format!("{{{missing}}}"))),
            (None, None) => put(members, &["\"stream_options\":{", &missing, "},"]),
        }
    }
}

const USAGE_FLAGS: [&str; 2] = ["include_usage", "continuous_usage_stats"];

fn put(text: &mut String, parts: &[&str]) {
    for part in parts {
        text.push_str(part);
    }
}
