//! Tables and laws of [`super`].

use std::net::Ipv4Addr;
use std::str::FromStr;

use agentsandbox_api::policy::SandboxPolicySpec;
use hickory_proto::rr::rdata::NULL;
use proptest::prelude::*;
use serde_json::json;

use super::*;

const SERVICE: IpAddr = IpAddr::V4(Ipv4Addr::new(10, 96, 3, 4));

fn policy() -> EgressPolicy {
    let spec: SandboxPolicySpec = serde_json::from_value(json!({
        "egress": {"allow": [{"host": "api.example.org"}, {"host": "*.wild.example"}, {"cidr": "10.1.0.0/16", "ports": [22]}]},
        "models": [{"provider": "OpenAI", "host": "api.openai.example", "allow": ["gpt"]}],
    }))
    .unwrap();
    EgressPolicy::compile(&spec).unwrap()
}

fn question(name: &str, kind: RecordType) -> Message {
    let mut message = Message::new(4711, MessageType::Query, OpCode::Query);
    message.metadata.recursion_desired = true;
    message.add_query(Query::query(Name::from_str(name).unwrap(), kind));
    message
}

fn ask(message: &Message) -> (Answer, Message) {
    let answer = decide(&message.to_vec().unwrap(), &policy(), &[SERVICE]);
    let response = Message::from_vec(answer.response.as_deref().unwrap()).unwrap();
    (answer, response)
}

fn addresses(response: &Message) -> Vec<IpAddr> {
    response
        .answers
        .iter()
        .filter_map(|record| record.data.ip_addr())
        .collect()
}

#[test]
fn allowed_names_lead_to_the_gateway() {
    for name in [
        "api.example.org.",
        "API.Example.ORG.",
        "a.wild.example.",
        "a.b.wild.example.",
        "api.openai.example.",
    ] {
        let question = question(name, RecordType::A);
        let (answer, response) = ask(&question);
        assert_eq!(answer.deny, None, "{name}");
        assert_eq!(answer.kind, "A");
        assert_eq!(answer.name, name.trim_end_matches('.').to_lowercase());
        assert_eq!(addresses(&response), [SERVICE]);
        assert_eq!(response.metadata.response_code, ResponseCode::NoError);
        assert_eq!(response.metadata.id, 4711);
        assert!(response.metadata.recursion_desired && response.metadata.recursion_available);
        assert_eq!(response.answers[0].ttl, TTL_SECONDS);
        // The letters come back as they were asked, which clients that mix them check.
        assert!(response.queries[0].name().eq_case(question.queries[0].name()));
    }
}

#[test]
fn an_allowed_name_has_no_other_addresses_and_no_keys() {
    for kind in [RecordType::AAAA, RecordType::HTTPS, RecordType::SVCB] {
        let (answer, response) = ask(&question("api.example.org.", kind));
        assert_eq!(answer.deny, None, "{kind}");
        assert_eq!(response.metadata.response_code, ResponseCode::NoError);
        assert!(response.answers.is_empty());
    }
    let v6: IpAddr = "fd00::53".parse().unwrap();
    let both = decide(
        &question("api.example.org.", RecordType::AAAA).to_vec().unwrap(),
        &policy(),
        &[SERVICE, v6],
    );
    let response = Message::from_vec(&both.response.unwrap()).unwrap();
    assert_eq!(addresses(&response), [v6]);
}

#[test]
fn all_else_is_refused() {
    let long = format!("{}.wild.example.", "a".repeat(63));
    for (name, kind, deny) in [
        ("evil.example.", RecordType::A, Deny::HostNotAllowed),
        ("example.org.", RecordType::A, Deny::HostNotAllowed),
        ("wild.example.", RecordType::A, Deny::HostNotAllowed),
        ("evilapi.example.org.", RecordType::A, Deny::HostNotAllowed),
        (
            "api.example.org.evil.example.",
            RecordType::A,
            Deny::HostNotAllowed,
        ),
        (&long, RecordType::A, Deny::HostNotAllowed),
        ("kubernetes.", RecordType::A, Deny::NameMalformed),
        (".", RecordType::A, Deny::NameMalformed),
        ("4.3.96.10.in-addr.arpa.", RecordType::PTR, Deny::HostNotAllowed),
        ("api.example.org.", RecordType::TXT, Deny::QueryNotAllowed),
        ("api.example.org.", RecordType::ANY, Deny::QueryNotAllowed),
        ("api.example.org.", RecordType::AXFR, Deny::QueryNotAllowed),
        ("api.example.org.", RecordType::IXFR, Deny::QueryNotAllowed),
        ("api.example.org.", RecordType::MX, Deny::QueryNotAllowed),
        ("api.example.org.", RecordType::NS, Deny::QueryNotAllowed),
        ("api.example.org.", RecordType::CNAME, Deny::QueryNotAllowed),
        ("api.example.org.", RecordType::NULL, Deny::QueryNotAllowed),
        (
            "api.example.org.",
            RecordType::Unknown(65_000),
            Deny::QueryNotAllowed,
        ),
    ] {
        let (answer, response) = ask(&question(name, kind));
        assert_eq!(answer.deny, Some(deny), "{name} {kind}");
        assert_eq!(
            response.metadata.response_code,
            ResponseCode::Refused,
            "{name} {kind}"
        );
        assert!(
            response.answers.is_empty() && response.authorities.is_empty() && response.additionals.is_empty()
        );
    }
}

#[test]
fn other_classes_and_operations_are_refused() {
    let mut chaos = question("api.example.org.", RecordType::A);
    chaos.queries[0].set_query_class(DNSClass::CH);
    let mut notify = question("api.example.org.", RecordType::A);
    notify.metadata.op_code = OpCode::Notify;
    for message in [chaos, notify] {
        let (answer, response) = ask(&message);
        assert_eq!(answer.deny, Some(Deny::QueryNotAllowed));
        assert_eq!(response.metadata.response_code, ResponseCode::Refused);
    }
}

#[test]
fn edns_is_answered_with_edns() {
    let mut message = question("api.example.org.", RecordType::A);
    let (_, response) = ask(&message);
    assert!(response.edns.is_none());
    message.set_edns(Edns::new());
    let (answer, response) = ask(&message);
    assert_eq!(answer.deny, None);
    assert_eq!(response.edns.unwrap().max_payload(), UDP_PAYLOAD);
}

#[test]
fn messages_that_carry_more_than_a_question_are_refused() {
    let usual = question("api.example.org.", RecordType::A);
    let record = Record::from_rdata(
        Name::from_str("api.example.org.").unwrap(),
        1,
        RData::NULL(NULL::with(vec![7; 50])),
    );
    let mut two = usual.clone();
    two.add_query(two.queries[0].clone());
    let mut none = usual.clone();
    none.queries.clear();
    let mut answers = usual.clone();
    answers.add_answer(record.clone());
    let mut authorities = usual.clone();
    authorities.add_authority(record.clone());
    let mut additionals = usual;
    additionals.add_additional(record);
    for message in [two, none, answers, authorities, additionals] {
        let (answer, response) = ask(&message);
        assert_eq!(answer.deny, Some(Deny::QueryNotAllowed));
        assert_eq!(response.metadata.response_code, ResponseCode::Refused);
        assert_eq!(
            (response.metadata.id, response.metadata.message_type),
            (4711, MessageType::Response)
        );
        assert!(response.queries.is_empty());
    }
}

#[test]
fn what_is_no_question_is_not_answered() {
    let mut response = question("api.example.org.", RecordType::A);
    response.metadata.message_type = MessageType::Response;
    let long = [
        question("api.example.org.", RecordType::A).to_vec().unwrap(),
        vec![0; QUESTION_MAX],
    ]
    .concat();
    for bytes in [&b""[..], &[0; 11], &response.to_vec().unwrap(), &long] {
        let answer = decide(bytes, &policy(), &[SERVICE]);
        assert_eq!(
            (answer.response, answer.deny),
            (None, Some(Deny::QueryNotAllowed))
        );
    }
}

#[test]
fn counts_that_promise_much_cost_nothing() {
    let mut bytes = question("api.example.org.", RecordType::A).to_vec().unwrap();
    for at in [4, 6, 8, 10] {
        let mut bytes = bytes.clone();
        bytes[at] = 0xff;
        assert_eq!(
            decide(&bytes, &policy(), &[SERVICE]).deny,
            Some(Deny::QueryNotAllowed)
        );
    }
    bytes.truncate(20);
    let answer = decide(&bytes, &policy(), &[SERVICE]);
    assert_eq!(answer.response.unwrap().len(), HEADER);
}

#[test]
fn dots_inside_of_labels_are_no_borders() {
    // One label of `api.example` before `org`.
    let name = Name::from_labels([&b"api.example"[..], b"org"]).unwrap();
    let mut message = question("a.example.", RecordType::A);
    message.queries[0].set_name(name);
    assert_eq!(ask(&message).0.deny, Some(Deny::NameMalformed));
}

#[test]
fn an_unknown_sandbox_is_refused_with_its_own_reason() {
    let bytes = question("api.example.org.", RecordType::A).to_vec().unwrap();
    let answer = refuse(&bytes, Deny::UnknownSandbox);
    assert_eq!(
        (answer.deny, answer.name.as_str()),
        (Some(Deny::UnknownSandbox), "api.example.org")
    );
    let response = Message::from_vec(&answer.response.unwrap()).unwrap();
    assert_eq!(response.metadata.response_code, ResponseCode::Refused);
}

proptest! {
    #[test]
    fn any_bytes_are_answered_briefly_or_not_at_all(bytes in proptest::collection::vec(any::<u8>(), 0..600), questions in 0..3_u8) {
        let mut counted = bytes.clone();
        if let Some(header) = counted.first_chunk_mut::<HEADER>() {
            header[2] &= 0x7f;
            header[4..].copy_from_slice(&[0, questions, 0, 0, 0, 0, 0, 0]);
        }
        for bytes in [bytes, counted] {
            let answer = decide(&bytes, &policy(), &[SERVICE]);
            let length = answer.response.as_ref().map_or(0, Vec::len);
            prop_assert!(length <= bytes.len() + 32);
            prop_assert!(answer.name.len() <= NAME_MAX + 1 && answer.name.is_ascii());
            if answer.deny.is_none() {
                prop_assert!(policy().names(&HostName::parse(&answer.name).unwrap()));
            }
        }
    }

    #[test]
    fn a_damaged_question_is_answered_or_not(at in 0..33_usize, byte: u8, end in 0..=33_usize) {
        let mut bytes = question("api.example.org.", RecordType::A).to_vec().unwrap();
        prop_assert_eq!(bytes.len(), 33);
        bytes[at] = byte;
        let _ = decide(&bytes[..end], &policy(), &[SERVICE]);
    }

    #[test]
    fn only_names_of_the_policy_get_an_address(labels in proptest::collection::vec("[a-z]{1,10}|api|example|org|wild", 1..5), kind in 0..300_u16) {
        let name = labels.join(".");
        let (answer, response) = ask(&question(&format!("{name}."), RecordType::from(kind)));
        if !response.answers.is_empty() {
            prop_assert!(name == "api.example.org" || name.ends_with(".wild.example"));
            prop_assert_eq!(answer.kind, "A");
        }
    }
}
