//! `kubectl sandbox cp`: files into a session and out of it.

use std::fmt::Write as _;
use std::path::{Path, PathBuf};

use agentsandbox_client::archive::{Bounds, Transferred};
use clap::{Args, ValueHint};

use crate::connection::Connected;
use crate::failure::Failure;
use crate::term::{self, shown};

/// Copy a file or folder into a session, or out of it. One of both is NAME:PATH.
///
/// Relative paths of a sandbox start at its workspace. Out of a sandbox come regular files and folders only: links and
/// devices are left out and counted (what is itself one is an error), and nothing outside the target is written, whatever
/// the sandbox sends. Each copy is a step.
#[derive(Args, Debug)]
#[command(after_help = "Examples:
  kubectl sandbox cp ./data tools:data
  kubectl sandbox cp tools:/workspace/report.pdf .")]
pub struct Cp {
    /// What is copied.
    #[arg(value_hint = ValueHint::AnyPath)]
    source: String,
    /// What it becomes; a folder that is there takes it under its own name.
    #[arg(value_hint = ValueHint::AnyPath)]
    target: String,
    /// Most bytes.
    #[arg(long, default_value_t = Bounds::default().bytes, value_name = "BYTES")]
    max_bytes: u64,
    /// Longest time, in seconds.
    #[arg(long, default_value_t = Bounds::default().seconds, value_name = "SECONDS",
          value_parser = clap::value_parser!(u32).range(1..))]
    timeout: u32,
}

/// One end of a copy.
#[derive(Debug, PartialEq, Eq)]
enum End {
    Here(PathBuf),
    Sandbox { name: String, path: String },
}

impl End {
    /// A path with a slash before its first colon is one of this machine.
    fn parse(text: &str) -> Self {
        match text.split_once(':') {
            Some((name, path))
                if !name.is_empty() && !name.contains(['/', '\\']) && !name.starts_with('.') =>
            {
                Self::Sandbox {
                    name: name.to_owned(),
                    path: path.to_owned(),
                }
            }
            _ => Self::Here(PathBuf::from(text)),
        }
    }
}

impl Cp {
    /// Copies.
    pub async fn run(&self, connected: &Connected) -> Result<(), Failure> {
        let bounds = Bounds {
            bytes: self.max_bytes,
            seconds: self.timeout,
            ..Bounds::default()
        };
        let sandboxes = connected.sandboxes();
        let done = match (End::parse(&self.source), End::parse(&self.target)) {
            (End::Here(source), End::Sandbox { name, path }) => {
                let path = target_there(&source, &path)?;
                sandboxes.get(&name).await?.upload(&source, &path, bounds).await?
            }
            (End::Sandbox { name, path }, End::Here(target)) => {
                let target = target_here(&path, target)?;
                sandboxes
                    .get(&name)
                    .await?
                    .download(&path, &target, bounds)
                    .await?
            }
            _ => {
                return Err(Failure::new("exactly one of both must be in a sandbox")
                    .next("write it as NAME:PATH, and ./a:b for a file of yours with a colon"));
            }
        };
        anstream::eprintln!("{}", summary(&done));
        Ok(())
    }
}

/// Where a copy goes in the sandbox: `data/` takes it under its own name.
fn target_there(source: &Path, path: &str) -> Result<String, Failure> {
    if !path.is_empty() && !path.ends_with('/') {
        return Ok(path.to_owned());
    }
    let name = source.file_name().and_then(|name| name.to_str());
    let name = name.ok_or_else(|| {
        Failure::new(format!("{} has no name to keep", source.display())).next("name the target: NAME:PATH")
    })?;
    Ok(format!("{path}{name}"))
}

/// Where a copy goes here: a folder that is there takes it under its own name.
fn target_here(path: &str, target: PathBuf) -> Result<PathBuf, Failure> {
    if !target.is_dir() {
        return Ok(target);
    }
    match Path::new(path).file_name() {
        Some(name) => Ok(target.join(name)),
        None => Err(Failure::new("the path in the sandbox has no name to keep")
            .next("name a target that is not there yet")),
    }
}

fn summary(done: &Transferred) -> String {
    let files = if done.files == 1 { "file" } else { "files" };
    let mut text = format!("{} {files}, {}", done.files, term::bytes(done.bytes));
    if let Some(first) = &done.first_skipped {
        let _ = write!(
            text,
            "; {} left out that are no regular files or folders, the first: {}",
            done.skipped,
            shown(first)
        );
    }
    text
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn ends_are_told_apart() {
        let there = |name: &str, path: &str| End::Sandbox {
            name: name.to_owned(),
            path: path.to_owned(),
        };
        assert_eq!(End::parse("tools:data/a"), there("tools", "data/a"));
        assert_eq!(End::parse("tools:"), there("tools", ""));
        for here in ["data", "./a:b", "/x:y", ".", ":x"] {
            assert_eq!(End::parse(here), End::Here(here.into()));
        }
    }

    #[test]
    fn a_folder_takes_a_copy_under_its_own_name() {
        assert_eq!(target_there(Path::new("a/b.txt"), "").unwrap(), "b.txt");
        assert_eq!(target_there(Path::new("b.txt"), "/tmp/").unwrap(), "/tmp/b.txt");
        assert_eq!(target_there(Path::new("b.txt"), "c").unwrap(), "c");
        assert!(target_there(Path::new(".."), "").is_err());
        let folder = std::env::temp_dir();
        assert_eq!(target_here("x/y", folder.clone()).unwrap(), folder.join("y"));
        assert_eq!(
            target_here("x/y", "not-there".into()).unwrap(),
            PathBuf::from("not-there")
        );
        assert!(target_here("..", folder).is_err());
    }

    #[test]
    fn what_was_left_out_is_told_and_safe_to_show() {
        let done = Transferred {
            files: 2,
            bytes: 2048,
            skipped: 1,
            first_skipped: Some("a\u{1b}b".to_owned()),
        };
        assert_eq!(
            summary(&done),
            "2 files, 2Ki; 1 left out that are no regular files or folders, the first: a\\u{1b}b"
        );
    }
}
