//! `info` and `channels`: what all nodes say.

use std::collections::BTreeMap;
use std::rc::Rc;

use globset::Glob;
use serde_json::json as value;

use super::Work;
use super::members::{Members, Refusal};
use crate::broker::{ChannelsAsk, PATTERN_BYTES_MAX, SurveyResult, Topic};
use crate::protocol::ReplyError;
use crate::shard::Shard;

/// Channels written between two turns of everybody else.
const CHANNELS_PER_TURN: usize = 512;

pub fn info(shard: &Rc<Shard>, _: &Members<'_>) -> Result<Work, Refusal> {
    let shard = shard.clone();
    Ok(Box::pin(async move {
        let mut survey = ask(&shard, Topic::Info).await?;
        survey.nodes.sort_by(|a, b| a.uid.cmp(&b.uid));
        Ok(format!("{{\"nodes\":{}{}}}", value!(survey.nodes), partial(&survey)))
    }))
}

pub fn channels(shard: &Rc<Shard>, members: &Members<'_>) -> Result<Work, Refusal> {
    let pattern: Box<str> = members.text("pattern")?;
    if pattern.len() > PATTERN_BYTES_MAX {
        return Err(ReplyError::BAD_REQUEST.into());
    }
    Glob::new(&pattern).map_err(|_| ReplyError::INTERNAL)?;
    let shard = shard.clone();
    Ok(Box::pin(async move {
        let topic = Topic::Channels(ChannelsAsk { pattern, ..ChannelsAsk::default() });
        let mut survey = ask(&shard, topic).await?;
        // A hundred thousand of them take a while: not at the expense of who is served here.
        let mut channels: BTreeMap<Box<str>, u64> = BTreeMap::new();
        for page in std::mem::take(&mut survey.pages) {
            for count in page.channels {
                *channels.entry(count.name).or_default() += u64::from(count.n);
            }
            tokio::task::yield_now().await;
        }
        let mut json = "{\"channels\":{".to_owned();
        for (at, (name, n)) in channels.into_iter().enumerate() {
            let comma = if at > 0 { "," } else { "" };
            json += &format!("{comma}{}:{{\"num_clients\":{n}}}", value!(name));
            if at % CHANNELS_PER_TURN == 0 {
                tokio::task::yield_now().await;
            }
        }
        json += &format!("}}{}}}", partial(&survey));
        Ok(json)
    }))
}

async fn ask(shard: &Rc<Shard>, topic: Topic) -> Result<SurveyResult, ReplyError> {
    shard.survey(topic).await.map_err(|_| ReplyError::INTERNAL)
}

/// Said beside the result where it isn't all.
fn partial(survey: &SurveyResult) -> &'static str {
    if survey.partial { ",\"partial\":true" } else { "" }
}
