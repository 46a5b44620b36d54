//! What the VMM of one VM can reach of another's: nothing.

use banger_tests::{BUSYBOX, Done, Vm, run, sh};

/// Opens a TAP as the VMM would, and prints the error.
const OPEN_TAP: &str = "import fcntl,os,struct,sys
tun = os.open('/dev/net/tun', os.O_RDWR)
try:
    fcntl.ioctl(tun, 0x400454ca, struct.pack('16sH22x', sys.argv[1].encode(), 0x5002))
    print('open')
except OSError as error:
    print(error.strerror)";

/// Runs a program with the user, the groups and (`inside`) the view of the files of a VM's VMM.
fn as_vmm(vm: &Vm, inside: bool, command: &[&str]) -> Done {
    let pid = vm.pid().to_string();
    let status = std::fs::read_to_string(format!("/proc/{pid}/status")).expect("reads");
    let ids = |name: &str| -> Vec<String> {
        let line = status.lines().find(|line| line.starts_with(name)).expect("there");
        line.split_whitespace().skip(1).map(str::to_owned).collect()
    };
    let (uid, gid, groups) = (ids("Uid:")[0].clone(), ids("Gid:")[0].clone(), ids("Groups:").join(","));
    let user = [format!("--reuid={uid}"), format!("--regid={gid}"), format!("--groups={groups}")];
    let mut line: Vec<&str> = vec!["-t", &pid];
    line.extend(if inside { vec!["-m"] } else { vec![] });
    line.extend(["--", "setpriv", "--bounding-set=-all", "--inh-caps=-all"]);
    line.extend(user.iter().map(String::as_str));
    line.extend(command);
    let mut all = vec!["nsenter"];
    if !inside {
        // The user alone, with everything on the host to see.
        all = vec![];
        line.drain(..3);
    }
    all.extend(line);
    run(all[0], &all[1..])
}

#[test]
fn one_vmm_reaches_nothing_of_another_vm() {
    let one = Vm::running("t-wall-one", BUSYBOX);
    let other = Vm::running("t-wall-other", BUSYBOX);
    let disk = |vm: &Vm| format!("/var/lib/banger/vmd/vms/{}/disk.img", vm.name());
    let read = |vm: &Vm, inside: bool, path: &str| as_vmm(vm, inside, &["head", "-c", "1", path]);

    // Its own disk it can read, or the rest of this would prove nothing.
    read(&one, true, &disk(&one)).ok();
    read(&one, true, &disk(&other)).failed(&["No such file"]);
    read(&one, false, &disk(&other)).failed(&["Permission denied"]);
    for secret in ["/var/lib/banger/vmd/vmd.db", "/var/lib/banger/netd", "/etc/shadow"] {
        assert_ne!(read(&one, true, secret).status, 0, "{secret}");
    }
    // Nor the sockets that lead into the other guest, or to its VMM.
    for socket in ["vsock.sock", "qmp.sock"] {
        let path = format!("/run/banger/vm/{}/{socket}", other.name());
        let connect = "import socket,sys; socket.socket(socket.AF_UNIX).connect(sys.argv[1])";
        as_vmm(&one, true, &["python3", "-c", connect, &path]).failed(&["Permission denied"]);
    }
    let tap = |vm: &Vm| {
        let leases = banger_tests::json(&["net", "leases"]);
        let lease = leases.as_array().expect("a list").iter().find(|lease| lease["holder"] == vm.name());
        lease.expect("a lease")["tap"].as_str().expect("a name").to_owned()
    };
    let open = |tap: &str| as_vmm(&one, false, &["python3", "-c", OPEN_TAP, tap]).text();
    // Its own is in use, by itself; the other's is not for it.
    assert_eq!(open(&tap(&one)), "Device or resource busy\n");
    assert_eq!(open(&tap(&other)), "Operation not permitted\n");
}

#[test]
fn units_are_tight() {
    let vm = Vm::named("t-tight");
    banger_tests::banger(&["vm", "create", "--name", vm.name(), BUSYBOX]).ok();
    let units = sh("ls /lib/systemd/system/banger-*.service | xargs -n1 basename").ok();
    for unit in units.lines().map(|unit| unit.replace('@', &format!("@{}", vm.name()))) {
        let report = run("systemd-analyze", &["security", "--no-pager", "--threshold=20", &unit]);
        let verdict = report.text().lines().last().unwrap_or_default().to_owned();
        assert_eq!(report.status, 0, "{unit}: {verdict}");
    }
}
