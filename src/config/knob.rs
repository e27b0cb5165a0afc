//! What a knob is, how one is found by name, and which names of the design are not knobs yet. The
//! rows are in `knobs`.

use super::Config;
use super::knobs::KNOBS;
use super::values::Refusal;

#[derive(Clone, Copy, Debug, Eq, PartialEq)]
pub enum Kind {
    Plain,
    /// A boolean: the flag alone means true.
    Switch,
    /// Can hold a secret: errors do not show the value, and `HUB_X_FILE` exists.
    MaySecret,
    /// Always a secret: no flag besides.
    Secret,
}

/// One knob.
pub struct Knob {
    pub env: &'static str,
    /// Without the dashes; `env` in another dress (a test compares them).
    pub flag: &'static str,
    pub heading: &'static str,
    pub value: &'static str,
    pub help: &'static str,
    pub kind: Kind,
    /// For the help, where the default depends on the machine or says little.
    pub default_text: Option<&'static str>,
    pub set: fn(&mut Config, &str) -> Result<(), Refusal>,
    pub show: fn(&Config) -> String,
}

impl Knob {
    pub fn holds_secret(&self) -> bool {
        matches!(self.kind, Kind::MaySecret | Kind::Secret)
    }

    pub const fn kind(mut self, kind: Kind) -> Knob {
        self.kind = kind;
        self
    }

    pub const fn default_text(mut self, text: &'static str) -> Knob {
        self.default_text = Some(text);
        self
    }
}

/// The index of a knob in `KNOBS`, by its environment name.
pub fn position(env: &str) -> Option<usize> {
    KNOBS.iter().position(|knob| knob.env == env)
}

/// The design's other knobs, by flag. An operator who sets one relies on it, so silence is no option.
pub const NOT_YET: &[&str] =
    &["tls-cert", "tls-key", "token-ecdsa-public-key", "token-jwks-url", "token-rsa-public-key"];

/// By environment name, that of its file included.
pub fn is_not_yet(env: &str) -> bool {
    let env = env.strip_suffix("_FILE").unwrap_or(env);
    NOT_YET.iter().any(|flag| env_of(flag) == env)
}

fn env_of(flag: &str) -> String {
    format!("HUB_{}", flag.to_ascii_uppercase().replace('-', "_"))
}

#[cfg(test)]
mod tests {
    use super::super::Machine;
    use super::*;

    #[test]
    fn names_agree_and_are_unique() {
        for (idx, knob) in KNOBS.iter().enumerate() {
            assert_eq!(env_of(knob.flag), knob.env);
            assert_eq!(position(knob.env), Some(idx));
            assert!(!is_not_yet(knob.env), "{} is both", knob.env);
        }
    }

    #[test]
    fn every_default_reads_back_as_itself() {
        let mut config =
            Config::defaults(Machine { cores: 3, open_files_max: 1000, memory_bytes: 1 << 30 });
        for knob in KNOBS {
            let shown = (knob.show)(&config);
            if !shown.is_empty() {
                assert_eq!((knob.set)(&mut config, &shown), Ok(()), "{}={shown}", knob.env);
                assert_eq!((knob.show)(&config), shown, "{}", knob.env);
            }
        }
    }

    #[test]
    fn every_knob_refuses_nonsense() {
        let mut config =
            Config::defaults(Machine { cores: 3, open_files_max: 1000, memory_bytes: 1 << 30 });
        for knob in KNOBS {
            let refusal = (knob.set)(&mut config, "\u{1}");
            assert!(matches!(refusal, Err(Refusal::Expected(_))), "{}", knob.env);
        }
    }
}
