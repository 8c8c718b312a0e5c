//! What the supervisor itself costs: its file, the time it takes before it executes the command, and the memory of
//! recorder and process 1 together.
//!
//! The time is measured without Kubernetes: this program plays the recorder, in namespaces of its own, and gives the
//! go at once. The same command without the supervisor takes turns with it, so the difference is the supervisor's.

use std::fs;
use std::io::{self, BufRead, BufReader, Read, Write};
use std::net::{Ipv4Addr, TcpListener};
use std::path::Path;
use std::process::{Child, Command, Stdio};

use agentsandbox_api::names;
use agentsandbox_api::run::{CommandSpec, FromRecorder, FromSupervisor};
use e2e::Harness;
use e2e::harness::{HarnessError, process_of};
use serde_json::json;

use crate::{now_ms, parse_ns, quantile};

/// Prints when it runs, in nanoseconds.
const COMMAND: [&str; 2] = ["date", "+%s%N"];
/// A loopback interface and an empty `/tmp` of its own.
const SCRATCH: &str = "mount -t tmpfs none /tmp && ip link set lo up && exec \"$0\" \"$@\"";

/// Measures, and prints a line for each figure.
pub async fn measure(
    binary: &Path,
    runs: usize,
    program: &Path,
    harness: &Harness,
) -> Result<(), HarnessError> {
    let size = fs::metadata(binary).map_err(other)?.len();
    println!("supervisor: {size} bytes");
    // Namespaces can't be changed for a thread alone, so the measuring is a process of its own.
    let output = Command::new("unshare")
        .args(["--net", "--mount", "--", "sh", "-c", SCRATCH])
        .arg(program)
        .args(["--supervisor-start", &runs.to_string(), "--supervisor"])
        .arg(binary)
        .stderr(Stdio::inherit())
        .output()
        .map_err(other)?;
    if !output.status.success() {
        return Err(other("the start of the supervisor could not be measured"));
    }
    print!("{}", String::from_utf8_lossy(&output.stdout));
    // gVisor's processes can't be told apart from outside.
    harness
        .sandbox(
            "memory",
            json!({"policyRef": {"name": "runc"}, "command": ["sleep", "20"]}),
        )
        .await?;
    harness.running("memory").await?;
    let pod = harness.pods_of("memory").await?.remove(0);
    let peak = |words: &str| process_of(&pod, words).map(peak_kib).unwrap_or_default();
    let (recorder, first) = (peak("sandbox-supervisor record"), peak("sandbox-supervisor run"));
    println!("supervisor's memory at its peak: recorder {recorder} KiB, process 1 {first} KiB");
    Ok(())
}

/// Highest resident memory of a process.
fn peak_kib(pid: i32) -> u64 {
    let status = fs::read_to_string(format!("/proc/{pid}/status")).unwrap_or_default();
    let line = status.lines().find_map(|line| line.strip_prefix("VmHWM:"));
    line.and_then(|rest| rest.trim().trim_end_matches(" kB").parse().ok())
        .unwrap_or_default()
}

/// In namespaces of its own: the time from the supervisor's start to its command's, beside the command alone.
pub fn measure_start(binary: &Path, runs: usize) -> Result<(), HarnessError> {
    let listener = TcpListener::bind((Ipv4Addr::LOCALHOST, names::PORT_CONTROL)).map_err(other)?;
    let (mut supervised, mut alone) = (Vec::new(), Vec::new());
    for run in 0..=runs {
        let one = start_supervised(binary, &listener)?;
        let other = start_alone()?;
        // The first pair reads files from disk.
        if run > 0 {
            supervised.push(one);
            alone.push(other);
        }
    }
    let own: Vec<f64> = supervised
        .iter()
        .zip(&alone)
        .map(|(one, other)| one - other)
        .collect();
    println!(
        "supervisor's own time before the command, {runs} pairs: median {:.2} ms, p95 {:.2} ms (with it {:.2} ms, alone {:.2} ms)",
        quantile(&own, 50),
        quantile(&own, 95),
        quantile(&supervised, 50),
        quantile(&alone, 50)
    );
    Ok(())
}

fn start_supervised(binary: &Path, listener: &TcpListener) -> Result<f64, HarnessError> {
    let go = FromRecorder::Go(Box::new(CommandSpec {
        argv: COMMAND.map(str::to_owned).to_vec(),
        session: false,
        env: std::collections::BTreeMap::new(),
        working_dir: names::PATH_TMP.to_owned(),
        files: Vec::new(),
        runtime_seconds: 10,
        processes: 64,
        // The container's own figure is the whole machine's here.
        memory_bytes: 1 << 50,
        workspace_bytes: 1 << 30,
        tmp_bytes: 1 << 30,
        writable: Vec::new(),
        capture: false,
        uid: 0,
        audit: agentsandbox_api::run::RequiredCapture::default(),
        certificate: None,
    }));
    let begun = now_ms();
    let child = in_pid_namespace(
        Command::new("unshare")
            .args(["--pid", "--fork", "--mount-proc", "--"])
            .arg(binary)
            .arg("run"),
    )?;
    let (mut connection, _) = listener.accept().map_err(other)?;
    let mut lines = BufReader::new(connection.try_clone().map_err(other)?).lines();
    let mut hear = || -> Result<FromSupervisor, HarnessError> {
        let line = lines
            .next()
            .ok_or_else(|| other("the supervisor is gone"))?
            .map_err(other)?;
        Ok(serde_json::from_str(&line)?)
    };
    hear()?;
    let mut message = serde_json::to_vec(&go)?;
    message.push(b'\n');
    connection.write_all(&message).map_err(other)?;
    while !matches!(hear()?, FromSupervisor::Ended(_)) {}
    said(child, begun)
}

fn start_alone() -> Result<f64, HarnessError> {
    let begun = now_ms();
    let child = in_pid_namespace(
        Command::new("unshare")
            .args(["--pid", "--fork", "--mount-proc", "--"])
            .args(COMMAND),
    )?;
    said(child, begun)
}

fn in_pid_namespace(command: &mut Command) -> Result<Child, HarnessError> {
    command
        .stdin(Stdio::null())
        .stdout(Stdio::piped())
        .spawn()
        .map_err(other)
}

/// Milliseconds from `begun` to what the command said.
fn said(mut child: Child, begun: f64) -> Result<f64, HarnessError> {
    let mut text = String::new();
    if let Some(mut output) = child.stdout.take() {
        output.read_to_string(&mut text).map_err(other)?;
    }
    child.wait().map_err(other)?;
    Ok(parse_ns(&text)? - begun)
}

fn other(error: impl Into<Box<dyn std::error::Error + Send + Sync>>) -> HarnessError {
    HarnessError::Program(io::Error::other(error))
}
