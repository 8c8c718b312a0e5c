//! Plays the outside world to a cluster's sandboxes: an authoritative DNS server, a TLS authority with a certificate for
//! every name, web servers, models' APIs, package indexes and a git server, and every way to misbehave that the tests
//! need. It prints what reaches it, one JSON object a line: what a test must not find there has not got out.

mod authority;
mod body;
mod dns;
mod git;
mod journal;
mod models;
mod names;
mod packages;
mod raw;
mod server;
mod web;
mod websocket;

use std::net::Ipv4Addr;
use std::path::PathBuf;
use std::process::ExitCode;
use std::sync::Arc;

use clap::Parser;
use tokio::net::{TcpListener, UdpSocket};

use crate::authority::Authority;
use crate::journal::Journal;
use crate::packages::Packages;

/// Plays the outside world: names, TLS, web, models, packages, and every way to misbehave.
#[derive(Parser)]
#[command(version)]
struct Cli {
    /// Address to listen on.
    #[arg(long, default_value = "0.0.0.0")]
    listen: Ipv4Addr,
    /// First three bytes of the addresses that names resolve to, such as 93.184.216.
    #[arg(long, default_value = "93.184.216")]
    public: names::Network,
    /// Where the certificate of the TLS authority goes (PEM).
    #[arg(long)]
    ca_out: PathBuf,
    /// Folder for the repositories of the git server; made anew.
    #[arg(long)]
    git: PathBuf,
    /// Port of DNS, UDP and TCP.
    #[arg(long, default_value_t = 53)]
    dns_port: u16,
    /// Seconds that others may remember a name's addresses; by default nothing between remembers them.
    #[arg(long, default_value_t = 0)]
    dns_ttl: u32,
    /// Ports of plain HTTP, comma-separated.
    #[arg(long, default_value = "80,9000", value_delimiter = ',')]
    http_ports: Vec<u16>,
    /// Ports of HTTPS, comma-separated.
    #[arg(long, default_value = "443,8443", value_delimiter = ',')]
    https_ports: Vec<u16>,
    /// UDP ports that send everything back, comma-separated.
    #[arg(long, default_value = "443,9000", value_delimiter = ',')]
    echo_ports: Vec<u16>,
}

/// What every server of the world shares.
pub struct World {
    journal: Journal,
    authority: Authority,
    network: names::Network,
    dns_ttl: u32,
    git: PathBuf,
    packages: Packages,
}

#[tokio::main]
async fn main() -> ExitCode {
    match play(Cli::parse()).await {
        Ok(()) => ExitCode::SUCCESS,
        Err(error) => {
            eprintln!("world: {error}");
            ExitCode::FAILURE
        }
    }
}

async fn play(cli: Cli) -> Result<(), authority::Error> {
    // Everything is bound before the authority's file appears: who has seen it may connect.
    let mut http = Vec::new();
    for port in &cli.http_ports {
        http.push(TcpListener::bind((cli.listen, *port)).await?);
    }
    let mut https = Vec::new();
    for port in &cli.https_ports {
        https.push(TcpListener::bind((cli.listen, *port)).await?);
    }
    let mut echoes = Vec::new();
    for port in &cli.echo_ports {
        echoes.push(UdpSocket::bind((cli.listen, *port)).await?);
    }
    let dns_udp = UdpSocket::bind((cli.listen, cli.dns_port)).await?;
    let dns_tcp = TcpListener::bind((cli.listen, cli.dns_port)).await?;

    git::create(&cli.git)?;
    let world = Arc::new(World {
        journal: Journal::default(),
        authority: Authority::create()?,
        network: cli.public,
        dns_ttl: cli.dns_ttl,
        git: cli.git,
        packages: Packages::create()?,
    });
    let partial = cli.ca_out.with_extension("partial");
    std::fs::write(&partial, world.authority.certificate())?;
    std::fs::rename(&partial, &cli.ca_out)?;

    for listener in http {
        tokio::spawn(server::serve_plain(Arc::clone(&world), listener));
    }
    for listener in https {
        tokio::spawn(server::serve_tls(Arc::clone(&world), listener));
    }
    for socket in echoes {
        tokio::spawn(server::echo_datagrams(socket));
    }
    tokio::spawn(dns::serve_tcp(Arc::clone(&world), dns_tcp));
    dns::serve_udp(Arc::clone(&world), dns_udp).await;
    Ok(())
}
