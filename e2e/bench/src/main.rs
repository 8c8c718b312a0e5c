//! What a sandbox costs beside a bare pod: from its creation to its command's start, and from its command's end to
//! the verdict. Sandbox and bare pod take turns in one run, so that both meet the same noise.

mod supervisor;

use std::path::PathBuf;
use std::process::ExitCode;
use std::time::{Duration, SystemTime, UNIX_EPOCH};

use agentsandbox_api::condition::types;
use agentsandbox_api::sandbox::AgentSandbox;
use clap::Parser;
use e2e::harness::{AGENT_IMAGE, Harness, HarnessError, is};
use futures::{StreamExt, pin_mut};
use k8s_openapi::api::core::v1::Pod;
use kube::Api;
use kube::api::{DeleteParams, LogParams, PostParams, WatchEvent, WatchParams};
use serde_json::json;

/// The command says when it runs, in nanoseconds, and ends at once: its start is its end.
const COMMAND: &str = "date +%s%N | tee ${SANDBOX_OUTPUT:-/dev/null}";
/// Longest wait for one run.
const PATIENCE: Duration = Duration::from_mins(1);

/// What a sandbox costs beside a bare pod.
#[derive(Parser)]
struct Cli {
    /// Name of the cluster.
    #[arg(long, default_value = "bench")]
    cluster: String,
    /// Runs of each kind on each runtime class.
    #[arg(long, default_value_t = 50)]
    runs: usize,
    /// Print JSON too.
    #[arg(long)]
    json: bool,
    /// The static supervisor, to be measured by itself.
    #[arg(long)]
    supervisor: PathBuf,
    /// Only measure so many starts of the supervisor; in namespaces of its own.
    #[arg(long, hide = true)]
    supervisor_start: Option<usize>,
}

/// Milliseconds of one kind of run.
#[derive(Default)]
struct Times {
    start: Vec<f64>,
    end: Vec<f64>,
}

#[tokio::main]
async fn main() -> ExitCode {
    let cli = Cli::parse();
    let measured = match cli.supervisor_start {
        Some(runs) => supervisor::measure_start(&cli.supervisor, runs),
        None => measure(&cli).await,
    };
    match measured {
        Ok(()) => ExitCode::SUCCESS,
        Err(error) => {
            eprintln!("bench: {error}");
            ExitCode::FAILURE
        }
    }
}

async fn measure(cli: &Cli) -> Result<(), HarnessError> {
    let harness = Harness::in_namespace(&cli.cluster, "bench").await?;
    harness.usual_policies().await?;
    let mut rows = Vec::new();
    for class in ["runc", "gvisor"] {
        let (mut sandboxes, mut pods) = (Times::default(), Times::default());
        // The first of each warms up what is loaded once.
        for run in 0..=cli.runs {
            eprint!("\r  {class}: {run}/{}   ", cli.runs);
            let sandbox = sandbox(&harness, class, run).await?;
            let pod = bare_pod(&harness, class, run).await?;
            if run > 0 {
                sandboxes.add(sandbox);
                pods.add(pod);
            }
        }
        eprintln!();
        rows.push((class, "sandbox", sandboxes));
        rows.push((class, "bare pod", pods));
    }
    println!(
        "{:<8} {:<9} {:>22} {:>22}",
        "RUNTIME", "WHAT", "CREATED→STARTED ms", "ENDED→VERDICT ms"
    );
    println!(
        "{:<8} {:<9} {:>11}{:>11} {:>11}{:>11}",
        "", "", "median", "p95", "median", "p95"
    );
    for (class, what, times) in &rows {
        println!(
            "{class:<8} {what:<9} {:>11.0}{:>11.0} {:>11.0}{:>11.0}",
            quantile(&times.start, 50),
            quantile(&times.start, 95),
            quantile(&times.end, 50),
            quantile(&times.end, 95)
        );
    }
    for pair in rows.chunks(2) {
        if let [(class, _, sandbox), (_, _, pod)] = pair {
            let ratio = |one: &[f64], other: &[f64]| quantile(one, 50) / quantile(other, 50);
            println!(
                "{class}: sandbox / bare pod, medians: start {:.2}, end {:.2}",
                ratio(&sandbox.start, &pod.start),
                ratio(&sandbox.end, &pod.end)
            );
        }
    }
    if cli.json {
        for (class, what, times) in &rows {
            println!(
                "{}",
                json!({"runtime": class, "what": what, "startMs": times.start, "endMs": times.end})
            );
        }
    }
    let program = std::env::current_exe().map_err(HarnessError::Program)?;
    supervisor::measure(&cli.supervisor, cli.runs, &program, &harness).await?;
    harness.finish().await
}

impl Times {
    fn add(&mut self, (start, end): (f64, f64)) {
        self.start.push(start);
        self.end.push(end);
    }
}

async fn sandbox(harness: &Harness, class: &str, run: usize) -> Result<(f64, f64), HarnessError> {
    let name = format!("{class}-{run}");
    let created = now_ms();
    harness
        .sandbox(
            &name,
            json!({"policyRef": {"name": class}, "command": ["sh", "-c", COMMAND]}),
        )
        .await?;
    let finished = |sandbox: &AgentSandbox| {
        sandbox
            .status
            .as_ref()
            .is_some_and(|status| is(status, types::FINISHED, "True"))
    };
    let (sandbox, verdict) = watch_until(harness, &name, finished).await?;
    let output = sandbox
        .status
        .and_then(|status| status.result?.output)
        .unwrap_or_default();
    let ran = parse_ns(&output)?;
    harness
        .api::<AgentSandbox>()
        .delete(&name, &DeleteParams::default())
        .await?;
    harness.without_pods(&name).await?;
    Ok((ran - created, verdict - ran))
}

async fn bare_pod(harness: &Harness, class: &str, run: usize) -> Result<(f64, f64), HarnessError> {
    let name = format!("bare-{class}-{run}");
    let pod: Pod = serde_json::from_value(json!({
        "metadata": {"name": name},
        "spec": {
            "runtimeClassName": class, "restartPolicy": "Never", "automountServiceAccountToken": false,
            "securityContext": {"runAsNonRoot": true, "runAsUser": 65532, "seccompProfile": {"type": "RuntimeDefault"}},
            "containers": [{
                "name": "main", "image": AGENT_IMAGE, "imagePullPolicy": "IfNotPresent", "command": ["sh", "-c", COMMAND],
                "resources": {"limits": {"cpu": "200m", "memory": "128Mi"}},
                "securityContext": {"allowPrivilegeEscalation": false, "readOnlyRootFilesystem": true, "capabilities": {"drop": ["ALL"]}},
            }],
        },
    }))?;
    let api: Api<Pod> = harness.api();
    let created = now_ms();
    api.create(&PostParams::default(), &pod).await?;
    let succeeded =
        |pod: &Pod| pod.status.as_ref().and_then(|status| status.phase.as_deref()) == Some("Succeeded");
    let (_, verdict) = watch_until(harness, &name, succeeded).await?;
    let ran = parse_ns(&api.logs(&name, &LogParams::default()).await?)?;
    api.delete(
        &name,
        &DeleteParams {
            grace_period_seconds: Some(0),
            ..DeleteParams::default()
        },
    )
    .await?;
    harness
        .eventually("the end of a bare pod", || async {
            Ok(api.get_opt(&name).await?.is_none().then_some(()))
        })
        .await?;
    Ok((ran - created, verdict - ran))
}

/// The object and the time at which a watcher first sees it as it should be.
async fn watch_until<K>(
    harness: &Harness,
    name: &str,
    holds: impl Fn(&K) -> bool,
) -> Result<(K, f64), HarnessError>
where
    K: kube::Resource<DynamicType = (), Scope = k8s_openapi::NamespaceResourceScope>
        + Clone
        + std::fmt::Debug
        + serde::de::DeserializeOwned,
{
    let parameters = WatchParams::default().fields(&format!("metadata.name={name}"));
    let stream = harness.api::<K>().watch(&parameters, "0").await?;
    pin_mut!(stream);
    let late = || HarnessError::Late {
        what: format!("the end of {name}"),
        seen: String::new(),
    };
    loop {
        let event = tokio::time::timeout(PATIENCE, stream.next())
            .await
            .map_err(|_| late())?
            .ok_or_else(late)??;
        if let WatchEvent::Added(object) | WatchEvent::Modified(object) = event
            && holds(&object)
        {
            return Ok((object, now_ms()));
        }
    }
}

fn parse_ns(text: &str) -> Result<f64, HarnessError> {
    let nanos: u64 = text
        .trim()
        .parse()
        .map_err(|_| HarnessError::Kubectl(format!("{text:?} is no time")))?;
    Ok(Duration::from_nanos(nanos).as_secs_f64() * 1000.0)
}

fn now_ms() -> f64 {
    SystemTime::now()
        .duration_since(UNIX_EPOCH)
        .unwrap_or_default()
        .as_secs_f64()
        * 1000.0
}

/// The value below which so many percent lie.
fn quantile(values: &[f64], percent: usize) -> f64 {
    let mut sorted = values.to_vec();
    sorted.sort_by(f64::total_cmp);
    sorted
        .get((sorted.len() * percent / 100).min(sorted.len().saturating_sub(1)))
        .copied()
        .unwrap_or(f64::NAN)
}
