//! Takes steps, and questions about the run, over a socket in the recorder's private folder, and relays them to
//! process 1 of the agent container. The agent can reach neither: the folder is in another mount namespace.

mod caller;
mod ledger;

use std::collections::BTreeMap;
use std::io;
use std::os::fd::AsFd;
use std::os::unix::fs::PermissionsExt;
use std::os::unix::net::UnixListener;
use std::path::Path;
use std::time::{Duration, Instant};

use agentsandbox_api::action::{Action, Seen};
use agentsandbox_api::gateway::StepCharged;
use agentsandbox_api::reason::Reason;
use agentsandbox_api::run::{FromRecorder, LiveState, Report, SessionSpec, StepsSummary};
use agentsandbox_api::step::{CONCURRENT_STEPS, StepCommand, StepEnd, StepNews, StepOrder};
use base64::Engine as _;
use base64::engine::general_purpose::STANDARD as BASE64;

use super::register::Registration;
use crate::protocol::Channel;
use crate::step::frame::{Outcome, Request};
use crate::step::options;
use crate::sys::{self, Awaited};
use caller::{Caller, Heard};
use ledger::Ledger;

/// Callers at once: steps, and whoever asks for the state.
const CALLERS_MAX: usize = CONCURRENT_STEPS + 16;
/// How long the egress gateway may take to grant a step.
const CHARGE_PATIENCE: Duration = Duration::from_secs(5);
/// How long steps that run may go on once the budget is used up.
const LAST_STEPS: Duration = Duration::from_secs(2);
/// Nothing more is read from callers while so much waits for the supervisor, in bytes.
const QUEUE_MAX: usize = 1 << 20;

/// Serves callers.
pub struct Steps {
    listener: UnixListener,
    session: Option<SessionSpec>,
    callers: BTreeMap<u64, Caller>,
    next_caller: u64,
    ledger: Ledger,
    quiet_since: Instant,
    exhausted: Option<(Instant, String)>,
    /// Why no more steps are taken.
    ending: Option<Reason>,
    actions: Vec<Seen>,
}

/// What a caller is about.
enum Task {
    /// It has not said yet.
    Unsaid,
    /// The egress gateway is asked whether the step is within the budget.
    Charging {
        command: Box<StepCommand>,
        serial: u64,
        until: Instant,
    },
    /// The step of this number runs.
    Running { step: u64, detached: bool },
    /// The supervisor is asked for the run's state.
    Asking,
    /// It is told the outcome.
    Told,
}

impl Steps {
    /// Listens.
    pub fn listen(session: Option<SessionSpec>) -> io::Result<Self> {
        Self::at(Path::new(agentsandbox_api::names::PATH_STEPS), session)
    }

    fn at(path: &Path, session: Option<SessionSpec>) -> io::Result<Self> {
        let listener = UnixListener::bind(path)?;
        std::fs::set_permissions(path, std::fs::Permissions::from_mode(0o600))?;
        listener.set_nonblocking(true)?;
        Ok(Self {
            listener,
            session,
            callers: BTreeMap::new(),
            next_caller: 0,
            ledger: Ledger::default(),
            quiet_since: Instant::now(),
            exhausted: None,
            ending: None,
            actions: Vec::new(),
        })
    }

    /// The session has begun.
    pub fn begin(&mut self) {
        self.quiet_since = Instant::now();
    }

    /// What to wait for, in the order that [`Steps::note_gone`] is told what has gone.
    pub fn awaited(&self, channel: &Channel) -> Vec<Awaited<'_>> {
        let room = channel.queued() < QUEUE_MAX;
        let mut awaited = vec![Awaited {
            fd: self.listener.as_fd(),
            read: self.callers.len() < CALLERS_MAX,
            write: false,
        }];
        let present = self.callers.values().filter(|caller| !caller.is_abandoned());
        awaited.extend(present.map(|caller| caller.awaited(room)));
        awaited
    }

    /// Takes note of which of [`Steps::awaited`] have left, before anything else changes.
    pub fn note_gone(&mut self, gone: &[bool]) {
        // Callers are listed after the listener, in their order.
        let present = self.callers.values_mut().filter(|caller| !caller.is_abandoned());
        for (caller, gone) in present.zip(gone.iter().skip(1)) {
            caller.gone |= gone;
        }
    }

    /// Serves whoever has called.
    pub fn serve(&mut self, channel: &mut Channel, gateway: Option<&Registration>) {
        while self.callers.len() < CALLERS_MAX
            && let Ok((stream, _)) = self.listener.accept()
        {
            if stream.set_nonblocking(true).is_ok() {
                self.callers.insert(self.next_caller, Caller::new(stream));
                self.next_caller += 1;
            }
        }
        if let Some(gateway) = gateway {
            self.hear_charges(&gateway.charged(), channel);
        }
        let numbers: Vec<u64> = self.callers.keys().copied().collect();
        for number in numbers {
            self.hear(number, channel, gateway);
            self.tell(number, channel);
        }
    }

    /// Hears one caller.
    fn hear(&mut self, number: u64, channel: &mut Channel, gateway: Option<&Registration>) {
        loop {
            let Some(caller) = self.callers.get_mut(&number) else {
                return;
            };
            if channel.queued() >= QUEUE_MAX {
                return;
            }
            match caller.hear() {
                Heard::Nothing => break,
                Heard::Request(Request::Status) => {
                    caller.task = Task::Asking;
                    let _ = channel.queue(&FromRecorder::Report);
                }
                Heard::Request(Request::Step(command)) => self.admit(number, command, channel, gateway),
                Heard::Input(data) => {
                    if let Task::Running { step, .. } = caller.task {
                        order(channel, step, StepOrder::Input(BASE64.encode(data)));
                    }
                }
                Heard::InputEnd => {
                    if let Task::Running { step, .. } = caller.task {
                        order(channel, step, StepOrder::InputEnd);
                    }
                }
                Heard::Gone => return self.lose(number, channel),
            }
        }
        if let Some(caller) = self.callers.get_mut(&number)
            && let Task::Charging { until, command, .. } = &caller.task
            && Instant::now() > *until
        {
            let argv = command.argv.clone();
            self.refuse(
                number,
                &argv,
                "GatewayUnavailable",
                "the egress gateway, which counts the steps of this sandbox, did not answer in time",
            );
        }
    }

    /// Tells a caller what there is to tell, and gives the supervisor room for as much.
    fn tell(&mut self, number: u64, channel: &mut Channel) {
        let Some(caller) = self.callers.get_mut(&number) else {
            return;
        };
        let passed = caller.tell();
        if let Task::Running { step, .. } = caller.task
            && passed > 0
        {
            order(channel, step, StepOrder::Credit(passed));
        }
        if caller.gone {
            self.lose(number, channel);
        } else if caller.is_done() {
            self.callers.remove(&number);
        }
    }

    /// A caller is gone: its step ends with it, unless it was detached.
    fn lose(&mut self, number: u64, channel: &mut Channel) {
        if let Some(caller) = self.callers.get_mut(&number) {
            match caller.task {
                Task::Running {
                    step,
                    detached: false,
                } => {
                    order(channel, step, StepOrder::Cancel);
                    caller.abandon();
                }
                // Its end is still to be heard of.
                Task::Running { detached: true, .. } => caller.abandon(),
                _ => {
                    self.callers.remove(&number);
                }
            }
        }
    }

    /// Whether a step may be taken, as far as the recorder can tell.
    fn admit(
        &mut self,
        number: u64,
        command: StepCommand,
        channel: &mut Channel,
        gateway: Option<&Registration>,
    ) {
        let argv = command.argv.clone();
        let Some(session) = self.session else {
            let message = "this sandbox runs a command; only one with spec.session takes steps";
            return self.refuse(number, &argv, "NotASession", message);
        };
        if let Some(reason) = self.ending {
            return self.refuse(
                number,
                &argv,
                "SessionEnded",
                &format!("the session is being ended: {reason}"),
            );
        }
        if let Err(message) = options::check(&command) {
            return self.refuse(number, &argv, "InvalidStep", &message);
        }
        if let Some((_, message)) = self.exhausted.clone() {
            return self.refuse(number, &argv, Reason::StepBudgetExceeded.as_str(), &message);
        }
        if self.open_steps() >= CONCURRENT_STEPS {
            let message = format!("{CONCURRENT_STEPS} steps run at once already");
            return self.refuse(number, &argv, "TooManySteps", &message);
        }
        if session.gateway_counts {
            let serial = self.ledger.next_serial();
            return match gateway.map(|gateway| gateway.charge(serial)) {
                Some(Ok(())) => {
                    if let Some(caller) = self.callers.get_mut(&number) {
                        caller.task = Task::Charging {
                            command: Box::new(command),
                            serial,
                            until: Instant::now() + CHARGE_PATIENCE,
                        };
                    }
                }
                _ => self.refuse(
                    number,
                    &argv,
                    "GatewayUnavailable",
                    "the egress gateway, which counts the steps of this sandbox, can't be reached",
                ),
            };
        }
        if session.steps.is_some_and(|most| self.ledger.taken() >= most) {
            return self.exhaust(
                number,
                &argv,
                &format!("the session has taken {} steps, its limit", self.ledger.taken()),
            );
        }
        self.start(number, command, channel);
    }

    /// Hears what the egress gateway says to steps that it was asked for.
    fn hear_charges(&mut self, charges: &[StepCharged], channel: &mut Channel) {
        for charge in charges {
            let asked = self
                .callers
                .iter()
                .find_map(|(number, caller)| match &caller.task {
                    Task::Charging { command, serial, .. } if *serial == charge.charged => {
                        Some((*number, command.as_ref().clone()))
                    }
                    _ => None,
                });
            // Whoever asked may be gone; what was charged stays charged.
            let Some((number, command)) = asked else { continue };
            if charge.granted && self.ending.is_none() {
                self.start(number, command, channel);
            } else if charge.reason == Reason::StepBudgetExceeded.as_str() {
                self.exhaust(number, &command.argv, &charge.message);
            } else if charge.granted {
                self.refuse(
                    number,
                    &command.argv,
                    "SessionEnded",
                    "the session is being ended",
                );
            } else {
                self.refuse(number, &command.argv, &charge.reason, &charge.message);
            }
        }
    }

    fn start(&mut self, number: u64, command: StepCommand, channel: &mut Channel) {
        let step = self.ledger.begin(&command.argv);
        self.see(Action::Step {
            step,
            pid: None,
            argv: command.argv.clone(),
        });
        if let Some(caller) = self.callers.get_mut(&number) {
            caller.task = Task::Running {
                step,
                detached: command.detached,
            };
        }
        order(channel, step, StepOrder::Start(Box::new(command)));
    }

    fn refuse(&mut self, number: u64, argv: &[String], reason: &str, message: &str) {
        self.ledger.refuse();
        self.see(Action::StepRefused {
            argv: argv.to_vec(),
            reason: reason.to_owned(),
        });
        if let Some(caller) = self.callers.get_mut(&number) {
            caller.finish(&Outcome::Refused {
                reason: reason.to_owned(),
                message: message.to_owned(),
            });
        }
    }

    /// Refuses a step for want of budget; the session ends with it.
    fn exhaust(&mut self, number: u64, argv: &[String], message: &str) {
        self.refuse(number, argv, Reason::StepBudgetExceeded.as_str(), message);
        self.exhausted
            .get_or_insert_with(|| (Instant::now() + LAST_STEPS, message.to_owned()));
    }

    /// Takes in what the supervisor says of a step.
    pub fn news(&mut self, step: u64, news: StepNews, channel: &mut Channel) {
        if let Some(number) = self.pass(step, news) {
            self.tell(number, channel);
        }
    }

    /// Passes news of a step on to its caller; which one that is.
    fn pass(&mut self, step: u64, news: StepNews) -> Option<u64> {
        let number = self.callers.iter().find_map(|(number, caller)| {
            matches!(caller.task, Task::Running { step: of, .. } if of == step).then_some(*number)
        });
        if let StepNews::Ended(end) = &news {
            self.note_end(step, end);
        }
        let caller = self.callers.get_mut(&number?)?;
        match news {
            StepNews::Started(_) => {
                if matches!(caller.task, Task::Running { detached: true, .. }) {
                    caller.outcome(&Outcome::Detached { step });
                }
            }
            StepNews::Output(data) => caller.output(false, &data),
            StepNews::Error(data) => caller.output(true, &data),
            StepNews::Credit(bytes) => caller.room += bytes as usize,
            StepNews::Ended(StepEnd { exit_code, message }) => {
                if matches!(caller.task, Task::Running { detached: true, .. }) && caller.has_outcome() {
                    caller.task = Task::Told;
                } else {
                    caller.finish(&Outcome::Ended { exit_code, message });
                }
            }
        }
        number
    }

    fn note_end(&mut self, step: u64, end: &StepEnd) {
        if let Some(duration_millis) = self.ledger.end(step, end.exit_code) {
            self.see(Action::StepEnd {
                step,
                exit_code: end.exit_code,
                duration_millis,
            });
        }
        self.quiet_since = Instant::now();
    }

    /// Answers who asked for the state.
    pub fn report(&mut self, state: &LiveState) {
        let value = serde_json::to_value(state).unwrap_or_default();
        for caller in self.callers.values_mut() {
            if matches!(caller.task, Task::Asking) {
                caller.finish(&Outcome::Status(value.clone()));
            }
        }
    }

    /// The run's state, with what the supervisor reported.
    pub fn state(&self, report: Report, started_at_ms: Option<u64>) -> LiveState {
        LiveState {
            started_at_ms,
            usage: report.usage,
            memory_bytes: report.memory_bytes,
            processes: report.processes,
            disk_bytes: report.disk_bytes,
            steps: self.summary(),
            ..LiveState::default()
        }
    }

    /// Why the session is over, if it is.
    pub fn due(&self) -> Option<(Reason, String)> {
        let session = self.session?;
        if self.ending.is_some() {
            return None;
        }
        let (running, waiting) = (self.ledger.running(), self.open_steps());
        if let Some((until, message)) = &self.exhausted {
            let over = running == 0 || Instant::now() >= *until;
            return over.then(|| (Reason::StepBudgetExceeded, message.clone()));
        }
        let idle = Duration::from_secs(session.idle_timeout_seconds.into());
        (running == 0 && waiting == 0 && self.quiet_since.elapsed() >= idle).then(|| {
            let message = format!("no step was taken for {} s, the idle timeout", idle.as_secs());
            (Reason::IdleTimeout, message)
        })
    }

    /// No more steps are taken.
    pub fn refuse_from_now(&mut self, reason: Reason) {
        self.ending.get_or_insert(reason);
    }

    /// The run is over: tells everybody who still waits. Takes no longer than this.
    pub fn close(mut self, reason: Reason, patience: Duration) -> Vec<Seen> {
        for step in self.ledger.open() {
            let end = StepEnd {
                exit_code: 128 + libc::SIGKILL,
                message: format!("the session ended: {reason}"),
            };
            self.pass(step, StepNews::Ended(end));
        }
        let outcome = Outcome::Refused {
            reason: "SessionEnded".to_owned(),
            message: format!("the run has ended: {reason}"),
        };
        for caller in self.callers.values_mut() {
            if !caller.has_outcome() {
                caller.finish(&outcome);
            }
        }
        let until = Instant::now() + patience;
        loop {
            self.callers.retain(|_, caller| {
                caller.tell();
                !caller.gone && !caller.is_done()
            });
            let left = until.saturating_duration_since(Instant::now());
            if self.callers.is_empty() || left.is_zero() {
                break;
            }
            let awaited: Vec<Awaited<'_>> = self
                .callers
                .values()
                .map(|caller| caller.awaited(false))
                .collect();
            sys::wait(&awaited, left.min(Duration::from_millis(100)));
        }
        let _ = std::fs::remove_file(agentsandbox_api::names::PATH_STEPS);
        self.actions
    }

    /// Steps in short, of a session.
    pub fn summary(&self) -> Option<StepsSummary> {
        self.session.map(|_| self.ledger.summary())
    }

    /// What was seen since the last call, for the log.
    pub fn take_actions(&mut self) -> Vec<Seen> {
        std::mem::take(&mut self.actions)
    }

    /// How long the loop may sleep.
    pub fn next_deadline(&self) -> Option<Duration> {
        let session = self.session?;
        let now = Instant::now();
        let idle = self.quiet_since + Duration::from_secs(session.idle_timeout_seconds.into());
        let idle = (self.ledger.running() == 0 && self.ending.is_none()).then_some(idle);
        let exhausted = self.exhausted.as_ref().map(|(until, _)| *until);
        let next = idle.into_iter().chain(exhausted).min()?;
        Some(next.saturating_duration_since(now).max(Duration::from_millis(10)))
    }

    /// Steps that run, and those that wait for the egress gateway's word.
    fn open_steps(&self) -> usize {
        let charging = self
            .callers
            .values()
            .filter(|caller| matches!(caller.task, Task::Charging { .. }));
        self.ledger.running() + charging.count()
    }

    fn see(&mut self, action: Action) {
        self.actions.push(Seen {
            at_ms: sys::now_ms(),
            action,
        });
    }
}

fn order(channel: &mut Channel, step: u64, order: StepOrder) {
    // Serialisation into memory can't fail; a broken connection is noticed where it is flushed.
    let _ = channel.queue(&FromRecorder::Step { step, order });
}
