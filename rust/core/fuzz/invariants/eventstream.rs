//! What holds of the binary event-stream decoder for every input; shared by fuzzing and tests.
use bytes::{Bytes, BytesMut};
use forebay_core::dialect::eventstream::{Decoder, Malformed, Message, Value, encode};

/// Longer than any stream of a test, shorter than what four bytes of length can say.
pub(crate) const LIMIT: usize = 1 << 20;

/// Decode `stream` cut into pieces of the lengths in `cuts`, repeated; no cuts, or a 0, is all
/// that is left. The messages, and how the stream ended.
pub(crate) fn decode(stream: &[u8], cuts: &[usize]) -> (Vec<Message>, Result<(), Malformed>) {
    let mut decoder = Decoder::new(LIMIT);
    let mut messages = Vec::new();
    let mut rest = Bytes::copy_from_slice(stream);
    let mut cuts = cuts.iter().cycle();
    while !rest.is_empty() {
        let cut = cuts.next().copied().filter(|cut| *cut > 0);
        decoder.feed(rest.split_to(cut.unwrap_or(usize::MAX).min(rest.len())));
        loop {
            match decoder.next() {
                Ok(Some(message)) => messages.push(message),
                Ok(None) => break,
                Err(error) => {
                    assert_eq!(decoder.next(), Err(error), "an error stays");
                    assert_eq!(decoder.finish(), Err(error));
                    assert_eq!(decoder.buffered(), 0);
                    return (messages, Err(error));
                }
            }
        }
        assert!(decoder.buffered() <= LIMIT);
    }
    (messages, decoder.finish())
}

/// Every chunking gives the same messages and the same end; what was read can be written again,
/// byte for byte.
pub(crate) fn check(stream: &[u8], cuts: &[usize]) {
    let (messages, end) = decode(stream, &[]);
    for cuts in [cuts, &[1]] {
        assert_eq!(
            decode(stream, cuts),
            (messages.clone(), end),
            "cut at {cuts:?}"
        );
    }
    let mut written = BytesMut::new();
    for message in &messages {
        let headers: Vec<(&str, Value<'_>)> = message.headers().collect();
        encode(&headers, &message.payload, &mut written).expect("what was read can be written");
    }
    assert!(stream.starts_with(&written));
    assert!(end.is_err() || stream.len() == written.len());
}
