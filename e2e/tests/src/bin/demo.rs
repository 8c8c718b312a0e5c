//! `demo`: applies `examples/` to a cluster that runs the operator, waits, and prints what came of it.

use std::process::ExitCode;
use std::time::{Duration, Instant};

use agentsandbox_api::condition::types;
use agentsandbox_api::sandbox::AgentSandboxStatus;
use clap::Parser;
use e2e::harness::{Harness, HarnessError, is, repository};
use e2e::scenarios::{SCENARIOS, Scenario};
use k8s_openapi::api::core::v1::Pod;
use kube::Api;
use kube::api::{DeleteParams, ListParams};

/// Applies examples/ to a cluster that runs the operator, waits, and prints what came of it.
#[derive(Parser)]
struct Cli {
    /// Name of the cluster.
    #[arg(long, default_value = "demo")]
    cluster: String,
}

#[tokio::main]
async fn main() -> ExitCode {
    match show(&Cli::parse().cluster).await {
        Ok(true) => ExitCode::SUCCESS,
        Ok(false) => {
            eprintln!("demo: not everything is as expected");
            ExitCode::FAILURE
        }
        Err(error) => {
            eprintln!("demo: {error}");
            ExitCode::FAILURE
        }
    }
}

async fn show(cluster: &str) -> Result<bool, HarnessError> {
    let harness = Harness::in_namespace(cluster, "demo").await?;
    eprintln!("Removing what an earlier demo may have left");
    harness.without_sandboxes().await?;
    apply(&harness, "00-policies.yaml").await?;
    let mut manifests: Vec<&str> = SCENARIOS.iter().map(|scenario| scenario.manifest).collect();
    manifests.dedup();
    for manifest in manifests {
        apply(&harness, manifest).await?;
    }
    harness.running("pod-deleted").await?;
    for pod in harness.pods_of("pod-deleted").await? {
        let name = e2e::harness::name_of(&pod);
        harness
            .api::<Pod>()
            .delete(&name, &DeleteParams::default())
            .await?;
    }
    let mut rows = Vec::new();
    for (index, scenario) in SCENARIOS.iter().enumerate() {
        eprint!("\r  [{}/{}] {:<40}", index + 1, SCENARIOS.len(), scenario.sandbox);
        let mut status = harness.finished(scenario.sandbox).await?;
        if scenario.has_gateway() {
            status = harness.settled(scenario.sandbox).await?;
        }
        rows.push((scenario, status.clone(), scenario.differences(&status)));
    }
    eprintln!("\r{:60}", "");
    let ttl = check_ttl(&harness).await?;
    print_table(&rows);
    print_egress(&rows);
    println!("\nTTL: {ttl}");
    let again = harness.pods_of("pod-deleted").await?.len();
    println!("pod-deleted has {again} pods: it was not run again");
    let probes = rows
        .iter()
        .find(|(scenario, ..)| scenario.sandbox == "exfiltration");
    if let Some(network) = probes.and_then(|(_, status, _)| status.network.as_ref()) {
        let probes: Vec<String> = network
            .probes
            .iter()
            .map(|(name, outcome)| format!("{name} {outcome:?}"))
            .collect();
        println!(
            "How the denial was proven (status.network of exfiltration): {}",
            probes.join(", ")
        );
    }
    let mut good = print_exfiltration(&harness)? && again == 0;
    for (scenario, _, differences) in &rows {
        for difference in differences {
            good = false;
            println!("NOT AS EXPECTED: {}: {difference}", scenario.sandbox);
        }
    }
    println!(
        "\nThe cluster stays up. Look around with\n  {} --kubeconfig {} -n demo get agentsandboxes",
        harness.cluster.kubectl_path().display(),
        harness.cluster.kubeconfig().display()
    );
    println!("and end it with\n  make down");
    Ok(good)
}

/// The page and the audit of the run that tries every way out; whether the audit tells of each.
fn print_exfiltration(harness: &Harness) -> Result<bool, HarnessError> {
    let mut good = true;
    for scenario in SCENARIOS
        .iter()
        .filter(|scenario| scenario.sandbox == "exfiltration")
    {
        println!("\n$ kubectl sandbox get {}", scenario.sandbox);
        print!("{}", harness.succeed(&["get", scenario.sandbox])?);
        let (audit, missing) = harness.audited(scenario)?;
        print!("\n$ kubectl sandbox audit {}\n{audit}", scenario.sandbox);
        if let Some(missing) = missing {
            good = false;
            println!("NOT AS EXPECTED: {}: {missing}", scenario.sandbox);
        }
    }
    Ok(good)
}

async fn apply(harness: &Harness, manifest: &str) -> Result<(), HarnessError> {
    let path = repository().join("examples").join(manifest);
    let Ok(mut text) = std::fs::read_to_string(&path) else {
        return Err(HarnessError::Kubectl(format!("{} can't be read", path.display())));
    };
    if text.contains("OTHER_POD") {
        let pods: Api<Pod> = Api::namespaced(harness.client.clone(), "kube-system");
        let dns = pods
            .list(&ListParams::default().labels("k8s-app=kube-dns"))
            .await?;
        let address = dns
            .items
            .into_iter()
            .find_map(|pod| pod.status?.pod_ip)
            .unwrap_or_default();
        text = text.replace("10.244.0.2", &address);
    }
    let file = std::env::temp_dir().join(format!("agentsandbox-{manifest}"));
    std::fs::write(&file, text).map_err(|error| HarnessError::Kubectl(error.to_string()))?;
    let applied = harness.kubectl(&["apply", "-f", &file.to_string_lossy()]);
    let _ = std::fs::remove_file(&file);
    print!("{}", applied?);
    Ok(())
}

/// The good run's pod must go before the failed one's; both verdicts must stay.
async fn check_ttl(harness: &Harness) -> Result<String, HarnessError> {
    let begun = Instant::now();
    let mut gone: [Option<Duration>; 2] = [None; 2];
    while gone.iter().any(Option::is_none) && begun.elapsed() < Duration::from_mins(1) {
        for (index, name) in ["ttl-good", "ttl-failed"].iter().enumerate() {
            if gone[index].is_none() && harness.pods_of(name).await?.is_empty() {
                gone[index] = Some(begun.elapsed());
            }
        }
        tokio::time::sleep(Duration::from_millis(200)).await;
    }
    let mut parts = Vec::new();
    for name in ["ttl-good", "ttl-failed"] {
        let status = harness
            .when(name, "expiry", |status| is(status, types::EXPIRED, "True"))
            .await?;
        let completed = status.completion_time.as_ref().map(|time| time.0);
        let expired = status.expiration_time.as_ref().map(|time| time.0);
        let kept = completed
            .zip(expired)
            .map_or(0, |(from, to)| to.duration_since(from).as_secs());
        parts.push(format!(
            "the pod of {name} was removed {kept} s after its end, its verdict {} stays",
            status.reason.unwrap_or_default()
        ));
    }
    Ok(parts.join("; "))
}

/// What the gateway counted, for those that have one.
fn print_egress(rows: &[(&Scenario, AgentSandboxStatus, Vec<String>)]) {
    println!(
        "\n{:<16} {:>8} {:>7} {:>9} {:>8} {:>8} {:>8}  LAST DENIED",
        "THROUGH GATEWAY", "ALLOWED", "DENIED", "BYTES", "REQUESTS", "TOKENS", "OF"
    );
    for (scenario, status, _) in rows.iter().filter(|(scenario, ..)| scenario.has_gateway()) {
        let egress = status.egress.clone().unwrap_or_default();
        let denied: Vec<String> = egress
            .denials
            .iter()
            .map(|denial| format!("{} ({})", denial.destination, denial.reason))
            .collect();
        println!(
            "{:<16} {:>8} {:>7} {:>9} {:>8} {:>8} {:>8}  {}",
            scenario.sandbox,
            egress.allowed,
            egress.denied,
            egress.used.bytes,
            egress.used.model_requests,
            egress.used.tokens,
            scenario
                .token_limit()
                .map_or_else(|| "-".to_owned(), |limit| limit.to_string()),
            denied.join(", "),
        );
    }
}

fn print_table(rows: &[(&Scenario, AgentSandboxStatus, Vec<String>)]) {
    println!(
        "{:<16} {:<40} {:<9} {:<20} {:>4} {:>7} {:>7} {:>9} {:>5}  {:<15}",
        "SCENARIO", "TRIED", "VERDICT", "REASON", "EXIT", "WALL s", "CPU s", "PEAK MEM", "PROCS", "ISOLATION"
    );
    for (scenario, status, differences) in rows {
        let usage = status.usage.clone().unwrap_or_default();
        let result = status.result.clone().unwrap_or_default();
        let or_dash = |text: Option<String>| text.unwrap_or_else(|| "-".to_owned());
        println!(
            "{:<16} {:<40} {:<9} {:<20} {:>4} {:>7} {:>7} {:>9} {:>5}  {:<15} {}",
            scenario.sandbox,
            scenario.tried,
            or_dash(status.phase.map(|phase| phase.to_string())),
            or_dash(result.reason.map(|reason| reason.to_string())),
            or_dash(result.exit_code.map(|code| code.to_string())),
            or_dash(usage.wall_seconds.map(|s| format!("{s:.2}"))),
            or_dash(usage.cpu_seconds.map(|s| format!("{s:.2}"))),
            or_dash(usage.memory_peak_bytes.map(|b| format!(
                "{:.1} Mi",
                f64::from(u32::try_from(b >> 10).unwrap_or(u32::MAX)) / 1024.0
            ))),
            or_dash(usage.processes_peak.map(|n| n.to_string())),
            or_dash(
                status
                    .isolation
                    .as_ref()
                    .and_then(|i| i.level)
                    .map(|level| level.to_string())
            ),
            if differences.is_empty() {
                ""
            } else {
                "NOT AS EXPECTED"
            },
        );
    }
}
