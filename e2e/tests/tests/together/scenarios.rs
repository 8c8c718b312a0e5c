//! Every scenario of the demo, from the same manifest, with its exact status.

use agentsandbox_api::condition::types;
use agentsandbox_api::sandbox::{AgentSandbox, Phase};
use e2e::Harness;
use e2e::harness::{is, name_of, repository, yaml_blocks};
use e2e::scenarios::{SCENARIOS, Scenario};
use k8s_openapi::api::core::v1::Pod;
use kube::Api;
use kube::api::{DeleteParams, ListParams};
use serde_json::Value;

fn apply(harness: &Harness, manifest: &str) {
    let path = repository().join("examples").join(manifest);
    harness
        .kubectl(&["apply", "-f", &path.to_string_lossy()])
        .unwrap();
}

async fn check(sandbox: &str) {
    let scenario: &Scenario = SCENARIOS
        .iter()
        .find(|scenario| scenario.sandbox == sandbox)
        .unwrap();
    let harness = Harness::start(sandbox).await.unwrap();
    apply(&harness, "00-policies.yaml");
    if sandbox == "token-burner" {
        apply(&harness, "13-agent-loop.yaml");
    }
    apply(&harness, scenario.manifest);
    if sandbox == "pod-deleted" {
        harness.running(sandbox).await.unwrap();
        let pod = name_of(&harness.pods_of(sandbox).await.unwrap()[0]);
        harness
            .api::<Pod>()
            .delete(&pod, &DeleteParams::default())
            .await
            .unwrap();
    }
    let mut status = harness.finished(sandbox).await.unwrap();
    if scenario.has_gateway() {
        status = harness.settled(sandbox).await.unwrap();
    }
    let differences = scenario.differences(&status);
    assert!(
        differences.is_empty(),
        "{differences:?} in {}",
        serde_json::to_string_pretty(&status).unwrap()
    );
    if sandbox == "package-install" {
        let (audit, missing) = harness.audited(scenario).unwrap();
        assert_eq!(missing, None, "{audit}");
    }
    if sandbox == "endless-loop" {
        let actions = harness.actions_of(sandbox, &status).await.unwrap();
        let is_told =
            |action: &Value| action["activity"] == "signal" && action["reason"] == "DeadlineExceeded";
        assert!(actions.iter().any(is_told), "{actions:#?}");
    }
    let success = scenario.reason.is_success();
    assert_eq!(
        status.phase,
        Some(if success { Phase::Succeeded } else { Phase::Failed })
    );
    assert!(is(
        &status,
        types::SUCCEEDED,
        if success { "True" } else { "False" }
    ));
    assert!(is(&status, types::READY, if success { "True" } else { "False" }));
    assert!(is(
        &status,
        types::STALLED,
        if success { "False" } else { "True" }
    ));
    assert!(is(&status, types::RECONCILING, "False"));
    if sandbox == "pod-deleted" {
        harness.without_pods(sandbox).await.unwrap();
    }
    // As the demo does before it runs them all again; a gateway, which stays, must not hold it up.
    harness.without_sandboxes().await.unwrap();
    let gateways = harness.gateway_pods().await.unwrap();
    assert_eq!(!gateways.is_empty(), scenario.has_gateway());
    harness.finish().await.unwrap();
}

macro_rules! scenario {
    ($test:ident, $sandbox:literal) => {
        #[tokio::test]
        async fn $test() {
            check($sandbox).await;
        }
    };
}

scenario!(a_python_job_returns_its_output, "python-job");
scenario!(a_failing_job_shows_its_exit_code, "failing-job");
scenario!(an_endless_loop_meets_its_deadline, "endless-loop");
scenario!(a_memory_hog_is_ended, "memory-hog");
scenario!(a_fork_bomb_is_contained, "fork-bomb");
scenario!(a_full_workspace_ends_the_run, "fills-workspace");
scenario!(a_sandbox_above_its_ceilings_is_rejected, "too-much");
scenario!(a_microvm_in_name_only_starts_nothing, "too-weak");
scenario!(
    packages_come_through_the_allow_list_and_nothing_goes_out,
    "package-install"
);
scenario!(an_agent_asks_a_model_without_a_key, "agent-loop");
scenario!(
    tokens_burned_in_parallel_are_counted_to_the_last_one,
    "token-burner"
);
scenario!(a_run_whose_pod_is_deleted_is_lost, "pod-deleted");

#[tokio::test]
async fn every_way_out_is_silent() {
    let harness = Harness::start("exfiltration").await.unwrap();
    let pods: Api<Pod> = Api::namespaced(harness.client.clone(), "kube-system");
    let dns = pods
        .list(&ListParams::default().labels("k8s-app=kube-dns"))
        .await
        .unwrap();
    let address = dns.items.into_iter().find_map(|pod| pod.status?.pod_ip).unwrap();
    apply(&harness, "00-policies.yaml");
    let text = std::fs::read_to_string(repository().join("examples/03-exfiltration.yaml")).unwrap();
    let file = std::env::temp_dir().join(format!("{}.yaml", harness.namespace));
    std::fs::write(&file, text.replace("10.244.0.2", &address)).unwrap();
    harness
        .kubectl(&["apply", "-f", &file.to_string_lossy()])
        .unwrap();
    std::fs::remove_file(&file).unwrap();
    let scenario = SCENARIOS
        .iter()
        .find(|scenario| scenario.sandbox == "exfiltration")
        .unwrap();
    let status = harness.finished("exfiltration").await.unwrap();
    let differences = scenario.differences(&status);
    assert!(differences.is_empty(), "{differences:?}");
    let (audit, missing) = harness.audited(scenario).unwrap();
    assert_eq!(missing, None, "{audit}");
    harness.finish().await.unwrap();
}

#[tokio::test]
async fn pods_of_good_and_failed_runs_go_after_their_own_times_and_verdicts_stay() {
    let harness = Harness::start("ttl").await.unwrap();
    apply(&harness, "11-ttl.yaml");
    for (name, seconds) in [("ttl-good", 5), ("ttl-failed", 15)] {
        let status = harness.finished(name).await.unwrap();
        let kept = status
            .expiration_time
            .unwrap()
            .0
            .duration_since(status.completion_time.unwrap().0);
        assert_eq!(kept.as_secs(), seconds, "{name}");
        harness.without_pods(name).await.unwrap();
        let expired = harness
            .when(name, "expiry", |status| is(status, types::EXPIRED, "True"))
            .await
            .unwrap();
        assert_eq!(expired.result, status.result, "{name}: the verdict stays");
    }
    assert_eq!(
        harness
            .api::<AgentSandbox>()
            .list(&ListParams::default())
            .await
            .unwrap()
            .items
            .len(),
        2
    );
    harness.finish().await.unwrap();
}

/// The first page's manifest, and the part of its status that is the same on every machine.
#[tokio::test]
async fn the_first_sandbox_of_the_readme_is_as_it_says() {
    let harness = Harness::start("readme").await.unwrap();
    let readme = std::fs::read_to_string(repository().join("README.md")).unwrap();
    let blocks = yaml_blocks(&readme);
    let [manifest, promised] = blocks.as_slice() else {
        panic!(
            "the README has a manifest and its status: {} blocks",
            blocks.len()
        );
    };
    let file = std::env::temp_dir().join(format!("{}.yaml", harness.namespace));
    std::fs::write(&file, manifest).unwrap();
    let applied = harness.kubectl(&["apply", "-f", &file.to_string_lossy()]);
    std::fs::remove_file(&file).unwrap();
    applied.unwrap();
    harness
        .kubectl(&[
            "wait",
            "--for=condition=Finished",
            "agentsandbox/python-job",
            "--timeout=120s",
        ])
        .unwrap();
    let status = harness
        .kubectl(&["get", "agentsandbox", "python-job", "-o", "yaml"])
        .unwrap();
    let (_, status) = status.split_once("\nstatus:\n").unwrap();
    let measured = |line: &str| {
        let name = line.trim_start().split(':').next().unwrap_or_default();
        ["nodeKernel", "rounds"].contains(&name)
            || name.starts_with("bytes")
            || name.ends_with("Seconds")
            || name.ends_with("Bytes")
    };
    for line in promised.lines().filter(|line| !measured(line)) {
        assert!(status.contains(line.trim_end()), "{line:?} is not in {status}");
    }
    let table = harness.kubectl(&["get", "agentsandbox", "python-job"]).unwrap();
    let columns = |text: &str| {
        text.split_whitespace()
            .take(6)
            .map(str::to_owned)
            .collect::<Vec<_>>()
    };
    let row = readme
        .lines()
        .find(|line| line.starts_with("python-job "))
        .unwrap();
    assert_eq!(columns(table.lines().nth(1).unwrap()), columns(row));
    harness.finish().await.unwrap();
}
