//! Questions of sandboxes to the gateway's name server.
#![no_main]

use std::net::{IpAddr, Ipv4Addr};

use agentsandbox_egress::deny::Deny;
use agentsandbox_egress::dns::{QUESTION_MAX, decide, refuse};
use agentsandbox_egress::name::HostName;
use agentsandbox_fuzz::{POLICY, bounded};
use hickory_proto::op::{Message, MessageType, ResponseCode};
use libfuzzer_sys::fuzz_target;

const SERVICE: IpAddr = IpAddr::V4(Ipv4Addr::new(10, 96, 3, 4));

fuzz_target!(|data: &[u8]| {
    // Compiled outside of what is measured.
    let policy = &*POLICY;
    let answer = bounded(data, 16 << 10, 64, || decide(data, policy, &[SERVICE]));
    assert!(answer.name.len() <= 4 * 256 && answer.name.bytes().all(|byte| byte.is_ascii_graphic()));
    let Some(bytes) = &answer.response else {
        assert!(answer.deny.is_some());
        return;
    };
    assert!(
        data.len() <= QUESTION_MAX && data[2] & 0x80 == 0,
        "only a question is answered"
    );
    assert!(
        bytes.len() <= data.len() + 64,
        "an answer is hardly longer than its question"
    );
    let message = Message::from_vec(bytes).expect("what is sent can be read");
    assert_eq!(message.metadata.message_type, MessageType::Response);
    assert_eq!(bytes[..2], data[..2]);
    if answer.deny.is_none() {
        let name = HostName::parse(&answer.name).expect("a name that is allowed is one");
        assert!(policy.names(&name));
        assert_eq!(message.metadata.response_code, ResponseCode::NoError);
        assert!(
            message
                .answers
                .iter()
                .all(|record| record.data.ip_addr() == Some(SERVICE))
        );
    } else {
        assert_eq!(message.metadata.response_code, ResponseCode::Refused);
        assert!(message.answers.is_empty());
    }
    // Whatever the question, a refusal carries nothing.
    let refused = refuse(data, Deny::UnknownSandbox);
    assert!(refused.deny.is_some());
    if let Some(bytes) = refused.response {
        assert!(Message::from_vec(&bytes).expect("a message").answers.is_empty());
    }
});
