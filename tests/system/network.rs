//! What guests reach.

use banger_tests::{BUSYBOX, Vm, banger, json, run};

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
