//! A hop that does nothing but copy bytes: what any gateway costs at least.

use std::io;
use std::net::SocketAddr;

use tokio::io::copy_bidirectional;
use tokio::net::TcpStream;

/// Copies between each connection and one of its own to the upstream, on one thread, until the
/// process ends. Fails when the address cannot be bound.
pub(crate) fn run(listen: SocketAddr, upstream: SocketAddr) -> io::Result<()> {
    crate::on_threads(1, move |_| async move {
        let listener = crate::upstream::listen(listen)?;
        loop {
            let (client, _) = listener.accept().await?;
            tokio::task::spawn_local(async move {
                // A side that goes away ends its connection and nothing else.
                let _ = copy(client, upstream).await;
            });
        }
    })
    .map(|_: Vec<()>| ())
}

async fn copy(mut client: TcpStream, upstream: SocketAddr) -> io::Result<()> {
    client.set_nodelay(true)?;
    let mut provider = TcpStream::connect(upstream).await?;
    provider.set_nodelay(true)?;
    copy_bidirectional(&mut client, &mut provider).await?;
    Ok(())
}
