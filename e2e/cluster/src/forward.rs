//! Lets the host reach the API server: listens on the host's loopback and connects inside the cluster's namespace.

use std::fs::File;
use std::io;
use std::net::{Shutdown, TcpListener, TcpStream};

use nix::sched::{CloneFlags, setns};

use crate::error::{Error, InFile, Result};
use crate::layout::{Layout, address};

/// Picks a free port of the host's loopback, or checks the one asked for.
pub fn choose_port(asked: Option<u16>) -> Result<u16> {
    let listener = TcpListener::bind(("127.0.0.1", asked.unwrap_or(0))).map_err(|error| {
        Error::Prerequisite(format!(
            "port {} of 127.0.0.1 can't be used: {error}; choose another --port",
            asked.unwrap_or(0)
        ))
    })?;
    Ok(listener.local_addr().map_or(0, |address| address.port()))
}

/// Forwards connections until the process is ended.
pub fn serve(layout: &Layout, port: u16) -> Result<()> {
    let listener = TcpListener::bind(("127.0.0.1", port)).in_file(format!("127.0.0.1:{port}"))?;
    for client in listener.incoming().flatten() {
        let namespace = File::open(layout.netns_path()).in_file(layout.netns_path())?;
        std::thread::spawn(move || {
            // A namespace belongs to the thread that enters it: the listener stays in the host's.
            let server = setns(&namespace, CloneFlags::CLONE_NEWNET)
                .map_err(io::Error::from)
                .and_then(|()| TcpStream::connect(("127.0.0.1", address::API_PORT)));
            if let Ok(server) = server {
                let _ = join(&client, &server);
            }
        });
    }
    Ok(())
}

fn join(client: &TcpStream, server: &TcpStream) -> io::Result<()> {
    let (mut from_client, mut to_server) = (client.try_clone()?, server.try_clone()?);
    let upward = std::thread::spawn(move || {
        let _ = io::copy(&mut from_client, &mut to_server);
        let _ = to_server.shutdown(Shutdown::Write);
    });
    let (mut from_server, mut to_client) = (server.try_clone()?, client.try_clone()?);
    let _ = io::copy(&mut from_server, &mut to_client);
    let _ = to_client.shutdown(Shutdown::Write);
    let _ = upward.join();
    Ok(())
}
