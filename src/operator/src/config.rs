//! What an administrator sets on the operator itself: floors and lists that stand above every policy.

use agentsandbox_api::isolation::IsolationLevel;
use clap::Args;
use ipnet::IpNet;

/// Options of `sandbox-operator run`. Each can also be set by the environment variable that is named with it.
#[derive(Args, Clone, Debug)]
pub struct Config {
    /// Namespace the operator runs in; its Lease and canary Service live there.
    #[arg(long, env = "POD_NAMESPACE", default_value = "agentsandbox-system")]
    pub namespace: String,

    /// Watch only this namespace, with a Role instead of a ClusterRole; all namespaces if absent.
    #[arg(long, env = "WATCH_NAMESPACE")]
    pub watch_namespace: Option<String>,

    /// Image that holds the supervisor; every sandbox's recorder runs it.
    #[arg(
        long,
        env = "SUPERVISOR_IMAGE",
        default_value = "agent-sandbox.local/supervisor:dev"
    )]
    pub supervisor_image: String,

    /// Image of the egress gateway, which each namespace has whose policies allow any egress.
    #[arg(
        long,
        env = "GATEWAY_IMAGE",
        default_value = "agent-sandbox.local/gateway:dev"
    )]
    pub gateway_image: String,

    /// Thousandths of a CPU that a gateway asks for; it may use more.
    #[arg(long, env = "GATEWAY_CPU_MILLIS", default_value_t = 100)]
    pub gateway_cpu_millis: u64,

    /// Memory of a gateway in MiB: request and limit. About 30 MiB, and 15 KiB for each open tunnel.
    #[arg(long, env = "GATEWAY_MEMORY_MIB", default_value_t = 512, value_parser = clap::value_parser!(u32).range(64..))]
    pub gateway_memory_mib: u32,

    /// Priority class of gateways.
    #[arg(long, env = "GATEWAY_PRIORITY_CLASS", default_value = "")]
    pub gateway_priority_class: String,

    /// Certificates (PEM) that gateways trust for destinations beside the public authorities.
    #[arg(long, env = "GATEWAY_EXTRA_CA", default_value = "", hide_env_values = true)]
    pub gateway_extra_ca: String,

    /// Ranges of the cluster's Services (external addresses included), pods, nodes and load balancers, comma-separated:
    /// no egress rule opens them. What is found by itself: the API server, the cluster's DNS, addresses of nodes and of
    /// load balancers, and pods where nodes have ranges of their own.
    #[arg(long, env = "CLUSTER_RANGES", default_value = "")]
    pub cluster_ranges: Ranges,

    /// Runtime class of policies that name none.
    #[arg(long, env = "DEFAULT_RUNTIME_CLASS", default_value = "kata-qemu-runtime-rs")]
    pub default_runtime_class: String,

    /// Runtime classes that a policy may name, comma-separated; any, if empty.
    #[arg(long, env = "ALLOWED_RUNTIME_CLASSES", value_delimiter = ',')]
    pub allowed_runtime_classes: Vec<String>,

    /// Handlers of runtime classes that start virtual machines; a trailing `*` matches any ending.
    #[arg(long, env = "VM_HANDLERS", value_delimiter = ',', default_value = "kata*")]
    pub vm_handlers: Vec<String>,

    /// The weakest isolation that any policy may ask for: Container, `UserspaceKernel` or `MicroVM`.
    #[arg(long, env = "ISOLATION_FLOOR", default_value = "Container", value_parser = parse_level)]
    pub isolation_floor: IsolationLevel,

    /// Let policies set `isolation.allowRoot`.
    #[arg(long, env = "ALLOW_ROOT")]
    pub allow_root: bool,

    /// Priority classes that a policy may name, comma-separated; none, if empty.
    #[arg(long, env = "ALLOWED_PRIORITY_CLASSES", value_delimiter = ',')]
    pub allowed_priority_classes: Vec<String>,

    /// Taint keys that a policy may tolerate, comma-separated; none, if empty.
    #[arg(long, env = "ALLOWED_TOLERATION_KEYS", value_delimiter = ',')]
    pub allowed_toleration_keys: Vec<String>,

    /// Node labels that a policy may select by, comma-separated; none, if empty.
    #[arg(long, env = "ALLOWED_NODE_SELECTOR_KEYS", value_delimiter = ',')]
    pub allowed_node_selector_keys: Vec<String>,

    /// First of the user ids that runs get, one each.
    #[arg(long, env = "UID_RANGE_START", default_value_t = 1_000_000_000)]
    pub uid_range_start: u32,

    /// How many user ids there are. The recorder runs as the id before the first.
    #[arg(long, env = "UID_RANGE_SIZE", default_value_t = 100_000_000)]
    pub uid_range_size: u32,

    /// Seconds from the pod's creation within which the command must have started.
    #[arg(long, env = "START_TIMEOUT_SECONDS", default_value_t = 300)]
    pub start_timeout_seconds: u32,

    /// Seconds that an image may fail to be pulled before the run ends as `ImagePullFailed`.
    #[arg(long, env = "IMAGE_PULL_TIMEOUT_SECONDS", default_value_t = 120)]
    pub image_pull_timeout_seconds: u32,

    /// Seconds between a run's own deadline and the next line of defence (kubelet, then operator).
    #[arg(long, env = "DEADLINE_GRACE_SECONDS", default_value_t = 30)]
    pub deadline_grace_seconds: u32,

    /// Seconds that the recorder waits for the network to be closed.
    #[arg(long, env = "PROBE_TIMEOUT_SECONDS", default_value_t = 20)]
    pub probe_timeout_seconds: u32,

    /// Seconds between two probes of a running sandbox.
    #[arg(long, env = "PROBE_INTERVAL_SECONDS", default_value_t = 60)]
    pub probe_interval_seconds: u32,

    /// Address of the cluster's DNS service; found in kube-system/kube-dns if absent.
    #[arg(long, env = "CLUSTER_DNS")]
    pub cluster_dns: Option<std::net::IpAddr>,

    /// Name of the operator's own canary Service, whose closedness proves that egress policies are enforced.
    #[arg(long, env = "CANARY_SERVICE", default_value = "agentsandbox-canary")]
    pub canary_service: String,

    /// Port of the canary, TCP and UDP.
    #[arg(long, env = "CANARY_PORT", default_value_t = 9_444)]
    pub canary_port: u16,

    /// Port of `/metrics`, `/healthz` and `/readyz`.
    #[arg(long, env = "HTTP_PORT", default_value_t = 9_443)]
    pub http_port: u16,

    /// How many sandboxes are reconciled at once.
    #[arg(long, env = "CONCURRENCY", default_value_t = 32, value_parser = clap::value_parser!(u16).range(1..))]
    pub concurrency: u16,

    /// Print logs as JSON.
    #[arg(long, env = "LOG_JSON")]
    pub log_json: bool,
}

fn parse_level(text: &str) -> Result<IsolationLevel, String> {
    match text {
        "Container" => Ok(IsolationLevel::Container),
        "UserspaceKernel" => Ok(IsolationLevel::UserspaceKernel),
        "MicroVM" => Ok(IsolationLevel::MicroVM),
        other => Err(format!(
            "{other} is none of Container, UserspaceKernel and MicroVM"
        )),
    }
}

/// Ranges of addresses.
#[derive(Clone, Debug, Default, PartialEq, Eq)]
pub struct Ranges(pub Vec<IpNet>);

impl std::str::FromStr for Ranges {
    type Err = String;

    /// Ranges and single addresses, separated by commas.
    fn from_str(list: &str) -> Result<Self, String> {
        let entries = list.split(',').map(str::trim).filter(|entry| !entry.is_empty());
        let ranges = entries.map(|entry| {
            let address = || entry.parse::<std::net::IpAddr>().map(IpNet::from);
            entry
                .parse::<IpNet>()
                .map(|range| range.trunc())
                .or_else(|_| address())
                .map_err(|_| format!("{entry:?} is neither an address nor a range such as 10.96.0.0/12"))
        });
        ranges.collect::<Result<_, _>>().map(Self)
    }
}

impl Config {
    /// Memory of a gateway, in bytes.
    #[must_use]
    pub fn gateway_memory_bytes(&self) -> u64 {
        u64::from(self.gateway_memory_mib) << 20
    }

    /// User id of every recorder: the one before the range of the runs, so that it never is an agent's.
    #[must_use]
    pub fn recorder_uid(&self) -> u32 {
        self.uid_range_start - 1
    }

    /// Whether the configuration lists a runtime class's handler as one that starts virtual machines.
    #[must_use]
    pub fn is_vm_handler(&self, handler: &str) -> bool {
        self.vm_handlers
            .iter()
            .any(|pattern| match pattern.strip_suffix('*') {
                Some(prefix) => handler.starts_with(prefix),
                None => handler == pattern,
            })
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn ranges_are_read_with_single_addresses_and_without() {
        let ranges: Ranges = " 10.96.0.7/12, 192.168.7.1,,fd00::/64".parse().unwrap();
        let texts: Vec<String> = ranges.0.iter().map(IpNet::to_string).collect();
        assert_eq!(texts, ["10.96.0.0/12", "192.168.7.1/32", "fd00::/64"]);
        assert_eq!("".parse(), Ok(Ranges::default()));
        assert!("10.96.0.0/12,pods".parse::<Ranges>().is_err());
    }
}
