//! The program end to end: its client against its upstream, and raw requests to the upstream.

#![expect(clippy::unwrap_used, reason = "a test ends where something is missing")]

use std::io::{Read as _, Write as _};
use std::net::{TcpListener, TcpStream};
use std::process::{Child, Command};
use std::thread::sleep;
use std::time::Duration;

use serde_json::Value;

const BINARY: &str = env!("CARGO_BIN_EXE_forebay-load");

struct Upstream {
    child: Child,
    address: String,
}

impl Upstream {
    fn start() -> Self {
        Self::started("upstream", &[])
    }

    /// A bare relay in front of it.
    fn relay(&self) -> Self {
        Self::started("relay", &["--upstream", &self.address])
    }

    fn started(what: &str, arguments: &[&str]) -> Self {
        let port = TcpListener::bind("127.0.0.1:0")
            .unwrap()
            .local_addr()
            .unwrap()
            .port();
        let address = format!("127.0.0.1:{port}");
        let mut command = Command::new(BINARY);
        let child = command
            .args([what, "--listen", &address])
            .args(arguments)
            .spawn()
            .unwrap();
        for _ in 0..200 {
            if TcpStream::connect(&address).is_ok() {
                break;
            }
            sleep(Duration::from_millis(10));
        }
        Self { child, address }
    }

    fn load(&self, arguments: &[&str]) -> Value {
        load_at(&format!("http://{}", self.address), arguments)
    }

    fn raw(&self, pieces: &[&str]) -> String {
        let mut stream = TcpStream::connect(&self.address).unwrap();
        stream.set_nodelay(true).unwrap();
        for piece in pieces {
            stream.write_all(piece.as_bytes()).unwrap();
            sleep(Duration::from_millis(5));
        }
        let mut answer = String::new();
        stream.read_to_string(&mut answer).unwrap();
        answer
    }
}

fn load_at(url: &str, arguments: &[&str]) -> Value {
    let mut command = Command::new(BINARY);
    command.args(["client", "--url", url]).args(arguments);
    let output = command.output().unwrap();
    assert!(
        output.status.success(),
        "{}",
        String::from_utf8_lossy(&output.stderr)
    );
    serde_json::from_slice(&output.stdout).unwrap()
}

impl Drop for Upstream {
    fn drop(&mut self) {
        let _ = self.child.kill();
        let _ = self.child.wait();
    }
}

#[test]
fn every_workload_comes_back_whole() {
    let upstream = Upstream::start();
    for (workload, requests, events) in [
        ("unary", 20, 0),
        ("embeddings", 20, 0),
        ("prompt200k", 4, 0),
        ("burst", 10, 1000),
        ("paced", 4, 40),
    ] {
        let count = requests.to_string();
        let report = upstream.load(&[
            "--workload",
            workload,
            "--concurrency",
            "4",
            "--requests",
            &count,
            "--pace",
            "200",
            "--events",
            "10",
            "--include-usage",
            "--threads",
            "2",
        ]);
        assert_eq!(report["errors"], 0, "{report}");
        assert_eq!(report["requests"], requests);
        assert_eq!(report["events"], events);
    }
}

#[test]
fn paced_events_carry_times_that_the_client_understands() {
    let upstream = Upstream::start();
    let report = upstream.load(&[
        "--workload",
        "paced",
        "--concurrency",
        "2",
        "--requests",
        "2",
        "--pace",
        "100",
        "--events",
        "30",
    ]);
    assert_eq!(report["delay_us"]["count"], 60);
    assert_eq!(report["gap_us"]["count"], 58);
    // Seen over a loopback socket, whatever else the machine does.
    assert!(report["delay_us"]["p50"].as_f64().unwrap() < 100_000.0);
    let gap = report["gap_us"]["p50"].as_f64().unwrap();
    assert!((5_000.0..20_000.0).contains(&gap), "{gap}");
}

#[test]
fn a_constant_rate_makes_as_many_requests_as_it_says() {
    let upstream = Upstream::start();
    let report = upstream.load(&[
        "--workload",
        "unary",
        "--concurrency",
        "8",
        "--rate",
        "200",
        "--duration",
        "0.5",
    ]);
    assert_eq!(report["requests"], 100);
    assert_eq!(report["errors"], 0);
}

#[test]
fn a_relay_changes_nothing() {
    let upstream = Upstream::start();
    let relay = upstream.relay();
    let report = relay.load(&[
        "--workload",
        "burst",
        "--concurrency",
        "4",
        "--requests",
        "8",
    ]);
    assert_eq!(report["requests"], 8);
    assert_eq!(report["errors"], 0);
    assert_eq!(report["events"], 800);
    let asked = "GET /v1/models HTTP/1.1\r\nhost: x\r\nconnection: close\r\n\r\n";
    assert_eq!(relay.raw(&[asked]), upstream.raw(&[asked]));
}

#[test]
fn failures_are_counted_by_kind() {
    let upstream = Upstream::start();
    let url = format!("http://{}/elsewhere", upstream.address);
    let report = load_at(&url, &["--workload", "unary", "--requests", "3"]);
    assert_eq!(report["errors_by_kind"]["status"], 3);
    assert!(
        report["error_samples"][0]
            .as_str()
            .unwrap()
            .starts_with("404")
    );

    let closed = TcpListener::bind("127.0.0.1:0")
        .unwrap()
        .local_addr()
        .unwrap();
    let url = format!("http://{closed}");
    let report = load_at(&url, &["--workload", "burst", "--requests", "2"]);
    assert_eq!(report["errors_by_kind"]["io"], 2);
}

#[test]
fn the_upstream_takes_chunked_bodies_and_100_continue() {
    let upstream = Upstream::start();
    let answer = upstream.raw(&[
        "POST /v1/chat/completions HTTP/1.1\r\nhost: x\r\ntransfer-encoding: chunked\r\n",
        "expect: 100-continue\r\nconnection: close\r\n\r\n",
        "14\r\n{\"user\":\"load:unary:\r\n",
        "5\r\n900\"}\r\n0\r\n\r\n",
    ]);
    assert!(
        answer.starts_with("HTTP/1.1 100 Continue\r\n\r\nHTTP/1.1 200 OK\r\n"),
        "{answer}"
    );
    assert!(answer.contains("content-length: 900\r\n"), "{answer}");
}

#[test]
fn the_upstream_answers_what_gateways_poll() {
    let upstream = Upstream::start();
    for (path, want) in [
        ("/ready", "200 OK"),
        ("/health", "200 OK"),
        ("/v1/models", "load-model"),
        ("/v1/models/load-model", "load-model"),
        ("/v1/loads?include=core", "num_running_reqs"),
        ("/nothing", "404 Not Found"),
    ] {
        let head = format!("GET {path} HTTP/1.1\r\nhost: x\r\nconnection: close\r\n\r\n");
        let answer = upstream.raw(&[&head]);
        assert!(answer.contains(want), "{path}: {answer}");
    }
}
