//! `sandbox-operator run`: puts the parts together.

use std::time::Duration;

use kube::Client;
use tokio::sync::watch;
use tracing::{error, info, warn};

use crate::canary::Canary;
use crate::config::Config;
use crate::context::Context;
use crate::facts::Facts;
use crate::http::{self, Readiness};
use crate::lease::{Election, LeaseError};
use crate::metrics::Metrics;
use crate::{policy, sandbox};

/// Why the operator can't run, or can't go on.
#[derive(Debug, thiserror::Error)]
pub enum RunError {
    /// There is no usable configuration of a client.
    #[error("no cluster is configured: {0}; run inside a cluster, or set KUBECONFIG")]
    Kubeconfig(#[from] kube::config::InferConfigError),
    /// The client could not be made.
    #[error("the client can't be made: {0}")]
    Client(#[from] kube::Error),
    /// A port is taken.
    #[error("port {port} can't be opened: {source}; set another one (see --help)")]
    Port {
        /// The port.
        port: u16,
        /// Why.
        source: std::io::Error,
    },
    /// Another replica leads, or nobody knows.
    #[error(transparent)]
    Lease(#[from] LeaseError),
}

/// Runs until a signal or the loss of the lease.
pub async fn run(config: Config) -> Result<(), RunError> {
    let mut client_config = kube::Config::infer().await?;
    client_config.connect_timeout = Some(Duration::from_secs(10));
    let client = Client::try_from(client_config)?;
    let metrics = Metrics::default();
    let readiness = Readiness::new(["facts", "caches", "canary"]);

    let canary = Canary::bind(config.canary_port)
        .await
        .map_err(|source| RunError::Port {
            port: config.canary_port,
            source,
        })?;
    tokio::spawn(canary.serve());
    readiness.set("canary");
    let (port, server_metrics, server_readiness) = (config.http_port, metrics.clone(), readiness.clone());
    let server = tokio::spawn(async move { http::serve(port, server_metrics, server_readiness).await });

    let facts = wait_for_facts(&client, &config).await;
    info!(?facts, "cluster");
    readiness.set("facts");
    let (context, triggers) = Context::start(client.clone(), config.clone(), facts, metrics.clone());
    context.synced().await;
    readiness.set("caches");

    let (stop, stopped) = watch::channel(false);
    let until_stopped = move || {
        let mut stopped = stopped.clone();
        async move {
            let _ = stopped.wait_for(|stop| *stop).await;
        }
    };
    let mut election = Election::new(client, &config.namespace, identity());
    tokio::select! {
        () = election.acquire() => {}
        () = signalled() => return Ok(()),
    }
    metrics.set_leader(true);
    let sandboxes = tokio::spawn(sandbox::controller(
        context.clone(),
        triggers.sandboxes,
        triggers.related_sandboxes,
        until_stopped(),
    ));
    let policies = tokio::spawn(policy::controller(
        context.clone(),
        triggers.policies,
        triggers.related_policies,
        until_stopped(),
    ));
    let sweeper = tokio::spawn(sandbox::orphans::sweep(context.clone(), triggers.pods));
    let gauges = tokio::spawn(async move {
        let mut ticks = tokio::time::interval(Duration::from_secs(10));
        loop {
            ticks.tick().await;
            for (phase, count) in policy::phases(&context) {
                context.metrics.set_sandboxes(phase.to_string(), count);
            }
        }
    });
    let result = tokio::select! {
        lost = election.keep() => Err(RunError::Lease(lost)),
        () = signalled() => Ok(()),
        ended = server => match ended {
            Ok(Err(source)) => Err(RunError::Port { port, source }),
            _ => Ok(()),
        },
    };
    sweeper.abort();
    gauges.abort();
    match &result {
        Ok(()) => {
            // What has begun is finished; then another replica may start at once.
            let _ = stop.send(true);
            let _ = tokio::time::timeout(Duration::from_secs(10), async {
                tokio::join!(sandboxes, policies)
            })
            .await;
            election.release().await;
        }
        // Without the lease nothing may be written any more: no graceful end.
        Err(error) => error!(%error, "stopping at once"),
    }
    result
}

async fn wait_for_facts(client: &Client, config: &Config) -> Facts {
    loop {
        match Facts::read(client, config).await {
            Ok(facts) => return facts,
            Err(error) => {
                warn!(%error, "waiting");
                tokio::time::sleep(Duration::from_secs(2)).await;
            }
        }
    }
}

/// A name that no other process has: a restarted container keeps its pod's name, and must not take its own
/// predecessor for itself.
fn identity() -> String {
    let name = std::env::var("POD_NAME")
        .or_else(|_| std::env::var("HOSTNAME"))
        .unwrap_or_else(|_| "local".to_owned());
    let started = k8s_openapi::jiff::Timestamp::now().as_microsecond();
    format!("{name}_{}_{started}", std::process::id())
}

async fn signalled() {
    use tokio::signal::unix::{SignalKind, signal};
    let (Ok(mut terminate), Ok(mut interrupt)) =
        (signal(SignalKind::terminate()), signal(SignalKind::interrupt()))
    else {
        return std::future::pending().await;
    };
    tokio::select! {
        _ = terminate.recv() => info!("asked to stop"),
        _ = interrupt.recv() => info!("interrupted"),
    }
}
