//! An authoritative DNS server (RFC 1035) over UDP and TCP.

use std::net::IpAddr;
use std::sync::Arc;
use std::sync::atomic::{AtomicU64, Ordering};
use std::time::Duration;

use serde_json::json;
use tokio::io::{AsyncReadExt, AsyncWriteExt};
use tokio::net::{TcpListener, TcpStream, UdpSocket};
use tokio::time::timeout;

use crate::World;
use crate::names::{Meaning, meaning};

const A: u16 = 1;
const CNAME: u16 = 5;
const TXT: u16 = 16;
const AAAA: u16 = 28;
const NO_ERROR: u8 = 0;
const FORMAT_ERROR: u8 = 1;
const SERVER_FAILURE: u8 = 2;
const NAME_ERROR: u8 = 3;
const REFUSED: u8 = 5;
/// Seconds that a TCP connection may be idle.
const IDLE: Duration = Duration::from_secs(30);

/// Queries so far: what a rebinding name answers depends on it.
static TURN: AtomicU64 = AtomicU64::new(0);

/// Answers datagrams for ever.
pub async fn serve_udp(world: Arc<World>, socket: UdpSocket) {
    let mut buffer = [0; 4096];
    loop {
        let Ok((length, from)) = socket.recv_from(&mut buffer).await else {
            continue;
        };
        if let Some(answer) = answer(&world, &buffer[..length], "udp") {
            let _ = socket.send_to(&answer, from).await;
        }
    }
}

/// Answers connections for ever.
pub async fn serve_tcp(world: Arc<World>, listener: TcpListener) {
    loop {
        if let Ok((stream, _)) = listener.accept().await {
            tokio::spawn(serve_connection(Arc::clone(&world), stream));
        }
    }
}

async fn serve_connection(world: Arc<World>, mut stream: TcpStream) {
    let mut buffer = [0; 4096];
    while let Ok(Ok(length)) = timeout(IDLE, stream.read_u16()).await {
        let Some(room) = buffer.get_mut(..usize::from(length)) else {
            return;
        };
        if !matches!(timeout(IDLE, stream.read_exact(room)).await, Ok(Ok(_))) {
            return;
        }
        let Some(answer) = answer(&world, room, "tcp") else {
            return;
        };
        let length = u16::try_from(answer.len()).unwrap_or_default();
        if stream.write_u16(length).await.is_err() || stream.write_all(&answer).await.is_err() {
            return;
        }
    }
}

/// The answer to one message, if there is to be any. What is no message comes back as it was.
fn answer(world: &World, query: &[u8], transport: &str) -> Option<Vec<u8>> {
    let Some(question) = Question::parse(query) else {
        return Some(query.to_vec());
    };
    let turn = if question.name.starts_with("rebind.") {
        TURN.fetch_add(1, Ordering::Relaxed)
    } else {
        0
    };
    world.journal.note(
        "dns",
        json!({"name": question.name, "type": question.kind, "transport": transport}),
    );
    let answer_with = |code, records: &[_]| question.answer(code, world.dns_ttl, records);
    let answer = match meaning(world.network, &question.name, turn) {
        Meaning::Silence => return None,
        Meaning::Failure => answer_with(SERVER_FAILURE, &[]),
        Meaning::Foreign => answer_with(REFUSED, &[]),
        Meaning::Nothing => answer_with(NAME_ERROR, &[]),
        Meaning::Alias(name) => answer_with(NO_ERROR, &[(CNAME, encode_name(&name))]),
        Meaning::Addresses(addresses) => {
            let records: Vec<(u16, Vec<u8>)> = addresses
                .into_iter()
                .filter_map(|address| match (address, question.kind) {
                    (IpAddr::V4(address), A) => Some((A, address.octets().to_vec())),
                    (IpAddr::V6(address), AAAA) => Some((AAAA, address.octets().to_vec())),
                    _ => None,
                })
                .collect();
            if question.kind == TXT {
                answer_with(NO_ERROR, &[(TXT, b"\x07outside".to_vec())])
            } else {
                answer_with(NO_ERROR, &records)
            }
        }
    };
    Some(answer)
}

/// The one question of a query.
struct Question<'a> {
    header: [u8; 4],
    /// Lower case, without trailing dot.
    name: String,
    kind: u16,
    /// As it came, to be sent back.
    bytes: &'a [u8],
}

impl<'a> Question<'a> {
    fn parse(query: &'a [u8]) -> Option<Self> {
        let header: [u8; 4] = query.get(..4)?.try_into().ok()?;
        let questions = u16::from_be_bytes(query.get(4..6)?.try_into().ok()?);
        if questions != 1 || header[2] & 0x80 != 0 {
            return None;
        }
        let mut labels = Vec::new();
        let mut at = 12;
        loop {
            let length = usize::from(*query.get(at)?);
            at += 1;
            if length == 0 {
                break;
            }
            let label = query.get(at..at + length)?;
            labels.push(String::from_utf8_lossy(label).to_ascii_lowercase());
            at += length;
        }
        let kind = u16::from_be_bytes(query.get(at..at + 2)?.try_into().ok()?);
        Some(Self {
            header,
            name: labels.join("."),
            kind,
            bytes: query.get(12..at + 4)?,
        })
    }

    fn answer(&self, code: u8, ttl: u32, records: &[(u16, Vec<u8>)]) -> Vec<u8> {
        debug_assert_ne!(code, FORMAT_ERROR);
        let count = u8::try_from(records.len()).unwrap_or_default();
        // A response, authoritative; recursion is asked for as it was, and available.
        let flags = [0x84 | (self.header[2] & 1), 0x80 | code];
        let mut out = Vec::new();
        out.extend([self.header[0], self.header[1], flags[0], flags[1]]);
        out.extend([0, 1, 0, count, 0, 0, 0, 0]);
        out.extend(self.bytes);
        for (kind, data) in records {
            // The name is the question's; class IN.
            out.extend([0xc0, 12]);
            out.extend(kind.to_be_bytes());
            out.extend([0, 1]);
            out.extend(ttl.to_be_bytes());
            out.extend(u16::try_from(data.len()).unwrap_or_default().to_be_bytes());
            out.extend(data);
        }
        out
    }
}

fn encode_name(name: &str) -> Vec<u8> {
    let mut out = Vec::new();
    for label in name.split('.') {
        out.push(u8::try_from(label.len()).unwrap_or_default());
        out.extend(label.bytes());
    }
    out.push(0);
    out
}

#[cfg(test)]
mod tests {
    use super::*;

    fn query(name: &str, kind: u16) -> Vec<u8> {
        let mut out = vec![0xab, 0xcd, 1, 0, 0, 1, 0, 0, 0, 0, 0, 0];
        out.extend(encode_name(name));
        out.extend(kind.to_be_bytes());
        out.extend([0, 1]);
        out
    }

    #[test]
    fn a_question_is_read_and_answered() {
        let bytes = query("Api.Example.test", A);
        let question = Question::parse(&bytes).unwrap();
        assert_eq!((question.name.as_str(), question.kind), ("api.example.test", A));
        let answer = question.answer(NO_ERROR, 60, &[(A, vec![1, 2, 3, 4])]);
        assert_eq!(&answer[..4], &[0xab, 0xcd, 0x85, 0x80]);
        // TTL, length and address.
        assert_eq!(&answer[answer.len() - 10..], &[0, 0, 0, 60, 0, 4, 1, 2, 3, 4]);
    }

    #[test]
    fn what_is_no_question_is_none() {
        for bytes in [
            &b"ping"[..],
            &[0; 11],
            &[0, 0, 0x80, 0, 0, 1, 0, 0, 0, 0, 0, 0, 0, 0, 1, 0, 1],
        ] {
            assert!(Question::parse(bytes).is_none());
        }
    }
}
