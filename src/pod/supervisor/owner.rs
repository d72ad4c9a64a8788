//! The end of a pod's owner, and what follows from it: services are asked to end, then killed, then the pod is removed.

use std::time::Duration;

use tokio::time::Instant;

use super::super::gc::OWNER_GRACE;
use super::super::record::Owner;
use crate::sys::watch::watch_process;

/// How long killed services may take before the pod is removed all the same.
const KILL_GRACE: Duration = Duration::from_secs(5);

/// Returns when the owner has ended; never without one.
pub async fn ended(owner: Option<Owner>) {
    let Some(process) = owner.map(|owner| owner.process) else {
        return std::future::pending().await;
    };
    loop {
        match watch_process(process.pid, process.start_time) {
            Ok(Some(descriptor)) if descriptor.readable().await.is_ok() => return,
            Ok(None) => return,
            // out of descriptors, say
            _ => tokio::time::sleep(Duration::from_secs(1)).await,
        }
    }
}

/// What is next.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub enum Step {
    /// Ask services to end, each in its own time.
    Stop,
    /// Kill those that are left.
    Kill,
    /// Remove the pod whatever is left.
    Remove,
}

/// How far a pod without its owner is.
#[derive(Debug, Default)]
pub struct End {
    taken: Option<Step>,
    next: Option<Instant>,
}

impl End {
    /// The owner has ended.
    pub fn begun(&self) -> bool {
        self.taken.is_some()
    }

    /// The pod is being removed.
    pub fn over(&self) -> bool {
        self.taken == Some(Step::Remove)
    }

    /// The step that is due.
    pub fn step(&mut self) -> Step {
        let (step, next) = match self.taken {
            None => (Step::Stop, Some(OWNER_GRACE)),
            Some(Step::Stop) => (Step::Kill, Some(KILL_GRACE)),
            Some(Step::Kill | Step::Remove) => (Step::Remove, None),
        };
        self.taken = Some(step);
        self.next = next.map(|after| Instant::now() + after);
        step
    }

    /// Nothing is left to be done.
    pub fn done(&mut self) {
        self.taken = Some(Step::Remove);
        self.next = None;
    }

    /// Returns when the next step is due.
    pub async fn next(&self) {
        match self.next {
            Some(at) => tokio::time::sleep_until(at).await,
            None => std::future::pending().await,
        }
    }
}
