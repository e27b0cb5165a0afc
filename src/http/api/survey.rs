//! `info` and `channels`: what is going on.

use std::rc::Rc;

use globset::Glob;
use serde_json::{Map, Value, json as value};

use super::Work;
use super::members::{Members, Refusal};
use crate::protocol::ReplyError;
use crate::shard::Shard;

pub fn info(shard: &Rc<Shard>, _: &Members<'_>) -> Result<Work, Refusal> {
    let shard = shard.clone();
    Ok(Box::pin(async move {
        let node = &shard.node;
        let n_clients = node.metrics.sum(|shard| &shard.connections);
        let info = value!({ "nodes": [{
            "uid": node.run_id.to_string(),
            "name": "hubbub",
            "version": env!("CARGO_PKG_VERSION"),
            "num_clients": n_clients,
            "num_users": node.admission.n_users(),
            "num_subs": node.metrics.sum(|shard| &shard.subscriptions),
            "num_channels": node.metrics.broker.redis_subscriptions.get(),
            "uptime": node.uptime_s(),
        }] });
        Ok(info.to_string())
    }))
}

/// All nodes' channels would be asked once there are several; this node's shards are.
pub fn channels(shard: &Rc<Shard>, members: &Members<'_>) -> Result<Work, Refusal> {
    let pattern: Option<String> = members.get("pattern")?;
    let pattern = pattern.filter(|pattern| !pattern.is_empty());
    let glob = pattern.map(|pattern| Glob::new(&pattern)).transpose();
    let matcher = glob.map_err(|_| ReplyError::INTERNAL)?.map(|glob| glob.compile_matcher());
    let shard = shard.clone();
    Ok(Box::pin(async move {
        let survey = shard.survey().await.unwrap_or_default();
        let channels: Map<String, Value> = survey
            .channels
            .into_iter()
            .filter(|(name, _)| matcher.as_ref().is_none_or(|matcher| matcher.is_match(&**name)))
            .map(|(name, n)| (name.into(), value!({ "num_clients": n })))
            .collect();
        Ok(value!({ "channels": channels }).to_string())
    }))
}
