//! A listening socket closed without a reset for anyone.
//!
//! The system finishes handshakes before anybody accepts: what waits in the socket's queue when it
//! is closed is reset, though its client was told that it is connected and may have sent a request.
//! So first no handshake may begin. A SYN that is dropped is sent again after a second, and refused
//! then, which every client understands: nothing of its request was sent.
use std::io;
use std::time::Duration;

use socket2::{SockFilter, SockRef};
use tokio::net::TcpListener;

/// How long handshakes that have begun may take.
pub(super) const HANDSHAKE: Duration = Duration::from_millis(25);

/// Of a TCP header, the byte with the flags; two of these.
const FLAGS: u32 = 13;
const SYN: u32 = 0x02;
const ACK: u32 = 0x10;

/// From now on no handshake begins; those that have begun end as ever.
pub(super) fn seal(listener: &TcpListener) -> io::Result<()> {
    let instruction = |code: u32, jt, jf, k| SockFilter::new(code as u16, jt, jf, k);
    // Classic BPF on a segment from its TCP header on: drop it where of SYN and ACK only SYN is set.
    SockRef::from(listener).attach_filter(&[
        instruction(libc::BPF_LD | libc::BPF_B | libc::BPF_ABS, 0, 0, FLAGS),
        instruction(libc::BPF_ALU | libc::BPF_AND | libc::BPF_K, 0, 0, SYN | ACK),
        instruction(libc::BPF_JMP | libc::BPF_JEQ | libc::BPF_K, 0, 1, SYN),
        instruction(libc::BPF_RET | libc::BPF_K, 0, 0, 0),
        instruction(libc::BPF_RET | libc::BPF_K, 0, 0, u32::MAX),
    ])
}
