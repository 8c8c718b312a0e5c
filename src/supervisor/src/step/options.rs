//! The command line of `step`.

use agentsandbox_api::names::{PATH_SUPERVISOR, is_reserved_env};
use agentsandbox_api::step::{COMMAND_MAX_BYTES, StepCommand};

/// What a caller asks for.
#[derive(Debug)]
pub struct Asked {
    /// The step.
    pub command: StepCommand,
    /// Whether standard input is held open by the caller as long as it is there, and is no input of the step.
    pub attended: bool,
}

/// What the arguments ask for, or what is wrong with them.
pub fn parse(arguments: &[&str]) -> Result<Asked, String> {
    let mut attended = false;
    let mut command = StepCommand::default();
    let mut copy = None;
    let mut rest = arguments.iter();
    while let Some(option) = rest.next() {
        let mut value = || {
            rest.next()
                .map(|value| (*value).to_owned())
                .ok_or(format!("{option} needs a value"))
        };
        match *option {
            "--timeout" => {
                let value = value()?;
                let seconds = value.parse().ok().filter(|seconds| *seconds > 0);
                command.timeout_seconds =
                    Some(seconds.ok_or(format!("--timeout {value} is no number of seconds"))?);
            }
            "--env" => {
                let entry = value()?;
                let (name, value) = entry
                    .split_once('=')
                    .ok_or(format!("--env {entry} is not NAME=VALUE"))?;
                command.env.insert(name.to_owned(), value.to_owned());
            }
            "--workdir" => command.working_dir = Some(value()?),
            "--stdin" => command.stdin = true,
            "--attended" => attended = true,
            "--detach" => command.detached = true,
            "--put" => copy = Some(("unpack", value()?)),
            "--get" => copy = Some(("pack", value()?)),
            "--" => {
                command.argv = rest.by_ref().map(|argument| (*argument).to_owned()).collect();
            }
            other => return Err(format!("{other} is no option; the command comes after --")),
        }
    }
    if let Some((direction, path)) = copy {
        if !command.argv.is_empty() || command.stdin || command.detached {
            return Err("--put and --get take no command, --stdin or --detach".to_owned());
        }
        command.stdin = direction == "unpack";
        command.argv = vec![PATH_SUPERVISOR.to_owned(), direction.to_owned(), path];
    }
    if attended && (command.stdin || command.detached) {
        return Err("--attended goes with neither --stdin, --put nor --detach".to_owned());
    }
    check(&command)?;
    Ok(Asked { command, attended })
}

/// Whether a command may be run at all. The recorder asks this again: whoever speaks to its socket may be another.
pub fn check(command: &StepCommand) -> Result<(), String> {
    if command.argv.first().is_none_or(String::is_empty) {
        return Err("there is no command; it comes after --".to_owned());
    }
    if command.detached && command.stdin {
        return Err("--detach leaves nobody to send --stdin".to_owned());
    }
    if let Some(folder) = command.working_dir.as_ref().filter(|path| !path.starts_with('/')) {
        return Err(format!("--workdir {folder} is not absolute"));
    }
    for name in command.env.keys() {
        if name.is_empty() || name.contains('=') || is_reserved_env(name) {
            return Err(format!("--env {name} is a reserved name, or none"));
        }
    }
    let texts = || {
        command
            .argv
            .iter()
            .chain(command.env.keys())
            .chain(command.env.values())
            .chain(&command.working_dir)
    };
    if texts().any(|text| text.contains('\0')) {
        return Err("a NUL character can't be passed".to_owned());
    }
    let bytes: usize = texts().map(|text| text.len() + 1).sum();
    if bytes > COMMAND_MAX_BYTES {
        return Err(format!(
            "command and environment hold {bytes} bytes, at most {COMMAND_MAX_BYTES} are possible: send more by --stdin or --put"
        ));
    }
    Ok(())
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn options_come_before_the_command() {
        let Asked { command, attended } = parse(&[
            "--timeout",
            "5",
            "--env",
            "A=b=c",
            "--workdir",
            "/tmp",
            "--stdin",
            "--",
            "echo",
            "--stdin",
            "--",
        ])
        .unwrap();
        assert!(!attended);
        assert_eq!(command.argv, ["echo", "--stdin", "--"]);
        assert_eq!(command.env["A"], "b=c");
        assert_eq!(
            (
                command.timeout_seconds,
                command.working_dir.as_deref(),
                command.stdin,
                command.detached
            ),
            (Some(5), Some("/tmp"), true, false)
        );
        let put = parse(&["--put", "/workspace/x"]).unwrap().command;
        assert_eq!(put.argv, [PATH_SUPERVISOR, "unpack", "/workspace/x"]);
        assert!(put.stdin);
        let get = parse(&["--attended", "--get", "a"]).unwrap();
        assert!(!get.command.stdin && get.attended);
    }

    #[test]
    fn what_can_not_be_run_is_named() {
        let long = "x".repeat(COMMAND_MAX_BYTES);
        for (arguments, part) in [
            (vec![], "no command"),
            (vec!["echo"], "echo is no option"),
            (vec!["--"], "no command"),
            (vec!["--", ""], "no command"),
            (vec!["--timeout", "0", "--", "x"], "--timeout 0"),
            (vec!["--timeout"], "needs a value"),
            (vec!["--env", "A", "--", "x"], "not NAME=VALUE"),
            (vec!["--env", "https_proxy=x", "--", "x"], "reserved"),
            (vec!["--env", "SANDBOX_STEP=7", "--", "x"], "reserved"),
            (vec!["--env", "LD_PRELOAD=/x", "--", "x"], "reserved"),
            (vec!["--env", "=x", "--", "x"], "reserved"),
            (vec!["--workdir", "x", "--", "x"], "not absolute"),
            (vec!["--detach", "--stdin", "--", "x"], "--detach"),
            (vec!["--put", "x", "--", "y"], "no command"),
            (vec!["--attended", "--stdin", "--", "x"], "--attended"),
            (vec!["--attended", "--put", "x"], "--attended"),
            (vec!["--", &long], "at most"),
        ] {
            let error = parse(&arguments).unwrap_err();
            assert!(error.contains(part), "{arguments:?}: {error}");
        }
    }
}
