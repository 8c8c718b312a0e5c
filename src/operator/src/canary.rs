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
    let own_port = socket
        .local_addr()
        .map(|address| address.port())
        .unwrap_or_default();
    loop {
        match socket.recv_from(&mut buffer).await {
            // Two canaries that were introduced by a forged source address would talk for ever.
            Ok((_, from)) if from.port() == own_port => {}
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
    use tokio::io::AsyncReadExt;
    use tokio::net::TcpStream;

    use super::*;

    const PATIENCE: Duration = Duration::from_secs(10);

    #[tokio::test]
    async fn answers_over_tcp_and_udp_in_both_families() {
        let canary = Canary::bind(0).await.unwrap();
        let (tcp, udp) = (canary.tcp.local_addr().unwrap(), canary.udp.local_addr().unwrap());
        tokio::spawn(canary.serve());
        let mut families = vec!["127.0.0.1"];
        if udp.is_ipv6() && UdpSocket::bind("[::1]:0").await.is_ok() {
            families.push("::1");
        }
        for host in families {
            let mut stream = TcpStream::connect((host, tcp.port())).await.unwrap();
            let closed = tokio::time::timeout(PATIENCE, stream.read(&mut [0; 1]))
                .await
                .unwrap();
            assert!(matches!(closed, Ok(0) | Err(_)), "{host}: {closed:?}");

            let socket = UdpSocket::bind((host, 0)).await.unwrap();
            socket.send_to(&[b'x'; 1_000], (host, udp.port())).await.unwrap();
            let mut buffer = [0; 2_000];
            let length = tokio::time::timeout(PATIENCE, socket.recv(&mut buffer))
                .await
                .unwrap()
                .unwrap();
            assert_eq!(length, 64, "{host}: a datagram goes back cut");
        }
    }

    #[tokio::test]
    async fn two_canaries_never_answer_each_other() {
        let canary = UdpSocket::bind("127.0.0.1:0").await.unwrap();
        let port = canary.local_addr().unwrap().port();
        tokio::spawn(echo(canary));
        // Another address of the loopback network, so that the same port is free there.
        let twin = UdpSocket::bind(("127.0.0.2", port)).await.unwrap();
        twin.send_to(b"echo", ("127.0.0.1", port)).await.unwrap();
        // The canary takes datagrams in order: once it has answered this one, it has passed over the first.
        let other = UdpSocket::bind("127.0.0.1:0").await.unwrap();
        other.send_to(b"ping", ("127.0.0.1", port)).await.unwrap();
        let mut buffer = [0; 8];
        let length = tokio::time::timeout(PATIENCE, other.recv(&mut buffer))
            .await
            .unwrap()
            .unwrap();
        assert_eq!(&buffer[..length], b"ping");
        assert!(
            twin.try_recv(&mut buffer).is_err(),
            "the canary answered its twin"
        );
    }
}
