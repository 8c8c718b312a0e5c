//! The way out: names are resolved here, each address is checked, and the one that was checked is dialled.

use std::net::{IpAddr, SocketAddr};
use std::time::Duration;

use agentsandbox_egress::address::{self, ClusterRanges};
use agentsandbox_egress::deny::Deny;
use agentsandbox_egress::name::HostName;
use futures::future::BoxFuture;
use futures::stream::{FuturesUnordered, StreamExt};
use hickory_resolver::TokioResolver;
use hickory_resolver::config::{
    ConnectionConfig, LookupIpStrategy, NameServerConfig, ResolveHosts, ResolverConfig,
};
use hickory_resolver::net::NetError;
use hickory_resolver::net::runtime::TokioRuntimeProvider;
use ipnet::IpNet;
use tokio::net::TcpStream;

/// Most addresses of a name that are tried.
const MAX_ADDRESSES: usize = 6;
/// Most addresses that a name may have: each is checked.
const MAX_ANSWERS: usize = 64;
/// Another address is tried beside one that has not answered for so long (RFC 8305, section 5).
const STAGGER: Duration = Duration::from_millis(250);

/// Names, addresses and connections of the world outside. Tests put one of their own in its place; nothing else does.
pub trait Network: Send + Sync + 'static {
    /// Every address of a name, in the order in which they are to be tried.
    fn resolve<'a>(&'a self, host: &'a HostName) -> BoxFuture<'a, Result<Vec<IpAddr>, Deny>>;
    /// Whether an address may be dialled, given the ranges that rules open.
    fn check(&self, address: IpAddr, opened: &[IpNet]) -> Result<(), Deny>;
    /// A connection to an address that was checked.
    fn dial(&self, address: SocketAddr) -> BoxFuture<'_, std::io::Result<TcpStream>>;
}

/// Finds, checks and reaches a name; says at which address.
pub async fn reach_host(
    network: &dyn Network,
    host: &HostName,
    port: u16,
    opened: &[IpNet],
    timeout: Duration,
) -> Result<(TcpStream, SocketAddr), Deny> {
    let reach = async {
        let addresses = network.resolve(host).await?;
        if addresses.is_empty() {
            return Err(Deny::UpstreamUnreachable);
        }
        // One forbidden address among public ones is what a rebinding attack looks like: nothing of it is dialled.
        for address in addresses.iter().take(MAX_ANSWERS) {
            network.check(*address, opened)?;
        }
        if addresses.len() > MAX_ANSWERS {
            return Err(Deny::AddressForbidden);
        }
        race(network, &addresses[..addresses.len().min(MAX_ADDRESSES)], port).await
    };
    tokio::time::timeout(timeout, reach)
        .await
        .unwrap_or(Err(Deny::UpstreamTimeout))
}

/// Checks and reaches an address.
pub async fn reach_address(
    network: &dyn Network,
    address: IpAddr,
    port: u16,
    opened: &[IpNet],
    timeout: Duration,
) -> Result<TcpStream, Deny> {
    network.check(address, opened)?;
    let reached = tokio::time::timeout(timeout, race(network, &[address], port))
        .await
        .unwrap_or(Err(Deny::UpstreamTimeout));
    reached.map(|(stream, _)| stream)
}

async fn race(
    network: &dyn Network,
    addresses: &[IpAddr],
    port: u16,
) -> Result<(TcpStream, SocketAddr), Deny> {
    let mut waiting = addresses.iter();
    let mut attempts = FuturesUnordered::new();
    let attempt = |address: &IpAddr| {
        let address = SocketAddr::new(*address, port);
        let dial = network.dial(address);
        async move { dial.await.map(|stream| (stream, address)) }
    };
    loop {
        if attempts.is_empty() {
            match waiting.next() {
                Some(address) => attempts.push(attempt(address)),
                None => return Err(Deny::UpstreamUnreachable),
            }
        }
        tokio::select! {
            Some(reached) = attempts.next() => if let Ok((stream, address)) = reached {
                // Requests and their answers are small and wait for each other.
                let _ = stream.set_nodelay(true);
                return Ok((stream, address));
            },
            () = tokio::time::sleep(STAGGER), if waiting.len() > 0 => {
                if let Some(address) = waiting.next() {
                    attempts.push(attempt(address));
                }
            }
        }
    }
}

/// The world as the gateway's pod reaches it.
pub struct ClusterNetwork {
    resolver: TokioResolver,
    cluster: ClusterRanges,
}

impl ClusterNetwork {
    /// Resolves by these name servers, and dials nothing of `cluster`.
    pub fn new(nameservers: &[SocketAddr], cluster: ClusterRanges) -> Result<Self, NetError> {
        let servers = nameservers.iter().map(|server| {
            let (mut udp, mut tcp) = (ConnectionConfig::udp(), ConnectionConfig::tcp());
            udp.port = server.port();
            tcp.port = server.port();
            NameServerConfig::new(server.ip(), true, vec![udp, tcp])
        });
        // Without a domain and a search list: `github.com` must never become a Service's name.
        let config = ResolverConfig::from_parts(None, Vec::new(), servers.collect());
        let mut builder = TokioResolver::builder_with_config(config, TokioRuntimeProvider::default());
        let options = builder.options_mut();
        options.use_hosts_file = ResolveHosts::Never;
        options.ip_strategy = LookupIpStrategy::Ipv4thenIpv6;
        options.timeout = Duration::from_secs(3);
        options.attempts = 2;
        options.cache_size = 1_024;
        options.preserve_intermediates = false;
        // A name's addresses are asked for anew within a minute, whatever its servers say.
        options.positive_max_ttl = Some(Duration::from_mins(1));
        options.negative_max_ttl = Some(Duration::from_secs(5));
        Ok(Self {
            resolver: builder.build()?,
            cluster,
        })
    }
}

impl Network for ClusterNetwork {
    fn resolve<'a>(&'a self, host: &'a HostName) -> BoxFuture<'a, Result<Vec<IpAddr>, Deny>> {
        Box::pin(async move {
            // The final dot makes the name fully qualified.
            match self.resolver.lookup_ip(format!("{host}.")).await {
                Ok(found) => Ok(found.iter().collect()),
                Err(NetError::Timeout) => Err(Deny::UpstreamTimeout),
                Err(_) => Err(Deny::UpstreamUnreachable),
            }
        })
    }

    fn check(&self, address: IpAddr, opened: &[IpNet]) -> Result<(), Deny> {
        address::check(address, &self.cluster, opened)
    }

    fn dial(&self, address: SocketAddr) -> BoxFuture<'_, std::io::Result<TcpStream>> {
        Box::pin(TcpStream::connect(address))
    }
}

/// The name servers of a `resolv.conf`. Its search list and options are not for us.
#[must_use]
pub fn name_servers(resolv_conf: &str) -> Vec<SocketAddr> {
    resolv_conf
        .lines()
        .filter_map(|line| {
            let mut words = line.split_ascii_whitespace();
            (words.next() == Some("nameserver"))
                .then(|| words.next())
                .flatten()
        })
        .filter_map(|address| address.parse::<IpAddr>().ok())
        .take(3)
        .map(|address| SocketAddr::new(address, 53))
        .collect()
}

#[cfg(test)]
mod tests {
    use std::sync::Mutex;

    use super::*;

    /// Answers one list of addresses after the other, and counts dials.
    struct Scripted {
        answers: Mutex<Vec<Vec<IpAddr>>>,
        dialled: Mutex<Vec<IpAddr>>,
        hangs: Vec<IpAddr>,
    }

    impl Scripted {
        fn new(answers: &[&[&str]], hangs: &[&str]) -> Self {
            let parse = |list: &[&str]| list.iter().map(|address| address.parse().unwrap()).collect();
            Self {
                answers: Mutex::new(answers.iter().rev().map(|list| parse(list)).collect()),
                dialled: Mutex::default(),
                hangs: parse(hangs),
            }
        }

        async fn reach(&self) -> Result<(TcpStream, SocketAddr), Deny> {
            let host = HostName::parse("api.example.org").unwrap();
            reach_host(self, &host, 443, &[], Duration::from_secs(10)).await
        }

        fn dialled(&self) -> Vec<String> {
            self.dialled
                .lock()
                .unwrap()
                .iter()
                .map(ToString::to_string)
                .collect()
        }
    }

    impl Network for Scripted {
        fn resolve<'a>(&'a self, _: &'a HostName) -> BoxFuture<'a, Result<Vec<IpAddr>, Deny>> {
            Box::pin(async { Ok(self.answers.lock().unwrap().pop().unwrap_or_default()) })
        }

        fn check(&self, address: IpAddr, opened: &[IpNet]) -> Result<(), Deny> {
            address::check(address, &ClusterRanges::parse("8.8.8.8").unwrap(), opened)
        }

        fn dial(&self, address: SocketAddr) -> BoxFuture<'_, std::io::Result<TcpStream>> {
            self.dialled.lock().unwrap().push(address.ip());
            let hangs = self.hangs.contains(&address.ip());
            Box::pin(async move {
                if hangs {
                    std::future::pending::<()>().await;
                }
                Err(std::io::ErrorKind::ConnectionRefused.into())
            })
        }
    }

    #[tokio::test(start_paused = true)]
    async fn one_forbidden_address_forbids_the_name() {
        for forbidden in [
            "10.0.0.1",
            "127.0.0.1",
            "169.254.169.254",
            "8.8.8.8",
            "::ffff:1.1.1.1",
            "64:ff9b::1",
        ] {
            let network = Scripted::new(&[&["1.1.1.1", forbidden]], &[]);
            assert_eq!(
                network.reach().await.unwrap_err(),
                Deny::AddressForbidden,
                "{forbidden}"
            );
            assert!(network.dialled().is_empty());
        }
    }

    #[tokio::test(start_paused = true)]
    async fn an_answer_that_changes_is_checked_each_time() {
        let network = Scripted::new(&[&["1.1.1.1"], &["127.0.0.1"]], &[]);
        assert_eq!(network.reach().await.unwrap_err(), Deny::UpstreamUnreachable);
        assert_eq!(network.reach().await.unwrap_err(), Deny::AddressForbidden);
        assert_eq!(network.dialled(), ["1.1.1.1"]);
    }

    #[tokio::test(start_paused = true)]
    async fn a_silent_address_does_not_keep_the_next_one_waiting() {
        let network = Scripted::new(&[&["1.1.1.1", "1.0.0.1"]], &["1.1.1.1"]);
        let begun = tokio::time::Instant::now();
        assert_eq!(network.reach().await.unwrap_err(), Deny::UpstreamTimeout);
        assert_eq!(network.dialled(), ["1.1.1.1", "1.0.0.1"]);
        assert_eq!(begun.elapsed(), Duration::from_secs(10));
    }

    #[tokio::test(start_paused = true)]
    async fn few_of_many_addresses_are_tried_and_a_flood_of_them_none() {
        let many: Vec<String> = (1..=20).map(|last| format!("1.1.1.{last}")).collect();
        let many: Vec<&str> = many.iter().map(String::as_str).collect();
        let network = Scripted::new(&[&many], &[]);
        assert_eq!(network.reach().await.unwrap_err(), Deny::UpstreamUnreachable);
        assert_eq!(network.dialled().len(), MAX_ADDRESSES);
        let flood: Vec<String> = (1..=100).map(|last| format!("1.1.1.{last}")).collect();
        let flood: Vec<&str> = flood.iter().map(String::as_str).collect();
        let network = Scripted::new(&[&flood], &[]);
        assert_eq!(network.reach().await.unwrap_err(), Deny::AddressForbidden);
    }

    #[test]
    fn only_name_servers_are_taken_from_resolv_conf() {
        let text = "# comment\nsearch agents.svc.cluster.local\nnameserver 10.96.0.10\nnameserver fd00::a\noptions ndots:5\nnameserver bad\n";
        let expected: Vec<SocketAddr> =
            vec!["10.96.0.10:53".parse().unwrap(), "[fd00::a]:53".parse().unwrap()];
        assert_eq!(name_servers(text), expected);
    }
}
