//! Many commands in one call: `batch`, and the older form of the API, `POST /api`.
//!
//! All of a body is read before anything is done: what can't be read changes nothing. Reading and
//! working yield every few commands, so that a long list holds up nobody who is served here.

use std::future::poll_fn;
use std::rc::Rc;
use std::task::Poll;

use hyper::StatusCode;
use serde_json::value::RawValue;

use super::members::{Members, Refusal};
use super::{METHODS, Method, Work, error, method, refuse};
use crate::http::{Reply, empty, json};
use crate::protocol::ReplyError;
use crate::shard::Shard;

/// More commands in one call are 413, and none of them is done.
const COMMANDS_MAX: usize = 10_000;
/// Of a batch that asks for it.
const AT_ONCE_MAX: usize = 64;
/// Commands that are read, or finished, before others get their turn.
const COMMANDS_PER_TURN: usize = 64;
/// What the older form calls methods by number.
const BY_NUMBER: [&str; 13] = [
    "publish",
    "broadcast",
    "unsubscribe",
    "disconnect",
    "presence",
    "presence_stats",
    "history",
    "history_remove",
    "channels",
    "info",
    "rpc",
    "subscribe",
    "refresh",
];

/// A command that was read.
type Command = Result<Work, ReplyError>;

/// Answers in the order of the commands; there is no `result` around them (server API, 3).
pub async fn batch(shard: &Rc<Shard>, body: &[u8]) -> Reply {
    let read = Members::read(body).and_then(|members| {
        let commands: Vec<&RawValue> = members.get("commands")?.unwrap_or_default();
        let is_parallel: bool = members.get("parallel")?.unwrap_or_default();
        Ok((commands, if is_parallel { AT_ONCE_MAX } else { 1 }))
    });
    let (list, at_once) = match read {
        Ok((list, _)) if list.len() > COMMANDS_MAX => return empty(StatusCode::PAYLOAD_TOO_LARGE),
        Ok(read) => read,
        Err(refusal) => return refuse(&refusal),
    };
    let (mut names, mut commands) = (Vec::with_capacity(list.len()), Vec::new());
    for raw in list {
        match read_command(shard, raw) {
            Ok(Named { name, command }) => {
                names.push(name);
                commands.push(command);
            }
            Err(refusal) => return refuse(&refusal),
        }
        yield_sometimes(commands.len()).await;
    }
    let results = run_all(commands, at_once, shard.node.config.api_body_bytes_max).await;
    let reply = |(name, result): (&str, Result<String, ReplyError>)| match result {
        Ok(result) => format!("{{\"{name}\":{result}}}"),
        Err(refused) => format!("{{\"error\":{}}}", error(refused)),
    };
    let replies: Vec<String> = names.into_iter().zip(results).map(reply).collect();
    json(StatusCode::OK, &format!("{{\"replies\":[{}]}}", replies.join(",")))
}

/// One command of a batch.
struct Named {
    name: &'static str,
    command: Command,
}

fn read_command(shard: &Rc<Shard>, raw: &RawValue) -> Result<Named, Refusal> {
    let fails = |error| Ok(Named { name: "", command: Err(error) });
    if raw.get() == "null" {
        return fails(ReplyError::BAD_REQUEST);
    }
    let members = Members::read(raw.get().as_bytes())?;
    let Some(method) = METHODS.iter().find(|method| members.raw(method.name).is_some()) else {
        return fails(ReplyError::NOT_FOUND);
    };
    match members.raw(method.name) {
        None | Some(b"null") => fails(ReplyError::NOT_FOUND),
        Some(params) => Ok(Named { name: method.name, command: begin(shard, method, params)? }),
    }
}

/// One line per command (server API, 6).
pub async fn legacy(shard: &Rc<Shard>, body: &[u8]) -> Reply {
    if body.is_empty() {
        return refuse(&Refusal::Malformed);
    }
    let (mut ids, mut commands) = (Vec::new(), Vec::new());
    for members in serde_json::Deserializer::from_slice(body).into_iter::<Members<'_>>() {
        let read = members.map_err(|_| Refusal::Malformed);
        let read = read.and_then(|members| read_line(shard, &members));
        match read {
            Ok(Line { id, command }) if commands.len() < COMMANDS_MAX => {
                ids.push(id);
                commands.push(command);
            }
            Ok(_) => return empty(StatusCode::PAYLOAD_TOO_LARGE),
            Err(refusal) => return refuse(&refusal),
        }
        yield_sometimes(commands.len()).await;
    }
    let results = run_all(commands, 1, shard.node.config.api_body_bytes_max).await;
    let line = |(id, result): (u32, Result<String, ReplyError>)| {
        let id = if id == 0 { String::new() } else { format!("\"id\":{id},") };
        match result {
            Ok(result) => format!("{{{id}\"result\":{result}}}"),
            Err(refused) => format!("{{{id}\"error\":{}}}", error(refused)),
        }
    };
    let lines: Vec<String> = ids.into_iter().zip(results).map(line).collect();
    json(StatusCode::OK, &lines.join("\n"))
}

/// One command of the older form.
struct Line {
    /// 0: it had none.
    id: u32,
    command: Command,
}

fn read_line(shard: &Rc<Shard>, members: &Members<'_>) -> Result<Line, Refusal> {
    let id: u32 = members.get("id")?.unwrap_or_default();
    let method = match members.raw("method") {
        None | Some(b"null") => method(BY_NUMBER[0]),
        Some([b'"', ..]) => {
            let name = members.text("method")?.to_ascii_lowercase();
            Some(method(&name).ok_or(Refusal::Malformed)?)
        }
        Some(_) => {
            let number: i32 = members.get("method")?.unwrap_or_default();
            usize::try_from(number).ok().and_then(|at| method(BY_NUMBER.get(at)?))
        }
    };
    let command = match (method, members.raw("params")) {
        (None, _) => Err(ReplyError::NOT_FOUND),
        (Some(_), None | Some(b"null")) => Err(ReplyError::BAD_REQUEST),
        (Some(method), Some(params)) => begin(shard, method, params)?,
    };
    Ok(Line { id, command })
}

fn begin(shard: &Rc<Shard>, method: &Method, params: &[u8]) -> Result<Command, Refusal> {
    match Members::read(params).and_then(|members| (method.handler)(shard, &members)) {
        Err(Refusal::Error(error)) => Ok(Err(error)),
        work => Ok(Ok(work?)),
    }
}

async fn yield_sometimes(n_done: usize) {
    if n_done.is_multiple_of(COMMANDS_PER_TURN) {
        tokio::task::yield_now().await;
    }
}

/// Works on up to so many commands at once. A result with which all of them would have more than
/// `bytes_max` becomes an error: what it was asked for is done all the same.
async fn run_all(
    commands: Vec<Command>,
    at_once: usize,
    bytes_max: usize,
) -> Vec<Result<String, ReplyError>> {
    struct Running {
        at: usize,
        work: Work,
    }
    let mut results: Vec<Result<String, ReplyError>> = Vec::with_capacity(commands.len());
    results.resize_with(commands.len(), || Err(ReplyError::INTERNAL));
    let (mut waiting, mut running) = (commands.into_iter().enumerate(), Vec::<Running>::new());
    let mut bytes = 0;
    poll_fn(|cx| {
        let mut n_done = 0;
        while n_done < COMMANDS_PER_TURN {
            while running.len() < at_once
                && let Some((at, command)) = waiting.next()
            {
                match command {
                    Ok(work) => running.push(Running { at, work }),
                    Err(error) => results[at] = Err(error),
                }
            }
            let n_before = running.len();
            running.retain_mut(|Running { at, work }| {
                let Poll::Ready(result) = work.as_mut().poll(cx) else { return true };
                bytes += result.as_ref().map_or(0, String::len);
                let fits = bytes <= bytes_max;
                results[*at] = if fits { result } else { Err(ReplyError::LIMIT_EXCEEDED) };
                false
            });
            if n_before == 0 {
                return Poll::Ready(());
            }
            if running.len() == n_before {
                return Poll::Pending;
            }
            n_done += n_before - running.len();
        }
        cx.waker().wake_by_ref();
        Poll::Pending
    })
    .await;
    results
}

#[cfg(test)]
mod tests {
    use std::cell::Cell;

    use super::*;

    /// A command that takes so many turns; it notes how many are under way.
    fn slow(turns: usize, result: &str, n_running: &Rc<Cell<usize>>) -> Command {
        let (result, n_running) = (result.to_owned(), n_running.clone());
        Ok(Box::pin(async move {
            n_running.set(n_running.get() + 1);
            for _ in 0..turns {
                tokio::task::yield_now().await;
            }
            let n = n_running.replace(n_running.get() - 1);
            Ok(format!("{result}{n}"))
        }))
    }

    #[track_caller]
    fn check(commands: Vec<Command>, at_once: usize, bytes_max: usize, expected: &[&str]) {
        let runtime = tokio::runtime::Builder::new_current_thread().build().unwrap();
        let results = runtime.block_on(run_all(commands, at_once, bytes_max));
        let texts: Vec<String> = results
            .into_iter()
            .map(|result| result.unwrap_or_else(|error| error.code.to_string()))
            .collect();
        assert_eq!(texts, expected);
    }

    #[test]
    fn results_stand_in_the_order_of_the_commands() {
        let n = Rc::default();
        let list = || vec![slow(5, "a", &n), Err(ReplyError::NOT_FOUND), slow(0, "b", &n)];
        check(list(), 1, 100, &["a1", "104", "b1"]);
        check(list(), 2, 100, &["a1", "104", "b2"]);
        check(Vec::new(), 2, 100, &[]);
    }

    #[test]
    fn at_most_so_many_are_under_way() {
        let n = Rc::default();
        check((0..4).map(|_| slow(3, "", &n)).collect(), 2, 100, &["2", "1", "2", "1"]);
        let many: Vec<Command> = (0..1_000).map(|_| slow(0, "", &n)).collect();
        check(many, 1, 10_000, &["1"; 1_000]);
    }

    #[test]
    fn what_is_too_much_together_is_left_out() {
        let n = Rc::default();
        let list = ["a", "bbbb", "c"].map(|result| slow(0, result, &n));
        check(list.into(), 1, 4, &["a1", "106", "106"]);
    }
}
