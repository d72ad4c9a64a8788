//! What a command in the foreground tells the service manager that started it: the protocol of sd_notify(3).
//!
//! *Invariants:* without `NOTIFY_SOCKET` nothing is said and nothing differs; a message is one datagram of whole lines; the watchdog
//! is fed only while the pod's supervisor answers. The variables are ours alone: keepers do not inherit them
//! ([`SERVICE_MANAGER`](crate::pod::adopt::SERVICE_MANAGER)).

use std::ffi::{OsStr, OsString};
use std::os::linux::net::SocketAddrExt;
use std::os::unix::ffi::OsStrExt;
use std::os::unix::net::{SocketAddr, UnixDatagram};
use std::time::Duration;

use anyhow::{Context, bail};
use nix::sys::signal::{SigSet, Signal};
use rustix::time::{ClockId, clock_gettime};

use super::output;

/// Longest text of a status (bytes).
const STATUS_MOST: usize = 1024;

/// What there is to say.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub enum Message<'a> {
    /// Up, and healthy where that was to be waited for; the process that is to be watched.
    Ready {
        /// It goes on as long as the service does.
        main: i32,
    },
    /// A line for people.
    Status(&'a str),
    /// Asked to end, or ending by itself.
    Stopping,
    /// Reads its files again; `Ready` follows.
    Reloading {
        /// CLOCK_MONOTONIC in microseconds.
        at: u64,
    },
    /// Still alive.
    Watchdog,
}

impl Message<'_> {
    fn text(self) -> String {
        match self {
            Message::Ready { main } => format!("READY=1\nMAINPID={main}\n"),
            Message::Status(text) => format!("STATUS={}\n", one_line(text)),
            Message::Stopping => "STOPPING=1\n".to_owned(),
            Message::Reloading { at } => format!("RELOADING=1\nMONOTONIC_USEC={at}\n"),
            Message::Watchdog => "WATCHDOG=1\n".to_owned(),
        }
    }

    /// Told now.
    pub fn reloading() -> Message<'static> {
        let now = clock_gettime(ClockId::Monotonic);
        let seconds = u64::try_from(now.tv_sec).unwrap_or(0);
        let nanoseconds = u64::try_from(now.tv_nsec).unwrap_or(0);
        Message::Reloading {
            at: seconds * 1_000_000 + nanoseconds / 1000,
        }
    }
}

/// A line feed would begin a message of its own.
fn one_line(text: &str) -> String {
    let mut line: String = text
        .trim()
        .chars()
        .map(|c| if c.is_control() { ' ' } else { c })
        .collect();
    let mut end = STATUS_MOST.min(line.len());
    while !line.is_char_boundary(end) {
        end -= 1;
    }
    line.truncate(end);
    line
}

/// How the environment says that a manager listens.
#[derive(Debug, Clone, PartialEq, Eq)]
struct Meant {
    socket: OsString,
    /// How often it wants to hear from us at the latest.
    watchdog: Option<Duration>,
}

/// Reads what a manager tells. `pid`: our own.
fn meant(variable: impl Fn(&str) -> Option<OsString>, pid: u32) -> anyhow::Result<Option<Meant>> {
    let Some(socket) = variable("NOTIFY_SOCKET").filter(|path| !path.is_empty()) else {
        return Ok(None);
    };
    let number = |name: &str| match variable(name) {
        None => Ok(None),
        Some(text) => text
            .to_str()
            .and_then(|text| text.parse::<u64>().ok())
            .map(Some)
            .with_context(|| format!("environment: {name}={}: must be a number", text.display())),
    };
    // sd_watchdog_enabled(3): for another process when it names one
    let ours = number("WATCHDOG_PID")?.is_none_or(|meant| meant == u64::from(pid));
    let watchdog = number("WATCHDOG_USEC")?
        .filter(|time| *time > 0 && ours)
        .map(Duration::from_micros);
    Ok(Some(Meant { socket, watchdog }))
}

/// The address in `NOTIFY_SOCKET`: a path, or `@` and an abstract name.
fn address(socket: &OsStr) -> anyhow::Result<SocketAddr> {
    let shown = socket.display();
    let made = match socket.as_bytes() {
        [b'/', ..] => SocketAddr::from_pathname(socket),
        [b'@', name @ ..] => SocketAddr::from_abstract_name(name),
        _ => bail!("environment: NOTIFY_SOCKET={shown}: must begin with / or @"),
    };
    made.with_context(|| format!("environment: NOTIFY_SOCKET={shown}"))
}

/// The service manager, where there is one.
#[derive(Debug)]
pub struct Manager(Option<Listening>);

#[derive(Debug)]
struct Listening {
    socket: UnixDatagram,
    watchdog: Option<Duration>,
}

impl Manager {
    /// Whoever the environment names. From now on SIGHUP is blocked, and means that files are to be read again.
    pub fn from_environment() -> anyhow::Result<Manager> {
        let Some(meant) = meant(|name| std::env::var_os(name), std::process::id())? else {
            return Ok(Manager(None));
        };
        let socket = UnixDatagram::unbound().context("service manager: make a socket")?;
        let shown = || format!("service manager: connect to {}", meant.socket.display());
        socket
            .connect_addr(&address(&meant.socket)?)
            .with_context(shown)?;
        let mut reload = SigSet::empty();
        reload.add(Signal::SIGHUP);
        reload
            .thread_block()
            .context("service manager: block SIGHUP")?;
        let watchdog = meant.watchdog;
        Ok(Manager(Some(Listening { socket, watchdog })))
    }

    /// Somebody listens.
    pub fn listens(&self) -> bool {
        self.0.is_some()
    }

    /// Tells it; what cannot be told is a warning, since the pod is up whoever knows.
    pub fn tell(&self, messages: &[Message<'_>]) {
        if let Some(listening) = &self.0 {
            send(&listening.socket, messages);
        }
    }

    /// Feeds the watchdog from a thread for as long as the process lives, twice in each of its periods, whenever `answers`.
    pub fn watch(&self, answers: impl Fn() -> bool + Send + 'static) -> anyhow::Result<()> {
        let Some((listening, period)) = self
            .0
            .as_ref()
            .and_then(|listening| Some((listening, listening.watchdog?)))
        else {
            return Ok(());
        };
        let socket = listening
            .socket
            .try_clone()
            .context("service manager: copy the socket")?;
        std::thread::spawn(move || {
            loop {
                if answers() {
                    send(&socket, &[Message::Watchdog]);
                }
                std::thread::sleep(period / 2);
            }
        });
        Ok(())
    }
}

fn send(socket: &UnixDatagram, messages: &[Message<'_>]) {
    let text: String = messages.iter().map(|message| message.text()).collect();
    if let Err(error) = socket.send(text.as_bytes()) {
        output::warning(&format!("tell the service manager: {error}"));
    }
}

#[cfg(test)]
mod tests {
    use std::os::unix::ffi::OsStringExt;

    use super::*;

    #[test]
    fn messages() {
        for (message, text) in [
            (Message::Ready { main: 7 }, "READY=1\nMAINPID=7\n"),
            (Message::Status("a\nb\tc \n"), "STATUS=a b c\n"),
            (Message::Stopping, "STOPPING=1\n"),
            (
                Message::Reloading { at: 5 },
                "RELOADING=1\nMONOTONIC_USEC=5\n",
            ),
            (Message::Watchdog, "WATCHDOG=1\n"),
        ] {
            assert_eq!(message.text(), text);
        }
        let long = "ä".repeat(STATUS_MOST);
        assert_eq!(one_line(&long).len(), STATUS_MOST);
        assert_eq!(one_line(&format!("a{long}")).len(), STATUS_MOST - 1);
    }

    #[test]
    fn environments() {
        let second = Some(Duration::from_secs(1));
        for (variables, expected) in [
            (&[][..], Ok(None)),
            (&[("NOTIFY_SOCKET", "")], Ok(None)),
            (&[("WATCHDOG_USEC", "1000000")], Ok(None)),
            (&[("NOTIFY_SOCKET", "/s")], Ok(Some(None))),
            (
                &[("NOTIFY_SOCKET", "/s"), ("WATCHDOG_USEC", "1000000")],
                Ok(Some(second)),
            ),
            (
                &[("NOTIFY_SOCKET", "/s"), ("WATCHDOG_USEC", "0")],
                Ok(Some(None)),
            ),
            (
                &[
                    ("NOTIFY_SOCKET", "/s"),
                    ("WATCHDOG_USEC", "1000000"),
                    ("WATCHDOG_PID", "7"),
                ],
                Ok(Some(second)),
            ),
            (
                &[
                    ("NOTIFY_SOCKET", "/s"),
                    ("WATCHDOG_USEC", "1000000"),
                    ("WATCHDOG_PID", "8"),
                ],
                Ok(Some(None)),
            ),
            (
                &[("NOTIFY_SOCKET", "/s"), ("WATCHDOG_USEC", "soon")],
                Err("environment: WATCHDOG_USEC=soon: must be a number"),
            ),
        ] {
            let variable = |name: &str| {
                let found = variables.iter().find(|(key, _)| *key == name);
                found.map(|(_, value)| OsString::from_vec(value.as_bytes().to_vec()))
            };
            let found = meant(variable, 7)
                .map(|meant| meant.map(|meant| meant.watchdog))
                .map_err(|error| error.to_string());
            assert_eq!(found, expected.map_err(str::to_owned), "{variables:?}");
        }
    }

    #[test]
    fn addresses() {
        let path = address(OsStr::new("/run/notify")).unwrap();
        assert_eq!(path.as_pathname().unwrap().to_str(), Some("/run/notify"));
        let name = address(OsStr::new("@notify")).unwrap();
        assert_eq!(name.as_abstract_name(), Some(&b"notify"[..]));
        assert_eq!(
            address(OsStr::new("vsock:2:1")).unwrap_err().to_string(),
            "environment: NOTIFY_SOCKET=vsock:2:1: must begin with / or @"
        );
    }
}
