//! Ports whose queues one sandbox can't fill for all others.
//!
//! What the kernel has received and the gateway has not yet taken waits at a socket: datagrams and new connections, as
//! many as it has room for; what finds no room is dropped. So each port has several sockets, and the kernel puts what
//! comes from one address always at the same one. Each is served by a task of its own, so all have their turns.

use std::io;
use std::net::{Ipv4Addr, Ipv6Addr, SocketAddr};

use nix::libc::{self, sock_filter, sock_fprog};
use nix::sys::socket::{setsockopt, sockopt::AttachReusePortCbpf};
use socket2::{Domain, Socket, Type};
use tokio::net::{TcpListener, UdpSocket};

/// Sockets of a port. Pods of a node have neighbouring addresses, and neighbours have different sockets.
pub const LANES: u16 = 16;

/// Connections that may wait at one socket.
const BACKLOG: i32 = 1024;
/// Room for datagrams that wait at one socket, in bytes as the kernel counts them: some hundred. It gives what it may
/// (`net.core.rmem_max`).
const DATAGRAM_BYTES: usize = 1 << 20;

/// `struct sk_buff`'s protocol of IPv6, and where in the IP header the last word of the sender's address is.
const IPV6: u32 = libc::ETH_P_IPV6 as u32;
const IPV4_SENDER: i32 = 12;
const IPV6_SENDER: i32 = 20;

/// Listeners of a port, for IPv6 and IPv4, or for IPv4 where the kernel has no IPv6.
///
/// # Errors
/// The port is taken.
pub fn listeners(port: u16) -> io::Result<Vec<TcpListener>> {
    let lanes = anywhere(Type::STREAM, port)?;
    lanes
        .into_iter()
        .map(|lane| TcpListener::from_std(lane.into()))
        .collect()
}

/// Sockets that receive the datagrams of a port, as [`listeners`].
///
/// # Errors
/// The port is taken.
pub fn datagrams(port: u16) -> io::Result<Vec<UdpSocket>> {
    let lanes = anywhere(Type::DGRAM, port)?;
    lanes
        .into_iter()
        .map(|lane| UdpSocket::from_std(lane.into()))
        .collect()
}

fn anywhere(kind: Type, port: u16) -> io::Result<Vec<Socket>> {
    lanes(kind, (Ipv6Addr::UNSPECIFIED, port).into())
        .or_else(|_| lanes(kind, (Ipv4Addr::UNSPECIFIED, port).into()))
}

/// Sockets of one address, in the order in which the kernel numbers them; one, if it can't be told how to choose.
fn lanes(kind: Type, address: SocketAddr) -> io::Result<Vec<Socket>> {
    let first = open(kind, address)?;
    let address = first.local_addr()?.as_socket().unwrap_or(address);
    if let Err(error) = choose_by_sender(&first) {
        tracing::warn!(%error, "the senders of a port share one queue");
        return Ok(vec![first]);
    }
    let mut lanes = vec![first];
    for _ in 1..LANES {
        lanes.push(open(kind, address)?);
    }
    Ok(lanes)
}

fn open(kind: Type, address: SocketAddr) -> io::Result<Socket> {
    let socket = Socket::new(Domain::for_address(address), kind, None)?;
    socket.set_nonblocking(true)?;
    socket.set_reuse_port(true)?;
    if address.is_ipv6() {
        socket.set_only_v6(false)?;
    }
    if kind == Type::STREAM {
        socket.set_reuse_address(true)?;
        socket.bind(&address.into())?;
        socket.listen(BACKLOG)?;
    } else {
        socket.bind(&address.into())?;
        let _ = socket.set_recv_buffer_size(DATAGRAM_BYTES);
    }
    Ok(socket)
}

/// Has the kernel choose among the sockets of a port by the last word of the sender's address.
fn choose_by_sender(socket: &Socket) -> io::Result<()> {
    let op = |code: u32, k: u32, jt: u8, jf: u8| sock_filter {
        // Codes of the machine have 16 bits.
        code: u16::try_from(code).unwrap_or_default(),
        jt,
        jf,
        k,
    };
    // Offsets below zero are what the kernel knows of a packet, and its headers.
    let load = |offset: i32| {
        op(
            libc::BPF_LD | libc::BPF_W | libc::BPF_ABS,
            offset.cast_unsigned(),
            0,
            0,
        )
    };
    let mut program = [
        load(libc::SKF_AD_OFF + libc::SKF_AD_PROTOCOL),
        op(libc::BPF_JMP | libc::BPF_JEQ | libc::BPF_K, IPV6, 2, 0),
        load(libc::SKF_NET_OFF + IPV4_SENDER),
        op(libc::BPF_JMP | libc::BPF_JA, 1, 0, 0),
        load(libc::SKF_NET_OFF + IPV6_SENDER),
        op(libc::BPF_ALU | libc::BPF_MOD | libc::BPF_K, LANES.into(), 0, 0),
        op(libc::BPF_RET | libc::BPF_A, 0, 0, 0),
    ];
    let program = sock_fprog {
        len: u16::try_from(program.len()).unwrap_or_default(),
        filter: program.as_mut_ptr(),
    };
    setsockopt(socket, AttachReusePortCbpf, &program).map_err(io::Error::from)
}

#[cfg(test)]
mod tests {
    use std::net::UdpSocket;
    use std::time::Duration;

    use super::{BACKLOG, Domain, LANES, Socket, SocketAddr, Type, anywhere, listeners};

    fn from(last: u8) -> SocketAddr {
        SocketAddr::from(([127, 0, 0, last], 0))
    }

    #[test]
    fn a_sender_that_fills_its_queue_leaves_room_for_its_neighbours() {
        let lanes: Vec<UdpSocket> = anywhere(Type::DGRAM, 0)
            .unwrap()
            .into_iter()
            .map(Into::into)
            .collect();
        assert_eq!(lanes.len(), usize::from(LANES));
        let port = lanes[0].local_addr().unwrap().port();
        let to = SocketAddr::from(([127, 0, 0, 1], port));
        let flood = UdpSocket::bind(from(2)).unwrap();
        // The kernel takes and drops whatever finds no room.
        for _ in 0..20_000 {
            flood.send_to(&[b'x'; 64], to).unwrap();
        }
        for neighbour in 3..18 {
            let neighbour = UdpSocket::bind(from(neighbour)).unwrap();
            neighbour.send_to(b"me", to).unwrap();
        }
        let (mut heard, mut flooded) = (Vec::new(), 0);
        let mut bytes = [0; 128];
        for lane in &lanes {
            while let Ok((length, sender)) = lane.recv_from(&mut bytes) {
                let std::net::IpAddr::V4(sender) = sender.ip().to_canonical() else {
                    panic!("{sender}");
                };
                match &bytes[..length] {
                    b"me" => heard.push(sender.octets()[3]),
                    _ => flooded += 1,
                }
            }
        }
        heard.sort_unstable();
        assert_eq!(heard, (3..18).collect::<Vec<_>>());
        assert!(
            (1..20_000).contains(&flooded),
            "{flooded} of the flood found room"
        );
    }

    #[tokio::test]
    async fn connections_that_nobody_accepts_leave_room_for_others() {
        let lanes = listeners(0).unwrap();
        let port = lanes[0].local_addr().unwrap().port();
        let to = SocketAddr::from(([127, 0, 0, 1], port));
        let dial = |last: u8| {
            let socket = Socket::new(Domain::IPV4, Type::STREAM, None).unwrap();
            socket.bind(&from(last).into()).unwrap();
            socket.connect_timeout(&to.into(), Duration::from_millis(500))
        };
        // What is closed at once waits all the same.
        let filled = (0..2 * BACKLOG).position(|_| dial(2).is_err());
        assert!(filled.is_some(), "the queue has no end");
        for neighbour in 3..18 {
            dial(neighbour).unwrap();
        }
    }
}
