//! The Rust client, on the real cluster.

use std::time::Duration;

use agentsandbox_api::reason::Reason;
use agentsandbox_client::archive::Bounds;
use agentsandbox_client::{EXIT_TIMEOUT, Error, SandboxBuilder, Sandboxes, Step, Until};
use e2e::Harness;
use e2e::harness::{AGENT_IMAGE, PATIENCE};
use futures::TryStreamExt;
use tokio::io::AsyncReadExt;

/// Most output that is kept of a step, in bytes.
const OUTPUT_MAX: usize = 16 << 20;

#[tokio::test(flavor = "multi_thread")]
async fn a_job_has_output_a_result_usage_and_a_log() {
    let harness = Harness::start("client-job").await.unwrap();
    harness.usual_policies().await.unwrap();
    let sandboxes = Sandboxes::new(harness.client.clone(), &harness.namespace);
    let job = SandboxBuilder::new(AGENT_IMAGE)
        .generate_name("job-")
        .policy("gvisor")
        .file("main.py", "print(6 * 7)", 0o644)
        .command(["python3", "main.py"]);
    let sandbox = sandboxes.create(job).await.unwrap();
    let follower = sandbox.clone();
    let records = tokio::spawn(async move { follower.log(true, None).try_collect::<Vec<_>>().await });
    let mut output = Vec::new();
    sandbox.output(true, &mut output).await.unwrap();
    assert_eq!(output, b"42\n");
    let mut seen = Vec::new();
    let finished = sandbox
        .wait(Until::Finished, Some(PATIENCE), |progress| {
            seen.push(progress.to_string());
        })
        .await
        .unwrap();
    assert_eq!(agentsandbox_client::verdict(&finished), Some(Reason::Completed));
    assert_eq!(sandbox.result().await.unwrap().unwrap().exit_code, Some(0));
    assert!(sandbox.usage().await.unwrap().unwrap().wall_seconds.is_some());
    let records = records.await.unwrap().unwrap();
    let audit = finished.status.unwrap().audit.unwrap();
    assert_eq!(records.len(), usize::try_from(audit.records).unwrap());
    assert!(
        records
            .iter()
            .zip(0..)
            .all(|(record, number)| record.sequence == number)
    );

    sandbox.delete().await.unwrap();
    sandbox.gone(Some(PATIENCE)).await.unwrap();
    assert!(matches!(sandbox.object().await, Err(Error::NotFound { .. })));
    harness.finish().await.unwrap();
}

#[tokio::test(flavor = "multi_thread")]
async fn a_session_takes_steps_and_files() {
    let harness = Harness::start("client-session").await.unwrap();
    harness.usual_policies().await.unwrap();
    let sandboxes = Sandboxes::new(harness.client.clone(), &harness.namespace);
    for policy in ["runc", "gvisor"] {
        let session = SandboxBuilder::new(AGENT_IMAGE)
            .name(policy)
            .policy(policy)
            .session(600)
            .runtime_seconds(600);
        let sandbox = sandboxes.create(session).await.unwrap();
        sandbox.wait(Until::Ready, Some(PATIENCE), |_| {}).await.unwrap();
        let shell = |script: &str| Step::new(["sh", "-c", script]);

        let step = shell("echo out $A $PWD; echo err >&2; exit 3")
            .env("A", "b c")
            .working_dir("/tmp/new");
        let output = sandbox.step(&step, OUTPUT_MAX).await.unwrap();
        assert_eq!(
            (output.exit_code, output.stdout.as_slice()),
            (3, &b"out b c /tmp/new\n"[..])
        );
        assert_eq!(output.stderr, b"err\n");
        let late = sandbox
            .step(&shell("sleep 60").timeout_seconds(1), OUTPUT_MAX)
            .await
            .unwrap();
        assert_eq!(late.exit_code, EXIT_TIMEOUT);
        let bytes: Vec<u8> = (0..=255).cycle().take(4_000_000).collect();
        let echoed = sandbox
            .step(&Step::new(["cat"]).input(bytes.clone()), OUTPUT_MAX)
            .await
            .unwrap();
        assert!(
            echoed.exit_code == 0 && echoed.stdout == bytes,
            "{} bytes",
            echoed.stdout.len()
        );
        let long = sandbox
            .step(&shell("head -c 20000000 /dev/zero"), OUTPUT_MAX)
            .await;
        assert!(matches!(long, Err(Error::OutputTooLong { .. })), "{long:?}");

        sandbox
            .write_file("data/numbers.bin", bytes.clone(), 0o600)
            .await
            .unwrap();
        assert!(
            sandbox
                .read_file("/workspace/data/numbers.bin", OUTPUT_MAX as u64)
                .await
                .unwrap()
                == bytes
        );
        assert!(matches!(
            sandbox.read_file("data/numbers.bin", 1000).await,
            Err(Error::Archive(_))
        ));
        assert!(sandbox.read_file("data", 1000).await.is_err());
        assert!(sandbox.read_file("no-such", 1000).await.is_err());
        let target = std::env::temp_dir().join(format!("client-{policy}-{}", std::process::id()));
        let done = sandbox
            .download("data", &target, Bounds::default())
            .await
            .unwrap();
        assert_eq!((done.files, done.bytes), (1, 4_000_000));
        let done = sandbox.upload(&target, "again", Bounds::default()).await.unwrap();
        assert_eq!(done.files, 1);
        std::fs::remove_dir_all(&target).unwrap();
        assert_eq!(
            sandbox
                .step(&shell("cmp data/numbers.bin again/numbers.bin"), OUTPUT_MAX)
                .await
                .unwrap()
                .exit_code,
            0
        );

        assert!(sandbox.live().await.unwrap().steps.unwrap().taken >= 8);
        sandbox.stop().await.unwrap();
        let finished = sandbox
            .wait(Until::Finished, Some(PATIENCE), |_| {})
            .await
            .unwrap();
        assert_eq!(agentsandbox_client::verdict(&finished), Some(Reason::Stopped));
    }
    harness.finish().await.unwrap();
}

#[tokio::test(flavor = "multi_thread")]
async fn a_long_silence_cuts_nothing_off_and_unread_input_holds_nobody_up() {
    let harness = Harness::start("client-silence").await.unwrap();
    harness.usual_policies().await.unwrap();
    let sandboxes = Sandboxes::new(harness.client.clone(), &harness.namespace);
    let session = SandboxBuilder::new(AGENT_IMAGE)
        .name("silent")
        .policy("gvisor")
        .session(600)
        .runtime_seconds(600)
        .steps(3);
    let sandbox = sandboxes.create(session).await.unwrap();
    sandbox.wait(Until::Ready, Some(PATIENCE), |_| {}).await.unwrap();
    // Longer than a minute, after which other clients send a ping.
    let silent = Step::new(["sh", "-c", "sleep 70; head -c 3000000 /dev/zero"]);
    let unread = Step::new(["head", "-c", "1"])
        .input(vec![b'x'; 1 << 20])
        .timeout_seconds(5);
    let (silent, unread) = tokio::join!(
        sandbox.step(&silent, OUTPUT_MAX),
        tokio::time::timeout(Duration::from_mins(1), sandbox.step(&unread, OUTPUT_MAX)),
    );
    let silent = silent.unwrap();
    assert_eq!((silent.exit_code, silent.stdout.len()), (0, 3_000_000));
    // Where the runtime reports the end late it is no success, but an error, and soon enough.
    match unread.expect("its end in time") {
        Ok(output) => assert!(matches!(output.exit_code, 0 | EXIT_TIMEOUT), "{output:?}"),
        Err(error) => assert!(
            matches!(error, Error::StepTimeout(_) | Error::Disconnected(_)),
            "{error}"
        ),
    }
    // One that leaves ends its step, and a fourth step is one too many.
    let mut running = sandbox
        .start_step(&Step::new(["sh", "-c", "echo begun; sleep 4321"]))
        .await
        .unwrap();
    let mut begun = [0; 6];
    running
        .stdout
        .take()
        .unwrap()
        .read_exact(&mut begun)
        .await
        .unwrap();
    drop(running);
    let refused = sandbox.step(&Step::new(["true"]), OUTPUT_MAX).await;
    assert!(
        matches!(&refused, Err(Error::StepRefused { reason, .. }) if reason == "StepBudgetExceeded"),
        "{refused:?}"
    );
    harness.finish().await.unwrap();
}
