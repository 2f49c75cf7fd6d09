//! What holds of the event-stream decoder for every input; shared by fuzzing and tests.
use bytes::{Bytes, BytesMut};
use forebay_core::sse::{Decoder, Event, Frame, encode};

/// Decode `stream` cut into pieces of the lengths in `cuts`, repeated; no cuts, or a 0, is all
/// that is left.
pub(crate) fn decode(stream: &[u8], cuts: &[usize]) -> (Vec<Frame>, Bytes) {
    let mut decoder = Decoder::new(stream.len());
    let mut frames = Vec::new();
    let mut rest = Bytes::copy_from_slice(stream);
    let mut cuts = cuts.iter().cycle();
    while !rest.is_empty() {
        let cut = cuts.next().copied().filter(|cut| *cut > 0);
        let chunk = rest.split_to(cut.unwrap_or(usize::MAX).min(rest.len()));
        decoder
            .feed(chunk)
            .expect("no event is longer than the stream");
        frames.extend(std::iter::from_fn(|| decoder.next()));
    }
    frames.extend(decoder.finish());
    assert!(decoder.finish().is_none());
    (frames, decoder.take_rest())
}

/// The standard's algorithm in the plainest form: one list of lines, then fields.
pub(crate) fn reference(stream: &[u8]) -> Vec<(Event, bool)> {
    let stream = stream.strip_prefix(b"\xEF\xBB\xBF").unwrap_or(stream);
    let mut lines = vec![Vec::new()];
    let mut bytes = stream.iter().copied().peekable();
    while let Some(byte) = bytes.next() {
        match byte {
            b'\r' => {
                bytes.next_if_eq(&b'\n');
                lines.push(Vec::new());
            }
            b'\n' => lines.push(Vec::new()),
            _ => lines.last_mut().expect("never empty").push(byte),
        }
    }
    let last = lines.pop().expect("never empty");
    let mut events = Vec::new();
    let mut open: Option<Event> = None;
    for line in lines {
        if line.is_empty() {
            events.extend(open.take().map(|event| (event, true)));
        } else {
            field(&line, open.get_or_insert_default());
        }
    }
    if !last.is_empty() {
        field(&last, open.get_or_insert_default());
    }
    events.extend(open.map(|event| (event, false)));
    events
}

fn field(line: &[u8], event: &mut Event) {
    let text = line.to_vec();
    let (name, value) = match text.iter().position(|byte| *byte == b':') {
        Some(colon) => (text[..colon].to_vec(), text[colon + 1..].to_vec()),
        None => (text, Vec::new()),
    };
    let value = Bytes::from(
        value
            .strip_prefix(b" ")
            .map_or(value.clone(), <[u8]>::to_vec),
    );
    match name.as_slice() {
        b"data" => {
            event.data = Some(match event.data.take() {
                Some(before) => [&before[..], b"\n", &value].concat().into(),
                None => value,
            });
        }
        b"event" => event.event = Some(value),
        b"id" if !value.contains(&0) => event.id = Some(value),
        b"retry" if value.iter().all(u8::is_ascii_digit) => {
            let number = str::from_utf8(&value)
                .ok()
                .and_then(|digits| digits.parse().ok());
            event.retry = number.or(event.retry);
        }
        _ => {}
    }
}

/// Every chunking gives the reference's events; the raw bytes joined are the stream; what is read
/// can be encoded and read again.
pub(crate) fn check(stream: &[u8], cuts: &[usize]) {
    let expected = reference(stream);
    for cuts in [cuts, &[], &[1]] {
        let (frames, rest) = decode(stream, cuts);
        let events: Vec<_> = frames
            .iter()
            .map(|frame| (frame.parse(), frame.complete))
            .collect();
        assert_eq!(events, expected, "cut at {cuts:?}");
        let mut joined: Vec<u8> = frames.iter().flat_map(|frame| frame.raw.to_vec()).collect();
        joined.extend_from_slice(&rest);
        assert_eq!(joined, stream, "cut at {cuts:?}");
        for (frame, (event, _)) in frames.iter().zip(&events) {
            assert_eq!(frame.data(), event.data);
        }
    }
    for (event, _) in expected {
        let mut out = BytesMut::new();
        encode(&event, &mut out);
        assert_eq!(reference(&out), [(event.clone(), true)]);
        assert_eq!(decode(&out, &[]).0.len(), 1);
    }
}
