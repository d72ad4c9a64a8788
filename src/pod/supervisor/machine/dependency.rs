//! The conditions of `depends_on`.

use super::super::super::record::{Goal, Health, Phase, Status};
use crate::compose::project::Condition;

/// Whether a dependency is as its condition asks.
pub enum Satisfied {
    /// It is.
    Yes,
    /// It can come to be.
    NotYet,
    /// It will not: why.
    Never(&'static str),
}

/// Looks at the status of the one that is depended on; `probed`: it has a health check.
pub fn satisfied(condition: Condition, on: &Status, probed: bool) -> Satisfied {
    // what it is now is about to end: only its next run counts
    if on.goal == Goal::Restart {
        return Satisfied::NotYet;
    }
    // one whose `post_start` failed still runs until it has been stopped
    let failing = matches!(on.phase, Phase::Running | Phase::Stopping) && on.error.is_some();
    if on.phase == Phase::Failed || failing {
        return Satisfied::Never("failed to start");
    }
    if on.goal == Goal::Stop
        && !on.phase.active()
        && condition != Condition::ServiceCompletedSuccessfully
    {
        return Satisfied::Never("is stopped");
    }
    if on.post_start && on.phase == Phase::Running {
        return Satisfied::NotYet;
    }
    let ended = on.phase == Phase::Exited;
    match condition {
        // a service that already ended had been started
        Condition::ServiceStarted if matches!(on.phase, Phase::Running | Phase::Exited) => {
            Satisfied::Yes
        }
        Condition::ServiceHealthy if !probed => Satisfied::Never("has no health check"),
        Condition::ServiceHealthy if ended => Satisfied::Never("ended before it was healthy"),
        Condition::ServiceHealthy if on.phase == Phase::Running => match on.health {
            Health::Healthy => Satisfied::Yes,
            Health::Unhealthy => Satisfied::Never("is unhealthy"),
            Health::None | Health::Starting => Satisfied::NotYet,
        },
        Condition::ServiceReady if ended => Satisfied::Never("ended before it was ready"),
        Condition::ServiceReady if on.ready => Satisfied::Yes,
        Condition::ServiceReady if on.health == Health::Unhealthy => {
            Satisfied::Never("is unhealthy")
        }
        Condition::ServiceReady if on.unready() => Satisfied::Never("is not ready"),
        Condition::ServiceCompletedSuccessfully if ended => match on.exit_code {
            Some(0) => Satisfied::Yes,
            _ => Satisfied::Never("did not complete successfully"),
        },
        _ => Satisfied::NotYet,
    }
}
