//! Streams carried on by another engine: a deterministic model, cut anywhere, read as one stream.
#![expect(
    clippy::unwrap_used,
    clippy::indexing_slicing,
    reason = "a test fails by panicking"
)]

use bytes::{Bytes, BytesMut};
use forebay_core::relay::{Shape, StreamRelay};
use forebay_core::resume::{Attempt, Next, Resume, Splice, Why};
use forebay_core::scrub::Asked;
use proptest::prelude::*;
use serde_json::{Value, json};

#[derive(Clone, Copy, Debug, PartialEq, Eq)]
enum Framing {
    Sglang,
    Vllm,
    Completions,
}

/// What a model says, token by token; its end token counts as one.
#[derive(Clone, Debug)]
struct Model {
    tokens: Vec<String>,
    framing: Framing,
    /// Without counts on each event, and each with one token, the count is the events'.
    counts: bool,
}

const PROMPT: u64 = 22;

impl Model {
    /// The whole answer to a body, as it stands on the wire. `nth`: which engine answers.
    fn answer(&self, body: &Value, nth: usize) -> Vec<u8> {
        let whole: String = self.tokens.concat();
        let completions = self.framing == Framing::Completions;
        let prefix = if completions {
            body["prompt"]
                .as_str()
                .unwrap()
                .strip_prefix("Say:")
                .unwrap()
        } else if body["continue_final_message"] == json!(true) {
            assert_eq!(body["add_generation_prompt"], json!(false));
            let last = body["messages"].as_array().unwrap().last().unwrap();
            assert_eq!(last["role"], "assistant");
            last["content"].as_str().unwrap()
        } else {
            assert_eq!(body["messages"].as_array().unwrap().len(), 1);
            ""
        };
        assert!(whole.starts_with(prefix), "{prefix:?} is not of {whole:?}");
        let mut pieces = Vec::new();
        let mut at = 0;
        for token in &self.tokens {
            let start = prefix.len().saturating_sub(at).min(token.len());
            at += token.len();
            if start < token.len() {
                pieces.push(&token[start..]);
            }
        }
        let cap = body["max_tokens"].as_u64().unwrap_or(u64::MAX) as usize;
        assert!(cap > 0);
        let stop = body["stop"].as_str();
        // The prompt of a continuation is longer; nobody is billed for that.
        let wire = Wire {
            framing: self.framing,
            counts: self.counts,
            nth,
            prompt: PROMPT + (self.tokens.len() - pieces.len()) as u64,
        };
        let mut out = wire.role();
        let (mut said, mut sent) = (String::new(), 0);
        let mut finish = ("stop", pieces.len() + 1);
        for (i, piece) in pieces.iter().enumerate() {
            if i == cap {
                finish = ("length", cap);
                break;
            }
            said.push_str(piece);
            if let Some(at) = stop.and_then(|stop| said.find(stop)) {
                if at > sent {
                    out.extend(wire.text(&said[sent..at], i + 1));
                }
                finish = ("stop", i + 1);
                break;
            }
            out.extend(wire.text(piece, i + 1));
            sent = said.len();
        }
        if cap == pieces.len() && finish.1 > cap {
            finish = ("length", cap);
        }
        out.extend(wire.finish(finish.0, finish.1));
        out
    }
}

/// One engine's framing.
struct Wire {
    framing: Framing,
    counts: bool,
    nth: usize,
    prompt: u64,
}

impl Wire {
    fn usage(&self, tokens: usize) -> Value {
        json!({
            "prompt_tokens": self.prompt, "total_tokens": self.prompt + tokens as u64,
            "completion_tokens": tokens, "prompt_tokens_details": null, "reasoning_tokens": 0,
            "completion_tokens_details": null,
        })
    }

    fn event(&self, choices: &Value, usage: Option<Value>) -> Vec<u8> {
        let object = match self.framing {
            Framing::Completions => "text_completion",
            _ => "chat.completion.chunk",
        };
        let mut event = json!({
            "id": format!("engine-{}", self.nth), "object": object, "created": 1000 + self.nth,
            "model": format!("model-{}", self.nth), "choices": choices,
        });
        match usage {
            Some(usage) => event["usage"] = usage,
            None if self.framing == Framing::Completions => event["usage"] = Value::Null,
            None => {}
        }
        format!("data: {event}\n\n").into_bytes()
    }

    fn role(&self) -> Vec<u8> {
        match self.framing {
            Framing::Sglang => self.event(
                &json!([{"index": 0, "delta": {"reasoning_content": null, "role": "assistant",
                    "content": ""}, "logprobs": null, "finish_reason": null, "matched_stop": null}]),
                None,
            ),
            Framing::Vllm => self.event(
                &json!([{"index": 0, "delta": {"role": "assistant", "content": ""},
                    "logprobs": null, "finish_reason": null}]),
                self.counts.then(|| self.usage(0)),
            ),
            Framing::Completions => Vec::new(),
        }
    }

    fn text(&self, text: &str, tokens: usize) -> Vec<u8> {
        let usage = self.counts.then(|| self.usage(tokens));
        let choice = match self.framing {
            Framing::Completions => json!({"index": 0, "text": text, "logprobs": null,
                "finish_reason": null, "matched_stop": null}),
            _ => json!({"index": 0, "delta": {"content": text}, "logprobs": null,
                "finish_reason": null}),
        };
        self.event(&json!([choice]), usage)
    }

    fn finish(&self, reason: &str, tokens: usize) -> Vec<u8> {
        let choice = match self.framing {
            Framing::Completions => json!({"index": 0, "text": "", "finish_reason": reason}),
            Framing::Sglang => json!({"index": 0, "delta": {"reasoning_content": null},
                "finish_reason": reason, "matched_stop": null}),
            Framing::Vllm => json!({"index": 0, "delta": {"content": ""},
                "finish_reason": reason, "stop_reason": null}),
        };
        let mut out = self.event(&json!([choice]), None);
        out.extend(self.event(&json!([]), Some(self.usage(tokens))));
        out.extend_from_slice(b"data: [DONE]\n\n");
        out
    }
}

fn shape(completions: bool) -> Shape {
    Shape {
        include_usage: true,
        continuous_usage: false,
        completions,
        choices: 1,
        max_event_bytes: 1 << 16,
        asked: Asked::default(),
    }
}

fn body(framing: Framing) -> Value {
    let mut body = json!({"model": "m", "stream": true, "temperature": 0});
    match framing {
        Framing::Completions => body["prompt"] = json!("Say:"),
        _ => body["messages"] = json!([{"role": "user", "content": "Say"}]),
    }
    body
}

/// What a client read.
#[derive(Debug, PartialEq, Eq)]
struct Read {
    text: String,
    finish: String,
    usage: Value,
    heads: Vec<String>,
    roles: usize,
}

fn read(stream: &[u8]) -> Read {
    let stream = std::str::from_utf8(stream).unwrap();
    let mut read = Read {
        text: String::new(),
        finish: String::new(),
        usage: Value::Null,
        heads: Vec::new(),
        roles: 0,
    };
    let events: Vec<&str> = stream.split_terminator("\n\n").collect();
    assert_eq!(events.last(), Some(&"data: [DONE]"), "{stream}");
    for event in &events[..events.len() - 1] {
        let event: Value = serde_json::from_str(event.strip_prefix("data: ").unwrap()).unwrap();
        let head = format!("{} {} {}", event["id"], event["created"], event["model"]);
        if !read.heads.contains(&head) {
            read.heads.push(head);
        }
        if event["choices"].as_array().unwrap().is_empty() {
            assert_eq!(read.usage, Value::Null, "usage comes once");
            let usage = &event["usage"];
            let count = |name: &str| usage[name].as_u64().unwrap();
            assert_eq!(
                count("total_tokens"),
                count("prompt_tokens") + count("completion_tokens")
            );
            read.usage = json!([usage["prompt_tokens"], usage["completion_tokens"]]);
            continue;
        }
        let choice = &event["choices"][0];
        assert_eq!(read.finish, "", "nothing follows the end");
        read.roles += usize::from(choice["delta"]["role"].is_string());
        read.text += choice["delta"]["content"].as_str().unwrap_or_default();
        read.text += choice["text"].as_str().unwrap_or_default();
        read.finish += choice["finish_reason"].as_str().unwrap_or_default();
    }
    read
}

/// How a run went.
struct Run {
    out: Vec<u8>,
    relay: StreamRelay,
    /// The stream broke off behind its finish event, before its usage.
    ended: bool,
    attempts: usize,
}

/// Plays a request whose engines die where `cuts` say, in bytes of what each would have sent.
fn run(model: &Model, body: &Value, cuts: &[usize], piece: usize) -> Result<Run, Why> {
    let completions = model.framing == Framing::Completions;
    let resume = Resume::new(completions);
    let original = Bytes::from(body.to_string());
    let mut relay = StreamRelay::new(shape(completions)).followed();
    let mut out = BytesMut::new();
    let (mut asked, mut splice, mut ended): (_, Option<Splice>, _) =
        (original.clone(), None, false);
    for nth in 0.. {
        let answer = model.answer(&serde_json::from_slice(&asked).unwrap(), nth);
        let cut = cuts
            .get(nth)
            .map_or(answer.len(), |cut| cut % (answer.len() + 1));
        for chunk in answer[..cut].chunks(piece) {
            let chunk = Bytes::copy_from_slice(chunk);
            match &mut splice {
                None => relay.feed(chunk, &mut out).unwrap(),
                Some(splice) => {
                    let mut spliced = BytesMut::new();
                    splice.feed(chunk, &mut spliced).unwrap();
                    relay.feed(spliced.freeze(), &mut out).unwrap();
                }
            }
        }
        let attempts = nth + 1;
        if relay.is_done() {
            return Ok(Run {
                out: out.to_vec(),
                relay,
                ended,
                attempts,
            });
        }
        if !relay.is_started() {
            // Nothing has reached the client: an attempt like the first.
            relay = StreamRelay::new(shape(completions)).followed();
            out.clear();
            continue;
        }
        let delivered = relay.delivered().unwrap();
        let next = resume.next(delivered, &original, 1 << 16)?;
        relay.rejoin();
        match next {
            Next::End(events) => {
                ended = true;
                relay.feed(events, &mut out).unwrap();
                assert!(relay.is_done());
                return Ok(Run {
                    out: out.to_vec(),
                    relay,
                    ended,
                    attempts,
                });
            }
            Next::Attempt(attempt) => {
                let Attempt { body, splice: next } = *attempt;
                asked = body.unwrap_or_else(|| original.clone());
                splice = Some(next);
            }
        }
    }
    unreachable!()
}

fn token() -> impl Strategy<Value = String> {
    prop_oneof![
        4 => "[ab]{1,3}",
        4 => " [ab]{1,3}",
        1 => Just(" ".to_owned()),
        1 => Just("\n".to_owned()),
        1 => Just("\n\n    ".to_owned()),
        1 => Just(" caf\u{e9}".to_owned()),
        1 => Just("\u{65e5}\u{672c}\"\\".to_owned()),
        1 => Just("\u{1f680}".to_owned()),
        1 => Just("E".to_owned()),
        1 => Just("N".to_owned()),
        1 => Just("D".to_owned()),
        1 => Just("END".to_owned()),
    ]
}

fn framing() -> impl Strategy<Value = Framing> {
    prop_oneof![
        Just(Framing::Sglang),
        Just(Framing::Vllm),
        Just(Framing::Completions),
    ]
}

proptest! {
    #![proptest_config(ProptestConfig::with_cases(500))]

    #[test]
    fn a_stream_that_is_cut_anywhere_reads_as_if_it_were_not(
        tokens in prop::collection::vec(token(), 1..12),
        framing in framing(),
        counts in any::<bool>(),
        cuts in prop::collection::vec(0_usize..4000, 0..4),
        piece in prop_oneof![Just(1_usize), Just(37), Just(100_000)],
        cap in prop::option::of(1_u64..14),
        stop in prop::option::of(prop_oneof![Just("END"), Just("\n\n"), Just("a b")]),
    ) {
        let model = Model { tokens, framing, counts };
        let mut body = body(framing);
        if let Some(cap) = cap {
            body["max_tokens"] = json!(cap);
        }
        if let Some(stop) = stop {
            body["stop"] = json!(stop);
        }
        let whole = run(&model, &body, &[], piece).unwrap();
        let cut = run(&model, &body, &cuts, piece).unwrap();
        let (is, was) = (read(&cut.out), read(&whole.out));
        prop_assert_eq!(&is.text, &was.text);
        prop_assert_eq!(is.roles, was.roles);
        prop_assert_eq!(is.heads.len(), 1, "{:?}", is.heads);
        if !cut.ended || counts {
            prop_assert_eq!(&is.finish, &was.finish);
        }
        if cut.ended || (!counts && is.usage.is_null()) {
            // The end token's count came after the cut, or no count ever came.
            return Ok(());
        }
        prop_assert_eq!(&is.usage, &was.usage, "{}", cut.attempts);
        let booked = cut.relay.usage().unwrap();
        prop_assert_eq!(json!([booked.0.prompt, booked.0.completion]), is.usage);
    }
}
