//! The egress gateway beside squid and mitmproxy as forward proxies: requests per second, added latency, throughput,
//! memory. All take turns in one run, with the same client, the same servers and the same processors, so that all meet
//! the same noise. Everything happens in a network namespace of its own, which `e2e/bench-gateway.sh` makes.
//!
//! Connections that never pause show how many requests per second a proxy answers at most. They don't show whose requests
//! take longer: each proxy is then under another load, its own greatest, where every connection waits for the others. The
//! tail tells how that queue is served, and who answers more can have the longer one. So where connections can wait for
//! each other, a second measurement offers all the same load, half of what squid answers at most, and compares times there.

mod alone;
mod load;
mod pace;
mod rivals;
mod table;

use std::path::{Path, PathBuf};
use std::process::ExitCode;
use std::time::Duration;

use clap::{Parser, Subcommand};
use nix::sched::{CpuSet, sched_getaffinity};
use nix::unistd::Pid;

use crate::load::{Client, Error, Road};
use crate::rivals::{Proxy, Rival, World};
use crate::table::{Report, Row};

/// The egress gateway beside squid and mitmproxy as forward proxies.
#[derive(Parser)]
struct Cli {
    #[command(subcommand)]
    action: Action,
}

#[derive(Subcommand)]
enum Action {
    /// Measure, and print a table.
    Compare {
        /// Folder for configuration and logs.
        #[arg(long)]
        work: PathBuf,
        /// The program that plays the outside world.
        #[arg(long)]
        world: PathBuf,
        /// Milliseconds of each measurement.
        #[arg(long, default_value_t = 1000)]
        millis: u64,
        /// How often each is repeated; medians count.
        #[arg(long, default_value_t = 9)]
        rounds: usize,
        /// Bytes of the large body.
        #[arg(long, default_value_t = 1 << 30)]
        large: u64,
        /// Idle tunnels whose memory is measured.
        #[arg(long, default_value_t = 1000)]
        idle: usize,
        /// Print JSON too.
        #[arg(long)]
        json: bool,
    },
    /// Serve as the gateway of one sandbox, without a cluster.
    #[command(hide = true)]
    Gateway(alone::Options),
}

/// Host whose TLS is passed through.
const THROUGH: &str = "through.example.test";
/// Host whose TLS is inspected.
const INSPECTED: &str = "seen.example.test";
/// Connections at once.
const CONNECTIONS: [usize; 3] = [1, 32, 256];
/// Connections at once where each request has a tunnel of its own.
const FRESH: usize = 32;

fn main() -> ExitCode {
    let runtime = match tokio::runtime::Runtime::new() {
        Ok(runtime) => runtime,
        Err(error) => {
            eprintln!("gateway-bench: {error}");
            return ExitCode::FAILURE;
        }
    };
    let done = runtime.block_on(async {
        match Cli::parse().action {
            Action::Gateway(options) => alone::serve(options).await,
            Action::Compare {
                work,
                world,
                millis,
                rounds,
                large,
                idle,
                json,
            } => {
                let plan = Plan {
                    time: Duration::from_millis(millis),
                    rounds,
                    large,
                    idle,
                };
                let report = compare(&work, &world, &plan).await?;
                report.print(json);
                Ok(())
            }
        }
    });
    match done {
        Ok(()) => ExitCode::SUCCESS,
        Err(error) => {
            eprintln!("gateway-bench: {error}");
            ExitCode::FAILURE
        }
    }
}

/// What is measured.
struct Plan {
    time: Duration,
    rounds: usize,
    large: u64,
    idle: usize,
}

async fn compare(work: &Path, world: &Path, plan: &Plan) -> Result<Report, Error> {
    let world = World::start(world, work).await?;
    let direct = Client::new(Road::Direct(world.target), &[world.authority()])?;
    let mut subjects = vec![Subject {
        row: Row::new("direct", false),
        proxy: None,
        client: direct,
        host: THROUGH,
    }];
    for (rival, inspecting) in [
        (Rival::Gateway, false),
        (Rival::Squid, false),
        (Rival::Mitmproxy, false),
        (Rival::Gateway, true),
        (Rival::Mitmproxy, true),
    ] {
        let proxy = Proxy::start(rival, inspecting, &world, work).await?;
        let client = Client::new(proxy.road(), &[world.authority(), &proxy.authority])?;
        let mut row = Row::new(&rival.to_string(), inspecting);
        row.resident_idle = proxy.resident();
        subjects.push(Subject {
            row,
            proxy: Some(proxy),
            client,
            host: if inspecting { INSPECTED } else { THROUGH },
        });
    }
    // Before any load, after which an allocator keeps what it has.
    for subject in &mut subjects {
        let Some(proxy) = &subject.proxy else { continue };
        drop(subject.client.tunnels(subject.host, 1).await?);
        let begun = proxy.resident();
        let tunnels = subject.client.tunnels(subject.host, plan.idle).await?;
        subject.row.resident_per_tunnel = proxy.resident().saturating_sub(begun) / plan.idle.max(1) as u64;
        drop(tunnels);
    }
    let processors = Processors::of_this()?;
    let paced = CONNECTIONS.into_iter().filter(|count| queues(*count)).count();
    let mut progress = Progress::of(plan.rounds * (CONNECTIONS.len() + paced + 2));
    for round in 0..plan.rounds {
        saturate(plan, round, &world, &mut subjects, &processors, &mut progress).await?;
        offer_the_same(plan, round, &mut subjects, &mut progress).await?;
        progress.step();
        for subject in in_turn(&mut subjects, round) {
            let found = subject.client.fresh(subject.host, FRESH, plan.time).await?;
            subject.row.fresh.push(found);
        }
        progress.step();
        for subject in in_turn(&mut subjects, round) {
            subject
                .row
                .large
                .push(subject.client.large(subject.host, plan.large).await?);
        }
    }
    eprintln!();
    let mut rows = Vec::new();
    for subject in subjects {
        let mut row = subject.row;
        if let Some(proxy) = subject.proxy {
            row.cpu_seconds = proxy.cpu_seconds();
            proxy.stop();
        }
        rows.push(row);
    }
    world.stop();
    Ok(Report { rows })
}

/// All of them, one after the other in each round, so that what else the machine does meets all of them; in every other
/// round the last comes first, so that nobody's place is the better one.
fn in_turn(subjects: &mut [Subject], round: usize) -> impl Iterator<Item = &mut Subject> {
    let mut left = subjects.iter_mut();
    std::iter::from_fn(move || {
        if round.is_multiple_of(2) {
            left.next()
        } else {
            left.next_back()
        }
    })
}

/// One round of kept connections that never pause.
async fn saturate(
    plan: &Plan,
    round: usize,
    world: &World,
    subjects: &mut [Subject],
    processors: &Processors,
    progress: &mut Progress,
) -> Result<(), Error> {
    for (index, connections) in CONNECTIONS.into_iter().enumerate() {
        progress.step();
        // One request at a time needs one processor. On several, each hand-over from process to process waits until an
        // idle one has woken up, which on a virtual machine takes longer than the work that is measured.
        let alone = !queues(connections);
        if alone {
            run_on(world, subjects, &processors.one)?;
        }
        for subject in in_turn(subjects, round) {
            let found = subject
                .client
                .kept(subject.host, connections, Duration::ZERO, plan.time)
                .await?;
            subject.row.kept[index].saturated.push(found);
        }
        if alone {
            run_on(world, subjects, &processors.all)?;
        }
    }
    Ok(())
}

/// One round of kept connections that pause, so that all proxies of a mode are under the same load.
async fn offer_the_same(
    plan: &Plan,
    round: usize,
    subjects: &mut [Subject],
    progress: &mut Progress,
) -> Result<(), Error> {
    for (index, connections) in CONNECTIONS.into_iter().enumerate() {
        if !queues(connections) {
            continue;
        }
        progress.step();
        let through = think(subjects, false, index)?;
        let inspecting = think(subjects, true, index)?;
        for subject in in_turn(subjects, round) {
            let think = if subject.row.inspecting {
                inspecting
            } else {
                through
            };
            let found = subject
                .client
                .kept(subject.host, connections, think, plan.time)
                .await?;
            subject.row.kept[index].same_load.push(found);
        }
    }
    Ok(())
}

/// The mean pause of each connection under the load that is the same for all proxies of a mode: a share of what the mode's
/// yardstick answered at most in the rounds so far, with as many connections.
fn think(subjects: &[Subject], inspecting: bool, index: usize) -> Result<Duration, Error> {
    let yardstick = subjects
        .iter()
        .map(|subject| &subject.row)
        .find(|row| row.inspecting == inspecting && row.is_yardstick())
        .ok_or("no proxy to take the load from")?;
    pace::think(
        CONNECTIONS[index],
        table::median(&yardstick.kept[index].saturated).rate,
    )
}

/// Whether requests of so many kept connections wait for each other.
const fn queues(connections: usize) -> bool {
    connections > 1
}

/// Where everything that takes part runs.
struct Processors {
    all: CpuSet,
    one: CpuSet,
}

impl Processors {
    /// Those on which this process may run.
    fn of_this() -> Result<Self, Error> {
        let all = sched_getaffinity(Pid::this())?;
        let first = (0..CpuSet::count()).find(|index| all.is_set(*index).unwrap_or(false));
        let mut one = CpuSet::new();
        one.set(first.ok_or("no processor to run on")?)?;
        Ok(Self { all, one })
    }
}

/// Lets everything that takes part run on these processors only.
fn run_on(world: &World, subjects: &[Subject], processors: &CpuSet) -> Result<(), Error> {
    rivals::run_on(std::process::id(), processors)?;
    world.run_on(processors)?;
    let mut proxies = subjects.iter().filter_map(|subject| subject.proxy.as_ref());
    proxies.try_for_each(|proxy| proxy.run_on(processors))
}

/// A proxy that is measured, or the road without one.
struct Subject {
    row: Row,
    proxy: Option<Proxy>,
    client: Client,
    host: &'static str,
}

/// How far the measurements are.
struct Progress {
    step: usize,
    steps: usize,
}

impl Progress {
    fn of(steps: usize) -> Self {
        Self { step: 0, steps }
    }

    /// Shows that the next step begins.
    fn step(&mut self) {
        self.step += 1;
        eprint!("\r  {}/{}   ", self.step, self.steps);
    }
}
