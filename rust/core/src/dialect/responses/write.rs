//! Writing a stream.
//!
//! Order: `response.created`, `response.in_progress`, each item from `output_item.added` to
//! `output_item.done`, and one of `response.completed`, `response.incomplete`, `response.failed`. Calls
//! may grow side by side; all else is one item after the other.
mod done;

use bytes::BytesMut;

use crate::error::{Error, Kind};

use super::super::Context;
use super::super::chat::{Event, Stop, Usage};
use super::super::json::Object;
use super::asked::Asked;
use super::output::{
    Failed, Ids, Item, Response, Said, Status, inner, item, last_status, owned, raw_list, sealed,
    write_said,
};
use done::Thought;

/// Most bytes of an answer: all of it is repeated when it ends.
const MAX_ANSWER: usize = 32 << 20;

/// Most items of an answer.
const MAX_ITEMS: usize = 2048;

/// Writes events.
#[expect(clippy::struct_excessive_bools, reason = "independent facts")]
pub(crate) struct Writer {
    context: Context,
    asked: Asked,
    ids: Ids,
    /// Of the next event.
    sequence: u64,
    items: Vec<Item>,
    /// The last item is a message or a thought that may grow.
    open: bool,
    /// Calls that may grow: their number and their item's.
    calls: Vec<(u32, usize)>,
    /// Logprobs of the text that comes next.
    logprobs: String,
    usage: Option<Usage>,
    stop: Option<Stop>,
    /// Bytes of all items.
    size: usize,
    started: bool,
    /// The model has said all.
    whole: bool,
    /// It waits for [`Writer::last`] with its last event.
    held: bool,
    stored: bool,
    ended: bool,
}

impl Writer {
    /// A stream at its start. asked: what the response repeats.
    pub(crate) fn new(context: Context, asked: Asked) -> Self {
        Self {
            ids: Ids::of(&context.id),
            context,
            asked,
            sequence: 0,
            items: Vec::new(),
            open: false,
            calls: Vec::new(),
            logprobs: String::new(),
            usage: None,
            stop: None,
            size: 0,
            started: false,
            whole: false,
            held: false,
            stored: false,
            ended: false,
        }
    }

    /// The last event is not written before [`Writer::last`]; until then the response is said to be
    /// `stored` or not.
    pub(crate) const fn holding(mut self, stored: bool) -> Self {
        self.held = true;
        self.stored = stored;
        self
    }

    /// Appends what `event` is. Errors: the answer is too large.
    pub(crate) fn event(&mut self, event: &Event<'_>, out: &mut BytesMut) -> Result<(), Error> {
        match event {
            Event::Usage(usage) => {
                self.usage = Some(*usage);
                return Ok(());
            }
            Event::Ping => {
                out.extend_from_slice(b": ping\n\n");
                return Ok(());
            }
            Event::Logprobs(raw) => {
                if self.asked.telling.logprobs {
                    append(&mut self.logprobs, inner(raw.get()));
                }
                return Ok(());
            }
            _ => self.start(out),
        }
        match event {
            Event::Text(text) => self.text(text, out),
            Event::Refusal(text) => self.refusal(text, out),
            Event::Reasoning(text) => self.reasoning(text, out),
            Event::Signature(signature) => {
                self.thinking(out);
                if let Some(Item::Reasoning { sealed: place, .. }) = self.items.last_mut() {
                    *place = Some(sealed(signature, false));
                }
                self.grown(signature.value.len())?;
                self.close(Status::Completed, out);
            }
            Event::Redacted(signature) => {
                self.close(Status::Completed, out);
                let sealed = Some(sealed(signature, true));
                let text = String::new();
                self.open(Item::Reasoning { text, sealed }, out);
                self.grown(signature.value.len())?;
                self.close(Status::Completed, out);
            }
            Event::ToolStart {
                index,
                id,
                name,
                signature,
            } => {
                self.close(Status::Completed, out);
                let call = Item::Call {
                    id: id.clone().into_owned(),
                    name: name.clone().into_owned(),
                    arguments: String::new(),
                    signature: signature.as_ref().map(owned),
                    custom: self.asked.telling.custom.has(name),
                };
                self.calls.push((*index, self.items.len()));
                self.open(call, out);
                self.open = false;
                self.grown(id.len() + name.len())?;
            }
            Event::ToolArguments { index, json } => self.arguments(*index, json, out)?,
            Event::ToolEnd { index } => self.call_done(*index, Status::Completed, out),
            Event::Finish { stop, .. } => self.stop = Some(*stop),
            Event::End => self.end(out),
            Event::Start | Event::Usage(_) | Event::Ping | Event::Logprobs(_) => {}
        }
        match event {
            Event::Text(text) | Event::Refusal(text) | Event::Reasoning(text) => {
                self.grown(text.len())
            }
            _ => Ok(()),
        }
    }

    fn grown(&mut self, bytes: usize) -> Result<(), Error> {
        self.size += bytes + self.logprobs.len();
        self.logprobs.clear();
        if self.size > MAX_ANSWER || self.items.len() > MAX_ITEMS {
            return Err(Error::new(
                Kind::UpstreamError,
                "The engine's answer is too large.",
            ));
        }
        Ok(())
    }

    /// Whether the model has said all, and only the last event is missing.
    pub(crate) const fn is_whole(&self) -> bool {
        self.whole && !self.ended
    }

    /// The response as it ends. `stored`: what it says of that.
    pub(crate) fn response(&self, stored: bool) -> BytesMut {
        let mut out = BytesMut::with_capacity(self.size + self.asked.repeated().len() + 1024);
        self.describe(self.status(), None, stored).write(&mut out);
        out
    }

    /// Writes the last event, once.
    pub(crate) fn last(&mut self, stored: bool, out: &mut BytesMut) {
        if !self.whole || std::mem::replace(&mut self.ended, true) {
            return;
        }
        self.stored = stored;
        let status = self.status();
        let name = if status == Status::Completed {
            "response.completed"
        } else {
            "response.incomplete"
        };
        self.life(name, status, None, out);
    }

    /// Writes that it failed.
    pub(crate) fn fail(&mut self, failed: &Failed<'_>, out: &mut BytesMut) {
        if std::mem::replace(&mut self.ended, true) {
            return;
        }
        self.start(out);
        self.stored = false;
        self.tell("error", out, |event| failed.event(event));
        let error = Some((failed.kind, failed.message));
        self.life("response.failed", Status::Failed, error, out);
    }

    fn status(&self) -> Status {
        self.stop.map_or(Status::Completed, Status::of)
    }

    fn start(&mut self, out: &mut BytesMut) {
        if !std::mem::replace(&mut self.started, true) {
            self.life("response.created", Status::InProgress, None, out);
            self.life("response.in_progress", Status::InProgress, None, out);
        }
    }

    fn end(&mut self, out: &mut BytesMut) {
        let status = self.status();
        let calls: Vec<u32> = self.calls.iter().map(|(index, _)| *index).collect();
        if self.open {
            let last = last_status(status, true);
            self.close(last, out);
        }
        for index in calls {
            let last = self
                .calls
                .first()
                .is_some_and(|(_, at)| at + 1 == self.items.len());
            self.call_done(index, last_status(status, last), out);
        }
        self.whole = true;
        if !self.held {
            self.last(false, out);
        }
    }

    fn describe<'w>(
        &'w self,
        status: Status,
        error: Option<(&'w str, &'w str)>,
        stored: bool,
    ) -> Response<'w> {
        let begun = status == Status::InProgress;
        Response {
            context: &self.context,
            asked: &self.asked,
            status,
            items: if begun { &[] } else { &self.items },
            ids: &self.ids,
            stop: self.stop,
            usage: self.usage.filter(|_| !begun),
            error,
            stored,
        }
    }

    /// An event of the response's own life.
    fn life(
        &mut self,
        name: &str,
        status: Status,
        error: Option<(&str, &str)>,
        out: &mut BytesMut,
    ) {
        let sequence = self.next();
        begin(name, out);
        Object::write(out, |event| {
            event.put("type", name);
            event.put("sequence_number", sequence);
            self.describe(status, error, self.stored)
                .write(event.member("response"));
        });
        out.extend_from_slice(b"\n\n");
    }

    fn tell(&mut self, name: &str, out: &mut BytesMut, fill: impl FnOnce(&mut Object<'_>)) {
        let sequence = self.next();
        begin(name, out);
        Object::write(out, |event| {
            event.put("type", name);
            event.put("sequence_number", sequence);
            fill(event);
        });
        out.extend_from_slice(b"\n\n");
    }

    const fn next(&mut self) -> u64 {
        let sequence = self.sequence;
        self.sequence += 1;
        sequence
    }

    /// An event of the item `at`.
    fn of(
        &mut self,
        at: usize,
        name: &str,
        out: &mut BytesMut,
        fill: impl FnOnce(&mut Object<'_>),
    ) {
        let Some(id) = self.items.get(at).map(|item| self.ids.id(item, at)) else {
            return;
        };
        self.tell(name, out, |event| {
            event.put("item_id", id);
            event.put("output_index", at);
            fill(event);
        });
    }

    /// An event of the part of the last item that grows.
    fn part(&mut self, name: &str, out: &mut BytesMut, fill: impl FnOnce(&mut Object<'_>)) {
        let at = self.items.len().saturating_sub(1);
        let (field, index) = match self.items.last() {
            Some(Item::Message(said)) => ("content_index", said.len().saturating_sub(1)),
            _ if self.asked.telling.summary => ("summary_index", 0),
            _ => ("content_index", 0),
        };
        self.of(at, name, out, |event| {
            event.put(field, index);
            fill(event);
        });
    }

    /// A new item, which may grow. It is added as it stands, without its parts.
    fn open(&mut self, new: Item, out: &mut BytesMut) {
        let at = self.items.len();
        let id = self.ids.id(&new, at);
        let telling = self.asked.telling.clone();
        self.tell("response.output_item.added", out, |event| {
            event.put("output_index", at);
            event.object("item", |object| {
                item(object, &new, &id, Status::InProgress, &telling);
            });
        });
        self.items.push(new);
        self.open = true;
    }

    /// The message that grows, a new one unless the last item is one.
    fn message(&mut self, out: &mut BytesMut) {
        if self.open && matches!(self.items.last(), Some(Item::Message(_))) {
            return;
        }
        self.close(Status::Completed, out);
        self.open(Item::Message(Vec::new()), out);
    }

    /// A new part of the message that grows.
    fn new_part(&mut self, said: Said, out: &mut BytesMut) {
        self.part_done(out);
        let Some(Item::Message(parts)) = self.items.last_mut() else {
            return;
        };
        parts.push(said);
        self.part_event("response.content_part.added", out);
    }

    fn part_event(&mut self, name: &str, out: &mut BytesMut) {
        let mut part = BytesMut::new();
        if let Some(Item::Message(parts)) = self.items.last()
            && let Some(said) = parts.last()
        {
            Object::write(&mut part, |object| write_said(object, said));
        }
        self.part(name, out, |event| {
            event.member("part").extend_from_slice(&part);
        });
    }

    fn text(&mut self, more: &str, out: &mut BytesMut) {
        self.message(out);
        if !matches!(self.items.last(), Some(Item::Message(parts)) if matches!(parts.last(), Some(Said::Text { .. })))
        {
            let said = Said::Text {
                text: String::new(),
                logprobs: String::new(),
            };
            self.new_part(said, out);
        }
        let now = self.logprobs.clone();
        if let Some(Item::Message(parts)) = self.items.last_mut()
            && let Some(Said::Text { text, logprobs }) = parts.last_mut()
        {
            text.push_str(more);
            append(logprobs, &now);
        }
        self.part("response.output_text.delta", out, |event| {
            event.put("delta", more);
            raw_list(event, "logprobs", &now);
        });
    }

    fn refusal(&mut self, more: &str, out: &mut BytesMut) {
        self.message(out);
        if !matches!(self.items.last(), Some(Item::Message(parts)) if matches!(parts.last(), Some(Said::Refusal(_))))
        {
            self.new_part(Said::Refusal(String::new()), out);
        }
        if let Some(Item::Message(parts)) = self.items.last_mut()
            && let Some(Said::Refusal(text)) = parts.last_mut()
        {
            text.push_str(more);
        }
        self.part("response.refusal.delta", out, |event| {
            event.put("delta", more);
        });
    }

    /// The thought that grows, a new one unless the last item is one.
    fn thinking(&mut self, out: &mut BytesMut) {
        if self.open && matches!(self.items.last(), Some(Item::Reasoning { .. })) {
            return;
        }
        self.close(Status::Completed, out);
        let (text, sealed) = (String::new(), None);
        self.open(Item::Reasoning { text, sealed }, out);
    }

    fn reasoning(&mut self, more: &str, out: &mut BytesMut) {
        self.thinking(out);
        let Some(Item::Reasoning { text, .. }) = self.items.last_mut() else {
            return;
        };
        let first = text.is_empty();
        text.push_str(more);
        let names = Thought::of(self.asked.telling.summary);
        if first {
            self.part(names.added, out, |event| names.part(event, ""));
        }
        self.part(names.delta, out, |event| event.put("delta", more));
    }

    fn arguments(&mut self, index: u32, json: &str, out: &mut BytesMut) -> Result<(), Error> {
        let Some(at) = self.call(index) else {
            return Ok(());
        };
        let Some(Item::Call {
            arguments, custom, ..
        }) = self.items.get_mut(at)
        else {
            return Ok(());
        };
        arguments.push_str(json);
        // Of free text it is known only at the end what it is.
        if !*custom {
            let name = "response.function_call_arguments.delta";
            self.of(at, name, out, |event| event.put("delta", json));
        }
        self.grown(json.len())
    }

    fn call(&self, index: u32) -> Option<usize> {
        let found = self.calls.iter().find(|(number, _)| *number == index);
        found.map(|(_, at)| *at)
    }
}

fn begin(name: &str, out: &mut BytesMut) {
    out.extend_from_slice(b"event: ");
    out.extend_from_slice(name.as_bytes());
    out.extend_from_slice(b"\ndata: ");
}

fn append(list: &mut String, more: &str) {
    if !list.is_empty() && !more.is_empty() {
        list.push(',');
    }
    list.push_str(more);
}
