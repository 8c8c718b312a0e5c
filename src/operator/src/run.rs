//! `sandbox-operator run`: puts the parts together.

use std::sync::Arc;
use std::time::Duration;

use futures::StreamExt;
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
use crate::triggers::{self, Triggers};
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
    /// Signals can't be received.
    #[error("signals can't be received: {0}")]
    Signals(std::io::Error),
    /// A part of the operator ended by itself; its panic stands in the log.
    #[error("{0} ended; this is a defect of the operator, please report it with the log")]
    Ended(&'static str),
    /// Another replica leads, or nobody knows.
    #[error(transparent)]
    Lease(#[from] LeaseError),
}

/// How long an orderly end waits for what has begun. With [`Election::release`] it stays below the Deployment's
/// `terminationGracePeriodSeconds`.
const DRAIN: Duration = Duration::from_secs(10);

/// Runs until a signal or the loss of the lease.
pub async fn run(config: Config) -> Result<(), RunError> {
    // From the first moment on: as process 1 of a container, a signal that nobody handles has no effect.
    let asked = signals().map_err(RunError::Signals)?;
    let mut client_config = kube::Config::infer().await?;
    client_config.connect_timeout = Some(Duration::from_secs(10));
    let client = Client::try_from(client_config)?;
    let metrics = Metrics::default();
    let readiness = Readiness::new(["facts", "caches", "canary"]);

    let unopened = |port| move |source| RunError::Port { port, source };
    let canary = Canary::bind(config.canary_port)
        .await
        .map_err(unopened(config.canary_port))?;
    tokio::spawn(canary.serve());
    readiness.set("canary");
    let listener = http::bind(config.http_port)
        .await
        .map_err(unopened(config.http_port))?;
    let mut server = tokio::spawn(http::serve(listener, metrics.clone(), readiness.clone()));

    let mut election = Election::new(client.clone(), &config.namespace, identity());
    let leading = async {
        let facts = wait_for_facts(&client, &config).await;
        info!(?facts, "cluster");
        readiness.set("facts");
        let (context, mut triggers) = triggers::start(client.clone(), config.clone(), facts, metrics.clone());
        context.synced().await;
        readiness.set("caches");
        tokio::select! {
            () = election.acquire() => {}
            () = discard(&mut triggers) => {}
        }
        (context, triggers)
    };
    let (context, triggers) = tokio::select! {
        started = leading => started,
        () = told(asked.clone()) => return Ok(()),
        _ = &mut server => return Err(RunError::Ended("the HTTP server")),
    };
    metrics.set_leader(true);

    let (stop, stopped) = watch::channel(false);
    let mut sandboxes = tokio::spawn(sandbox::controller(
        context.clone(),
        triggers.sandboxes,
        triggers.related_sandboxes,
        told(stopped.clone()),
    ));
    let mut policies = tokio::spawn(policy::controller(
        context.clone(),
        triggers.policies,
        triggers.related_policies,
        told(stopped),
    ));
    let mut sweeper = tokio::spawn(sandbox::orphans::sweep(context.clone(), triggers.pods));
    let mut gauges = tokio::spawn(count_phases(context));
    // A part that ends by itself has panicked: a leader that does nothing would keep the others from leading.
    let ended = tokio::select! {
        lost = election.keep() => Err(RunError::Lease(lost)),
        () = told(asked) => Ok(()),
        _ = &mut server => Err(RunError::Ended("the HTTP server")),
        _ = &mut sandboxes => Err(RunError::Ended("the controller of AgentSandbox")),
        _ = &mut policies => Err(RunError::Ended("the controller of SandboxPolicy")),
        _ = &mut sweeper => Err(RunError::Ended("the sweeper of orphans")),
        _ = &mut gauges => Err(RunError::Ended("the count of sandboxes")),
    };
    sweeper.abort();
    gauges.abort();
    if let Err(error) = ended {
        // Without the lease nothing may be written any more: no graceful end.
        error!(%error, "stopping at once");
        return Err(error);
    }
    // What has begun is finished, under a lease that is still renewed; then another replica may start at once. If
    // something is still being written, the lease is left to expire.
    stop.send_replace(true);
    let drained = tokio::select! {
        drained = tokio::time::timeout(DRAIN, async { tokio::join!(sandboxes, policies, sweeper) }) => drained.is_ok(),
        _ = election.keep() => false,
    };
    if drained {
        election.release().await;
    } else {
        warn!("stopped before everything that had begun was finished");
    }
    Ok(())
}

/// A replica that waits to lead drops what it hears: whoever becomes the leader begins by looking at everything, and
/// the channels have no bound.
async fn discard(triggers: &mut Triggers) {
    loop {
        let heard = tokio::select! {
            sandbox = triggers.related_sandboxes.next() => sandbox.is_some(),
            policy = triggers.related_policies.next() => policy.is_some(),
            pod = triggers.pods.next() => pod.is_some(),
        };
        if !heard {
            return std::future::pending().await;
        }
    }
}

/// Keeps the gauge of sandboxes by phase.
async fn count_phases(context: Arc<Context>) {
    let mut ticks = tokio::time::interval(Duration::from_secs(10));
    loop {
        ticks.tick().await;
        for (phase, count) in policy::phases(&context) {
            context.metrics.set_sandboxes(phase.to_string(), count);
        }
    }
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

/// Becomes true with the first signal that asks for an end, and stays so.
fn signals() -> std::io::Result<watch::Receiver<bool>> {
    use tokio::signal::unix::{SignalKind, signal};
    let (mut terminate, mut interrupt) = (signal(SignalKind::terminate())?, signal(SignalKind::interrupt())?);
    let (tell, asked) = watch::channel(false);
    tokio::spawn(async move {
        tokio::select! {
            _ = terminate.recv() => info!("asked to stop"),
            _ = interrupt.recv() => info!("interrupted"),
        }
        tell.send_replace(true);
    });
    Ok(asked)
}

async fn told(mut flag: watch::Receiver<bool>) {
    if flag.wait_for(|told| *told).await.is_err() {
        // Whoever could have told is gone without having done so.
        std::future::pending::<()>().await;
    }
}
