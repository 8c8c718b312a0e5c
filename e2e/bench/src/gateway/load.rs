//! The client: requests over tunnels, each timed.

use std::net::{IpAddr, Ipv4Addr, SocketAddr};
use std::sync::Arc;
use std::time::{Duration, Instant};

use tokio::io::{AsyncReadExt, AsyncWriteExt};
use tokio::net::{TcpSocket, TcpStream};
use tokio::task::JoinSet;
use tokio::time::timeout;
use tokio_rustls::TlsConnector;
use tokio_rustls::client::TlsStream;
use tokio_rustls::rustls::pki_types::pem::PemObject;
use tokio_rustls::rustls::pki_types::{CertificateDer, ServerName};
use tokio_rustls::rustls::{ClientConfig, RootCertStore};

use crate::pace::Pace;

/// Where all connections of the client come from: to the gateway this is the sandbox's address.
pub const SANDBOX: Ipv4Addr = Ipv4Addr::new(10, 244, 9, 9);
/// Longest wait for anything.
const PATIENCE: Duration = Duration::from_mins(1);
/// Not counted: what is loaded, resolved and signed once.
const WARM_UP: Duration = Duration::from_millis(500);

/// Why nothing was measured.
pub type Error = Box<dyn std::error::Error + Send + Sync>;

/// How the client reaches a host.
#[derive(Clone, Debug)]
pub enum Road {
    /// By itself.
    Direct(SocketAddr),
    /// Through a proxy, by CONNECT with these further header lines.
    Proxy(SocketAddr, String),
}

/// What was measured.
#[derive(Clone, Copy, Debug, Default)]
pub struct Measured {
    /// Requests per second.
    pub rate: f64,
    /// Median of the time of one request, in milliseconds.
    pub p50: f64,
    /// 99th percentile.
    pub p99: f64,
}

/// A client of one road.
#[derive(Clone)]
pub struct Client {
    road: Road,
    tls: TlsConnector,
}

/// A TLS connection to a host.
pub type Tunnel = TlsStream<TcpStream>;

impl Client {
    /// A client that trusts these authorities (PEM).
    pub fn new(road: Road, authorities: &[&str]) -> Result<Self, Error> {
        let mut roots = RootCertStore::empty();
        for pem in authorities {
            for certificate in CertificateDer::pem_slice_iter(pem.as_bytes()) {
                roots.add(certificate?)?;
            }
        }
        let mut config = ClientConfig::builder()
            .with_root_certificates(roots)
            .with_no_client_auth();
        config.alpn_protocols = vec![b"http/1.1".to_vec()];
        Ok(Self {
            road,
            tls: TlsConnector::from(Arc::new(config)),
        })
    }

    /// Opens a tunnel, as far as the end of the TLS handshake.
    pub async fn tunnel(&self, host: &str) -> Result<Tunnel, Error> {
        timeout(PATIENCE, self.open(host)).await?
    }

    async fn open(&self, host: &str) -> Result<Tunnel, Error> {
        let (address, extra) = match &self.road {
            Road::Direct(address) => (*address, None),
            Road::Proxy(address, extra) => (*address, Some(extra)),
        };
        let socket = TcpSocket::new_v4()?;
        socket.bind((IpAddr::V4(SANDBOX), 0).into())?;
        let mut stream = socket.connect(address).await?;
        stream.set_nodelay(true)?;
        if let Some(extra) = extra {
            let request = format!("CONNECT {host}:443 HTTP/1.1\r\nHost: {host}:443\r\n{extra}\r\n");
            stream.write_all(request.as_bytes()).await?;
            let head = read_head(&mut stream).await?;
            if !head.starts_with("HTTP/1.1 200") && !head.starts_with("HTTP/1.0 200") {
                return Err(format!("the proxy said: {head}").into());
            }
        }
        let name = ServerName::try_from(host.to_owned())?;
        Ok(self.tls.connect(name, stream).await?)
    }

    /// Requests one after the other on each of so many connections, with pauses of this mean before each; zero is no
    /// pause at all. Pauses are no part of a request's time, which begins as it's sent.
    pub async fn kept(
        &self,
        host: &str,
        connections: usize,
        think: Duration,
        time: Duration,
    ) -> Result<Measured, Error> {
        let mut tunnels = Vec::new();
        for _ in 0..connections {
            tunnels.push(self.tunnel(host).await?);
        }
        let (first, end) = window(time);
        let mut tasks = JoinSet::new();
        for (connection, mut tunnel) in (0..).zip(tunnels) {
            let host = host.to_owned();
            let mut pace = Pace::new(think, connection);
            tasks.spawn(async move {
                let mut times = Vec::new();
                while pace.next_request(end).await {
                    let begun = Instant::now();
                    small_request(&mut tunnel, &host).await?;
                    if begun >= first {
                        times.push(begun.elapsed());
                    }
                }
                Ok(times)
            });
        }
        measured(tasks, time).await
    }

    /// A tunnel for each request, so many at once.
    pub async fn fresh(&self, host: &str, connections: usize, time: Duration) -> Result<Measured, Error> {
        let (first, end) = window(time);
        let mut tasks = JoinSet::new();
        for _ in 0..connections {
            let (client, host) = (self.clone(), host.to_owned());
            tasks.spawn(async move {
                let mut times = Vec::new();
                while Instant::now() < end {
                    let begun = Instant::now();
                    let mut tunnel = client.tunnel(&host).await?;
                    small_request(&mut tunnel, &host).await?;
                    if begun >= first {
                        times.push(begun.elapsed());
                    }
                }
                Ok(times)
            });
        }
        measured(tasks, time).await
    }

    /// Bytes per second of one large body.
    pub async fn large(&self, host: &str, size: u64) -> Result<f64, Error> {
        let mut tunnel = self.tunnel(host).await?;
        let begun = Instant::now();
        let request = format!("GET /bytes?n={size} HTTP/1.1\r\nHost: {host}\r\n\r\n");
        tunnel.write_all(request.as_bytes()).await?;
        let head = read_head(&mut tunnel).await?;
        if content_length(&head)? as u64 != size {
            return Err(format!("not the body that was asked for: {head}").into());
        }
        let (mut left, mut buffer) = (size, vec![0; 256 << 10]);
        while left > 0 {
            match timeout(PATIENCE, tunnel.read(&mut buffer)).await?? {
                0 => return Err("the body broke off".into()),
                length => left -= length as u64,
            }
        }
        Ok(to_f64(size) / begun.elapsed().as_secs_f64())
    }

    /// Opens so many tunnels and leaves them idle.
    pub async fn tunnels(&self, host: &str, count: usize) -> Result<Vec<Tunnel>, Error> {
        let mut tunnels = Vec::new();
        for _ in 0..count {
            tunnels.push(self.tunnel(host).await?);
        }
        // What an allocator gives back, it gives back now.
        tokio::time::sleep(Duration::from_secs(1)).await;
        Ok(tunnels)
    }
}

fn window(time: Duration) -> (Instant, Instant) {
    let first = Instant::now() + WARM_UP;
    (first, first + time)
}

async fn small_request(tunnel: &mut Tunnel, host: &str) -> Result<(), Error> {
    let request = format!("GET /status?code=200 HTTP/1.1\r\nHost: {host}\r\n\r\n");
    tunnel.write_all(request.as_bytes()).await?;
    let exchange = async {
        let mut answer = Vec::with_capacity(1 << 10);
        let mut end = None;
        while end.is_none_or(|end| answer.len() < end) {
            if tunnel.read_buf(&mut answer).await? == 0 {
                return Err::<(), Error>("the answer broke off".into());
            }
            if end.is_none() {
                end = end_of(&answer)?;
            }
        }
        Ok(())
    };
    timeout(PATIENCE, exchange).await?
}

/// Where a good answer ends, once its head is whole.
fn end_of(answer: &[u8]) -> Result<Option<usize>, Error> {
    let Some(blank) = answer.windows(4).position(|bytes| bytes == b"\r\n\r\n") else {
        return Ok(None);
    };
    let body = blank + 4;
    let head = String::from_utf8_lossy(&answer[..body]);
    if !head.starts_with("HTTP/1.1 200") {
        return Err(format!("answered: {head}").into());
    }
    Ok(Some(body + content_length(&head)?))
}

fn content_length(head: &str) -> Result<usize, Error> {
    let value = head.lines().find_map(|line| {
        let (name, value) = line.split_once(':')?;
        name.eq_ignore_ascii_case("content-length").then(|| value.trim())
    });
    Ok(value.ok_or("no content-length")?.parse()?)
}

/// A head, byte by byte: it is short, and what follows is not ours to take.
async fn read_head<S: AsyncReadExt + Unpin>(stream: &mut S) -> Result<String, Error> {
    let mut head = Vec::with_capacity(256);
    while !head.ends_with(b"\r\n\r\n") {
        if head.len() > 16 << 10 {
            return Err("a head without end".into());
        }
        head.push(stream.read_u8().await?);
    }
    Ok(String::from_utf8_lossy(&head).into_owned())
}

async fn measured(
    mut tasks: JoinSet<Result<Vec<Duration>, Error>>,
    time: Duration,
) -> Result<Measured, Error> {
    let mut millis: Vec<f64> = Vec::new();
    while let Some(times) = tasks.join_next().await {
        millis.extend(times??.into_iter().map(|time| time.as_secs_f64() * 1000.0));
    }
    millis.sort_by(f64::total_cmp);
    let quantile = |percent: usize| {
        let index = (millis.len() * percent / 100).min(millis.len().saturating_sub(1));
        millis.get(index).copied().unwrap_or(f64::NAN)
    };
    Ok(Measured {
        rate: to_f64(millis.len() as u64) / time.as_secs_f64(),
        p50: quantile(50),
        p99: quantile(99),
    })
}

/// A count as a fraction; counts here are far below 2^52.
#[allow(clippy::cast_precision_loss)]
pub fn to_f64(number: u64) -> f64 {
    number as f64
}
