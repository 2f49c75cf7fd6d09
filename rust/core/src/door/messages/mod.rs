//! Anthropic's Messages: `/v1/messages`.
//!
//! A request is turned into OpenAI's, and goes as it came to upstreams that speak Messages
//! themselves. Answers and streams are turned back; errors have Anthropic's shape.
//! Source: platform.claude.com, api/messages, api/errors, build-with-claude/streaming.
mod errors;
mod headers;

use std::ops::Range;

use bytes::{Bytes, BytesMut};

use crate::dialect::json::{Object, Path, each_once, pairs};
use crate::dialect::{self, Context, Dialect, Options, Transcoder};
use crate::error::{Error, Kind};
use crate::peek::peek;
use crate::refusals::unreadable;

use super::{Entered, Native, Voice};

pub(crate) use errors::body as error_body;
pub(crate) use headers::{rates, request_id};

/// Longest event that is turned. What comes here has passed the exchange, which has a bound of its own.
const MAX_EVENT_BYTES: usize = 64 << 20;

/// Top-level fields by which an upstream would answer with another model or bill at another price, or
/// to another account: the configuration says that.
const OURS: [&str; 6] = [
    "billing_policy",
    "fallback_credit_token",
    "fallbacks",
    "service_tier",
    "speed",
    "workspace_id",
];

/// Reads a request. Errors: `InvalidRequest` whose `param` is the field's path in the client's own
/// names, `messages[2].content`.
pub(crate) fn enter(body: &Bytes, request_id: &str) -> Result<Entered, Error> {
    read(body, request_id, "")
}

/// Reads a request whose tokens are to be counted, which asks for no answer. Errors: as [`enter`].
pub(crate) fn count(body: &Bytes) -> Result<Entered, Error> {
    read(body, "", "\"max_tokens\":1,")
}

/// given: members that are read before the request's own.
fn read(body: &Bytes, request_id: &str, given: &str) -> Result<Entered, Error> {
    let seen = peek(body).map_err(|error| unreadable(&error))?;
    let (Some(model), Some(at)) = (&seen.model, &seen.model_span) else {
        return Err(
            Error::new(Kind::InvalidRequest, "You must provide a model parameter.")
                .param("model")
                .code("missing_required_parameter"),
        );
    };
    let options = Options {
        model,
        stream: seen.stream,
        drop_params: false,
        max_output_tokens: 0,
    };
    let entry = if given.is_empty() {
        dialect::enter(Dialect::Anthropic, body, &options)?
    } else {
        let (head, rest) = body.split_at_checked(seen.body_start).unwrap_or_default();
        let whole = [head, given.as_bytes(), rest].concat();
        dialect::enter(Dialect::Anthropic, &whole, &options)?
    };
    let (own, at) = native_body(body, at)?;
    let id = format!("msg_{}", uuid::Uuid::now_v7().simple());
    let told = Told::new(id, model, request_id);
    let native = Native {
        dialect: Dialect::Anthropic,
        model: at,
        unsaid: entry.unsaid,
        beta: None,
        body: own,
    };
    Ok(Entered {
        body: entry.body.into(),
        native: Some(native),
        voice: Some(Box::new(told)),
    })
}

/// A request as an upstream with Messages gets it: as it came, but for what is the gateway's to say.
/// model: where in it the model's name stands, quotes included. Gives the JSON, and where it is there.
fn native_body(body: &Bytes, model: &Range<usize>) -> Result<(Bytes, Range<usize>), Error> {
    let at = &Path::ROOT;
    let text = simdutf8::basic::from_utf8(body)
        .map_err(|_| Error::new(Kind::InvalidRequest, "The body is not UTF-8."))?;
    let members = pairs(text, at)?;
    each_once(&members, at)?;
    let ours = |name: &str| OURS.contains(&name);
    if !members.iter().any(|(name, _)| ours(name)) {
        return Ok((body.clone(), model.clone()));
    }
    let mut out = BytesMut::with_capacity(body.len());
    let mut model = 0..0;
    Object::write(&mut out, |object| {
        for (name, raw) in members {
            if name == "model" {
                let place = object.member("model");
                let start = place.len();
                place.extend_from_slice(raw.get().as_bytes());
                model = start..place.len();
            } else if !ours(&name) {
                object.put_named(&name, raw);
            }
        }
    });
    Ok((out.freeze(), model))
}

/// How an answer is told to a client that speaks Messages.
pub(crate) struct Told {
    context: Context,
    request_id: String,
    transcoder: Option<Transcoder>,
}

impl Told {
    /// id: the message's. model: as the client named it. request_id: as errors tell it.
    pub(crate) fn new(id: String, model: &str, request_id: &str) -> Self {
        Self {
            context: Context {
                id,
                model: model.to_owned(),
                created: 0,
            },
            request_id: request_id.to_owned(),
            transcoder: None,
        }
    }

    fn transcoder(&mut self) -> &mut Transcoder {
        let context = &self.context;
        self.transcoder.get_or_insert_with(|| {
            let (from, to) = (Dialect::OpenAi, Dialect::Anthropic);
            Transcoder::new(from, to, context.clone(), MAX_EVENT_BYTES)
        })
    }
}

impl Voice for Told {
    fn answer(&self, body: &[u8]) -> Result<Bytes, Error> {
        dialect::answer(Dialect::OpenAi, Dialect::Anthropic, body, &self.context).map(Bytes::from)
    }

    fn feed(&mut self, sse: Bytes, out: &mut BytesMut) -> Result<(), Error> {
        self.transcoder().feed(sse, out)
    }

    fn end(&mut self, out: &mut BytesMut) -> Result<(), Error> {
        self.transcoder().end(out)
    }

    fn cut(&mut self, error: &Error, out: &mut BytesMut) {
        out.extend_from_slice(b"event: error\ndata: ");
        out.extend_from_slice(&error_body(error, Some(&self.request_id)));
        out.extend_from_slice(b"\n\n");
    }

    fn keep_alive(&self, out: &mut BytesMut) {
        out.extend_from_slice(b"event: ping\ndata: {\"type\":\"ping\"}\n\n");
    }
}
