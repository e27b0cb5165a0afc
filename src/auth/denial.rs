//! What a client is told when its token is refused: the one table from [`TokenError`] to the wire.
//!
//! Plain values. Source: protocol.md 5.4 and 13, except that an expired token in a sub_refresh ends
//! the subscription (2501) instead of making it last for ever, as that section asks for.

use super::token::TokenError;
use crate::protocol::{Disconnect, ReplyError, Unsubscribe};

/// The answer to a command that a token, or the lack of one, doesn't allow.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum Denial {
    /// The command's error reply.
    Error(ReplyError),
    /// No reply; the connection ends.
    Close(Disconnect),
    /// An empty success reply (an error would make centrifuge-js give the subscription up for good),
    /// then the unsubscribe push, upon which the SDKs subscribe again with a fresh token.
    Unsubscribe(Unsubscribe),
}

/// The command that a token came with.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum Asked {
    Connect,
    Subscribe,
    Refresh,
    SubRefresh,
}

impl Denial {
    pub fn of(error: TokenError, asked: Asked) -> Denial {
        match error {
            TokenError::Expired | TokenError::NotYetValid => match asked {
                Asked::Connect | Asked::Subscribe => Denial::Error(ReplyError::TOKEN_EXPIRED),
                Asked::Refresh => Denial::Close(Disconnect::EXPIRED),
                Asked::SubRefresh => Denial::Unsubscribe(Unsubscribe::EXPIRED),
            },
            TokenError::ExpireAtPast => match asked {
                Asked::Connect | Asked::Subscribe => Denial::Error(ReplyError::EXPIRED),
                Asked::Refresh => Denial::Close(Disconnect::EXPIRED),
                Asked::SubRefresh => Denial::Unsubscribe(Unsubscribe::EXPIRED),
            },
            // Good tokens of somebody else, or for something else: no accident.
            TokenError::OtherChannel | TokenError::OtherUser | TokenError::OtherClient => {
                Denial::Close(Disconnect::INVALID_TOKEN)
            }
            TokenError::TooLong
            | TokenError::Malformed
            | TokenError::Critical
            | TokenError::NoKey
            | TokenError::Algorithm
            | TokenError::Signature
            | TokenError::Claims
            | TokenError::Info
            | TokenError::Audience
            | TokenError::Issuer
            | TokenError::NotForConnections
            | TokenError::NoChannel => match asked {
                Asked::Subscribe => Denial::Error(ReplyError::PERMISSION_DENIED),
                Asked::Connect | Asked::Refresh | Asked::SubRefresh => {
                    Denial::Close(Disconnect::INVALID_TOKEN)
                }
            },
        }
    }
}

impl From<ReplyError> for Denial {
    fn from(error: ReplyError) -> Denial {
        Denial::Error(error)
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    /// Codes by number, so that a wrong constant shows: connect, subscribe, refresh, sub_refresh.
    #[test]
    fn every_refusal_has_the_protocols_answer() {
        let check = |errors: &[TokenError], codes: [u32; 4]| {
            let asked = [Asked::Connect, Asked::Subscribe, Asked::Refresh, Asked::SubRefresh];
            for error in errors {
                let told = asked.map(|asked| match Denial::of(*error, asked) {
                    Denial::Error(error) => error.code,
                    Denial::Close(close) => close.code.into(),
                    Denial::Unsubscribe(end) => end.code,
                });
                assert_eq!(told, codes, "{error:?}");
            }
        };
        check(&[TokenError::Expired, TokenError::NotYetValid], [109, 109, 3005, 2501]);
        check(&[TokenError::ExpireAtPast], [110, 110, 3005, 2501]);
        let bad = [
            TokenError::TooLong,
            TokenError::Malformed,
            TokenError::Critical,
            TokenError::NoKey,
            TokenError::Algorithm,
            TokenError::Signature,
            TokenError::Claims,
            TokenError::Info,
            TokenError::Audience,
            TokenError::Issuer,
            TokenError::NotForConnections,
            TokenError::NoChannel,
        ];
        check(&bad, [3500, 103, 3500, 3500]);
        let foreign = [TokenError::OtherChannel, TokenError::OtherUser, TokenError::OtherClient];
        check(&foreign, [3500; 4]);
    }
}
