//! What the command finds in its environment to reach the egress gateway without knowing of it.

use std::collections::BTreeMap;
use std::net::Ipv6Addr;

use agentsandbox_api::gateway::{GatewayAccess, PORT_PROXY, PROXY_USER};

/// Destinations inside the pod, for which nobody asks a proxy.
const NO_PROXY: &str = "localhost,127.0.0.1,::1";

/// Adds the gateway's variables. Those of the proxy are the gateway's alone (a sandbox can't set them); where the
/// sandbox set another one, its own value stays.
pub fn add(env: &mut BTreeMap<String, String>, access: &GatewayAccess, run_token: &str) {
    let proxy = format!(
        "http://{PROXY_USER}:{run_token}@{}:{PORT_PROXY}",
        host(&access.address)
    );
    for name in ["HTTP_PROXY", "HTTPS_PROXY", "http_proxy", "https_proxy"] {
        env.insert(name.to_owned(), proxy.clone());
    }
    for name in ["NO_PROXY", "no_proxy"] {
        env.insert(name.to_owned(), NO_PROXY.to_owned());
    }
    let mut offer = |name: &str, value: &str| {
        env.entry(name.to_owned()).or_insert_with(|| value.to_owned());
    };
    // Node.js 24 and later, whose own fetch honours the variables above only if asked to.
    offer("NODE_USE_ENV_PROXY", "1");
    for model in &access.models {
        offer(&model.key_variable, run_token);
        offer(&model.url_variable, &model.url);
    }
}

/// An address as it stands in a URL.
fn host(address: &str) -> String {
    if address.parse::<Ipv6Addr>().is_ok() {
        format!("[{address}]")
    } else {
        address.to_owned()
    }
}

#[cfg(test)]
mod tests {
    use agentsandbox_api::gateway::ModelAccess;

    use super::*;

    fn access(address: &str) -> GatewayAccess {
        GatewayAccess {
            address: address.into(),
            models: vec![ModelAccess {
                key_variable: "OPENAI_API_KEY".into(),
                url_variable: "OPENAI_BASE_URL".into(),
                url: "https://api.openai.com/v1".into(),
            }],
        }
    }

    #[test]
    fn programs_find_the_proxy_and_the_models() {
        let mut env = BTreeMap::new();
        add(&mut env, &access("10.96.0.7"), "token");
        for name in ["HTTP_PROXY", "HTTPS_PROXY", "http_proxy", "https_proxy"] {
            assert_eq!(env[name], "http://run:token@10.96.0.7:3128", "{name}");
        }
        assert_eq!(env["no_proxy"], "localhost,127.0.0.1,::1");
        assert_eq!(env["OPENAI_API_KEY"], "token");
        assert_eq!(env["OPENAI_BASE_URL"], "https://api.openai.com/v1");
    }

    #[test]
    fn an_ipv6_address_stands_in_brackets() {
        let mut env = BTreeMap::new();
        add(&mut env, &access("fd00::7"), "t");
        assert_eq!(env["HTTPS_PROXY"], "http://run:t@[fd00::7]:3128");
    }

    #[test]
    fn a_sandbox_may_set_a_models_variables_and_not_the_proxys() {
        let mut env = BTreeMap::from([
            ("OPENAI_API_KEY".to_owned(), "own".to_owned()),
            ("NODE_USE_ENV_PROXY".to_owned(), "0".to_owned()),
            ("HTTPS_PROXY".to_owned(), "http://evil".to_owned()),
        ]);
        add(&mut env, &access("10.96.0.7"), "token");
        assert_eq!(env["OPENAI_API_KEY"], "own");
        assert_eq!(env["NODE_USE_ENV_PROXY"], "0");
        assert_eq!(env["HTTPS_PROXY"], "http://run:token@10.96.0.7:3128");
    }
}
