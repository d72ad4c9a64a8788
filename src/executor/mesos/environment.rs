//! The environment that an agent gives its executor.
//!
//! Owns the meaning of `MESOS_*`, of libprocess' TLS variables, and of durations as text.
//!
//! *Invariants:* read once, from a table, so that nothing else looks at the process's variables; every variable that is missing
//! or wrong is named in one error; the token is never shown.
//!
//! Leaves to others: removing the token from the process ([`crate::sys::process::take_variable`]), variables of tasks.

use std::collections::BTreeMap;
use std::fmt;
use std::path::PathBuf;
use std::time::Duration;

/// The name of the variable with the token.
pub const TOKEN: &str = "MESOS_EXECUTOR_AUTHENTICATION_TOKEN";

/// What an executor is told by the agent that starts it.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct Environment {
    /// For every call.
    pub framework_id: String,
    /// For every call.
    pub executor_id: String,
    /// The agent's id, not that of its process.
    pub agent_id: String,
    /// `slave(1)`: first part of the path of the agent's API.
    pub process: String,
    /// Host and port of the agent.
    pub endpoint: Endpoint,
    /// The agent's socket, which is preferred where there is one.
    pub domain_socket: Option<PathBuf>,
    /// The executor's folder, as it sees it.
    pub sandbox: PathBuf,
    /// Whether tasks outlive the connection, and how long.
    pub recovery: Option<Recovery>,
    /// How long the agent waits after SHUTDOWN.
    pub shutdown_grace: Duration,
    /// For the header `Authorization`.
    pub token: Option<Token>,
    /// Where the agent speaks TLS.
    pub tls: Option<Tls>,
}

/// The times of a framework with checkpoints.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub struct Recovery {
    /// From the first break to the end of all tasks.
    pub timeout: Duration,
    /// Longest pause between two attempts to connect.
    pub backoff_max: Duration,
}

/// A host, as an address without brackets or as a name, and a port.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct Endpoint {
    /// IPv4 or IPv6 address, or a name.
    pub host: String,
    /// TCP port.
    pub port: u16,
}

/// The agent's token for this executor. Not shown.
#[derive(Clone, PartialEq, Eq)]
pub struct Token(String);

/// How the agent is recognised, and we by it.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct Tls {
    /// Authorities of the agent's certificate, PEM.
    pub ca_file: PathBuf,
    /// Our own certificate and its key, PEM.
    pub identity: Option<(PathBuf, PathBuf)>,
    /// The name that the agent's certificate has, when that is not the host of the endpoint.
    pub name: Option<String>,
}

/// All that is wrong with the environment.
#[derive(Debug, thiserror::Error, PartialEq, Eq)]
#[error("the environment is not that of a Mesos executor: {}; only an agent can start this command", .0.join(", "))]
pub struct Unusable(Vec<String>);

impl Token {
    /// The text of it.
    pub fn reveal(&self) -> &str {
        &self.0
    }
}

impl fmt::Debug for Token {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        f.write_str("Token(…)")
    }
}

impl fmt::Display for Endpoint {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        if self.host.contains(':') {
            return write!(f, "[{}]:{}", self.host, self.port);
        }
        write!(f, "{}:{}", self.host, self.port)
    }
}

impl Endpoint {
    /// `HOST:PORT`, an IPv6 address in brackets. The host has nothing that could change a URL or a header.
    pub fn parse(text: &str) -> Option<Endpoint> {
        let (host, port) = text.rsplit_once(':')?;
        let inside = host.strip_prefix('[').and_then(|it| it.strip_suffix(']'));
        let good = match inside {
            Some(address) => address.parse::<std::net::Ipv6Addr>().is_ok(),
            None => {
                let letter = |byte: u8| byte.is_ascii_alphanumeric() || b"-._".contains(&byte);
                !host.is_empty() && host.len() < 256 && host.bytes().all(letter)
            }
        };
        let port = port
            .bytes()
            .all(|byte| byte.is_ascii_digit())
            .then_some(port)?;
        let port = port.parse().ok().filter(|port| *port != 0)?;
        let host = inside.unwrap_or(host).to_owned();
        good.then_some(Endpoint { host, port })
    }
}

/// Duration text of Mesos: `5secs`, `1.5mins`. `None` when it is none, or beyond what can be counted.
pub fn duration(text: &str) -> Option<Duration> {
    let unit = text.find(|char: char| !char.is_ascii_digit() && char != '.')?;
    let (number, unit) = text.split_at(unit);
    let seconds = match unit {
        "ns" => 1e-9,
        "us" => 1e-6,
        "ms" => 1e-3,
        "secs" => 1.0,
        "mins" => 60.0,
        "hrs" => 3600.0,
        "days" => 86_400.0,
        "weeks" => 604_800.0,
        _ => return None,
    };
    let number: f64 = number.parse().ok()?;
    Duration::try_from_secs_f64(number * seconds).ok()
}

/// Reads variables and notes what is wrong.
struct Reader<'a> {
    variables: &'a BTreeMap<String, String>,
    wrong: Vec<String>,
}

impl Reader<'_> {
    /// Empty is as good as absent.
    fn optional(&self, name: &str) -> Option<String> {
        self.variables
            .get(name)
            .filter(|value| !value.is_empty())
            .cloned()
    }

    fn required(&mut self, name: &str) -> String {
        self.optional(name).unwrap_or_else(|| {
            self.wrong.push(format!("{name} is missing"));
            String::new()
        })
    }

    /// What `parse` makes of a variable that may be missing.
    fn parsed<T>(
        &mut self,
        name: &str,
        what: &str,
        parse: impl Fn(&str) -> Option<T>,
    ) -> Option<T> {
        let text = self.optional(name)?;
        let parsed = parse(&text);
        if parsed.is_none() {
            self.wrong
                .push(format!("{name} is {text:?}, which is no {what}"));
        }
        parsed
    }

    fn duration(&mut self, name: &str, usual: Duration) -> Duration {
        self.parsed(name, "duration", duration).unwrap_or(usual)
    }

    fn flag(&mut self, name: &str) -> bool {
        let parse = |text: &str| match text {
            "1" | "true" => Some(true),
            "0" | "false" => Some(false),
            _ => None,
        };
        self.parsed(name, "yes (1) or no (0)", parse)
            .unwrap_or(false)
    }

    fn recovery(&mut self) -> Option<Recovery> {
        self.flag("MESOS_CHECKPOINT").then(|| Recovery {
            timeout: self.duration("MESOS_RECOVERY_TIMEOUT", Duration::from_secs(15 * 60)),
            backoff_max: self.duration("MESOS_SUBSCRIPTION_BACKOFF_MAX", Duration::from_secs(2)),
        })
    }

    /// The endpoint, for which the process's own address does as well, and the process.
    fn agent(&mut self) -> (Endpoint, String) {
        let pid = self.required("MESOS_SLAVE_PID");
        let (process, address) = pid.rsplit_once('@').unwrap_or_default();
        let letter = |byte: u8| byte.is_ascii_alphanumeric() || b"()-._~".contains(&byte);
        let endpoint = match self.optional("MESOS_AGENT_ENDPOINT") {
            Some(_) => self.parsed("MESOS_AGENT_ENDPOINT", "HOST:PORT", Endpoint::parse),
            None => Endpoint::parse(address),
        };
        let good = !process.is_empty() && process.bytes().all(letter);
        if !pid.is_empty() && (!good || Endpoint::parse(address).is_none()) {
            let text = format!("MESOS_SLAVE_PID is {pid:?}, which is no ID@HOST:PORT");
            self.wrong.push(text);
        }
        let nowhere = Endpoint {
            host: String::new(),
            port: 0,
        };
        (endpoint.unwrap_or(nowhere), process.to_owned())
    }

    fn tls(&mut self) -> Option<Tls> {
        if !self.flag("LIBPROCESS_SSL_ENABLED") {
            return None;
        }
        let certificate = self.optional("LIBPROCESS_SSL_CERT_FILE");
        let key = self.optional("LIBPROCESS_SSL_KEY_FILE");
        if certificate.is_some() != key.is_some() {
            let text =
                "LIBPROCESS_SSL_CERT_FILE and LIBPROCESS_SSL_KEY_FILE come together or not at all";
            self.wrong.push(text.to_owned());
        }
        let Some(ca_file) = self.optional("LIBPROCESS_SSL_CA_FILE") else {
            let text = "LIBPROCESS_SSL_ENABLED without LIBPROCESS_SSL_CA_FILE, the authority of the agent's certificate";
            self.wrong.push(text.to_owned());
            return None;
        };
        Some(Tls {
            ca_file: ca_file.into(),
            identity: certificate.map(PathBuf::from).zip(key.map(PathBuf::from)),
            name: self.optional("SAMPAN_MESOS_AGENT_NAME"),
        })
    }
}

impl Environment {
    /// Reads the variables; the token comes beside them, because it is taken from the process first.
    pub fn read(
        variables: &BTreeMap<String, String>,
        token: Option<String>,
    ) -> Result<Environment, Unusable> {
        let mut reader = Reader {
            variables,
            wrong: Vec::new(),
        };
        let (endpoint, process) = reader.agent();
        let sandbox = match reader.optional("MESOS_SANDBOX") {
            Some(sandbox) => sandbox,
            None => reader
                .optional("MESOS_DIRECTORY")
                .unwrap_or_else(|| reader.required("MESOS_SANDBOX")),
        };
        let token = token.filter(|token| !token.is_empty()).map(Token);
        // it goes into a header
        if token
            .as_ref()
            .is_some_and(|token| !token.0.bytes().all(|byte| byte.is_ascii_graphic()))
        {
            reader.wrong.push(format!("{TOKEN} is no token"));
        }
        let environment = Environment {
            framework_id: reader.required("MESOS_FRAMEWORK_ID"),
            executor_id: reader.required("MESOS_EXECUTOR_ID"),
            agent_id: reader.required("MESOS_SLAVE_ID"),
            process,
            endpoint,
            domain_socket: reader.optional("MESOS_DOMAIN_SOCKET").map(PathBuf::from),
            sandbox: sandbox.into(),
            recovery: reader.recovery(),
            shutdown_grace: reader.duration(
                "MESOS_EXECUTOR_SHUTDOWN_GRACE_PERIOD",
                Duration::from_secs(5),
            ),
            token,
            tls: reader.tls(),
        };
        match reader.wrong {
            wrong if wrong.is_empty() => Ok(environment),
            wrong => Err(Unusable(wrong)),
        }
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    /// What a running agent gave.
    const RECORDED: &[(&str, &str)] = &[
        ("LIBPROCESS_IP", "127.0.0.1"),
        ("LIBPROCESS_PORT", "0"),
        ("MESOS_AGENT_ENDPOINT", "127.0.0.1:5051"),
        ("MESOS_CHECKPOINT", "1"),
        (
            "MESOS_DIRECTORY",
            "/var/lib/mesos/slaves/S0/frameworks/0000/executors/exec-1/runs/1",
        ),
        ("MESOS_EXECUTOR_ID", "exec-1"),
        ("MESOS_EXECUTOR_SHUTDOWN_GRACE_PERIOD", "5secs"),
        ("MESOS_FRAMEWORK_ID", "0000"),
        ("MESOS_HTTP_COMMAND_EXECUTOR", "0"),
        ("MESOS_RECOVERY_TIMEOUT", "15mins"),
        ("MESOS_SANDBOX", "/mnt/mesos/sandbox"),
        ("MESOS_SLAVE_ID", "S0"),
        ("MESOS_SLAVE_PID", "slave(1)@127.0.0.1:5051"),
        ("MESOS_SUBSCRIPTION_BACKOFF_MAX", "2secs"),
    ];

    fn with(changes: &[(&str, &str)]) -> Result<Environment, String> {
        let all = RECORDED.iter().chain(changes);
        let variables = all.map(|(name, value)| ((*name).to_owned(), (*value).to_owned()));
        Environment::read(&variables.collect(), None).map_err(|Unusable(wrong)| wrong.join(", "))
    }

    #[test]
    fn recorded() {
        let expected = Environment {
            framework_id: "0000".to_owned(),
            executor_id: "exec-1".to_owned(),
            agent_id: "S0".to_owned(),
            process: "slave(1)".to_owned(),
            endpoint: Endpoint {
                host: "127.0.0.1".to_owned(),
                port: 5051,
            },
            domain_socket: None,
            sandbox: "/mnt/mesos/sandbox".into(),
            recovery: Some(Recovery {
                timeout: Duration::from_secs(900),
                backoff_max: Duration::from_secs(2),
            }),
            shutdown_grace: Duration::from_secs(5),
            token: None,
            tls: None,
        };
        assert_eq!(with(&[]), Ok(expected));
    }

    #[test]
    fn choices() {
        assert_eq!(with(&[("MESOS_CHECKPOINT", "0")]).unwrap().recovery, None);
        let sandbox = with(&[("MESOS_SANDBOX", "")]).unwrap().sandbox;
        assert_eq!(sandbox.to_str(), Some(RECORDED[4].1));
        let found = with(&[
            ("MESOS_AGENT_ENDPOINT", ""),
            ("MESOS_SLAVE_PID", "slave(1)@[::1]:5051"),
        ]);
        assert_eq!(found.unwrap().endpoint.to_string(), "[::1]:5051");
        let tls = [
            ("LIBPROCESS_SSL_ENABLED", "true"),
            ("LIBPROCESS_SSL_CA_FILE", "/ca"),
            ("LIBPROCESS_SSL_CERT_FILE", "/cert"),
            ("LIBPROCESS_SSL_KEY_FILE", "/key"),
        ];
        let identity = Some(("/cert".into(), "/key".into()));
        let expected = Tls {
            ca_file: "/ca".into(),
            identity,
            name: None,
        };
        assert_eq!(with(&tls).unwrap().tls, Some(expected));
        let token = Environment::read(&BTreeMap::new(), Some("secret".to_owned())).unwrap_err();
        assert!(!format!("{token:?} {:?}", Token("secret".to_owned())).contains("secret"));
    }

    #[test]
    fn wrong() {
        for (changes, expected) in [
            (
                &[
                    ("MESOS_FRAMEWORK_ID", ""),
                    ("MESOS_SLAVE_PID", ""),
                    ("MESOS_SANDBOX", ""),
                    ("MESOS_DIRECTORY", ""),
                ][..],
                "MESOS_SLAVE_PID is missing, MESOS_SANDBOX is missing, MESOS_FRAMEWORK_ID is missing",
            ),
            (
                &[("MESOS_CHECKPOINT", "yes")],
                "MESOS_CHECKPOINT is \"yes\", which is no yes (1) or no (0)",
            ),
            (
                &[("MESOS_RECOVERY_TIMEOUT", "15 mins")],
                "MESOS_RECOVERY_TIMEOUT is \"15 mins\", which is no duration",
            ),
            (
                &[("MESOS_AGENT_ENDPOINT", "a/b:1")],
                "MESOS_AGENT_ENDPOINT is \"a/b:1\", which is no HOST:PORT",
            ),
            (
                &[("MESOS_SLAVE_PID", "a b@127.0.0.1:1")],
                "MESOS_SLAVE_PID is \"a b@127.0.0.1:1\", which is no ID@HOST:PORT",
            ),
            (
                &[("LIBPROCESS_SSL_ENABLED", "1")],
                "LIBPROCESS_SSL_ENABLED without LIBPROCESS_SSL_CA_FILE, the authority of the agent's certificate",
            ),
        ] {
            assert_eq!(with(changes).unwrap_err(), expected);
        }
        let variables = RECORDED
            .iter()
            .map(|(name, value)| ((*name).to_owned(), (*value).to_owned()));
        let wrong = Environment::read(&variables.collect(), Some("a\r\nb".to_owned()));
        assert_eq!(
            wrong.unwrap_err().0,
            ["MESOS_EXECUTOR_AUTHENTICATION_TOKEN is no token"]
        );
    }

    #[test]
    fn durations() {
        for (text, nanoseconds) in [
            ("5secs", Some(5_000_000_000)),
            ("15mins", Some(900_000_000_000)),
            ("1.5hrs", Some(5_400_000_000_000)),
            ("2days", Some(172_800_000_000_000)),
            ("1weeks", Some(604_800_000_000_000)),
            ("250ms", Some(250_000_000)),
            ("7us", Some(7_000)),
            ("3ns", Some(3)),
            ("0secs", Some(0)),
            ("", None),
            ("5", None),
            ("secs", None),
            ("-5secs", None),
            ("+5secs", None),
            ("5 secs", None),
            ("5sec", None),
            ("1e3secs", None),
            ("1.2.3secs", None),
            ("999999999999999999999999weeks", None),
        ] {
            let expected = nanoseconds.map(Duration::from_nanos);
            assert_eq!(duration(text), expected, "{text}");
        }
    }

    #[test]
    fn endpoints() {
        for (text, expected) in [
            ("10.1.2.3:5051", Some(("10.1.2.3", 5051))),
            ("node-1.example:1", Some(("node-1.example", 1))),
            ("[fd00::1]:5051", Some(("fd00::1", 5051))),
            ("fd00::1:5051", None),
            ("[node]:5051", None),
            ("a:0", None),
            ("a:65536", None),
            ("a:+1", None),
            (":1", None),
            ("a", None),
            ("a b:1", None),
            ("a\r\nX: y:1", None),
        ] {
            let found = Endpoint::parse(text);
            let found = found.as_ref().map(|it| (it.host.as_str(), it.port));
            assert_eq!(found, expected, "{text}");
        }
    }
}
