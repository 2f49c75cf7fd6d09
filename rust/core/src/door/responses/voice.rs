//! How an answer is told to a client that speaks Responses.
use std::borrow::Cow;

use bytes::{Bytes, BytesMut};

use crate::dialect::responses::{Asked, Kept, Native, Places, tell};
use crate::dialect::{Context, Transcoder};
use crate::error::{Error, Kind};

use super::super::{Keep, Voice};
use super::{MAX_STORED, text};

/// Longest event that is turned. What comes here has passed the exchange, which has a bound of its own.
const MAX_EVENT_BYTES: usize = 64 << 20;

/// Tells one answer.
pub(super) struct Told {
    context: Context,
    asked: Asked,
    places: Places,
    /// Everything that the model is given, a JSON list.
    input: String,
    /// The response is to be kept.
    store: bool,
    previous: Option<String>,
    /// It was kept, or will be.
    stored: bool,
    stream: Option<Stream>,
}

/// A stream on its way.
enum Stream {
    /// Of chat, turned.
    Turned(Box<Transcoder>),
    /// Of Responses, as it came.
    Native(Box<Native>),
}

impl Told {
    /// context: id, model and time of the response. asked: what it repeats. places: the client's names
    /// of a chat's fields.
    pub(super) fn new(context: Context, asked: Asked, places: Places) -> Self {
        Self {
            context,
            asked,
            places,
            input: String::new(),
            store: false,
            previous: None,
            stored: false,
            stream: None,
        }
    }

    /// input: everything that the model is given. store: the response is to be kept. previous: the one
    /// before it.
    pub(super) fn keeping(mut self, input: String, store: bool, previous: Option<String>) -> Self {
        self.input = input;
        self.store = store;
        self.stored = store;
        self.previous = previous;
        self
    }

    fn transcoder(&mut self) -> Option<&mut Transcoder> {
        let stream = self.stream.get_or_insert_with(|| {
            let (context, asked) = (self.context.clone(), self.asked.clone());
            let turned = Transcoder::held(context, asked, self.stored, MAX_EVENT_BYTES);
            Stream::Turned(Box::new(turned))
        });
        match stream {
            Stream::Turned(transcoder) => Some(transcoder),
            Stream::Native(_) => None,
        }
    }

    fn kept_as(&self, stored: bool) -> Kept {
        Kept {
            stored,
            previous: self.previous.clone(),
        }
    }

    /// What is kept of a response, JSON without its braces' end.
    fn entry(&self, response: &[u8]) -> Option<Bytes> {
        let json = simdutf8::basic::from_utf8(response).ok()?;
        let id = crate::dialect::responses::id_of(json)?;
        let length = self.input.len() + response.len();
        if length > MAX_STORED {
            return None;
        }
        let head = Head {
            id: &id,
            model: &self.context.model,
            previous_response_id: self.previous.as_deref(),
            created_at: self.context.created,
        };
        let mut out = serde_json::to_vec(&head).ok()?;
        out.pop();
        out.reserve(length + 32);
        out.extend_from_slice(b",\"input\":");
        out.extend_from_slice(self.input.as_bytes());
        out.extend_from_slice(b",\"response\":");
        out.extend_from_slice(response);
        out.push(b'}');
        Some(out.into())
    }
}

#[derive(serde::Serialize)]
struct Head<'a> {
    id: &'a str,
    model: &'a str,
    previous_response_id: Option<&'a str>,
    created_at: u64,
}

impl Voice for Told {
    fn answer(&self, body: &[u8]) -> Result<Bytes, Error> {
        let body = simdutf8::basic::from_utf8(body).map_err(|cause| {
            let message = "The engine's answer could not be read.";
            Error::new(Kind::UpstreamError, message).cause(cause)
        })?;
        let told = tell(body, &self.context, &self.asked, self.stored)?;
        Ok(told.freeze())
    }

    fn feed(&mut self, sse: Bytes, out: &mut BytesMut) -> Result<(), Error> {
        match self.transcoder() {
            Some(transcoder) => transcoder.feed(sse, out),
            None => Ok(()),
        }
    }

    fn end(&mut self, out: &mut BytesMut) -> Result<(), Error> {
        let stored = self.stored;
        let Some(transcoder) = self.transcoder() else {
            return Ok(());
        };
        transcoder.end(out)?;
        if let Some(writer) = transcoder.response() {
            writer.last(stored, out);
        }
        Ok(())
    }

    fn pass(&mut self, told: Bytes, out: &mut BytesMut) -> Result<(), Error> {
        let kept = self.kept_as(self.stored);
        let stream = self
            .stream
            .get_or_insert_with(|| Stream::Native(Box::new(Native::new(kept, MAX_EVENT_BYTES))));
        match stream {
            Stream::Native(native) => native.feed(told, out),
            Stream::Turned(_) => Ok(()),
        }
    }

    fn passed(&mut self, out: &mut BytesMut) -> Result<(), Error> {
        match &mut self.stream {
            Some(Stream::Native(native)) => native.last(self.stored, out),
            _ => Ok(()),
        }
    }

    fn own(&self, body: Bytes) -> Result<Bytes, Error> {
        let told = self.kept_as(self.stored).response(text(&body)?)?;
        Ok(told.into())
    }

    fn cut(&mut self, error: &Error, out: &mut BytesMut) {
        let error = &self.named(error).unwrap_or_else(|| error.clone());
        let code = error.code.as_deref().or(error.kind.openai_code());
        let what = (
            code.unwrap_or("server_error"),
            &*error.message,
            error.param.as_deref(),
        );
        if let Some(Stream::Native(native)) = &mut self.stream {
            native.fail(what, out);
        } else if let Some(writer) = self.transcoder().and_then(Transcoder::response) {
            writer.fail(what, out);
        }
    }

    fn keep_alive(&self, out: &mut BytesMut) {
        out.extend_from_slice(b": the engine is being started\n\n");
    }

    fn named(&self, error: &Error) -> Option<Error> {
        let field = error.param.as_deref()?;
        let name = self.places.name(field);
        if name == field {
            return None;
        }
        let mut named = error.clone();
        named.message = Cow::Owned(error.message.replace(field, &name));
        named.param = Some(Cow::Owned(name.into_owned()));
        Some(named)
    }

    fn keeps(&self, whole: Option<&Bytes>, all: bool) -> Option<Keep> {
        if !(self.store || all) {
            return None;
        }
        let json = match (whole, &self.stream) {
            (Some(whole), _) => self.entry(whole)?,
            (None, Some(Stream::Turned(transcoder))) => {
                self.entry(&transcoder.whole_response(self.store)?)?
            }
            (None, Some(Stream::Native(native))) => {
                let response = self.kept_as(self.store).response(native.waiting()?).ok()?;
                self.entry(&response)?
            }
            (None, None) => return None,
        };
        Some(Keep {
            json,
            store: self.store,
        })
    }

    fn kept(&mut self, stored: bool, whole: Option<Bytes>) -> Option<Bytes> {
        let changed = self.stored != stored;
        self.stored = stored;
        let whole = whole?;
        if !changed {
            return Some(whole);
        }
        Some(self.own(whole.clone()).unwrap_or(whole))
    }
}
