//! Other hosts and containers: `-H`, by a real ssh to a real sshd, and `-M`.

use banger_tests::{BUSYBOX, Vm, banger, run, sh};

const HOST: &str = "alice@127.0.0.1:2222";

/// An sshd that alice may log in to with a key of root's, until it is dropped.
struct Sshd;

impl Sshd {
    fn new() -> Self {
        let script = "mkdir -p /run/t-away && cd /run/t-away
            dropbearkey -t ed25519 -f host && ssh-keygen -q -t ed25519 -N '' -f key <<<y
            install -d -m 700 -o alice -g alice /home/alice/.ssh
            install -m 600 -o alice -g alice key.pub /home/alice/.ssh/authorized_keys
            printf 'Host 127.0.0.1\\n IdentityFile %s\\n UserKnownHostsFile /dev/null\\n StrictHostKeyChecking no\\n LogLevel ERROR\\n ControlPath /run/t-away/master\\n' \
                /run/t-away/key >/etc/ssh/ssh_config.d/t-away.conf
            dropbear -r host -p 127.0.0.1:2222 -P /run/t-away/pid -s";
        run("bash", &["-ec", script]).ok();
        Self
    }
}

impl Drop for Sshd {
    fn drop(&mut self) {
        sh(
            "kill $(cat /run/t-away/pid); rm -r /run/t-away /etc/ssh/ssh_config.d/t-away.conf /home/alice/.ssh/authorized_keys",
        );
    }
}

/// The same command there.
fn there(arguments: &[&str]) -> banger_tests::Done {
    banger(&[&["-H", HOST], arguments].concat())
}

#[test]
fn another_host_is_as_this_one_but_for_its_files() {
    let _sshd = Sshd::new();
    let vm = Vm::named("t-away");
    // Messages: jobs with their progress, lists, refusals, by the bus and by the sockets.
    let created = there(&["run", "-d", "--name", "t-away", BUSYBOX]);
    assert!(created.stderr.contains("start t-away: ready"), "{created}");
    created.ok();
    for way in [&["ps"] as &[&str], &["--peer", "ps"], &["ps", "--json"]] {
        let listed = there(way).ok();
        assert!(listed.contains("t-away") && listed.contains("running"), "{listed}");
    }
    assert_eq!(there(&["vm", "show", "t-no-such"]).status, 3);
    there(&["session", "start", "t-away", "--name", "s", "--", "sh", "-c", "echo said; exec sleep 100"]).ok();
    assert_eq!(there(&["session", "logs", "-n", "1", "t-away", "s"]).ok(), "said\n");

    // Streams: each by itself, the exit code, every byte of a tar.
    let line = format!(
        "printf 'a\\nb' | banger exec -H {HOST} t-away sh -c 'cat; echo \"$1\" >&2; exit 7' - \"it's\""
    );
    let done = sh(&line);
    assert_eq!((done.status, done.text().as_str(), done.stderr.as_str()), (7, "a\nb", "it's\n"), "{done}");
    sh(&format!("tar -C /etc -c hostname passwd | banger -H {HOST} cp - t-away:/root")).ok();
    let back = sh(&format!("banger -H {HOST} cp t-away:/root/passwd - | tar -xO | cmp - /etc/passwd"));
    assert_eq!(back.status, 0, "{back}");
    assert_eq!(there(&["exec", "t-away", "no-such-program"]).status, 127);

    // What is here stays here, and what to do instead is said.
    for (line, hint) in [
        (
            &["cp", "/etc/hosts", "t-away:/root"] as &[&str],
            "ssh -p 2222 alice@127.0.0.1 banger cp /etc/hosts t-away:/root",
        ),
        (&["exec", "-e", "HOME", "t-away", "env"], "environment variables"),
        (&["workspace", "prepare", "t-away", "."], "leave out -H"),
    ] {
        let done = there(line);
        assert!(matches!(done.status, 2 | 125), "{done}");
        done.refused(&[hint]);
    }
    let none = banger(&["-H", "127.0.0.1:2223", "ps"]);
    assert_eq!(none.status, 5, "{none}");
    none.failed(&["cannot connect to the bus of 127.0.0.1"]);

    // What is offered comes from there only over a connection that there is already.
    let offer = |options: &str| {
        let line = format!("banger {options} exec ");
        let script = format!("_BANGER_LINE='{line}' _BANGER_PIECE= COMPLETE=bash banger -- {line} ''");
        sh(&script).ok()
    };
    assert_eq!(offer("-M .host"), "t-away\n");
    assert!(!offer(&format!("-H {HOST}")).contains("t-away"));
    sh("ssh -fNM -p 2222 alice@127.0.0.1 >/dev/null 2>&1").ok();
    assert_eq!(offer(&format!("-H {HOST}")), "t-away\n");
    sh("ssh -O exit -p 2222 alice@127.0.0.1").ok();

    // Containers get descriptors, too; .host is this one.
    assert_eq!(sh("echo x | banger -M .host exec t-away sh -c 'cat; exit 3'").status, 3);
    assert_eq!(banger(&["-M", "alice@.host", "exec", "t-away", "id", "-u"]).ok(), "0\n");
    banger(&["-M", ".host", "cp", "/etc/hosts", "t-away:/root"]).ok();
    vm.sh("test -s /root/hosts").ok();
    banger(&["-M", ".host", "doctor"]).refused(&["in the container"]);
    let none = banger(&["-M", "t-no-such", "ps"]);
    assert_eq!(none.status, 5, "{none}");
    none.failed(&["the container t-no-such"]);
    there(&["rm", "-f", "t-away"]).ok();
}
