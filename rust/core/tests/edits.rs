//! Edits of a body, against a JSON parser: what was wanted is in, all else as it was.
#![allow(
    missing_docs,
    clippy::unwrap_used,
    clippy::panic,
    clippy::indexing_slicing
)]

use bytes::Bytes;
use forebay_core::edits::{Edits, Wanted};
use forebay_core::peek::peek;
use serde_json::{Value, json};

const BODIES: [&str; 9] = [
    "{}",
    r#"{"model":"a"}"#,
    r#"{ "model" : "a" , "stream" : true }"#,
    r#"{"model":"x","model":"a","stream":true,"stream_options":null}"#,
    r#"{"stream_options":{},"stream":true,"model":"a"}"#,
    r#"{"stream_options":{"include_usage":false},"stream":true,"model":"a","rid":"mine"}"#,
    r#"{"stream_options":{"include_usage":false,"continuous_usage_stats":true, "x": 1},"model":"a"}"#,
    r#"{"rid":["a","b"],"model":"a","user":"\u00e9 }{\"rid\":1"}"#,
    r#"{"mod\u0065l":"a","messages":[{"role":"user","content":"\"rid\":\"no\""}]}"#,
];

fn applied(body: &str, wanted: &Wanted<'_>) -> Value {
    let bytes = Bytes::copy_from_slice(body.as_bytes());
    let edits = Edits::of(&peek(&bytes).unwrap());
    let whole: Vec<u8> = edits.apply(&bytes, wanted).concat();
    serde_json::from_slice(&whole)
        .unwrap_or_else(|e| panic!("{body} became {}: {e}", String::from_utf8_lossy(&whole)))
}

#[test]
fn every_combination_gives_what_was_wanted_and_nothing_else() {
    for body in BODIES {
        let before: Value = serde_json::from_str(body).unwrap();
        for bits in 0..32_u8 {
            let bit = |n: u8| bits & (1 << n) != 0;
            let wanted = Wanted {
                model: bit(0).then_some("ser\"ved"),
                rid: bit(1).then_some("ours"),
                hides_rid: bit(2),
                usage: [bit(3), bit(4)],
            };
            let after = applied(body, &wanted);
            let mut expected = before.clone();
            if bit(0) {
                expected["model"] = json!("ser\"ved");
            }
            if bit(1) {
                expected["rid"] = json!("ours");
            } else if bit(2) && before.get("rid").is_some() {
                expected["rid"] = Value::Null;
            }
            for (flag, on) in [
                ("include_usage", bit(3)),
                ("continuous_usage_stats", bit(4)),
            ] {
                if on {
                    if !expected["stream_options"].is_object() {
                        expected["stream_options"] = json!({});
                    }
                    expected["stream_options"][flag] = json!(true);
                }
            }
            // Indexing a missing member for reading made no change; a null that stood there may stay.
            if before.get("stream_options").is_none() && !bit(3) && !bit(4) {
                expected.as_object_mut().unwrap().remove("stream_options");
            }
            assert_eq!(after, expected, "{body} with {wanted:?}");
        }
    }
}

#[test]
fn a_body_that_needs_nothing_passes_as_it_came() {
    let nothing = Wanted {
        model: None,
        rid: None,
        hides_rid: true,
        usage: [false, false],
    };
    for body in ["{}", r#"{ "model":"a", "n" : 1.0e0 }"#] {
        let bytes = Bytes::from_static(body.as_bytes());
        let parts = Edits::of(&peek(b"{}").unwrap()).apply(&bytes, &nothing);
        assert_eq!(parts.concat(), body.as_bytes());
    }
}
