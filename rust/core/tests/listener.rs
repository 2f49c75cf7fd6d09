//! The listener over real sockets: relaying, leaving clients, draining, stopping.
#![allow(
    missing_docs,
    clippy::unwrap_used,
    clippy::expect_used,
    clippy::panic,
    clippy::indexing_slicing
)]

mod support;

use std::time::{Duration, Instant};

use support::client::{Client, request};
use support::engine::{
    Engine, LAST_CHUNK, STREAM_HEAD, Step, UNARY, chunk, content, content_shown, unary,
    whole_stream, whole_stream_shown,
};
use support::{Rig, Setup, chat, until, within};
use tokio::io::AsyncWriteExt;

const CHAT: &str = "/v1/chat/completions";

async fn ready() -> Engine {
    Engine::start(|number| {
        if number % 2 == 0 {
            vec![Step::Send(unary("200 OK", UNARY))]
        } else {
            vec![
                Step::Send(STREAM_HEAD.to_vec()),
                Step::Send(chunk(whole_stream().as_bytes())),
                Step::Send(LAST_CHUNK.to_vec()),
            ]
        }
    })
    .await
}

/// A stream that has begun and then stands still.
async fn standing() -> Engine {
    Engine::always(vec![
        Step::Send(STREAM_HEAD.to_vec()),
        Step::Send(chunk(content("a", 1).as_bytes())),
        Step::Hang,
    ])
    .await
}

#[tokio::test]
async fn one_connection_takes_many_requests() {
    let engine = ready().await;
    let rig = Rig::new(Setup::default(), &[&engine]);
    let listener = rig.listen();
    let mut client = Client::connect(listener.address()).await;
    for _ in 0..3 {
        let reply = client.post(CHAT, &chat(false)).await.unwrap();
        assert_eq!((reply.status, reply.body.as_str()), (200, UNARY));
        assert!(reply.header("x-request-id").is_some());
        assert!(!reply.closes());
        let reply = client.post(CHAT, &chat(true)).await.unwrap();
        assert_eq!(reply.body, whole_stream_shown());
        assert_eq!(reply.header("x-accel-buffering"), Some("no"));
        let reply = client.post("/v1/other?a=b", "hello").await.unwrap();
        assert_eq!(reply.status, 200);
        assert!(reply.body.starts_with("POST /v1/other?a=b HTTP/1.1\r\n"));
        assert!(reply.body.ends_with("hello"));
        assert_eq!(reply.header("server"), None);
    }
    rig.events(6).await;
}

#[tokio::test]
async fn pipelined_requests_are_answered_in_order() {
    let engine = ready().await;
    let rig = Rig::new(Setup::default(), &[&engine]);
    let listener = rig.listen();
    let mut client = Client::connect(listener.address()).await;
    let both = request(CHAT, &chat(false)) + &request(CHAT, &chat(true));
    client.send(both).await;
    assert_eq!(client.reply().await.unwrap().body, UNARY);
    assert_eq!(client.reply().await.unwrap().body, whole_stream_shown());
    rig.events(2).await;
}

#[tokio::test]
async fn events_are_passed_on_as_they_come() {
    let pause = Duration::from_millis(60);
    let mut steps = vec![Step::Send(STREAM_HEAD.to_vec())];
    for index in 0..4 {
        steps.push(Step::Send(chunk(content("a", index).as_bytes())));
        steps.push(Step::Wait(pause));
    }
    let engine = Engine::always(steps).await;
    let rig = Rig::new(Setup::default(), &[&engine]);
    let listener = rig.listen();
    let mut client = Client::connect(listener.address()).await;
    client.send(request(CHAT, &chat(true))).await;
    client.head().await.unwrap();
    let mut last = Instant::now();
    for index in 0..4 {
        assert_eq!(client.chunk().await.unwrap(), content_shown("a").as_bytes());
        let waited = last.elapsed();
        assert!(index == 0 || waited > pause / 2, "held back: {waited:?}");
        last = Instant::now();
    }
}

#[tokio::test]
async fn a_client_that_leaves_stops_the_engine() {
    for stream in [false, true] {
        for reset in [false, true] {
            let engine = if stream {
                standing().await
            } else {
                Engine::always(vec![Step::Hang]).await
            };
            let rig = Rig::new(Setup::default(), &[&engine]);
            let listener = rig.listen();
            let mut client = Client::connect(listener.address()).await;
            client.send(request(CHAT, &chat(stream))).await;
            if stream {
                client.head().await.unwrap();
                client.chunk().await.unwrap();
            } else {
                until("it runs", || engine.active() == 1).await;
            }
            if reset {
                client.stream.set_zero_linger().unwrap();
            }
            let left = Instant::now();
            drop(client);
            until("the engine is left", || engine.active() == 0).await;
            assert!(left.elapsed() < Duration::from_millis(100));
            let event = rig.event().await;
            assert_eq!(event.outcome, "client_closed");
            assert_eq!(event.status, if stream { 200 } else { 499 });
            assert_eq!(event.usage.completion, u64::from(stream));
            until("the engine is told", || engine.aborts().len() == 1).await;
        }
    }
}

#[tokio::test]
async fn a_client_that_does_not_read_slows_the_engine_only() {
    let event = content(&"x".repeat(1000), 1).repeat(16);
    let engine = Engine::always(vec![
        Step::Send(STREAM_HEAD.to_vec()),
        Step::Flood(chunk(event.as_bytes())),
    ])
    .await;
    let rig = Rig::new(
        Setup {
            idle: 0.1,
            ..Setup::default()
        },
        &[&engine],
    );
    let listener = rig.listen();
    let mut slow = Client::connect(listener.address()).await;
    slow.send(request(CHAT, &chat(true))).await;
    slow.head().await.unwrap();
    let mut written = 0;
    for _ in 0..40 {
        tokio::time::sleep(Duration::from_millis(100)).await;
        if engine.written() == written {
            break;
        }
        written = engine.written();
    }
    assert_eq!(engine.written(), written, "the engine's writes block");
    // What the two sockets hold, and little more of ours.
    assert!(written < 24 << 20, "{written}");
    assert_eq!(rig.gateway.metrics.in_flight.get(), 1);
    drop(slow);
    assert_eq!(rig.event().await.outcome, "client_closed");
}

#[tokio::test]
async fn a_client_that_never_reads_again_is_given_up() {
    let event = content(&"x".repeat(1000), 1).repeat(16);
    let engine = Engine::always(vec![
        Step::Send(STREAM_HEAD.to_vec()),
        Step::Flood(chunk(event.as_bytes())),
    ])
    .await;
    let rig = Rig::new(
        Setup {
            write_stall: Duration::from_millis(300),
            ..Setup::default()
        },
        &[&engine],
    );
    let listener = rig.listen();
    let mut stuck = Client::connect(listener.address()).await;
    stuck.send(request(CHAT, &chat(true))).await;
    stuck.head().await.unwrap();
    assert_eq!(rig.event().await.outcome, "client_closed");
    until("the engine is left", || engine.active() == 0).await;
    assert!(listener.stop(Duration::from_secs(1)).await);
}

#[tokio::test]
async fn draining_refuses_what_is_new_and_ends_what_runs() {
    let engine = Engine::always(vec![
        Step::Send(STREAM_HEAD.to_vec()),
        Step::Send(chunk(content("a", 1).as_bytes())),
        Step::Wait(Duration::from_millis(300)),
        Step::Send(chunk(whole_stream().as_bytes())),
        Step::Send(LAST_CHUNK.to_vec()),
    ])
    .await;
    let rig = Rig::new(Setup::default(), &[&engine]);
    let listener = rig.listen();
    let mut running = Client::connect(listener.address()).await;
    running.send(request(CHAT, &chat(true))).await;
    running.head().await.unwrap();
    let mut kept = Client::connect(listener.address()).await;
    assert!(!kept.post("/v1/other", "x").await.unwrap().closes());

    rig.gateway.refuse();
    let refused = kept.post(CHAT, &chat(true)).await.unwrap();
    assert_eq!((refused.status, refused.closes()), (503, true));
    assert_eq!(refused.header("retry-after"), Some("1"));
    assert!(kept.closed().await);
    let mut other = Client::connect(listener.address()).await;
    let reply = other.post("/healthz", "").await.unwrap();
    assert_eq!((reply.status, reply.closes()), (200, true));
    assert!(other.closed().await);

    let mut body = Vec::new();
    loop {
        let piece = running.chunk().await.expect("the stream is not cut");
        if piece.is_empty() {
            break;
        }
        body.extend_from_slice(&piece);
    }
    let expected = content_shown("a") + &whole_stream_shown();
    assert_eq!(String::from_utf8(body).unwrap(), expected);
    assert!(listener.stop(Duration::from_secs(2)).await);
    assert_eq!(rig.event().await.outcome, "ok");
}

#[tokio::test]
async fn what_is_on_its_way_while_the_door_closes_is_answered() {
    let engine = ready().await;
    let rig = Rig::new(Setup::default(), &[&engine]);
    let listener = rig.listen();
    let mut kept = Client::connect(listener.address()).await;
    assert!(!kept.post(CHAT, &chat(false)).await.unwrap().closes());
    let mut idle = Client::connect(listener.address()).await;
    idle.post("/v1/other", "x").await.unwrap();

    rig.gateway.leave();
    let mut late = Client::connect(listener.address()).await;
    let reply = late.post(CHAT, &chat(true)).await.unwrap();
    assert_eq!((reply.status, reply.closes()), (200, true));
    assert!(late.closed().await);

    rig.gateway.drain();
    listener.close(Duration::from_millis(400)).await;
    let refused = tokio::net::TcpStream::connect(listener.address()).await;
    assert!(refused.is_err(), "no longer listening");
    assert_eq!(listener.expecting(), 2);
    tokio::time::sleep(Duration::from_millis(100)).await;
    let reply = kept.post(CHAT, &chat(false)).await.unwrap();
    assert_eq!((reply.status, reply.closes()), (200, true));
    assert!(kept.closed().await);
    assert_eq!(listener.expecting(), 1);
    let waited = Instant::now();
    assert!(within(idle.closed()).await);
    assert!(waited.elapsed() > Duration::from_millis(100));
    assert_eq!(listener.expecting(), 0);
    assert!(listener.stop(Duration::from_secs(1)).await);
    rig.events(3).await;
}

#[tokio::test]
async fn a_stream_that_began_before_leaves_its_connection_open_for_one_more_request() {
    let engine = Engine::always(vec![
        Step::Send(STREAM_HEAD.to_vec()),
        Step::Send(chunk(content("a", 1).as_bytes())),
        Step::Wait(Duration::from_millis(300)),
        Step::Send(chunk(whole_stream().as_bytes())),
        Step::Send(LAST_CHUNK.to_vec()),
    ])
    .await;
    let rig = Rig::new(Setup::default(), &[&engine]);
    let listener = rig.listen();
    let mut client = Client::connect(listener.address()).await;
    client.send(request(CHAT, &chat(true))).await;
    client.head().await.unwrap();
    rig.gateway.drain();
    listener.close(Duration::from_millis(200)).await;
    while !client
        .chunk()
        .await
        .expect("the stream is not cut")
        .is_empty()
    {}
    assert_eq!(listener.expecting(), 1);
    let reply = client.post(CHAT, &chat(true)).await.unwrap();
    assert_eq!((reply.status, reply.closes()), (200, true));
    assert!(client.closed().await);
    rig.events(2).await;
    assert!(listener.stop(Duration::from_secs(1)).await);
}

#[tokio::test]
async fn no_connection_is_reset_while_listeners_come_and_go() {
    let engine = ready().await;
    let rig = Rig::new(Setup::default(), &[&engine]);
    let mut listener = rig.listen();
    let address = listener.address();
    let over = std::sync::Arc::new(std::sync::atomic::AtomicBool::new(false));
    let clients: Vec<_> = (0..8)
        .map(|_| {
            let over = std::sync::Arc::clone(&over);
            tokio::spawn(async move {
                let (mut answered, mut refused) = (0, 0);
                while !over.load(std::sync::atomic::Ordering::Relaxed) {
                    let connected = tokio::net::TcpStream::connect(address).await;
                    let Ok(stream) = connected else {
                        refused += 1;
                        tokio::time::sleep(Duration::from_millis(2)).await;
                        continue;
                    };
                    let mut client = Client::of(stream);
                    let reply = client.post("/v1/other", "x").await;
                    assert_eq!(reply.expect("connected, so served").status, 200);
                    answered += 1;
                }
                (answered, refused)
            })
        })
        .collect();
    for _ in 0..20 {
        tokio::time::sleep(Duration::from_millis(20)).await;
        listener.close(Duration::from_millis(100)).await;
        tokio::time::sleep(Duration::from_millis(5)).await;
        listener = rig.listen_on(address, false).unwrap();
    }
    over.store(true, std::sync::atomic::Ordering::Relaxed);
    for client in clients {
        let (answered, _) = client.await.unwrap();
        assert!(answered > 0);
    }
    assert!(listener.stop(Duration::from_secs(1)).await);
}

#[tokio::test]
async fn stopping_closes_idle_connections_and_waits_for_running_ones() {
    let engine = standing().await;
    let rig = Rig::new(Setup::default(), &[&engine]);
    let listener = rig.listen();
    let mut fresh = Client::connect(listener.address()).await;
    let mut used = Client::connect(listener.address()).await;
    used.post("/v1/other", "x").await.unwrap();
    let mut running = Client::connect(listener.address()).await;
    running.send(request(CHAT, &chat(true))).await;
    running.head().await.unwrap();
    assert!(!listener.stop(Duration::from_millis(200)).await);
    assert!(within(fresh.closed()).await);
    assert!(within(used.closed()).await);
    let refused = tokio::net::TcpStream::connect(listener.address()).await;
    assert!(refused.is_err(), "no longer listening");
    drop(running);
    assert!(listener.stop(Duration::from_secs(2)).await);
    assert_eq!(rig.event().await.outcome, "client_closed");
}

#[tokio::test]
async fn half_a_head_holds_a_stop_no_longer_than_a_head_may_take() {
    let engine = ready().await;
    let rig = Rig::new(
        Setup {
            header_read: Duration::from_millis(300),
            ..Setup::default()
        },
        &[&engine],
    );
    let listener = rig.listen();
    let mut half = Client::connect(listener.address()).await;
    half.send("POST /v1/chat/completions HTTP/1.1\r\nhost: x\r\n")
        .await;
    tokio::time::sleep(Duration::from_millis(30)).await;
    let began = Instant::now();
    assert!(listener.stop(Duration::from_secs(5)).await);
    assert!(began.elapsed() < Duration::from_secs(1));
}

#[tokio::test]
async fn an_idle_connection_is_kept_longer_than_a_head_may_take() {
    let engine = ready().await;
    let rig = Rig::new(
        Setup {
            header_read: Duration::from_millis(150),
            keep_alive: Duration::from_millis(900),
            ..Setup::default()
        },
        &[&engine],
    );
    let listener = rig.listen();
    let mut client = Client::connect(listener.address()).await;
    client.post(CHAT, &chat(false)).await.unwrap();
    tokio::time::sleep(Duration::from_millis(400)).await;
    client.post(CHAT, &chat(true)).await.unwrap();
    let began = Instant::now();
    assert!(within(client.closed()).await);
    assert!(began.elapsed() > Duration::from_millis(700));

    let mut half = Client::connect(listener.address()).await;
    half.post(CHAT, &chat(false)).await.unwrap();
    half.send("POST /v1/chat/completions HTTP/1.1\r\nhost: x\r\n")
        .await;
    let began = Instant::now();
    assert!(within(half.closed()).await);
    assert!(began.elapsed() < Duration::from_millis(700));

    let mut silent = Client::connect(listener.address()).await;
    let began = Instant::now();
    assert!(within(silent.closed()).await);
    assert!(began.elapsed() < Duration::from_millis(700));
    rig.events(3).await;
}

/// A client that shuts its sending side down is taken as gone, as one that has left looks the same.
#[tokio::test]
async fn a_half_closed_client_has_gone() {
    let engine = Engine::always(vec![Step::Hang]).await;
    let rig = Rig::new(Setup::default(), &[&engine]);
    let listener = rig.listen();
    let mut client = Client::connect(listener.address()).await;
    client.send(request(CHAT, &chat(true))).await;
    until("it runs", || engine.active() == 1).await;
    client.stream.shutdown().await.unwrap();
    assert_eq!(rig.event().await.outcome, "client_closed");
}

#[tokio::test]
async fn an_address_is_shared_only_by_those_that_say_so() {
    let engine = ready().await;
    let rig = Rig::new(Setup::default(), &[&engine]);
    let first = rig.listen_on("127.0.0.1:0".parse().unwrap(), true).unwrap();
    let second = rig.listen_on(first.address(), true).unwrap();
    assert_eq!(first.address(), second.address());
    assert!(rig.listen_on(first.address(), false).is_err());
    assert!(first.stop(Duration::from_secs(5)).await);
    let mut client = Client::connect(second.address()).await;
    let reply = client.post(CHAT, &chat(false)).await.unwrap();
    assert_eq!(reply.status, 200);
    rig.events(1).await;
    let alone = rig.listen();
    assert!(rig.listen_on(alone.address(), true).is_err());
}

#[tokio::test]
async fn the_application_is_told_who_asks_and_not_by_the_client() {
    let engine = ready().await;
    let rig = Rig::new(Setup::default(), &[&engine]);
    let listener = rig.listen();
    let mut client = Client::connect(listener.address()).await;
    let forged = "x-forebay-peer: 192.0.2.1\r\nX-Forebay-Peer: 192.0.2.2\r\n";
    for headers in ["", forged, "connection: x-forebay-peer\r\n"] {
        let head = format!("GET /v1/other HTTP/1.1\r\nhost: a\r\n{headers}\r\n");
        client.send(head).await;
        let reply = client.reply().await.unwrap();
        let peers: Vec<_> = reply
            .body
            .lines()
            .filter_map(|line| line.strip_prefix("x-forebay-peer: "))
            .collect();
        assert_eq!(peers, ["127.0.0.1"], "{}", reply.body);
    }
}
