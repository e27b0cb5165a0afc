//! Messages to other nodes, on the command link; what they say comes by the pub/sub link.
//!
//! **Invariant:** at most [`MESSAGES_MAX`] are on their way, and [`MESSAGE_BYTES_MAX`]. Only a Redis
//! that hangs gets that far: a command is refused then, and an answer isn't sent, for which a survey
//! doesn't wait.

use std::rc::Rc;

use uuid::Uuid;

use super::link::Plain;
use super::{Command, Finished, Redis};
use crate::broker::PublishError;
use crate::broker::survey::Asked;

const MESSAGES_MAX: usize = 4096;
const MESSAGE_BYTES_MAX: usize = 16 << 20;

impl Redis {
    pub(super) fn to_all_nodes(&self) -> Vec<u8> {
        [&self.prefix[..], b"ws:control"].concat()
    }

    /// The link for one more message, if it may be sent.
    fn try_link(&self) -> Option<Command> {
        let has_room =
            self.n_messages.get() < MESSAGES_MAX && self.message_bytes.get() < MESSAGE_BYTES_MAX;
        self.command.borrow().clone().filter(|_| has_room)
    }

    /// Sends a command to all nodes. This one gets it like the others, so without a pub/sub link
    /// here it is refused.
    pub fn control(self: &Rc<Self>, asked: Asked, payload: Vec<u8>) {
        let is_heard = self.pubsub.borrow().is_some();
        let Some(link) = self.try_link().filter(|_| is_heard) else {
            self.finish([Finished::Control { asked, result: Err(PublishError::Unavailable) }]);
            return;
        };
        let (redis, channel) = (self.clone(), self.to_all_nodes());
        self.in_flight(payload.len(), async move {
            let result = redis.send(link, Plain { channel, payload }).await;
            redis.finish([Finished::Control { asked, result }]);
        });
    }

    /// Sends a survey's question to all nodes, and counts them.
    pub fn ask_nodes(self: &Rc<Self>, survey: u32, payload: Vec<u8>) {
        let is_heard = self.pubsub.borrow().is_some();
        let Some(Command { mut link, broken }) = self.try_link().filter(|_| is_heard) else {
            self.finish([Finished::NodesAsked { survey, n_nodes: None }]);
            return;
        };
        let (redis, channel) = (self.clone(), self.to_all_nodes());
        self.in_flight(payload.len(), async move {
            let asked = link.publish_counting(&Plain { channel, payload }).await;
            let n_nodes = asked.inspect_err(|_| broken.notify_one()).ok().flatten();
            redis.finish([Finished::NodesAsked { survey, n_nodes }]);
        });
    }

    /// Sends to one node.
    pub fn tell_node(self: &Rc<Self>, node: Uuid, payload: Vec<u8>) {
        let Some(link) = self.try_link() else { return };
        let channel = [&self.prefix[..], b"ws:node:", node.to_string().as_bytes()].concat();
        let redis = self.clone();
        self.in_flight(payload.len(), async move {
            // Nobody can be told: who waits for it has a time limit.
            let _ = redis.send(link, Plain { channel, payload }).await;
        });
    }

    fn in_flight(self: &Rc<Self>, bytes: usize, task: impl Future<Output = ()> + 'static) {
        let redis = self.clone();
        redis.n_messages.set(redis.n_messages.get() + 1);
        redis.message_bytes.set(redis.message_bytes.get() + bytes);
        tokio::task::spawn_local(async move {
            task.await;
            redis.n_messages.set(redis.n_messages.get() - 1);
            redis.message_bytes.set(redis.message_bytes.get() - bytes);
        });
    }

    async fn send(&self, link: Command, message: Plain) -> Result<(), PublishError> {
        let Command { mut link, broken } = link;
        let published = link.publish([message].into_iter(), Vec::new()).await;
        if published.broken {
            broken.notify_one();
        }
        published.results.first().copied().unwrap_or(Err(PublishError::Unknown))
    }
}
