//! Who may do what on a channel: the one decision, from a namespace and what is known of the client.
//!
//! Plain functions, any thread, no allocation. The API may do everything and doesn't ask here.

use crate::channel;
use crate::config::{Access, Namespace};

/// What a client wants of a channel.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum Action {
    Subscribe,
    Publish,
    History,
    Presence,
}

/// A client's tie to the channel.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum Tie {
    None,
    Subscribed,
    /// It is subscribed, or asks to be, with a subscription token that was found good.
    Token,
}

/// What is known of a client.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub struct Standing<'a> {
    /// As its token says; empty: the anonymous one.
    pub user: &'a str,
    pub tie: Tie,
}

impl<'a> Standing<'a> {
    pub fn new(user: &'a str, tie: Tie) -> Standing<'a> {
        Standing { user, tie }
    }
}

/// Whether such a client may do that: if its namespace lets it, and the channel's name is for it. The
/// one never stands in for the other: a list of users in a name opens nothing, and no token opens what
/// is for others.
pub fn allows(
    namespace: &Namespace,
    action: Action,
    channel: &str,
    standing: Standing<'_>,
) -> bool {
    grants(namespace, action, standing) && channel::is_for(channel, standing.user)
}

/// A subscription token also opens a channel that is for users: the back end signed it for this very
/// channel, which says more than that somebody is known. It says nothing about publishing.
fn grants(namespace: &Namespace, action: Action, standing: Standing<'_>) -> bool {
    let is_authenticated = !standing.user.is_empty();
    let has_token = standing.tie == Tie::Token;
    match access_of(namespace, action) {
        Access::Nobody => false,
        Access::Token => has_token,
        Access::Subscriber => standing.tie != Tie::None,
        Access::User => is_authenticated || (has_token && action == Action::Subscribe),
        Access::Anyone => true,
    }
}

fn access_of(namespace: &Namespace, action: Action) -> Access {
    match action {
        Action::Subscribe => namespace.subscribe,
        Action::Publish => namespace.publish,
        Action::History => namespace.history,
        Action::Presence => namespace.presence_access,
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    /// One row per access; columns: anonymous without tie, subscribed, with token; then a user so.
    #[test]
    fn the_whole_table() {
        let check = |access: Access, action: Action, expected: [u8; 6]| {
            let namespace = Namespace {
                subscribe: Access::Nobody,
                publish: Access::Nobody,
                history: Access::Nobody,
                presence_access: Access::Nobody,
                ..Namespace::default()
            };
            let namespace = match action {
                Action::Subscribe => Namespace { subscribe: access, ..namespace },
                Action::Publish => Namespace { publish: access, ..namespace },
                Action::History => Namespace { history: access, ..namespace },
                Action::Presence => Namespace { presence_access: access, ..namespace },
            };
            let ties = [Tie::None, Tie::Subscribed, Tie::Token];
            let standings =
                || ["", "42"].iter().flat_map(|user| ties.map(|tie| Standing::new(user, tie)));
            let allowed = |channel: &str| -> Vec<u8> {
                let allows = |standing| u8::from(allows(&namespace, action, channel, standing));
                standings().map(allows).collect()
            };
            assert_eq!(allowed("news"), expected, "{access:?} {action:?}");
            assert_eq!(allowed("news#43"), [0; 6], "{access:?} {action:?}: for another user");
            let [.., none, subscribed, token] = expected;
            let of_user = [0, 0, 0, none, subscribed, token];
            assert_eq!(allowed("news#41,42"), of_user, "{access:?} {action:?}: for the user");
        };
        for action in [Action::Subscribe, Action::Publish, Action::History, Action::Presence] {
            check(Access::Nobody, action, [0; 6]);
            check(Access::Token, action, [0, 0, 1, 0, 0, 1]);
            check(Access::Subscriber, action, [0, 1, 1, 0, 1, 1]);
            let of_token = u8::from(action == Action::Subscribe);
            check(Access::User, action, [0, 0, of_token, 1, 1, 1]);
            check(Access::Anyone, action, [1; 6]);
        }
    }
}
