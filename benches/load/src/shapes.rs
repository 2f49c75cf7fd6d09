//! What the upstream answers: SGLang's bodies and events, in the shape that a request asks for.

use std::io::Write as _;

use memchr::memmem;

/// The model that the upstream lists and answers as.
pub(crate) const MODEL: &str = "load-model";

const ID: &str = "0f6d2b7c9a184e5db3c1a7e2f4586d90";
const MARK: &[u8] = b"\"load:";
const USAGE: &str = r#"{"prompt_tokens":22,"total_tokens":122,"completion_tokens":100,"prompt_tokens_details":null,"reasoning_tokens":0,"completion_tokens_details":null}"#;
/// Digits of the time in an event's text, and of its lateness: fixed, so that the chunk's length is.
const TIME_DIGITS: usize = 16;
const LATE_DIGITS: usize = 10;

/// Which endpoint was called.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub(crate) enum Door {
    /// `/v1/chat/completions`
    Chat,
    /// `/v1/completions`
    Text,
    /// `/v1/embeddings`
    Embeddings,
}

/// How to answer.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub(crate) enum Shape {
    /// One JSON body of about `bytes` bytes (`load:unary:BYTES`).
    Unary { bytes: usize },
    /// `chunks` content events in `bursts` equal writes (`load:burst:CHUNKS:BURSTS`).
    Burst { chunks: u64, bursts: u64 },
    /// `events` content events, `per_s` a second (`load:pace:PER_S:EVENTS`).
    Pace { per_s: u64, events: u64 },
}

/// What a request body asks for, as far as this upstream looks.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub(crate) struct Ask {
    /// The answer's shape.
    pub(crate) shape: Shape,
    /// The client wants the usage event.
    pub(crate) include_usage: bool,
}

/// Looks for the fields by name anywhere in the body: no JSON is parsed, so that a 200 KB prompt
/// costs microseconds. The shape is the first string that starts with `load:`, whichever field it
/// is in, because some gateways drop `user` (vllm-router) and none may drop the prompt. A body
/// that names no shape gets 500 bytes, or 100 events in 10 bursts.
pub(crate) fn read_ask(body: &[u8]) -> Ask {
    let value = |name: &[u8]| {
        let at = memmem::find(body, name)? + name.len();
        let rest = body.get(at..)?.trim_ascii_start().strip_prefix(b":")?;
        Some(rest.trim_ascii_start())
    };
    let stream = value(b"\"stream\"").is_some_and(|v| v.starts_with(b"true"));
    let include_usage =
        stream && value(b"\"include_usage\"").is_some_and(|v| v.starts_with(b"true"));
    let asked = memmem::find(body, MARK).and_then(|at| read_shape(body.get(at + MARK.len()..)?));
    let shape = match (stream, asked) {
        (true, Some(shape @ (Shape::Burst { .. } | Shape::Pace { .. })))
        | (false, Some(shape @ Shape::Unary { .. })) => shape,
        (true, _) => Shape::Burst {
            chunks: 100,
            bursts: 10,
        },
        (false, _) => Shape::Unary { bytes: 500 },
    };
    Ask {
        shape,
        include_usage,
    }
}

fn read_shape(text: &[u8]) -> Option<Shape> {
    let end = memchr::memchr2(b'"', b' ', text.get(..64.min(text.len()))?)?;
    let text = std::str::from_utf8(text.get(..end)?).ok()?;
    let mut parts = text.split(':');
    let name = parts.next()?;
    let mut number = || {
        parts
            .next()?
            .parse::<u64>()
            .ok()
            .filter(|n| (1..=100_000_000).contains(n))
    };
    match name {
        "unary" => Some(Shape::Unary {
            bytes: number()? as usize,
        }),
        "burst" => Some(Shape::Burst {
            chunks: number()?,
            bursts: number()?,
        }),
        "pace" => Some(Shape::Pace {
            per_s: number()?,
            events: number()?,
        }),
        _ => None,
    }
}

/// A whole unary response, head and body, whose body is about `bytes` long.
pub(crate) fn unary(door: Door, bytes: usize) -> Vec<u8> {
    if door == Door::Embeddings {
        let tail =
            format!(r#"],"usage":{{"prompt_tokens":8,"total_tokens":8}},"model":"{MODEL}"}}"#);
        let mut body = String::from(r#"{"object":"list","data":[{"object":"embedding","index":0,"#);
        body.push_str(r#""embedding":[0.0791015625"#);
        while body.len() + tail.len() + 16 < bytes {
            body.push_str(",-0.033394310546");
        }
        body.push_str("]}");
        body.push_str(&tail);
        return json("200 OK", &body);
    }
    let (object, open, close) = match door {
        Door::Text => ("text_completion", r#""text":""#, r#"""#),
        _ => (
            "chat.completion",
            r#""message":{"role":"assistant","content":""#,
            r#"","reasoning_content":null}"#,
        ),
    };
    let head = format!(
        r#"{{"id":"{ID}","object":"{object}","created":1795493833,"model":"{MODEL}","choices":[{{"index":0,{open}"#
    );
    let tail = format!(
        r#"{close},"logprobs":null,"finish_reason":"stop","matched_stop":259}}],"usage":{USAGE}}}"#
    );
    let pad = bytes.saturating_sub(head.len() + tail.len()).max(1);
    json("200 OK", &format!("{head}{}{tail}", "x".repeat(pad)))
}

/// A whole JSON response.
pub(crate) fn json(status: &str, body: &str) -> Vec<u8> {
    let mut out = Vec::with_capacity(body.len() + 160);
    // Writing to a Vec cannot fail.
    let _ = write!(
        out,
        "HTTP/1.1 {status}\r\ndate: Tue, 24 Nov 2026 04:17:12 GMT\r\nserver: uvicorn\r\n\
         content-length: {}\r\ncontent-type: application/json\r\n\r\n{body}",
        body.len()
    );
    out
}

/// The head of a streamed response.
pub(crate) const STREAM_HEAD: &[u8] = b"HTTP/1.1 200 OK\r\ndate: Tue, 24 Nov 2026 04:17:12 GMT\r\n\
    server: uvicorn\r\ncontent-type: text/event-stream; charset=utf-8\r\n\
    transfer-encoding: chunked\r\n\r\n";

/// One endpoint's events, rendered once: each is one HTTP chunk, as SGLang sends them.
#[derive(Debug)]
pub(crate) struct Events {
    first: Vec<u8>,
    content: Vec<u8>,
    time_at: usize,
    late_at: usize,
    finish: Vec<u8>,
    usage: Vec<u8>,
}

impl Events {
    /// Renders the events of `door` (embeddings do not stream; they get chat's).
    pub(crate) fn new(door: Door) -> Self {
        let text = format!(
            "t={} d={} ",
            "0".repeat(TIME_DIGITS),
            "0".repeat(LATE_DIGITS)
        );
        let chat = door != Door::Text;
        let object = if chat {
            "chat.completion.chunk"
        } else {
            "text_completion"
        };
        let event = |choices: &str, usage: &str| {
            chunk(&format!(
                "data: {{\"id\":\"{ID}\",\"object\":\"{object}\",\"created\":1795493834,\"model\":\"{MODEL}\",\"choices\":[{choices}]{usage}}}\n\n"
            ))
        };
        let choice = |delta: &str, finish: &str, matched: &str| {
            format!(
                r#"{{"index":0,{delta},"logprobs":null,"finish_reason":{finish},"matched_stop":{matched}}}"#
            )
        };
        let (first, content, finish, none);
        if chat {
            let open = r#""delta":{"reasoning_content":null"#;
            none = "";
            first = choice(
                &format!(r#"{open},"role":"assistant","content":""}}"#),
                "null",
                "null",
            );
            content = choice(&format!(r#"{open},"content":"{text}"}}"#), "null", "null");
            finish = choice(&format!("{open}}}"), r#""stop""#, "259");
        } else {
            none = r#","usage":null"#;
            first = choice(r#""text":"""#, "null", "null");
            content = choice(&format!(r#""text":"{text}""#), "null", "null");
            finish = choice(r#""text":"""#, r#""stop""#, "259");
        }
        let content = event(&content, none);
        let text_at = memmem::find(&content, b"\"t=").unwrap_or_default();
        Self {
            first: event(&first, none),
            time_at: text_at + 3,
            late_at: text_at + 3 + TIME_DIGITS + 3,
            content,
            finish: event(&finish, none),
            usage: event("", &format!(r#","usage":{USAGE}"#)),
        }
    }

    /// Appends the opening event.
    pub(crate) fn first(&self, out: &mut Vec<u8>) {
        out.extend_from_slice(&self.first);
    }

    /// Appends one content event that carries `now_ns` and how late it is, `late_ns`.
    pub(crate) fn content(&self, out: &mut Vec<u8>, now_ns: u64, late_ns: u64) {
        let base = out.len();
        out.extend_from_slice(&self.content);
        for (at, width, number) in [
            (self.time_at, TIME_DIGITS, now_ns),
            (self.late_at, LATE_DIGITS, late_ns),
        ] {
            if let Some(field) = out.get_mut(base + at..base + at + width) {
                write_digits(field, number);
            }
        }
    }

    /// Appends the finish event, the usage event when asked for, `[DONE]` and the last chunk.
    pub(crate) fn end(&self, out: &mut Vec<u8>, include_usage: bool) {
        out.extend_from_slice(&self.finish);
        if include_usage {
            out.extend_from_slice(&self.usage);
        }
        out.extend_from_slice(b"e\r\ndata: [DONE]\n\n\r\n0\r\n\r\n");
    }
}

fn write_digits(field: &mut [u8], mut number: u64) {
    for digit in field.iter_mut().rev() {
        *digit = b'0' + (number % 10) as u8;
        number /= 10;
    }
}

fn chunk(text: &str) -> Vec<u8> {
    format!("{:x}\r\n{text}\r\n", text.len()).into_bytes()
}

/// The time and lateness, in nanoseconds, that a content event carries; none in other events.
pub(crate) fn read_stamp(event: &[u8]) -> Option<(u64, u64)> {
    let at = memmem::find(event, b"\"t=")? + 3;
    let number = |from: usize, width: usize| {
        let field = event.get(from..from + width)?;
        field.iter().try_fold(0_u64, |sum, byte| {
            byte.is_ascii_digit()
                .then(|| sum * 10 + u64::from(byte - b'0'))
        })
    };
    Some((
        number(at, TIME_DIGITS)?,
        number(at + TIME_DIGITS + 3, LATE_DIGITS)?,
    ))
}

#[cfg(test)]
mod tests {
    use super::*;
    use crate::wire::{Dechunker, EventSplitter};

    #[test]
    fn the_body_names_the_shape_with_or_without_spaces() {
        let ask = read_ask(br#"{"stream": true, "user" : "load:pace:20:200","messages":[]}"#);
        let want = Ask {
            shape: Shape::Pace {
                per_s: 20,
                events: 200,
            },
            include_usage: false,
        };
        assert_eq!(ask, want);
        let ask = read_ask(br#"{"messages":[{"content":"load:burst:7:1 hi"}],"stream":true}"#);
        assert_eq!(
            ask.shape,
            Shape::Burst {
                chunks: 7,
                bursts: 1
            }
        );
        let ask = read_ask(br#"{"user":"load:unary:77","stream":false}"#);
        assert_eq!(ask.shape, Shape::Unary { bytes: 77 });
        let ask = read_ask(br#"{"stream":true,"stream_options":{"include_usage":true}}"#);
        assert!(ask.include_usage);
        assert_eq!(
            ask.shape,
            Shape::Burst {
                chunks: 100,
                bursts: 10
            }
        );
    }

    #[test]
    fn a_shape_that_makes_no_sense_falls_back() {
        for user in [
            "load:unary:0",
            "load:unary:x",
            "load:what:1",
            "load:",
            "someone",
        ] {
            let body = format!(r#"{{"user":"{user}"}}"#);
            assert_eq!(
                read_ask(body.as_bytes()).shape,
                Shape::Unary { bytes: 500 },
                "{user}"
            );
        }
    }

    #[test]
    fn unary_bodies_are_json_of_the_asked_size() {
        for door in [Door::Chat, Door::Text, Door::Embeddings] {
            let response = unary(door, 1000);
            let at = memmem::find(&response, b"\r\n\r\n").unwrap() + 4;
            let body: serde_json::Value = serde_json::from_slice(&response[at..]).unwrap();
            assert!(body["usage"]["total_tokens"].is_u64());
            assert!(response.len() - at <= 1000 && response.len() - at > 960);
        }
    }

    #[test]
    fn events_are_chunks_of_json_with_their_stamp() {
        for door in [Door::Chat, Door::Text] {
            let (events, mut wire) = (Events::new(door), Vec::new());
            events.first(&mut wire);
            events.content(&mut wire, 123_456_789_012, 42);
            events.end(&mut wire, true);
            let (mut body, mut seen) = (Vec::new(), Vec::new());
            let mut decoder = Dechunker::default();
            decoder
                .feed(&wire, |part| body.extend_from_slice(part))
                .unwrap();
            assert!(decoder.done());
            EventSplitter::default()
                .feed(&body, |event| seen.push(event.to_vec()))
                .unwrap();
            assert_eq!(seen.len(), 5);
            assert_eq!(seen[4], b"data: [DONE]");
            for event in &seen[..4] {
                serde_json::from_slice::<serde_json::Value>(&event[6..]).unwrap();
            }
            assert_eq!(read_stamp(&seen[1]), Some((123_456_789_012, 42)));
            assert_eq!(read_stamp(&seen[0]), None);
        }
    }
}
