//! The figures as a table, and the bars that the gateway must clear.

use std::fmt::Write as _;

use serde_json::{Value, json};

use crate::load::{Measured, to_f64};
use crate::{CONNECTIONS, queues};

/// Figures of one proxy in one mode, or of the road without any.
pub struct Row {
    /// The proxy.
    pub what: String,
    /// Whether it looked into TLS.
    pub inspecting: bool,
    /// Requests on kept connections, by [`CONNECTIONS`].
    pub kept: [Kept; 3],
    /// Requests with a tunnel each, by round.
    pub fresh: Vec<Measured>,
    /// Bytes per second of a large body, by round.
    pub large: Vec<f64>,
    /// Memory before anything, in bytes.
    pub resident_idle: u64,
    /// More of it for each idle tunnel, in bytes.
    pub resident_per_tunnel: u64,
    /// Processor time of all of this.
    pub cpu_seconds: f64,
}

/// Requests on so many kept connections, by round.
#[derive(Default)]
pub struct Kept {
    /// Each connection asks again as soon as it's answered.
    pub saturated: Vec<Measured>,
    /// All proxies of a mode are offered as many requests per second. Not measured where nothing [`queues`].
    pub same_load: Vec<Measured>,
}

impl Row {
    /// A row without figures.
    pub fn new(what: &str, inspecting: bool) -> Self {
        Self {
            what: what.to_owned(),
            inspecting,
            kept: Default::default(),
            fresh: Vec::new(),
            large: Vec::new(),
            resident_idle: 0,
            resident_per_tunnel: 0,
            cpu_seconds: 0.0,
        }
    }

    /// Whether it's the proxy of its mode with which the others are compared: what it answers at most says what all are
    /// offered at the same load.
    pub fn is_yardstick(&self) -> bool {
        matches!(
            (self.what.as_str(), self.inspecting),
            ("squid", false) | ("mitmproxy", true)
        )
    }

    fn name(&self) -> String {
        format!(
            "{}{}",
            self.what,
            if self.inspecting { ", inspecting" } else { "" }
        )
    }
}

/// The median of each figure.
pub fn median(rounds: &[Measured]) -> Measured {
    let of = |figure: fn(&Measured) -> f64| middle(rounds.iter().map(figure));
    Measured {
        rate: of(|measured| measured.rate),
        p50: of(|measured| measured.p50),
        p99: of(|measured| measured.p99),
    }
}

fn middle(values: impl Iterator<Item = f64>) -> f64 {
    let mut values: Vec<f64> = values.collect();
    values.sort_by(f64::total_cmp);
    values.get(values.len() / 2).copied().unwrap_or(f64::NAN)
}

/// One figure of ours beside another's, by round.
struct Pairs {
    /// Medians.
    ours: f64,
    theirs: f64,
    /// Median of what ours is of theirs in each round: what slows one round down is in both of its figures.
    ratio: f64,
}

impl Pairs {
    fn of<T>(ours: &[T], theirs: &[T], figure: impl Fn(&T) -> f64) -> Self {
        let ratios = ours
            .iter()
            .zip(theirs)
            .map(|(ours, theirs)| figure(ours) / figure(theirs));
        Self {
            ours: middle(ours.iter().map(&figure)),
            theirs: middle(theirs.iter().map(&figure)),
            ratio: middle(ratios),
        }
    }
}

/// A rate and its times, as a table shows them.
fn cells(measured: &Measured) -> String {
    format!(
        "{:>12.0}{:>8.2}{:>8.2}",
        measured.rate, measured.p50, measured.p99
    )
}

/// All figures; the first row is the road without a proxy.
pub struct Report {
    /// The rows.
    pub rows: Vec<Row>,
}

/// Least factor by which the gateway's inspected requests per second exceed mitmproxy's.
const INSPECTION_FACTOR: f64 = 10.0;
/// Most memory of an idle gateway, in bytes.
const RESIDENT_MAX: u64 = 30_000_000;
/// Most memory of an idle tunnel, in bytes.
const TUNNEL_MAX: u64 = 15_000;

impl Report {
    fn row(&self, what: &str, inspecting: bool) -> Option<&Row> {
        self.rows
            .iter()
            .find(|row| row.what == what && row.inspecting == inspecting)
    }

    /// Prints the tables, the bars, and on demand everything as JSON.
    pub fn print(&self, as_json: bool) {
        println!("{}\n{}\n{}", self.saturated(), self.same_load(), self.others());
        println!(
            "p99s of many connections are held against squid's at the same load. At saturation each proxy is under another\n\
             load, its own greatest: the tail is that of a queue, and who answers more can have the longer one. One\n\
             connection has no queue."
        );
        for (bar, holds) in self.bars() {
            println!("{} {bar}", if holds { "met:    " } else { "NOT MET:" });
        }
        if as_json {
            for row in &self.rows {
                println!("{}", row.json());
            }
        }
    }

    /// What each answers at most, and how long a request then takes.
    fn saturated(&self) -> String {
        let mut table =
            "At saturation: requests per second, and milliseconds of one (medians of all rounds):\n"
                .to_owned();
        let mut head = format!("{:<24}", "");
        let mut names = head.clone();
        for title in CONNECTIONS
            .map(|count| format!("{count} connections"))
            .iter()
            .map(String::as_str)
            .chain(["a tunnel each"])
        {
            let _ = write!(head, "{title:>28}");
            let _ = write!(names, "{:>12}{:>8}{:>8}", "req/s", "p50", "p99");
        }
        let _ = writeln!(table, "{head}\n{names}");
        for row in &self.rows {
            let _ = write!(table, "{:<24}", row.name());
            for rounds in row.kept.iter().map(|kept| &kept.saturated).chain([&row.fresh]) {
                table += &cells(&median(rounds));
            }
            table.push('\n');
        }
        table
    }

    /// How long a request takes where all are asked for as much.
    fn same_load(&self) -> String {
        let mut table = "At the same load: at most half of squid's greatest rate, of mitmproxy's where TLS is inspected. A rate far \
             below the\nothers' means that it could not keep up. +p50 and +p99 are what is added to the direct road's times.\n"
            .to_owned();
        let mut head = format!("{:<24}", "");
        let mut names = head.clone();
        for count in CONNECTIONS.into_iter().filter(|count| queues(*count)) {
            let _ = write!(head, "{:>44}", format!("{count} connections"));
            let _ = write!(
                names,
                "{:>12}{:>8}{:>8}{:>8}{:>8}",
                "req/s", "p50", "p99", "+p50", "+p99"
            );
        }
        let _ = writeln!(table, "{head}\n{names}");
        for row in &self.rows {
            let _ = write!(table, "{:<24}", row.name());
            for (index, _) in CONNECTIONS
                .iter()
                .enumerate()
                .filter(|(_, count)| queues(**count))
            {
                let found = median(&row.kept[index].same_load);
                table += &cells(&found);
                // The direct road was under the load of those that pass through, and is no addition to itself.
                let direct = self
                    .rows
                    .first()
                    .filter(|direct| direct.inspecting == row.inspecting && direct.what != row.what);
                match direct.map(|direct| median(&direct.kept[index].same_load)) {
                    Some(direct) => {
                        let _ = write!(
                            table,
                            "{:>8.2}{:>8.2}",
                            found.p50 - direct.p50,
                            found.p99 - direct.p99
                        );
                    }
                    None => {
                        let _ = write!(table, "{:>8}{:>8}", "-", "-");
                    }
                }
            }
            table.push('\n');
        }
        table
    }

    /// What is not the time of a request.
    fn others(&self) -> String {
        let mut table = format!(
            "{:<24}{:>14}{:>16}{:>18}{:>10}\n",
            "", "large body", "memory, idle", "an idle tunnel", "CPU"
        );
        for row in &self.rows {
            let _ = writeln!(
                table,
                "{:<24}{:>9.0} MB/s{:>13.1} MB{:>15.1} kB{:>8.1} s",
                row.name(),
                middle(row.large.iter().copied()) / 1e6,
                to_f64(row.resident_idle) / 1e6,
                to_f64(row.resident_per_tunnel) / 1e3,
                row.cpu_seconds,
            );
        }
        table
    }

    /// What the gateway is held to, and whether it holds: by the median of the ratios of all rounds, as figures of one
    /// round met the same noise.
    ///
    /// Rates are compared at saturation. So are p99s of one connection, which has no queue. Those of many connections are
    /// compared at the same load, half of what squid answers at most: at saturation each proxy is under another load, and
    /// the one that answers more could miss the bar by the tail of the queue that it serves faster.
    fn bars(&self) -> Vec<(String, bool)> {
        let mut bars = Vec::new();
        if let (Some(ours), Some(squid)) = (self.row("gateway", false), self.row("squid", false)) {
            let rates = |name: &str, ours: &[Measured], squid: &[Measured]| {
                let Pairs { ours, theirs, ratio } = Pairs::of(ours, squid, |found| found.rate);
                (
                    format!(
                        "passing through, {name}: {ours:.0} requests/s, squid {theirs:.0}: {ratio:.2} times"
                    ),
                    ratio >= 1.0,
                )
            };
            let times = |name: &str, ours: &[Measured], squid: &[Measured]| {
                let Pairs { ours, theirs, ratio } = Pairs::of(ours, squid, |found| found.p99);
                (
                    format!("passing through, {name}: p99 {ours:.2} ms, squid {theirs:.2}: {ratio:.2} times"),
                    ratio <= 1.0,
                )
            };
            for ((ours, squid), count) in ours.kept.iter().zip(&squid.kept).zip(CONNECTIONS) {
                let at = format!("{count} connections");
                bars.push(rates(&at, &ours.saturated, &squid.saturated));
                bars.push(if queues(count) {
                    let at = format!("{at} at the same load");
                    times(&at, &ours.same_load, &squid.same_load)
                } else {
                    times(&at, &ours.saturated, &squid.saturated)
                });
            }
            let Pairs { ours, theirs, ratio } = Pairs::of(&ours.large, &squid.large, |rate| rate / 1e6);
            bars.push((
                format!("passing through, large body: {ours:.0} MB/s, squid {theirs:.0}: {ratio:.2} times"),
                ratio >= 1.0,
            ));
        }
        if let (Some(ours), Some(mitm)) = (self.row("gateway", true), self.row("mitmproxy", true)) {
            for ((ours, mitm), count) in ours.kept.iter().zip(&mitm.kept).zip(CONNECTIONS) {
                let factor = Pairs::of(&ours.saturated, &mitm.saturated, |found| found.rate).ratio;
                bars.push((
                    format!("inspecting, {count} connections: {factor:.1} times mitmproxy's requests/s"),
                    factor >= INSPECTION_FACTOR,
                ));
            }
        }
        if let Some(ours) = self.row("gateway", false) {
            let (idle, tunnel) = (ours.resident_idle, ours.resident_per_tunnel);
            bars.push((
                format!("memory, idle: {:.1} MB", to_f64(idle) / 1e6),
                idle < RESIDENT_MAX,
            ));
            bars.push((
                format!("memory of an idle tunnel: {:.1} kB", to_f64(tunnel) / 1e3),
                tunnel < TUNNEL_MAX,
            ));
        }
        bars
    }
}

impl Row {
    fn json(&self) -> Value {
        let rounds = |rounds: &[Measured]| -> Value {
            rounds
                .iter()
                .map(|measured| json!({"rate": measured.rate, "p50": measured.p50, "p99": measured.p99}))
                .collect()
        };
        let kept: Vec<Value> = self
            .kept
            .iter()
            .zip(CONNECTIONS)
            .map(|(found, count)| {
                json!({
                    "connections": count,
                    "rounds": rounds(&found.saturated), "sameLoad": rounds(&found.same_load),
                })
            })
            .collect();
        json!({
            "proxy": self.what, "inspecting": self.inspecting, "kept": kept, "fresh": rounds(&self.fresh),
            "bytesPerSecond": self.large, "residentIdle": self.resident_idle,
            "residentPerTunnel": self.resident_per_tunnel, "cpuSeconds": self.cpu_seconds,
        })
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    fn measured(rate: f64, p99: f64) -> Vec<Measured> {
        vec![Measured {
            rate,
            p50: p99 / 2.0,
            p99,
        }]
    }

    /// A row with the same figures for each number of connections.
    fn row(what: &str, inspecting: bool, saturated: (f64, f64), same_load: (f64, f64)) -> Row {
        let mut row = Row::new(what, inspecting);
        for (kept, count) in row.kept.iter_mut().zip(CONNECTIONS) {
            kept.saturated = measured(saturated.0, saturated.1);
            if queues(count) {
                kept.same_load = measured(same_load.0, same_load.1);
            }
        }
        row
    }

    /// One in which the gateway answers more than squid, with a longer tail at saturation and a shorter one at the same
    /// load.
    fn report() -> Report {
        Report {
            rows: vec![
                row("direct", false, (40_000.0, 1.0), (5_000.0, 0.5)),
                row("gateway", false, (20_000.0, 9.0), (5_000.0, 1.5)),
                row("squid", false, (10_000.0, 8.0), (5_000.0, 2.0)),
                row("gateway", true, (8_000.0, 9.0), (200.0, 3.0)),
                row("mitmproxy", true, (400.0, 90.0), (200.0, 30.0)),
            ],
        }
    }

    #[test]
    fn times_are_held_against_squids_at_the_same_load_where_connections_wait_for_each_other() {
        let bars: Vec<_> = report()
            .bars()
            .into_iter()
            .filter(|(bar, _)| bar.contains("p99"))
            .collect();
        assert_eq!(
            bars,
            [
                (
                    "passing through, 1 connections: p99 9.00 ms, squid 8.00: 1.12 times".to_owned(),
                    false
                ),
                (
                    "passing through, 32 connections at the same load: p99 1.50 ms, squid 2.00: 0.75 times"
                        .to_owned(),
                    true
                ),
                (
                    "passing through, 256 connections at the same load: p99 1.50 ms, squid 2.00: 0.75 times"
                        .to_owned(),
                    true
                ),
            ]
        );
    }

    #[test]
    fn rates_are_held_against_each_other_at_saturation() {
        let bars = report().bars();
        let rates: Vec<_> = bars
            .iter()
            .filter(|(bar, _)| bar.contains("requests/s"))
            .collect();
        assert_eq!(rates.len(), 2 * CONNECTIONS.len());
        assert_eq!(
            *rates[1],
            (
                "passing through, 32 connections: 20000 requests/s, squid 10000: 2.00 times".to_owned(),
                true
            )
        );
        assert_eq!(
            *rates[4],
            (
                "inspecting, 32 connections: 20.0 times mitmproxy's requests/s".to_owned(),
                true
            )
        );
    }

    #[test]
    fn rounds_are_compared_and_not_the_medians_of_each() {
        let rates = |rates: [f64; 3]| rates.map(|rate| measured(rate, 1.0)).concat();
        // In two of three rounds the gateway answers more, and its median is below squid's.
        let mut report = report();
        report.rows[1].kept[1].saturated = rates([150.0, 110.0, 300.0]);
        report.rows[2].kept[1].saturated = rates([160.0, 100.0, 240.0]);
        let bars = report.bars();
        assert_eq!(
            bars[2],
            (
                "passing through, 32 connections: 150 requests/s, squid 160: 1.10 times".to_owned(),
                true
            )
        );
    }

    #[test]
    fn the_second_table_adds_to_the_direct_road_only_what_was_under_its_load() {
        let table = report().same_load();
        let cells = |name: &str| -> Vec<String> {
            let line = table
                .lines()
                .find_map(|line| line.strip_prefix(&format!("{name:<24}")));
            line.unwrap().split_whitespace().map(str::to_owned).collect()
        };
        let twice = |cells: [&'static str; 5]| [cells, cells].concat();
        assert_eq!(cells("direct"), twice(["5000", "0.25", "0.50", "-", "-"]));
        assert_eq!(cells("gateway"), twice(["5000", "0.75", "1.50", "0.50", "1.00"]));
        assert_eq!(
            cells("gateway, inspecting"),
            twice(["200", "1.50", "3.00", "-", "-"])
        );
    }

    #[test]
    fn json_has_the_rounds_at_the_same_load_too() {
        let json = report().rows[1].json();
        assert_eq!(json["kept"][0]["sameLoad"], json!([]));
        assert_eq!(
            json["kept"][1],
            json!({
                "connections": 32,
                "rounds": [{"rate": 20_000.0, "p50": 4.5, "p99": 9.0}],
                "sameLoad": [{"rate": 5_000.0, "p50": 0.75, "p99": 1.5}],
            })
        );
    }
}
