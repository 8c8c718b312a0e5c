//! Tables and laws of budgets.

use agentsandbox_api::policy::Quota;
use agentsandbox_api::reason::Reason;
use agentsandbox_api::sandbox;
use proptest::prelude::*;

use super::{Counters, Ledger, Limits, Reservation, Reserve, Window, window};
use crate::deny::Deny;

fn tokens(tokens: i64) -> Counters {
    Counters {
        tokens,
        ..Counters::ZERO
    }
}

fn requests(model_requests: i64) -> Counters {
    Counters {
        model_requests,
        ..Counters::ZERO
    }
}

fn steps(steps: i64) -> Counters {
    Counters {
        steps,
        ..Counters::ZERO
    }
}

/// What a model request takes besides tokens.
fn model_request() -> Counters {
    requests(1).plus(steps(1))
}

fn bytes(bytes: i64) -> Counters {
    Counters {
        bytes,
        ..Counters::ZERO
    }
}

fn token_limit(tokens: i64) -> Limits {
    Limits {
        tokens: Some(tokens),
        ..Limits::default()
    }
}

/// What the API server holds of one budget.
#[derive(Clone, Copy, Debug, Default)]
struct Status {
    claimed: Counters,
    version: u64,
}

impl Status {
    fn write(&mut self, version: u64, claimed: Counters) -> bool {
        let is_current = version == self.version;
        if is_current {
            self.version += 1;
            self.claimed = claimed;
        }
        is_current
    }
}

/// Reserves as a gateway does, its writes never in another's way.
fn reserve(ledger: &mut Ledger, status: &mut Status, need: Counters) -> Result<Reservation, Deny> {
    loop {
        ledger.claimed(Counters::ZERO, status.claimed);
        match ledger.reserve(need) {
            Reserve::Granted(reservation) => return Ok(reservation),
            Reserve::Claim(add) => {
                assert!(status.write(status.version, status.claimed.plus(add)));
                ledger.claimed(add, status.claimed);
            }
            Reserve::Wait(deny) | Reserve::Refused(deny) => return Err(deny),
        }
    }
}

/// What a gateway does with each write of status.
fn release(ledger: &mut Ledger, status: &mut Status) {
    let given = ledger.release();
    status.write(status.version, status.claimed.minus(given));
    ledger.returned(given, status.claimed);
}

#[test]
fn a_claim_is_a_hundredth_of_the_budget_or_what_is_needed() {
    for (limit, need, claim) in [
        (1_000_000, 500, 10_000),
        (1_000_000, 25_000, 25_000),
        (1_000, 1, 10),
        (150, 1, 2),
        (3, 1, 1),
        (1_000, 1_000, 1_000),
        (i64::MAX, 1, 92_233_720_368_547_758),
    ] {
        let mut ledger = Ledger::new(token_limit(limit), Counters::ZERO);
        assert_eq!(
            ledger.reserve(tokens(need)),
            Reserve::Claim(tokens(claim)),
            "{limit}"
        );
    }
}

#[test]
fn nothing_is_spent_before_it_is_claimed() {
    let mut ledger = Ledger::new(token_limit(100), Counters::ZERO);
    assert_eq!(ledger.reserve(tokens(10)), Reserve::Claim(tokens(10)));
    // The claim was not written: another one was faster.
    ledger.claimed(Counters::ZERO, tokens(5));
    assert_eq!(ledger.reserve(tokens(10)), Reserve::Claim(tokens(10)));
    ledger.claimed(tokens(10), tokens(15));
    let Reserve::Granted(reservation) = ledger.reserve(tokens(10)) else {
        panic!("not granted");
    };
    assert_eq!(reservation.granted(), tokens(10));
    assert_eq!(ledger.reserve(tokens(1)), Reserve::Claim(tokens(1)));
}

#[test]
fn two_requests_at_once_cannot_overspend() {
    let mut status = Status::default();
    let mut ledger = Ledger::new(token_limit(100), Counters::ZERO);
    let first = reserve(&mut ledger, &mut status, tokens(60)).unwrap();
    // It might fit, if the first turns out to be cheap.
    ledger.claimed(Counters::ZERO, status.claimed);
    assert_eq!(
        ledger.reserve(tokens(60)),
        Reserve::Wait(Deny::TokenBudgetExceeded)
    );
    assert_eq!(ledger.exhausted(), None);
    ledger.settle(first, tokens(20));
    let second = reserve(&mut ledger, &mut status, tokens(60)).unwrap();
    ledger.settle(second, tokens(60));
    // Now it never will.
    assert_eq!(
        reserve(&mut ledger, &mut status, tokens(60)),
        Err(Deny::TokenBudgetExceeded)
    );
    assert_eq!(ledger.exhausted(), Some(Reason::TokenBudgetExceeded));
    assert_eq!(ledger.used(), tokens(80));
}

#[test]
fn each_budget_is_refused_by_its_own_name() {
    let limits = |model_requests, steps| Limits {
        model_requests,
        steps,
        tokens: Some(10),
        bytes: Some(10),
    };
    for (limits, need, deny, reason) in [
        (
            limits(Some(0), Some(0)),
            model_request(),
            Deny::ModelRequestBudgetExceeded,
            Reason::ModelRequestBudgetExceeded,
        ),
        (
            limits(Some(1), Some(0)),
            model_request(),
            Deny::StepBudgetExceeded,
            Reason::StepBudgetExceeded,
        ),
        (
            limits(None, Some(0)),
            model_request(),
            Deny::StepBudgetExceeded,
            Reason::StepBudgetExceeded,
        ),
        (
            limits(Some(0), Some(0)),
            steps(1),
            Deny::StepBudgetExceeded,
            Reason::StepBudgetExceeded,
        ),
        (
            limits(None, None),
            tokens(11),
            Deny::TokenBudgetExceeded,
            Reason::TokenBudgetExceeded,
        ),
        (
            limits(None, None),
            bytes(11),
            Deny::EgressByteBudgetExceeded,
            Reason::EgressByteBudgetExceeded,
        ),
    ] {
        let mut ledger = Ledger::new(limits, Counters::ZERO);
        assert_eq!(ledger.exhausted(), None);
        assert_eq!(ledger.reserve(need), Reserve::Refused(deny));
        assert_eq!(ledger.exhausted(), Some(reason));
        let mut ledger = Ledger::for_policy(limits, Counters::ZERO);
        assert_eq!(ledger.reserve(need), Reserve::Refused(Deny::PolicyQuotaExceeded));
        assert_eq!(ledger.exhausted(), None);
    }
}

#[test]
fn model_requests_and_a_sessions_steps_share_the_steps() {
    let limits = Limits {
        model_requests: Some(4),
        steps: Some(6),
        ..Limits::default()
    };
    let mut status = Status::default();
    let mut ledger = Ledger::new(limits, Counters::ZERO);
    for need in [
        steps(1),
        model_request(),
        model_request(),
        steps(1),
        model_request(),
    ] {
        let reservation = reserve(&mut ledger, &mut status, need).unwrap();
        ledger.settle(reservation, need);
    }
    // The sixth is in flight: a step may wait for it, as it may turn out not to have been sent.
    let last = reserve(&mut ledger, &mut status, model_request()).unwrap();
    assert_eq!(ledger.reserve(steps(1)), Reserve::Wait(Deny::StepBudgetExceeded));
    assert_eq!(ledger.exhausted(), None);
    ledger.settle(last, model_request());
    assert_eq!(ledger.exhausted(), None, "the last answer is still read");
    assert_eq!(
        ledger.reserve(steps(1)),
        Reserve::Refused(Deny::StepBudgetExceeded)
    );
    assert_eq!(ledger.exhausted(), Some(Reason::StepBudgetExceeded));
    assert_eq!(ledger.used(), requests(4).plus(steps(6)));
    assert_eq!(status.claimed, ledger.used());
}

#[test]
fn what_is_not_limited_needs_no_claim() {
    let mut ledger = Ledger::new(Limits::default(), Counters::ZERO);
    let need = Counters {
        tokens: 1 << 40,
        model_requests: 1,
        steps: 1,
        bytes: 1 << 50,
    };
    let Reserve::Granted(reservation) = ledger.reserve(need) else {
        panic!("not granted");
    };
    ledger.settle(reservation, need);
    assert_eq!(ledger.used(), need);
    assert_eq!(ledger.release(), Counters::ZERO);
    assert_eq!(ledger.debt(), Counters::ZERO);
    assert_eq!(ledger.exhausted(), None);
}

#[test]
fn tokens_and_bytes_that_are_used_up_end_the_run_and_the_last_request_does_not() {
    let limits = Limits {
        tokens: Some(100),
        model_requests: Some(1),
        steps: Some(1),
        bytes: Some(100),
    };
    for (spent, expected) in [
        (model_request(), None),
        (steps(1), None),
        (tokens(99), None),
        (tokens(100), Some(Reason::TokenBudgetExceeded)),
        (tokens(170), Some(Reason::TokenBudgetExceeded)),
        (bytes(100), Some(Reason::EgressByteBudgetExceeded)),
    ] {
        let mut status = Status::default();
        let mut ledger = Ledger::new(limits, Counters::ZERO);
        let reservation = reserve(&mut ledger, &mut status, spent.zip(tokens(100), i64::min)).unwrap();
        let reservation = if spent.bytes > 0 {
            ledger.settle(reservation, Counters::ZERO);
            reserve(&mut ledger, &mut status, spent).unwrap()
        } else {
            reservation
        };
        ledger.settle(reservation, spent);
        assert_eq!(ledger.exhausted(), expected, "{spent:?}");
    }
}

#[test]
fn of_bytes_what_is_there_is_granted() {
    let mut status = Status::default();
    let limits = Limits {
        bytes: Some(1_000),
        ..Limits::default()
    };
    let mut ledger = Ledger::new(limits, Counters::ZERO);
    let mut granted = Vec::new();
    loop {
        ledger.claimed(Counters::ZERO, status.claimed);
        match ledger.reserve_between(bytes(1), bytes(400)) {
            Reserve::Granted(reservation) => {
                let amount = reservation.granted();
                granted.push(amount.bytes);
                ledger.settle(reservation, amount);
            }
            Reserve::Claim(add) => {
                status.write(status.version, status.claimed.plus(add));
                ledger.claimed(add, status.claimed);
            }
            Reserve::Wait(_) => panic!("nothing is in flight"),
            Reserve::Refused(deny) => {
                assert_eq!(deny, Deny::EgressByteBudgetExceeded);
                break;
            }
        }
    }
    assert_eq!(granted, [400, 400, 200]);
}

#[test]
fn what_costs_more_than_its_reservation_is_owed() {
    let mut status = Status::default();
    let mut ledger = Ledger::new(token_limit(1_000), Counters::ZERO);
    let reservation = reserve(&mut ledger, &mut status, tokens(10)).unwrap();
    ledger.settle(reservation, tokens(300));
    let owed = ledger.debt();
    assert_eq!(owed, tokens(290));
    // The next claim covers it, if no write has done so before.
    assert_eq!(ledger.reserve(tokens(5)), Reserve::Claim(tokens(295)));
    status.write(status.version, status.claimed.plus(owed));
    ledger.claimed(owed, status.claimed);
    assert_eq!(ledger.debt(), Counters::ZERO);
    assert_eq!(status.claimed, tokens(300));
}

#[test]
fn a_negative_need_or_cost_gives_nothing_back() {
    let mut status = Status::default();
    let mut ledger = Ledger::new(token_limit(100), Counters::ZERO);
    let reservation = reserve(&mut ledger, &mut status, tokens(-5)).unwrap();
    assert_eq!(reservation.granted(), Counters::ZERO);
    ledger.settle(reservation, tokens(-50));
    assert_eq!(ledger.used(), Counters::ZERO);
    ledger.claimed(tokens(-7), tokens(-7));
    assert_eq!(
        ledger.reserve(tokens(101)),
        Reserve::Refused(Deny::TokenBudgetExceeded)
    );
}

#[test]
fn a_lowered_limit_binds_at_once() {
    let mut status = Status::default();
    let mut ledger = Ledger::new(token_limit(10_000), Counters::ZERO);
    let reservation = reserve(&mut ledger, &mut status, tokens(10)).unwrap();
    ledger.settle(reservation, tokens(10));
    ledger.set_limits(token_limit(50));
    // 100 are claimed, 10 of them spent.
    assert_eq!(
        ledger.reserve(tokens(41)),
        Reserve::Refused(Deny::TokenBudgetExceeded)
    );
    assert!(matches!(ledger.reserve(tokens(40)), Reserve::Granted(_)));
}

#[test]
fn twenty_kills_cost_each_run_its_requests_in_flight_and_a_chunk() {
    let limit = 1_000_000;
    let need = 30_000;
    let spent = 2_000;
    let mut busy = Status::default();
    let mut idle = Status::default();
    let mut total = 0;
    let mut ledger = Ledger::new(token_limit(limit), Counters::ZERO);
    let reservation = reserve(&mut ledger, &mut idle, tokens(500)).unwrap();
    ledger.settle(reservation, tokens(500));
    for kill in 1..=20 {
        let mut ledger = Ledger::new(token_limit(limit), busy.claimed);
        for _ in 0..3 {
            let reservation = reserve(&mut ledger, &mut busy, tokens(need)).unwrap();
            ledger.settle(reservation, tokens(spent));
            total += spent;
            release(&mut ledger, &mut busy);
        }
        let in_flight = reserve(&mut ledger, &mut busy, tokens(need / 2)).unwrap();
        // Killed: what is in flight is never settled.
        drop((in_flight, ledger));
        // The neighbour's gateway is killed too, and has nothing to do in between.
        let _ = Ledger::new(token_limit(limit), idle.claimed);
        assert!(
            busy.claimed.tokens - total <= kill * (need / 2 + limit / 100),
            "{kill}"
        );
    }
    assert_eq!(idle.claimed, tokens(limit / 100));
}

#[test]
fn a_run_has_the_lower_of_its_own_and_its_policys_limits() {
    let of = |tokens: Option<i64>, egress_bytes| sandbox::Limits {
        tokens,
        egress_bytes,
        ..sandbox::Limits::default()
    };
    for (asked, maximum, expected) in [
        (None, None, (None, None)),
        (Some(of(Some(5), None)), None, (Some(5), None)),
        (None, Some(of(Some(7), Some(9))), (Some(7), Some(9))),
        (
            Some(of(Some(5), None)),
            Some(of(Some(7), Some(9))),
            (Some(5), Some(9)),
        ),
        (Some(of(Some(8), None)), Some(of(Some(7), None)), (Some(7), None)),
    ] {
        let limits = Limits::of_run(asked.as_ref(), maximum.as_ref());
        assert_eq!((limits.tokens, limits.bytes), expected);
    }
    let quota = Quota {
        tokens: Some(3),
        ..Quota::default()
    };
    assert_eq!(Limits::of_policy(Some(&quota)), token_limit(3));
    assert!(Limits::of_policy(None).is_unlimited());
}

#[test]
fn windows_begin_at_multiples_of_their_length_and_never_go_back() {
    let window_of = |now, length, recorded| {
        let Window { start, fresh } = window(now, length, recorded);
        (start, fresh)
    };
    for (now, length, recorded, expected) in [
        (1_000, None, None, (None, false)),
        (1_000, None, Some(900), (None, false)),
        (1_000, Some(0), Some(900), (None, false)),
        // What was counted before there were windows counts in the first.
        (1_000, Some(300), None, (Some(900), false)),
        (1_000, Some(300), Some(900), (Some(900), false)),
        (1_199, Some(300), Some(900), (Some(900), false)),
        (1_200, Some(300), Some(900), (Some(1_200), true)),
        (5_000, Some(300), Some(900), (Some(4_800), true)),
        // A clock that is behind.
        (1_190, Some(300), Some(1_200), (Some(1_200), false)),
        // A longer window than before.
        (1_250, Some(3_600), Some(1_200), (Some(1_200), false)),
        // A clock that was wrong.
        (1_000, Some(300), Some(9_000_000), (Some(900), false)),
        (-10, Some(300), None, (Some(-300), false)),
        (i64::MAX, Some(60), Some(i64::MAX), (Some(i64::MAX), false)),
    ] {
        assert_eq!(
            window_of(now, length, recorded),
            expected,
            "{now} {length:?} {recorded:?}"
        );
    }
}

#[test]
fn what_began_in_a_window_belongs_to_it() {
    let mut status = Status::default();
    let mut ledger = Ledger::for_policy(token_limit(1_000), Counters::ZERO);
    let old = reserve(&mut ledger, &mut status, tokens(900)).unwrap();
    ledger.roll(Counters::ZERO);
    let mut status = Status::default();
    let new = reserve(&mut ledger, &mut status, tokens(900)).unwrap();
    ledger.settle(old, tokens(900));
    assert_eq!(ledger.used(), Counters::ZERO);
    ledger.settle(new, tokens(800));
    assert_eq!(ledger.used(), tokens(800));
}

/// One thing that happens to gateways that share a budget.
#[derive(Clone, Copy, Debug)]
enum Event {
    /// A gateway asks for so much, and claims up to a few times.
    Reserve(usize, Counters),
    /// Its oldest request ends at so many per cent of what was reserved.
    Settle(usize, i64),
    /// It hears of the status.
    See(usize),
    /// It gives back its surplus; if false, the answer to its write is lost.
    Release(usize, bool),
    /// It gives back everything.
    GiveBack(usize),
    /// It claims, and the answer is lost.
    LoseAnswer(usize, Counters),
    /// It dies, and another one begins.
    Crash(usize),
}

fn any_counters() -> impl Strategy<Value = Counters> {
    (0..40_i64, 0..3_i64, 0..3_i64, 0..300_i64).prop_map(|(tokens, model_requests, steps, bytes)| Counters {
        tokens,
        model_requests,
        steps,
        bytes,
    })
}

fn any_event(gateways: usize, crashes: bool) -> impl Strategy<Value = Event> {
    let gateway = 0..gateways;
    let rare = u32::from(crashes);
    prop_oneof![
        8 => (gateway.clone(), any_counters()).prop_map(|(at, need)| Event::Reserve(at, need)),
        8 => (gateway.clone(), 0..=100_i64).prop_map(|(at, part)| Event::Settle(at, part)),
        3 => gateway.clone().prop_map(Event::See),
        3 => (gateway.clone(), any::<bool>()).prop_map(move |(at, lost)| Event::Release(at, lost || !crashes)),
        1 => gateway.clone().prop_map(Event::GiveBack),
        rare => (gateway.clone(), any_counters()).prop_map(|(at, need)| Event::LoseAnswer(at, need)),
        rare => gateway.prop_map(Event::Crash),
    ]
}

/// A gateway: its ledger, the version of the status that it knows, its requests.
#[derive(Debug)]
struct Gateway {
    ledger: Ledger,
    seen: Status,
    flights: Vec<Reservation>,
}

/// Gateways that share a budget.
#[derive(Debug)]
struct World {
    limits: Limits,
    status: Status,
    gateways: Vec<Gateway>,
    /// Spent by gateways that are gone.
    gone: Counters,
    /// In flight at gateways when they died: may have been spent.
    lost: Counters,
}

impl World {
    fn new(limits: Limits, gateways: usize) -> Self {
        Self {
            limits,
            status: Status::default(),
            gateways: (0..gateways)
                .map(|_| Gateway {
                    ledger: Ledger::new(limits, Counters::ZERO),
                    seen: Status::default(),
                    flights: Vec::new(),
                })
                .collect(),
            gone: Counters::ZERO,
            lost: Counters::ZERO,
        }
    }

    fn see(&mut self, at: usize) {
        let gateway = &mut self.gateways[at];
        gateway.seen = self.status;
        gateway.ledger.claimed(Counters::ZERO, self.status.claimed);
    }

    fn happen(&mut self, event: Event) {
        match event {
            Event::Reserve(at, need) => self.reserve(at, need),
            Event::Settle(at, part) => {
                let gateway = &mut self.gateways[at];
                if !gateway.flights.is_empty() {
                    let reservation = gateway.flights.remove(0);
                    let granted = reservation.granted();
                    let spent = granted.zip(granted, |granted, _| granted * part / 100);
                    gateway.ledger.settle(reservation, spent);
                }
            }
            Event::See(at) => self.see(at),
            Event::Release(at, answered) => {
                let given = self.gateways[at].ledger.release();
                self.give(at, given, answered);
            }
            Event::GiveBack(at) => {
                let given = self.gateways[at].ledger.give_back();
                self.give(at, given, true);
            }
            Event::LoseAnswer(at, need) => {
                self.see(at);
                if let Reserve::Claim(add) = self.gateways[at].ledger.reserve(need) {
                    let seen = self.gateways[at].seen;
                    assert!(self.status.write(seen.version, seen.claimed.plus(add)));
                }
                self.see(at);
                // What was granted without a claim is in flight, and never ends.
            }
            Event::Crash(at) => {
                let gateway = &mut self.gateways[at];
                self.gone = self.gone.plus(gateway.ledger.used());
                self.lost = self.lost.plus(gateway.ledger.in_flight());
                *gateway = Gateway {
                    ledger: Ledger::new(self.limits, self.status.claimed),
                    seen: self.status,
                    flights: Vec::new(),
                };
            }
        }
    }

    fn reserve(&mut self, at: usize, need: Counters) {
        // From what it has seen, which may be old.
        for _ in 0..4 {
            let gateway = &mut self.gateways[at];
            match gateway.ledger.reserve(need) {
                Reserve::Granted(reservation) => {
                    gateway.flights.push(reservation);
                    return;
                }
                Reserve::Claim(add) => {
                    let claimed = gateway.seen.claimed.plus(add);
                    if self.status.write(gateway.seen.version, claimed) {
                        gateway.seen = self.status;
                        gateway.ledger.claimed(add, claimed);
                    } else {
                        self.see(at);
                    }
                }
                Reserve::Wait(_) | Reserve::Refused(_) => return,
            }
        }
    }

    fn give(&mut self, at: usize, given: Counters, answered: bool) {
        // A gateway tries until its write is in; or it hears nothing, and the write was not made.
        if answered {
            let claimed = self.status.claimed.minus(given);
            assert!(self.status.write(self.status.version, claimed));
        }
        let gateway = &mut self.gateways[at];
        gateway.seen = self.status;
        gateway.ledger.returned(given, self.status.claimed);
    }

    fn spent(&self) -> Counters {
        self.gateways
            .iter()
            .fold(self.gone, |sum, gateway| sum.plus(gateway.ledger.used()))
    }

    /// What is spent, or may yet be.
    fn exposed(&self) -> Counters {
        self.gateways
            .iter()
            .fold(self.spent().plus(self.lost), |sum, gateway| {
                sum.plus(gateway.ledger.in_flight())
            })
    }

    fn check(&self) {
        for (limit, exposed, claimed) in [
            (
                self.limits.tokens,
                self.exposed().tokens,
                self.status.claimed.tokens,
            ),
            (
                self.limits.model_requests,
                self.exposed().model_requests,
                self.status.claimed.model_requests,
            ),
            (self.limits.steps, self.exposed().steps, self.status.claimed.steps),
            (self.limits.bytes, self.exposed().bytes, self.status.claimed.bytes),
        ] {
            let limit = limit.unwrap();
            assert!(exposed <= claimed, "spends what it has not claimed: {self:?}");
            assert!(claimed <= limit, "claims more than there is: {self:?}");
        }
    }
}

fn any_limits() -> impl Strategy<Value = Limits> {
    (0..400_i64, 0..30_i64, 0..30_i64, 0..3_000_i64).prop_map(|(tokens, model_requests, steps, bytes)| {
        Limits {
            tokens: Some(tokens),
            model_requests: Some(model_requests),
            steps: Some(steps),
            bytes: Some(bytes),
        }
    })
}

proptest! {
    #[test]
    fn gateways_that_share_a_budget_never_overspend_it_whatever_happens(
        limits in any_limits(),
        events in prop::collection::vec(any_event(3, true), 1..120),
    ) {
        let mut world = World::new(limits, 3);
        for event in events {
            world.happen(event);
            world.check();
        }
    }

    #[test]
    fn gateways_that_end_in_good_order_give_everything_unspent_back(
        limits in any_limits(),
        events in prop::collection::vec(any_event(3, false), 1..120),
    ) {
        let mut world = World::new(limits, 3);
        for event in events {
            world.happen(event);
            world.check();
        }
        for at in 0..3 {
            while !world.gateways[at].flights.is_empty() {
                world.happen(Event::Settle(at, 50));
            }
            world.happen(Event::GiveBack(at));
        }
        prop_assert_eq!(world.status.claimed, world.spent());
        // And all of the rest can still be spent.
        let rest = Counters { tokens: limits.tokens.unwrap(), ..Counters::ZERO }.minus(tokens(world.spent().tokens));
        world.see(0);
        let mut ledger = world.gateways.remove(0).ledger;
        let mut status = world.status;
        prop_assert!(reserve(&mut ledger, &mut status, rest).is_ok());
    }

    #[test]
    fn a_crash_costs_what_is_in_flight_and_a_chunk(
        limit in 1..1_000_000_i64,
        requests in prop::collection::vec((1..50_000_i64, 0..=100_i64), 1..40),
    ) {
        let mut status = Status::default();
        let mut ledger = Ledger::new(token_limit(limit), Counters::ZERO);
        let mut previous = None;
        for (need, part) in requests {
            let Ok(reservation) = reserve(&mut ledger, &mut status, tokens(need)) else { continue };
            if let Some((reservation, spent)) = previous.replace((reservation, need * part / 100)) {
                ledger.settle(reservation, tokens(spent));
            }
            release(&mut ledger, &mut status);
            let lost = status.claimed.minus(ledger.used()).minus(ledger.in_flight());
            prop_assert!(lost.tokens <= (limit + 99) / 100, "{lost:?}");
        }
    }

    #[test]
    fn steps_and_model_requests_together_never_exceed_the_steps(
        limits in any_limits(),
        asked in prop::collection::vec(any::<bool>(), 1..80),
    ) {
        let limits = Limits { tokens: None, bytes: None, ..limits };
        let mut status = Status::default();
        let mut ledger = Ledger::new(limits, Counters::ZERO);
        let (mut requested, mut taken) = (0, 0);
        for is_request in asked {
            let need = if is_request { model_request() } else { steps(1) };
            let due = requested + taken >= limits.steps.unwrap()
                || (is_request && requested >= limits.model_requests.unwrap());
            match reserve(&mut ledger, &mut status, need) {
                Ok(reservation) => {
                    prop_assert!(!due);
                    ledger.settle(reservation, need);
                    requested += i64::from(is_request);
                    taken += i64::from(!is_request);
                }
                Err(deny) => {
                    let is_of_requests = is_request && requested >= limits.model_requests.unwrap();
                    prop_assert!(due);
                    prop_assert_eq!(deny == Deny::ModelRequestBudgetExceeded, is_of_requests);
                }
            }
        }
        prop_assert_eq!(ledger.used(), requests(requested).plus(steps(requested + taken)));
    }

    #[test]
    fn a_window_holds_the_present_and_a_fresh_one_is_later(
        now in 0..4_000_000_000_i64,
        length in 60..31_536_000_i64,
        recorded in prop::option::of(0..4_000_000_000_i64),
    ) {
        let found = window(now, Some(length), recorded);
        let start = found.start.unwrap();
        prop_assert!(now - length < start && start <= now + length);
        if found.fresh {
            prop_assert!(recorded.unwrap() < start);
        }
        // Seen again a moment later, it is the same.
        prop_assert_eq!(window(now, Some(length), found.start), Window { fresh: false, ..found });
    }
}
