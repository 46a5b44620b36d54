//! Links, addresses and routes. All of rtnetlink that we use is in this file.

use std::net::{IpAddr, Ipv4Addr, Ipv6Addr};

use banger_api::network::Counters;
use banger_api::{Error, Result};
use futures_util::TryStreamExt;
use ipnet::IpNet;
use rtnetlink::packet_route::AddressFamily;
use rtnetlink::packet_route::address::{AddressAttribute, AddressHeaderFlags, AddressMessage};
use rtnetlink::packet_route::link::{InfoKind, LinkAttribute, LinkFlags, LinkInfo, LinkMessage, Stats64};
use rtnetlink::packet_route::route::{RouteAddress, RouteAttribute, RouteMessage, RouteType};
use rtnetlink::{
    AddressMessageBuilder, Handle, LinkBridge, LinkMessageBuilder, LinkUnspec, RouteMessageBuilder,
};

use crate::plan::Route;

/// A connection to the kernel. Cheap to clone.
#[derive(Clone)]
pub struct Netlink(Handle);

/// A network interface.
#[derive(Debug, Clone, PartialEq, Eq)]
pub struct Link {
    pub index: u32,
    pub name: String,
    pub is_bridge: bool,
    pub is_tun: bool,
    pub is_up: bool,
    pub alias: Option<String>,
    /// Index of the bridge it is a port of.
    pub controller: Option<u32>,
    pub mtu: u32,
    /// What went through it, as whoever is at its other end sees it.
    pub counters: Counters,
}

/// The kernel's table of its own addresses, which says nothing that other tables do not.
const TABLE_LOCAL: u32 = 255;

impl Netlink {
    pub fn open() -> Result<Self> {
        let (connection, handle, _) = rtnetlink::new_connection()?;
        tokio::spawn(connection);
        Ok(Self(handle))
    }

    pub async fn links(&self) -> Result<Vec<Link>> {
        let links: Vec<LinkMessage> = self
            .0
            .link()
            .get()
            .execute()
            .try_collect()
            .await
            .map_err(|error| failed("list the interfaces", &error))?;
        Ok(links.into_iter().map(Link::from).collect())
    }

    pub async fn link(&self, name: &str) -> Result<Option<Link>> {
        match self.0.link().get().match_name(name).execute().try_next().await {
            Ok(link) => Ok(link.map(Link::from)),
            Err(error) if is(&error, nix::libc::ENODEV) => Ok(None),
            Err(error) => Err(failed(&format!("look for {name}"), &error)),
        }
    }

    pub async fn add_bridge(&self, name: &str, mac: [u8; 6], alias: &str) -> Result<()> {
        // A bridge without an address of its own changes it with its ports, and guests would have
        // to ask again.
        let message = LinkBridge::new(name).address(mac.to_vec()).build();
        self.0
            .link()
            .add(message)
            .execute()
            .await
            .map_err(|error| failed(&format!("make the bridge {name}"), &error))?;
        self.set(name, LinkUnspec::new_with_name(name).alias(alias)).await
    }

    /// Brings an interface up.
    pub async fn up(&self, name: &str) -> Result<()> {
        self.set(name, LinkUnspec::new_with_name(name).up()).await
    }

    pub async fn set_mtu(&self, link: &Link, mtu: u32) -> Result<()> {
        self.set(&link.name, LinkUnspec::new_with_index(link.index).mtu(mtu)).await
    }

    /// Makes an interface a port of a bridge.
    pub async fn attach(&self, name: &str, bridge: &Link, alias: &str) -> Result<()> {
        let message = LinkUnspec::new_with_name(name).alias(alias).mtu(bridge.mtu).controller(bridge.index);
        self.set(name, message).await
    }

    /// Makes a port of a bridge, which is down, another one by name, and brings it up. Fails if its bridge
    /// is gone.
    pub async fn adopt(&self, port: &Link, name: &str, bridge: &Link, alias: &str) -> Result<()> {
        let message = LinkUnspec::new_with_index(port.index)
            .name(name.to_owned())
            .alias(alias)
            .mtu(bridge.mtu)
            .controller(bridge.index)
            .up();
        self.set(&port.name, message).await
    }

    async fn set(&self, name: &str, message: LinkMessageBuilder<LinkUnspec>) -> Result<()> {
        self.0
            .link()
            .set(message.build())
            .execute()
            .await
            .map_err(|error| failed(&format!("configure {name}"), &error))
    }

    /// Removes an interface; one that is gone is fine.
    pub async fn delete(&self, link: &Link) -> Result<()> {
        match self.0.link().del(link.index).execute().await {
            Err(error) if !is(&error, nix::libc::ENODEV) => {
                Err(failed(&format!("remove {}", link.name), &error))
            }
            _ => Ok(()),
        }
    }

    /// The addresses of an interface.
    pub async fn addresses(&self, index: u32) -> Result<Vec<IpNet>> {
        let messages: Vec<AddressMessage> = self
            .0
            .address()
            .get()
            .set_link_index_filter(index)
            .execute()
            .try_collect()
            .await
            .map_err(|error| failed("list addresses", &error))?;
        // IPv6 has one attribute for the address, IPv4 two, for both ends.
        let address = |message: &AddressMessage| {
            message.attributes.iter().find_map(|attribute| match attribute {
                AddressAttribute::Local(address @ IpAddr::V4(_))
                | AddressAttribute::Address(address @ IpAddr::V6(_)) => {
                    IpNet::new(*address, message.header.prefix_len).ok()
                }
                _ => None,
            })
        };
        Ok(messages.iter().filter_map(address).collect())
    }

    pub async fn add_address(&self, link: &Link, address: IpNet) -> Result<()> {
        let mut request = self.0.address().add(link.index, address.addr(), address.prefix_len()).replace();
        if address.addr().is_ipv6() {
            // Nobody else can have it, and until that was asked it could not be used.
            request.message_mut().header.flags |= AddressHeaderFlags::Nodad;
        }
        request
            .execute()
            .await
            .map_err(|error| failed(&format!("give {} the address {address}", link.name), &error))
    }

    pub async fn delete_address(&self, link: &Link, address: IpNet) -> Result<()> {
        let message = match address {
            IpNet::V4(address) => AddressMessageBuilder::<Ipv4Addr>::new()
                .index(link.index)
                .address(address.addr(), address.prefix_len())
                .build(),
            IpNet::V6(address) => AddressMessageBuilder::<Ipv6Addr>::new()
                .index(link.index)
                .address(address.addr(), address.prefix_len())
                .build(),
        };
        self.0
            .address()
            .del(message)
            .execute()
            .await
            .map_err(|error| failed(&format!("take the address {address} off {}", link.name), &error))
    }

    /// The host's routes in all tables.
    pub async fn routes(&self) -> Result<Vec<Route>> {
        let mut all = Vec::new();
        for family in
            [RouteMessageBuilder::<Ipv4Addr>::new().build(), RouteMessageBuilder::<Ipv6Addr>::new().build()]
        {
            let messages: Vec<RouteMessage> = self
                .0
                .route()
                .get(family)
                .execute()
                .try_collect()
                .await
                .map_err(|error| failed("list the routes", &error))?;
            all.extend(messages.iter().flat_map(routes));
        }
        Ok(all)
    }
}

impl From<LinkMessage> for Link {
    fn from(message: LinkMessage) -> Self {
        let mut link = Link {
            index: message.header.index,
            name: String::new(),
            is_bridge: false,
            is_tun: false,
            is_up: message.header.flags.contains(LinkFlags::Up),
            alias: None,
            controller: None,
            mtu: 0,
            counters: Counters::default(),
        };
        for attribute in message.attributes {
            match attribute {
                LinkAttribute::IfName(name) => link.name = name,
                LinkAttribute::IfAlias(alias) => link.alias = Some(alias),
                LinkAttribute::Controller(index) => link.controller = Some(index),
                LinkAttribute::Mtu(mtu) => link.mtu = mtu,
                LinkAttribute::Stats64(stats) => link.counters = counters(&stats),
                LinkAttribute::LinkInfo(infos) => {
                    link.is_bridge |= infos.contains(&LinkInfo::Kind(InfoKind::Bridge));
                    link.is_tun |= infos.contains(&LinkInfo::Kind(InfoKind::Tun));
                }
                _ => {}
            }
        }
        link
    }
}

fn counters(stats: &Stats64) -> Counters {
    Counters {
        received_bytes: stats.tx_bytes,
        received_packets: stats.tx_packets,
        received_dropped: stats.tx_dropped,
        sent_bytes: stats.rx_bytes,
        sent_packets: stats.rx_packets,
        sent_dropped: stats.rx_dropped,
    }
}

/// The routes a message stands for: one for each interface it may lead through.
fn routes(message: &RouteMessage) -> Vec<Route> {
    let attributes = &message.attributes;
    let table = attributes.iter().find_map(|attribute| match attribute {
        RouteAttribute::Table(table) => Some(*table),
        _ => None,
    });
    let mut destination: IpAddr = match message.header.address_family {
        AddressFamily::Inet => Ipv4Addr::UNSPECIFIED.into(),
        AddressFamily::Inet6 => Ipv6Addr::UNSPECIFIED.into(),
        _ => return Vec::new(),
    };
    let ours = table.unwrap_or(message.header.table.into()) != TABLE_LOCAL
        && matches!(
            message.header.kind,
            RouteType::Unicast | RouteType::BlackHole | RouteType::Unreachable | RouteType::Prohibit
        );
    if !ours {
        return Vec::new();
    }
    let mut interfaces = Vec::new();
    for attribute in attributes {
        match attribute {
            RouteAttribute::Destination(RouteAddress::Inet(address)) => destination = (*address).into(),
            RouteAttribute::Destination(RouteAddress::Inet6(address)) => destination = (*address).into(),
            RouteAttribute::Oif(index) => interfaces.push(Some(*index)),
            RouteAttribute::MultiPath(hops) => {
                interfaces.extend(hops.iter().map(|hop| Some(hop.interface_index)));
            }
            _ => {}
        }
    }
    if interfaces.is_empty() {
        interfaces.push(None);
    }
    let Ok(destination) = IpNet::new(destination, message.header.destination_prefix_length) else {
        return Vec::new();
    };
    interfaces.into_iter().map(|interface| Route { destination, interface }).collect()
}

fn is(error: &rtnetlink::Error, errno: i32) -> bool {
    matches!(error, rtnetlink::Error::NetlinkError(message) if message.raw_code() == -errno)
}

fn failed(what: &str, error: &rtnetlink::Error) -> Error {
    match error {
        rtnetlink::Error::NetlinkError(message) => {
            Error::internal(format!("cannot {what}: {}", message.to_io()))
        }
        error => Error::internal(format!("cannot {what}: {error}")),
    }
}
