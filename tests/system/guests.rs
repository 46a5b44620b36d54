//! Commands in guests: output, exit codes, streams.

use std::io::{BufRead, BufReader, Write};
use std::os::unix::net::UnixStream;

use banger_tests::{BUSYBOX, DEBIAN, Vm, banger, eventually, run_with, sh, start};
use sha2::{Digest, Sha256};

#[test]
fn run_shows_output_and_passes_the_exit_code_on() {
    let script = "cat /etc/debian_version; id -u; exit 7";
    let done = banger(&["run", "--rm", "--name", "t-run", DEBIAN, "--", "sh", "-c", script]);
    assert_eq!(done.status, 7, "{done}");
    let text = done.text();
    let lines: Vec<_> = text.lines().collect();
    assert!(lines.len() == 2 && lines[0].starts_with("12.") && lines[1] == "0", "{done}");
    // --rm means that nothing is left.
    banger(&["vm", "show", "t-run"]).refused(&["t-run"]);
}

#[test]
fn exec_has_separate_streams_signals_and_surroundings() {
    let vm = Vm::running("t-exec", BUSYBOX);
    let done = vm.sh("echo out; echo err >&2");
    assert_eq!((done.text().as_str(), done.stderr.as_str()), ("out\n", "err\n"));

    let done = vm.sh("kill -TERM $$");
    assert_eq!(done.status, 128 + 15, "{done}");

    let done = banger(&[
        "exec",
        "-e",
        "GREETING=hello",
        "-w",
        "/tmp",
        "-u",
        "nobody",
        vm.name(),
        "--",
        "sh",
        "-c",
        "echo $GREETING $PWD $(id -u)",
    ]);
    assert_eq!(done.ok(), "hello /tmp 65534\n");

    let done = run_with("banger", &["exec", vm.name(), "--", "wc", "-c"], &[b'x'; 100_000]);
    assert_eq!(done.ok().trim(), "100000");

    assert_eq!(vm.sh("hostname").ok(), "t-exec\n");
    banger(&["exec", vm.name(), "--", "no-such-command"]).refused(&["no-such-command"]);
    banger(&["exec", "-u", "nemo", vm.name(), "--", "true"]).refused(&["nemo"]);
    banger(&["exec", "-w", "/no/such", vm.name(), "--", "true"]).refused(&["/no/such"]);
}

#[test]
fn megabytes_arrive_unchanged() {
    const BYTES: usize = 32 << 20;
    let vm = Vm::running("t-stream", BUSYBOX);
    // The guest tells the checksum of what it sends on the other stream.
    let script = format!("head -c {BYTES} /dev/urandom | tee /tmp/data; sha256sum /tmp/data >&2");
    let done = vm.sh(&script);
    assert_eq!((done.status, done.stdout.len()), (0, BYTES), "{}", done.stderr);
    let sum: String = Sha256::digest(&done.stdout).iter().map(|byte| format!("{byte:02x}")).collect();
    assert_eq!(done.stderr.split_whitespace().next(), Some(sum.as_str()));

    // And the other way, read slowly.
    let done = run_with("banger", &["exec", vm.name(), "--", "sh", "-c", "sleep 1; sha256sum"], &done.stdout);
    assert!(done.ok().starts_with(&sum));
}

#[test]
fn a_shell_is_a_terminal() {
    let vm = Vm::running("t-shell", BUSYBOX);
    // script(1) gives the CLI a terminal of its own to be raw on.
    let typed = "tty; stty size; echo ma''rk; exit 3\n";
    let line = format!("script -qec 'stty rows 40 cols 120; banger shell {}' /dev/null", vm.name());
    let done = run_with("sh", &["-c", &line], typed.as_bytes());
    assert_eq!(done.status, 3, "{done}");
    let text = done.text();
    assert!(text.contains("/dev/pts/") && text.contains("40 120") && text.contains("mark"), "{done}");
}

#[test]
fn guests_are_pid_one_and_end_cleanly() {
    let vm = Vm::running("t-init", BUSYBOX);
    // Orphans are reaped.
    vm.sh("(sleep 0.1 &) ; sleep 0.5").ok();
    assert_eq!(vm.sh("ps -o stat | grep -c Z || true").ok().trim(), "0");
    // What was written is there after a stop and a start.
    vm.sh("echo kept > /kept").ok();
    banger(&["stop", vm.name()]).ok();
    assert_eq!(vm.state(), "stopped");
    banger(&["start", vm.name()]).ok();
    assert_eq!(vm.sh("cat /kept").ok(), "kept\n");
}

#[test]
fn a_guest_that_powers_off_is_a_stopped_vm() {
    let vm = Vm::running("t-poweroff", BUSYBOX);
    // What `poweroff` of busybox does. The command dies with its guest.
    let off = start("banger", &["exec", vm.name(), "--", "sh", "-c", "kill -USR2 1; sleep 60"]);
    eventually("the VM stops", || vm.state() == "stopped");
    assert_ne!(off.join().expect("joins").status, 0);
    assert!(sh(&format!("systemctl is-failed {}", vm.unit())).status != 0, "the unit has not failed");
}

/// QEMU's vsock device counts connections up to a number that it cannot use, if the guest has one there.
#[test]
fn a_guest_can_be_called_without_end() {
    let vm = Vm::running("t-calls", BUSYBOX);
    let socket = format!("/run/banger/vm/{}/vsock.sock", vm.name());
    for call in 0..1100 {
        let mut stream = UnixStream::connect(&socket).expect("connects");
        stream.write_all(b"CONNECT 1024\n").expect("writes");
        let mut answer = String::new();
        BufReader::new(&stream).read_line(&mut answer).expect("reads");
        assert!(answer.starts_with("OK "), "call {call}: {answer:?}");
    }
    assert_eq!(vm.sh("echo hello").ok(), "hello\n");
}
