//! SSH into VMs: `NAME.banger` into every one, and `NAME.banger.internal` to an sshd of the image's. Both tests are in
//! alice's home, and so one after the other (`.config/nextest.toml`).

use std::path::Path;

use banger_tests::{BUSYBOX, Done, SSH, Vm, as_user, banger, run, sh};

/// As alice, at her home. A connection that hangs is to end the test, not the whole run.
fn alice(script: &str) -> Done {
    let script = format!("export HOME=/home/alice; cd; {script}");
    run("timeout", &["300", "runuser", "-u", "alice", "--", "sh", "-c", &script])
}

/// A home in which ssh has been nowhere yet, with a configuration that every VM's is to be stronger than.
fn fresh_home() {
    let config = "Host *\\n  User nobody\\n  Ciphers aes128-ctr\\n  ProxyCommand false";
    sh("cd /home/alice && rm -rf .ssh .local/share/banger .config/banger ssh-test").ok();
    // Other tests put things there as root.
    sh("cd /home/alice && install -d -o alice -g alice .config .local .local/share").ok();
    alice(&format!("mkdir -m 700 .ssh ssh-test; printf '{config}' >.ssh/config; chmod 640 .ssh/config")).ok();
}

#[test]
fn ssh_and_its_kin_reach_vms_without_an_sshd() {
    let vm = Vm::running("t-ssh", BUSYBOX);
    fresh_home();
    let before = alice("stat -c '%a %U' .ssh/config; sha256sum .ssh/config").ok();
    alice("banger ssh-config --install && banger ssh-config --install").ok();
    assert_eq!(alice("grep -c ^Include .ssh/config").text(), "1\n");
    // What is printed is what is included.
    alice("banger ssh-config | cmp - .config/banger/ssh_config").ok();

    // A name is no place for the caller's commands.
    let evil = "ssh \"a';touch ssh-test/evil;'.banger\" true; ssh 'a$(touch ssh-test/evil).banger' true; ls ssh-test";
    assert_eq!(alice(evil).text(), "");

    // A command: as the image's user at their home, with streams apart, environment, exit status and signal.
    let done = alice(
        "LC_TEST=there ssh -o SendEnv=LC_TEST t-ssh.banger 'id -u; pwd; echo $LC_TEST; echo err >&2; exit 7'",
    );
    assert_eq!(
        (done.status, done.text().as_str(), done.stderr.as_str()),
        (7, "0\n/root\nthere\n", "err\n"),
        "{done}"
    );
    assert_eq!(alice("ssh 1234@t-ssh.banger id -u").ok(), "1234\n");
    alice("ssh nobody-here@t-ssh.banger true").failed(&["nobody-here"]);
    let killed = alice("ssh -v t-ssh.banger 'kill -USR1 $$'");
    assert_eq!(killed.status, 255, "{killed}");
    assert!(killed.stderr.contains("exit-signal"), "{killed}");

    // Every byte, both ways at once, also over many exchanges of keys.
    alice("head -c 9000000 /dev/urandom >ssh-test/random").ok();
    let sum = alice("sha256sum <ssh-test/random").ok();
    assert_eq!(alice("ssh t-ssh.banger cat <ssh-test/random | sha256sum").ok(), sum);
    assert_eq!(alice("ssh -o RekeyLimit=1M t-ssh.banger cat <ssh-test/random | sha256sum").ok(), sum);
    // A reader that leaves, and a command that does not read.
    assert_eq!(alice("ssh t-ssh.banger 'yes; echo $? >/tmp/left' | head -n 1").ok(), "y\n");
    alice("ssh t-ssh.banger true <ssh-test/random").ok();

    // A terminal: its size and kind, Ctrl-C, a login shell, the end of input.
    let script = "stty rows 33 cols 101; TERM=xterm-256color ssh -t t-ssh.banger \"stty size; echo \\$TERM\"";
    let done = alice(&format!("script -qec '{script}' /dev/null"));
    assert!(done.text().contains("33 101\r\nxterm-256color\r\n"), "{done}");
    let interrupt = "coproc ssh -tt t-ssh.banger 'trap \"exit 3\" INT; echo ready; while :; do sleep 1; done' 2>/dev/null; pid=$COPROC_PID; \
                     read -r -u \"${COPROC[0]}\" line; printf \"\\003\" >&\"${COPROC[1]}\"; wait $pid";
    sh(&format!("cat >/home/alice/ssh-test/interrupt <<'END'\n{interrupt}\nEND")).ok();
    assert_eq!(alice("bash ssh-test/interrupt").status, 3);
    let done = alice("printf 'echo I am $(tty) in $PWD\\nexit 4\\n' | ssh -tt t-ssh.banger");
    assert!(
        done.status == 4 && done.text().contains("I am /dev/pts/") && done.text().contains("in /root"),
        "{done}"
    );
    assert_eq!(alice("ssh -tt t-ssh.banger 'stty -echo; cat; exit 6' </dev/null").status, 6);

    files();
    connections(&vm);

    // Who may not is told so, and so is who calls a VM that is not running.
    let as_mallory =
        "export HOME=/home/mallory; cd; banger ssh-config >config; ssh -F config t-ssh.banger true";
    let refused = as_user("mallory", as_mallory);
    assert_eq!(refused.status, 255, "{refused}");
    refused.refused(&[]);
    banger(&["stop", "t-ssh"]).ok();
    let stopped = alice("ssh t-ssh.banger true");
    assert_eq!(stopped.status, 255, "{stopped}");
    stopped.refused(&["t-ssh", "banger start"]);
    alice("ssh t-no-such.banger true").refused(&["t-no-such"]);

    alice("banger ssh-config --uninstall && banger ssh-config --uninstall").ok();
    assert_eq!(alice("stat -c '%a %U' .ssh/config; sha256sum .ssh/config").ok(), before);
    assert_eq!(sh("ls -A /home/alice/.ssh /home/alice/.config/banger").ok().matches("ssh_config").count(), 0);
    assert!(Path::new("/home/alice/.local/share/banger/ssh/id_ed25519").exists(), "keys stay");
}

/// sftp and scp, which images need nothing for.
fn files() {
    let tree = "mkdir -p ssh-test/tree/sub && cp ssh-test/random 'ssh-test/tree/sub/a b' && chmod 750 'ssh-test/tree/sub/a b' && \
                touch -d 2001-02-03T04:05:06Z 'ssh-test/tree/sub/a b'";
    alice(tree).ok();
    alice("scp -qrp ssh-test/tree t-ssh.banger: && scp -qrp t-ssh.banger:tree ssh-test/back").ok();
    alice("diff -r ssh-test/tree ssh-test/back").ok();
    assert_eq!(alice("stat -c '%a %Y' ssh-test/back/sub/*").ok(), "750 981173106\n");
    alice("ssh t-ssh.banger 'cmp tree/sub/a* /root/tree/sub/a*'").ok();

    let batch = "mkdir d\nput ssh-test/random d/r\nrename d/r d/s\nln -s s d/link\nln d/s d/hard\nchmod 600 d/s\nls -l d\ndf d\n\
                 get d/link ssh-test/got\n-rename d/s d/hard\nrm d/s\nrm d/hard\nrm d/link\n-rm d/gone\nrmdir d\npwd\n-ls d\n";
    sh(&format!("cat >/home/alice/ssh-test/batch <<'END'\n{batch}END")).ok();
    let done = alice("sftp -b ssh-test/batch t-ssh.banger");
    assert_eq!(done.status, 0, "{done}");
    alice("cmp ssh-test/random ssh-test/got").ok();
    for words in ["-rw-------    2 0        0           9000000 ", "/root", "%"] {
        assert!(done.text().contains(words), "{words:?} in {done}");
    }
    for words in ["d/gone: No such file", "not found"] {
        assert!(done.stderr.contains(words), "{words:?} in {done}");
    }
    // The kernel says what a user may do.
    alice("echo 'put ssh-test/random /etc/r' | sftp -b - 1234@t-ssh.banger").failed(&["ermission denied"]);
}

/// What ssh -L, -W and -J are made of.
fn connections(vm: &Vm) {
    vm.sh("nc -ll -p 7000 -e cat >/dev/null 2>&1 </dev/null & true").ok();
    let sum = alice("sha256sum <ssh-test/random").ok();
    assert_eq!(alice("ssh -W localhost:7000 t-ssh.banger <ssh-test/random | sha256sum").ok(), sum);
    // One who hangs up first is heard, although the other end has not.
    vm.sh("nc -ll -p 7002 -e echo hello >/dev/null 2>&1 </dev/null & true").ok();
    let read =
        "import socket; s = socket.create_connection((\"127.0.0.1\", 7003), 30); print(s.makefile().read())";
    let heard =
        alice(&format!("ssh -f -L 7003:localhost:7002 t-ssh.banger sleep 3; python3 -c '{read}'")).ok();
    assert_eq!(heard.trim(), "hello");
    let nobody = alice("ssh -W localhost:7001 t-ssh.banger");
    assert!(nobody.stderr.contains("cannot connect to localhost port 7001: Connection refused"), "{nobody}");
    // Two connections and a command in one; the forward ends with it.
    let forward = "ssh -M -S ssh-test/master -f -N -L ssh-test/forward:localhost:7000 t-ssh.banger && \
                   (for n in 1 2; do socat -t 60 - unix:ssh-test/forward <ssh-test/random | sha256sum & done; wait) && \
                   ssh -S ssh-test/master t-ssh.banger 'exit 5'; echo $?; ssh -S ssh-test/master -O exit t-ssh.banger";
    assert_eq!(alice(forward).ok(), format!("{sum}{sum}5\n"));
    // The same way without SSH.
    assert_eq!(alice("banger exec t-ssh -- @connect 127.0.0.1 7000 <ssh-test/random | sha256sum").ok(), sum);
}

#[test]
fn an_sshd_of_the_image_lets_bangers_key_in() {
    fresh_home();
    alice("banger ssh-config --install").ok();
    let vm = Vm::named("t-sshd");
    let key = "/home/alice/.local/share/banger/ssh/id_ed25519.pub";
    banger(&["run", "-d", "--name", vm.name(), "--ssh-key", key, SSH]).ok();
    let serve = "dropbearkey -t ed25519 -f /etc/dropbear/dropbear_ed25519_host_key; exec dropbear -F -E -s";
    banger(&["session", "start", "--name", "sshd", vm.name(), "--", "sh", "-c", serve]).ok();
    banger_tests::eventually("it listens", || banger(&["ports", vm.name()]).text().contains("dropbear"));

    // Over the network, with a host key that the guest told: nothing is asked, nothing believed.
    let ssh = "ssh -o BatchMode=yes -o ProxyCommand=none -o StrictHostKeyChecking=yes";
    let done = alice(&format!("{ssh} t-sshd.banger.internal 'echo $SSH_CONNECTION'"));
    assert!(done.status == 0 && done.text().trim().ends_with(" 22"), "{done}");
    // Another guest's key is none.
    let wrong = "-o HostKeyAlias=elsewhere.banger.internal";
    alice(&format!("{ssh} {wrong} t-sshd.banger.internal true")).failed(&["ost key verification failed"]);

    // To the same one without a network, and with rsync by the agent's way.
    let proxy = "ProxyCommand=banger exec t-sshd -- @connect localhost 22";
    alice(&format!("ssh -o BatchMode=yes -o '{proxy}' t-sshd.banger.internal true")).ok();
    alice("mkdir -p ssh-test/tree && seq 100000 >ssh-test/tree/file").ok();
    alice("rsync -a ssh-test/tree t-sshd.banger: && rsync -a t-sshd.banger:tree/ ssh-test/back").ok();
    alice("diff -r ssh-test/tree ssh-test/back").ok();
    alice("banger ssh-config --uninstall").ok();
}
