//! Debian packages: what the cluster needs, and the agent image that is made of them.

use std::fs;
use std::path::{Path, PathBuf};
use std::process::Command;

use sha2::{Digest, Sha256};

use crate::command::{exists, run, run_args};
use crate::error::{Error, InFile, Result};
use crate::image::Image;
use crate::layout::cache;
use crate::tools::hex;

/// Programs and the packages that bring them.
const NEEDED: [(&str, &str); 7] = [
    ("ip", "iproute2"),
    ("iptables", "iptables"),
    ("nft", "nftables"),
    ("runc", "runc"),
    ("conntrack", "conntrack"),
    ("mmdebstrap", "mmdebstrap"),
    ("nsenter", "util-linux"),
];
/// Suite of the agent image.
const SUITE: &str = "bookworm";
/// Packages of the agent image.
const AGENT_PACKAGES: &str = "ca-certificates,curl,git,nodejs,python3";
/// Reference of the agent image.
pub const AGENT_IMAGE: &str = "agent-sandbox.local/agent:1";
/// Raised when the way the agent image is made changes.
const RECIPE: &str = "1";

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

/// The agent image as an OCI archive: Python, git, curl and Node.js for a user that is not root. Made once.
pub fn agent_image() -> Result<PathBuf> {
    let key = hex(&Sha256::digest(
        format!("{RECIPE} {SUITE} {AGENT_PACKAGES}").as_bytes(),
    ));
    let folder = cache().join("images");
    let archive = folder.join(format!("agent-{}.tar", &key[..12]));
    if archive.exists() {
        return Ok(archive);
    }
    eprintln!("Building the agent image from Debian packages (once)");
    fs::create_dir_all(&folder).in_file(&folder)?;
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
    let image = Image {
        reference: AGENT_IMAGE.to_owned(),
        root: Some(root.clone()),
        entrypoint: vec!["/bin/bash".to_owned()],
        user: Some("65532:65532".to_owned()),
        env: vec!["LANG=C.UTF-8".to_owned(), "PYTHONUNBUFFERED=1".to_owned()],
        ..Image::default()
    };
    image.write(&archive)?;
    fs::remove_file(&root).in_file(&root)?;
    Ok(archive)
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
