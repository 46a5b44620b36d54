//! `org.banger.Network1`: the guests' network on the host.
//!
//! Guests hang on one bridge, each by a TAP of its own. Whoever starts a VM chooses an address of
//! [`NetworkProxy::range`] and acquires a lease on it under the VM's name; the lease stays, across
//! restarts of everything, until it is released.

use std::collections::HashMap;

use zbus::{DeserializeDict, OwnedObjectPath, SerializeDict, Type, Variant, proxy};

use crate::access::{Access, Entry};
use crate::options::OptionsBuilder;
use crate::{NETD, Options, Result, path};

pub const MANAGER: &str = "org.banger.Network1.Manager";
pub const LEASE: &str = "org.banger.Network1.Lease";

/// Who may call what.
pub const ACCESS: &[Entry] = &[
    (MANAGER, "Acquire", Access::Internal),
    (MANAGER, "SetPolicy", Access::Internal),
    (MANAGER, "Release", Access::Internal),
    (MANAGER, "GetLease", Access::Read),
    (MANAGER, "ListLeases", Access::Read),
    (MANAGER, "GetCounters", Access::Read),
    (MANAGER, "Refresh", Access::Internal),
    (MANAGER, "TearDown", Access::Root),
];

/// Object path of a lease.
pub fn lease_path(holder: &str) -> OwnedObjectPath {
    path::encode(&format!("{}/lease", NETD.path), holder)
}

/// One entry of `ListLeases`: holder, address, TAP, MAC, NAT, object path.
pub type LeaseRow = (String, String, String, String, bool, OwnedObjectPath);

/// One of `DnsProblems`: what was found, and what to do about it.
pub type Problem = (String, String);

/// One of `Warnings`: of what kind it is, what was found, and what to do about it.
///
/// | kind | |
/// |---|---|
/// | `filter` | rules of somebody else's drop packets of guests |
/// | `range` | the host has a route to addresses of guests |
/// | `rules` | banger's own rules are not there |
/// | `tap` | a TAP of banger's is no lease's |
/// | `unknown` | the host could not be looked at |
pub type Warning = (String, String, String);

/// What a guest and its VMM have to know; the reply of `Acquire`.
#[derive(Debug, Clone, PartialEq, Eq, SerializeDict, DeserializeDict, Type)]
#[zbus(signature = "dict")]
pub struct Lease {
    /// The TAP device, which belongs to the user the lease was acquired for.
    pub tap: String,
    /// The guest's MAC address, as `02:ba:…`.
    pub mac: String,
    /// The guest's IPv4 address.
    pub address: String,
    /// Length of the network's prefix.
    pub prefix: u8,
    /// The host's address on the bridge: the guest's default route.
    pub gateway: String,
    /// The guest's IPv6 address, with the length of its network's prefix and the host's address;
    /// none of them where guests have no IPv6.
    pub address6: Option<String>,
    pub prefix6: Option<u8>,
    pub gateway6: Option<String>,
    /// Name servers that the guest can reach, possibly none.
    pub dns: Vec<String>,
    /// Where the guest may look for names without a dot: the domain of the VMs' names, if these
    /// servers know it. Empty for none.
    pub domain: String,
    pub mtu: u32,
}

/// What went through a guest's network interface, as the guest sees it: what its TAP transmits it
/// receives. Counted by the host since the lease was acquired.
#[derive(Debug, Clone, Copy, Default, PartialEq, Eq, SerializeDict, DeserializeDict, Type)]
#[zbus(signature = "dict")]
pub struct Counters {
    pub received_bytes: u64,
    pub received_packets: u64,
    /// Packets for the guest that it did not take in time.
    pub received_dropped: u64,
    pub sent_bytes: u64,
    pub sent_packets: u64,
    /// Packets of the guest that the host did not take.
    pub sent_dropped: u64,
}

/// The options of `Acquire`.
#[derive(Debug, Clone, PartialEq, Eq)]
pub struct AcquireOptions {
    /// An address of the range that no other lease has.
    pub address: String,
    /// The user who may open the TAP; root if not given.
    pub uid: u32,
    /// What is not given is as configured.
    pub policy: PolicyOptions,
}

/// What a guest reaches: options of `Acquire`, and those of `SetPolicy`.
#[derive(Debug, Clone, Default, PartialEq, Eq)]
pub struct PolicyOptions {
    /// Whether the guest may leave the host, behind the host's addresses.
    pub nat: Option<bool>,
    /// It reaches the guests that share one of these groups with it.
    pub groups: Option<Vec<String>>,
    /// Where it gets beyond the host: `open`, `closed` or `no-lan`. `open` takes `egress_allow` away.
    pub egress: Option<String>,
    /// What it reaches besides, each as `TO[:PORT[-PORT]][/tcp|/udp]`.
    pub egress_allow: Option<Vec<String>>,
    /// The most bytes a second in each direction; 0 is unlimited. What is more is dropped.
    pub bandwidth: Option<u64>,
    /// The most packets a second in each direction; 0 is unlimited.
    pub packets: Option<u64>,
}

impl TryFrom<Options> for AcquireOptions {
    type Error = crate::Error;

    fn try_from(mut options: Options) -> Result<Self> {
        let address = options.take("address")?.ok_or_else(|| {
            crate::ErrorKind::InvalidArgs.error("option \"address\" is missing: give an address of the range")
        })?;
        let uid = options.take("uid")?.unwrap_or(0);
        Ok(Self { address, uid, policy: PolicyOptions::try_from(options)? })
    }
}

impl TryFrom<Options> for PolicyOptions {
    type Error = crate::Error;

    fn try_from(mut options: Options) -> Result<Self> {
        let policy = Self {
            nat: options.take("nat")?,
            groups: options.take("groups")?,
            egress: options.take("egress")?,
            egress_allow: options.take("egress_allow")?,
            bandwidth: options.take("bandwidth")?,
            packets: options.take("packets")?,
        };
        options.finish()?;
        Ok(policy)
    }
}

impl AcquireOptions {
    /// As the method takes them.
    pub fn to_dict(&self) -> HashMap<&str, Variant<'_>> {
        let builder =
            OptionsBuilder::new().set("address", Some(self.address.as_str())).set("uid", Some(self.uid));
        self.policy.add_to(builder).build()
    }
}

impl PolicyOptions {
    /// As the method takes them.
    pub fn to_dict(&self) -> HashMap<&str, Variant<'_>> {
        self.add_to(OptionsBuilder::new()).build()
    }

    fn add_to<'a>(&'a self, builder: OptionsBuilder<'a>) -> OptionsBuilder<'a> {
        builder
            .set("nat", self.nat)
            .set("groups", self.groups.clone())
            .set("egress", self.egress.as_deref())
            .set("egress_allow", self.egress_allow.clone())
            .set("bandwidth", self.bandwidth)
            .set("packets", self.packets)
    }
}

#[proxy(
    interface = "org.banger.Network1.Manager",
    default_service = "org.banger.Network1",
    default_path = "/org/banger/Network1"
)]
pub trait Network {
    /// Takes a lease: makes the TAP, attaches it to the bridge, lets the guest through.
    ///
    /// Options: `address s` (required), `uid u`, and those of `SetPolicy`; see [`AcquireOptions`].
    /// Asking again with the same address gives the same lease, with the new options.
    fn acquire(&self, holder: &str, options: HashMap<&str, Variant<'_>>) -> zbus::Result<Lease>;

    /// Changes what the guest of a lease reaches, at once. Options: `nat b`, `groups as`,
    /// `egress s`, `egress_allow as`, `bandwidth t`, `packets t`; see [`PolicyOptions`]. What is not
    /// given stays.
    fn set_policy(&self, holder: &str, options: HashMap<&str, Variant<'_>>) -> zbus::Result<()>;

    /// Gives a lease back: its TAP goes away.
    fn release(&self, holder: &str) -> zbus::Result<()>;

    /// The object path of a lease.
    fn get_lease(&self, holder: &str) -> zbus::Result<OwnedObjectPath>;

    /// All leases.
    fn list_leases(&self) -> zbus::Result<Vec<LeaseRow>>;

    /// What went through the interface of a lease's guest.
    ///
    /// Errors: `NoSuchLease`.
    fn get_counters(&self, holder: &str) -> zbus::Result<Counters>;

    /// Makes bridge, TAPs, firewall table and the routing of names as they are to be.
    fn refresh(&self) -> zbus::Result<()>;

    /// Removes the bridge, the firewall table and all TAPs, and sets forwarding back to what it
    /// was. Refused while there are leases. The next `Acquire` makes everything again.
    fn tear_down(&self) -> zbus::Result<()>;

    #[zbus(signal)]
    fn lease_new(&self, holder: String, lease: OwnedObjectPath) -> zbus::Result<()>;
    #[zbus(signal)]
    fn lease_removed(&self, holder: String, lease: OwnedObjectPath) -> zbus::Result<()>;

    /// Name of the bridge.
    #[zbus(property(emits_changed_signal = "const"))]
    fn bridge(&self) -> zbus::Result<String>;
    /// The network of the guests, as `10.209.0.0/16`. Guests may have any address of it but the
    /// network's own, the gateway's and the broadcast address.
    #[zbus(property(emits_changed_signal = "const"))]
    fn range(&self) -> zbus::Result<String>;
    /// The host's address on the bridge.
    #[zbus(property(emits_changed_signal = "const"))]
    fn gateway(&self) -> zbus::Result<String>;
    /// The network of the guests' IPv6 addresses, empty where they have none.
    #[zbus(property(emits_changed_signal = "const"))]
    fn range6(&self) -> zbus::Result<String>;
    /// The host's IPv6 address on the bridge, empty without.
    #[zbus(property(emits_changed_signal = "const"))]
    fn gateway6(&self) -> zbus::Result<String>;
    /// What of the host's own is in the way of guests, each with what to do about it.
    #[zbus(property(emits_changed_signal = "false"))]
    fn warnings(&self) -> zbus::Result<Vec<Warning>>;
    /// Interfaces through which guests leave the host.
    #[zbus(property(emits_changed_signal = "false"))]
    fn uplinks(&self) -> zbus::Result<Vec<String>>;
    /// TAPs made in advance, at most.
    #[zbus(property(emits_changed_signal = "const"))]
    fn pool_size(&self) -> zbus::Result<u32>;
    /// TAPs that wait for leases now.
    #[zbus(property(emits_changed_signal = "false"))]
    fn pool_free(&self) -> zbus::Result<u32>;
    /// Name servers that new leases get.
    #[zbus(property(emits_changed_signal = "false"))]
    fn dns(&self) -> zbus::Result<Vec<String>>;
    /// VMs are found by DNS as `NAME.domain` while they have a lease.
    #[zbus(property(emits_changed_signal = "const"))]
    fn domain(&self) -> zbus::Result<String>;
    /// Whether the host's systemd-resolved asks netd for the names of VMs: `routed`, `absent` (it does not
    /// run), `failed`, or `unset` (no bridge yet, or nobody to ask).
    #[zbus(property(emits_changed_signal = "false"))]
    fn resolved_state(&self) -> zbus::Result<String>;
    /// What keeps the host or guests from finding VMs by name, and what to do about it.
    #[zbus(property(emits_changed_signal = "false"))]
    fn dns_problems(&self) -> zbus::Result<Vec<Problem>>;
}

#[proxy(interface = "org.banger.Network1.Lease", default_service = "org.banger.Network1")]
pub trait NetworkLease {
    #[zbus(property(emits_changed_signal = "const"))]
    fn holder(&self) -> zbus::Result<String>;
    #[zbus(property(emits_changed_signal = "const"))]
    fn address(&self) -> zbus::Result<String>;
    #[zbus(property(emits_changed_signal = "const"))]
    fn prefix(&self) -> zbus::Result<u8>;
    #[zbus(property(emits_changed_signal = "const"))]
    fn gateway(&self) -> zbus::Result<String>;
    #[zbus(property(emits_changed_signal = "const"))]
    fn address6(&self) -> zbus::Result<String>;
    #[zbus(property(emits_changed_signal = "const"))]
    fn prefix6(&self) -> zbus::Result<u8>;
    #[zbus(property(emits_changed_signal = "const"))]
    fn gateway6(&self) -> zbus::Result<String>;
    #[zbus(property(emits_changed_signal = "const"))]
    fn mac(&self) -> zbus::Result<String>;
    #[zbus(property(emits_changed_signal = "const"))]
    fn tap(&self) -> zbus::Result<String>;
    /// The user who may open the TAP.
    #[zbus(property)]
    fn uid(&self) -> zbus::Result<u32>;
    /// Whether the guest may leave the host.
    #[zbus(property)]
    fn nat(&self) -> zbus::Result<bool>;
    /// It reaches the guests that share one of these groups with it.
    #[zbus(property)]
    fn groups(&self) -> zbus::Result<Vec<String>>;
    /// Where it gets beyond the host: `open`, `closed` or `no-lan`.
    #[zbus(property)]
    fn egress(&self) -> zbus::Result<String>;
    /// What it reaches besides.
    #[zbus(property)]
    fn egress_allow(&self) -> zbus::Result<Vec<String>>;
    /// The most bytes a second in each direction; 0 is unlimited.
    #[zbus(property)]
    fn bandwidth(&self) -> zbus::Result<u64>;
    /// The most packets a second in each direction; 0 is unlimited.
    #[zbus(property)]
    fn packets(&self) -> zbus::Result<u64>;
}
