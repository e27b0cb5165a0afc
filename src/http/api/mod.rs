//! The server API: one call is one method and its members in JSON. Errors of a command are HTTP 200.
//!
//! A handler first reads all members, then works: what can't be read changes nothing.

mod batch;
mod control;
mod history;
mod key;
mod members;
mod publish;
mod survey;

use std::pin::Pin;
use std::rc::Rc;

use hyper::body::Incoming;
use hyper::{Request, StatusCode};
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
    Method { name: "rpc", handler: rpc },
];

fn method(name: &str) -> Option<&'static Method> {
    METHODS.iter().find(|method| method.name == name)
}

/// What a path is for.
#[derive(Clone, Copy)]
pub enum Route {
    Method(&'static Method),
    Batch,
    /// Commands one after another: what there was before each method had a path.
    Legacy,
}

impl Route {
    /// `path` is what follows `/api`.
    pub fn of(path: &str) -> Option<Self> {
        match path {
            "" => Some(Self::Legacy),
            "/batch" => Some(Self::Batch),
            path => method(path.strip_prefix('/')?).map(Self::Method),
        }
    }
}

/// How a command's failure is told.
#[derive(Clone, Copy, PartialEq, Eq)]
pub enum ErrorMode {
    /// In a body of status 200.
    Body,
    /// By the status.
    Transport,
}

impl ErrorMode {
    pub fn of(request: &Request<Incoming>) -> Self {
        let mode = request.headers().get("x-centrifugo-error-mode");
        if mode.is_some_and(|mode| mode == "transport") { Self::Transport } else { Self::Body }
    }
}

/// Runs one call; a malformed body is 400 and nothing was done.
pub async fn call(shard: &Rc<Shard>, route: Route, mode: ErrorMode, body: &[u8]) -> Reply {
    let method = match route {
        Route::Method(method) => method,
        Route::Batch => return batch::batch(shard, body).await,
        Route::Legacy => return batch::legacy(shard, body).await,
    };
    let work = Members::read(body).and_then(|members| (method.handler)(shard, &members));
    let result = match work {
        Ok(work) => work.await,
        Err(Refusal::Error(error)) => Err(error),
        Err(malformed) => return refuse(&malformed),
    };
    match (result, mode) {
        (Err(refused), ErrorMode::Transport) => json(status(refused), &error(refused)),
        (result, _) => json(StatusCode::OK, &wrap(result)),
    }
}

fn refuse(refusal: &Refusal) -> Reply {
    match refusal {
        Refusal::Malformed => text(StatusCode::BAD_REQUEST, "Bad Request\n"),
        Refusal::Error(refused) => json(StatusCode::OK, &wrap(Err(*refused))),
    }
}

/// A result as single calls have it.
fn wrap(result: Result<String, ReplyError>) -> String {
    match result {
        Ok(result) => format!("{{\"result\":{result}}}"),
        Err(refused) => format!("{{\"error\":{}}}", error(refused)),
    }
}

fn error(error: ReplyError) -> String {
    value!({ "code": error.code, "message": error.message }).to_string()
}

/// Server API, 2.
fn status(error: ReplyError) -> StatusCode {
    match error {
        ReplyError::UNKNOWN_CHANNEL | ReplyError::NOT_FOUND => StatusCode::NOT_FOUND,
        ReplyError::BAD_REQUEST | ReplyError::NOT_AVAILABLE => StatusCode::BAD_REQUEST,
        ReplyError::UNRECOVERABLE_POSITION => StatusCode::RANGE_NOT_SATISFIABLE,
        _ => StatusCode::INTERNAL_SERVER_ERROR,
    }
}

/// What a method with nothing to say answers.
fn nothing() -> String {
    "{}".to_owned()
}

/// No methods of its own.
fn rpc(_: &Rc<Shard>, _: &Members<'_>) -> Result<Work, Refusal> {
    Err(ReplyError::NOT_FOUND.into())
}
