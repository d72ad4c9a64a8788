//! Published ports: which service has which port of the host, and that nobody else takes it meanwhile.
//!
//! Packets reach a pod by address translation, which needs no socket on the host; a bound one that does not listen
//! keeps other programs, and other pods, from believing that the port is free.

use std::net::{IpAddr, Ipv4Addr, Ipv6Addr, SocketAddr};
use std::os::fd::OwnedFd;

use rustix::io::Errno;
use rustix::net::{
    AddressFamily, SocketFlags, SocketType, bind, getsockname, ipproto, socket_with, sockopt,
};

use super::record::PublishedPort;
use super::{Error, Result};
use crate::compose::Project;
use crate::network::PortMapping;

/// Sockets that hold the ports; dropping it gives them back.
#[derive(Debug, Default)]
pub struct Reservation {
    held: Vec<(PortMapping, Vec<OwnedFd>)>,
}

/// Chooses a host port where the project leaves it open and reserves all of them.
pub fn reserve(project: &Project) -> Result<(Vec<PublishedPort>, Reservation)> {
    let mut published = Vec::new();
    let mut all = Reservation::default();
    for service in project.services.values() {
        for port in &service.ports {
            let first = port.published.unwrap_or(0);
            let mapping = |host_port| PortMapping {
                host_port,
                container_port: port.target,
                protocol: port.protocol.clone(),
                host_ip: port.host_ip,
            };
            // of a range the first that is free
            let tries = first..=port.published_end.unwrap_or(first);
            let mut held = Err(Errno::ADDRINUSE);
            for host_port in tries {
                held = all.hold(mapping(host_port));
                if held != Err(Errno::ADDRINUSE) {
                    break;
                }
            }
            let mapping = held.map_err(|error| Error::Start {
                code: 125,
                message: format!(
                    "{}: services.{}.ports: {}",
                    port.origin,
                    service.name,
                    refusal(&mapping(first), port.published_end, error),
                ),
                service: Some(service.name.clone()),
            })?;
            published.push(PublishedPort {
                service: service.name.clone(),
                mapping,
                network: port.network.clone(),
            });
        }
    }
    Ok((published, all))
}

/// Reserves ports again that were chosen earlier; one that is gone is left out.
pub fn hold(ports: &[PublishedPort]) -> Reservation {
    let mut all = Reservation::default();
    for port in ports {
        // the translation rules are in place and go first, so a pod works without this socket too
        let _ = all.hold(port.mapping.clone());
    }
    all
}

/// Why a port cannot be published.
pub fn refusal(mapping: &PortMapping, last: Option<u16>, error: Errno) -> String {
    let range = last.map_or(String::new(), |last| format!(" to {last}"));
    format!(
        "cannot publish {}{range}: {}",
        describe(mapping),
        explain(error)
    )
}

/// `8080/tcp`, `127.0.0.1:8080/tcp`.
fn describe(mapping: &PortMapping) -> String {
    let port = format!("{}/{}", mapping.host_port, mapping.protocol);
    match mapping.host_ip {
        Some(IpAddr::V6(ip)) => format!("[{ip}]:{port}"),
        Some(ip) => format!("{ip}:{port}"),
        None => port,
    }
}

fn explain(error: Errno) -> String {
    match error {
        Errno::ADDRINUSE => "the port is already taken on this host".to_string(),
        Errno::ADDRNOTAVAIL => "the host has no such address".to_string(),
        other => other.to_string(),
    }
}

impl Reservation {
    /// Holds a port; 0 chooses one. Gives the mapping with the port that is held.
    pub fn hold(&mut self, mut mapping: PortMapping) -> std::result::Result<PortMapping, Errno> {
        let addresses: Vec<IpAddr> = match mapping.host_ip {
            Some(ip) => vec![ip],
            None => vec![Ipv4Addr::UNSPECIFIED.into(), Ipv6Addr::UNSPECIFIED.into()],
        };
        let mut sockets = Vec::new();
        for ip in addresses {
            match bound(ip, mapping.host_port, &mapping.protocol) {
                Ok(socket) => {
                    if mapping.host_port == 0 {
                        mapping.host_port = local_port(&socket)?;
                    }
                    sockets.push(socket);
                }
                // a host without IPv6
                Err(Errno::AFNOSUPPORT | Errno::ADDRNOTAVAIL)
                    if mapping.host_ip.is_none() && ip.is_ipv6() => {}
                // no socket of this host can compete; translation works all the same
                Err(Errno::PROTONOSUPPORT) if mapping.protocol == "sctp" => {
                    if mapping.host_port == 0 {
                        mapping.host_port = local_port(&bound(ip, 0, "tcp")?)?;
                    }
                }
                Err(error) => return Err(error),
            }
        }
        self.held.push((mapping.clone(), sockets));
        Ok(mapping)
    }

    /// Holds this very port already.
    pub fn has(&self, mapping: &PortMapping) -> bool {
        self.held.iter().any(|(held, _)| held == mapping)
    }

    /// Gives a port back.
    pub fn release(&mut self, mapping: &PortMapping) {
        self.held.retain(|(held, _)| held != mapping);
    }
}

/// A host port that is free now for a mapping that leaves it open.
pub fn choose(mapping: PortMapping) -> std::result::Result<PortMapping, Errno> {
    Reservation::default().hold(mapping)
}

fn bound(ip: IpAddr, port: u16, protocol: &str) -> std::result::Result<OwnedFd, Errno> {
    let family = match ip {
        IpAddr::V4(_) => AddressFamily::INET,
        IpAddr::V6(_) => AddressFamily::INET6,
    };
    let (kind, protocol) = match protocol {
        "udp" => (SocketType::DGRAM, None),
        "sctp" => (SocketType::STREAM, Some(ipproto::SCTP)),
        _ => (SocketType::STREAM, None),
    };
    let socket = socket_with(family, kind, SocketFlags::CLOEXEC, protocol)?;
    if ip.is_ipv6() {
        sockopt::set_ipv6_v6only(&socket, true)?;
    }
    bind(&socket, &SocketAddr::new(ip, port))?;
    Ok(socket)
}

fn local_port(socket: &OwnedFd) -> std::result::Result<u16, Errno> {
    let address: SocketAddr = getsockname(socket)?.try_into()?;
    Ok(address.port())
}
