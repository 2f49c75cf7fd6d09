//! The event-stream decoder and encoder.
#![expect(
    clippy::expect_used,
    clippy::indexing_slicing,
    reason = "a test fails by panicking"
)]
#[path = "../fuzz/invariants/sse.rs"]
mod invariants;

use std::fs;

use bytes::{Bytes, BytesMut};
use forebay_core::sse::{Decoder, Event, Frame, TooLarge, encode};
use proptest::collection::vec;
use proptest::prelude::*;

fn frames(stream: &'static [u8]) -> Vec<Frame> {
    invariants::decode(stream, &[]).0
}

fn raws(decoder: &mut Decoder) -> Vec<Bytes> {
    std::iter::from_fn(|| decoder.next())
        .map(|frame| frame.raw)
        .collect()
}

/// Pieces that make line ends, marks and fields meet often.
fn stream() -> impl Strategy<Value = Vec<u8>> {
    let piece = prop_oneof![
        4 => Just(b"\n".to_vec()),
        3 => Just(b"\r".to_vec()),
        3 => Just(b"\r\n".to_vec()),
        1 => Just(b"\xEF\xBB\xBF".to_vec()),
        3 => Just(b"data:".to_vec()),
        1 => Just(b"data".to_vec()),
        1 => Just(b"event: e".to_vec()),
        1 => Just(b"id:1".to_vec()),
        1 => Just(b"retry: 250".to_vec()),
        1 => Just(b": c".to_vec()),
        2 => vec(prop_oneof![Just(b' '), Just(b':'), Just(0), Just(0xEF), any::<u8>()], 0..12),
        1 => vec(any::<u8>(), 60..90),
    ];
    vec(piece, 0..24).prop_map(|pieces| pieces.concat())
}

proptest! {
    #![proptest_config(ProptestConfig::with_cases(1000))]

    #[test]
    fn any_chunking_gives_the_same_events(stream in stream(), cuts in vec(1_usize..9, 1..6)) {
        invariants::check(&stream, &cuts);
    }

    #[test]
    fn the_bound_holds_in_any_chunking(
        lengths in vec(3_usize..40, 1..12),
        limit in 3_usize..40,
        cuts in vec(1_usize..50, 1..6),
    ) {
        let events: Vec<String> = lengths.iter().map(|len| "d".repeat(len - 2) + "\n\n").collect();
        let fitting = lengths.iter().take_while(|len| **len <= limit).count();
        let mut rest = Bytes::from(events.concat());
        let mut decoder = Decoder::new(limit);
        let mut taken = Vec::new();
        let mut failed = false;
        let mut cuts = cuts.iter().cycle();
        while !rest.is_empty() {
            let chunk = rest.split_to((*cuts.next().expect("cycles")).min(rest.len()));
            failed = decoder.feed(chunk).is_err();
            taken.extend(raws(&mut decoder));
            prop_assert!(decoder.buffered() <= limit);
        }
        prop_assert_eq!(failed, fitting < lengths.len());
        prop_assert_eq!(taken, events[..fitting].to_vec());
        prop_assert!(decoder.finish().is_none());
    }

    #[test]
    fn chunks_need_not_be_drained_one_by_one(stream in stream(), cuts in vec(1_usize..9, 1..6)) {
        let mut decoder = Decoder::new(stream.len());
        let mut rest = &stream[..];
        for cut in cuts {
            let (chunk, after) = rest.split_at(cut.min(rest.len()));
            decoder.feed(Bytes::copy_from_slice(chunk)).expect("within the bound");
            rest = after;
        }
        decoder.feed(Bytes::copy_from_slice(rest)).expect("within the bound");
        let frames = std::iter::from_fn(|| decoder.finish());
        let events: Vec<_> = frames.map(|frame| (frame.parse(), frame.complete)).collect();
        prop_assert_eq!(events, invariants::reference(&stream));
    }

    #[test]
    fn encoded_data_comes_back(data in "[a\\n :]{0,40}", id in "[a-z0-9]{0,8}", retry: u64) {
        let event = Event {
            event: Some(Bytes::from_static(b"delta")),
            data: Some(data.into()),
            id: Some(id.into()),
            retry: Some(retry),
        };
        let mut out = BytesMut::new();
        encode(&event, &mut out);
        let (frames, rest) = invariants::decode(&out, &[]);
        prop_assert_eq!(frames.len(), 1);
        prop_assert_eq!(frames[0].parse(), event);
        prop_assert!(rest.is_empty());
    }
}

#[test]
fn seeds_hold_in_every_cut() {
    let folder = concat!(env!("CARGO_MANIFEST_DIR"), "/fuzz/seeds/sse");
    let mut seen = 0;
    for entry in fs::read_dir(folder).expect("the seeds are committed") {
        let stream = fs::read(entry.expect("readable").path()).expect("readable");
        let step = stream.len() / 16 + 1;
        for first in (1..=stream.len()).step_by(step) {
            invariants::check(&stream, &[first, 0]);
        }
        seen += 1;
    }
    assert!(seen >= 12);
}

#[test]
fn examples_of_the_standard() {
    // Each from section 9.2.6.
    let stock = frames(b"data: YHOO\ndata: +2\ndata: 10\n\n");
    assert_eq!(stock[0].data().as_deref(), Some(&b"YHOO\n+2\n10"[..]));

    let blocks = frames(b": test stream\n\ndata: first event\nid: 1\n\ndata:second event\nid\n\ndata:  third event\n\n");
    let events: Vec<_> = blocks.iter().map(Frame::parse).collect();
    assert!(events[0].is_comment_only());
    assert_eq!(events[1].id.as_deref(), Some(&b"1"[..]));
    assert_eq!(events[2].id.as_deref(), Some(&b""[..]));
    assert_eq!(events[3].data.as_deref(), Some(&b" third event"[..]));

    let empties = frames(b"data\n\ndata\ndata\n\ndata:");
    let data: Vec<_> = empties
        .iter()
        .map(|frame| frame.data().expect("a data field"))
        .collect();
    assert_eq!(data, [&b""[..], b"\n", b""]);
    assert_eq!(
        empties
            .iter()
            .map(|frame| frame.complete)
            .collect::<Vec<_>>(),
        [true, true, false]
    );
}

#[test]
fn ids_with_nul_and_retries_with_letters_are_ignored() {
    let event =
        frames(b"id: 7\nid: a\0b\nretry: 10\nretry: 1s\nretry:\nretry: 99999999999999999999\n\n")
            [0]
        .parse();
    assert_eq!(event.id.as_deref(), Some(&b"7"[..]));
    assert_eq!(event.retry, Some(10));
    assert_eq!(event.data, None);
    assert!(!event.is_comment_only());
}

#[test]
fn a_byte_order_mark_counts_at_the_start_only() {
    let frames = frames(b"\xEF\xBB\xBFdata: a\n\n\xEF\xBB\xBFdata: b\n\n");
    assert_eq!(frames[0].data().as_deref(), Some(&b"a"[..]));
    assert!(frames[0].raw.starts_with(b"\xEF\xBB\xBF"));
    assert_eq!(frames[1].data(), None);
}

#[test]
fn an_event_ending_in_cr_is_not_held_back() {
    for (first, late) in [
        ("data: a\r\r", "\ndata: b\r\r"),
        ("data: a\r\n\r", "\ndata: b\r\n\r\n"),
    ] {
        let mut decoder = Decoder::new(64);
        decoder
            .feed(Bytes::from_static(first.as_bytes()))
            .expect("fits");
        assert_eq!(raws(&mut decoder), [first.as_bytes()]);
        decoder
            .feed(Bytes::from_static(late.as_bytes()))
            .expect("fits");
        // The late LF stands before the next event and makes none of its own.
        assert_eq!(raws(&mut decoder), [late.as_bytes()]);
        assert!(decoder.finish().is_none());
    }
}

#[test]
fn line_ends_after_the_last_event_are_the_rest() {
    let (frames, rest) = invariants::decode(b"data: a\n\n\n\r\n", &[]);
    assert_eq!(frames.len(), 1);
    assert_eq!(&rest[..], b"\n\r\n");
}

#[test]
fn a_frame_within_one_chunk_is_a_slice_of_it() {
    let chunk = Bytes::from_static(b"data: {\"a\":1}\n\nevent: e\ndata: b\n\ndata: spans");
    let inside = |part: &Bytes| chunk.as_ptr_range().contains(&part.as_ptr());
    let mut decoder = Decoder::new(1024);
    decoder.feed(chunk.clone()).expect("fits");
    for _ in 0..2 {
        let frame = decoder.next().expect("whole");
        assert!(inside(&frame.raw) && inside(&frame.data().expect("has data")));
    }
    assert!(decoder.next().is_none());
    assert_eq!(decoder.buffered(), 11);
    decoder
        .feed(Bytes::from_static(b" chunks\n\n"))
        .expect("fits");
    assert_eq!(
        decoder.next().expect("whole").data().as_deref(),
        Some(&b"spans chunks"[..])
    );
}

#[test]
fn too_large_names_the_limit_and_lasts() {
    let mut decoder = Decoder::new(16);
    let error = decoder.feed(Bytes::from_static(b"data: fits\n\ndata: does not fit\n\n"));
    assert_eq!(error, Err(TooLarge { limit: 16 }));
    assert_eq!(
        TooLarge { limit: 16 }.to_string(),
        "server-sent event exceeds 16 bytes"
    );
    assert_eq!(raws(&mut decoder), [&b"data: fits\n\n"[..]]);
    assert!(decoder.feed(Bytes::from_static(b"data: c\n\n")).is_err());
    assert!(decoder.next().is_none() && decoder.finish().is_none());
}

#[test]
fn encoding_cannot_break_the_framing() {
    let mut out = BytesMut::new();
    let event = Event {
        event: Some(Bytes::from_static(b"a\n\nb")),
        data: Some(Bytes::from_static(b"1\r\n2\r3\n")),
        id: Some(Bytes::from_static(b"x\0")),
        retry: None,
    };
    encode(&event, &mut out);
    assert_eq!(
        &out[..],
        b"event: a  b\ndata: 1\ndata: 2\ndata: 3\ndata: \n\n"
    );
    out.clear();
    encode(&Event::default(), &mut out);
    assert_eq!(&out[..], b":\n\n");
}
