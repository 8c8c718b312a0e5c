//! `kubectl sandbox audit`: what a sandbox did, from its action log and the egress gateway's.

use agentsandbox_client::Sandbox;
use clap::{Args, ValueEnum};
use futures::stream::{self, BoxStream};
use futures::{StreamExt, TryStreamExt};

use crate::connection::Connected;
use crate::failure::Failure;
use crate::gateway;
use crate::lines::{Kind, Line};
use crate::term;

/// How records are printed.
#[derive(Clone, Copy, Debug, PartialEq, Eq, ValueEnum)]
enum As {
    /// As they were written, for `kubectl sandbox verify` and programs; the gateway's only with `--kind egress`.
    Json,
}

/// Tell what a sandbox did: the records of its action log and of the egress gateway, in the order of their times.
///
/// The gateway's records need the right to read its pod's log; without it they are left out, with a note.
#[derive(Args, Debug)]
#[command(after_help = "Examples:
  kubectl sandbox audit analyst
  kubectl sandbox audit analyst -f --kind step
  kubectl sandbox audit analyst --denied
  kubectl sandbox audit analyst -o json > analyst.log")]
pub struct Audit {
    /// The sandbox.
    name: String,
    /// Wait for the start, and go on to the end of the run.
    #[arg(short, long)]
    follow: bool,
    /// Only records of this kind; may be given more than once.
    #[arg(short, long, value_enum, value_name = "KIND")]
    kind: Vec<Kind>,
    /// Only what was refused.
    #[arg(long)]
    denied: bool,
    /// Print the records as they were written.
    #[arg(short, long, value_enum, value_name = "FORMAT")]
    output: Option<As>,
}

impl Audit {
    /// Tells.
    pub async fn run(&self, connected: &Connected) -> Result<(), Failure> {
        let sandbox = connected.sandboxes().get(&self.name).await?;
        let mut lines = if self.follow {
            Box::pin(self.followed(&sandbox, connected)).await?
        } else {
            self.all(&sandbox, connected).await?
        };
        while let Some(together) = together(&mut lines).await? {
            for line in together.iter().filter(|line| self.wants(line)) {
                self.print(line)?;
            }
        }
        Ok(())
    }

    fn wants(&self, line: &Line) -> bool {
        (self.kind.is_empty() || self.kind.contains(&line.kind)) && (line.denied || !self.denied)
    }

    fn print(&self, line: &Line) -> Result<(), Failure> {
        match self.output {
            Some(As::Json) => term::print_document(&format!("{}\n", line.raw))?,
            None => term::print(&format!("{line}\n"))?,
        }
        Ok(())
    }

    /// Whether the recorder's records can be among those that are wanted.
    fn wants_recorder(&self) -> bool {
        self.kind.is_empty() || self.kind.iter().any(|kind| *kind != Kind::Egress)
    }

    fn wants_gateway(&self) -> bool {
        // Both logs have chains of their own: printed together as they are, neither could be verified.
        let told = self.output.is_none() && self.kind.is_empty();
        told || self.kind.contains(&Kind::Egress)
    }

    async fn all(
        &self,
        sandbox: &Sandbox,
        connected: &Connected,
    ) -> Result<BoxStream<'static, Result<Line, Failure>>, Failure> {
        let mut lines: Vec<Line> = Vec::new();
        if self.wants_recorder() {
            let records = sandbox.log(false, None);
            lines = records.map_ok(|record| Line::from(&record)).try_collect().await?;
        }
        if let Some(gateway) = self.of_gateway(sandbox, connected, false).await? {
            lines.extend(gateway.collect::<Vec<_>>().await);
        }
        Ok(stream::iter(lines.into_iter().map(Ok)).boxed())
    }

    async fn followed(
        &self,
        sandbox: &Sandbox,
        connected: &Connected,
    ) -> Result<BoxStream<'static, Result<Line, Failure>>, Failure> {
        sandbox
            .wait(agentsandbox_client::Until::Started, None, |_| {})
            .await?;
        let records = sandbox
            .log(true, None)
            .map_ok(|record| Line::from(&record))
            .map_err(Failure::from);
        let Some(gateway) = self.of_gateway(sandbox, connected, true).await? else {
            return Ok(records.boxed());
        };
        // The gateway goes on when the run has ended; what it still says comes within a moment.
        let ended = sandbox.clone();
        let last = async move {
            let _ = ended
                .wait(agentsandbox_client::Until::Finished, None, |_| {})
                .await;
            tokio::time::sleep(LAST_WORDS).await;
        };
        let gateway = gateway.take_until(Box::pin(last)).map(Ok);
        Ok(stream::select(records, gateway).boxed())
    }

    /// The gateway's records, where they are wanted, there and readable.
    async fn of_gateway(
        &self,
        sandbox: &Sandbox,
        connected: &Connected,
        follow: bool,
    ) -> Result<Option<BoxStream<'static, Line>>, Failure> {
        let object = sandbox.object().await?;
        let Some(pod_uid) = object
            .status
            .and_then(|status| status.pod_uid)
            .filter(|_| self.wants_gateway())
        else {
            return Ok(None);
        };
        let since = object.metadata.creation_timestamp.map(|time| time.0);
        match gateway::records(connected, &pod_uid, since, follow).await {
            Ok(records) => Ok(Some(records.boxed())),
            Err(kube::Error::Api(status)) if status.is_forbidden() => {
                anstream::eprintln!(
                    "the egress gateway's records are left out: its log may not be read (list on pods, get on pods/log)"
                );
                Ok(None)
            }
            Err(error) => Err(agentsandbox_client::Error::from(error).into()),
        }
    }
}

/// The next line and what comes shortly after it, in the order of their times: both logs are read side by side.
async fn together(
    lines: &mut BoxStream<'static, Result<Line, Failure>>,
) -> Result<Option<Vec<Line>>, Failure> {
    let Some(first) = lines.try_next().await? else {
        return Ok(None);
    };
    let mut together = vec![first];
    let enough = tokio::time::sleep(TOGETHER);
    tokio::pin!(enough);
    while let Some(line) = tokio::select! {
        biased;
        line = lines.try_next() => line?,
        () = &mut enough => None,
    } {
        together.push(line);
    }
    // RFC 3339 in one form: the order of the texts is that of the times.
    together.sort_by(|one, other| one.time.cmp(&other.time));
    Ok(Some(together))
}

/// Lines that come within so long of each other are put into the order of their times.
const TOGETHER: std::time::Duration = std::time::Duration::from_millis(500);
/// How long the gateway's log is followed once the run has ended.
const LAST_WORDS: std::time::Duration = std::time::Duration::from_secs(2);

#[cfg(test)]
mod tests {
    use super::*;
    use clap::Parser;

    #[derive(Parser)]
    struct Alone {
        #[command(flatten)]
        audit: Audit,
    }

    fn audit(options: &str) -> Audit {
        let words = ["audit", "x"].into_iter().chain(options.split_whitespace());
        Alone::try_parse_from(words).unwrap().audit
    }

    #[tokio::test(start_paused = true)]
    async fn lines_that_come_together_are_put_in_order_and_none_is_lost() {
        let line = |time: &str| Line {
            time: time.to_owned(),
            kind: Kind::Run,
            denied: false,
            text: String::new(),
            raw: String::new(),
        };
        let backlog = stream::iter([line("2"), line("1")]).map(Ok);
        let later = stream::once(async move {
            tokio::time::sleep(TOGETHER * 2).await;
            Ok(line("0"))
        });
        let mut lines = backlog.chain(later).boxed();
        let mut batches = Vec::new();
        while let Some(batch) = together(&mut lines).await.unwrap() {
            batches.push(batch.into_iter().map(|line| line.time).collect::<Vec<_>>());
        }
        assert_eq!(batches, [vec!["1", "2"], vec!["0"]]);
    }

    #[test]
    fn logs_with_chains_of_their_own_are_joined_for_people_only() {
        for (options, recorder, gateway) in [
            ("", true, true),
            ("-o json", true, false),
            ("-o json --kind egress", false, true),
            ("--kind step", true, false),
            ("--kind step --kind egress", true, true),
        ] {
            let audit = audit(options);
            assert_eq!(
                (audit.wants_recorder(), audit.wants_gateway()),
                (recorder, gateway),
                "{options}"
            );
        }
    }
}
