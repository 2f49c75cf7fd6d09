//! Reading a stream.
use std::borrow::Cow;

use bytes::Bytes;
use serde::Deserialize;

use crate::error::Error;

use super::super::Sink;
use super::super::chat::Event;
use super::super::frames::{Frames, cut_off, unreadable};
use super::super::json::{Path, Text};
use super::super::openai::thought_signature;
use super::answer::{Fault, Item, Wire};
use super::items::{as_argument, signed};

use serde_json::value::RawValue;

/// Most calls of one answer.
const MAX_CALLS: usize = 1024;

/// An event. What its members are depends on its type, of which there may be new ones any time: they
/// are read where they are used.
#[derive(Deserialize)]
struct Told<'a> {
    #[serde(borrow)]
    r#type: Text<'a>,
    #[serde(default)]
    output_index: Option<u32>,
    #[serde(default)]
    summary_index: Option<u32>,
    #[serde(borrow, default)]
    delta: Option<&'a RawValue>,
    #[serde(borrow, default)]
    arguments: Option<&'a RawValue>,
    #[serde(borrow, default)]
    input: Option<&'a RawValue>,
    #[serde(borrow, default)]
    logprobs: Option<&'a RawValue>,
    #[serde(borrow, default)]
    item: Option<&'a RawValue>,
    #[serde(borrow, default)]
    response: Option<&'a RawValue>,
    #[serde(borrow, default)]
    code: Option<&'a RawValue>,
    #[serde(borrow, default)]
    message: Option<&'a RawValue>,
    #[serde(borrow, default)]
    error: Option<&'a RawValue>,
}

/// A member's text.
fn text(raw: Option<&RawValue>) -> Result<Option<Cow<'_, str>>, Error> {
    let Some(raw) = raw else { return Ok(None) };
    let text: Text<'_> = serde_json::from_str(raw.get()).map_err(unreadable)?;
    Ok(Some(text.0))
}

/// A member's text that is not empty.
fn full(raw: Option<&RawValue>) -> Result<Option<Cow<'_, str>>, Error> {
    Ok(text(raw)?.filter(|text| !text.is_empty()))
}

/// A member of an error, if it is what it should be.
fn said<'a, T: Deserialize<'a>>(raw: Option<&'a RawValue>) -> Option<T> {
    serde_json::from_str(raw?.get()).ok()
}

/// Reads events.
pub(crate) struct Reader {
    frames: Frames,
    state: State,
}

#[derive(Default)]
struct State {
    started: bool,
    ended: bool,
    calls: Vec<Call>,
}

/// A call that has begun.
struct Call {
    /// The item's number.
    item: u32,
    /// Of its arguments something was told.
    told: bool,
    done: bool,
}

impl Reader {
    /// max_event_bytes: the longest event taken.
    pub(crate) fn new(max_event_bytes: usize) -> Self {
        Self {
            frames: Frames::new(max_event_bytes),
            state: State::default(),
        }
    }

    /// Takes bytes of the stream.
    pub(crate) fn feed(&mut self, chunk: Bytes, sink: &mut impl Sink) -> Result<(), Error> {
        let state = &mut self.state;
        self.frames.feed(chunk, |data| state.event(data, sink))
    }

    /// Takes the stream's end.
    pub(crate) fn end(&mut self, sink: &mut impl Sink) -> Result<(), Error> {
        let state = &mut self.state;
        self.frames.end(|data| state.event(data, sink))?;
        if state.ended { Ok(()) } else { Err(cut_off()) }
    }
}

impl State {
    fn event(&mut self, data: &str, sink: &mut impl Sink) -> Result<(), Error> {
        // Some send OpenAI's marker of an end all the same.
        if self.ended || data.starts_with("[DONE]") {
            return Ok(());
        }
        let told: Told<'_> = serde_json::from_str(data).map_err(unreadable)?;
        if !self.started && told.r#type.0.starts_with("response.") {
            self.started = true;
            sink.event(Event::Start)?;
        }
        match &*told.r#type.0 {
            "response.output_text.delta" => {
                if let Some(raw) = told.logprobs.filter(|raw| raw.get() != "[]") {
                    sink.event(Event::Logprobs(Cow::Borrowed(raw)))?;
                }
                match full(told.delta)? {
                    Some(text) => sink.event(Event::Text(text)),
                    None => Ok(()),
                }
            }
            "response.refusal.delta" => match full(told.delta)? {
                Some(text) => sink.event(Event::Refusal(text)),
                None => Ok(()),
            },
            "response.reasoning_text.delta" | "response.reasoning_summary_text.delta" => {
                match full(told.delta)? {
                    Some(text) => sink.event(Event::Reasoning(text)),
                    None => Ok(()),
                }
            }
            "response.reasoning_summary_part.added" if told.summary_index.unwrap_or(0) > 0 => {
                sink.event(Event::Reasoning("\n\n".into()))
            }
            "response.output_item.added" => self.added(&told, sink),
            "response.output_item.done" => self.done(&told, sink),
            "response.function_call_arguments.delta" => match full(told.delta)? {
                Some(json) => self.arguments(told.output_index, json, sink),
                None => Ok(()),
            },
            "response.function_call_arguments.done" => match text(told.arguments)? {
                Some(whole) if !self.is_told(told.output_index) => {
                    self.arguments(told.output_index, whole, sink)
                }
                _ => Ok(()),
            },
            "response.custom_tool_call_input.done" => match text(told.input)? {
                Some(text) if !self.is_told(told.output_index) => {
                    self.arguments(told.output_index, as_argument(&text).into(), sink)
                }
                _ => Ok(()),
            },
            "response.completed" | "response.incomplete" | "response.failed" => {
                self.end(told.response, sink)
            }
            "error" => {
                let fault = said(told.error).unwrap_or_else(|| Fault {
                    code: said(told.code),
                    message: said(told.message),
                });
                Err(fault.into_error())
            }
            // There may be new ones any time.
            _ => Ok(()),
        }
    }

    fn added(&mut self, told: &Told<'_>, sink: &mut impl Sink) -> Result<(), Error> {
        let (Some(number), Some(raw)) = (told.output_index, told.item) else {
            return Err(unreadable("an item without a number or content"));
        };
        let Some(item) = Item::read(raw).map_err(unreadable)? else {
            return Ok(());
        };
        if !matches!(&*item.r#type.0, "function_call" | "custom_tool_call") {
            return Ok(());
        }
        self.begin(number, item, sink)
    }

    fn begin(&mut self, number: u32, item: Item<'_>, sink: &mut impl Sink) -> Result<(), Error> {
        let (Some(id), Some(name)) = (item.call_id, item.name) else {
            return Err(unreadable("a call without an id or a name"));
        };
        if self.calls.len() >= MAX_CALLS {
            return Err(unreadable("too many tool calls"));
        }
        let index = self.calls.len() as u32;
        self.calls.push(Call {
            item: number,
            told: false,
            done: false,
        });
        let signature = item
            .extra_content
            .and_then(|raw| thought_signature(raw, &Path::ROOT).ok().flatten());
        sink.event(Event::ToolStart {
            index,
            id: id.0,
            name: name.0,
            signature,
        })
    }

    fn call(&mut self, number: Option<u32>) -> Option<(u32, &mut Call)> {
        let calls = (0..).zip(&mut self.calls);
        calls
            .into_iter()
            .find(|(_, call)| Some(call.item) == number)
    }

    fn is_told(&mut self, number: Option<u32>) -> bool {
        self.call(number).is_some_and(|(_, call)| call.told)
    }

    fn arguments(
        &mut self,
        number: Option<u32>,
        json: Cow<'_, str>,
        sink: &mut impl Sink,
    ) -> Result<(), Error> {
        let Some((index, call)) = self.call(number) else {
            return Err(unreadable("arguments of no call"));
        };
        call.told = true;
        sink.event(Event::ToolArguments { index, json })
    }

    fn done(&mut self, told: &Told<'_>, sink: &mut impl Sink) -> Result<(), Error> {
        let (Some(number), Some(raw)) = (told.output_index, told.item) else {
            return Err(unreadable("an item without a number or content"));
        };
        let Some(item) = Item::read(raw).map_err(unreadable)? else {
            return Ok(());
        };
        match &*item.r#type.0 {
            "reasoning" => match item.encrypted_content.and_then(|sealed| signed(&sealed.0)) {
                Some((signature, true)) => sink.event(Event::Redacted(signature)),
                Some((signature, false)) => sink.event(Event::Signature(signature)),
                None => Ok(()),
            },
            "function_call" | "custom_tool_call" => {
                let whole = match (&item.arguments, &item.input) {
                    (Some(arguments), _) => arguments.0.clone().into_owned(),
                    (None, Some(input)) => as_argument(&input.0),
                    (None, None) => String::new(),
                };
                if self.call(Some(number)).is_none() {
                    self.begin(number, item, sink)?;
                }
                if !self.is_told(Some(number)) && !whole.is_empty() {
                    self.arguments(Some(number), whole.into(), sink)?;
                }
                let Some((index, call)) = self.call(Some(number)) else {
                    return Ok(());
                };
                if std::mem::replace(&mut call.done, true) {
                    return Ok(());
                }
                sink.event(Event::ToolEnd { index })
            }
            _ => Ok(()),
        }
    }

    fn end(&mut self, response: Option<&RawValue>, sink: &mut impl Sink) -> Result<(), Error> {
        let raw = response.ok_or_else(|| unreadable("no response"))?;
        let wire: Wire<'_> = serde_json::from_str(raw.get()).map_err(unreadable)?;
        let ended = wire.ended(!self.calls.is_empty())?;
        sink.event(Event::Finish {
            stop: ended.stop,
            sequence: None,
        })?;
        if let Some(usage) = ended.usage {
            sink.event(Event::Usage(usage))?;
        }
        self.ended = true;
        sink.event(Event::End)
    }
}

#[cfg(test)]
mod tests {
    use super::*;
    use crate::error::Kind;

    /// What a stream says.
    #[derive(Default)]
    struct Heard(Vec<String>);

    impl Sink for Heard {
        fn event(&mut self, event: Event<'_>) -> Result<(), Error> {
            self.0.push(format!("{event:?}"));
            Ok(())
        }
    }

    fn hear(events: &[&str]) -> (Vec<String>, Result<(), Error>) {
        let mut heard = Heard::default();
        let mut state = State::default();
        let told = events
            .iter()
            .try_for_each(|data| state.event(data, &mut heard));
        (heard.0, told)
    }

    #[test]
    fn members_of_other_events_may_be_anything() {
        let (heard, told) = hear(&[
            r#"{"type":"response.shell_call_output_content.delta","delta":{"stdout":"a"}}"#,
            r#"{"type":"response.new","delta":[],"arguments":{},"input":1,"code":1,"message":{},"error":"x"}"#,
            r#"{"type":"response.output_text.delta","delta":"b"}"#,
        ]);
        assert!(told.is_ok(), "{told:?}");
        assert_eq!(heard.len(), 2, "{heard:?}");
        assert!(
            heard.iter().any(|event| event.contains("\"b\"")),
            "{heard:?}"
        );
        let (_, told) = hear(&[r#"{"type":"response.output_text.delta","delta":{}}"#]);
        assert!(told.is_err());
    }

    #[test]
    fn an_error_is_one_whatever_it_says() {
        let error = |data| hear(&[data]).1.err().map(|error| error.kind);
        let limited = r#"{"type":"error","code":"rate_limit_exceeded","message":null}"#;
        assert_eq!(error(limited), Some(Kind::RateLimited));
        let odd = r#"{"type":"error","code":429,"message":{},"error":"x"}"#;
        assert_eq!(error(odd), Some(Kind::UpstreamError));
    }
}
