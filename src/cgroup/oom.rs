//! Being told when a cgroup runs out of memory.
//!
//! On v2 `memory.events` and `cgroup.events` are watched (cgroup-v2.rst, "poll and [id]notify events are generated"), on v1 an eventfd
//! is registered for `memory.oom_control` (memory.rst, "OOM Control").
//!
//! *Invariants:* the watch ends by itself, once: with the last process on v2, with the cgroup on v1.

use std::fs::File;
use std::os::fd::{AsFd, AsRawFd, BorrowedFd, OwnedFd};
use std::path::{Path, PathBuf};
use std::time::Duration;

use rustix::event::{EventfdFlags, PollFd, PollFlags, Timespec, eventfd, poll};
use rustix::fs::inotify::{self, CreateFlags, WatchFlags};

use super::{Cgroup, Error, file};

/// What happened.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub enum OomEvent {
    /// The limit was hit and a process killed, or would have been.
    Oom,
    /// Nothing more will come.
    End,
}

/// An open watch; its descriptor is readable when [`OomWatch::next`] has something to say.
#[derive(Debug)]
pub struct OomWatch {
    queue: OwnedFd,
    /// The memory cgroup.
    folder: PathBuf,
    /// `oom_kill` of `memory.events` so far; `None` on v1, which does not count here.
    kills: Option<u64>,
}

impl AsFd for OomWatch {
    fn as_fd(&self) -> BorrowedFd<'_> {
        self.queue.as_fd()
    }
}

impl OomWatch {
    pub(super) fn open(cgroup: &Cgroup) -> Result<OomWatch, Error> {
        let memory = match cgroup {
            Cgroup::V2(path) => return v2(path),
            Cgroup::V1 { controllers, .. } => controllers.get("memory"),
            Cgroup::Systemd { .. } | Cgroup::Unlimited { .. } => None,
        };
        match memory {
            Some(path) => v1(path),
            None => Err(Error::Controller {
                controller: "memory".to_owned(),
                what: "a watch for out of memory".to_owned(),
                why: "the container has no cgroup of it".to_owned(),
            }),
        }
    }

    /// Waits for an event, at most for `limit`; `None` when nothing happened.
    pub fn next(&mut self, limit: Option<Duration>) -> Result<Option<OomEvent>, Error> {
        let limit = limit.map(|limit| Timespec {
            tv_sec: i64::try_from(limit.as_secs()).unwrap_or(i64::MAX),
            tv_nsec: limit.subsec_nanos().into(),
        });
        loop {
            // before waiting: one read takes the news of several changes
            if self.kills.is_some()
                && let Some(event) = self.look()?
            {
                return Ok(Some(event));
            }
            let mut fds = [PollFd::new(&self.queue, PollFlags::IN)];
            let count = rustix::io::retry_on_intr(|| poll(&mut fds, limit.as_ref()))
                .map_err(|error| self.failed(error))?;
            if count == 0 {
                return Ok(None);
            }
            // what came is not looked at: the files say more
            let mut events = [0; 4096];
            rustix::io::read(&self.queue, &mut events).map_err(|error| self.failed(error))?;
            if self.kills.is_none() {
                return self.look();
            }
        }
    }

    fn failed(&self, error: rustix::io::Errno) -> Error {
        Error::Read {
            path: self.folder.join("memory.events"),
            source: error.into(),
        }
    }

    fn look(&mut self) -> Result<Option<OomEvent>, Error> {
        let Some(before) = self.kills else {
            // also told when the cgroup is removed
            let there = self.folder.join("cgroup.event_control").exists();
            return Ok(Some(if there { OomEvent::Oom } else { OomEvent::End }));
        };
        let kills = kills(&self.folder)?;
        if kills.is_some_and(|kills| kills > before) {
            self.kills = kills;
            return Ok(Some(OomEvent::Oom));
        }
        let events = file::read_optional(&self.folder.join("cgroup.events"))?;
        let populated = events.is_some_and(|text| text.lines().any(|line| line == "populated 1"));
        Ok((!populated).then_some(OomEvent::End))
    }
}

fn kills(folder: &Path) -> Result<Option<u64>, Error> {
    let text = file::read_optional(&folder.join("memory.events"))?;
    let line = |text: &str| {
        text.lines()
            .find_map(|line| line.strip_prefix("oom_kill ")?.parse().ok())
    };
    Ok(text.as_deref().and_then(line))
}

fn v2(folder: &Path) -> Result<OomWatch, Error> {
    let failed = |path: PathBuf, error: rustix::io::Errno| Error::Read {
        path,
        source: error.into(),
    };
    let queue =
        inotify::init(CreateFlags::CLOEXEC).map_err(|error| failed(folder.to_path_buf(), error))?;
    for name in ["memory.events", "cgroup.events"] {
        let path = folder.join(name);
        let flags = WatchFlags::MODIFY | WatchFlags::DELETE_SELF;
        inotify::add_watch(&queue, &path, flags).map_err(|error| failed(path, error))?;
    }
    Ok(OomWatch {
        queue,
        folder: folder.to_path_buf(),
        kills: Some(kills(folder)?.unwrap_or(0)),
    })
}

fn v1(folder: &Path) -> Result<OomWatch, Error> {
    let path = folder.join("memory.oom_control");
    let open = || {
        let queue = eventfd(0, EventfdFlags::CLOEXEC)?;
        Ok::<_, std::io::Error>((queue, File::open(&path)?))
    };
    let (queue, control) = open().map_err(|source| Error::Read {
        path: path.clone(),
        source,
    })?;
    let line = format!("{} {}", queue.as_raw_fd(), control.as_raw_fd());
    file::write(&folder.join("cgroup.event_control"), &line)?;
    Ok(OomWatch {
        queue,
        folder: folder.to_path_buf(),
        kills: None,
    })
}
