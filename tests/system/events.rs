//! What the journal keeps, and what can be measured.

use std::collections::HashSet;
use std::fs::File;
use std::process::{Child, Command};
use std::time::{SystemTime, UNIX_EPOCH};

use banger_tests::{BUSYBOX, Vm, as_user, banger, eventually, run, sh};
use serde_json::Value;

/// `banger events --json --follow`, into a file.
struct Follower {
    child: Child,
    output: tempfile::NamedTempFile,
}

impl Follower {
    fn start(arguments: &[&str]) -> Self {
        let output = tempfile::NamedTempFile::new().expect("a file");
        let child = Command::new("banger")
            .args(["events", "--json", "--follow"])
            .args(arguments)
            .stdout(File::create(output.path()).expect("opens"))
            .spawn()
            .expect("starts");
        Self { child, output }
    }

    fn heard(&self) -> Vec<Value> {
        lines(&std::fs::read_to_string(self.output.path()).expect("reads"))
    }
}

impl Drop for Follower {
    fn drop(&mut self) {
        let _ = self.child.kill();
        let _ = self.child.wait();
    }
}

fn lines(text: &str) -> Vec<Value> {
    text.lines().map(|line| serde_json::from_str(line).expect("JSON")).collect()
}

/// What became of a VM, from the journal and nothing else.
fn history(vm: &str, since: &str) -> Vec<String> {
    let entries = run("journalctl", &["-q", "-o", "json", since, &format!("BANGER_VM={vm}")]).ok();
    let told = |entry: Value| {
        let event = entry["BANGER_EVENT"].as_str()?.to_owned();
        assert_eq!(entry["MESSAGE_ID"].as_str().map(str::len), Some(32), "{entry}");
        let unit = entry["_SYSTEMD_UNIT"].as_str()?.to_owned();
        let own = unit == format!("banger-vm@{vm}.service");
        assert!(own || unit == "banger-vmd.service" || !event.starts_with("vm-"), "{entry}");
        let reason = entry["BANGER_REASON"].as_str().map(|reason| format!(": {reason}")).unwrap_or_default();
        event.starts_with("vm-").then(|| event + &reason)
    };
    lines(&entries).into_iter().filter_map(told).collect()
}

fn kill_vmd() {
    // It may have left. systemd starts it again, however often that was so.
    let _ = sh("systemctl reset-failed banger-vmd; systemctl kill -s KILL banger-vmd");
}

#[test]
fn the_journal_tells_the_history_of_a_vm() {
    let now = SystemTime::now().duration_since(UNIX_EPOCH).expect("after 1970");
    let since = format!("--since=@{}", now.as_secs());
    let follower = Follower::start(&[&since, "--vm", "t-history"]);

    let vm = Vm::running("t-history", BUSYBOX);
    metrics_are_there(&vm);
    banger(&["pause", vm.name()]).ok();
    let is = |last: &str| history("t-history", &since).last().is_some_and(|event| event == last);
    eventually("it is noted", || is("vm-paused"));
    kill_vmd();
    banger(&["resume", vm.name()]).ok();
    eventually("it is noted, too", || is("vm-resumed"));
    banger(&["session", "start", "--name", "s", vm.name(), "--", "sh", "-c", "exit 3"]).ok();
    eventually("the session has ended", || {
        follower.heard().iter().any(|event| event["event"] == "session-ended")
    });
    // Nothing of this is done by vmd.
    kill_vmd();
    sh(&format!("systemctl stop {}", vm.unit())).ok();
    sh(&format!("systemctl start {}", vm.unit())).ok();
    kill_vmd();
    sh(&format!("systemctl kill -s KILL {}", vm.unit())).ok();
    eventually("it has failed", || vm.state() == "failed");
    banger(&["rm", vm.name()]).ok();

    let expected = [
        "vm-created",
        "vm-starting",
        "vm-ready",
        "vm-paused",
        "vm-resumed",
        "vm-stopping",
        "vm-stopped: stopped on request",
        "vm-starting",
        "vm-ready",
        "vm-failed: its VMM was killed",
        "vm-deleted",
    ];
    assert_eq!(history("t-history", &since), expected);

    // What others write is in the journal, but none of it.
    let forged = "MESSAGE_ID=0d9ac3c08b5d47eeb6b5b2c768fba3c5\\nBANGER_EVENT=vm-ready\\nBANGER_VM=t-history\\nMESSAGE=VM t-history is ready\\n";
    as_user("mallory", &format!("printf '{forged}' | logger --journald")).ok();
    eventually("it is there", || {
        // The journal may not know any more which program it was.
        let found = format!("journalctl -q -o cat {since} BANGER_VM=t-history _UID=$(id -u mallory)");
        sh(&found).text().contains("VM t-history is ready")
    });

    // The same to those who ask then, and to those who have listened.
    let asked = lines(&banger(&["events", "--json", &since, "--vm", "t-history"]).ok());
    eventually("all is heard", || follower.heard().len() >= asked.len());
    assert_eq!(follower.heard(), asked);
    let named: Vec<&str> = asked.iter().filter_map(|event| event["event"].as_str()).collect();
    let of_vm = |name: &&&str| name.starts_with("vm-");
    let short = |event: &&str| event.split(':').next().map(str::to_owned);
    assert!(named.iter().filter(of_vm).copied().map(str::to_owned).eq(expected.iter().filter_map(short)));
    for name in ["lease-acquired", "lease-released", "session-started"] {
        assert!(named.contains(&name), "{named:?}");
    }
    let ended = asked.iter().find(|event| event["event"] == "session-ended" && event["session"] == "s");
    assert_eq!(ended.map(|event| &event["status"]), Some(&Value::from(3)), "{asked:?}");

    // What was done for a job says so.
    let job = &asked[0]["job"];
    let jobs = lines(&banger(&["events", "--json", &since, "job"]).ok());
    let of_job = jobs.iter().filter(|event| event["job"] == *job && event["service"] == "vmd");
    let told: Vec<_> = of_job.map(|event| (event["event"].as_str(), event["result"].as_str())).collect();
    assert_eq!(told, [(Some("job-begun"), None), (Some("job-ended"), Some("done"))]);

    let shown = banger(&["events", &since, "--vm", "t-history", "vm-failed"]).ok();
    assert!(shown.contains("Z  vm-failed          t-history") && shown.lines().count() == 1, "{shown}");
    let explained = sh(&format!("journalctl -q -x {since} BANGER_EVENT=vm-failed BANGER_VM=t-history")).ok();
    assert!(explained.contains("Documentation: man:banger-events(7)"), "{explained}");
    as_user("alice", "banger events").refused(&["systemd-journal"]);
}

/// To everybody, once an admin wants it.
fn metrics_are_there(vm: &Vm) {
    assert_eq!(run("systemctl", &["is-enabled", "banger-metrics.socket"]).text().trim(), "disabled");
    sh("systemctl start banger-metrics.socket").ok();
    let get = |arguments: &str| {
        as_user("mallory", &format!("curl -s {arguments} http://127.0.0.1:10209/metrics")).ok()
    };
    let answer = get("-i");
    let (head, text) = answer.split_once("\r\n\r\n").expect("a head");
    assert!(head.starts_with("HTTP/1.1 200 ") && head.contains("application/openmetrics-text"), "{head}");
    check_exposition(text);
    let of_vm = format!("vm=\"{}\"", vm.name());
    for sample in [
        "banger_vm_state{VM,state=\"running\"} 1\n",
        "banger_vm_reachable{VM} 1\n",
        "banger_vm_cpu_seconds_total{VM} ",
    ] {
        assert!(text.contains(&sample.replace("VM", &of_vm)), "{sample} in {text}");
    }
    for service in banger_api::SERVICES {
        assert!(text.contains(&format!("banger_service_up{{service=\"{}\"}} 1\n", service.id)), "{text}");
    }
    assert!(get("-i -X POST").starts_with("HTTP/1.1 405 "));
    sh("systemctl stop banger-metrics.socket").ok();
    check_exposition(&as_user("mallory", "banger metrics").ok());
}

/// As a strict reader has it: each family once, with its samples behind it, each of them once, then the end.
fn check_exposition(text: &str) {
    let body = text.strip_suffix("# EOF\n").unwrap_or_else(|| panic!("no end: {text}"));
    let (mut family, mut suffix) = (String::new(), "");
    let mut seen = HashSet::new();
    for line in body.lines() {
        if let Some(of) = line.strip_prefix("# TYPE ") {
            let (name, kind) = of.split_once(' ').expect("a type");
            suffix = match kind {
                "gauge" => "",
                "counter" => "_total",
                "info" => "_info",
                other => panic!("{other} in {line}"),
            };
            family = name.to_owned();
            assert!(seen.insert(line.to_owned()), "twice: {line}");
        } else if let Some(of) = line.strip_prefix("# UNIT ").or_else(|| line.strip_prefix("# HELP ")) {
            assert!(of.starts_with(&format!("{family} ")), "{line} after {family}");
        } else {
            let (sample, value) = line.rsplit_once(' ').expect("a value");
            let name = sample.split('{').next().unwrap_or_default();
            assert_eq!(name, format!("{family}{suffix}"), "{line}");
            assert!(value.parse::<f64>().is_ok_and(f64::is_finite), "{line}");
            assert!(seen.insert(sample.to_owned()), "twice: {line}");
        }
    }
}
