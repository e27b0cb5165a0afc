//! What can be wrong with a configuration, and how an operator is told.
//!
//! **Invariant:** no text here holds the value of a knob that can hold a secret.

use std::path::Path;

use super::knob::Knob;
use super::namespaces::{LoadError, Mistake};
use super::sources::Given;
use super::values::{self, Refusal};

/// What `EX_USAGE` of sysexits.h says: started the wrong way.
pub const EXIT_CONFIG: u8 = 64;

/// Everything that is wrong, one line each.
#[derive(Debug, thiserror::Error)]
#[error("{}", lines(.problems))]
pub struct ConfigError {
    problems: Vec<Problem>,
}

impl ConfigError {
    pub fn exit_code(&self) -> u8 {
        EXIT_CONFIG
    }

    pub fn problems(&self) -> &[Problem] {
        &self.problems
    }
}

impl From<Vec<Problem>> for ConfigError {
    fn from(problems: Vec<Problem>) -> ConfigError {
        ConfigError { problems }
    }
}

fn lines(problems: &[Problem]) -> String {
    let lines: Vec<String> = problems.iter().map(Problem::to_string).collect();
    lines.join("\n")
}

/// One thing that is wrong. `name` is what the operator typed: `HUB_SHARDS`, `--shards`.
#[derive(Clone, Debug, Eq, PartialEq, thiserror::Error)]
pub enum Problem {
    #[error("{name}: {value:?} is not valid: expected {expected}")]
    Bad { name: String, value: String, expected: String },
    #[error("{name}: not valid (the value is not shown): expected {expected}")]
    BadSecret { name: String, expected: String },
    #[error("{name}: {what} is not available in this version")]
    ValueNotYet { name: String, what: String },
    #[error("{name} is not available in this version")]
    NotYet { name: String },
    #[error("unknown knob {name}{}", hint(.suggestion))]
    Unknown { name: String, suggestion: Option<String> },
    #[error("{name} would put a secret on the command line: set {env} or {env}_FILE")]
    SecretFlag { name: String, env: &'static str },
    #[error("{env} and {env}_FILE are both set: expected one of them")]
    TwoSources { env: &'static str },
    #[error("{name}: cannot read {path:?}: {reason}")]
    File { name: String, path: String, reason: String },
    #[error("{name}: {path}{}: {complaint}", at_line(.line))]
    InFile { name: String, path: String, line: Option<usize>, complaint: String },
    #[error("{knob}: {complaint}")]
    Conflict { knob: &'static str, complaint: String },
    #[error("{0}")]
    Usage(String),
}

impl Problem {
    pub(super) fn refused(knob: &Knob, given: &Given, text: &str, refusal: Refusal) -> Problem {
        let name = given.name.clone();
        match refusal {
            Refusal::NotYet(what) => Problem::ValueNotYet { name, what },
            Refusal::Expected(expected) if knob.holds_secret() => {
                Problem::BadSecret { name, expected }
            }
            Refusal::Expected(expected) => {
                Problem::Bad { name, value: values::shortened(text), expected }
            }
        }
    }
}

impl Problem {
    /// What is wrong with the file that the knob `name` names.
    pub(super) fn of_file(name: &str, path: &Path, error: LoadError) -> Vec<Problem> {
        let (name, shown) = (name.to_owned(), path.display().to_string());
        match error {
            LoadError::Io(error) => {
                vec![Problem::File { name, path: shown, reason: error.to_string() }]
            }
            LoadError::Mistakes(mistakes) => {
                let problem = |Mistake { line, complaint }| Problem::InFile {
                    name: name.clone(),
                    path: shown.clone(),
                    line,
                    complaint,
                };
                mistakes.into_iter().map(problem).collect()
            }
        }
    }
}

fn at_line(line: &Option<usize>) -> String {
    line.map_or_else(String::new, |line| format!(":{line}"))
}

fn hint(suggestion: &Option<String>) -> String {
    suggestion.as_ref().map_or_else(String::new, |name| format!(" (did you mean {name}?)"))
}
