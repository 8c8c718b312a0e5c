//! The ledger of one budget in one gateway.

use agentsandbox_api::reason::Reason;

use crate::deny::Deny;

use super::counters::{Counters, Kind, Limits};

/// Whose budget it is: it decides how a refusal is named, and whether it ends a run.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
enum Owner {
    Run,
    Policy,
}

/// An answer to [`Ledger::reserve`].
#[derive(Debug, PartialEq, Eq)]
#[must_use]
pub enum Reserve {
    /// So much may be spent; settle it afterwards.
    Granted(Reservation),
    /// Claim so much first, by compare-and-swap, then ask again.
    Claim(Counters),
    /// It does not fit now, but it would if what is in flight were settled at nothing. Ask again after the next settle;
    /// refuse with this if that takes too long.
    Wait(Deny),
    /// It does not fit, and never will (of a policy: not in this window).
    Refused(Deny),
}

/// Leave to spend. One that is never settled stays taken: the safe side.
#[derive(Debug, PartialEq, Eq)]
#[must_use = "a reservation that is not settled stays taken"]
pub struct Reservation {
    granted: Counters,
    epoch: u64,
}

impl Reservation {
    /// How much.
    #[must_use]
    pub fn granted(&self) -> Counters {
        self.granted
    }
}

/// One run's, or one policy's, budget as one gateway counts it. Pure: whoever calls it does the writes.
#[derive(Clone, Debug)]
pub struct Ledger {
    owner: Owner,
    limits: Limits,
    /// What the status says all gateways have claimed.
    total: Counters,
    /// What this gateway has claimed and not given back.
    mine: Counters,
    /// Of `mine`: what was spent. More than `mine` only if a request cost more than its reservation.
    spent: Counters,
    /// Of `mine`: what is in flight.
    reserved: Counters,
    /// No longer `mine`, and still in `total`: being given back.
    returning: Counters,
    refused: Option<Reason>,
    epoch: u64,
}

impl Ledger {
    /// The ledger of a run. `claimed_elsewhere` is `status.egress.claimed` as it stands: claimed by other gateways or by
    /// an earlier one, and spent for all this one knows.
    #[must_use]
    pub fn new(limits: Limits, claimed_elsewhere: Counters) -> Self {
        Self::of(Owner::Run, limits, claimed_elsewhere)
    }

    /// The ledger of a policy's quota. It refuses with [`Deny::PolicyQuotaExceeded`], and its exhaustion ends no run.
    #[must_use]
    pub fn for_policy(limits: Limits, claimed_elsewhere: Counters) -> Self {
        Self::of(Owner::Policy, limits, claimed_elsewhere)
    }

    fn of(owner: Owner, limits: Limits, total: Counters) -> Self {
        Self {
            owner,
            limits,
            total: total.or_zero(),
            mine: Counters::ZERO,
            spent: Counters::ZERO,
            reserved: Counters::ZERO,
            returning: Counters::ZERO,
            refused: None,
            epoch: 0,
        }
    }

    /// Leave to spend exactly `need`. Negative figures count as 0.
    pub fn reserve(&mut self, need: Counters) -> Reserve {
        self.reserve_between(need, need)
    }

    /// Leave to spend at least `least` and, as far as it is there, up to `most`: for bytes, of which any number will do.
    pub fn reserve_between(&mut self, least: Counters, most: Counters) -> Reserve {
        let least = least.or_zero();
        let most = most.zip(least, i64::max);
        let mut claim = false;
        let mut wait = None;
        for kind in Kind::ALL {
            match self.fit(kind, kind.of(least)) {
                Fit::Now => {}
                Fit::AfterClaim => claim = true,
                Fit::AfterSettling => wait = wait.or(Some(self.deny(kind))),
                Fit::Never => {
                    if self.owner == Owner::Run {
                        self.refused = self.refused.or(Some(Self::reason(kind)));
                    }
                    return Reserve::Refused(self.deny(kind));
                }
            }
        }
        if let Some(deny) = wait {
            return Reserve::Wait(deny);
        }
        if claim {
            return Reserve::Claim(Counters::from_kinds(|kind| {
                if matches!(self.fit(kind, kind.of(least)), Fit::AfterClaim) {
                    let wanted = kind.of(most).saturating_sub(self.free(kind));
                    wanted.max(self.limits.chunk(kind)).min(self.room(kind))
                } else {
                    0
                }
            }));
        }
        let granted = Counters::from_kinds(|kind| {
            if self.limits.of(kind).is_some() {
                kind.of(most).min(self.spendable(kind)).max(kind.of(least))
            } else {
                kind.of(most)
            }
        });
        self.reserved = self.reserved.plus(granted);
        Reserve::Granted(Reservation {
            granted,
            epoch: self.epoch,
        })
    }

    /// What the status says now: `total_in_status` is claimed by all gateways, of which `mine` is new and this
    /// gateway's. With `mine` 0 it is merely seen.
    pub fn claimed(&mut self, mine: Counters, total_in_status: Counters) {
        self.mine = self.mine.plus(mine.or_zero());
        self.total = total_in_status.or_zero();
    }

    /// Ends a reservation: `spent` was really spent, be it less or more than was granted.
    #[expect(
        clippy::needless_pass_by_value,
        reason = "a reservation that is taken can't be settled twice"
    )]
    pub fn settle(&mut self, reservation: Reservation, spent: Counters) {
        // What began in a window belongs to it, also if it ends in the next one.
        if reservation.epoch == self.epoch {
            self.reserved = self.reserved.minus(reservation.granted).or_zero();
            self.spent = self.spent.plus(spent.or_zero());
        }
    }

    /// Takes what is claimed beyond one chunk, and neither spent nor in flight, out of the ledger, to be taken off the
    /// status. Call it with each write of status; see [`Ledger::returned`].
    pub fn release(&mut self) -> Counters {
        let limits = self.limits;
        self.take_out(|kind| limits.chunk(kind))
    }

    /// Takes everything that is neither spent nor in flight out of the ledger: for the end of a run or of the gateway.
    pub fn give_back(&mut self) -> Counters {
        self.take_out(|_| 0)
    }

    fn take_out(&mut self, keep: impl Fn(Kind) -> i64) -> Counters {
        let surplus = Counters::from_kinds(|kind| {
            if self.limits.of(kind).is_some() {
                self.free(kind).saturating_sub(keep(kind)).max(0)
            } else {
                // Claimed before the limit was lifted.
                self.free(kind).max(0)
            }
        });
        self.mine = self.mine.minus(surplus);
        self.returning = self.returning.plus(surplus);
        surplus
    }

    /// `given`, from [`Ledger::release`] or [`Ledger::give_back`], has been taken off the status, which says
    /// `total_in_status` now; or could not be, and is lost.
    pub fn returned(&mut self, given: Counters, total_in_status: Counters) {
        self.returning = self.returning.minus(given.or_zero()).or_zero();
        self.total = total_in_status.or_zero();
    }

    /// What was spent and is not covered by claims, because a request cost more than its reservation. To be claimed with
    /// the next write, beyond the limit if need be: the status tells the truth.
    #[must_use]
    pub fn debt(&self) -> Counters {
        Counters::from_kinds(|kind| {
            if self.limits.of(kind).is_some() {
                self.free(kind).saturating_neg().max(0)
            } else {
                0
            }
        })
    }

    /// What was spent through this ledger (of a policy: in this window).
    #[must_use]
    pub fn used(&self) -> Counters {
        self.spent
    }

    /// What is reserved and not settled.
    #[must_use]
    pub fn in_flight(&self) -> Counters {
        self.reserved
    }

    /// Other limits from now on: the policy was edited.
    pub fn set_limits(&mut self, limits: Limits) {
        self.limits = limits;
    }

    /// A new window begins, of which other gateways have claimed `total_in_status` already. What is in flight stays with
    /// the old one.
    pub fn roll(&mut self, total_in_status: Counters) {
        self.epoch += 1;
        self.total = total_in_status.or_zero();
        self.mine = Counters::ZERO;
        self.spent = Counters::ZERO;
        self.reserved = Counters::ZERO;
        self.returning = Counters::ZERO;
    }

    /// The budget that ends the run: something was refused for want of it, or its tokens or bytes are used up.
    ///
    /// A run that has made its last model request has still to read the answer, and a session's last step has still to
    /// end: of requests and steps, only one that is asked for in vain ends it.
    #[must_use]
    pub fn exhausted(&self) -> Option<Reason> {
        let used_up = |kind: Kind| {
            self.limits.of(kind).is_some()
                && kind.of(self.spent) > 0
                && self
                    .free(kind)
                    .saturating_add(kind.of(self.reserved))
                    .saturating_add(kind.of(self.returning))
                    .saturating_add(self.room(kind).max(0))
                    <= 0
        };
        if self.owner == Owner::Policy {
            return None;
        }
        self.refused.or_else(|| {
            [Kind::Tokens, Kind::Bytes]
                .into_iter()
                .find(|kind| used_up(*kind))
                .map(Self::reason)
        })
    }

    /// Claimed, and neither spent nor in flight. Negative after a request that cost more than its reservation.
    fn free(&self, kind: Kind) -> i64 {
        kind.of(self.mine.minus(self.spent).minus(self.reserved))
    }

    /// Claimed by nobody. Negative after the limit was lowered.
    fn room(&self, kind: Kind) -> i64 {
        self.limits
            .of(kind)
            .map_or(i64::MAX, |limit| limit.saturating_sub(kind.of(self.total)))
    }

    /// What may be spent without another claim. A lowered limit binds what was claimed before it, too.
    fn spendable(&self, kind: Kind) -> i64 {
        self.free(kind).saturating_add(self.room(kind).min(0))
    }

    fn fit(&self, kind: Kind, need: i64) -> Fit {
        if self.limits.of(kind).is_none() || need == 0 {
            return Fit::Now;
        }
        let free = self.free(kind);
        let room = self.room(kind);
        if self.spendable(kind) >= need {
            Fit::Now
        } else if need.saturating_sub(free) <= room {
            Fit::AfterClaim
        } else if free
            .saturating_add(kind.of(self.reserved))
            .saturating_add(kind.of(self.returning))
            .saturating_add(room)
            >= need
        {
            Fit::AfterSettling
        } else {
            Fit::Never
        }
    }

    fn deny(&self, kind: Kind) -> Deny {
        match (self.owner, kind) {
            (Owner::Policy, _) => Deny::PolicyQuotaExceeded,
            (Owner::Run, Kind::Tokens) => Deny::TokenBudgetExceeded,
            (Owner::Run, Kind::Bytes) => Deny::EgressByteBudgetExceeded,
            (Owner::Run, Kind::ModelRequests) => Deny::ModelRequestBudgetExceeded,
            (Owner::Run, Kind::Steps) => Deny::StepBudgetExceeded,
        }
    }

    fn reason(kind: Kind) -> Reason {
        match kind {
            Kind::Tokens => Reason::TokenBudgetExceeded,
            Kind::Bytes => Reason::EgressByteBudgetExceeded,
            Kind::ModelRequests => Reason::ModelRequestBudgetExceeded,
            Kind::Steps => Reason::StepBudgetExceeded,
        }
    }
}

/// Whether something fits a budget.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
enum Fit {
    Now,
    AfterClaim,
    AfterSettling,
    Never,
}
