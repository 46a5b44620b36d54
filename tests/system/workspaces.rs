//! Git repositories in guests, and what is done to them there.

use std::fs;
use std::io::Read;
use std::path::Path;
use std::process::{Command, Stdio};

use banger_api::SESSIOND;
use banger_tests::{BUSYBOX, Vm, as_user, banger, error_name, eventually, json, sh};
use tempfile::TempDir;

/// A repository with something of everything in it, and the path of the directory it is in.
fn repository() -> (TempDir, String) {
    let scratch = tempfile::tempdir_in("/var/tmp").expect("a directory");
    let at = scratch.path().to_str().expect("UTF-8").to_owned();
    sh(&format!(
        r#"set -e; mkdir {at}/repo; cd {at}/repo; git init -q -b main; git config user.name Me; git config user.email me@host
        mkdir src; printf 'target/\n' >.gitignore; echo 'echo ran' >run; chmod 755 run; ln -s run link
        for n in $(seq 60); do echo $n >src/$n; done; head -c 3000 /dev/urandom >src/binary
        git add -A; git commit -qm first; git tag v1; echo second >>src/1; git commit -qam second
        echo staged >>src/2; git add src/2; echo unstaged >>src/3; echo new >src/new; rm src/4; mkdir target; echo built >target/out"#
    ))
    .ok();
    (scratch, at)
}

fn prepare(vm: &str, at: &str) -> serde_json::Value {
    json(&["workspace", "prepare", vm, &format!("{at}/repo")])
}

/// Puts the host's git, and what it is linked with, into a guest.
fn install_git(vm: &str) {
    sh(&format!(
        "cd /; tar -ch usr/bin/git $(ldd /usr/bin/git | grep -o '/[^ ]*' | sed 's,^/,,') | banger cp - {vm}:/"
    ))
    .ok();
}

#[test]
fn a_repository_goes_in_and_what_changed_comes_out() {
    let (_scratch, at) = repository();
    let vm = Vm::running("t-ws", BUSYBOX);
    let status = format!(
        "cd {at}/repo && git status --porcelain -uall && git log --format=%H && git symbolic-ref HEAD"
    );
    let before = sh(&status).ok();

    let done = prepare("t-ws", &at);
    assert_eq!((done["sent"].as_u64(), done["files"].as_u64()), (Some(64), Some(64)), "{done}");
    assert_eq!(sh(&status).ok(), before, "nothing is touched here");
    assert_eq!(
        vm.sh("cd /workspace; cat src/2 src/3; stat -c %a run; readlink link; ls target src/4 2>&1 | wc -l")
            .ok(),
        "2\nstaged\n3\nunstaged\n755\nrun\n2\n"
    );
    install_git("t-ws");
    // A guest's git says what the host's does.
    let in_guest =
        "cd /workspace && git status --porcelain -uall && git log --format=%H && git symbolic-ref HEAD";
    assert_eq!(vm.sh(in_guest).ok(), before);

    // Nothing the second time; then one file, one less, and a commit.
    let done = prepare("t-ws", &at);
    assert_eq!(
        (done["sent"].as_u64(), done["removed"].as_u64(), done["bytes"].as_u64()),
        (Some(0), Some(0), Some(0))
    );
    sh(&format!(
        "cd {at}/repo; echo more >>src/5; rm src/new; touch target/out; git add src/3; git commit -qm third"
    ))
    .ok();
    let done = prepare("t-ws", &at);
    assert_eq!((done["sent"].as_u64(), done["removed"].as_u64()), (Some(1), Some(1)), "{done}");
    assert_eq!(vm.sh(in_guest).ok(), sh(&status).ok());
    let export = || banger(&["workspace", "export", "t-ws"]).ok();
    assert_eq!(export(), "", "nothing has changed there");

    // Everything that can change there, some of it committed, some staged.
    vm.sh(
        "set -e; cd /workspace; git mv src/10 src/moved; git commit -qm moved; echo committed >>src/11; git commit -qam committed
         echo staged >>src/12; git add src/12; echo unstaged >>src/13; rm src/14; chmod 755 src/15; ln -sf src/16 link
         printf 'a\\0b' >src/binary; mkdir -p 'a dir'; printf new >'a dir/no newline'; mkdir target; echo built >target/guest",
    )
    .ok();
    let index = vm.sh("cd /workspace; sha256sum .git/index").ok();
    let before = sh(&status).ok();
    let patch = format!("{at}/patch");
    let exported = json(&["workspace", "export", "t-ws", "-o", &patch]);
    assert_eq!(exported["changes"].as_array().map(Vec::len), Some(9), "{exported}");
    assert!(fs::read_to_string(&patch).expect("reads").contains("rename to src/moved"));
    assert_eq!((vm.sh("cd /workspace; sha256sum .git/index").ok(), sh(&status).ok()), (index, before));
    let stat = banger(&["workspace", "export", "t-ws", "--stat"]).ok();
    assert!(stat.contains("src/{10 => moved}") && stat.contains("9 files changed"), "{stat}");

    // What the guest did is not overwritten, until it is here, too.
    let tree = "find . -path ./.git -prune -o -path ./target -prune -o ! -type d -print | LC_ALL=C sort | while read -r f; do \
                test -x \"$f\" && echo x; echo \"$f\"; test -L \"$f\" && readlink \"$f\" || sha256sum <\"$f\"; done";
    let refused = banger(&["workspace", "prepare", "t-ws", &format!("{at}/repo")]);
    refused.refused(&["was changed in the VM", "link", "--force"]);
    banger(&["workspace", "export", "t-ws", "--branch", "from-vm"]).ok();
    sh(&format!("cd {at}/repo; git apply {patch}")).ok();
    let here = sh(&format!("cd {at}/repo; {tree}")).ok();
    assert_eq!(vm.sh(&format!("cd /workspace; {tree}")).ok(), here);
    let branch = format!(
        "cd {at}/repo; git log -1 --format=%s from-vm; git worktree add -q {at}/branch from-vm; cd {at}/branch; {tree}"
    );
    assert_eq!(sh(&branch).ok(), format!("Changes made in a VM\n{here}"));
    let done = prepare("t-ws", &at);
    assert_eq!(done["removed"].as_u64(), Some(0), "{done}");
    assert_eq!((export().as_str(), vm.sh(&format!("cd /workspace; {tree}")).ok()), ("", here));
    assert_eq!(vm.sh("cat /workspace/target/guest").ok(), "built\n", "what is ignored stays");
    // The guest's commits are still there: nothing had to be sent in their place.
    assert_eq!(vm.sh("cd /workspace; git log -1 --format=%s").ok(), "committed\n");

    tools_are_got(&vm, &at);

    // Who may use the VM may do so with a repository of their own, and has no part in others'.
    let script = "set -e; cd $(mktemp -d); git init -q; git config user.name A; git config user.email a@a; echo 1 >f; git add f
        git commit -qm f; banger workspace prepare t-ws --to /home/alice/src --mode shallow --chown 1000:1000
        banger exec t-ws sh -c 'cd /home/alice/src; stat -c %u f; echo 2 >f'; banger workspace export t-ws | grep '^[-+][12]'";
    assert_eq!(as_user("alice", script).ok(), "1000\n-1\n+2\n");
    as_user("mallory", "cd $(mktemp -d); git init -q; banger workspace export t-ws")
        .refused(&["no workspace"]);

    banger(&["rm", "-f", "t-ws"]).ok();
    assert_eq!(
        sh(&format!("cd {at}/repo; git for-each-ref refs/banger")).ok(),
        "",
        "with the VM that is forgotten"
    );
}

/// Programs of shell scripts and an agent, as an admin might add them.
const TABLE: &str = r#"
[tools.t-greet]
files = ["t-greet"]
commands = ["t-greet"]
install = """
printf '#!/bin/sh\necho hello from $1\n' >/bin/t-greet
chmod 755 /bin/t-greet
id -u"""
run = """
mkdir -p target; t-greet $PWD >target/greeting
id -u
! grep bad t-greet"""
path = ["t-tools"]

[tools.t-lost]
files = ["t-*"]
commands = ["t-no-such-program"]
packages = { apt-get = ["t-no-such-package"] }

[presets.t-agent]
needs = ["t-greet"]
command = ["sh", "-c", "pwd; cat src/3; t-greet preset; t-tool; echo $T_KEY $T_MODE; cat ~/.t-agent/key; stat -c %a ~/.t-agent/key ~/.t-agent; ls -a ~ | grep t-link; echo made >made; exit 7"]
files = [".t-agent", ".t-link", ".t-none"]
environment = ["T_KEY", "T_MODE=on"]
"#;

/// Lets all know of [`TABLE`]: what its files are called, no other test's are.
fn write_table() {
    fs::create_dir_all("/etc/banger/workspace.conf.d").expect("creates");
    let path = format!("/etc/banger/workspace.conf.d/t-{}.conf", std::process::id());
    fs::write(&path, TABLE).expect("writes");
    fs::rename(path, "/etc/banger/workspace.conf.d/t-table.conf").expect("renames");
}

/// What the files of a repository ask for, its second workspace.
fn tools_are_got(vm: &Vm, at: &str) {
    write_table();
    let repo = format!("{at}/repo");
    sh(&format!("cd {repo}; echo good >t-greet; mkdir -p {at}/config/banger")).ok();
    let run = |arguments: &str| sh(&format!("banger workspace prepare t-ws {repo} {arguments}"));
    let greeting = || vm.sh("cat /workspace/target/greeting; rm /workspace/target/greeting").text();
    let row = |rows: &serde_json::Value, tool: &str, key: &str| -> serde_json::Value {
        let rows = rows.as_array().expect("rows");
        rows.iter().find(|row| row["tool"] == tool).unwrap_or_else(|| panic!("no {tool}: {rows:?}"))[key]
            .clone()
    };

    let plan = json(&["workspace", "plan", "t-ws", &repo]);
    assert_eq!(
        (row(&plan, "t-greet", "because"), row(&plan, "t-greet", "done")),
        ("t-greet".into(), false.into())
    );
    let problem = row(&plan, "t-lost", "problem");
    assert!(problem.as_str().is_some_and(|text| text.contains("no package manager")), "{plan}");
    vm.sh("command -v t-greet").failed(&[]);

    // Shown first, done as a session, and kept.
    let done = run("");
    assert_eq!(done.status, 0, "{done}");
    let place = |words: &str| done.stderr.find(words).unwrap_or_else(|| panic!("{words}: {done}"));
    assert!(place("not done: t-lost is missing") < place("==> step 1 of 2: t-greet: printf"), "{done}");
    assert_eq!(greeting(), "hello from /workspace\n");
    let log = banger(&["session", "logs", "t-ws", "bootstrap"]).ok();
    assert!(log.starts_with("==> step 1 of 2: t-greet: printf") && log.ends_with("\n0\n"), "{log}");
    let listed = banger_tests::Way::Bus.call(SESSIOND, "ListSessions", &[]).ok();
    assert!(listed.contains("\"t-ws\" \"bootstrap\" \"exited\""), "{listed}");

    // Not again, unless it is asked for or something has changed.
    let again = json(&["workspace", "prepare", "t-ws", &repo]);
    assert_eq!(row(&again["bootstrap"], "t-greet", "done"), true, "{again}");
    assert_eq!(greeting(), "");
    run("--bootstrap --chown 0:0 --quiet").ok();
    assert_eq!(greeting(), "hello from /workspace\n");

    // One that fails says which step, is done again, and can be left out: here, by oneself, or for ever.
    sh(&format!("echo bad >{repo}/t-greet")).ok();
    let failed = run("");
    assert_eq!(failed.status, 6, "{failed}");
    failed.refused(&[
        "step 1 of 1 (t-greet: mkdir -p target",
        "banger session logs t-ws bootstrap",
        "--no-bootstrap",
    ]);
    assert_eq!(run("").status, 6);
    run("--no-bootstrap").ok();
    let config = |text: &str| {
        fs::write(format!("{at}/config/banger/workspace.conf"), text).expect("writes");
        sh(&format!("XDG_CONFIG_HOME={at}/config banger workspace prepare t-ws {repo}"))
    };
    config("bootstrap = false\n").ok();
    let refused = config("\n[tools.x]\nfile = []\n");
    assert_eq!(refused.status, 2, "{refused}");
    refused.refused(&["workspace.conf:3: unknown field `file`"]);
    vm.sh("rm /workspace/target/greeting").ok();
    sh(&format!("echo better >{repo}/t-greet")).ok();
    run("").ok();
    assert_eq!(greeting(), "hello from /workspace\n");

    // Where nothing is to be fetched from, nothing is tried.
    banger(&["set", "t-ws", "--egress", "closed"]).ok();
    sh(&format!("echo best >{repo}/t-greet")).ok();
    let done = run("");
    assert!(done.status == 0 && done.stderr.contains("not let beyond the host"), "{done}");
    sh(&format!("rm {repo}/t-greet")).ok();
    run("").ok();
}

#[test]
fn a_command_runs_in_a_repository() {
    let (_scratch, at) = repository();
    write_table();
    let (repo, patch) = (format!("{at}/repo"), format!("{at}/patch"));
    sh(&format!(
        "set -e; umask 022; mkdir -p {repo}/t-tools {at}/home/.t-agent; cd {repo}; echo good >t-greet
         printf '#!/bin/sh\necho tool\n' >t-tools/t-tool; chmod 755 t-tools/t-tool
         cd {at}/home; echo secret >.t-agent/key; chmod 600 .t-agent/key; chmod 700 .t-agent; ln -s {repo} .t-link"
    ))
    .ok();
    let done = sh(&format!(
        "HOME={at}/home T_KEY=key banger run --rm --name t-ws-run --workspace {repo} --patch {patch} --preset t-agent {BUSYBOX} </dev/null"
    ));
    let said = "/workspace\n3\nunstaged\nhello from preset\ntool\nkey on\nsecret\n600\n700\n";
    assert_eq!((done.status, done.text().as_str()), (7, said), "{done}");
    for words in ["~/.t-link is left out", "==> step 2 of 2: t-greet: mkdir -p target", "made | 1 +"] {
        assert!(done.stderr.contains(words), "{words}: {done}");
    }
    assert!(fs::read_to_string(&patch).expect("reads").ends_with("+made\n"));
    assert!(!Path::new(&repo).join("made").exists());
    let refused = banger(&["run", "--workspace", &repo, "--preset", "t-no-such", BUSYBOX]);
    assert_eq!(refused.status, 125, "{refused}");
    refused.refused(&["t-no-such", "t-agent"]);
    assert!(banger(&["workspace", "presets"]).ok().contains("~/.t-agent ~/.t-link"));
    assert_eq!(sh(&format!("cd {repo}; git for-each-ref refs/banger")).ok(), "");
    let done = banger(&["run", "--rm", "--name", "t-ws-none", "--workspace", &at, BUSYBOX, "true"]);
    assert_eq!(done.status, 125, "{done}");
    done.refused(&["no git repository"]);
    banger(&["vm", "show", "t-ws-none"]).refused(&["t-ws-none"]);
}

/// It kills the service that others need, and has the lab for itself.
mod alone {
    use super::*;

    #[test]
    fn the_lock_and_what_is_refused() {
        let (_scratch, at) = repository();
        let vm = Vm::running("t-ws-lock", BUSYBOX);
        let repo = format!("{at}/repo");
        let code = |arguments: &[&str], status: i32, words: &[&str]| {
            let mut line = vec!["workspace"];
            line.extend(arguments);
            let done = banger(&line);
            assert_eq!(done.status, status, "{done}");
            done.refused(words);
        };
        code(&["prepare", "t-ws-lock", &at], 1, &["is no git repository"]);
        code(&["prepare", "t-ws-lock", &format!("{at}/no")], 3, &["/no"]);
        code(&["prepare", "t-ws-lock", &repo, "--from", "nothing"], 2, &["nothing"]);
        code(&["prepare", "t-ws-lock", &repo, "--mode", "full-copy", "--branch", "b"], 2, &["full copy"]);
        code(&["prepare", "t-ws-lock", &repo, "--to", "up/.."], 2, &["absolute"]);
        code(&["prepare", "t-no-such", &repo], 3, &["t-no-such"]);
        code(&["prepare", "t-ws-lock", &repo, "--to", "/etc"], 1, &["were not prepared", "--force"]);
        code(&["export", "t-ws-lock"], 3, &["no workspace", "prepare"]);

        // By D-Bus.
        let manager = |method: &str, arguments: &[&str]| error_name(SESSIOND, method, arguments);
        assert_eq!(manager("OpenList", &["ss", "t-ws-lock", "/no/such"]), "org.banger.Error.NoSuchFile");
        assert_eq!(manager("LockWorkspace", &["sa{sv}", "t-no-such", "0"]), "org.banger.Error.NoSuchVm");
        let remove = |path: &[u8]| {
            let bytes: Vec<String> = path.iter().map(u8::to_string).collect();
            let length = bytes.len().to_string();
            let mut arguments = vec!["ssaay", "t-ws-lock", "/etc", "1", &length];
            arguments.extend(bytes.iter().map(String::as_str));
            banger_tests::Way::Bus.call(SESSIOND, "RemoveFiles", &arguments)
        };
        vm.sh("mkdir /etc/dir; touch /etc/dir/file /file").ok();
        remove(b"../file").failed(&["leads out"]);
        assert_eq!(remove(b"dir/file").ok(), "t 1\n");
        assert_eq!(remove(b"dir/file").ok(), "t 0\n");
        assert_eq!(vm.sh("ls -d /file /etc/dir 2>/dev/null").text(), "/file\n");

        // What broke off is not taken for whole.
        vm.sh("mkdir /workspace; mount -t tmpfs -o size=20m none /workspace").ok();
        sh(&format!("cd {repo}; head -c 64M /dev/urandom >big")).ok();
        code(&["prepare", "t-ws-lock", &repo], 1, &["No space left"]);
        code(&["export", "t-ws-lock"], 3, &["is not whole"]);
        vm.sh("umount /workspace").ok();
        let begin = || {
            let mut command = Command::new("banger");
            command.args(["workspace", "prepare", "t-ws-lock", &repo, "--to", "/workspace/deep"]);
            command.stdin(Stdio::null()).stdout(Stdio::null()).stderr(Stdio::piped()).spawn().expect("starts")
        };
        let under_way = || vm.sh("find /workspace -name '.*.part' 2>/dev/null").text().contains(".part");
        // Halted, so that it stays under way.
        let mut import = begin();
        eventually("files are sent", under_way);
        let pid = import.id().to_string();
        sh(&format!("kill -STOP {pid}")).ok();
        code(&["prepare", "t-ws-lock", &repo], 1, &["is prepared by user 0", &pid]);
        assert_eq!(
            manager("LockWorkspace", &["sa{sv}", "t-ws-lock", "1", "shared", "b", "true"]),
            "org.banger.Error.WorkspaceBusy"
        );
        // The lock is not the service's to lose.
        crate::sessions::kill_sessiond();
        let refused =
            || manager("LockWorkspace", &["sa{sv}", "t-ws-lock", "0"]) == "org.banger.Error.WorkspaceBusy";
        eventually("the service is back, and does not give the lock away", refused);
        banger(&["stop", "t-ws-lock"]).ok();
        assert_eq!(vm.state(), "stopped");
        sh(&format!("kill -CONT {pid}")).ok();
        let status = import.wait().expect("waits");
        let mut said = String::new();
        import.stderr.take().expect("piped").read_to_string(&mut said).expect("reads");
        assert_eq!(status.code(), Some(1), "{said}");
        assert!(said.contains("is not whole; prepare it again"), "{said}");
        code(&["prepare", "t-ws-lock", &repo], 1, &["banger start"]);

        // The next is whole, whatever was left by then.
        banger(&["start", "t-ws-lock"]).ok();
        let done = json(&["workspace", "prepare", "t-ws-lock", &repo, "--to", "/workspace/deep"]);
        assert_eq!(done["sent"], done["files"], "{done}");
        assert_eq!(banger(&["workspace", "export", "t-ws-lock"]).ok(), "");
        assert_eq!(vm.sh("cd /workspace/deep; cmp big big; wc -c <big").ok(), "67108864\n");
    }
}
