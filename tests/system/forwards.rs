//! Ports of the host that lead to guests.

use banger_tests::{BUSYBOX, DEBIAN, Vm, Way, banger, error_name, eventually, json, run, sh};

const VMD: banger_api::Service = banger_api::VMD;

/// A web server in the guest that says who it is.
fn serve(vm: &Vm) {
    let server = "mkdir -p /www && hostname > /www/index.html && httpd -p 80 -h /www";
    vm.sh(server).ok();
}

fn get(address: &str) -> String {
    run("curl", &["-s", "-m", "60", address]).text().trim().to_owned()
}

fn is_listening(listen: &str) -> bool {
    let forwards = json(&["net", "forward", "ls"]);
    let all = forwards.as_array().expect("a list").clone();
    let found = all.iter().find(|forward| forward["listen"] == listen).expect("it is listed").clone();
    let shown = found["listening"] == true;
    let really = sh(&format!("ss -Hlntu | grep -F {listen}")).status == 0;
    assert_eq!(shown, really, "{listen}: {found}");
    really
}

#[test]
fn a_port_leads_to_a_running_guest() {
    let vm = Vm::named("t-forward");
    banger(&["run", "-d", "--name", vm.name(), "-p", "18080:80", "-p", "127.0.0.2:18081:80/tcp", BUSYBOX])
        .ok();
    serve(&vm);
    assert_eq!(get("127.0.0.1:18080"), "t-forward");
    assert_eq!(get("127.0.0.2:18081"), "t-forward");
    assert!(banger(&["ps"]).ok().contains("127.0.0.1:18080->80/tcp, 127.0.0.2:18081->80/tcp"));
    let shown = Way::Socket.call(VMD, "ListForwards", &[]).ok();
    assert!(shown.contains("\"127.0.0.1:18080\" 80 false true"), "{shown}");
    let unit = "banger-forward-tcp@127.0.0.1:18080";
    assert_eq!(
        run("systemctl", &["is-active", &format!("{unit}.socket"), &format!("{unit}.service")]).status,
        0
    );

    // One more, while it runs; and by D-Bus.
    banger(&["net", "forward", "add", vm.name(), "18082:80"]).ok();
    Way::Bus.call(VMD, "AddForward", &["sssqa{sv}", vm.name(), "tcp", "127.0.0.1:18083", "80", "0"]).ok();
    assert_eq!((get("127.0.0.1:18082"), get("127.0.0.1:18083")), ("t-forward".into(), "t-forward".into()));
    banger(&["net", "forward", "rm", "18082"]).ok();
    Way::Bus.call(VMD, "RemoveForward", &["ss", "tcp", "127.0.0.1:18083"]).ok();
    assert_eq!((get("127.0.0.1:18082"), get("127.0.0.1:18083")), (String::new(), String::new()));

    banger(&["stop", vm.name()]).ok();
    assert!(!is_listening("127.0.0.1:18080"));
    assert_ne!(run("systemctl", &["is-active", &format!("{unit}.service")]).status, 0);
    banger(&["start", vm.name()]).ok();
    serve(&vm);
    assert_eq!(get("127.0.0.1:18080"), "t-forward");
    banger(&["set", vm.name(), "--no-publish"]).ok();
    assert_eq!(get("127.0.0.1:18080"), "");
}

#[test]
fn a_connection_starts_a_vm() {
    let vm = Vm::named("t-demand");
    banger(&["vm", "create", "--name", vm.name(), "-p", "18090:80,on-demand", BUSYBOX]).ok();
    assert!(is_listening("127.0.0.1:18090"));
    assert_eq!(vm.state(), "created");
    // Nothing serves there yet: the connection gets through, and ends.
    get("127.0.0.1:18090");
    assert_eq!(vm.state(), "running");
    serve(&vm);
    assert_eq!(get("127.0.0.1:18090"), "t-demand");
    banger(&["stop", vm.name()]).ok();
    assert_eq!(vm.state(), "stopped");
    assert!(is_listening("127.0.0.1:18090"));

    // vmd notices what was closed behind its back, and what nobody wants.
    sh("systemctl stop banger-forward-tcp@127.0.0.1:18090.socket").ok();
    sh("systemctl start banger-forward-tcp@127.0.0.1:18099.socket").ok();
    let repaired = banger(&["vm", "reconcile"]).ok();
    assert!(repaired.contains("127.0.0.1:18099/tcp"), "{repaired}");
    assert!(is_listening("127.0.0.1:18090"));
    assert_ne!(sh("ss -Hlnt | grep -F 127.0.0.1:18099").status, 0);

    banger(&["rm", vm.name()]).ok();
    assert_ne!(sh("ss -Hlnt | grep -F 127.0.0.1:18090").status, 0);
}

#[test]
fn a_vm_that_cannot_start_turns_connections_away() {
    let vm = Vm::named("t-demand-not");
    let create = ["vm", "create", "--name", vm.name(), "-p", "18095:80,on-demand", "--kernel-arguments"];
    banger(&[&create[..], &["init=/no/such rdinit=/no/such", BUSYBOX]].concat()).ok();
    for _ in 0..2 {
        assert_eq!(get("127.0.0.1:18095"), "");
        assert!(is_listening("127.0.0.1:18095"), "the port stays");
    }
}

#[test]
fn datagrams_come_and_go() {
    let vm = Vm::named("t-forward-udp");
    banger(&["run", "-d", "--name", vm.name(), "-p", "18053:53/udp", DEBIAN]).ok();
    // The image has perl's smallest part alone.
    let echo = "my $s = IO::Socket::INET->new(LocalPort => 53, Proto => 'udp') or die; \
                while ($s->recv(my $said, 1000)) { $s->send(\"heard $said\") }";
    vm.sh(&format!("nohup perl -MIO::Socket::INET -e '{echo}' >/dev/null 2>&1 &")).ok();
    let say = "echo hello | timeout 5 socat -t 2 - UDP:127.0.0.1:18053";
    eventually("an answer comes back", || sh(say).text().trim() == "heard hello");
}

#[test]
fn a_port_has_one_owner() {
    let (one, other) = (Vm::named("t-port-1"), Vm::named("t-port-2"));
    banger(&["vm", "create", "--name", one.name(), "-p", "18070:80,on-demand", BUSYBOX]).ok();
    let taken = banger(&["vm", "create", "--name", other.name(), "-p", "18070:80", BUSYBOX]);
    taken.refused(&["127.0.0.1:18070/tcp", "t-port-1"]);
    banger(&["vm", "create", "--name", other.name(), BUSYBOX]).ok();
    banger(&["net", "forward", "add", other.name(), "18070:80"]).refused(&["t-port-1"]);
    banger(&["net", "forward", "add", one.name(), "18070:81"]).refused(&["already"]);
    banger(&["set", other.name(), "-p", "18070:80"]).refused(&["t-port-1"]);

    // Somebody else's. The registry of the lab is there.
    banger(&["net", "forward", "add", one.name(), "127.0.0.1:5000:80,on-demand"])
        .refused(&["127.0.0.1:5000"]);
    let add = ["sssqa{sv}", one.name(), "tcp", "127.0.0.1:5000", "80", "1", "on_demand", "b", "true"];
    assert_eq!(error_name(VMD, "AddForward", &add), "org.banger.Error.PortInUse");
    let forwards = json(&["net", "forward", "ls"]).to_string();
    assert!(!forwards.contains(":5000"), "{forwards}");

    for (text, word) in [("80", "forward"), ("0:80", "port"), ("80:80/icmp", "protocol"), ("x:1:1", "listen")]
    {
        banger(&["net", "forward", "add", one.name(), text]).failed(&[word]);
    }
    banger(&["net", "forward", "rm", "18079"]).refused(&["nothing is forwarded"]);
    banger(&["net", "forward", "add", one.name(), "18071:80/udp"]).ok();
    banger(&["set", one.name(), "--no-network"]).refused(&["network"]);
}
