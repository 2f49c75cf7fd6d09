//! Rows in PostgreSQL's binary COPY format, byte for byte.
#![allow(missing_docs, clippy::unwrap_used)]

use forebay_core::copy::{Bytea, HEADER, Jsonb, TRAILER, Timestamp, Uuid, row};

/// Every column of a row: its bytes, or `None` where it is null.
fn columns(mut row: &[u8]) -> Vec<Option<Vec<u8>>> {
    let (count, rest) = row.split_first_chunk::<2>().unwrap();
    row = rest;
    let columns = (0..u16::from_be_bytes(*count))
        .map(|_| {
            let (len, rest) = row.split_first_chunk::<4>().unwrap();
            let len = i32::from_be_bytes(*len);
            let (value, rest) = rest.split_at(usize::try_from(len).unwrap_or(0));
            row = rest;
            (len >= 0).then(|| value.to_vec())
        })
        .collect();
    assert!(row.is_empty());
    columns
}

#[test]
fn every_type_as_the_server_reads_it() {
    let mut out = Vec::new();
    row(&mut out, 11)
        .put(Uuid([7; 16]))
        .put("naïve")
        .put(2_i32)
        .put(-3_i64)
        .put(0.5_f64)
        .put(true)
        .put(false)
        // 2000-01-01T00:00:01Z.
        .put(Timestamp(946_684_801_000_000))
        .put(Bytea(b"\0\xff"))
        .put(Jsonb(r#"{"a":"b"}"#))
        .put(None::<&str>)
        .end();
    let expected = [
        Some(vec![7; 16]),
        Some("naïve".into()),
        Some(vec![0, 0, 0, 2]),
        Some(vec![255, 255, 255, 255, 255, 255, 255, 253]),
        Some(vec![0x3f, 0xe0, 0, 0, 0, 0, 0, 0]),
        Some(vec![1]),
        Some(vec![0]),
        Some(1_000_000_i64.to_be_bytes().to_vec()),
        Some(b"\0\xff".to_vec()),
        Some(b"\x01{\"a\":\"b\"}".to_vec()),
        None,
    ];
    assert_eq!(columns(&out), expected);
}

#[test]
fn an_empty_text_is_not_null_and_no_text_holds_a_nul() {
    let mut out = Vec::new();
    row(&mut out, 3)
        .put("")
        .put(Some("a\0b"))
        .put(None::<i64>)
        .end();
    assert_eq!(
        columns(&out),
        [Some(vec![]), Some("a\u{fffd}b".into()), None]
    );
}

#[test]
fn header_and_trailer_are_those_of_the_format() {
    assert_eq!(&HEADER[..11], b"PGCOPY\n\xff\r\n\0");
    assert_eq!(&HEADER[11..], [0; 8]);
    assert_eq!(i16::from_be_bytes(TRAILER), -1);
}

#[test]
fn times_before_the_server_s_epoch_are_negative() {
    let mut out = Vec::new();
    row(&mut out, 1).put(Timestamp(0)).end();
    assert_eq!(
        columns(&out),
        [Some((-946_684_800_000_000_i64).to_be_bytes().to_vec())]
    );
}
