//! `loadtest ceiling`: what the kernel charges for the same deliveries with no hub at all.
//!
//! The fleet, the schedule, the connections, their socket options and the bytes of every frame are
//! those of `loadtest run`; in the hub's place is a loop of `send(2)` in a process of its own
//! ([`server`]). Other commands show their share of it through [`Share`].

mod process;
mod reference;
pub mod server;

use std::path::PathBuf;

use anyhow::{Context as _, bail};
use clap::Args;
use serde::Serialize;

use crate::cli::LoadArgs;
use crate::fleet::Fleet;
use crate::measure::{Load, Spec};
use crate::pairs::{Pair, Ratios};
use crate::process::{Cpus, cpus_of, pin, raise_fd_limit};
use crate::protocol::{Event, Greeting, Protocol};
use crate::report::{
    ClientReport, Environment, GroupReport, Latency, ServerReport, Table, median, write_json,
};
use crate::run::{self, RunReport};
use crate::server::Target;

use process::CeilingProcess;
pub use server::Counts;

const OTHER_FDS: usize = 64;
/// Deliveries at full speed for the machine's scale: about a second.
const SCALE_DELIVERIES: u64 = 400_000;
/// With few connections there is no comparing: the reference has a thousand at least.
const SCALE_PUBLICATIONS_MAX: u64 = 2000;

#[derive(Args, Clone, Debug)]
pub struct CeilingArgs {
    #[command(flatten)]
    pub load: LoadArgs,
    /// Publications sent together, each subscriber's in one call
    #[arg(long, value_name = "K", default_value_t = 1)]
    pub group: u32,
    /// CPUs of the sending process
    #[arg(long, value_name = "LIST")]
    pub server_cpus: Option<Cpus>,
    /// CPUs of the subscribers
    #[arg(long, value_name = "LIST")]
    pub client_cpus: Option<Cpus>,
    /// Writes everything measured here
    #[arg(long, value_name = "FILE")]
    pub json: Option<PathBuf>,
}

/// For commands that can show their share of the ceiling.
#[derive(Args, Clone, Debug, Default)]
pub struct ShareArgs {
    /// Measures the ceiling in turn with it, K publications to a send, and shows the share
    #[arg(long, value_name = "K", num_args = 0..=1, default_missing_value = "1",
          require_equals = true)]
    pub ceiling: Option<u32>,
    /// How often in turn
    #[arg(long, value_name = "N", default_value_t = 1, requires = "ceiling")]
    pub pairs: usize,
}

impl ShareArgs {
    pub fn check(&self, load: &LoadArgs) -> anyhow::Result<()> {
        if self.pairs == 0 {
            bail!("--pairs: at least 1");
        }
        self.ceiling.map_or(Ok(()), |group| check_group(group, load))
    }
}

fn check_group(group: u32, load: &LoadArgs) -> anyhow::Result<()> {
    let group_bytes = (group as usize).saturating_mul(load.size);
    if group == 0 || group_bytes > server::GROUP_BYTES_MAX {
        bail!("publications to a send: at least 1, at most {} bytes", server::GROUP_BYTES_MAX);
    }
    Ok(())
}

#[derive(Clone, Debug, Serialize)]
pub struct CeilingReport {
    pub environment: Environment,
    pub load: LoadArgs,
    pub group: u32,
    pub subscribers: GroupReport,
    pub server: ServerReport,
    pub counts: Counts,
    /// How far the sending process fell behind its schedule, milliseconds.
    pub behind_ms: Latency,
    pub client: ClientReport,
    pub scale: Scale,
}

/// This machine against a reference machine, both at full speed, one send a delivery.
#[derive(Copy, Clone, Debug, Serialize)]
pub struct Scale {
    pub deliveries_per_cpu_s: f64,
    pub reference: f64,
    /// The ratio of the two; 0 if the first is unknown.
    pub scale: f64,
}

impl CeilingReport {
    pub fn is_good(&self) -> bool {
        self.subscribers.is_good() && self.client.is_good()
    }
}

pub fn command(args: &CeilingArgs, command_line: &[String]) -> anyhow::Result<bool> {
    args.load.check()?;
    check_group(args.group, &args.load)?;
    if let Some(cpus) = &args.client_cpus {
        pin(cpus)?;
    }
    let ceiling = Ceiling::new(args.group, args.server_cpus.clone())?;
    let report = ceiling.measure(&args.load, "ceiling", command_line)?;
    table(&report).print();
    if let Some(path) = &args.json {
        write_json(path, &report)?;
    }
    Ok(report.is_good())
}

/// How to measure it.
pub struct Ceiling {
    /// Has a subcommand that is the server.
    program: PathBuf,
    group: u32,
    server_cpus: Option<Cpus>,
}

impl Ceiling {
    pub fn new(group: u32, server_cpus: Option<Cpus>) -> anyhow::Result<Self> {
        let program = std::env::current_exe().context("looking for this program")?;
        Ok(Self { program, group, server_cpus })
    }

    /// With another `loadtest` as the server.
    pub fn with_program(program: PathBuf, group: u32) -> Self {
        Self { program, group, server_cpus: None }
    }

    /// On the CPUs of the server that it is compared with, as far as they are known.
    pub fn beside(group: u32, target: &Target, server_cpus: Option<&Cpus>) -> anyhow::Result<Self> {
        let cpus = match (server_cpus, target.pids.first()) {
            (Some(cpus), _) => Some(cpus.clone()),
            (None, Some(&pid)) => Some(cpus_of(Some(pid))?),
            (None, None) => None,
        };
        Self::new(group, cpus)
    }

    /// With connections and a process of its own; both are gone afterwards.
    pub fn measure(
        &self,
        load: &LoadArgs,
        label: &str,
        command_line: &[String],
    ) -> anyhow::Result<CeilingReport> {
        raise_fd_limit(load.connections + OTHER_FDS)?;
        let mut process = CeilingProcess::start(&self.program, load, self.server_cpus.as_ref())?;
        let target = Target::running(process.address, vec![process.pid()], None, None)?;
        let mut shared = run::shared(load, &target)?;
        shared.protocol = Box::new(Pushes(shared.protocol));
        let mut fleet = Fleet::new(shared, run::plans(load))?;
        run::connect(&mut fleet, load, &target)?;
        let spec = run::spec(load, label);
        let (measured, counts) = process.measure(&mut fleet, &spec, self.group)?;
        let scale = scale(&mut process, &mut fleet, load, &spec)?;
        Ok(CeilingReport {
            environment: Environment::here(command_line),
            load: load.clone(),
            group: self.group,
            subscribers: GroupReport::of(&measured.groups[0]),
            server: ServerReport::of(&measured),
            counts,
            behind_ms: Latency::of(&measured.published.late_us),
            // Late is the server here, not the client: it keeps the schedule.
            client: ClientReport::of(&measured, true),
            scale,
        })
    }
}

/// At full speed: at a leisurely pace every round begins with a cold cache and a sleeping client,
/// which the reference machine's figures are without.
fn scale(
    process: &mut CeilingProcess,
    fleet: &mut Fleet,
    load: &LoadArgs,
    spec: &Spec,
) -> anyhow::Result<Scale> {
    let n_subscriptions = load.connections * load.channels_per_connection;
    let per_publication = (n_subscriptions / load.channels).max(1) as u64;
    let n_publications = (SCALE_DELIVERIES / per_publication).clamp(2, SCALE_PUBLICATIONS_MAX);
    let burst = Spec {
        run: spec.run.wrapping_add(1),
        load: Load::Burst { n_publications },
        label: format!("{}, at full speed", spec.label),
        ..spec.clone()
    };
    let (measured, _) = process.measure(fleet, &burst, 1)?;
    if measured.groups[0].n_lost() > 0 {
        bail!("lost at full speed: {}", measured.groups[0].n_lost());
    }
    let deliveries_per_cpu_s = ServerReport::of(&measured).deliveries_per_cpu_s;
    let reference = reference::deliveries_per_cpu_s(load.connections, load.size);
    Ok(Scale { deliveries_per_cpu_s, reference, scale: deliveries_per_cpu_s / reference })
}

/// A protocol without its greeting: the ceiling's server answers nothing, and knows the channels
/// from the path.
struct Pushes(Box<dyn Protocol>);

impl Protocol for Pushes {
    fn path(&self, channels: &[&str], _: Option<&str>) -> String {
        let query: Vec<String> = channels.iter().map(|name| format!("channel={name}")).collect();
        format!("/ws?{}", query.join("&"))
    }

    fn greeting(&self, _: &[&str], _: Option<&str>) -> Option<Greeting> {
        None
    }

    fn read<'a>(&self, message: &'a [u8], on_event: &mut dyn FnMut(Event<'a>)) {
        self.0.read(message, on_event);
    }
}

/// What a hub reaches of the ceiling.
#[derive(Clone, Debug, Serialize)]
pub struct Share {
    pub group: u32,
    /// Deliveries per CPU-second, the hub's by the ceiling's.
    pub share: Ratios,
    /// Median.
    pub scale: f64,
    pub pairs: Vec<Pair<Side, Side>>,
}

/// The hub's (a) or the ceiling's (b).
#[derive(Copy, Clone, Debug, Serialize)]
pub struct Side {
    pub deliveries_per_cpu_s: f64,
    pub latency_ms: Latency,
}

impl Share {
    pub fn of(group: u32, pairs: &[Pair<RunReport, CeilingReport>]) -> Self {
        let side = |server: &ServerReport, subscribers: &GroupReport| Side {
            deliveries_per_cpu_s: server.deliveries_per_cpu_s,
            latency_ms: subscribers.latency_ms,
        };
        let sides = pairs.iter().map(|pair| Pair {
            a: side(&pair.a.server, &pair.a.subscribers),
            b: side(&pair.b.server, &pair.b.subscribers),
        });
        let scales: Vec<f64> = pairs.iter().map(|pair| pair.b.scale.scale).collect();
        Self::of_sides(group, sides.collect(), median(&scales))
    }

    fn of_sides(group: u32, pairs: Vec<Pair<Side, Side>>, scale: f64) -> Self {
        let share = |it: &Pair<Side, Side>| it.a.deliveries_per_cpu_s / it.b.deliveries_per_cpu_s;
        Self { group, share: Ratios::of(&pairs, share), scale, pairs }
    }
}

impl Table {
    pub fn share(&mut self, share: &Share) {
        let figures = |side: &Side| {
            let Latency { p50, p99, .. } = side.latency_ms;
            format!("{:.0} (p50 {p50:.2}, p99 {p99:.2} ms)", side.deliveries_per_cpu_s)
        };
        for pair in &share.pairs {
            let (hub, ceiling) = (figures(&pair.a), figures(&pair.b));
            self.row("per CPU-second", format!("{hub}; the ceiling {ceiling}"));
        }
        self.row(
            "share of the ceiling",
            format!(
                "{:.1} % (worst of {}: {:.1} %), {} to a send; machine's scale {:.2}",
                share.share.median * 1e2,
                share.share.all.len(),
                share.share.least * 1e2,
                share.group,
                share.scale
            ),
        );
    }
}

fn table(report: &CeilingReport) -> Table {
    let mut table = Table::default();
    table.group(&report.subscribers);
    table.server(&report.server);
    table.row(
        "send(2)",
        format!(
            "{} calls, {} short; {} to a send; behind the schedule p99 {:.2} ms",
            report.counts.sends, report.counts.short_sends, report.group, report.behind_ms.p99
        ),
    );
    table.row(
        "machine's scale",
        format!(
            "{:.2}: at full speed {:.0}, a reference machine {:.0}",
            report.scale.scale, report.scale.deliveries_per_cpu_s, report.scale.reference
        ),
    );
    table.client(&report.client);
    table
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn the_share_is_the_hubs_by_the_ceilings_and_the_worst_the_least() {
        let side = |deliveries_per_cpu_s| Side { deliveries_per_cpu_s, latency_ms: <_>::default() };
        let pair = |a, b| Pair { a: side(a), b: side(b) };
        let pairs = vec![pair(90.0, 100.0), pair(160.0, 200.0), pair(190.0, 200.0)];
        let share = Share::of_sides(1, pairs, 1.0).share;
        assert_eq!([share.median, share.least, share.most], [0.9, 0.8, 0.95]);
    }
}
