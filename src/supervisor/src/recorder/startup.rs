//! Answers the startup probe of the agent container: a fixed answer on a port that is held for life, so that no
//! user code can answer in its place.

use std::io::{Read, Write};
use std::net::{Ipv4Addr, Ipv6Addr, TcpListener, TcpStream};
use std::sync::Arc;
use std::sync::atomic::{AtomicBool, Ordering};
use std::time::Duration;

/// Longest any one caller is listened to. Callers are served one after the other, so this bounds what a sandbox
/// that calls its own recorder can cost the kubelet, whose probe is tried again each second.
const PATIENCE: Duration = Duration::from_millis(100);

/// Listens, and answers 200 once `started` is set and 503 before.
pub fn serve(port: u16, started: Arc<AtomicBool>) -> std::io::Result<()> {
    let listener = match TcpListener::bind((Ipv6Addr::UNSPECIFIED, port)) {
        Ok(listener) => listener,
        Err(_) => TcpListener::bind((Ipv4Addr::UNSPECIFIED, port))?,
    };
    std::thread::Builder::new().stack_size(64 << 10).spawn(move || {
        for caller in listener.incoming().flatten() {
            let _ = answer(caller, started.load(Ordering::Acquire));
        }
    })?;
    Ok(())
}

fn answer(mut caller: TcpStream, started: bool) -> std::io::Result<()> {
    caller.set_read_timeout(Some(PATIENCE))?;
    caller.set_write_timeout(Some(PATIENCE))?;
    // Reading the request first keeps the answer from being lost to a reset.
    let _ = caller.read(&mut [0; 1024])?;
    let status = if started {
        "200 OK"
    } else {
        "503 Service Unavailable"
    };
    caller
        .write_all(format!("HTTP/1.1 {status}\r\nContent-Length: 0\r\nConnection: close\r\n\r\n").as_bytes())
}
