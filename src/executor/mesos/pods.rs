//! The executor's hands: short processes that make and remove pods, and the control sockets of those that are there.
//!
//! *Invariants:* nothing here decides; each outcome comes back as an input of the machine. A supervisor that is away is waited for, or started,
//! as by any command.
//!
//! Leaves to others: what is done when ([`super::machine`]).

use std::path::{Path, PathBuf};
use std::process::Stdio;
use std::time::Duration;

use tokio::process::Command;

use super::ledger::Executor;
use super::proto::NetworkInfo;
use crate::network::PortMapping;
use crate::pod::control::Request;
use crate::pod::layout::{PodDir, ServiceDir};
use crate::pod::record::{self, Sandbox};
use crate::pod::{Error, Result, logs, watch};

/// Longest line that is kept (characters).
const LINE: usize = 256;

/// Stops services. A pod that is gone is success.
pub async fn stop(dir: &PodDir, services: &[String], grace: Option<Duration>) -> Result<()> {
    let request = Request::Stop {
        services: services.to_vec(),
        // the machine counts to the millisecond and asks again when it is time: this is for a stop without us
        timeout: grace.map(|grace| grace.as_millis().div_ceil(1000) as u64),
    };
    watch::ask(dir, &request).await.map(|_| ())
}

/// Removes a pod; no pod is success.
pub async fn remove(executor: &Executor, pod: &str) -> Result<()> {
    let words = ["-p", pod, "down", "--timeout", "0"];
    command(executor, &words, &format!("remove pod {pod}")).await
}

/// Removes what executors left that were killed as a whole.
pub async fn collect_garbage(executor: &Executor) -> Result<()> {
    command(executor, &["gc"], "remove what others left").await
}

/// Runs a command of our own, which has the words for why it failed.
async fn command(executor: &Executor, words: &[&str], what: &str) -> Result<()> {
    let paths = |paths: &[PathBuf]| std::env::join_paths(paths).unwrap_or_default();
    let output = Command::new("/proc/self/exe")
        .arg("--root")
        .arg(&executor.root)
        .arg("--state")
        .arg(&executor.state)
        .arg("--cni-conf")
        .arg(paths(&executor.cni_conf))
        .arg("--cni-path")
        .arg(paths(&executor.cni_path))
        .args(words)
        .stdin(Stdio::null())
        .stdout(Stdio::null())
        .stderr(Stdio::piped())
        .output()
        .await
        .map_err(Error::io("run", Path::new("/proc/self/exe")))?;
    if output.status.success() {
        return Ok(());
    }
    let text = String::from_utf8_lossy(&output.stderr);
    let text: String = text.trim().chars().take(1000).collect();
    Err(Error::Other(format!("{what}: {text}")))
}

/// The last line that a service printed, on standard error if there is one.
pub fn last_line(dir: &PodDir, service: &str) -> Option<String> {
    let service = dir.service(service);
    ["stderr", "stdout"]
        .iter()
        .find_map(|stream| last_line_of(&service, stream))
}

fn last_line_of(service: &ServiceDir, stream: &str) -> Option<String> {
    let tail = logs::tail(service, stream, logs::LINE_LIMIT as u64).ok()?;
    let text = String::from_utf8_lossy(&tail);
    let line = text.lines().rev().find(|line| !line.trim().is_empty())?;
    let plain = line.trim().chars().filter(|c| !c.is_control());
    Some(plain.take(LINE).collect())
}

/// Addresses of a pod, in order of attachment.
pub fn networks(dir: &PodDir) -> Result<Vec<NetworkInfo>> {
    use super::proto::network_info::{IpAddress, PortMapping as Mapping, Protocol};
    let Some(sandbox) = record::read::<Sandbox>(&dir.sandbox())? else {
        return Ok(Vec::new());
    };
    let address = |net: &ipnet::IpNet| IpAddress {
        protocol: Some(match net {
            ipnet::IpNet::V4(_) => Protocol::Ipv4.into(),
            ipnet::IpNet::V6(_) => Protocol::Ipv6.into(),
        }),
        ip_address: Some(net.addr().to_string()),
    };
    let mapping = |port: &PortMapping| Mapping {
        host_port: port.host_port.into(),
        container_port: port.container_port.into(),
        protocol: Some(port.protocol.to_string()),
    };
    let networks = sandbox.interfaces.iter().map(|interface| NetworkInfo {
        name: Some(interface.network.clone()),
        ip_addresses: interface.addresses.iter().map(address).collect(),
        port_mappings: interface.ports.iter().flatten().map(mapping).collect(),
        ..NetworkInfo::default()
    });
    Ok(networks.collect())
}
