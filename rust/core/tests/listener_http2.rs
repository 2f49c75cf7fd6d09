//! The end of the listener over HTTP/2.
#![allow(
    missing_docs,
    clippy::unwrap_used,
    clippy::expect_used,
    clippy::panic,
    clippy::indexing_slicing
)]

mod support;

use std::convert::Infallible;
use std::net::SocketAddr;
use std::time::{Duration, Instant};

use bytes::Bytes;
use futures_util::stream;
use http_body_util::{BodyExt, StreamBody};
use hyper::body::{Frame, Incoming};
use hyper::client::conn::http2::SendRequest;
use hyper_util::rt::{TokioExecutor, TokioIo};
use support::engine::{Engine, Step, UNARY, unary};
use support::{KEY, Rig, Setup, chat, key_text, until};
use tokio::sync::mpsc;

const CHAT: &str = "/v1/chat/completions";

type Pieces = http_body_util::combinators::UnsyncBoxBody<Bytes, Infallible>;

async fn connect(address: SocketAddr) -> SendRequest<Pieces> {
    let stream = tokio::net::TcpStream::connect(address).await.unwrap();
    let (sender, connection) =
        hyper::client::conn::http2::handshake(TokioExecutor::new(), TokioIo::new(stream))
            .await
            .unwrap();
    tokio::spawn(connection);
    sender
}

/// A request whose body is what is sent, until the sender is dropped.
fn slow_post() -> (mpsc::UnboundedSender<Bytes>, http::Request<Pieces>) {
    let (sender, pieces) = mpsc::unbounded_channel::<Bytes>();
    let frames = stream::unfold(pieces, |mut pieces| async {
        let piece = pieces.recv().await?;
        Some((Ok(Frame::data(piece)), pieces))
    });
    let request = http::Request::post(format!("http://x{CHAT}"))
        .header("authorization", format!("Bearer {}", key_text(KEY)))
        .body(StreamBody::new(frames).boxed_unsync())
        .unwrap();
    (sender, request)
}

async fn text(answer: http::Response<Incoming>) -> String {
    let bytes = answer.into_body().collect().await.unwrap().to_bytes();
    String::from_utf8(bytes.to_vec()).unwrap()
}

#[tokio::test]
async fn a_body_that_still_comes_while_the_door_closes_is_waited_for() {
    let engine = Engine::always(vec![
        Step::Wait(Duration::from_millis(200)),
        Step::Send(unary("200 OK", UNARY)),
    ])
    .await;
    let rig = Rig::new(Setup::default(), &[&engine]);
    let listener = rig.listen();
    let mut client = connect(listener.address()).await;
    let (body, request) = slow_post();
    let whole = chat(false);
    let (first, rest) = whole.split_at(10);
    body.send(Bytes::copy_from_slice(first.as_bytes())).unwrap();
    let answer = tokio::spawn(client.send_request(request));
    // And one that brings nothing.
    let idle = connect(listener.address()).await;
    tokio::time::sleep(Duration::from_millis(100)).await;
    assert_eq!(listener.expecting(), 2);

    rig.gateway.drain();
    listener.close(Duration::from_millis(100)).await;
    until("the idle one has ended", || listener.expecting() == 1).await;
    assert!(idle.is_closed());
    // Longer than anything may cross the news of the end.
    tokio::time::sleep(Duration::from_millis(300)).await;
    assert_eq!(listener.expecting(), 1);
    body.send(Bytes::copy_from_slice(rest.as_bytes())).unwrap();
    drop(body);
    until("the engine has it", || engine.active() == 1).await;
    assert_eq!(listener.expecting(), 1);
    let answer = answer.await.unwrap().unwrap();
    assert_eq!(answer.status(), 200);
    assert_eq!(text(answer).await, UNARY);
    until("nothing is expected", || listener.expecting() == 0).await;
    assert!(listener.stop(Duration::from_secs(1)).await);
    assert_eq!(rig.event().await.outcome, "ok");
}

#[tokio::test]
async fn a_client_that_does_not_hear_of_the_end_holds_it_up_for_a_moment_only() {
    let engine = Engine::always(vec![Step::Send(unary("200 OK", UNARY))]).await;
    let rig = Rig::new(Setup::default(), &[&engine]);
    let listener = rig.listen();
    let mut deaf = support::client::Client::connect(listener.address()).await;
    // The preface and empty settings; what comes back is never read.
    deaf.send(b"PRI * HTTP/2.0\r\n\r\nSM\r\n\r\n\0\0\0\x04\0\0\0\0\0")
        .await;
    tokio::time::sleep(Duration::from_millis(50)).await;
    rig.gateway.drain();
    let began = Instant::now();
    listener.close(Duration::from_millis(200)).await;
    assert_eq!(listener.expecting(), 1);
    until("nothing is expected", || listener.expecting() == 0).await;
    assert!(began.elapsed() >= Duration::from_millis(200));
    assert!(!listener.stop(Duration::from_millis(50)).await);
    drop(deaf);
    assert!(listener.stop(Duration::from_secs(1)).await);
}
