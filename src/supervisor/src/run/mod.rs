//! Process 1 of the agent container: starts the user's command on the recorder's word, bounds it, ends it with
//! everything it started, and reports.

mod capture;
mod changes;
mod child;
mod disk;
mod evidence;
mod files;
mod limits;
mod outcome;
mod stat;
mod steps;
mod tree;
mod trust;
mod usage;
mod watch;

use std::net::{Ipv4Addr, TcpStream};
use std::os::fd::AsFd;
use std::time::{Duration, Instant};

use agentsandbox_api::names;
use agentsandbox_api::reason::Reason;
use agentsandbox_api::run::{CommandSpec, EXIT_NO_GO, Ended, FromRecorder, FromSupervisor, Report};
use agentsandbox_api::step::StepOrder;

use crate::protocol::{Channel, FROM_RECORDER_MAX, Received};
use crate::sys::{self, Awaited, Reaped, Signals};
use capture::Capturing;
use changes::Before;
use child::{Child, NotStarted};
use disk::DiskWatch;
use steps::Steps;
use usage::Meter;
use watch::{Foreign, Warnings};

/// How long the recorder may take to listen.
const CONNECT_TIMEOUT: Duration = Duration::from_secs(30);
/// How long the recorder may take to decide: it bounds its own probe far below this.
const GO_TIMEOUT: Duration = Duration::from_mins(10);
/// How long the recorder may take to hear the end.
const LAST_WORDS: Duration = Duration::from_secs(2);
/// How often the run's use is looked at.
const TICK: Duration = Duration::from_millis(50);
/// Why a run whose capture is demanded may not go on.
const HIDDEN: &str =
    "a process made itself unreadable, so what it does can't be captured as the policy demands";
/// So many messages of the recorder are heard before everything else gets its turn.
const MESSAGES_AT_ONCE: usize = 32;

/// Runs one command, or the steps of a session; returns the exit code that the container shall have.
pub fn run() -> i32 {
    sys::forbid_dumping();
    let taken = [libc::SIGTERM, libc::SIGINT, libc::SIGQUIT, libc::SIGHUP];
    let Ok(signals) = Signals::take(&taken) else {
        return no_go("signals can't be taken");
    };
    let Some(mut channel) = connect() else {
        return no_go("the recorder does not answer");
    };
    if channel.send(&FromSupervisor::Hello(evidence::gather())).is_err() {
        return no_go("the recorder is gone");
    }
    let capturing = match Capturing::begin() {
        Ok(capturing) => capturing,
        Err(error) => return no_go(&format!("system calls can't be filtered: {error}")),
    };
    if channel.send(&FromSupervisor::Capture(capturing.means())).is_err() {
        return no_go("the recorder is gone");
    }
    match await_go(&mut channel, &signals) {
        Ok(spec) => Run::new(*spec, signals, channel, capturing).finish(),
        Err(why) => no_go(&why),
    }
}

fn no_go(why: &str) -> i32 {
    eprintln!("sandbox-supervisor: the command was not started: {why}");
    EXIT_NO_GO
}

fn connect() -> Option<Channel> {
    let begun = Instant::now();
    while begun.elapsed() < CONNECT_TIMEOUT {
        if let Ok(stream) = TcpStream::connect((Ipv4Addr::LOCALHOST, names::PORT_CONTROL)) {
            return Channel::new(stream, FROM_RECORDER_MAX).ok();
        }
        std::thread::sleep(Duration::from_millis(5));
    }
    None
}

fn await_go(channel: &mut Channel, signals: &Signals) -> Result<Box<CommandSpec>, String> {
    let begun = Instant::now();
    loop {
        match channel.receive::<FromRecorder>() {
            Received::Message(FromRecorder::Go(spec)) => return Ok(spec),
            Received::Message(
                FromRecorder::NoGo { reason, message } | FromRecorder::Stop { reason, message },
            ) => {
                return Err(format!("{reason}: {message}"));
            }
            Received::Broken => return Err("the recorder is gone".to_owned()),
            // Before the go there is nothing that could trust anybody.
            Received::Message(
                FromRecorder::Trust { .. }
                | FromRecorder::Step { .. }
                | FromRecorder::Report
                | FromRecorder::Taken { .. },
            )
            | Received::Nothing => {}
        }
        while let Some(signal) = signals.next() {
            if signal.number == libc::SIGTERM && signal.from_outside {
                return Err("the pod is being deleted".to_owned());
            }
        }
        if begun.elapsed() > GO_TIMEOUT {
            return Err("the recorder does not decide".to_owned());
        }
        sys::wait_readable(
            &[channel.stream().as_fd(), signals.as_fd()],
            Duration::from_secs(1),
        );
    }
}

/// Why the run is being ended by us.
struct Ending {
    reason: Reason,
    message: String,
    /// When the last signal goes out.
    kill_at: Instant,
    killed: bool,
}

struct Run {
    spec: CommandSpec,
    signals: Signals,
    channel: Channel,
    recorder_gone: bool,
    meter: Meter,
    disk: DiskWatch,
    capturing: Capturing,
    warnings: Warnings,
    foreign: Foreign,
    /// The workspace before the command.
    before: Option<Before>,
    begun: Instant,
    ending: Option<Ending>,
    main_end: Option<sys::Ended>,
    steps: Steps,
    enforced: Instant,
}

impl Run {
    fn new(spec: CommandSpec, signals: Signals, channel: Channel, capturing: Capturing) -> Self {
        let disk = DiskWatch::new(vec![
            (names::PATH_WORKSPACE.into(), spec.workspace_bytes),
            (names::PATH_TMP.into(), spec.tmp_bytes),
        ]);
        let meter = Meter::new();
        let begun = Instant::now();
        Self {
            spec,
            signals,
            channel,
            recorder_gone: false,
            meter,
            disk,
            capturing,
            warnings: Warnings::default(),
            foreign: Foreign::new(),
            before: None,
            begun,
            ending: None,
            main_end: None,
            steps: Steps::default(),
            enforced: begun,
        }
    }

    fn finish(mut self) -> i32 {
        let prepared = files::write_all(&self.spec.files)
            .and_then(|()| files::make_working_dir(&self.spec.working_dir))
            .and_then(|()| self.spec.certificate.as_deref().map_or(Ok(()), trust::install));
        self.before = Some(Before::take(names::PATH_WORKSPACE));
        let started = match prepared {
            Ok(()) if self.spec.session => Ok(None),
            Ok(()) => child::start(&self.spec, &self.capturing).map(Some),
            Err(message) => Err(NotStarted {
                exit_code: agentsandbox_api::run::EXIT_NOT_EXECUTABLE,
                message,
            }),
        };
        match started {
            Ok(child) => self.watch_over(child.as_ref()),
            Err(NotStarted { exit_code, message }) => {
                eprintln!("sandbox-supervisor: {message}");
                let ended = Ended {
                    reason: Some(Reason::NonZeroExit),
                    exit_code,
                    message,
                    ..Ended::default()
                };
                let _ = self
                    .channel
                    .send(&FromSupervisor::Started { at_ms: sys::now_ms() });
                let _ = self.channel.send(&FromSupervisor::Ended(Box::new(ended)));
                self.channel.finish(LAST_WORDS);
                exit_code
            }
        }
    }

    /// Watches over the command, or over a session.
    fn watch_over(&mut self, child: Option<&Child>) -> i32 {
        self.begun = Instant::now();
        if self
            .channel
            .send(&FromSupervisor::Started { at_ms: sys::now_ms() })
            .is_err()
        {
            self.lose_recorder();
        }
        while !self.step(child) {}
        let wall = self.begun.elapsed();
        end_everything(&self.capturing);
        let changes = self.before.take().map(Before::compare).unwrap_or_default();
        let figures = self
            .capturing
            .finish((!self.recorder_gone).then_some(&mut self.channel), changes);
        let mut ended = self.account(child, wall);
        (ended.unreadable, ended.lost) = (figures.unreadable, figures.lost);
        if ended.unreadable > 0 && self.spec.audit.is_any() {
            (ended.reason, ended.message) = (Some(Reason::AuditUnavailable), HIDDEN.to_owned());
        }
        if !self.recorder_gone {
            let _ = self.channel.send(&FromSupervisor::Ended(Box::new(ended.clone())));
            self.channel.finish(LAST_WORDS);
        }
        ended.exit_code
    }

    /// One look at everything; whether the run is over.
    fn step(&mut self, child: Option<&Child>) -> bool {
        self.take_signals(child);
        if self.reap(child) {
            // Steps that have just ended still have something to say.
            self.steps.serve(&mut self.channel);
            return true;
        }
        self.hear_recorder(child);
        self.steps.serve(&mut self.channel);
        if self.enforced.elapsed() >= TICK || self.ending.is_some() {
            self.enforced = Instant::now();
            self.enforce(child);
        }
        self.tell();
        let mut awaited = self.steps.awaited();
        awaited.push(Awaited::read(self.signals.as_fd()));
        awaited.extend(self.capturing.awaited());
        // A connection that is broken is noticed where it is read.
        let _ = self.channel.flush();
        if !self.recorder_gone {
            awaited.push(Awaited {
                fd: self.channel.stream().as_fd(),
                read: true,
                write: self.channel.queued() > 0,
            });
        }
        sys::wait(&awaited, TICK.min(self.steps.next_deadline().unwrap_or(TICK)));
        false
    }

    /// Sends the recorder what was seen, as far as it takes it.
    fn tell(&mut self) {
        if let Some(message) = self.capturing.failure() {
            self.end_now(Reason::AuditUnavailable, message);
        }
        if !self.recorder_gone && self.capturing.pump(&mut self.channel).is_err() {
            self.lose_recorder();
        }
    }

    /// Reaps whatever has ended; whether the command itself has, or nothing is left.
    fn reap(&mut self, main: Option<&Child>) -> bool {
        loop {
            match self.capturing.reap() {
                Reaped::One(ended) if main.is_some_and(|main| main.pid == ended.pid) => {
                    self.main_end = Some(ended);
                    return true;
                }
                Reaped::One(ended) => {
                    self.steps.reaped(ended);
                }
                Reaped::NoneYet => return false,
                // A session without a process waits for its next step, unless it is being ended.
                Reaped::NoChildren => return main.is_some() || self.ending.is_some(),
            }
        }
    }

    /// A signal is believed only from outside the pid namespace: the command runs as the same user as process 1.
    fn take_signals(&mut self, child: Option<&Child>) {
        while let Some(signal) = self.signals.next() {
            if signal.from_outside && signal.number == libc::SIGTERM {
                self.end(child, Reason::Stopped, "ended from outside by SIGTERM".to_owned());
            }
        }
    }

    fn hear_recorder(&mut self, child: Option<&Child>) {
        // What is whole already would wake nobody; the bound leaves time for everything else.
        for _ in 0..MESSAGES_AT_ONCE {
            if self.recorder_gone {
                return;
            }
            match self.channel.receive::<FromRecorder>() {
                Received::Message(FromRecorder::Stop { reason, message }) => self.end(child, reason, message),
                Received::Message(FromRecorder::Trust { certificate }) => {
                    if let Err(error) = trust::install(&certificate) {
                        eprintln!("sandbox-supervisor: the egress gateway's new certificate: {error}");
                    }
                }
                Received::Message(FromRecorder::Step { step, order }) => {
                    if self.spec.session && (self.ending.is_none() || !matches!(order, StepOrder::Start(_))) {
                        self.steps
                            .obey(&self.spec, step, order, &self.capturing, &mut self.channel);
                    }
                }
                Received::Message(FromRecorder::Report) => self.report(),
                Received::Message(FromRecorder::Taken { messages }) => self.capturing.taken(messages),
                Received::Broken => self.lose_recorder(),
                Received::Nothing => return,
                Received::Message(FromRecorder::Go(_) | FromRecorder::NoGo { .. }) => {}
            }
        }
    }

    fn report(&mut self) {
        let (processes, _) = self.meter.sample();
        let report = Report {
            usage: self.meter.usage(self.begun.elapsed()),
            memory_bytes: usage::memory(),
            processes: Some(processes),
            disk_bytes: self.disk.used(),
        };
        let _ = self.channel.send(&FromSupervisor::Report(Box::new(report)));
    }

    /// Without a recorder nobody watches: everything ends at once.
    fn lose_recorder(&mut self) {
        self.recorder_gone = true;
        let message = "the recorder is gone".to_owned();
        self.ending = Some(Ending {
            reason: Reason::SandboxLost,
            message,
            kill_at: Instant::now(),
            killed: false,
        });
    }
}

/// Kills everything in the namespace, and waits until it is gone. A fork bomb loses: the signal reaches all
/// processes at once, and a child that is being made inherits it.
fn end_everything(capturing: &Capturing) {
    let begun = Instant::now();
    loop {
        sys::kill_everything();
        match capturing.reap() {
            Reaped::NoChildren => return,
            Reaped::One(_) => {}
            Reaped::NoneYet => std::thread::sleep(Duration::from_millis(1)),
        }
        // A process that can't be killed hangs in the kernel; the kubelet ends the container.
        if begun.elapsed() > Duration::from_secs(5) {
            return;
        }
    }
}
