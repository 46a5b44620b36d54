//! What of the host's own may be in the way of guests, and what an admin can do about it. netd leaves
//! the rules of others alone.

use serde_json::Value;

/// A chain of somebody else's that sees packets of guests and drops what it does not know.
#[derive(Debug, Clone, PartialEq, Eq)]
pub struct Obstacle {
    pub family: String,
    pub table: String,
    chain: String,
    hook: String,
    kind: Kind,
}

#[derive(Debug, Clone, Copy, PartialEq, Eq)]
enum Kind {
    Docker,
    Firewalld,
    Other,
}

/// Those among all chains of the host, as `nft -j list chains` has them.
pub fn obstacles(chains: &Value) -> Vec<Obstacle> {
    let text = |chain: &Value, key: &str| chain[key].as_str().unwrap_or_default().to_owned();
    let all: Vec<&Value> = entries(chains, "chain").collect();
    let has_docker = all.iter().any(|chain| chain["name"] == "DOCKER-USER" && chain["family"] == "ip");
    let obstacle = |chain: &&Value| {
        let (family, table) = (text(chain, "family"), text(chain, "table"));
        let (hook, name) = (text(chain, "hook"), text(chain, "name"));
        // It rejects by a last rule, not by its policy.
        let is_firewalld = table == "firewalld" && name == "filter_FORWARD";
        let drops = matches!(hook.as_str(), "forward" | "input") && chain["policy"] == "drop";
        if table == "banger" || !(is_firewalld || drops) {
            return None;
        }
        let is_docker = has_docker && family == "ip" && table == "filter" && hook == "forward";
        let kind = match (is_firewalld, is_docker) {
            (true, _) => Kind::Firewalld,
            (_, true) => Kind::Docker,
            _ => Kind::Other,
        };
        Some(Obstacle { family, table, chain: name, hook, kind })
    };
    all.iter().filter_map(obstacle).collect()
}

/// Whether netd's own rules are there.
pub fn has_our_tables(chains: &Value) -> bool {
    ["inet", "bridge"].into_iter().all(|family| {
        entries(chains, "chain").any(|chain| chain["table"] == "banger" && chain["family"] == family)
    })
}

fn entries<'a>(listing: &'a Value, kind: &'a str) -> impl Iterator<Item = &'a Value> {
    let all = listing["nftables"].as_array().into_iter().flatten();
    all.filter_map(move |entry| entry.get(kind))
}

impl Obstacle {
    /// What is in the way of guests on this bridge, and what to do about it. `table` is the table in nft's own
    /// words; one that speaks of the bridge has been seen to.
    pub fn warning(&self, bridge: &str, table: &str) -> Option<(String, String)> {
        let Obstacle { family, table: name, chain, .. } = self;
        let quoted = format!("\"{bridge}\"");
        if table.contains(&quoted) {
            return None;
        }
        let rule = |what: &str| format!("nft insert rule {family} {name} {chain} '{what} accept'");
        let (from, answers) =
            (format!("iifname {quoted}"), format!("oifname {quoted} ct state established,related"));
        Some(match (self.kind, self.hook.as_str()) {
            (Kind::Firewalld, _) => (
                "firewalld rejects what guests send".to_owned(),
                format!(
                    "firewall-cmd --permanent --zone=trusted --add-interface={bridge} && firewall-cmd --reload"
                ),
            ),
            (Kind::Docker, _) => (
                "Docker has the host drop what guests send".to_owned(),
                format!(
                    "iptables -I DOCKER-USER -i {bridge} -j ACCEPT && iptables -I DOCKER-USER -o {bridge} \
                     -m conntrack --ctstate ESTABLISHED,RELATED -j ACCEPT"
                ),
            ),
            // What guests reach of the host is still for banger's own rules to say.
            (Kind::Other, "input") => (
                format!("the chain {family} {name} {chain} drops what guests ask the host, such as DNS"),
                rule(&from),
            ),
            (Kind::Other, _) => (
                format!("the chain {family} {name} {chain} drops what guests send beyond the host"),
                format!("{} && {}", rule(&from), rule(&answers)),
            ),
        })
    }
}

#[cfg(test)]
mod tests {
    use super::*;
    use serde_json::json;

    fn chain(family: &str, table: &str, name: &str, hook: &str, policy: &str) -> Value {
        json!({"chain": {"family": family, "table": table, "name": name, "hook": hook, "policy": policy}})
    }

    fn warnings(chains: &[Value], table: &str) -> Vec<(String, String)> {
        let obstacles = obstacles(&json!({"nftables": chains}));
        obstacles.iter().filter_map(|obstacle| obstacle.warning("banger0", table)).collect()
    }

    #[test]
    fn what_drops_is_named_with_what_to_do() {
        let docker = json!({"chain": {"family": "ip", "table": "filter", "name": "DOCKER-USER"}});
        let chains = [
            chain("ip", "filter", "FORWARD", "forward", "drop"),
            docker,
            chain("inet", "firewalld", "filter_FORWARD", "forward", "accept"),
            chain("inet", "site", "fwd", "forward", "drop"),
            chain("inet", "site", "in", "input", "drop"),
            chain("inet", "open", "forward", "forward", "accept"),
            chain("inet", "banger", "forward", "forward", "drop"),
        ];
        let warnings = warnings(&chains, "");
        let words = ["DOCKER-USER -i banger0", "--zone=trusted", "site fwd 'iifname", "site in 'iifname"];
        assert_eq!(warnings.len(), words.len(), "{warnings:#?}");
        for ((_, remedy), word) in warnings.iter().zip(words) {
            assert!(remedy.contains(word), "{remedy}");
        }
    }

    #[test]
    fn what_an_admin_has_seen_to_is_no_matter() {
        let chains = [chain("inet", "site", "fwd", "forward", "drop")];
        assert!(warnings(&chains, "iifname \"banger0\" accept").is_empty());
        assert_eq!(warnings(&chains, "iifname \"banger01\" accept").len(), 1);
    }

    #[test]
    fn both_of_our_tables_are_looked_for() {
        let listing = |families: &[&str]| {
            let chains = families.iter().map(|family| chain(family, "banger", "input", "input", "accept"));
            json!({"nftables": chains.collect::<Vec<_>>()})
        };
        assert!(has_our_tables(&listing(&["inet", "bridge"])));
        assert!(!has_our_tables(&listing(&["inet"])) && !has_our_tables(&listing(&[])));
    }
}
