//! `kubectl sandbox get`: all that is known of a sandbox, on one page.

use agentsandbox_api::run::LiveState;
use agentsandbox_api::sandbox::{AgentSandbox, Phase};
use agentsandbox_client::Sandbox;
use clap::Args;
use futures::TryStreamExt;
use k8s_openapi::jiff::Timestamp;
use kube::ResourceExt;

use crate::ceilings;
use crate::connection::Connected;
use crate::failure::Failure;
use crate::format::{self, Format};
use crate::lines::Line;
use crate::page::{Known, page};
use crate::term;

/// Show one sandbox: its verdict, what it used of what it may, its isolation, network and log.
#[derive(Args, Debug)]
#[command(after_help = "Examples:
  kubectl sandbox get analyst
  kubectl sandbox get analyst --records 50
  kubectl sandbox get analyst -o json")]
pub struct Get {
    /// The sandbox.
    name: String,
    /// How many of the last records of the action log are shown.
    #[arg(long, default_value_t = 8, value_name = "COUNT")]
    records: u16,
    /// Print the object as programs want it.
    #[arg(short, long, value_name = "FORMAT")]
    output: Option<Format>,
}

impl Get {
    /// Shows.
    pub async fn run(&self, connected: &Connected) -> Result<(), Failure> {
        let sandbox = connected.sandboxes().get(&self.name).await?;
        let object = sandbox.object().await?;
        if format::print_object(&object, self.output)? {
            return Ok(());
        }
        if self.output == Some(Format::Name) {
            return Ok(term::print(&format!("agentsandbox/{}\n", object.name_any()))?);
        }
        let policy = ceilings::policy_of(&connected.client, &object).await;
        let known = Known {
            ceilings: ceilings::ceilings(&object, policy.as_ref()),
            live: live(&sandbox, &object).await,
            records: self.last_records(&sandbox, &object).await,
            now: Timestamp::now(),
        };
        Ok(term::print(&page(&object, &known))?)
    }

    /// The last records, or why there are none.
    async fn last_records(&self, sandbox: &Sandbox, object: &AgentSandbox) -> Result<Vec<Line>, String> {
        let has_pod = object
            .status
            .as_ref()
            .is_some_and(|status| status.pod_name.is_some());
        if !has_pod || self.records == 0 {
            return Ok(Vec::new());
        }
        let records = sandbox.log(false, Some(self.records.into()));
        let lines = records.map_ok(|record| Line::from(&record)).try_collect().await;
        lines.map_err(|error| Failure::from(error).message)
    }
}

/// What a running sandbox uses now, or why it can't be told.
async fn live(sandbox: &Sandbox, object: &AgentSandbox) -> Option<Result<LiveState, String>> {
    let phase = object.status.as_ref()?.phase?;
    if phase != Phase::Running {
        return None;
    }
    Some(sandbox.live().await.map_err(|error| Failure::from(error).message))
}
