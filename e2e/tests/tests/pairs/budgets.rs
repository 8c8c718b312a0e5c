//! Budgets: spent in parallel, by sessions, across a gateway that dies, and by all runs of a policy; never more than there
//! is.

use agentsandbox_api::policy::SandboxPolicy;
use agentsandbox_api::reason::Reason;
use agentsandbox_api::sandbox::{AgentSandbox, EgressDenial};
use e2e::Harness;
use e2e::burn::{COST, RESERVATION, count, namespace};
use e2e::egress::{Journal, SDK_IMAGE};
use e2e::harness::isolation;
use e2e::steps::Session;
use serde_json::{Value, json};

#[tokio::test]
async fn tokens_burned_in_parallel_end_the_run_at_the_exact_count() {
    for how in ["chat", "stream"] {
        let (harness, host) = namespace(&format!("burn-{how}"), json!({})).await.unwrap();
        let journal = Journal::open(&harness);
        let more = json!({"limits": {"tokens": 3000}});
        let run = harness
            .script("burn", "burn.py", &[how, &host, "8", "1000"], more)
            .await
            .unwrap();
        let result = run.status.result.clone().unwrap();
        assert_eq!(
            result.reason,
            Some(Reason::TokenBudgetExceeded),
            "{result:?}\n{}",
            run.log
        );
        let (egress, served) = (run.egress(), count(journal.requests_to(&host).len()));
        assert_eq!(egress.used.tokens, COST * served, "{how}: {egress:?}");
        assert_eq!(egress.used.model_requests, served);
        assert_eq!(
            (egress.input_tokens, egress.output_tokens),
            (4 * served, 46 * served)
        );
        assert_eq!(egress.estimated_tokens, 0);
        assert_eq!(egress.exhausted, Some(Reason::TokenBudgetExceeded));
        assert!(
            (3000 - 8 * RESERVATION..=3000).contains(&egress.used.tokens),
            "{egress:?}"
        );
        // Whether the program itself still hears of it before its run is ended is a matter of its speed.
        let refused = |denial: &EgressDenial| denial.reason == "TokenBudgetExceeded";
        assert!(egress.denials.iter().any(refused), "{egress:?}");
        harness.finish().await.unwrap();
    }
}

#[tokio::test]
async fn each_budget_ends_the_run_with_its_own_reason() {
    let (harness, host) = namespace("each-budget", json!({})).await.unwrap();
    for (name, limits, reason) in [
        (
            "requests",
            json!({"modelRequests": 7}),
            Reason::ModelRequestBudgetExceeded,
        ),
        ("steps", json!({"steps": 5}), Reason::StepBudgetExceeded),
        (
            "bytes",
            json!({"egressBytes": 1_000_000}),
            Reason::EgressByteBudgetExceeded,
        ),
    ] {
        let journal = Journal::open(&harness);
        let (what, at) = if name == "bytes" {
            ("bytes", "big.example.test")
        } else {
            ("chat", host.as_str())
        };
        harness
            .start_script(
                name,
                "burn.py",
                &[what, at, "4", "500"],
                json!({"limits": limits}),
            )
            .await
            .unwrap();
        let run = harness.ended_script(name).await.unwrap();
        let result = run.status.result.clone().unwrap();
        assert_eq!(result.reason, Some(reason), "{result:?}\n{}", run.log);
        let egress = run.egress();
        assert_eq!(egress.exhausted, Some(reason));
        match name {
            "requests" => assert_eq!(
                (egress.used.model_requests, journal.requests_to(&host).len()),
                (7, 7)
            ),
            "steps" => assert_eq!(
                (
                    egress.used.model_requests,
                    egress.used.steps,
                    run.status.usage.and_then(|usage| usage.steps),
                    journal.requests_to(&host).len()
                ),
                (5, 5, Some(5), 5)
            ),
            _ => assert!((500_000..=1_000_000).contains(&egress.used.bytes), "{egress:?}"),
        }
    }
    harness.finish().await.unwrap();
}

/// A session of so many steps, whose steps can run `burn.py`.
async fn session(harness: &Harness, name: &str, steps: u32) -> Session {
    let spec = json!({
        "image": SDK_IMAGE, "files": harness.script_files("burn.py").unwrap(),
        "session": {"idleTimeoutSeconds": 600}, "limits": {"steps": steps},
    });
    harness.sandbox(name, spec).await.unwrap();
    Session::of(harness, name).await.unwrap()
}

#[tokio::test(flavor = "multi_thread")]
async fn a_sessions_steps_and_model_requests_spend_one_budget() {
    for runtime in ["gvisor", "runc"] {
        let more = json!({"isolation": isolation(runtime)});
        let (harness, host) = namespace(&format!("session-{runtime}"), more).await.unwrap();
        let journal = Journal::open(&harness);
        let steps = session(&harness, "shared", 6).await;
        let burn = |requests| ["step", "--", "python3", "burn.py", "chat", &host, "1", requests];
        // 1 step and 2 requests, 1 step, 1 step and 1 request.
        for (arguments, requests) in [
            (burn("2").as_slice(), 2),
            (["step", "--", "true"].as_slice(), 0),
            (burn("1").as_slice(), 1),
        ] {
            let outcome = steps.step(arguments).unwrap();
            assert_eq!(outcome.code, 0, "{}{}", outcome.text(), outcome.stderr);
            assert_eq!(
                outcome.text().matches("OUTCOME 200").count(),
                requests,
                "{}",
                outcome.text()
            );
        }
        // All are taken, and the session goes on: nothing was asked for in vain.
        let status = harness
            .when("shared", "six steps", |status| {
                status
                    .egress
                    .as_ref()
                    .is_some_and(|egress| egress.used.steps == 6)
            })
            .await
            .unwrap();
        let egress = status.egress.unwrap();
        assert_eq!((egress.used.model_requests, egress.exhausted), (3, None));
        let refused = steps.shell("true").unwrap();
        assert_eq!(refused.code, 125, "{}", refused.stderr);
        assert!(
            refused.stderr.contains("step refused: StepBudgetExceeded: "),
            "{}",
            refused.stderr
        );
        let ended = harness.finished("shared").await.unwrap();
        assert_eq!(
            ended.result.unwrap().reason,
            Some(Reason::StepBudgetExceeded),
            "{runtime}"
        );
        let status = harness.settled("shared").await.unwrap();
        let egress = status.egress.unwrap();
        assert_eq!(
            (
                egress.used.steps,
                egress.claimed.steps,
                egress.used.model_requests
            ),
            (6, 6, 3),
            "{egress:?}"
        );
        assert_eq!(egress.exhausted, Some(Reason::StepBudgetExceeded));
        assert_eq!(status.usage.unwrap().steps, Some(6));
        let summary = status.session.unwrap();
        assert_eq!((summary.steps, summary.refused), (3, 1));
        assert_eq!(journal.requests_to(&host).len(), 3);
        let log = harness.gateway_log().await.unwrap();
        let recorded = |action: &str| {
            log.lines()
                .filter_map(|line| serde_json::from_str::<Value>(line).ok())
                .filter(|record| record["destination"] == "step" && record["action"] == action)
                .count()
        };
        assert_eq!(
            (recorded("allow"), recorded("deny")),
            (3, 1),
            "each is one record"
        );

        // A model request that is refused for want of steps ends the session as well.
        let steps = session(&harness, "asks", 2).await;
        let _ = steps.step(&burn("5"));
        let ended = harness.finished("asks").await.unwrap();
        assert_eq!(
            ended.result.unwrap().reason,
            Some(Reason::StepBudgetExceeded),
            "{runtime}"
        );
        let egress = harness.settled("asks").await.unwrap().egress.unwrap();
        assert_eq!((egress.used.steps, egress.used.model_requests), (2, 1));
        assert_eq!(journal.requests_to(&host).len(), 4);
        harness.finish().await.unwrap();
    }
}

#[tokio::test(flavor = "multi_thread")]
async fn a_gateway_that_is_killed_gives_a_session_no_step_back() {
    const LIMIT: i64 = 20;
    let (harness, _) = namespace("session-killed", json!({})).await.unwrap();
    let steps = session(&harness, "killed", 20).await;
    let (mut taken, mut unavailable) = (0, 0);
    loop {
        if taken == 5 && unavailable == 0 {
            harness.kill_gateway().await.unwrap();
        }
        let outcome = steps.shell("true").unwrap();
        match outcome.code {
            0 => taken += 1,
            125 if outcome.stderr.contains("refused: StepBudgetExceeded: ") => break,
            // Nobody counts, so nothing is taken.
            125 if outcome.stderr.contains("refused: GatewayUnavailable: ")
                || outcome.stderr.contains("refused: NotReady: ") =>
            {
                unavailable += 1;
            }
            code => panic!("{code}: {}", outcome.stderr),
        }
        assert!(unavailable < 200, "{taken} taken: {}", outcome.stderr);
    }
    println!("{taken} of {LIMIT} steps, {unavailable} refused while no gateway counted");
    // What was asked of a gateway that could not answer any more may have been charged, and one chunk is lost: one step.
    assert!(
        taken <= LIMIT && taken >= LIMIT - 1 - unavailable,
        "{taken}, {unavailable}"
    );
    let ended = harness.finished("killed").await.unwrap();
    assert_eq!(ended.result.unwrap().reason, Some(Reason::StepBudgetExceeded));
    let egress = harness.settled("killed").await.unwrap().egress.unwrap();
    assert!(
        (taken..=LIMIT).contains(&egress.claimed.steps) && egress.used.steps <= LIMIT,
        "{egress:?}"
    );
    harness.finish().await.unwrap();
}

#[tokio::test]
async fn all_runs_of_a_policy_share_its_quota() {
    let (harness, host) = namespace("quota", json!({"quota": {"tokens": 2000}}))
        .await
        .unwrap();
    let journal = Journal::open(&harness);
    let arguments = ["chat", host.as_str(), "2", "40"];
    for name in ["one", "two"] {
        harness
            .start_script(name, "burn.py", &arguments, json!({"resources": {"cpu": "250m"}}))
            .await
            .unwrap();
    }
    let mut used = 0;
    for name in ["one", "two"] {
        let run = harness.ended_script(name).await.unwrap();
        assert!(
            run.outcomes.contains_key("429 PolicyQuotaExceeded"),
            "{:?}",
            run.outcomes
        );
        used += run.egress().used.tokens;
    }
    assert_eq!(used, COST * count(journal.requests_to(&host).len()));
    assert!((2000 - 4 * RESERVATION..=2000).contains(&used), "{used}");
    // A third run, or the same again, begins with what is left: nothing.
    let run = harness
        .script("three", "burn.py", &["chat", &host, "1", "3"], json!({}))
        .await
        .unwrap();
    assert!(run.egress().used.tokens <= 2000 - used, "{:?}", run.outcomes);
    let status = harness
        .policy_when("default", |policy| {
            policy
                .status
                .as_ref()
                .and_then(|status| status.egress.as_ref())
                .is_some_and(|egress| egress.tokens >= used)
        })
        .await
        .unwrap()
        .status
        .unwrap();
    assert!(status.egress.unwrap().tokens <= 2000);
    let spec = harness.api::<SandboxPolicy>().get("default").await.unwrap().spec;
    assert_eq!(spec.quota.unwrap().tokens, Some(2000));
    harness.finish().await.unwrap();
}

/// Rule 33: a crash costs each run what it had in flight and 1 % of its budget, and gives nothing back. Runs that are idle
/// lose nothing by all crashes but the first.
#[tokio::test]
async fn a_gateway_that_is_killed_resets_no_budget() {
    const LIMIT: i64 = 40_000;
    const KILLS: i64 = 20;
    const THREADS: i64 = 3;
    const IDLE: [&str; 2] = ["idle-1", "idle-2"];
    /// What all crashes may cost at most.
    const LOST: i64 = (KILLS + 1) * (LIMIT / 100 + THREADS * RESERVATION);
    let (harness, host) = namespace("killed", json!({})).await.unwrap();
    // A new gateway takes seconds to serve; twenty of them take longer than a run has by default.
    let more =
        |cpu: &str| json!({"limits": {"tokens": LIMIT, "runtimeSeconds": 900}, "resources": {"cpu": cpu}});
    for idle in IDLE {
        harness
            .start_script(idle, "burn.py", &["chat", &host, "1", "1", "3000"], more("100m"))
            .await
            .unwrap();
    }
    let sandboxes = harness.api::<AgentSandbox>();
    let egress_of = |name: &'static str| {
        let sandboxes = sandboxes.clone();
        async move { Ok::<_, kube::Error>(sandboxes.get(name).await?.status.unwrap_or_default().egress) }
    };
    for idle in IDLE {
        harness
            .eventually("an idle run's one request", || async move {
                let egress = egress_of(idle).await?;
                Ok(egress.filter(|egress| egress.used.tokens == COST).map(|_| ()))
            })
            .await
            .unwrap();
    }
    let journal = Journal::open(&harness);
    harness
        .start_script("burn", "burn.py", &["chat", &host, "3", "100000"], more("400m"))
        .await
        .unwrap();
    let served = || count(journal.requests_to(&host).len());
    for kill in 1..=KILLS {
        harness
            .eventually("more requests", || async {
                // The last crash comes before the budget can be exhausted.
                Ok((served() >= kill * (LIMIT - LOST) / COST / (KILLS + 5)).then_some(()))
            })
            .await
            .unwrap();
        harness.kill_gateway().await.unwrap();
    }
    let run = harness.ended_script("burn").await.unwrap();
    let (egress, spent) = (run.egress(), COST * served());
    println!("spent {spent} of {LIMIT} with {KILLS} kills: {egress:?}");
    let reason = run.status.result.clone().unwrap().reason;
    assert_eq!(
        reason,
        Some(Reason::TokenBudgetExceeded),
        "{}",
        run.log.lines().rev().take(20).collect::<String>()
    );
    assert!(spent <= LIMIT, "{spent}");
    assert!(spent >= LIMIT - LOST, "{spent} spent, at most {LOST} may be lost");
    assert!(
        egress.claimed.tokens <= LIMIT && egress.used.tokens <= LIMIT,
        "{egress:?}"
    );
    for idle in IDLE {
        let egress = egress_of(idle).await.unwrap();
        let egress = egress.unwrap();
        println!("{idle} after {KILLS} kills: {egress:?}");
        assert_eq!(egress.used.tokens, COST);
        assert!(egress.claimed.tokens <= COST + LIMIT / 100, "{egress:?}");
    }
    harness.finish().await.unwrap();
}
