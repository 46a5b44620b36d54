//! What guests reach.

use banger_api::{NETD, VMD};
use banger_tests::{BUSYBOX, Vm, Way, banger, eventually, json, run, sh};

#[test]
fn guests_reach_the_outside_and_the_gateway() {
    let vm = Vm::running("t-net", BUSYBOX);
    // The server outside knows no way back to guests: it answers only through NAT.
    let get = "printf 'GET /hello HTTP/1.0\\r\\n\\r\\n' | nc -w 10 203.0.113.10 80";
    assert!(vm.sh(get).ok().contains("hello from outside"));
    let gateway = vm.sh("ip route | sed -n 's/^default via \\([0-9.]*\\).*/\\1/p'").ok();
    vm.sh(&format!("ping -c 1 -W 10 {gateway}")).ok();
    // And the host reaches the guest.
    let shown = json(&["vm", "show", vm.name()]);
    run("ping", &["-c", "1", "-W", "10", shown["address"].as_str().expect("an address")]).ok();
}

#[test]
fn a_vm_without_network_has_none() {
    let vm = Vm::named("t-no-net");
    banger(&["run", "-d", "--no-network", "--name", vm.name(), BUSYBOX]).ok();
    assert!(!vm.sh("ip -o link | grep -v ' lo:' || true").ok().contains("eth0"));
    assert_eq!(json(&["vm", "show", vm.name()])["address"], "");
}

/// The guest's address, as the host has it.
fn address(vm: &Vm) -> String {
    json(&["vm", "show", vm.name()])["address"].as_str().expect("an address").to_owned()
}

/// Whether the guest gets an answer from there.
pub fn reaches(vm: &Vm, address: &str) -> bool {
    vm.sh(&format!("ping -c 1 -W 3 {address}")).status == 0
}

/// A property of a VM's lease as `busctl` prints it.
pub fn of_lease(vm: &Vm, property: &str) -> String {
    let lease = Way::Bus.call(NETD, "GetLease", &["s", vm.name()]).ok();
    let path = lease.split('"').nth(1).expect("a path");
    let get = ["ss", banger_api::network::LEASE, property];
    Way::Bus.call_at(NETD, path, "org.freedesktop.DBus.Properties", "Get", &get).ok()
}

#[test]
fn guests_have_ipv6_of_their_hosts_own() {
    let vm = Vm::running("t-ipv6", BUSYBOX);
    let shown = json(&["vm", "show", vm.name()]);
    let address = shown["address6"].as_str().expect("an address");
    assert!(address.starts_with("fd"), "{address}");
    assert_eq!(of_lease(&vm, "Address6"), format!("v s \"{address}\"\n"));
    assert_eq!(of_lease(&vm, "Prefix6"), "v y 64\n");
    let gateway = json(&["net", "status"])["gateway6"].as_str().expect("an address").to_owned();
    assert!(vm.sh("ip -6 route").ok().contains(&format!("default via {gateway} dev eth0")));

    // The server outside knows no way back to these addresses either.
    assert!(reaches(&vm, &gateway) && reaches(&vm, "2001:db8:1::10"));
    run("ping", &["-c", "1", "-W", "10", address]).ok();
    // In groups, as with IPv4.
    let other = Vm::running("t-ipv6-other", BUSYBOX);
    let there = json(&["vm", "show", other.name()])["address6"].as_str().expect("an address").to_owned();
    assert!(!reaches(&vm, &there));
    for vm in [&vm, &other] {
        banger(&["set", vm.name(), "--group", "t-ipv6"]).ok();
    }
    eventually("they reach each other", || reaches(&vm, &there));
    // Nobody else's address.
    vm.sh("ip addr add fd00:dead::9/64 dev eth0; ip link set eth0 address 02:00:00:00:00:09").ok();
    assert!(!reaches(&vm, &gateway));

    banger(&["set", other.name(), "--no-nat"]).ok();
    assert!(!reaches(&other, "2001:db8:1::10") && reaches(&other, &gateway));
}

#[test]
fn ipv6_is_the_admins_choice() {
    let conf = "/run/banger/netd.conf.d/50-test-ipv6.conf";
    std::fs::create_dir_all("/run/banger/netd.conf.d").expect("creates");
    std::fs::write(conf, "ipv6 = false\n").expect("writes");
    run("systemctl", &["restart", "banger-netd.service"]).ok();
    let vm = Vm::named("t-no-ipv6");
    let started = banger(&["run", "-d", "--name", vm.name(), BUSYBOX]);
    let shown = banger(&["--json", "vm", "show", vm.name()]);
    let addresses = vm.sh("ip -6 addr show dev eth0 scope global");
    std::fs::remove_file(conf).expect("removes");
    run("systemctl", &["restart", "banger-netd.service"]).ok();
    started.ok();
    assert!(shown.ok().contains("\"address6\": \"\""));
    assert_eq!(addresses.ok(), "");
}

#[test]
fn rules_in_the_way_are_named_with_what_to_do() {
    let warnings = || json(&["net", "status"])["warnings"].as_array().expect("a list").clone();
    let remove = || run("nft", &["delete", "table", "inet", "t-site"]);
    remove();
    let before = warnings();
    // It drops by its policy, though nothing gets that far: other tests go on.
    sh("nft add table inet t-site && nft 'add chain inet t-site onward { type filter hook forward priority 50; policy drop; }' \
        && nft add rule inet t-site onward accept").ok();
    let after = warnings();
    let told = after.iter().find(|warning| !before.contains(warning)).and_then(|warning| warning.as_str());
    let told = told.map(str::to_owned);
    // What it says to do is done by a shell, word for word.
    let remedy = told.as_deref().and_then(|told| told.split_once(": ")).map(|(_, remedy)| sh(remedy));
    let seen_to = warnings();
    remove().ok();
    assert!(told.expect("a warning").contains("t-site onward"));
    remedy.expect("a remedy").ok();
    assert_eq!(seen_to, before);
}

#[test]
fn guests_are_strangers_unless_they_share_a_group() {
    let (one, other) = (Vm::named("t-group-one"), Vm::named("t-group-other"));
    banger(&["run", "-d", "--name", one.name(), "--group", "t-web", "--group", "t-db", BUSYBOX]).ok();
    banger(&["run", "-d", "--name", other.name(), BUSYBOX]).ok();
    let there = address(&other);
    assert!(!reaches(&one, &there));
    // Nor by way of the host, which both of them reach.
    one.sh(&format!("ip route add {there} via $(ip route | sed -n 's/^default via \\([0-9.]*\\).*/\\1/p')"))
        .ok();
    assert!(!reaches(&one, &there));
    one.sh(&format!("ip route del {there}")).ok();

    // A group is joined and left while both run, and shown by all who know of it.
    banger(&["set", other.name(), "--group", "t-db"]).ok();
    eventually("they reach each other", || reaches(&one, &there));
    assert!(reaches(&other, &address(&one)));
    assert_eq!(of_lease(&one, "Groups"), "v as 2 \"t-db\" \"t-web\"\n");
    assert_eq!(json(&["vm", "show", other.name()])["spec"]["groups"], serde_json::json!(["t-db"]));
    let set = ["sa{sv}", other.name(), "1", "groups", "as", "1", "t-elsewhere"];
    Way::Bus.call(VMD, "SetVm", &set).ok();
    assert!(!reaches(&one, &there));
    banger(&["set", other.name(), "--no-groups"]).ok();
    assert_eq!(of_lease(&other, "Groups"), "v as 0\n");
    banger(&["set", other.name(), "--group", "no such"]).refused(&["no such", "name for a group"]);
}

#[test]
fn a_guest_cannot_pass_for_another() {
    let vm = Vm::running("t-spoof", BUSYBOX);
    let gateway = vm.sh("ip route | sed -n 's/^default via \\([0-9.]*\\).*/\\1/p'").ok();
    let gateway = gateway.trim();
    assert!(reaches(&vm, gateway));
    let mac = vm.sh("cat /sys/class/net/eth0/address").ok();
    vm.sh("ip link set eth0 down; ip link set eth0 address 02:00:00:00:00:09; ip link set eth0 up").ok();
    assert!(!reaches(&vm, gateway), "with another MAC address");
    vm.sh(&format!("ip link set eth0 down; ip link set eth0 address {}; ip link set eth0 up", mac.trim()))
        .ok();
    assert!(reaches(&vm, gateway), "with its own again");
    // An address of the range that nobody has, so that nothing else stands in the way.
    let (network, _) = gateway.rsplit_once('.').expect("an address");
    let free = format!("{network}.250");
    vm.sh(&format!("ip addr add {free}/16 dev eth0")).ok();
    assert_ne!(vm.sh(&format!("ping -c 1 -W 3 -I {free} {gateway}")).status, 0, "with another address");
    vm.sh(&format!("ping -c 1 -W 10 -I {} {gateway}", address(&vm))).ok();
}

#[test]
fn what_the_host_offers_is_the_admins_choice() {
    let vm = Vm::running("t-host-ports", BUSYBOX);
    let gateway = vm.sh("ip route | sed -n 's/^default via \\([0-9.]*\\).*/\\1/p'").ok();
    run("systemctl", &["stop", "t-host-http.service"]);
    let server = [
        "--unit=t-host-http",
        "--collect",
        "busybox",
        "httpd",
        "-f",
        "-p",
        "0.0.0.0:18080",
        "-h",
        "/srv/outside",
    ];
    run("systemd-run", &server).ok();
    let get = |address: &str| {
        let request = format!("printf 'GET /hello HTTP/1.0\\r\\n\\r\\n' | nc -w 10 {} 18080", address.trim());
        vm.sh(&request).text().contains("hello from outside")
    };
    eventually("the host's server is up", || {
        sh("busybox wget -q -O - http://127.0.0.1:18080/hello").status == 0
    });
    // Not by the gateway's address, and not by any other that the host has.
    assert!(!get(&gateway) && !get("198.51.100.2"));

    let conf = "/run/banger/netd.conf.d/50-test.conf";
    std::fs::create_dir_all("/run/banger/netd.conf.d").expect("creates");
    std::fs::write(conf, "[host]\nallow = [\"udp/1\", \"tcp/18000-18100\"]\n").expect("writes");
    run("systemctl", &["restart", "banger-netd.service"]).ok();
    let open = (get(&gateway), get("198.51.100.2"));
    std::fs::remove_file(conf).expect("removes");
    run("systemctl", &["restart", "banger-netd.service"]).ok();
    let closed = (get(&gateway), get("198.51.100.2"));
    run("systemctl", &["stop", "t-host-http.service"]).ok();
    assert_eq!((open, closed), ((true, true), (false, false)));
}

#[test]
fn a_range_that_the_host_uses_is_refused() {
    // The lab's "internet" lies in this range.
    let drop_ins = "/etc/banger/netd.conf.d";
    std::fs::create_dir_all(drop_ins).expect("creates");
    let stop = || {
        run("systemctl", &["stop", "banger-netd.service"]).ok();
    };
    std::fs::write(format!("{drop_ins}/50-test.conf"), "range = \"198.51.100.0/24\"\n").expect("writes");
    stop();
    let refused = banger(&["run", "-d", "--name", "t-conflict", BUSYBOX]);
    std::fs::remove_dir_all(drop_ins).expect("removes");
    stop();
    banger(&["rm", "-f", "t-conflict"]);
    refused.refused(&["198.51.100.0/24", "netd.conf"]);
}
