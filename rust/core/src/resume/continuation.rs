//! The request that carries an answer on: the client's body, with what was delivered in it.
use std::borrow::Cow;

use bytes::Bytes;
use serde_json::value::RawValue;

use crate::resume::Why;
use crate::resume::chunk::{Members, is_something, quoted, text};
use crate::resume::stops::Stops;

/// Members that bind the output to a grammar. An engine begins it anew with its first token, so an
/// answer's second half would be held to the grammar of the whole (SGLang and vLLM alike).
const GRAMMARS: [&str; 13] = [
    "regex",
    "ebnf",
    "json_schema",
    "structural_tag",
    "structured_outputs",
    "grammar",
    "guided_json",
    "guided_regex",
    "guided_choice",
    "guided_grammar",
    "guided_json_object",
    "custom_logit_processor",
    "stop_regex",
];

/// Members with which an answer is not the text that follows the prompt.
const SHAPES: [&str; 8] = [
    "echo",
    "suffix",
    "input_ids",
    "prompt_embeds",
    "prompt_logprobs",
    "use_beam_search",
    "session_params",
    "session_id",
];

/// Caps on output: reduced by what was delivered.
const CAPS: [&str; 3] = ["max_tokens", "max_completion_tokens", "min_tokens"];

/// A request's body, read for a continuation.
pub(super) struct Request<'a> {
    members: Members<'a>,
    completions: bool,
}

impl<'a> Request<'a> {
    /// Reads the body and judges whether its answer may be carried on at all.
    pub(super) fn parse(body: &'a Bytes, completions: bool) -> Result<Self, Why> {
        let json = std::str::from_utf8(body).map_err(|_| Why::Request)?;
        let members = Members::parse(json).ok_or(Why::Request)?;
        let request = Self {
            members,
            completions,
        };
        request.judge()?;
        Ok(request)
    }

    fn has(&self, name: &str) -> bool {
        is_something(self.members.get(name))
    }

    fn is_true(&self, name: &str) -> bool {
        self.members
            .get(name)
            .is_some_and(|raw| raw.get() == "true")
    }

    fn judge(&self) -> Result<(), Why> {
        if GRAMMARS.iter().any(|name| self.has(name)) || self.shaped() {
            return Err(Why::Grammar);
        }
        let many = |name| {
            self.members
                .get(name)
                .is_some_and(|raw| !matches!(raw.get(), "1" | "null"))
        };
        if many("n") || many("best_of") {
            return Err(Why::Choices);
        }
        // `logprobs` is a number in completions, and 0 asks for them too.
        if self.has("logprobs") || self.has("top_logprobs") {
            return Err(Why::Logprobs);
        }
        let returns = |(key, value): &(Cow<'_, str>, &RawValue)| {
            key.starts_with("return_") && is_something(Some(value))
        };
        if SHAPES.iter().any(|name| self.has(name)) || self.members.0.iter().any(returns) {
            return Err(Why::Request);
        }
        if self.completions {
            let prompt = self.members.get("prompt").ok_or(Why::Request)?;
            return text(prompt).map(drop).ok_or(Why::Prompts);
        }
        let forced = self
            .members
            .get("tool_choice")
            .is_some_and(|choice| !matches!(choice.get(), "\"auto\"" | "\"none\"" | "null"));
        if forced {
            return Err(Why::Grammar);
        }
        // An answer that is not the assistant's next turn.
        let open = |name: &str| {
            self.members
                .get(name)
                .is_some_and(|raw| raw.get() == "false")
        };
        if open("add_generation_prompt") && !self.is_true("continue_final_message") {
            return Err(Why::Request);
        }
        Ok(())
    }

    /// Whether `response_format` asks for anything but text.
    fn shaped(&self) -> bool {
        let Some(format) = self.members.get("response_format") else {
            return false;
        };
        if !is_something(Some(format)) {
            return false;
        }
        let kind =
            Members::parse(format.get()).and_then(|format| format.get("type").and_then(text));
        kind.as_deref() != Some("text")
    }

    /// What of the output still may come, if it is capped: 0 where all has.
    pub(super) fn left(&self, tokens: u64) -> Option<u64> {
        let cap = |name| self.members.get(name)?.get().parse::<u64>().ok();
        let caps = ["max_tokens", "max_completion_tokens"];
        let least = caps.iter().filter_map(|name| cap(name)).min();
        least.map(|cap| cap.saturating_sub(tokens))
    }

    /// What ends the answer.
    pub(super) fn stops(&self) -> Stops {
        let stops = self
            .members
            .get("stop")
            .map_or_else(Vec::new, |raw| match text(raw) {
                Some(stop) => vec![stop.into_owned()],
                None => serde_json::from_str(raw.get()).unwrap_or_default(),
            });
        Stops {
            stops: stops.into_iter().filter(|stop| !stop.is_empty()).collect(),
            kept: self.is_true("no_stop_trim") || self.is_true("include_stop_str_in_output"),
        }
    }

    /// The body with `delivered` as the beginning of the answer, and the caps reduced by `tokens`.
    ///
    /// `continue_final_message` is SGLang's and vLLM's; vLLM wants `add_generation_prompt` to be
    /// false with it, and SGLang does not know that member of chats.
    pub(super) fn continued(&self, delivered: &str, tokens: u64) -> Result<String, Why> {
        let own = if self.completions {
            "prompt"
        } else {
            "messages"
        };
        let mut body = String::with_capacity(256 + delivered.len());
        body.push('{');
        for (key, value) in &self.members.0 {
            if key == own || matches!(&**key, "continue_final_message" | "add_generation_prompt") {
                continue;
            }
            let reduced = CAPS
                .contains(&&**key)
                .then(|| value.get().parse::<u64>().ok())
                .flatten();
            let member = quoted(key);
            match reduced {
                Some(cap) => {
                    let cap = cap.saturating_sub(tokens);
                    push(&mut body, &[&member, ":", &cap.to_string(), ","]);
                }
                None => push(&mut body, &[&member, ":", value.get(), ","]),
            }
        }
        if self.completions {
            let prompt = self.members.get("prompt").and_then(text);
            let prompt = prompt.ok_or(Why::Prompts)?;
            let prompt = quoted(&[&*prompt, delivered].concat());
            push(&mut body, &["\"prompt\":", &prompt, "}"]);
            return Ok(body);
        }
        let messages = self.messages(delivered)?;
        push(&mut body, &["\"messages\":[", &messages, "],"]);
        body.push_str("\"continue_final_message\":true,\"add_generation_prompt\":false}");
        Ok(body)
    }

    /// The client's messages with what was delivered as the last.
    fn messages(&self, delivered: &str) -> Result<String, Why> {
        let messages = self.members.get("messages").ok_or(Why::Request)?;
        let mut messages: Vec<&RawValue> =
            serde_json::from_str(messages.get()).map_err(|_| Why::Request)?;
        let last = messages.last().and_then(|last| Members::parse(last.get()));
        let last = last.ok_or(Why::Request)?;
        let role = last.get("role").and_then(text);
        let ends = if role.as_deref() == Some("assistant") {
            // Without the flag engines differ in what they make of it.
            if !self.is_true("continue_final_message") {
                return Err(Why::Request);
            }
            messages.pop();
            let before = last.get("content").and_then(text).ok_or(Why::Request)?;
            let joined = quoted(&[&*before, delivered].concat());
            let mut message = String::from("{");
            for (key, value) in &last.0 {
                if key != "content" {
                    push(&mut message, &[&quoted(key), ":", value.get(), ","]);
                }
            }
            push(&mut message, &["\"content\":", &joined, "}"]);
            message
        } else {
            let mut message = String::new();
            push(
                &mut message,
                &[
                    "{\"role\":\"assistant\",\"content\":",
                    &quoted(delivered),
                    "}",
                ],
            );
            message
        };
        let mut all: Vec<&str> = messages.iter().map(|message| message.get()).collect();
        all.push(&ends);
        Ok(all.join(","))
    }
}

fn push(text: &mut String, parts: &[&str]) {
    for part in parts {
        text.push_str(part);
    }
}
