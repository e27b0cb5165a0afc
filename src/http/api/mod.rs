//! The server API: one call is one method and its members in JSON. Errors of a command are HTTP 200.
//!
//! A handler first reads all members, then works: what can't be read changes nothing.

mod control;
mod history;
mod key;
mod members;
mod publish;
mod survey;

use std::pin::Pin;
use std::rc::Rc;

use hyper::StatusCode;
use serde_json::json as value;

use super::{Reply, json, text};
use crate::protocol::ReplyError;
use crate::shard::Shard;
pub use key::is_allowed;
use members::{Members, Refusal};

/// One method of the API.
pub struct Method {
    name: &'static str,
    handler: Handler,
}

/// Reads the members, and returns what then does the work.
type Handler = fn(&Rc<Shard>, &Members<'_>) -> Result<Work, Refusal>;

/// Does nothing until it is polled. The result is a finished JSON object.
type Work = Pin<Box<dyn Future<Output = Result<String, ReplyError>>>>;

const METHODS: &[Method] = &[
    Method { name: "publish", handler: publish::publish },
    Method { name: "broadcast", handler: publish::broadcast },
    Method { name: "subscribe", handler: control::subscribe },
    Method { name: "unsubscribe", handler: control::unsubscribe },
    Method { name: "disconnect", handler: control::disconnect },
    Method { name: "refresh", handler: control::refresh },
    Method { name: "history", handler: history::history },
    Method { name: "history_remove", handler: history::history_remove },
    Method { name: "info", handler: survey::info },
    Method { name: "channels", handler: survey::channels },
];

pub fn method(name: &str) -> Option<&'static Method> {
    METHODS.iter().find(|method| method.name == name)
}

/// Runs one call; a malformed body is 400 and nothing was done.
pub async fn call(shard: &Rc<Shard>, method: &Method, body: &[u8]) -> Reply {
    let work = Members::read(body).and_then(|members| (method.handler)(shard, &members));
    let result = match work {
        Ok(work) => work.await,
        Err(Refusal::Error(error)) => Err(error),
        Err(Refusal::Malformed) => return text(StatusCode::BAD_REQUEST, "Bad Request\n"),
    };
    json(StatusCode::OK, &wrap(result))
}

/// A result as single calls have it.
fn wrap(result: Result<String, ReplyError>) -> String {
    match result {
        Ok(result) => format!("{{\"result\":{result}}}"),
        Err(error) => {
            value!({ "error": { "code": error.code, "message": error.message } }).to_string()
        }
    }
}

/// What a method with nothing to say answers.
fn nothing() -> String {
    "{}".to_owned()
}
