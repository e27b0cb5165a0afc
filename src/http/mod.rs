//! HTTP on a shard: upgrades, the server API, pages and data.
//!
//! hyper reads one request at a time; an upgraded connection leaves hyper as a plain socket and
//! goes on in a small task, so that it keeps neither hyper's buffers nor its state.

mod api;
mod demo_symbols;
mod handshakes;
mod peer;

use std::cell::RefCell;
use std::net::IpAddr;
use std::rc::Rc;

use base64::Engine as _;
use base64::prelude::BASE64_STANDARD;
use bytes::Bytes;
use fastwebsockets::upgrade;
use http_body_util::{BodyExt, Full, Limited};
use hyper::body::{Body as _, Incoming};
use hyper::header::{
    AUTHORIZATION, CONNECTION, CONTENT_TYPE, HOST, HeaderValue, LOCATION, ORIGIN, RETRY_AFTER,
    SEC_WEBSOCKET_KEY, SEC_WEBSOCKET_PROTOCOL,
};
use hyper::service::service_fn;
use hyper::{Method, Request, Response, StatusCode, Version};
use hyper_util::rt::{TokioIo, TokioTimer};
use tokio::net::TcpStream;
use uuid::Uuid;

pub use demo_symbols::SECTORS;
use handshakes::Handshake;
pub use handshakes::Handshakes;

use crate::admission::Refused;
use crate::auth::{Denial, origin_allowed};
use crate::channel;
use crate::protocol::{Disconnect, ReplyError};
use crate::publication::Format;
use crate::shard::hub::SessionId;
use crate::shard::{Accepted, Role, Shard};
use api::{ErrorMode, Route};

type Reply = Response<Full<Bytes>>;

/// What one connection is served with.
struct Connection {
    shard: Rc<Shard>,
    uuid: Uuid,
    role: Role,
    is_loopback: bool,
    peer: IpAddr,
    upgraded: RefCell<Option<SessionId>>,
}

impl Connection {
    fn admit(&self, request: &Request<Incoming>, format: Format) -> Result<SessionId, Refused> {
        let proxies = &self.shard.node.config.trusted_proxies;
        let forwarded = request.headers().get_all("x-forwarded-for");
        let address = peer::address(self.peer, proxies, forwarded.iter());
        self.shard.add(self.uuid, format, address)
    }
}

impl Drop for Connection {
    fn drop(&mut self) {
        if std::thread::panicking() {
            self.shard.break_down();
        }
        if let Some(id) = self.upgraded.take() {
            self.shard.remove(id);
        }
    }
}

/// Serves one accepted socket.
pub async fn serve(shard: Rc<Shard>, accepted: Accepted) {
    let Ok(stream) =
        accepted.stream.set_nonblocking(true).and_then(|()| TcpStream::from_std(accepted.stream))
    else {
        return;
    };
    let connection = Rc::new(Connection {
        shard: shard.clone(),
        uuid: accepted.connection,
        role: accepted.role,
        is_loopback: accepted.is_loopback,
        peer: accepted.peer.ip(),
        upgraded: RefCell::new(None),
    });
    let (handshake, n_evicted) = shard.handshakes.enter(shard.node.admission.is_crowded());
    shard.metrics().evicted_handshakes.add(n_evicted as u64);
    let place = Place { shard: shard.clone(), handshake: handshake.clone() };
    let service = service_fn(|request| {
        let (connection, handshake) = (connection.clone(), handshake.clone());
        async move {
            handshake.set_busy();
            let mut reply = route(&connection, request).await;
            if connection.upgraded.borrow().is_none() {
                connection.shard.handshakes.on_answered(&handshake);
            }
            if connection.shard.node.is_draining() {
                reply.headers_mut().insert(CONNECTION, HeaderValue::from_static("close"));
            }
            Ok::<_, std::convert::Infallible>(reply)
        }
    });
    let http = hyper::server::conn::http1::Builder::new()
        .timer(TokioTimer::new())
        .header_read_timeout(shard.node.config.handshake_timeout)
        .serve_connection(TokioIo::new(stream), service);
    let parts = tokio::select! {
        parts = Box::pin(http.without_shutdown()) => parts,
        () = handshake.told_to_leave() => return,
    };
    drop(place);
    if let Ok(parts) = parts
        && let Some(id) = connection.upgraded.take()
    {
        let stream = parts.io.into_inner();
        shard.start(id, stream, parts.read_buf.to_vec(), accepted.permit);
    }
}

/// A connection's place among those that aren't upgraded.
struct Place {
    shard: Rc<Shard>,
    handshake: Rc<Handshake>,
}

impl Drop for Place {
    fn drop(&mut self) {
        self.shard.handshakes.leave(&self.handshake);
    }
}

async fn route(connection: &Connection, mut request: Request<Incoming>) -> Reply {
    let node = &connection.shard.node;
    let (clients, internal) = (connection.role != Role::Internal, connection.role != Role::Public);
    if node.config.dev && !is_local(&request) {
        return text(StatusCode::FORBIDDEN, "only from this machine under HUB_DEV\n");
    }
    let path = request.uri().path().to_owned();
    match path.as_str() {
        "/health" if node.live() => json(StatusCode::OK, "{}"),
        "/health" => json(StatusCode::SERVICE_UNAVAILABLE, "{}"),
        "/ready" => match node.ready() {
            Ok(()) => json(StatusCode::OK, "{}"),
            Err(reason) => text(StatusCode::SERVICE_UNAVAILABLE, &format!("{reason}\n")),
        },
        "/connection/websocket" if clients => upgrade_json(connection, &mut request),
        "/ws" if clients => upgrade_raw(connection, &mut request).await,
        "/metrics" if internal => metrics_page(connection, &request),
        "/demo" if node.config.dev => demo(connection),
        "/" if node.config.dev => {
            let mut reply = text(StatusCode::FOUND, "");
            reply
                .headers_mut()
                .insert(LOCATION, "/demo".parse().expect("invariant: a path is a header value"));
            reply
        }
        path => match path.strip_prefix("/api").filter(|_| internal).and_then(Route::of) {
            Some(route) => api_call(connection, route, request).await,
            None => text(StatusCode::NOT_FOUND, "not found\n"),
        },
    }
}

/// Whoever can reach a public listener from elsewhere needs the API key (design, Ready).
fn metrics_page(connection: &Connection, request: &Request<Incoming>) -> Reply {
    let node = &connection.shard.node;
    let is_open = connection.role == Role::Internal || connection.is_loopback;
    if is_open || api::is_allowed(&node.config, request) {
        text(StatusCode::OK, &node.metrics.page(node.now_ms()))
    } else {
        empty(StatusCode::UNAUTHORIZED)
    }
}

async fn api_call(connection: &Connection, route: Route, request: Request<Incoming>) -> Reply {
    let shard = &connection.shard;
    if request.method() != Method::POST {
        return empty(StatusCode::METHOD_NOT_ALLOWED);
    }
    if !api::is_allowed(&shard.node.config, &request) {
        return empty(StatusCode::UNAUTHORIZED);
    }
    let config = &shard.node.config;
    if request.body().size_hint().lower() > config.api_body_bytes_max as u64 {
        return empty(StatusCode::PAYLOAD_TOO_LARGE); // By its declared length: none of it is read.
    }
    let mode = ErrorMode::of(&request);
    let body = Limited::new(request.into_body(), config.api_body_bytes_max).collect();
    let Ok(body) = tokio::time::timeout(config.handshake_timeout, body).await else {
        return empty(StatusCode::REQUEST_TIMEOUT);
    };
    match body {
        Ok(body) => {
            let _call = Call::begin(shard);
            api::call(shard, route, mode, &body.to_bytes()).await
        }
        Err(error) if error.is::<http_body_util::LengthLimitError>() => {
            empty(StatusCode::PAYLOAD_TOO_LARGE)
        }
        Err(_) => empty(StatusCode::BAD_REQUEST),
    }
}

/// A call that is under way: the process doesn't exit before it is answered.
struct Call<'a>(&'a Shard);

impl<'a> Call<'a> {
    fn begin(shard: &'a Shard) -> Self {
        let n_calls = &shard.metrics().http_calls;
        n_calls.set(n_calls.get() + 1);
        Self(shard)
    }
}

impl Drop for Call<'_> {
    fn drop(&mut self) {
        let n_calls = &self.0.metrics().http_calls;
        n_calls.set(n_calls.get() - 1);
    }
}

fn upgrade_json(connection: &Connection, request: &mut Request<Incoming>) -> Reply {
    if let Some(refusal) = refuse_upgrade(connection, request) {
        return refusal;
    }
    let offers = request
        .headers()
        .get(SEC_WEBSOCKET_PROTOCOL)
        .and_then(|value| value.to_str().ok())
        .unwrap_or_default();
    let speaks_json = offers.split(',').any(|offer| offer.trim() == "centrifuge-json");
    let Ok((mut reply, _)) = upgrade::upgrade(&mut *request) else {
        return text(StatusCode::BAD_REQUEST, "bad upgrade\n");
    };
    let id = match connection.admit(request, Format::Json) {
        Ok(id) => id,
        Err(refused) => return refuse_client(refused),
    };
    reply.headers_mut().remove(SEC_WEBSOCKET_PROTOCOL);
    if speaks_json {
        let name = "centrifuge-json".parse().expect("invariant: a token is a header value");
        reply.headers_mut().insert(SEC_WEBSOCKET_PROTOCOL, name);
    }
    connection.upgraded.replace(Some(id));
    reply.map(|_| Full::default())
}

async fn upgrade_raw(connection: &Connection, request: &mut Request<Incoming>) -> Reply {
    let config = &connection.shard.node.config;
    let mut channels: Vec<String> = query(request, "channel");
    channels.sort();
    channels.dedup();
    let good =
        channels.iter().all(|name| channel::check_name(name, config.channel_bytes_max).is_ok());
    if channels.is_empty() || channels.len() > config.channels_max || !good {
        return text(
            StatusCode::BAD_REQUEST,
            "name 1 or more valid channels: /ws?channel=a&channel=b\n",
        );
    }
    if let Some(refusal) = refuse_upgrade(connection, request) {
        return refusal;
    }
    let (token, subprotocol) = raw_token(request);
    let Ok((mut reply, _)) = upgrade::upgrade(&mut *request) else {
        return text(StatusCode::BAD_REQUEST, "bad upgrade\n");
    };
    let id = match connection.admit(request, Format::Raw) {
        Ok(id) => id,
        Err(refused) => return refuse_client(refused),
    };
    if let Err(denial) = connection.shard.admit_raw(id, &token, &channels) {
        connection.shard.remove(id);
        return refuse_raw(denial);
    }
    connection.upgraded.replace(Some(id));
    match connection.shard.join(id, &channels).await {
        Ok(Ok(())) => {
            reply.headers_mut().remove(SEC_WEBSOCKET_PROTOCOL);
            if let Some(name) = subprotocol {
                reply.headers_mut().insert(SEC_WEBSOCKET_PROTOCOL, name);
            }
            reply.map(|_| Full::default())
        }
        _ => {
            connection.upgraded.take();
            connection.shard.remove(id);
            unavailable()
        }
    }
}

/// The token of a raw client (`?token=`, `Authorization: Bearer`, or a subprotocol
/// `bearer.<token>`, which is all that a browser can set), and the subprotocol to answer with:
/// browsers insist on one of those that they offered.
fn raw_token(request: &Request<Incoming>) -> (String, Option<HeaderValue>) {
    let offers: Vec<&str> = header(request, SEC_WEBSOCKET_PROTOCOL)
        .unwrap_or_default()
        .split(',')
        .map(str::trim)
        .filter(|offer| !offer.is_empty())
        .collect();
    let is_token = |offer: &&&str| offer.starts_with("bearer.");
    let in_offers = offers.iter().find(is_token);
    let subprotocol = offers.iter().find(|offer| !is_token(offer)).or(in_offers);
    let subprotocol = subprotocol.and_then(|name| HeaderValue::from_str(name).ok());
    let in_header = header(request, AUTHORIZATION).and_then(|value| {
        let (scheme, token) = value.split_once(' ')?;
        scheme.eq_ignore_ascii_case("bearer").then(|| token.trim().to_owned())
    });
    let token = query(request, "token")
        .into_iter()
        .next()
        .or(in_header)
        .or_else(|| Some(in_offers?.strip_prefix("bearer.")?.to_owned()));
    (token.unwrap_or_default(), subprotocol)
}

/// Refusals of the raw transport come before the upgrade (design, Behaviour).
fn refuse_raw(denial: Denial) -> Reply {
    match denial {
        Denial::Error(ReplyError::UNKNOWN_CHANNEL) => {
            text(StatusCode::NOT_FOUND, "unknown channel\n")
        }
        Denial::Error(ReplyError::PERMISSION_DENIED) => {
            text(StatusCode::FORBIDDEN, "no permission to subscribe\n")
        }
        Denial::Close(Disconnect::CONNECTION_LIMIT) => refuse_client(Refused::PerAddress),
        _ => text(StatusCode::UNAUTHORIZED, "no token, or not a good one\n"),
    }
}

fn refuse_upgrade(connection: &Connection, request: &Request<Incoming>) -> Option<Reply> {
    if !is_upgrade(request) {
        return Some(text(StatusCode::BAD_REQUEST, "a WebSocket upgrade is expected here\n"));
    }
    let config = &connection.shard.node.config;
    let values = |name| request.headers().get_all(name).iter().map(HeaderValue::as_bytes);
    if !config.dev && !origin_allowed(&config.allowed_origins, values(ORIGIN), values(HOST)) {
        return Some(text(StatusCode::FORBIDDEN, "origin not allowed\n"));
    }
    connection.shard.node.is_draining().then(unavailable)
}

/// An opening handshake (RFC 6455, 4.2.1); the version is looked at where it is answered.
fn is_upgrade(request: &Request<Incoming>) -> bool {
    let has_key = header(request, SEC_WEBSOCKET_KEY)
        .and_then(|key| BASE64_STANDARD.decode(key).ok())
        .is_some_and(|key| key.len() == 16);
    request.method() == Method::GET
        && request.version() >= Version::HTTP_11
        && has_key
        && upgrade::is_upgrade_request(request)
}

fn refuse_client(refused: Refused) -> Reply {
    match refused {
        Refused::ConnectionsMax | Refused::ConnectRate => unavailable(),
        Refused::PerAddress => {
            let mut reply = unavailable();
            *reply.status_mut() = StatusCode::TOO_MANY_REQUESTS;
            reply
        }
    }
}

fn unavailable() -> Reply {
    let mut reply = empty(StatusCode::SERVICE_UNAVAILABLE);
    reply.headers_mut().insert(RETRY_AFTER, HeaderValue::from_static("1"));
    reply.headers_mut().insert(CONNECTION, HeaderValue::from_static("close"));
    reply
}

fn header(request: &Request<Incoming>, name: hyper::header::HeaderName) -> Option<&str> {
    request.headers().get(name).map(|value| value.to_str().unwrap_or("?"))
}

/// Under `HUB_DEV` no web page of elsewhere may reach the node.
fn is_local(request: &Request<Incoming>) -> bool {
    let is_loopback = |host: &str| {
        let name = if host.starts_with('[') {
            host.split_inclusive(']').next().unwrap_or(host)
        } else {
            host.split(':').next().unwrap_or(host)
        };
        name == "localhost"
            || name == "[::1]"
            || name.parse::<std::net::Ipv4Addr>().is_ok_and(|ip| ip.is_loopback())
    };
    let origin = header(request, ORIGIN);
    let origin_is = origin.is_none_or(|origin| {
        origin == "null" || origin.split_once("://").is_some_and(|(_, host)| is_loopback(host))
    });
    origin_is && header(request, HOST).is_none_or(is_loopback)
}

fn query(request: &Request<Incoming>, key: &str) -> Vec<String> {
    let pairs = request
        .uri()
        .query()
        .unwrap_or_default()
        .split('&')
        .filter_map(|pair| pair.split_once('='));
    pairs.filter(|(name, _)| *name == key).map(|(_, value)| unescape(value)).collect()
}

fn unescape(value: &str) -> String {
    let bytes = value.as_bytes();
    let mut out = Vec::with_capacity(bytes.len());
    let mut at = 0;
    while at < bytes.len() {
        let hex = |at: usize| bytes.get(at).and_then(|byte| (*byte as char).to_digit(16));
        match (bytes[at], hex(at + 1), hex(at + 2)) {
            (b'%', Some(high), Some(low)) => {
                out.push((high * 16 + low) as u8);
                at += 2;
            }
            (b'+', ..) => out.push(b' '),
            (byte, ..) => out.push(byte),
        }
        at += 1;
    }
    String::from_utf8_lossy(&out).into_owned()
}

fn demo(connection: &Connection) -> Reply {
    let config = &connection.shard.node.config;
    let facts = serde_json::json!({
        "version": env!("CARGO_PKG_VERSION"),
        "broker": if config.redis_url.is_some() { "redis" } else { "memory" },
        "prefix": config.redis_prefix,
        "shards": config.shards,
    });
    let facts = facts.to_string().replace('<', "\\u003c");
    let page = include_str!("demo.html").replacen("/*HUBBUB*/null", &facts, 1);
    typed(StatusCode::OK, "text/html; charset=utf-8", page)
}

fn typed(status: StatusCode, content_type: &'static str, body: impl Into<Bytes>) -> Reply {
    let mut reply = Response::new(Full::new(body.into()));
    *reply.status_mut() = status;
    let content_type = hyper::header::HeaderValue::from_static(content_type);
    reply.headers_mut().insert(CONTENT_TYPE, content_type);
    reply
}

fn text(status: StatusCode, body: &str) -> Reply {
    typed(status, "text/plain; charset=utf-8", body.to_owned())
}

fn json(status: StatusCode, body: &str) -> Reply {
    typed(status, "application/json", body.to_owned())
}

fn empty(status: StatusCode) -> Reply {
    let mut reply = Response::new(Full::default());
    *reply.status_mut() = status;
    reply
}
