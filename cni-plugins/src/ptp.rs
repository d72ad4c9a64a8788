//! The plugin `ptp`: a veth pair whose host's end is the container's only neighbour.
//!
//! *Invariants*: the host's end has the gateways' addresses and a route to each of the container's; the container reaches
//! even its own subnet through the gateway. Whatever is on the host carries the attachment's tag.

use std::net::IpAddr;
use std::os::fd::AsFd;

use ipnet::IpNet;
use serde::Deserialize;
use serde_json::Value;

use crate::bridge::forward;
use crate::conf::Conf;
use crate::error::{CniError, Result, all, with_undo};
use crate::layer3::{self, Layer3, SetUp, interface};
use crate::link::{AddressFlags, Link, Links};
use crate::netns::{HostLock, Netns};
use crate::result::{AddResult, Dns, IpConfig, Route};
use crate::skel::{Invocation, Plugin};
use crate::tag::{self, tag};
use crate::{ipam, masquerade, sysctl, veth};

/// The commands.
pub const PLUGIN: Plugin = Plugin {
    add,
    del,
    check,
    gc,
    status,
};

#[derive(Debug, Default, Deserialize)]
#[serde(default, rename_all = "camelCase")]
struct PtpConf {
    ip_masq: bool,
    ip_masq_backend: Option<String>,
    mtu: u32,
    dns: Dns,
}

impl PtpConf {
    fn new(conf: &Conf) -> Result<Self> {
        let ptp: Self = conf.parse()?;
        masquerade::require_backend(ptp.ip_masq_backend.as_deref())?;
        if conf.ipam_type().is_none() {
            return Err(CniError::config(
                "ipam is missing: ptp is nothing without addresses",
            ));
        }
        Ok(ptp)
    }
}

/// rtnetlink(7): a destination on this host, as the reference plugin has it.
const HOST_SCOPE: u8 = 254;

/// A route over the pair.
fn over_pair(dst: IpNet, gw: Option<IpAddr>) -> Route {
    Route {
        dst,
        gw,
        mtu: None,
        advmss: None,
        priority: None,
        table: None,
        scope: None,
    }
}

/// The addresses of the host's end, and the container's routes to them and through them, with the address to send from.
fn plan(layer3: &mut Layer3) -> Result<Vec<(Route, Option<IpAddr>)>> {
    let mut routes = Vec::new();
    for IpConfig {
        address, gateway, ..
    } in &layer3.ips
    {
        let gateway = gateway.ok_or_else(|| {
            CniError::config(format!("the address plugin gave no gateway with {address}"))
        })?;
        let own = IpNet::from(gateway);
        let source = Some(address.addr());
        if !layer3.gateways.contains(&own) {
            layer3.gateways.push(own);
            routes.push((over_pair(own, None), source));
        }
        let net = over_pair(address.trunc(), Some(gateway));
        let is_new = routes.iter().all(|(route, _)| *route != net);
        if address.prefix_len() < address.max_prefix_len() && is_new {
            routes.push((net, source));
        }
    }
    routes.extend(layer3.resolved_routes().map(|route| (route, None)));
    Ok(routes)
}

fn add(conf: &Conf, invocation: &Invocation) -> Result<Value> {
    let ptp = PtpConf::new(conf)?;
    let tag = tag(&conf.name, &invocation.container_id, &invocation.ifname)?;
    let netns = Netns::open(invocation.required_netns()?)?;
    let (mut host, mut pod) = (Links::open()?, netns.run(Links::open)?);
    layer3::require_absent(&mut pod, &netns, &invocation.ifname)?;
    let mac = conf.mac(&invocation.args)?;
    let end = veth::create(
        &mut host,
        netns.as_fd(),
        &veth::Ends {
            name: &invocation.ifname,
            mtu: Some(ptp.mtu).filter(|mtu| *mtu > 0),
            mac,
            alias: &tag,
        },
    )?;
    let result = ipam::lease(conf, invocation, |leased| {
        let mut layer3 = Layer3::new(&ptp.dns, leased);
        let routes = plan(&mut layer3)?;
        set_up_host(&mut host, &end, &layer3)?;
        let how = SetUp {
            derive_mac: mac.is_none(),
            detect_duplicates: false,
            prefix_routes: false,
            addresses_alone: true,
        };
        layer3.set_up(&netns, &mut pod, &invocation.ifname, &how)?;
        let link = pod.require(&invocation.ifname)?;
        for (route, source) in &routes {
            pod.add_route_from(&link, route, *source)?;
        }
        host.wait_operational(&end)?;
        layer3::wait_until_usable(&mut pod, &link)?;
        if ptp.ip_masq {
            masquerade::add(&tag, &layer3.addresses(), &HostLock::take()?)?;
        }
        let interfaces = vec![interface(&end, None), interface(&link, Some(&netns))];
        layer3.into_result(interfaces, 1).to_json(&conf.cni_version)
    });
    result.map_err(|error| {
        let rules = if ptp.ip_masq {
            HostLock::take().and_then(|lock| masquerade::remove(&tag, &lock))
        } else {
            Ok(())
        };
        with_undo(error, all([host.delete(&end), rules]))
    })
}

/// The host's end, up, with the gateways' addresses and the routes to the container's.
fn set_up_host(host: &mut Links, end: &Link, layer3: &Layer3) -> Result<()> {
    sysctl::set_if_present(&["ipv6", "conf", &end.name, "accept_dad"], "0")?;
    if layer3.has_family(false) {
        sysctl::set(&["ipv6", "conf", &end.name, "disable_ipv6"], "0")?;
    } else {
        veth::without_ipv6(&end.name)?;
    }
    host.up(end)?;
    for gateway in &layer3.gateways {
        host.add_address(end, *gateway, AddressFlags::Nodad)?;
    }
    for ip in &layer3.ips {
        let route = Route {
            scope: Some(HOST_SCOPE),
            ..over_pair(IpNet::from(ip.address.addr()), None)
        };
        host.add_route(end, &route)?;
    }
    forward(layer3)
}

fn del(conf: &Conf, invocation: &Invocation) -> Result<()> {
    let ptp: PtpConf = conf.parse()?;
    let tag = tag(&conf.name, &invocation.container_id, &invocation.ifname)?;
    ipam::release(conf, invocation, || {
        all([
            layer3::delete_link(invocation),
            delete(&ptp, |alias| alias == tag),
        ])
    })
}

fn delete(ptp: &PtpConf, stale: impl Fn(&str) -> bool) -> Result<()> {
    let mut host = Links::open()?;
    let links = host.all()?;
    all([
        veth::delete_stale(&mut host, &links, &stale),
        if ptp.ip_masq {
            HostLock::take().and_then(|lock| masquerade::retain(|comment| !stale(comment), &lock))
        } else {
            Ok(())
        },
    ])
}

fn check(conf: &Conf, invocation: &Invocation) -> Result<()> {
    let ptp = PtpConf::new(conf)?;
    let result = conf.required_prev_result()?;
    ipam::call(conf, invocation)?;
    let netns = Netns::open(invocation.required_netns()?)?;
    let mut pod = netns.run(Links::open)?;
    layer3::check(&netns, &mut pod, &invocation.ifname, &result, true)?;
    let tag = tag(&conf.name, &invocation.container_id, &invocation.ifname)?;
    let nets: Vec<_> = result
        .container_ips(&invocation.ifname)
        .map(|ip| ip.address)
        .collect();
    check_host(&tag, &result, &nets)?;
    if ptp.ip_masq {
        masquerade::check(&tag, &nets)?;
    }
    Ok(())
}

fn check_host(tag: &str, result: &AddResult, nets: &[IpNet]) -> Result<()> {
    let mut host = Links::open()?;
    let wrong = |what: String| Err(CniError::check(what));
    let name = result
        .interfaces
        .iter()
        .find(|link| link.sandbox.is_empty())
        .map(|link| link.name.clone())
        .unwrap_or_default();
    let Some(end) = host.by_name(&name)? else {
        return wrong(format!("interface {name} is missing on the host"));
    };
    if end.alias != tag {
        return wrong(format!("interface {name} is not of this attachment"));
    }
    if !end.up {
        return wrong(format!("interface {name} is down on the host"));
    }
    let routes = host.routes(&end)?;
    for net in nets {
        let own = IpNet::from(net.addr());
        if !routes.iter().any(|route| route.dst == own) {
            return wrong(format!("interface {name} has lost its route to {own}"));
        }
    }
    Ok(())
}

fn gc(conf: &Conf, invocation: &Invocation) -> Result<()> {
    let ptp: PtpConf = conf.parse()?;
    let (valid, runtime) = (conf.valid_attachments()?, conf.runtime()?);
    all([
        delete(&ptp, |text| {
            tag::is_stale(&conf.name, runtime, &valid, text)
        }),
        ipam::call(conf, invocation),
    ])
}

fn status(conf: &Conf, invocation: &Invocation) -> Result<()> {
    PtpConf::new(conf)?;
    layer3::require_drivers(&mut Links::open()?, &["veth"])?;
    ipam::call(conf, invocation)
}
