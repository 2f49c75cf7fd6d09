//! A slot whose answer is told in other words than OpenAI's.
use std::sync::Arc;
use std::task::{Context, Poll, Waker};

use bytes::{Bytes, BytesMut};
use forebay_core::door::{Door, Voice};
use forebay_core::error::{Error, Kind};
use forebay_core::slot::{Head, Slot};

/// Says all in capitals, and cannot say `x`.
struct Loud;

impl Voice for Loud {
    fn answer(&self, body: &[u8]) -> Result<Bytes, Error> {
        let mut out = BytesMut::new();
        Self.feed(Bytes::copy_from_slice(body), &mut out)?;
        Ok(out.freeze())
    }

    fn feed(&mut self, sse: Bytes, out: &mut BytesMut) -> Result<(), Error> {
        if sse.contains(&b'x') {
            return Err(Error::new(Kind::UpstreamError, "It cannot be said."));
        }
        out.extend_from_slice(&sse.to_ascii_uppercase());
        Ok(())
    }

    fn end(&mut self, out: &mut BytesMut) -> Result<(), Error> {
        out.extend_from_slice(b"!");
        Ok(())
    }

    fn cut(&mut self, error: &Error, out: &mut BytesMut) {
        out.extend_from_slice(format!("<{}>", error.message).as_bytes());
    }

    fn keep_alive(&self, out: &mut BytesMut) {
        out.extend_from_slice(b"~");
    }
}

fn loud() -> Arc<Slot> {
    Arc::new(Slot::of(Door::OpenAi, Some(Box::new(Loud))))
}

fn read(slot: &Slot) -> Option<String> {
    let mut cx = Context::from_waker(Waker::noop());
    match slot.poll_bytes(&mut cx) {
        Poll::Ready(Some(bytes)) => Some(String::from_utf8_lossy(&bytes).into_owned()),
        Poll::Ready(None) | Poll::Pending => None,
    }
}

fn say(slot: &Slot, text: &str) {
    slot.write(|out| out.extend_from_slice(text.as_bytes()));
}

#[test]
fn a_stream_is_told_as_it_comes_and_ended() {
    let slot = loud();
    slot.keep_alive(b": alive\n\n");
    say(&slot, "one");
    assert_eq!(read(&slot).as_deref(), Some("~ONE"));
    say(&slot, "two");
    slot.finish();
    assert_eq!(read(&slot).as_deref(), Some("TWO!"));
    assert!(slot.is_drained() && slot.failure().is_none());
}

#[test]
fn an_error_is_told_by_the_voice_and_kept() {
    let slot = loud();
    say(&slot, "one");
    slot.cut(&Error::new(Kind::UpstreamError, "broken"));
    assert_eq!(read(&slot).as_deref(), Some("ONE<broken>"));
    assert_eq!(
        slot.failure().map(|error| error.kind),
        Some(Kind::UpstreamError)
    );
}

#[test]
fn what_cannot_be_told_is_known_to_its_driver() {
    let slot = loud();
    say(&slot, "one");
    say(&slot, "x");
    say(&slot, "two");
    assert_eq!(read(&slot).as_deref(), Some("ONE"));
    assert!(slot.trouble().is_some());
    assert!(slot.turned(&Bytes::from_static(b"x")).is_err());
    assert_eq!(
        slot.turned(&Bytes::from_static(b"yes")).ok().as_deref(),
        Some(&b"YES"[..])
    );
}

#[test]
fn what_cannot_be_told_is_not_ended_as_if_it_were_whole() {
    let slot = loud();
    say(&slot, "one");
    say(&slot, "x");
    slot.finish();
    assert_eq!(read(&slot).as_deref(), Some("ONE<It cannot be said.>"));
    let kind = slot.failure().map(|error| error.kind);
    assert_eq!(kind, Some(Kind::UpstreamError));
}

#[test]
fn what_is_in_its_readers_words_already_passes_but_errors_are_the_voices() {
    let slot = loud();
    slot.speak_native();
    say(&slot, "one");
    slot.cut(&Error::new(Kind::UpstreamError, "broken"));
    assert_eq!(read(&slot).as_deref(), Some("one<broken>"));
    let whole = loud();
    whole.speak_native();
    say(&whole, "one");
    whole.finish();
    assert_eq!(read(&whole).as_deref(), Some("one"));
}

#[test]
fn a_stream_that_nobody_ends_is_ended_by_the_voice() {
    let slot = loud();
    slot.start(Head {
        status: 200,
        headers: Vec::new(),
        body: Bytes::new(),
        more: true,
    });
    say(&slot, "one");
    slot.abandon(&Error::new(Kind::Unavailable, "stopped"));
    assert_eq!(read(&slot).as_deref(), Some("ONE<stopped>"));
}

#[test]
fn nothing_is_kept_for_a_reader_that_has_gone() {
    let slot = loud();
    slot.cancel();
    say(&slot, "one");
    slot.keep_alive(b": alive\n\n");
    slot.finish();
    assert_eq!(read(&slot), None);
}
