//! `org.banger.Network1.Manager`.

use std::collections::HashMap;

use banger_api::network::{AcquireOptions, Counters, Lease, LeaseRow, PolicyOptions, Problem, Warning};
use banger_api::{Options, Result};
use banger_daemon::Gate;
use zbus::message::Header;
use zbus::object_server::SignalEmitter;
use zbus::{Connection, OwnedObjectPath, OwnedVariant, fdo, interface};

use crate::leases::Leases;
use crate::routing::Routing;

#[derive(Clone)]
pub struct Manager {
    leases: Leases,
    routing: Routing,
    gate: Gate,
}

impl Manager {
    pub fn new(leases: Leases, routing: Routing, gate: Gate) -> Self {
        Self { leases, routing, gate }
    }
}

#[interface(name = "org.banger.Network1.Manager")]
impl Manager {
    /// Takes a lease: makes the TAP, attaches it to the bridge, lets the guest through.
    ///
    /// Options: `address s` (required; an address of `Range`), `uid u` (who may open the TAP), and
    /// those of `SetPolicy`. Asking again with the same address gives the same lease, with the new
    /// options. The lease stays until it is released.
    #[zbus(out_args("lease"))]
    async fn acquire(
        &self,
        holder: String,
        options: HashMap<String, OwnedVariant>,
        #[zbus(header)] header: Header<'_>,
        #[zbus(connection)] connection: &Connection,
    ) -> Result<Lease> {
        let call = self.gate.enter(&header, connection, &[]).await?;
        let options = AcquireOptions::try_from(Options::from(options))?;
        self.leases.acquire(holder, options, call).await
    }

    /// Changes what the guest of a lease reaches, at once. What is not given stays.
    ///
    /// Options: `nat b` (whether it may leave the host), `groups as` (it reaches the guests that
    /// share one of these with it, and no other's), `egress s` (where it gets beyond the host: open,
    /// closed or no-lan, which is not to addresses that are not of the internet; open takes
    /// `egress_allow` away), `egress_allow as` (what it reaches besides, each as
    /// `TO[:PORT[-PORT]][/tcp|/udp]` with a network, an address or a name such as *.example.org),
    /// `bandwidth t` and `packets t` (the most bytes and packets a second in each direction, of which
    /// 0 is unlimited; what is more is dropped).
    async fn set_policy(
        &self,
        holder: String,
        options: HashMap<String, OwnedVariant>,
        #[zbus(header)] header: Header<'_>,
        #[zbus(connection)] connection: &Connection,
    ) -> Result<()> {
        let call = self.gate.enter(&header, connection, &[]).await?;
        let options = PolicyOptions::try_from(Options::from(options))?;
        self.leases.set_policy(holder, options, call).await
    }

    /// Gives a lease back: its TAP goes away.
    async fn release(
        &self,
        holder: String,
        #[zbus(header)] header: Header<'_>,
        #[zbus(connection)] connection: &Connection,
    ) -> Result<()> {
        let call = self.gate.enter(&header, connection, &[]).await?;
        self.leases.release(holder, call).await
    }

    /// The object path of a lease.
    #[zbus(out_args("lease"))]
    async fn get_lease(
        &self,
        holder: String,
        #[zbus(header)] header: Header<'_>,
        #[zbus(connection)] connection: &Connection,
    ) -> Result<OwnedObjectPath> {
        let _call = self.gate.enter(&header, connection, &[]).await?;
        self.leases.path(holder).await
    }

    /// All leases: holder, address, TAP, MAC, whether the guest may leave the host, object path.
    #[zbus(out_args("leases"))]
    async fn list_leases(
        &self,
        #[zbus(header)] header: Header<'_>,
        #[zbus(connection)] connection: &Connection,
    ) -> Result<Vec<LeaseRow>> {
        let _call = self.gate.enter(&header, connection, &[]).await?;
        self.leases.list().await
    }

    /// What went through the interface of a lease's guest, as the guest sees it, since the lease was
    /// acquired (t): received_bytes, received_packets, received_dropped (which the guest did not take
    /// in time), sent_bytes, sent_packets, sent_dropped (which the host did not take).
    #[zbus(out_args("counters"))]
    async fn get_counters(
        &self,
        holder: String,
        #[zbus(header)] header: Header<'_>,
        #[zbus(connection)] connection: &Connection,
    ) -> Result<Counters> {
        let _call = self.gate.enter(&header, connection, &[]).await?;
        self.leases.counters(holder).await
    }

    /// Looks at the host again and makes bridge, TAPs, firewall table and the routing of names as they are
    /// to be, as far as there are leases. netd does so itself when it starts; this is for when
    /// something else was started that they depend on, such as systemd-resolved.
    async fn refresh(
        &self,
        #[zbus(header)] header: Header<'_>,
        #[zbus(connection)] connection: &Connection,
    ) -> Result<()> {
        let call = self.gate.enter(&header, connection, &[]).await?;
        self.leases.refresh(call).await
    }

    /// Removes the bridge, the firewall table and all TAPs, and sets forwarding back to what it
    /// was. Refused while there are leases. The next `Acquire` makes everything again.
    async fn tear_down(
        &self,
        #[zbus(header)] header: Header<'_>,
        #[zbus(connection)] connection: &Connection,
    ) -> Result<()> {
        let call = self.gate.enter(&header, connection, &[]).await?;
        self.leases.tear_down(call).await
    }

    #[zbus(signal)]
    async fn lease_new(
        emitter: &SignalEmitter<'_>,
        holder: String,
        lease: OwnedObjectPath,
    ) -> zbus::Result<()>;

    #[zbus(signal)]
    async fn lease_removed(
        emitter: &SignalEmitter<'_>,
        holder: String,
        lease: OwnedObjectPath,
    ) -> zbus::Result<()>;

    /// Name of the bridge.
    #[zbus(property(emits_changed_signal = "const"))]
    fn bridge(&self) -> String {
        self.leases.config().bridge.clone()
    }

    /// The network of the guests. They may have any address of it but the network's own, the
    /// gateway's and the broadcast address.
    #[zbus(property(emits_changed_signal = "const"))]
    fn range(&self) -> String {
        self.leases.config().range.to_string()
    }

    /// The host's address on the bridge.
    #[zbus(property(emits_changed_signal = "const"))]
    fn gateway(&self) -> String {
        crate::plan::gateway(self.leases.config().range).to_string()
    }

    /// The network of the guests' IPv6 addresses, empty where they have none. It is this host's own
    /// and stays the same. A guest's IPv4 address is in the low bits of its IPv6 address.
    #[zbus(property(emits_changed_signal = "const"))]
    fn range6(&self) -> String {
        self.leases.ipv6().map_or_else(String::new, |(prefix, _)| prefix.to_string())
    }

    /// The host's IPv6 address on the bridge, empty without.
    #[zbus(property(emits_changed_signal = "const"))]
    fn gateway6(&self) -> String {
        self.leases.ipv6().map_or_else(String::new, |(_, gateway)| gateway.to_string())
    }

    /// What is in the way of guests: of what kind it is, what was found, and what to do about it. Kinds are filter (rules of
    /// somebody else's drop their packets), range (the host has a route to their addresses), rules (banger's own
    /// are not there), tap (one of banger's that is no lease's) and unknown (the host could not be looked at).
    /// Looked for when it is read.
    #[zbus(property(emits_changed_signal = "false"))]
    async fn warnings(&self) -> Vec<Warning> {
        self.leases.warnings().await
    }

    /// Interfaces through which guests leave the host: those of its default routes. Looked for when it is
    /// read.
    #[zbus(property(emits_changed_signal = "false"))]
    async fn uplinks(&self) -> fdo::Result<Vec<String>> {
        Ok(self.leases.uplinks().await?)
    }

    /// TAPs made in advance, at most.
    #[zbus(property(emits_changed_signal = "const"))]
    fn pool_size(&self) -> u32 {
        self.leases.config().pool.try_into().unwrap_or(u32::MAX)
    }

    /// TAPs that wait for leases now; the pool is filled up after each that was taken.
    #[zbus(property(emits_changed_signal = "false"))]
    async fn pool_free(&self) -> u32 {
        self.leases.spares().await.try_into().unwrap_or(u32::MAX)
    }

    /// Name servers that new leases get.
    #[zbus(property(emits_changed_signal = "false"))]
    fn dns(&self) -> Vec<String> {
        self.leases.dns()
    }

    /// VMs are found by DNS as NAME.Domain while they have a lease.
    #[zbus(property(emits_changed_signal = "const"))]
    fn domain(&self) -> String {
        self.leases.config().domain.to_string()
    }

    /// Whether systemd-resolved asks for the names of VMs here, so that the host finds them: routed;
    /// absent (it does not run); failed (it did not take them); unset (there is no bridge yet, or nobody
    /// to ask).
    #[zbus(property(emits_changed_signal = "false"))]
    async fn resolved_state(&self) -> String {
        self.routing.state().await
    }

    /// What keeps the host or guests from finding VMs by name, and what to do about it; empty if nothing does.
    #[zbus(property(emits_changed_signal = "false"))]
    async fn dns_problems(&self) -> Vec<Problem> {
        self.routing.problems().await
    }
}
