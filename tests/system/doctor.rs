//! `banger doctor`: a host that is well, and one that is broken in one way after the other.

use banger_api::{NETD, SERVICES, VMD};
use banger_tests::{Done, Way, as_user, banger, run, sh};
use serde_json::Value;

/// What may be amiss in the lab without anything being wrong: it may be an emulated container without controllers or a
/// clock of its own, its disk may be small, and other tests leave words in the journal.
const OF_THE_LAB: [&str; 6] = ["cpu", "cgroups", "clock", "space", "denials", "memory"];

const REFRESH: &str =
    "busctl call org.banger.Network1 /org/banger/Network1 org.banger.Network1.Manager Refresh";

/// What doctor says, and its exit status.
struct Told {
    status: i32,
    json: Value,
}

impl Told {
    fn by(done: Done) -> Self {
        let json = serde_json::from_slice(&done.stdout).unwrap_or_else(|error| panic!("{error}: {done}"));
        Self { status: done.status, json }
    }

    fn now() -> Self {
        Self::by(banger(&["--json", "doctor"]))
    }

    /// Does what it can, too.
    fn fixing() -> Self {
        Self::by(banger(&["--json", "doctor", "--fix"]))
    }

    fn findings(&self) -> &Vec<Value> {
        self.json["findings"].as_array().expect("a list")
    }

    /// What is not ok of a check: verdict, what, remedy.
    fn of(&self, check: &str) -> Vec<[&str; 3]> {
        let found = self.findings().iter().filter(|finding| finding["check"] == check);
        found
            .filter(|finding| finding["verdict"] != "ok")
            .map(|finding| ["verdict", "what", "remedy"].map(|key| finding[key].as_str().expect("text")))
            .collect()
    }

    /// That a check found just this.
    #[track_caller]
    fn finds(&self, check: &str, verdict: &str, what: &str, remedy: &str) {
        let found = self.of(check);
        let [[of, found, does]] = found.as_slice() else { panic!("{check}: {found:?}") };
        assert_eq!(*of, verdict, "{found}");
        assert!(found.contains(what) && does.contains(remedy), "{found}: {does}");
    }

    #[track_caller]
    fn is_well(&self, check: &str) {
        assert_eq!(self.of(check), [[""; 3]; 0], "{:?}", self.json["fixes"]);
    }

    /// The commands that were carried out.
    #[track_caller]
    fn done(&self) -> Vec<&str> {
        let fixes = self.json["fixes"].as_array().expect("a list");
        assert!(fixes.iter().all(|fix| fix["error"].is_null()), "{fixes:?}");
        fixes.iter().map(|fix| fix["command"].as_str().expect("text")).collect()
    }
}

/// Sets the host right, whatever becomes of the test.
struct Undo(&'static str);

impl Drop for Undo {
    fn drop(&mut self) {
        sh(self.0);
    }
}

#[test]
fn a_host_that_is_well_is_told_so() {
    // Other tests have units fail.
    sh("systemctl reset-failed 'banger-*'; banger vm reconcile").ok();
    let told = Told::now();
    assert_eq!(told.status, 0, "{:#}", told.json);
    for finding in told.findings() {
        let check = finding["check"].as_str().expect("text");
        assert!(finding["verdict"] == "ok" || OF_THE_LAB.contains(&check), "{finding:#}");
    }
    let emulated = sh("grep -qwE 'vmx|svm' /proc/cpuinfo").status != 0;
    assert_eq!(told.of("cpu").len(), usize::from(emulated));
    // For people there are reasons with whatever is amiss; they can be had for all.
    let (brief, verbose) = (banger(&["doctor"]).ok(), banger(&["doctor", "--verbose"]).ok());
    let reasons = |text: &str| text.matches(" why: ").count();
    assert_eq!(reasons(&verbose), told.findings().len(), "{verbose}");
    assert!(reasons(&brief) < reasons(&verbose), "{brief}");
    assert_eq!(banger(&["--peer", "doctor"]).status, 0);
}

#[test]
fn everybody_may_ask_and_hears_what_they_cannot_see() {
    let ask = |user: &str, arguments: &str| as_user(user, &format!("banger doctor {arguments}"));
    let member = Told::by(ask("alice", "--json"));
    let stranger = Told::by(ask("mallory", "--json"));
    assert_eq!((member.status, stranger.status), (0, 0));
    member.is_well("access");
    stranger.finds("access", "warn", "mallory", "usermod -aG banger mallory");
    for told in [&member, &stranger] {
        for check in ["denials", "memory"] {
            told.finds(check, "unknown", "journal", "sudo banger doctor");
        }
    }
    let _undo = Undo("systemctl enable --now banger-sessiond.socket");
    run("systemctl", &["disable", "--now", "banger-sessiond.socket"]).ok();
    let tried = ask("mallory", "--fix");
    assert_eq!(tried.status, 7, "{tried}");
    assert!(tried.text().contains("not done: systemctl enable --now banger-sessiond.socket: "), "{tried}");
}

#[test]
fn what_doctor_asks_anybody_may_ask() {
    for way in Way::BOTH {
        let host = way.call(VMD, "GetHost", &[]).ok();
        assert!(host.contains("\"vmm\" s \"") && host.contains("\"qemu_version\" s \""), "{host}");
        way.call(VMD, "ListOrphans", &[]).ok();
    }
    for service in SERVICES {
        let version = ["get-property", service.bus_name, service.path, "org.banger.Service1", "Version"];
        let line = version.map(|word| format!("'{word}'")).join(" ");
        assert_eq!(
            as_user("mallory", &format!("busctl {line}")).ok(),
            format!("s \"{}\"\n", env!("CARGO_PKG_VERSION"))
        );
    }
}

#[test]
fn units_are_enabled_started_read_and_forgiven() {
    let _undo = Undo(
        "systemctl enable --now banger-imaged.socket; systemctl reset-failed banger-t-doctor; \
         rm -rf /run/systemd/system/banger-sessiond.service.d; systemctl daemon-reload",
    );
    run("systemctl", &["disable", "--now", "banger-imaged.socket"]).ok();
    sh("mkdir -p /run/systemd/system/banger-sessiond.service.d && \
        printf '[Service]\\nLogLevelMax=debug\\n' >/run/systemd/system/banger-sessiond.service.d/t-doctor.conf")
    .ok();
    sh("systemd-run --quiet --unit banger-t-doctor --wait false");
    let told = Told::now();
    assert_eq!(told.status, 7);
    let enable = "systemctl enable --now banger-imaged.socket";
    told.finds("units", "fail", "banger-imaged.socket is disabled", enable);
    told.finds("reload", "warn", "banger-sessiond.service", "systemctl daemon-reload");
    let forget = "systemctl reset-failed banger-t-doctor.service";
    let failures = told.of("failures");
    assert!(
        failures.iter().any(|[verdict, _, remedy]| *verdict == "fail" && *remedy == forget),
        "{failures:?}"
    );
    // The question started the service, and systemd its socket; but with the next boot it is gone.
    let fixed = Told::fixing();
    assert_eq!(fixed.done(), ["systemctl daemon-reload", forget, enable]);
    assert_eq!(fixed.status, 0, "{:#}", fixed.json);
    fixed.is_well("units");
    fixed.is_well("reload");
    let state = |what| run("systemctl", &[what, "banger-imaged.socket"]).text();
    assert_eq!((state("is-enabled"), state("is-active")), ("enabled\n".into(), "active\n".into()));
    let changed = fixed.findings().iter().find(|finding| finding["check"] == "reload").expect("a finding");
    assert!(changed["what"].as_str().is_some_and(|what| what.contains("t-doctor.conf")), "{changed}");
}

#[test]
fn directories_and_leftovers_are_set_right() {
    let _undo =
        Undo("chmod 0755 /run/banger; rm -rf /var/lib/banger/vmd/vms/t-doctor /run/banger/vm/t-doctor");
    sh("chmod 0700 /run/banger; install -d -o banger-vmd -m 0700 /var/lib/banger/vmd/vms/t-doctor").ok();
    sh("mkdir /run/banger/vm/t-doctor").ok();
    let told = Told::now();
    told.finds("directories", "warn", "/run/banger has mode 0700", "systemd-tmpfiles --create banger.conf");
    told.finds("orphans", "warn", "t-doctor: disks of a VM that is not there", "banger vm reconcile");
    told.finds("runtime", "warn", "/run/banger/vm/t-doctor", "rm -r /run/banger/vm/t-doctor");
    assert!(std::path::Path::new("/var/lib/banger/vmd/vms/t-doctor").exists(), "to ask changes nothing");
    let fixed = Told::fixing();
    assert_eq!(fixed.done(), ["systemd-tmpfiles --create banger.conf", "banger vm reconcile"]);
    fixed.is_well("directories");
    fixed.is_well("orphans");
    // Whose that is, nobody knows: it stays for the admin to see to.
    sh(fixed.of("runtime")[0][2]).ok();
    Told::now().is_well("runtime");
}

#[test]
fn rules_of_others_are_left_alone_and_ours_are_made_again() {
    let _undo = Undo("nft delete table inet t-doctor; banger vm reconcile");
    sh("nft add table inet t-doctor && \
        nft 'add chain inet t-doctor onward { type filter hook forward priority 50; policy drop; }'")
    .ok();
    let address = "10.209.77.7";
    Way::Bus.call(NETD, "Acquire", &["sa{sv}", "t-doctor", "1", "address", "s", address]).ok();
    run("nft", &["delete", "table", "inet", "banger"]).ok();
    let told = Told::now();
    assert_eq!(told.status, 7);
    told.finds("firewall", "warn", "chain inet t-doctor onward", "nft insert rule inet t-doctor onward");
    told.finds("rules", "fail", "flushed", REFRESH);
    told.finds("orphans", "warn", "t-doctor: the network", "banger vm reconcile");
    let theirs = || run("nft", &["list", "table", "inet", "t-doctor"]).ok();
    let before = theirs();
    let fixed = Told::fixing();
    assert_eq!(fixed.done(), [REFRESH, "banger vm reconcile"]);
    fixed.is_well("rules");
    fixed.is_well("orphans");
    fixed.finds("firewall", "warn", "chain inet t-doctor onward", "nft insert rule inet t-doctor onward");
    assert_eq!(theirs(), before);
    run("nft", &["list", "table", "inet", "banger"]).ok();
}

#[test]
fn a_missing_vmm_is_the_admins_to_install() {
    let _undo = Undo("mv /usr/bin/.t-doctor /usr/bin/qemu-system-x86_64");
    sh("mv /usr/bin/qemu-system-x86_64 /usr/bin/.t-doctor").ok();
    let told = Told::fixing();
    assert_eq!(told.status, 7);
    told.finds("vmm", "fail", "no VMM is installed", "install QEMU");
    assert_eq!(told.done(), [""; 0]);
}
