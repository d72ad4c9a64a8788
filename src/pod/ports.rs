//! Published ports: which service has which port of the host, and that nobody else takes it meanwhile.
//!
//! Packets reach a pod by address translation, which needs no socket on the host; a bound one that does not listen
//! keeps other programs, and other pods, from believing that the port is free.

use std::net::{IpAddr, Ipv4Addr, Ipv6Addr, SocketAddr};
use std::os::fd::OwnedFd;

use rustix::io::Errno;
use rustix::net::{
    AddressFamily, SocketFlags, SocketType, bind, getsockname, socket_with, sockopt,
};

use super::record::PublishedPort;
use super::{Error, Result};
use crate::compose::Project;
use crate::network::PortMapping;

/// Sockets that hold the ports; dropping it gives them back.
#[derive(Debug, Default)]
pub struct Reservation {
    sockets: Vec<OwnedFd>,
}

/// Chooses a host port where the project leaves it open and reserves all of them.
pub fn reserve(project: &Project) -> Result<(Vec<PublishedPort>, Reservation)> {
    let mut published = Vec::new();
    for service in project.services.values() {
        for port in &service.ports {
            let mut mapping = PortMapping {
                host_port: port.published.unwrap_or(0),
                container_port: port.target,
                protocol: port.protocol.clone(),
                host_ip: port.host_ip,
            };
            let mut chosen = Reservation::default();
            let taken = |error: Errno| Error::Start {
                code: 125,
                message: format!(
                    "{}:{}: services.{}.ports: cannot publish {}: {}",
                    port.origin.file,
                    port.origin.line,
                    service.name,
                    describe(&mapping),
                    explain(error),
                ),
            };
            chosen.hold(&mapping).map_err(taken)?;
            if mapping.host_port == 0 {
                mapping.host_port = chosen.port().map_err(taken)?;
            }
            published.push((service.name.clone(), mapping, chosen));
        }
    }
    let mut all = Reservation::default();
    let list = published
        .into_iter()
        .map(|(service, mapping, chosen)| {
            all.sockets.extend(chosen.sockets);
            PublishedPort { service, mapping }
        })
        .collect();
    Ok((list, all))
}

/// Reserves ports again that were chosen earlier; one that is gone is left out.
pub fn hold(ports: &[PublishedPort]) -> Reservation {
    let mut all = Reservation::default();
    for port in ports {
        // the translation rules are in place and go first, so a pod works without this socket too
        let _ = all.hold(&port.mapping);
    }
    all
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
    fn hold(&mut self, mapping: &PortMapping) -> std::result::Result<(), Errno> {
        let kind = match mapping.protocol.as_str() {
            "udp" => SocketType::DGRAM,
            "tcp" => SocketType::STREAM,
            // no socket of the host competes for other protocols
            _ => return Ok(()),
        };
        let addresses: Vec<IpAddr> = match mapping.host_ip {
            Some(ip) => vec![ip],
            None => vec![Ipv4Addr::UNSPECIFIED.into(), Ipv6Addr::UNSPECIFIED.into()],
        };
        let mut port = mapping.host_port;
        for ip in addresses {
            match bound(ip, port, kind) {
                Ok(socket) => {
                    if port == 0 {
                        port = local_port(&socket)?;
                    }
                    self.sockets.push(socket);
                }
                // a host without IPv6
                Err(Errno::AFNOSUPPORT | Errno::ADDRNOTAVAIL)
                    if mapping.host_ip.is_none() && ip.is_ipv6() => {}
                Err(error) => return Err(error),
            }
        }
        Ok(())
    }

    fn port(&self) -> std::result::Result<u16, Errno> {
        self.sockets.first().map_or(Err(Errno::INVAL), local_port)
    }
}

fn bound(ip: IpAddr, port: u16, kind: SocketType) -> std::result::Result<OwnedFd, Errno> {
    let family = match ip {
        IpAddr::V4(_) => AddressFamily::INET,
        IpAddr::V6(_) => AddressFamily::INET6,
    };
    let socket = socket_with(family, kind, SocketFlags::CLOEXEC, None)?;
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
