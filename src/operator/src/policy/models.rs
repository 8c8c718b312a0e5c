//! Variables by which the providers' SDKs find the models of a policy.

use agentsandbox_api::gateway::ModelAccess;
use agentsandbox_api::policy::Provider;
use agentsandbox_egress::rules::ModelRule;

/// The variables of OpenAI's and Anthropic's SDKs, each for the first model of the provider. Many programs reach an
/// OpenAI-compatible server by OpenAI's variables; they are its where the policy has no OpenAI.
#[must_use]
pub fn variables(models: &[ModelRule]) -> Vec<ModelAccess> {
    let first = |provider: Provider| models.iter().find(|model| model.provider == provider);
    let openai = first(Provider::OpenAI)
        .or_else(|| first(Provider::OpenAICompatible))
        .map(|model| access("OPENAI", format!("https://{}/v1", model.host.as_str())));
    // This SDK adds the version itself.
    let anthropic = first(Provider::Anthropic)
        .map(|model| access("ANTHROPIC", format!("https://{}", model.host.as_str())));
    openai.into_iter().chain(anthropic).collect()
}

fn access(prefix: &str, url: String) -> ModelAccess {
    ModelAccess {
        key_variable: format!("{prefix}_API_KEY"),
        url_variable: format!("{prefix}_BASE_URL"),
        url,
    }
}

#[cfg(test)]
mod tests {
    use agentsandbox_egress::rules::EgressPolicy;
    use serde_json::json;

    use super::*;
    use crate::testing;

    fn of(models: &[(&str, &str)]) -> Vec<(String, String)> {
        let models: Vec<_> = models
            .iter()
            .map(|(provider, host)| json!({"provider": provider, "host": host, "allow": ["m"]}))
            .collect();
        let policy = EgressPolicy::compile(&testing::policy(json!({"models": models})).spec).unwrap();
        variables(policy.models())
            .into_iter()
            .map(|access| (access.key_variable, access.url))
            .collect()
    }

    fn pair(key: &str, url: &str) -> (String, String) {
        (key.to_owned(), url.to_owned())
    }

    #[test]
    fn each_sdk_finds_the_first_model_of_its_provider() {
        assert_eq!(of(&[]), []);
        assert_eq!(
            of(&[
                ("OpenAICompatible", "llm.example.org"),
                ("OpenAI", "api.openai.com"),
                ("Anthropic", "api.anthropic.com"),
            ]),
            [
                pair("OPENAI_API_KEY", "https://api.openai.com/v1"),
                pair("ANTHROPIC_API_KEY", "https://api.anthropic.com"),
            ]
        );
        assert_eq!(
            of(&[("OpenAICompatible", "llm.example.org")]),
            [pair("OPENAI_API_KEY", "https://llm.example.org/v1")]
        );
    }
}
