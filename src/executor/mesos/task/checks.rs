//! `health_check` and `check` of a task → checks of a service.
//!
//! *Invariants:* defaults are Mesos'; one named [`HEALTH`] decides the health, one named [`CHECK`] is only told. What neither has a
//! field for (success threshold, snooze) comes from labels.

use std::time::Duration;

use super::labels::Options;
use super::{Invalid, command};
use crate::compose::Project;
use crate::compose::project::{Check, CheckKind, CheckTest, HttpTest, Service, TcpTest, loopback};
use crate::executor::mesos::proto::{
    CheckInfo, HealthCheck, TaskInfo, check_info, health_check, network_info,
};

/// Name of the check that Mesos calls `health_check`.
pub const HEALTH: &str = "mesos-health";
/// Name of the check that Mesos calls `check`.
pub const CHECK: &str = "mesos-check";

/// Longest time that a check may be told to wait, as for those of a compose file (seconds).
const LONGEST: f64 = 10.0 * 365.0 * 24.0 * 3600.0;

/// The checks of a task.
///
/// # Errors
/// For what is no check.
pub fn checks(task: &TaskInfo, options: &Options) -> Result<Vec<Check>, Invalid> {
    let mut out = Vec::new();
    if let Some(health) = &task.health_check {
        out.push(health_check(task, health, options)?);
    }
    if let Some(check) = &task.check {
        out.push(plain_check(task, check)?);
    }
    Ok(out)
}

fn health_check(task: &TaskInfo, given: &HealthCheck, options: &Options) -> Result<Check, Invalid> {
    let at = |why: String| Invalid::of(task, format_args!("health_check.{why}"));
    let missing = |what: &str| at(format!("{what}: is missing"));
    let test = match given.r#type() {
        health_check::Type::Command => {
            let given = given.command.as_ref().ok_or_else(|| missing("command"))?;
            CheckTest::Command(command::of_check(task, "health_check.command", given)?)
        }
        health_check::Type::Http => {
            let given = given.http.as_ref().ok_or_else(|| missing("http"))?;
            CheckTest::Http(http(given).map_err(|why| at(format!("http.{why}")))?)
        }
        health_check::Type::Tcp => {
            let given = given.tcp.as_ref().ok_or_else(|| missing("tcp"))?;
            CheckTest::Tcp(TcpTest {
                host: loopback(ipv6(given.protocol).map_err(|why| at(format!("tcp.{why}")))?),
                port: port(given.port).map_err(|why| at(format!("tcp.{why}")))?,
            })
        }
        health_check::Type::Unknown => return Err(at("type: is not known".to_owned())),
    };
    let time = |key: &str, value: f64| seconds(value).map_err(|why| at(format!("{key}: {why}")));
    Ok(Check {
        name: HEALTH.to_owned(),
        kind: CheckKind::Health,
        test,
        delay: Some(time("delay_seconds", given.delay_seconds())?),
        interval: time("interval_seconds", given.interval_seconds())?,
        start_interval: None,
        timeout: time("timeout_seconds", given.timeout_seconds())?,
        grace_period: time("grace_period_seconds", given.grace_period_seconds())?,
        consecutive_failures: given.consecutive_failures().max(1),
        success_threshold: options.success_threshold.unwrap_or(1),
        snooze: options.snooze.map(|s| Duration::from_secs(s.into())),
    })
}

fn plain_check(task: &TaskInfo, given: &CheckInfo) -> Result<Check, Invalid> {
    let at = |why: String| Invalid::of(task, format_args!("check.{why}"));
    let missing = |what: &str| at(format!("{what}: is missing"));
    let test = match given.r#type() {
        check_info::Type::Command => {
            let given = given.command.as_ref().ok_or_else(|| missing("command"))?;
            CheckTest::Command(command::of_check(task, "check.command", &given.command)?)
        }
        check_info::Type::Http => {
            let given = given.http.as_ref().ok_or_else(|| missing("http"))?;
            let test = HttpTest {
                tls: false,
                host: loopback(false),
                port: port(given.port).map_err(|why| at(format!("http.{why}")))?,
                path: path(given.path.as_deref()),
                statuses: Vec::new(),
                headers: Default::default(),
            };
            test.valid().map_err(|why| at(format!("http: {why}")))?;
            CheckTest::Http(test)
        }
        check_info::Type::Tcp => {
            let given = given.tcp.as_ref().ok_or_else(|| missing("tcp"))?;
            CheckTest::Tcp(TcpTest {
                host: loopback(false),
                port: port(given.port).map_err(|why| at(format!("tcp.{why}")))?,
            })
        }
        check_info::Type::Unknown => return Err(at("type: is not known".to_owned())),
    };
    let time = |key: &str, value: f64| seconds(value).map_err(|why| at(format!("{key}: {why}")));
    Ok(Check {
        name: CHECK.to_owned(),
        kind: CheckKind::Check,
        test,
        delay: Some(time("delay_seconds", given.delay_seconds())?),
        interval: time("interval_seconds", given.interval_seconds())?,
        start_interval: None,
        timeout: time("timeout_seconds", given.timeout_seconds())?,
        grace_period: Duration::ZERO,
        consecutive_failures: 1,
        success_threshold: 1,
        snooze: None,
    })
}

fn http(given: &health_check::HttpCheckInfo) -> Result<HttpTest, String> {
    let tls = match given.scheme.as_deref() {
        None | Some("http") => false,
        Some("https") => true,
        Some(other) => return Err(format!("scheme: {other:?} is not http or https")),
    };
    let status = |status: &u32| match u16::try_from(*status) {
        Ok(status @ 100..=599) => Ok(status),
        _ => Err(format!("statuses: {status} is not a status")),
    };
    let test = HttpTest {
        tls,
        host: loopback(ipv6(given.protocol)?),
        port: port(given.port)?,
        path: path(given.path.as_deref()),
        statuses: given
            .statuses
            .iter()
            .map(status)
            .collect::<Result<_, _>>()?,
        headers: Default::default(),
    };
    test.valid().map(|()| test.clone()).map_err(str::to_owned)
}

fn path(given: Option<&str>) -> String {
    match given {
        None | Some("") => "/".to_owned(),
        Some(path) => path.to_owned(),
    }
}

fn ipv6(protocol: Option<i32>) -> Result<bool, String> {
    match protocol.map(network_info::Protocol::try_from) {
        None | Some(Ok(network_info::Protocol::Ipv4)) => Ok(false),
        Some(Ok(network_info::Protocol::Ipv6)) => Ok(true),
        Some(Err(_)) => Err("protocol: is not known".to_owned()),
    }
}

fn port(number: u32) -> Result<u16, String> {
    match u16::try_from(number) {
        Ok(port @ 1..) => Ok(port),
        _ => Err(format!("port: {number} is not a port")),
    }
}

fn seconds(value: f64) -> Result<Duration, String> {
    match (0.0..=LONGEST).contains(&value) {
        true => Ok(Duration::from_secs_f64(value)),
        false => Err(format!("{value} is not a number of seconds")),
    }
}

/// Gives the checks of a task to one of its services: the one that a label names, or the only one, or that with the port.
///
/// # Errors
/// Where a command could run in several, or a service has a check of that name.
pub fn place(
    task: &TaskInfo,
    checks: Vec<Check>,
    options: &Options,
    services: &[String],
    project: &mut Project,
) -> Result<(), Invalid> {
    for check in checks {
        let named = match (&options.check_service, services) {
            (Some(name), _) if services.contains(name) => Some(name.clone()),
            (Some(name), _) => {
                return Err(Invalid::of(
                    task,
                    format_args!("labels: sampan.check-service: there is no service {name}"),
                ));
            }
            (None, [only]) => Some(only.clone()),
            (None, _) => None,
        };
        let tried = match &check.test {
            CheckTest::Http(test) => Some(test.port),
            CheckTest::Tcp(test) => Some(test.port),
            CheckTest::Command(_) => None,
        };
        let found = named.or_else(|| {
            let owns = |name: &&String| {
                let service = project.services.get(*name);
                service.is_some_and(|s| tried.is_some_and(|port| has(s, port)))
            };
            let owner = services.iter().find(owns);
            // any will do for a port of the pod
            owner
                .or_else(|| services.first().filter(|_| tried.is_some()))
                .cloned()
        });
        let Some(service) = found.and_then(|name| project.services.get_mut(&name)) else {
            return Err(Invalid::of(
                task,
                "health_check, check: a command runs in one service; name it in the label sampan.check-service",
            ));
        };
        if service.checks.iter().any(|other| other.name == check.name) {
            return Err(Invalid::of(
                task,
                format_args!(
                    "services.{}.x-sampan.checks: {} is the name of the task's own check; choose another one",
                    service.name, check.name
                ),
            ));
        }
        service.checks.push(check);
    }
    Ok(())
}

/// The service publishes or exposes a port.
fn has(service: &Service, port: u16) -> bool {
    let exposed = |text: &String| text.split('/').next() == Some(&port.to_string());
    service.ports.iter().any(|p| p.target == port) || service.expose.iter().any(exposed)
}

#[cfg(test)]
mod tests {
    use super::*;
    use crate::compose::project::HealthTest;
    use crate::executor::mesos::task::tests::task;
    use serde_json::{Value, json};

    fn found(given: Value) -> Result<Vec<Check>, String> {
        checks(&task(given), &Options::default()).map_err(|e| e.message)
    }

    #[test]
    fn checks_of_a_task() {
        let s = Duration::from_secs;
        let health = |test: CheckTest| Check {
            name: HEALTH.to_owned(),
            kind: CheckKind::Health,
            test,
            delay: Some(s(15)),
            interval: s(10),
            start_interval: None,
            timeout: s(20),
            grace_period: s(10),
            consecutive_failures: 3,
            success_threshold: 1,
            snooze: None,
        };
        let http = HttpTest {
            tls: true,
            host: loopback(true),
            port: 8080,
            path: "/x".to_owned(),
            statuses: vec![204],
            headers: Default::default(),
        };
        let tcp = |port| {
            CheckTest::Tcp(TcpTest {
                host: loopback(false),
                port,
            })
        };
        let table = [
            (json!({}), vec![]),
            (
                json!({"health_check": {"type": "COMMAND", "command": {"value": "a b"}}}),
                vec![health(CheckTest::Command(HealthTest::Shell(
                    "a b".to_owned(),
                )))],
            ),
            (
                json!({"health_check": {"type": "HTTP", "http": {"port": 8080, "path": "/x", "scheme": "https", "protocol": "IPv6", "statuses": [204]}}}),
                vec![health(CheckTest::Http(http))],
            ),
            (
                json!({"health_check": {"type": "TCP", "tcp": {"port": 1}, "delay_seconds": 0, "interval_seconds": 0.5, "timeout_seconds": 0, "grace_period_seconds": 2, "consecutive_failures": 1},
                    "check": {"type": "COMMAND", "command": {"command": {"shell": false, "value": "/a", "arguments": ["a", "b"]}}}}),
                vec![
                    Check {
                        delay: Some(s(0)),
                        interval: Duration::from_millis(500),
                        timeout: s(0),
                        grace_period: s(2),
                        consecutive_failures: 1,
                        ..health(tcp(1))
                    },
                    Check {
                        name: CHECK.to_owned(),
                        kind: CheckKind::Check,
                        grace_period: s(0),
                        consecutive_failures: 1,
                        ..health(CheckTest::Command(HealthTest::Exec(vec![
                            "/a".to_owned(),
                            "b".to_owned(),
                        ])))
                    },
                ],
            ),
        ];
        for (given, expected) in table {
            assert_eq!(found(given.clone()), Ok(expected), "{given}");
        }
        for (given, expected) in [
            (
                json!({"health_check": {}}),
                "health_check.type: is not known",
            ),
            (json!({"check": {"type": "TCP"}}), "check.tcp: is missing"),
            (
                json!({"check": {"type": "TCP", "tcp": {"port": 70000}}}),
                "check.tcp.port: 70000 is not a port",
            ),
            (
                json!({"health_check": {"type": "TCP", "tcp": {"port": 1}, "delay_seconds": -1}}),
                "health_check.delay_seconds: -1 is not a number of seconds",
            ),
            (
                json!({"health_check": {"type": "COMMAND", "command": {"value": "a", "user": "u"}}}),
                "health_check.command: user: a check runs as the task's user; remove it",
            ),
            (
                json!({"health_check": {"type": "HTTP", "http": {"port": 1, "path": "x"}}}),
                "health_check.http.path is not one of a request: it begins with / and has no spaces, no # and no other than ascii characters",
            ),
        ] {
            assert_eq!(found(given).unwrap_err(), format!("task t: {expected}"));
        }
    }
}
