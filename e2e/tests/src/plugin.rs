//! `kubectl sandbox`, as a user calls it.

use std::path::{Path, PathBuf};
use std::process::{Command, Output, Stdio};

use crate::Harness;
use crate::harness::{HarnessError, Result};
use crate::scenarios::Scenario;

/// The plugin, which `e2e/test.sh` and `make demo` build beside the tests and the demo.
pub fn plugin() -> Result<Command> {
    let this = std::env::current_exe().map_err(HarnessError::Program)?;
    // Tests are in a folder below.
    let mut programs = this
        .ancestors()
        .skip(1)
        .take(2)
        .map(|folder| folder.join("kubectl-sandbox"));
    match programs.find(|program| program.exists()) {
        Some(program) => Ok(Command::new(program)),
        None => Err(HarnessError::Kubectl(
            "the plugin is missing: cargo build -p kubectl-sandbox".to_owned(),
        )),
    }
}

/// Text that a program printed.
#[must_use]
pub fn text(bytes: &[u8]) -> String {
    String::from_utf8_lossy(bytes).into_owned()
}

/// A folder of this machine for one test, empty unless the test made it before.
pub fn folder(name: &str) -> Result<PathBuf> {
    let folder = std::env::temp_dir().join(format!("plugin-{name}-{}", std::process::id()));
    std::fs::create_dir_all(&folder).map_err(HarnessError::Program)?;
    Ok(folder)
}

/// A file of a folder, as an argument.
#[must_use]
pub fn path(folder: &Path, name: &str) -> String {
    folder.join(name).display().to_string()
}

impl Harness {
    /// The plugin in the harness's namespace, without standard input.
    pub fn plugin(&self, arguments: &[&str]) -> Result<Command> {
        let mut command = plugin()?;
        command
            .args(["-n", &self.namespace])
            .args(arguments)
            .env("KUBECONFIG", self.cluster.kubeconfig())
            .stdin(Stdio::null());
        Ok(command)
    }

    /// Runs the plugin: exit code, standard output, standard error.
    pub fn call(&self, arguments: &[&str]) -> Result<(i32, String, String)> {
        let output: Output = self.plugin(arguments)?.output().map_err(HarnessError::Program)?;
        let code = output.status.code().unwrap_or(-1);
        Ok((code, text(&output.stdout), text(&output.stderr)))
    }

    /// Runs the plugin, which must succeed; returns standard output.
    pub fn succeed(&self, arguments: &[&str]) -> Result<String> {
        match self.call(arguments)? {
            (0, stdout, _) => Ok(stdout),
            (code, stdout, stderr) => {
                let told = format!("{arguments:?} ended with {code}: {stdout}{stderr}");
                Err(HarnessError::Kubectl(told))
            }
        }
    }

    /// The words of one row of a table that the plugin prints: the row that begins with this name.
    pub fn row(&self, arguments: &[&str], name: &str) -> Result<Vec<String>> {
        let table = self.succeed(arguments)?;
        let mut rows = table
            .lines()
            .map(|line| line.split_whitespace().map(str::to_owned).collect::<Vec<_>>());
        rows.find(|row| row.first().is_some_and(|first| first == name))
            .ok_or_else(|| HarnessError::Kubectl(format!("no row of {name} in {table}")))
    }

    /// What the plugin tells of a scenario's sandbox, and what of its way is missing there.
    pub fn audited(&self, scenario: &Scenario) -> Result<(String, Option<String>)> {
        let audit = self.succeed(&["audit", scenario.sandbox])?;
        let missing = scenario.missing_in(&audit);
        Ok((audit, missing))
    }
}
