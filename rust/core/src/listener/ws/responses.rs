//! OpenAI's WebSocket mode of the Responses API: what a connection remembers. No sockets, no clock.
//!
//! A turn is a `response.create` with what `POST /v1/responses` takes. With `store: false` nothing of
//! a response is kept but by this connection, and there only of the latest one: its
//! `previous_response_id` stands for its input and output, which are put before the new input. Where it
//! went on from a response that is stored, its id goes along and the store puts that one's items first.
//! A turn that fails forgets it. With `generate: false` there is no answer: the input alone is remembered.
//!
//! Source: developers.openai.com/api/docs/guides/websocket-mode.
use bytes::BytesMut;
use memchr::memmem;
use serde::Deserialize;
use serde_json::value::RawValue;

use super::mode::{Asked, text};
use crate::dialect::json::{self, Members, Path, Text};
use crate::error::{Error, Kind};

/// A response that only this connection knows.
#[derive(Debug)]
struct Kept {
    id: String,
    history: History,
}

/// What a response knows of.
#[derive(Debug)]
struct History {
    /// The stored response that it all goes on from.
    stored: Option<String>,
    /// The input and output since then: the items, joined by commas.
    items: String,
}

/// What a connection remembers.
#[derive(Debug)]
pub(super) struct Responses {
    /// Most bytes of it.
    most: usize,
    latest: Option<Kept>,
    /// The turn that runs and what came before it, where its response is to be remembered.
    input: Option<History>,
    /// That turn goes on from what is remembered.
    continues: bool,
}

#[derive(Deserialize)]
struct Said<'a> {
    #[serde(borrow)]
    r#type: Text<'a>,
    #[serde(borrow, default)]
    response: Option<Response<'a>>,
}

#[derive(Deserialize)]
struct Response<'a> {
    #[serde(borrow, default)]
    id: Option<Text<'a>>,
    #[serde(borrow, default)]
    output: Option<&'a RawValue>,
}

impl Responses {
    /// Of a connection that is new. It remembers at most `most` bytes.
    pub(super) const fn new(most: usize) -> Self {
        Self {
            most,
            latest: None,
            input: None,
            continues: false,
        }
    }

    /// Reads a turn.
    pub(super) fn read(&mut self, turn: &str, now: u64, id: &str) -> Result<Asked, Error> {
        self.input = None;
        self.continues = false;
        let path = Path::ROOT;
        let mut members = Members::read(turn, &path)?;
        let kind = members.need_text("type", &path)?;
        if kind != "response.create" {
            let message =
                format!("There is no client event '{kind}' here: send 'response.create'.");
            return Err(refused(message, "type"));
        }
        // They are of HTTP: every turn is streamed, and none goes on without its connection.
        members.take("stream");
        if members.boolean("background", &path)? == Some(true) {
            let message = "A response on a WebSocket cannot run in the background.";
            return Err(refused(message.to_owned(), "background"));
        }
        let generate = members.boolean("generate", &path)? != Some(false);
        let store = members.boolean("store", &path)?;
        let previous = members.text("previous_response_id", &path)?;
        let input = members.take("input");
        let known = match (&previous, &self.latest) {
            (Some(asked), Some(latest)) if *asked == latest.id => Some(&latest.history),
            _ => None,
        };
        self.continues = known.is_some();
        let stored = match known {
            Some(known) => known.stored.clone(),
            None => previous.as_deref().map(str::to_owned),
        };
        let known = known.map(|known| known.items.as_str());
        let items = joined(known, input);
        if !generate {
            return self.warm_up(&mut members, (stored, items), now, id);
        }
        let mut body = BytesMut::with_capacity(turn.len() + known.map_or(0, str::len) + 64);
        json::Object::write(&mut body, |out| {
            out.put_some("previous_response_id", stored.as_deref());
            if let (Some(items), Some(_)) = (&items, known) {
                list(out.member("input"), items);
            } else {
                out.put_some("input", input);
            }
            out.put_some("store", store);
            out.put("stream", true);
            for (name, value) in members.rest() {
                out.put_named(&name, value);
            }
        });
        // What the database keeps need not be kept here.
        let ours = store == Some(false);
        let items = items.filter(|_| ours);
        self.input = items.map(|items| History { stored, items });
        Ok(Asked::Exchange(body.freeze()))
    }

    /// Remembers an input without an answer to it.
    fn warm_up(
        &mut self,
        members: &mut Members<'_>,
        (stored, items): (Option<String>, Option<String>),
        now: u64,
        id: &str,
    ) -> Result<Asked, Error> {
        let model = members.need_text("model", &Path::ROOT)?.into_owned();
        let id = format!("resp_{id}");
        let event = |number: u8, kind: &str, status: &str| {
            let mut out = BytesMut::new();
            json::Object::write(&mut out, |event| {
                event.put("type", kind);
                event.put("sequence_number", number);
                event.object("response", |response| {
                    response.put("id", id.as_str());
                    response.put("object", "response");
                    response.put("created_at", now);
                    response.put("status", status);
                    response.put("model", model.as_str());
                    response.put("error", ());
                    response.put("incomplete_details", ());
                    response.put("instructions", ());
                    response.put("metadata", serde_json::Map::new());
                    response.put("output", [(); 0]);
                    response.put("parallel_tool_calls", true);
                    response.put("tool_choice", "auto");
                    response.put("tools", [(); 0]);
                    response.put("store", false);
                });
            });
            text(&out.freeze())
        };
        let says = vec![
            event(0, "response.created", "in_progress"),
            event(1, "response.completed", "completed"),
        ];
        let items = items.unwrap_or_default();
        self.remember(id, History { stored, items });
        Ok(Asked::Told { model, says })
    }

    /// Sees an event on its way to the client.
    pub(super) fn said(&mut self, event: &str) {
        let (whole, failed) = ("response.completed", "response.failed");
        let ends = [whole, "response.incomplete", failed, "\"error\""];
        if !ends
            .iter()
            .any(|end| memmem::find(event.as_bytes(), end.as_bytes()).is_some())
        {
            return;
        }
        let Ok(said) = serde_json::from_str::<Said<'_>>(event) else {
            return;
        };
        let kind = said.r#type.0;
        if kind == failed || kind == "error" {
            self.failed();
        } else if ends.contains(&&*kind) {
            self.ended(said.response);
        }
    }

    /// A response has come to its end.
    fn ended(&mut self, response: Option<Response<'_>>) {
        let Some(mut history) = self.input.take() else {
            // The database has it, or nobody.
            self.latest = None;
            return;
        };
        let id = response
            .as_ref()
            .and_then(|response| response.id.as_ref())
            .map(|id| id.0.clone().into_owned());
        let output = response.and_then(|response| response.output);
        if let Some(more) = output.and_then(|output| inner(output)) {
            join(&mut history.items, more);
        }
        match id {
            Some(id) => self.remember(id, history),
            None => self.latest = None,
        }
    }

    /// The turn that runs has failed: what it went on from is forgotten.
    pub(super) fn failed(&mut self) {
        self.input = None;
        if std::mem::take(&mut self.continues) {
            self.latest = None;
        }
    }

    fn remember(&mut self, id: String, history: History) {
        let size = history.items.len() + history.stored.as_ref().map_or(0, String::len);
        self.latest = (size <= self.most).then_some(Kept { id, history });
    }
}

fn refused(message: String, param: &'static str) -> Error {
    Error::new(Kind::InvalidRequest, message)
        .param(param)
        .code("invalid_value")
}

fn list(out: &mut BytesMut, items: &str) {
    out.extend_from_slice(b"[");
    out.extend_from_slice(items.as_bytes());
    out.extend_from_slice(b"]");
}

/// The items of an input, after those that are known; `None` where it is no input.
fn joined(known: Option<&str>, input: Option<&RawValue>) -> Option<String> {
    let mut items = known.unwrap_or_default().to_owned();
    let Some(input) = input else {
        return Some(items);
    };
    if json::is_text(input) {
        let message = format!(
            "{{\"type\":\"message\",\"role\":\"user\",\"content\":[{{\"type\":\"input_text\",\"text\":{}}}]}}",
            input.get()
        );
        join(&mut items, &message);
    } else {
        join(&mut items, inner(input)?);
    }
    Some(items)
}

/// What is between a list's brackets.
fn inner(list: &RawValue) -> Option<&str> {
    let text = list.get().strip_prefix('[')?.strip_suffix(']')?;
    Some(text.trim_ascii())
}

fn join(items: &mut String, more: &str) {
    if !items.is_empty() && !more.is_empty() {
        items.push(',');
    }
    items.push_str(more);
}

/// The body of a turn, for tests of what is remembered.
#[cfg(test)]
fn body(asked: Result<Asked, Error>) -> serde_json::Value {
    match asked {
        Ok(Asked::Exchange(body)) => serde_json::from_slice(&body).unwrap_or_default(),
        _ => serde_json::Value::Null,
    }
}

#[cfg(test)]
#[expect(clippy::indexing_slicing, reason = "tests")]
mod tests {
    use serde_json::{Value, json};

    use super::*;

    fn connection() -> Responses {
        Responses::new(1000)
    }

    fn turn(responses: &mut Responses, turn: &Value) -> Value {
        body(responses.read(&turn.to_string(), 0, "0"))
    }

    fn end(responses: &mut Responses, kind: &str, id: &str, output: &Value) {
        let event = json!({"type": kind, "response": {"id": id, "output": output}});
        responses.said(&event.to_string());
    }

    #[test]
    fn a_turn_is_a_streamed_request() {
        let asked = turn(
            &mut connection(),
            &json!({"type": "response.create", "model": "m", "input": "hi", "stream": false,
                    "previous_response_id": "resp_db", "tools": []}),
        );
        assert_eq!(
            asked,
            json!({"model": "m", "input": "hi", "stream": true, "tools": [],
                   "previous_response_id": "resp_db"})
        );
    }

    #[test]
    fn the_latest_response_is_known_without_a_store() {
        let mut responses = connection();
        let create =
            json!({"type": "response.create", "model": "m", "store": false, "input": "hi"});
        turn(&mut responses, &create);
        end(
            &mut responses,
            "response.completed",
            "resp_1",
            &json!([{"type": "message"}]),
        );
        let next = json!({"type": "response.create", "model": "m", "store": false,
                          "previous_response_id": "resp_1", "input": [{"a": 1}, {"b": 2}]});
        let asked = turn(&mut responses, &next);
        let hi = json!({"type": "message", "role": "user",
                        "content": [{"type": "input_text", "text": "hi"}]});
        assert_eq!(
            asked["input"],
            json!([hi, {"type": "message"}, {"a": 1}, {"b": 2}])
        );
        assert_eq!(asked["previous_response_id"], Value::Null);
        // And so on: the second turn has all of it.
        end(&mut responses, "response.incomplete", "resp_2", &json!([]));
        let third = json!({"type": "response.create", "model": "m", "store": false,
                           "previous_response_id": "resp_2"});
        let asked = turn(&mut responses, &third);
        assert_eq!(asked["input"].as_array().map(Vec::len), Some(4));
    }

    #[test]
    fn a_turn_that_fails_forgets_what_it_went_on_from() {
        for failure in [r#"{"type":"response.failed"}"#, r#"{"type":"error"}"#] {
            let mut responses = connection();
            let first = json!({"type": "response.create", "store": false, "input": "hi"});
            turn(&mut responses, &first);
            end(&mut responses, "response.completed", "resp_1", &json!([]));
            let next = json!({"type": "response.create", "previous_response_id": "resp_1"});
            assert_eq!(
                turn(&mut responses, &next)["input"]
                    .as_array()
                    .map(Vec::len),
                Some(1)
            );
            responses.said(failure);
            let asked = turn(&mut responses, &next);
            assert_eq!(asked["previous_response_id"], "resp_1", "{failure}");
        }
    }

    #[test]
    fn stored_responses_are_left_to_the_store() {
        let mut responses = connection();
        turn(
            &mut responses,
            &json!({"type": "response.create", "input": "hi"}),
        );
        end(&mut responses, "response.completed", "resp_1", &json!([]));
        let next =
            json!({"type": "response.create", "previous_response_id": "resp_1", "store": false});
        assert_eq!(
            turn(&mut responses, &next)["previous_response_id"],
            "resp_1"
        );
        end(&mut responses, "response.completed", "resp_2", &json!([]));
    }

    #[test]
    fn a_chain_may_begin_at_a_stored_response() {
        let mut responses = connection();
        let next = json!({"type": "response.create", "store": false, "input": [{"a": 1}],
                          "previous_response_id": "resp_db"});
        turn(&mut responses, &next);
        end(
            &mut responses,
            "response.completed",
            "resp_1",
            &json!([{"b": 2}]),
        );
        for (previous, answer) in [("resp_1", "resp_2"), ("resp_2", "resp_3")] {
            let next = json!({"type": "response.create", "store": false,
                              "previous_response_id": previous, "input": []});
            let asked = turn(&mut responses, &next);
            // What is stored is put before the input by who has it.
            assert_eq!(asked["previous_response_id"], "resp_db", "{previous}");
            assert_eq!(asked["input"], json!([{"a": 1}, {"b": 2}]), "{previous}");
            end(&mut responses, "response.completed", answer, &json!([]));
        }
    }

    #[test]
    fn a_warm_up_may_go_on_from_a_stored_response() {
        let mut responses = connection();
        let warm = json!({"type": "response.create", "model": "m", "generate": false,
                          "previous_response_id": "resp_db", "input": [{"a": 1}]});
        assert!(responses.read(&warm.to_string(), 0, "abc").is_ok());
        let next = json!({"type": "response.create", "previous_response_id": "resp_abc",
                          "input": [{"b": 2}]});
        let asked = turn(&mut responses, &next);
        assert_eq!(asked["previous_response_id"], "resp_db");
        assert_eq!(asked["input"], json!([{"a": 1}, {"b": 2}]));
    }

    #[test]
    fn what_is_remembered_is_bounded() {
        let mut responses = connection();
        let long = "x".repeat(2000);
        turn(
            &mut responses,
            &json!({"type": "response.create", "store": false, "input": long}),
        );
        end(&mut responses, "response.completed", "resp_1", &json!([]));
        assert!(responses.latest.is_none());
    }

    #[test]
    fn a_warm_up_is_answered_and_remembered() {
        let mut responses = connection();
        let warm =
            json!({"type": "response.create", "model": "m", "generate": false, "input": "hi"});
        let asked = responses.read(&warm.to_string(), 7, "abc");
        let Ok(Asked::Told { model, says }) = asked else {
            assert!(asked.is_err(), "a warm-up asks no engine");
            return;
        };
        assert_eq!(model, "m");
        let events: Vec<Value> = says
            .iter()
            .filter_map(|event| serde_json::from_str(event).ok())
            .collect();
        assert_eq!(events[0]["type"], "response.created");
        assert_eq!(events[1]["response"]["status"], "completed");
        assert_eq!(events[1]["response"]["id"], "resp_abc");
        let next =
            json!({"type": "response.create", "previous_response_id": "resp_abc", "input": "go"});
        assert_eq!(
            turn(&mut responses, &next)["input"]
                .as_array()
                .map(Vec::len),
            Some(2)
        );
    }

    #[test]
    fn what_is_no_turn_names_the_field() {
        for (text, param) in [
            ("[]", None),
            ("{}", Some("type")),
            (r#"{"type":"response.steer"}"#, Some("type")),
            (
                r#"{"type":"response.create","background":true}"#,
                Some("background"),
            ),
            (r#"{"type":"response.create","store":1}"#, Some("store")),
            (
                r#"{"type":"response.create","generate":false}"#,
                Some("model"),
            ),
        ] {
            let error = connection().read(text, 0, "").err();
            let named = error.as_ref().and_then(|error| error.param.as_deref());
            assert!(error.is_some() && named == param, "{text}: {named:?}");
        }
    }
}
