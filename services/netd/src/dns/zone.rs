//! What names there are: those of the guests, and the addresses of the range the other way round.

use std::collections::{BTreeMap, HashMap};
use std::net::IpAddr;

use banger_core::network::Names;
use domain::base::ToName;
use domain::base::name::NameBuilder;
use ipnet::IpNet;

/// A domain name. These sort as DNSSEC has it (RFC 4034, section 6.1), without regard to case and
/// each right before the names below it.
pub type Name = domain::base::Name<Vec<u8>>;

/// All names that we speak for, and who may ask.
#[derive(Debug, Clone, PartialEq, Eq)]
pub struct Zone {
    networks: Vec<IpNet>,
    /// The tops of the zones, that of the guests' names first.
    tops: Vec<Name>,
    records: BTreeMap<Name, Records>,
    guests: HashMap<IpAddr, Guest>,
}

/// What is known by one name.
#[derive(Debug, Clone, Default, PartialEq, Eq)]
pub struct Records {
    pub addresses: Vec<IpAddr>,
    pub pointer: Option<Name>,
}

#[derive(Debug, Clone, PartialEq, Eq)]
struct Guest {
    holder: String,
    outside: Outside,
}

/// What a guest may ask for beyond our own names.
#[derive(Debug, Clone, PartialEq, Eq)]
pub struct Outside {
    pub all: bool,
    /// In any case these, and it reaches what they stand for.
    pub names: Vec<Names>,
}

impl Outside {
    #[cfg(test)]
    pub const ALL: Self = Self { all: true, names: Vec::new() };
    pub const NOTHING: Self = Self { all: false, names: Vec::new() };
}

/// What a guest gets out of a name that is not ours.
#[derive(Debug, Clone, PartialEq, Eq)]
pub enum Foreign {
    /// The answer.
    Answer,
    /// A way to the addresses in the answer, too. The name, as [`Names::contain`] takes it.
    Way(String),
}

/// Who asks.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub enum Client {
    /// A program of the host, which has a resolver of its own for everything else.
    Host,
    /// A guest, by the address it asks from.
    Guest(IpAddr),
}

/// What there is to say about a name of ours.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub struct Entry<'a> {
    /// The top of its zone.
    pub top: &'a Name,
    /// `None`: there is no such name. One may be there only for those below it, and be without
    /// any record.
    pub records: Option<&'a Records>,
}

const NOTHING: &Records = &Records { addresses: Vec::new(), pointer: None };

impl Zone {
    /// The domain itself is the host, by the gateway's addresses, which come with the networks that they are of.
    pub fn new(domain: Name, gateways: &[IpNet]) -> Self {
        let mut tops = vec![domain.clone()];
        tops.extend(gateways.iter().flat_map(|gateway| reverse_zones(gateway.trunc())));
        let mut zone = Self {
            networks: gateways.iter().map(IpNet::trunc).collect(),
            tops,
            records: BTreeMap::new(),
            guests: HashMap::new(),
        };
        zone.insert(domain, gateways.iter().map(IpNet::addr).collect());
        zone
    }

    /// The domain of the guests' names.
    pub fn domain(&self) -> &Name {
        &self.tops[0]
    }

    /// Everything that is ours.
    pub fn tops(&self) -> &[Name] {
        &self.tops
    }

    /// A guest is there, or has changed. A holder that is no DNS label may ask, but has no name; addresses of
    /// another range, from before the configuration changed, do not count.
    pub fn put(&mut self, holder: &str, addresses: &[IpAddr], outside: &Outside) {
        self.remove(holder);
        let ours = |address: &&IpAddr| self.networks.iter().any(|network| network.contains(*address));
        let addresses: Vec<IpAddr> = addresses.iter().filter(ours).copied().collect();
        for address in &addresses {
            self.guests.insert(*address, Guest { holder: holder.to_owned(), outside: outside.clone() });
        }
        if let Some(name) = self.name_of(holder).filter(|_| !addresses.is_empty()) {
            self.insert(name, addresses);
        }
    }

    /// A guest is gone.
    pub fn remove(&mut self, holder: &str) {
        self.guests.retain(|_, guest| guest.holder != holder);
        let Some(name) = self.name_of(holder) else { return };
        let Some(records) = self.records.remove(&name) else { return };
        for address in records.addresses {
            self.records.remove(&reverse(address));
        }
    }

    fn insert(&mut self, name: Name, addresses: Vec<IpAddr>) {
        for address in &addresses {
            let pointer = Some(name.clone());
            self.records.insert(reverse(*address), Records { pointer, ..Records::default() });
        }
        self.records.insert(name, Records { addresses, pointer: None });
    }

    fn name_of(&self, holder: &str) -> Option<Name> {
        let valid = |c: u8| c.is_ascii_lowercase() || c.is_ascii_digit() || c == b'-';
        let is_label = !holder.is_empty() && holder.bytes().all(valid);
        is_label.then(|| prefixed(holder.as_bytes(), self.domain())).flatten()
    }

    /// Whom to answer: guests, and the host, which has the gateway's address or a loopback one when it asks us.
    pub fn client(&self, address: IpAddr) -> Option<Client> {
        if self.guests.contains_key(&address) {
            return Some(Client::Guest(address));
        }
        let gateway = self.records.get(self.domain())?.addresses.contains(&address);
        (gateway || address.is_loopback()).then_some(Client::Host)
    }

    /// Who has this address.
    pub fn holder(&self, guest: IpAddr) -> Option<&str> {
        self.guests.get(&guest).map(|guest| guest.holder.as_str())
    }

    /// What a guest gets out of a name that is not ours, if anything.
    pub fn foreign(&self, guest: IpAddr, name: &Name) -> Option<Foreign> {
        let Outside { all, names } = &self.guests.get(&guest)?.outside;
        let name = name.to_string().to_ascii_lowercase();
        if names.iter().any(|names| names.contain(&name)) {
            return Some(Foreign::Way(name));
        }
        all.then_some(Foreign::Answer)
    }

    /// `None`: the name is none of ours.
    pub fn find(&self, name: &Name) -> Option<Entry<'_>> {
        let top = self.tops.iter().find(|top| name.ends_with(top))?;
        let records = self.records.get(name).or_else(|| {
            let below = self.records.range::<Name, _>(name..).next();
            let below = below.is_some_and(|(next, _)| next.ends_with(name));
            (below || name == top).then_some(NOTHING)
        });
        Some(Entry { top, records })
    }
}

/// A name right below another. `None` if that is too long.
pub fn prefixed(label: &[u8], name: &Name) -> Option<Name> {
    let mut builder = NameBuilder::new_vec();
    builder.append_label(label).ok()?;
    builder.append_origin(name).ok()
}

/// The name under which an address's own name is asked for.
fn reverse(address: IpAddr) -> Name {
    let mut name = Name::reverse_from_addr(address).expect("shorter than any name may be");
    name.make_canonical();
    name
}

/// The zones that a network is in the reverse tree, none of which holds an address outside it: one that does
/// not end between two labels, which are octets or half ones, is several.
fn reverse_zones(network: IpNet) -> Vec<Name> {
    let (bits, all) = if network.addr().is_ipv4() { (8, 4) } else { (4, 32) };
    let labels = network.prefix_len().div_ceil(bits);
    let parts = network.subnets(labels * bits).expect("not shorter than its own, and at most all bits");
    parts
        .map(|part| {
            let host = reverse(part.addr());
            // Of the labels of an address, those of the network are the last.
            let skipped = host.iter().take(all - usize::from(labels)).map(|label| label.compose_len());
            let skipped: u16 = skipped.sum();
            host.range_from(usize::from(skipped)).to_name()
        })
        .collect()
}

#[cfg(test)]
mod tests {
    use banger_core::network::Egress;

    use super::*;

    fn name(text: &str) -> Name {
        text.parse().expect("a name")
    }

    fn zone(gateways: &[&str]) -> Zone {
        let gateways: Vec<IpNet> = gateways.iter().map(|text| text.parse().expect("a network")).collect();
        Zone::new(name("banger.internal"), &gateways)
    }

    fn ip(text: &str) -> IpAddr {
        text.parse().expect("an address")
    }

    fn texts(names: &[Name]) -> Vec<String> {
        names.iter().map(ToString::to_string).collect()
    }

    #[test]
    fn networks_are_zones_of_whole_labels() {
        let of = |gateway: &str| texts(&zone(&[gateway]).tops()[1..]);
        assert_eq!(of("10.0.0.1/8"), ["10.in-addr.arpa"]);
        assert_eq!(of("10.209.0.1/16"), ["209.10.in-addr.arpa"]);
        assert_eq!(of("10.209.4.1/23"), ["4.209.10.in-addr.arpa", "5.209.10.in-addr.arpa"]);
        let smallest: Vec<_> = (4..8).map(|last| format!("{last}.0.209.10.in-addr.arpa")).collect();
        assert_eq!(of("10.209.0.5/30"), smallest);
        assert_eq!(of("10.0.0.1/9").len(), 128);
        assert_eq!(of("fd12:3456:789a::1/64"), ["0.0.0.0.a.9.8.7.6.5.4.3.2.1.d.f.ip6.arpa"]);
    }

    #[test]
    fn names_come_and_go_both_ways() {
        let mut zone = zone(&["10.209.0.1/16"]);
        let address = ip("10.209.1.16");
        zone.put("web", &[address], &Outside::ALL);
        let found = |zone: &Zone, text: &str| {
            zone.find(&name(text)).expect("ours").records.map(|records| {
                let pointer = records.pointer.as_ref().map(ToString::to_string);
                (records.addresses.clone(), pointer)
            })
        };
        assert_eq!(found(&zone, "WEB.Banger.internal"), Some((vec![address], None)));
        let pointer = Some((vec![], Some("web.banger.internal".into())));
        assert_eq!(found(&zone, "16.1.209.10.in-addr.arpa"), pointer);
        // A name between others has no records, but is there.
        assert_eq!(found(&zone, "1.209.10.in-addr.arpa"), Some((vec![], None)));
        assert_eq!(found(&zone, "2.209.10.in-addr.arpa"), None);
        assert_eq!(found(&zone, "209.10.in-addr.arpa"), Some((vec![], None)));
        assert_eq!(found(&zone, "x.web.banger.internal"), None);
        assert_eq!(zone.find(&name("banger.example")), None);
        assert_eq!(zone.find(&name("xbanger.internal")), None);
        assert_eq!(zone.find(&name("210.10.in-addr.arpa")), None);

        let moved = ip("10.209.1.17");
        zone.put("web", &[moved], &Outside::NOTHING);
        assert_eq!(found(&zone, "16.1.209.10.in-addr.arpa"), None);
        let client = Some(Client::Guest(moved));
        assert_eq!((zone.client(moved), zone.client(address)), (client, None));
        zone.remove("web");
        assert_eq!(zone, self::zone(&["10.209.0.1/16"]));
    }

    #[test]
    fn a_guest_may_have_addresses_of_both_kinds() {
        let mut zone = zone(&["10.209.0.1/16", "fd00::1/64"]);
        zone.put("web", &[ip("10.209.0.2"), ip("fd00::2"), ip("2001:db8::2")], &Outside::ALL);
        let web = zone.find(&name("web.banger.internal")).expect("ours").records.expect("there");
        assert_eq!(web.addresses, [ip("10.209.0.2"), ip("fd00::2")]);
        let back = zone.find(&reverse(ip("fd00::2"))).expect("ours").records.expect("there");
        assert_eq!(back.pointer, Some(name("web.banger.internal")));
        assert!(zone.client(ip("fd00::2")).is_some() && zone.client(ip("2001:db8::2")).is_none());
        assert_eq!(zone.client(ip("fd00::1")), Some(Client::Host));
    }

    #[test]
    fn the_domain_itself_is_the_host() {
        let zone = zone(&["10.209.0.1/16"]);
        let gateway = ip("10.209.0.1");
        let entry = zone.find(&name("banger.internal")).expect("ours");
        assert_eq!(entry.records.expect("there").addresses, [gateway]);
        let back = zone.find(&name("1.0.209.10.in-addr.arpa")).expect("ours").records.expect("there");
        assert_eq!(back.pointer, Some(name("banger.internal")));
        assert_eq!(zone.client(gateway), Some(Client::Host));
        assert_eq!(zone.client(ip("127.0.0.1")), Some(Client::Host));
        assert_eq!(zone.client(ip("10.209.0.2")), None);
    }

    #[test]
    fn guests_get_out_of_a_name_what_they_may() {
        let mut zone = zone(&["10.209.0.1/16"]);
        let rules = ["example.org", "*.example.org"];
        let mut egress = Egress::default();
        egress.change(Some("closed"), Some(&rules.map(str::to_owned))).expect("rules");
        let names: Vec<Names> = egress.names().cloned().collect();
        let (closed, half, open, stranger) =
            (ip("10.209.0.2"), ip("10.209.0.3"), ip("10.209.0.4"), ip("10.209.0.5"));
        zone.put("closed", &[closed], &Outside { all: false, names: names.clone() });
        zone.put("half", &[half], &Outside { all: true, names });
        zone.put("open", &[open], &Outside::ALL);
        let foreign = |guest, text: &str| zone.foreign(guest, &name(text));
        let way = |text: &str| Some(Foreign::Way(text.into()));
        assert_eq!(foreign(closed, "EXAMPLE.org"), way("example.org"));
        assert_eq!(foreign(closed, "a.b.example.org"), way("a.b.example.org"));
        assert_eq!(foreign(closed, "secret.example"), None);
        assert_eq!(foreign(half, "example.org"), way("example.org"));
        assert_eq!(foreign(half, "secret.example"), Some(Foreign::Answer));
        assert_eq!(foreign(open, "example.org"), Some(Foreign::Answer));
        assert_eq!(foreign(stranger, "example.org"), None);
        assert_eq!(zone.holder(half), Some("half"));
    }

    #[test]
    fn what_is_no_label_has_no_name() {
        let mut zone = zone(&["10.209.0.1/16"]);
        let empty = zone.records.clone();
        for holder in ["Web", "a.b", "a_b", "", &"x".repeat(64)] {
            zone.put(holder, &[ip("10.209.0.2")], &Outside::ALL);
            assert_eq!(zone.records, empty, "{holder:?}");
            assert!(zone.client(ip("10.209.0.2")).is_some());
            zone.remove(holder);
        }
        zone.put("web", &[ip("192.0.2.1")], &Outside::ALL);
        assert_eq!((&zone.records, zone.guests.len()), (&empty, 0));
    }
}
