//! The lists of models.

use agentsandbox_api::policy::Provider;
use serde_json::{Value, json};

use super::super::catalog;
use super::rule;

fn read(bytes: &[u8]) -> Value {
    serde_json::from_slice(bytes).unwrap()
}

#[test]
fn the_list_has_the_allowed_models_once_each_as_the_provider_shows_them() {
    let first = rule(Provider::OpenAI);
    let mut second = rule(Provider::OpenAI);
    second.allow = vec!["model-b".into(), "model-\"c\"".into()];
    let model = |id: &str| json!({"id": id, "object": "model", "created": 0, "owned_by": "sandbox-policy"});
    assert_eq!(
        read(&catalog::list(Provider::OpenAI, &[&first, &second])),
        json!({"object": "list", "data": [model("model-a"), model("model-b"), model("model-\"c\"")]})
    );
    let list = read(&catalog::list(Provider::Anthropic, &[&first]));
    assert_eq!(list["has_more"], json!(false));
    assert_eq!(
        (&list["first_id"], &list["last_id"]),
        (&json!("model-a"), &json!("model-b"))
    );
    assert_eq!(
        list["data"][1],
        json!({"id": "model-b", "type": "model", "display_name": "model-b", "created_at": "1970-01-01T00:00:00Z"})
    );
    assert_eq!(
        read(&catalog::list(Provider::Anthropic, &[])),
        json!({"data": [], "has_more": false, "first_id": null, "last_id": null})
    );
}

#[test]
fn a_model_that_is_not_allowed_is_not_there() {
    let rule = rule(Provider::OpenAICompatible);
    assert!(catalog::model(Provider::OpenAICompatible, &[&rule], "model-x").is_none());
    let found = catalog::model(Provider::OpenAICompatible, &[&rule], "model-b").unwrap();
    assert_eq!(read(&found)["id"], "model-b");
}
