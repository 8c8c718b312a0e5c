//! The canary: a port that answers everybody, so that only a sandbox's own egress policy can close it. Silence from
//! it shows that the policy is enforced.

use std::net::Ipv6Addr;
use std::time::Duration;

use tokio::net::{TcpListener, UdpSocket};
use tracing::warn;

/// Sockets of the canary.
pub struct Canary {
    tcp: TcpListener,
    udp: UdpSocket,
}

impl Canary {
    /// Binds TCP and UDP on one port.
    pub async fn bind(port: u16) -> std::io::Result<Self> {
        let udp = match UdpSocket::bind((Ipv6Addr::UNSPECIFIED, port)).await {
            Ok(socket) => socket,
            Err(_) => UdpSocket::bind(("0.0.0.0", port)).await?,
        };
        Ok(Self {
            tcp: crate::http::bind(port).await?,
            udp,
        })
    }

    /// Answers until the process ends: a connection is accepted and closed, a datagram goes back cut to 64 bytes.
    pub async fn serve(self) {
        let Self { tcp, udp } = self;
        tokio::join!(accept(tcp), echo(udp));
    }
}

async fn accept(listener: TcpListener) {
    loop {
        if let Err(error) = listener.accept().await {
            warn!(%error, "canary");
            tokio::time::sleep(Duration::from_millis(100)).await;
        }
    }
}

async fn echo(socket: UdpSocket) {
    let mut buffer = [0; 64];
    loop {
        match socket.recv_from(&mut buffer).await {
            Ok((length, from)) => {
                // A caller that is gone again is none of our business.
                let _ = socket.send_to(&buffer[..length], from).await;
            }
            Err(error) => {
                warn!(%error, "canary");
                tokio::time::sleep(Duration::from_millis(100)).await;
            }
        }
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[tokio::test]
    async fn answers_over_tcp_and_udp() {
        let canary = Canary::bind(0).await.unwrap();
        let (tcp, udp) = (
            canary.tcp.local_addr().unwrap().port(),
            canary.udp.local_addr().unwrap().port(),
        );
        tokio::spawn(canary.serve());
        tokio::net::TcpStream::connect(("127.0.0.1", tcp)).await.unwrap();
        let socket = UdpSocket::bind("127.0.0.1:0").await.unwrap();
        socket.send_to(b"ping", ("127.0.0.1", udp)).await.unwrap();
        let mut buffer = [0; 8];
        let length = tokio::time::timeout(Duration::from_secs(10), socket.recv(&mut buffer))
            .await
            .unwrap()
            .unwrap();
        assert_eq!(&buffer[..length], b"ping");
    }
}
