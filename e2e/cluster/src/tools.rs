//! Builds the cluster's programs from Go modules, once: each is cached under a key of its lock files, the compiler
//! and the flags.

use std::fmt::Write as _;
use std::fs;
use std::io::IsTerminal as _;
use std::path::{Path, PathBuf};
use std::process::Command;
use std::sync::mpsc::RecvTimeoutError;
use std::time::{Duration, Instant};

use sha2::{Digest, Sha256};

use crate::command::{run, run_args};
use crate::error::{Error, InFile, Result};
use crate::layout::cache;

/// Version of Kubernetes that the binary is stamped with: the one in `mods/kube/go.mod`.
const KUBERNETES: (&str, &str, &str) = ("1", "36", "v1.36.4");
/// gVisor's shim sets an `oom_score_adj` below the kernel's floor for processes without `CAP_SYS_RESOURCE`, which
/// root lacks in many containers and virtual machines, and fails. Nothing else of it is changed.
const GVISOR_FILE: &str = "vendor/gvisor.dev/gvisor/pkg/shim/v1/manager.go";
const GVISOR_FROM: &str = "oomScoreMax = -999";
const GVISOR_TO: &str = "oomScoreMax = 0";

/// One Go module and what it takes to build it.
struct Tool {
    name: &'static str,
    what: &'static str,
    how: How,
    /// What must be there afterwards.
    programs: &'static [&'static str],
    /// Whether every cluster needs it; else it is built when one does.
    always: bool,
}

enum How {
    /// Every `tool` of the module.
    Tools,
    /// The module's own main package, under this name.
    Main(&'static str),
    /// Kubernetes: one binary for all its programs, stamped with its version.
    Kubernetes,
    /// gVisor: vendored, with one constant changed.
    Gvisor,
}

const TOOLS: [Tool; 9] = [
    Tool {
        name: "pause",
        what: "pause",
        how: How::Main("pause"),
        programs: &["pause"],
        always: true,
    },
    Tool {
        name: "cni",
        what: "CNI plugins",
        how: How::Tools,
        programs: &["bridge", "host-local", "loopback"],
        always: true,
    },
    Tool {
        name: "etcd",
        what: "etcd",
        how: How::Tools,
        programs: &["server"],
        always: true,
    },
    Tool {
        name: "containerd",
        what: "containerd",
        how: How::Tools,
        programs: &["containerd", "containerd-shim-runc-v2", "ctr"],
        always: true,
    },
    Tool {
        name: "gvisor",
        what: "gVisor",
        how: How::Gvisor,
        programs: &["runsc", "containerd-shim-runsc-v1"],
        always: true,
    },
    Tool {
        name: "coredns",
        what: "CoreDNS",
        how: How::Tools,
        programs: &["coredns"],
        always: true,
    },
    Tool {
        name: "knp",
        what: "NetworkPolicy engine",
        how: How::Tools,
        programs: &["standard"],
        always: true,
    },
    Tool {
        name: "kwok",
        what: "kwok",
        how: How::Tools,
        programs: &["kwok"],
        always: false,
    },
    Tool {
        name: "kube",
        what: "Kubernetes",
        how: How::Kubernetes,
        programs: &[
            "kube-apiserver",
            "kube-controller-manager",
            "kube-scheduler",
            "kubelet",
            "kube-proxy",
            "kubectl",
        ],
        always: true,
    },
];

/// Folders of the built programs.
#[derive(Clone, Debug)]
pub struct Programs {
    folders: Vec<(&'static str, PathBuf)>,
}

impl Programs {
    /// The programs, if all that every cluster needs are built.
    pub fn find() -> Result<Self> {
        let compiler = compiler()?;
        let mut folders = Vec::new();
        for tool in &TOOLS {
            let folder = folder(tool, &compiler)?;
            if tool.always && !is_complete(tool, &folder) {
                return Err(Error::Prerequisite(format!(
                    "{} is not built yet: run `cluster build`",
                    tool.what
                )));
            }
            folders.push((tool.name, folder));
        }
        Ok(Self { folders })
    }

    /// Folder of one tool's programs.
    #[must_use]
    pub fn folder(&self, tool: &str) -> &Path {
        self.folders
            .iter()
            .find(|(name, _)| *name == tool)
            .map_or(Path::new("/nonexistent"), |(_, folder)| folder)
    }

    /// One program.
    #[must_use]
    pub fn path(&self, tool: &str, program: &str) -> PathBuf {
        self.folder(tool).join(program)
    }

    /// `kubectl` of the cluster's version.
    #[must_use]
    pub fn kubectl(&self) -> PathBuf {
        self.path("kube", "kubectl")
    }
}

/// Builds what is not built yet, with a line per tool: what every cluster needs, and the tools of these names.
pub fn build(more: &[&str]) -> Result<Programs> {
    let compiler = compiler()?;
    let missing: Vec<&Tool> = TOOLS
        .iter()
        .filter(|tool| tool.always || more.contains(&tool.name))
        .filter(|tool| folder(tool, &compiler).is_ok_and(|folder| !is_complete(tool, &folder)))
        .collect();
    if !missing.is_empty() {
        eprintln!(
            "Building {} of the cluster's programs (once; about 11 minutes for all on 2 cores)",
            missing.len()
        );
    }
    let begun = Instant::now();
    for (index, tool) in missing.iter().enumerate() {
        let target = folder(tool, &compiler)?;
        let what = format!("  [{}/{}] {:<22}", index + 1, missing.len(), tool.what);
        let seconds = with_clock(&what, || build_one(tool, &target))?;
        eprintln!("{what}{seconds:>4} s   ({} s in all)", begun.elapsed().as_secs());
    }
    Programs::find()
}

/// Does something that takes long. A terminal shows the seconds meanwhile; returns how many there were.
fn with_clock(what: &str, work: impl FnOnce() -> Result<()>) -> Result<u64> {
    let begun = Instant::now();
    let (done, told) = std::sync::mpsc::channel::<()>();
    let terminal = std::io::stderr().is_terminal();
    std::thread::scope(|scope| {
        if terminal {
            scope.spawn(move || {
                while let Err(RecvTimeoutError::Timeout) = told.recv_timeout(Duration::from_secs(1)) {
                    eprint!("\r{what}{:>4} s", begun.elapsed().as_secs());
                }
                eprint!("\r");
            });
        }
        let result = work();
        drop(done);
        result
    })?;
    Ok(begun.elapsed().as_secs())
}

fn build_one(tool: &Tool, target: &Path) -> Result<()> {
    let parent = target.parent().unwrap_or(target);
    let work = parent.join(format!(".{}.{}", tool.name, std::process::id()));
    let (source, out) = (work.join("source"), work.join("out"));
    fs::create_dir_all(&out).in_file(&out)?;
    copy_folder(&modules().join(tool.name), &source)?;
    match tool.how {
        How::Tools => go(
            &source,
            &[
                "build",
                "-ldflags",
                "-s -w",
                "-o",
                &format!("{}/", out.display()),
                "tool",
            ],
        )?,
        How::Main(name) => go(
            &source,
            &[
                "build",
                "-ldflags",
                "-s -w",
                "-o",
                &out.join(name).to_string_lossy(),
                ".",
            ],
        )?,
        How::Kubernetes => {
            let flags = version_stamps();
            go(
                &source,
                &[
                    "build",
                    "-ldflags",
                    &flags,
                    "-o",
                    &out.join("kube").to_string_lossy(),
                    ".",
                ],
            )?;
            for program in tool.programs {
                let link = out.join(program);
                std::os::unix::fs::symlink("kube", &link).in_file(&link)?;
            }
        }
        How::Gvisor => {
            go(&source, &["mod", "vendor"])?;
            let file = source.join(GVISOR_FILE);
            let text = fs::read_to_string(&file).in_file(&file)?;
            if !text.contains(GVISOR_FROM) {
                return Err(Error::Prerequisite(format!(
                    "{GVISOR_FILE} has changed: {GVISOR_FROM:?} is not in it"
                )));
            }
            fs::write(&file, text.replace(GVISOR_FROM, GVISOR_TO)).in_file(&file)?;
            for (package, name) in [("runsc", "runsc"), ("shim", "containerd-shim-runsc-v1")] {
                let (package, name) = (format!("gvisor.dev/gvisor/{package}"), out.join(name));
                go(
                    &source,
                    &[
                        "build",
                        "-mod=vendor",
                        "-ldflags",
                        "-s -w",
                        "-o",
                        &name.to_string_lossy(),
                        &package,
                    ],
                )?;
            }
        }
    }
    let _ = fs::remove_dir_all(target);
    fs::rename(&out, target).in_file(target)?;
    fs::remove_dir_all(&work).in_file(&work)
}

fn go(folder: &Path, arguments: &[&str]) -> Result<()> {
    let mut command = Command::new("go");
    command
        .current_dir(folder)
        .args(arguments)
        .env("CGO_ENABLED", "0")
        .env("GOFLAGS", "-trimpath");
    run(&mut command).map(|_| ())
}

fn version_stamps() -> String {
    let (major, minor, version) = KUBERNETES;
    let mut flags = "-s -w".to_owned();
    for package in ["k8s.io/component-base/version", "k8s.io/client-go/pkg/version"] {
        for (name, value) in [
            ("gitMajor", major),
            ("gitMinor", minor),
            ("gitVersion", version),
            ("gitTreeState", "clean"),
            ("gitCommit", "module"),
            ("buildDate", "2026-01-01T00:00:00Z"),
        ] {
            let _ = write!(flags, " -X {package}.{name}={value}");
        }
    }
    flags
}

fn compiler() -> Result<String> {
    run_args("go", ["env", "GOVERSION", "GOARCH"]).map_err(|_| {
        Error::Prerequisite(
            "Go is not installed: the cluster's programs are built from Go modules".to_owned(),
        )
    })
}

fn folder(tool: &Tool, compiler: &str) -> Result<PathBuf> {
    let source = modules().join(tool.name);
    let mut hash = Sha256::new();
    hash.update(compiler);
    hash.update(version_stamps());
    hash.update(GVISOR_TO);
    let mut files: Vec<PathBuf> = fs::read_dir(&source)
        .in_file(&source)?
        .flatten()
        .map(|entry| entry.path())
        .collect();
    files.sort();
    for file in files {
        hash.update(fs::read(&file).in_file(&file)?);
    }
    Ok(cache()
        .join("tools")
        .join(format!("{}-{}", tool.name, &hex(&hash.finalize())[..12])))
}

/// Bytes in hex.
#[must_use]
pub fn hex(bytes: &[u8]) -> String {
    bytes.iter().fold(String::new(), |mut text, byte| {
        let _ = write!(text, "{byte:02x}");
        text
    })
}

fn is_complete(tool: &Tool, folder: &Path) -> bool {
    tool.programs.iter().all(|program| folder.join(program).exists())
}

/// The modules lie beside this crate's sources.
fn modules() -> PathBuf {
    Path::new(env!("CARGO_MANIFEST_DIR")).join("mods")
}

fn copy_folder(from: &Path, to: &Path) -> Result<()> {
    fs::create_dir_all(to).in_file(to)?;
    for entry in fs::read_dir(from).in_file(from)?.flatten() {
        if entry.path().is_file() {
            fs::copy(entry.path(), to.join(entry.file_name())).in_file(entry.path())?;
        }
    }
    Ok(())
}
