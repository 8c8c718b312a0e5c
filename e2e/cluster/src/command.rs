//! Runs programs to their end.

use std::ffi::OsStr;
use std::path::Path;
use std::process::{Command, Stdio};

use crate::error::{Error, InFile, Result};

/// Runs a program and returns what it printed; its error output is in the error.
pub fn run(command: &mut Command) -> Result<String> {
    let program = describe(command);
    let output = command
        .stdin(Stdio::null())
        .output()
        .in_file(Path::new(command.get_program()))?;
    if output.status.success() {
        return Ok(String::from_utf8_lossy(&output.stdout).into_owned());
    }
    let said = [output.stdout, output.stderr].concat();
    let said = String::from_utf8_lossy(&said);
    let last: Vec<&str> = said.lines().rev().take(12).collect();
    let output_text = last.into_iter().rev().collect::<Vec<_>>().join("\n");
    Err(Error::Command {
        program,
        status: output.status.to_string(),
        output: output_text,
    })
}

/// Runs a program with these arguments.
pub fn run_args<S: AsRef<OsStr>>(program: &str, arguments: impl IntoIterator<Item = S>) -> Result<String> {
    run(Command::new(program).args(arguments))
}

/// Runs a line of words, split at spaces.
pub fn run_words(line: &str) -> Result<String> {
    let mut words = line.split_whitespace();
    let program = words.next().unwrap_or_default();
    run_args(program, words)
}

/// Whether a program is on the PATH.
pub fn exists(program: &str) -> bool {
    let path = std::env::var("PATH").unwrap_or_default();
    path.split(':')
        .chain(["/usr/sbin", "/sbin"])
        .any(|folder| Path::new(folder).join(program).is_file())
}

fn describe(command: &Command) -> String {
    let words = std::iter::once(command.get_program()).chain(command.get_args());
    words
        .map(|word| word.to_string_lossy())
        .collect::<Vec<_>>()
        .join(" ")
        .chars()
        .take(300)
        .collect()
}
