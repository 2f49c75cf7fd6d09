//! What an upstream is sent, and where: paths, headers, credentials, signatures, redirects.
#![allow(
    missing_docs,
    clippy::unwrap_used,
    clippy::expect_used,
    clippy::panic,
    clippy::indexing_slicing
)]

mod support;

use std::time::Duration;

use bytes::Bytes;
use forebay_core::gateway::Endpoint;
use forebay_core::snapshot::{
    ErrorRule, ModelSpec, PathsSpec, SignSpec, SnapshotSpec, TargetSpec, UpstreamSpec,
};
use http::Method;
use support::engine::{Engine, Received, Step, UNARY, unary};
use support::{Answer, Rig, Setup, chat};

fn spec(engine: &Engine) -> UpstreamSpec {
    UpstreamSpec {
        name: "a".to_owned(),
        kind: "openai".to_owned(),
        url: format!("http://{}", engine.address),
        connect_s: 2.0,
        ..UpstreamSpec::default()
    }
}

fn configure(rig: &Rig, upstreams: Vec<UpstreamSpec>, model: &str) {
    let targets = upstreams.iter().map(|upstream| TargetSpec {
        upstream: upstream.name.clone(),
        model: model.to_owned(),
        ..TargetSpec::default()
    });
    let model = ModelSpec {
        name: "m".to_owned(),
        targets: targets.collect(),
        first_byte_s: 5.0,
        idle_s: 5.0,
        total_s: 20.0,
        ..ModelSpec::default()
    };
    rig.gateway
        .configure(SnapshotSpec {
            upstreams,
            models: vec![model],
            max_event_bytes: 1 << 16,
            max_answer_bytes: 1 << 20,
            complete: true,
            prompt_logs: None,
            files: None,
        })
        .unwrap();
}

#[test]
fn a_specification_shows_no_secret() {
    let spec = UpstreamSpec {
        name: "a".to_owned(),
        api_key: Some("sk-secret".to_owned()),
        headers: vec![("x-api-key".to_owned(), "sk-secret".to_owned())],
        ..UpstreamSpec::default()
    };
    let shown = format!("{spec:?}");
    assert!(
        shown.contains("\"a\"") && !shown.contains("sk-secret"),
        "{shown}"
    );
}

/// A gateway before one upstream, and that upstream's engine.
async fn rig(change: impl FnOnce(UpstreamSpec) -> UpstreamSpec) -> (Rig, Engine) {
    let engine = Engine::always(vec![Step::Send(unary("200 OK", UNARY))]).await;
    let rig = Rig::new(Setup::default(), &[&engine]);
    configure(&rig, vec![change(spec(&engine))], "org/m:0");
    (rig, engine)
}

fn line(request: &Received) -> &str {
    request.head.lines().next().unwrap()
}

fn header<'a>(request: &'a Received, name: &str) -> Option<&'a str> {
    request.head.lines().find_map(|line| {
        let (own, value) = line.split_once(": ")?;
        own.eq_ignore_ascii_case(name).then_some(value)
    })
}

#[tokio::test]
async fn each_api_has_its_path_with_the_model_in_it() {
    let paths = PathsSpec {
        chat: Some("/models/{model}:generate".to_owned()),
        chat_stream: Some("/models/{model}:stream?alt=sse".to_owned()),
        completions: None,
        embeddings: Some("/embed".to_owned()),
        ..PathsSpec::default()
    };
    let (rig, engine) = rig(|spec| UpstreamSpec {
        url: spec.url + "/v1beta/?api-version=2",
        paths,
        ..spec
    })
    .await;
    rig.chat(false).await;
    rig.chat(true).await;
    let embed = r#"{"model":"m","input":"x"}"#;
    Answer::of(&rig.admit(Endpoint::Embeddings, embed)).await;
    let requests = engine.requests();
    let lines: Vec<_> = requests.iter().map(line).collect();
    assert_eq!(
        lines,
        [
            "POST /v1beta/models/org%2Fm%3A0:generate?api-version=2 HTTP/1.1",
            "POST /v1beta/models/org%2Fm%3A0:stream?api-version=2&alt=sse HTTP/1.1",
            "POST /v1beta/embed?api-version=2 HTTP/1.1",
        ]
    );
    let upstream = rig.gateway.upstream("a").unwrap();
    assert!(upstream.offers(Endpoint::Chat));
    assert!(!upstream.offers(Endpoint::Completions));
}

#[tokio::test]
async fn an_upstreams_own_headers_go_with_every_request() {
    let (rig, engine) = rig(|spec| UpstreamSpec {
        headers: vec![
            ("x-api-key".to_owned(), "k-1".to_owned()),
            ("anthropic-version".to_owned(), "2023-06-01".to_owned()),
        ],
        ..spec
    })
    .await;
    rig.chat(false).await;
    let body = Bytes::from_static(b"{\"wake\":1}");
    let wake = rig.gateway.fetch(
        "a",
        Method::POST,
        "/wake?now=1".to_owned(),
        body,
        Duration::from_secs(2),
    );
    assert_eq!(Answer::of(&wake).await.status, 200);
    let requests = engine.requests();
    for request in &requests {
        assert_eq!(header(request, "x-api-key"), Some("k-1"));
        assert_eq!(header(request, "anthropic-version"), Some("2023-06-01"));
        assert_eq!(header(request, "authorization"), None);
    }
    assert_eq!(line(&requests[1]), "POST /wake?now=1 HTTP/1.1");
    assert_eq!(requests[1].body, "{\"wake\":1}");
    rig.event().await;
}

#[tokio::test]
async fn nothing_is_sent_before_credentials_have_come() {
    let (rig, engine) = rig(|spec| UpstreamSpec {
        credentials: true,
        ..spec
    })
    .await;
    let answer = rig.chat(false).await;
    assert_eq!(answer.status, 503);
    assert!(!answer.body.contains("credentials"), "{}", answer.body);
    assert!(engine.requests().is_empty());

    let put = |token: &str| {
        let json = format!(r#"{{"headers": [["authorization", "Bearer {token}"]]}}"#);
        rig.gateway.set_credentials("a", json.as_bytes()).unwrap();
    };
    let seen = || {
        let requests = engine.requests();
        let request = requests.last().unwrap();
        header(request, "authorization").unwrap().to_owned()
    };
    put("t-1");
    assert_eq!(rig.chat(false).await.status, 200);
    assert_eq!(seen(), "Bearer t-1");
    put("t-2");
    assert_eq!(rig.chat(false).await.status, 200);
    assert_eq!(seen(), "Bearer t-2");

    // They stay where the upstream is the same otherwise.
    let changed = UpstreamSpec {
        credentials: true,
        max_concurrency: Some(3),
        ..spec(&engine)
    };
    configure(&rig, vec![changed.clone()], "other");
    assert_eq!(rig.chat(false).await.status, 200);
    assert_eq!(seen(), "Bearer t-2");

    // They go to nobody else.
    let count = engine.requests().len();
    let other = Engine::always(vec![Step::Send(unary("200 OK", UNARY))]).await;
    let moved = UpstreamSpec {
        url: format!("http://{}", other.address),
        ..changed
    };
    configure(&rig, vec![moved], "other");
    assert_eq!(rig.chat(false).await.status, 503);
    assert!(other.requests().is_empty());
    assert_eq!(engine.requests().len(), count);
}

#[tokio::test]
async fn credentials_that_do_not_fit_are_refused() {
    let (rig, _engine) = rig(|spec| spec).await;
    let put = |name: &str, json: &str| rig.gateway.set_credentials(name, json.as_bytes());
    let keys = r#"{"access_key": "a", "secret_key": "s-1"}"#;
    let header = r#"{"headers": [["a", "s-1"]]}"#;
    assert!(put("nobody", header).is_err());
    assert!(!put("a", keys).unwrap_err().contains("s-1"));
    assert!(put("a", header).is_ok());
}

#[tokio::test]
async fn requests_are_signed_with_what_is_sent() {
    let (rig, engine) = rig(|spec| UpstreamSpec {
        sign: Some(SignSpec {
            service: "bedrock".to_owned(),
            region: "us-east-1".to_owned(),
        }),
        paths: PathsSpec {
            chat: Some("/model/{model}/converse".to_owned()),
            ..PathsSpec::default()
        },
        ..spec
    })
    .await;
    assert_eq!(rig.chat(false).await.status, 503);
    let keys = r#"{"access_key": "AKID", "secret_key": "s", "session_token": "t-1"}"#;
    rig.gateway.set_credentials("a", keys.as_bytes()).unwrap();
    assert!(
        rig.gateway
            .set_credentials("a", br#"{"headers": []}"#)
            .is_err()
    );
    assert_eq!(rig.chat(false).await.status, 200);
    let requests = engine.requests();
    assert_eq!(requests.len(), 1);
    let request = &requests[0];
    assert_eq!(line(request), "POST /model/org%2Fm%3A0/converse HTTP/1.1");
    let date = header(request, "x-amz-date").unwrap();
    assert_eq!(header(request, "x-amz-security-token"), Some("t-1"));
    let authorization = header(request, "authorization").unwrap();
    let start = format!(
        "AWS4-HMAC-SHA256 Credential=AKID/{}/us-east-1/bedrock/aws4_request, SignedHeaders=content-type;host;x-amz-date;x-amz-security-token, Signature=",
        &date[..8]
    );
    assert!(authorization.starts_with(&start), "{authorization}");
    assert_eq!(
        header(request, "host"),
        Some(engine.address.to_string().as_str())
    );
}

fn redirect(to: &str) -> Vec<Step> {
    let head = format!(
        "HTTP/1.1 303 See Other\r\nlocation: {to}\r\ncontent-length: 0\r\nserver: x\r\n\r\n"
    );
    vec![Step::Send(head.into_bytes())]
}

#[tokio::test]
async fn an_answer_that_is_put_off_is_fetched_with_the_same_headers() {
    let engine = Engine::start(|number| match number {
        0..20 => redirect(&format!("/v1/chat/completions?id={number}")),
        _ => vec![Step::Send(unary("200 OK", UNARY))],
    })
    .await;
    let rig = Rig::new(Setup::default(), &[&engine]);
    let upstream = UpstreamSpec {
        redirects: true,
        headers: vec![("modal-key".to_owned(), "wk-1".to_owned())],
        ..spec(&engine)
    };
    configure(&rig, vec![upstream], "m");
    let answer = rig.chat(false).await;
    assert_eq!((answer.status, answer.body.as_str()), (200, UNARY));
    assert_eq!(answer.header("location"), None);
    let requests = engine.requests();
    assert_eq!(requests.len(), 21);
    for (number, request) in requests.iter().enumerate().skip(1) {
        let expected = format!("GET /v1/chat/completions?id={} HTTP/1.1", number - 1);
        assert_eq!(line(request), expected);
        assert_eq!(header(request, "modal-key"), Some("wk-1"));
        assert_eq!(request.body, "");
    }
    assert_eq!(rig.event().await.attempts, 1);
}

#[tokio::test]
async fn other_redirects_are_faults_that_tell_no_place() {
    let other = Engine::always(vec![Step::Send(unary("200 OK", UNARY))]).await;
    let away = format!("http://{}/secret-place", other.address);
    let cases: [(bool, u16, &str); 6] = [
        (true, 303, &away),
        (true, 303, "/secret-place"),
        (false, 303, "/secret-place"),
        (true, 302, "/secret-place"),
        (true, 307, "/secret-place"),
        (true, 303, "relative"),
    ];
    for (redirects, status, place) in cases {
        let head = format!("HTTP/1.1 {status} X\r\nlocation: {place}\r\ncontent-length: 0\r\n\r\n");
        // Without an end where it is followed.
        let engine = Engine::always(vec![Step::Send(head.into_bytes())]).await;
        let rig = Rig::new(Setup::default(), &[&engine]);
        let upstream = UpstreamSpec {
            redirects,
            ..spec(&engine)
        };
        configure(&rig, vec![upstream], "m");
        let answer = rig.chat(false).await;
        assert_eq!(answer.status, 502, "{place}");
        assert!(!format!("{answer:?}").contains("secret-place"));
        let followed = redirects && status == 303 && place == "/secret-place";
        assert_eq!(engine.requests().len(), if followed { 21 } else { 1 });
        let event = rig.event().await;
        assert_eq!((event.outcome, event.attempts), ("error", 1));
    }
    assert!(other.requests().is_empty());
}

#[tokio::test]
async fn a_lost_answer_that_was_put_off_is_no_engine_that_was_not_reached() {
    let engine = Engine::start(|number| match number {
        0 => redirect("/later"),
        _ => vec![Step::Close],
    })
    .await;
    let rig = Rig::new(Setup::default(), &[&engine]);
    let upstream = UpstreamSpec {
        redirects: true,
        ..spec(&engine)
    };
    configure(&rig, vec![upstream], "m");
    assert_eq!(rig.chat(false).await.status, 502);
    rig.event().await;
}

#[tokio::test]
async fn a_chain_of_redirects_ends_with_the_deadline() {
    let engine = Engine::start(|number| match number {
        0 => redirect("/later"),
        _ => vec![Step::Hang],
    })
    .await;
    let rig = Rig::new(Setup::default(), &[&engine]);
    let upstream = UpstreamSpec {
        redirects: true,
        ..spec(&engine)
    };
    rig.gateway
        .configure(SnapshotSpec {
            upstreams: vec![upstream],
            models: vec![ModelSpec {
                name: "m".to_owned(),
                targets: vec![TargetSpec {
                    upstream: "a".to_owned(),
                    model: "m".to_owned(),
                    ..TargetSpec::default()
                }],
                first_byte_s: 0.2,
                idle_s: 5.0,
                total_s: 20.0,
                ..ModelSpec::default()
            }],
            max_event_bytes: 1 << 16,
            max_answer_bytes: 1 << 20,
            complete: true,
            prompt_logs: None,
            files: None,
        })
        .unwrap();
    assert_eq!(rig.chat(false).await.status, 504);
    rig.event().await;
}

#[tokio::test]
async fn what_is_our_fault_there_is_tried_elsewhere() {
    for (status, body) in [
        ("401 X", "modal-http: missing credentials"),
        ("402 X", ""),
        ("403 X", "{}"),
        ("404 X", "{}"),
        ("429 X", "{}"),
        ("429 X", r#"{"error":{"code":"insufficient_quota"}}"#),
        ("503 X", "{}"),
        ("400 X", "no workers available"),
    ] {
        let bad = Engine::always(vec![Step::Send(unary(status, body))]).await;
        let good = Engine::always(vec![Step::Send(unary("200 OK", UNARY))]).await;
        let rig = Rig::new(Setup::default(), &[&bad, &good]);
        let first = UpstreamSpec {
            errors: vec![ErrorRule {
                status: 400,
                code: None,
                contains: Some("no workers".to_owned()),
                kind: "unavailable".to_owned(),
                retry: None,
                reason: None,
            }],
            ..spec(&bad)
        };
        let second = UpstreamSpec {
            name: "b".to_owned(),
            ..spec(&good)
        };
        configure(&rig, vec![first, second], "m");
        let answer = Answer::of(&rig.admit(Endpoint::Chat, &chat(false))).await;
        assert_eq!(answer.status, 200, "{status} {body}");
        assert_eq!(answer.header("x-forebay-upstream"), Some("b"));
        assert_eq!(answer.header("x-forebay-attempts"), Some("2"));
        rig.event().await;
    }
}

#[tokio::test]
async fn what_cannot_be_configured_is_named_without_its_value() {
    let (rig, engine) = rig(|spec| spec).await;
    let bad = [
        UpstreamSpec {
            url: "nowhere".to_owned(),
            ..spec(&engine)
        },
        UpstreamSpec {
            headers: vec![("x y".to_owned(), "secret-1".to_owned())],
            ..spec(&engine)
        },
        UpstreamSpec {
            headers: vec![("x".to_owned(), "secret-1\n".to_owned())],
            ..spec(&engine)
        },
        UpstreamSpec {
            headers: vec![("Host".to_owned(), "secret-1".to_owned())],
            ..spec(&engine)
        },
        UpstreamSpec {
            paths: PathsSpec {
                chat: Some("/a b".to_owned()),
                ..PathsSpec::default()
            },
            ..spec(&engine)
        },
        UpstreamSpec {
            errors: vec![ErrorRule {
                status: 400,
                code: None,
                contains: None,
                kind: "nothing".to_owned(),
                retry: None,
                reason: None,
            }],
            ..spec(&engine)
        },
    ];
    for upstream in bad {
        let result = rig.gateway.configure(SnapshotSpec {
            upstreams: vec![upstream],
            ..SnapshotSpec::default()
        });
        let error = result.unwrap_err();
        assert!(error.starts_with("upstream a: "), "{error}");
        assert!(!error.contains("secret-1"), "{error}");
    }
    assert_eq!(rig.chat(false).await.status, 200);
    rig.event().await;
}
