//! Helpers of the egress tests: scripts that run inside a sandbox, what reached the outside world, and tables of what
//! each attempt must come to.

use std::collections::BTreeMap;
use std::path::PathBuf;
use std::time::Instant;

use agentsandbox_action_log::verify::{Expected, verify};
use agentsandbox_api::sandbox::{AgentSandboxStatus, EgressStatus, Usage};
use agentsandbox_api::{gateway, names};
use k8s_openapi::api::core::v1::{Pod, Secret};
use kube::api::{DeleteParams, ListParams, LogParams, Patch, PatchParams, PostParams};
use serde_json::{Value, json};

use crate::harness::{Harness, HarnessError, LOOK, PATIENCE, Result, name_of, repository};

/// The image with package managers, HTTP clients and the SDKs of model providers.
pub const SDK_IMAGE: &str = "agent-sandbox.local/agent-sdks:1";
/// What a script prints before its outcomes.
const RESULT: &str = "RESULT ";

/// A policy of gVisor sandboxes with these egress rules and models, and whatever else is given.
#[must_use]
pub fn policy(allow: &Value, models: &Value, more: Value) -> Value {
    let mut spec = json!({
        "isolation": {"runtimeClassName": "gvisor", "minimum": "UserspaceKernel"},
        "defaults": {
            "resources": {"cpu": "600m", "memory": "512Mi", "ephemeralStorage": "512Mi", "processes": 256},
            "limits": {"runtimeSeconds": 240},
        },
        "egress": {"allow": allow}, "models": models,
    });
    if let (Value::Object(spec), Value::Object(more)) = (&mut spec, more) {
        spec.extend(more);
    }
    spec
}

/// What a script found out, and what became of its sandbox.
#[derive(Clone, Debug)]
pub struct Run {
    /// Outcome of each attempt.
    pub outcomes: BTreeMap<String, String>,
    /// Everything that it printed.
    pub log: String,
    /// The sandbox's status at its end.
    pub status: AgentSandboxStatus,
}

impl Run {
    /// What the gateway counted, once it is final.
    #[must_use]
    pub fn egress(&self) -> EgressStatus {
        self.status.egress.clone().unwrap_or_default()
    }

    /// Every outcome that is not one of those that the first fitting row of the table names; a `*` at the end of an
    /// attempt's or outcome's name stands for anything. An attempt without a row is a fault of the table.
    #[must_use]
    pub fn differences(&self, table: &[(&str, &[&str])]) -> Vec<String> {
        let fits = |pattern: &str, text: &str| match pattern.strip_suffix('*') {
            Some(begin) => text.starts_with(begin),
            None => pattern == text,
        };
        let mut found: Vec<String> = Vec::new();
        for (attempt, outcome) in &self.outcomes {
            match table.iter().find(|(pattern, _)| fits(pattern, attempt)) {
                None => found.push(format!("{attempt}: {outcome} (no row)")),
                Some((_, expected)) if !expected.iter().any(|pattern| fits(pattern, outcome)) => {
                    found.push(format!(
                        "{attempt}: {outcome} instead of {}",
                        expected.join(" or ")
                    ));
                }
                Some(_) => {}
            }
        }
        let unused = |pattern: &str| !self.outcomes.keys().any(|attempt| fits(pattern, attempt));
        for (pattern, _) in table {
            if unused(pattern) {
                found.push(format!("{pattern}: never tried"));
            }
        }
        found
    }
}

/// What reached the outside world since this was opened.
#[derive(Clone, Debug)]
pub struct Journal {
    path: PathBuf,
    from: usize,
}

impl Journal {
    /// Begins to listen.
    #[must_use]
    pub fn open(harness: &Harness) -> Self {
        let path = harness.cluster.outside_log();
        let from = std::fs::metadata(&path).map_or(0, |meta| meta.len());
        Self {
            path,
            from: usize::try_from(from).unwrap_or_default(),
        }
    }

    /// All lines.
    #[must_use]
    pub fn lines(&self) -> Vec<Value> {
        self.text()
            .lines()
            .filter_map(|line| serde_json::from_str(line).ok())
            .collect()
    }

    /// All lines as they were written.
    #[must_use]
    pub fn text(&self) -> String {
        let bytes = std::fs::read(&self.path).unwrap_or_default();
        String::from_utf8_lossy(bytes.get(self.from..).unwrap_or_default()).into_owned()
    }

    /// Requests that reached a host.
    #[must_use]
    pub fn requests_to(&self, host: &str) -> Vec<Value> {
        self.lines()
            .into_iter()
            .filter(|line| line["what"] == "request" && line["host"] == host)
            .collect()
    }
}

/// Rules of each kind that a gateway knows.
#[must_use]
pub fn roads() -> Value {
    json!([
        {"host": "seen.example.test", "tls": "Inspect"},
        {"host": "big.example.test", "tls": "Inspect"},
        {"host": "through.example.test"},
        {"host": "long.example.test", "tls": "Inspect"},
        {"host": "socket.example.test", "upgrade": true},
        {"host": "plain.example.test", "tls": "None"},
        {"cidr": "93.184.216.0/24", "ports": [9000]},
    ])
}

/// Lines of the gateway's decisions for one sandbox, as they were printed.
#[must_use]
pub fn records_of<'a>(log: &'a str, sandbox: &str) -> Vec<(&'a str, Value)> {
    log.lines()
        .filter_map(|line| Some((line, serde_json::from_str::<Value>(line).ok()?)))
        .filter(|(_, record)| record["run"]["sandbox"] == sandbox && record["seq"].is_u64())
        .collect()
}

/// Value of a header in a line of the journal; all of them, if it came more than once.
#[must_use]
pub fn header(request: &Value, name: &str) -> Vec<String> {
    let headers = request["headers"].as_array().cloned().unwrap_or_default();
    headers
        .iter()
        .filter(|pair| pair[0] == name)
        .map(|pair| pair[1].as_str().unwrap_or_default().to_owned())
        .collect()
}

impl Harness {
    /// Starts a script of `e2e/tests/scripts` in a sandbox.
    pub async fn start_script(
        &self,
        name: &str,
        script: &str,
        arguments: &[&str],
        more: Value,
    ) -> Result<()> {
        let mut command = vec!["python3", script];
        command.extend(arguments);
        let mut spec = json!({"image": SDK_IMAGE, "command": command, "files": self.script_files(script)?});
        if let (Value::Object(spec), Value::Object(more)) = (&mut spec, more) {
            spec.extend(more);
        }
        self.sandbox(name, spec).await.map(|_| ())
    }

    /// A script of `e2e/tests/scripts` as the files of a sandbox, with what it needs.
    pub fn script_files(&self, script: &str) -> Result<Vec<Value>> {
        let read = |file: PathBuf| {
            std::fs::read_to_string(&file)
                .map_err(|error| HarnessError::Kubectl(format!("{}: {error}", file.display())))
        };
        let scripts = repository().join("e2e/tests/scripts");
        let mut files = vec![json!({
            "path": "outside-ca.pem", "content": read(self.cluster.outside_authority())?,
        })];
        let helpers: &[&str] = if script == "programs.py" {
            &["attack.py", "models.py", "models.js"]
        } else {
            &["attack.py"]
        };
        for file in helpers.iter().chain(&[script]) {
            files.push(json!({"path": file, "content": read(scripts.join(file))?}));
        }
        Ok(files)
    }

    /// Runs a script of `e2e/tests/scripts` in a sandbox to its end.
    pub async fn script(&self, name: &str, script: &str, arguments: &[&str], more: Value) -> Result<Run> {
        self.start_script(name, script, arguments, more).await?;
        self.ended_script(name).await
    }

    /// What a script found out, once it has ended and the gateway has settled.
    pub async fn ended_script(&self, name: &str) -> Result<Run> {
        self.finished(name).await?;
        let status = self.settled(name).await?;
        let log = self.log_of(name, "agent").await?;
        let outcomes = log
            .lines()
            .find_map(|line| line.strip_prefix(RESULT))
            .and_then(|text| serde_json::from_str(text).ok())
            .unwrap_or_default();
        Ok(Run {
            outcomes,
            log,
            status,
        })
    }

    /// A sandbox's status, once the gateway's figures are final and stand in its usage too.
    pub async fn settled(&self, name: &str) -> Result<AgentSandboxStatus> {
        self.when(name, "final figures of the gateway", |status| {
            let is_final = status.egress.as_ref().is_some_and(|egress| egress.settled);
            let in_usage = |usage: &Usage| usage.egress_allowed.is_some();
            is_final && status.usage.as_ref().is_none_or(in_usage)
        })
        .await
    }

    /// What a container of a sandbox's pod has printed so far.
    pub async fn log_of(&self, sandbox: &str, container: &str) -> Result<String> {
        let Some(pod) = self.pods_of(sandbox).await?.into_iter().next() else {
            return Err(HarnessError::Kubectl(format!("{sandbox} has no pod")));
        };
        let parameters = LogParams {
            container: Some(container.to_owned()),
            ..LogParams::default()
        };
        Ok(self.api::<Pod>().logs(&name_of(&pod), &parameters).await?)
    }

    /// The records of a run's action log.
    ///
    /// # Panics
    /// It is not whole, or not what the status says.
    pub async fn actions_of(&self, sandbox: &str, status: &AgentSandboxStatus) -> Result<Vec<Value>> {
        let audit = status.audit.clone().unwrap_or_default();
        assert_eq!(audit.lost, 0, "{sandbox}");
        let expected = Expected {
            records: audit.records.cast_unsigned(),
            head: audit.head.clone(),
        };
        self.actions_as_far(sandbox, Some(&expected)).await
    }

    /// The records of a run's action log as far as it goes, whether or not somebody could say in the end how far that is.
    ///
    /// # Panics
    /// It is not whole up to there.
    pub async fn actions_as_far(&self, sandbox: &str, expected: Option<&Expected>) -> Result<Vec<Value>> {
        let log = self.log_of(sandbox, names::CONTAINER_RECORDER).await?;
        let report = verify(&log, expected);
        assert!(report.broken.is_none(), "{sandbox}: {report:?}");
        let records: serde_json::Result<_> = log.lines().map(serde_json::from_str).collect();
        Ok(records?)
    }

    /// Waits until a script has printed a text.
    pub async fn printed(&self, sandbox: &str, text: &str) -> Result<String> {
        let begun = Instant::now();
        let mut seen = String::new();
        while begun.elapsed() < PATIENCE {
            // There is no log before the container has started.
            seen = self.log_of(sandbox, "agent").await.unwrap_or_default();
            if seen.contains(text) {
                return Ok(seen);
            }
            tokio::time::sleep(LOOK).await;
        }
        Err(HarnessError::Late {
            what: format!("{text:?} in the log of {sandbox}"),
            seen,
        })
    }

    /// Makes a Secret, or changes it.
    pub async fn secret(&self, name: &str, data: &[(&str, &str)]) -> Result<()> {
        let data: BTreeMap<&str, &str> = data.iter().copied().collect();
        let object = json!({
            "apiVersion": "v1", "kind": "Secret", "metadata": {"name": name}, "stringData": data,
        });
        self.api::<Secret>()
            .patch(
                name,
                &PatchParams::apply("e2e").force(),
                &Patch::Apply(serde_json::from_value::<Value>(object)?),
            )
            .await?;
        Ok(())
    }

    /// Pods of the namespace's gateway.
    pub async fn gateway_pods(&self) -> Result<Vec<Pod>> {
        let selector = format!("{}={}", gateway::LABEL.0, gateway::LABEL.1);
        Ok(self
            .api::<Pod>()
            .list(&ListParams::default().labels(&selector))
            .await?
            .items)
    }

    /// What the gateway's pods have printed.
    pub async fn gateway_log(&self) -> Result<String> {
        let mut text = String::new();
        for pod in self.gateway_pods().await? {
            text.push_str(
                &self
                    .api::<Pod>()
                    .logs(&name_of(&pod), &LogParams::default())
                    .await?,
            );
        }
        Ok(text)
    }

    /// Ends the gateway's pods at once, as the crash of their node would.
    pub async fn kill_gateway(&self) -> Result<()> {
        let now = DeleteParams {
            grace_period_seconds: Some(0),
            ..DeleteParams::default()
        };
        for pod in self.gateway_pods().await? {
            self.api::<Pod>().delete(&name_of(&pod), &now).await?;
        }
        Ok(())
    }

    /// Makes any object of the namespace.
    pub async fn create<K>(&self, object: Value) -> Result<K>
    where
        K: kube::Resource<DynamicType = (), Scope = k8s_openapi::NamespaceResourceScope>
            + Clone
            + std::fmt::Debug
            + serde::Serialize
            + serde::de::DeserializeOwned,
    {
        Ok(self
            .api::<K>()
            .create(&PostParams::default(), &serde_json::from_value(object)?)
            .await?)
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn the_first_row_that_fits_decides_and_every_attempt_needs_one() {
        let outcomes = [("control a", "200"), ("name b", "403 No"), ("other", "200")];
        let run = Run {
            outcomes: outcomes
                .map(|(name, outcome)| (name.to_owned(), outcome.to_owned()))
                .into(),
            log: String::new(),
            status: AgentSandboxStatus::default(),
        };
        assert_eq!(
            run.differences(&[("control*", &["200"]), ("name*", &["4*"]), ("unused", &["200"])]),
            ["other: 200 (no row)", "unused: never tried"]
        );
        assert_eq!(
            run.differences(&[("control*", &["403*"]), ("*", &["200", "403 No"])]),
            ["control a: 200 instead of 403*"]
        );
    }
}
