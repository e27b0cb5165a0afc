//! What this node has to do with the others: commands to users' connections, and surveys.
//!
//! A command goes to all nodes over Redis and comes back to this one like everyone's: the order in
//! which Redis has them is the order everywhere. The embedded broker is all the nodes there are.

use std::sync::Arc;

use uuid::Uuid;

use super::super::PublishError;
use super::super::control::{
    self, Answer, ChannelPage, Control, Message, NodeInfo, NotObeyed, Part, Question, Topic,
};
use super::super::survey::{Alone, Asked, Finished, Owed, SurveyResult, Then};
use super::Core;
use crate::metrics::Drop;
use crate::shard::ShardEvent;

impl Core {
    /// Sends a command of the server API to whoever has its connections.
    pub(super) fn control(&mut self, asked: Asked, control: Arc<Control>) {
        match self.redis.clone() {
            Some(redis) => {
                let message = Message::Control(Arc::unwrap_or_clone(control));
                redis.control(asked, control::encode(self.node.run_id, &message));
            }
            None => {
                let result = self.hand_out(&control);
                let Asked { shard, request } = asked;
                self.doors[shard].push(ShardEvent::Controlled { request, result });
            }
        }
    }

    fn hand_out(&mut self, control: &Arc<Control>) -> Result<(), PublishError> {
        let mut result = Ok(());
        for door in &mut self.doors {
            if !door.try_push_control(ShardEvent::Control(control.clone())) {
                self.node.metrics.broker.on_drop(Drop::ControlFull, 1);
                result = Err(PublishError::Unavailable);
            }
        }
        result
    }

    /// Something came on `ws:control`, or on this node's own channel.
    pub(super) fn on_message(&mut self, payload: &[u8]) {
        let metrics = &self.node.metrics.broker;
        metrics.control_messages.add(1);
        let received = match control::decode(payload) {
            Ok(received) => received,
            Err(NotObeyed::Unknown) => return metrics.control_unknown.add(1),
            Err(NotObeyed::Malformed) => return metrics.on_drop(Drop::BadControl, 1),
        };
        let from = received.from;
        match received.message {
            // Who sent it knows only that Redis took it; what isn't handed out is counted.
            Message::Control(control) => drop(self.hand_out(&Arc::new(control))),
            Message::Ask(question) if from == self.node.run_id => {
                let then = self.surveys.on_heard(question.survey);
                self.go_on(question.survey, from, then);
            }
            Message::Ask(question) => self.on_question(from, question),
            Message::Answer(answer) => self.on_answer(from, answer),
        }
    }

    // --- surveys

    pub(super) fn start_survey(&mut self, asked_by: Asked, topic: Topic, now_ms: u64) {
        self.node.metrics.broker.surveys.add(1);
        let Some(survey) = self.surveys.start(asked_by, topic.clone(), now_ms) else {
            let result = SurveyResult { partial: true, ..SurveyResult::default() };
            self.finish(Finished { asked_by, result });
            return;
        };
        let (own, question) = (self.node.run_id, Question { survey, topic });
        match self.redis.clone() {
            Some(redis) => {
                redis.ask_nodes(survey, control::encode(own, &Message::Ask(question.clone())));
            }
            None => {
                let then = self.surveys.on_alone(survey, Alone::ByNature);
                self.go_on(survey, own, then);
            }
        }
        self.on_question(own, question);
    }

    /// So many nodes got the question; `None`: it didn't get through.
    pub(super) fn on_asked(&mut self, survey: u32, n_nodes: Option<usize>) {
        let then = match n_nodes {
            Some(n_nodes) => self.surveys.on_asked(survey, n_nodes),
            None => self.surveys.on_alone(survey, Alone::CutOff),
        };
        self.go_on(survey, self.node.run_id, then);
    }

    fn on_question(&mut self, from: Uuid, Question { survey, topic }: Question) {
        let ask = match topic {
            Topic::Info => {
                let part = Part::Info(self.info());
                return self.answer(from, Answer { survey, part });
            }
            Topic::Channels(ask) => ask,
        };
        let shard = ask.at.shard;
        if shard >= self.doors.len() {
            let part = Part::Channels(ChannelPage::default());
            return self.answer(from, Answer { survey, part });
        }
        let owed = Owed { node: from, survey, ask: ask.clone() };
        match self.surveys.owe(owed.clone(), self.node.now_ms()) {
            Some(owed) => {
                self.doors[shard].push(ShardEvent::ListChannels { owed, ask: Box::new(ask) });
            }
            None => self.give_up(&owed),
        }
    }

    /// A shard's page; it goes to whoever asked.
    pub(super) fn on_page(&mut self, owed: u32, page: ChannelPage) {
        if let Some(Owed { node, survey, .. }) = self.surveys.on_page(owed) {
            self.answer(node, Answer { survey, part: Part::Channels(page) });
        }
    }

    fn give_up(&mut self, owed: &Owed) {
        let page = ChannelPage::missing(owed.ask.at.shard, self.doors.len());
        self.answer(owed.node, Answer { survey: owed.survey, part: Part::Channels(page) });
    }

    fn answer(&mut self, node: Uuid, answer: Answer) {
        if node == self.node.run_id {
            self.on_answer(node, answer);
        } else {
            self.tell(node, &Message::Answer(answer));
        }
    }

    fn tell(&self, node: Uuid, message: &Message) {
        if let Some(redis) = &self.redis {
            redis.tell_node(node, control::encode(self.node.run_id, message));
        }
    }

    fn on_answer(&mut self, from: Uuid, Answer { survey, part }: Answer) {
        let then = self.surveys.on_answer(survey, from, part);
        self.go_on(survey, from, then);
    }

    fn go_on(&mut self, survey: u32, node: Uuid, then: Then) {
        match then {
            Then::Wait => {}
            Then::Ask(topic) if node == self.node.run_id => {
                self.on_question(node, Question { survey, topic });
            }
            Then::Ask(topic) => self.tell(node, &Message::Ask(Question { survey, topic })),
            Then::Finish => {
                if let Some(finished) = self.surveys.take(survey) {
                    self.finish(finished);
                }
            }
        }
    }

    /// Ends what had its time.
    pub(super) fn end_surveys(&mut self, now_ms: u64) {
        for owed in self.surveys.take_overdue(now_ms) {
            self.give_up(&owed);
        }
        for finished in self.surveys.take_due(now_ms) {
            self.finish(finished);
        }
    }

    fn finish(&mut self, Finished { asked_by: Asked { shard, request }, result }: Finished) {
        self.node.metrics.broker.surveys_partial.add(u64::from(result.partial));
        self.doors[shard].push(ShardEvent::Surveyed { request, result: Box::new(result) });
    }

    fn info(&self) -> NodeInfo {
        let node = &self.node;
        NodeInfo {
            uid: node.run_id.to_string().into(),
            name: "hubbub".into(),
            version: env!("CARGO_PKG_VERSION").into(),
            num_clients: node.metrics.sum(|shard| &shard.connections),
            num_users: node.admission.n_users() as u64,
            num_subs: node.metrics.sum(|shard| &shard.subscriptions),
            num_channels: node.metrics.broker.redis_subscriptions.get(),
            uptime: node.uptime_s(),
        }
    }
}
