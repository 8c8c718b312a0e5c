//! What the Deployment tells the gateway: where it is, and how much each sandbox may have of it.

use std::net::{IpAddr, SocketAddr};
use std::path::PathBuf;
use std::time::Duration;

use agentsandbox_api::gateway;
use clap::Args;

use crate::guard::Patience;

/// Options of the gateway. Each can also be set by the environment variable that is named with it.
#[derive(Args, Clone, Debug)]
pub struct Config {
    /// Namespace whose sandboxes are served.
    #[arg(long, env = "POD_NAMESPACE")]
    pub namespace: String,

    /// The pod's own address, which no sandbox may reach through the gateway.
    #[arg(long, env = "POD_IP")]
    pub pod_ip: Option<IpAddr>,

    /// Addresses of the gateway's Service, comma-separated: what its DNS answers for allowed names.
    #[arg(long, env = "GATEWAY_ADDRESSES", value_delimiter = ',', required = true)]
    pub gateway_addresses: Vec<IpAddr>,

    /// Ranges and addresses of Services, pods, nodes and the API server, comma-separated. No rule opens them.
    #[arg(long, env = "CLUSTER_RANGES", default_value = "")]
    pub cluster_ranges: String,

    /// Name servers that resolve allowed names, `address` or `address:port`, comma-separated; those of
    /// /etc/resolv.conf if empty. A search list is never used.
    #[arg(long, env = "NAMESERVERS", value_delimiter = ',', value_parser = parse_name_server)]
    pub nameservers: Vec<SocketAddr>,

    /// Certificates (PEM) that are trusted for destinations beside the public ones.
    #[arg(long, env = "EXTRA_CA", default_value = "")]
    pub extra_ca: String,

    /// File of such certificates.
    #[arg(long, env = "EXTRA_CA_FILE")]
    pub extra_ca_file: Option<PathBuf>,

    /// Folder below which each Secret of a credential is mounted by its name.
    #[arg(long, env = "CREDENTIALS_DIR", default_value = gateway::PATH_CREDENTIALS)]
    pub credentials_dir: PathBuf,

    /// Folder that outlives the container: the authority's key.
    #[arg(long, env = "STATE_DIR", default_value = gateway::PATH_STATE)]
    pub state_dir: PathBuf,

    /// Shares and patience.
    #[command(flatten)]
    pub limits: Limits,

    /// Print the program's own messages as JSON, on standard error. Decisions are always JSON, on standard output.
    #[arg(long, env = "LOG_JSON")]
    pub log_json: bool,
}

/// How much of the gateway one sandbox may have, and how long anybody may take.
#[derive(Args, Clone, Debug)]
pub struct Limits {
    /// Most connections of one sandbox at once.
    #[arg(long, env = "MAX_CONNECTIONS_PER_SANDBOX", default_value_t = 256)]
    pub connections_per_sandbox: usize,

    /// Most connections of all sandboxes at once. Each sandbox keeps its fair part of them.
    #[arg(long, env = "MAX_CONNECTIONS", default_value_t = 8_192)]
    pub connections: usize,

    /// Most requests of one sandbox at once, over whatever connections: also those whose answer nobody has read yet.
    #[arg(long, env = "MAX_REQUESTS_PER_SANDBOX", default_value_t = 256)]
    pub requests_per_sandbox: usize,

    /// Most requests of all sandboxes at once. Each sandbox keeps its fair part of them.
    #[arg(long, env = "MAX_REQUESTS", default_value_t = 1_024)]
    pub requests: usize,

    /// New connections and requests per second of one sandbox.
    #[arg(long, env = "MAX_REQUESTS_PER_SECOND", default_value_t = 500)]
    pub requests_per_second: u32,

    /// DNS questions per second of one sandbox.
    #[arg(long, env = "MAX_QUERIES_PER_SECOND", default_value_t = 50)]
    pub queries_per_second: u32,

    /// Most memory for the bodies of model requests, of all sandboxes, in bytes. One sandbox gets half of it at most.
    #[arg(long, env = "MAX_MODEL_BODY_MEMORY", default_value_t = 96 << 20)]
    pub model_body_memory: usize,

    /// Decisions that wait to be written. When it is full, requests are refused.
    #[arg(long, env = "LOG_QUEUE", default_value_t = 8_192)]
    pub log_queue: usize,

    /// Seconds for a request's head, a TLS handshake or a registration.
    #[arg(long, env = "HEAD_TIMEOUT_SECONDS", default_value_t = 10, value_parser = clap::value_parser!(u64).range(1..=600))]
    pub head_timeout_seconds: u64,

    /// Seconds between two pieces of a request's body.
    #[arg(long, env = "BODY_TIMEOUT_SECONDS", default_value_t = 60, value_parser = clap::value_parser!(u64).range(1..=3_600))]
    pub body_timeout_seconds: u64,

    /// Seconds that a connection without request is kept.
    #[arg(long, env = "KEEP_ALIVE_SECONDS", default_value_t = 75, value_parser = clap::value_parser!(u64).range(1..=3_600))]
    pub keep_alive_seconds: u64,

    /// Seconds without a byte, either way, after which a tunnel or an answer is given up.
    #[arg(long, env = "IDLE_TIMEOUT_SECONDS", default_value_t = 3_600, value_parser = clap::value_parser!(u64).range(1..=86_400))]
    pub idle_timeout_seconds: u64,

    /// Seconds to find and reach a destination, its TLS handshake included.
    #[arg(long, env = "CONNECT_TIMEOUT_SECONDS", default_value_t = 15, value_parser = clap::value_parser!(u64).range(1..=600))]
    pub connect_timeout_seconds: u64,

    /// Seconds for the head of an answer.
    #[arg(long, env = "RESPONSE_TIMEOUT_SECONDS", default_value_t = 60, value_parser = clap::value_parser!(u64).range(1..=3_600))]
    pub response_timeout_seconds: u64,

    /// Seconds for the head of a model's answer.
    #[arg(long, env = "MODEL_RESPONSE_TIMEOUT_SECONDS", default_value_t = 300, value_parser = clap::value_parser!(u64).range(1..=3_600))]
    pub model_response_timeout_seconds: u64,

    /// Seconds for which a model's answer is read on, for its usage, when the sandbox has stopped listening.
    #[arg(long, env = "MODEL_DRAIN_SECONDS", default_value_t = 60, value_parser = clap::value_parser!(u64).range(1..=3_600))]
    pub model_drain_seconds: u64,

    /// Seconds that connections get to end by themselves when the gateway is told to stop.
    #[arg(long, env = "SHUTDOWN_SECONDS", default_value_t = 20, value_parser = clap::value_parser!(u64).range(0..=600))]
    pub shutdown_seconds: u64,
}

impl Limits {
    /// How long sandboxes may take with their requests.
    #[must_use]
    pub fn patience(&self) -> Patience {
        Patience {
            head: Duration::from_secs(self.head_timeout_seconds),
            body: Duration::from_secs(self.body_timeout_seconds),
        }
    }

    /// See [`Limits::head_timeout_seconds`].
    #[must_use]
    pub fn head_timeout(&self) -> Duration {
        Duration::from_secs(self.head_timeout_seconds)
    }

    /// See [`Limits::keep_alive_seconds`].
    #[must_use]
    pub fn keep_alive(&self) -> Duration {
        Duration::from_secs(self.keep_alive_seconds)
    }

    /// See [`Limits::idle_timeout_seconds`].
    #[must_use]
    pub fn idle_timeout(&self) -> Duration {
        Duration::from_secs(self.idle_timeout_seconds)
    }

    /// See [`Limits::connect_timeout_seconds`].
    #[must_use]
    pub fn connect_timeout(&self) -> Duration {
        Duration::from_secs(self.connect_timeout_seconds)
    }

    /// See [`Limits::response_timeout_seconds`].
    #[must_use]
    pub fn response_timeout(&self) -> Duration {
        Duration::from_secs(self.response_timeout_seconds)
    }

    /// See [`Limits::model_response_timeout_seconds`].
    #[must_use]
    pub fn model_response_timeout(&self) -> Duration {
        Duration::from_secs(self.model_response_timeout_seconds)
    }

    /// See [`Limits::model_drain_seconds`].
    #[must_use]
    pub fn model_drain(&self) -> Duration {
        Duration::from_secs(self.model_drain_seconds)
    }

    /// See [`Limits::shutdown_seconds`].
    #[must_use]
    pub fn shutdown(&self) -> Duration {
        Duration::from_secs(self.shutdown_seconds)
    }
}

fn parse_name_server(text: &str) -> Result<SocketAddr, String> {
    let text = text.trim();
    text.parse::<SocketAddr>()
        .or_else(|_| text.parse::<IpAddr>().map(|address| SocketAddr::new(address, 53)))
        .map_err(|_| format!("{text:?} is neither an address nor an address with a port"))
}

#[cfg(test)]
mod tests {
    use clap::Parser;

    use super::*;

    #[derive(Parser)]
    struct Cli {
        #[command(flatten)]
        config: Config,
    }

    #[test]
    fn a_deployment_needs_to_set_namespace_and_addresses_only() {
        let cli = Cli::try_parse_from([
            "gateway",
            "--namespace",
            "agents",
            "--gateway-addresses",
            "10.96.3.4,fd00::4",
            "--nameservers",
            "10.96.0.10,[fd00::a]:5353",
        ]);
        let config = cli.unwrap_or_else(|error| panic!("{error}")).config;
        assert_eq!(config.gateway_addresses.len(), 2);
        assert_eq!(config.nameservers[0], "10.96.0.10:53".parse().unwrap());
        assert_eq!(config.nameservers[1], "[fd00::a]:5353".parse().unwrap());
        assert_eq!(config.credentials_dir.to_str(), Some(gateway::PATH_CREDENTIALS));
    }

    #[test]
    fn a_name_is_no_name_server() {
        assert!(parse_name_server("dns.example").is_err());
    }
}
