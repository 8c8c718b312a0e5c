//! Sessions and their steps, on runc and gVisor.

use agentsandbox_api::condition::types;
use agentsandbox_api::reason::Reason;
use agentsandbox_api::run::LiveState;
use agentsandbox_api::sandbox::{AgentSandbox, Phase};
use e2e::Harness;
use e2e::harness::{is, message_of, process_of};
use e2e::steps::Session;
use serde_json::{Value, json};

const RUNTIMES: [&str; 2] = ["runc", "gvisor"];

fn session(policy: &str, idle: u32, seconds: u32) -> Value {
    json!({"policyRef": {"name": policy}, "session": {"idleTimeoutSeconds": idle}, "limits": {"runtimeSeconds": seconds}})
}

/// One session on each runtime, under the name of that.
async fn begin(test: &str, spec: fn(&str) -> Value) -> (Harness, Vec<Session>) {
    let harness = Harness::start(test).await.unwrap();
    harness.usual_policies().await.unwrap();
    let mut sessions = Vec::new();
    for runtime in RUNTIMES {
        harness.sandbox(runtime, spec(runtime)).await.unwrap();
    }
    for runtime in RUNTIMES {
        sessions.push(Session::of(&harness, runtime).await.unwrap());
    }
    (harness, sessions)
}

#[tokio::test(flavor = "multi_thread")]
async fn steps_have_input_output_exit_codes_environment_and_folder() {
    let (harness, sessions) = begin("steps", |runtime| session(runtime, 600, 600)).await;
    for session in &sessions {
        let hi = session.step(&["step", "--", "echo", "hi"]).unwrap();
        assert_eq!((hi.code, hi.text().as_str(), hi.stderr.as_str()), (0, "hi\n", ""));
        let apart = session.shell("printf out; printf err >&2; exit 7").unwrap();
        assert_eq!((apart.code, apart.text().as_str()), (7, "out"));
        assert!(apart.stderr.starts_with("err"), "{}", apart.stderr);
        let bytes: Vec<u8> = (0..=255).cycle().take(100_000).collect();
        let echoed = session
            .with_input(&["step", "--stdin", "--", "cat"], Some(&bytes))
            .unwrap();
        assert_eq!(echoed.code, 0, "{}", echoed.stderr);
        assert!(echoed.stdout == bytes, "{} bytes came back", echoed.stdout.len());
        // Without --stdin nothing is passed.
        let silent = session
            .with_input(&["step", "--", "cat"], Some(b"secret"))
            .unwrap();
        assert_eq!((silent.code, silent.text().as_str()), (0, ""));
        let there = session
            .step(&[
                "step",
                "--env",
                "A=b c",
                "--workdir",
                "/workspace/new",
                "--",
                "sh",
                "-c",
                "echo $A $PWD $SANDBOX_STEP $HOME",
            ])
            .unwrap();
        assert_eq!(there.text(), "b c /workspace/new 5 /workspace\n");
        // What a step leaves stays for the next one, files and processes.
        assert_eq!(
            session
                .shell("echo left > note; sleep 300 & echo $! > pid")
                .unwrap()
                .code,
            0
        );
        let found = session
            .shell("cat note; kill -0 $(cat pid) && echo alive")
            .unwrap();
        assert_eq!(found.text(), "left\nalive\n", "{}", found.stderr);

        for (arguments, code, part) in [
            (vec!["step", "--", "no-such-program"], 127, "not found"),
            (vec!["step", "--", "/etc/passwd"], 126, "/etc/passwd"),
            (vec!["step", "--", "sh", "-c", "kill -9 $$"], 137, ""),
            (vec!["step", "--timeout", "1", "--", "sleep", "60"], 124, ""),
            (
                vec!["step", "--env", "LD_PRELOAD=/x", "--", "true"],
                125,
                "step refused: InvalidStep: ",
            ),
            (vec!["step", "--"], 125, "step refused: InvalidStep: "),
        ] {
            let outcome = session.step(&arguments).unwrap();
            assert_eq!(outcome.code, code, "{arguments:?}: {}", outcome.stderr);
            assert!(outcome.stderr.contains(part), "{arguments:?}: {}", outcome.stderr);
        }
        let state = session.step(&["status"]).unwrap();
        let state: LiveState = serde_json::from_slice(&state.stdout).unwrap();
        let steps = state.steps.unwrap();
        assert_eq!(steps.last[0].command, "sleep 60");
        assert_eq!(steps.last[0].exit_code, Some(124));
        assert!(state.memory_bytes.is_some() && state.processes.is_some() && state.usage.wall_ms.is_some());
        assert!(state.started_at_ms.is_some());
    }
    for runtime in RUNTIMES {
        harness
            .patch::<AgentSandbox>(runtime, json!({"spec": {"stop": true}}))
            .await
            .unwrap();
        let status = harness.finished(runtime).await.unwrap();
        let result = status.result.unwrap();
        assert_eq!((result.reason, result.exit_code), (Some(Reason::Stopped), None));
        let session = status.session.unwrap();
        // A step that can't be started was taken; one that was refused was not.
        assert!(session.steps >= 11, "{}", session.steps);
        assert_eq!(session.last_steps[0].exit_code, Some(124));
        assert_eq!(status.usage.unwrap().steps, Some(session.steps));
    }
    harness.finish().await.unwrap();
}

#[tokio::test(flavor = "multi_thread")]
async fn ten_steps_at_once_and_a_large_stream_do_not_disturb_each_other() {
    let (harness, sessions) = begin("many-steps", |runtime| session(runtime, 600, 600)).await;
    for session in &sessions {
        let size = 50 << 20;
        let large = std::thread::spawn({
            let session = session.clone();
            move || {
                let bytes: Vec<u8> = (0..size)
                    .map(|n: u32| u8::try_from(n * 7 % 251).unwrap())
                    .collect();
                let begun = std::time::Instant::now();
                let outcome = session
                    .with_input(&["step", "--stdin", "--", "cat"], Some(&bytes))
                    .unwrap();
                println!("50 MB through a step: {:?}", begun.elapsed());
                (outcome.code, outcome.stdout == bytes)
            }
        });
        // A step whose output nobody reads stalls nobody else.
        let mut stalled = session
            .begin(&mut session.exec(&[], &["step", "--", "sh", "-c", "yes"]))
            .unwrap();
        let others: Vec<_> = (0..10)
            .map(|n| {
                let session = session.clone();
                std::thread::spawn(move || session.shell(&format!("sleep 0.2; echo {n}")).unwrap().text())
            })
            .collect();
        for (n, other) in others.into_iter().enumerate() {
            assert_eq!(other.join().unwrap(), format!("{n}\n"));
        }
        assert_eq!(large.join().unwrap(), (0, true));
        stalled.kill().unwrap();
        stalled.wait().unwrap();
    }
    harness.finish().await.unwrap();
}

#[tokio::test(flavor = "multi_thread")]
async fn sessions_end_idle_at_their_deadline_and_at_the_step_budget() {
    let harness = Harness::start("session-ends").await.unwrap();
    harness.usual_policies().await.unwrap();
    for runtime in RUNTIMES {
        harness
            .sandbox(&format!("idle-{runtime}"), session(runtime, 2, 600))
            .await
            .unwrap();
        let mut budget = session(runtime, 600, 600);
        budget["limits"]["steps"] = 2.into();
        harness
            .sandbox(&format!("budget-{runtime}"), budget)
            .await
            .unwrap();
        harness
            .sandbox(&format!("deadline-{runtime}"), session(runtime, 600, 3))
            .await
            .unwrap();
        let idle = harness.finished(&format!("idle-{runtime}")).await.unwrap();
        assert_eq!(idle.phase, Some(Phase::Succeeded), "{:?}", idle.result);
        assert_eq!(idle.result.unwrap().reason, Some(Reason::IdleTimeout));
        let deadline = harness.finished(&format!("deadline-{runtime}")).await.unwrap();
        assert_eq!(deadline.result.unwrap().reason, Some(Reason::DeadlineExceeded));

        let name = format!("budget-{runtime}");
        let steps = Session::of(&harness, &name).await.unwrap();
        assert_eq!(steps.shell("true").unwrap().code, 0);
        assert_eq!(steps.shell("exit 3").unwrap().code, 3);
        let refused = steps.shell("true").unwrap();
        assert_eq!(refused.code, 125);
        assert!(
            refused
                .stderr
                .contains("sandbox-supervisor: step refused: StepBudgetExceeded: "),
            "{}",
            refused.stderr
        );
        let status = harness.finished(&name).await.unwrap();
        assert_eq!(status.result.unwrap().reason, Some(Reason::StepBudgetExceeded));
        let summary = status.session.unwrap();
        assert_eq!((summary.steps, summary.refused), (2, 1));
        assert_eq!(summary.last_steps[0].exit_code, Some(3));
    }
    harness.finish().await.unwrap();
}

#[tokio::test(flavor = "multi_thread")]
async fn archives_go_in_and_come_out() {
    let (harness, sessions) = begin("put-get", |runtime| session(runtime, 600, 600)).await;
    let folder = std::env::temp_dir().join(format!("steps-{}", std::process::id()));
    std::fs::create_dir_all(folder.join("data/sub")).unwrap();
    std::fs::write(folder.join("data/sub/file"), vec![9; 300_000]).unwrap();
    let tar = |arguments: &[&str]| {
        let output = std::process::Command::new("tar")
            .arg("-C")
            .arg(&folder)
            .args(arguments)
            .output()
            .unwrap();
        assert!(
            output.status.success(),
            "{}",
            String::from_utf8_lossy(&output.stderr)
        );
        output.stdout
    };
    let archive = tar(&["-cf", "-", "data"]);
    let hostile = tar(&["-cPf", "-", "--transform", "s,^data,../../tmp/evil,", "data"]);
    for session in &sessions {
        let put = session
            .with_input(&["step", "--put", "/workspace/in"], Some(&archive))
            .unwrap();
        assert_eq!(put.code, 0, "{}", put.stderr);
        let sum = session.shell("wc -c < in/data/sub/file").unwrap();
        assert_eq!(sum.text().trim(), "300000");
        let got = session.step(&["step", "--get", "/workspace/in/data"]).unwrap();
        assert_eq!(got.code, 0, "{}", got.stderr);
        std::fs::write(folder.join("got.tar"), &got.stdout).unwrap();
        assert!(
            String::from_utf8(tar(&["-tf", folder.join("got.tar").to_str().unwrap()]))
                .unwrap()
                .contains("data/sub/file")
        );
        let refused = session
            .with_input(&["step", "--put", "/workspace/in"], Some(&hostile))
            .unwrap();
        assert_eq!(refused.code, 1, "{}", refused.stderr);
        assert!(refused.stderr.contains("leaves the folder"), "{}", refused.stderr);
        let cut = session
            .with_input(&["step", "--put", "/workspace/cut"], Some(&archive[..2000]))
            .unwrap();
        assert_eq!(cut.code, 1, "{}", cut.stderr);
        assert_eq!(session.shell("test -e /tmp/evil").unwrap().code, 1);
    }
    std::fs::remove_dir_all(&folder).unwrap();
    harness.finish().await.unwrap();
}

#[tokio::test(flavor = "multi_thread")]
async fn from_inside_no_step_can_be_forged_and_no_other_step_heard() {
    let (harness, sessions) = begin("forge", |runtime| session(runtime, 600, 600)).await;
    for session in &sessions {
        let attack = session
            .shell(
                "test -e /var/run/recorder && echo folder; /.sandbox/sandbox-supervisor step -- true; echo $?; \
                 python3 -c \"import socket; socket.create_connection(('127.0.0.1', 49871), 2)\" 2>&1 | tail -1; \
                 cat /proc/1/environ 2>/dev/null | head -c 1; for f in /proc/1/fd/*; do timeout 1 head -c 1 $f; done 2>/dev/null | wc -c; \
                 python3 -c \"import socket; s = socket.socket(socket.AF_UNIX); s.connect('/var/run/recorder/steps')\" 2>&1 | tail -1; \
                 python3 -c \"import socket; s = socket.socket(socket.AF_UNIX); s.connect(chr(0) + '/var/run/recorder/steps')\" 2>&1 | tail -1",
            )
            .unwrap();
        let text = attack.text();
        assert!(text.starts_with("125\n"), "{text}");
        assert!(text.contains("ConnectionRefusedError"), "{text}");
        assert!(attack.stderr.contains("NotARecorder"), "{}", attack.stderr);
        // The pod's network namespace names the recorder's socket; only its own mount namespace leads to it.
        assert!(text.contains("\n0\nFileNotFoundError"), "{text}");
        assert!(
            text.trim_end()
                .lines()
                .last()
                .unwrap()
                .starts_with("ConnectionRefusedError"),
            "{text}"
        );
    }
    // A run with a command takes no steps, and says how it stands.
    harness
        .sandbox(
            "command",
            json!({"policyRef": {"name": "runc"}, "command": ["sleep", "300"]}),
        )
        .await
        .unwrap();
    let command = Session::of(&harness, "command").await.unwrap();
    let refused = command.shell("true").unwrap();
    assert_eq!(refused.code, 125);
    assert!(refused.stderr.contains("NotASession"), "{}", refused.stderr);
    let state: LiveState = serde_json::from_slice(&command.step(&["status"]).unwrap().stdout).unwrap();
    assert!(state.steps.is_none() && state.processes == Some(1), "{state:?}");
    harness.finish().await.unwrap();
}

#[tokio::test(flavor = "multi_thread")]
async fn a_detached_step_goes_on_and_a_running_one_ends_with_its_session() {
    let (harness, sessions) = begin("detach", |runtime| session(runtime, 600, 600)).await;
    for (runtime, session) in RUNTIMES.iter().zip(&sessions) {
        let detached = session
            .step(&[
                "step",
                "--detach",
                "--",
                "sh",
                "-c",
                "echo to-the-log; sleep 1; echo done > done",
            ])
            .unwrap();
        assert_eq!(
            (detached.code, detached.text().as_str()),
            (0, "1\n"),
            "{}",
            detached.stderr
        );
        harness
            .eventually("the detached step's file", || async {
                Ok((session.shell("cat done").unwrap().code == 0).then_some(()))
            })
            .await
            .unwrap();
        let log = harness.kubectl(&["logs", session.pod(), "-c", "agent"]).unwrap();
        assert!(log.contains("to-the-log"), "{log}");

        let running = session
            .begin(&mut session.exec(&[], &["step", "--", "sleep", "4321"]))
            .unwrap();
        harness
            .eventually("the step in the state", || async {
                let state = session.step(&["status"]).unwrap();
                let state: LiveState = serde_json::from_slice(&state.stdout).unwrap_or_default();
                let found = state
                    .steps
                    .is_some_and(|steps| steps.last[0].command == "sleep 4321");
                Ok(found.then_some(()))
            })
            .await
            .unwrap();
        harness
            .patch::<AgentSandbox>(runtime, json!({"spec": {"stop": true}}))
            .await
            .unwrap();
        let output = running.wait_with_output().unwrap();
        assert_ne!(output.status.code(), Some(0));
        let status = harness.finished(runtime).await.unwrap();
        assert!(
            is(&status, types::FINISHED, "True"),
            "{}",
            message_of(&status, types::FINISHED)
        );
        if *runtime == "runc" {
            let pods = harness.pods_of(runtime).await.unwrap();
            assert!(pods.iter().all(|pod| process_of(pod, "sleep 4321").is_none()));
        }
    }
    harness.finish().await.unwrap();
}

#[tokio::test(flavor = "multi_thread")]
async fn a_step_ends_with_its_caller_and_with_all_it_started() {
    let (harness, sessions) = begin("attended", |runtime| session(runtime, 600, 600)).await;
    for session in &sessions {
        // One that has ended does not wait for its caller to close standard input.
        let mut open = session
            .begin(&mut session.exec(&["-i"], &["step", "--attended", "--", "true"]))
            .unwrap();
        let held = open.stdin.take();
        assert_eq!(open.wait().unwrap().code(), Some(0));
        drop(held);
        let script = "setsid sleep 1234 & (sleep 1234 &) ; sleep 1234";
        let mut caller = session
            .begin(&mut session.exec(&["-i"], &["step", "--attended", "--", "sh", "-c", script]))
            .unwrap();
        let sleepers = || {
            let counted = session
                .shell("n=0; for p in /proc/[0-9]*; do [ \"$(tr '\\0' ' ' < $p/cmdline 2>/dev/null)\" = 'sleep 1234 ' ] && n=$((n+1)); done; echo $n")
                .unwrap();
            counted.text().trim().to_owned()
        };
        harness
            .eventually("three processes of the step", || async {
                Ok((sleepers() == "3").then_some(()))
            })
            .await
            .unwrap();
        caller.kill().unwrap();
        caller.wait().unwrap();
        harness
            .eventually("the end of the step's processes", || async {
                Ok((sleepers() == "0").then_some(()))
            })
            .await
            .unwrap();
        // A step's own time limit ends as much.
        let limited = session
            .step(&["step", "--timeout", "1", "--", "sh", "-c", script])
            .unwrap();
        assert_eq!(limited.code, 124);
        assert_eq!(sleepers(), "0");
    }
    harness.finish().await.unwrap();
}

#[tokio::test(flavor = "multi_thread")]
async fn into_a_sandbox_go_steps_and_nothing_else() {
    let harness = Harness::start("exec").await.unwrap();
    harness.usual_policies().await.unwrap();
    harness
        .sandbox("closed", session("runc", 600, 600))
        .await
        .unwrap();
    let closed = Session::of(&harness, "closed").await.unwrap();
    let pod = closed.pod();
    let raw =
        |pod: &str, query: &str| format!("/api/v1/namespaces/{}/pods/{pod}/exec?{query}", harness.namespace);
    let step =
        "container=recorder&command=/sandbox-supervisor&command=step&command=--&command=id&stdout=true";
    let terminal = raw(pod, &format!("{step}&tty=true"));
    // What is asked for is judged before it is looked for.
    let gateway = raw("agentsandbox-gateway-0", step);
    let image = "agent-sandbox.local/agent:1";
    for line in [
        format!("exec {pod} -c agent -- sh -c id"),
        format!("exec {pod} -- /sandbox-supervisor step -- id"),
        format!("exec {pod} -c recorder -- /sandbox-supervisor record"),
        format!("exec {pod} -c recorder -- /.sandbox/sandbox-supervisor step -- id"),
        format!("exec {pod} -c recorder -- /sandbox-supervisor"),
        format!("attach {pod} -c agent"),
        format!("port-forward {pod} 49871"),
        format!("debug {pod} --profile restricted --image {image} -- id"),
        format!("create --raw {terminal} -f /dev/null"),
        format!("create --raw {gateway} -f /dev/null"),
    ] {
        let words: Vec<&str> = line.split(' ').collect();
        let error = harness.kubectl(&words).unwrap_err().to_string();
        assert!(error.contains("agentsandbox-exec"), "{line}: {error}");
    }
    assert_eq!(closed.shell("exit 9").unwrap().code, 9);
    harness.finish().await.unwrap();
}

/// A process is stopped by others of its user as soon as it is there, even before it executes its program.
#[tokio::test(flavor = "multi_thread")]
async fn who_stops_all_that_is_born_hangs_nobody() {
    let (harness, sessions) = begin("stopping", |runtime| session(runtime, 600, 600)).await;
    for (runtime, session) in RUNTIMES.iter().zip(&sessions) {
        let stopper = "while :; do kill -STOP -1; done";
        let begun = session
            .step(&["step", "--detach", "--", "sh", "-c", stopper])
            .unwrap();
        assert_eq!(begun.code, 0, "{runtime}: {}", begun.stderr);
        for _ in 0..3 {
            let step = session.step(&["step", "--timeout", "2", "--", "true"]).unwrap();
            println!("{runtime}: {} {}", step.code, step.stderr);
        }
        // The supervisor still hears what it is told.
        harness
            .patch::<AgentSandbox>(runtime, json!({"spec": {"stop": true}}))
            .await
            .unwrap();
        let result = harness.finished(runtime).await.unwrap().result.unwrap();
        assert_eq!(result.reason, Some(Reason::Stopped), "{runtime}: {result:?}");
    }
    harness.finish().await.unwrap();
}
