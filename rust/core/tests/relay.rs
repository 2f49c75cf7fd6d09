//! The relay against a real SGLang's recorded streams, in every chunking.
#![allow(
    missing_docs,
    clippy::unwrap_used,
    clippy::expect_used,
    clippy::panic,
    clippy::indexing_slicing
)]

use std::path::PathBuf;

use bytes::{Bytes, BytesMut};
use forebay_core::error::{Error, Kind};
use forebay_core::relay::{DONE, Shape, StreamRelay};
use forebay_core::scrub::Asked;
use forebay_core::usage::Usage;

/// A recorded exchange: the request's body and the answer's, with the transfer coding undone.
struct Trace {
    request: Vec<u8>,
    answer: Vec<u8>,
    completions: bool,
}

fn trace(name: &str) -> Trace {
    let folder = PathBuf::from(env!("CARGO_MANIFEST_DIR")).join("../../tests/data/sglang-0.5.23");
    let read = |end: &str| std::fs::read(folder.join(format!("{name}.{end}"))).unwrap();
    let (request, answer) = (read("req"), read("resp"));
    let split = |bytes: &[u8]| {
        let at = bytes.windows(4).position(|w| w == b"\r\n\r\n").unwrap();
        (
            String::from_utf8(bytes[..at].to_vec()).unwrap(),
            bytes[at + 4..].to_vec(),
        )
    };
    let (head, request) = split(&request);
    let (_, coded) = split(&answer);
    Trace {
        request,
        answer: dechunked(&coded),
        completions: head.contains(" /v1/completions "),
    }
}

fn dechunked(mut coded: &[u8]) -> Vec<u8> {
    let mut out = Vec::new();
    while let Some(at) = coded.windows(2).position(|w| w == b"\r\n") {
        let size = usize::from_str_radix(std::str::from_utf8(&coded[..at]).unwrap(), 16).unwrap();
        if size == 0 {
            break;
        }
        out.extend_from_slice(&coded[at + 2..at + 2 + size]);
        coded = &coded[at + 4 + size..];
    }
    out
}

fn shape(trace: &Trace) -> Shape {
    let body: serde_json::Value = serde_json::from_slice(&trace.request).unwrap();
    let asked = |flag: &str| body["stream_options"][flag].as_bool().unwrap_or(false);
    let prompts = body["prompt"].as_array().map_or(1, Vec::len);
    Shape {
        include_usage: asked("include_usage"),
        continuous_usage: asked("continuous_usage_stats"),
        completions: trace.completions,
        choices: body["n"].as_u64().unwrap_or(1) as u32 * prompts as u32,
        max_event_bytes: 1 << 20,
        asked: Asked::default(),
    }
}

/// Feeds `answer` in pieces of `sizes`, repeated.
fn relay(
    shape: Shape,
    answer: &[u8],
    sizes: &[usize],
) -> (StreamRelay, Vec<u8>, Result<(), Error>) {
    let mut relay = StreamRelay::new(shape);
    let mut out = BytesMut::new();
    let mut rest = answer;
    let mut sizes = sizes.iter().cycle();
    while !rest.is_empty() {
        let (piece, tail) = rest.split_at(sizes.next().copied().unwrap().min(rest.len()));
        rest = tail;
        if let Err(error) = relay.feed(Bytes::copy_from_slice(piece), &mut out) {
            return (relay, out.to_vec(), Err(error));
        }
    }
    let end = relay.end(&mut out);
    (relay, out.to_vec(), end)
}

const CHUNKINGS: [&[usize]; 5] = [&[1], &[7, 1, 300, 2], &[64], &[253, 4096], &[usize::MAX]];

fn every_chunking(
    shape: Shape,
    answer: &[u8],
    check: impl Fn(&StreamRelay, &[u8], Result<(), Error>),
) {
    for sizes in CHUNKINGS {
        let (relay, out, result) = relay(shape, answer, sizes);
        check(&relay, &out, result);
    }
}

#[test]
fn whole_streams_pass_byte_for_byte() {
    for name in [
        "020-chat-stream",
        "021-chat-stream-usage",
        "022-chat-stream-continuous-usage",
        "023-chat-stream-n2-usage",
        "024-chat-stream-unicode",
        "025-chat-stream-logprobs",
        "026-chat-stream-length-one",
        "027-chat-stream-keepalive-conn",
        "031-completions-stream",
        "032-completions-stream-usage",
        "033-completions-two-prompts-stream-usage",
        "221-tool-call-stream-usage",
        "222-two-tool-calls-stream",
        "224-tool-choice-required-stream",
        "226-reasoning-stream-usage",
        "227-reasoning-not-separated-stream",
        "229-cache-report-stream-usage",
    ] {
        let trace = trace(name);
        every_chunking(shape(&trace), &trace.answer, |relay, out, result| {
            assert!(result.is_ok(), "{name}: {result:?}");
            assert!(relay.is_done());
            assert_eq!(
                String::from_utf8_lossy(out),
                String::from_utf8_lossy(&trace.answer),
                "{name}"
            );
        });
    }
}

#[test]
fn an_engine_that_gave_up_has_not_finished() {
    let trace = trace("135-abort-by-rid-stream");
    every_chunking(shape(&trace), &trace.answer, |relay, out, result| {
        assert!(result.is_err() && relay.is_started() && !relay.is_done());
        let text = String::from_utf8_lossy(out);
        for end in ["\"finish_reason\":\"abort\"", "[DONE]"] {
            assert!(!text.contains(end), "{text}");
        }
    });
}

#[test]
fn usage_is_read_and_taken_out_when_not_asked_for() {
    let trace = trace("021-chat-stream-usage");
    let quiet = Shape {
        include_usage: false,
        ..shape(&trace)
    };
    every_chunking(quiet, &trace.answer, |relay, out, result| {
        assert!(result.is_ok());
        assert_eq!(
            relay.usage(),
            Some((
                Usage {
                    prompt: 22,
                    completion: 10,
                    ..Usage::default()
                },
                true
            ))
        );
        let out = String::from_utf8_lossy(out).into_owned();
        assert!(!out.contains("\"usage\""));
        let expected: String = String::from_utf8_lossy(&trace.answer)
            .split_inclusive("\n\n")
            .filter(|frame| !frame.contains("\"usage\""))
            .collect();
        assert_eq!(out, expected);
    });
}

#[test]
fn usage_that_came_with_the_finish_reason_gets_the_event_that_was_asked_for() {
    let trace = trace("020-chat-stream");
    let asked = Shape {
        include_usage: true,
        ..shape(&trace)
    };
    let usage = r#""usage":{"prompt_tokens":3,"total_tokens":5,"completion_tokens":2}"#;
    let delta =
        r#"data: {"id":"x","choices":[{"index":0,"delta":{"content":"a"},"finish_reason":null}]}"#;
    let finish = r#"{"index":0,"delta":{},"finish_reason":"stop"}"#;
    for end in ["data: [DONE]\n\n", ""] {
        let answer =
            format!("{delta}\n\ndata: {{\"id\":\"x\",\"choices\":[{finish}],{usage}}}\n\n{end}");
        every_chunking(asked, answer.as_bytes(), |relay, out, result| {
            assert!(result.is_ok());
            assert!(relay.usage().is_some_and(|(_, last)| last));
            let out = String::from_utf8_lossy(out).into_owned();
            let events: Vec<&str> = out.split_terminator("\n\n").collect();
            assert_eq!(events.len(), 4, "{out}");
            assert!(!events[1].contains("usage"));
            let told: serde_json::Value =
                serde_json::from_str(events[2].strip_prefix("data: ").unwrap()).unwrap();
            assert_eq!(told["choices"], serde_json::json!([]));
            assert_eq!(told["usage"]["completion_tokens"], 2);
            assert_eq!(events[3], "data: [DONE]");
        });
        let quiet = Shape {
            include_usage: false,
            ..asked
        };
        every_chunking(quiet, answer.as_bytes(), |_, out, _| {
            assert!(!String::from_utf8_lossy(out).contains("usage"));
        });
    }
}

#[test]
fn running_usage_is_cut_out_of_each_event() {
    let running = trace("022-chat-stream-continuous-usage");
    let quiet = Shape {
        include_usage: false,
        continuous_usage: false,
        ..shape(&running)
    };
    every_chunking(quiet, &running.answer, |relay, out, result| {
        assert!(result.is_ok());
        assert_eq!(relay.usage().map(|(usage, _)| usage.completion), Some(4));
        let out = String::from_utf8_lossy(out).into_owned();
        assert!(!out.contains("usage"));
        for frame in out.split_inclusive("\n\n") {
            assert!(frame.ends_with("\n\n"), "{frame:?}");
            let data = frame.trim_end().strip_prefix("data: ").unwrap();
            assert!(
                data == "[DONE]" || serde_json::from_str::<serde_json::Value>(data).is_ok(),
                "{data}"
            );
        }
    });
    // What is left is what the engine sends to those who do not ask.
    let cut = br#"data: {"choices":[{"delta":{"content":"x"},"finish_reason":null}],"usage":{"prompt_tokens":1,"completion_tokens":1}}"#;
    let mut stream = cut.to_vec();
    stream.extend_from_slice(b"\n\n");
    let (_, out, _) = relay(quiet, &stream, &[usize::MAX]);
    let whole = &br#"data: {"choices":[{"delta":{"content":"x"},"finish_reason":null}]}"#[..];
    assert!(out.starts_with(whole), "{}", String::from_utf8_lossy(&out));
    let text = Shape {
        completions: true,
        ..quiet
    };
    let (_, out, _) = relay(text, &stream, &[usize::MAX]);
    let null =
        &br#"data: {"choices":[{"delta":{"content":"x"},"finish_reason":null}],"usage":null}"#[..];
    assert!(out.starts_with(null), "{}", String::from_utf8_lossy(&out));
}

#[test]
fn failures_inside_a_200_are_errors() {
    for (name, kind) in [
        ("304-queue-full-stream", Kind::Unavailable),
        ("302-queued", Kind::Unavailable),
    ] {
        let trace = trace(name);
        every_chunking(shape(&trace), &trace.answer, |relay, out, result| {
            assert_eq!(result.unwrap_err().kind, kind, "{name}");
            assert!(!relay.is_started() && out.is_empty(), "{name}");
        });
    }
    let trace = trace("910-running-timeout-stream");
    every_chunking(shape(&trace), &trace.answer, |relay, out, result| {
        let error = result.unwrap_err();
        assert_eq!(error.message, "Request running timeout reached.");
        assert!(relay.is_started() && !out.ends_with(DONE));
    });
}

#[test]
fn a_stream_that_is_cut_never_ends_as_if_it_were_whole() {
    let trace = trace("021-chat-stream-usage");
    let shape = shape(&trace);
    let finish = String::from_utf8_lossy(&trace.answer)
        .find("\"finish_reason\":\"stop\"")
        .unwrap();
    let finish_end = finish
        + trace.answer[finish..]
            .windows(2)
            .position(|w| w == b"\n\n")
            .unwrap()
        + 2;
    for cut in 0..trace.answer.len() {
        let (_, out, result) = relay(shape, &trace.answer[..cut], &[usize::MAX]);
        let frames = String::from_utf8(out.clone()).expect("whole frames are whole characters");
        assert!(
            frames.is_empty() || frames.ends_with("\n\n"),
            "cut at {cut}"
        );
        if cut < finish_end - 2 {
            assert!(result.is_err(), "cut at {cut}");
            assert!(!out.ends_with(DONE), "cut at {cut}");
        } else {
            assert!(result.is_ok(), "cut at {cut}: {result:?}");
            assert!(out.ends_with(DONE), "cut at {cut}");
        }
    }
}

#[test]
fn what_is_no_stream_is_refused() {
    let trace = trace("020-chat-stream");
    let shape = shape(&trace);
    for bad in [
        &b"data: hello\n\n"[..],
        b"data: {\"a\":1\n\n",
        b"data: [1]\n\n",
        b"<html>oops</html>\n\n",
        b"",
        b"data: [DONE]\n\n",
        b"data: {\"usage\": oops}\n\n",
        b"{\"object\":\"chat.completion\"}",
    ] {
        let (relay, out, result) = relay(shape, bad, &[usize::MAX]);
        assert_eq!(result.unwrap_err().kind, Kind::UpstreamError);
        assert!(!relay.is_started(), "{}", String::from_utf8_lossy(&out));
    }
    let small = Shape {
        max_event_bytes: 100,
        ..shape
    };
    let (_, _, result) = self::relay(small, &[b'x'; 1000], &[10]);
    assert!(result.unwrap_err().message.contains("too large"));
}

#[test]
fn comments_pass_and_null_text_is_mended() {
    let trace = trace("031-completions-stream");
    let shape = shape(&trace);
    let stream = b": ping\n\ndata: {\"choices\":[{\"text\":null,\"finish_reason\":null}]}\n\ndata: {\"choices\":[{\"text\":\"a\",\"finish_reason\":\"stop\"}]}\n\n";
    let (_, out, result) = relay(shape, stream, &[5]);
    assert!(result.is_ok());
    let out = String::from_utf8(out).unwrap();
    assert!(
        out.starts_with(": ping\n\ndata: {\"choices\":[{\"text\":\"\","),
        "{out}"
    );
    assert!(out.ends_with("data: [DONE]\n\n"));
}

#[test]
fn an_end_with_text_counts_as_text() {
    let trace = trace("031-completions-stream");
    for (last, counted) in [("\"b\"", 2), ("\"\"", 1), ("null", 1)] {
        let stream = format!(
            "data: {{\"choices\":[{{\"text\":\"a\"}}]}}\n\ndata: {{\"choices\":[{{\"text\":{last},\"finish_reason\":\"length\"}}]}}\n\ndata: [DONE]\n\n"
        );
        let (relay, _, result) = relay(shape(&trace), stream.as_bytes(), &[7]);
        assert!(result.is_ok());
        assert_eq!(relay.content_events(), counted, "{last}");
    }
}
