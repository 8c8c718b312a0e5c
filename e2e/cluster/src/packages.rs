//! Packages: what the cluster needs of Debian's, and the agent images that are made of them.

use std::fs;
use std::os::unix::fs::{PermissionsExt, symlink};
use std::path::{Path, PathBuf};
use std::process::Command;

use sha2::{Digest, Sha256};

use crate::command::{exists, run, run_args};
use crate::error::{Error, InFile, Result};
use crate::image::{Image, layer_of_folder, lowest_layer};
use crate::layout::cache;
use crate::tools::hex;

/// Programs and the packages that bring them.
const NEEDED: [(&str, &str); 10] = [
    ("ip", "iproute2"),
    ("iptables", "iptables"),
    ("nft", "nftables"),
    ("runc", "runc"),
    ("conntrack", "conntrack"),
    ("mmdebstrap", "mmdebstrap"),
    ("nsenter", "util-linux"),
    ("git", "git"),
    ("pip3", "python3-pip"),
    ("npm", "npm"),
];
/// Suite of the agent image.
const SUITE: &str = "bookworm";
/// Packages of the agent image.
const AGENT_PACKAGES: &str = "ca-certificates,curl,git,nodejs,python3,wget";
/// Reference of the agent image.
pub const AGENT_IMAGE: &str = "agent-sandbox.local/agent:1";
/// Reference of the agent image with Python's and Node's package managers, HTTP clients and the SDKs of model providers.
pub const SDK_IMAGE: &str = "agent-sandbox.local/agent-sdks:1";
/// What is in it, by name, version and hash.
const SDK_FILES: [(&str, &str); 4] = [
    ("requirements.txt", include_str!("../sdks/requirements.txt")),
    ("package.json", include_str!("../sdks/package.json")),
    ("package-lock.json", include_str!("../sdks/package-lock.json")),
    (".npmrc", include_str!("../sdks/.npmrc")),
];
/// Version of Debian's Python in [`SUITE`], for which wheels are chosen.
const PYTHON: &str = "3.11";
/// Raised when the way the images are made changes.
const RECIPE: &str = "2";

/// Installs what is missing.
pub fn install_missing() -> Result<()> {
    let missing: Vec<&str> = NEEDED
        .iter()
        .filter(|(program, _)| !exists(program))
        .map(|(_, package)| *package)
        .collect();
    if missing.is_empty() {
        return Ok(());
    }
    if !exists("apt-get") {
        return Err(Error::Prerequisite(format!(
            "missing packages: {}; there is no apt-get to install them",
            missing.join(", ")
        )));
    }
    eprintln!("Installing Debian packages: {}", missing.join(", "));
    run_args("apt-get", ["-qq", "update"])?;
    let mut install = Command::new("apt-get");
    install
        .args(["-qq", "-y", "--no-install-recommends", "install"])
        .args(&missing)
        .env("DEBIAN_FRONTEND", "noninteractive");
    run(&mut install).map(|_| ())
}

/// The agent image as an OCI archive: Python, git, curl, wget and Node.js for a user that is not root. Made once.
pub fn agent_image() -> Result<PathBuf> {
    let key = hex(&Sha256::digest(
        format!("{RECIPE} {SUITE} {AGENT_PACKAGES}").as_bytes(),
    ));
    let folder = images()?;
    let archive = folder.join(format!("agent-{}.tar", &key[..12]));
    if archive.exists() {
        return Ok(archive);
    }
    eprintln!("Building the agent image from Debian packages (once)");
    let root = folder.join(format!(".agent-root.{}.tar", std::process::id()));
    let mut bootstrap = Command::new("mmdebstrap");
    bootstrap.args([
        "--quiet",
        "--variant=minbase",
        &format!("--include={AGENT_PACKAGES}"),
    ]);
    for excluded in [
        "/usr/share/doc/*",
        "/usr/share/man/*",
        "/usr/share/locale/*",
        "/usr/share/info/*",
    ] {
        bootstrap.arg(format!("--dpkgopt=path-exclude={excluded}"));
    }
    bootstrap
        .arg("--customize-hook=chroot \"$1\" useradd --uid 65532 --user-group --home-dir /workspace --shell /bin/bash agent")
        .arg("--customize-hook=mkdir -p \"$1/workspace\"")
        .arg("--customize-hook=rm -rf \"$1\"/var/lib/apt/lists/* \"$1\"/var/cache/apt/*")
        .arg("--customize-hook=rm -f \"$1\"/etc/apt/sources.list \"$1\"/etc/resolv.conf \"$1\"/etc/hostname")
        .args([SUITE, &root.to_string_lossy()])
        .args(sources()?);
    run(&mut bootstrap)?;
    for_agents(AGENT_IMAGE, vec![root.clone()], &[]).write(&archive)?;
    fs::remove_file(&root).in_file(&root)?;
    Ok(archive)
}

/// The agent image with the SDKs as an OCI archive: what the lock files name, above the agent image. Made once.
pub fn sdk_image() -> Result<PathBuf> {
    let agent = agent_image()?;
    let mut hash = Sha256::new();
    hash.update(agent.to_string_lossy().as_bytes());
    for (_, text) in SDK_FILES {
        hash.update(text);
    }
    let folder = images()?;
    let archive = folder.join(format!("agent-sdks-{}.tar", &hex(&hash.finalize())[..12]));
    if archive.exists() {
        return Ok(archive);
    }
    eprintln!("Building the agent image with SDKs from PyPI and npm packages (once)");
    let work = folder.join(format!(".sdks.{}", std::process::id()));
    let (base, layer) = (work.join("base.tar"), work.join("layer.tar"));
    let content = work.join("content");
    install_sdks(&content)?;
    lowest_layer(&agent, &base)?;
    layer_of_folder(&content, "opt/sdks", &layer)?;
    let env = [
        "PYTHONPATH=/opt/sdks/python",
        "NODE_PATH=/opt/sdks/node/node_modules",
        "PATH=/opt/sdks/bin:/usr/local/bin:/usr/bin:/bin",
    ];
    for_agents(SDK_IMAGE, vec![base, layer], &env).write(&archive)?;
    fs::remove_dir_all(&work).in_file(&work)?;
    Ok(archive)
}

/// Installs what the lock files name, and nothing that they don't.
fn install_sdks(content: &Path) -> Result<()> {
    let (node, bin) = (content.join("node"), content.join("bin"));
    for made in [&node, &bin] {
        fs::create_dir_all(made).in_file(made)?;
    }
    for (name, text) in SDK_FILES {
        let file = node.join(name);
        fs::write(&file, text).in_file(&file)?;
    }
    let python = content.join("python");
    run(Command::new("pip3")
        .args(["install", "--quiet", "--no-input", "--no-compile", "--no-deps"])
        .args(["--require-hashes", "--only-binary=:all:", "--implementation=cp"])
        .arg(format!("--python-version={PYTHON}"))
        .arg("--target")
        .arg(&python)
        .arg("--requirement")
        .arg(node.join("requirements.txt"))
        .env("PIP_ROOT_USER_ACTION", "ignore"))?;
    run(Command::new("npm")
        .args(["ci", "--silent", "--ignore-scripts"])
        .current_dir(&node))?;
    // Programs of Python packages begin with the path of this machine's Python.
    let _ = fs::remove_dir_all(python.join("bin"));
    let pip = bin.join("pip");
    fs::write(&pip, "#!/bin/sh\nexec python3 -m pip \"$@\"\n").in_file(&pip)?;
    fs::set_permissions(&pip, fs::Permissions::from_mode(0o755)).in_file(&pip)?;
    let npm = bin.join("npm");
    symlink("../node/node_modules/npm/bin/npm-cli.js", &npm).in_file(&npm)
}

/// An image for agents: a shell, a user that is not root.
fn for_agents(reference: &str, layers: Vec<PathBuf>, env: &[&str]) -> Image {
    let usual = ["LANG=C.UTF-8", "PYTHONUNBUFFERED=1"];
    Image {
        reference: reference.to_owned(),
        layers,
        entrypoint: vec!["/bin/bash".to_owned()],
        user: Some("65532:65532".to_owned()),
        env: usual.iter().chain(env).map(|entry| (*entry).to_owned()).collect(),
        ..Image::default()
    }
}

fn images() -> Result<PathBuf> {
    let folder = cache().join("images");
    fs::create_dir_all(&folder).in_file(&folder)?;
    Ok(folder)
}

/// The machine's own package sources, as far as they are Debian's: the image comes from where the machine's do.
fn sources() -> Result<Vec<PathBuf>> {
    let folder = Path::new("/etc/apt/sources.list.d");
    let mut files = vec![PathBuf::from("/etc/apt/sources.list")];
    files.extend(
        fs::read_dir(folder)
            .in_file(folder)?
            .flatten()
            .map(|entry| entry.path()),
    );
    let is_debian = |path: &PathBuf| {
        let text = fs::read_to_string(path).unwrap_or_default();
        text.lines().any(|line| {
            !line.starts_with('#')
                && line.contains(SUITE)
                && (line.contains(" main") || line.starts_with("Suites:"))
        }) && text.contains("debian")
            && (text.contains("debian-archive") || path.ends_with("sources.list"))
    };
    Ok(files.into_iter().filter(is_debian).collect())
}
