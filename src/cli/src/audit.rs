//! `kubectl sandbox audit`: what a sandbox did, from its action log and the egress gateway's.

use std::collections::HashMap;

use agentsandbox_client::Sandbox;
use clap::{Args, ValueEnum};
use futures::stream::{self, BoxStream};
use futures::{StreamExt, TryStreamExt};
use tokio::time::Instant;

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
/// Each log keeps its own order, whatever its clock said.
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
        loop {
            let (together, end) = together(&mut lines).await;
            for line in together.iter().filter(|line| self.wants(line)) {
                self.print(line)?;
            }
            if let Some(end) = end {
                return end;
            }
        }
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
        let mut lines = Vec::new();
        if self.wants_recorder() {
            lines = recorded(sandbox, false).collect().await;
        }
        match self.of_gateway(sandbox, connected, false).await {
            Ok(Some(gateway)) => lines.extend(gateway.map(Ok).collect::<Vec<_>>().await),
            Ok(None) => {}
            Err(failure) => lines.push(Err(failure)),
        }
        // An error comes after all that there is.
        lines.sort_by_key(Result::is_err);
        Ok(stream::iter(lines).boxed())
    }

    async fn followed(
        &self,
        sandbox: &Sandbox,
        connected: &Connected,
    ) -> Result<BoxStream<'static, Result<Line, Failure>>, Failure> {
        sandbox
            .wait(agentsandbox_client::Until::Started, None, |_| {})
            .await?;
        let records = recorded(sandbox, true);
        let Some(gateway) = self.of_gateway(sandbox, connected, true).await? else {
            return Ok(records);
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

/// The recorder's records.
fn recorded(sandbox: &Sandbox, follow: bool) -> BoxStream<'static, Result<Line, Failure>> {
    let records = sandbox.log(follow, None);
    records
        .map_ok(|record| Line::from(&record))
        .map_err(Failure::from)
        .boxed()
}

/// The next line and what comes shortly after it, put in order, because both logs are read side by side; and how the
/// stream ended, if it did.
async fn together(
    lines: &mut BoxStream<'static, Result<Line, Failure>>,
) -> (Vec<Line>, Option<Result<(), Failure>>) {
    let mut together = Vec::new();
    let enough = tokio::time::sleep(TOGETHER);
    tokio::pin!(enough);
    let end = loop {
        tokio::select! {
            biased;
            next = lines.next() => match next {
                Some(Ok(line)) => {
                    if together.is_empty() {
                        enough.as_mut().reset(Instant::now() + TOGETHER);
                    }
                    together.push(line);
                }
                Some(Err(failure)) => break Some(Err(failure)),
                None => break Some(Ok(())),
            },
            () = &mut enough, if !together.is_empty() => break None,
        }
    };
    (merged(together), end)
}

/// Lines in the order of their times, but those of one log in its own order: a clock may have been set back.
fn merged(lines: Vec<Line>) -> Vec<Line> {
    // RFC 3339 in one form: the order of the texts is that of the times.
    let mut latest: HashMap<String, String> = HashMap::new();
    let mut timed: Vec<(String, Line)> = lines
        .into_iter()
        .map(|line| {
            let latest = latest.entry(line.gateway.clone()).or_default();
            if *latest < line.time {
                latest.clone_from(&line.time);
            }
            (latest.clone(), line)
        })
        .collect();
    timed.sort_by(|(one, _), (other, _)| one.cmp(other));
    timed.into_iter().map(|(_, line)| line).collect()
}

/// Lines that come within so long of each other are put into the order of their times.
const TOGETHER: std::time::Duration = std::time::Duration::from_millis(500);
/// How long the gateway's log is followed once the run has ended.
const LAST_WORDS: std::time::Duration = std::time::Duration::from_secs(2);

#[cfg(test)]
mod tests {
    use agentsandbox_action_log::chain::Chain;
    use agentsandbox_action_log::time::Time;
    use agentsandbox_action_log::verify::{Expected, verify};
    use agentsandbox_client::Record;
    use clap::Parser;
    use serde_json::json;

    use super::*;

    #[derive(Parser)]
    struct Alone {
        #[command(flatten)]
        audit: Audit,
    }

    fn audit(options: &str) -> Audit {
        let words = ["audit", "x"].into_iter().chain(options.split_whitespace());
        Alone::try_parse_from(words).unwrap().audit
    }

    fn line(time: &str, gateway: &str) -> Line {
        Line {
            time: time.to_owned(),
            kind: Kind::Run,
            denied: false,
            text: String::new(),
            raw: String::new(),
            gateway: gateway.to_owned(),
        }
    }

    fn times(lines: &[Line]) -> Vec<&str> {
        lines.iter().map(|line| line.time.as_str()).collect()
    }

    #[tokio::test(start_paused = true)]
    async fn lines_that_come_together_are_put_in_order_and_none_is_lost() {
        let backlog = stream::iter([line("2", ""), line("1", "g")]).map(Ok);
        let later = stream::once(async {
            tokio::time::sleep(TOGETHER * 2).await;
            Ok(line("0", ""))
        });
        let broken = stream::iter([Err(Failure::new("it broke"))]);
        let mut lines = backlog.chain(later).chain(broken).boxed();
        let (first, end) = together(&mut lines).await;
        assert_eq!((times(&first), end), (vec!["1", "2"], None));
        let (last, end) = together(&mut lines).await;
        assert_eq!(
            (times(&last), end),
            (vec!["0"], Some(Err(Failure::new("it broke"))))
        );
    }

    #[test]
    fn each_log_keeps_its_own_order_whatever_its_clock_says() {
        let logs = [
            ("5", ""),
            ("2", ""),
            ("7", ""),
            ("3", "g"),
            ("6", "g"),
            ("1", "g"),
        ];
        let merged = merged(logs.map(|(time, log)| line(time, log)).to_vec());
        assert_eq!(times(&merged), ["3", "5", "2", "6", "1", "7"]);
    }

    #[tokio::test(start_paused = true)]
    async fn a_log_whose_clock_was_set_back_is_printed_as_it_verifies() {
        let mut chain = Chain::default();
        let begun = json!({"activity": "signal", "signal": 15, "reason": "Stopped"});
        let log = [9000, 1000, 5000].map(|time| chain.line(Time(time), 6002, &begun));
        let records = log.iter().map(|line| Record::parse(line).unwrap());
        let lines: Vec<_> = records.map(|record| Ok(Line::from(&record))).collect();
        let (printed, _) = together(&mut stream::iter(lines).boxed()).await;
        let printed: Vec<_> = printed.into_iter().map(|line| line.raw).collect();
        let status = Expected {
            records: 3,
            head: chain.head(),
        };
        assert_eq!(verify(&printed.join("\n"), Some(&status)).broken, None);
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
