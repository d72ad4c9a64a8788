//! Terminals of services: their output into the service's pipe, and so into its log as everything else.
//!
//! *Invariant:* a byte goes from the terminal into the pipe by one splice(2), so that a kill at any instant neither loses it nor writes it
//! twice; the pipe's way on is the pump's.

use std::fs::{File, OpenOptions};
use std::io;
use std::os::fd::OwnedFd;
use std::os::unix::fs::OpenOptionsExt;
use std::rc::Rc;
use std::time::Duration;

use rustix::event::{PollFd, PollFlags, Timespec};
use rustix::io::Errno;
use rustix::pipe::{SpliceFlags, splice};
use tokio::io::unix::AsyncFd;
use tokio::task::JoinHandle;

use super::super::layout::ServiceDir;
use super::super::{Error, Result};
use super::Context;
use super::pump::Pumps;
use crate::sys::watch::watch;

/// Most bytes moved at once.
const CHUNK: usize = 1 << 16;
/// Most calls before others have their turn: a program can print without end.
const CALLS: usize = 16;
/// Pause while the log cannot be written (a full disk); the program waits at its full terminal meanwhile.
const RETRY: Duration = Duration::from_millis(200);
/// So often that pause is made once the program has ended.
const LAST_TRIES: u32 = 50;
/// Most turns for what is left then; a terminal holds less than one moves.
const LAST_TURNS: u32 = 64;

/// How far the output was moved.
#[derive(Debug, PartialEq, Eq)]
enum Moved {
    /// All there is now.
    All,
    /// As much as one turn may.
    More,
    /// Until the pipe was full.
    Part,
    /// All, and nobody has the terminal open; somebody may open it again.
    Closed,
}

/// A terminal's master and the pipe that its output goes to.
struct Output {
    master: AsyncFd<OwnedFd>,
    pipe: File,
    pumps: Pumps,
}

impl Output {
    fn open(service: &ServiceDir, master: OwnedFd, pumps: Pumps) -> Result<Output> {
        let path = service.pipe("stdout");
        let mut options = OpenOptions::new();
        options
            .read(true)
            .write(true)
            .custom_flags(libc::O_NONBLOCK);
        let pipe = options.open(&path).map_err(Error::io("open", &path))?;
        let master = watch(master).map_err(Error::io("watch the terminal of", &path))?;
        Ok(Output {
            master,
            pipe,
            pumps,
        })
    }

    fn shift(&self) -> io::Result<Moved> {
        for _ in 0..CALLS {
            let flags = SpliceFlags::NONBLOCK;
            match splice(self.master.get_ref(), None, &self.pipe, None, CHUNK, flags) {
                Ok(count) if count > 0 => {
                    if self.pumps.drain() {
                        break;
                    }
                }
                Err(Errno::INTR) => {}
                // either has no more, or the other no room
                Err(Errno::AGAIN) => {
                    return Ok(match readable(self.master.get_ref()) {
                        true => Moved::Part,
                        false => Moved::All,
                    });
                }
                Ok(_) | Err(Errno::IO) => return Ok(Moved::Closed),
                Err(error) => return Err(error.into()),
            }
        }
        Ok(Moved::More)
    }

    async fn follow(&self) -> io::Result<()> {
        loop {
            let mut ready = self.master.readable().await?;
            match self.shift()? {
                Moved::All => ready.clear_ready(),
                Moved::More => tokio::task::yield_now().await,
                // a hang-up stays readable for ever, whoever opens the terminal again
                Moved::Part | Moved::Closed => tokio::time::sleep(RETRY).await,
            }
        }
    }
}

fn readable(fd: &OwnedFd) -> bool {
    let now = Timespec {
        tv_sec: 0,
        tv_nsec: 0,
    };
    let mut fds = [PollFd::new(fd, PollFlags::IN)];
    let ready = rustix::event::poll(&mut fds, Some(&now));
    matches!(ready, Ok(count) if count > 0) && fds[0].revents().contains(PollFlags::IN)
}

/// Moves the output of a service's terminal until it is dropped.
pub struct Following(Option<JoinHandle<()>>);

impl Drop for Following {
    fn drop(&mut self) {
        if let Some(task) = &self.0 {
            task.abort();
        }
    }
}

fn output(context: &Context, service: &str) -> Result<Option<Output>> {
    let is_terminal = |name| Some(context.pod.project.services.get(name)?.tty);
    let (Some(true), Some(store), Some(pumps)) = (
        is_terminal(service),
        context.stores.get(service),
        context.pumps.get(service),
    ) else {
        return Ok(None);
    };
    let dir = context.dir.service(service);
    match store
        .look()
        .map_err(Error::io("find the terminal of", &dir.dir))?
    {
        Some(master) => Output::open(&dir, master, pumps.clone()).map(Some),
        None => Ok(None),
    }
}

/// Begins with a service that runs, if it has a terminal.
pub fn follow(context: &Rc<Context>, service: &str) -> Following {
    let output = match output(context, service) {
        Ok(Some(output)) => output,
        Ok(None) => return Following(None),
        Err(error) => {
            context.note(service, error.to_string());
            return Following(None);
        }
    };
    let (context, service) = (context.clone(), service.to_string());
    Following(Some(tokio::task::spawn_local(async move {
        if let Err(error) = output.follow().await {
            context.note(&service, format!("read its terminal: {error}"));
        }
    })))
}

/// Once the program has ended: moves what is left, and lets go of terminal or input.
pub async fn finish(context: &Context, service: &str) {
    let Some(store) = context.stores.get(service) else {
        return;
    };
    let rest = async {
        let Some(output) = output(context, service)? else {
            return Ok(());
        };
        let dir = context.dir.service(service).dir;
        let failed = Error::io("read the terminal of", &dir);
        let (mut tries, mut turns) = (0, 0);
        loop {
            match output.shift() {
                Ok(Moved::All | Moved::Closed) => return Ok(()),
                Ok(Moved::More) if turns < LAST_TURNS => {
                    turns += 1;
                    tokio::task::yield_now().await;
                }
                Ok(Moved::More) => {
                    return Err(Error::Other(
                        "somebody else goes on printing to its terminal: that is not in its log"
                            .into(),
                    ));
                }
                Ok(Moved::Part) if tries < LAST_TRIES => {
                    tries += 1;
                    tokio::time::sleep(RETRY).await;
                }
                Ok(Moved::Part) => {
                    return Err(Error::Other(
                        "its log cannot be written: what its terminal printed last is lost".into(),
                    ));
                }
                Err(error) => return Err(failed(error)),
            }
        }
    };
    let rest: Result<()> = rest.await;
    if let Err(error) = rest {
        context.note(service, error.to_string());
    }
    if let Err(error) = store.clear() {
        context.note(service, format!("close its terminal or input: {error}"));
    }
}

#[cfg(test)]
mod tests {
    use super::*;
    use crate::compose::project::Logging;

    /// What `/dev/random` gives never ends, and is there at once.
    async fn move_without_end(service: &ServiceDir) {
        for stream in ["stdout", "stderr"] {
            nix::unistd::mkfifo(&service.pipe(stream), nix::sys::stat::Mode::S_IRWXU).unwrap();
        }
        let pumps = Pumps::start(service, Logging::None, None, |text| panic!("{text}")).unwrap();
        let endless = File::open("/dev/random").unwrap().into();
        let output = Output::open(service, endless, pumps).unwrap();
        assert_eq!(output.shift().unwrap(), Moved::More);
        // others have their turn beside it
        let other = async {
            for _ in 0..100 {
                tokio::task::yield_now().await;
            }
        };
        tokio::select! {
            moved = output.follow() => panic!("{moved:?}"),
            () = other => {}
        }
    }

    #[test]
    fn a_terminal_without_end_leaves_others_their_turn() {
        let dir = tempfile::tempdir().unwrap();
        let service = ServiceDir {
            dir: dir.path().to_path_buf(),
            data: dir.path().to_path_buf(),
        };
        let runtime = tokio::runtime::Builder::new_current_thread()
            .enable_all()
            .build()
            .unwrap();
        tokio::task::LocalSet::new().block_on(&runtime, move_without_end(&service));
    }
}
