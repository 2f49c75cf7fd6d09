//! What clients send that they should not: each gets its clear answer, and holds nothing.
#![allow(
    missing_docs,
    clippy::unwrap_used,
    clippy::expect_used,
    clippy::panic,
    clippy::indexing_slicing
)]

mod support;

use std::time::Duration;

use forebay_core::keys::KeySpec;
use forebay_core::subjects::LimitsSpec;
use support::client::{Client, head, request};
use support::engine::{Engine, Step, UNARY, unary};
use support::{KEY, Rig, Setup, chat, key_spec, key_text};

const CHAT: &str = "/v1/chat/completions";

async fn ready() -> Engine {
    Engine::always(vec![Step::Send(unary("200 OK", UNARY))]).await
}

#[tokio::test]
async fn keys_that_do_not_open() {
    let spec = |id: &str| key_spec(id);
    let keys = vec![
        spec(KEY),
        KeySpec {
            revoked: true,
            ..spec("REVOKED00000")
        },
        KeySpec {
            expires_at: Some(1.0),
            ..spec("EXPIRED00000")
        },
        KeySpec {
            kind: "admin".to_owned(),
            ..spec("ADMIN0000000")
        },
        KeySpec {
            models: Some(vec!["other".into()]),
            ..spec("OTHER0000000")
        },
        KeySpec {
            limits: LimitsSpec {
                rpm: Some(0),
                ..LimitsSpec::default()
            },
            ..spec("NOTHING00000")
        },
    ];
    let engine = ready().await;
    let rig = Rig::new(
        Setup {
            keys,
            ..Setup::default()
        },
        &[&engine],
    );
    let listener = rig.listen();
    let mut client = Client::connect(listener.address()).await;
    let bearer = |id: &str| format!("authorization: Bearer {}\r\n", key_text(id));
    let bad_check = key_text(KEY)[..48].to_owned() + "000000";
    for (line, status, code) in [
        (String::new(), 401, "missing_api_key"),
        (
            "authorization: Basic eDp5\r\n".to_owned(),
            401,
            "invalid_api_key",
        ),
        (
            "authorization: Bearer x\r\n".to_owned(),
            401,
            "invalid_api_key",
        ),
        (
            format!("authorization: Bearer {bad_check}\r\n"),
            401,
            "invalid_api_key",
        ),
        (bearer("UNKNOWN00000"), 401, "invalid_api_key"),
        (bearer("REVOKED00000"), 401, "api_key_revoked"),
        (bearer("EXPIRED00000"), 401, "api_key_expired"),
        (bearer("ADMIN0000000"), 403, "permission_denied"),
        (bearer("OTHER0000000"), 403, "model_not_allowed"),
        (bearer("NOTHING00000"), 429, "request_over_limit"),
        (bearer(KEY), 200, "hi"),
    ] {
        let body = chat(false);
        client
            .send(format!(
                "POST {CHAT} HTTP/1.1\r\nhost: x\r\nx-request-id: mine-1\r\n{line}content-length: {}\r\n\r\n{body}",
                body.len()
            ))
            .await;
        let reply = client.reply().await.unwrap();
        assert_eq!(reply.status, status, "{line}: {}", reply.body);
        assert!(
            reply.body.contains(&format!("\"{code}\"")),
            "{}",
            reply.body
        );
        assert_eq!(reply.header("x-request-id"), Some("mine-1"));
        assert!(!reply.body.contains("fb-i"));
    }
    rig.event().await;
}

#[tokio::test]
async fn a_revoked_key_stops_at_once() {
    let engine = ready().await;
    let rig = Rig::new(Setup::default(), &[&engine]);
    let listener = rig.listen();
    let mut client = Client::connect(listener.address()).await;
    assert_eq!(client.post(CHAT, &chat(false)).await.unwrap().status, 200);
    let revoked = KeySpec {
        revoked: true,
        ..key_spec(KEY)
    };
    rig.gateway.load_keys(vec![revoked], false).unwrap();
    assert_eq!(client.post(CHAT, &chat(false)).await.unwrap().status, 401);
    rig.event().await;
}

#[tokio::test]
async fn bodies_that_are_too_large_get_an_answer_that_can_be_read() {
    let engine = ready().await;
    let rig = Rig::new(
        Setup {
            body_bytes: 100_000,
            upload_bytes: 1 << 20,
            ..Setup::default()
        },
        &[&engine],
    );
    let listener = rig.listen();
    let megabytes = 8 << 20;
    for chunked in [false, true] {
        for keyed in [false, true] {
            let mut client = Client::connect(listener.address()).await;
            let line = if chunked {
                "transfer-encoding: chunked\r\n".to_owned()
            } else {
                format!("content-length: {megabytes}\r\n")
            };
            let mut text = head(CHAT, &line);
            if !keyed {
                text = text.replace("Bearer fb-", "Bearer no-");
            }
            if chunked {
                text = format!("{text}{megabytes:x}\r\n");
            }
            let mut bytes = text.into_bytes();
            bytes.extend(std::iter::repeat_n(b'x', megabytes));
            if chunked {
                bytes.extend_from_slice(b"\r\n0\r\n\r\n");
            }
            // A client that reads only once it has sent everything.
            client.send(bytes).await;
            let reply = client.reply().await.unwrap();
            assert_eq!(reply.status, if keyed { 413 } else { 401 });
            assert!(reply.closes());
            assert!(reply.header("x-request-id").is_some());
            assert!(client.closed().await);
        }
    }
}

#[tokio::test]
async fn a_refused_client_that_asks_first_sends_nothing() {
    let engine = ready().await;
    let rig = Rig::new(
        Setup {
            body_bytes: 100_000,
            upload_bytes: 1 << 20,
            ..Setup::default()
        },
        &[&engine],
    );
    let listener = rig.listen();
    let expect = "expect: 100-continue\r\ncontent-length: 5000000\r\n";
    for (bearer, status) in [("Bearer fb-", 413), ("Bearer no-", 401)] {
        let mut client = Client::connect(listener.address()).await;
        let text = head(CHAT, expect).replace("Bearer fb-", bearer);
        client.send(text).await;
        let reply = client.reply().await.unwrap();
        assert_eq!((reply.status, reply.closes()), (status, true));
        assert!(client.closed().await);
    }
    // Who may go on is told so.
    let mut client = Client::connect(listener.address()).await;
    let body = chat(false);
    client
        .send(head(
            CHAT,
            &format!("expect: 100-continue\r\ncontent-length: {}\r\n", body.len()),
        ))
        .await;
    assert_eq!(client.head().await.unwrap().status, 100);
    client.send(&body).await;
    assert_eq!(client.reply().await.unwrap().status, 200);
}

#[tokio::test]
async fn bad_framing_is_refused_and_the_connection_closed() {
    let engine = ready().await;
    let rig = Rig::new(Setup::default(), &[&engine]);
    let listener = rig.listen();
    let mut heads = Vec::new();
    for path in [CHAT, "/v1/models"] {
        let with = |lines: &str| format!("POST {path} HTTP/1.1\r\n{lines}\r\n");
        heads.extend([
            with("content-length: 2\r\n") + "{}",
            with("host: x\r\nhost: y\r\ncontent-length: 2\r\n") + "{}",
            with("host: x\r\ntransfer-encoding: chunked, chunked\r\n") + "0\r\n\r\n",
            with("host: x\r\ntransfer-encoding: chunked\r\ntransfer-encoding: chunked\r\n")
                + "0\r\n\r\n",
            with("host: x\r\ntransfer-encoding: gzip, chunked\r\n") + "0\r\n\r\n",
            with("host: x\r\ntransfer-encoding: gzip\r\n") + "0\r\n\r\n",
            with("host: x\r\ncontent-length: 2\r\ncontent-length: 3\r\n") + "{}",
            with("host: x\r\ncontent-length: +2\r\n") + "{}",
            with("host: x\r\ncontent-length: -2\r\n") + "{}",
            with("host: x\r\nbad header\r\n"),
        ]);
    }
    for text in heads {
        let mut client = Client::connect(listener.address()).await;
        client.send(&text).await;
        let reply = client
            .reply()
            .await
            .unwrap_or_else(|| panic!("no answer: {text}"));
        assert_eq!(reply.status, 400, "{text}");
        assert!(client.closed().await, "{text}");
    }
    assert_eq!(engine.requests().len(), 0);
}

/// RFC 9112 §6.3: the coding wins, and nothing that follows on the connection is trusted.
#[tokio::test]
async fn a_coding_beside_a_length_wins_and_ends_the_connection() {
    let engine = ready().await;
    let rig = Rig::new(Setup::default(), &[&engine]);
    let listener = rig.listen();
    let body = chat(false);
    let coded = format!("{:x}\r\n{body}\r\n0\r\n\r\n", body.len());
    for lines in [
        "transfer-encoding: chunked\r\ncontent-length: 3\r\n",
        "content-length: 3\r\ntransfer-encoding: chunked\r\n",
    ] {
        let mut client = Client::connect(listener.address()).await;
        client
            .send(head(CHAT, lines) + &coded + &request(CHAT, &body))
            .await;
        assert_eq!(client.reply().await.unwrap().status, 200);
        assert!(client.closed().await);
    }
    rig.events(2).await;
}

#[tokio::test]
async fn broken_bodies_get_an_answer_and_reach_no_engine() {
    let engine = ready().await;
    let setup = Setup {
        body_read: Duration::from_millis(200),
        ..Setup::default()
    };
    let rig = Rig::new(setup, &[&engine]);
    let listener = rig.listen();
    for (bytes, code) in [
        (
            head(CHAT, "transfer-encoding: chunked\r\n") + "zz\r\n",
            "bad_body",
        ),
        (head(CHAT, "content-length: 100\r\n") + "{", "slow_body"),
        (
            head(CHAT, "transfer-encoding: chunked\r\n") + "5\r\n{",
            "slow_body",
        ),
    ] {
        let mut client = Client::connect(listener.address()).await;
        client.send(bytes).await;
        let reply = client.reply().await.unwrap();
        assert_eq!((reply.status, reply.closes()), (400, true));
        assert!(reply.body.contains(code), "{}", reply.body);
    }
    for (body, code) in [
        ("", "invalid_json"),
        ("[]", "invalid_json"),
        ("{\"model\":", "invalid_json"),
        ("{\"model\":3,\"messages\":[{}]}", "invalid_type"),
        ("{\"messages\":[{}]}", "missing_required_parameter"),
        ("{\"model\":\"nope\",\"messages\":[{}]}", "model_not_found"),
        ("{\"model\":\"m\"}", "missing_required_parameter"),
    ] {
        let mut client = Client::connect(listener.address()).await;
        let reply = client.post(CHAT, body).await.unwrap();
        assert!((400..405).contains(&reply.status), "{body}: {}", reply.body);
        assert!(reply.body.contains(code), "{body}: {}", reply.body);
        assert!(!reply.closes());
    }
    let mut client = Client::connect(listener.address()).await;
    client
        .send(format!("GET {CHAT} HTTP/1.1\r\nhost: x\r\n\r\n"))
        .await;
    let reply = client.reply().await.unwrap();
    assert_eq!((reply.status, reply.header("allow")), (405, Some("POST")));
    assert_eq!(engine.requests().len(), 0);
    assert_eq!(rig.gateway.events.len(), 0);
}

#[tokio::test]
async fn heads_that_are_huge_or_never_come_hold_nothing() {
    let engine = ready().await;
    let setup = Setup {
        header_read: Duration::from_millis(200),
        keep_alive: Duration::from_millis(200),
        ..Setup::default()
    };
    let rig = Rig::new(setup, &[&engine]);
    let listener = rig.listen();
    let mut client = Client::connect(listener.address()).await;
    client
        .send(head(CHAT, &format!("x-long: {}\r\n", "x".repeat(12_000))))
        .await;
    let mut client = Client::connect(listener.address()).await;
    client
        .send(head(CHAT, &format!("x-long: {}\r\n", "x".repeat(40_000))))
        .await;
    assert_eq!(client.reply().await.unwrap().status, 431);
    // Nothing, half of a head, half of HTTP/2's preface, an idle kept connection.
    for bytes in ["", "POST /v1", "PRI * HTTP/2.0\r\n"] {
        let mut client = Client::connect(listener.address()).await;
        client.send(bytes).await;
        let began = std::time::Instant::now();
        support::rest(&mut client.stream).await;
        assert!(began.elapsed() < Duration::from_secs(2), "{bytes:?}");
    }
    let mut client = Client::connect(listener.address()).await;
    assert_eq!(client.post(CHAT, &chat(false)).await.unwrap().status, 200);
    support::rest(&mut client.stream).await;
    assert!(listener.stop(Duration::from_secs(1)).await);
}

#[tokio::test]
async fn http2_is_spoken_and_a_reset_stream_is_a_client_that_left() {
    use bytes::Bytes;
    use http_body_util::{BodyExt, Full};
    use hyper_util::rt::{TokioExecutor, TokioIo};

    let engine = Engine::start(|number| match number {
        0 => vec![Step::Send(unary("200 OK", UNARY))],
        _ => vec![Step::Hang],
    })
    .await;
    let rig = Rig::new(Setup::default(), &[&engine]);
    let listener = rig.listen();
    let stream = tokio::net::TcpStream::connect(listener.address())
        .await
        .unwrap();
    let (mut sender, connection) =
        hyper::client::conn::http2::handshake(TokioExecutor::new(), TokioIo::new(stream))
            .await
            .unwrap();
    tokio::spawn(connection);
    let post = |path: &str| {
        http::Request::post(format!("http://x{path}"))
            .header("authorization", format!("Bearer {}", key_text(KEY)))
            .body(Full::new(Bytes::from(chat(false))))
            .unwrap()
    };
    let answer = sender.send_request(post(CHAT)).await.unwrap();
    assert_eq!(answer.status(), 200);
    let body = answer.into_body().collect().await.unwrap().to_bytes();
    assert_eq!(body, UNARY);
    let answer = sender.send_request(post("/v1/other")).await.unwrap();
    let body = answer.into_body().collect().await.unwrap().to_bytes();
    assert!(
        body.starts_with(b"POST /v1/other HTTP/1.1\r\nhost: x\r\n")
            || body.ends_with(chat(false).as_bytes())
    );
    let gone = tokio::time::timeout(Duration::from_millis(100), sender.send_request(post(CHAT)));
    assert!(gone.await.is_err());
    let events = rig.events(2).await;
    assert_eq!(events[1].outcome, "client_closed");
    support::until("the engine is left", || engine.active() == 0).await;
}
