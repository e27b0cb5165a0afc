//! Why a client connection is failed, and with which close code. Owns nothing; made by `reader` and `reader/head`.

/// Why the connection has to be failed.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum Violation {
    Protocol(Breach),
    TooBig,
    /// 1009 like `TooBig`, not 1008: the same message is refused again on every try, and clients know that of 1009.
    TooManyFragments,
    TextNotUtf8,
    CloseReasonNotUtf8,
}

/// Breaches of RFC 6455 that close with 1002.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum Breach {
    ReservedBits,
    UnknownOpcode,
    NotMasked,
    ControlFragmented,
    ControlTooLong,
    StrayContinuation,
    MessageInsideMessage,
    LengthTopBit,
    LengthNotMinimal,
    CloseBodyOneByte,
    CloseCodeNotAllowed,
}

impl Violation {
    pub fn close_code(self) -> u16 {
        match self {
            Self::Protocol(_) => 1002,
            Self::TextNotUtf8 | Self::CloseReasonNotUtf8 => 1007,
            Self::TooBig | Self::TooManyFragments => 1009,
        }
    }

    pub fn reason(self) -> &'static str {
        match self {
            Self::Protocol(breach) => breach.reason(),
            Self::TooBig => "message too big",
            Self::TooManyFragments => "too many fragments",
            Self::TextNotUtf8 => "text is not UTF-8",
            Self::CloseReasonNotUtf8 => "close reason is not UTF-8",
        }
    }
}

impl Breach {
    pub fn reason(self) -> &'static str {
        match self {
            Self::ReservedBits => "reserved bits set",
            Self::UnknownOpcode => "unknown opcode",
            Self::NotMasked => "frame not masked",
            Self::ControlFragmented => "control frame fragmented",
            Self::ControlTooLong => "control frame too long",
            Self::StrayContinuation => "continuation without a message",
            Self::MessageInsideMessage => "new message inside a fragmented one",
            Self::LengthTopBit => "length out of range",
            Self::LengthNotMinimal => "length not in its shortest form",
            Self::CloseBodyOneByte => "close body of one byte",
            Self::CloseCodeNotAllowed => "close code not allowed",
        }
    }
}

impl From<Breach> for Violation {
    fn from(breach: Breach) -> Self {
        Self::Protocol(breach)
    }
}

impl std::fmt::Display for Violation {
    fn fmt(&self, f: &mut std::fmt::Formatter<'_>) -> std::fmt::Result {
        f.write_str(self.reason())
    }
}

impl std::error::Error for Violation {}
