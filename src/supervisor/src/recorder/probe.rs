//! The network probe: what must be closed is tried, in parallel, a quarter of a second each.

use std::collections::BTreeMap;
use std::io;
use std::net::{IpAddr, Ipv4Addr, Ipv6Addr, SocketAddr, TcpStream, UdpSocket};
use std::time::Duration;

use agentsandbox_api::run::{Expectation, ProbeOutcome, ProbeTarget, Transport};

/// A dropped packet answers nothing: longer waiting would not tell more.
const PATIENCE: Duration = Duration::from_millis(250);
/// Stack of one probing thread, in bytes.
const STACK: usize = 64 << 10;

/// What one round found.
pub struct Round {
    /// Outcome by `name/transport`.
    pub outcomes: BTreeMap<String, ProbeOutcome>,
    /// What is not closed and must be.
    pub wrong: Vec<String>,
    /// What is not open and must be. A road that is closed endangers nobody.
    pub unreachable: Vec<String>,
    /// Whether anything wrong was seen for certain, and not merely not seen.
    pub open: bool,
}

/// Tries every destination once, all at the same time.
pub fn round(targets: &[ProbeTarget], host_ip: &str) -> Round {
    let probing: Vec<_> = targets
        .iter()
        .map(|target| {
            let address = if target.address == "$HOST_IP" {
                host_ip
            } else {
                &target.address
            }
            .parse::<IpAddr>();
            let (port, transport) = (target.port, target.transport);
            let probe = move || {
                address.map_or(ProbeOutcome::Error, |ip| {
                    attempt(SocketAddr::new(ip, port), transport)
                })
            };
            (target, std::thread::Builder::new().stack_size(STACK).spawn(probe))
        })
        .collect();
    let mut round = Round {
        outcomes: BTreeMap::new(),
        wrong: Vec::new(),
        unreachable: Vec::new(),
        open: false,
    };
    for (target, thread) in probing {
        let outcome = thread
            .ok()
            .and_then(|thread| thread.join().ok())
            .unwrap_or(ProbeOutcome::Error);
        let transport = if target.transport == Transport::Tcp {
            "tcp"
        } else {
            "udp"
        };
        let name = format!("{}/{transport}", target.name);
        if !outcome.meets(target.expect) {
            let what = format!("{name} ({outcome:?})");
            match target.expect {
                Expectation::Closed => {
                    round.wrong.push(what);
                    round.open |= outcome != ProbeOutcome::Error;
                }
                Expectation::Open => round.unreachable.push(what),
            }
        }
        round.outcomes.insert(name, outcome);
    }
    round
}

fn attempt(address: SocketAddr, transport: Transport) -> ProbeOutcome {
    match transport {
        Transport::Tcp => match TcpStream::connect_timeout(&address, PATIENCE) {
            Ok(_) => ProbeOutcome::Connected,
            Err(error) => classify(&error),
        },
        Transport::Udp => match datagram(address) {
            Ok(()) => ProbeOutcome::Connected,
            Err(error) => classify(&error),
        },
    }
}

fn datagram(address: SocketAddr) -> io::Result<()> {
    let any: IpAddr = if address.is_ipv4() {
        Ipv4Addr::UNSPECIFIED.into()
    } else {
        Ipv6Addr::UNSPECIFIED.into()
    };
    let socket = UdpSocket::bind((any, 0))?;
    socket.connect(address)?;
    socket.set_read_timeout(Some(PATIENCE))?;
    socket.send(if address.port() == 53 {
        &DNS_QUERY
    } else {
        b"sandbox probe"
    })?;
    socket.recv(&mut [0; 512]).map(|_| ())
}

/// A query for the root's name servers (RFC 1035, section 4): any DNS server answers it with something.
const DNS_QUERY: [u8; 17] = [0x5a, 0x5a, 1, 0, 0, 1, 0, 0, 0, 0, 0, 0, 0, 0, 2, 0, 1];

fn classify(error: &io::Error) -> ProbeOutcome {
    match error.kind() {
        io::ErrorKind::TimedOut | io::ErrorKind::WouldBlock => return ProbeOutcome::Timeout,
        io::ErrorKind::ConnectionRefused | io::ErrorKind::ConnectionReset => return ProbeOutcome::Refused,
        _ => {}
    }
    match error.raw_os_error() {
        Some(
            libc::ENETUNREACH
            | libc::EHOSTUNREACH
            | libc::EACCES
            | libc::EPERM
            | libc::EADDRNOTAVAIL
            | libc::EAFNOSUPPORT,
        ) => ProbeOutcome::Unreachable,
        _ => ProbeOutcome::Error,
    }
}

#[cfg(test)]
mod tests {
    use super::*;
    use std::net::TcpListener;

    fn target(name: &str, port: u16, transport: Transport) -> ProbeTarget {
        ProbeTarget {
            name: name.into(),
            address: "$HOST_IP".into(),
            port,
            transport,
            expect: Expectation::Closed,
        }
    }

    #[test]
    fn an_answer_and_a_refusal_are_both_open_roads() {
        let listener = TcpListener::bind("127.0.0.1:0").unwrap();
        let port = listener.local_addr().unwrap().port();
        let free = {
            let gone = TcpListener::bind("127.0.0.1:0").unwrap();
            gone.local_addr().unwrap().port()
        };
        let targets = [
            target("open", port, Transport::Tcp),
            target("refused", free, Transport::Tcp),
            target("gone", free, Transport::Udp),
        ];
        let round = round(&targets, "127.0.0.1");
        assert_eq!(round.outcomes["open/tcp"], ProbeOutcome::Connected);
        assert_eq!(round.outcomes["refused/tcp"], ProbeOutcome::Refused);
        assert_eq!(round.outcomes["gone/udp"], ProbeOutcome::Refused);
        assert_eq!(round.wrong.len(), 3);
        assert!(round.open);
    }

    #[test]
    fn silence_is_closed() {
        let silent = UdpSocket::bind("127.0.0.1:0").unwrap();
        let targets = [target(
            "silent",
            silent.local_addr().unwrap().port(),
            Transport::Udp,
        )];
        let round = round(&targets, "127.0.0.1");
        assert_eq!(round.outcomes["silent/udp"], ProbeOutcome::Timeout);
        assert!(round.wrong.is_empty());
    }

    #[test]
    fn a_road_that_must_be_open_and_is_closed_is_no_open_road() {
        let listener = TcpListener::bind("127.0.0.1:0").unwrap();
        let port = listener.local_addr().unwrap().port();
        let open = |name: &str| ProbeTarget {
            expect: Expectation::Open,
            ..target(name, port, Transport::Tcp)
        };
        let found = round(&[open("gateway")], "127.0.0.1");
        assert_eq!((found.wrong.len(), found.unreachable.len()), (0, 0));
        drop(listener);
        let found = round(&[open("gateway")], "127.0.0.1");
        assert_eq!(found.unreachable, ["gateway/tcp (Refused)"]);
        assert_eq!((found.wrong.len(), found.open), (0, false));
    }

    #[test]
    fn an_address_that_is_none_proves_nothing() {
        let round = round(&[target("bad", 1, Transport::Tcp)], "not an address");
        assert_eq!(round.outcomes["bad/tcp"], ProbeOutcome::Error);
        assert_eq!((round.wrong.len(), round.open), (1, false));
    }
}
