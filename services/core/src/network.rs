//! What a guest's network lets through: the policy of one VM.

use std::collections::BTreeSet;
use std::fmt;
use std::net::IpAddr;
use std::str::FromStr;

use ipnet::IpNet;
use serde::{Deserialize, Serialize};

/// The most groups that a VM may be in: each costs the packets between guests a look-up.
const MAX_GROUPS: usize = 16;

/// The most rules of what a VM may reach besides: each may cost a packet a look.
const MAX_RULES: usize = 64;

/// What a guest reaches.
#[derive(Debug, Clone, PartialEq, Eq, Serialize, Deserialize)]
#[serde(default, deny_unknown_fields)]
pub struct Policy {
    /// Whether it reaches addresses beyond the host.
    pub nat: bool,
    /// It reaches the guests that share one of these with it, and no others.
    pub groups: BTreeSet<String>,
    /// Where beyond the host it gets, if it gets there at all.
    pub egress: Egress,
    /// The most bytes a second, in each direction.
    pub bandwidth: Option<u64>,
    /// The most packets a second, in each direction.
    pub packets: Option<u64>,
}

impl Default for Policy {
    fn default() -> Self {
        Self { nat: true, groups: BTreeSet::new(), egress: Egress::default(), bandwidth: None, packets: None }
    }
}

/// Where a guest gets beyond the host.
#[derive(Debug, Clone, Default, PartialEq, Eq, Serialize, Deserialize)]
#[serde(default, deny_unknown_fields)]
pub struct Egress {
    /// What holds wherever no rule says otherwise.
    pub default: EgressDefault,
    /// What is let through besides.
    pub allow: BTreeSet<Rule>,
}

#[derive(Debug, Clone, Copy, Default, PartialEq, Eq, Serialize, Deserialize)]
#[serde(rename_all = "kebab-case")]
pub enum EgressDefault {
    /// Everywhere.
    #[default]
    Open,
    /// Nowhere.
    Closed,
    /// Everywhere but to addresses that are not of the internet.
    NoLan,
}

/// What a guest may reach, written `TO[:PORT[-PORT]][/tcp|/udp]`. Without a port it is all of them, and
/// without a protocol any: of one with ports TCP and UDP.
#[derive(Debug, Clone, PartialEq, Eq, PartialOrd, Ord, Serialize, Deserialize)]
#[serde(try_from = "String", into = "String")]
pub struct Rule {
    pub to: Destination,
    /// The first and the last, which is not below it.
    pub ports: Option<(u16, u16)>,
    pub protocol: Option<Protocol>,
}

#[derive(Debug, Clone, PartialEq, Eq, PartialOrd, Ord)]
pub enum Destination {
    /// Written as an address if it is one. IPv6 is in brackets where a port follows.
    Network(IpNet),
    Names(Names),
}

/// A DNS name such as `example.org`, or with `*.` before it all names below it, without itself. In small
/// letters.
#[derive(Debug, Clone, PartialEq, Eq, PartialOrd, Ord)]
pub struct Names(String);

/// Why a policy cannot be kept.
#[derive(Debug, Clone, PartialEq, Eq, thiserror::Error)]
pub enum InvalidPolicy {
    #[error("{0:?} is not a name for a group: use 1 to 32 letters, digits, - and _, a letter or digit first")]
    Group(String),
    #[error("{0} groups: use at most {MAX_GROUPS}")]
    Groups(usize),
    #[error("{0:?} is no port: write tcp/443, udp/53 or a range such as tcp/8000-8080")]
    Ports(String),
    #[error("{0:?} is no egress policy: use open, closed or no-lan")]
    Egress(String),
    #[error(
        "{0:?} is nothing to allow: write a network, an address or a name with a dot in it, then perhaps a port or \
         a range, then perhaps a protocol, such as 192.0.2.0/24, [2001:db8::1]:53/udp or *.example.org:80-443/tcp"
    )]
    Rule(String),
    #[error("{0} has host bits set; did you mean {1}?")]
    HostBits(IpNet, IpNet),
    #[error("{0} rules: use at most {MAX_RULES}")]
    Rules(usize),
    #[error("with egress open there is nothing to allow besides: use closed or no-lan, or no rules")]
    RulesForOpen,
}

/// A port, or a range of them, written `tcp/8080` or `udp/5000-5010`.
#[derive(Debug, Clone, Copy, PartialEq, Eq, PartialOrd, Ord, Serialize, Deserialize)]
#[serde(try_from = "String", into = "String")]
pub struct Ports {
    pub protocol: Protocol,
    pub first: u16,
    /// Not below `first`.
    pub last: u16,
}

#[derive(Debug, Clone, Copy, PartialEq, Eq, PartialOrd, Ord, Hash, Serialize, Deserialize)]
#[serde(rename_all = "lowercase")]
pub enum Protocol {
    Tcp,
    Udp,
}

impl Protocol {
    const ALL: [Protocol; 2] = [Protocol::Tcp, Protocol::Udp];

    #[must_use]
    pub fn as_str(self) -> &'static str {
        match self {
            Protocol::Tcp => "tcp",
            Protocol::Udp => "udp",
        }
    }

    #[must_use]
    pub fn parse(word: &str) -> Option<Self> {
        Self::ALL.into_iter().find(|known| known.as_str() == word)
    }
}

impl FromStr for Ports {
    type Err = InvalidPolicy;

    fn from_str(text: &str) -> Result<Self, InvalidPolicy> {
        let parse = || {
            let (protocol, ports) = text.split_once('/')?;
            let protocol = Protocol::parse(protocol)?;
            let (first, last) = parse_ports(ports)?;
            Some(Ports { protocol, first, last })
        };
        parse().ok_or_else(|| InvalidPolicy::Ports(text.chars().take(40).collect()))
    }
}

impl TryFrom<String> for Ports {
    type Error = InvalidPolicy;

    fn try_from(text: String) -> Result<Self, InvalidPolicy> {
        text.parse()
    }
}

impl From<Ports> for String {
    fn from(ports: Ports) -> Self {
        ports.to_string()
    }
}

impl fmt::Display for Ports {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        write!(f, "{}/{}", self.protocol.as_str(), self.first)?;
        if self.first == self.last { Ok(()) } else { write!(f, "-{}", self.last) }
    }
}

impl Policy {
    /// # Errors
    /// The first thing that cannot be kept.
    pub fn check(&self) -> Result<(), InvalidPolicy> {
        if self.groups.len() > MAX_GROUPS {
            return Err(InvalidPolicy::Groups(self.groups.len()));
        }
        self.groups.iter().try_for_each(|name| check_group(name))?;
        self.egress.check()
    }
}

impl Egress {
    /// Changes it as the options `egress` and `egress_allow` say; what is not given stays. But `open` has no
    /// rules, so it takes away those that were there.
    ///
    /// # Errors
    /// The first thing that cannot be kept; it is spoiled then.
    pub fn change(&mut self, default: Option<&str>, allow: Option<&[String]>) -> Result<(), InvalidPolicy> {
        if let Some(word) = default {
            self.default = word.parse()?;
            if self.default == EgressDefault::Open {
                self.allow.clear();
            }
        }
        if let Some(rules) = allow {
            self.allow = rules.iter().map(|rule| rule.parse()).collect::<Result<_, _>>()?;
        }
        self.check()
    }

    /// The rules as they are written.
    #[must_use]
    pub fn shown_rules(&self) -> Vec<String> {
        self.allow.iter().map(ToString::to_string).collect()
    }

    /// The names among them.
    pub fn names(&self) -> impl Iterator<Item = &Names> {
        self.allow.iter().filter_map(|rule| match &rule.to {
            Destination::Names(names) => Some(names),
            Destination::Network(_) => None,
        })
    }

    fn check(&self) -> Result<(), InvalidPolicy> {
        if self.allow.len() > MAX_RULES {
            return Err(InvalidPolicy::Rules(self.allow.len()));
        }
        // Whoever allows something means to forbid the rest.
        if self.default == EgressDefault::Open && !self.allow.is_empty() {
            return Err(InvalidPolicy::RulesForOpen);
        }
        Ok(())
    }
}

impl EgressDefault {
    const ALL: [EgressDefault; 3] = [EgressDefault::Open, EgressDefault::Closed, EgressDefault::NoLan];

    pub fn as_str(self) -> &'static str {
        match self {
            EgressDefault::Open => "open",
            EgressDefault::Closed => "closed",
            EgressDefault::NoLan => "no-lan",
        }
    }
}

impl FromStr for EgressDefault {
    type Err = InvalidPolicy;

    fn from_str(word: &str) -> Result<Self, InvalidPolicy> {
        let known = Self::ALL.into_iter().find(|known| known.as_str() == word);
        known.ok_or_else(|| InvalidPolicy::Egress(word.chars().take(40).collect()))
    }
}

impl FromStr for Rule {
    type Err = InvalidPolicy;

    fn from_str(text: &str) -> Result<Self, InvalidPolicy> {
        let invalid = || InvalidPolicy::Rule(text.chars().take(80).collect());
        let (rest, protocol) = Protocol::ALL
            .into_iter()
            .find_map(|known| Some((text.strip_suffix(known.as_str())?.strip_suffix('/')?, Some(known))))
            .unwrap_or((text, None));
        let (to, ports) = split_ports(rest).ok_or_else(invalid)?;
        let to = match parse_network(to) {
            Some(network) if network.addr() != network.network() => {
                return Err(InvalidPolicy::HostBits(network, network.trunc()));
            }
            Some(network) => Destination::Network(network),
            None => Destination::Names(Names::parse(to).ok_or_else(invalid)?),
        };
        let ports = ports.map(|ports| parse_ports(ports).ok_or_else(invalid)).transpose()?;
        Ok(Self { to, ports, protocol })
    }
}

/// What a rule is about, and its ports. IPv6 without brackets has none.
fn split_ports(text: &str) -> Option<(&str, Option<&str>)> {
    if let Some(bracketed) = text.strip_prefix('[') {
        let (to, rest) = bracketed.split_once(']')?;
        let is_ipv6 = matches!(parse_network(to), Some(IpNet::V6(_)));
        let ports = if rest.is_empty() { None } else { Some(rest.strip_prefix(':')?) };
        return is_ipv6.then_some((to, ports));
    }
    if parse_network(text).is_some() {
        return Some((text, None));
    }
    Some(text.split_once(':').map_or((text, None), |(to, ports)| (to, Some(ports))))
}

fn parse_network(text: &str) -> Option<IpNet> {
    text.parse().ok().or_else(|| Some(text.parse::<IpAddr>().ok()?.into()))
}

/// A port, or a range of them.
fn parse_ports(text: &str) -> Option<(u16, u16)> {
    // A number's own parser takes a sign as well.
    let port = |text: &str| if text.starts_with('+') { None } else { text.parse::<u16>().ok() };
    let (first, last) = text.split_once('-').unwrap_or((text, text));
    let (first, last) = (port(first)?, port(last)?);
    (1 <= first && first <= last).then_some((first, last))
}

impl fmt::Display for Rule {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        match &self.to {
            Destination::Network(network) => {
                let is_address = network.prefix_len() == network.max_prefix_len();
                let text = if is_address { network.addr().to_string() } else { network.to_string() };
                let in_brackets = network.addr().is_ipv6() && self.ports.is_some();
                if in_brackets { write!(f, "[{text}]")? } else { f.write_str(&text)? }
            }
            Destination::Names(names) => f.write_str(&names.0)?,
        }
        match self.ports {
            Some((first, last)) if first == last => write!(f, ":{first}")?,
            Some((first, last)) => write!(f, ":{first}-{last}")?,
            None => {}
        }
        self.protocol.map_or(Ok(()), |protocol| write!(f, "/{}", protocol.as_str()))
    }
}

impl TryFrom<String> for Rule {
    type Error = InvalidPolicy;

    fn try_from(text: String) -> Result<Self, InvalidPolicy> {
        text.parse()
    }
}

impl From<Rule> for String {
    fn from(rule: Rule) -> Self {
        rule.to_string()
    }
}

impl Names {
    fn parse(text: &str) -> Option<Self> {
        let text = text.to_ascii_lowercase();
        let name = text.strip_prefix("*.").unwrap_or(&text);
        let is_label = |label: &str| {
            let valid = |c: char| c.is_ascii_lowercase() || c.is_ascii_digit() || matches!(c, '-' | '_');
            (1..=63).contains(&label.len()) && label.chars().all(valid)
        };
        // What ends in a number is an address with something wrong (https://url.spec.whatwg.org/#ends-in-a-number-checker).
        let is_number = |label: &str| label.chars().all(|c| c.is_ascii_digit());
        let (_, last) = text.rsplit_once('.')?;
        (name.len() <= 253 && name.split('.').all(is_label) && !is_number(last)).then_some(Self(text))
    }

    /// Whether this name, in small letters and without a dot at its end, is one of them.
    #[must_use]
    pub fn contain(&self, name: &str) -> bool {
        match self.0.strip_prefix('*') {
            // With the dot before it, which needs something before itself.
            Some(above) => name.len() > above.len() && name.ends_with(above),
            None => name == self.0,
        }
    }
}

fn check_group(name: &str) -> Result<(), InvalidPolicy> {
    let inner = |c: char| c.is_ascii_alphanumeric() || matches!(c, '-' | '_');
    let first = name.starts_with(|c: char| c.is_ascii_alphanumeric());
    if first && name.len() <= 32 && name.chars().all(inner) {
        return Ok(());
    }
    Err(InvalidPolicy::Group(name.chars().take(40).collect()))
}

#[cfg(test)]
mod tests {
    use super::*;

    fn in_groups(names: &[&str]) -> Result<(), InvalidPolicy> {
        Policy { groups: names.iter().map(ToString::to_string).collect(), ..Policy::default() }.check()
    }

    #[test]
    fn groups_have_plain_names() {
        assert_eq!(in_groups(&["web", "ci-2_x", "9"]), Ok(()));
        for name in ["", "-a", "a b", "ä", "a/b", "a}", &"x".repeat(33)] {
            assert_eq!(in_groups(&[name]), Err(InvalidPolicy::Group(name.into())), "{name:?}");
        }
        let many: Vec<String> = (0..17).map(|number| number.to_string()).collect();
        let many: Vec<&str> = many.iter().map(String::as_str).collect();
        assert_eq!(in_groups(&many), Err(InvalidPolicy::Groups(17)));
    }

    #[test]
    fn ports_come_back() {
        for text in ["tcp/1", "udp/53", "tcp/8000-8080", "udp/65535"] {
            assert_eq!(text.parse::<Ports>().expect("parses").to_string(), text);
        }
        for text in ["", "tcp", "80", "tcp/0", "tcp/80-79", "tcp/65536", "icmp/1", "tcp/80,81", "TCP/80"] {
            assert_eq!(text.parse::<Ports>(), Err(InvalidPolicy::Ports(text.into())));
        }
    }

    #[test]
    fn rules_come_back() {
        for text in [
            "192.0.2.1",
            "192.0.2.0/24",
            "0.0.0.0/0/udp",
            "192.0.2.0/24:443/tcp",
            "192.0.2.1:8000-8080",
            "2001:db8::1",
            "2001:db8::/32/tcp",
            "[2001:db8::1]:53/udp",
            "[2001:db8::/32]:1-65535",
            "example.org",
            "*.example.org:443/tcp",
            "a_b.x-1.example",
        ] {
            assert_eq!(text.parse::<Rule>().expect("parses").to_string(), text);
        }
        for (text, plain) in [
            ("192.0.2.1/32:80", "192.0.2.1:80"),
            ("[2001:db8::1]/tcp", "2001:db8::1/tcp"),
            ("Example.ORG:80-80", "example.org:80"),
        ] {
            assert_eq!(text.parse::<Rule>().expect("parses").to_string(), plain);
        }
    }

    #[test]
    fn what_is_no_rule_is_refused() {
        for text in [
            "",
            "/tcp",
            ":80",
            "example",
            "*",
            "*.",
            "a.*.example",
            "example.org.",
            "a..example",
            "-.1",
            "10.0.0",
            "192.0.2.1:",
            "192.0.2.1:0",
            "192.0.2.1:80-79",
            "192.0.2.1:+80",
            "192.0.2.1:65536",
            "192.0.2.1/33",
            "192.0.2.1:80/icmp",
            "192.0.2.1/TCP",
            "[192.0.2.1]:80",
            "[2001:db8::1]80",
            "[2001:db8::1",
            "[2001:db8::1]:80:90",
            "fe80::1%eth0",
            "example.org:80:90",
            "ex ample.org",
            "bücher.example",
            &format!("{}.example", "x".repeat(64)),
            &format!("{}example", "x.".repeat(124)),
        ] {
            let refused = InvalidPolicy::Rule(text.chars().take(80).collect());
            assert_eq!(text.parse::<Rule>(), Err(refused));
        }
        let error = "10.1.2.3/8:80".parse::<Rule>().expect_err("refused").to_string();
        assert_eq!(error, "10.1.2.3/8 has host bits set; did you mean 10.0.0.0/8?");
    }

    #[test]
    fn names_are_one_or_all_below_one() {
        let names = |text: &str| Names::parse(text).expect("a name");
        assert!(names("Example.org").contain("example.org"));
        assert!(!names("example.org").contain("www.example.org"));
        let below = names("*.example.org");
        assert!(below.contain("www.example.org") && below.contain("a.b.example.org"));
        for name in ["example.org", ".example.org", "badexample.org", "example.org.evil.example"] {
            assert!(!below.contain(name), "{name}");
        }
    }

    #[test]
    fn rules_are_exceptions_from_something() {
        let rules = |texts: &[&str]| texts.iter().map(ToString::to_string).collect::<Vec<_>>();
        let mut egress = Egress::default();
        egress.change(Some("closed"), Some(&rules(&["192.0.2.1:80", "192.0.2.1:80"]))).expect("changes");
        assert_eq!(egress.shown_rules(), ["192.0.2.1:80"]);
        egress.change(Some("no-lan"), None).expect("changes");
        assert_eq!(egress.allow.len(), 1);
        egress.change(None, Some(&[])).expect("changes");
        assert_eq!(egress, Egress { default: EgressDefault::NoLan, allow: BTreeSet::new() });
        egress.change(None, Some(&rules(&["example.org"]))).expect("changes");
        egress.change(Some("open"), None).expect("changes");
        assert_eq!(egress, Egress::default());

        let many: Vec<_> = (1..=65).map(|port| format!("192.0.2.1:{port}")).collect();
        let refused = |default, allow: &[String]| Egress::default().change(Some(default), Some(allow));
        assert_eq!(refused("closed", &many), Err(InvalidPolicy::Rules(65)));
        assert_eq!(refused("open", &many[..1]), Err(InvalidPolicy::RulesForOpen));
        assert_eq!(refused("shut", &[]), Err(InvalidPolicy::Egress("shut".into())));
    }

    #[test]
    fn policies_survive_storage() {
        let mut policy =
            Policy { nat: false, groups: BTreeSet::from(["web".to_owned()]), ..Policy::default() };
        let rules = ["[2001:db8::/32]:443".to_owned(), "*.example.org".to_owned()];
        policy.egress.change(Some("no-lan"), Some(&rules)).expect("changes");
        let text = serde_json::to_string(&policy).expect("serializes");
        assert_eq!(serde_json::from_str::<Policy>(&text).expect("parses"), policy);
        assert_eq!(serde_json::from_str::<Policy>("{}").expect("parses"), Policy::default());
    }
}
