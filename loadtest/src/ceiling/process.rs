//! The harness's end of the ceiling's server: starts it, pinned, and gives it its orders.

use std::io::{BufRead as _, BufReader, Write as _};
use std::net::SocketAddr;
use std::process::{ChildStdin, ChildStdout, Command, Stdio};
use std::sync::atomic::Ordering;
use std::sync::mpsc::sync_channel;
use std::thread::JoinHandle;

use anyhow::{Context as _, bail};

use super::server::{Counts, Done, Line, Order, Setup};
use crate::cli::LoadArgs;
use crate::fleet::Fleet;
use crate::measure::{self, Measured, Spec};
use crate::process::Cpus;
use crate::publish::{Job, Published};
use crate::server::{Started, on_cpus};

/// Ends with this value.
pub struct CeilingProcess {
    pub address: SocketAddr,
    child: Started,
    pipes: Option<Pipes>,
}

struct Pipes {
    orders: ChildStdin,
    lines: BufReader<ChildStdout>,
}

impl CeilingProcess {
    /// `program` is this one, unless a test is.
    pub fn start(
        program: &std::path::Path,
        load: &LoadArgs,
        cpus: Option<&Cpus>,
    ) -> anyhow::Result<Self> {
        let mut command = Command::new(program);
        command.arg("ceiling-server").stdin(Stdio::piped()).stdout(Stdio::piped());
        let child = on_cpus(cpus, || command.spawn().context("starting the ceiling's server"))?;
        let mut child = Started(child);
        let (Some(orders), Some(lines)) = (child.0.stdin.take(), child.0.stdout.take()) else {
            bail!("the ceiling's server has no pipes");
        };
        let mut pipes = Pipes { orders, lines: BufReader::new(lines) };
        pipes.order(&Setup { load: load.clone() })?;
        match pipes.answer()? {
            Line::Listening(address) => Ok(Self { address, child, pipes: Some(pipes) }),
            _ => bail!("the ceiling's server speaks out of turn"),
        }
    }

    pub fn pid(&self) -> u32 {
        self.child.pid()
    }

    /// One measurement with the schedule kept by the server.
    pub fn measure(
        &mut self,
        fleet: &mut Fleet,
        spec: &Spec,
        group: u32,
    ) -> anyhow::Result<(Measured, Counts)> {
        let mut pipes = self.pipes.take().context("the ceiling's server failed before")?;
        let (sender, done) = sync_channel(1);
        let start = move |job: Job| -> anyhow::Result<JoinHandle<Published>> {
            let body = move || {
                let outcome = pipes.keep(&job, group);
                let published = match &outcome {
                    Ok(done) => done.published(),
                    Err(error) => {
                        let sent = vec![0; job.schedule.channels.len()];
                        Done { sent, error: Some(format!("{error:#}")), ..Done::default() }
                            .published()
                    }
                };
                job.progress.n_sent.store(published.n_sent(), Ordering::Relaxed);
                job.progress.is_done.store(true, Ordering::Release);
                let _ = sender.send((pipes, outcome.map(|done| done.counts)));
                published
            };
            std::thread::Builder::new().name("orders".to_owned()).spawn(body).context("a thread")
        };
        let measured = measure::measure_with(fleet, &[self.pid()], start, spec)?;
        let (pipes, counts) = done.recv().context("the thread with the orders panicked")?;
        self.pipes = Some(pipes);
        match &measured.published.error {
            Some(error) => bail!("the ceiling's server: {error}"),
            None => Ok((measured, counts?)),
        }
    }
}

impl Pipes {
    fn order(&mut self, order: &impl serde::Serialize) -> anyhow::Result<()> {
        let text = serde_json::to_string(order)?;
        writeln!(self.orders, "{text}").context("the ceiling's server takes no orders")
    }

    fn answer(&mut self) -> anyhow::Result<Line> {
        let mut line = String::new();
        if self.lines.read_line(&mut line)? == 0 {
            bail!("the ceiling's server has ended");
        }
        serde_json::from_str(&line).context("a line of the ceiling's server")
    }

    fn keep(&mut self, job: &Job, group: u32) -> anyhow::Result<Done> {
        let schedule = job.schedule.clone();
        self.order(&Order { schedule, window_ns: job.window_ns.clone(), group })?;
        loop {
            match self.answer()? {
                Line::Sent(n) => job.progress.n_sent.store(n, Ordering::Relaxed),
                Line::Done(done) => return Ok(done),
                Line::Listening(_) => bail!("the ceiling's server speaks out of turn"),
            }
        }
    }
}
