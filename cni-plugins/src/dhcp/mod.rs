//! The plugin `dhcp`: an address from the network's own server, without a daemon.
//!
//! *Invariants*: the interface exists when ADD and DEL are called, which the plugin that calls this one sees to. A lease
//! that ADD answers with is on file and renewed by a process of its own ([`renewal`]); DEL ends the process before it
//! gives the lease back. Options and results are the reference plugin's, with name servers and MTU beside.

mod conf;
mod exchange;
mod lease;
mod message;
mod process;
pub mod renewal;

use std::collections::HashSet;
use std::fs;
use std::io;
use std::net::Ipv4Addr;
use std::os::unix::fs::MetadataExt;
use std::path::{Path, PathBuf};
use std::time::Instant;

use ipnet::Ipv4Net;
use serde_json::Value;

use crate::conf::Conf;
use crate::error::{CniError, NO_ADDRESS, NOT_AVAILABLE, OPERATION_FAILED, Result, all, with_undo};
use crate::link::{Link, Links};
use crate::netns::Netns;
use crate::result::AddResult;
use crate::skel::{Invocation, Plugin};
use conf::{DhcpConf, folder};
use exchange::{Client, Heard, Interface};
use lease::Lease;
use process::Process;

/// The commands.
pub const PLUGIN: Plugin = Plugin {
    add,
    del,
    check,
    gc,
    status,
};

/// Milliseconds since boot.
fn now() -> u64 {
    let now = rustix::time::clock_gettime(rustix::time::ClockId::Boottime);
    now.tv_sec.unsigned_abs() * 1000 + now.tv_nsec.unsigned_abs() / 1_000_000
}

/// The same moment in both clocks.
fn boottime(moment: Instant) -> u64 {
    now().saturating_sub(u64::try_from(moment.elapsed().as_millis()).unwrap_or(u64::MAX))
}

/// Device and inode of what is at `path`.
fn id_of(path: &Path) -> Option<(u64, u64)> {
    fs::metadata(path)
        .ok()
        .map(|found| (found.dev(), found.ino()))
}

fn lease_path(conf: &Conf, invocation: &Invocation) -> PathBuf {
    lease::path(&folder(conf), &invocation.container_id, &invocation.ifname)
}

fn add(conf: &Conf, invocation: &Invocation) -> Result<Value> {
    let (id, ifname) = (&invocation.container_id, &invocation.ifname);
    let client_id = format!("{id}/{}/{ifname}", conf.name);
    let dhcp = DhcpConf::new(conf, &invocation.args, &client_id)?;
    let runtime = conf.runtime()?;
    let path = lease_path(conf, invocation);
    if let Some(held) = Lease::read(&path)? {
        return Err(CniError::new(
            NO_ADDRESS,
            format!("{ifname} of {id} has the lease of {} already", held.address),
        )
        .because(format!("{}; DEL gives it back", path.display())));
    }
    let netns = Netns::open(invocation.required_netns()?)?;
    let mut links = netns.run(Links::open)?;
    let link = links.require(ifname)?;
    let client = Client {
        ifname,
        mac: mac_of(&link)?,
        options: &dhcp.options,
        broadcast: dhcp.broadcast,
    };
    links.up(&link)?;
    let interface = netns.run(|| Interface::open(ifname))?;
    let heard = client.acquire(&interface, dhcp.timeout, |answer| {
        lease::acceptable(answer).map(|_| ())
    })?;
    let (address, server) = lease::acceptable(&heard.answer).map_err(|why| {
        CniError::new(OPERATION_FAILED, format!("no address for {ifname}: {why}"))
    })?;
    let mut keep = || -> Result<Value> {
        let result = settle(&mut links, &link, &dhcp, &heard, address)?;
        let result = result.to_json(&conf.cni_version)?;
        let folder = folder(conf);
        fs::create_dir_all(&folder).map_err(|cause| CniError::io("create", &folder, &cause))?;
        let mut lease = Lease {
            container_id: id.clone(),
            ifname: ifname.clone(),
            runtime: runtime.to_owned(),
            netns: netns.path().to_owned(),
            netns_id: id_of(netns.path()).unwrap_or_default(),
            mac: client.mac,
            address,
            server,
            server_mac: heard.mac,
            options: dhcp.options.clone(),
            broadcast: dhcp.broadcast,
            times: lease::times(&heard.answer, boottime(heard.asked)),
            process: Process { pid: 0, start: 0 },
            lost: None,
        };
        // it waits for the file: without one it ends
        lease.process = Process::spawn(&path)?;
        lease
            .write(&path)
            .map_err(|error| with_undo(error, lease.process.end()))?;
        Ok(result)
    };
    keep().map_err(|error| {
        let released = client.release(&interface, address.addr(), (server, heard.mac));
        with_undo(error, released)
    })
}

fn mac_of(link: &Link) -> Result<[u8; 6]> {
    <[u8; 6]>::try_from(&*link.mac).map_err(|_| {
        CniError::config(format!(
            "DHCP over {}: it has no Ethernet address",
            link.name
        ))
    })
}

/// The answer of ADD; the interface has the network's MTU then.
fn settle(
    links: &mut Links,
    link: &Link,
    dhcp: &DhcpConf,
    heard: &Heard,
    address: Ipv4Net,
) -> Result<AddResult> {
    if let Some(mtu) = lease::mtu(&heard.answer, link.mtu) {
        links.set_mtu(link, mtu)?;
    }
    Ok(lease::result(&heard.answer, address, dhcp))
}

fn del(conf: &Conf, invocation: &Invocation) -> Result<()> {
    let path = lease_path(conf, invocation);
    match Lease::read(&path) {
        Ok(Some(lease)) => take_back(&lease, &path),
        Ok(None) => Ok(()),
        // it is this attachment's whatever it says; its process ends when it sees that
        Err(error) => Err(with_undo(error, lease::remove(&path))),
    }
}

fn take_back(lease: &Lease, path: &Path) -> Result<()> {
    // first, or it could ask for the address after it was given back
    let ended = lease.process.end();
    let released = if lease.lost.is_none() && lease.times.end > now() {
        release(lease)
    } else {
        Ok(())
    };
    all([ended, released, lease::remove(path)])
}

/// Gives the address back where there is still an interface to do it; otherwise the lease ends by itself.
fn release(lease: &Lease) -> Result<()> {
    let Some(netns) = netns_of(lease)? else {
        return Ok(());
    };
    let mut links = netns.run(Links::open)?;
    match links.by_name(&lease.ifname)? {
        Some(link) if link.up => {}
        _ => return Ok(()),
    }
    let interface = netns.run(|| Interface::open(&lease.ifname))?;
    let server: (Ipv4Addr, [u8; 6]) = (lease.server, lease.server_mac);
    lease
        .client()
        .release(&interface, lease.address.addr(), server)
}

/// The namespace that the lease was got in, unless its path leads elsewhere now.
fn netns_of(lease: &Lease) -> Result<Option<Netns>> {
    if id_of(&lease.netns) != Some(lease.netns_id) {
        return Ok(None);
    }
    Netns::open_if_present(&lease.netns)
}

impl Lease {
    fn client(&self) -> Client<'_> {
        Client {
            ifname: &self.ifname,
            mac: self.mac,
            options: &self.options,
            broadcast: self.broadcast,
        }
    }
}

fn check(conf: &Conf, invocation: &Invocation) -> Result<()> {
    let ifname = &invocation.ifname;
    let result = conf.required_prev_result()?;
    let Some(lease) = Lease::read(&lease_path(conf, invocation))? else {
        return Err(CniError::check(format!("dhcp: {ifname} has no lease")));
    };
    let address = lease.address;
    if let Some(why) = &lease.lost {
        return Err(CniError::check(format!(
            "dhcp: {ifname} lost {address}: {why}"
        )));
    }
    if !lease.process.is_alive() {
        return Err(CniError::check(format!(
            "dhcp: nobody renews {address} of {ifname}: process {} has ended",
            lease.process.pid
        )));
    }
    if !result.ips.iter().any(|ip| ip.address == address.into()) {
        return Err(CniError::check(format!(
            "dhcp: the lease of {ifname} is for {address}, which is not in prevResult"
        )));
    }
    Ok(())
}

fn gc(conf: &Conf, _: &Invocation) -> Result<()> {
    let attachments = conf.valid_attachments()?;
    let valid: HashSet<(&str, &str)> = attachments
        .iter()
        .map(|attachment| (&*attachment.container_id, &*attachment.ifname))
        .collect();
    let runtime = conf.runtime()?;
    let folder = folder(conf);
    let entries = match fs::read_dir(&folder) {
        Err(cause) if cause.kind() == io::ErrorKind::NotFound => return Ok(()),
        entries => entries.map_err(|cause| CniError::io("read", &folder, &cause))?,
    };
    let mut steps = Vec::new();
    for entry in entries {
        let path = entry
            .map_err(|cause| CniError::io("read", &folder, &cause))?
            .path();
        if path.extension().is_none_or(|extension| extension != "json") {
            continue;
        }
        steps.push(match Lease::read(&path) {
            Ok(Some(lease))
                if lease.runtime == runtime
                    && !valid.contains(&(&*lease.container_id, &*lease.ifname)) =>
            {
                take_back(&lease, &path)
            }
            read => read.map(|_| ()),
        });
    }
    all(steps)
}

fn status(conf: &Conf, invocation: &Invocation) -> Result<()> {
    let folder = folder(conf);
    DhcpConf::new(conf, &invocation.args, "")
        .and_then(|_| {
            fs::create_dir_all(&folder).map_err(|cause| CniError::io("create", &folder, &cause))
        })
        .map_err(|error| CniError::new(NOT_AVAILABLE, "dhcp can't get a lease").because(error))
}
