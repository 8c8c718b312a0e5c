//! Tables and laws of [`super::decide`].

use agentsandbox_api::condition::types;
use agentsandbox_api::isolation::IsolationLevel;
use agentsandbox_api::reason::Reason;
use agentsandbox_api::run::{
    CompletionRecord, MeasuredUsage, ObservedIsolation, RECORD_VERSION, StepsSummary,
};
use agentsandbox_api::sandbox::{AgentSandbox, EgressCounters, EgressStatus, Phase};
use k8s_openapi::jiff::{SignedDuration, Timestamp};
use proptest::prelude::*;
use serde_json::json;

use super::*;
use crate::build::pod::RunIdentity;
use crate::conditions::{find, is_true};
use crate::config::Config;
use crate::policy::valid;
use crate::sandbox::pod_view::{ContainerEnd, ContainerView};
use crate::sandbox::world::{GatewayView, NodeView};
use crate::testing;

/// What a row of a table changes in the usual world.
type Change = fn(&mut World<'_>);

const UID: &str = "11111111-2222-3333-4444-555555555555";

fn created() -> Timestamp {
    "2026-01-01T00:00:00Z".parse().unwrap()
}

fn policy_view(spec: serde_json::Value) -> PolicyView {
    let valid = valid::validate(
        &testing::policy(spec).spec,
        &testing::config(),
        &testing::cluster(),
    )
    .unwrap();
    PolicyView::Valid {
        generation: 3,
        policy: Box::new(valid),
    }
}

fn world<'a>(sandbox: &'a AgentSandbox, config: &'a Config) -> World<'a> {
    World {
        sandbox,
        identity: RunIdentity {
            namespace: "ns".into(),
            sandbox: "job".into(),
            sandbox_uid: UID.into(),
            run_id: sandbox.spec.run_id.clone(),
            policy: "default".into(),
        },
        policy: policy_view(
            json!({"isolation": {"runtimeClassName": "gvisor", "minimum": "UserspaceKernel"}}),
        ),
        runtime_handler: Some("runsc".into()),
        node_kernels: vec!["6.1.0".into()],
        pod: PodState::Absent,
        node: Some(NodeView {
            boot_id: "node".into(),
            kernel: "6.1.0".into(),
            ready: true,
        }),
        network: NetworkView::Closed,
        gateway: GatewayView::NotNeeded,
        inputs: Ok(()),
        behind_in_queue: false,
        creation: None,
        config,
        now: created() + SignedDuration::from_secs(60),
    }
}

fn record(reason: Reason, exit_code: i32) -> String {
    serde_json::to_string(&CompletionRecord {
        version: RECORD_VERSION,
        sandbox_uid: UID.into(),
        pod_uid: "pod".into(),
        run_id: String::new(),
        started: true,
        started_at_ms: Some(1_767_225_610_000),
        ended_at_ms: Some(1_767_225_620_000),
        reason,
        exit_code: Some(exit_code),
        signal: None,
        message: String::new(),
        stderr_tail: String::new(),
        output: None,
        isolation: Some(ObservedIsolation {
            level: IsolationLevel::UserspaceKernel,
            kernel_release: "4.19.0-gvisor".into(),
            boot_id: "guest".into(),
        }),
        network: None,
        usage: MeasuredUsage::default(),
        audit: None,
        steps: None,
    })
    .unwrap()
}

fn live_pod() -> PodView {
    PodView {
        name: "job-x".into(),
        uid: "pod".into(),
        node: Some("node".into()),
        created: Some(created()),
        held: true,
        phase: "Running".into(),
        agent: ContainerView {
            running: true,
            started: true,
            ..ContainerView::default()
        },
        recorder: ContainerView {
            running: true,
            ..ContainerView::default()
        },
        ..PodView::default()
    }
}

fn ended_pod(exit_code: i32, message: String) -> PodView {
    let end = |exit_code, message| ContainerView {
        ended: Some(ContainerEnd {
            exit_code,
            message,
            ..ContainerEnd::default()
        }),
        ..ContainerView::default()
    };
    PodView {
        agent: end(exit_code, String::new()),
        recorder: end(0, message),
        ..live_pod()
    }
}

fn present(pod: PodView) -> PodState {
    PodState::Present(Box::new(pod))
}

fn condition_reason(decision: &Decision, type_: &str) -> String {
    find(&decision.status.conditions, type_)
        .map(|condition| condition.reason.clone())
        .unwrap_or_default()
}

fn verdict(decision: &Decision) -> Option<Reason> {
    decision.status.result.as_ref()?.reason
}

fn creates(decision: &Decision) -> bool {
    decision
        .before
        .iter()
        .any(|action| matches!(action, Action::CreatePod(..)))
}

#[test]
fn what_keeps_a_sandbox_from_starting_is_said() {
    let (sandbox, config) = (testing::sandbox(json!({})), testing::config());
    let table: [(Change, &str, &str); 10] = [
        (
            |w| w.gateway = GatewayView::NotReady("x".into()),
            types::ACCEPTED,
            reasons::GATEWAY_NOT_READY,
        ),
        (
            |w| w.policy = PolicyView::Missing,
            types::ACCEPTED,
            reasons::POLICY_NOT_FOUND,
        ),
        (
            |w| w.policy = PolicyView::NotReady("x".into()),
            types::ACCEPTED,
            reasons::POLICY_NOT_READY,
        ),
        (
            |w| w.policy = PolicyView::Applying,
            types::ACCEPTED,
            reasons::POLICY_NOT_READY,
        ),
        (
            |w| w.runtime_handler = None,
            types::ACCEPTED,
            reasons::RUNTIME_CLASS_NOT_FOUND,
        ),
        (
            |w| w.inputs = Err("x".into()),
            types::ACCEPTED,
            reasons::INPUT_NOT_USABLE,
        ),
        (
            |w| w.network = NetworkView::NotReady,
            types::ACCEPTED,
            reasons::NETWORK_NOT_READY,
        ),
        (
            |w| w.network = NetworkView::Widened("x".into()),
            types::ACCEPTED,
            reasons::NETWORK_WIDENED,
        ),
        (
            |w| w.behind_in_queue = true,
            types::READY,
            reasons::QUOTA_EXCEEDED,
        ),
        (
            |w| w.creation = Some(Creation::Refused("x".into())),
            types::READY,
            reasons::POD_REFUSED,
        ),
    ];
    for (change, type_, reason) in table {
        let mut world = world(&sandbox, &config);
        change(&mut world);
        let decision = decide(&world);
        assert!(!creates(&decision), "{reason}");
        assert_eq!(condition_reason(&decision, type_), reason);
        assert!(!is_true(&decision.status.conditions, types::FINISHED), "{reason}");
        assert!(decision.wake.is_some(), "{reason}: looked at again");
    }
    assert!(creates(&decide(&world(&sandbox, &config))));
}

/// One `kubectl apply` brings sandbox and policy; what is on its way for a moment is worth no write and no event.
#[test]
fn a_policy_that_comes_a_moment_later_costs_no_write() {
    let (sandbox, config) = (testing::sandbox(json!({})), testing::config());
    let mut world = world(&sandbox, &config);
    world.policy = PolicyView::Missing;
    world.now = created() + SignedDuration::from_millis(900);
    let decision = decide(&world);
    assert_eq!(decision.status, AgentSandboxStatus::default());
    assert!(decision.wake.is_some());
    world.now = created() + SignedDuration::from_secs(1);
    assert_eq!(
        condition_reason(&decide(&world), types::ACCEPTED),
        reasons::POLICY_NOT_FOUND
    );
}

#[test]
fn what_ends_a_running_sandbox_has_its_reason() {
    let (sandbox, config) = (testing::sandbox(json!({})), testing::config());
    let stopping = testing::sandbox(json!({"stop": true}));
    let table: [(&AgentSandbox, Change, Reason); 8] = [
        (&stopping, |_| {}, Reason::Stopped),
        (
            &sandbox,
            |w| w.policy = PolicyView::Missing,
            Reason::PolicyDeleted,
        ),
        (
            &sandbox,
            |w| w.policy = policy_view(json!({"images": {"allow": ["other.io/x"]}})),
            Reason::PolicyRejected,
        ),
        (
            &sandbox,
            |w| w.network = NetworkView::Widened("x".into()),
            Reason::NetworkNotIsolated,
        ),
        (
            &sandbox,
            |w| w.now = created() + SignedDuration::from_hours(2),
            Reason::DeadlineExceeded,
        ),
        (
            &sandbox,
            |w| {
                w.now = created() + SignedDuration::from_secs(301);
                w.pod = present(PodView {
                    agent: ContainerView::default(),
                    ..live_pod()
                });
            },
            Reason::StartTimeout,
        ),
        (
            &sandbox,
            |w| {
                let waiting = Some(("InvalidImageName".into(), "x".into()));
                w.pod = present(PodView {
                    agent: ContainerView {
                        waiting,
                        ..ContainerView::default()
                    },
                    ..live_pod()
                });
            },
            Reason::ImagePullFailed,
        ),
        (
            &sandbox,
            |w| {
                w.pod = present(PodView {
                    tampered: Some("x".into()),
                    ..live_pod()
                });
            },
            Reason::PodMutated,
        ),
    ];
    for (sandbox, change, reason) in table {
        let mut world = world(sandbox, &config);
        world.pod = present(live_pod());
        change(&mut world);
        let decision = decide(&world);
        let [Action::EndPod(cause, _)] = decision.before.as_slice() else {
            panic!("{reason}: {decision:?}")
        };
        assert_eq!(*cause, reason);
    }
}

#[test]
fn a_run_that_is_being_ended_is_left_to_its_kubelet_for_a_while() {
    let (sandbox, config) = (testing::sandbox(json!({"stop": true})), testing::config());
    let ending = created() + SignedDuration::from_secs(60);
    for (seconds, deletes) in [(0, false), (10, false), (100, true)] {
        let mut world = world(&sandbox, &config);
        world.pod = present(PodView {
            ending: Some(ending),
            cause: Some(("PolicyDeleted".into(), "gone".into())),
            ..live_pod()
        });
        world.now = ending + SignedDuration::from_secs(seconds);
        let decision = decide(&world);
        let expected = [Action::EndPod(Reason::PolicyDeleted, "gone".into())];
        assert_eq!(
            decision.before,
            if deletes { expected.to_vec() } else { Vec::new() },
            "{seconds} s"
        );
        assert!(decision.wake.is_some());
        assert!(verdict(&decision).is_none());
    }
}

/// Marks that others than the operator may have written: the time is far off, or there is no cause of the operator's.
#[test]
fn a_mark_that_the_operator_cannot_have_set_holds_up_nothing() {
    let (sandbox, config) = (testing::sandbox(json!({"stop": true})), testing::config());
    let now = created() + SignedDuration::from_secs(60);
    for ending in [
        Timestamp::MAX,
        "2200-01-01T00:00:00Z".parse().unwrap(),
        now + SignedDuration::from_secs(600),
        now,
        Timestamp::MIN,
    ] {
        for cause in ["PolicyDeleted", "Completed"] {
            let mut world = world(&sandbox, &config);
            world.pod = present(PodView {
                ending: Some(ending),
                cause: Some((cause.into(), "gone".into())),
                ..live_pod()
            });
            let decision = decide(&world);
            let expected = match (cause, ending == now) {
                ("PolicyDeleted", true) => None,
                ("PolicyDeleted", false) => Some(Reason::PolicyDeleted),
                _ => Some(Reason::Stopped),
            };
            let ends = decision.before.iter().find_map(|action| match action {
                Action::EndPod(reason, _) => Some(*reason),
                _ => None,
            });
            assert_eq!(ends, expected, "{ending} {cause}");
        }
    }
}

/// The clock of the replica before this one may be a little ahead.
#[test]
fn a_mark_from_a_moment_ahead_counts_as_set_now() {
    let (sandbox, config) = (testing::sandbox(json!({"stop": true})), testing::config());
    let mut world = world(&sandbox, &config);
    world.pod = present(PodView {
        ending: Some(world.now + SignedDuration::from_secs(5)),
        cause: Some(("Stopped".into(), "x".into())),
        ..live_pod()
    });
    let decision = decide(&world);
    assert!(decision.before.is_empty(), "{decision:?}");
    let most = Duration::from_secs(u64::try_from(kubelet_seconds(&world)).unwrap() + 1);
    assert!(decision.wake.is_some_and(|wake| wake < most));
}

#[test]
fn a_forged_cause_is_no_success_of_a_pod_that_went_away() {
    let (sandbox, config) = (testing::sandbox(json!({})), testing::config());
    let mut world = world(&sandbox, &config);
    world.pod = present(PodView {
        deleted: Some(created()),
        cause: Some(("Completed".into(), String::new())),
        ..ended_pod(143, record(Reason::Stopped, 143))
    });
    assert_eq!(verdict(&decide(&world)), Some(Reason::SandboxLost));
}

#[test]
fn a_verdict_at_the_end_of_time_is_kept_until_then() {
    let config = testing::config();
    let mut sandbox = testing::sandbox(json!({}));
    let mut ended = world(&sandbox, &config);
    ended.pod = present(ended_pod(0, record(Reason::Completed, 0)));
    let mut status = decide(&ended).status;
    status.completion_time = Some(Timestamp::MAX.into());
    sandbox.status = Some(status);
    let decision = decide(&world(&sandbox, &config));
    assert_eq!(
        decision.status.expiration_time,
        Some(Timestamp::MAX.into()),
        "no later time can be written"
    );
    assert!(decision.wake.is_some());
}

/// A sandbox whose pod was made under a policy with this spec, and runs.
fn begun_under(spec: serde_json::Value) -> AgentSandbox {
    let config = testing::config();
    let mut sandbox = testing::sandbox(json!({}));
    let mut before = world(&sandbox, &config);
    before.policy = policy_view(spec);
    before.pod = present(live_pod());
    sandbox.status = Some(decide(&before).status);
    sandbox
}

#[test]
fn a_run_keeps_its_deadline_whatever_becomes_of_its_policy() {
    let config = testing::config();
    let mut gvisor = json!({"isolation": {"runtimeClassName": "gvisor", "minimum": "UserspaceKernel"}});
    let shorter = policy_view(gvisor.clone());
    gvisor["defaults"] = json!({"limits": {"runtimeSeconds": 3_000}});
    let sandbox = begun_under(gvisor);
    for policy in [PolicyView::NotReady("x".into()), PolicyView::Applying, shorter] {
        for (seconds, cause) in [(3_000, None), (3_500, Some(Reason::DeadlineExceeded))] {
            let mut world = world(&sandbox, &config);
            world.policy = policy.clone();
            world.pod = present(live_pod());
            world.now = created() + SignedDuration::from_secs(seconds);
            let decision = decide(&world);
            let ends = decision.before.iter().find_map(|action| match action {
                Action::EndPod(reason, _) => Some(*reason),
                _ => None,
            });
            assert_eq!(ends, cause, "{seconds} s");
            assert!(decision.wake.is_some());
        }
    }
}

#[test]
fn a_run_of_which_no_deadline_is_known_is_not_ended_for_it() {
    let (sandbox, config) = (testing::sandbox(json!({})), testing::config());
    let mut world = world(&sandbox, &config);
    world.policy = PolicyView::NotReady("x".into());
    world.pod = present(live_pod());
    world.now = created() + SignedDuration::from_hours(24);
    assert!(decide(&world).before.is_empty());
}

#[test]
fn a_policy_that_is_tightened_ends_the_run_and_one_that_is_not_does_not() {
    let config = Config {
        allow_root: true,
        ..testing::config()
    };
    let isolation = |minimum: &str, root: bool| {
        let isolation = json!({"runtimeClassName": "kata", "minimum": minimum, "allowRoot": root});
        json!({"isolation": isolation})
    };
    let audit = |commands: bool, files: bool| {
        let mut spec = isolation("UserspaceKernel", false);
        spec["audit"] = json!({"require": {"commands": commands, "files": files}});
        spec
    };
    let shorter = || {
        let mut spec = isolation("UserspaceKernel", false);
        spec["defaults"] = json!({"limits": {"runtimeSeconds": 5}});
        spec["images"] = json!({"pullPolicy": "Always"});
        spec
    };
    let lax = isolation("UserspaceKernel", false);
    let table = [
        (lax.clone(), lax.clone(), None),
        (
            lax.clone(),
            isolation("MicroVM", false),
            Some("isolation.minimum MicroVM"),
        ),
        (isolation("MicroVM", false), lax.clone(), None),
        (
            isolation("MicroVM", true),
            isolation("MicroVM", false),
            Some("root"),
        ),
        (isolation("MicroVM", false), isolation("MicroVM", true), None),
        (lax.clone(), audit(false, true), Some("audit.require")),
        (audit(true, false), audit(true, true), Some("audit.require")),
        (audit(true, true), audit(false, true), None),
        (lax, shorter(), None),
    ];
    for (before, after, how) in table {
        let view = |spec: serde_json::Value| PolicyView::Valid {
            generation: 4,
            policy: Box::new(
                valid::validate(&testing::policy(spec).spec, &config, &testing::cluster()).unwrap(),
            ),
        };
        let mut sandbox = testing::sandbox(json!({}));
        let mut first = world(&sandbox, &config);
        first.policy = view(before.clone());
        first.pod = present(live_pod());
        let status = decide(&first).status;
        sandbox.status = Some(status);
        // The generation in status follows the policy's, what the run began with does not.
        for _ in 0..2 {
            let mut world = world(&sandbox, &config);
            world.policy = view(after.clone());
            world.pod = present(live_pod());
            let decision = decide(&world);
            match (decision.before.as_slice(), how) {
                ([], None) => {}
                ([Action::EndPod(Reason::PolicyRejected, message)], Some(how)) => {
                    assert!(message.contains(how), "{message}");
                }
                (other, how) => panic!("{before} to {after}: {other:?}, not {how:?}"),
            }
            sandbox.status = Some(decision.status);
        }
    }
}

#[test]
fn a_run_that_its_kubelet_ended_has_the_operators_cause_and_its_pod_stays() {
    let (sandbox, config) = (testing::sandbox(json!({"stop": true})), testing::config());
    let mut world = world(&sandbox, &config);
    world.pod = present(PodView {
        ending: Some(created()),
        cause: Some(("Stopped".into(), "spec.stop was set".into())),
        phase: "Failed".into(),
        reason: "DeadlineExceeded".into(),
        ..ended_pod(143, record(Reason::Stopped, 143))
    });
    let decision = decide(&world);
    assert_eq!(verdict(&decision), Some(Reason::Stopped));
    assert_eq!(decision.after, [Action::ReleasePod]);
}

/// A policy that allows egress and a model.
fn egress_policy() -> PolicyView {
    policy_view(json!({
        "isolation": {"runtimeClassName": "gvisor", "minimum": "UserspaceKernel"},
        "egress": {"allow": [{"host": "example.org"}]},
        "models": [{"provider": "OpenAI", "host": "api.openai.com", "allow": ["m"]}],
    }))
}

#[test]
fn a_run_gets_the_address_of_the_gateway_that_serves_its_policy() {
    let (sandbox, config) = (testing::sandbox(json!({})), testing::config());
    let mut world = world(&sandbox, &config);
    world.policy = egress_policy();
    world.gateway = GatewayView::Ready("10.96.3.4".parse().unwrap());
    let decision = decide(&world);
    let [Action::CreatePod(run, _)] = decision.before.as_slice() else {
        panic!("{decision:?}")
    };
    let access = run.gateway.as_ref().unwrap();
    assert_eq!(access.address, "10.96.3.4");
    assert_eq!(access.models[0].url, "https://api.openai.com/v1");
}

/// What the gateway wrote of a pod's run.
fn egress(pod_uid: &str, exhausted: Option<Reason>, settled: bool) -> EgressStatus {
    EgressStatus {
        pod_uid: Some(pod_uid.into()),
        used: EgressCounters {
            tokens: 30,
            model_requests: 2,
            steps: 2,
            bytes: 900,
        },
        input_tokens: 10,
        output_tokens: 20,
        allowed: 5,
        denied: 3,
        exhausted,
        settled,
        ..EgressStatus::default()
    }
}

/// A sandbox with a running pod, and what the gateway wrote since.
fn running_with(egress: EgressStatus) -> AgentSandbox {
    let config = testing::config();
    let mut sandbox = testing::sandbox(json!({}));
    let mut before = world(&sandbox, &config);
    before.pod = present(live_pod());
    let mut status = decide(&before).status;
    status.egress = Some(egress);
    sandbox.status = Some(status);
    sandbox
}

#[test]
fn a_budget_that_is_used_up_ends_the_run_with_its_reason() {
    let config = testing::config();
    let table = [
        ("pod", Some(Reason::TokenBudgetExceeded), true),
        ("pod", Some(Reason::ModelRequestBudgetExceeded), true),
        ("pod", Some(Reason::StepBudgetExceeded), true),
        ("pod", Some(Reason::EgressByteBudgetExceeded), true),
        // Nothing else is the gateway's to say, and another pod's figures are another run's.
        ("pod", Some(Reason::Completed), false),
        ("pod", None, false),
        ("other", Some(Reason::TokenBudgetExceeded), false),
    ];
    for (pod_uid, exhausted, ends) in table {
        let sandbox = running_with(egress(pod_uid, exhausted, false));
        let mut world = world(&sandbox, &config);
        world.pod = present(live_pod());
        let decision = decide(&world);
        match decision.before.as_slice() {
            [Action::EndPod(reason, message)] => {
                assert!(ends && Some(*reason) == exhausted, "{pod_uid} {exhausted:?}");
                assert!(message.contains("used up limits."), "{message}");
            }
            other => assert!(!ends, "{pod_uid} {exhausted:?}: {other:?}"),
        }
        assert_eq!(decision.status.egress, sandbox.status.as_ref().unwrap().egress);
    }
}

#[test]
fn a_command_that_failed_for_want_of_budget_has_the_budgets_reason() {
    let config = testing::config();
    let table = [
        (Reason::NonZeroExit, 1, Reason::TokenBudgetExceeded),
        (Reason::Completed, 0, Reason::Completed),
        (Reason::DeadlineExceeded, 137, Reason::DeadlineExceeded),
    ];
    for (recorded, exit_code, expected) in table {
        let sandbox = running_with(egress("pod", Some(Reason::TokenBudgetExceeded), false));
        let mut world = world(&sandbox, &config);
        world.pod = present(ended_pod(exit_code, record(recorded, exit_code)));
        assert_eq!(verdict(&decide(&world)), Some(expected), "{recorded}");
    }
}

/// Model requests, input tokens, output tokens, allowed, denied.
type EgressFigures = [Option<i64>; 5];

fn egress_figures(status: &AgentSandboxStatus) -> EgressFigures {
    let usage = status.usage.clone().unwrap_or_default();
    [
        usage.model_requests,
        usage.input_tokens,
        usage.output_tokens,
        usage.egress_allowed,
        usage.egress_denied,
    ]
}

const FOLDED: EgressFigures = [Some(2), Some(10), Some(20), Some(5), Some(3)];

#[test]
fn the_gateways_final_figures_are_added_to_the_usage_within_ten_seconds() {
    let config = testing::config();
    for (seconds, settled, pod_uid, expected) in [
        (1, true, "pod", FOLDED),
        (10, true, "pod", FOLDED),
        (11, true, "pod", [None; 5]),
        (1, false, "pod", [None; 5]),
        (1, true, "other", [None; 5]),
    ] {
        let mut sandbox = running_with(egress("pod", None, false));
        let mut ended = world(&sandbox, &config);
        ended.pod = present(ended_pod(0, record(Reason::Completed, 0)));
        let mut status = decide(&ended).status;
        assert_eq!(egress_figures(&status), [None; 5], "the verdict does not wait");
        status.egress = Some(egress(pod_uid, None, settled));
        sandbox.status = Some(status);
        let mut later = world(&sandbox, &config);
        later.now += SignedDuration::from_secs(seconds);
        let status = decide(&later).status;
        assert_eq!(
            egress_figures(&status),
            expected,
            "{seconds} s, settled: {settled}, {pod_uid}"
        );
        assert!(status.usage.is_some_and(|usage| usage.wall_seconds.is_none()));
    }
}

#[test]
fn figures_that_are_final_before_the_verdict_cost_no_write_of_their_own() {
    let config = testing::config();
    let sandbox = running_with(egress("pod", None, true));
    let mut world = world(&sandbox, &config);
    world.pod = present(ended_pod(0, record(Reason::Completed, 0)));
    assert_eq!(egress_figures(&decide(&world).status), FOLDED);
}

#[test]
fn the_steps_are_the_gateways_where_it_counts_and_else_the_records() {
    let config = testing::config();
    let session = |taken: u64| {
        let mut record: CompletionRecord =
            serde_json::from_str(&record(Reason::StepBudgetExceeded, 0)).unwrap();
        record.steps = Some(StepsSummary {
            taken,
            ..StepsSummary::default()
        });
        serde_json::to_string(&record).unwrap()
    };
    for (record, charged, expected) in [
        // Three steps and three model requests.
        (session(3), 6, 6),
        // The policy has no models, and the gateway is asked for none.
        (session(3), 0, 3),
        // What a guest writes does not count against what was charged.
        (session(4_000), 6, 6),
        (record(Reason::Completed, 0), 2, 2),
        (record(Reason::Completed, 0), 0, 0),
    ] {
        let mut written = egress("pod", None, true);
        written.used.steps = charged;
        let sandbox = running_with(written);
        let mut world = world(&sandbox, &config);
        world.pod = present(ended_pod(0, record));
        let usage = decide(&world).status.usage.unwrap();
        assert_eq!(usage.steps, Some(expected), "{charged} charged");
    }
}

#[test]
fn what_the_gateway_wrote_first_is_kept_and_another_runs_is_not() {
    let config = testing::config();
    for (pod_uid, kept) in [("pod", true), ("earlier", false)] {
        // An operator that ended between the pod and its first status.
        let mut sandbox = testing::sandbox(json!({"runId": "2"}));
        sandbox.status = Some(AgentSandboxStatus {
            run_id: (!kept).then(|| "1".to_owned()),
            egress: Some(egress(pod_uid, None, false)),
            ..AgentSandboxStatus::default()
        });
        let mut world = world(&sandbox, &config);
        world.pod = present(live_pod());
        assert_eq!(decide(&world).status.egress.is_some(), kept, "{pod_uid}");
    }
}

#[test]
fn the_finalizer_goes_only_after_the_verdict_is_written() {
    let (sandbox, config) = (testing::sandbox(json!({})), testing::config());
    let mut world = world(&sandbox, &config);
    world.pod = present(ended_pod(0, record(Reason::Completed, 0)));
    let decision = decide(&world);
    assert_eq!(verdict(&decision), Some(Reason::Completed));
    assert!(decision.before.is_empty());
    assert_eq!(decision.after, [Action::ReleasePod]);
    assert!(is_true(&decision.status.conditions, types::READY));
}

#[test]
fn a_pod_that_is_gone_is_lost_and_not_made_again() {
    let config = testing::config();
    let mut sandbox = testing::sandbox(json!({}));
    let mut first = world(&sandbox, &config);
    first.pod = present(live_pod());
    let status = decide(&first).status;
    assert_eq!(status.phase, Some(Phase::Running));
    sandbox.status = Some(status);
    let decision = decide(&world(&sandbox, &config));
    assert!(!creates(&decision));
    assert_eq!(verdict(&decision), Some(Reason::SandboxLost));
}

#[test]
fn a_node_that_stopped_reporting_ends_the_run_without_taking_its_finalizer() {
    let (sandbox, config) = (testing::sandbox(json!({})), testing::config());
    let mut world = world(&sandbox, &config);
    world.now = created() + SignedDuration::from_hours(3);
    world.node.as_mut().unwrap().ready = false;
    world.pod = present(PodView {
        deleted: Some(created()),
        ..live_pod()
    });
    let decision = decide(&world);
    assert_eq!(verdict(&decision), Some(Reason::NodeLost));
    assert!(!decision.after.contains(&Action::ReleasePod));
}

#[test]
fn objects_that_a_gitops_tool_tracks_are_never_deleted() {
    let config = testing::config();
    for (tracked, deletes) in [(false, true), (true, false)] {
        let mut sandbox = testing::sandbox(json!({"ttlSecondsAfterFinished": 0}));
        if tracked {
            let annotations = [("argocd.argoproj.io/tracking-id".to_owned(), "app".to_owned())];
            sandbox.metadata.annotations = Some(annotations.into());
        }
        let mut world = world(&sandbox, &config);
        world.policy = policy_view(json!({
            "isolation": {"runtimeClassName": "gvisor", "minimum": "UserspaceKernel"}, "cleanup": {"deleteSandbox": "AfterTTL"},
        }));
        world.pod = present(ended_pod(0, record(Reason::Completed, 0)));
        let decision = decide(&world);
        assert_eq!(
            decision.after.contains(&Action::DeleteSandbox),
            deletes,
            "tracked: {tracked}"
        );
    }
}

/// Anything a pod may look like.
fn any_pod() -> impl Strategy<Value = PodView> {
    let container = (
        any::<bool>(),
        any::<bool>(),
        proptest::option::of(0..256_i32),
        0..2_i32,
        any::<bool>(),
    )
        .prop_map(
            |(running, started, exit_code, restarts, with_record)| ContainerView {
                running: running && exit_code.is_none(),
                started: running && started && exit_code.is_none(),
                restarts,
                ended: exit_code.map(|exit_code| ContainerEnd {
                    exit_code,
                    message: if with_record {
                        record(Reason::Completed, 0)
                    } else {
                        String::new()
                    },
                    ..ContainerEnd::default()
                }),
                waiting: None,
            },
        );
    let phases = prop_oneof![
        Just("Pending"),
        Just("Running"),
        Just("Succeeded"),
        Just("Failed"),
        Just("Unknown")
    ];
    let flags = [any::<bool>(), any::<bool>(), any::<bool>()];
    (container.clone(), container, phases, flags).prop_map(
        |(agent, recorder, phase, [deleted, held, ending])| PodView {
            agent,
            recorder,
            phase: phase.into(),
            deleted: deleted.then(created),
            ending: ending.then(created),
            held,
            ..live_pod()
        },
    )
}

/// Anything the world may look like, as changes to the usual one.
fn any_state() -> impl Strategy<Value = (Option<PodView>, u8, i64, bool, bool)> {
    (
        proptest::option::of(any_pod()),
        0..4_u8,
        0..200_000_i64,
        any::<bool>(),
        any::<bool>(),
    )
}

fn varied<'a>(
    sandbox: &'a AgentSandbox,
    config: &'a Config,
    (pod, policy, seconds, node, closed): (Option<PodView>, u8, i64, bool, bool),
) -> World<'a> {
    let mut world = world(sandbox, config);
    world.pod = pod.map_or(PodState::Absent, present);
    world.now = created() + SignedDuration::from_secs(seconds);
    match policy {
        0 => world.policy = PolicyView::Missing,
        1 => world.policy = PolicyView::NotReady("x".into()),
        _ => {}
    }
    if !node {
        world.node = None;
    }
    if !closed {
        world.network = NetworkView::Widened("x".into());
    }
    world
}

proptest! {
    #![proptest_config(ProptestConfig::with_cases(400))]

    /// S1: a pod is made only where there is none and never was one, S2: and only behind a closed network.
    #[test]
    fn a_pod_is_made_only_once_and_behind_a_closed_network(state in any_state(), had_pod in any::<bool>()) {
        let config = testing::config();
        let mut sandbox = testing::sandbox(json!({}));
        if had_pod {
            let mut before = world(&sandbox, &config);
            before.pod = present(live_pod());
            sandbox.status = Some(decide(&before).status);
        }
        let world = varied(&sandbox, &config, state);
        if creates(&decide(&world)) {
            prop_assert!(world.pod == PodState::Absent && !had_pod && world.network == NetworkView::Closed);
        }
    }

    /// S3 and S4: after a verdict no pod is made, and the verdict stays as it is; only `Expired` may change.
    #[test]
    fn a_verdict_is_final(first in any_pod(), state in any_state()) {
        let config = testing::config();
        let mut sandbox = testing::sandbox(json!({}));
        let mut before = world(&sandbox, &config);
        before.pod = present(PodView { deleted: None, ..first });
        before.now = created() + SignedDuration::from_secs(1);
        let status = decide(&before).status;
        prop_assume!(status::is_finished(&status));
        sandbox.status = Some(status.clone());
        let after = decide(&varied(&sandbox, &config, state));
        prop_assert!(!creates(&after));
        prop_assert_eq!(&after.status.result, &status.result);
        prop_assert_eq!(&after.status.usage, &status.usage);
        prop_assert_eq!(after.status.completion_time.clone(), status.completion_time.clone());
        for condition in status.conditions.iter().filter(|condition| condition.type_ != types::EXPIRED) {
            prop_assert_eq!(find(&after.status.conditions, &condition.type_), Some(condition));
        }
    }

    /// S5: success needs a record of this run with exit code 0, confirmed by the kubelet.
    #[test]
    fn success_needs_a_confirmed_record(state in any_state()) {
        let (sandbox, config) = (testing::sandbox(json!({})), testing::config());
        let world = varied(&sandbox, &config, state);
        let decision = decide(&world);
        if verdict(&decision).is_some_and(Reason::is_success) {
            let PodState::Present(pod) = &world.pod else { return Err(TestCaseError::fail("success without a pod")) };
            prop_assert!(pod.record().is_some_and(|record| record.exit_code == Some(0)));
            prop_assert_eq!(pod.agent.ended.as_ref().map(|end| end.exit_code), Some(0));
            prop_assert_eq!(pod.recorder.restarts, 0);
        }
    }

    /// L1: once every deadline has passed, a sandbox with a pod is ended or being ended, whatever its pod says.
    #[test]
    fn no_run_outlives_its_deadlines(pod in any_pod(), closed in any::<bool>()) {
        let (sandbox, config) = (testing::sandbox(json!({})), testing::config());
        let world = varied(&sandbox, &config, (Some(pod), 3, 10_000, true, closed));
        let decision = decide(&world);
        let ending = decision.before.iter().any(|action| matches!(action, Action::EndPod(..)));
        prop_assert!(ending || status::is_finished(&decision.status), "{:?}", decision);
    }

    /// L3: a decision taken again in the same world changes nothing, so that no write leads to another.
    #[test]
    fn deciding_again_changes_nothing(state in any_state()) {
        let config = testing::config();
        let sandbox = testing::sandbox(json!({}));
        let first = decide(&varied(&sandbox, &config, state.clone()));
        prop_assume!(!creates(&first));
        let mut written = sandbox.clone();
        written.status = Some(first.status.clone());
        let second = decide(&varied(&written, &config, state));
        prop_assert_eq!(second.status, first.status);
    }
}
