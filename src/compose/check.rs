//! `x-sampan.checks` of a service: further checks beside compose's one `healthcheck`.
//!
//! *Invariants.* A check has exactly one test; names are unique in a service, and none takes the name of the
//! `healthcheck` beside it. What a check does and when is the supervisor's business.

use std::collections::BTreeMap;
use std::net::{IpAddr, Ipv4Addr, Ipv6Addr};
use std::time::Duration;

use serde::{Deserialize, Serialize};

use super::node::{At, Result};
use super::project::HealthTest;
use super::{schema, service};

/// Most checks of one service.
const MAX_CHECKS: usize = 128;
/// Most headers of one check.
const MAX_HEADERS: usize = 32;
/// Longest path or header (bytes).
const MAX_TEXT: usize = 2048;
/// Longest interval and the like: what is added to it stays a time.
const MAX_TIME: Duration = Duration::from_secs(10 * 365 * 24 * 3600);

/// What `healthcheck` is called among the checks of its service.
pub const HEALTHCHECK: &str = "healthcheck";

/// One check of a service.
#[derive(Debug, Clone, PartialEq, Eq, Serialize, Deserialize)]
pub struct Check {
    /// Unique among the checks of its service.
    pub name: String,
    /// What its results decide.
    pub kind: CheckKind,
    /// What is tried.
    pub test: CheckTest,
    /// From the start of the service to the first one. `None`: the first come early, 100 ms after the start and then after
    /// pauses that double until they are `interval`; failures in the time of one interval do not count.
    pub delay: Option<Duration>,
    /// From the end of one to the start of the next.
    pub interval: Duration,
    /// Instead of `interval` while `grace_period` lasts and none has passed.
    pub start_interval: Option<Duration>,
    /// Longest time one may take; zero: no limit.
    pub timeout: Duration,
    /// From the start of the service; failures of that time do not count until one has passed.
    pub grace_period: Duration,
    /// So many in a row make it failing; at least 1.
    pub consecutive_failures: u32,
    /// So many in a row make it passing; at least 1.
    pub success_threshold: u32,
    /// Instead of `interval` once it is passing.
    pub snooze: Option<Duration>,
}

/// What the results of a check decide.
#[derive(Debug, Clone, Copy, PartialEq, Eq, Serialize, Deserialize)]
#[serde(rename_all = "snake_case")]
pub enum CheckKind {
    /// Whether the service is healthy.
    Health,
    /// Whether it is ready.
    Readiness,
    /// Nothing: the result is reported.
    Check,
}

impl CheckKind {
    /// The word in a compose file.
    pub fn word(self) -> &'static str {
        match self {
            CheckKind::Health => "health",
            CheckKind::Readiness => "readiness",
            CheckKind::Check => "check",
        }
    }
}

/// What a check tries.
#[derive(Debug, Clone, PartialEq, Eq, Serialize, Deserialize)]
#[serde(rename_all = "snake_case")]
pub enum CheckTest {
    /// A program in the service's container: passed when it ends with 0.
    Command(HealthTest),
    /// A GET: passed when the status is as wanted.
    Http(HttpTest),
    /// A connection: passed when it is made.
    Tcp(TcpTest),
}

/// A GET request. The certificate of a server is not verified.
#[derive(Debug, Clone, PartialEq, Eq, Serialize, Deserialize)]
pub struct HttpTest {
    /// `https`.
    pub tls: bool,
    /// Address in the pod.
    pub host: IpAddr,
    /// Port in the pod.
    pub port: u16,
    /// Path with query; begins with `/`.
    pub path: String,
    /// Statuses that pass; empty: 200 to 399.
    pub statuses: Vec<u16>,
    /// Further headers; `Host` replaces the one made of address and port.
    pub headers: BTreeMap<String, String>,
}

/// A connection.
#[derive(Debug, Clone, PartialEq, Eq, Serialize, Deserialize)]
pub struct TcpTest {
    /// Address in the pod.
    pub host: IpAddr,
    /// Port in the pod.
    pub port: u16,
}

impl HttpTest {
    /// A request line and headers can be made of it: no character ends them early.
    pub fn valid(&self) -> std::result::Result<(), &'static str> {
        let path = &self.path;
        let plain = path.bytes().all(|b| b.is_ascii_graphic() && b != b'#');
        if !path.starts_with('/') || !plain || path.len() > MAX_TEXT {
            return Err(
                "path is not one of a request: it begins with / and has no spaces, no # and no other than ascii characters",
            );
        }
        let name = |text: &str| {
            !text.is_empty()
                && text
                    .bytes()
                    .all(|b| b.is_ascii_alphanumeric() || b"-_".contains(&b))
        };
        let value =
            |text: &str| text.len() <= MAX_TEXT && text.bytes().all(|b| (0x20..0x7f).contains(&b));
        if self.headers.len() > MAX_HEADERS
            || !self.headers.iter().all(|(n, v)| name(n) && value(v))
        {
            return Err(
                "headers are not those of a request: names of letters, digits, - and _, values of printable ascii characters, at most 32",
            );
        }
        Ok(())
    }
}

/// The loopback address of a family.
pub fn loopback(ipv6: bool) -> IpAddr {
    match ipv6 {
        true => Ipv6Addr::LOCALHOST.into(),
        false => Ipv4Addr::LOCALHOST.into(),
    }
}

/// Checks of a service, in the order of its file.
pub(super) fn of_service(at: &At<'_>) -> Result<Vec<Check>> {
    let Some(list) = at.find(&["x-sampan", "checks"]) else {
        return Ok(Vec::new());
    };
    let items = list.items()?;
    if items.len() > MAX_CHECKS {
        return Err(list.error(format_args!("more than {MAX_CHECKS} checks of one service")));
    }
    let mut checks: Vec<Check> = Vec::new();
    for item in items {
        let check = check(&item)?;
        if checks.iter().any(|other| other.name == check.name) {
            return Err(item.error(format_args!("another check is called {}", check.name)));
        }
        if check.name == HEALTHCHECK && at.get(HEALTHCHECK).is_some() {
            return Err(item.error("healthcheck of the service has that name already"));
        }
        checks.push(check);
    }
    Ok(checks)
}

fn check(at: &At<'_>) -> Result<Check> {
    let Some(name) = at.get("name") else {
        return Err(at.error("has no name"));
    };
    let seconds = Duration::from_secs;
    let duration = |key: &str| at.get(key).map(|at| time(&at)).transpose();
    let count = |key: &str, default: u32| match at.get(key) {
        Some(at) => at.int_in(1, 1_000_000).map(|n| n as u32),
        None => Ok(default),
    };
    Ok(Check {
        name: schema::name_at(&name)?,
        kind: kind(at)?,
        test: test(at)?,
        delay: duration("delay")?,
        interval: duration("interval")?.unwrap_or(seconds(10)),
        start_interval: duration("start_interval")?,
        timeout: duration("timeout")?.unwrap_or(seconds(20)),
        grace_period: duration("grace_period")?.unwrap_or_default(),
        consecutive_failures: count("consecutive_failures", 3)?,
        success_threshold: count("success_threshold", 1)?,
        snooze: duration("snooze")?,
    })
}

fn time(at: &At<'_>) -> Result<Duration> {
    let time = at.duration()?;
    match time > MAX_TIME {
        true => Err(at.error("is longer than ten years")),
        false => Ok(time),
    }
}

fn kind(at: &At<'_>) -> Result<CheckKind> {
    let Some(kind) = at.get("kind") else {
        return Ok(CheckKind::Health);
    };
    match kind.raw()? {
        "health" => Ok(CheckKind::Health),
        "readiness" => Ok(CheckKind::Readiness),
        "check" => Ok(CheckKind::Check),
        other => Err(kind.error(format_args!(
            "{other:?} is not a kind; use health, readiness or check"
        ))),
    }
}

fn test(at: &At<'_>) -> Result<CheckTest> {
    match (at.get("command"), at.get("http"), at.get("tcp")) {
        (Some(at), None, None) => command(&at).map(CheckTest::Command),
        (None, Some(at), None) => http(&at).map(CheckTest::Http),
        (None, None, Some(at)) => Ok(CheckTest::Tcp(TcpTest {
            host: host(&at)?,
            port: port(&at)?,
        })),
        _ => Err(at.error("must have exactly one of command, http and tcp")),
    }
}

fn command(at: &At<'_>) -> Result<HealthTest> {
    let test = match at.items() {
        Ok(items) => HealthTest::Exec(items.iter().map(At::string).collect::<Result<_>>()?),
        Err(_) => HealthTest::Shell(at.string()?),
    };
    let words = match &test {
        HealthTest::Exec(words) => words.as_slice(),
        HealthTest::Shell(text) => std::slice::from_ref(text),
    };
    let usable = words.first().is_some_and(|word| !word.is_empty());
    match usable && !words.iter().any(|word| word.contains('\0')) {
        true => Ok(test),
        false => Err(at.error("names no program, or holds a NUL byte")),
    }
}

fn http(at: &At<'_>) -> Result<HttpTest> {
    let tls = match at.get("scheme") {
        None => false,
        Some(scheme) => match scheme.raw()? {
            "http" => false,
            "https" => true,
            other => {
                return Err(
                    scheme.error(format_args!("{other:?} is not a scheme; use http or https"))
                );
            }
        },
    };
    let statuses = at.items_of("statuses")?;
    let statuses = statuses
        .iter()
        .map(|at| at.int_in(200, 599).map(|n| n as u16));
    let test = HttpTest {
        tls,
        host: host(at)?,
        port: port(at)?,
        path: at
            .get("path")
            .map_or(Ok("/".to_owned()), |at| at.string())?,
        statuses: statuses.collect::<Result<_>>()?,
        headers: service::text_map(at, "headers")?,
    };
    test.valid().map_err(|why| at.error(why))?;
    Ok(test)
}

fn port(at: &At<'_>) -> Result<u16> {
    match at.get("port") {
        Some(port) => port.int_in(1, 65_535).map(|port| port as u16),
        None => Err(at.error("has no port")),
    }
}

/// The loopback of the protocol, or an address that is written.
fn host(at: &At<'_>) -> Result<IpAddr> {
    let ipv6 = match at.get("protocol") {
        None => None,
        Some(protocol) => match protocol.raw()? {
            "IPv4" | "ipv4" => Some(false),
            "IPv6" | "ipv6" => Some(true),
            other => {
                return Err(protocol.error(format_args!(
                    "{other:?} is not a protocol; use IPv4 or IPv6"
                )));
            }
        },
    };
    let Some(host) = at.get("host") else {
        return Ok(loopback(ipv6 == Some(true)));
    };
    let text = host.string()?;
    match text.parse::<IpAddr>() {
        Ok(address) if ipv6.is_none_or(|ipv6| ipv6 == address.is_ipv6()) => Ok(address),
        Ok(_) => Err(host.error("contradicts protocol; remove one")),
        Err(_) => Err(host.error(format_args!("{text:?} is not an IP address"))),
    }
}
