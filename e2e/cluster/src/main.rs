//! `cluster`: a real single-node Kubernetes on a bare Linux machine.

use std::path::PathBuf;
use std::process::{Command as Process, ExitCode};

use clap::{Parser, Subcommand};
use cluster::image::Image;
use cluster::{
    Cluster, Error, Layout, PARTS, Result, down, find_process, forward, outside, packages, tools, up,
};

/// A real single-node Kubernetes on a bare Linux machine: API server, kubelet, containerd, gVisor, a NetworkPolicy
/// engine that denies, cluster DNS. Needs root and Go; everything else it installs or builds, once.
#[derive(Parser)]
#[command(version)]
struct Cli {
    /// Which cluster: several can be up side by side.
    #[arg(long, global = true, default_value = "demo")]
    name: String,
    #[command(subcommand)]
    command: Action,
}

#[derive(Subcommand)]
enum Action {
    /// Install the Debian packages and build the programs that a cluster needs, once.
    Build,
    /// Start a cluster and wait until it is ready; what a crashed one left is cleaned up first.
    Up {
        /// Port of 127.0.0.1 for the API server; a free one if absent.
        #[arg(long)]
        port: Option<u16>,
        /// Keep fake nodes (label type=kwok) alive with kwok.
        #[arg(long)]
        kwok: bool,
    },
    /// End a cluster: no process, namespace, mount or cgroup of it is left.
    Down,
    /// Say which parts run, and how much memory they use.
    Status,
    /// Print the path of the administrator's kubeconfig.
    Kubeconfig,
    /// Run kubectl as the cluster's administrator.
    #[command(disable_help_flag = true)]
    Kubectl {
        /// kubectl's arguments.
        #[arg(trailing_var_arg = true, allow_hyphen_values = true)]
        arguments: Vec<String>,
    },
    /// Load images from OCI archives.
    Load {
        /// The archives.
        #[arg(required = true)]
        archives: Vec<PathBuf>,
    },
    /// Make an OCI archive of one layer from files.
    Image {
        /// Where the archive goes.
        #[arg(long)]
        out: PathBuf,
        /// Reference of the image, such as agent-sandbox.local/tool:dev.
        #[arg(long)]
        reference: String,
        /// A file, as SOURCE:DESTINATION, executable for all.
        #[arg(long, value_parser = parse_file)]
        file: Vec<(PathBuf, String)>,
        /// Entry point, one word each.
        #[arg(long)]
        entrypoint: Vec<String>,
        /// User, as UID or UID:GID.
        #[arg(long)]
        user: Option<String>,
        /// A volume that the image declares.
        #[arg(long)]
        volume: Vec<String>,
    },
    /// Make the agent image from Debian packages, once, and print the path of its archive.
    AgentImage,
    /// Make the agent image with SDKs from PyPI and npm packages, once, and print the path of its archive.
    SdkImage,
    /// Let a program play the outside world until the cluster ends.
    Outside {
        /// The program.
        program: PathBuf,
        /// Its arguments; {state} stands for the cluster's state folder.
        #[arg(trailing_var_arg = true, allow_hyphen_values = true)]
        arguments: Vec<String>,
    },
    /// Print the log of one part.
    Logs {
        /// The part; see `cluster status`.
        part: String,
    },
    #[command(hide = true)]
    Forward { port: u16 },
    #[command(hide = true)]
    ServeOutside,
}

fn parse_file(text: &str) -> std::result::Result<(PathBuf, String), String> {
    let (source, destination) = text.split_once(':').ok_or("not SOURCE:DESTINATION")?;
    Ok((source.into(), destination.to_owned()))
}

fn main() -> ExitCode {
    match act(Cli::parse()) {
        Ok(code) => code,
        Err(error) => {
            eprintln!("cluster: {error}");
            ExitCode::FAILURE
        }
    }
}

fn act(cli: Cli) -> Result<ExitCode> {
    let layout = Layout::new(&cli.name)?;
    match cli.command {
        Action::Build => {
            packages::install_missing()?;
            tools::build(&[])?;
        }
        Action::Up { port, kwok } => up::up(&layout, up::Options { port, kwok })?,
        Action::Down => {
            down::down(&layout)?;
            eprintln!(
                "Cluster {:?} is gone: no process, namespace, mount or cgroup of it is left",
                layout.name
            );
        }
        Action::Status => return Ok(status(&layout)),
        Action::Kubeconfig => println!("{}", Cluster::attach(&cli.name)?.kubeconfig().display()),
        Action::Kubectl { arguments } => {
            let mut kubectl: Process = Cluster::attach(&cli.name)?.kubectl();
            let status = kubectl.args(arguments).status().map_err(|source| Error::Io {
                path: "kubectl".into(),
                source,
            })?;
            return Ok(ExitCode::from(
                u8::try_from(status.code().unwrap_or(1)).unwrap_or(1),
            ));
        }
        Action::Load { archives } => Cluster::attach(&cli.name)?.load(&archives)?,
        Action::Image {
            out,
            reference,
            file,
            entrypoint,
            user,
            volume,
        } => {
            let files = file
                .into_iter()
                .map(|(source, destination)| (source, destination, 0o755))
                .collect();
            Image {
                reference,
                files,
                entrypoint,
                user,
                volumes: volume,
                ..Image::default()
            }
            .write(&out)?;
        }
        Action::AgentImage => println!("{}", packages::agent_image()?.display()),
        Action::SdkImage => println!("{}", packages::sdk_image()?.display()),
        Action::Outside { program, arguments } => up::play_outside(&layout, &program, &arguments)?,
        Action::Logs { part } => {
            let path = layout.log(&part);
            let text = std::fs::read_to_string(&path).map_err(|source| Error::Io { path, source })?;
            print!("{text}");
        }
        Action::Forward { port } => forward::serve(&layout, port)?,
        Action::ServeOutside => outside::serve()?,
    }
    Ok(ExitCode::SUCCESS)
}

fn status(layout: &Layout) -> ExitCode {
    let mut up = false;
    println!("{:<26}{:>8}  {:>9}", "PART", "PID", "MEMORY");
    for part in PARTS {
        match find_process(layout, part) {
            Some(process) if process.is_alive() => {
                up = true;
                println!(
                    "{part:<26}{:>8}  {:>5} MiB",
                    process.pid,
                    process.resident_bytes() >> 20
                );
            }
            Some(_) => println!("{part:<26}{:>8}  ended: see `cluster logs {part}`", "-"),
            None => {}
        }
    }
    if up { ExitCode::SUCCESS } else { ExitCode::FAILURE }
}
