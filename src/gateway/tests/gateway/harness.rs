//! A gateway on loopback, with a world, an API server and sandboxes that the tests play.

use std::collections::HashMap;
use std::io::Write;
use std::net::{IpAddr, Ipv4Addr, SocketAddr};
use std::path::PathBuf;
use std::sync::atomic::{AtomicBool, AtomicU64, Ordering};
use std::sync::{Arc, Mutex};
use std::time::{Duration, Instant};

use agentsandbox_api::gateway::{CONSENT_KEY, Register, Registered};
use agentsandbox_api::policy::SandboxPolicySpec;
use agentsandbox_api::sandbox::{EgressStatus, Limits as AskedLimits};
use agentsandbox_egress::address::{self, ClusterRanges};
use agentsandbox_egress::deny::Deny;
use agentsandbox_egress::identity::Pod;
use agentsandbox_egress::name::HostName;
use clap::Parser;
use futures::future::BoxFuture;
use ipnet::IpNet;
use k8s_openapi::jiff::Timestamp;
use sandbox_gateway::accept::guests;
use sandbox_gateway::ca::Authority;
use sandbox_gateway::config::Config;
use sandbox_gateway::credentials::Credentials;
use sandbox_gateway::health::Readiness;
use sandbox_gateway::jwks::testing::{ISSUER, Signer};
use sandbox_gateway::log::Log;
use sandbox_gateway::metrics::Metrics;
use sandbox_gateway::network::Network;
use sandbox_gateway::state::{Gateway, Parts, Sandbox as SandboxView};
use sandbox_gateway::tls::Trust;
use sandbox_gateway::{dns, register, steered};
use serde_json::Value;
use sha2::{Digest, Sha256};
use tokio::io::{AsyncBufReadExt, AsyncWriteExt, BufReader};
use tokio::net::{TcpListener, TcpSocket, TcpStream, UdpSocket};

use crate::sink::FakeSink;
use crate::world::Authority as WorldAuthority;

pub const NAMESPACE: &str = "agents";
/// Longest that a test waits for anything.
pub const PATIENCE: Duration = Duration::from_secs(20);

/// Names, addresses and ports of a world that is on loopback. Addresses are checked as in a cluster.
#[derive(Default)]
pub struct FakeNetwork {
    /// Answers by name, one after the other; the last one stays.
    names: Mutex<HashMap<String, Vec<Vec<IpAddr>>>>,
    /// Where an address and port really are.
    routes: Mutex<HashMap<(IpAddr, u16), SocketAddr>>,
    pub dialled: Mutex<Vec<SocketAddr>>,
    next: AtomicU64,
}

impl FakeNetwork {
    /// Gives a name a public address, which leads to `real`.
    pub fn route(&self, name: &str, port: u16, real: SocketAddr) -> IpAddr {
        let number = u8::try_from(self.next.fetch_add(1, Ordering::Relaxed) + 1).unwrap();
        let address = IpAddr::from([93, 184, 216, number]);
        let known = self.names.lock().unwrap().get(name).map(|answers| answers[0][0]);
        let address = known.unwrap_or(address);
        self.answer(name, &[&[address]]);
        self.routes.lock().unwrap().insert((address, port), real);
        address
    }

    pub fn route_address(&self, address: IpAddr, port: u16, real: SocketAddr) {
        self.routes.lock().unwrap().insert((address, port), real);
    }

    /// What is answered for a name.
    pub fn answer(&self, name: &str, answers: &[&[IpAddr]]) {
        let answers = answers.iter().rev().map(|answer| answer.to_vec()).collect();
        self.names.lock().unwrap().insert(name.to_owned(), answers);
    }
}

impl Network for FakeNetwork {
    fn resolve<'a>(&'a self, host: &'a HostName) -> BoxFuture<'a, Result<Vec<IpAddr>, Deny>> {
        let mut names = self.names.lock().unwrap();
        let answer = names.get_mut(host.as_str()).map(|answers| {
            if answers.len() > 1 {
                answers.pop().unwrap()
            } else {
                answers[0].clone()
            }
        });
        Box::pin(async move { answer.ok_or(Deny::UpstreamUnreachable) })
    }

    fn check(&self, address: IpAddr, opened: &[IpNet]) -> Result<(), Deny> {
        let cluster = ClusterRanges::parse("10.96.0.0/12, 10.244.0.0/16, 203.0.113.9").unwrap();
        address::check(address, &cluster, opened)
    }

    fn dial(&self, address: SocketAddr) -> BoxFuture<'_, std::io::Result<TcpStream>> {
        self.dialled.lock().unwrap().push(address);
        let real = self
            .routes
            .lock()
            .unwrap()
            .get(&(address.ip(), address.port()))
            .copied();
        Box::pin(async move {
            match real {
                Some(real) => TcpStream::connect(real).await,
                None => Err(std::io::ErrorKind::ConnectionRefused.into()),
            }
        })
    }
}

#[derive(Clone, Default)]
pub struct Lines {
    text: Arc<Mutex<Vec<u8>>>,
    is_broken: Arc<AtomicBool>,
}

impl Write for Lines {
    fn write(&mut self, bytes: &[u8]) -> std::io::Result<usize> {
        if self.is_broken.load(Ordering::SeqCst) {
            return Err(std::io::ErrorKind::BrokenPipe.into());
        }
        self.text.lock().unwrap().extend_from_slice(bytes);
        Ok(bytes.len())
    }

    fn flush(&mut self) -> std::io::Result<()> {
        Ok(())
    }
}

#[derive(Clone, Copy)]
pub struct Ports {
    pub proxy: u16,
    pub tls: u16,
    pub http: u16,
    pub dns: u16,
    pub register: u16,
}

pub struct Harness {
    pub gateway: Arc<Gateway>,
    pub network: Arc<FakeNetwork>,
    pub sink: Arc<FakeSink>,
    pub world: Arc<WorldAuthority>,
    pub ports: Ports,
    pub signer: Signer,
    pub now: Arc<AtomicU64>,
    log: Lines,
    folder: PathBuf,
}

impl Drop for Harness {
    fn drop(&mut self) {
        let _ = std::fs::remove_dir_all(&self.folder);
    }
}

#[derive(Parser)]
struct Cli {
    #[command(flatten)]
    config: Config,
}

/// A registered sandbox.
pub struct Sandbox {
    pub address: IpAddr,
    pub pod_uid: String,
    pub token: String,
    /// The authority that it was given.
    pub ca: Option<String>,
    /// The recorder's connection.
    pub recorder: BufReader<TcpStream>,
}

impl Harness {
    pub async fn start(policy: Value) -> Self {
        Self::with(policy, &[]).await
    }

    /// With options of the gateway's command line.
    pub async fn with(policy: Value, options: &[&str]) -> Self {
        Self::beside(policy, options, FakeSink::new(), Arc::default()).await
    }

    /// With the API server and the world of another one.
    pub async fn beside(
        policy: Value,
        options: &[&str],
        sink: Arc<FakeSink>,
        network: Arc<FakeNetwork>,
    ) -> Self {
        static NUMBER: AtomicU64 = AtomicU64::new(0);
        let number = NUMBER.fetch_add(1, Ordering::Relaxed);
        let folder = std::env::temp_dir().join(format!("gateway-test-{}-{number}", std::process::id()));
        std::fs::create_dir_all(folder.join("credentials")).unwrap();
        let usual = [
            "gateway",
            "--namespace",
            NAMESPACE,
            "--gateway-addresses",
            "10.96.7.7",
        ];
        let config = Cli::try_parse_from(usual.iter().chain(options)).unwrap().config;
        let world = WorldAuthority::of_tests();
        let log = Lines::default();
        let now = Arc::new(AtomicU64::new(
            u64::try_from(Timestamp::now().as_second()).unwrap(),
        ));
        let clock = now.clone();
        let (lines, _) = Log::start(config.limits.log_queue, log.clone()).unwrap();
        let gateway = Gateway::new(Parts {
            namespace: NAMESPACE.into(),
            addresses: config.gateway_addresses.clone(),
            limits: config.limits.clone(),
            network: network.clone(),
            trust: Trust::new(&world.pem).unwrap(),
            credentials: Credentials::new(folder.join("credentials")),
            authority: Authority::open(&folder.join("state"), NAMESPACE).unwrap(),
            sink: sink.clone(),
            log: lines,
            metrics: Metrics::default(),
            readiness: Readiness::new(["policies", "sandboxes", "pods", "keys"]),
            clock: Arc::new(move || i64::try_from(clock.load(Ordering::Relaxed)).unwrap()),
        });
        let signer = Signer::generate();
        gateway.keys.set(ISSUER.into(), signer.jwks());
        gateway.policy_seen("default", &spec(policy));
        let ports = serve(&gateway).await;
        Self {
            gateway,
            network,
            sink,
            world,
            ports,
            signer,
            now,
            log,
            folder,
        }
    }

    pub fn set_policy(&self, policy: Value) {
        self.gateway.policy_seen("default", &spec(policy));
    }

    pub async fn sandbox(&self, name: &str, last: u8) -> Sandbox {
        self.sandbox_with(name, last, AskedLimits::default()).await
    }

    /// A sandbox at 127.0.0.`last`, registered.
    pub async fn sandbox_with(&self, name: &str, last: u8, limits: AskedLimits) -> Sandbox {
        self.show(name, last, limits);
        let token = format!("{:064x}", u64::from(last) + 0xabc);
        let (answer, recorder) = self.register(name, last, &token).await;
        assert!(answer.bound, "{answer:?}");
        Sandbox {
            address: local(last),
            pod_uid: format!("uid-{name}"),
            token,
            ca: answer.ca,
            recorder,
        }
    }

    /// The watches show a sandbox and its pod.
    pub fn show(&self, name: &str, last: u8, limits: AskedLimits) {
        self.sink.create(name);
        self.gateway.sandbox_seen(SandboxView {
            name: name.to_owned(),
            uid: format!("sandbox-{name}"),
            policy: "default".into(),
            run_id: "1".into(),
            limits: Some(limits),
        });
        self.gateway.pod_seen(self.pod(name, last));
    }

    pub fn pod(&self, name: &str, last: u8) -> Pod {
        Pod {
            uid: format!("uid-{name}"),
            namespace: NAMESPACE.into(),
            sandbox: name.to_owned(),
            run_id: "1".into(),
            policy: "default".into(),
            addresses: vec![local(last)],
            host_network: false,
            ended: false,
        }
    }

    /// A recorder registers from 127.0.0.`last` for the pod of `name`.
    pub async fn register(&self, name: &str, last: u8, token: &str) -> (Registered, BufReader<TcpStream>) {
        let expires = Timestamp::now().as_second() + 600;
        let pod_uid = format!("uid-{name}");
        let request = Register {
            token: self.signer.pod_token(NAMESPACE, &pod_uid, expires),
            pod_uid,
            run_token_sha256: sha256(token),
        };
        self.send_registration(last, &serde_json::to_string(&request).unwrap())
            .await
    }

    pub async fn send_registration(&self, last: u8, line: &str) -> (Registered, BufReader<TcpStream>) {
        let mut stream = connect_from(local(last), self.ports.register).await;
        stream.write_all(format!("{line}\n").as_bytes()).await.unwrap();
        let mut reader = BufReader::new(stream);
        let answer = next_registered(&mut reader).await.unwrap();
        (answer, reader)
    }

    /// A Secret, mounted as the kubelet does.
    pub fn secret(&self, name: &str, key: &str, value: &str, hosts: &str) {
        let folder = self.folder.join("credentials").join(name);
        std::fs::create_dir_all(&folder).unwrap();
        std::fs::write(folder.join(key), value).unwrap();
        std::fs::write(folder.join(CONSENT_KEY), hosts).unwrap();
    }

    /// All records so far.
    pub fn records(&self) -> Vec<Value> {
        let text = self.log.text.lock().unwrap().clone();
        String::from_utf8(text)
            .unwrap()
            .lines()
            .map(|line| serde_json::from_str(line).unwrap())
            .collect()
    }

    /// Everything that was written, as text.
    pub fn log_text(&self) -> String {
        String::from_utf8(self.log.text.lock().unwrap().clone()).unwrap()
    }

    /// From now on nothing can be recorded.
    pub async fn break_log(&self) {
        self.log.is_broken.store(true, Ordering::SeqCst);
        // The gateway learns it by the next record.
        self.gateway.stranger("proxy", local(99));
        tokio::time::timeout(PATIENCE, self.gateway.log.broken())
            .await
            .unwrap();
    }

    /// Waits until a record of this action and reason is there.
    pub async fn record(&self, action: &str, reason: Option<&str>, destination: &str) -> Value {
        eventually(|| {
            self.records().into_iter().find(|record| {
                record["action"] == action
                    && record["reason"].as_str() == reason
                    && record["destination"].as_str() == Some(destination)
            })
        })
        .await
        .unwrap_or_else(|| {
            panic!(
                "no record {action} {reason:?} {destination} in {}",
                self.log_text()
            )
        })
    }

    /// Waits until a run's status is as wanted.
    pub async fn status(&self, name: &str, wanted: impl Fn(&EgressStatus) -> bool) -> EgressStatus {
        eventually(|| self.sink.run(name).filter(|status| wanted(status)))
            .await
            .unwrap_or_else(|| panic!("status never came: {:#?}", self.sink.run(name)))
    }

    pub fn proxy_auth(&self, sandbox: &Sandbox) -> String {
        proxy_auth(&sandbox.token)
    }

    pub async fn proxy(&self, sandbox: &Sandbox) -> TcpStream {
        connect_from(sandbox.address, self.ports.proxy).await
    }

    /// Asks the proxy for a tunnel; returns the connection and the answer's head.
    pub async fn connect(&self, sandbox: &Sandbox, authority: &str) -> (TcpStream, String) {
        let mut stream = self.proxy(sandbox).await;
        let request = format!(
            "CONNECT {authority} HTTP/1.1\r\nHost: {authority}\r\nProxy-Authorization: {}\r\n\r\n",
            self.proxy_auth(sandbox)
        );
        stream.write_all(request.as_bytes()).await.unwrap();
        let answer = read_response(&mut stream).await;
        (stream, answer)
    }
}

async fn serve(gateway: &Arc<Gateway>) -> Ports {
    let (proxy, tls, http, tcp, recorders) = (
        listen().await,
        listen().await,
        listen().await,
        listen().await,
        listen().await,
    );
    let dns_port = port(&tcp);
    let udp = UdpSocket::bind((Ipv4Addr::UNSPECIFIED, dns_port)).await.unwrap();
    let ports = Ports {
        proxy: port(&proxy),
        tls: port(&tls),
        http: port(&http),
        dns: dns_port,
        register: port(&recorders),
    };
    tokio::spawn(guests(gateway.clone(), proxy, "proxy", steered::proxy));
    tokio::spawn(guests(gateway.clone(), tls, "tls", steered::tls));
    tokio::spawn(guests(gateway.clone(), http, "http", steered::plain));
    tokio::spawn(guests(gateway.clone(), tcp, "dns", dns::serve_tcp));
    tokio::spawn(dns::serve_udp(gateway.clone(), udp));
    tokio::spawn(register::serve(gateway.clone(), recorders));
    ports
}

pub fn spec(policy: Value) -> SandboxPolicySpec {
    serde_json::from_value(policy).unwrap()
}

pub fn proxy_auth(token: &str) -> String {
    use base64::Engine as _;
    let text = base64::engine::general_purpose::STANDARD.encode(format!("run:{token}"));
    format!("Basic {text}")
}

pub fn sha256(text: &str) -> String {
    hex(&Sha256::digest(text.as_bytes()))
}

pub fn hex(bytes: &[u8]) -> String {
    use std::fmt::Write as _;
    bytes.iter().fold(String::new(), |mut text, byte| {
        let _ = write!(text, "{byte:02x}");
        text
    })
}

pub fn local(last: u8) -> IpAddr {
    IpAddr::from([127, 0, 0, last])
}

/// A connection from one address of loopback.
pub async fn connect_from(address: IpAddr, port: u16) -> TcpStream {
    let socket = TcpSocket::new_v4().unwrap();
    socket.bind(SocketAddr::new(address, 0)).unwrap();
    socket.connect(SocketAddr::new(local(1), port)).await.unwrap()
}

pub async fn listen() -> TcpListener {
    TcpListener::bind((Ipv4Addr::UNSPECIFIED, 0)).await.unwrap()
}

pub fn port(listener: &TcpListener) -> u16 {
    listener.local_addr().unwrap().port()
}

pub async fn next_registered(reader: &mut BufReader<TcpStream>) -> Option<Registered> {
    let mut line = String::new();
    let read = tokio::time::timeout(PATIENCE, reader.read_line(&mut line))
        .await
        .unwrap()
        .unwrap();
    (read > 0).then(|| serde_json::from_str(&line).unwrap())
}

/// Looks again and again, for a bounded time.
pub async fn eventually<T>(mut look: impl FnMut() -> Option<T>) -> Option<T> {
    let begun = Instant::now();
    loop {
        if let Some(found) = look() {
            return Some(found);
        }
        if begun.elapsed() > PATIENCE {
            return None;
        }
        tokio::time::sleep(Duration::from_millis(5)).await;
    }
}

/// Reads one HTTP/1 answer with its body, if it says how long that is.
pub async fn read_response(stream: &mut (impl tokio::io::AsyncRead + Unpin)) -> String {
    use tokio::io::AsyncReadExt as _;
    let mut bytes = Vec::new();
    let read = async {
        loop {
            let mut byte = [0; 1];
            match stream.read(&mut byte).await {
                Ok(1) => bytes.push(byte[0]),
                _ => return,
            }
            if bytes.ends_with(b"\r\n\r\n") {
                break;
            }
        }
        let head = String::from_utf8_lossy(&bytes).to_ascii_lowercase();
        if let Some(length) = head
            .split("content-length: ")
            .nth(1)
            .and_then(|rest| rest.split("\r\n").next())
        {
            let mut body = vec![0; length.trim().parse().unwrap()];
            let _ = stream.read_exact(&mut body).await;
            bytes.extend_from_slice(&body);
        } else if head.contains("transfer-encoding: chunked") {
            while !bytes.ends_with(b"0\r\n\r\n") {
                let mut byte = [0; 1];
                match stream.read(&mut byte).await {
                    Ok(1) => bytes.push(byte[0]),
                    _ => return,
                }
            }
        }
    };
    tokio::time::timeout(PATIENCE, read).await.expect("an answer");
    String::from_utf8_lossy(&bytes).into_owned()
}

/// Whether a connection is closed by the other side within the tests' patience.
pub async fn is_closed(stream: &mut (impl tokio::io::AsyncRead + Unpin)) -> bool {
    use tokio::io::AsyncReadExt as _;
    let drain = async {
        let mut buffer = [0; 1024];
        loop {
            match stream.read(&mut buffer).await {
                Ok(0) | Err(_) => return true,
                Ok(_) => {}
            }
        }
    };
    tokio::time::timeout(PATIENCE, drain).await.unwrap_or(false)
}
