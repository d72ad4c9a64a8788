//! The plugin `loopback`: brings the namespace's `lo` up.
//!
//! *Invariants*: only the interface `lo` is touched, whatever `CNI_IFNAME` says. Called after another plugin it passes
//! that one's result on.

use serde_json::Value;

use crate::conf::{Conf, format_mac};
use crate::error::{CniError, Result};
use crate::link::Links;
use crate::netns::Netns;
use crate::result::{AddResult, Interface, IpConfig, sandbox};
use crate::skel::{Invocation, Plugin};

const LO: &str = "lo";

/// The commands.
pub const PLUGIN: Plugin = Plugin {
    add,
    del,
    check,
    gc: |_, _| Ok(()),
    status: |_, _| Ok(()),
};

fn add(conf: &Conf, invocation: &Invocation) -> Result<Value> {
    let netns = Netns::open(invocation.required_netns()?)?;
    let mut links = netns.run(Links::open)?;
    let lo = links.require(LO)?;
    links.up(&lo)?;
    if conf.prev_result()?.is_some() {
        return conf.passed_on();
    }
    let ips = links.addresses(&lo)?.into_iter().map(|address| IpConfig {
        interface: Some(0),
        address,
        gateway: None,
    });
    let result = AddResult {
        ips: ips.collect(),
        interfaces: vec![Interface {
            name: lo.name,
            mac: format_mac(&lo.mac),
            mtu: 0,
            sandbox: sandbox(netns.path()),
        }],
        ..AddResult::default()
    };
    result.to_json(&conf.cni_version)
}

fn del(_: &Conf, invocation: &Invocation) -> Result<()> {
    let Some(netns) = Netns::of_del(invocation)? else {
        return Ok(());
    };
    let mut links = netns.run(Links::open)?;
    match links.by_name(LO)? {
        Some(lo) => links.down(&lo),
        None => Ok(()),
    }
}

fn check(_: &Conf, invocation: &Invocation) -> Result<()> {
    let netns = Netns::open(invocation.required_netns()?)?;
    if netns.run(Links::open)?.require(LO)?.up {
        Ok(())
    } else {
        Err(CniError::check(format!(
            "loopback interface is down in {}",
            netns.path().display()
        )))
    }
}
