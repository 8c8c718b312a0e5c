//! Addresses of load balancers are the cluster's own, and public: no rule opens them. The network policy around the
//! gateway closes a new one, and the gateway stays.

use std::time::Duration;

use agentsandbox_api::condition::{reasons, types};
use agentsandbox_api::policy::SandboxPolicy;
use e2e::Harness;
use e2e::egress::policy;
use e2e::steps::Session;
use k8s_openapi::api::core::v1::Service;
use k8s_openapi::api::networking::v1::NetworkPolicy;
use kube::ResourceExt;
use kube::api::{DeleteParams, Patch, PatchParams};
use serde_json::json;

/// An address that the outside world answers at; no name but the one that spells it has one below .20.
const ADDRESS: &str = "93.184.216.15";
const URL: &str = "http://93-184-216-15.addr.example.test/echo";
const BALANCER: &str = "balancer";

/// Longer than the gateway keeps a connection that nobody uses: by one from before, requests are still answered.
const UNUSED: Duration = Duration::from_secs(35);

/// Waits until a request comes to this.
async fn eventually(harness: &Harness, session: &Session, outcome: &str) {
    harness
        .eventually(&format!("{outcome} for the load balancer's address"), || async {
            Ok((answer(session) == outcome).then_some(()))
        })
        .await
        .unwrap();
}

/// The address at which the outside world was reached, or else the gateway's reason why it was not.
fn answer(session: &Session) -> String {
    // The gateway tries for 15 s.
    let command = ["step", "--", "curl", "--silent", "--max-time", "25", URL];
    let body = session.step(&command).unwrap().stdout;
    let body: serde_json::Value = serde_json::from_slice(&body).unwrap_or_default();
    let found = body["reason"].as_str().or(body["address"].as_str());
    found.unwrap_or_default().to_owned()
}

async fn closed_around_the_gateway(harness: &Harness) -> bool {
    let networks = harness.api::<NetworkPolicy>();
    let network = networks.get("agentsandbox-gateway-egress").await.unwrap();
    serde_json::to_string(&network).unwrap().contains(ADDRESS)
}

/// Waits until the policy that opens a range is ready, or is not for this reason; says what its condition says.
async fn range_is(harness: &Harness, reason: &str) -> String {
    let found = |policy: &SandboxPolicy| {
        let mut conditions = policy.status.iter().flat_map(|status| &status.conditions);
        let ready = conditions.find(|condition| condition.type_ == types::READY)?;
        (ready.reason == reason).then(|| ready.message.clone())
    };
    let policy = harness.policy_when("range", |policy| found(policy).is_some());
    found(&policy.await.unwrap()).unwrap()
}

async fn gateways(harness: &Harness) -> Vec<String> {
    let pods = harness.gateway_pods().await.unwrap();
    pods.iter().map(ResourceExt::name_any).collect()
}

#[tokio::test(flavor = "multi_thread")]
async fn an_address_that_becomes_a_load_balancers_is_closed_and_no_gateway_replaced() {
    let harness = Harness::start("balancer").await.unwrap();
    let by_name = json!([{"host": "*.addr.example.test", "tls": "None"}]);
    let by_range = json!([{"cidr": "93.184.216.0/28", "ports": [80]}]);
    for (name, allow) in [("default", by_name), ("range", by_range)] {
        let spec = policy(&allow, &json!([]), json!({}));
        harness.policy(name, spec).await.unwrap();
    }
    range_is(&harness, reasons::IN_FORCE).await;
    let more = json!({"session": {"idleTimeoutSeconds": 900}, "limits": {"runtimeSeconds": 900}});
    harness.sandbox("job", more).await.unwrap();
    let session = Session::of(&harness, "job").await.unwrap();
    eventually(&harness, &session, ADDRESS).await;
    assert!(!closed_around_the_gateway(&harness).await);
    let before = gateways(&harness).await;

    let balancer =
        json!({"metadata": {"name": BALANCER}, "spec": {"type": "LoadBalancer", "ports": [{"port": 80}]}});
    harness.create::<Service>(balancer).await.unwrap();
    // The load balancer proper is outside of the node: traffic to it really leaves, and only the policy is in its way.
    let ingress = json!({"ip": ADDRESS, "ipMode": "Proxy"});
    let status = Patch::Merge(json!({"status": {"loadBalancer": {"ingress": [ingress]}}}));
    let services = harness.api::<Service>();
    services
        .patch_status(BALANCER, &PatchParams::default(), &status)
        .await
        .unwrap();
    let invalid = range_is(&harness, reasons::INVALID).await;
    assert!(
        invalid.contains(&format!("a load balancer ({ADDRESS}/32)")),
        "{invalid}"
    );
    tokio::time::sleep(UNUSED).await;
    // What the engine drops is not refused: nobody answers.
    eventually(&harness, &session, "UpstreamTimeout").await;
    assert!(closed_around_the_gateway(&harness).await);

    services.delete(BALANCER, &DeleteParams::default()).await.unwrap();
    range_is(&harness, reasons::IN_FORCE).await;
    eventually(&harness, &session, ADDRESS).await;
    assert!(!closed_around_the_gateway(&harness).await);
    assert_eq!(gateways(&harness).await, before);
    harness.finish().await.unwrap();
}
