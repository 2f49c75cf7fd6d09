//! Keys, what is kept of an answer, and how it is given again.
use std::borrow::Cow;
use std::sync::Arc;
use std::sync::atomic::{AtomicBool, Ordering};
use std::task::{Context, Poll, Wake, Waker};

use bytes::Bytes;
use forebay_core::error::{Error, Kind};
use forebay_core::idempotency::wire::{AnswerHead, Begun, begun, pack};
use forebay_core::idempotency::{Keeping, Kept, MAX_KEY, check, fingerprint, replayed};
use forebay_core::slot::{Head, Headers, Slot};
use http::{HeaderName, HeaderValue};
use proptest::prelude::*;

fn headers(pairs: &[(&'static str, &'static str)]) -> Headers {
    pairs
        .iter()
        .map(|(name, value)| {
            (
                HeaderName::from_static(name),
                HeaderValue::from_static(value),
            )
        })
        .collect()
}

fn head(status: u16, body: &'static [u8], more: bool) -> Head {
    Head {
        status,
        headers: headers(&[
            ("x-request-id", "req_1"),
            ("request-id", "req_1"),
            ("content-type", "application/json"),
            ("x-ratelimit-remaining-tokens", "7"),
            ("anthropic-ratelimit-tokens-remaining", "7"),
            ("x-forebay-upstream", "a"),
        ]),
        body: Bytes::from_static(body),
        more,
    }
}

fn kept(status: u16, body: &'static [u8], most: usize) -> Kept {
    Keeping::new(&head(status, body, false), most).end(true)
}

#[test]
fn keys() {
    let longest = "x".repeat(MAX_KEY);
    for good in ["a", " ", "~", "{\"a\": 1}", longest.as_str()] {
        assert_eq!(check(good.as_bytes()).ok(), Some(good));
    }
    let long = "x".repeat(MAX_KEY + 1);
    for bad in ["", "\u{e9}", "a\tb", "\u{7f}", "a\0", long.as_str()] {
        let error = check(bad.as_bytes()).err();
        let error = error.map(|error| (error.kind, error.param.map(Cow::into_owned)));
        let named = Some("Idempotency-Key".to_owned());
        assert_eq!(error, Some((Kind::InvalidRequest, named)), "{bad:?}");
    }
}

#[test]
fn a_success_is_kept_with_what_is_not_of_the_one_exchange() {
    let Kept::Answer(head, body) = kept(200, b"hello", 5) else {
        unreachable!("it is a success");
    };
    assert_eq!(body, b"hello");
    assert_eq!((head.status, head.stream), (200, false));
    assert_eq!(head.request_id, "req_1");
    let names: Vec<_> = head.headers.iter().map(|(name, _)| &name[..]).collect();
    assert_eq!(names, ["content-type", "x-forebay-upstream"]);
    let own = headers(&[("x-request-id", "req_2")]);
    let given: Vec<_> = replayed(&head, own)
        .into_iter()
        .map(|(name, value)| format!("{name}: {}", value.to_str().unwrap_or_default()))
        .collect();
    assert_eq!(
        given,
        [
            "x-request-id: req_2",
            "content-type: application/json",
            "x-forebay-upstream: a",
            "x-forebay-idempotent-replay: true",
            "x-forebay-original-request-id: req_1",
        ]
    );
}

#[test]
fn failures_and_halves_are_not_kept() {
    for status in [400, 401, 404, 409, 422, 429, 500, 502, 503, 504] {
        assert_eq!(kept(status, b"no", 100), Kept::Nothing, "{status}");
    }
    let mut half = Keeping::new(&head(200, b"", true), 100);
    half.take(b"data: 1\n\n");
    assert_eq!(half.end(false), Kept::Nothing);
}

#[test]
fn what_is_over_the_bound_is_not_kept() {
    assert_eq!(kept(200, b"hello", 4), Kept::TooLarge);
    assert_eq!(kept(500, b"hello", 4), Kept::Nothing);
    let mut long = Keeping::new(&head(200, b"", true), 4);
    long.take(b"hello");
    // It stays too large, whatever little comes.
    long.take(b"!");
    assert_eq!(long.end(true), Kept::TooLarge);
}

#[test]
fn what_the_store_says() {
    let said = |json: &str| begun(&Bytes::copy_from_slice(json.as_bytes()));
    let run = said("{\"do\":\"run\",\"max_bytes\":7}\n");
    assert!(matches!(run, Ok((Begun::Run { max_bytes: 7 }, body)) if body.is_empty()));
    for (json, begun) in [
        ("{\"do\":\"reused\"}\n", Begun::Reused),
        ("{\"do\":\"too_large\"}", Begun::TooLarge),
        ("{\"do\":\"busy\"}\n", Begun::Busy),
        ("{\"do\":\"left\"}\n", Begun::Left),
    ] {
        assert!(matches!(said(json), Ok((got, _)) if got == begun), "{json}");
    }
    for bad in [
        "",
        "{}",
        "{\"do\":\"other\"}\n",
        "{\"do\":\"replay\"}\nbody",
    ] {
        assert!(said(bad).is_err(), "{bad}");
    }
}

struct Told(AtomicBool);

impl Wake for Told {
    fn wake(self: Arc<Self>) {
        self.0.store(true, Ordering::Relaxed);
    }
}

#[test]
fn a_reader_that_leaves_is_noticed_by_who_fills_and_who_watches() {
    let slot = Slot::new();
    let (fills, watches) = (Arc::new(Told(false.into())), Arc::new(Told(false.into())));
    let (fill, watch) = (Waker::from(fills.clone()), Waker::from(watches.clone()));
    slot.start(head(200, b"", true));
    slot.write(|out| out.extend_from_slice(&vec![0; 100_000]));
    assert!(slot.poll_room(&mut Context::from_waker(&fill)).is_pending());
    assert!(
        slot.poll_left(&mut Context::from_waker(&watch))
            .is_pending()
    );
    slot.cancel();
    assert!(fills.0.load(Ordering::Relaxed) && watches.0.load(Ordering::Relaxed));
    assert!(slot.poll_room(&mut Context::from_waker(&fill)).is_ready());
    assert!(slot.poll_left(&mut Context::from_waker(&watch)).is_ready());
    // What is written for nobody is not kept.
    slot.write(|out| out.extend_from_slice(&vec![0; 100_000]));
    assert!(slot.poll_room(&mut Context::from_waker(&fill)).is_ready());
}

#[test]
fn a_failure_that_was_told_elsewhere_is_known() {
    let slot = Slot::new();
    assert!(slot.failure().is_none());
    slot.failed(Error::new(Kind::UpstreamError, "x"));
    assert_eq!(
        slot.failure().map(|error| error.kind),
        Some(Kind::UpstreamError)
    );
}

proptest! {
    #[test]
    fn a_key_is_taken_as_it_is_or_not_at_all(key in proptest::collection::vec(any::<u8>(), 0..300)) {
        let good = (1..=MAX_KEY).contains(&key.len()) && key.iter().all(|b| (0x20..0x7f).contains(b));
        match check(&key) {
            Ok(text) => prop_assert!(good && text.as_bytes() == key),
            Err(error) => prop_assert!(!good && !error.message.is_empty()),
        }
    }

    #[test]
    fn requests_that_differ_have_other_fingerprints(
        a in ("/[a-z/]{0,9}", proptest::collection::vec(any::<u8>(), 0..9)),
        b in ("/[a-z/]{0,9}", proptest::collection::vec(any::<u8>(), 0..9)),
    ) {
        let (first, second) = (fingerprint(&a.0, &a.1), fingerprint(&b.0, &b.1));
        prop_assert_eq!(first.len(), 64);
        prop_assert_eq!(a == b, first == second);
    }

    #[test]
    fn an_answer_is_kept_byte_for_byte_or_not_at_all(
        pieces in proptest::collection::vec(proptest::collection::vec(any::<u8>(), 0..40), 0..8),
        most in 0_usize..200,
    ) {
        let mut keeping = Keeping::new(&head(200, b"", true), most);
        for piece in &pieces {
            keeping.take(piece);
        }
        let whole = pieces.concat();
        match keeping.end(true) {
            Kept::Answer(_, body) => prop_assert!(body == whole && whole.len() <= most),
            Kept::TooLarge => prop_assert!(whole.len() > most),
            Kept::Nothing => prop_assert!(false),
        }
    }

    #[test]
    fn an_answer_comes_back_from_the_store_as_it_went(
        status in 200_u16..300,
        values in proptest::collection::vec("[ -~]{0,20}", 0..5),
        body in proptest::collection::vec(any::<u8>(), 0..100),
        stream: bool,
    ) {
        let answer = AnswerHead {
            status,
            headers: values.into_iter().map(|value| ("x-a".to_owned(), value)).collect(),
            stream,
            request_id: "r".to_owned(),
        };
        let json = serde_json::json!({"do": "replay", "answer": answer});
        let (said, rest) = begun(&pack(&json, &body)).map_err(|e| TestCaseError::fail(e.to_string()))?;
        prop_assert_eq!(said, Begun::Replay { answer });
        prop_assert_eq!(&rest[..], &body[..]);
    }
}

#[test]
fn waiting_is_over_once() {
    // The slot of a request that waits is read like any other.
    let slot = Slot::new();
    let mut cx = Context::from_waker(Waker::noop());
    assert!(matches!(slot.poll_head(&mut cx), Poll::Pending));
    slot.cancel();
    assert!(matches!(slot.poll_head(&mut cx), Poll::Ready(None)));
}
