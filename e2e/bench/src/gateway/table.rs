//! The figures as a table, and the bars that the gateway must clear.

use std::fmt::Write as _;

use serde_json::{Value, json};

use crate::CONNECTIONS;
use crate::load::{Measured, to_f64};

/// Figures of one proxy in one mode, or of the road without any.
pub struct Row {
    /// The proxy.
    pub what: String,
    /// Whether it looked into TLS.
    pub inspecting: bool,
    /// Requests on kept connections, by [`CONNECTIONS`] and round.
    pub kept: [Vec<Measured>; 3],
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

    fn name(&self) -> String {
        format!(
            "{}{}",
            self.what,
            if self.inspecting { ", inspecting" } else { "" }
        )
    }
}

/// The median of each figure.
fn median(rounds: &[Measured]) -> Measured {
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

    /// Prints the table, the bars, and on demand everything as JSON.
    pub fn print(&self, as_json: bool) {
        println!("Requests per second, and milliseconds of one (medians of all rounds):");
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
        println!("{head}\n{names}");
        for row in &self.rows {
            let mut line = format!("{:<24}", row.name());
            for measured in row.kept.iter().chain([&row.fresh]).map(|rounds| median(rounds)) {
                let _ = write!(
                    line,
                    "{:>12.0}{:>8.2}{:>8.2}",
                    measured.rate, measured.p50, measured.p99
                );
            }
            println!("{line}");
        }
        println!(
            "\n{:<24}{:>14}{:>16}{:>18}{:>10}",
            "", "large body", "memory, idle", "an idle tunnel", "CPU"
        );
        for row in &self.rows {
            println!(
                "{:<24}{:>9.0} MB/s{:>13.1} MB{:>15.1} kB{:>8.1} s",
                row.name(),
                middle(row.large.iter().copied()) / 1e6,
                to_f64(row.resident_idle) / 1e6,
                to_f64(row.resident_per_tunnel) / 1e3,
                row.cpu_seconds,
            );
        }
        println!();
        for (bar, holds) in self.bars() {
            println!("{} {bar}", if holds { "met:    " } else { "NOT MET:" });
        }
        if as_json {
            for row in &self.rows {
                println!("{}", row.json());
            }
        }
    }

    /// What the gateway is held to, and whether it holds.
    fn bars(&self) -> Vec<(String, bool)> {
        let mut bars = Vec::new();
        if let (Some(ours), Some(squid)) = (self.row("gateway", false), self.row("squid", false)) {
            for ((ours, squid), count) in ours.kept.iter().zip(&squid.kept).zip(CONNECTIONS) {
                let (ours, squid) = (median(ours), median(squid));
                let at = format!("passing through, {count} connections");
                let rates = format!("{at}: {:.0} requests/s, squid {:.0}", ours.rate, squid.rate);
                bars.push((rates, ours.rate >= squid.rate));
                let times = format!("{at}: p99 {:.2} ms, squid {:.2}", ours.p99, squid.p99);
                bars.push((times, ours.p99 <= squid.p99));
            }
            let large = |row: &Row| middle(row.large.iter().copied()) / 1e6;
            let (ours, squid) = (large(ours), large(squid));
            bars.push((
                format!("passing through, large body: {ours:.0} MB/s, squid {squid:.0}"),
                ours >= squid,
            ));
        }
        if let (Some(ours), Some(mitm)) = (self.row("gateway", true), self.row("mitmproxy", true)) {
            for ((ours, mitm), count) in ours.kept.iter().zip(&mitm.kept).zip(CONNECTIONS) {
                let factor = median(ours).rate / median(mitm).rate;
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
            .map(|(found, count)| json!({"connections": count, "rounds": rounds(found)}))
            .collect();
        json!({
            "proxy": self.what, "inspecting": self.inspecting, "kept": kept, "fresh": rounds(&self.fresh),
            "bytesPerSecond": self.large, "residentIdle": self.resident_idle,
            "residentPerTunnel": self.resident_per_tunnel, "cpuSeconds": self.cpu_seconds,
        })
    }
}
