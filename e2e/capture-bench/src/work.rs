//! What a command does while it is measured. Each kind of work counts its operations, so that a difference in time can
//! be told per operation.

use std::fs::{self, File};
use std::io::Write;
use std::path::Path;
use std::process::{Command, Stdio};
use std::time::{Duration, Instant};

use crate::Error;

/// Where the work is done; a file system in memory, so that no disk disturbs.
const FOLDER: &str = "/tmp/work";
/// Programs executed in place of one another: few, so that what else happens on the machine disturbs few of many runs.
const EXECS: usize = 40;
/// Told how many more there are, a shell that executes the next one: what builds and agents execute most, and the shorter
/// an exec is, the clearer the share of what is added to it.
const CHAIN: &str = r#"[ "$1" = 0 ] || exec /bin/sh -c "$0" "$0" $(($1 - 1))"#;
/// Processes started, files opened for reading, files written.
const PROCESSES: usize = 200;
const READS: usize = 100_000;
const WRITES: usize = 20_000;
/// Sources compiled: each compilation executes three programs and opens some hundred files, all together thousands of the
/// ones and tens of thousands of the others.
const SOURCES: usize = 700;

/// A kind of work.
#[derive(Clone, Copy, Debug, PartialEq, Eq, clap::ValueEnum)]
pub enum Work {
    /// Compiles small C files, one after the other, as a build does.
    Build,
    /// Executes a shell in place of the one before, again and again.
    Exec,
    /// Starts a process, which executes a program that does nothing and ends.
    Process,
    /// Opens and closes a file for reading.
    Read,
    /// Creates and closes a file, which is replaced each time.
    Write,
}

/// A ceiling of what capture costs.
#[derive(Clone, Copy, Debug)]
pub enum Bar {
    /// Of the time with it to the time without.
    Ratio(f64),
    /// Microseconds for each operation.
    Micros(f64),
}

impl Work {
    /// All of them, the one that matters most first.
    pub const ALL: [Self; 5] = [Self::Build, Self::Exec, Self::Process, Self::Read, Self::Write];

    /// How it is named on the command line.
    pub fn name(self) -> &'static str {
        match self {
            Self::Build => "build",
            Self::Exec => "exec",
            Self::Process => "process",
            Self::Read => "read",
            Self::Write => "write",
        }
    }

    /// How many operations it consists of.
    pub fn operations(self) -> usize {
        match self {
            Self::Build => SOURCES,
            Self::Exec => EXECS,
            Self::Process => PROCESSES,
            Self::Read => READS,
            Self::Write => WRITES,
        }
    }

    /// How often it is done in so many rounds: what is short more often, what is long less.
    pub fn runs(self, rounds: usize) -> usize {
        match self {
            Self::Exec => rounds * 20,
            Self::Build => rounds.div_ceil(5),
            _ => rounds,
        }
    }

    /// What capture may cost, if that has a bar: as the ratio of times, or in microseconds for each operation.
    pub fn bar(self) -> Option<Bar> {
        match self {
            Self::Build => Some(Bar::Ratio(1.05)),
            Self::Exec => Some(Bar::Micros(60.0)),
            // Noise: reading is not captured, and a hundredth of what a look costs is nothing.
            Self::Read => Some(Bar::Micros(0.1)),
            Self::Process | Self::Write => None,
        }
    }

    /// Does it; how long that took.
    pub fn run(self) -> Result<Duration, Error> {
        let folder = Path::new(FOLDER);
        fs::create_dir_all(folder)?;
        let file = folder.join("file");
        File::create(&file)?.write_all(b"text")?;
        if self == Self::Build {
            for source in 0..SOURCES {
                fs::write(folder.join(format!("{source}.c")), source_text(source))?;
            }
        }
        let begun = Instant::now();
        // One process does them all.
        let times = if self == Self::Exec { 1 } else { self.operations() };
        for index in 0..times {
            match self {
                Self::Build => compile(folder, index)?,
                Self::Exec => must(&mut chain())?,
                Self::Process => must(Command::new("/bin/true").stdin(Stdio::null()))?,
                Self::Read => drop(File::open(&file)?),
                Self::Write => drop(File::create(&file)?),
            }
        }
        let took = begun.elapsed();
        fs::remove_dir_all(folder)?;
        Ok(took)
    }
}

fn chain() -> Command {
    let mut command = Command::new("/bin/sh");
    let more = (EXECS - 1).to_string();
    command.args(["-c", CHAIN, CHAIN, &more]);
    command
}

fn compile(folder: &Path, index: usize) -> Result<(), Error> {
    must(
        Command::new("cc")
            .args(["-O1", "-c", "-o"])
            .arg(folder.join(format!("{index}.o")))
            .arg(folder.join(format!("{index}.c"))),
    )
}

fn must(command: &mut Command) -> Result<(), Error> {
    let status = command.status()?;
    if status.success() {
        Ok(())
    } else {
        Err(format!("{command:?}: {status}").into())
    }
}

fn source_text(index: usize) -> String {
    format!(
        "#include <stdio.h>\n#include <stdlib.h>\n#include <string.h>\n#include <unistd.h>\n#include <sys/stat.h>\n\
         int step_{index}(const char *text) {{ struct stat s; char b[64]; snprintf(b, sizeof b, \"%s\", text);\n\
         return stat(b, &s) ? (int)strlen(b) : atoi(b) + {index}; }}\n"
    )
}
