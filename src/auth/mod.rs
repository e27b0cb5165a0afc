//! Who a client is and what it may do: as yet, which web pages may connect.

pub mod origin;

pub use origin::{Origins, origin_allowed};
