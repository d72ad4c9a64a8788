//! The plugin `tap`: an interface whose other end is a program, such as a virtual machine's.
//!
//! *Invariants*: those of module `single`.

use serde::Deserialize;
use serde_json::Value;

use crate::conf::{Conf, valid_ifname};
use crate::error::{CniError, Result};
use crate::link::Link;
use crate::single::{self, Sides};
use crate::skel::{Invocation, Plugin};
use crate::tun::{self, Access};

/// The commands.
pub const PLUGIN: Plugin = Plugin {
    add,
    del: single::del,
    check,
    gc: single::gc,
    status,
};

#[derive(Debug, Default, Deserialize)]
#[serde(default, rename_all = "camelCase")]
struct TapConf {
    multi_queue: bool,
    mtu: u32,
    owner: Option<u32>,
    group: Option<u32>,
    selinux_context: String,
    bridge: String,
}

impl TapConf {
    fn new(conf: &Conf) -> Result<Self> {
        let tap: Self = conf.parse()?;
        if !tap.selinux_context.is_empty() {
            return Err(CniError::unsupported(
                "selinuxContext",
                "labels of sockets are not set",
            ));
        }
        if !tap.bridge.is_empty() && !valid_ifname(&tap.bridge) {
            return Err(CniError::config(format!(
                "invalid bridge name {:?}",
                tap.bridge
            )));
        }
        Ok(tap)
    }

    fn bridge(&self, sides: &mut Sides<'_>) -> Result<Option<Link>> {
        if self.bridge.is_empty() {
            return Ok(None);
        }
        let link = sides.pod.by_name(&self.bridge)?.ok_or_else(|| {
            CniError::operation(
                format!("bridge {} not found in the container", self.bridge),
                "",
            )
        })?;
        Ok(Some(link))
    }
}

fn add(conf: &Conf, invocation: &Invocation) -> Result<Value> {
    let tap = TapConf::new(conf)?;
    single::add(conf, invocation, |sides| {
        let bridge = tap.bridge(sides)?;
        let access = Access {
            owner: tap.owner,
            group: tap.group,
            multi_queue: tap.multi_queue,
        };
        sides.netns.run(|| tun::create(sides.ifname, access))?;
        sides.adopt(Some(tap.mtu).filter(|mtu| *mtu > 0))?;
        if let Some(bridge) = bridge {
            let link = sides.pod.require(sides.ifname)?;
            sides.pod.attach(&link, &bridge)?;
        }
        Ok(())
    })
}

fn check(conf: &Conf, invocation: &Invocation) -> Result<()> {
    let tap = TapConf::new(conf)?;
    single::check(conf, invocation, |sides, link| {
        let wrong = |what: String| Err(CniError::check(format!("interface {} {what}", link.name)));
        if link.kind != "tun" {
            return wrong("is no tap".to_owned());
        }
        match tap
            .bridge(sides)
            .map_err(|error| CniError::check(error.msg))?
        {
            Some(bridge) if link.controller != Some(bridge.index) => {
                wrong(format!("is no port of the bridge {}", bridge.name))
            }
            _ => Ok(()),
        }
    })
}

fn status(conf: &Conf, invocation: &Invocation) -> Result<()> {
    TapConf::new(conf)?;
    tun::require().map_err(CniError::unavailable)?;
    single::status(conf, invocation)
}
