//! The way to a cluster: the one that kubectl would take, and a client that repeats nothing but what reads.

use std::net::IpAddr;
use std::path::Path;

use http::header::UPGRADE;
use http::{Method, Request, Response, Uri};
use hyper_util::client::proxy::matcher::Matcher;
use kube::Client;
use kube::client::retry::RetryPolicy;
use kube::client::{Body, ClientBuilder};
use kube::config::{Cluster, Config, KubeConfigOptions, Kubeconfig};
use tower::BoxError;
use tower::buffer::BufferLayer;
use tower::retry::{Policy, RetryLayer};

use crate::Result;

/// Requests that wait for their turn; kube's own bound.
const WAITING: usize = 1024;

/// The cluster that kubectl would take: of a kubeconfig (`$KUBECONFIG` or `~/.kube/config` if absent) and one of its
/// contexts (the current one if absent), or the one this pod is in.
///
/// A `proxy-url` of the kubeconfig holds. Without one, that of `HTTPS_PROXY` does, but neither for hosts in `NO_PROXY`
/// nor for this machine itself.
pub async fn config(file: Option<&Path>, context: Option<&str>) -> Result<Config> {
    let options = KubeConfigOptions {
        context: context.map(str::to_owned),
        ..KubeConfigOptions::default()
    };
    let kubeconfig = match file {
        Some(file) => Some(Kubeconfig::read_from(file)?),
        None => Kubeconfig::read().ok(),
    };
    let cluster = kubeconfig
        .as_ref()
        .and_then(|kubeconfig| cluster(kubeconfig, context))
        .cloned();
    let mut config = match (file.and(kubeconfig), context) {
        (Some(kubeconfig), _) => Config::from_custom_kubeconfig(kubeconfig, &options).await?,
        (None, Some(_)) => Config::from_kubeconfig(&options).await?,
        (None, None) => Config::infer().await?,
    };
    if let Some(cluster) = cluster {
        // kube looks for the proxy in NO_PROXY, not for the cluster, and drops an explicit proxy as well.
        let (environment, exempt) = (variable("HTTPS_PROXY"), variable("NO_PROXY"));
        let explicit = cluster.proxy_url.as_deref();
        config.proxy_url = proxy(explicit, &environment, &exempt, &config.cluster_url);
    }
    Ok(config)
}

/// A client that sends what changes something, or starts it, once: a request that was answered with an error may have
/// been carried out, and repeated it would be carried out again. What only reads is repeated as kube does.
pub fn client(mut config: Config) -> Result<Client> {
    config.default_retry = false;
    let once = ClientBuilder::try_from(config)?;
    Ok(once
        .with_layer(&BufferLayer::new(WAITING))
        .with_layer(&RetryLayer::new(Reads(RetryPolicy::server_retry())))
        .build())
}

/// Repeats what reads.
#[derive(Clone)]
struct Reads(RetryPolicy);

impl<R> Policy<Request<Body>, Response<R>, BoxError> for Reads {
    type Future = <RetryPolicy as Policy<Request<Body>, Response<R>, BoxError>>::Future;

    fn retry(
        &mut self,
        request: &mut Request<Body>,
        result: &mut Result<Response<R>, BoxError>,
    ) -> Option<Self::Future> {
        self.0.retry(request, result)
    }

    fn clone_request(&mut self, request: &Request<Body>) -> Option<Request<Body>> {
        // An exec is a GET, and starts a command.
        let reads = request.method() == Method::GET && !request.headers().contains_key(UPGRADE);
        let clone = <RetryPolicy as Policy<Request<Body>, Response<R>, BoxError>>::clone_request;
        reads.then(|| clone(&mut self.0, request)).flatten()
    }
}

/// An environment variable, in capitals or small letters; empty if there is none.
fn variable(name: &str) -> String {
    [name.to_owned(), name.to_lowercase()]
        .into_iter()
        .filter_map(|name| std::env::var(name).ok())
        .find(|value| !value.is_empty())
        .unwrap_or_default()
}

/// The cluster of a context.
fn cluster<'a>(kubeconfig: &'a Kubeconfig, context: Option<&str>) -> Option<&'a Cluster> {
    let wanted = context.or(kubeconfig.current_context.as_deref())?;
    let mut contexts = kubeconfig.contexts.iter();
    let context = contexts
        .find(|context| context.name == wanted)?
        .context
        .as_ref()?;
    let mut clusters = kubeconfig.clusters.iter();
    clusters
        .find(|cluster| cluster.name == context.cluster)?
        .cluster
        .as_ref()
}

/// The proxy on the way to a cluster. One that is named for it holds; the environment's does not for exempt hosts, nor
/// for this machine itself.
fn proxy(explicit: Option<&str>, environment: &str, exempt: &str, cluster: &Uri) -> Option<Uri> {
    if let Some(explicit) = explicit.filter(|proxy| !proxy.is_empty()) {
        return explicit.parse().ok();
    }
    let host = cluster.host()?;
    let address = host.trim_matches(['[', ']']).parse::<IpAddr>();
    if host == "localhost" || address.is_ok_and(|address| address.is_loopback()) {
        return None;
    }
    Matcher::builder()
        .https(environment)
        .no(exempt)
        .build()
        .intercept(cluster)?;
    // As it stands there: the matcher takes user and password out of it.
    let scheme = if environment.contains("://") {
        ""
    } else {
        "http://"
    };
    format!("{scheme}{environment}").parse().ok()
}

#[cfg(test)]
mod tests {
    use std::sync::Arc;
    use std::sync::atomic::{AtomicUsize, Ordering};

    use serde_json::json;
    use tokio::io::{AsyncReadExt, AsyncWriteExt};
    use tokio::net::TcpListener;

    use super::*;
    use crate::{SandboxBuilder, Sandboxes, Step};

    #[test]
    fn the_proxy_is_the_clusters_own_or_the_environments_but_for_exempt_hosts() {
        const PROXY: &str = "http://user:word@10.1.1.1:3128";
        for (explicit, environment, exempt, cluster, expected) in [
            (None, PROXY, "", "https://k8s.example.com:6443", Some(PROXY)),
            (
                None,
                "proxy:3128",
                "",
                "https://10.0.0.1",
                Some("http://proxy:3128"),
            ),
            (None, "", "", "https://10.0.0.1", None),
            // What counts is where the cluster is, not the proxy.
            (
                None,
                PROXY,
                "10.0.0.0/8",
                "https://k8s.example.com:6443",
                Some(PROXY),
            ),
            (None, PROXY, "10.0.0.0/8", "https://10.9.9.9:6443", None),
            (
                None,
                PROXY,
                "a.test, .example.com,",
                "https://k8s.example.com:6443",
                None,
            ),
            (None, PROXY, "example.com", "https://k8s.example.com:6443", None),
            (None, PROXY, "*", "https://k8s.example.com:6443", None),
            (None, PROXY, "fd00::/8", "https://[fd00::1]:6443", None),
            (None, PROXY, "", "https://localhost:6443", None),
            (None, PROXY, "", "https://127.0.0.1:6443", None),
            (None, PROXY, "", "https://[::1]:6443", None),
            (
                Some("socks5://p:1080"),
                PROXY,
                "*",
                "https://127.0.0.1:6443",
                Some("socks5://p:1080"),
            ),
            (Some(""), PROXY, "", "https://10.0.0.1", Some(PROXY)),
        ] {
            let found = proxy(explicit, environment, exempt, &cluster.parse().unwrap());
            let expected = expected.map(|proxy| proxy.parse::<Uri>().unwrap());
            assert_eq!(found, expected, "{explicit:?} {environment} {exempt} {cluster}");
        }
    }

    #[test]
    fn the_cluster_is_the_contexts() {
        let kubeconfig: Kubeconfig = serde_json::from_value(json!({
            "current-context": "one",
            "contexts": [{"name": "one", "context": {"cluster": "a"}}, {"name": "two", "context": {"cluster": "b"}}],
            "clusters": [{"name": "a", "cluster": {"server": "https://a"}},
                         {"name": "b", "cluster": {"server": "https://b", "proxy-url": "http://p"}}],
        }))
        .unwrap();
        let proxy_of = |context| cluster(&kubeconfig, context).map(|cluster| cluster.proxy_url.as_deref());
        assert_eq!(proxy_of(None), Some(None));
        assert_eq!(proxy_of(Some("two")), Some(Some("http://p")));
        assert_eq!(proxy_of(Some("three")), None);
    }

    #[tokio::test]
    async fn what_reads_is_repeated_and_what_makes_or_starts_something_is_not() {
        let listener = TcpListener::bind("127.0.0.1:0").await.unwrap();
        let url = format!("http://{}", listener.local_addr().unwrap());
        let asked = Arc::new([const { AtomicUsize::new(0) }; 3]);
        let counted = asked.clone();
        tokio::spawn(async move {
            loop {
                let (mut stream, _) = listener.accept().await.unwrap();
                let mut head = vec![0; 16 << 10];
                let length = stream.read(&mut head).await.unwrap();
                let head = String::from_utf8_lossy(&head[..length]);
                let what = usize::from(head.starts_with("POST")) + 2 * usize::from(head.contains("/exec?"));
                let before = counted[what].fetch_add(1, Ordering::Relaxed);
                let object = json!({"metadata": {"name": "job"}, "spec": {"image": "x", "command": ["y"]},
                    "status": {"runId": "", "podName": "job-sb00000000"}});
                let busy = json!({"status": "Failure", "code": 503, "reason": "ServiceUnavailable", "message": "no"});
                let (code, body) = match (what, before) {
                    (_, 1..) => (200, object),
                    _ => (503, busy),
                };
                let answer = format!("HTTP/1.1 {code} x\r\nConnection: close\r\n\r\n{body}");
                stream.write_all(answer.as_bytes()).await.unwrap();
            }
        });
        let sandboxes = Sandboxes::new(client(Config::new(url.parse().unwrap())).unwrap(), "ns");
        let count = || asked.each_ref().map(|count| count.load(Ordering::Relaxed));
        sandboxes.sandbox("job").object().await.unwrap();
        assert_eq!(count(), [2, 0, 0]);
        let wanted = SandboxBuilder::new("x").name("job").command(["y"]);
        assert_eq!(
            sandboxes.create(wanted).await.err().unwrap().api_code(),
            Some(503)
        );
        let step = sandboxes.sandbox("job").start_step(&Step::new(["y"])).await;
        assert_eq!(step.err().unwrap().api_code(), Some(503));
        assert_eq!(count()[1..], [1, 1]);
    }
}
