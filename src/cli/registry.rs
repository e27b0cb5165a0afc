//! `hubbub nodes`, `hubbub connections`, `hubbub where`: questions to the registry.

use clap::{Arg, ArgAction, ArgMatches, Command};
use uuid::Uuid;

use super::Action;
use crate::config::{EXIT_CONFIG, Loaded};

/// What is asked, and how it is to be told.
#[derive(Clone, PartialEq, Eq, Debug)]
pub struct Question {
    pub about: About,
    pub tell: Tell,
}

#[derive(Clone, PartialEq, Eq, Debug)]
pub enum About {
    Nodes,
    Connections {
        /// `None`: everybody's; empty: the anonymous ones.
        user: Option<String>,
    },
    Where(Uuid),
}

#[derive(Clone, Copy, PartialEq, Eq, Debug)]
pub enum Tell {
    Table,
    /// An object a line.
    Json,
}

pub fn commands() -> [Command; 3] {
    let json = Arg::new("json")
        .long("json")
        .action(ArgAction::SetTrue)
        .help("One JSON object a line instead of a table");
    let user = Arg::new("user").long("user").value_name("USER").help("Only this user's");
    let id = Arg::new("id").value_name("CONNECTION_ID").required(true);
    let id = id.help("The `client` of the connect reply");
    [
        Command::new("nodes")
            .about("List the nodes of this Redis and prefix that live")
            .override_usage("hubbub nodes [--json] [FLAGS]")
            .arg(json.clone()),
        Command::new("connections")
            .about("List the connections of all nodes, as they are found")
            .override_usage("hubbub connections [--user USER] [--json] [FLAGS]")
            .arg(user)
            .arg(json.clone()),
        Command::new("where")
            .about("Tell which node a connection is on")
            .override_usage("hubbub where CONNECTION_ID [--json] [FLAGS]")
            .arg(id)
            .arg(json),
    ]
}

pub fn ask(name: &str, matches: &ArgMatches, loaded: Loaded) -> Action {
    let refuse = |message: &str| Action::Fail { message: message.to_owned(), code: EXIT_CONFIG };
    let about = match name {
        "nodes" => About::Nodes,
        "connections" => About::Connections { user: matches.get_one::<String>("user").cloned() },
        _ => match matches.get_one::<String>("id").map(|id| Uuid::try_parse(id)) {
            Some(Ok(id)) => About::Where(id),
            _ => {
                return refuse(
                    "error: CONNECTION_ID: expected a UUID, the client of a connect reply",
                );
            }
        },
    };
    if loaded.config.redis_url.is_none() {
        return refuse("error: HUB_REDIS_URL is unset: expected the Redis that the nodes use");
    }
    let tell = if matches.get_flag("json") { Tell::Json } else { Tell::Table };
    Action::Answer(Box::new(loaded), Question { about, tell })
}
