//! `start`, `kill`, `delete`, `pause`, `resume`.

use super::args::Invocation;
use super::{Error, log, signal, store};
use crate::container::{self, Status};

/// `start ID`.
pub fn start(call: &Invocation) -> Result<u8, Error> {
    let state = store::find(&call.global, call.word(0)?)?;
    Ok(container::start(&state.dir).map(|()| 0)?)
}

/// `kill ID [SIGNAL]`.
pub fn kill(call: &Invocation) -> Result<u8, Error> {
    let number = match call.words.len() {
        1 => libc::SIGTERM,
        _ => signal::parse(call.word(1)?)?,
    };
    let state = store::find(&call.global, call.word(0)?)?;
    Ok(container::kill(&state.dir, number, call.values.has("all")).map(|()| 0)?)
}

/// `pause ID`.
pub fn pause(call: &Invocation) -> Result<u8, Error> {
    let state = store::find(&call.global, call.word(0)?)?;
    Ok(container::pause(&state.dir).map(|()| 0)?)
}

/// `resume ID`.
pub fn resume(call: &Invocation) -> Result<u8, Error> {
    let state = store::find(&call.global, call.word(0)?)?;
    Ok(container::resume(&state.dir).map(|()| 0)?)
}

/// `delete ID`. One that runs is deleted with `--force` only; one that is gone is an error without.
pub fn delete(call: &Invocation) -> Result<u8, Error> {
    let (id, force) = (call.word(0)?, call.values.has("force"));
    let dir = store::dir(&call.global, id)?;
    let mut was_there = false;
    if dir.exists()
        && let Some(_only) = store::hold_to_delete(&dir, force)?
    {
        let warning = match container::load(&dir) {
            Ok(None) => {
                let half_made = store::undo_half_made(&dir)?;
                container::delete(&dir)?.or(half_made)
            }
            Ok(Some(state)) => {
                if !force {
                    may_go(id, container::status(&state))?;
                }
                was_there = true;
                container::delete(&dir)?
            }
            // nobody will ever read it: what was asked for is taken away
            Err(error) if force => {
                let done = store::undo_half_made(&dir)?;
                let text = format!("{error}: removed by what its creation was asked for");
                Some(done.map_or(text.clone(), |done| format!("{text}; {done}")))
            }
            Err(error) => return Err(error.into()),
        };
        store::remove(&dir)?;
        if let Some(text) = warning {
            log::warning(&call.global, &text)?;
        }
    }
    if was_there || force {
        return Ok(0);
    }
    Err(store::missing(id))
}

fn may_go(id: &str, status: Status) -> Result<(), Error> {
    match status {
        Status::Running | Status::Paused => Err(Error::new(format!(
            "cannot delete container {id} that is not stopped: it is {status}; end it with `kill`, or use --force"
        ))),
        _ => Ok(()),
    }
}
