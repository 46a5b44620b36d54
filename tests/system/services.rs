//! The services themselves: killed, left idle, called by people who may not.

use banger_api::SERVICES;
use banger_tests::{BUSYBOX, Vm, as_user, banger, eventually, run, sh};

#[test]
fn no_vm_notices_the_death_of_a_service() {
    let vm = Vm::running("t-kill", BUSYBOX);
    let pid = vm.pid();
    for service in SERVICES {
        let unit = format!("banger-{}.service", service.id);
        // There may be nobody to kill: idle services leave.
        run("systemctl", &["start", &unit]).ok();
        run("systemctl", &["kill", "-s", "KILL", &unit]).ok();
        let listed = banger(&["ps"]).ok();
        assert!(listed.contains("t-kill") && listed.contains("running"), "{}: {listed}", service.id);
        assert_eq!(vm.sh("echo alive").ok(), "alive\n", "{}", service.id);
        assert_eq!(vm.pid(), pid, "{}", service.id);
    }
    banger(&["stop", vm.name()]).ok();
    assert_eq!(vm.state(), "stopped");
}

#[test]
fn a_stream_does_not_notice_the_death_of_sessiond() {
    let vm = Vm::running("t-kill-stream", BUSYBOX);
    let script = "i=0; while [ $i -lt 40 ]; do echo line $i; i=$((i+1)); sleep 0.1; done; exit 5";
    let stream = banger_tests::start("banger", &["exec", vm.name(), "--", "sh", "-c", script]);
    std::thread::sleep(std::time::Duration::from_secs(2));
    run("systemctl", &["kill", "-s", "KILL", "banger-sessiond.service"]).ok();
    let done = stream.join().expect("joins");
    assert_eq!(done.status, 5, "{done}");
    assert_eq!(done.text().lines().count(), 40, "{done}");
}

#[test]
fn idle_services_leave_and_come_back() {
    let unit = "banger-sessiond.service";
    let drop_in = "/run/systemd/system/banger-sessiond.service.d";
    std::fs::create_dir_all(drop_in).expect("creates");
    let program = "/usr/libexec/banger/banger-sessiond";
    let text = format!("[Service]\nExecStart=\nExecStart={program} --idle-timeout 1\n");
    std::fs::write(format!("{drop_in}/idle.conf"), text).expect("writes");
    run("systemctl", &["daemon-reload"]).ok();
    run("systemctl", &["restart", unit]).ok();
    eventually("sessiond leaves", || sh(&format!("systemctl is-active {unit}")).text().trim() == "inactive");
    // By the bus.
    run(
        "busctl",
        &["call", "org.banger.Session1", "/org/banger/Session1", "org.freedesktop.DBus.Peer", "Ping"],
    )
    .ok();
    eventually("sessiond leaves again", || {
        sh(&format!("systemctl is-active {unit}")).text().trim() == "inactive"
    });
    // By its socket.
    let address = "--address=unix:path=/run/banger/sessiond.sock";
    run(
        "busctl",
        &[
            address,
            "call",
            "org.banger.Session1",
            "/org/banger/Session1",
            "org.freedesktop.DBus.Peer",
            "Ping",
        ],
    )
    .ok();
    std::fs::remove_dir_all(drop_in).expect("removes");
    run("systemctl", &["daemon-reload"]).ok();
    run("systemctl", &["restart", unit]).ok();
}

#[test]
fn strangers_may_look_but_not_touch() {
    let listed = as_user("mallory", "banger ps");
    listed.ok();
    as_user("mallory", &format!("banger run {BUSYBOX} -- true")).refused(&["banger"]);
    as_user("mallory", "banger pull localhost:5000/busybox:latest").refused(&["banger"]);
    let start = "SYSTEMD_LOG_LEVEL=debug busctl call org.banger.Vm1 /org/banger/Vm1 org.banger.Vm1.Manager StartVm s x";
    let denied = as_user("mallory", start);
    // Without a password: polkit would ask for one if it could.
    let names = ["DBus.Error.AccessDenied", "DBus.Error.InteractiveAuthorizationRequired"];
    assert!(names.iter().any(|name| denied.stderr.contains(name)), "{denied}");
    let call = "busctl call org.banger.Network1 /org/banger/Network1 org.banger.Network1.Manager Release s x";
    assert_ne!(as_user("alice", call).status, 0, "leases are between services");
    // The sockets are closed to strangers by their mode, and open to the group.
    let list = "busctl --address=unix:path=/run/banger/vmd.sock call org.banger.Vm1 /org/banger/Vm1 org.banger.Vm1.Manager ListVms";
    assert_ne!(as_user("mallory", list).status, 0);
    as_user("alice", list).ok();
    // Nobody but the unit of a VM gets its launch plan.
    let prepare = "busctl call org.banger.Vm1 /org/banger/Vm1 org.banger.Vm1.Manager PrepareVm s x";
    assert_ne!(sh(prepare).status, 0);
}

#[test]
fn members_of_the_group_need_no_password() {
    let done = as_user("alice", &format!("banger run --rm --name t-alice {BUSYBOX} -- id -u"));
    assert_eq!(done.ok(), "0\n");
}

#[test]
fn log_levels_change_at_run_time() {
    for service in SERVICES {
        let unit = format!("banger-{}.service", service.id);
        run("systemctl", &["start", &unit]).ok();
        run("systemctl", &["service-log-level", &unit, "debug"]).ok();
        // It lasts, since the service may leave any moment and come back.
        run("systemctl", &["restart", &unit]).ok();
        assert_eq!(run("systemctl", &["service-log-level", &unit]).ok(), "debug\n");
        run("systemctl", &["service-log-level", &unit, "info"]).ok();
        assert_ne!(as_user("alice", &format!("systemctl service-log-level {unit} debug")).status, 0);
    }
}
