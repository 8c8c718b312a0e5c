//! The recorder: a sidecar that probes the network, checks the sandbox's confinement, gives the go, and writes the
//! completion record where no code of the user's can.

mod environment;
mod log;
mod probe;
mod record;
mod register;
mod startup;
mod steps;

use std::fs::OpenOptions;
use std::net::{Ipv4Addr, TcpListener};
use std::os::fd::AsFd;
use std::sync::Arc;
use std::sync::atomic::{AtomicBool, Ordering};
use std::sync::mpsc::{Receiver, TryRecvError, channel};
use std::time::{Duration, Instant};

use agentsandbox_api::action::{Action, Capture, Means};
use agentsandbox_api::isolation::{IsolationLevel, observed_level};
use agentsandbox_api::names;
use agentsandbox_api::reason::Reason;
use agentsandbox_api::run::{
    CompletionRecord, Ended, Evidence, FileSpec, FromRecorder, FromSupervisor, LiveState, MeasuredUsage,
    ObservedIsolation, ObservedNetwork, RECORD_VERSION, RequiredCapture, RunSpec,
};
use base64::Engine as _;
use base64::engine::general_purpose::STANDARD as BASE64;

use crate::protocol::{Channel, FROM_SUPERVISOR_MAX, Received};
use crate::sys::{self, Awaited, Signals};
use log::Log;
use probe::Round;
use register::Registration;
use steps::Steps;

/// Between two rounds of the probe while a destination is still open.
const RETRY: Duration = Duration::from_millis(100);
/// One file of a `ConfigMap`, and all of them, in bytes. A `ConfigMap` holds at most 1 MiB.
const MOUNTED_FILES_MAX: u64 = 1 << 20;
/// From SIGTERM on, how long the supervisor may take to report: below the pod's grace.
const LAST_WORDS: Duration = Duration::from_secs(8);
/// How long the supervisor may take to say what it captures.
const CAPTURE_TIMEOUT: Duration = Duration::from_secs(30);
/// How long the loop sleeps at most while the log's pipe is stalled.
const STALLED_TICK: Duration = Duration::from_millis(20);
/// How long callers whose steps the run's end has ended may take to hear of it.
const FAREWELL: Duration = Duration::from_secs(1);
/// How long the loop sleeps at most.
const TICK: Duration = Duration::from_millis(500);

/// Records one run; returns when the kubelet asks for it.
pub fn record() -> i32 {
    sys::forbid_dumping();
    let Ok(signals) = Signals::take(&[libc::SIGTERM]) else {
        return 1;
    };
    let spec = match read_spec() {
        Ok(spec) => spec,
        Err(error) => {
            eprintln!("sandbox-supervisor: the run spec can't be read: {error}");
            return 1;
        }
    };
    let recorder = Recorder::new(spec);
    let marked = OpenOptions::new()
        .write(true)
        .create_new(true)
        .open(format!("{}/begun", names::PATH_RECORDER_STATE));
    if marked.is_err() {
        // Somebody or something ended the first recorder: what happened since nobody saw.
        return recorder.refuse_second_start(&signals);
    }
    recorder.run(&signals)
}

fn read_spec() -> Result<RunSpec, String> {
    let mut text = String::new();
    for index in 0.. {
        match std::env::var(format!("{}{index}", names::ENV_RUN_PREFIX)) {
            Ok(piece) => text.push_str(&piece),
            Err(_) => break,
        }
    }
    let json = BASE64.decode(text).map_err(|error| error.to_string())?;
    serde_json::from_slice(&json).map_err(|error| error.to_string())
}

struct Recorder {
    spec: RunSpec,
    pod_uid: String,
    begun: Instant,
    started: Arc<AtomicBool>,
    network: ObservedNetwork,
    isolation: Option<ObservedIsolation>,
    started_at_ms: Option<u64>,
    errors_in_a_row: u32,
    /// Whether the last round found everything closed that must be.
    closed: bool,
    /// What the last round found closed and must be open: the egress gateway.
    unreachable: Option<String>,
    /// The registration at the egress gateway, if the policy needs one.
    gateway: Option<Result<Registration, String>>,
    /// The certificate that the supervisor was given last.
    certificate: Option<String>,
    /// The action log.
    log: Log,
    /// Messages of actions whose supervisor does not know yet that it may send more.
    unanswered: u32,
    /// Whoever asks for steps or the run's state; absent if the socket could not be made.
    steps: Option<Steps>,
}

/// What the recorder decided before the start.
enum Verdict {
    Go,
    NoGo(Reason, String),
}

impl Recorder {
    fn new(spec: RunSpec) -> Self {
        let pod_uid = std::env::var(names::ENV_POD_UID).unwrap_or_default();
        let begin = Action::Begin {
            namespace: spec.namespace.clone(),
            sandbox: spec.sandbox.clone(),
            pod_uid: pod_uid.clone(),
            run_id: spec.run_id.clone(),
            policy: spec.policy.clone(),
            capture: Capture::default(),
        };
        Self {
            spec,
            pod_uid,
            log: Log::start(begin, std::io::stdout()),
            unanswered: 0,
            begun: Instant::now(),
            started: Arc::new(AtomicBool::new(false)),
            network: ObservedNetwork {
                isolated_at_ms: None,
                rounds: 0,
                probes: std::collections::BTreeMap::new(),
            },
            isolation: None,
            started_at_ms: None,
            errors_in_a_row: 0,
            closed: false,
            unreachable: None,
            gateway: None,
            certificate: None,
            steps: None,
        }
    }

    fn refuse_second_start(&self, signals: &Signals) -> i32 {
        record::write(&self.early_end(
            Reason::SandboxLost,
            "the recorder was restarted during the run".to_owned(),
        ));
        wait_for_term(signals);
        0
    }

    fn run(mut self, signals: &Signals) -> i32 {
        if let Err(error) = startup::serve(names::PORT_STARTUP, self.started.clone()) {
            eprintln!("sandbox-supervisor: port {}: {error}", names::PORT_STARTUP);
            return 1;
        }
        let listener = match TcpListener::bind((Ipv4Addr::LOCALHOST, names::PORT_CONTROL)) {
            Ok(listener) if listener.set_nonblocking(true).is_ok() => listener,
            _ => {
                eprintln!("sandbox-supervisor: port {} can't be opened", names::PORT_CONTROL);
                return 1;
            }
        };
        self.steps = match Steps::listen(self.spec.session) {
            Ok(steps) => Some(steps),
            Err(error) => {
                eprintln!("sandbox-supervisor: {}: {error}", names::PATH_STEPS);
                None
            }
        };
        self.gateway = self
            .spec
            .gateway
            .as_ref()
            .map(|access| Registration::start(access, &self.pod_uid));
        let rounds = self.start_probing();
        let mut record = match self.meet(&listener, &rounds, signals) {
            Some(channel) => {
                // From here on nobody else can speak for the supervisor.
                drop(listener);
                self.watch(channel, &rounds, signals)
            }
            None => self.early_end(
                Reason::StartTimeout,
                "the supervisor never came; the agent container did not start".to_owned(),
            ),
        };
        let end = Action::End {
            reason: record.reason,
            exit_code: record.exit_code,
        };
        for seen in self.steps.iter_mut().flat_map(Steps::take_actions) {
            self.log.write(seen);
        }
        record.audit = Some(self.log.finish(end, log::PATIENCE));
        record::write(&record);
        if let Some(steps) = self.steps.take() {
            steps.close(record.reason, FAREWELL);
        }
        wait_for_term(signals);
        0
    }

    /// Probes in the background from the first moment, so that it overlaps the making of the agent container.
    fn start_probing(&self) -> Receiver<Round> {
        let (send, rounds) = channel();
        let (targets, interval) = (
            self.spec.probes.clone(),
            Duration::from_secs(self.spec.probe_interval_seconds.max(1).into()),
        );
        let host_ip = std::env::var(names::ENV_HOST_IP).unwrap_or_default();
        let started = self.started.clone();
        let probing = move || loop {
            let round = probe::round(&targets, &host_ip);
            // A gateway that is being replaced during the run is no reason to hurry.
            let settled = round.unreachable.is_empty() || started.load(Ordering::Acquire);
            let pause = if round.wrong.is_empty() && settled {
                interval
            } else {
                RETRY
            };
            if send.send(round).is_err() {
                return;
            }
            std::thread::sleep(pause);
        };
        let _ = std::thread::Builder::new().stack_size(128 << 10).spawn(probing);
        rounds
    }

    /// Waits for the supervisor's connection, as long as the pod lives.
    fn meet(
        &mut self,
        listener: &TcpListener,
        rounds: &Receiver<Round>,
        signals: &Signals,
    ) -> Option<Channel> {
        loop {
            match listener.accept() {
                Ok((stream, _)) => return Channel::new(stream, FROM_SUPERVISOR_MAX).ok(),
                Err(error) if error.kind() == std::io::ErrorKind::WouldBlock => {}
                Err(_) => return None,
            }
            self.hear_rounds(rounds);
            if has_term(signals) {
                return None;
            }
            sys::wait_readable(&[listener.as_fd(), signals.as_fd()], TICK);
        }
    }

    /// Takes in what the probe found; what is wrong now, if the last round counts.
    fn hear_rounds(&mut self, rounds: &Receiver<Round>) -> Option<String> {
        let mut wrong = None;
        loop {
            match rounds.try_recv() {
                Ok(round) => {
                    self.network.rounds += 1;
                    self.network.probes = round.outcomes;
                    self.unreachable = (!round.unreachable.is_empty()).then(|| round.unreachable.join(", "));
                    self.closed = round.wrong.is_empty();
                    if self.closed {
                        if self.unreachable.is_none() {
                            self.network.isolated_at_ms.get_or_insert_with(sys::now_ms);
                        }
                        self.errors_in_a_row = 0;
                        wrong = None;
                    } else {
                        // A probe that failed by itself proves nothing; three in a row prove that nothing is proven.
                        self.errors_in_a_row += 1;
                        if round.open || self.errors_in_a_row >= 3 {
                            wrong = Some(round.wrong.join(", "));
                        }
                    }
                }
                Err(TryRecvError::Empty) => return wrong,
                Err(TryRecvError::Disconnected) => return Some("the probe itself ended".to_owned()),
            }
        }
    }

    /// From the supervisor's first word to the end of the run.
    fn watch(
        &mut self,
        mut channel: Channel,
        rounds: &Receiver<Round>,
        signals: &Signals,
    ) -> CompletionRecord {
        let evidence = loop {
            self.hear_rounds(rounds);
            match channel.receive::<FromSupervisor>() {
                Received::Message(FromSupervisor::Hello(evidence)) => break evidence,
                Received::Nothing if !has_term(signals) => {
                    sys::wait_readable(&[channel.stream().as_fd(), signals.as_fd()], TICK);
                }
                _ => {
                    return self.early_end(
                        Reason::SandboxLost,
                        "the supervisor left without a word".to_owned(),
                    );
                }
            }
        };
        let verdict = match self.check(&evidence) {
            Verdict::Go if self.spec.session.is_some() && self.steps.is_none() => Verdict::NoGo(
                Reason::StartTimeout,
                "the recorder could not open its socket, by which steps come".to_owned(),
            ),
            Verdict::Go => match self.check_capture(&mut channel, signals) {
                Verdict::Go => self.await_isolation(rounds, signals),
                no_go @ Verdict::NoGo(..) => no_go,
            },
            no_go @ Verdict::NoGo(..) => no_go,
        };
        let command = match verdict {
            Verdict::Go => self.command(),
            Verdict::NoGo(reason, message) => Err((reason, message)),
        };
        let command = match command {
            Ok(command) => command,
            Err((reason, message)) => {
                let _ = channel.send(&FromRecorder::NoGo {
                    reason,
                    message: message.clone(),
                });
                return self.early_end(reason, message);
            }
        };
        if channel.send(&FromRecorder::Go(Box::new(command))).is_err() {
            return self.early_end(
                Reason::SandboxLost,
                "the supervisor left before the start".to_owned(),
            );
        }
        self.follow(&mut channel, rounds, signals)
    }

    /// Whether the sandbox is confined as it was built.
    fn check(&mut self, evidence: &Evidence) -> Verdict {
        let requirement = &self.spec.isolation;
        // Both containers must share one kernel; the weaker view counts.
        let level = observed_level(&evidence.kernel_release, requirement)
            .min(observed_level(&sys::kernel_release(), requirement));
        self.isolation = Some(ObservedIsolation {
            level,
            kernel_release: evidence.kernel_release.clone(),
            boot_id: evidence.boot_id.clone(),
        });
        if level < requirement.minimum {
            let message = format!(
                "observed isolation is {level} (kernel {}), the policy demands {}",
                evidence.kernel_release, requirement.minimum
            );
            return Verdict::NoGo(Reason::IsolationTooWeak, message);
        }
        let unexpected: Vec<&str> = evidence
            .writable_mounts
            .iter()
            .map(String::as_str)
            .filter(|path| !self.spec.command.writable.iter().any(|known| known == path))
            .collect();
        if !unexpected.is_empty() {
            let message = format!(
                "the image brings writable mounts of its own: {}",
                unexpected.join(", ")
            );
            return Verdict::NoGo(Reason::UnexpectedMount, message);
        }
        let mut excess = Vec::new();
        if evidence.uid != self.spec.command.uid {
            excess.push(format!(
                "user {} instead of {}",
                evidence.uid, self.spec.command.uid
            ));
        }
        if evidence.capabilities != 0 {
            excess.push(format!("capabilities {:#x}", evidence.capabilities));
        }
        if !evidence.no_new_privs {
            excess.push("no_new_privs is not set".to_owned());
        }
        // A shared kernel must filter system calls; one of the sandbox's own may leave that to the boundary.
        if evidence.seccomp == Some(0) && level == IsolationLevel::Container {
            excess.push("no seccomp filter".to_owned());
        }
        if evidence.service_account_token {
            excess.push("a service-account token is mounted".to_owned());
        }
        if excess.is_empty() {
            Verdict::Go
        } else {
            Verdict::NoGo(Reason::UnexpectedPrivilege, excess.join(", "))
        }
    }

    /// Hears what the supervisor captures, and checks it against what the policy demands.
    fn check_capture(&mut self, channel: &mut Channel, signals: &Signals) -> Verdict {
        let begun = Instant::now();
        loop {
            match channel.receive::<FromSupervisor>() {
                Received::Message(FromSupervisor::Capture(capture)) => {
                    self.log.captures(capture);
                    let missing = missing_capture(self.spec.audit, capture);
                    return if missing.is_empty() {
                        Verdict::Go
                    } else {
                        let message = format!(
                            "the policy demands capture of what this sandbox can't capture: {missing}"
                        );
                        Verdict::NoGo(Reason::AuditUnavailable, message)
                    };
                }
                Received::Nothing if begun.elapsed() < CAPTURE_TIMEOUT => {
                    if has_term(signals) {
                        return Verdict::NoGo(Reason::Stopped, "the pod is being deleted".to_owned());
                    }
                    sys::wait_readable(&[channel.stream().as_fd(), signals.as_fd()], TICK);
                }
                _ => {
                    let message = "the supervisor did not say what it captures".to_owned();
                    return Verdict::NoGo(Reason::AuditUnavailable, message);
                }
            }
        }
    }

    /// Waits for a round in which every destination was as it must be, and for the egress gateway to know this pod.
    fn await_isolation(&mut self, rounds: &Receiver<Round>, signals: &Signals) -> Verdict {
        let patience = Duration::from_secs(self.spec.probe_timeout_seconds.into());
        loop {
            let wrong = self.hear_rounds(rounds);
            let trouble = self.gateway_trouble();
            if self.network.isolated_at_ms.is_some() && self.closed && trouble.is_none() {
                return Verdict::Go;
            }
            if self.begun.elapsed() > patience {
                if let Some(trouble) = trouble.filter(|_| self.closed) {
                    let message = format!("the egress gateway did not accept this sandbox: {trouble}");
                    return Verdict::NoGo(Reason::StartTimeout, message);
                }
                let wrong = wrong.unwrap_or_else(|| {
                    let seen: Vec<String> = self
                        .network
                        .probes
                        .iter()
                        .map(|(name, outcome)| format!("{name} ({outcome:?})"))
                        .collect();
                    format!("no round passed: {}", seen.join(", "))
                });
                let message = format!("not closed after {} s: {wrong}", patience.as_secs());
                return Verdict::NoGo(Reason::NetworkNotIsolated, message);
            }
            if has_term(signals) {
                return Verdict::NoGo(Reason::Stopped, "the pod is being deleted".to_owned());
            }
            std::thread::sleep(Duration::from_millis(5));
        }
    }

    /// Why the egress gateway, if there is one, does not serve this pod.
    fn gateway_trouble(&self) -> Option<String> {
        let standing = match self.gateway.as_ref()? {
            Ok(registration) => registration.standing(),
            Err(error) => return Some(error.clone()),
        };
        match (&self.unreachable, standing.bound) {
            (None, true) => None,
            (Some(unreachable), _) => Some(format!("it can't be reached: {unreachable}")),
            (None, false) if standing.trouble.is_empty() => Some("it has not answered yet".to_owned()),
            (None, false) => Some(standing.trouble),
        }
    }

    /// Passes the certificate of a gateway that has replaced another one on to the supervisor.
    fn renew_trust(&mut self, channel: &mut Channel) {
        let Some(Ok(registration)) = &self.gateway else {
            return;
        };
        let standing = registration.standing();
        if standing.bound && standing.certificate != self.certificate {
            self.certificate.clone_from(&standing.certificate);
            if let Some(certificate) = standing.certificate {
                let _ = channel.queue(&FromRecorder::Trust { certificate });
            }
        }
    }

    /// The command, with the way to the egress gateway and the files of the mounted `ConfigMap`s.
    fn command(&mut self) -> Result<agentsandbox_api::run::CommandSpec, (Reason, String)> {
        let mut command = self.spec.command.clone();
        command.audit = self.spec.audit;
        if let (Some(access), Some(Ok(registration))) = (&self.spec.gateway, &self.gateway) {
            environment::add(&mut command.env, access, registration.run_token());
            command.certificate = registration.standing().certificate;
            self.certificate.clone_from(&command.certificate);
        }
        let mut room = MOUNTED_FILES_MAX;
        for mounted in &self.spec.mounted_files {
            let unreadable = |error: std::io::Error| {
                (
                    Reason::StartTimeout,
                    format!("files for {}: {error}", mounted.path),
                )
            };
            for entry in std::fs::read_dir(&mounted.source).map_err(unreadable)? {
                let entry = entry.map_err(unreadable)?;
                let name = entry.file_name().to_string_lossy().into_owned();
                // The kubelet's own links to the current version.
                if name.starts_with("..") {
                    continue;
                }
                let content = std::fs::read(entry.path()).map_err(unreadable)?;
                room = room.checked_sub(content.len() as u64).ok_or_else(|| {
                    (
                        Reason::StartTimeout,
                        format!(
                            "files for {} hold more than {MOUNTED_FILES_MAX} bytes",
                            mounted.path
                        ),
                    )
                })?;
                let path = format!("{}/{name}", mounted.path.trim_end_matches('/'));
                command.files.push(FileSpec {
                    path,
                    content: BASE64.encode(content),
                    mode: mounted.mode,
                });
            }
        }
        Ok(command)
    }

    /// Follows the run until the supervisor reports its end, or is gone.
    fn follow(
        &mut self,
        channel: &mut Channel,
        rounds: &Receiver<Round>,
        signals: &Signals,
    ) -> CompletionRecord {
        let mut last_words = None;
        let mut stopped = false;
        loop {
            let mut taken = false;
            match channel.receive::<FromSupervisor>() {
                Received::Message(FromSupervisor::Started { at_ms }) => {
                    self.started_at_ms = Some(at_ms);
                    self.started.store(true, Ordering::Release);
                    if let Some(steps) = &mut self.steps {
                        steps.begin();
                    }
                    continue;
                }
                Received::Message(FromSupervisor::Step { step, news }) => {
                    if let Some(steps) = &mut self.steps {
                        steps.news(step, news, channel);
                    }
                    let _ = channel.flush();
                    continue;
                }
                Received::Message(FromSupervisor::Report(report)) => {
                    if let Some(steps) = &mut self.steps {
                        steps.report(&LiveState {
                            audit: self.log.summary(),
                            ..steps.state(*report, self.started_at_ms)
                        });
                    }
                    continue;
                }
                // An end of the loop's round for each batch: signals and probes are heard in a flood as well.
                Received::Message(FromSupervisor::Actions { actions }) => {
                    taken = true;
                    self.unanswered += 1;
                    for seen in actions {
                        self.log.write(seen);
                    }
                }
                Received::Message(FromSupervisor::Ended(ended)) => return self.end(*ended),
                Received::Message(FromSupervisor::Hello(_) | FromSupervisor::Capture(_))
                | Received::Broken => {
                    return self.early_end(
                        Reason::SandboxLost,
                        "the supervisor was ended without a report".to_owned(),
                    );
                }
                Received::Nothing => {}
            }
            if let Some(wrong) = self.hear_rounds(rounds)
                && !stopped
            {
                stopped = true;
                let message = format!("a forbidden destination became reachable during the run: {wrong}");
                self.stop(channel, Reason::NetworkNotIsolated, message);
            }
            self.answer_actions(channel);
            self.renew_trust(channel);
            if let Some((reason, message)) = self.serve_steps(channel).or_else(|| self.exhausted())
                && !stopped
            {
                stopped = true;
                self.stop(channel, reason, message);
            }
            // A connection that is broken is noticed where it is read.
            let _ = channel.flush();
            if has_term(signals) {
                last_words.get_or_insert_with(|| Instant::now() + LAST_WORDS);
            }
            if last_words.is_some_and(|until| Instant::now() > until) {
                return self.early_end(
                    Reason::SandboxLost,
                    "the supervisor did not report its end".to_owned(),
                );
            }
            if taken {
                continue;
            }
            self.wait(channel, signals);
        }
    }

    /// Has the supervisor end the run.
    fn stop(&mut self, channel: &mut Channel, reason: Reason, message: String) {
        if let Some(steps) = &mut self.steps {
            steps.refuse_from_now(reason);
        }
        let _ = channel.queue(&FromRecorder::Stop { reason, message });
    }

    /// Serves who asks for steps, if anybody can; why the session is over, if it is.
    fn serve_steps(&mut self, channel: &mut Channel) -> Option<(Reason, String)> {
        let steps = self.steps.as_mut()?;
        let gateway = self.gateway.as_ref().and_then(|gateway| gateway.as_ref().ok());
        steps.serve(channel, gateway);
        for seen in steps.take_actions() {
            self.log.write(seen);
        }
        steps.due().filter(|_| self.started_at_ms.is_some())
    }

    /// The budget that the run has used up, if the gateway says so. It may name no other reason.
    fn exhausted(&self) -> Option<(Reason, String)> {
        let gateway = self.gateway.as_ref()?.as_ref().ok()?;
        let told = gateway.exhausted()?;
        Some((told.exhausted, told.message()?))
    }

    /// Asks for more actions once those that came have room in the log: while its pipe is stalled, the supervisor sends no
    /// more, and the command waits.
    fn answer_actions(&mut self, channel: &mut Channel) {
        if self.unanswered > 0 && self.log.has_room() {
            let messages = std::mem::take(&mut self.unanswered);
            let _ = channel.queue(&FromRecorder::Taken { messages });
        }
    }

    /// Waits for something to do.
    fn wait(&mut self, channel: &Channel, signals: &Signals) {
        let mut awaited = vec![
            Awaited {
                fd: channel.stream().as_fd(),
                read: true,
                write: channel.queued() > 0,
            },
            Awaited::read(signals.as_fd()),
        ];
        if let Some(Ok(registration)) = &self.gateway {
            awaited.push(Awaited::read(registration.as_fd()));
        }
        let others = awaited.len();
        let mut patience = if self.unanswered > 0 { STALLED_TICK } else { TICK };
        if let Some(steps) = &self.steps {
            awaited.extend(steps.awaited(channel));
            patience = patience.min(steps.next_deadline().unwrap_or(patience));
        }
        let gone = sys::wait(&awaited, patience).split_off(others);
        if let Some(steps) = &mut self.steps {
            steps.note_gone(&gone);
        }
    }

    fn end(&mut self, ended: Ended) -> CompletionRecord {
        self.log.missed(ended.unreadable, ended.lost);
        CompletionRecord {
            reason: ended.reason.unwrap_or(Reason::SandboxLost),
            exit_code: Some(ended.exit_code),
            signal: ended.signal,
            message: ended.message,
            stderr_tail: ended.stderr_tail,
            output: ended.output,
            usage: ended.usage,
            ..self.early_end(Reason::SandboxLost, String::new())
        }
    }

    /// The record of a run of which the supervisor reported no end.
    fn early_end(&self, reason: Reason, message: String) -> CompletionRecord {
        CompletionRecord {
            version: RECORD_VERSION,
            sandbox_uid: self.spec.sandbox_uid.clone(),
            pod_uid: self.pod_uid.clone(),
            run_id: self.spec.run_id.clone(),
            started: self.started_at_ms.is_some(),
            started_at_ms: self.started_at_ms,
            ended_at_ms: Some(sys::now_ms()),
            reason,
            exit_code: None,
            signal: None,
            message,
            stderr_tail: String::new(),
            output: None,
            isolation: self.isolation.clone(),
            network: (self.network.rounds > 0).then(|| self.network.clone()),
            usage: MeasuredUsage::default(),
            audit: None,
            steps: self.steps.as_ref().and_then(Steps::summary),
        }
    }
}

/// What is demanded and not captured, by name.
fn missing_capture(required: RequiredCapture, capture: Capture) -> String {
    [
        ("commands", required.commands, capture.commands),
        ("files", required.files, capture.files),
        ("network", required.network, capture.network),
    ]
    .into_iter()
    .filter(|(_, required, means)| *required && *means == Means::None)
    .map(|(name, ..)| name)
    .collect::<Vec<_>>()
    .join(", ")
}

fn has_term(signals: &Signals) -> bool {
    let mut found = false;
    while let Some(signal) = signals.next() {
        found |= signal.number == libc::SIGTERM;
    }
    found
}

/// The recorder never exits before it is asked to: an end of its own would be taken for the run's.
fn wait_for_term(signals: &Signals) {
    while !has_term(signals) {
        sys::wait_readable(&[signals.as_fd()], Duration::from_mins(1));
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn demanded_capture_that_is_missing_is_named() {
        let required = RequiredCapture {
            commands: true,
            files: true,
            network: false,
        };
        let none = Capture::default();
        assert_eq!(missing_capture(required, none), "commands, files");
        assert_eq!(missing_capture(RequiredCapture::default(), none), "");
        let commands = Capture {
            commands: Means::Ptrace,
            ..none
        };
        assert_eq!(missing_capture(required, commands), "files");
    }
}
