//! What the capture of actions costs a command: the same work under a supervisor that captures, under one that can't, and
//! under none takes turns, in namespaces of its own. This program plays the recorder, and chains and writes what it hears
//! as that does.
//!
//! Run by `make bench-capture`; by hand as root: `capture-bench --supervisor FILE`.

mod recorder;
mod uncaptured;
mod work;

use std::path::PathBuf;
use std::process::{Command, ExitCode, Stdio};

use clap::Parser;
use work::Work;

type Error = Box<dyn std::error::Error + Send + Sync>;

/// What the capture of actions costs a command.
#[derive(Parser)]
struct Cli {
    /// The static supervisor.
    #[arg(long)]
    supervisor: Option<PathBuf>,
    /// Rounds of each kind of work.
    #[arg(long, default_value_t = 25)]
    rounds: usize,
    /// Only this kind of work.
    #[arg(long)]
    only: Option<Work>,
    /// Only do this work, and print how long it took, in nanoseconds.
    #[arg(long, hide = true)]
    work: Option<Work>,
    /// Become the supervisor, where nothing can be captured.
    #[arg(long, hide = true)]
    uncaptured: bool,
    /// Measure; already in namespaces of its own.
    #[arg(long, hide = true)]
    inside: bool,
}

/// A loopback interface and an empty `/tmp` of its own.
const SCRATCH: &str = "mount -t tmpfs none /tmp && ip link set lo up && exec \"$0\" \"$@\"";

fn main() -> ExitCode {
    let cli = Cli::parse();
    let done = match (&cli.work, &cli.supervisor) {
        (Some(work), _) => work.run().map(|took| println!("{}", took.as_nanos())),
        (None, Some(supervisor)) if cli.uncaptured => uncaptured::supervise(supervisor),
        (None, Some(supervisor)) if cli.inside => recorder::compare(supervisor, cli.rounds, cli.only),
        (None, Some(supervisor)) => in_namespaces(supervisor, cli.rounds, cli.only),
        (None, None) => Err("--supervisor is missing".into()),
    };
    match done {
        Ok(()) => ExitCode::SUCCESS,
        Err(error) => {
            eprintln!("capture-bench: {error}");
            ExitCode::FAILURE
        }
    }
}

/// Namespaces can't be changed for a thread alone, so the measuring is a process of its own.
fn in_namespaces(supervisor: &std::path::Path, rounds: usize, only: Option<Work>) -> Result<(), Error> {
    let status = Command::new("unshare")
        .args(["--net", "--mount", "--", "sh", "-c", SCRATCH])
        .arg(std::env::current_exe()?)
        .args(only.iter().flat_map(|work| ["--only", work.name()]))
        .args(["--inside", "--rounds", &rounds.to_string(), "--supervisor"])
        .arg(supervisor)
        .stdin(Stdio::null())
        .status()?;
    if status.success() {
        Ok(())
    } else {
        Err("the capture could not be measured".into())
    }
}
