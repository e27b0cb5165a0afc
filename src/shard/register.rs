//! Tells the broker, for the connection registry, who has come and gone.
//!
//! Runs on the shard thread inside one borrow of the state; goes out with the turn's other commands.

use super::hub::SessionId;
use super::session::Kind;
use super::state::State;
use crate::broker::{BrokerCommand, Connected, Transport};
use crate::node::unix_ms;

impl State {
    /// A client is there: once it has its connect reply.
    pub fn register(&mut self, id: SessionId, transport: Transport) {
        if !self.node.config.is_registered() {
            return;
        }
        let shard = self.idx;
        let Some(session) = self.session(id) else { return };
        session.is_registered = true;
        let connected = Box::new(Connected {
            connection: session.connection,
            user: session.user().into(),
            address: session.address,
            transport,
            connected_at_s: unix_ms() / 1000,
        });
        self.commands.push(BrokerCommand::Connected { shard, connected });
    }

    /// A raw client is there once it is upgraded.
    pub fn register_raw(&mut self, id: SessionId) {
        if self.session(id).is_some_and(|session| session.kind == Kind::Raw) {
            self.register(id, Transport::Raw);
        }
    }

    /// It is gone.
    pub fn deregister(&mut self, id: SessionId) {
        if let Some(session) = self.session(id).filter(|session| session.is_registered) {
            let connection = session.connection;
            self.commands.push(BrokerCommand::Disconnected { connection });
        }
    }
}
