//! Whole pods, with and without an egress gateway.

use agentsandbox_api::gateway::{GatewayAccess, ModelAccess};
use agentsandbox_api::isolation::IsolationLevel;
use serde_json::json;

use super::*;
use crate::build::compare::first_difference;
use crate::policy::valid;
use crate::sandbox::admit::admit;
use crate::testing;

fn built(gateway: Option<GatewayAccess>) -> Pod {
    let config = testing::config();
    let policy = valid::validate(&testing::policy(json!({})).spec, &config, &testing::cluster()).unwrap();
    let sandbox = testing::sandbox(json!({}));
    let mut run = admit(&sandbox.spec, &policy).unwrap();
    run.gateway = gateway;
    let identity = RunIdentity {
        namespace: "ns".into(),
        sandbox: "job".into(),
        sandbox_uid: "11111111-2222-3333-4444-555555555555".into(),
        run_id: String::new(),
        policy: "default".into(),
    };
    let isolation = IsolationRequirement {
        minimum: IsolationLevel::MicroVM,
        vm_handler: true,
        node_kernels: vec!["6.1.0".into()],
    };
    build(&identity, &run, isolation, &testing::facts(), &config)
}

fn with_gateway() -> Pod {
    built(Some(GatewayAccess {
        address: "10.96.3.4".into(),
        models: vec![ModelAccess {
            key_variable: "OPENAI_API_KEY".into(),
            url_variable: "OPENAI_BASE_URL".into(),
            url: "https://api.openai.com/v1".into(),
        }],
    }))
}

fn run_spec_of(pod: &Pod) -> RunSpec {
    let recorder = &pod.spec.as_ref().unwrap().init_containers.as_ref().unwrap()[0];
    let text: String = recorder
        .env
        .iter()
        .flatten()
        .filter(|entry| entry.name.starts_with(names::ENV_RUN_PREFIX))
        .map(|entry| entry.value.clone().unwrap())
        .collect();
    serde_json::from_slice(&BASE64.decode(text).unwrap()).unwrap()
}

/// The pod, with its run spec as what it says.
fn readable(pod: &Pod) -> serde_json::Value {
    let run_spec = run_spec_of(pod);
    let mut value = serde_json::to_value(pod).unwrap();
    let env = &mut value["spec"]["initContainers"][0]["env"];
    env.as_array_mut().unwrap().truncate(2);
    json!({"pod": value, "runSpec": run_spec})
}

#[test]
fn a_pod_without_gateway() {
    insta::assert_json_snapshot!(readable(&built(None)));
}

#[test]
fn a_pod_with_gateway() {
    insta::assert_json_snapshot!(readable(&with_gateway()));
}

#[test]
fn the_gateways_token_is_the_recorders_alone() {
    let spec = with_gateway().spec.unwrap();
    let mounts = |container: &Container| -> Vec<String> {
        container
            .volume_mounts
            .iter()
            .flatten()
            .map(|mount| mount.name.clone())
            .collect()
    };
    assert!(mounts(&spec.init_containers.unwrap()[0]).contains(&TOKEN_VOLUME.to_owned()));
    assert!(!mounts(&spec.containers[0]).contains(&TOKEN_VOLUME.to_owned()));
    assert_eq!(spec.automount_service_account_token, Some(false));
    assert_eq!(spec.share_process_namespace, None);
}

#[test]
fn nothing_of_the_run_is_a_secret() {
    let text = serde_json::to_string(&readable(&with_gateway())).unwrap();
    assert!(
        !text.contains("PROXY"),
        "the run's token is made in the pod: {text}"
    );
}

#[test]
fn the_token_as_the_api_server_returns_it_is_no_mutation_and_another_one_is() {
    let built = with_gateway();
    let mut live = built.clone();
    live.spec.as_mut().unwrap().service_account = Some("default".into());
    assert_eq!(first_difference(&built, &live), None);
    let volumes = live.spec.as_mut().unwrap().volumes.as_mut().unwrap();
    let token = volumes.last_mut().unwrap().projected.as_mut().unwrap();
    token.sources.as_mut().unwrap()[0]
        .service_account_token
        .as_mut()
        .unwrap()
        .audience = None;
    assert!(first_difference(&built, &live).is_some_and(|path| path.ends_with("audience")));
}
