//! The outside world: answers on every road out of a sandbox, so that a denial is the policy's doing and not an
//! absence.

use std::io::{Read, Write};
use std::net::{TcpListener, UdpSocket};
use std::thread;
use std::time::Duration;

use crate::error::{InFile, Result};

/// Ports that answer over TCP; 80 is also the metadata service's.
const TCP: [u16; 3] = [80, 443, 9000];
/// Ports that answer over UDP.
const UDP: [u16; 2] = [53, 9000];

/// Answers until the process is ended.
pub fn serve() -> Result<()> {
    let mut threads = Vec::new();
    for port in TCP {
        let listener = TcpListener::bind(("0.0.0.0", port)).in_file(format!("tcp port {port}"))?;
        threads.push(thread::spawn(move || {
            for mut caller in listener.incoming().flatten() {
                thread::spawn(move || {
                    let _ = caller.set_read_timeout(Some(Duration::from_secs(2)));
                    let _ = caller.read(&mut [0; 1024]);
                    let _ = caller.write_all(
                        b"HTTP/1.1 200 OK\r\nContent-Length: 8\r\nConnection: close\r\n\r\noutside\n",
                    );
                });
            }
        }));
    }
    for port in UDP {
        let socket = UdpSocket::bind(("0.0.0.0", port)).in_file(format!("udp port {port}"))?;
        threads.push(thread::spawn(move || {
            let mut buffer = [0; 512];
            while let Ok((length, from)) = socket.recv_from(&mut buffer) {
                let _ = socket.send_to(&buffer[..length], from);
            }
        }));
    }
    for thread in threads {
        let _ = thread.join();
    }
    Ok(())
}
