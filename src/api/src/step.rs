//! Steps: what the recorder asks of the supervisor for each, and what it hears back.
//!
//! Steps share the one connection. Nobody sends data that the other side has not given room for ([`WINDOW_BYTES`] at
//! first, then by credit), so a stalled step delays neither the others nor the end of the run.

use std::collections::BTreeMap;

use serde::{Deserialize, Serialize};

/// Most bytes of a step that are under way, each way.
pub const WINDOW_BYTES: usize = 64 << 10;
/// Most bytes of one message.
pub const PIECE_BYTES: usize = 32 << 10;
/// Most steps at once.
pub const CONCURRENT_STEPS: usize = 64;
/// Most bytes of a step's arguments, environment and working directory together.
pub const COMMAND_MAX_BYTES: usize = 96 << 10;
/// Exit code of a step that was refused, or could not be had.
pub const EXIT_REFUSED: i32 = 125;
/// Exit code of a step that its own time limit ended.
pub const EXIT_TIMEOUT: i32 = 124;

/// What a step runs.
#[derive(Clone, Debug, Default, PartialEq, Eq, Serialize, Deserialize)]
#[serde(rename_all = "camelCase")]
pub struct StepCommand {
    /// Program and arguments.
    pub argv: Vec<String>,
    /// Entries of the environment, beside the session's own.
    #[serde(default)]
    pub env: BTreeMap<String, String>,
    /// Working directory, if it is not the session's.
    #[serde(default, skip_serializing_if = "Option::is_none")]
    pub working_dir: Option<String>,
    /// Whether standard input will come; it is empty otherwise.
    #[serde(default)]
    pub stdin: bool,
    /// Whether output goes to the container's log instead of the caller.
    #[serde(default)]
    pub detached: bool,
    /// The step's own time limit, in seconds.
    #[serde(default, skip_serializing_if = "Option::is_none")]
    pub timeout_seconds: Option<u32>,
}

/// From the recorder to the supervisor, about one step.
#[derive(Clone, Debug, PartialEq, Eq, Serialize, Deserialize)]
#[serde(rename_all = "camelCase")]
pub enum StepOrder {
    /// Start it.
    Start(Box<StepCommand>),
    /// Its standard input, base64.
    Input(String),
    /// Its standard input has ended.
    InputEnd,
    /// So many bytes of its output have been passed on: there is room for as many.
    Credit(u32),
    /// End it, with every process it started.
    Cancel,
}

/// From the supervisor to the recorder, about one step.
#[derive(Clone, Debug, PartialEq, Eq, Serialize, Deserialize)]
#[serde(rename_all = "camelCase")]
pub enum StepNews {
    /// Its process was started.
    Started(u32),
    /// Of its standard output, base64.
    Output(String),
    /// Of its standard error, base64.
    Error(String),
    /// So many bytes of its standard input were taken: there is room for as many.
    Credit(u32),
    /// It has ended; all of its output came before.
    Ended(StepEnd),
}

/// How a step ended.
#[derive(Clone, Debug, Default, PartialEq, Eq, Serialize, Deserialize)]
#[serde(rename_all = "camelCase")]
pub struct StepEnd {
    /// Exit code for the caller: 128 + signal if a signal ended it.
    pub exit_code: i32,
    /// Why it could not be started, if so.
    #[serde(default, skip_serializing_if = "String::is_empty")]
    pub message: String,
}
