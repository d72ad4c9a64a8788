//! The plugin `vrf`: the interface in a routing domain of its own (VRF) inside the container.
//!
//! *Invariants*: joining a VRF takes no address and no route from the interface. A VRF that this plugin made bears our
//! mark as its alias and goes with its last interface; one that was there before stays.

use serde::Deserialize;
use serde_json::Value;

use crate::conf::{Conf, valid_ifname};
use crate::error::{CniError, Result, with_undo};
use crate::layer3::require_drivers;
use crate::link::{AddressFlags, Kind, Link, Links, NewLink};
use crate::netns::{HostLock, Netns};
use crate::skel::{Invocation, Plugin};

/// The commands.
pub const PLUGIN: Plugin = Plugin {
    add,
    del,
    check,
    gc: |_, _| Ok(()),
    status,
};

/// The alias of VRFs that are made here. Several networks can share one.
const MARK: &str = "sampan:vrf";
const FIRST_TABLE: u32 = 1;

#[derive(Debug, Deserialize)]
struct VrfConf {
    #[serde(default, rename = "vrfname")]
    name: String,
    #[serde(default)]
    table: u32,
}

impl VrfConf {
    fn new(conf: &Conf) -> Result<Self> {
        let vrf: Self = conf.parse()?;
        if !valid_ifname(&vrf.name) {
            return Err(CniError::config(format!(
                "vrfname {:?} is no name of an interface",
                vrf.name
            )));
        }
        Ok(vrf)
    }

    fn find(&self, pod: &mut Links) -> Result<Option<Link>> {
        let Some(link) = pod.by_name(&self.name)? else {
            return Ok(None);
        };
        match link.vrf_table() {
            None => Err(CniError::operation(
                format!("interface {} exists and is no VRF", self.name),
                "",
            )),
            Some(_) => Ok(Some(link)),
        }
    }

    fn find_or_make(&self, pod: &mut Links) -> Result<Link> {
        if let Some(link) = self.find(pod)? {
            let table = link.vrf_table().unwrap_or_default();
            if self.table != 0 && self.table != table {
                return Err(CniError::operation(
                    format!(
                        "VRF {} exists with routing table {table} instead of {}",
                        self.name, self.table
                    ),
                    "",
                ));
            }
            return Ok(link);
        }
        let table = match self.table {
            0 => pod.free_table(FIRST_TABLE)?,
            table => table,
        };
        pod.create(&NewLink {
            name: &self.name,
            kind: Kind::Vrf(table),
            lower: None,
            lower_netns: None,
            mtu: None,
            mac: None,
        })?;
        let link = pod.require(&self.name)?;
        pod.set_alias(&link, MARK)
            .and_then(|()| pod.up(&link))
            .map_err(|error| with_undo(error, pod.delete(&link)))?;
        pod.require(&self.name)
    }
}

fn add(conf: &Conf, invocation: &Invocation) -> Result<Value> {
    let vrf_conf = VrfConf::new(conf)?;
    let answer = conf.passed_on()?;
    let netns = Netns::open(invocation.required_netns()?)?;
    // its last interface may be leaving right now
    let _lock = netns.run(HostLock::take)?;
    let mut pod = netns.run(Links::open)?;
    let link = pod.require(&invocation.ifname)?;
    if let Some(other) = link.controller {
        let other = pod.by_index(other)?.unwrap_or_default().name;
        return Err(CniError::operation(
            format!("interface {} is part of {other:?} already", link.name),
            "",
        ));
    }
    let vrf = vrf_conf.find_or_make(&mut pod)?;
    join(&mut pod, &link, &vrf).map_err(|error| with_undo(error, leave(&mut pod, &link, &vrf)))?;
    Ok(answer)
}

/// The kernel takes an interface down for this, and with it go its routes and, unless keep_addr_on_down is set, its
/// addresses of IPv6.
fn join(pod: &mut Links, link: &Link, vrf: &Link) -> Result<()> {
    let addresses = pod.addresses(link)?;
    let routes = pod.main_routes(link)?;
    pod.attach(link, vrf)?;
    for address in addresses {
        pod.add_address(link, address, AddressFlags::Nodad)?;
    }
    let table = vrf.vrf_table().unwrap_or_default();
    // those of addresses are there again with the addresses
    for route in routes
        .iter()
        .filter(|route| route.gateway().is_some() || !route.is_kernels())
    {
        pod.replace_route(&route.in_table(table))?;
    }
    Ok(())
}

fn leave(pod: &mut Links, link: &Link, vrf: &Link) -> Result<()> {
    if pod.by_index(link.index)?.and_then(|now| now.controller) == Some(vrf.index) {
        pod.detach(link)?;
    }
    remove_if_empty(pod, vrf)
}

fn remove_if_empty(pod: &mut Links, vrf: &Link) -> Result<()> {
    let empty = pod
        .all()?
        .iter()
        .all(|link| link.controller != Some(vrf.index));
    if empty && vrf_is_ours(pod, vrf)? {
        pod.delete(vrf)?;
    }
    Ok(())
}

fn vrf_is_ours(pod: &mut Links, vrf: &Link) -> Result<bool> {
    Ok(pod
        .by_index(vrf.index)?
        .is_some_and(|now| now.alias == MARK))
}

fn del(conf: &Conf, invocation: &Invocation) -> Result<()> {
    let vrf_conf = VrfConf::new(conf)?;
    let Some(netns) = Netns::of_del(invocation)? else {
        return Ok(());
    };
    let _lock = netns.run(HostLock::take)?;
    let mut pod = netns.run(Links::open)?;
    let Some(vrf) = vrf_conf.find(&mut pod)? else {
        return Ok(());
    };
    match pod.by_name(&invocation.ifname)? {
        Some(link) => leave(&mut pod, &link, &vrf),
        None => remove_if_empty(&mut pod, &vrf),
    }
}

fn check(conf: &Conf, invocation: &Invocation) -> Result<()> {
    let vrf_conf = VrfConf::new(conf)?;
    conf.required_prev_result()?;
    let netns = Netns::open(invocation.required_netns()?)?;
    let mut pod = netns.run(Links::open)?;
    let name = &vrf_conf.name;
    let Some(vrf) = vrf_conf.find(&mut pod)? else {
        return Err(CniError::check(format!("vrf: {name} is missing")));
    };
    if vrf_conf.table != 0 && vrf.vrf_table() != Some(vrf_conf.table) {
        return Err(CniError::check(format!(
            "vrf: {name} has another routing table than {}",
            vrf_conf.table
        )));
    }
    let link = pod.require(&invocation.ifname)?;
    if link.controller != Some(vrf.index) {
        return Err(CniError::check(format!(
            "vrf: {} is not in {name}",
            link.name
        )));
    }
    Ok(())
}

fn status(conf: &Conf, _: &Invocation) -> Result<()> {
    VrfConf::new(conf).map_err(CniError::unavailable)?;
    require_drivers(&mut Links::open()?, &["vrf"])
}
