//! Names of VMs, for guests and for the host, and names of others, for guests.

use banger_api::NETD;
use banger_tests::{BUSYBOX, Vm, banger, json, run, sh};

const GATEWAY: &str = "10.209.0.1";

fn address(vm: &Vm) -> String {
    json(&["vm", "show", vm.name()])["address"].as_str().expect("an address").to_owned()
}

/// What the host's resolver says to a name or an address, without the name itself.
fn host_asks(what: &str) -> banger_tests::Done {
    run("resolvectl", &["query", "--legend=no", what])
}

fn full(vm: &Vm) -> String {
    format!("{}.banger.internal", vm.name())
}

fn property(name: &str) -> String {
    run("busctl", &["get-property", NETD.bus_name, NETD.path, NETD.manager, name]).ok()
}

#[test]
fn the_host_finds_a_vm_from_ready_to_stopped() {
    // Asked too early, which nobody may remember.
    let vm = Vm::named("t-dns-host");
    let name = full(&vm);
    assert_ne!(host_asks(&name).status, 0);
    let other = Vm::running("t-dns-other", BUSYBOX);
    assert!(host_asks(&name).stderr.contains("not found"), "{name}");

    banger(&["run", "-d", "--name", vm.name(), BUSYBOX]).ok();
    let address = address(&vm);
    assert!(host_asks(&name).ok().contains(&address));
    assert!(host_asks(&address).ok().contains(&name));
    // What libc's programs ask, and what others do, over D-Bus.
    assert!(sh(&format!("getent ahosts {name}")).ok().contains(&address));
    let call =
        ["call", "org.freedesktop.resolve1", "/org/freedesktop/resolve1", "org.freedesktop.resolve1.Manager"];
    let resolved =
        run("busctl", &[&call[..], &["ResolveHostname", "isit", "0", &name, "2", "0"]].concat()).ok();
    let bytes = address.replace('.', " ");
    assert!(resolved.contains(&format!("2 4 {bytes}")), "{resolved}");
    assert!(
        run("resolvectl", &["query", "--legend=no", "--type=SOA", "banger.internal"]).ok().contains("SOA")
    );
    assert!(host_asks("no-such-vm.banger.internal").stderr.contains("not found"));
    // Nothing else goes there.
    let status = run("resolvectl", &["status", "banger0"]).ok();
    assert!(
        status.contains("-DefaultRoute") && status.contains("~banger.internal ~209.10.in-addr.arpa"),
        "{status}"
    );
    assert_eq!(property("Domain"), "s \"banger.internal\"\n");

    banger(&["stop", vm.name()]).ok();
    assert!(host_asks(&name).stderr.contains("not found"));
    assert!(host_asks(&address).stderr.contains("not found"));
    banger(&["start", vm.name()]).ok();
    assert!(host_asks(&name).ok().contains(&address));
    drop(other);
}

/// One query as it goes over TCP, for `printf`.
fn over_tcp(name: &str, rtype: u8) -> String {
    let mut query = vec![0x12, 0x34, 1, 0, 0, 1, 0, 0, 0, 0, 0, 0];
    for label in name.split('.') {
        query.push(label.len().try_into().expect("short"));
        query.extend(label.as_bytes());
    }
    query.extend([0, 0, rtype, 0, 1]);
    let length = u16::try_from(query.len()).expect("short").to_be_bytes();
    length.iter().chain(&query).map(|byte| format!("\\{byte:03o}")).collect()
}

#[test]
fn guests_find_each_other_and_the_outside() {
    let (one, other) = (Vm::running("t-dns-one", BUSYBOX), Vm::running("t-dns-two", BUSYBOX));
    let ask = |what: &str| one.sh(&format!("nslookup {what} 2>&1 || true")).ok();
    assert!(ask(&full(&other)).contains(&format!("Address: {}\n", address(&other))));
    let reverse = ask(&address(&other));
    assert!(reverse.contains(&format!("name = {}", full(&other))), "{reverse}");
    // By its short name, in the domain that the guest was told of.
    assert!(ask("t-dns-two").contains(&format!("Address: {}\n", address(&other))));
    assert!(ask("nobody.banger.internal").contains("NXDOMAIN"));
    // The host, by the domain itself.
    assert!(ask("banger.internal").contains(GATEWAY));

    // Outside, by way of the host's resolver.
    assert!(ask("outside.example").contains("Address: 203.0.113.10\n"));
    assert!(ask("nowhere.example").contains("NXDOMAIN"));
    // 3000 bytes come over TCP, and over UDP word of them.
    let query = over_tcp("big.outside.example", 16);
    let size = one.sh(&format!("printf '{query}' | nc -w 10 {GATEWAY} 53 | head -c 3100 | wc -c")).ok();
    assert!(size.trim().parse::<u32>().expect("a number") > 3000, "{size}");

    // Who may not leave the host does not by asking for names either, but finds its neighbours.
    let closed = Vm::named("t-dns-closed");
    banger(&["run", "-d", "--no-nat", "--name", closed.name(), BUSYBOX]).ok();
    let ask = |what: &str| closed.sh(&format!("nslookup {what} 2>&1 || true")).ok();
    assert!(ask("outside.example").contains("REFUSED"));
    assert!(ask(&full(&other)).contains(&address(&other)));
    banger(&["vm", "set", "--nat=true", closed.name()]).ok();
    assert!(ask("outside.example").contains("Address: 203.0.113.10\n"));
}

/// Sends one packet for a name from an address of the host, and waits so many seconds: the code of the answer.
fn one_packet(from: &str, name: &str, seconds: u32) -> String {
    let script = "import socket, sys\n\
        s = socket.socket(socket.AF_INET, socket.SOCK_DGRAM); s.bind((sys.argv[1], 0))\n\
        s.settimeout(int(sys.argv[3]))\n\
        q = b'\\x12\\x34\\1\\0\\0\\1\\0\\0\\0\\0\\0\\0'\n\
        q += b''.join(bytes([len(l)]) + l.encode() for l in sys.argv[2].split('.')) + b'\\0\\0\\1\\0\\1'\n\
        s.sendto(q, ('10.209.0.1', 53))\n\
        try: print(s.recv(4096)[3] & 15)\n\
        except TimeoutError: print('nothing')\n";
    run("python3", &["-c", script, from, name, &seconds.to_string()]).ok()
}

#[test]
fn only_guests_and_the_host_are_answered() {
    let vm = Vm::running("t-dns-foreign", BUSYBOX);
    // From the gateway's address the host is answered, but not what its own resolver knows.
    assert_eq!(one_packet(GATEWAY, &full(&vm), 60), "0\n");
    assert_eq!(one_packet("127.0.0.1", &full(&vm), 60), "0\n");
    assert_eq!(one_packet(GATEWAY, "outside.example", 60), "5\n");
    // As from somewhere else.
    assert_eq!(one_packet("198.51.100.2", &full(&vm), 2), "nothing\n");
}

/// These have the lab for themselves.
mod alone {
    use std::io::{BufRead, BufReader, Write};
    use std::os::unix::net::UnixStream;

    use banger_tests::{as_user, eventually};
    use serde_json::{Value, json};

    use super::*;

    #[test]
    fn no_query_is_lost_while_netd_is_not_there() {
        let vm = Vm::running("t-dns-kill", BUSYBOX);
        let (name, address) = (full(&vm), address(&vm));
        let is_active = || run("systemctl", &["is-active", "banger-netd.service"]).text();
        let ask = || assert_eq!(one_packet(GATEWAY, &name, 60), "0\n");
        for _ in 0..2 {
            run("systemctl", &["kill", "-s", "KILL", "banger-netd.service"]).ok();
            ask();
        }
        // As when it has left by itself.
        run("systemctl", &["stop", "banger-netd.service"]).ok();
        assert_eq!(is_active(), "inactive\n");
        ask();
        assert_eq!(is_active(), "active\n");
        assert!(host_asks(&name).ok().contains(&address));
        eventually("netd leaves again", || is_active() == "inactive\n");
        ask();
    }

    #[test]
    fn resolved_may_come_and_go() {
        let vm = Vm::running("t-dns-resolved", BUSYBOX);
        let (name, address) = (full(&vm), address(&vm));
        assert!(host_asks(&name).ok().contains(&address));
        run("systemctl", &["restart", "systemd-resolved"]).ok();
        eventually("the host finds it again", || host_asks(&name).status == 0);

        run("systemctl", &["stop", "systemd-resolved"]).ok();
        let state = property("ResolvedState");
        let problems = property("DnsProblems");
        let status = banger(&["net", "status"]).ok();
        // Guests find each other all the same, and what the host finds without it.
        let of_guest = vm.sh(&format!("nslookup {name} 2>&1")).text();
        // Started anew it knows nothing, as if it were new on this host.
        sh("rm -rf /run/systemd/resolve/netif").ok();
        run("systemctl", &["start", "systemd-resolved"]).ok();
        assert_eq!(state, "s \"absent\"\n");
        for said in [problems, status] {
            assert!(said.contains("systemctl enable --now systemd-resolved"), "{said}");
        }
        assert!(of_guest.contains(&address), "{of_guest}");
        eventually("the host finds it again", || host_asks(&name).status == 0);
        assert_eq!(property("ResolvedState"), "s \"routed\"\n");
        assert_eq!(property("DnsProblems"), "a(ss) 0\n");
    }

    #[test]
    fn the_network_goes_without_a_trace_and_comes_back() {
        run("busctl", &["call", NETD.bus_name, NETD.path, NETD.manager, "TearDown"]).ok();
        assert_eq!(property("ResolvedState"), "s \"unset\"\n");
        assert!(!run("resolvectl", &["domain"]).ok().contains("banger"));
        let vm = Vm::running("t-dns-torn", BUSYBOX);
        assert!(host_asks(&full(&vm)).ok().contains(&address(&vm)));
        assert_eq!(property("ResolvedState"), "s \"routed\"\n");
    }

    #[test]
    fn a_port_that_is_taken_is_told_and_guests_ask_others() {
        run("systemctl", &["stop", "banger-netd-dns.socket", "banger-netd.service"]).ok();
        let taken = run("busctl", &["get-property", NETD.bus_name, NETD.path, NETD.manager, "DnsProblems"]);
        // netd wants the socket, so as long as nothing is in its way it is there again.
        assert_eq!(taken.ok(), "a(ss) 0\n");
        run("systemctl", &["stop", "banger-netd-dns.socket", "banger-netd.service"]).ok();
        run("systemctl", &["mask", "--runtime", "banger-netd-dns.socket"]).ok();
        let problems = property("DnsProblems");
        let servers = property("Dns");
        run("systemctl", &["unmask", "--runtime", "banger-netd-dns.socket"]).ok();
        run("systemctl", &["stop", "banger-netd.service"]).ok();
        run("systemctl", &["start", "banger-netd-dns.socket"]).ok();
        assert!(problems.contains("banger-netd-dns.socket does not listen"), "{problems}");
        // The host's.
        assert_eq!(servers, "as 1 \"203.0.113.10\"\n");
        assert_eq!(property("DnsProblems"), "a(ss) 0\n");
    }

    #[test]
    fn another_range_is_another_socket() {
        let drop_ins = "/run/banger/netd.conf.d";
        std::fs::create_dir_all(drop_ins).expect("creates");
        let listens = || {
            run("systemctl", &["daemon-reload"]).ok();
            run("systemctl", &["stop", "banger-netd.service"]).ok();
            run("systemctl", &["restart", "banger-netd-dns.socket"]).ok();
            run("systemctl", &["show", "-P", "Listen", "banger-netd-dns.socket"]).ok()
        };
        std::fs::write(format!("{drop_ins}/50-test.conf"), "range = \"192.168.77.0/24\"\n").expect("writes");
        let changed = listens();
        let (problems, servers) = (property("DnsProblems"), property("Dns"));
        std::fs::remove_dir_all(drop_ins).expect("removes");
        assert_eq!(listens(), format!("{GATEWAY}:53 (Datagram)\n{GATEWAY}:53 (Stream)\n"));
        assert_eq!(changed, "192.168.77.1:53 (Datagram)\n192.168.77.1:53 (Stream)\n");
        assert_eq!((problems.as_str(), servers.as_str()), ("a(ss) 0\n", "as 1 \"192.168.77.1\"\n"));
    }

    const HOOK: &str = "/run/systemd/resolve.hook/org.banger.Network1";

    /// A connection to the hook, as systemd-resolved has it since systemd 259. `tests/newest` has such a one.
    struct Resolved(BufReader<UnixStream>);

    impl Resolved {
        fn connect() -> Self {
            Self(BufReader::new(UnixStream::connect(HOOK).expect("connects")))
        }

        fn call(&mut self, call: &Value) -> Value {
            self.0.get_mut().write_all(format!("{call}\0").as_bytes()).expect("writes");
            self.reply()
        }

        fn reply(&mut self) -> Value {
            let mut reply = Vec::new();
            self.0.read_until(0, &mut reply).expect("reads");
            assert_eq!(reply.pop(), Some(0));
            serde_json::from_slice(&reply).expect("JSON")
        }
    }

    #[test]
    fn a_resolved_with_hooks_is_answered() {
        let vm = Vm::running("t-dns-hook", BUSYBOX);
        run("systemctl", &["stop", "banger-netd.service"]).ok();
        run("systemctl", &["start", "banger-netd-hook.socket"]).ok();
        let mut subscriber = Resolved::connect();
        let filter = subscriber.call(&json!({"method": "io.systemd.Resolve.Hook.QueryFilter", "more": true}));
        assert_eq!(filter["parameters"]["filterDomains"][0], "banger.internal");
        // The connection is not netd's alone, and whoever comes after it says so there.
        run("systemctl", &["kill", "-s", "KILL", "banger-netd.service"]).ok();
        assert_eq!(subscriber.reply(), filter);

        let question = json!([{"key": {"class": 1, "type": 1, "name": full(&vm)}}]);
        let lookup =
            json!({"method": "io.systemd.Resolve.Hook.ResolveRecord", "parameters": {"question": question}});
        let found = Resolved::connect().call(&lookup);
        assert_eq!(found["parameters"]["rcode"], 0, "{found}");
        assert_eq!(found["parameters"]["answer"].as_array().map(Vec::len), Some(1), "{found}");
        // Nobody else can keep it waiting.
        let ask =
            r#"printf '{"method":"io.systemd.Resolve.Hook.QueryFilter"}\0' | socat -t 5 - UNIX-CONNECT:"#;
        let ask = format!("{ask}{HOOK}");
        assert!(sh(&ask).text().contains("banger.internal"));
        assert_eq!(as_user("mallory", &ask).text(), "");

        run("systemctl", &["stop", "banger-netd-hook.socket", "banger-netd.service"]).ok();
        assert!(!std::path::Path::new(HOOK).exists());
    }
}
