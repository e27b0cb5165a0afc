//! Reading the registry: for the server API on the broker thread, for `hubbub nodes`, `connections`
//! and `where` on a connection of their own.
//!
//! Only reads. Entries are found by SCAN in bounded steps, never by KEYS: Redis serves others in
//! between, and what comes and goes meanwhile may be listed or not. An entry that isn't ours to
//! understand is left out; members that a later version adds are passed on.
//! **Invariant:** at most [`RUNNING_MAX`] look-ups run for the API; more are refused at once.

use std::rc::Rc;
use std::time::{Duration, Instant};

use redis::{RedisError, Value};
use serde_json::{Map, json};
use tokio::time::timeout;
use uuid::Uuid;

use super::link::{CommandLink, Dialer};
use super::registry::{Kept, Registrar};
use super::{Command, Finished};
use crate::broker::survey::Asked;
use crate::config::Config;

/// Keys that Redis looks at in one step: some 0.1 ms of its time.
const STEP_KEYS: usize = 1_000;
const RUNNING_MAX: usize = 8;
/// A page of connections ends after so long with what was found.
const PAGE_TIME_MAX: Duration = Duration::from_millis(500);

/// An entry with its id, as JSON shows it.
pub type Row = Map<String, serde_json::Value>;

/// What the API asks.
#[derive(Clone, PartialEq, Eq, Debug)]
pub enum LookUp {
    Nodes,
    Connections {
        /// `None`: everybody's.
        user: Option<Box<str>>,
        /// As many, and what else the last step finds.
        limit: usize,
        cursor: u64,
    },
    Where(Uuid),
}

#[derive(Clone, Copy, PartialEq, Eq, Debug, thiserror::Error)]
#[error("the registry can't be read")]
pub struct LookUpError;

/// Which entries.
#[derive(Clone, Copy, PartialEq, Eq, Debug)]
pub enum Kind {
    Nodes,
    Connections,
}

impl Kind {
    fn name(self) -> &'static str {
        match self {
            Kind::Nodes => "ws:instance:",
            Kind::Connections => "ws:conn:",
        }
    }
}

/// What one step found.
pub struct Page {
    pub rows: Vec<Row>,
    /// 0: that was the last one.
    pub cursor: u64,
}

/// Reads the registry of one prefix.
#[derive(Clone)]
pub struct Reader {
    link: CommandLink,
    prefix: String,
}

impl Reader {
    /// Over a connection of its own.
    pub async fn dial(config: &Config) -> Result<Self, RedisError> {
        let url = config.redis_url.as_ref().expect("invariant: asked only with a URL");
        let link =
            Dialer::new(url, config.redis_timeout, config.redis_prefix.as_bytes())?.bare().await?;
        Ok(Self { link, prefix: config.redis_prefix.clone() })
    }

    /// One step of a scan that began with a cursor of 0.
    pub async fn page(&mut self, kind: Kind, cursor: u64) -> Result<Page, RedisError> {
        let start = format!("{}{}", self.prefix, kind.name());
        let mut scan = redis::cmd("SCAN");
        scan.arg(cursor).arg("MATCH").arg(format!("{}*", literal(&start)));
        scan.arg("COUNT").arg(STEP_KEYS);
        let (cursor, keys): (u64, Vec<String>) =
            redis::from_redis_value(self.link.query(scan).await?)?;
        let rows = self.rows(kind, &start, &keys).await?;
        Ok(Page { rows, cursor })
    }

    async fn rows(
        &mut self,
        kind: Kind,
        start: &str,
        keys: &[String],
    ) -> Result<Vec<Row>, RedisError> {
        if keys.is_empty() {
            return Ok(Vec::new());
        }
        let values = self.link.query(redis::cmd("MGET").arg(keys).take()).await?;
        let values: Vec<Value> = redis::from_redis_value(values)?;
        let ids = keys.iter().map(|key| key.strip_prefix(start).unwrap_or_default());
        Ok(ids.zip(values).filter_map(|(id, value)| row(kind, id, &value)).collect())
    }

    /// One connection, and the node that it is on; a node that doesn't live any more is none.
    pub async fn find(&mut self, connection: Uuid) -> Result<Found, RedisError> {
        let connection = self.entry(Kind::Connections, &connection.to_string()).await?;
        let Some(connection) = connection else { return Ok(Found::default()) };
        let instance_id = connection["instance_id"].as_str().unwrap_or_default().to_owned();
        let node = self.entry(Kind::Nodes, &instance_id).await?;
        let node = node.filter(|node| node["run_id"] == connection["run_id"]);
        Ok(Found { connection: Some(connection), node })
    }

    async fn entry(&mut self, kind: Kind, id: &str) -> Result<Option<Row>, RedisError> {
        let key = format!("{}{}{id}", self.prefix, kind.name());
        let value = self.link.query(redis::cmd("GET").arg(key).take()).await?;
        Ok(row(kind, id, &value))
    }
}

/// Where a connection is.
#[derive(Default)]
pub struct Found {
    pub connection: Option<Row>,
    pub node: Option<Row>,
}

impl Found {
    pub fn to_json(&self) -> serde_json::Value {
        json!({ "connection": self.connection, "node": self.node })
    }
}

/// `None`: it has expired meanwhile, or isn't an entry of hubbub's.
fn row(kind: Kind, id: &str, value: &Value) -> Option<Row> {
    let Value::BulkString(bytes) = value else { return None };
    let members: Row = serde_json::from_slice(bytes).ok()?;
    let is_whole = ["instance_id", "run_id"]
        .iter()
        .all(|name| members.get(*name).is_some_and(serde_json::Value::is_string));
    let mut row = Row::new();
    if kind == Kind::Connections {
        Uuid::try_parse(id).ok()?;
        row.insert("client".to_owned(), id.into());
    }
    row.extend(members);
    is_whole.then_some(row)
}

/// As a pattern that means only itself.
fn literal(text: &str) -> String {
    let escape = |c: char| ["", "\\"][usize::from("*?[]\\^".contains(c))];
    text.chars().flat_map(|c| escape(c).chars().chain([c])).collect()
}

impl Registrar {
    /// Reads for the API; the answer, a finished JSON object, is among the finished.
    pub fn look_up(&self, asked: Asked, ask: LookUp) {
        let Some(kept) = self.kept() else { return };
        let command = kept.redis.command.borrow().clone();
        let is_free = kept.n_looking_up.get() < RUNNING_MAX;
        let Some(Command { link, .. }) = command.filter(|_| is_free) else {
            return kept.redis.finish([Finished::LookedUp { asked, result: Err(LookUpError) }]);
        };
        kept.n_looking_up.set(kept.n_looking_up.get() + 1);
        let (kept, prefix) = (kept.clone(), kept.redis.node.config.redis_prefix.clone());
        tokio::task::spawn_local(async move {
            let result = kept.answer(Reader { link, prefix }, ask).await;
            kept.n_looking_up.set(kept.n_looking_up.get() - 1);
            kept.redis.finish([Finished::LookedUp { asked, result }]);
        });
    }
}

impl Kept {
    async fn answer(
        self: &Rc<Self>,
        mut reader: Reader,
        ask: LookUp,
    ) -> Result<String, LookUpError> {
        let time_max = self.redis.node.config.redis_timeout;
        let answer = async {
            match ask {
                LookUp::Nodes => nodes(&mut reader, time_max / 2).await,
                LookUp::Connections { user, limit, cursor } => {
                    connections(&mut reader, user.as_deref(), limit, cursor).await
                }
                LookUp::Where(connection) => Ok(reader.find(connection).await?.to_json()),
            }
        };
        match timeout(time_max, answer).await {
            Ok(Ok(answer)) => Ok(answer.to_string()),
            Ok(Err(error)) => {
                self.redis.complain("the registry can't be read", &error);
                Err(LookUpError)
            }
            Err(_) => Err(LookUpError),
        }
    }
}

/// A keyspace so large that it takes longer than `time_max` is read in part, and the answer says so.
async fn nodes(reader: &mut Reader, time_max: Duration) -> Result<serde_json::Value, RedisError> {
    let (began, mut nodes, mut cursor) = (Instant::now(), Map::new(), 0);
    loop {
        let page = reader.page(Kind::Nodes, cursor).await?;
        for row in page.rows {
            // A scan may find one twice.
            nodes.insert(row["instance_id"].as_str().unwrap_or_default().to_owned(), row.into());
        }
        cursor = page.cursor;
        if cursor == 0 || began.elapsed() >= time_max {
            let nodes: Vec<_> = nodes.into_iter().map(|(_, node)| node).collect();
            let mut answer = json!({ "nodes": nodes });
            if cursor != 0 {
                answer["partial"] = true.into();
            }
            return Ok(answer);
        }
    }
}

async fn connections(
    reader: &mut Reader,
    user: Option<&str>,
    limit: usize,
    mut cursor: u64,
) -> Result<serde_json::Value, RedisError> {
    let (began, mut found) = (Instant::now(), Map::new());
    loop {
        let page = reader.page(Kind::Connections, cursor).await?;
        for row in page.rows.into_iter().filter(|row| is_of(row, user)) {
            found.insert(row["client"].as_str().unwrap_or_default().to_owned(), row.into());
        }
        cursor = page.cursor;
        if cursor == 0 || found.len() >= limit || began.elapsed() >= PAGE_TIME_MAX {
            let found: Vec<_> = found.into_iter().map(|(_, connection)| connection).collect();
            let mut answer = json!({ "connections": found });
            if cursor != 0 {
                answer["cursor"] = cursor.to_string().into();
            }
            return Ok(answer);
        }
    }
}

/// `None`: anybody's.
pub fn is_of(row: &Row, user: Option<&str>) -> bool {
    user.is_none_or(|user| row.get("user").is_some_and(|of| of == user))
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn a_prefix_is_no_pattern() {
        assert_eq!(literal("p1:ws:conn:"), "p1:ws:conn:");
        assert_eq!(literal("a*[b]?\\^é"), "a\\*\\[b\\]\\?\\\\\\^é");
    }

    #[test]
    fn what_is_no_entry_is_left_out() {
        let id = "5f9b4a3e-64a1-4a0c-9c0e-1f6a6a2f0b11";
        let check = |kind, id: &str, value: &str| {
            row(kind, id, &Value::BulkString(value.as_bytes().to_vec()))
        };
        let whole = r#"{"instance_id":"a","run_id":"r","user":"u","later":{"x":1}}"#;
        let read = check(Kind::Connections, id, whole).expect("an entry");
        assert_eq!((&read["client"], &read["user"]), (&json!(id), &json!("u")));
        assert_eq!(read["later"], json!({ "x": 1 }), "of a later version");
        assert!(is_of(&read, None) && is_of(&read, Some("u")) && !is_of(&read, Some("")));
        assert!(check(Kind::Nodes, "a", whole).is_some_and(|row| !row.contains_key("client")));
        for (id, value) in [("x", whole), (id, "1"), (id, "{}"), (id, "{"), (id, "")] {
            assert!(check(Kind::Connections, id, value).is_none(), "{id} {value}");
        }
        assert!(row(Kind::Nodes, "a", &Value::Nil).is_none());
    }
}
