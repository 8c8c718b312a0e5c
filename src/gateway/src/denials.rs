//! The destinations that a run was refused, as its status shows them: few, the latest first.

use std::cmp::Reverse;
use std::collections::HashMap;

use agentsandbox_api::sandbox::EgressDenial;
use agentsandbox_egress::deny::Deny;
use agentsandbox_egress::record::{DESTINATION_MAX, plain};
use k8s_openapi::apimachinery::pkg::apis::meta::v1::Time;
use k8s_openapi::jiff::Timestamp;

/// Destinations that status shows.
const SHOWN: usize = 16;
/// Destinations that are told apart between two writes of status. Of more than that only the number is known.
const KEPT: usize = 64;

/// What was refused since the last write of status.
#[derive(Debug, Default)]
pub struct Denials(HashMap<(String, Deny), Denial>);

#[derive(Clone, Copy, Debug)]
struct Denial {
    count: i64,
    last: Timestamp,
}

impl Denials {
    /// One more.
    pub fn add(&mut self, destination: &str, deny: Deny, at: Timestamp) {
        let key = (plain(destination, DESTINATION_MAX).into_owned(), deny);
        self.put(key, Denial { count: 1, last: at });
    }

    /// Those of a write that was not made.
    pub fn put_back(&mut self, others: &Self) {
        for (key, denial) in &others.0 {
            self.put(key.clone(), *denial);
        }
    }

    /// With those that status shows already.
    #[must_use]
    pub fn shown_with(&self, mut shown: Vec<EgressDenial>) -> Vec<EgressDenial> {
        for ((destination, deny), denial) in &self.0 {
            // Status holds whole seconds.
            let last = Timestamp::from_second(denial.last.as_second()).unwrap_or(denial.last);
            let known = shown
                .iter_mut()
                .find(|known| known.destination == *destination && known.reason == deny.as_str());
            if let Some(known) = known {
                known.count = known.count.saturating_add(denial.count);
                known.last_time = Some(Time(last));
            } else {
                shown.push(EgressDenial {
                    destination: destination.clone(),
                    reason: deny.as_str().to_owned(),
                    count: denial.count,
                    last_time: Some(Time(last)),
                });
            }
        }
        shown.sort_by_cached_key(|denial| {
            let last = denial.last_time.as_ref().map(|time| time.0);
            (Reverse(last), denial.destination.clone(), denial.reason.clone())
        });
        shown.truncate(SHOWN);
        shown
    }

    fn put(&mut self, key: (String, Deny), denial: Denial) {
        if self.0.len() >= KEPT && !self.0.contains_key(&key) {
            return;
        }
        let kept = self.0.entry(key).or_insert(Denial {
            count: 0,
            last: denial.last,
        });
        kept.count = kept.count.saturating_add(denial.count);
        kept.last = kept.last.max(denial.last);
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    fn at(second: i64) -> Timestamp {
        Timestamp::from_second(second).unwrap()
    }

    #[test]
    fn the_latest_are_shown_and_the_same_are_counted_together() {
        let mut denials = Denials::default();
        denials.add("a.example:443", Deny::HostNotAllowed, at(1));
        denials.add("b.example:443", Deny::HostNotAllowed, at(2));
        denials.add("a.example:443", Deny::HostNotAllowed, at(3));
        denials.add("a.example:443", Deny::PathNotAllowed, at(1));
        let shown = denials.shown_with(denials.shown_with(Vec::new()));
        let summary: Vec<_> = shown
            .iter()
            .map(|denial| (denial.destination.as_str(), denial.reason.as_str(), denial.count))
            .collect();
        let expected = [
            ("a.example:443", "HostNotAllowed", 4),
            ("b.example:443", "HostNotAllowed", 2),
            ("a.example:443", "PathNotAllowed", 2),
        ];
        assert_eq!(summary, expected);
    }

    #[test]
    fn however_many_are_refused_few_are_kept_and_fewer_shown() {
        let mut denials = Denials::default();
        for number in 0..1_000 {
            denials.add(
                &format!("{number}.example.{}", "x".repeat(500)),
                Deny::HostNotAllowed,
                at(number),
            );
        }
        assert_eq!(denials.0.len(), KEPT);
        let shown = denials.shown_with(Vec::new());
        assert_eq!(shown.len(), SHOWN);
        assert!(
            shown
                .iter()
                .all(|denial| denial.destination.len() <= DESTINATION_MAX)
        );
    }

    #[test]
    fn what_was_not_written_is_written_next_time() {
        let (mut denials, mut unwritten) = (Denials::default(), Denials::default());
        unwritten.add("a.example", Deny::HostNotAllowed, at(1));
        denials.add("a.example", Deny::HostNotAllowed, at(2));
        denials.put_back(&unwritten);
        let shown = denials.shown_with(Vec::new());
        assert_eq!(
            (shown[0].count, shown[0].last_time.clone()),
            (2, Some(Time(at(2))))
        );
    }
}
