//! The proxies and the outside world, each a process of this run.

use std::fmt;
use std::fs::{self, File};
use std::net::{Ipv4Addr, SocketAddr};
use std::path::{Path, PathBuf};
use std::process::{Child, Command, Stdio};
use std::time::{Duration, Instant};

use nix::errno::Errno;
use nix::sched::{CpuSet, sched_setaffinity};
use nix::unistd::Pid;
use tokio::net::TcpStream;

use crate::alone;
use crate::load::{Error, Road};

/// Longest start of a proxy.
const START: Duration = Duration::from_secs(30);

/// A proxy that is measured.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum Rival {
    /// Ours.
    Gateway,
    /// squid, of Debian's package.
    Squid,
    /// mitmproxy, of Debian's package.
    Mitmproxy,
}

impl fmt::Display for Rival {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        f.write_str(match self {
            Self::Gateway => "gateway",
            Self::Squid => "squid",
            Self::Mitmproxy => "mitmproxy",
        })
    }
}

/// The outside world.
pub struct World {
    process: Child,
    authority: String,
    /// Certificate of its authority.
    pub authority_file: PathBuf,
    /// Where it serves HTTPS.
    pub target: SocketAddr,
}

impl World {
    /// Starts it.
    pub async fn start(program: &Path, work: &Path) -> Result<Self, Error> {
        let authority_file = work.join("outside-ca.pem");
        let _ = fs::remove_file(&authority_file);
        let process = Command::new(program)
            .arg("--ca-out")
            .arg(&authority_file)
            .arg("--git")
            .arg(work.join("git"))
            // squid remembers addresses for a minute at least; all proxies may.
            .args(["--dns-ttl", "60"])
            .stdout(Stdio::null())
            .stderr(File::create(work.join("world.log"))?)
            .spawn()?;
        let begun = Instant::now();
        while !authority_file.exists() {
            if begun.elapsed() > START {
                return Err("the outside world did not start".into());
            }
            tokio::time::sleep(Duration::from_millis(20)).await;
        }
        Ok(Self {
            process,
            authority: fs::read_to_string(&authority_file)?,
            authority_file,
            target: (Ipv4Addr::new(93, 184, 216, 34), 443).into(),
        })
    }

    /// Certificate of its authority (PEM).
    pub fn authority(&self) -> &str {
        &self.authority
    }

    /// Lets it run on these processors only.
    pub fn run_on(&self, processors: &CpuSet) -> Result<(), Error> {
        run_on(self.process.id(), processors)
    }

    /// Ends it.
    pub fn stop(mut self) {
        let _ = self.process.kill();
        let _ = self.process.wait();
    }
}

/// A proxy that runs.
pub struct Proxy {
    process: Child,
    rival: Rival,
    port: u16,
    /// Certificate (PEM) of the authority that it signs with, or nothing.
    pub authority: String,
}

impl Proxy {
    /// Starts it, and waits until it listens.
    pub async fn start(rival: Rival, inspecting: bool, world: &World, work: &Path) -> Result<Self, Error> {
        let (mut command, port, authority_file) = match rival {
            Rival::Gateway => gateway(inspecting, world, work)?,
            Rival::Squid => squid(work)?,
            Rival::Mitmproxy => mitmproxy(inspecting, world, work),
        };
        let log = File::create(work.join(format!("{rival}-{port}.log")))?;
        let process = command
            .stdin(Stdio::null())
            .stdout(log.try_clone()?)
            .stderr(log)
            .spawn()
            .map_err(|error| format!("{rival} can't be started: {error}"))?;
        let mut proxy = Self {
            process,
            rival,
            port,
            authority: String::new(),
        };
        let begun = Instant::now();
        loop {
            let listens = TcpStream::connect((Ipv4Addr::LOCALHOST, port)).await.is_ok();
            if listens && authority_file.as_ref().is_none_or(|file| file.exists()) {
                break;
            }
            if begun.elapsed() > START || proxy.process.try_wait()?.is_some() {
                return Err(format!("{rival} did not start; see its log in {}", work.display()).into());
            }
            tokio::time::sleep(Duration::from_millis(50)).await;
        }
        if let Some(file) = authority_file {
            proxy.authority = fs::read_to_string(file)?;
        }
        Ok(proxy)
    }

    /// How the client uses it.
    pub fn road(&self) -> Road {
        let extra = match self.rival {
            Rival::Gateway => alone::authorization(),
            Rival::Squid | Rival::Mitmproxy => String::new(),
        };
        Road::Proxy((Ipv4Addr::LOCALHOST, self.port).into(), extra)
    }

    /// Resident memory of the process and its children, in bytes.
    pub fn resident(&self) -> u64 {
        family(self.process.id())
            .into_iter()
            .map(|pid| {
                let statm = fs::read_to_string(format!("/proc/{pid}/statm")).unwrap_or_default();
                let pages = statm
                    .split_whitespace()
                    .nth(1)
                    .and_then(|pages| pages.parse::<u64>().ok());
                pages.unwrap_or_default() * 4096
            })
            .sum()
    }

    /// Processor time of the process and its children, in seconds.
    pub fn cpu_seconds(&self) -> f64 {
        let ticks: u64 = family(self.process.id())
            .into_iter()
            .map(|pid| {
                let stat = fs::read_to_string(format!("/proc/{pid}/stat")).unwrap_or_default();
                let after = stat.rsplit_once(')').map_or("", |(_, rest)| rest).to_owned();
                let fields: Vec<u64> = after
                    .split_whitespace()
                    .map(|field| field.parse().unwrap_or_default())
                    .collect();
                // utime and stime, fields 14 and 15 of proc_pid_stat(5).
                fields.get(11).copied().unwrap_or_default() + fields.get(12).copied().unwrap_or_default()
            })
            .sum();
        crate::load::to_f64(ticks) / 100.0
    }

    /// Lets the process and its children run on these processors only.
    pub fn run_on(&self, processors: &CpuSet) -> Result<(), Error> {
        family(self.process.id())
            .into_iter()
            .try_for_each(|pid| run_on(pid, processors))
    }

    /// Ends it, and its children.
    pub fn stop(mut self) {
        for pid in family(self.process.id()).into_iter().rev() {
            if let Ok(pid) = i32::try_from(pid) {
                let _ = nix::sys::signal::kill(
                    nix::unistd::Pid::from_raw(pid),
                    nix::sys::signal::Signal::SIGKILL,
                );
            }
        }
        let _ = self.process.wait();
    }
}

/// Lets all threads of a process run on these processors only. One that has just ended is no error.
pub fn run_on(pid: u32, processors: &CpuSet) -> Result<(), Error> {
    for thread in fs::read_dir(format!("/proc/{pid}/task"))? {
        let thread = thread?.file_name().to_string_lossy().parse()?;
        match sched_setaffinity(Pid::from_raw(thread), processors) {
            Ok(()) | Err(Errno::ESRCH) => {}
            Err(error) => return Err(error.into()),
        }
    }
    Ok(())
}

/// A process and everything below it.
fn family(pid: u32) -> Vec<u32> {
    let mut found = vec![pid];
    let mut index = 0;
    while let Some(parent) = found.get(index).copied() {
        index += 1;
        let children =
            fs::read_to_string(format!("/proc/{parent}/task/{parent}/children")).unwrap_or_default();
        found.extend(
            children
                .split_whitespace()
                .filter_map(|child| child.parse::<u32>().ok()),
        );
    }
    found
}

fn gateway(inspecting: bool, world: &World, work: &Path) -> Result<(Command, u16, Option<PathBuf>), Error> {
    let port = if inspecting { 3128 } else { 3127 };
    let authority = work.join(format!("gateway-{port}.pem"));
    let _ = fs::remove_file(&authority);
    let mut command = Command::new(std::env::current_exe()?);
    command
        .arg("gateway")
        .arg("--extra-ca")
        .arg(&world.authority_file)
        .arg("--ca-out")
        .arg(&authority)
        .arg("--state")
        .arg(work.join(format!("gateway-{port}")))
        .arg("--port")
        .arg(port.to_string());
    Ok((command, port, Some(authority)))
}

fn squid(work: &Path) -> Result<(Command, u16, Option<PathBuf>), Error> {
    const PORT: u16 = 3129;
    let folder = work.join("squid");
    fs::create_dir_all(&folder)?;
    // The unprivileged user that squid becomes writes there.
    fs::set_permissions(&folder, std::os::unix::fs::PermissionsExt::from_mode(0o777))?;
    let shown = folder.display();
    let config = format!(
        "http_port 127.0.0.1:{PORT}\nacl allowed dstdomain .example.test\nacl tls port 443\nhttp_access allow CONNECT allowed tls\n\
         http_access deny all\ndns_nameservers 127.0.0.1\ncache deny all\ncache_mem 8 MB\nmemory_pools off\n\
         access_log stdio:{shown}/access.log\ncache_log {shown}/cache.log\npid_filename {shown}/squid.pid\n\
         max_filedescriptors 8192\nshutdown_lifetime 1 seconds\ncoredump_dir {shown}\npinger_enable off\n"
    );
    let file = folder.join("squid.conf");
    fs::write(&file, config)?;
    let mut command = Command::new("squid");
    command.arg("-N").arg("-f").arg(&file);
    Ok((command, PORT, None))
}

fn mitmproxy(inspecting: bool, world: &World, work: &Path) -> (Command, u16, Option<PathBuf>) {
    // One that inspects and one that does not run side by side.
    let port = if inspecting { 3131 } else { 3130 };
    let folder = work.join(format!("mitmproxy-{port}"));
    let mut command = Command::new("mitmdump");
    command
        .args([
            "--quiet",
            "--listen-host",
            "127.0.0.1",
            "--listen-port",
            &port.to_string(),
        ])
        .args(["--set", &format!("confdir={}", folder.display())])
        .args([
            "--set",
            &format!(
                "ssl_verify_upstream_trusted_ca={}",
                world.authority_file.display()
            ),
        ])
        // Bodies are passed on as they come, not collected first.
        .args(["--set", "stream_large_bodies=1m"]);
    if !inspecting {
        command.args(["--ignore-hosts", ".*"]);
    }
    (command, port, Some(folder.join("mitmproxy-ca-cert.pem")))
}
