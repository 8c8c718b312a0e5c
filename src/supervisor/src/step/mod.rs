//! `step` and `status`: what `kubectl exec` runs in the recorder container. They ask the recorder over its private
//! socket; the command itself runs in the agent container, below process 1.

pub mod frame;
pub mod options;

use std::io::{self, Read, Write};
use std::net::Shutdown;
use std::os::unix::net::UnixStream;
use std::path::Path;
use std::sync::mpsc::{Receiver, SyncSender, sync_channel};
use std::time::{Duration, Instant};

use agentsandbox_api::names::{PATH_RECORDER_STATE, PATH_STEPS};
use agentsandbox_api::step::{EXIT_REFUSED, PIECE_BYTES};

use frame::{Kind, Outcome, Request};
use options::Asked;

/// A caller that has sent nothing for so long has nothing under way.
const REST_PAUSE: Duration = Duration::from_millis(500);
/// Input that nobody wants is taken for so long at most.
const REST_MAX: Duration = Duration::from_secs(10);

/// Takes one step; returns the exit code.
pub fn step(arguments: &[&str]) -> i32 {
    match options::parse(arguments) {
        Ok(asked) => take(asked).unwrap_or_else(|refusal| refuse(&refusal)),
        Err(error) => refuse(&Refusal::new("InvalidStep", error)),
    }
}

/// Prints the run as it stands now; returns the exit code.
pub fn status() -> i32 {
    let asked = ask(&Request::Status).and_then(|mut recorder| {
        let answer = loop {
            match frame::read(&mut recorder) {
                Ok((Kind::Outcome, content)) => break content,
                Ok(_) => {}
                Err(_) => return Err(ended()),
            }
        };
        match serde_json::from_slice(&answer) {
            Ok(Outcome::Status(state)) => Ok(state),
            Ok(Outcome::Refused { reason, message }) => Err(Refusal { reason, message }),
            _ => Err(ended()),
        }
    });
    match asked {
        Ok(state) => {
            println!("{state}");
            0
        }
        Err(Refusal { reason, message }) => {
            eprintln!("sandbox-supervisor: status: {reason}: {message}");
            EXIT_REFUSED
        }
    }
}

/// Why a step can't be had.
struct Refusal {
    reason: String,
    message: String,
}

impl Refusal {
    fn new(reason: &str, message: impl Into<String>) -> Self {
        Self {
            reason: reason.to_owned(),
            message: message.into(),
        }
    }
}

fn refuse(refusal: &Refusal) -> i32 {
    eprintln!(
        "sandbox-supervisor: step refused: {}: {}",
        refusal.reason, refusal.message
    );
    EXIT_REFUSED
}

fn ended() -> Refusal {
    Refusal::new("SessionEnded", "the run has ended")
}

fn ask(request: &Request) -> Result<UnixStream, Refusal> {
    if !Path::new(PATH_RECORDER_STATE).is_dir() {
        return Err(Refusal::new(
            "NotARecorder",
            "this works in the container `recorder` of a sandbox's pod only",
        ));
    }
    let mut recorder = UnixStream::connect(PATH_STEPS).map_err(|_| ended())?;
    let content = serde_json::to_vec(request).unwrap_or_default();
    if content.len() > frame::FRAME_MAX {
        return Err(Refusal::new("InvalidStep", "the command is too long"));
    }
    frame::write(&mut recorder, Kind::Request, &content).map_err(|_| ended())?;
    Ok(recorder)
}

fn take(Asked { command, attended }: Asked) -> Result<i32, Refusal> {
    let stdin = command.stdin;
    let mut recorder = ask(&Request::Step(command))?;
    let (sign, signs) = sync_channel(1);
    if stdin {
        let mut writer = recorder.try_clone().map_err(|_| ended())?;
        std::thread::spawn(move || pass_input(&mut writer, &sign));
    } else {
        drop(sign);
    }
    if attended {
        std::thread::spawn(leave_with_caller);
    }
    let (mut out, mut err) = (io::stdout().lock(), io::stderr().lock());
    loop {
        let (kind, content) = frame::read(&mut recorder).map_err(|_| ended())?;
        let written = match kind {
            Kind::Output => out.write_all(&content).and_then(|()| out.flush()),
            Kind::Error => err.write_all(&content),
            Kind::Outcome => {
                drop(err);
                let ended = outcome(&content, &mut out);
                let _ = recorder.shutdown(Shutdown::Both);
                take_rest(&signs);
                return ended;
            }
            _ => Ok(()),
        };
        if written.is_err() {
            // Nobody reads any more: leaving ends the step.
            return Ok(128 + libc::SIGPIPE);
        }
    }
}

fn outcome(content: &[u8], out: &mut impl Write) -> Result<i32, Refusal> {
    match serde_json::from_slice(content) {
        Ok(Outcome::Ended { exit_code, message }) => {
            if !message.is_empty() {
                eprintln!("sandbox-supervisor: {message}");
            }
            Ok(exit_code)
        }
        Ok(Outcome::Detached { step }) => {
            let _ = writeln!(out, "{step}");
            Ok(0)
        }
        Ok(Outcome::Refused { reason, message }) => Err(Refusal { reason, message }),
        Ok(Outcome::Status(_)) | Err(_) => Err(ended()),
    }
}

/// Leaves, which ends the step, once the caller has closed standard input. Nothing else tells that a connection of
/// `kubectl exec` is gone: the runtime goes on to take output.
fn leave_with_caller() {
    let mut input = io::stdin().lock();
    let mut ignored = [0; 4096];
    loop {
        match input.read(&mut ignored) {
            Ok(length) if length > 0 => {}
            Err(error) if error.kind() == io::ErrorKind::Interrupted => {}
            _ => std::process::exit(128 + libc::SIGHUP),
        }
    }
}

/// Waits until the caller sends no more. A runtime that still has input for a process that has left may wait for ever, and
/// its caller with it.
fn take_rest(signs: &Receiver<()>) {
    let until = Instant::now() + REST_MAX;
    while signs.recv_timeout(REST_PAUSE).is_ok() && Instant::now() < until {}
}

/// Passes standard input on to its end, and goes on to take it when nobody wants it any more; each piece gives a sign. A
/// recorder that is gone is noticed by who waits for the outcome.
fn pass_input(recorder: &mut UnixStream, sign: &SyncSender<()>) {
    let mut wanted = true;
    let mut input = io::stdin().lock();
    let mut buffer = vec![0; PIECE_BYTES];
    loop {
        match input.read(&mut buffer) {
            Ok(0) => break,
            Ok(length) => {
                wanted = wanted && frame::write(recorder, Kind::Input, &buffer[..length]).is_ok();
                // One that nobody has looked at yet says as much.
                let _ = sign.try_send(());
            }
            Err(error) if error.kind() == io::ErrorKind::Interrupted => {}
            Err(_) => break,
        }
    }
    let _ = frame::write(recorder, Kind::InputEnd, &[]);
}
