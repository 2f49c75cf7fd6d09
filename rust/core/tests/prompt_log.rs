//! Prompts from requests to entries: who is logged, what is kept, and what it costs nobody.
#![allow(
    missing_docs,
    clippy::unwrap_used,
    clippy::expect_used,
    clippy::panic,
    clippy::indexing_slicing
)]

mod support;

use std::future::poll_fn;
use std::sync::Arc;
use std::time::Duration;

use bytes::Bytes;
use forebay_core::gateway::Endpoint;
use forebay_core::metrics::Registry;
use forebay_core::prompt_log::{
    ChoiceSpec, Entry, Level, Part, PromptLog, Sealer, Settings, SettingsSpec, Sink,
};
use forebay_core::snapshot::DrainSpec;
use forebay_core::subjects::{LimitsSpec, SubjectSpec};
use parking_lot::Mutex;
use support::engine::{
    Engine, LAST_CHUNK, STREAM_HEAD, Step, UNARY, chunk, content, unary, whole_stream,
};
use support::{Answer, KEY, Rig, Setup, chat, key_spec, until, within};

const SEAL: &str = "AAECAwQFBgcICQoLDA0ODxAREhMUFRYXGBkaGxwdHh8=";

#[derive(Clone, Default)]
struct Kept(Arc<Mutex<Vec<Entry>>>);

impl Sink for Kept {
    fn keep(&mut self, entry: Entry) -> bool {
        self.0.lock().push(entry);
        true
    }
}

fn settings(max_bytes: usize) -> SettingsSpec {
    SettingsSpec {
        key_name: "2026".to_owned(),
        key: SEAL.to_owned(),
        max_bytes,
        patterns: vec!["hunter2".to_owned()],
    }
}

fn level(level: Level) -> ChoiceSpec {
    ChoiceSpec {
        log_level: Some(level),
        log_sample: None,
    }
}

fn setup(log: ChoiceSpec) -> Setup {
    let mut key = key_spec(KEY);
    key.log = log;
    Setup {
        keys: vec![key],
        prompt_logs: Some(settings(4096)),
        ..Setup::default()
    }
}

fn logging(setup: Setup, engines: &[&Engine]) -> (Rig, Kept) {
    let rig = Rig::new(setup, engines);
    let kept = Kept::default();
    rig.gateway.log_prompts(Box::new(kept.clone())).unwrap();
    (rig, kept)
}

/// All entries, once the log has dealt with everything.
fn entries(rig: &Rig, kept: &Kept) -> Vec<Entry> {
    let log = rig.gateway.prompt_log().unwrap();
    assert!(log.stop(Duration::from_secs(5)));
    std::mem::take(&mut *kept.0.lock())
}

fn texts(entry: &Entry) -> (String, String) {
    let sealer = Sealer::new("2026", SEAL).unwrap();
    let open = |part, sealed: &Option<Vec<u8>>| {
        sealer
            .open(&entry.event_id, part, sealed.as_deref().unwrap())
            .unwrap()
    };
    (
        open(Part::Request, &entry.request),
        open(Part::Answer, &entry.answer),
    )
}

fn metric(rig: &Rig, line: &str) -> bool {
    let shown = rig.gateway.metrics.registry.render();
    shown.lines().any(|shown| shown == line)
}

#[tokio::test]
async fn a_unary_request_and_its_answer() {
    let engine = Engine::always(vec![Step::Send(unary("200 OK", UNARY))]).await;
    let (rig, kept) = logging(setup(level(Level::Full)), &[&engine]);
    let asked = chat(false).replace("hi", "I am a\\u0040b.com, hunter2, 4111 1111 1111 1111");
    let answer = Answer::of(&rig.admit(Endpoint::Chat, &asked)).await;
    assert_eq!(answer.body, UNARY);
    assert!(
        engine.requests()[0].body.contains("hunter2"),
        "the engine gets all"
    );
    let event = rig.event().await;
    let all = entries(&rig, &kept);
    assert_eq!(all.len(), 1);
    let entry = &all[0];
    assert_eq!(entry.event_id, event.event_id);
    assert_eq!(entry.request_id, event.request_id);
    assert_eq!((&*entry.account, entry.key_id.as_str()), ("acme", KEY));
    assert_eq!((&*entry.model, entry.at_us), ("m", event.admitted_us));
    assert_eq!((entry.level, entry.status), ("full", 200));
    assert_eq!(entry.request_bytes, asked.len() as u64);
    assert_eq!(entry.answer_bytes, UNARY.len() as u64);
    assert_eq!(
        (entry.request_truncated, entry.answer_truncated),
        (false, false)
    );
    assert_eq!(entry.redactions, 3);
    assert_eq!(entry.enc_key.as_deref(), Some("2026"));
    let (request, answer) = texts(entry);
    let hidden = "I am [redacted:email], [redacted:pattern], [redacted:card]";
    assert_eq!(request, chat(false).replace("hi", hidden));
    assert_eq!(answer, UNARY);
    assert!(metric(&rig, "forebay_prompt_logs_total{level=\"full\"} 1"));
    assert!(metric(&rig, "forebay_prompt_log_redactions_total 3"));
    assert!(metric(&rig, "forebay_prompt_log_waiting_bytes 0"));
}

#[tokio::test]
async fn a_stream_becomes_the_text_that_it_says() {
    let (long, mut body) = ("word ".repeat(100), String::new());
    for at in 0..300 {
        body += &content(&long, at);
    }
    for (stream, said) in [
        (whole_stream(), "abc".to_owned()),
        // Many pieces, and a card in two events.
        (
            content("4111 1111 ", 1) + &content("1111 1111 ", 2) + &body + &whole_stream(),
            "[redacted:card] ".to_owned() + &long.repeat(100),
        ),
    ] {
        let engine = Engine::always(vec![
            Step::Send(STREAM_HEAD.to_vec()),
            Step::Send(chunk(stream.as_bytes())),
            Step::Send(LAST_CHUNK.to_vec()),
        ])
        .await;
        let (rig, kept) = logging(setup(level(Level::Full)), &[&engine]);
        let answer = rig.chat(true).await;
        assert!(answer.body.ends_with("data: [DONE]\n\n"));
        rig.event().await;
        let all = entries(&rig, &kept);
        assert_eq!(all.len(), 1);
        let (request, text) = texts(&all[0]);
        assert_eq!(request, chat(true));
        // Cut where the limit was before the card was taken out.
        let most = said.len().min(4096 - 4);
        assert_eq!(text, said[..most], "{}", text.len());
        assert_eq!(all[0].answer_truncated, most < said.len());
        assert_eq!(all[0].answer_bytes, answer.body.len() as u64);
        assert_eq!(all[0].status, 200);
    }
}

#[tokio::test]
async fn escapes_in_a_stream_hide_nothing() {
    let call = |arguments: &str| {
        let arguments = serde_json::to_string(arguments).unwrap();
        format!(
            "data: {{\"choices\":[{{\"index\":0,\"delta\":{{\"tool_calls\":[{{\"index\":0,\
             \"function\":{{\"arguments\":{arguments}}}}}]}}}}]}}\n\n"
        )
    };
    let stream = call(r#"{"to":"john\u00"#)
        + &call(r#"40x.com","key":"\u0022sk-abcdefghijklmnop"}"#)
        + &whole_stream();
    let engine = Engine::always(vec![
        Step::Send(STREAM_HEAD.to_vec()),
        Step::Send(chunk(stream.as_bytes())),
        Step::Send(LAST_CHUNK.to_vec()),
    ])
    .await;
    let (rig, kept) = logging(setup(level(Level::Full)), &[&engine]);
    rig.chat(true).await;
    rig.event().await;
    let (_, text) = texts(&entries(&rig, &kept)[0]);
    let hidden = r#"{"to":"[redacted:email]","key":"\u0022[redacted:key]"}"#;
    assert!(text.starts_with(hidden), "{text}");
}

#[tokio::test]
async fn who_is_logged_and_how_much() {
    let account = |log| SubjectSpec {
        scope: "account".to_owned(),
        id: "acme".to_owned(),
        limits: LimitsSpec::default(),
        weight: None,
        log,
    };
    let sample = |share| ChoiceSpec {
        log_level: Some(Level::Metadata),
        log_sample: Some(share),
    };
    let none = ChoiceSpec::default();
    for (of_key, of_account, logged) in [
        (none, None, None),
        (none, Some(none), None),
        (none, Some(level(Level::Full)), Some("full")),
        (level(Level::Off), Some(level(Level::Full)), None),
        (
            level(Level::Metadata),
            Some(level(Level::Full)),
            Some("metadata"),
        ),
        (level(Level::Metadata), Some(sample(0.0)), None),
        (sample(1.0), Some(sample(0.0)), Some("metadata")),
    ] {
        let engine = Engine::always(vec![Step::Send(unary("200 OK", UNARY))]).await;
        let (rig, kept) = logging(setup(of_key), &[&engine]);
        let subjects = of_account.map(account).into_iter().collect();
        rig.gateway.load_limits(subjects).unwrap();
        rig.chat(false).await;
        rig.event().await;
        let all = entries(&rig, &kept);
        assert_eq!(all.first().map(|entry| entry.level), logged);
        if logged == Some("metadata") {
            assert_eq!((&all[0].request, &all[0].answer), (&None, &None));
            assert_eq!(all[0].enc_key, None);
            assert_eq!(all[0].answer_bytes, UNARY.len() as u64);
        }
    }
    let bad = SubjectSpec {
        log: sample(1.5),
        ..account(none)
    };
    let rig = Rig::new(setup(none), &[&Engine::down().await]);
    let error = rig.gateway.load_limits(vec![bad]).unwrap_err();
    assert!(error.contains("log_sample"), "{error}");
}

#[test]
fn a_sample_is_the_same_for_one_id_and_about_its_share() {
    let choice = ChoiceSpec {
        log_level: Some(Level::Full),
        log_sample: Some(0.25),
    };
    let choice = choice.choice().unwrap();
    let ids: Vec<[u8; 16]> = (0..10_000)
        .map(|_| *uuid::Uuid::now_v7().as_bytes())
        .collect();
    let sampled: Vec<_> = ids.iter().filter(|id| choice.of(id).is_some()).collect();
    assert!((2200..2800).contains(&sampled.len()), "{}", sampled.len());
    assert!(sampled.iter().all(|id| choice.of(id) == Some(Level::Full)));
}

#[tokio::test]
async fn without_a_key_only_metadata_are_kept() {
    let engine = Engine::always(vec![Step::Send(unary("200 OK", UNARY))]).await;
    let without = Setup {
        prompt_logs: None,
        ..setup(level(Level::Full))
    };
    let (rig, kept) = logging(without, &[&engine]);
    rig.chat(false).await;
    rig.event().await;
    let all = entries(&rig, &kept);
    assert_eq!((all[0].level, &all[0].request), ("metadata", &None));
    assert!(metric(&rig, "forebay_prompt_logs_without_key_total 1"));
    assert!(metric(
        &rig,
        "forebay_prompt_logs_total{level=\"metadata\"} 1"
    ));
}

#[test]
fn bad_settings_are_refused_by_name() {
    for (spec, why) in [
        (
            SettingsSpec {
                key: "c2hvcnQ=".to_owned(),
                ..settings(1)
            },
            "prompt_logs: key 2026: not 32 bytes",
        ),
        (
            SettingsSpec {
                patterns: vec!["(".to_owned()],
                ..settings(1)
            },
            "prompt_logs: patterns[0]: unclosed group",
        ),
    ] {
        let error = Settings::new(&spec).err().unwrap();
        assert!(error.starts_with(why), "{error}");
    }
}

#[tokio::test]
async fn errors_and_clients_that_leave_are_logged_too() {
    let engine = Engine::start(|number| match number {
        0 => vec![Step::Send(unary("500 Oops", "{}"))],
        _ => vec![
            Step::Send(STREAM_HEAD.to_vec()),
            Step::Send(chunk(content("a", 1).as_bytes())),
            Step::Wait(Duration::from_millis(100)),
            Step::Send(chunk(whole_stream().as_bytes())),
            Step::Send(LAST_CHUNK.to_vec()),
        ],
    })
    .await;
    let drain = Setup {
        drain: Some(DrainSpec {
            seconds: 5.0,
            bytes: 1 << 20,
        }),
        ..setup(level(Level::Full))
    };
    let (rig, kept) = logging(drain, &[&engine]);
    let refused = rig.chat(false).await;
    let slot = rig.admit(Endpoint::Chat, &chat(true));
    within(poll_fn(|cx| slot.poll_head(cx))).await.unwrap();
    within(poll_fn(|cx| slot.poll_bytes(cx))).await.unwrap();
    slot.cancel();
    let events = rig.events(2).await;
    assert_eq!(events[1].usage.completion, 3, "billed whole");
    let all = entries(&rig, &kept);
    assert_eq!((all[0].status, texts(&all[0]).1), (502, refused.body));
    assert_eq!(texts(&all[1]).1, "a", "logged as far as the client got it");
}

/// An attempt that fails before the client has anything leaves nothing in the log, however much it
/// said; what it said is kept nowhere.
#[tokio::test]
async fn what_no_client_got_is_not_logged() {
    let noise = format!(": {}\n\n", "n".repeat(1000)).repeat(40);
    for (then, said) in [("500 Oops", None), ("", Some("abc"))] {
        let failing = Engine::always(vec![
            Step::Send(STREAM_HEAD.to_vec()),
            Step::Send(chunk(noise.as_bytes())),
            Step::Wait(Duration::from_millis(20)),
            Step::Reset,
        ])
        .await;
        let next = if then.is_empty() {
            vec![
                Step::Send(STREAM_HEAD.to_vec()),
                Step::Send(chunk(whole_stream().as_bytes())),
                Step::Send(LAST_CHUNK.to_vec()),
            ]
        } else {
            vec![Step::Send(unary(then, "{}"))]
        };
        let next = Engine::always(next).await;
        let (rig, kept) = logging(setup(level(Level::Full)), &[&failing, &next]);
        let answer = rig.chat(true).await;
        assert_eq!(answer.header("x-forebay-attempts"), Some("2"));
        rig.event().await;
        let all = entries(&rig, &kept);
        assert_eq!(texts(&all[0]).1, said.unwrap_or(&answer.body));
        assert_eq!(all[0].answer_bytes, answer.body.len() as u64);
        assert!(metric(&rig, "forebay_prompt_log_waiting_bytes 0"));
    }
}

/// What is kept of streams that run counts as what waits does.
#[tokio::test]
async fn running_streams_are_bounded_too() {
    let kept = Kept::default();
    let registry = Registry::default();
    let log = PromptLog::start(Box::new(kept.clone()), &registry, 100_000).unwrap();
    let shared = Settings::new(&settings(1 << 20)).unwrap();
    let choice = level(Level::Full).choice().unwrap();
    let engine = Engine::always(vec![Step::Send(unary("200 OK", UNARY))]).await;
    let rig = Rig::new(setup(ChoiceSpec::default()), &[&engine]);
    rig.chat(false).await;
    let event = rig.event().await;
    let said = content(&"x".repeat(20_000), 1);
    let mut captures = Vec::new();
    for number in 0..8_u8 {
        let mut capture = log
            .capture(choice, [number; 16], Some(&shared), &Bytes::new())
            .unwrap();
        capture.streamed(said.as_bytes());
        captures.push(capture);
        // The thread has dealt with it, and keeps what it said.
        let at_least = usize::from(number + 1).min(4) * 20_000;
        until("it is kept", || {
            log.show();
            let shown = registry.render();
            let waiting = "forebay_prompt_log_waiting_bytes ";
            let waiting = shown.lines().find_map(|line| line.strip_prefix(waiting));
            (at_least..=at_least + 400).contains(&waiting.unwrap().parse().unwrap())
        })
        .await;
    }
    for (number, capture) in captures.into_iter().enumerate() {
        let mut event = event.clone();
        event.event_id = [number as u8; 16];
        capture.end(&event);
    }
    assert!(log.stop(Duration::from_secs(5)));
    assert_eq!(kept.0.lock().len(), 4);
    log.show();
    let shown = registry.render();
    assert!(shown.contains("forebay_prompt_logs_dropped_total{reason=\"queue_full\"} 4\n"));
    assert!(shown.contains("forebay_prompt_log_waiting_bytes 0\n"));
}

#[tokio::test]
async fn what_is_too_much_is_dropped_and_nobody_waits() {
    struct Stuck(Arc<Mutex<()>>);
    impl Sink for Stuck {
        fn keep(&mut self, _: Entry) -> bool {
            drop(self.0.lock());
            false
        }
    }
    let lock = Arc::new(Mutex::new(()));
    let registry = Registry::default();
    let log = PromptLog::start(Box::new(Stuck(Arc::clone(&lock))), &registry, 50_000).unwrap();
    let spec = settings(1000);
    let shared = Settings::new(&spec).unwrap();
    let choice = level(Level::Full).choice().unwrap();
    let engine = Engine::always(vec![Step::Send(unary("200 OK", UNARY))]).await;
    let rig = Rig::new(setup(ChoiceSpec::default()), &[&engine]);
    rig.chat(false).await;
    let event = rig.event().await;
    let held = lock.lock();
    let body = Bytes::from(vec![b'x'; 10_000]);
    for number in 0..20_u8 {
        let capture = log.capture(choice, [number; 16], Some(&shared), &body);
        let mut capture = capture.unwrap();
        // Streams of several pieces, some of them lost in between.
        for _ in 0..number {
            capture.streamed(&[b'x'; 5_000]);
        }
        let mut event = event.clone();
        event.event_id = [number; 16];
        capture.end(&event);
    }
    let full = || {
        let shown = registry.render();
        let line = "forebay_prompt_logs_dropped_total{reason=\"queue_full\"} ";
        shown
            .lines()
            .find_map(|shown| shown.strip_prefix(line)?.parse::<u32>().ok())
    };
    assert!(full().unwrap() >= 10, "{:?}", full());
    assert!(!log.stop(Duration::from_millis(50)), "the sink is stuck");
    drop(held);
    until("it is dealt with", || {
        log.show();
        registry
            .render()
            .contains("forebay_prompt_log_waiting_bytes 0")
    })
    .await;
    let lost = full().unwrap();
    let refused = "forebay_prompt_logs_dropped_total{reason=\"spool\"}";
    assert!(
        registry
            .render()
            .contains(&format!("{refused} {}", 20 - lost))
    );
}

#[test]
fn what_is_sealed_is_bound_to_its_place() {
    let key = Sealer::new("2026", SEAL).unwrap();
    let (id, other) = ([7; 16], [8; 16]);
    let sealed = key.seal(&id, Part::Request, "secret").unwrap();
    assert_eq!(sealed.len(), 12 + "secret".len() + 16);
    assert!(!sealed.windows(6).any(|window| window == b"secret"));
    assert_ne!(sealed, key.seal(&id, Part::Request, "secret").unwrap());
    let open = |id, part, sealed: &[u8]| key.open(id, part, sealed);
    assert_eq!(open(&id, Part::Request, &sealed).as_deref(), Some("secret"));
    assert_eq!(open(&id, Part::Answer, &sealed), None);
    assert_eq!(open(&other, Part::Request, &sealed), None);
    for at in 0..sealed.len() {
        let mut changed = sealed.clone();
        changed[at] ^= 1;
        assert_eq!(open(&id, Part::Request, &changed), None);
        assert_eq!(open(&id, Part::Request, &sealed[..at]), None);
    }
    let other_key = Sealer::new("2026", &"/".repeat(43)).unwrap();
    assert_eq!(other_key.open(&id, Part::Request, &sealed), None);
    assert_eq!(
        key.open(&id, Part::Answer, &key.seal(&id, Part::Answer, "").unwrap())
            .as_deref(),
        Some("")
    );
}

/// The same bytes, made by Python's `cryptography`: nonce 0…11, associated data id ‖ 1.
#[test]
fn another_implementation_s_texts_can_be_read() {
    let sealed = hex("000102030405060708090a0b296315b4b380820d42273eec983e7313751889ab3016");
    let key = Sealer::new("2026", SEAL).unwrap();
    assert_eq!(
        key.open(&[7; 16], Part::Answer, &sealed).as_deref(),
        Some("naïve")
    );
}

fn hex(text: &str) -> Vec<u8> {
    (0..text.len() / 2)
        .map(|at| u8::from_str_radix(&text[2 * at..2 * at + 2], 16).unwrap())
        .collect()
}
