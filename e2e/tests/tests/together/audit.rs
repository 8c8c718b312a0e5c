//! The action log of real runs: what it tells, what it leaves out, and who tries to escape it.

use agentsandbox_api::action::Means;
use agentsandbox_api::names;
use agentsandbox_api::reason::Reason;
use agentsandbox_api::sandbox::{AgentSandboxStatus, AuditStatus};
use e2e::Harness;
use e2e::harness::{isolation, repository};
use serde_json::{Value, json};

/// A run that has ended: its status, and its log by lines.
struct Logged {
    status: AgentSandboxStatus,
    audit: AuditStatus,
    records: Vec<Value>,
    output: String,
}

impl Logged {
    /// Records of one activity.
    fn of(&self, activity: &str) -> Vec<&Value> {
        self.records
            .iter()
            .filter(|record| record["activity"] == activity)
            .collect()
    }

    /// What the script says that became of what it tried.
    fn outcomes(&self) -> Value {
        let mut lines = self.output.lines();
        let outcomes = lines.find_map(|line| line.strip_prefix("RESULT "));
        serde_json::from_str(outcomes.unwrap()).unwrap()
    }

    /// Where the first record stands of which these fields have these values.
    fn place(&self, fields: &Value) -> usize {
        let fits = |record: &Value| {
            let mut fields = fields.as_object().unwrap().iter();
            fields.all(|(name, value)| record[name] == *value)
        };
        let found = self.records.iter().position(fits);
        assert!(found.is_some(), "no record has {fields}: {:#?}", self.records);
        found.unwrap()
    }
}

/// Runs a script to its end, and reads its log, which must be what the status says.
async fn run(harness: &Harness, policy: &str, script: &str, arguments: &[&str]) -> Logged {
    let (name, status) = ended(harness, policy, script, arguments).await;
    let records = harness.actions_of(&name, &status).await.unwrap();
    logged(harness, &name, status, records).await
}

/// Runs a script to its end.
async fn ended(
    harness: &Harness,
    policy: &str,
    script: &str,
    arguments: &[&str],
) -> (String, AgentSandboxStatus) {
    let file = repository().join("e2e/tests/scripts").join(script);
    let mut command = vec!["python3", script];
    command.extend(arguments);
    let name = format!("{}-{policy}", script.trim_end_matches(".py"));
    harness
        .sandbox(
            &name,
            json!({
                "policyRef": {"name": policy}, "command": command,
                "files": [{"path": script, "content": std::fs::read_to_string(file).unwrap()}],
            }),
        )
        .await
        .unwrap();
    let status = harness.finished(&name).await.unwrap();
    (name, status)
}

async fn logged(harness: &Harness, name: &str, status: AgentSandboxStatus, records: Vec<Value>) -> Logged {
    Logged {
        audit: status.audit.clone().unwrap_or_default(),
        status,
        records,
        output: harness.log_of(name, "agent").await.unwrap_or_default(),
    }
}

async fn harness(test: &str) -> Harness {
    let harness = Harness::start(test).await.unwrap();
    harness.usual_policies().await.unwrap();
    harness
}

/// Each runtime class, and by which means actions are captured there.
const MEANS: [(&str, Means); 2] = [("runc", Means::SeccompNotify), ("gvisor", Means::Ptrace)];

#[tokio::test]
async fn a_runs_actions_are_told_in_order() {
    let harness = harness("actions").await;
    for (class, means) in MEANS {
        let logged = run(&harness, class, "actions.py", &[]).await;
        let capture = &logged.audit.capture;
        assert_eq!(
            (capture.commands, capture.files, capture.network),
            (means, means, means)
        );
        let pid: u32 = logged.output.trim().parse().unwrap();
        let inside = |path: &str| format!("{}/{path}", names::PATH_WORKSPACE);
        let order = [
            json!({"activity": "begin", "sandbox": format!("actions-{class}"), "policy": class}),
            json!({"activity": "exec", "basis": "claimed", "pid": pid, "argv": ["python3", "actions.py"]}),
            json!({"activity": "exec", "basis": "observed", "pid": pid, "argv": ["python3", "actions.py"]}),
            json!({"activity": "open", "pid": pid, "path": inside("made")}),
            json!({"activity": "rename", "pid": pid, "path": inside("made"), "to": inside("moved")}),
            json!({"activity": "makeFolder", "pid": pid, "path": inside("folder")}),
            json!({"activity": "exec", "basis": "claimed", "path": "/usr/bin/sh"}),
            json!({"activity": "exit", "code": 3}),
            json!({"activity": "connect", "pid": pid, "address": "203.0.113.9", "port": 443}),
            json!({"activity": "connect", "pid": pid, "address": "203.0.113.10", "port": 80}),
            json!({"activity": "connect", "pid": pid, "address": "203.0.113.53", "port": 53, "transport": "UDP"}),
            json!({"activity": "connect", "pid": pid, "address": "203.0.113.54", "port": 443, "transport": "TCP"}),
            json!({"activity": "remove", "pid": pid, "path": inside("moved")}),
            json!({"activity": "exit", "pid": pid, "code": 0}),
            json!({"activity": "change", "change": "created", "path": "kept", "size": 3,
                   "sha256": "ba7816bf8f01cfea414140de5dae2223b00361a396177a9cb410ff61f20015ad"}),
            json!({"activity": "changes", "files": 1, "unlisted": 0}),
            json!({"activity": "end", "reason": "Completed", "exitCode": 0}),
        ];
        let places: Vec<usize> = order.iter().map(|fields| logged.place(fields)).collect();
        assert!(places.is_sorted(), "{class}: {places:?}\n{:#?}", logged.records);
        // What is only read is not told, and what looks like a secret is not told either.
        let whole = serde_json::to_string(&logged.records).unwrap();
        assert!(
            !whole.contains("/etc/hostname") && !whole.contains("sk-aaaa"),
            "{whole}"
        );
        let usage = logged.status.usage.unwrap();
        assert_eq!(
            (usage.commands, usage.files_changed),
            (Some(2), Some(1)),
            "{class}"
        );
    }
    harness.finish().await.unwrap();
}

#[tokio::test]
async fn nothing_reaches_process_one_or_its_log() {
    let harness = harness("reach").await;
    let port = names::PORT_CONTROL.to_string();
    for (class, means) in MEANS {
        let logged = run(&harness, class, "reach.py", &[&port]).await;
        let result = logged.status.result.clone().unwrap();
        assert_eq!(
            (result.reason, result.exit_code),
            (Some(Reason::NonZeroExit), Some(7)),
            "{class}: {result:?}\n{}",
            logged.output
        );
        let outcomes = logged.outcomes();
        println!("{class}: {outcomes}");
        let is_traced = means == Means::Ptrace;
        let startup = names::PORT_STARTUP.to_string();
        for (name, outcome) in outcomes.as_object().unwrap() {
            let expected: &[&str] = match name.as_str() {
                "io_uring_setup" | "openat2" | "userfaultfd" | "x32 getpid" | "process_madvise" => {
                    &["ENOSYS"]
                }
                name if name.starts_with("pidfd_send_signal") => &["ENOSYS"],
                // Without an owner they reach nobody.
                "F_SETSIG" | "O_ASYNC" | "F_SETOWN of oneself" => &["done"],
                // Only a tracer can be replaced.
                "ptrace seize of a child" if !is_traced => &["done"],
                "clone3" => &["ENOSYS"],
                "inherited descriptors" | "local sockets" | "files of process 1" => &["none"],
                "listening ports" => &[startup.as_str()],
                // A kernel without the 32-bit ABI ends who tries.
                "32-bit kill" => &["ENOSYS", "-4", "-11"],
                // One filter of a process's may have a listener; who is traced can have none.
                "seccomp listener" if is_traced => &["EINVAL"],
                "seccomp listener" => &["EBUSY"],
                "program by memfd" | "program by execveat" => &["0"],
                "recorder" => &["closed", "ECONNREFUSED", "ECONNRESET"],
                "/dev/termination-log" => &["done", "EACCES", "ENOENT", "EROFS"],
                path if path.starts_with("/proc/1/") => &["EACCES", "EPERM", "ENOENT"],
                _ => &["EPERM"],
            };
            assert!(
                expected.contains(&outcome.as_str().unwrap()),
                "{class}, {name}: {outcome}"
            );
        }
        let refused = logged.of("refused");
        for call in [
            "kill(1, 9)",
            "ptrace(16, 1)",
            "pidfd_open(1, 0)",
            "setpriority(2, 0)",
        ] {
            assert!(
                refused.iter().any(|record| record["call"] == call),
                "{class}, {call}: {refused:#?}"
            );
        }
        for argument in ["by-memfd", "by-execveat", "after-all"] {
            let seen = logged
                .of("exec")
                .into_iter()
                .any(|exec| exec["argv"][1] == argument);
            assert!(seen, "{class}: {argument} is not in the log");
        }
    }
    harness.finish().await.unwrap();
}

#[tokio::test]
async fn what_can_not_be_read_is_not_done() {
    let harness = harness("unread").await;
    for (class, means) in MEANS {
        let logged = run(&harness, class, "unread.py", &[]).await;
        let result = logged.status.result.clone().unwrap();
        assert_eq!(
            result.reason,
            Some(Reason::Completed),
            "{class}: {}",
            logged.output
        );
        let outcomes = logged.outcomes();
        println!("{class}: {outcomes}");
        for (name, error) in [
            ("second message missing", "Bad address"),
            ("a hundred addresses", "Operation not permitted"),
            ("nothing", "No such file or directory"),
            ("PR_SET_MM", "Operation not permitted"),
            ("AF_VSOCK", "Operation not permitted"),
        ] {
            assert_eq!(outcomes[name], error, "{class}, {name}");
        }
        // What was done is told.
        for name in ["file-only-written", "file-secret"] {
            if outcomes[name].is_i64() {
                let path = format!("{}/{name}", names::PATH_WORKSPACE);
                logged.place(&json!({"activity": "open", "path": path}));
            }
        }
        for (name, address) in [
            ("peer-only-written", "203.0.113.20"),
            ("peer-half-written", "203.0.113.21"),
            ("no family", "203.0.113.23"),
        ] {
            assert_ne!(outcomes[name], "Bad address", "{class}, {name}");
            logged.place(&json!({"activity": "connect", "address": address, "port": 53}));
        }
        assert_eq!(outcomes["program-only-written"], 0, "{class}");
        let argv = json!(["/bin/true", "program-only-written"]);
        for basis in ["claimed", "observed"] {
            logged.place(&json!({"activity": "exec", "basis": basis, "argv": argv}));
        }
        if means == Means::SeccompNotify {
            assert!(outcomes["file-only-written"].is_i64(), "{class}");
            assert_eq!(outcomes["file-secret"], "Bad address", "{class}");
        }
        let sent = logged.of("refused");
        let is_told = |record: &&Value| record["call"].as_str().unwrap().starts_with("sendmmsg(");
        assert!(sent.iter().any(is_told), "{class}: {sent:#?}");
        // What a script is executed by is another program's arguments, or the same program's.
        let argv = json!(["/usr/bin/python3", "./script.py", "by-script"]);
        let place = logged.place(&json!({"activity": "exec", "basis": "observed", "argv": argv}));
        assert!(logged.records[place]["parent"].is_u64(), "{class}");
        logged.place(&json!({
            "activity": "change", "change": "created", "path": "closed/file",
            "sha256": "ba7816bf8f01cfea414140de5dae2223b00361a396177a9cb410ff61f20015ad",
        }));
        assert_eq!(logged.of("changes")[0]["incomplete"], Value::Null, "{class}");
        let claimed_only = json!(["never-executed"]);
        let executed = logged
            .of("exec")
            .into_iter()
            .any(|exec| exec["argv"] == claimed_only && exec["basis"] == "observed");
        assert!(!executed, "{class}");
        assert_eq!(logged.audit.unreadable, 0, "{class}");
    }
    harness.finish().await.unwrap();
}

#[tokio::test]
async fn a_flood_leaves_room_for_what_matters_and_is_counted() {
    let harness = harness("flood").await;
    for (class, _) in MEANS {
        // Twenty thousand traced system calls take their time on a busy machine.
        let spec = json!({
            "isolation": isolation(class),
            "defaults": {"resources": {"cpu": "400m", "memory": "128Mi", "processes": 64}, "limits": {"runtimeSeconds": 150}},
        });
        let policy = format!("patient-{class}");
        harness.policy(&policy, spec).await.unwrap();
        let logged = run(&harness, &policy, "flood.py", &["20000"]).await;
        let reason = logged.status.result.clone().unwrap().reason;
        assert_eq!(reason, Some(Reason::Completed), "{class}");
        let counted = logged.audit.suppressed;
        assert!(counted > 10_000, "{class}: {:?}", logged.audit);
        let opened = i64::try_from(logged.of("open").len()).unwrap();
        assert!(
            opened + counted >= 20_000,
            "{class}: {opened}, {:?}",
            logged.audit
        );
        assert_eq!(logged.of("connect").len(), 1, "{class}");
        let told: u64 = logged
            .of("suppressed")
            .iter()
            .map(|record| record["records"].as_u64().unwrap())
            .sum();
        assert_eq!(i64::try_from(told).unwrap(), counted, "{class}");
    }
    harness.finish().await.unwrap();
}

#[tokio::test]
async fn who_exhausts_what_there_is_silences_nothing() {
    let harness = harness("exhaust").await;
    for (class, _) in MEANS {
        // MiB less what the interpreter has already, and processes less what runs already.
        for (resource, limit, memory, reasons) in [
            ("memory", "118", "128Mi", &[Reason::OomKilled][..]),
            (
                "processes",
                "60",
                "512Mi",
                &[Reason::Completed, Reason::ProcessLimitExceeded],
            ),
        ] {
            let name = format!("{resource}-{class}");
            let spec = json!({
                "isolation": isolation(class),
                "defaults": {"resources": {"cpu": "200m", "memory": memory, "processes": 64}, "limits": {"runtimeSeconds": 60}},
            });
            harness.policy(&name, spec).await.unwrap();
            let (sandbox, status) = ended(&harness, &name, "exhaust.py", &[resource, limit]).await;
            let reason = status.result.clone().unwrap().reason.unwrap();
            assert!(reasons.contains(&reason), "{name}: {reason}");
            // Where all containers share one kernel, that may be ended at its own limit before anybody inside hears of it.
            let is_told = status.audit.is_some() || (class, resource) != ("gvisor", "memory");
            let records = if is_told {
                harness.actions_of(&sandbox, &status).await
            } else {
                harness.actions_as_far(&sandbox, None).await
            };
            let logged = logged(&harness, &sandbox, status, records.unwrap()).await;
            let before = logged.place(&json!({"activity": "exec", "argv": ["true", "before-all"]}));
            if is_told {
                let warning = logged.place(&json!({"activity": "warning", "resource": resource}));
                // Where the kernel ends process 1 as well, the recorder knows only that it is gone.
                let told = &logged.of("end")[0]["reason"];
                let is_gone = resource == "memory" && *told == json!(Reason::SandboxLost);
                assert!(is_gone || *told == json!(reason), "{name}: {told}");
                let end = logged.place(&json!({"activity": "end"}));
                assert!(before < warning && warning < end, "{name}: {:#?}", logged.records);
                assert_eq!(
                    end + 1,
                    logged.records.len(),
                    "{name}: the end is the last record"
                );
            }
        }
    }
    harness.finish().await.unwrap();
}

#[tokio::test]
async fn who_hides_is_counted_and_ended_where_the_policy_demands_capture() {
    let harness = harness("hidden").await;
    for (class, _) in MEANS {
        let name = format!("audited-{class}");
        let spec = json!({
            "isolation": isolation(class),
            "defaults": {"resources": {"cpu": "200m", "memory": "128Mi"}, "limits": {"runtimeSeconds": 60}},
            "audit": {"require": {"commands": true, "files": true, "network": true}},
        });
        harness.policy(&name, spec).await.unwrap();
        let seen = run(&harness, &name, "actions.py", &[]).await;
        let reason = seen.status.result.unwrap().reason;
        assert_eq!(reason, Some(Reason::Completed), "{class}");
    }
    let tolerated = run(&harness, "runc", "hidden.py", &[]).await;
    assert_eq!(tolerated.status.result.unwrap().reason, Some(Reason::Completed));
    assert!(tolerated.audit.unreadable > 0, "{:?}", tolerated.audit);
    let ended = run(&harness, "audited-runc", "hidden.py", &[]).await;
    let result = ended.status.result.unwrap();
    assert_eq!(result.reason, Some(Reason::AuditUnavailable), "{result:?}");
    // gVisor does not execute what it may not read.
    let refused = run(&harness, "gvisor", "hidden.py", &[]).await;
    assert_eq!(refused.status.result.unwrap().reason, Some(Reason::NonZeroExit));
    assert!(refused.output.contains("PermissionError"), "{}", refused.output);
    assert_eq!(refused.audit.unreadable, 0, "{:?}", refused.audit);
    harness.finish().await.unwrap();
}
