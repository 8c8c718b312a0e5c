//! `sandbox-supervisor`: recorder, and process 1 of a sandbox.

mod archive;
mod install;
mod protocol;
mod recorder;
mod run;
mod step;
mod sys;
mod text;

use std::process::ExitCode;

const HELP: &str = "\
sandbox-supervisor: recorder, and process 1 of a sandbox

Usage:
  sandbox-supervisor record        probe the network, give the go, write the completion record (sidecar)
  sandbox-supervisor install DIR   copy this program to DIR/sandbox-supervisor
  sandbox-supervisor run           run the command that the recorder sends (process 1 of the agent container)
  sandbox-supervisor step [--timeout SECONDS] [--env NAME=VALUE]... [--workdir DIR]
                          [--stdin | --attended | --detach] -- COMMAND ...
                                   run a counted, recorded command in the sandbox (kubectl exec into `recorder`)
  sandbox-supervisor step --put DIR
                                   unpack a tar stream from standard input into DIR of the sandbox
  sandbox-supervisor step --get PATH
                                   write PATH of the sandbox to standard output, as a tar stream
  sandbox-supervisor status        print the run as it stands now, as JSON
  sandbox-supervisor --version

The operator puts these into the pods it makes; `record` and `run` refuse unless they are process 1.
";

fn main() -> ExitCode {
    let arguments: Vec<String> = std::env::args().skip(1).collect();
    let arguments: Vec<&str> = arguments.iter().map(String::as_str).collect();
    match arguments.as_slice() {
        ["record"] => process_one(recorder::record),
        ["run"] => process_one(run::run),
        ["install", directory] => match install::install(std::path::Path::new(directory)) {
            Ok(()) => ExitCode::SUCCESS,
            Err(error) => fail(&format!("install to {directory}: {error}")),
        },
        ["step", arguments @ ..] if !matches!(arguments, ["--help" | "-h"]) => exit(step::step(arguments)),
        ["unpack", folder] => exit(archive::unpack(folder)),
        ["pack", path] => exit(archive::pack(path)),
        ["status"] => exit(step::status()),
        ["--version" | "-V"] => {
            println!("sandbox-supervisor {}", env!("CARGO_PKG_VERSION"));
            ExitCode::SUCCESS
        }
        ["--help" | "-h" | "help"] | [_, "--help" | "-h"] => {
            print!("{HELP}");
            ExitCode::SUCCESS
        }
        _ => {
            eprint!("{HELP}");
            ExitCode::from(2)
        }
    }
}

/// Everything rests on being the first process of a pid namespace: nobody inside can then forge an end.
fn process_one(part: fn() -> i32) -> ExitCode {
    if std::process::id() != 1 {
        return fail("this must be process 1 of a container of its own");
    }
    exit(part())
}

fn exit(code: i32) -> ExitCode {
    ExitCode::from(u8::try_from(code & 0xff).unwrap_or(u8::MAX))
}

fn fail(message: &str) -> ExitCode {
    eprintln!("sandbox-supervisor: {message}");
    ExitCode::FAILURE
}
