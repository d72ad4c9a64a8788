//! The API of an executor: `exec`, `attach`, `logs` and `ps` of its tasks over HTTP, as an agent's operator API has it.
//!
//! ```text
//! executor ── holds the listening sockets, and does nothing until somebody connects
//!   └ sampan internal remote    takes connections; ends after a minute without any
//!       └ sampan exec, logs, ps one for each request
//! ```
//!
//! *Invariants:* the executor has nothing of it in memory but two descriptors, and whatever a client does ends another process at most; only
//! the executor's own tasks can be reached; without a token in the file nothing can be reached over TCP, and nothing without TLS.
//!
//! Leaves to others: tasks, pods, how a program is run in one ([`crate::cli`], [`crate::pod`]).

pub mod access;
mod attach;
mod connections;
pub mod order;
mod serve;
mod session;
pub mod stream;

use std::net::{SocketAddr, TcpListener};
use std::os::fd::{AsFd, OwnedFd};
use std::os::unix::fs::PermissionsExt;
use std::os::unix::net::UnixListener;
use std::path::{Path, PathBuf};
use std::process::Stdio;
use std::time::{Duration, Instant};

use rustix::event::{PollFd, PollFlags, Timespec};
use tokio::io::unix::AsyncFd;
use tokio::process::Command;

use crate::pod::layout::Folders;
use crate::pod::record::ProcessId;
use crate::pod::{Error, Result};
use crate::sys::watch::watch;

pub use serve::{Server, serve};
pub use session::{GONE, RELAY, SESSION_ENV};

/// Name of the socket in the executor's folder.
pub const SOCKET: &str = "api.sock";
/// The step of `sampan internal` that answers.
pub const STEP: &str = "remote";
/// Pause after a process that could not do its work.
const PAUSE: Duration = Duration::from_secs(1);
/// How long an address may still be an earlier process's.
const BIND_WAIT: Duration = Duration::from_secs(5);

/// The way in from other machines.
#[derive(Debug, Clone, PartialEq, Eq)]
pub struct Listen {
    /// Where.
    pub address: SocketAddr,
    /// Certificates of the server, PEM.
    pub tls_cert: PathBuf,
    /// Its key, PEM.
    pub tls_key: PathBuf,
    /// See [`access`].
    pub tokens: PathBuf,
}

/// The sockets of an executor.
#[derive(Debug)]
pub struct Doors {
    unix: OwnedFd,
    tcp: Option<OwnedFd>,
    listen: Option<Listen>,
    folders: Folders,
    owner: ProcessId,
}

impl Doors {
    /// Opens them: `api.sock` in `folder`, for its owner alone, and the address that was asked for. The files of `listen` are checked here,
    /// so that a mistake is told at the start. May wait some seconds for an address of an earlier process to be free.
    pub fn open(
        folder: &Path,
        folders: &Folders,
        owner: ProcessId,
        listen: Option<Listen>,
    ) -> Result<Doors> {
        let path = folder.join(SOCKET);
        match std::fs::remove_file(&path) {
            Err(error) if error.kind() != std::io::ErrorKind::NotFound => {
                return Err(Error::io("remove", &path)(error));
            }
            _ => {}
        }
        let unix = UnixListener::bind(&path).map_err(Error::io("listen on", &path))?;
        std::fs::set_permissions(&path, std::fs::Permissions::from_mode(0o600))
            .map_err(Error::io("protect", &path))?;
        let (mut tcp, mut listen) = (None, listen);
        if let Some(listen) = &mut listen {
            access::read(&listen.tokens).map_err(Error::Other)?;
            connections::acceptor(listen).map_err(Error::Other)?;
            let listener = bind(listen.address)?;
            let address = listener.local_addr();
            listen.address = address.map_err(|error| Error::Other(format!("listen: {error}")))?;
            tcp = Some(listener.into());
        }
        Ok(Doors {
            unix: unix.into(),
            tcp,
            listen,
            folders: folders.clone(),
            owner,
        })
    }

    /// Where others come in: with the port that was found for port 0.
    pub fn address(&self) -> Option<SocketAddr> {
        self.listen.as_ref().map(|listen| listen.address)
    }

    /// Starts a process that answers whenever somebody is at the door. Ends only with an error; what it says along the way goes to `log`.
    pub async fn attend(self, log: impl Fn(&str)) -> Result<()> {
        let failed = || Error::io("attend", &self.folders.state);
        let watched = |fd: &OwnedFd| watch(fd.try_clone()?);
        let unix = watched(&self.unix).map_err(failed())?;
        let tcp = self.tcp.as_ref().map(watched).transpose();
        let tcp = tcp.map_err(failed())?;
        loop {
            tokio::select! {
                it = knock(&unix) => it.map_err(failed())?,
                it = async {
                    match &tcp {
                        Some(tcp) => knock(tcp).await,
                        None => std::future::pending().await,
                    }
                } => it.map_err(failed())?,
            }
            let ended = match self.answer() {
                Ok(mut child) => child.wait().await,
                Err(error) => Err(error),
            };
            let why = match ended {
                Ok(status) if status.success() => continue,
                Ok(status) => status.to_string(),
                Err(error) => error.to_string(),
            };
            log(&format!("the process that answers on {SOCKET}: {why}"));
            tokio::time::sleep(PAUSE).await;
        }
    }

    fn answer(&self) -> std::io::Result<tokio::process::Child> {
        let mut command = Command::new("/proc/self/exe");
        command
            .args(["internal", STEP])
            .arg(&self.folders.root)
            .arg(&self.folders.state)
            .arg(self.owner.pid.to_string())
            .arg(self.owner.start_time.to_string());
        if let Some(listen) = &self.listen {
            command.arg(listen.address.to_string()).args([
                &listen.tls_cert,
                &listen.tls_key,
                &listen.tokens,
            ]);
        }
        command
            .env_clear()
            .current_dir("/")
            .stdin(Stdio::from(self.unix.try_clone()?))
            .stdout(match &self.tcp {
                Some(tcp) => Stdio::from(tcp.try_clone()?),
                None => Stdio::null(),
            })
            .kill_on_drop(true)
            .spawn()
    }
}

fn bind(address: SocketAddr) -> Result<TcpListener> {
    let end = Instant::now() + BIND_WAIT;
    loop {
        match TcpListener::bind(address) {
            Ok(listener) => return Ok(listener),
            // what answers for an executor that was killed ends with it, but not before it
            Err(error) if error.kind() == std::io::ErrorKind::AddrInUse && Instant::now() < end => {
                std::thread::sleep(Duration::from_millis(50));
            }
            Err(error) => return Err(Error::Other(format!("listen on {address}: {error}"))),
        }
    }
}

/// Waits until somebody waits to be let in.
async fn knock(listener: &AsyncFd<OwnedFd>) -> std::io::Result<()> {
    loop {
        let now = Timespec {
            tv_sec: 0,
            tv_nsec: 0,
        };
        let mut fds = [PollFd::from_borrowed_fd(
            listener.get_ref().as_fd(),
            PollFlags::IN,
        )];
        // before the wait: one whom no process has let in is told of once. And one whom a process has let in leaves a trace there
        if rustix::event::poll(&mut fds, Some(&now))? > 0 {
            return Ok(());
        }
        listener.readable().await?.clear_ready();
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[tokio::test]
    async fn who_waits_is_heard_until_let_in() {
        let folder = tempfile::tempdir().unwrap();
        let path = folder.path().join("socket");
        let listener = UnixListener::bind(&path).unwrap();
        let watched = watch(listener.try_clone().unwrap().into()).unwrap();
        let _waits = std::os::unix::net::UnixStream::connect(&path).unwrap();
        let heard = || tokio::time::timeout(Duration::from_secs(60), knock(&watched));
        for _ in 0..2 {
            heard().await.expect("is heard").unwrap();
        }
        listener.accept().unwrap();
        let silent = tokio::time::timeout(Duration::ZERO, knock(&watched)).await;
        assert!(silent.is_err());
    }
}
