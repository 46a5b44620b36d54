//! Where guests get beyond the host.

use banger_api::{NETD, VMD};
use banger_tests::{BUSYBOX, Vm, Way, banger, eventually, json, run};

use crate::network::{of_lease, reaches};

/// The server outside, which answers to HTTP and, on another port, to DNS.
const SERVER: &str = "203.0.113.10";

/// What the guest hears of the web server by one of its names or its address.
fn get(vm: &Vm, server: &str) -> String {
    vm.sh(&format!("printf 'GET /hello HTTP/1.0\\r\\n\\r\\n' | nc -w 30 {server} 80 2>&1 || true")).ok()
}

fn is_greeted(vm: &Vm, server: &str) -> bool {
    get(vm, server).contains("hello from outside")
}

/// Whether the server takes a connection to its other port.
fn reaches_dns(vm: &Vm) -> bool {
    vm.sh(&format!("echo | nc -w 30 {SERVER} 53")).status == 0
}

#[test]
fn a_closed_guest_reaches_what_it_may_and_no_more() {
    let vm = Vm::named("t-egress");
    banger(&["run", "-d", "--egress", "closed", "--name", vm.name(), BUSYBOX]).ok();
    // It hears so at once instead of waiting in vain.
    assert!(get(&vm, SERVER).contains("No route to host"));
    assert!(!reaches(&vm, SERVER) && !reaches(&vm, "2001:db8:1::10") && reaches(&vm, "10.209.0.1"));
    // Nor by asking for names: not banger, and nobody else.
    assert!(vm.sh("nslookup outside.example 2>&1 || true").ok().contains("REFUSED"));
    assert!(!reaches_dns(&vm));
    assert!(vm.sh("nslookup banger.internal 2>&1").ok().contains("10.209.0.1"));

    let rules = ["--egress-allow", "203.0.113.10:80/tcp", "--egress-allow", "2001:db8:1::/48"];
    let done = banger(&[&["set", vm.name()][..], &rules].concat());
    assert!(done.stderr.contains("in effect: egress_allow"), "{}", done.stderr);
    done.ok();
    assert!(is_greeted(&vm, SERVER) && reaches(&vm, "2001:db8:1::10"));
    assert!(!reaches_dns(&vm), "another port");
    assert!(!reaches(&vm, SERVER), "another protocol");
    assert!(!reaches(&vm, "198.51.100.1"), "another address");
    let of_vm = &json(&["vm", "show", vm.name()])["spec"]["egress"];
    let shown = serde_json::json!(["203.0.113.10:80/tcp", "2001:db8:1::/48"]);
    assert_eq!((&of_vm["default"], &of_vm["allow"]), (&"closed".into(), &shown));
    assert_eq!(of_lease(&vm, "Egress"), "v s \"closed\"\n");
    assert_eq!(of_lease(&vm, "EgressAllow"), "v as 2 \"203.0.113.10:80/tcp\" \"2001:db8:1::/48\"\n");

    // As programs do, of vmd and of netd.
    let set = ["sa{sv}", vm.name(), "1", "egress_allow", "as", "1", "203.0.113.0/24:50-60"];
    Way::Bus.call(VMD, "SetVm", &set).ok();
    assert!(reaches_dns(&vm) && !is_greeted(&vm, SERVER));
    let path = Way::Bus.call(VMD, "GetVm", &["s", vm.name()]).ok();
    let path = path.split('"').nth(1).expect("a path").to_owned();
    let property = |name| {
        let get = ["ss", "org.banger.Vm1.Vm", name];
        Way::Bus.call_at(VMD, &path, "org.freedesktop.DBus.Properties", "Get", &get).ok()
    };
    assert_eq!(property("Egress"), "v s \"closed\"\n");
    assert_eq!(property("EgressAllow"), "v as 1 \"203.0.113.0/24:50-60\"\n");
    let set = ["sa{sv}", vm.name(), "1", "egress", "s", "open"];
    Way::Bus.call(NETD, "SetPolicy", &set).ok();
    assert!(is_greeted(&vm, SERVER));
    assert_eq!(
        (of_lease(&vm, "Egress"), of_lease(&vm, "EgressAllow")),
        ("v s \"open\"\n".into(), "v as 0\n".into())
    );

    // Written down: after netd's end and at the VM's next start.
    banger(&["set", vm.name(), "--egress", "closed", "--no-egress-allow"]).ok();
    assert!(!is_greeted(&vm, SERVER));
    banger(&["set", vm.name(), "--egress-allow", "203.0.113.10:80"]).ok();
    run("systemctl", &["restart", "banger-netd.service"]).ok();
    assert!(is_greeted(&vm, SERVER) && !reaches_dns(&vm));
    banger(&["restart", vm.name()]).ok();
    assert!(is_greeted(&vm, SERVER) && !reaches_dns(&vm));

    banger(&["set", vm.name(), "--egress", "open"]).ok();
    assert!(reaches_dns(&vm) && reaches(&vm, SERVER));
    banger(&["set", vm.name(), "--egress-allow", "203.0.113.10"])
        .refused(&["egress open", "closed or no-lan"]);
    banger(&["set", vm.name(), "--egress-allow", "10.0.0.1/8"]).failed(&["10.0.0.0/8"]);
    let set = ["sa{sv}", vm.name(), "2", "egress", "s", "closed", "egress_allow", "as", "1", "nowhere"];
    Way::Bus.call(VMD, "SetVm", &set).failed(&["nowhere", "nothing to allow"]);
    let set = ["sa{sv}", vm.name(), "1", "egress", "s", "shut"];
    Way::Bus.call(NETD, "SetPolicy", &set).failed(&["shut", "no-lan"]);
}

#[test]
fn a_guest_without_the_lan_has_the_internet() {
    // Private addresses that the internet of the lab has for a while.
    const PRIVATE: &[&str] = &["192.168.250.10", "100.64.250.10", "fd00:250::10"];
    let private = |verb: &str| {
        for address in PRIVATE {
            let length = if address.contains(':') { 128 } else { 32 };
            let address = format!("{address}/{length}");
            run("ip", &["-n", "outside", "address", verb, &address, "dev", "lo"]);
        }
        let route = ["-6", "route", verb, "fd00:250::/32", "via", "2001:db8::1"];
        run("ip", &route);
    };
    private("del");
    private("add");
    let vm = Vm::running("t-egress-lan", BUSYBOX);
    let reached = |vm: &Vm| PRIVATE.iter().map(|address| reaches(vm, address)).collect::<Vec<_>>();
    // The guest may not be done yet with seeing whether its IPv6 address is its alone.
    eventually("an open guest reaches all", || !reached(&vm).contains(&false));
    banger(&["set", vm.name(), "--egress", "no-lan"]).ok();
    let without = reached(&vm);
    let internet = (is_greeted(&vm, SERVER), reaches(&vm, "2001:db8:1::10"), reaches(&vm, "10.209.0.1"));
    let named = vm.sh("nslookup outside.example 2>&1").ok();
    banger(&["set", vm.name(), "--egress-allow", "192.168.250.0/24", "--egress-allow", "fd00:250::10"]).ok();
    let printer = reached(&vm);
    private("del");
    assert_eq!(without, [false; 3]);
    assert_eq!(internet, (true, true, true));
    assert!(named.contains(SERVER), "{named}");
    assert_eq!(printer, [true, false, true]);
}

#[test]
fn a_name_lets_a_guest_out_to_what_it_stands_for() {
    let vm = Vm::named("t-egress-names");
    let rules = ["--egress-allow", "www.outside.example:80/tcp", "--egress-allow", "*.outside.example:1-70"];
    banger(&[&["run", "-d", "--egress", "closed", "--name", vm.name()], &rules[..], &[BUSYBOX]].concat())
        .ok();
    let ask = |what: &str| vm.sh(&format!("nslookup {what} 2>&1 || true")).ok();
    // Nothing passes before the name is asked for, and by no other.
    assert!(!is_greeted(&vm, SERVER));
    assert!(ask("outside.example").contains("REFUSED") && ask("www.outside.example.org").contains("REFUSED"));
    assert!(!is_greeted(&vm, SERVER) && !reaches_dns(&vm));
    // An alias, as most names are. The rules for it say by which ports.
    assert!(is_greeted(&vm, "WWW.outside.example"));
    assert!(is_greeted(&vm, SERVER) && reaches_dns(&vm) && !reaches(&vm, SERVER));
    assert_eq!(
        of_lease(&vm, "EgressAllow"),
        "v as 2 \"*.outside.example:1-70\" \"www.outside.example:80/tcp\"\n"
    );
    banger(&[
        "set",
        vm.name(),
        "--egress-allow",
        "www.outside.example",
        "--egress-allow",
        "six.outside.example",
    ])
    .ok();
    assert!(reaches(&vm, SERVER) && !reaches(&vm, "2001:db8:1::10"));
    eventually("its other kind of address is told", || ask("six.outside.example").contains("2001:db8:1::10"));
    assert!(reaches(&vm, "2001:db8:1::10"));

    // netd comes and goes, and knows. What is open stays so when a name's time is over, and nothing new is opened.
    let wait = "while ! [ -e /tmp/go ]; do sleep 1; done; printf 'GET /hello HTTP/1.0\\r\\n\\r\\n'";
    let begin = format!("({wait}) </dev/null 2>/dev/null | nc {SERVER} 80 >/tmp/heard 2>&1 & sleep 2");
    vm.sh(&begin).ok();
    let over = "import sqlite3, time; d = sqlite3.connect('/var/lib/banger/netd/netd.db')\n\
        d.execute('UPDATE way SET until = ? WHERE holder = ?', (int(time.time()) - 1, 't-egress-names')); d.commit()";
    // Another VM may want netd meanwhile, which has its database for itself.
    let stopped = "for try in $(seq 50); do \
        systemctl stop banger-netd.service && python3 -c \"$0\" && exit; sleep 0.2; done; exit 1";
    run("sh", &["-c", stopped, over]).ok();
    assert_eq!(of_lease(&vm, "Egress"), "v s \"closed\"\n");
    assert!(!is_greeted(&vm, SERVER));
    vm.sh("touch /tmp/go").ok();
    eventually("the answer comes", || vm.sh("cat /tmp/heard").text().contains("hello from outside"));
    assert!(is_greeted(&vm, "www.outside.example"));

    // Names are no way round what stands above, and go with their rules.
    banger(&["set", vm.name(), "--no-nat"]).ok();
    assert!(ask("www.outside.example").contains("REFUSED") && !is_greeted(&vm, SERVER));
    banger(&["set", vm.name(), "--nat=true", "--egress-allow", "192.0.2.1"]).ok();
    assert!(ask("www.outside.example").contains("REFUSED") && !is_greeted(&vm, SERVER));
}
