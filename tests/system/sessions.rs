//! Sessions with a name: commands in guests that go on by themselves, and what is kept of them.

use std::collections::HashMap;
use std::io::Write;
use std::os::fd::OwnedFd;
use std::os::unix::net::UnixStream;
use std::process::{Command, Stdio};
use std::time::Duration;

use banger_api::SESSIOND;
use banger_api::session::ManagerProxy;
use banger_tests::monitor::Monitor;
use banger_tests::{BUSYBOX, Done, Vm, Way, banger, eventually, json, run, run_with, sh, start};
use serde_json::Value;
use sha2::{Digest, Sha256};

fn session(verb: &str, arguments: &[&str]) -> Done {
    banger(&[&["session", verb], arguments].concat())
}

/// Starts a script as a session.
fn begin(vm: &Vm, name: &str, script: &str) {
    session("start", &["--name", name, vm.name(), "--", "sh", "-c", script]).ok();
}

fn show(vm: &Vm, name: &str) -> Value {
    json(&["session", "show", vm.name(), name])
}

fn state(vm: &Vm, name: &str) -> String {
    show(vm, name)["state"].as_str().expect("a state").to_owned()
}

fn logs(vm: &Vm, name: &str) -> Done {
    session("logs", &[vm.name(), name])
}

fn hex(bytes: &[u8]) -> String {
    Sha256::digest(bytes).iter().map(|byte| format!("{byte:02x}")).collect()
}

/// Of the service, whatever it was at.
pub fn kill_sessiond() {
    let unit = "banger-sessiond.service";
    let killed = run("systemctl", &["show", "-P", "MainPID", unit]).ok();
    run("systemctl", &["kill", "-s", "KILL", unit]);
    // Before it is dead, a call may still be for it.
    eventually("it is dead", || !std::path::Path::new("/proc").join(killed.trim()).exists());
    // Too many ends in a row, and systemd would not start it again.
    run("systemctl", &["reset-failed", unit]);
}

#[test]
fn a_session_is_started_shown_waited_for_and_removed() {
    let vm = Vm::running("t-session", BUSYBOX);
    let script = "echo $GREETING $PWD $(id -u) $(ulimit -n) $(ulimit -Hc); echo err >&2; exit 7";
    let name = session(
        "start",
        &[
            &[
                "-e",
                "GREETING=hello",
                "-w",
                "/tmp",
                "-u",
                "nobody",
                "--limit",
                "nofile=77",
                "--limit",
                "core=1M",
            ],
            &[vm.name(), "--", "sh", "-c", script][..],
        ]
        .concat(),
    );
    let name = name.ok().trim().to_owned();
    assert_eq!(session("wait", &[vm.name(), &name]).status, 7);
    let done = logs(&vm, &name);
    assert_eq!((done.text().as_str(), done.stderr.as_str()), ("hello /tmp 65534 77 2048\n", "err\n"));
    let shown = show(&vm, &name);
    assert_eq!(shown["state"], "failed");
    assert_eq!(shown["exit_status"], 7);
    assert_eq!(shown["limits"], serde_json::json!({"core": 1 << 20, "nofile": 77}));
    assert!(shown["ended_usec"].as_u64() >= shown["started_usec"].as_u64(), "{shown}");

    // A second one of the same name is refused, and one that cannot start leaves nothing.
    session("start", &["--name", &name, vm.name(), "--", "true"]).refused(&[&name]);
    session("start", &["--name", "never", vm.name(), "--", "no-such-command"]).refused(&["no-such-command"]);
    session("show", &[vm.name(), "never"]).refused(&["never"]);
    session("start", &["--name", "../up", vm.name(), "--", "true"]).refused(&["../up"]);

    let done = session("start", &["-a", "--name", "quick", vm.name(), "--", "sh", "-c", "echo hi; exit 5"]);
    assert_eq!((done.status, done.text().as_str()), (5, "hi\n"), "{done}");

    begin(&vm, "well", "exit 0");
    assert_eq!(session("wait", &[vm.name(), "well"]).status, 0);
    assert_eq!(state(&vm, "well"), "exited");
    let listed = json(&["session", "ls", vm.name()]);
    let listed: Vec<_> = listed.as_array().expect("a list").iter().map(|row| row["id"].clone()).collect();
    assert!(listed.contains(&name.as_str().into()) && listed.contains(&"well".into()), "{listed:?}");

    session("rm", &[vm.name(), &name, "well", "quick"]).ok();
    session("logs", &[vm.name(), &name]).refused(&[&name]);
    assert!(!std::path::Path::new("/var/lib/banger/sessiond/t-session").exists());
}

#[test]
fn logs_are_cut_followed_and_timed() {
    let vm = Vm::running("t-session-logs", BUSYBOX);
    begin(&vm, "lines", "echo one; echo two; echo three; read line; echo $line");
    eventually("three lines are there", || logs(&vm, "lines").ok() == "one\ntwo\nthree\n");
    assert_eq!(session("logs", &["-n", "1", vm.name(), "lines"]).ok(), "three\n");
    assert_eq!(session("logs", &["-n", "0", vm.name(), "lines"]).ok(), "");
    assert_eq!(session("logs", &["--since", "@9999999999", vm.name(), "lines"]).ok(), "");
    assert_eq!(session("logs", &["--since", "@1", vm.name(), "lines"]).ok().lines().count(), 3);
    let timed = session("logs", &["-t", vm.name(), "lines"]).ok();
    let stamped = |line: &str| line.len() > 29 && line.starts_with("20") && line[..28].ends_with("Z ");
    assert!(timed.lines().count() == 3 && timed.lines().all(stamped), "{timed}");

    let follower = start("banger", &["session", "logs", "-f", "-n", "2", vm.name(), "lines"]);
    session("send", &[vm.name(), "lines", "four"]).ok();
    assert_eq!(follower.join().expect("joins").ok(), "two\nthree\nfour\n");
}

#[test]
fn busctl_alone_does_it_all() {
    let vm = Vm::running("t-session-busctl", BUSYBOX);
    let call = |method: &str, rest: &[&str]| {
        Way::Bus.call(SESSIOND, method, &[&["--"], &rest[..1], &[vm.name(), "echo"], &rest[1..]].concat())
    };
    let script = "while read line; do echo $line $(ulimit -n); done; trap '' TERM; sleep 1000";
    let limited = |name| ["1", "limits", "a{st}", "1", name, "78"];
    let start = [&["ssasa{ss}a{sv}", "3", "sh", "-c", script, "0"], &limited("nofile")[..]].concat();
    let started = call("StartSession", &start).ok();
    assert!(started.contains("\"echo\""), "{started}");
    let path = started.split('"').nth(3).expect("a path").to_owned();
    let property = |name: &str| {
        let arguments = ["get-property", SESSIOND.bus_name, &path, "org.banger.Session1.Session", name];
        run("busctl", &arguments).ok().trim().to_owned()
    };
    assert_eq!(property("Name"), "s \"echo\"");
    assert_eq!(property("State"), "s \"running\"");
    assert!(property("StartedTimestamp").len() > 10 && property("EndedTimestamp") == "t 0");

    // "hi\n", and the end.
    call("SendSession", &["ssaya{sv}", "3", "104", "105", "10", "1", "end", "b", "true"]).ok();
    let read = call("ReadLog", &["ssta{sv}", "0", "1", "wait", "b", "true"]).ok();
    // "hi 78\n" is 6 bytes at offset 0 of stream 1.
    assert!(
        read.starts_with("a(ttyay)tb 1 0 ") && read.ends_with(" 1 6 104 105 32 55 56 10 6 false\n"),
        "{read}"
    );
    let exec = [&["sasa{ss}a{sv}", vm.name(), "1", "true", "0"], &limited("files")[..]].concat();
    assert_eq!(banger_tests::error_name(SESSIOND, "Exec", &exec), "org.freedesktop.DBus.Error.InvalidArgs");
    let error =
        banger_tests::error_name(SESSIOND, "SendSession", &["ssaya{sv}", vm.name(), "echo", "1", "10", "0"]);
    assert_eq!(error, "org.banger.Error.NotReady");
    let error = banger_tests::error_name(SESSIOND, "RemoveSession", &["ssa{sv}", vm.name(), "echo", "0"]);
    assert_eq!(error, "org.banger.Error.SessionRunning");

    let monitor = format!("type='signal',path='{path}',member='PropertiesChanged'");
    let mut monitor = Monitor::start(&monitor);
    // It does not hear the first signal.
    call("StopSession", &["ssa{sv}", "1", "timeout_usec", "t", "1000000"]).ok();
    assert!(monitor.hears("\"stopping\"") && monitor.hears("\"exited\""));
    assert_eq!((property("State"), property("ExitSignal")), ("s \"exited\"".into(), "i 9".into()));
    call("RemoveSession", &["ssa{sv}", "0"]).ok();
    let error = banger_tests::error_name(SESSIOND, "DescribeSession", &["ss", vm.name(), "echo"]);
    assert_eq!(error, "org.banger.Error.NoSuchSession");
}

#[test]
fn what_fails_is_started_again_until_it_is_stopped() {
    let vm = Vm::running("t-session-restart", BUSYBOX);
    // Fails twice.
    let script = "echo run >> /tmp/runs; [ $(wc -l < /tmp/runs) -ge 3 ]";
    session("start", &["--name", "third", "--restart", "on-failure", vm.name(), "--", "sh", "-c", script])
        .ok();
    assert_eq!(session("wait", &[vm.name(), "third"]).status, 0);
    assert_eq!(show(&vm, "third")["restarts"], 2);

    session("start", &["--name", "always", "--restart", "always", vm.name(), "--", "sleep", "1000"]).ok();
    session("kill", &["-s", "INT", vm.name(), "always"]).ok();
    eventually("it is started again", || {
        let shown = show(&vm, "always");
        shown["restarts"] == 1 && shown["state"] == "running"
    });
    session("stop", &[vm.name(), "always"]).ok();
    assert_eq!(state(&vm, "always"), "exited");
    session("kill", &[vm.name(), "always"]).refused(&["always"]);
}

/// The stream of one who has said that it only looks on.
fn onlooker(vm: &Vm, name: &str) -> UnixStream {
    let runtime = tokio::runtime::Builder::new_current_thread().enable_all().build().expect("a runtime");
    let stream = runtime.block_on(async {
        let bus = zbus::connection::Builder::system().build().await?;
        let options = HashMap::from([("read_only", true.into())]);
        ManagerProxy::new(&bus).await?.attach_session(vm.name(), name, options).await
    });
    OwnedFd::from(stream.expect("attaches")).into()
}

#[test]
fn several_attach_to_one_session_and_anybody_sends() {
    let vm = Vm::running("t-session-attach", BUSYBOX);
    begin(&vm, "cat", "echo first; while read line; do echo got $line; done; echo err >&2; exit 3");
    eventually("it has begun", || logs(&vm, "cat").ok() == "first\n");
    let onlookers: Vec<_> =
        (0..2).map(|_| start("banger", &["session", "attach", "--read-only", vm.name(), "cat"])).collect();
    let mut stranger = onlooker(&vm, "cat");
    stranger.write_all(b"not to be read\n").expect("writes");
    // A client that is killed does no harm, and what it typed arrives.
    let attach = ["session", "attach", vm.name(), "cat"];
    let client = Command::new("banger").args(attach).stdin(Stdio::piped()).stdout(Stdio::null()).spawn();
    let mut client = client.expect("runs");
    client.stdin.take().expect("piped").write_all(b"typed\n").expect("writes");
    eventually("what was typed arrives", || logs(&vm, "cat").ok().ends_with("got typed\n"));
    client.kill().and_then(|()| client.wait()).expect("is killed");
    session("send", &[vm.name(), "cat", "sent"]).ok();
    run_with("banger", &["session", "send", "--file", "-", "--eof", vm.name(), "cat"], b"a\nb\n").ok();
    for onlooker in onlookers {
        let done = onlooker.join().expect("joins");
        assert_eq!(done.status, 3, "{done}");
        assert_eq!(done.text(), "first\ngot typed\ngot sent\ngot a\ngot b\n");
        assert_eq!(done.stderr, "err\n");
    }
    session("attach", &[vm.name(), "cat"]).failed(&["has ended"]);
}

#[test]
fn a_terminal_is_attached_to_and_detached_from() {
    let vm = Vm::running("t-session-tty", BUSYBOX);
    // Whoever reads a terminal to its end is not hung up for that, nor is a script that is piped into a shell.
    assert_eq!(banger(&["exec", "-t", vm.name(), "cat"]).ok(), "");
    let script = format!("printf 'echo $((6*7))\n' | banger shell {}", vm.name());
    assert!(run("sh", &["-c", &script]).ok().contains("42"));
    session("start", &["--name", "shell", "-t", vm.name()]).ok();
    let attach = |typed: &str| {
        let line = format!(
            "script -qec 'stty rows 33 cols 77; banger session attach {} shell' /dev/null",
            vm.name()
        );
        // What is typed before raw mode the terminal would eat.
        run("sh", &["-c", &format!("(sleep 3; {typed}; sleep 3) | ({line})")])
    };
    let answered =
        format!("until banger session logs {} shell | grep -q '33 77'; do sleep 1; done; sleep 1", vm.name());
    let done = attach(&format!(r"printf 'stty size\n'; {answered}; printf '\020\021'"));
    assert_eq!(done.status, 0, "{done}");
    assert!(done.text().contains("33 77") && done.text().contains("detached"), "{done}");
    assert_eq!(state(&vm, "shell"), "running");
    // The scroll-back shows what was before.
    let done = attach(r"printf 'exit 4\n'");
    assert_eq!(done.status, 4, "{done}");
    assert!(done.text().contains("33 77"), "{done}");
    assert!(logs(&vm, "shell").text().contains("33 77"));
}

/// These stop the service that all sessions need, and have the lab for themselves.
mod alone {
    use super::*;

    #[test]
    fn not_a_byte_is_lost_or_doubled_when_sessiond_is_killed() {
        let vm = Vm::running("t-session-kill", BUSYBOX);
        // 5.4 MB in many pieces of many sizes, on both streams.
        let script =
            "i=0; while [ $i -lt 60 ]; do seq $((i*12000)) $((i*12000+11999)); echo $i >&2; i=$((i+1)); done";
        begin(&vm, "numbers", script);
        let follower = start("banger", &["session", "logs", "-f", vm.name(), "numbers"]);
        let mut killed = 0;
        let bytes = || show(&vm, "numbers")["output_bytes"].as_u64().expect("a number");
        while state(&vm, "numbers") == "running" {
            let before = bytes();
            kill_sessiond();
            killed += 1;
            eventually("it goes on", || state(&vm, "numbers") != "running" || bytes() > before);
        }
        assert!(killed >= 3, "it was killed only {killed} times");
        assert_eq!(session("wait", &[vm.name(), "numbers"]).status, 0);
        let expected: String = (0..720_000).map(|number| format!("{number}\n")).collect();
        let marks: String = (0..60).map(|number| format!("{number}\n")).collect();
        for done in [logs(&vm, "numbers"), follower.join().expect("joins")] {
            assert_eq!(done.status, 0, "{}", done.stderr);
            assert_eq!(done.stderr, marks);
            assert!(done.text() == expected, "{} bytes instead of {}", done.stdout.len(), expected.len());
        }
        // The end is known to those who come after another kill, too.
        kill_sessiond();
        assert_eq!(session("wait", &[vm.name(), "numbers"]).status, 0);
        assert_eq!(hex(&logs(&vm, "numbers").stdout), hex(expected.as_bytes()));
    }

    #[test]
    fn one_who_calls_and_is_killed_does_not_keep_others_from_the_guest() {
        let vm = Vm::running("t-session-caller", BUSYBOX);
        let vmm = run("systemctl", &["show", "-P", "MainPID", &format!("banger-vm@{}", vm.name())]).ok();
        for _ in 0..2 {
            // One that is killed has no connection left and has to call.
            kill_sessiond();
            // A guest that stands still answers no call, and those that are there when it goes on.
            run("kill", &["-STOP", vmm.trim()]).ok();
            let caller = start("banger", &["exec", vm.name(), "--", "true"]);
            // Its call is not to be seen from here.
            std::thread::sleep(Duration::from_secs(3));
            kill_sessiond();
            run("kill", &["-CONT", vmm.trim()]).ok();
            caller.join().expect("joins");
            assert_eq!(vm.sh("echo there").ok(), "there\n");
        }
    }

    /// `$BANGER_SESSION_LINES` is the number of lines, if not a million: ten take minutes where guests are emulated.
    #[test]
    fn lines_arrive_without_sessiond() {
        let lines = std::env::var("BANGER_SESSION_LINES");
        let lines: u32 = lines.map_or(1_000_000, |lines| lines.parse().expect("a number"));
        let vm = Vm::running("t-session-lines", BUSYBOX);
        begin(&vm, "lines", &format!("read go; seq 1 {lines}; sleep 5"));
        let line = format!("banger session attach --read-only {} lines | sha256sum", vm.name());
        let attached = start("sh", &["-c", &line]);
        // It has the stream once its process has opened it; that takes a moment.
        std::thread::sleep(Duration::from_secs(3));
        session("send", &[vm.name(), "lines", "go"]).ok();
        eventually("it flows", || show(&vm, "lines")["output_bytes"].as_u64() > Some(100_000));
        run("systemctl", &["stop", "banger-sessiond.service"]).ok();
        let sum = attached.join().expect("joins").ok();
        let mut expected = Sha256::new();
        for number in 1..=lines {
            expected.update(format!("{number}\n"));
        }
        let expected: String = expected.finalize().iter().map(|byte| format!("{byte:02x}")).collect();
        assert_eq!(sum.split_whitespace().next(), Some(expected.as_str()));
        // The end of the log is there, and what is not is said.
        let tail = session("logs", &["-n", "1", vm.name(), "lines"]).ok();
        assert_eq!(tail, format!("{lines}\n"));
    }

    #[test]
    fn sessions_end_with_their_vm_and_logs_with_its_deletion() {
        let vm = Vm::running("t-session-lost", BUSYBOX);
        begin(&vm, "long", "echo kept; trap '' TERM; sleep 1000");
        eventually("it has begun", || logs(&vm, "long").ok() == "kept\n");
        let last_words =
            "trap 'echo closing; for i in 1 2 3; do usleep 100000; done; echo closed; exit' TERM";
        begin(&vm, "orderly", &format!("{last_words}; echo up; while :; do usleep 100000; done"));
        eventually("it has begun", || logs(&vm, "orderly").ok() == "up\n");
        banger(&["stop", vm.name()]).ok();
        session("wait", &[vm.name(), "long"]).failed(&["lost"]);
        let said = logs(&vm, "orderly").ok();
        assert!(said.contains("closing\n") && said.ends_with("closed\n"), "{said}");
        assert_eq!(state(&vm, "long"), "lost");
        assert_eq!(logs(&vm, "long").ok(), "kept\n");
        // Another guest of the VM has no such session.
        banger(&["start", vm.name()]).ok();
        assert_eq!(state(&vm, "long"), "lost");
        begin(&vm, "other", "sleep 1000");
        // With nobody there to see the deletion.
        run("systemctl", &["stop", "banger-sessiond.service"]).ok();
        banger(&["rm", "-f", vm.name()]).ok();
        eventually("the logs are gone", || {
            session("ls", &[vm.name()]).ok();
            sh("ls /var/lib/banger/sessiond/").text().lines().all(|line| line != vm.name())
        });
        session("logs", &[vm.name(), "long"]).refused(&["long"]);
    }

    #[test]
    fn a_command_goes_on_without_anybody_who_keeps_its_output() {
        let vm = Vm::running("t-session-gap", BUSYBOX);
        begin(&vm, "much", "seq 1 1000000; echo done > /tmp/done; sleep 1000");
        run("systemctl", &["stop", "banger-sessiond.service"]).ok();
        // Nothing may ask sessiond meanwhile: the host's socket leads into the guest without it.
        std::thread::sleep(Duration::from_secs(40));
        eventually("it is done", || vm.sh("cat /tmp/done").text() == "done\n");
        eventually("the end is kept", || {
            session("logs", &["-n", "1", vm.name(), "much"]).text() == "1000000\n"
        });
        // It is less than a log may have, so the guest is where it was lost.
        let done = logs(&vm, "much");
        assert!(done.stderr.contains("bytes lost]"), "{}", done.stderr);
    }
}
