//! The real binary against pretended services on a bus of our own.

mod world;

use std::io::{Read, Seek, Write};
use std::os::fd::OwnedFd;
use std::os::unix::net::UnixStream;
use std::process::{Child, Command, Stdio};
use std::time::Duration;

use nix::pty::{OpenptyResult, Winsize, openpty};
use nix::sys::signal::{Signal, kill};
use nix::unistd::Pid;
use world::{Run, World};

fn send(child: &Child, signal: Signal) {
    kill(Pid::from_raw(child.id() as i32), signal).expect("kills");
}

#[test]
fn run_gets_what_it_needs_and_passes_the_exit_code_on() {
    let world = World::new();
    let run = world.banger("run --rm --timings --name x -e A=1 -u me busybox -- true");
    assert_eq!((run.code, run.out.as_str()), (Some(7), "to stdout\n"), "{run:?}");
    for said in
        ["importing the host's own", "pulling it", "to stderr\n", "STAGE", "boot ", "command ", "total "]
    {
        assert!(run.err.contains(said), "{said:?} in {}", run.err);
    }
    assert_eq!(
        world.calls(),
        [
            "import kernel host",
            "pull busybox ",
            "create x busybox ",
            "start web",
            "exec web true {\"A\": \"1\"} user",
            "delete web force",
        ]
    );
}

#[test]
fn run_without_rm_stops_and_with_d_leaves_alone() {
    let world = World::new();
    world.banger("kernel import");
    world.calls();
    let run = world.banger("run debian:12 true");
    assert_eq!(run.code, Some(7));
    assert!(world.calls().last().expect("calls").starts_with("stop web"));
    let run = world.banger("run -q -d --cpus 2 --memory 1G --no-network --vmm qemu debian:12");
    assert_eq!((run.code, run.out.as_str(), run.err.as_str()), (Some(0), "web\n", ""));
    assert_eq!(
        world.calls(),
        ["import kernel host", "create  debian:12 cpus,memory,network,vmm", "start web"]
    );
}

#[test]
fn errors_are_one_line_and_have_codes() {
    let world = World::new();
    for (line, code, message) in [
        ("start missing", 3, "banger: there is no VM missing\n"),
        ("rm locked", 4, "banger: not allowed\n"),
        ("rm -f missing", 0, ""),
        ("vm create --name taken debian:12", 1, "banger: there is a VM taken already: "),
        ("exec web nothing", 127, "banger: there is no command nothing in the guest\n"),
        ("run --name taken debian:12 -- true", 125, "banger: there is a VM taken already: "),
        (
            "image import --name x /nonexistent",
            2,
            "banger: cannot read /nonexistent: No such file or directory (os error 2)\n",
        ),
        ("net status", 5, "banger: "),
    ] {
        let run = world.banger(line);
        assert_eq!(run.code, Some(code), "{line}: {run:?}");
        assert!(run.err.ends_with('\n') || run.err.is_empty());
        let last = run.err.lines().last().map(|line| format!("{line}\n")).unwrap_or_default();
        assert!(last.starts_with(message), "{line}: {run:?}");
    }
    let mut command = world.command(&["ps"]);
    let run =
        Run::new(&command.env("DBUS_SYSTEM_BUS_ADDRESS", "unix:path=/nonexistent").output().expect("runs"));
    assert_eq!(run.code, Some(5));
    assert!(run.err.contains("without a bus, use --peer"), "{run:?}");
    assert_eq!(run.err.lines().count(), 1);
}

#[test]
fn doctor_tells_of_who_does_not_answer() {
    let world = World::new();
    let run = world.banger("doctor --json");
    assert_eq!((run.code, run.err.as_str()), (Some(7), ""), "{run:?}");
    let told: serde_json::Value = serde_json::from_str(&run.out).expect("one document");
    assert_eq!(told["verdict"], "fail");
    let findings = told["findings"].as_array().expect("a list");
    let verdict = |check: &str| {
        let finding = findings.iter().find(|finding| finding["check"] == check).expect("is told");
        finding["verdict"].as_str().expect("text")
    };
    // There is no systemd on this bus, and no netd; nobody knows a version.
    assert_eq!(["units", "rules"].map(verdict), ["unknown"; 2]);
    assert_eq!(["bus", "answers", "access"].map(verdict), ["fail"; 3]);
}

#[test]
fn tables_are_for_people_and_json_for_programs() {
    let world = World::new();
    assert_eq!(
        world.banger("ps").out,
        "NAME   STATE     HEALTH    IMAGE       ADDRESS      STARTED        PORTS\n\
         web    running   healthy   debian:12   10.209.0.2   1 minute ago   127.0.0.1:8080->80/tcp\n"
    );
    assert!(world.banger("vm ls").out.contains("old    stopped   -         debian:12   -            -"));
    assert_eq!(world.banger("ps -a -q").out, "web\nold\n");
    let listed: serde_json::Value = serde_json::from_str(&world.banger("ls -a --json").out).expect("JSON");
    assert_eq!((&listed[0]["address"], &listed[0]["health"]), (&"10.209.0.2".into(), &"healthy".into()));
    assert_eq!((&listed[0]["labels"]["team"], &listed[0]["created_usec"]), (&"web".into(), &7.into()));
    assert_eq!((&listed[1]["name"], &listed[1]["started_usec"]), (&"old".into(), &0.into()));
    let session = world.banger("--json session start web make").out;
    let session: serde_json::Value = serde_json::from_str(&session).expect("JSON");
    assert_eq!(session["name"], "made-up");
}

#[test]
fn ps_lists_those_that_are_wanted() {
    let world = World::new();
    for (line, names) in [
        ("ps -q w*", "web\n"),
        ("ps -q o*", ""),
        ("ps -a -q ?ld", "old\n"),
        ("ps -q --state stopped", "old\n"),
        ("ps -q --state stopped --state running", "web\nold\n"),
        ("ps -a -q --label team", "web\nold\n"),
        ("ps -a -q --label team=old", "old\n"),
        ("ps -a -q -l team=old -l tier", ""),
    ] {
        assert_eq!(world.banger(line).out, names, "{line}");
    }
    assert_eq!(world.banger("ps --state asleep").code, Some(2));
}

#[test]
fn what_is_wrong_with_a_name_is_said_before_an_image_is_pulled() {
    let world = World::new();
    for line in ["run --name taken busybox true", "create --name taken busybox"] {
        assert!(world.banger(line).err.contains("there is a VM taken already"), "{line}");
    }
    assert_eq!(world.calls(), [] as [&str; 0]);
}

/// `banger run … 2>&1 | head -1`: the VM is to go all the same.
#[test]
fn nobody_has_to_read_what_is_said() {
    let world = World::new();
    let full = std::fs::File::options().write(true).open("/dev/full").expect("Linux");
    let mut command = world.command(&["run", "--rm", "--timings", "busybox", "true"]);
    let run = Run::new(&command.stderr(full).output().expect("runs"));
    assert_eq!(run.code, Some(125), "what the command itself has to say there is lost");
    assert_eq!(world.calls().last().map(String::as_str), Some("delete web force"));
    for line in ["start missing", "nonsense"] {
        let full = std::fs::File::options().write(true).open("/dev/full").expect("Linux");
        let mut command = world.command(&line.split(' ').collect::<Vec<_>>());
        let code = command.stderr(full).status().expect("runs").code();
        assert_eq!(code, Some(if line == "nonsense" { 2 } else { 3 }), "{line}");
    }
    let full = std::fs::File::options().write(true).open("/dev/full").expect("Linux");
    let run = Run::new(&world.command(&["--help"]).stdout(full).output().expect("runs"));
    assert_eq!((run.code, run.err.lines().count()), (Some(1), 1), "{run:?}");
}

#[test]
fn help_is_a_command_too() {
    let world = World::new();
    let help = world.banger("help image build");
    assert_eq!((help.code, &help.out), (Some(0), &world.banger("image build --help").out));
    assert!(world.banger("help").out.contains("Commands:"));
    let wrong = world.banger("help image bulid");
    assert_eq!((wrong.code, wrong.out.as_str()), (Some(2), ""));
    assert!(wrong.err.contains("image bulid"), "{wrong:?}");
}

#[test]
fn every_byte_of_the_output_arrives() {
    let world = World::new();
    let output = world.command(&["exec", "web", "big"]).output().expect("runs");
    assert_eq!(output.status.code(), Some(7));
    assert_eq!(output.stdout.len(), 100 << 20);
    assert!(
        output.stdout.chunks(1 << 20).enumerate().all(|(n, chunk)| chunk.iter().all(|byte| *byte == n as u8))
    );
}

#[test]
fn input_is_passed_on_to_its_end() {
    let world = World::new();
    let mut child = world.command(&["exec", "-i", "web", "cat"]).stdin(Stdio::piped()).spawn().expect("runs");
    child.stdin.take().expect("piped").write_all(b"hello").expect("writes");
    let run = Run::new(&child.wait_with_output().expect("ends"));
    assert_eq!((run.code, run.out.as_str()), (Some(7), "hello"));
}

#[test]
fn a_reader_that_leaves_does_not_hang_it() {
    let world = World::new();
    let mut child = world.command(&["exec", "web", "big"]).spawn().expect("runs");
    let mut some = [0; 10];
    let mut stdout = child.stdout.take().expect("piped");
    stdout.read_exact(&mut some).expect("reads");
    drop(stdout);
    assert_eq!(child.wait().expect("ends").code(), Some(7));
}

#[test]
fn signals_reach_the_command() {
    let world = World::new();
    let mut child = world.command(&["exec", "web", "sleep"]).spawn().expect("runs");
    let mut first = [0; 7];
    child.stdout.as_mut().expect("piped").read_exact(&mut first).expect("reads");
    send(&child, Signal::SIGTERM);
    assert_eq!(child.wait().expect("ends").code(), Some(128 + 15));
}

#[test]
fn nobody_has_to_wait_for_a_guest_that_stands_still() {
    let world = World::new();
    let repository = tempfile::tempdir().expect("a directory");
    let git = "git init -q && git -c user.name=Me -c user.email=me@host commit -q --allow-empty -m first";
    let made = Command::new("sh").args(["-c", git]).current_dir(&repository).status();
    assert!(made.expect("these tests need git").success());
    let workspace =
        format!("run --rm --no-bootstrap --workspace {} busybox true", repository.path().display());

    // One that does not begin the command, or is not ready for it.
    for (line, asked, said, last) in [
        ("exec web never", "exec web never", "did not begin", "exec web never"),
        ("run -d busybox never", "session web main never", "web is left running", "session web main never"),
        (workspace.as_str(), "lock web", "interrupted by a signal", "delete web force"),
    ] {
        let child = world.command(&line.split(' ').collect::<Vec<_>>()).spawn().expect("runs");
        while !world.was_asked(asked) {
            std::thread::sleep(Duration::from_millis(10));
        }
        send(&child, Signal::SIGINT);
        let run = Run::new(&child.wait_with_output().expect("ends"));
        assert_eq!(run.code, Some(130), "{line}: {run:?}");
        assert!(run.err.contains(said), "{line}: {run:?}");
        assert!(world.calls().last().expect("calls").starts_with(last), "{line}");
    }

    // One that does not hear of signals.
    let mut child = world.command(&["run", "--rm", "busybox", "deaf"]).spawn().expect("runs");
    let mut first = [0; 7];
    child.stdout.as_mut().expect("piped").read_exact(&mut first).expect("reads");
    send(&child, Signal::SIGINT);
    while !world.was_asked("signal 2") {
        std::thread::sleep(Duration::from_millis(10));
    }
    for _ in 0..2 {
        std::thread::sleep(Duration::from_millis(300));
        assert!(child.try_wait().expect("asks").is_none());
        send(&child, Signal::SIGINT);
    }
    let run = Run::new(&child.wait_with_output().expect("ends"));
    assert_eq!(run.code, Some(130), "{run:?}");
    assert!(run.err.contains("not waited for any more") && !run.err.contains("left"), "{run:?}");
    assert_eq!(world.calls().last().map(String::as_str), Some("delete web force"));
}

#[test]
fn a_session_service_that_restarts_is_asked_again() {
    let world = World::new();
    let run = world.banger("exec web restarted");
    assert_eq!((run.code, run.out.as_str()), (Some(7), "to stdout\n"), "{run:?}");
}

/// A hang-up would end a shell before it has read the script.
#[test]
fn the_end_of_what_is_piped_into_a_shell_is_typed() {
    let world = World::new();
    for (piped, typed) in [("make\n", "make\n^D"), ("make", "make\n^D"), ("", "^D")] {
        let mut script = tempfile::tempfile().expect("a file");
        script.write_all(piped.as_bytes()).expect("writes");
        script.rewind().expect("seeks");
        let run = Run::new(&world.command(&["shell", "web"]).stdin(script).output().expect("runs"));
        assert_eq!((run.code, run.out.as_str()), (Some(7), typed), "{run:?}");
    }
}

#[test]
fn a_shell_has_the_terminal_and_gives_it_back_as_it_was() {
    let world = World::new();
    let dir = tempfile::tempdir().expect("tempdir");
    let (before, after) = (dir.path().join("before"), dir.path().join("after"));
    let line = format!(
        "stty rows 40 cols 120; stty -a > {}; {} shell web; code=$?; stty -a > {}; exit $code",
        before.display(),
        env!("CARGO_BIN_EXE_banger"),
        after.display()
    );
    let mut child = Command::new("script")
        .args(["-qec", &line, "/dev/null"])
        .env("DBUS_SYSTEM_BUS_ADDRESS", &world.address)
        .env("TERM", "vt220")
        .stdin(Stdio::piped())
        .stdout(Stdio::piped())
        .spawn()
        .expect("runs");
    while !world.was_asked("shell") {
        std::thread::sleep(Duration::from_millis(10));
    }
    std::thread::sleep(Duration::from_millis(300));
    // In raw mode Ctrl-C is a byte like others.
    let mut stdin = child.stdin.take().expect("piped");
    stdin.write_all(b"ab\x03cq").expect("writes");
    let run = Run::new(&child.wait_with_output().expect("ends"));
    assert_eq!((run.code, run.out.as_str()), (Some(7), "ab\x03c"));
    assert_eq!(world.calls(), ["shell web  TERM=vt220 columns,rows"]);
    let read = |path| std::fs::read_to_string(path).expect("stty wrote it");
    assert!(read(&before).contains("rows 40; columns 120"));
    assert_eq!(read(&before), read(&after));
}

#[test]
fn a_command_hears_that_its_terminal_was_resized_before_it_began() {
    let world = World::new();
    let size = Winsize { ws_row: 40, ws_col: 120, ws_xpixel: 0, ws_ypixel: 0 };
    let OpenptyResult { master, slave } = openpty(&size, None).expect("opens");
    let terminal = || Stdio::from(slave.try_clone().expect("clones"));
    let mut command = world.command(&["shell", "web", "late"]);
    let child = command.stdin(terminal()).stdout(terminal()).spawn().expect("runs");
    while !world.was_asked("shell web late") {
        std::thread::sleep(Duration::from_millis(10));
    }
    let mut stty = Command::new("stty");
    assert!(stty.args(["rows", "50", "cols", "100"]).stdin(terminal()).status().expect("runs").success());
    send(&child, Signal::SIGWINCH);
    assert_eq!(world.banger("session kill web any").code, Some(0));
    while !world.was_asked("resize 50 100") {
        std::thread::sleep(Duration::from_millis(10));
    }
    std::fs::File::from(master).write_all(b"q").expect("writes");
    let run = Run::new(&child.wait_with_output().expect("ends"));
    assert_eq!(run.code, Some(7), "{run:?}");
}

#[test]
fn a_command_goes_on_by_itself_in_a_vm_that_is_left_running() {
    let world = World::new();
    world.banger("kernel import");
    world.calls();
    let run = world.banger("run -d --name x -e A=1 -u me busybox sleep 9");
    assert_eq!((run.code, run.out.as_str()), (Some(0), "web\n"), "{run:?}");
    assert!(run.err.contains("banger session logs -f web main"), "{run:?}");
    let calls = world.calls();
    assert_eq!(calls.last().expect("called"), "session web main sleep-9 {\"A\": \"1\"} user");

    // Without a command it would be lost.
    let run = world.banger("run -d --name x -e A=1 busybox");
    assert_eq!(run.code, Some(2), "{run:?}");
    assert!(run.err.contains("--setenv"), "{run:?}");
    assert_eq!(world.calls(), [""; 0]);
}

#[test]
fn an_interrupt_cancels_the_job() {
    let world = World::new();
    world.banger("kernel import");
    let child = world.command(&["run", "--name", "endless", "debian:12", "true"]).spawn().expect("runs");
    while !world.was_asked("create endless") {
        std::thread::sleep(Duration::from_millis(10));
    }
    // It listens to signals soon after the call has returned.
    std::thread::sleep(Duration::from_millis(300));
    send(&child, Signal::SIGINT);
    let run = Run::new(&child.wait_with_output().expect("ends"));
    assert_eq!(run.code, Some(130), "{run:?}");
    assert!(run.err.contains("canceling"), "{run:?}");
}

#[test]
fn metrics_tell_of_services_that_do_not_answer() {
    let world = World::new();
    let run = world.banger("metrics");
    assert_eq!(run.code, Some(0), "{run:?}");
    assert!(run.out.ends_with("\n# EOF\n"), "{run:?}");
    for service in ["vmd", "imaged", "netd", "sessiond"] {
        assert!(run.out.contains(&format!("banger_service_up{{service=\"{service}\"}} 0\n")), "{run:?}");
        assert!(run.err.contains(&format!("banger: banger-{service}: ")), "{run:?}");
    }
}

#[test]
fn a_request_is_answered_on_its_connection() {
    let world = World::new();
    let (theirs, mut ours) = UnixStream::pair().expect("pair");
    ours.write_all(b"GET /metrics HTTP/1.1\r\nHost: x\r\n\r\n").expect("writes");
    let connection = |stream: &UnixStream| Stdio::from(OwnedFd::from(stream.try_clone().expect("clones")));
    let mut command = world.command(&["metrics", "--http"]);
    let child = command.stdin(connection(&theirs)).stdout(connection(&theirs)).spawn().expect("runs");
    drop((command, theirs));
    let mut answer = String::new();
    ours.read_to_string(&mut answer).expect("reads");
    assert!(child.wait_with_output().expect("ends").status.success());
    assert!(answer.starts_with("HTTP/1.1 200 OK\r\n") && answer.ends_with("\n# EOF\n"), "{answer}");
}

/// A directory with an ssh that says how it was called, and exits with 7.
fn pretended_ssh() -> tempfile::TempDir {
    use std::os::unix::fs::PermissionsExt;
    let dir = tempfile::tempdir().expect("tempdir");
    let ssh = dir.path().join("ssh");
    std::fs::write(&ssh, "#!/bin/sh\nfor word; do echo \"$word\" >&2; done\nexit 7\n").expect("writes");
    std::fs::set_permissions(&ssh, std::fs::Permissions::from_mode(0o755)).expect("sets");
    dir
}

#[test]
fn what_cannot_be_done_from_here_is_done_there() {
    let dir = pretended_ssh();
    let path = format!("{}:{}", dir.path().display(), std::env::var("PATH").expect("a PATH"));
    let banger = |arguments: &[&str]| {
        let mut command = Command::new(env!("CARGO_BIN_EXE_banger"));
        Run::new(&command.args(arguments).env("PATH", &path).stdin(Stdio::null()).output().expect("runs"))
    };
    // ssh takes the place of banger: exit code, streams and all.
    let run = banger(&["exec", "-qH", "a@h:22", "-e", "A=it's", "web", "--", "cat", "x y"]);
    let line = r"banger exec -q -e 'A=it'\''s' web -- cat 'x y'";
    assert_eq!(
        (run.code, run.err.as_str()),
        (Some(7), format!("-p\n22\n-x\n-T\n--\na@h\n{line}\n").as_str())
    );
    // Whatever goes by D-Bus goes by the bridge.
    let run = banger(&["-H", "h", "-M", "c", "ps"]);
    assert_eq!(run.code, Some(5), "{run:?}");
    assert!(
        run.err.starts_with("-x\n-T\n--\nh\nsystemd-stdio-bridge --machine=c\nbanger: cannot connect to"),
        "{run:?}"
    );
    let run = banger(&["-H", "-oProxyCommand=x", "ps"]);
    assert_eq!(run.code, Some(2), "{run:?}");
}

/// Has bash complete the last word of a line, as readline does: a word ends at a blank, and a piece also at `:` and `=`.
const BASH: &str = r#"
line=$1 rest=$1 COMP_WORDS=()
while [[ $rest =~ ^[[:space:]]*([^[:space:]:=]+|[:=]+)(.*)$ ]]; do
    COMP_WORDS+=("${BASH_REMATCH[1]}") rest=${BASH_REMATCH[2]}
done
[[ $line != *' ' ]] || COMP_WORDS+=('')
COMP_LINE=$line COMP_POINT=${#line} COMP_CWORD=$((${#COMP_WORDS[@]} - 1))
piece=${COMP_WORDS[COMP_CWORD]}
[[ $piece != [:=] ]] || piece=
compopt() { echo compopt "$@"; }
eval "$(banger completion bash)"
_banger banger "$piece"
echo "${COMPREPLY[*]}"
"#;

#[test]
fn shells_offer_live_names() {
    let world = World::new();
    let programs = std::path::Path::new(env!("CARGO_BIN_EXE_banger")).parent().expect("a directory");
    let path = format!("{}:{}", programs.display(), std::env::var("PATH").expect("a PATH"));
    let offered = |address: &str, line: &str| {
        let mut bash = Command::new("bash");
        bash.args(["-c", BASH, "bash", line]).env("PATH", &path).env("DBUS_SYSTEM_BUS_ADDRESS", address);
        let run = Run::new(&bash.stdin(Stdio::null()).output().expect("these tests need bash"));
        assert_eq!(run.err, "", "{line}");
        run.out.trim_end().to_owned()
    };
    for (line, names) in [
        ("banger sta", "stats start"),
        ("banger stop ", "web"),
        ("banger start ", "old"),
        ("banger start -q o", "old"),
        ("banger rm ", "web old"),
        ("banger rm web ", "old"),
        ("banger exec ", "web"),
        ("banger vm show w", "web"),
        ("banger snapshot rm web ", "of-web"),
        ("banger session attach web ", "build test"),
        ("banger session rm web build ", "test"),
        ("banger run d", "debian:12 debian"),
        ("banger run debian:", "12"),
        ("banger run localhost:5000/", "5000/a:1 5000/b:1"),
        ("banger image show --json localhost:5000/a:", "1"),
        ("banger net forward rm 127.0.0.1:80", "8080"),
        ("banger cp /dev/nul", "/dev/null"),
        ("banger cp /dev/null we", "compopt -o nospace\nweb:"),
        ("banger run --vmm=q", "qemu"),
        ("banger stop --ti", "--timeout"),
    ] {
        assert_eq!(offered(&world.address, line), names, "{line}");
    }
    // No bus is no names, and no word about it.
    assert_eq!(offered("unix:path=/nowhere", "banger stop w"), "");
    assert!(world.calls().is_empty(), "nothing was done");
}
