//! What a recorder says to the gateway, as it arrives: its registration, then a charge for each step.

use agentsandbox_api::gateway::{CHARGE_MAX_BYTES, REGISTER_MAX_BYTES, Register, StepCharge};

use crate::identity::{Sha, parse_sha256};

/// What a recorder claims. Nothing of it is believed before its token is verified.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct Claim {
    /// UID of the pod that it says it is in.
    pub pod_uid: String,
    /// The token that shows it: a JWT, not verified.
    pub token: String,
    /// SHA-256 of the run's token.
    pub run_token: Sha,
}

/// Reads one line, without its end.
///
/// # Errors
/// What the recorder is told.
pub fn parse(line: &[u8]) -> Result<Claim, &'static str> {
    if line.len() > REGISTER_MAX_BYTES {
        return Err("this is no registration");
    }
    let request: Register = serde_json::from_slice(line).map_err(|_| "this is no registration")?;
    let run_token = parse_sha256(&request.run_token_sha256).ok_or("runTokenSha256 is no SHA-256")?;
    Ok(Claim {
        pod_uid: request.pod_uid,
        token: request.token,
        run_token,
    })
}

/// Reads a line, without its end, that asks for a step to be charged; the number of the question. `None` if it is
/// something else.
#[must_use]
pub fn parse_charge(line: &[u8]) -> Option<u64> {
    if line.len() > CHARGE_MAX_BYTES {
        return None;
    }
    let StepCharge { charge } = serde_json::from_slice(line).ok()?;
    Some(charge)
}

#[cfg(test)]
mod tests {
    use super::*;

    fn line(sha: &str) -> String {
        format!(r#"{{"podUid":"u-1","token":"a.b.c","runTokenSha256":"{sha}"}}"#)
    }

    #[test]
    fn what_a_recorder_sends_is_read() {
        let claim = Claim {
            pod_uid: "u-1".into(),
            token: "a.b.c".into(),
            run_token: [0xab; 32],
        };
        assert_eq!(parse(line(&"ab".repeat(32)).as_bytes()), Ok(claim));
    }

    #[test]
    fn a_charge_is_one_number_and_nothing_else() {
        let most = format!(r#"{{"charge":{}}}"#, u64::MAX);
        for (line, expected) in [
            (r#"{"charge":1}"#, Some(1)),
            (r#" {"charge": 7}"#, Some(7)),
            (most.as_str(), Some(u64::MAX)),
            (r#"{"charge":18446744073709551616}"#, None),
            (r#"{"charge":-1}"#, None),
            (r#"{"charge":1.0}"#, None),
            (r#"{"charge":"1"}"#, None),
            (r#"{"charge":null}"#, None),
            (r#"{"charge":1,"charge":2}"#, None),
            (r#"{"charge":1,"steps":2}"#, None),
            (r#"{"charge":1}{"charge":2}"#, None),
            ("{}", None),
            ("", None),
            ("nonsense", None),
        ] {
            assert_eq!(parse_charge(line.as_bytes()), expected, "{line}");
        }
        let padded = |length: usize| format!(r#"{{"charge":1{}}}"#, " ".repeat(length - 12));
        assert_eq!(parse_charge(padded(CHARGE_MAX_BYTES).as_bytes()), Some(1));
        assert_eq!(parse_charge(padded(CHARGE_MAX_BYTES + 1).as_bytes()), None);
    }

    #[test]
    fn everything_else_is_refused() {
        let long = format!("{}{}", line(&"ab".repeat(32)), " ".repeat(REGISTER_MAX_BYTES));
        let unknown = line(&"ab".repeat(32)).replace("token\"", "key\"");
        let twice = line(&"ab".repeat(32)).replace('{', r#"{"podUid":"u-2","#);
        for wrong in [
            line("AB"),
            line(&"AB".repeat(32)),
            line(""),
            "{}".into(),
            String::new(),
            long,
            unknown,
            twice,
        ] {
            assert!(parse(wrong.as_bytes()).is_err(), "{wrong:.80}");
        }
    }
}
