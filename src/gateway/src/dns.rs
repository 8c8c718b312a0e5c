//! DNS over UDP and TCP: the gateway's own address for allowed names, a refusal for everything else.

use std::net::IpAddr;
use std::sync::Arc;
use std::time::Duration;

use agentsandbox_egress::deny::Deny;
use agentsandbox_egress::dns::{self, Answer, QUESTION_MAX};
use tokio::io::{AsyncReadExt, AsyncWriteExt};
use tokio::net::{TcpStream, UdpSocket};

use crate::accept::Guest;
use crate::session::{Event, Session};
use crate::state::Gateway;

/// Most questions of one connection.
const QUESTIONS_PER_CONNECTION: usize = 256;
/// How long a connection may rest between two questions (RFC 7766, section 6.2.3 says "of the order of seconds").
const IDLE: Duration = Duration::from_secs(10);

/// Answers questions over UDP until the gateway stops.
pub async fn serve_udp(gateway: Arc<Gateway>, socket: UdpSocket) {
    // One byte more than any question has: a longer one is seen to be longer.
    let mut question = [0; QUESTION_MAX + 1];
    loop {
        let received = tokio::select! {
            received = socket.recv_from(&mut question) => received,
            () = gateway.stopping.cancelled() => return,
        };
        // An error belongs to an answer that was sent before: its receiver is gone.
        let Ok((length, peer)) = received else { continue };
        if let Some(response) = answer(&gateway, peer.ip(), &question[..length]) {
            // Without waiting: an answer that finds no room is asked for again.
            let _ = socket.try_send_to(&response, peer);
        }
    }
}

/// Answers the questions of one TCP connection, one after the other.
pub async fn serve_tcp(gateway: Arc<Gateway>, guest: Guest) {
    let Guest {
        mut stream,
        session,
        place,
    } = guest;
    let Ok(peer) = stream.peer_addr() else { return };
    let ended = session.ended.clone();
    for _ in 0..QUESTIONS_PER_CONNECTION {
        let exchange = one(&gateway, &mut stream, peer.ip());
        let goes_on = tokio::select! {
            goes_on = exchange => goes_on,
            () = ended.cancelled() => false,
        };
        if !goes_on {
            break;
        }
    }
    drop(place);
}

/// One question and its answer; says whether another one may come.
async fn one(gateway: &Gateway, stream: &mut TcpStream, peer: IpAddr) -> bool {
    let exchange = async {
        let length = usize::from(stream.read_u16().await.ok()?);
        if length == 0 || length > QUESTION_MAX {
            return None;
        }
        let mut question = vec![0; length];
        stream.read_exact(&mut question).await.ok()?;
        let response = answer(gateway, peer, &question)?;
        let length = u16::try_from(response.len()).ok()?;
        let framed = [&length.to_be_bytes()[..], &response].concat();
        stream.write_all(&framed).await.ok()
    };
    matches!(tokio::time::timeout(IDLE, exchange).await, Ok(Some(())))
}

fn answer(gateway: &Gateway, peer: IpAddr, question: &[u8]) -> Option<Vec<u8>> {
    let Ok(session) = gateway.session(peer) else {
        gateway.stranger("dns", peer);
        return dns::refuse(question, Deny::UnknownSandbox).response;
    };
    decide(gateway, &session, question).response
}

fn decide(gateway: &Gateway, session: &Session, question: &[u8]) -> Answer {
    let answer = match (session.admit_query(), gateway.policy(&session.run.policy)) {
        (Err(deny), _) | (_, Err(deny)) => dns::refuse(question, deny),
        (Ok(()), Ok(policy)) => dns::decide(question, &policy.rules, &gateway.addresses),
    };
    let event = Event::question(answer.name.clone(), answer.kind.clone());
    match answer.deny {
        Some(deny) => session.deny(&event, deny),
        None => {
            if let Err(deny) = session.allow(&event) {
                session.deny(&event, deny);
                return dns::refuse(question, deny);
            }
        }
    }
    answer
}
