//! The pod's hooks while it has a supervisor: which one is due, its process, and what follows.
//!
//! *Invariants:* what is due is on disk before its process starts; while that one is at work only it writes the record.

use std::ffi::OsStr;
use std::rc::Rc;
use std::time::Duration;

use super::super::hooks::{self, Ledger, View};
use super::super::record;
use super::super::{Error, Result};
use super::{Context, Event, work};
use crate::compose::project::HookPoint;

/// Pause before a process that did not run its hook is tried again.
const AGAIN: Duration = Duration::from_millis(500);
/// So often in a row is one tried.
const TRIES: u32 = 5;

/// The hooks of a pod.
pub struct Hooks {
    /// The pod has some.
    any: bool,
    ledger: Ledger,
    /// A process is at work, or waited for.
    busy: bool,
    /// Processes in a row that did not run their hook.
    lost: u32,
}

impl Hooks {
    /// Goes on where an earlier supervisor was killed.
    pub fn load(context: &Context) -> Result<Hooks> {
        let any = hooks::any(&context.pod);
        let found = match any {
            true => record::read(&context.dir.hooks())?,
            false => None,
        };
        Ok(Hooks {
            any,
            ledger: found.unwrap_or_default(),
            busy: false,
            lost: 0,
        })
    }

    /// See [`super::Machine::hold`].
    pub fn holds(&self) -> bool {
        self.any && self.ledger.holds()
    }

    /// A hook runs, or is about to.
    pub fn busy(&self) -> bool {
        self.busy
    }

    /// Nothing runs and nothing is owed.
    pub fn at_rest(&self) -> bool {
        !self.any || (!self.busy && self.ledger.stage == hooks::Stage::Down)
    }

    /// A hook failed the pod: what to say.
    pub fn failure(&self) -> Option<&str> {
        self.ledger.failure.as_deref()
    }

    /// A service is about to start: from now on something is owed.
    pub fn begin(&mut self, context: &Context) -> Result<()> {
        if !self.any || self.busy {
            return Ok(());
        }
        let before = self.ledger.clone();
        self.ledger.begin();
        self.write(context, before)
    }

    /// Starts the hook that is due, if one is; gives whether anything changed.
    pub fn advance(&mut self, context: &Rc<Context>, view: View) -> Result<bool> {
        if !self.any || self.busy {
            return Ok(false);
        }
        let before = self.ledger.clone();
        let count = |point: HookPoint| hooks::at(&context.pod, point).count();
        self.ledger.advance(view, count);
        let changed = self.ledger != before;
        let written = self.write(context, before);
        self.busy = written.is_err() || self.ledger.chain.is_some();
        if self.busy {
            tokio::task::spawn_local(run(context.clone(), self.lost > 0, self.ledger.clone()));
        }
        written.map(|()| changed)
    }

    /// The process has ended: what its hook came to, or that it did not run it.
    pub fn ended(&mut self, context: &Context, done: Result<()>) -> Result<Option<String>> {
        self.busy = false;
        let found: Ledger = record::read(&context.dir.hooks())?.unwrap_or_default();
        if found != self.ledger && found.chain.is_none_or(|chain| !chain.begun) {
            self.lost = 0;
            self.ledger = found;
            return Ok(Some(self.ledger.last.clone()));
        }
        self.lost += 1;
        self.ledger = found;
        if self.lost >= TRIES {
            self.lost = 0;
            let before = self.ledger.clone();
            self.ledger.ran(None);
            self.write(context, before)?;
            done?;
            return Err(Error::Other(format!(
                "a hook is given up: the process that was to run it was killed {TRIES} times"
            )));
        }
        done.map(|()| None)
    }

    /// One that cannot be written is taken back.
    fn write(&mut self, context: &Context, before: Ledger) -> Result<()> {
        if self.ledger == before {
            return Ok(());
        }
        let written = record::write(&context.dir.hooks(), &self.ledger);
        if written.is_err() {
            self.ledger = before;
        }
        written
    }
}

/// Has the hook run that the record names, after a pause when `again`.
async fn run(context: Rc<Context>, again: bool, ledger: Ledger) {
    if again || ledger.chain.is_none() {
        tokio::time::sleep(AGAIN).await;
    }
    let done = match ledger.chain {
        None => Ok(()),
        Some(chain) => {
            let next = chain.next.to_string();
            let dir = &context.dir.dir;
            let args: [&OsStr; 4] = [
                "hook".as_ref(),
                dir.as_os_str(),
                chain.at.name().as_ref(),
                next.as_ref(),
            ];
            work::step(&args, &dir.join("error.json")).await
        }
    };
    let _ = context.events.send(Event::Hook(done));
}
