//! What is spoken with an upstream, and what it is turned from and into.
//!
//! Every dialect reads its requests, answers and streams into [`chat`] and writes them from there, so
//! that all pairs work. Pure: bytes in, bytes out. What a dialect cannot say is refused by the field's
//! name, or left out and listed; `docs/dialects.md` has the tables.
mod anthropic;
pub(crate) mod base64;
mod calls;
mod carry;
mod chat;
mod converse;
pub mod eventstream;
mod failure;
mod frames;
mod gemini;
pub(crate) mod json;
mod media;
mod openai;
mod plain;
pub(crate) mod responses;

use bytes::{Bytes, BytesMut};
use serde::Deserialize;

use crate::error::{Error, Kind};
use carry::{Carry, invalid};
use chat::Event;

/// A protocol of chat.
#[derive(Clone, Copy, Debug, Default, PartialEq, Eq, Hash, Deserialize)]
#[serde(rename_all = "snake_case")]
pub enum Dialect {
    /// OpenAI's chat completions.
    #[default]
    OpenAi,
    /// Anthropic's Messages.
    Anthropic,
    /// Gemini's `generateContent`.
    Gemini,
    /// Bedrock's Converse, its streams in binary frames.
    Converse,
    /// OpenAI's Responses.
    Responses,
}

/// What is known of a request beside its body.
#[derive(Clone, Copy, Debug)]
pub struct Options<'a> {
    /// The model's name at the upstream.
    pub model: &'a str,
    /// The answer is to be streamed.
    pub stream: bool,
    /// Leave out what the upstream's dialect cannot say, instead of refusing.
    pub drop_params: bool,
    /// Asked for where the dialect wants a bound on output and the client names none, tokens.
    pub max_output_tokens: u32,
}

/// A request in another dialect.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct Translated {
    /// The JSON body.
    pub body: Vec<u8>,
    /// Fields of the client's that are not in it.
    pub dropped: Vec<String>,
}

/// What an answer says of itself.
#[derive(Clone, Debug, Default)]
pub struct Context {
    /// The answer's id.
    pub id: String,
    /// The model's name as the client knows it.
    pub model: String,
    /// Unix time, seconds.
    pub created: u64,
}

/// Turns a request from one dialect into another.
///
/// Errors: `InvalidRequest` whose `param` is the path of the field at fault
/// (`messages[2].content[0].image_url.url`): malformed, or not to be said in the other dialect.
pub fn request(
    from: Dialect,
    to: Dialect,
    body: &[u8],
    options: &Options<'_>,
) -> Result<Translated, Error> {
    let body = utf8(body)?;
    let request = parse(from, body)?;
    render(&request, body.len(), from, to, options)
}

fn utf8(body: &[u8]) -> Result<&str, Error> {
    simdutf8::basic::from_utf8(body)
        .map_err(|_| Error::new(Kind::InvalidRequest, "The body is not UTF-8."))
}

fn parse(from: Dialect, body: &str) -> Result<chat::Request<'_>, Error> {
    let request = match from {
        Dialect::OpenAi => openai::parse_request(body)?,
        Dialect::Anthropic => anthropic::parse_request(body)?,
        Dialect::Gemini => gemini::parse_request(body)?,
        Dialect::Converse => converse::parse_request(body)?,
        Dialect::Responses => responses::parse_request(body)?,
    };
    if request.messages.is_empty() {
        let field = match from {
            Dialect::OpenAi | Dialect::Anthropic | Dialect::Converse => "messages",
            Dialect::Gemini => "contents",
            Dialect::Responses => "input",
        };
        return Err(invalid(
            field,
            format!("`{field}` has to hold at least one message of a user."),
        ));
    }
    Ok(request)
}

/// Writes a request whose body had `length` bytes.
fn render(
    request: &chat::Request<'_>,
    length: usize,
    from: Dialect,
    to: Dialect,
    options: &Options<'_>,
) -> Result<Translated, Error> {
    let mut carry = Carry::new(from, options.drop_params);
    let mut out = BytesMut::with_capacity(length + length / 8 + 256);
    match to {
        Dialect::OpenAi => openai::render_request(request, options, &mut carry, &mut out)?,
        Dialect::Anthropic => anthropic::render_request(request, options, &mut carry, &mut out)?,
        Dialect::Gemini => gemini::render_request(request, options, &mut carry, &mut out)?,
        Dialect::Converse => converse::render_request(request, options, &mut carry, &mut out)?,
        Dialect::Responses => responses::render_request(request, options, &mut carry, &mut out)?,
    }
    Ok(Translated {
        body: out.into(),
        dropped: carry.into_dropped(),
    })
}

/// A request of another dialect's client as the gateway reads it: in OpenAI's.
#[derive(Clone, Debug)]
pub struct Entry {
    /// The JSON body. Where something is `unsaid`, the body without that: enough to decide by.
    pub body: Vec<u8>,
    /// Why `body` is not all of the request.
    pub unsaid: Option<Unsaid>,
}

/// What OpenAI's dialect has no words for. An upstream that speaks the client's own may have it all
/// the same.
#[derive(Clone, Debug)]
pub struct Unsaid {
    /// What the client is told where no such upstream is there.
    pub error: Error,
    /// An upstream with `drop_params` takes the request without it.
    pub droppable: bool,
}

/// Reads a client's request into OpenAI's dialect. `options.drop_params` has no meaning here.
///
/// Errors: `InvalidRequest` as of [`request`], for what is malformed.
pub fn enter(from: Dialect, body: &[u8], options: &Options<'_>) -> Result<Entry, Error> {
    let body = utf8(body)?;
    let mut request = parse(from, body)?;
    let write = |request: &chat::Request<'_>, drop_params| {
        let options = Options {
            drop_params,
            ..*options
        };
        render(request, body.len(), from, Dialect::OpenAi, &options)
    };
    let error = match write(&request, false) {
        Ok(translated) => {
            return Ok(Entry {
                body: translated.body,
                unsaid: None,
            });
        }
        Err(error) => error.sibling(true),
    };
    if let Ok(translated) = write(&request, true) {
        return Ok(Entry {
            body: translated.body,
            unsaid: Some(Unsaid {
                error,
                droppable: true,
            }),
        });
    }
    request.plain();
    Ok(Entry {
        body: write(&request, true)?.body,
        unsaid: Some(Unsaid {
            error,
            droppable: false,
        }),
    })
}

/// Turns a whole answer from one dialect into another.
///
/// Errors: `UpstreamError`, or what an error in the answer's place says.
pub fn answer(
    from: Dialect,
    to: Dialect,
    body: &[u8],
    context: &Context,
) -> Result<Vec<u8>, Error> {
    let body = simdutf8::basic::from_utf8(body).map_err(carry::broken)?;
    let answer = match from {
        Dialect::OpenAi => openai::parse_answer(body, &context.id)?,
        Dialect::Anthropic => anthropic::parse_answer(body)?,
        Dialect::Gemini => gemini::parse_answer(body, &context.id)?,
        Dialect::Converse => converse::parse_answer(body)?,
        Dialect::Responses => responses::parse_answer(body)?,
    };
    let mut out = BytesMut::with_capacity(body.len() + 512);
    match to {
        Dialect::OpenAi => openai::render_answer(&answer, context, &mut out),
        Dialect::Anthropic => anthropic::render_answer(&answer, context, &mut out)?,
        Dialect::Gemini => gemini::render_answer(&answer, context, &mut out)?,
        Dialect::Converse => converse::render_answer(&answer, &mut out)?,
        Dialect::Responses => {
            let asked = responses::Asked::default();
            responses::render_answer(&answer, context, &asked, false, &mut out);
        }
    }
    Ok(out.into())
}

/// Takes what a stream says, event by event.
pub(crate) trait Sink {
    /// One event. Errors end the stream.
    fn event(&mut self, event: Event<'_>) -> Result<(), Error>;
}

/// A stream that is turned from one dialect into another: wire bytes in, wire bytes out.
pub struct Transcoder {
    reader: Reader,
    writer: Writer,
    failed: Option<Error>,
}

/// Reads a stream's bytes. `feed` and `end` give events to a [`Sink`]; an error that the stream itself
/// tells is an `Err` of the right kind, and so is an end without the dialect's terminal event.
enum Reader {
    OpenAi(openai::Reader),
    Anthropic(anthropic::Reader),
    Gemini(gemini::Reader),
    Converse(converse::Reader),
    Responses(responses::Reader),
}

/// Writes a stream's bytes from events.
enum Writer {
    OpenAi(openai::Writer),
    Anthropic(anthropic::Writer),
    Gemini(gemini::Writer),
    Converse(converse::Writer),
    Responses(Box<responses::Writer>),
}

/// A [`Sink`] that writes.
struct Pipe<'t> {
    writer: &'t mut Writer,
    out: &'t mut BytesMut,
}

impl Sink for Pipe<'_> {
    fn event(&mut self, event: Event<'_>) -> Result<(), Error> {
        match self.writer {
            Writer::OpenAi(writer) => {
                writer.event(&event, self.out);
                Ok(())
            }
            Writer::Anthropic(writer) => writer.event(&event, self.out),
            Writer::Gemini(writer) => writer.event(&event, self.out),
            Writer::Converse(writer) => writer.event(&event, self.out),
            Writer::Responses(writer) => writer.event(&event, self.out),
        }
    }
}

impl Transcoder {
    /// A stream at its start.
    ///
    /// max_event_bytes: the longest event of `from` that is taken.
    pub fn new(from: Dialect, to: Dialect, context: Context, max_event_bytes: usize) -> Self {
        let reader = match from {
            Dialect::OpenAi => {
                Reader::OpenAi(openai::Reader::new(context.id.clone(), max_event_bytes))
            }
            Dialect::Anthropic => Reader::Anthropic(anthropic::Reader::new(max_event_bytes)),
            Dialect::Gemini => {
                Reader::Gemini(gemini::Reader::new(context.id.clone(), max_event_bytes))
            }
            Dialect::Converse => Reader::Converse(converse::Reader::new(max_event_bytes)),
            Dialect::Responses => Reader::Responses(responses::Reader::new(max_event_bytes)),
        };
        let writer = match to {
            Dialect::OpenAi => Writer::OpenAi(openai::Writer::new(&context)),
            Dialect::Anthropic => Writer::Anthropic(anthropic::Writer::new(context)),
            Dialect::Gemini => Writer::Gemini(gemini::Writer::new(context)),
            Dialect::Converse => Writer::Converse(converse::Writer::default()),
            Dialect::Responses => Writer::Responses(Box::new(responses::Writer::new(
                context,
                responses::Asked::default(),
            ))),
        };
        Self {
            reader,
            writer,
            failed: None,
        }
    }

    /// A stream of OpenAI's chat that becomes one of Responses, whose last event is held back.
    /// asked: what the response repeats. stored: whether it is said to be kept until that is known.
    pub(crate) fn held(
        context: Context,
        asked: responses::Asked,
        stored: bool,
        max_event_bytes: usize,
    ) -> Self {
        let reader = openai::Reader::new(context.id.clone(), max_event_bytes);
        let writer = responses::Writer::new(context, asked).holding(stored);
        Self {
            reader: Reader::OpenAi(reader),
            writer: Writer::Responses(Box::new(writer)),
            failed: None,
        }
    }

    /// The response as it ends, once only its last event is missing.
    pub(crate) fn whole_response(&self, stored: bool) -> Option<BytesMut> {
        match &self.writer {
            Writer::Responses(writer) if writer.is_whole() => Some(writer.response(stored)),
            _ => None,
        }
    }

    /// What writes Responses.
    pub(crate) fn response(&mut self) -> Option<&mut responses::Writer> {
        match &mut self.writer {
            Writer::Responses(writer) => Some(writer),
            _ => None,
        }
    }

    /// What the upstream has told of tokens so far, before a writer of OpenAI's tells it at the end.
    pub(crate) fn usage(&self) -> Option<chat::Usage> {
        match (&self.reader, &self.writer) {
            (Reader::Anthropic(reader), _) => reader.usage(),
            (_, Writer::OpenAi(writer)) => writer.usage(),
            _ => None,
        }
    }

    /// Takes what the upstream sent and appends what the client gets.
    ///
    /// Errors: the upstream told of a failure (of its kind), or sent what is no stream. `out` then
    /// holds all that came before, and every later call fails the same way.
    pub fn feed(&mut self, chunk: Bytes, out: &mut BytesMut) -> Result<(), Error> {
        self.guarded(out, |reader, pipe| match reader {
            Reader::OpenAi(reader) => reader.feed(chunk, pipe),
            Reader::Anthropic(reader) => reader.feed(chunk, pipe),
            Reader::Gemini(reader) => reader.feed(chunk, pipe),
            Reader::Converse(reader) => reader.feed(chunk, pipe),
            Reader::Responses(reader) => reader.feed(chunk, pipe),
        })
    }

    /// The upstream closed its side. Errors: it had not finished.
    pub fn end(&mut self, out: &mut BytesMut) -> Result<(), Error> {
        self.guarded(out, |reader, pipe| match reader {
            Reader::OpenAi(reader) => reader.end(pipe),
            Reader::Anthropic(reader) => reader.end(pipe),
            Reader::Gemini(reader) => reader.end(pipe),
            Reader::Converse(reader) => reader.end(pipe),
            Reader::Responses(reader) => reader.end(pipe),
        })
    }

    fn guarded(
        &mut self,
        out: &mut BytesMut,
        run: impl FnOnce(&mut Reader, &mut Pipe<'_>) -> Result<(), Error>,
    ) -> Result<(), Error> {
        if let Some(error) = &self.failed {
            return Err(error.clone());
        }
        let mut pipe = Pipe {
            writer: &mut self.writer,
            out,
        };
        run(&mut self.reader, &mut pipe).inspect_err(|error| self.failed = Some(error.clone()))
    }
}
