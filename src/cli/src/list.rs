//! `kubectl sandbox list`.

use agentsandbox_api::sandbox::AgentSandbox;
use clap::Args;
use k8s_openapi::jiff::Timestamp;
use kube::ResourceExt;

use crate::connection::Connected;
use crate::failure::Failure;
use crate::format::{self, Format};
use crate::term::{self, Table, shown};

/// List sandboxes.
#[derive(Args, Debug)]
#[command(
    visible_alias = "ls",
    after_help = "Examples:
  kubectl sandbox list
  kubectl sandbox list -A -l team=blue -o wide"
)]
pub struct List {
    /// Sandboxes of all namespaces.
    #[arg(short = 'A', long)]
    all_namespaces: bool,
    /// Only sandboxes with these labels.
    #[arg(
        short = 'l',
        long,
        default_value = "",
        hide_default_value = true,
        value_name = "SELECTOR"
    )]
    selector: String,
    /// Print them as programs want them, or with more columns.
    #[arg(short, long, value_name = "FORMAT")]
    output: Option<Format>,
}

impl List {
    /// Lists.
    pub async fn run(&self, connected: &Connected) -> Result<(), Failure> {
        let sandboxes = connected.sandboxes();
        let found = if self.all_namespaces {
            sandboxes.list_all(&self.selector).await?
        } else {
            sandboxes.list(&self.selector).await?
        };
        if format::print_list(&found, self.output)? {
            return Ok(());
        }
        if self.output == Some(Format::Name) {
            for sandbox in &found {
                term::print(&format!("agentsandbox/{}\n", sandbox.name_any()))?;
            }
            return Ok(());
        }
        if found.is_empty() {
            let place = if self.all_namespaces {
                String::new()
            } else {
                format!(" in namespace {}", connected.namespace)
            };
            anstream::eprintln!("No sandboxes{place}.");
            return Ok(());
        }
        let wide = self.output == Some(Format::Wide);
        Ok(term::print(
            &table(&found, self.all_namespaces, wide, Timestamp::now()).to_string(),
        )?)
    }
}

fn table(found: &[AgentSandbox], namespaces: bool, wide: bool, now: Timestamp) -> Table {
    let mut head = vec!["NAME", "PHASE", "REASON", "EXIT", "POLICY", "DURATION", "AGE"];
    if namespaces {
        head.insert(0, "NAMESPACE");
    }
    if wide {
        head.extend(["ISOLATION", "RUNTIME", "NODE", "IMAGE"]);
    }
    let mut table = Table::new(&head);
    for sandbox in found {
        let status = sandbox.status.clone().unwrap_or_default();
        let isolation = status.isolation.unwrap_or_default();
        let exit_code = status.result.and_then(|result| result.exit_code);
        let created = sandbox.creation_timestamp();
        let mut row = vec![
            sandbox.name_any(),
            status.phase.map(|phase| phase.to_string()).unwrap_or_default(),
            shown(&status.reason.unwrap_or_default()),
            exit_code.map(|code| code.to_string()).unwrap_or_default(),
            shown(&sandbox.spec.policy_ref.name),
            shown(&status.duration.unwrap_or_default()),
            created.map(|time| term::age(time.0, now)).unwrap_or_default(),
        ];
        if namespaces {
            row.insert(0, sandbox.namespace().unwrap_or_default());
        }
        if wide {
            row.extend([
                isolation.level.map(|level| level.to_string()).unwrap_or_default(),
                shown(&isolation.runtime_class_name.unwrap_or_default()),
                shown(&status.node_name.unwrap_or_default()),
                shown(&sandbox.spec.image),
            ]);
        }
        table.row(row);
    }
    table
}

#[cfg(test)]
mod tests {
    use super::*;
    use serde_json::json;

    #[test]
    fn one_line_each_and_nothing_a_terminal_acts_on() {
        let sandbox: AgentSandbox = serde_json::from_value(json!({
            "metadata": {"name": "a", "namespace": "n", "creationTimestamp": "1970-01-01T00:00:00Z"},
            "spec": {"image": "x", "command": ["y"]},
            "status": {"phase": "Failed", "reason": "Bad\u{1b}", "result": {"exitCode": 3}, "duration": "4s"},
        }))
        .unwrap();
        let now = Timestamp::from_second(65).unwrap();
        assert_eq!(
            table(std::slice::from_ref(&sandbox), true, false, now).to_string(),
            "NAMESPACE  NAME  PHASE   REASON     EXIT  POLICY   DURATION  AGE\n\
             n          a     Failed  Bad\\u{1b}  3     default  4s        1m5s\n"
        );
        let wide = table(&[sandbox], false, true, now).to_string();
        assert!(wide.contains("ISOLATION  RUNTIME  NODE  IMAGE\n"), "{wide}");
    }
}
