//! The answers of the registry on stdout: as they are found, so that the first line comes at once and
//! no number of connections takes memory.
//!
//! On main, over a connection to Redis of its own; reads only. What clients and back ends chose goes to
//! a terminal escaped.

use std::collections::HashSet;
use std::io::{self, BufWriter, ErrorKind, StdoutLock, Write};
use std::process::ExitCode;

use redis::RedisError;
use serde_json::Value;
use uuid::Uuid;

use super::registry::{About, Question, Tell};
use crate::broker::look_up::{Found, Kind, Reader, Row, is_of};
use crate::config::Config;
use crate::server::{EXIT_SOFTWARE, EXIT_UNAVAILABLE};

#[derive(Debug, thiserror::Error)]
enum Failure {
    #[error("{0}")]
    Redis(#[from] RedisError),
    #[error("{0}")]
    Output(#[from] io::Error),
}

/// Asks and prints. Exit code 1: there is no such connection.
pub fn answer(config: &Config, question: &Question) -> ExitCode {
    let runtime = tokio::runtime::Builder::new_current_thread()
        .enable_all()
        .build_local(tokio::runtime::LocalOptions::default());
    let run = |runtime: tokio::runtime::LocalRuntime| runtime.block_on(tell(config, question));
    match runtime.map_err(Failure::Output).and_then(run) {
        Ok(code) => code,
        // Whoever reads has seen enough.
        Err(Failure::Output(error)) if error.kind() == ErrorKind::BrokenPipe => ExitCode::SUCCESS,
        Err(Failure::Output(error)) => {
            eprintln!("error: {error}");
            ExitCode::from(EXIT_SOFTWARE)
        }
        Err(Failure::Redis(error)) => {
            let url = config.redis_url.as_ref().map(ToString::to_string).unwrap_or_default();
            eprintln!("error: Redis at {url} doesn't answer: {error}");
            ExitCode::from(EXIT_UNAVAILABLE)
        }
    }
}

async fn tell(config: &Config, question: &Question) -> Result<ExitCode, Failure> {
    let mut reader = Reader::dial(config).await?;
    let mut out = BufWriter::new(io::stdout().lock());
    let is_found = match &question.about {
        About::Nodes => {
            let columns = &NODES;
            list(&mut reader, Kind::Nodes, None, columns, question.tell, &mut out).await?;
            true
        }
        About::Connections { user } => {
            let (user, columns) = (user.as_deref(), &CONNECTIONS);
            list(&mut reader, Kind::Connections, user, columns, question.tell, &mut out).await?;
            true
        }
        About::Where(connection) => {
            let found = reader.find(*connection).await?;
            tell_where(&found, *connection, question.tell, &mut out)?;
            found.connection.is_some()
        }
    };
    out.flush()?;
    Ok(if is_found { ExitCode::SUCCESS } else { ExitCode::FAILURE })
}

struct Column {
    head: &'static str,
    width: usize,
    member: &'static str,
    show: fn(&Value) -> String,
}

const NODES: [Column; 7] = [
    Column { head: "NODE", width: 36, member: "instance_id", show: text },
    Column { head: "VERSION", width: 8, member: "version", show: text },
    Column { head: "SHARDS", width: 6, member: "shards", show: text },
    Column { head: "CONNECTIONS", width: 11, member: "connections", show: text },
    Column { head: "CHANNELS", width: 9, member: "channels", show: text },
    Column { head: "UPTIME", width: 10, member: "uptime", show: duration },
    Column { head: "RUN", width: 36, member: "run_id", show: text },
];

const CONNECTIONS: [Column; 6] = [
    Column { head: "CLIENT", width: 36, member: "client", show: text },
    Column { head: "CONNECTED AT", width: 20, member: "connected_at", show: time },
    Column { head: "TRANSPORT", width: 9, member: "transport", show: text },
    Column { head: "ADDRESS", width: 15, member: "address", show: text },
    Column { head: "USER", width: 20, member: "user", show: user },
    Column { head: "NODE", width: 36, member: "instance_id", show: text },
];

type Out<'a> = BufWriter<StdoutLock<'a>>;

/// A scan may find one twice: what was shown is remembered, by its id's hash.
async fn list(
    reader: &mut Reader,
    kind: Kind,
    user: Option<&str>,
    columns: &[Column],
    tell: Tell,
    out: &mut Out<'_>,
) -> Result<(), Failure> {
    let hasher = ahash::RandomState::new();
    let (mut shown, mut cursor) = (HashSet::new(), 0);
    if tell == Tell::Table {
        put_line(out, columns, |column| column.head.to_owned())?;
    }
    loop {
        let page = reader.page(kind, cursor).await?;
        for row in page.rows.into_iter().filter(|row| is_of(row, user)) {
            let id = row.get("client").or(row.get("instance_id"));
            if !shown.insert(hasher.hash_one(id)) {
                continue;
            }
            match tell {
                Tell::Json => writeln!(out, "{}", Value::Object(row))?,
                Tell::Table => put_line(out, columns, |column| column.of(&row))?,
            }
        }
        out.flush()?;
        cursor = page.cursor;
        if cursor == 0 {
            return Ok(());
        }
    }
}

fn put_line(
    out: &mut Out<'_>,
    columns: &[Column],
    cell: impl Fn(&Column) -> String,
) -> io::Result<()> {
    let cells = columns.iter().map(|column| format!("{:<1$}", cell(column), column.width));
    let line = cells.collect::<Vec<_>>().join("  ");
    writeln!(out, "{}", line.trim_end())
}

fn tell_where(
    found: &Found,
    connection: Uuid,
    tell: Tell,
    out: &mut Out<'_>,
) -> Result<(), Failure> {
    if tell == Tell::Json {
        writeln!(out, "{}", found.to_json())?;
        return Ok(());
    }
    let Some(row) = &found.connection else {
        writeln!(out, "{connection}: not connected to any node")?;
        return Ok(());
    };
    for column in &CONNECTIONS {
        writeln!(out, "{:<12}  {}", column.head.to_lowercase(), column.of(row))?;
    }
    match &found.node {
        Some(node) => {
            for column in NODES.iter().skip(1) {
                writeln!(out, "{:<12}  {}", column.head.to_lowercase(), column.of(node))?;
            }
        }
        None => writeln!(out, "its node has shown no life for 30 s, and the entry will expire")?,
    }
    Ok(())
}

impl Column {
    fn of(&self, row: &Row) -> String {
        row.get(self.member).map_or_else(|| "?".to_owned(), self.show)
    }
}

fn text(value: &Value) -> String {
    match value {
        Value::String(text) => text.escape_debug().to_string(),
        other => other.to_string(),
    }
}

fn user(value: &Value) -> String {
    let text = text(value);
    if text.is_empty() { "-".to_owned() } else { text }
}

fn duration(value: &Value) -> String {
    let Some(s) = value.as_u64() else { return text(value) };
    match (s / 86_400, s / 3_600 % 24, s / 60 % 60, s % 60) {
        (0, 0, 0, s) => format!("{s}s"),
        (0, 0, m, s) => format!("{m}m{s:02}s"),
        (0, h, m, _) => format!("{h}h{m:02}m"),
        (d, h, ..) => format!("{d}d{h:02}h"),
    }
}

/// Unix seconds as RFC 3339 has them. Days are counted from a 1 March, so that a leap day is a year's
/// last, in eras of 400 years.
fn time(value: &Value) -> String {
    const ERA_DAYS: u64 = 146_097;
    /// From 0000-03-01 to 1970-01-01.
    const EPOCH_DAYS: u64 = 719_468;
    let Some(s) = value.as_u64().filter(|s| *s < 1 << 38) else { return text(value) };
    let days = s / 86_400 + EPOCH_DAYS;
    let (era, day) = (days / ERA_DAYS, days % ERA_DAYS);
    let year = (day - day / 1_460 + day / 36_524 - day / (ERA_DAYS - 1)) / 365;
    let of_year = day - (365 * year + year / 4 - year / 100);
    // March to July and August to December have as many days each: 153 in five months.
    let month = (5 * of_year + 2) / 153;
    let of_month = of_year - (153 * month + 2) / 5 + 1;
    let (year, month) = match month {
        0..=9 => (era * 400 + year, month + 3),
        _ => (era * 400 + year + 1, month - 9),
    };
    let (h, m, s) = (s / 3_600 % 24, s / 60 % 60, s % 60);
    format!("{year:04}-{month:02}-{of_month:02}T{h:02}:{m:02}:{s:02}Z")
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn times_and_durations_read_well() {
        for (s, shown) in [
            (0u64, "1970-01-01T00:00:00Z"),
            (951_782_400, "2000-02-29T00:00:00Z"),
            (1_582_934_399, "2020-02-28T23:59:59Z"),
            (1_767_225_599, "2025-12-31T23:59:59Z"),
            (4_107_542_400, "2100-03-01T00:00:00Z"),
        ] {
            assert_eq!(time(&s.into()), shown);
        }
        for (s, shown) in [(5, "5s"), (65, "1m05s"), (3_660, "1h01m"), (90_000, "1d01h")] {
            assert_eq!(duration(&s.into()), shown);
        }
        assert_eq!((time(&"x".into()), duration(&Value::Null)), ("x".into(), "null".into()));
    }

    #[test]
    fn nothing_moves_the_cursor_of_a_terminal() {
        assert_eq!(text(&"\u{1b}[2J\n".into()), "\\u{1b}[2J\\n");
        assert_eq!(user(&"".into()), "-");
    }
}
