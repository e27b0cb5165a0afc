//! `hubbub script`: the publish script, for any Redis client. What its head comment says is a stable
//! interface.

use clap::Command;

pub fn command() -> Command {
    Command::new("script")
        .about("Print the Lua script that publishes with history, for any Redis client")
        .override_usage("hubbub script")
}

pub fn text() -> String {
    crate::broker::PUBLISH_SCRIPT.to_owned()
}
