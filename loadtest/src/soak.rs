//! `loadtest soak`: a run of hours, and whether anything grows.
//!
//! Every so often a full look: rates, latency since the look before, what was lost so far, memory,
//! descriptors, CPU. In the end the medians of the first quarter of all looks are held against those
//! of the last: what grows by more than an allocator's noise will not stop by itself.

use anyhow::bail;
use clap::Args;
use serde::Serialize;

use crate::churn;
use crate::cli::{LoadArgs, TargetArgs};
use crate::clock::SECOND_NS;
use crate::fleet::Fleet;
use crate::html::Page;
use crate::measure::{self, Measured};
use crate::process;
use crate::publish::PublisherName;
use crate::report::{
    ClientReport, Environment, GroupReport, OutputArgs, ServerReport, Table, curves, median,
};
use crate::run::{self, Connecting};
use crate::slow::is_within;
use crate::timeline::{self, Depth, Looks, Sample};
use crate::verdict::{Comparison, Verdict, is_client_bound};

const OTHER_FDS: usize = 64;
/// So that a quarter is more than a look or two.
const LOOKS_MIN: f64 = 8.0;
/// Bounds what is kept.
const LOOKS_MAX: f64 = 100_000.0;

#[derive(Args, Clone, Debug)]
pub struct SoakArgs {
    #[command(flatten)]
    pub target: TargetArgs,
    #[command(flatten)]
    pub load: LoadArgs,
    /// Between two looks
    #[arg(long, value_name = "SECONDS", default_value_t = 60.0)]
    pub every: f64,
    #[command(flatten)]
    pub output: OutputArgs,
}

impl SoakArgs {
    pub fn check(&self) -> anyhow::Result<()> {
        self.load.check()?;
        self.load.refuse_burst()?;
        let n_looks = self.load.seconds / self.every;
        if !(self.every > 0.0 && (LOOKS_MIN..=LOOKS_MAX).contains(&n_looks)) {
            bail!("--every: {LOOKS_MIN} to {LOOKS_MAX} looks in --seconds");
        }
        Ok(())
    }
}

#[derive(Clone, Debug, Serialize)]
pub struct SoakReport {
    pub environment: Environment,
    pub load: LoadArgs,
    pub connecting: Connecting,
    pub subscribers: GroupReport,
    pub server: ServerReport,
    pub client: ClientReport,
    pub timeline: Vec<Sample>,
    pub growth: Growth,
    pub verdict: Verdict,
}

/// From the first quarter to the last.
#[derive(Copy, Clone, Debug, PartialEq, Serialize)]
pub struct Growth {
    pub rss_bytes: Change,
    pub anon_bytes: Change,
    pub fds: Change,
    pub p99_ms: Change,
    pub server_cpu_share: Change,
    pub deliveries_per_s: Change,
}

/// Medians.
#[derive(Copy, Clone, Debug, PartialEq, Serialize)]
pub struct Change {
    pub first: f64,
    pub last: f64,
}

impl Growth {
    pub fn of(samples: &[Sample]) -> Self {
        let n = samples.len().div_ceil(4);
        let quarters = [&samples[..n], &samples[samples.len() - n..]];
        let of = |value: fn(&Sample) -> f64| {
            let [first, last] =
                quarters.map(|it| median(&it.iter().map(value).collect::<Vec<_>>()));
            Change { first, last }
        };
        Self {
            rss_bytes: of(|it| it.memory.rss as f64),
            anon_bytes: of(|it| it.memory.anon as f64),
            fds: of(|it| it.fds.unwrap_or(0) as f64),
            p99_ms: of(|it| it.latency_ms.p99),
            server_cpu_share: of(|it| it.server_cpu_share),
            deliveries_per_s: of(|it| it.deliveries_per_s),
        }
    }

    /// The connections are always the same, so there is no reason for even one descriptor more.
    pub fn is_fds_steady(&self) -> bool {
        self.fds.last <= self.fds.first
    }

    pub fn is_memory_steady(&self) -> bool {
        self.anon_bytes.last <= churn::memory_allowed(self.anon_bytes.first as u64) as f64
    }

    pub fn is_p99_steady(&self) -> bool {
        is_within(self.p99_ms.first, self.p99_ms.last)
    }
}

pub fn command(args: &SoakArgs, command_line: &[String]) -> anyhow::Result<Verdict> {
    args.check()?;
    process::raise_fd_limit(args.load.connections + OTHER_FDS)?;
    let target = args.target.open(args.load.publisher == PublisherName::Redis)?;
    if target.pids.is_empty() {
        bail!("--pid or --server: whose memory and descriptors are to be watched?");
    }
    let mut fleet = Fleet::new(run::shared(&args.load, &target)?, run::plans(&args.load))?;
    let connecting = run::connect(&mut fleet, &args.load, &target)?;
    let publisher = args.load.publisher(&target, &args.target.redis_prefix)?;
    let mut spec = run::spec(&args.load, "soak");
    let every_ns = (args.every * SECOND_NS as f64) as u64;
    spec.looks = Looks { every_ns, depth: Depth::Full };
    let measured = measure::measure(&mut fleet, &target.pids, publisher, &spec)?;
    let report = report(args, connecting, measured, command_line);
    table(&report).print();
    args.output.write(&report, page)?;
    Ok(report.verdict)
}

fn report(
    args: &SoakArgs,
    connecting: Connecting,
    measured: Measured,
    command_line: &[String],
) -> SoakReport {
    let subscribers = GroupReport::of(&measured.groups[0]);
    let client = ClientReport::of(&measured, false);
    let growth = Growth::of(&measured.timeline);
    let is_steady = growth.is_fds_steady() && growth.is_memory_steady();
    let p99 = Comparison {
        holds: growth.is_p99_steady(),
        is_client_bound: is_client_bound([&client].into_iter()),
    };
    SoakReport {
        environment: Environment::here(command_line),
        load: args.load.clone(),
        connecting,
        verdict: Verdict::from(subscribers.is_good() && client.is_good() && is_steady).and(p99),
        subscribers,
        server: ServerReport::of(&measured),
        client,
        timeline: measured.timeline,
        growth,
    }
}

fn table(report: &SoakReport) -> Table {
    let mut table = Table::default();
    table.group(&report.subscribers);
    table.server(&report.server);
    table.client(&report.client);
    table.row("-- first quarter, last", "");
    let growth = &report.growth;
    let mut change =
        |name: &str, unit: f64, Change { first, last }: Change, steady: Option<bool>| {
            let remark = if steady == Some(false) { "  GREW" } else { "" };
            table.row(name, format!("{:.2} -> {:.2}{remark}", first / unit, last / unit));
        };
    change("RSS, MB", 1e6, growth.rss_bytes, None);
    change("RssAnon, MB", 1e6, growth.anon_bytes, Some(growth.is_memory_steady()));
    change("descriptors", 1.0, growth.fds, Some(growth.is_fds_steady()));
    change("p99, ms", 1.0, growth.p99_ms, Some(growth.is_p99_steady()));
    change("server CPU, % of a core", 1e-2, growth.server_cpu_share, None);
    change("deliveries a second", 1.0, growth.deliveries_per_s, None);
    table.verdict(report.verdict, "nothing lost, nobody cut; memory, descriptors and p99 steady");
    table
}

fn page(report: &SoakReport) -> Page {
    let mut page = Page::new("soak", report.verdict.word(), &report.environment);
    page.table(&table(report));
    page.heading("Over time");
    page.plots(&timeline::plots(&report.timeline));
    page.heading("Over all");
    page.plots(&[curves(&[("", &report.subscribers)])]);
    page
}
