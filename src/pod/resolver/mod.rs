//! A small resolver on the pod's loopback: names of the pod and of the pods that it shares networks with are known here,
//! the rest is asked of others.
//!
//! ```text
//! message    queries and replies as octets
//! names      what is known from the pods' records
//! upstream   asking other servers
//! ```
//!
//! Services ask at 127.0.0.11, those that name servers of their own (`dns`) at an address for each such list. Servers
//! that a service or a CNI plugin named are asked from the pod's namespace, as the service could itself; those of the host
//! from the host's. *Invariants:* a pod whose networks are all internal never makes the host ask anybody; no octets end
//! the supervisor; nothing runs while nobody asks. It lives in the supervisor: while that one is away, clients ask again.

mod message;
mod names;
mod upstream;

use std::cell::RefCell;
use std::io;
use std::net::{IpAddr, Ipv4Addr};
use std::path::PathBuf;
use std::rc::Rc;
use std::sync::Arc;
use std::time::Duration;

use tokio::net::{TcpListener, TcpStream, UdpSocket};
use tokio::sync::Semaphore;
use tokio::time::timeout;

use self::message::{NO_ERROR, NO_NAME, SERVER_FAILURE};
use self::names::Names;
use self::upstream::Upstream;
use super::record::{Pod, Sandbox};
use crate::compose::Project;
use crate::compose::project::Service;
use crate::network::hosts;

const PORT: u16 = 53;
/// Queries that wait for other servers at the same time; further ones are not answered.
const MAX_WAITING: usize = 256;
/// Connections at the same time.
const MAX_STREAMS: usize = 64;
/// How long a connection may say nothing.
const IDLE: Duration = Duration::from_secs(10);
/// Largest query by UDP.
const MAX_QUERY: usize = 1500;
/// Pause before an address is tried again that a program of the pod has taken.
const AGAIN: Duration = Duration::from_secs(1);
/// Most lists of servers that services of one pod name.
const MAX_LISTS: usize = 200;

/// The address that a service asks at; `None` when its pod has no resolver: it is on the host's network, or has a
/// server for names of its own, whose port ours would take.
pub fn address(pod: &Pod, service: &Service) -> Option<Ipv4Addr> {
    if !has_resolver(pod) {
        return None;
    }
    let lists = lists(&pod.project);
    let index = lists.iter().position(|list| *list == service.dns)?;
    let last = u8::try_from(index).ok()?.checked_add(11)?;
    Some(Ipv4Addr::new(127, 0, 0, last))
}

fn has_resolver(pod: &Pod) -> bool {
    let own_port = |text: &str| text.split('/').next() == Some("53");
    let serves = |(name, service): (&String, &Service)| {
        let image = pod
            .images
            .get(name)
            .and_then(|i| i.config.exposed_ports.as_ref());
        service.ports.iter().any(|port| port.target == PORT)
            || service.expose.iter().any(|text| own_port(text))
            || image.is_some_and(|ports| ports.keys().any(|text| own_port(text)))
    };
    !pod.project.on_host() && !pod.project.services.iter().any(serves)
}

/// The lists of servers that services name; the first is empty: none named.
fn lists(project: &Project) -> Vec<Vec<String>> {
    let mut lists = vec![Vec::new()];
    for service in project.services.values() {
        if !lists.contains(&service.dns) && lists.len() < MAX_LISTS {
            lists.push(service.dns.clone());
        }
    }
    lists
}

/// The sockets at one address.
type Sockets = (std::net::UdpSocket, std::net::TcpListener);

/// Listens before the first service starts. What cannot be had is tried again as long as it takes; `note` hears of it.
pub fn start(
    pod: &Pod,
    sandbox: &Rc<RefCell<Sandbox>>,
    netns: PathBuf,
    note: impl Fn(String) + Clone + 'static,
) {
    if !has_resolver(pod) {
        return;
    }
    let pods = pod.state.join("pods");
    let shared = Rc::new(Shared {
        names: RefCell::new(Names::new(pods, &pod.project)),
        sandbox: sandbox.clone(),
        netns,
        waiting: Semaphore::new(MAX_WAITING),
    });
    for (last, servers) in (11u8..).zip(lists(&pod.project)) {
        let ip = Ipv4Addr::new(127, 0, 0, last);
        let own: Vec<IpAddr> = servers.iter().filter_map(|s| s.parse().ok()).collect();
        let (shared, note) = (shared.clone(), note.clone());
        let first = shared.bind(ip);
        tokio::task::spawn_local(async move {
            let sockets = match first {
                Ok(sockets) => sockets,
                Err(error) => {
                    note(format!(
                        "names: cannot listen on {ip}: {error}; tried again"
                    ));
                    loop {
                        tokio::time::sleep(AGAIN).await;
                        if let Ok(sockets) = shared.bind(ip) {
                            break sockets;
                        }
                    }
                }
            };
            if let Err(error) = shared.serve(sockets, own).await {
                note(format!("names: {ip}: {error}"));
            }
        });
    }
}

struct Shared {
    names: RefCell<Names>,
    sandbox: Rc<RefCell<Sandbox>>,
    netns: PathBuf,
    waiting: Semaphore,
}

impl Shared {
    fn bind(&self, ip: Ipv4Addr) -> io::Result<Sockets> {
        upstream::within(Some(&self.netns), || {
            let udp = std::net::UdpSocket::bind((ip, PORT))?;
            let tcp = std::net::TcpListener::bind((ip, PORT))?;
            udp.set_nonblocking(true)?;
            tcp.set_nonblocking(true)?;
            Ok((udp, tcp))
        })
    }

    async fn serve(self: Rc<Self>, sockets: Sockets, own: Vec<IpAddr>) -> io::Result<()> {
        let (udp, tcp) = sockets;
        let (udp, tcp) = (
            Rc::new(UdpSocket::from_std(udp)?),
            TcpListener::from_std(tcp)?,
        );
        let own: Rc<[IpAddr]> = own.into();
        let streams = Arc::new(Semaphore::new(MAX_STREAMS));
        let mut buffer = vec![0; MAX_QUERY];
        loop {
            tokio::select! {
                received = udp.recv_from(&mut buffer) => {
                    // an error is of an earlier reply that nobody took
                    let Ok((length, client)) = received else { continue };
                    let bytes = buffer.get(..length).unwrap_or_default().to_vec();
                    let (shared, own, udp) = (self.clone(), own.clone(), udp.clone());
                    tokio::task::spawn_local(async move {
                        if let Some(reply) = shared.reply(&bytes, &own, true).await {
                            let _ = udp.send_to(&reply, client).await;
                        }
                    });
                }
                accepted = tcp.accept() => match (accepted, streams.clone().try_acquire_owned()) {
                    (Ok((stream, _)), Ok(place)) => {
                        let (shared, own) = (self.clone(), own.clone());
                        tokio::task::spawn_local(async move {
                            shared.stream(stream, &own).await;
                            drop(place);
                        });
                    }
                    // too many: this one is closed
                    (Ok(_), Err(_)) => {}
                    // out of descriptors, say: there may be some again later
                    (Err(_), _) => tokio::time::sleep(Duration::from_millis(100)).await,
                },
            }
        }
    }

    /// One query after the other, until the client is done or silent.
    async fn stream(&self, mut stream: TcpStream, own: &[IpAddr]) {
        while let Ok(Ok(bytes)) = timeout(IDLE, upstream::receive(&mut stream)).await {
            let Some(reply) = self.reply(&bytes, own, false).await else {
                return;
            };
            let sent = timeout(IDLE, upstream::send(&mut stream, &reply)).await;
            if !matches!(sent, Ok(Ok(()))) {
                return;
            }
        }
    }

    /// `None`: the query is not answered.
    async fn reply(&self, bytes: &[u8], own: &[IpAddr], udp: bool) -> Option<Vec<u8>> {
        let query = match message::parse(bytes) {
            Ok(query) => query,
            Err(refusal) => return refusal,
        };
        if let (Some(name), true) = (&query.name, query.internet) {
            let known = self.names.borrow_mut().answer(name, query.kind);
            if let Some(answers) = known {
                return Some(message::reply(&query, NO_ERROR, &answers, udp));
            }
        }
        let upstream = self.upstream(own);
        if upstream.servers.is_empty() {
            return Some(message::reply(&query, NO_NAME, &[], udp));
        }
        let _place = self.waiting.try_acquire().ok()?;
        let reply = upstream::ask(&upstream, &query, bytes, udp).await;
        Some(reply.unwrap_or_else(|| message::reply(&query, SERVER_FAILURE, &[], udp)))
    }

    /// A service's own servers, else those that the networks' plugins named, else the host's unless the pod is to be
    /// kept apart.
    fn upstream(&self, own: &[IpAddr]) -> Upstream<'_> {
        let inside = |servers: Vec<IpAddr>| Upstream {
            servers,
            netns: Some(&self.netns),
        };
        if !own.is_empty() {
            return inside(own.to_vec());
        }
        let sandbox = self.sandbox.borrow();
        let named = sandbox.attached.iter().flat_map(|a| &a.nameservers);
        let named: Vec<IpAddr> = named.filter_map(|s| s.parse().ok()).collect();
        if !named.is_empty() {
            return inside(named);
        }
        let outward = sandbox.interfaces.iter().any(|i| !i.internal);
        Upstream {
            servers: match outward {
                true => hosts::host_nameservers(),
                false => Vec::new(),
            },
            netns: None,
        }
    }
}

#[cfg(test)]
#[path = "tests.rs"]
mod tests;
