//! What filtering has to know of links and tell them.

use std::net::IpAddr;

use rtnetlink::LinkUnspec;
use rtnetlink::packet_core::NLM_F_DUMP;
use rtnetlink::packet_route::AddressFamily;
use rtnetlink::packet_route::RouteNetlinkMessage as Message;
use rtnetlink::packet_route::address::AddressMessage;
use rtnetlink::packet_route::link::{InfoBridge, InfoData, InfoKind, LinkAttribute, LinkInfo};

use super::message::address_of;
use super::{Link, Links};
use crate::error::{CniError, Result};
use crate::result::AddResult;

impl Links {
    /// The host's end of the veth pair that a result is about, looked up again.
    pub fn host_end(&mut self, result: &AddResult) -> Result<Option<Link>> {
        for interface in result.interfaces.iter().filter(|i| i.sandbox.is_empty()) {
            let link = self.by_name(&interface.name)?;
            if let Some(link) = link.filter(|link| link.kind == "veth") {
                return Ok(Some(link));
            }
        }
        Ok(None)
    }

    /// Has a bridge show the packets that it passes on to the hooks of IP, where the kernel has br_netfilter.
    pub fn show_to_netfilter(&mut self, bridge: &Link) -> Result<()> {
        let mut message = LinkUnspec::new_with_index(bridge.index).build();
        message.attributes.push(LinkAttribute::LinkInfo(vec![
            LinkInfo::Kind(InfoKind::Bridge),
            LinkInfo::Data(InfoData::Bridge(vec![
                InfoBridge::NfCallIpTables(true),
                InfoBridge::NfCallIp6Tables(true),
            ])),
        ]));
        self.call(Message::NewLink(message), 0)
            .map(|_| ())
            .map_err(|cause| {
                let what = format!("cannot show the packets of {} to netfilter", bridge.name);
                CniError::operation(what, cause)
            })
    }

    /// Every address of the namespace.
    pub fn all_addresses(&mut self) -> Result<Vec<IpAddr>> {
        let mut found = Vec::new();
        for family in [AddressFamily::Inet, AddressFamily::Inet6] {
            let mut message = AddressMessage::default();
            message.header.family = family;
            let answer = self
                .call(Message::GetAddress(message), NLM_F_DUMP)
                .map_err(|cause| CniError::operation("cannot list the addresses", cause))?;
            found.extend(answer.into_iter().filter_map(|message| match message {
                Message::NewAddress(found) => address_of(&found).map(|(net, _)| net.addr()),
                _ => None,
            }));
        }
        Ok(found)
    }
}
