//! The decoder and encoder of `application/vnd.amazon.eventstream`.
#![expect(
    clippy::expect_used,
    clippy::indexing_slicing,
    reason = "a test fails by panicking"
)]
#[path = "../fuzz/invariants/eventstream.rs"]
mod invariants;

use std::fs;

use bytes::{Bytes, BytesMut};
use forebay_core::dialect::eventstream::{Decoder, MAX_HEADERS, Malformed, Value, encode};
use invariants::{LIMIT, check, decode};
use proptest::collection::vec;
use proptest::prelude::*;

/// Headers that own what they hold.
type Header = (String, Owned);

#[derive(Debug, Clone)]
enum Owned {
    Fixed(Value<'static>),
    Bytes(Vec<u8>),
    Text(String),
}

impl Owned {
    fn value(&self) -> Value<'_> {
        match self {
            Self::Fixed(value) => *value,
            Self::Bytes(bytes) => Value::Bytes(bytes),
            Self::Text(text) => Value::Text(text),
        }
    }
}

fn header() -> impl Strategy<Value = Header> {
    let value = prop_oneof![
        any::<bool>().prop_map(|value| Owned::Fixed(Value::Bool(value))),
        any::<i8>().prop_map(|value| Owned::Fixed(Value::Byte(value))),
        any::<i16>().prop_map(|value| Owned::Fixed(Value::Short(value))),
        any::<i32>().prop_map(|value| Owned::Fixed(Value::Integer(value))),
        any::<i64>().prop_map(|value| Owned::Fixed(Value::Long(value))),
        any::<i64>().prop_map(|value| Owned::Fixed(Value::Timestamp(value))),
        any::<[u8; 16]>().prop_map(|value| Owned::Fixed(Value::Uuid(value))),
        vec(any::<u8>(), 0..40).prop_map(Owned::Bytes),
        ".{0,20}".prop_map(Owned::Text),
    ];
    ("[:a-zé-]{1,20}", value)
}

fn write(messages: &[(Vec<Header>, Vec<u8>)]) -> BytesMut {
    let mut out = BytesMut::new();
    for (headers, payload) in messages {
        let headers: Vec<_> = headers
            .iter()
            .map(|(name, value)| (name.as_str(), value.value()))
            .collect();
        encode(&headers, payload, &mut out).expect("within every bound");
    }
    out
}

fn messages() -> impl Strategy<Value = Vec<(Vec<Header>, Vec<u8>)>> {
    vec((vec(header(), 0..4), vec(any::<u8>(), 0..60)), 1..6)
}

proptest! {
    #[test]
    fn what_is_written_is_read_in_any_chunking(
        messages in messages(),
        cuts in vec(1_usize..40, 1..6),
    ) {
        let stream = write(&messages);
        check(&stream, &cuts);
        let (read, end) = decode(&stream, &cuts);
        prop_assert_eq!(end, Ok(()));
        prop_assert_eq!(read.len(), messages.len());
        for (read, (headers, payload)) in read.iter().zip(&messages) {
            let expected: Vec<_> = headers.iter().map(|(n, v)| (n.as_str(), v.value())).collect();
            prop_assert_eq!(read.headers().collect::<Vec<_>>(), expected);
            prop_assert_eq!(&read.payload, payload);
        }
    }

    #[test]
    fn one_changed_byte_is_an_error(
        messages in messages(),
        at in any::<prop::sample::Index>(),
        change in 1_u8..,
        cuts in vec(1_usize..40, 1..6),
    ) {
        let mut stream = write(&messages);
        let at = at.index(stream.len());
        stream[at] ^= change;
        check(&stream, &cuts);
        let (read, end) = decode(&stream, &cuts);
        prop_assert!(end.is_err());
        prop_assert!(read.len() < messages.len());
    }

    #[test]
    fn a_stream_that_is_cut_off_says_so(messages in messages(), at in any::<prop::sample::Index>()) {
        let stream = write(&messages);
        let at = at.index(stream.len());
        let (read, end) = decode(&stream[..at], &[7]);
        let whole = write(&messages[..read.len()]).len() == at;
        prop_assert_eq!(end, if whole { Ok(()) } else { Err(Malformed::Truncated) });
    }

    #[test]
    fn any_bytes_are_read_or_refused(stream in vec(any::<u8>(), 0..80), cuts in vec(1_usize..9, 1..4)) {
        check(&stream, &cuts);
    }
}

fn seed(name: &str) -> Vec<u8> {
    let folder = concat!(env!("CARGO_MANIFEST_DIR"), "/fuzz/seeds/eventstream/");
    fs::read(folder.to_owned() + name).expect("the seed is committed")
}

/// The seeds were written by another implementation, and those that are well formed read by
/// botocore's.
#[test]
fn seeds_hold_in_every_cut() {
    let folder = concat!(env!("CARGO_MANIFEST_DIR"), "/fuzz/seeds/eventstream");
    let mut seen = 0;
    for entry in fs::read_dir(folder).expect("the seeds are committed") {
        let stream = fs::read(entry.expect("readable").path()).expect("readable");
        for first in 1..=stream.len().min(200) {
            check(&stream, &[first, 0]);
        }
        seen += 1;
    }
    assert!(seen >= 18);
}

#[test]
fn every_header_type_is_read() {
    let (messages, end) = decode(&seed("all-types"), &[]);
    assert_eq!(end, Ok(()));
    let uuid = std::array::from_fn(|index| index as u8);
    assert_eq!(
        messages[0].headers().collect::<Vec<_>>(),
        [
            ("t", Value::Bool(true)),
            ("f", Value::Bool(false)),
            ("byte", Value::Byte(-1)),
            ("short", Value::Short(-2)),
            ("int", Value::Integer(-3)),
            ("long", Value::Long(-4)),
            ("bytes", Value::Bytes(b"\x00\xff")),
            ("text", Value::Text("é")),
            ("time", Value::Timestamp(8_675_309)),
            ("uuid", Value::Uuid(uuid)),
        ]
    );
    assert_eq!(&messages[0].payload[..], b"payload");
    assert_eq!(messages[0].text("text"), Some("é"));
    assert_eq!(messages[0].text("bytes"), None);
    assert_eq!(messages[0].text("nothing"), None);
}

#[test]
fn a_converse_stream_is_read() {
    let (messages, end) = decode(&seed("converse"), &[1]);
    assert_eq!(end, Ok(()));
    let types: Vec<_> = messages
        .iter()
        .map(|message| message.text(":event-type"))
        .collect();
    assert_eq!(
        types,
        [
            Some("messageStart"),
            Some("contentBlockDelta"),
            Some("contentBlockStop"),
            Some("messageStop"),
            Some("metadata")
        ]
    );
}

#[test]
fn what_is_wrong_is_named() {
    for (name, error) in [
        ("bad-prelude", Malformed::PreludeChecksum),
        ("bad-message", Malformed::MessageChecksum),
        ("bad-type", Malformed::Header),
        ("bad-name-empty", Malformed::Header),
        ("bad-name-long", Malformed::Header),
        ("bad-text", Malformed::Header),
        ("bad-size", Malformed::Header),
        ("cut", Malformed::Truncated),
        ("too-long", Malformed::TooLarge { limit: LIMIT }),
        (
            "headers-too-long",
            Malformed::TooLarge { limit: MAX_HEADERS },
        ),
        (
            "too-short",
            Malformed::Lengths {
                total: 15,
                headers: 0,
            },
        ),
        (
            "headers-over-total",
            Malformed::Lengths {
                total: 20,
                headers: 10,
            },
        ),
    ] {
        assert_eq!(decode(&seed(name), &[]).1, Err(error), "{name}");
    }
}

#[test]
fn a_length_over_the_bound_is_refused_before_its_bytes_are_held() {
    let mut frame = BytesMut::new();
    encode(&[], &[0; 100], &mut frame).expect("within every bound");
    for (limit, fits) in [(116, true), (115, false)] {
        let mut decoder = Decoder::new(limit);
        decoder.feed(Bytes::copy_from_slice(&frame[..12]));
        assert_eq!(decoder.next().is_ok(), fits);
        decoder.feed(Bytes::copy_from_slice(&frame[12..]));
        assert_eq!(decoder.next().is_ok_and(|message| message.is_some()), fits);
        assert_eq!(decoder.buffered(), 0);
    }
}

#[test]
fn chunks_need_not_be_drained_one_by_one() {
    let stream = seed("converse");
    let mut decoder = Decoder::new(LIMIT);
    for chunk in stream.chunks(50) {
        decoder.feed(Bytes::copy_from_slice(chunk));
    }
    for _ in 0..5 {
        assert!(decoder.next().is_ok_and(|message| message.is_some()));
    }
    assert_eq!(decoder.next(), Ok(None));
    assert_eq!(decoder.finish(), Ok(()));
}

#[test]
fn what_does_not_fit_a_frame_is_not_written() {
    let long = "x".repeat(70_000);
    let mut out = BytesMut::from("before");
    for (name, value) in [
        ("", Value::Bool(true)),
        (&long[..256], Value::Bool(true)),
        ("a", Value::Text(&long)),
        ("a", Value::Bytes(long.as_bytes())),
    ] {
        assert_eq!(
            encode(&[(name, value)], b"", &mut out),
            Err(Malformed::Header)
        );
    }
    let half = ("a", Value::Text(&long[..60_000]));
    assert_eq!(
        encode(&[half; 3], b"", &mut out),
        Err(Malformed::TooLarge { limit: MAX_HEADERS })
    );
    assert_eq!(&out[..], b"before");
}
