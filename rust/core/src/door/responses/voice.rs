//! How an answer is told to a client that speaks Responses.
use std::borrow::Cow;

use bytes::{Bytes, BytesMut};

use crate::dialect::responses::{Asked, Failed, Kept, Native, Places, id_of, input_of, tell};
use crate::dialect::{Context, Transcoder};
use crate::error::{Error, Kind};

use super::super::Voice;
use super::{MAX_STORED, text};

/// Longest event that is turned. What comes here has passed the exchange, which has a bound of its own.
const MAX_EVENT_BYTES: usize = 64 << 20;

/// Tells one answer.
pub(super) struct Told {
    context: Context,
    asked: Asked,
    places: Places,
    /// The request, whose `input` is everything that the model is given.
    request: Bytes,
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
            request: Bytes::new(),
            store: false,
            previous: None,
            stored: false,
            stream: None,
        }
    }

    /// request: its `input` is everything that the model is given. store: the response is to be kept. previous: the one
    /// before it.
    pub(super) fn keeping(mut self, request: Bytes, store: bool, previous: Option<String>) -> Self {
        self.request = request;
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

    /// What is kept of a response; nothing of one that is too large.
    fn entry(&self, response: &[u8]) -> Option<Bytes> {
        let json = simdutf8::basic::from_utf8(response).ok()?;
        let id = id_of(json)?;
        let input = input_of(text(&self.request).ok()?);
        let length = input.len() + response.len();
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
        out.extend_from_slice(input.as_bytes());
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
        let failed = &Failed {
            code: code.unwrap_or("server_error"),
            kind: match error.kind {
                Kind::RateLimited | Kind::BudgetExhausted => "rate_limit_exceeded",
                Kind::InvalidRequest | Kind::PayloadTooLarge => "invalid_prompt",
                _ => "server_error",
            },
            message: &error.message,
            param: error.param.as_deref(),
        };
        if let Some(Stream::Native(native)) = &mut self.stream {
            native.fail(failed, out);
        } else if let Some(writer) = self.transcoder().and_then(Transcoder::response) {
            writer.fail(failed, out);
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

    fn keeps(&self, whole: Option<&Bytes>) -> Option<Bytes> {
        if !self.store {
            return None;
        }
        match (whole, &self.stream) {
            (Some(whole), _) => self.entry(whole),
            (None, Some(Stream::Turned(transcoder))) => {
                self.entry(&transcoder.whole_response(true)?)
            }
            (None, Some(Stream::Native(native))) => {
                let response = self.kept_as(true).response(native.waiting()?).ok()?;
                self.entry(&response)
            }
            (None, None) => None,
        }
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
