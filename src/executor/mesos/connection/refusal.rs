//! Status codes of the agent's executor API that say no.
//!
//! Owns their meaning. *Invariants:* pure; every code has a kind. Leaves to others: what is done.

use std::fmt;

use crate::executor::mesos::proto::call;

/// Characters of the agent's words that are shown.
const WORDS_SHOWN: usize = 300;

/// What an answer that says no means.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum Kind {
    /// 404, 500, 503: the agent is starting or recovering. The same call again, later.
    NotReady,
    /// 400 "cannot be found": the agent knows the framework or the executor no more. Tasks end, we end.
    Orphan,
    /// 403 "not subscribed": SUBSCRIBE comes first, over a new pair of connections.
    NotSubscribed,
    /// 400: the same bytes will never be taken.
    Malformed,
    /// 401, 403: the token is missing, or another executor's.
    Forbidden,
    /// 405, 406, 415, 501 and all others: one of the two programs is wrong.
    Defect,
}

/// A call that an agent did not take.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct Refused {
    /// What it means.
    pub kind: Kind,
    /// HTTP status.
    pub status: u16,
    /// The call's type.
    pub call: call::Type,
    /// The agent's words, made printable.
    pub words: String,
}

impl Kind {
    fn of(status: u16, words: &str) -> Kind {
        let says = |text: &str| words.to_ascii_lowercase().contains(text);
        match status {
            404 | 500 | 503 => Kind::NotReady,
            400 if says("cannot be found") => Kind::Orphan,
            400 => Kind::Malformed,
            403 if says("not subscribed") => Kind::NotSubscribed,
            401 | 403 => Kind::Forbidden,
            _ => Kind::Defect,
        }
    }

    /// Whether a new subscription may help.
    pub fn is_passing(self) -> bool {
        matches!(self, Kind::NotReady | Kind::NotSubscribed)
    }

    fn advice(self) -> &'static str {
        match self {
            Kind::NotReady => "the agent is starting or recovering; trying again helps",
            Kind::Orphan => "the agent does not know this framework or executor any more",
            Kind::NotSubscribed => "subscribing again helps",
            Kind::Malformed => "this agent will not take it",
            Kind::Forbidden => {
                "the agent wants the token of this very executor (MESOS_EXECUTOR_AUTHENTICATION_TOKEN)"
            }
            Kind::Defect => "this is an error of the agent or of sampan; please report it",
        }
    }
}

impl Refused {
    pub(super) fn new(call: call::Type, status: u16, words: &str) -> Refused {
        let printable = words
            .trim()
            .chars()
            .map(|it| if it.is_control() { ' ' } else { it });
        Refused {
            kind: Kind::of(status, words),
            status,
            call,
            words: printable.take(WORDS_SHOWN).collect(),
        }
    }
}

impl fmt::Display for Refused {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        let Refused {
            kind,
            status,
            call,
            words,
        } = self;
        write!(f, "the agent answers {call} with {status}")?;
        if !words.is_empty() {
            write!(f, " ({words})")?;
        }
        write!(f, ": {}", kind.advice())
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn kinds() {
        for (status, words, expected) in [
            (400, "Framework cannot be found", Kind::Orphan),
            (400, "Executor cannot be found", Kind::Orphan),
            (400, "Expecting 'type' to be present", Kind::Malformed),
            (401, "", Kind::Forbidden),
            (403, "", Kind::Forbidden),
            (403, "Executor is not subscribed", Kind::NotSubscribed),
            (404, "", Kind::NotReady),
            (405, "", Kind::Defect),
            (406, "", Kind::Defect),
            (415, "", Kind::Defect),
            (500, "", Kind::NotReady),
            (501, "", Kind::Defect),
            (503, "Agent has not finished recovery", Kind::NotReady),
            (200, "", Kind::Defect),
            (302, "", Kind::Defect),
        ] {
            let refused = Refused::new(call::Type::Update, status, words);
            assert_eq!(refused.kind, expected, "{status} {words}");
        }
    }

    #[test]
    fn words() {
        let refused = Refused::new(call::Type::Subscribe, 503, "a\nb\u{1b}[1m ");
        assert_eq!(
            refused.to_string(),
            "the agent answers SUBSCRIBE with 503 (a b [1m): the agent is starting or recovering; trying again helps"
        );
        let long = Refused::new(call::Type::Update, 400, &"x".repeat(5000));
        assert_eq!(long.words.len(), WORDS_SHOWN);
    }
}
