//! The object to create.

use agentsandbox_api::sandbox::{
    AgentSandbox, AgentSandboxSpec, EnvVar, File, Limits, LocalRef, PolicyRef, Quantity, Resources, Session,
};
use kube::api::ObjectMeta;

/// Builds an [`AgentSandbox`]. What is left out is filled in by the policy.
#[derive(Clone, Debug)]
pub struct SandboxBuilder {
    metadata: ObjectMeta,
    spec: AgentSandboxSpec,
}

impl SandboxBuilder {
    /// A sandbox of a container image. Set [`command`](Self::command) or [`session`](Self::session) as well.
    #[must_use]
    pub fn new(image: impl Into<String>) -> Self {
        Self {
            metadata: ObjectMeta::default(),
            spec: AgentSandboxSpec {
                policy_ref: PolicyRef::default(),
                image: image.into(),
                command: None,
                args: None,
                working_dir: agentsandbox_api::names::PATH_WORKSPACE.to_owned(),
                env: None,
                session: None,
                resources: None,
                limits: None,
                files: None,
                workspace: None,
                result: None,
                ttl_seconds_after_finished: None,
                run_id: String::new(),
                suspend: false,
                stop: false,
            },
        }
    }

    /// The sandbox's name, at most 52 characters.
    #[must_use]
    pub fn name(mut self, name: impl Into<String>) -> Self {
        self.metadata.name = Some(name.into());
        self
    }

    /// The beginning of a name that is completed at random when it is created, at most 42 characters.
    #[must_use]
    pub fn generate_name(mut self, prefix: impl Into<String>) -> Self {
        self.metadata.generate_name = Some(prefix.into());
        self
    }

    /// A label of the sandbox.
    #[must_use]
    pub fn label(mut self, key: impl Into<String>, value: impl Into<String>) -> Self {
        self.metadata
            .labels
            .get_or_insert_default()
            .insert(key.into(), value.into());
        self
    }

    /// The policy that bounds it; `default` if unset.
    #[must_use]
    pub fn policy(mut self, name: impl Into<String>) -> Self {
        self.spec.policy_ref.name = name.into();
        self
    }

    /// Program and arguments. No shell is involved.
    #[must_use]
    pub fn command<S: Into<String>>(mut self, argv: impl IntoIterator<Item = S>) -> Self {
        self.spec.command = Some(argv.into_iter().map(Into::into).collect());
        self
    }

    /// Take steps instead of running a command; the session ends after so many seconds without one.
    #[must_use]
    pub fn session(mut self, idle_timeout_seconds: i32) -> Self {
        self.spec.session = Some(Session { idle_timeout_seconds });
        self
    }

    /// Working directory of the command.
    #[must_use]
    pub fn working_dir(mut self, path: impl Into<String>) -> Self {
        self.spec.working_dir = path.into();
        self
    }

    /// An environment entry. Secrets do not belong here.
    #[must_use]
    pub fn env(mut self, name: impl Into<String>, value: impl Into<String>) -> Self {
        self.spec.env.get_or_insert_default().push(EnvVar {
            name: name.into(),
            value: value.into(),
        });
        self
    }

    /// A text file, written before the command starts; all of them hold at most 64 KiB. `mode` are permission bits.
    #[must_use]
    pub fn file(mut self, path: impl Into<String>, content: impl Into<String>, mode: i32) -> Self {
        self.spec.files.get_or_insert_default().push(File {
            path: path.into(),
            content: Some(content.into()),
            config_map_ref: None,
            mode,
        });
        self
    }

    /// The files of a `ConfigMap` that is labelled for sandboxes, written into the folder `path`.
    #[must_use]
    pub fn config_map(mut self, path: impl Into<String>, name: impl Into<String>) -> Self {
        self.spec.files.get_or_insert_default().push(File {
            path: path.into(),
            content: None,
            config_map_ref: Some(LocalRef { name: name.into() }),
            mode: 0o644,
        });
        self
    }

    /// CPUs, such as `500m`.
    #[must_use]
    pub fn cpu(mut self, quantity: impl Into<String>) -> Self {
        self.resources_mut().cpu = Some(Quantity(quantity.into()));
        self
    }

    /// Memory, such as `512Mi`.
    #[must_use]
    pub fn memory(mut self, quantity: impl Into<String>) -> Self {
        self.resources_mut().memory = Some(Quantity(quantity.into()));
        self
    }

    /// Everything the run may write to disk, such as `1Gi`.
    #[must_use]
    pub fn ephemeral_storage(mut self, quantity: impl Into<String>) -> Self {
        self.resources_mut().ephemeral_storage = Some(Quantity(quantity.into()));
        self
    }

    /// Most processes and threads at once.
    #[must_use]
    pub fn processes(mut self, most: i32) -> Self {
        self.resources_mut().processes = Some(most);
        self
    }

    /// Wall-clock limit in seconds.
    #[must_use]
    pub fn runtime_seconds(mut self, seconds: i32) -> Self {
        self.limits_mut().runtime_seconds = Some(seconds);
        self
    }

    /// Most model tokens, input and output together.
    #[must_use]
    pub fn tokens(mut self, most: i64) -> Self {
        self.limits_mut().tokens = Some(most);
        self
    }

    /// Most model requests.
    #[must_use]
    pub fn model_requests(mut self, most: i64) -> Self {
        self.limits_mut().model_requests = Some(most);
        self
    }

    /// Most steps: model requests and commands of a session together.
    #[must_use]
    pub fn steps(mut self, most: i64) -> Self {
        self.limits_mut().steps = Some(most);
        self
    }

    /// Most bytes through the egress gateway, both ways together.
    #[must_use]
    pub fn egress_bytes(mut self, most: i64) -> Self {
        self.limits_mut().egress_bytes = Some(most);
        self
    }

    /// How long the pod is kept once the run has ended, in seconds.
    #[must_use]
    pub fn ttl_seconds_after_finished(mut self, seconds: i64) -> Self {
        self.spec.ttl_seconds_after_finished = Some(seconds);
        self
    }

    /// Any string that names the run.
    #[must_use]
    pub fn run_id(mut self, run_id: impl Into<String>) -> Self {
        self.spec.run_id = run_id.into();
        self
    }

    /// The object, for fields that have no method here.
    #[must_use]
    pub fn build(self) -> AgentSandbox {
        AgentSandbox {
            metadata: self.metadata,
            spec: self.spec,
            status: None,
        }
    }

    fn resources_mut(&mut self) -> &mut Resources {
        self.spec.resources.get_or_insert_default()
    }

    fn limits_mut(&mut self) -> &mut Limits {
        self.spec.limits.get_or_insert_default()
    }
}

impl From<SandboxBuilder> for AgentSandbox {
    fn from(builder: SandboxBuilder) -> Self {
        builder.build()
    }
}

#[cfg(test)]
mod tests {
    use super::*;
    use serde_json::json;

    #[test]
    fn the_object_holds_what_was_asked_for_and_nothing_else() {
        let sandbox = SandboxBuilder::new("python:3.13")
            .generate_name("job-")
            .label("team", "blue")
            .policy("agents")
            .command(["python3", "main.py"])
            .env("A", "b")
            .file("main.py", "print(1)", 0o644)
            .memory("256Mi")
            .steps(5)
            .build();
        assert_eq!(
            serde_json::to_value(sandbox).unwrap(),
            json!({
                "apiVersion": "agentsandbox.dev/v1alpha1", "kind": "AgentSandbox",
                "metadata": {"generateName": "job-", "labels": {"team": "blue"}},
                "spec": {
                    "policyRef": {"name": "agents"}, "image": "python:3.13", "command": ["python3", "main.py"],
                    "workingDir": "/workspace", "env": [{"name": "A", "value": "b"}],
                    "files": [{"path": "main.py", "content": "print(1)", "mode": 420}],
                    "resources": {"memory": "256Mi"}, "limits": {"steps": 5},
                    "runId": "", "suspend": false, "stop": false,
                },
            })
        );
    }
}
