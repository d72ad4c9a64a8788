//! The texts of `/etc/hosts` and `/etc/resolv.conf` in a pod.
//!
//! *Invariants:* every name of every service leads to loopback, as all services share the pod's namespace, unless the
//! service's own `extra_hosts` says otherwise; no value can add a line; nameservers of the host that only the host can
//! reach are left out. Writing the files is the pod's business.

use std::collections::BTreeSet;
use std::fs::File;
use std::io::{self, Read};
use std::net::{IpAddr, Ipv4Addr};

use super::{Attached, Error};
use crate::compose::project::{Project, Service};

/// Bytes of a host's resolver configuration that are read.
const MAX_FILE: u64 = 64 << 10;
const FIRST_LINES: &str = "127.0.0.1\tlocalhost\n::1\tlocalhost ip6-localhost ip6-loopback\n";

/// `/etc/hosts` of `service`. `gateways` are those of the network with the default route: `host-gateway` in
/// `extra_hosts` stands for them.
pub fn hosts(project: &Project, service: &Service, gateways: &[IpAddr]) -> Result<String, Error> {
    let mut text = FIRST_LINES.to_string();
    let mut seen: BTreeSet<&str> = service
        .extra_hosts
        .iter()
        .map(|(n, _)| n.as_str())
        .collect();
    seen.insert("localhost");
    for other in project.services.values() {
        let full = full_name(other);
        let mut names = Vec::new();
        let all = [Some(other.name.as_str()), other.container_name.as_deref()];
        let all = all.into_iter().flatten().chain(full.as_deref());
        let aliases = other.networks.values().flat_map(|n| &n.aliases);
        for name in all
            .chain(other.hostname.as_deref())
            .chain(aliases.map(String::as_str))
        {
            if names.contains(&name) || seen.contains(name) {
                continue;
            }
            check_word(name, &format!("services.{}: name `{name}`", other.name))?;
            names.push(name);
        }
        if !names.is_empty() {
            text.push_str(&format!("127.0.0.1\t{}\n", names.join(" ")));
        }
    }
    for (name, address) in &service.extra_hosts {
        let what = format!("services.{}.extra_hosts: `{name}`", service.name);
        check_word(name, &what)?;
        for address in addresses(address, gateways, &what)? {
            text.push_str(&format!("{address}\t{name}\n"));
        }
    }
    Ok(text)
}

/// Where the names come from that a service asks for.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub enum Source {
    /// A resolver at this address of the pod's loopback.
    Resolver(Ipv4Addr),
    /// The servers themselves, asked from a namespace of the pod.
    Pod,
    /// The servers themselves, asked from the host's namespace.
    Host,
}

/// `/etc/resolv.conf` of `service`: its own settings, else what the networks' plugins said, else the host's, whose
/// configuration is `host` (see [`host_resolv_conf`]).
pub fn resolv_conf(
    service: &Service,
    attached: &[Attached],
    host: &str,
    source: Source,
) -> Result<String, Error> {
    for (key, values) in [
        ("dns_search", &service.dns_search),
        ("dns_opt", &service.dns_opt),
    ] {
        for value in values {
            check_word(
                value,
                &format!("services.{}.{key}: `{value}`", service.name),
            )?;
        }
    }
    for server in &service.dns {
        if server.parse::<IpAddr>().is_err() {
            let what = format!("services.{}.dns: `{server}`", service.name);
            return Err(Error::invalid(what, "not an address"));
        }
    }
    let of_plugins = |pick: fn(&Attached) -> &Vec<String>| -> Vec<String> {
        attached.iter().flat_map(pick).cloned().collect()
    };
    let host = Resolver::parse(host);
    let servers = match source {
        Source::Resolver(ip) => vec![ip.to_string()],
        Source::Pod | Source::Host => first_filled([
            service.dns.clone(),
            keep(of_plugins(|a| &a.nameservers), |s| {
                s.parse::<IpAddr>().is_ok()
            }),
            keep(host.servers, |s| {
                source == Source::Host || !only_on_the_host(s)
            }),
        ]),
    };
    let search = first_filled([
        service.dns_search.clone(),
        keep(of_plugins(|a| &a.search), is_word),
        host.search,
    ]);
    let mut options = first_filled([service.dns_opt.clone(), host.options]);
    // a name of one word is a pod's or a service's, which no search domain makes better
    if matches!(source, Source::Resolver(_)) && !options.iter().any(|o| o.starts_with("ndots:")) {
        options.push("ndots:0".to_string());
    }
    let mut text: String = servers
        .iter()
        .map(|s| format!("nameserver {s}\n"))
        .collect();
    for (key, values) in [("search", search), ("options", options)] {
        if !values.is_empty() {
            text.push_str(&format!("{key} {}\n", values.join(" ")));
        }
    }
    Ok(text)
}

/// The servers that the host itself asks, as it is configured now.
pub fn host_nameservers() -> Vec<IpAddr> {
    let text = read("/etc/resolv.conf").unwrap_or_default();
    let servers = Resolver::parse(&text).servers;
    servers.iter().filter_map(|s| s.parse().ok()).collect()
}

/// The host's resolver configuration. Where `/etc/resolv.conf` names a stub on loopback only, systemd-resolved keeps
/// the real servers in a file of its own. Empty when there is none.
pub fn host_resolv_conf() -> Result<String, Error> {
    let text = read("/etc/resolv.conf")?;
    let usable = |text: &str| {
        Resolver::parse(text)
            .servers
            .iter()
            .any(|s| !only_on_the_host(s))
    };
    if usable(&text) {
        return Ok(text);
    }
    let real = read("/run/systemd/resolve/resolv.conf")?;
    Ok(if usable(&real) { real } else { text })
}

fn read(path: &str) -> Result<String, Error> {
    let mut bytes = Vec::new();
    match File::open(path).and_then(|file| file.take(MAX_FILE).read_to_end(&mut bytes)) {
        Ok(_) => Ok(String::from_utf8_lossy(&bytes).into_owned()),
        Err(e) if e.kind() == io::ErrorKind::NotFound => Ok(String::new()),
        Err(e) => Err(Error::io(format!("read {path}"))(e)),
    }
}

/// What a resolv.conf(5) says.
#[derive(Default)]
struct Resolver {
    servers: Vec<String>,
    search: Vec<String>,
    options: Vec<String>,
}

impl Resolver {
    fn parse(text: &str) -> Resolver {
        let mut resolver = Resolver::default();
        for line in text.lines() {
            let mut words = line.split_whitespace().map(str::to_string);
            match words.next().as_deref() {
                Some("nameserver") => resolver.servers.extend(words.next()),
                // the last one counts
                Some("search" | "domain") => resolver.search = words.collect(),
                Some("options") => resolver.options.extend(words),
                _ => {}
            }
        }
        resolver
    }
}

/// A loopback address of the host is another machine's in the pod, and so is a link-local one with its zone.
fn only_on_the_host(server: &str) -> bool {
    server.parse::<IpAddr>().map_or(true, |a| a.is_loopback())
}

/// An address as `extra_hosts` has it; `host-gateway` is all gateways.
fn addresses(text: &str, gateways: &[IpAddr], what: &str) -> Result<Vec<IpAddr>, Error> {
    if text == "host-gateway" {
        if gateways.is_empty() {
            let why = "`host-gateway` needs a network with a default route";
            return Err(Error::invalid(what, why));
        }
        return Ok(gateways.to_vec());
    }
    let bare = text.strip_prefix('[').and_then(|t| t.strip_suffix(']'));
    match bare.unwrap_or(text).parse() {
        Ok(address) => Ok(vec![address]),
        Err(_) => {
            let why = format!("`{text}` is neither an address nor `host-gateway`");
            Err(Error::invalid(what, why))
        }
    }
}

fn full_name(service: &Service) -> Option<String> {
    let host = service.hostname.as_deref()?;
    let domain = service.domainname.as_deref().filter(|d| !d.is_empty())?;
    Some(format!("{host}.{domain}"))
}

fn check_word(text: &str, what: &str) -> Result<(), Error> {
    if is_word(text) {
        return Ok(());
    }
    Err(Error::invalid(
        what,
        "must be one word without blanks and `#`",
    ))
}

fn is_word(text: &str) -> bool {
    !text.is_empty()
        && !text
            .chars()
            .any(|c| c.is_whitespace() || c.is_control() || c == '#')
}

fn keep(values: Vec<String>, good: impl Fn(&str) -> bool) -> Vec<String> {
    let mut kept: Vec<String> = Vec::new();
    for value in values {
        if good(&value) && !kept.contains(&value) {
            kept.push(value);
        }
    }
    kept
}

fn first_filled<const N: usize>(lists: [Vec<String>; N]) -> Vec<String> {
    lists
        .into_iter()
        .find(|list| !list.is_empty())
        .unwrap_or_default()
}

#[cfg(test)]
#[path = "hosts_tests.rs"]
mod tests;
