//! The gateway of one sandbox, without a cluster: the same code, told by this what watches and recorders tell it there.
//! Its budgets are kept in memory.

use std::collections::HashMap;
use std::net::IpAddr;
use std::path::PathBuf;
use std::sync::{Arc, Mutex, MutexGuard, PoisonError};

use agentsandbox_api::policy::{PolicyEgressStatus, SandboxPolicySpec};
use agentsandbox_api::sandbox::EgressStatus;
use agentsandbox_egress::address::ClusterRanges;
use agentsandbox_egress::identity::Pod;
use base64::Engine as _;
use base64::engine::general_purpose::STANDARD as BASE64;
use clap::{Args, Parser};
use futures::future::BoxFuture;
use k8s_openapi::jiff::Timestamp;
use sandbox_gateway::accept::guests;
use sandbox_gateway::ca::Authority;
use sandbox_gateway::config::Config;
use sandbox_gateway::credentials::Credentials;
use sandbox_gateway::health::Readiness;
use sandbox_gateway::log::Log;
use sandbox_gateway::metrics::Metrics;
use sandbox_gateway::network::ClusterNetwork;
use sandbox_gateway::run::GATES;
use sandbox_gateway::sink::{RunKey, SinkError, StatusSink, Versioned};
use sandbox_gateway::state::{Gateway, Parts, Sandbox};
use sandbox_gateway::steered;
use sandbox_gateway::tls::Trust;
use serde_json::json;
use sha2::{Digest, Sha256};
use tokio::net::TcpListener;

use crate::load::{Error, SANDBOX};

/// The run's token.
const TOKEN: &str = "0123456789abcdef0123456789abcdef0123456789abcdef0123456789abcdef";
/// Names of everything that has one.
const NAME: &str = "bench";

/// Options of the gateway without a cluster.
#[derive(Args)]
pub struct Options {
    /// Certificate (PEM) of the outside world's authority.
    #[arg(long)]
    extra_ca: PathBuf,
    /// Where the certificate of the gateway's own authority goes.
    #[arg(long)]
    ca_out: PathBuf,
    /// Folder for the authority's key.
    #[arg(long)]
    state: PathBuf,
    /// Port of the proxy.
    #[arg(long)]
    port: u16,
}

/// What an option parser makes of nothing but defaults.
#[derive(Parser)]
struct Defaults {
    #[command(flatten)]
    config: Config,
}

/// The header line by which the sandbox shows its token.
pub fn authorization() -> String {
    let value = BASE64.encode(format!("{}:{TOKEN}", agentsandbox_api::gateway::PROXY_USER));
    format!("Proxy-Authorization: Basic {value}\r\n")
}

/// Serves until the process is ended.
pub async fn serve(options: Options) -> Result<(), Error> {
    let Defaults { mut config } =
        Defaults::try_parse_from(["gateway", "--namespace", NAME, "--gateway-addresses", "10.96.9.9"])?;
    // The shares of one sandbox are no part of what is measured.
    config.limits.connections_per_sandbox = 16_384;
    config.limits.connections = 16_384;
    config.limits.requests_per_second = 1_000_000;
    let (log, _) = Log::start(config.limits.log_queue, std::io::stdout())?;
    let network = ClusterNetwork::new(
        &["127.0.0.1:53".parse()?],
        ClusterRanges::parse("10.96.0.0/16,10.244.0.0/16")?,
    )
    .map_err(|error| error.to_string())?;
    let gateway = Gateway::new(Parts {
        namespace: NAME.to_owned(),
        addresses: config.gateway_addresses.clone(),
        limits: config.limits.clone(),
        network: Arc::new(network),
        trust: Trust::new(&std::fs::read_to_string(&options.extra_ca)?)?,
        credentials: Credentials::new(options.state.join("credentials")),
        authority: Authority::open(&options.state, NAME)?,
        sink: Arc::new(Memory::default()),
        log,
        metrics: Metrics::default(),
        readiness: Readiness::new(GATES),
        clock: Arc::new(|| Timestamp::now().as_second()),
    });
    let standing = bind(&gateway).await?;
    let listener = TcpListener::bind(("127.0.0.1", options.port)).await?;
    std::fs::write(&options.ca_out, standing)?;
    guests(gateway, listener, "proxy", steered::proxy).await;
    Ok(())
}

/// Makes the one sandbox known and binds it to its address; gives back the certificate that it would be given.
async fn bind(gateway: &Arc<Gateway>) -> Result<String, Error> {
    let spec: SandboxPolicySpec = serde_json::from_value(json!({"egress": {"allow": [
        {"host": crate::THROUGH}, {"host": crate::INSPECTED, "tls": "Inspect"},
    ]}}))?;
    gateway.policy_seen(NAME, &spec);
    gateway.sandbox_seen(Sandbox {
        name: NAME.to_owned(),
        uid: NAME.to_owned(),
        policy: NAME.to_owned(),
        ..Sandbox::default()
    });
    let address = IpAddr::V4(SANDBOX);
    gateway.pod_seen(Pod {
        uid: NAME.to_owned(),
        namespace: NAME.to_owned(),
        sandbox: NAME.to_owned(),
        policy: NAME.to_owned(),
        addresses: vec![address],
        ..Pod::default()
    });
    for gate in GATES {
        gateway.readiness.set(gate, true);
    }
    let token = Sha256::digest(TOKEN).into();
    let run = gateway
        .register(address, NAME, token)
        .await
        .map_err(|refused| refused.message)?;
    Ok(gateway.standing(&run).ca.unwrap_or_default())
}

/// Budgets in memory, with versions as the API server has them.
#[derive(Default)]
struct Memory {
    runs: Mutex<HashMap<RunKey, (EgressStatus, u64)>>,
    policies: Mutex<HashMap<String, (PolicyEgressStatus, u64)>>,
}

impl StatusSink for Memory {
    fn load_run<'a>(&'a self, key: &'a RunKey) -> BoxFuture<'a, Result<Versioned<EgressStatus>, SinkError>> {
        Box::pin(async { Ok(load(&self.runs, key)) })
    }

    fn store_run<'a>(
        &'a self,
        key: &'a RunKey,
        status: &'a EgressStatus,
        version: &'a str,
    ) -> BoxFuture<'a, Result<String, SinkError>> {
        Box::pin(async { store(&self.runs, key, status, version) })
    }

    fn load_policy<'a>(
        &'a self,
        name: &'a str,
    ) -> BoxFuture<'a, Result<Versioned<PolicyEgressStatus>, SinkError>> {
        Box::pin(async { Ok(load(&self.policies, &name.to_owned())) })
    }

    fn store_policy<'a>(
        &'a self,
        name: &'a str,
        status: &'a PolicyEgressStatus,
        version: &'a str,
    ) -> BoxFuture<'a, Result<String, SinkError>> {
        Box::pin(async { store(&self.policies, &name.to_owned(), status, version) })
    }
}

type Kept<K, T> = Mutex<HashMap<K, (T, u64)>>;

fn lock<T>(mutex: &Mutex<T>) -> MutexGuard<'_, T> {
    mutex.lock().unwrap_or_else(PoisonError::into_inner)
}

fn load<K: std::hash::Hash + Eq, T: Clone>(kept: &Kept<K, T>, key: &K) -> Versioned<T> {
    let found = lock(kept).get(key).cloned();
    Versioned {
        version: found.as_ref().map_or(0, |(_, version)| *version).to_string(),
        status: found.map(|(status, _)| status),
    }
}

fn store<K: std::hash::Hash + Eq + Clone, T: Clone>(
    kept: &Kept<K, T>,
    key: &K,
    status: &T,
    version: &str,
) -> Result<String, SinkError> {
    let mut kept = lock(kept);
    let current = kept.get(key).map_or(0, |(_, version)| *version);
    if current.to_string() != version {
        return Err(SinkError::Conflict);
    }
    kept.insert(key.clone(), (status.clone(), current + 1));
    Ok((current + 1).to_string())
}
