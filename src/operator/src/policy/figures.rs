//! Figures of resources, limits and budgets, as whole numbers.

use agentsandbox_api::policy::Ceilings;
use agentsandbox_api::sandbox::{Limits, Quantity};

use crate::quantity;

/// Figures of one sandbox, all known.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub struct Figures {
    /// Thousandths of a CPU.
    pub cpu_millis: u64,
    /// Bytes of memory.
    pub memory_bytes: u64,
    /// Bytes of disk.
    pub disk_bytes: u64,
    /// Processes and threads.
    pub processes: u32,
    /// Wall-clock seconds.
    pub runtime_seconds: u32,
}

/// Ceilings on what only a gateway or a session can spend.
#[derive(Clone, Copy, Debug, Default, PartialEq, Eq)]
pub struct Budgets {
    /// Model tokens.
    pub tokens: Option<i64>,
    /// Model requests.
    pub model_requests: Option<i64>,
    /// Steps.
    pub steps: Option<i64>,
    /// Bytes through the egress gateway.
    pub egress_bytes: Option<i64>,
}

impl Budgets {
    /// Those of a sandbox or of a policy.
    #[must_use]
    pub fn of(limits: &Limits) -> Self {
        Self {
            tokens: limits.tokens,
            model_requests: limits.model_requests,
            steps: limits.steps,
            egress_bytes: limits.egress_bytes,
        }
    }

    /// Each that is above its ceiling: field, figure, ceiling.
    pub fn above(&self, most: &Self) -> impl Iterator<Item = (&'static str, i64, i64)> {
        [
            ("limits.tokens", self.tokens, most.tokens),
            ("limits.modelRequests", self.model_requests, most.model_requests),
            ("limits.steps", self.steps, most.steps),
            ("limits.egressBytes", self.egress_bytes, most.egress_bytes),
        ]
        .into_iter()
        .filter_map(|(field, asked, most)| Some((field, asked?, most?)))
        .filter(|(_, asked, most)| asked > most)
    }
}

/// What holds where neither a sandbox nor its policy says anything.
pub const BUILT_IN_DEFAULTS: Figures = Figures {
    cpu_millis: 1_000,
    memory_bytes: 512 << 20,
    disk_bytes: 1 << 30,
    processes: 256,
    runtime_seconds: 600,
};

/// The most a sandbox may ask for where its policy does not say.
pub const BUILT_IN_MAXIMUM: Figures = Figures {
    cpu_millis: 2_000,
    memory_bytes: 2 << 30,
    disk_bytes: 4 << 30,
    processes: 1_024,
    runtime_seconds: 3_600,
};

/// The longest TTL a sandbox may ask for where its policy does not say: seven days, in seconds.
pub const BUILT_IN_MAXIMUM_TTL_SECONDS: i64 = 7 * 86_400;

/// Reads the figures of a policy's ceilings; what is absent or wrong is `otherwise`.
pub(super) fn read(
    ceilings: Option<&Ceilings>,
    otherwise: Figures,
    path: &str,
    problems: &mut Vec<String>,
) -> Figures {
    let resources = ceilings
        .and_then(|ceilings| ceilings.resources.clone())
        .unwrap_or_default();
    let runtime = ceilings
        .and_then(|ceilings| ceilings.limits.as_ref())
        .and_then(|limits| limits.runtime_seconds);
    let mut amount = |field: &str,
                      given: Option<&Quantity>,
                      parse: fn(&Quantity) -> Result<u64, quantity::BadQuantity>,
                      otherwise: u64| match given.map(parse) {
        None => otherwise,
        Some(Ok(value)) => value,
        Some(Err(error)) => {
            problems.push(format!("{path}.resources.{field}: {error}"));
            otherwise
        }
    };
    Figures {
        cpu_millis: amount(
            "cpu",
            resources.cpu.as_ref(),
            quantity::cpu_millis,
            otherwise.cpu_millis,
        ),
        memory_bytes: amount(
            "memory",
            resources.memory.as_ref(),
            quantity::bytes,
            otherwise.memory_bytes,
        ),
        disk_bytes: amount(
            "ephemeralStorage",
            resources.ephemeral_storage.as_ref(),
            quantity::bytes,
            otherwise.disk_bytes,
        ),
        processes: resources
            .processes
            .and_then(|n| u32::try_from(n).ok())
            .unwrap_or(otherwise.processes),
        runtime_seconds: runtime
            .and_then(|n| u32::try_from(n).ok())
            .unwrap_or(otherwise.runtime_seconds),
    }
}

impl Figures {
    pub(super) fn at_most(&self, most: &Self) -> Self {
        Self {
            cpu_millis: self.cpu_millis.min(most.cpu_millis),
            memory_bytes: self.memory_bytes.min(most.memory_bytes),
            disk_bytes: self.disk_bytes.min(most.disk_bytes),
            processes: self.processes.min(most.processes),
            runtime_seconds: self.runtime_seconds.min(most.runtime_seconds),
        }
    }

    /// Each figure beside another's, with its field in the API.
    #[must_use]
    pub fn beside(&self, other: &Self) -> [(&'static str, u64, u64); 5] {
        [
            ("resources.cpu", self.cpu_millis, other.cpu_millis),
            ("resources.memory", self.memory_bytes, other.memory_bytes),
            ("resources.ephemeralStorage", self.disk_bytes, other.disk_bytes),
            (
                "resources.processes",
                self.processes.into(),
                other.processes.into(),
            ),
            (
                "limits.runtimeSeconds",
                self.runtime_seconds.into(),
                other.runtime_seconds.into(),
            ),
        ]
    }
}
