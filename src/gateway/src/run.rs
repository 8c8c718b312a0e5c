//! Puts the parts together, and takes them apart in good order.

use std::net::IpAddr;
use std::sync::Arc;
use std::time::Duration;

use agentsandbox_api::gateway::{PORT_DNS, PORT_HEALTH, PORT_HTTP, PORT_PROXY, PORT_REGISTER, PORT_TLS};
use agentsandbox_egress::address::ClusterRanges;
use k8s_openapi::jiff::Timestamp;
use kube::Client;
use tokio::net::TcpListener;
use tokio::signal::unix::{SignalKind, signal};
use tracing::info;

use crate::accept::guests;
use crate::ca::{Authority, CaError};
use crate::config::Config;
use crate::credentials::Credentials;
use crate::health::{self, Readiness};
use crate::kube_sink::KubeSink;
use crate::log::Log;
use crate::metrics::Metrics;
use crate::network::{ClusterNetwork, name_servers};
use crate::state::{Gateway, Parts};
use crate::tls::{Trust, TrustError};
use crate::{dns, keys, lanes, register, steered, watch};

/// What is waited for before sandboxes are served.
pub const GATES: [&str; 4] = ["policies", "sandboxes", "pods", "keys"];

/// Why the gateway can't run.
#[derive(Debug, thiserror::Error)]
pub enum RunError {
    /// There is no usable configuration of a client.
    #[error("no cluster is configured: {0}; run inside a cluster, or set KUBECONFIG")]
    Kubeconfig(#[from] kube::config::InferConfigError),
    /// The client could not be made.
    #[error("the client can't be made: {0}")]
    Client(#[from] kube::Error),
    /// A port is taken.
    #[error("port {port} can't be opened: {source}")]
    Port {
        /// The port.
        port: u16,
        /// Why.
        source: std::io::Error,
    },
    /// An option can't be used.
    #[error("{option}: {problem}")]
    Option {
        /// Which.
        option: &'static str,
        /// Why not.
        problem: String,
    },
    /// There is no authority.
    #[error(transparent)]
    Authority(#[from] CaError),
    /// Extra certificates can't be trusted.
    #[error(transparent)]
    Trust(#[from] TrustError),
    /// Names can't be resolved.
    #[error("names can't be resolved: {0}")]
    Resolver(String),
    /// Signals or threads are not to be had.
    #[error("the system refuses: {0}")]
    System(std::io::Error),
    /// A part ended by itself.
    #[error("{0} ended; this is a defect of the gateway, please report it with the log")]
    Ended(&'static str),
}

/// Runs until a signal.
pub async fn run(config: Config) -> Result<(), RunError> {
    // From the first moment on: as process 1 of a container, a signal that nobody handles has no effect.
    let mut terminate = signal(SignalKind::terminate()).map_err(RunError::System)?;
    let mut interrupt = signal(SignalKind::interrupt()).map_err(RunError::System)?;
    let client = client(kube::Config::infer().await?)?;
    let metrics = Metrics::default();
    let readiness = Readiness::new(GATES);
    let (log, writer) = Log::start(config.limits.log_queue, std::io::stdout()).map_err(RunError::System)?;
    let gateway = gateway(&config, &client, log, metrics.clone(), readiness.clone())?;

    let mut parts = tokio::task::JoinSet::new();
    parts.spawn(named(
        "the health server",
        health::serve(listen(PORT_HEALTH).await?, metrics, readiness),
    ));
    for lane in listeners(PORT_PROXY)? {
        let proxy = guests(gateway.clone(), lane, "proxy", steered::proxy);
        parts.spawn(named("the proxy", proxy));
    }
    for lane in listeners(PORT_TLS)? {
        let tls = guests(gateway.clone(), lane, "tls", steered::tls);
        parts.spawn(named("the TLS port", tls));
    }
    for lane in listeners(PORT_HTTP)? {
        let http = guests(gateway.clone(), lane, "http", steered::plain);
        parts.spawn(named("the HTTP port", http));
    }
    for lane in listeners(PORT_DNS)? {
        let questions = guests(gateway.clone(), lane, "dns", dns::serve_tcp);
        parts.spawn(named("DNS over TCP", questions));
    }
    for lane in lanes::datagrams(PORT_DNS).map_err(taken(PORT_DNS))? {
        parts.spawn(named("DNS over UDP", dns::serve_udp(gateway.clone(), lane)));
    }
    let recorders = listen(PORT_REGISTER).await?;
    parts.spawn(named(
        "the registration",
        register::serve(gateway.clone(), recorders),
    ));
    parts.spawn(named("the watches", watch::run(gateway.clone(), client.clone())));
    parts.spawn(named("the API server's keys", keys::run(gateway.clone(), client)));
    let quotas = gateway.clone();
    parts.spawn(named("the quotas", async move { quotas.release_quotas().await }));
    info!(namespace = gateway.namespace, "serving");

    let ended = tokio::select! {
        _ = terminate.recv() => Ok(()),
        _ = interrupt.recv() => Ok(()),
        () = gateway.log.broken() => Err(RunError::Ended("the log of decisions")),
        ended = parts.join_next() => Err(RunError::Ended(match ended {
            Some(Ok(name)) => name,
            _ => "a part (its panic stands in the log)",
        })),
    };
    info!("stopping");
    gateway.stop(config.limits.shutdown()).await;
    parts.shutdown().await;
    drop(gateway);
    // What was decided is written before the process goes; a reader that takes nothing is not waited for.
    let _ = tokio::time::timeout(
        Duration::from_secs(1),
        tokio::task::spawn_blocking(move || writer.join()),
    )
    .await;
    ended
}

/// A client of the API server that asks once: a write by version that is made and repeated would look like somebody
/// else's, and be made a second time.
pub fn client(mut config: kube::Config) -> Result<Client, kube::Error> {
    config.connect_timeout = Some(Duration::from_secs(10));
    config.default_retry = false;
    Client::try_from(config)
}

fn gateway(
    config: &Config,
    client: &Client,
    log: Log,
    metrics: Metrics,
    readiness: Readiness,
) -> Result<Arc<Gateway>, RunError> {
    let mut cluster = ClusterRanges::parse(&config.cluster_ranges).map_err(|problem| RunError::Option {
        option: "CLUSTER_RANGES",
        problem,
    })?;
    let own: Vec<IpAddr> = config
        .gateway_addresses
        .iter()
        .copied()
        .chain(config.pod_ip)
        .collect();
    for address in own {
        cluster.insert(address);
    }
    let mut extra_ca = config.extra_ca.clone();
    if let Some(file) = &config.extra_ca_file {
        let text = std::fs::read_to_string(file).map_err(|error| RunError::Option {
            option: "EXTRA_CA_FILE",
            problem: format!("{}: {error}", file.display()),
        })?;
        extra_ca.push('\n');
        extra_ca.push_str(&text);
    }
    let nameservers = if config.nameservers.is_empty() {
        name_servers(&std::fs::read_to_string("/etc/resolv.conf").unwrap_or_default())
    } else {
        config.nameservers.clone()
    };
    if nameservers.is_empty() {
        return Err(RunError::Option {
            option: "NAMESERVERS",
            problem: "there are none, neither there nor in /etc/resolv.conf".to_owned(),
        });
    }
    let network =
        ClusterNetwork::new(&nameservers, cluster).map_err(|error| RunError::Resolver(error.to_string()))?;
    Ok(Gateway::new(Parts {
        namespace: config.namespace.clone(),
        addresses: config.gateway_addresses.clone(),
        limits: config.limits.clone(),
        network: Arc::new(network),
        trust: Trust::new(&extra_ca)?,
        credentials: Credentials::new(config.credentials_dir.clone()),
        authority: Authority::open(&config.state_dir, &config.namespace)?,
        sink: Arc::new(KubeSink::new(client, &config.namespace)),
        log,
        metrics,
        readiness,
        clock: Arc::new(|| Timestamp::now().as_second()),
    }))
}

async fn named(name: &'static str, part: impl Future<Output = ()>) -> &'static str {
    part.await;
    name
}

async fn listen(port: u16) -> Result<TcpListener, RunError> {
    health::bind(port).await.map_err(taken(port))
}

fn listeners(port: u16) -> Result<Vec<TcpListener>, RunError> {
    lanes::listeners(port).map_err(taken(port))
}

fn taken(port: u16) -> impl Fn(std::io::Error) -> RunError {
    move |source| RunError::Port { port, source }
}
