//! Running one check: a program in the container, a request, a connection.
//!
//! ```text
//! command   a short process of ours enters the container and runs the program
//! http      a GET over a socket of the pod's namespace, redirects followed
//! tls       the encryption under it, without trust
//! ```
//!
//! Requests and connections need neither process nor thread: a socket belongs to the namespace that it was made in, and
//! what follows is the event loop's. *Invariants:* a check ends within its limit; what a service answers is bounded, and no
//! octets of it end the supervisor.

mod command;
mod http;
mod tls;

use std::io;
use std::net::{IpAddr, SocketAddr};
use std::path::PathBuf;
use std::time::Duration;

use tokio::net::{TcpSocket, TcpStream};

pub use self::command::TIMED_OUT;
pub(super) use self::command::hook;
use self::tls::Tls;
use super::super::record::Measured;
use super::Context;
use super::machine::Tested;
use crate::compose::project::{Check, CheckTest, TcpTest};
use crate::network::netns;

/// Most bytes of output or answer that are kept.
const MESSAGE: usize = 1024;

/// What probes share.
#[derive(Default)]
pub struct Probes {
    tls: Tls,
}

/// Runs a check once.
pub(super) async fn run(context: &Context, service: &str, check: &Check) -> Tested {
    let within = async {
        match &check.test {
            // its own process keeps the time: it must also end what it started
            CheckTest::Command(test) => command::run(context, service, test, check.timeout).await,
            CheckTest::Http(test) => {
                let place = Place::of(context);
                limited(check, http::get(&place, &context.probes.tls, test)).await
            }
            CheckTest::Tcp(test) => limited(check, connect_only(&Place::of(context), test)).await,
        }
    };
    let mut tested = within.await;
    tested.message = clean(&tested.message);
    tested
}

/// With the check's limit.
async fn limited(check: &Check, test: impl Future<Output = Tested>) -> Tested {
    if check.timeout.is_zero() {
        return test.await;
    }
    match tokio::time::timeout(check.timeout, test).await {
        Ok(tested) => tested,
        Err(_) => Tested {
            ran: true,
            passed: false,
            measured: Measured::nothing(&check.test),
            message: late(check.timeout),
        },
    }
}

fn late(limit: Duration) -> String {
    format!("no answer within {limit:?}")
}

/// Where sockets are made.
struct Place {
    /// Namespace; the supervisor's own when not given.
    netns: Option<PathBuf>,
}

impl Place {
    fn of(context: &Context) -> Place {
        let own = !context.pod.project.on_host();
        Place {
            netns: own.then(|| context.dir.netns()),
        }
    }

    async fn connect(&self, host: IpAddr, port: u16) -> Result<TcpStream, Unconnected> {
        let make = || match host {
            IpAddr::V4(_) => TcpSocket::new_v4(),
            IpAddr::V6(_) => TcpSocket::new_v6(),
        };
        let socket = match &self.netns {
            None => make(),
            Some(path) => netns::with(path, make).unwrap_or_else(|e| Err(io::Error::other(e))),
        };
        let address = SocketAddr::new(host, port);
        let socket = socket.map_err(|error| Unconnected::NoSocket(error.to_string()))?;
        let stream = socket.connect(address).await;
        stream.map_err(|error| Unconnected::Refused(format!("connect to {address}: {error}")))
    }
}

/// Why there is no connection.
enum Unconnected {
    /// Our trouble.
    NoSocket(String),
    /// The service's.
    Refused(String),
}

async fn connect_only(place: &Place, test: &TcpTest) -> Tested {
    let (ran, succeeded, message) = match place.connect(test.host, test.port).await {
        Ok(_) => (true, Some(true), String::new()),
        Err(Unconnected::Refused(message)) => (true, Some(false), message),
        Err(Unconnected::NoSocket(message)) => (false, None, message),
    };
    Tested {
        ran,
        passed: succeeded == Some(true),
        measured: Measured::Tcp { succeeded },
        message,
    }
}

/// The end of a text, as one that may be shown: without control characters, bounded.
fn clean(text: &str) -> String {
    let text = text.trim();
    let begin = text.len().saturating_sub(MESSAGE);
    let begin = (begin..=text.len()).find(|at| text.is_char_boundary(*at));
    let end = begin.and_then(|at| text.get(at..)).unwrap_or_default();
    let plain = |c: char| match c {
        '\n' | '\t' => c,
        c if c.is_control() => ' ',
        c => c,
    };
    end.chars().map(plain).collect()
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn a_message_is_the_end_of_what_was_said() {
        let long = "é".repeat(MESSAGE);
        for (text, wanted) in [
            ("", ""),
            (" a\nb\t\u{1b}[0m\r\n", "a\nb\t [0m"),
            (&long, &long[MESSAGE..]),
            (&format!("x{long}"), &long[MESSAGE..]),
        ] {
            assert_eq!(clean(text), wanted);
        }
    }
}
