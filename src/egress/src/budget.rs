//! Budgets that hold: what one run, or all runs of one policy, may spend, as one gateway counts it.
//!
//! A budget lives in a status (`status.egress`), so that no gateway's death resets it. A gateway *claims* a part of it
//! by compare-and-swap on the object's `resourceVersion` **before** it spends anything of that part; what it has not
//! claimed, it never spends. From this one rule follow the others:
//!
//! * any number of gateways may serve one budget: the sum of what they spend never exceeds the sum of what they have
//!   claimed, and that never exceeds the limit;
//! * a gateway that crashes loses what it had claimed and not spent. [`Ledger`] claims [`CHUNK_PERCENT`] % of the budget
//!   at a time and gives back what is more than that ([`Ledger::release`]): a crash costs the requests in flight and one
//!   chunk;
//! * a gateway that ends in good order gives everything unspent back ([`Ledger::give_back`]).
//!
//! The round of a caller, where `object` is one version of the object that holds the budget:
//!
//! 1. `ledger.claimed(ZERO, object.claimed)`, then [`Ledger::reserve`].
//! 2. On [`Reserve::Claim`]`(add)`: write `object.claimed + add` with `object`'s `resourceVersion`. Written ⇒
//!    `ledger.claimed(add, object.claimed + add)`. Conflict ⇒ read the object again. No answer ⇒ read the object again
//!    too, and take nothing for claimed: if the write was made after all, that part is lost, which is the safe side.
//!    Then from 1.
//! 3. On [`Reserve::Granted`]: spend at most that, then [`Ledger::settle`] with what was really spent.
//!
//! Claims of one ledger go one at a time: two at once are safe, but one of them fails.

mod counters;
mod ledger;
#[cfg(test)]
mod tests;
mod window;

pub use counters::{CHUNK_PERCENT, Counters, Limits};
pub use ledger::{Ledger, Reservation, Reserve};
pub use window::{Window, window};
