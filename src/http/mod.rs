//! Pages and data that a node serves over HTTP.

mod demo_symbols;

pub use demo_symbols::SECTORS;
