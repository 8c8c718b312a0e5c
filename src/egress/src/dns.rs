//! DNS as sandboxes see it: the gateway's own address for names that the policy allows, a refusal for all else. Nothing
//! is passed on, so nothing can be carried out in questions or in by answers.

use std::net::IpAddr;

use hickory_proto::op::{Edns, Message, MessageType, OpCode, Query, ResponseCode};
use hickory_proto::rr::rdata::{A, AAAA};
use hickory_proto::rr::{DNSClass, Name, RData, Record, RecordType};

use crate::deny::Deny;
use crate::name::{HostName, NAME_MAX};
use crate::record;
use crate::rules::EgressPolicy;

/// Longest question, in bytes: a header, one name, and an EDNS record with a few options.
pub const QUESTION_MAX: usize = 512;
/// How long an answer may be kept, in seconds: not much longer than a policy takes to change.
const TTL_SECONDS: u32 = 5;
/// Size of UDP answers that is announced; ours are far below it.
const UDP_PAYLOAD: u16 = 1232;
/// Length of a message's header, in bytes.
const HEADER: usize = 12;

/// What becomes of a question.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct Answer {
    /// What to send; nothing for what is no question.
    pub response: Option<Vec<u8>>,
    /// The name asked for, plain and bounded; empty if none could be read.
    pub name: String,
    /// The type asked for, such as `A`; empty if none could be read.
    pub kind: String,
    /// Why it was refused.
    pub deny: Option<Deny>,
}

/// Answers a question, a DNS message without any framing. `service` are the addresses at which sandboxes reach the
/// gateway.
#[must_use]
pub fn decide(question: &[u8], policy: &EgressPolicy, service: &[IpAddr]) -> Answer {
    answer(question, |query| judge(query, policy, service))
}

/// Refuses a question for a reason that lies outside of it: no run is known, or it asks too fast.
#[must_use]
pub fn refuse(question: &[u8], deny: Deny) -> Answer {
    answer(question, |_| Err(deny))
}

fn answer(question: &[u8], judge: impl FnOnce(&Query) -> Result<Vec<RData>, Deny>) -> Answer {
    let Some(header) = question.first_chunk::<HEADER>() else {
        return nothing();
    };
    // A response, or a message longer than any honest question: answering would make the gateway a reflector.
    if header[2] & 0x80 != 0 || question.len() > QUESTION_MAX {
        return nothing();
    }
    let Some(message) = parse(question, header) else {
        return Answer {
            response: Some(header_only(header)),
            deny: Some(Deny::QueryNotAllowed),
            ..nothing()
        };
    };
    let Some(query) = message.queries.first() else {
        return nothing();
    };
    let judgement = if message.metadata.op_code == OpCode::Query {
        judge(query)
    } else {
        Err(Deny::QueryNotAllowed)
    };
    Answer {
        response: respond(&message, query, judgement.as_deref().map_err(|deny| *deny)),
        name: record::plain(&query.name().to_ascii(), NAME_MAX + 1)
            .trim_end_matches('.')
            .to_ascii_lowercase(),
        kind: record::plain(&query.query_type().to_string(), record::TEXT_MAX).into_owned(),
        deny: judgement.err(),
    }
}

fn nothing() -> Answer {
    Answer {
        response: None,
        name: String::new(),
        kind: String::new(),
        deny: Some(Deny::QueryNotAllowed),
    }
}

/// Reads a message with one question and nothing else but EDNS. The counts are looked at first: the parser makes room
/// for as many records as they promise.
fn parse(question: &[u8], header: &[u8; HEADER]) -> Option<Message> {
    let count = |at: usize| u16::from_be_bytes([header[at], header[at + 1]]);
    if (count(4), count(6), count(8)) != (1, 0, 0) || count(10) > 1 {
        return None;
    }
    let message = Message::from_vec(question).ok()?;
    // The one further record can only be EDNS.
    (message.additionals.is_empty() && message.signature.is_none()).then_some(message)
}

fn judge(query: &Query, policy: &EgressPolicy, service: &[IpAddr]) -> Result<Vec<RData>, Deny> {
    if query.query_class() != DNSClass::IN {
        return Err(Deny::QueryNotAllowed);
    }
    let host = host(query.name())?;
    if !policy.names(&host) {
        return Err(Deny::HostNotAllowed);
    }
    match query.query_type() {
        RecordType::A => Ok(service
            .iter()
            .filter_map(|address| match address {
                IpAddr::V4(address) => Some(RData::A(A(*address))),
                IpAddr::V6(_) => None,
            })
            .collect()),
        RecordType::AAAA => Ok(service
            .iter()
            .filter_map(|address| match address {
                IpAddr::V6(address) => Some(RData::AAAA(AAAA(*address))),
                IpAddr::V4(_) => None,
            })
            .collect()),
        // «There is none»: so no client learns keys for encrypted client hellos, or of HTTP/3.
        RecordType::HTTPS | RecordType::SVCB => Ok(Vec::new()),
        _ => Err(Deny::QueryNotAllowed),
    }
}

/// The name in a question. Its labels may hold any byte, dots included, so it is put together from them.
fn host(name: &Name) -> Result<HostName, Deny> {
    let mut text = String::new();
    for label in name {
        if !label
            .iter()
            .all(|byte| byte.is_ascii_alphanumeric() || matches!(byte, b'-' | b'_'))
        {
            return Err(Deny::NameMalformed);
        }
        if !text.is_empty() {
            text.push('.');
        }
        text.extend(label.iter().map(|byte| char::from(*byte)));
    }
    HostName::parse(&text)
}

fn respond(message: &Message, query: &Query, judgement: Result<&[RData], Deny>) -> Option<Vec<u8>> {
    let mut response = Message::new(
        message.metadata.id,
        MessageType::Response,
        message.metadata.op_code,
    );
    response.metadata.recursion_desired = message.metadata.recursion_desired;
    response.metadata.recursion_available = true;
    response.add_query(query.clone());
    response.metadata.response_code = match judgement {
        Ok(data) => {
            for data in data {
                response.add_answer(Record::from_rdata(
                    query.name().clone(),
                    TTL_SECONDS,
                    data.clone(),
                ));
            }
            ResponseCode::NoError
        }
        Err(_) => ResponseCode::Refused,
    };
    if message.edns.is_some() {
        let mut edns = Edns::new();
        edns.set_max_payload(UDP_PAYLOAD);
        response.set_edns(edns);
    }
    response.to_vec().ok()
}

/// A refusal for a question that can't be read beyond its header.
fn header_only(header: &[u8; HEADER]) -> Vec<u8> {
    let mut response = [0; HEADER];
    response[..2].copy_from_slice(&header[..2]);
    // A response of the same kind, recursion as desired.
    response[2] = 0x80 | (header[2] & 0x79);
    response[3] = 0x80 | 5;
    response.to_vec()
}

#[cfg(test)]
#[path = "dns_tests.rs"]
mod tests;
