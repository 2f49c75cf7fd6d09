//! A client of exact bytes.
use std::net::SocketAddr;

use tokio::io::{AsyncReadExt, AsyncWriteExt};
use tokio::net::TcpStream;

use super::{KEY, key_text, within};

pub struct Client {
    pub stream: TcpStream,
    buffer: Vec<u8>,
}

#[derive(Debug)]
pub struct Reply {
    pub status: u16,
    pub head: String,
    pub body: String,
}

impl Reply {
    pub fn header(&self, name: &str) -> Option<&str> {
        self.head.lines().find_map(|line| {
            let (n, value) = line.split_once(':')?;
            n.eq_ignore_ascii_case(name).then(|| value.trim())
        })
    }

    pub fn closes(&self) -> bool {
        self.header("connection") == Some("close")
    }
}

impl Client {
    pub async fn connect(address: SocketAddr) -> Self {
        Self::of(TcpStream::connect(address).await.unwrap())
    }

    /// A client on a connection that is there.
    pub fn of(stream: TcpStream) -> Self {
        stream.set_nodelay(true).unwrap();
        Self {
            stream,
            buffer: Vec::new(),
        }
    }

    pub async fn send(&mut self, bytes: impl AsRef<[u8]>) {
        self.stream.write_all(bytes.as_ref()).await.unwrap();
    }

    async fn more(&mut self) -> bool {
        within(self.stream.read_buf(&mut self.buffer))
            .await
            .is_ok_and(|count| count > 0)
    }

    /// The next answer's head.
    pub async fn head(&mut self) -> Option<Reply> {
        loop {
            if let Some(at) = find(&self.buffer, b"\r\n\r\n") {
                let head = String::from_utf8(self.buffer[..at].to_vec()).unwrap();
                self.buffer.drain(..at + 4);
                let status = head.split(' ').nth(1).unwrap().parse().unwrap();
                return Some(Reply {
                    status,
                    head,
                    body: String::new(),
                });
            }
            if !self.more().await {
                return None;
            }
        }
    }

    /// The next whole answer; `None` when the connection ends before it does.
    pub async fn reply(&mut self) -> Option<Reply> {
        let mut reply = self.head().await?;
        let mut body = Vec::new();
        if let Some(length) = reply.header("content-length") {
            let length: usize = length.parse().unwrap();
            while self.buffer.len() < length {
                if !self.more().await {
                    return None;
                }
            }
            body.extend(self.buffer.drain(..length));
        } else if reply.header("transfer-encoding") == Some("chunked") {
            loop {
                let chunk = self.chunk().await?;
                if chunk.is_empty() {
                    break;
                }
                body.extend_from_slice(&chunk);
            }
        }
        reply.body = String::from_utf8(body).unwrap();
        Some(reply)
    }

    /// The next chunk of a chunked body; empty at its end, `None` when it is cut off.
    pub async fn chunk(&mut self) -> Option<Vec<u8>> {
        loop {
            if let Some(at) = find(&self.buffer, b"\r\n") {
                let size = std::str::from_utf8(&self.buffer[..at]).unwrap();
                let size = usize::from_str_radix(size, 16).unwrap();
                let end = at + 2 + size + 2;
                if self.buffer.len() >= end {
                    let data = self.buffer[at + 2..at + 2 + size].to_vec();
                    self.buffer.drain(..end);
                    return Some(data);
                }
            }
            if !self.more().await {
                return None;
            }
        }
    }

    /// Whether the other side closes without another byte.
    pub async fn closed(&mut self) -> bool {
        self.buffer.is_empty() && !self.more().await
    }

    pub async fn post(&mut self, path: &str, body: &str) -> Option<Reply> {
        self.send(request(path, body)).await;
        self.reply().await
    }
}

fn find(haystack: &[u8], needle: &[u8]) -> Option<usize> {
    haystack
        .windows(needle.len())
        .position(|window| window == needle)
}

/// A request of the test's key.
pub fn request(path: &str, body: &str) -> String {
    head(path, &format!("content-length: {}\r\n", body.len())) + body
}

/// The head of a request with more header lines.
pub fn head(path: &str, lines: &str) -> String {
    format!(
        "POST {path} HTTP/1.1\r\nhost: x\r\nauthorization: Bearer {}\r\ncontent-type: application/json\r\n{lines}\r\n",
        key_text(KEY)
    )
}
