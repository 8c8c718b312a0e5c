//! One process that asked for a step or for the state, at the other end of the socket.

use std::io::{ErrorKind, Read, Write};
use std::os::fd::AsFd;
use std::os::unix::net::UnixStream;

use agentsandbox_api::step::{PIECE_BYTES, WINDOW_BYTES};
use base64::Engine as _;
use base64::engine::general_purpose::STANDARD as BASE64;

use super::Task;
use crate::step::frame::{self, HEADER, Kind, Outcome, Request};
use crate::sys::Awaited;

/// A caller.
pub struct Caller {
    stream: UnixStream,
    incoming: Vec<u8>,
    outgoing: Vec<u8>,
    /// Output that is not passed on yet, in bytes.
    unpassed: usize,
    /// What it is about.
    pub task: Task,
    /// How much standard input the supervisor has room for, in bytes.
    pub room: usize,
    /// Whether it has left.
    pub gone: bool,
    has_outcome: bool,
    abandoned: bool,
}

/// What a caller says.
pub enum Heard {
    /// Nothing whole, or nothing there is room for.
    Nothing,
    /// What it asks for.
    Request(Request),
    /// Standard input.
    Input(Vec<u8>),
    /// Standard input has ended.
    InputEnd,
    /// It has left, or does not speak the protocol.
    Gone,
}

impl Caller {
    /// A caller that has said nothing yet.
    pub fn new(stream: UnixStream) -> Self {
        Self {
            stream,
            incoming: Vec::new(),
            outgoing: Vec::new(),
            unpassed: 0,
            task: Task::Unsaid,
            room: WINDOW_BYTES,
            gone: false,
            has_outcome: false,
            abandoned: false,
        }
    }

    /// What to wait for.
    pub fn awaited(&self, room: bool) -> Awaited<'_> {
        Awaited {
            fd: self.stream.as_fd(),
            read: room && self.wants_more(),
            write: !self.outgoing.is_empty(),
        }
    }

    fn wants_more(&self) -> bool {
        match self.task {
            Task::Unsaid => self.incoming.len() < HEADER + frame::FRAME_MAX,
            Task::Running { .. } => self.room > 0 && self.incoming.len() < HEADER + PIECE_BYTES,
            _ => false,
        }
    }

    /// The next thing it says.
    pub fn hear(&mut self) -> Heard {
        if self.abandoned {
            return Heard::Nothing;
        }
        loop {
            match self.take_frame() {
                Heard::Nothing if self.gone => return Heard::Gone,
                Heard::Nothing if self.wants_more() => {}
                heard => return heard,
            }
            let mut piece = [0; 16 << 10];
            match self.stream.read(&mut piece) {
                Ok(0) => return Heard::Gone,
                Ok(length) => self.incoming.extend_from_slice(&piece[..length]),
                Err(error) if error.kind() == ErrorKind::WouldBlock => return Heard::Nothing,
                Err(error) if error.kind() == ErrorKind::Interrupted => {}
                Err(_) => return Heard::Gone,
            }
        }
    }

    fn take_frame(&mut self) -> Heard {
        let (kind, length) = match frame::first(&self.incoming) {
            Ok(Some(first)) => first,
            Ok(None) => return Heard::Nothing,
            Err(_) => return Heard::Gone,
        };
        match (kind, &self.task) {
            (Kind::Input, Task::Running { .. }) if length > self.room => return Heard::Nothing,
            (Kind::Input | Kind::InputEnd, Task::Charging { .. }) => return Heard::Nothing,
            _ => {}
        }
        let content: Vec<u8> = self.incoming.drain(..HEADER + length).skip(HEADER).collect();
        match (kind, &self.task) {
            (Kind::Request, Task::Unsaid) => {
                serde_json::from_slice(&content).map_or(Heard::Gone, Heard::Request)
            }
            (Kind::Input, Task::Running { .. }) if length <= PIECE_BYTES => {
                self.room -= length;
                Heard::Input(content)
            }
            (Kind::InputEnd, Task::Running { .. }) => Heard::InputEnd,
            // Input that comes after the end, or for a step that was refused.
            (Kind::Input | Kind::InputEnd, Task::Told) => Heard::Nothing,
            _ => Heard::Gone,
        }
    }

    /// Adds output of its step.
    pub fn output(&mut self, is_error: bool, data: &str) {
        let data = BASE64.decode(data).unwrap_or_default();
        self.unpassed += data.len();
        if !self.abandoned {
            let kind = if is_error { Kind::Error } else { Kind::Output };
            frame::put(&mut self.outgoing, kind, &data);
        }
    }

    /// Adds the outcome, after which it is told nothing more.
    pub fn outcome(&mut self, outcome: &Outcome) {
        let content = serde_json::to_vec(outcome).unwrap_or_default();
        if !self.abandoned && !self.has_outcome {
            frame::put(&mut self.outgoing, Kind::Outcome, &content);
        }
        self.has_outcome = true;
    }

    /// Adds the outcome of what is over.
    pub fn finish(&mut self, outcome: &Outcome) {
        self.outcome(outcome);
        self.task = Task::Told;
    }

    /// Whether it was given its outcome.
    pub fn has_outcome(&self) -> bool {
        self.has_outcome
    }

    /// Nobody is there any more; only the step's own end is awaited.
    pub fn abandon(&mut self) {
        self.abandoned = true;
        self.gone = false;
        self.outgoing.clear();
    }

    /// Whether nobody is there any more.
    pub fn is_abandoned(&self) -> bool {
        self.abandoned
    }

    /// Whether nothing is left to do for it.
    pub fn is_done(&self) -> bool {
        matches!(self.task, Task::Told) && self.outgoing.is_empty()
    }

    /// Tells it what can be told without waiting. Returns how much output was passed on since the last time.
    pub fn tell(&mut self) -> u32 {
        let mut sent = 0;
        while sent < self.outgoing.len() {
            match self.stream.write(&self.outgoing[sent..]) {
                Ok(length) if length > 0 => sent += length,
                Err(error) if error.kind() == ErrorKind::WouldBlock => break,
                Err(error) if error.kind() == ErrorKind::Interrupted => {}
                _ => {
                    self.gone = true;
                    break;
                }
            }
        }
        self.outgoing.drain(..sent);
        if self.outgoing.is_empty() {
            u32::try_from(std::mem::take(&mut self.unpassed)).unwrap_or(u32::MAX)
        } else {
            0
        }
    }
}
