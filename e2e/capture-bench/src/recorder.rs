//! Plays the recorder: gives the go, and takes, chains and writes what the supervisor sends.

use std::collections::BTreeMap;
use std::fs::File;
use std::io::{BufRead, BufReader, Read, Write};
use std::net::{Ipv4Addr, TcpListener};
use std::path::Path;
use std::process::{Child, Command, Stdio};

use agentsandbox_action_log::chain::Chain;
use agentsandbox_action_log::record::prepare;
use agentsandbox_action_log::time::Time;
use agentsandbox_api::action::Means;
use agentsandbox_api::names;
use agentsandbox_api::run::{CommandSpec, FromRecorder, FromSupervisor, RequiredCapture};

use crate::Error;
use crate::work::{Bar, Work};

/// What one supervised run took and left.
struct Supervised {
    nanos: f64,
    means: Means,
    records: usize,
}

/// How a kind of work is run.
#[derive(Clone, Copy, Debug, PartialEq, Eq, PartialOrd, Ord)]
enum Way {
    /// Under a supervisor that captures.
    Captured,
    /// Under one that can't, and does all else.
    Uncaptured,
    /// Under none.
    Alone,
}

/// Each kind of work in all ways, in turns; prints a line for each.
///
/// What an operation costs more is told twice: as the median of the differences of all rounds, which is what it was here
/// and now, and as the difference of the fastest run of each way, which other work on the machine disturbed least.
pub fn compare(supervisor: &Path, rounds: usize, only: Option<Work>) -> Result<(), Error> {
    let listener = TcpListener::bind((Ipv4Addr::LOCALHOST, names::PORT_CONTROL))?;
    println!(
        "{:40}{:^37}{:^15}\n{:<7} {:>11} {:>11} {:>8} {:>14} {:>14} {:>16} {:>9}  CAPTURED BY",
        "",
        "CAPTURE, PER OPERATION",
        "SUPERVISION",
        "WORK",
        "WITH ms",
        "WITHOUT ms",
        "RATIO",
        "MEDIAN",
        "UNDISTURBED",
        "PER OPERATION",
        "RECORDS"
    );
    for work in Work::ALL
        .into_iter()
        .filter(|work| only.is_none_or(|only| only == *work))
    {
        let mut took: BTreeMap<Way, Vec<f64>> = BTreeMap::new();
        let (mut records, mut means) = (0, Means::None);
        for round in 0..=work.runs(rounds) {
            let mut ways = [Way::Captured, Way::Uncaptured, Way::Alone];
            // By turns each goes first, so that nobody's place is the better one.
            ways.rotate_left(round % 3);
            for way in ways {
                let nanos = if way == Way::Alone {
                    alone(work)?
                } else {
                    let run = supervised(supervisor, way, work, &listener)?;
                    if (run.means == Means::None) != (way == Way::Uncaptured) {
                        return Err(format!("{way:?}: captured by {:?}", run.means).into());
                    }
                    if way == Way::Captured {
                        (records, means) = (run.records, run.means);
                    }
                    run.nanos
                };
                // The first round reads files from disk.
                if round > 0 {
                    took.entry(way).or_default().push(nanos);
                }
            }
        }
        let operations = f64::from(u32::try_from(work.operations())?);
        let of = |way| took.get(&way).map(Vec::as_slice).unwrap_or_default();
        let (with, without, alone) = (of(Way::Captured), of(Way::Uncaptured), of(Way::Alone));
        let pairs = |one: &[f64], other: &[f64], figure: fn(f64, f64) -> f64| {
            median(one.iter().zip(other).map(|(one, other)| figure(*one, *other)))
        };
        let micros = |nanos: f64| nanos / operations / 1e3;
        let ratio = pairs(with, without, |with, without| with / without);
        let dearer = micros(pairs(with, without, |with, without| with - without));
        println!(
            "{:<7} {:>11.1} {:>11.1} {:>8.3} {:>11.2} µs {:>11.2} µs {:>13.2} µs {:>9}  {means:?}",
            work.name(),
            median(with.iter().copied()) / 1e6,
            median(without.iter().copied()) / 1e6,
            ratio,
            dearer,
            micros(fastest(with) - fastest(without)),
            micros(pairs(without, alone, |without, alone| without - alone)),
            records,
        );
        let (said, holds) = match work.bar() {
            Some(Bar::Ratio(bar)) => (format!("at most {bar} times the time without"), ratio <= bar),
            Some(Bar::Micros(bar)) => (format!("at most {bar} µs more per operation"), dearer <= bar),
            None => continue,
        };
        println!(
            "{} {}: {said}",
            if holds { "met:    " } else { "NOT MET:" },
            work.name()
        );
    }
    Ok(())
}

fn supervised(supervisor: &Path, way: Way, work: Work, listener: &TcpListener) -> Result<Supervised, Error> {
    let mut command = isolated();
    if way == Way::Uncaptured {
        command
            .arg(std::env::current_exe()?)
            .args(["--uncaptured", "--supervisor"])
            .arg(supervisor);
    } else {
        command.arg(supervisor).arg("run");
    }
    let child = command.spawn()?;
    let (mut connection, _) = listener.accept()?;
    let mut lines = BufReader::new(connection.try_clone()?).lines();
    let mut hear = || -> Result<FromSupervisor, Error> {
        Ok(serde_json::from_str(
            &lines.next().ok_or("the supervisor is gone")??,
        )?)
    };
    hear()?;
    let FromSupervisor::Capture(capture) = hear()? else {
        return Err("the supervisor does not say what it captures".into());
    };
    let mut go = serde_json::to_vec(&FromRecorder::Go(Box::new(order(work)?)))?;
    go.push(b'\n');
    connection.write_all(&go)?;
    let mut taken = serde_json::to_vec(&FromRecorder::Taken { messages: 1 })?;
    taken.push(b'\n');
    let (mut chain, mut records) = (Chain::default(), 0);
    let mut log = File::create("/dev/null")?;
    loop {
        match hear()? {
            FromSupervisor::Actions { actions } => {
                for seen in actions {
                    let class = seen.action.class();
                    let line = chain.line(Time(seen.at_ms), class, &prepare(seen.action));
                    log.write_all(line.as_bytes())?;
                    records += 1;
                }
                // Whoever has said its last word listens no more.
                let _ = connection.write_all(&taken);
            }
            FromSupervisor::Ended(ended) if ended.exit_code == 0 => break,
            FromSupervisor::Ended(ended) => return Err(format!("the work failed: {ended:?}").into()),
            _ => {}
        }
    }
    // The supervisor leaves when nobody listens any more.
    drop((connection, lines));
    Ok(Supervised {
        nanos: said(child)?,
        means: capture.commands,
        records,
    })
}

/// A process namespace of its own, whose output is read; what it starts is still to be said.
fn isolated() -> Command {
    let mut command = Command::new("unshare");
    command
        .args(["--pid", "--fork", "--mount-proc", "--"])
        .stdin(Stdio::null())
        .stdout(Stdio::piped());
    command
}

fn alone(work: Work) -> Result<f64, Error> {
    said(isolated().args(argv(work)?).spawn()?)
}

fn argv(work: Work) -> Result<Vec<String>, Error> {
    let program = std::env::current_exe()?.to_string_lossy().into_owned();
    Ok(vec![program, "--work".to_owned(), work.name().to_owned()])
}

fn order(work: Work) -> Result<CommandSpec, Error> {
    Ok(CommandSpec {
        argv: argv(work)?,
        session: false,
        env: BTreeMap::from([("PATH".to_owned(), "/usr/local/bin:/usr/bin:/bin".to_owned())]),
        working_dir: names::PATH_TMP.to_owned(),
        files: Vec::new(),
        runtime_seconds: 600,
        processes: 1000,
        // The container's own figure is the whole machine's here.
        memory_bytes: 1 << 50,
        workspace_bytes: 1 << 30,
        tmp_bytes: 1 << 30,
        writable: Vec::new(),
        capture: false,
        uid: 0,
        audit: RequiredCapture::default(),
        certificate: None,
    })
}

/// The nanoseconds that the work said.
fn said(mut child: Child) -> Result<f64, Error> {
    let mut text = String::new();
    if let Some(mut output) = child.stdout.take() {
        output.read_to_string(&mut text)?;
    }
    child.wait()?;
    Ok(text.trim().parse()?)
}

fn median(values: impl Iterator<Item = f64>) -> f64 {
    let mut values: Vec<f64> = values.collect();
    values.sort_by(f64::total_cmp);
    values.get(values.len() / 2).copied().unwrap_or(f64::NAN)
}

fn fastest(values: &[f64]) -> f64 {
    values.iter().copied().fold(f64::INFINITY, f64::min)
}
