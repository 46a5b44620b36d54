//! systemd-resolved, as org.freedesktop.resolve1(5) describes it.

use std::net::Ipv4Addr;
use std::time::Duration;

use banger_api::{Error, Result};
use nix::libc;
use zbus::names::BusName;
use zbus::proxy::CacheProperties;
use zbus::{Connection, OwnedObjectPath, proxy};

const NAME: &str = "org.freedesktop.resolve1";

/// resolved hears of a new interface from the kernel, as we do, and maybe after us.
const HEARSAY: Duration = Duration::from_millis(50);
const MAX_HEARSAY: u32 = 40;

#[proxy(
    interface = "org.freedesktop.resolve1.Manager",
    default_service = "org.freedesktop.resolve1",
    default_path = "/org/freedesktop/resolve1"
)]
trait Resolve {
    fn get_link(&self, index: i32) -> zbus::Result<OwnedObjectPath>;
    #[zbus(name = "SetLinkDNS")]
    fn set_link_dns(&self, index: i32, servers: &[(i32, Vec<u8>)]) -> zbus::Result<()>;
    fn set_link_domains(&self, index: i32, domains: &[(String, bool)]) -> zbus::Result<()>;
    fn set_link_default_route(&self, index: i32, enable: bool) -> zbus::Result<()>;
    #[zbus(name = "SetLinkDNSSEC")]
    fn set_link_dnssec(&self, index: i32, mode: &str) -> zbus::Result<()>;
    #[zbus(name = "SetLinkDNSOverTLS")]
    fn set_link_dns_over_tls(&self, index: i32, mode: &str) -> zbus::Result<()>;
    fn revert_link(&self, index: i32) -> zbus::Result<()>;
}

#[proxy(
    interface = "org.freedesktop.resolve1.Link",
    default_service = "org.freedesktop.resolve1",
    assume_defaults = false
)]
trait Link {
    #[zbus(name = "DNS", property(emits_changed_signal = "false"))]
    fn dns(&self) -> zbus::Result<Vec<(i32, Vec<u8>)>>;
    #[zbus(property(emits_changed_signal = "false"))]
    fn domains(&self) -> zbus::Result<Vec<(String, bool)>>;
    #[zbus(property(emits_changed_signal = "false"))]
    fn default_route(&self) -> zbus::Result<bool>;
    #[zbus(name = "DNSSEC", property(emits_changed_signal = "false"))]
    fn dnssec(&self) -> zbus::Result<String>;
    #[zbus(name = "DNSOverTLS", property(emits_changed_signal = "false"))]
    fn dns_over_tls(&self) -> zbus::Result<String>;
}

/// Whether it runs. It is never started by us: a host that has it enabled starts it by itself.
pub async fn runs(bus: &Connection) -> Result<bool> {
    let name = BusName::try_from(NAME).map_err(Error::internal)?;
    Ok(zbus::fdo::DBusProxy::new(bus).await?.name_has_owner(name).await?)
}

/// Sends the host's queries for `domains`, and no others, to a server behind an interface. What is so already
/// is not said again, as resolved writes each time to its log, and forgets what it knows.
pub async fn route(bus: &Connection, index: u32, server: Ipv4Addr, domains: &[String]) -> Result<()> {
    let resolve = ResolveProxy::new(bus).await?;
    let link = link(bus, &resolve, index).await?;
    let index = signed(index)?;
    let servers = vec![(libc::AF_INET, server.octets().to_vec())];
    // `true`: for routing only, not to be tried after every name without a dot.
    let domains: Vec<(String, bool)> = domains.iter().map(|domain| (domain.clone(), true)).collect();
    // The names are nobody else's to sign, and the way to them is on this host.
    if link.dnssec().await? != "no" {
        resolve.set_link_dnssec(index, "no").await?;
    }
    if link.dns_over_tls().await? != "no" {
        resolve.set_link_dns_over_tls(index, "no").await?;
    }
    if link.domains().await? == domains && link.dns().await? == servers && !link.default_route().await? {
        return Ok(());
    }
    // In this order no other name is ever asked for there.
    resolve.set_link_default_route(index, false).await?;
    resolve.set_link_domains(index, &domains).await?;
    resolve.set_link_dns(index, &servers).await?;
    Ok(())
}

/// Takes it all back. An interface that is gone has nothing any more.
pub async fn revert(bus: &Connection, index: u32) -> Result<()> {
    match ResolveProxy::new(bus).await?.revert_link(signed(index)?).await {
        Err(error) if !is_no_such_link(&error) => Err(error.into()),
        _ => Ok(()),
    }
}

async fn link(bus: &Connection, resolve: &ResolveProxy<'_>, index: u32) -> Result<LinkProxy<'static>> {
    let mut tries = 0;
    let path = loop {
        match resolve.get_link(signed(index)?).await {
            Err(error) if is_no_such_link(&error) && tries < MAX_HEARSAY => {
                tries += 1;
                tokio::time::sleep(HEARSAY).await;
            }
            path => break path?,
        }
    };
    Ok(LinkProxy::builder(bus).path(path).cache_properties(CacheProperties::No).build().await?)
}

fn is_no_such_link(error: &zbus::Error) -> bool {
    matches!(error, zbus::Error::MethodError(name, ..) if name.as_str() == "org.freedesktop.resolve1.NoSuchLink")
}

fn signed(index: u32) -> Result<i32> {
    index.try_into().map_err(|_| Error::internal(format!("{index} is no interface")))
}
