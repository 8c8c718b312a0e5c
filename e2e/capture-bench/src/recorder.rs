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
use crate::work::Work;

/// What one supervised run took and left.
struct Supervised {
    nanos: f64,
    means: Means,
    records: usize,
}

/// Each kind of work with and without the supervisor, in turns; prints a line for each.
///
/// What an operation costs more is told twice: as the median of the differences of all pairs, which is what it was here and
/// now, and as the difference of the fastest run of each kind, which other work on the machine disturbed least.
pub fn compare(supervisor: &Path, pairs: usize, only: Option<Work>) -> Result<(), Error> {
    let listener = TcpListener::bind((Ipv4Addr::LOCALHOST, names::PORT_CONTROL))?;
    println!(
        "{:<7} {:>11} {:>11} {:>8} {:>14} {:>14} {:>9}  CAPTURED BY",
        "WORK", "WITH ms", "WITHOUT ms", "RATIO", "PER OPERATION", "UNDISTURBED", "RECORDS"
    );
    for work in Work::ALL
        .into_iter()
        .filter(|work| only.is_none_or(|only| only == *work))
    {
        let (mut with, mut without, mut ratios, mut more) = (Vec::new(), Vec::new(), Vec::new(), Vec::new());
        let mut last = None;
        for pair in 0..=pairs {
            // By turns one or the other goes first, so that nobody's place is the better one.
            let before = (pair % 2 == 0).then(|| alone(work)).transpose()?;
            let supervised = supervised(supervisor, work, &listener)?;
            let alone = before.map_or_else(|| alone(work), Ok)?;
            // The first pair reads files from disk.
            if pair > 0 {
                ratios.push(supervised.nanos / alone);
                more.push(supervised.nanos - alone);
                with.push(supervised.nanos);
                without.push(alone);
            }
            last = Some(supervised);
        }
        let Some(last) = last else { continue };
        let operations = f64::from(u32::try_from(work.operations())?);
        println!(
            "{:<7} {:>11.1} {:>11.1} {:>8.3} {:>11.2} µs {:>11.2} µs {:>9}  {:?}",
            work.name(),
            median(&mut with) / 1e6,
            median(&mut without) / 1e6,
            median(&mut ratios),
            median(&mut more) / operations / 1e3,
            (fastest(&with) - fastest(&without)) / operations / 1e3,
            last.records,
            last.means
        );
    }
    Ok(())
}

fn supervised(supervisor: &Path, work: Work, listener: &TcpListener) -> Result<Supervised, Error> {
    let child = Command::new("unshare")
        .args(["--pid", "--fork", "--mount-proc", "--"])
        .arg(supervisor)
        .arg("run")
        .stdin(Stdio::null())
        .stdout(Stdio::piped())
        .spawn()?;
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
    let mut go = serde_json::to_vec(&FromRecorder::Go(Box::new(command(work)?)))?;
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

fn alone(work: Work) -> Result<f64, Error> {
    let argv = argv(work)?;
    let child = Command::new("unshare")
        .args(["--pid", "--fork", "--mount-proc", "--"])
        .args(argv)
        .stdin(Stdio::null())
        .stdout(Stdio::piped())
        .spawn()?;
    said(child)
}

fn argv(work: Work) -> Result<Vec<String>, Error> {
    let program = std::env::current_exe()?.to_string_lossy().into_owned();
    Ok(vec![program, "--work".to_owned(), work.name().to_owned()])
}

fn command(work: Work) -> Result<CommandSpec, Error> {
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

fn median(values: &mut [f64]) -> f64 {
    values.sort_by(f64::total_cmp);
    values.get(values.len() / 2).copied().unwrap_or(f64::NAN)
}

fn fastest(values: &[f64]) -> f64 {
    values.iter().copied().fold(f64::INFINITY, f64::min)
}
