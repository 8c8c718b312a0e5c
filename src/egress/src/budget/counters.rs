//! What is counted, and how much of it there is.

use agentsandbox_api::policy::Quota;
use agentsandbox_api::sandbox;

/// How much of a budget one claim takes at least, in per cent: what a crash may cost beside the requests in flight.
/// Hundred writes of status spend a whole budget.
pub const CHUNK_PERCENT: i64 = 1;

/// What can be spent.
#[derive(Clone, Copy, Debug, Default, PartialEq, Eq)]
pub struct Counters {
    /// Model tokens, input and output together.
    pub tokens: i64,
    /// Model requests; each is a step too.
    pub model_requests: i64,
    /// Steps: model requests and a session's steps together.
    pub steps: i64,
    /// Bytes, both ways together.
    pub bytes: i64,
}

impl Counters {
    /// Nothing.
    pub const ZERO: Self = Self {
        tokens: 0,
        model_requests: 0,
        steps: 0,
        bytes: 0,
    };

    /// Whether all are 0.
    #[must_use]
    pub fn is_zero(self) -> bool {
        self == Self::ZERO
    }

    /// The sum, each figure held within `i64`.
    #[must_use]
    pub fn plus(self, other: Self) -> Self {
        self.zip(other, i64::saturating_add)
    }

    /// The difference, each figure held within `i64`.
    #[must_use]
    pub fn minus(self, other: Self) -> Self {
        self.zip(other, i64::saturating_sub)
    }

    /// With 0 in place of what is negative.
    #[must_use]
    pub fn or_zero(self) -> Self {
        self.zip(Self::ZERO, i64::max)
    }

    pub(super) fn zip(self, other: Self, with: impl Fn(i64, i64) -> i64) -> Self {
        Self::from_kinds(|kind| with(kind.of(self), kind.of(other)))
    }

    pub(super) fn from_kinds(figure: impl Fn(Kind) -> i64) -> Self {
        Self {
            tokens: figure(Kind::Tokens),
            model_requests: figure(Kind::ModelRequests),
            steps: figure(Kind::Steps),
            bytes: figure(Kind::Bytes),
        }
    }
}

impl From<sandbox::EgressCounters> for Counters {
    fn from(status: sandbox::EgressCounters) -> Self {
        Self {
            tokens: status.tokens,
            model_requests: status.model_requests,
            steps: status.steps,
            bytes: status.bytes,
        }
    }
}

impl From<Counters> for sandbox::EgressCounters {
    fn from(counters: Counters) -> Self {
        Self {
            tokens: counters.tokens,
            model_requests: counters.model_requests,
            steps: counters.steps,
            bytes: counters.bytes,
        }
    }
}

/// One of the four figures. In this order a refusal is explained, if several budgets are too small.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub(super) enum Kind {
    ModelRequests,
    Steps,
    Tokens,
    Bytes,
}

impl Kind {
    pub(super) const ALL: [Self; 4] = [Self::ModelRequests, Self::Steps, Self::Tokens, Self::Bytes];

    pub(super) fn of(self, counters: Counters) -> i64 {
        match self {
            Self::ModelRequests => counters.model_requests,
            Self::Steps => counters.steps,
            Self::Tokens => counters.tokens,
            Self::Bytes => counters.bytes,
        }
    }
}

/// The most that may be spent; unlimited where absent.
#[derive(Clone, Copy, Debug, Default, PartialEq, Eq)]
pub struct Limits {
    /// Model tokens.
    pub tokens: Option<i64>,
    /// Model requests.
    pub model_requests: Option<i64>,
    /// Steps: model requests and a session's steps together.
    pub steps: Option<i64>,
    /// Bytes, both ways together.
    pub bytes: Option<i64>,
}

impl Limits {
    /// Those of a run: the sandbox's own, and where it is silent its policy's maximum. A sandbox that asks for more than
    /// the maximum is not admitted; should the policy have been tightened since, the lower figure holds.
    #[must_use]
    pub fn of_run(asked: Option<&sandbox::Limits>, maximum: Option<&sandbox::Limits>) -> Self {
        let lower = |figure: fn(&sandbox::Limits) -> Option<i64>| {
            [asked.and_then(figure), maximum.and_then(figure)]
                .into_iter()
                .flatten()
                .min()
        };
        Self {
            tokens: lower(|limits| limits.tokens),
            model_requests: lower(|limits| limits.model_requests),
            steps: lower(|limits| limits.steps),
            bytes: lower(|limits| limits.egress_bytes),
        }
    }

    /// Those of all runs of a policy together, per window.
    #[must_use]
    pub fn of_policy(quota: Option<&Quota>) -> Self {
        Self {
            tokens: quota.and_then(|quota| quota.tokens),
            model_requests: quota.and_then(|quota| quota.model_requests),
            steps: None,
            bytes: None,
        }
    }

    /// Whether nothing is limited: no claim will ever be needed.
    #[must_use]
    pub fn is_unlimited(self) -> bool {
        Kind::ALL.iter().all(|kind| self.of(*kind).is_none())
    }

    pub(super) fn of(self, kind: Kind) -> Option<i64> {
        match kind {
            Kind::ModelRequests => self.model_requests,
            Kind::Steps => self.steps,
            Kind::Tokens => self.tokens,
            Kind::Bytes => self.bytes,
        }
    }

    /// What one claim takes at least. Rounded up, so that a small budget is claimed one by one.
    pub(super) fn chunk(self, kind: Kind) -> i64 {
        self.of(kind)
            .map_or(0, |limit| limit.max(0).saturating_add(99) / 100 * CHUNK_PERCENT)
    }
}
