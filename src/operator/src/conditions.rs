//! The one condition merger: transition times change only when a status does.

use k8s_openapi::apimachinery::pkg::apis::meta::v1::{Condition, Time};
use k8s_openapi::jiff::Timestamp;

/// The longest message that the API server takes is 32 KiB; nobody reads that much.
const MESSAGE_MAX_CHARS: usize = 2_000;

/// What a condition shall say.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct Say<'a> {
    /// `True`, `False` or `Unknown`.
    pub status: &'static str,
    /// `CamelCase` reason.
    pub reason: &'a str,
    /// For people.
    pub message: &'a str,
}

impl<'a> Say<'a> {
    /// Status `True`.
    #[must_use]
    pub fn yes(reason: &'a str, message: &'a str) -> Self {
        Self {
            status: "True",
            reason,
            message,
        }
    }

    /// Status `False`.
    #[must_use]
    pub fn no(reason: &'a str, message: &'a str) -> Self {
        Self {
            status: "False",
            reason,
            message,
        }
    }

    /// Status `Unknown`.
    #[must_use]
    pub fn unknown(reason: &'a str, message: &'a str) -> Self {
        Self {
            status: "Unknown",
            reason,
            message,
        }
    }
}

/// Sets one condition.
pub fn set(
    conditions: &mut Vec<Condition>,
    type_: &str,
    say: &Say<'_>,
    generation: Option<i64>,
    now: Timestamp,
) {
    let message = say.message.chars().take(MESSAGE_MAX_CHARS).collect();
    let mut new = Condition {
        type_: type_.to_owned(),
        status: say.status.to_owned(),
        reason: say.reason.to_owned(),
        message,
        observed_generation: generation,
        last_transition_time: Time(now),
    };
    match conditions.iter_mut().find(|condition| condition.type_ == type_) {
        Some(old) => {
            if old.status == new.status {
                new.last_transition_time = old.last_transition_time.clone();
            }
            *old = new;
        }
        None => conditions.push(new),
    }
}

/// Whether a condition is `True`.
#[must_use]
pub fn is_true(conditions: &[Condition], type_: &str) -> bool {
    find(conditions, type_).is_some_and(|condition| condition.status == "True")
}

/// A condition by its type.
#[must_use]
pub fn find<'a>(conditions: &'a [Condition], type_: &str) -> Option<&'a Condition> {
    conditions.iter().find(|condition| condition.type_ == type_)
}

#[cfg(test)]
mod tests {
    use super::*;
    use k8s_openapi::jiff::SignedDuration;

    #[test]
    fn the_transition_time_changes_only_with_the_status() {
        let start = Timestamp::UNIX_EPOCH;
        let later = start + SignedDuration::from_secs(60);
        let mut conditions = Vec::new();
        set(&mut conditions, "Ready", &Say::no("Starting", ""), Some(1), start);
        set(
            &mut conditions,
            "Ready",
            &Say::no("Scheduling", "x"),
            Some(2),
            later,
        );
        assert_eq!(conditions[0].last_transition_time.0, start);
        assert_eq!(conditions[0].reason, "Scheduling");
        set(&mut conditions, "Ready", &Say::yes("Running", ""), Some(2), later);
        assert_eq!(conditions[0].last_transition_time.0, later);
        assert_eq!(conditions.len(), 1);
    }
}
