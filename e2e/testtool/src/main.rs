//! Misbehaves on purpose: the workload of the security tests. Static, without dependencies, so that it runs in an
//! image that holds nothing else.

use std::net::{SocketAddr, TcpStream, UdpSocket};
use std::process::ExitCode;
use std::time::{Duration, Instant};

const HELP: &str = "\
testtool dial ADDRESS SECONDS   connect over and over from the first moment; exit 9 if any attempt got through
testtool udp ADDRESS            send a datagram; exit 9 if anything comes back
testtool write PATH...          try to write to each path; print which could be written
testtool read PATH...           try to read each path; print which could be read
testtool exit CODE              exit
testtool print TEXT             print to standard output
";

fn main() -> ExitCode {
    let arguments: Vec<String> = std::env::args().skip(1).collect();
    let arguments: Vec<&str> = arguments.iter().map(String::as_str).collect();
    match arguments.as_slice() {
        ["dial", address, seconds] => match (address.parse(), seconds.parse()) {
            (Ok(address), Ok(seconds)) => dial(address, Duration::from_secs(seconds)),
            _ => usage(),
        },
        ["udp", address] => address.parse().map_or_else(|_| usage(), udp),
        ["write", paths @ ..] => {
            let written = paths
                .iter()
                .filter(|path| std::fs::OpenOptions::new().append(true).open(path).is_ok());
            println!("{}", written.copied().collect::<Vec<_>>().join(" "));
            ExitCode::SUCCESS
        }
        ["read", paths @ ..] => {
            let read = paths.iter().filter(|path| std::fs::File::open(path).is_ok());
            println!("{}", read.copied().collect::<Vec<_>>().join(" "));
            ExitCode::SUCCESS
        }
        ["exit", code] => ExitCode::from(code.parse().unwrap_or(1)),
        ["print", text] => {
            println!("{text}");
            ExitCode::SUCCESS
        }
        _ => usage(),
    }
}

fn usage() -> ExitCode {
    eprint!("{HELP}");
    ExitCode::from(2)
}

/// Counts attempts that got through, were refused (the packet got out too) and were answered by silence.
fn dial(address: SocketAddr, time: Duration) -> ExitCode {
    let begun = Instant::now();
    let (mut connected, mut refused, mut silent, mut other) = (0, 0, 0, 0);
    while begun.elapsed() < time {
        match TcpStream::connect_timeout(&address, Duration::from_millis(50)) {
            Ok(_) => connected += 1,
            Err(error) if error.kind() == std::io::ErrorKind::TimedOut => silent += 1,
            Err(error) if error.kind() == std::io::ErrorKind::ConnectionRefused => refused += 1,
            Err(_) => {
                other += 1;
                std::thread::sleep(Duration::from_millis(5));
            }
        }
    }
    println!("connected={connected} refused={refused} silent={silent} other={other}");
    ExitCode::from(if connected + refused > 0 { 9 } else { 0 })
}

fn udp(address: SocketAddr) -> ExitCode {
    let answered = UdpSocket::bind("0.0.0.0:0").and_then(|socket| {
        socket.set_read_timeout(Some(Duration::from_secs(1)))?;
        socket.send_to(b"ping", address)?;
        socket.recv(&mut [0; 64])
    });
    println!("{answered:?}");
    ExitCode::from(if answered.is_ok() { 9 } else { 0 })
}
