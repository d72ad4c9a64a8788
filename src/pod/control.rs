//! The control socket: one JSON line for a request, one or more for the answer. Both sides of it.

use std::io::{BufRead, BufReader, Read, Write};
use std::os::fd::{AsFd, OwnedFd};
use std::os::unix::net::UnixStream;
use std::path::Path;
use std::time::Duration;

use nix::sys::signalfd::SignalFd;
use rustix::event::{PollFd, PollFlags};
use serde::{Deserialize, Serialize};

use super::record::{PublishedPort, Status, Verdict};
use super::{Error, Result};
use crate::compose::project::Network;

/// Exit codes by service; `None`: nobody saw it.
pub type ExitCodes = Vec<(String, Option<i32>)>;

/// Longest request and longest line of an answer (bytes).
pub const LINE_LIMIT: u64 = 1 << 20;

/// How long a supervisor may take to answer [`Request::Ping`] and [`Request::Quit`], and to end then.
pub const QUIT: Duration = Duration::from_secs(5);

/// What the supervisor is asked to do. Empty `services`: all.
#[derive(Debug, Clone, PartialEq, Serialize, Deserialize)]
#[serde(tag = "op", rename_all = "snake_case")]
pub enum Request {
    /// Wait until the pod is up: every wanted service runs (and is healthy, when asked), or one failed.
    Up {
        /// Also wait for health checks.
        healthy: bool,
    },
    /// Start services and what they depend on; answers like [`Request::Up`].
    Start {
        /// Names.
        services: Vec<String>,
        /// As in [`Request::Up`].
        healthy: bool,
    },
    /// Stop services in reverse order of dependency; answers when they have ended.
    Stop {
        /// Names.
        services: Vec<String>,
        /// Seconds until SIGKILL instead of each service's own.
        timeout: Option<u64>,
    },
    /// Stop and start services.
    Restart {
        /// Names.
        services: Vec<String>,
        /// As in [`Request::Stop`].
        timeout: Option<u64>,
    },
    /// Send a signal to services.
    Kill {
        /// Names.
        services: Vec<String>,
        /// Signal number.
        signal: i32,
    },
    /// Wait until services have ended for good; answers their exit codes.
    Wait {
        /// Names.
        services: Vec<String>,
    },
    /// Pause the checking of services that run; their next run is checked again.
    Snooze {
        /// Names.
        services: Vec<String>,
        /// From now on; 0 ends the pause.
        seconds: u64,
    },
    /// Attach a network; its attachment has the name of the interface. What is so already is success.
    Attach {
        /// The network.
        network: Box<Network>,
    },
    /// Take an interface away; one that is not there is success.
    Detach {
        /// Its name.
        interface: String,
    },
    /// Publish a port; one that is published already is success.
    Publish {
        /// The port; the host's is chosen.
        port: PublishedPort,
    },
    /// Take a published port back; one that is not published is success.
    Unpublish {
        /// The port.
        port: PublishedPort,
    },
    /// Answer with a descriptor of the terminal or pipe that a service's standard input comes from. It does not block.
    Input {
        /// Name.
        service: String,
    },
    /// End the standard input of a service that has no terminal; what has ended already is success.
    EndInput {
        /// Name.
        service: String,
    },
    /// Answer at once.
    Ping,
    /// Tell every service's status, then each change of one, and the verdict whenever the pod has come to rest; `Done` when the
    /// pod is being removed. A client that does not keep up is cut off with `Failed`.
    Watch,
    /// End the supervisor and with it the keeper. Containers are not touched.
    Quit,
}

impl Request {
    /// The services it names.
    pub fn services(&self) -> &[String] {
        match self {
            Request::Start { services, .. }
            | Request::Stop { services, .. }
            | Request::Restart { services, .. }
            | Request::Kill { services, .. }
            | Request::Snooze { services, .. }
            | Request::Wait { services } => services,
            Request::Input { service } | Request::EndInput { service } => {
                std::slice::from_ref(service)
            }
            Request::Up { .. }
            | Request::Attach { .. }
            | Request::Detach { .. }
            | Request::Publish { .. }
            | Request::Unpublish { .. }
            | Request::Ping
            | Request::Watch
            | Request::Quit => &[],
        }
    }
}

/// A line of an answer; the last one is `Done` or `Failed`.
#[derive(Debug, Clone, PartialEq, Serialize, Deserialize)]
#[serde(tag = "kind", rename_all = "snake_case")]
pub enum Answer {
    /// Something happened meanwhile.
    Progress {
        /// Service, empty for the pod.
        service: String,
        /// What.
        text: String,
    },
    /// For `watch`: a service's status, which is on disk by now.
    Status {
        /// Its name.
        service: String,
        /// Where it is in its life.
        status: Box<Status>,
    },
    /// For `watch`: how the pod ended. Services that are started again take it back.
    Verdict {
        /// As `verdict.json` has it.
        verdict: Verdict,
    },
    /// The request was carried out.
    Done {
        /// For `wait`: exit codes by service in the order asked for.
        #[serde(default)]
        exit_codes: Vec<(String, Option<i32>)>,
    },
    /// It was not.
    Failed {
        /// Exit code for the command line.
        code: u8,
        /// Complete text.
        message: String,
        /// The service that failed, where it is one.
        #[serde(default, skip_serializing_if = "Option::is_none")]
        service: Option<String>,
    },
}

impl Answer {
    /// A refusal.
    pub fn failed(message: impl Into<String>) -> Answer {
        Answer::Failed {
            code: 1,
            message: message.into(),
            service: None,
        }
    }

    /// How it ended, when this is the last line; otherwise the line.
    pub fn ended(self) -> std::result::Result<Result<ExitCodes>, Answer> {
        match self {
            Answer::Done { exit_codes } => Ok(Ok(exit_codes)),
            Answer::Failed {
                code,
                message,
                service,
            } => Ok(Err(Error::Start {
                code,
                message,
                service,
            })),
            other => Err(other),
        }
    }
}

/// Asks a supervisor; `progress` sees every line but the last. `Ok(None)`: the connection ended without an answer.
pub fn ask(
    socket: &Path,
    request: &Request,
    progress: impl FnMut(&str, &str),
) -> Result<Option<ExitCodes>> {
    ask_unless(socket, request, None, progress)
}

/// As [`ask`], until one of the signals comes: [`Error::Interrupted`].
pub fn ask_unless(
    socket: &Path,
    request: &Request,
    signals: Option<&SignalFd>,
    mut progress: impl FnMut(&str, &str),
) -> Result<Option<ExitCodes>> {
    let mut stream = UnixStream::connect(socket).map_err(Error::io("connect to", socket))?;
    stream
        .set_write_timeout(Some(Duration::from_secs(10)))
        .map_err(Error::io("connect to", socket))?;
    let mut line = serde_json::to_vec(request).map_err(|source| Error::Record {
        path: socket.to_path_buf(),
        source,
    })?;
    line.push(b'\n');
    stream
        .write_all(&line)
        .map_err(Error::io("write to", socket))?;
    // a supervisor that is stopped or stuck is killed by who asks it to end
    let limit = matches!(request, Request::Quit | Request::Ping).then_some(QUIT);
    stream
        .set_read_timeout(limit)
        .map_err(Error::io("connect to", socket))?;
    let mut reader = BufReader::new(stream);
    loop {
        if let Some(signals) = signals
            && reader.buffer().is_empty()
        {
            interrupted(reader.get_ref(), signals, socket)?;
        }
        let mut line = String::new();
        match reader.read_line(&mut line) {
            Ok(0) => return Ok(None),
            Ok(_) => {}
            Err(error) if error.kind() == std::io::ErrorKind::ConnectionReset => return Ok(None),
            Err(error) => return Err(Error::io("read from", socket)(error)),
        }
        let answer: Answer = serde_json::from_str(&line).map_err(|source| Error::Record {
            path: socket.to_path_buf(),
            source,
        })?;
        match answer.ended() {
            Ok(ended) => return ended.map(Some),
            Err(Answer::Progress { service, text }) => progress(&service, &text),
            Err(_) => {
                return Err(Error::Other(format!(
                    "{}: an answer that was not asked for: {line}",
                    socket.display()
                )));
            }
        }
    }
}

/// Asks for [`Request::Input`]. `Ok(None)`: the connection ended without an answer.
pub fn input(socket: &Path, service: &str) -> Result<Option<OwnedFd>> {
    let failed = || Error::io("ask for the input of a service at", socket);
    let mut stream = UnixStream::connect(socket).map_err(failed())?;
    let limit = Some(Duration::from_secs(10));
    stream
        .set_write_timeout(limit)
        .and_then(|()| stream.set_read_timeout(limit))
        .map_err(failed())?;
    let request = Request::Input {
        service: service.to_string(),
    };
    let unreadable = |source| Error::Record {
        path: socket.to_path_buf(),
        source,
    };
    let mut line = serde_json::to_vec(&request).map_err(unreadable)?;
    line.push(b'\n');
    stream.write_all(&line).map_err(failed())?;
    let (line, fd) = crate::sys::socket::receive(&stream).map_err(failed())?;
    if line.is_empty() {
        return Ok(None);
    }
    let rest = std::io::Cursor::new(line).chain(stream).take(LINE_LIMIT);
    let mut line = String::new();
    BufReader::new(rest)
        .read_line(&mut line)
        .map_err(failed())?;
    let answer: Answer = serde_json::from_str(&line).map_err(unreadable)?;
    match (answer.ended(), fd) {
        (Ok(Ok(_)), Some(fd)) => Ok(Some(fd)),
        (Ok(Err(error)), _) => Err(error),
        _ => Err(Error::Other(format!(
            "{}: an answer that was not asked for: {line}",
            socket.display()
        ))),
    }
}

/// Waits for an answer; a signal that comes first is an error.
fn interrupted(stream: &UnixStream, signals: &SignalFd, socket: &Path) -> Result<()> {
    let signals_fd = signals.as_fd();
    let mut fds = [
        PollFd::new(stream, PollFlags::IN),
        PollFd::new(&signals_fd, PollFlags::IN),
    ];
    match rustix::event::poll(&mut fds, None) {
        Ok(_) | Err(rustix::io::Errno::INTR) => {}
        Err(error) => return Err(Error::io("wait for", socket)(error.into())),
    }
    match signals.read_signal() {
        Ok(Some(signal)) => Err(Error::Interrupted {
            signal: signal.ssi_signo as i32,
        }),
        Ok(None) => Ok(()),
        Err(errno) => Err(Error::io("wait for", socket)(errno.into())),
    }
}
