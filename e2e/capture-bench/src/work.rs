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
/// Programs executed, files opened for reading, files written.
const EXECS: usize = 1000;
const READS: usize = 100_000;
const WRITES: usize = 20_000;
/// Sources compiled: each compilation executes three programs and reads some hundred files.
const SOURCES: usize = 60;

/// A kind of work.
#[derive(Clone, Copy, Debug, PartialEq, Eq, clap::ValueEnum)]
pub enum Work {
    /// Compiles small C files, one after the other, as a build does.
    Build,
    /// Executes a program that does nothing.
    Exec,
    /// Opens and closes a file for reading.
    Read,
    /// Creates and closes a file, which is replaced each time.
    Write,
}

impl Work {
    /// All of them, the one that matters most first.
    pub const ALL: [Self; 4] = [Self::Build, Self::Exec, Self::Read, Self::Write];

    /// How it is named on the command line.
    pub fn name(self) -> &'static str {
        match self {
            Self::Build => "build",
            Self::Exec => "exec",
            Self::Read => "read",
            Self::Write => "write",
        }
    }

    /// How many operations it consists of.
    pub fn operations(self) -> usize {
        match self {
            Self::Build => SOURCES,
            Self::Exec => EXECS,
            Self::Read => READS,
            Self::Write => WRITES,
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
        for index in 0..self.operations() {
            match self {
                Self::Build => compile(folder, index)?,
                Self::Exec => must(Command::new("/bin/true").stdin(Stdio::null()))?,
                Self::Read => drop(File::open(&file)?),
                Self::Write => drop(File::create(&file)?),
            }
        }
        let took = begun.elapsed();
        fs::remove_dir_all(folder)?;
        Ok(took)
    }
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
