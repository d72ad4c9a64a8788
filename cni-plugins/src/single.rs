//! Plugins whose attachment is one interface in the container and nothing on the host: what they share.
//!
//! *Invariants*: the interface is born in the container's namespace under its final name, so nothing is ever left on the
//! host. It is there before the address plugin is called, which may need it (DHCP), and goes when that fails.

use std::os::fd::AsFd;

use serde::Deserialize;
use serde_json::Value;

use crate::conf::{Conf, valid_ifname};
use crate::error::{CniError, Result, with_undo};
use crate::ipam;
use crate::layer3::{self, Layer3, SetUp, interface};
use crate::link::{Kind, Link, Links, NewLink};
use crate::netns::{Netns, open_own};
use crate::result::{AddResult, Dns};
use crate::skel::Invocation;

/// The host and the container.
pub struct Sides<'a> {
    /// The container's namespace.
    pub netns: &'a Netns,
    /// The host's links.
    pub host: Links,
    /// The container's links.
    pub pod: Links,
    /// `CNI_IFNAME`.
    pub ifname: &'a str,
    /// The link address asked for.
    pub mac: Option<[u8; 6]>,
    /// The interface may get the link address that follows from its first address.
    derive_mac: bool,
    /// Packets ought to pass as soon as the interface is up, and ADD waits until the kernel has noticed.
    pub wait: bool,
}

/// An interface to make in the container.
#[derive(Debug)]
pub struct Making {
    /// What it is.
    pub kind: Kind,
    /// The interface that it stands on.
    pub lower: Option<Link>,
    /// That one is in the container too.
    pub in_container: bool,
    /// MTU in bytes; `None`: the kernel's.
    pub mtu: Option<u32>,
    /// It has a link address of its own.
    pub own_mac: bool,
}

#[derive(Debug, Default, Deserialize)]
#[serde(default)]
struct Common {
    dns: Dns,
}

/// The keys about the interface that another one stands on.
#[derive(Debug, Default, Deserialize)]
#[serde(default, rename_all = "camelCase")]
pub struct Lower {
    /// Its name; empty: that of the default route.
    pub master: String,
    /// It is in the container.
    pub link_in_container: bool,
    /// MTU of the new one in bytes; 0: the kernel's.
    pub mtu: u32,
}

impl Lower {
    /// Finds it, and holds the MTU against it.
    pub fn find(&self, sides: &mut Sides<'_>) -> Result<Link> {
        let links = if self.link_in_container {
            &mut sides.pod
        } else {
            &mut sides.host
        };
        self.find_in(links)
    }

    fn find_in(&self, links: &mut Links) -> Result<Link> {
        let link = if self.master.is_empty() {
            links.default_interface()?.ok_or_else(|| {
                CniError::config("no master is given and there is no default route")
            })?
        } else if valid_ifname(&self.master) {
            links.by_name(&self.master)?.ok_or_else(|| {
                CniError::operation(format!("master {} not found", self.master), "")
            })?
        } else {
            return Err(CniError::config(format!(
                "invalid master {:?}",
                self.master
            )));
        };
        if self.mtu > link.mtu {
            return Err(CniError::config(format!(
                "invalid mtu {}: {} has {}",
                self.mtu, link.name, link.mtu
            )));
        }
        Ok(link)
    }

    /// What to make on it.
    pub fn making(&self, sides: &mut Sides<'_>, kind: Kind, own_mac: bool) -> Result<Making> {
        Ok(Making {
            kind,
            lower: Some(self.find(sides)?),
            in_container: self.link_in_container,
            mtu: Some(self.mtu).filter(|mtu| *mtu > 0),
            own_mac,
        })
    }

    /// CHECK: a link stands on it.
    pub fn check(&self, sides: &mut Sides<'_>, link: &Link) -> Result<()> {
        let lower = self
            .find(sides)
            .map_err(|error| CniError::check(error.to_string()))?;
        if link.lower == Some(lower.index) {
            return Ok(());
        }
        Err(CniError::check(format!(
            "interface {} does not stand on {}",
            link.name, lower.name
        )))
    }

    /// STATUS: the kernel knows the kind, and the interface is there as far as can be seen without a container.
    pub fn status(&self, kind: &str) -> Result<()> {
        let mut host = Links::open()?;
        layer3::require_drivers(&mut host, &[kind])?;
        if self.link_in_container {
            return Ok(());
        }
        self.find_in(&mut host)
            .map(|_| ())
            .map_err(CniError::unavailable)
    }
}

impl Sides<'_> {
    /// Makes the container's interface.
    pub fn create(&mut self, making: &Making) -> Result<Link> {
        let lower_netns = if making.in_container {
            None
        } else {
            Some(self.pod.netns_id(open_own()?.as_fd())?)
        };
        if self.mac.is_some() && !making.own_mac {
            return Err(CniError::config(format!(
                "a {} has the link address of the interface that it stands on, none of its own",
                making.kind.name()
            )));
        }
        self.pod.create(&NewLink {
            name: self.ifname,
            kind: making.kind.clone(),
            lower: making.lower.as_ref().map(|link| link.index),
            lower_netns,
            mtu: making.mtu,
            mac: self.mac,
        })?;
        self.derive_mac = making.own_mac && self.mac.is_none();
        self.wait = making.lower.as_ref().is_none_or(|link| link.operational);
        self.pod.require(self.ifname)
    }
}

impl Sides<'_> {
    /// Gives an interface that was made otherwise MTU and link address.
    pub fn adopt(&mut self, mtu: Option<u32>) -> Result<()> {
        let link = self.pod.require(self.ifname)?;
        if let Some(mtu) = mtu {
            self.pod.set_mtu(&link, mtu)?;
        }
        if let Some(mac) = self.mac {
            self.pod.set_mac(&link, &mac)?;
        }
        self.derive_mac = self.mac.is_none();
        Ok(())
    }
}

/// Opens both sides and calls `work`.
fn with_sides<T>(
    conf: &Conf,
    invocation: &Invocation,
    work: impl FnOnce(&mut Sides<'_>) -> Result<T>,
) -> Result<T> {
    let netns = Netns::open(invocation.required_netns()?)?;
    let mut sides = Sides {
        host: Links::open()?,
        pod: netns.run(Links::open)?,
        netns: &netns,
        ifname: &invocation.ifname,
        mac: conf.mac(&invocation.args)?,
        derive_mac: false,
        wait: false,
    };
    work(&mut sides)
}

/// ADD: `make` makes the interface, or leaves nothing.
pub fn add(
    conf: &Conf,
    invocation: &Invocation,
    make: impl FnOnce(&mut Sides<'_>) -> Result<()>,
) -> Result<Value> {
    add_with(conf, invocation, AddResult::default(), make)
}

/// As [`add`]; `given` has the addresses where no address plugin is configured.
pub fn add_with(
    conf: &Conf,
    invocation: &Invocation,
    given: AddResult,
    make: impl FnOnce(&mut Sides<'_>) -> Result<()>,
) -> Result<Value> {
    add_undone_by(conf, invocation, given, make, |_| {
        layer3::delete_link(invocation)
    })
}

/// As [`add_with`]; `undo` undoes what `make` did, even by half.
pub fn add_undone_by(
    conf: &Conf,
    invocation: &Invocation,
    given: AddResult,
    make: impl FnOnce(&mut Sides<'_>) -> Result<()>,
    undo: impl FnOnce(&mut Sides<'_>) -> Result<()>,
) -> Result<Value> {
    let Common { dns } = conf.parse()?;
    with_sides(conf, invocation, |sides| {
        layer3::require_absent(&mut sides.pod, sides.netns, sides.ifname)?;
        let done = make(sides).and_then(|()| {
            ipam::lease(conf, invocation, |leased| {
                let addresses = if conf.ipam_type().is_some() {
                    leased
                } else {
                    given
                };
                finish(sides, Layer3::new(&dns, addresses))?.to_json(&conf.cni_version)
            })
        });
        done.map_err(|error| with_undo(error, undo(sides)))
    })
}

fn finish(sides: &mut Sides<'_>, layer3: Layer3) -> Result<AddResult> {
    let set_up = SetUp {
        derive_mac: sides.derive_mac,
        detect_duplicates: false,
        prefix_routes: true,
        // it is in somebody else's network, whose routers are its own
        addresses_alone: false,
    };
    layer3.set_up(sides.netns, &mut sides.pod, sides.ifname, &set_up)?;
    let link = sides.pod.require(sides.ifname)?;
    if sides.wait {
        layer3::wait_until_usable(&mut sides.pod, &link)?;
    }
    Ok(layer3.into_result(vec![interface(&link, Some(sides.netns))], 0))
}

/// DEL.
pub fn del(conf: &Conf, invocation: &Invocation) -> Result<()> {
    ipam::release(conf, invocation, || layer3::delete_link(invocation))
}

/// CHECK: `compare` looks at what the kind has of its own.
pub fn check(
    conf: &Conf,
    invocation: &Invocation,
    compare: impl FnOnce(&mut Sides<'_>, &Link) -> Result<()>,
) -> Result<()> {
    let result = conf.required_prev_result()?;
    ipam::call(conf, invocation)?;
    with_sides(conf, invocation, |sides| {
        let link = layer3::check(sides.netns, &mut sides.pod, sides.ifname, &result, true)?;
        compare(sides, &link)
    })
}

/// GC: nothing of ours can be left on the host.
pub fn gc(conf: &Conf, invocation: &Invocation) -> Result<()> {
    conf.valid_attachments()?;
    ipam::call(conf, invocation)
}

/// STATUS, after what the kind has of its own.
pub fn status(conf: &Conf, invocation: &Invocation) -> Result<()> {
    ipam::call(conf, invocation)
}

/// CHECK: whether a link is what was made.
pub fn same_kind(link: &Link, wanted: &Kind) -> Result<()> {
    match &link.details {
        Some(found) if found == wanted => Ok(()),
        Some(found) => Err(CniError::check(format!(
            "interface {} is a {found}, not a {wanted}",
            link.name
        ))),
        None => Err(CniError::check(format!(
            "interface {} is no {}",
            link.name,
            wanted.name()
        ))),
    }
}
