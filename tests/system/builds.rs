//! Images that are built from a file, and what images say of programs.

use std::path::Path;
use std::process::{Child, Command, Stdio};

use banger_api::{IMAGED, VMD};
use banger_tests::{BUSYBOX, DEBIAN, Done, Vm, Way, banger, error_name, eventually, json, run, sh};

/// A directory with a build's file, whose base is an image of its own: so its cache is, too.
struct Build {
    directory: tempfile::TempDir,
    name: &'static str,
}

impl Build {
    fn of(name: &'static str, base: &str) -> Self {
        let build = Self { directory: tempfile::tempdir().expect("a directory"), name };
        build.clean();
        if json(&["images", base]).as_array().is_none_or(Vec::is_empty) {
            banger(&["pull", base]).ok();
        }
        let label = format!("t-build={name}");
        banger(&["image", "derive", "--label", &label, base, &build.base()]).ok();
        build
    }

    fn base(&self) -> String {
        format!("{}-base", self.name)
    }

    fn path(&self) -> &Path {
        self.directory.path()
    }

    fn file(&self) -> String {
        self.path().join("banger.toml").display().to_string()
    }

    /// Writes the file; the base and the name are said.
    fn says(&self, steps: &str) {
        let text = format!("base = \"{}\"\nname = \"{}\"\n{steps}", self.base(), self.name);
        std::fs::write(self.file(), text).expect("writes");
    }

    fn build(&self, arguments: &[&str]) -> Done {
        banger(&[&["image", "build"], arguments, &[&self.file()]].concat())
    }

    fn start(&self) -> Child {
        Command::new("banger")
            .args(["image", "build", &self.file()])
            .stdout(Stdio::null())
            .stderr(Stdio::piped())
            .spawn()
            .expect("starts")
    }

    /// What became of the steps: number and state.
    #[track_caller]
    fn states(&self, arguments: &[&str]) -> Vec<(u64, String)> {
        let done = self.build(&[&["--json"], arguments].concat());
        let events = done.stderr.lines().map(|line| -> serde_json::Value {
            serde_json::from_str(line).unwrap_or_else(|error| panic!("{error}: {line}"))
        });
        let states = events
            .filter(|event| event["state"] != "begun")
            .filter_map(|event| Some((event["step"].as_u64()?, event["state"].as_str()?.to_owned())));
        let states = states.collect();
        done.ok();
        states
    }

    /// The VM that it is built in.
    fn vm(&self) -> Option<String> {
        let vms = json(&["ps", "-a"]);
        let names = vms.as_array()?.iter().filter_map(|vm| vm["name"].as_str());
        names.filter(|name| name.starts_with("build-")).map(str::to_owned).find(|name| {
            let shown = banger(&["--json", "vm", "show", name]).text();
            let shown: serde_json::Value = serde_json::from_str(&shown).unwrap_or_default();
            shown["spec"]["labels"]["banger.build"] == self.name
        })
    }

    fn kept(&self) -> usize {
        let label = format!("t-build={}", self.name);
        let kept = json(&["images", "--label", &label, "build/*"]);
        kept.as_array().map_or(0, Vec::len)
    }

    #[track_caller]
    fn nothing_is_left(&self) {
        assert_eq!(self.vm(), None);
        assert_ne!(banger(&["image", "show", self.name]).status, 0);
    }

    fn clean(&self) {
        for image in [self.name.to_owned(), self.base()] {
            let _ = banger(&["image", "rm", &image]);
        }
        let label = format!("t-build={}", self.name);
        let _ = banger(&["image", "prune", "--build-cache", "--label", &label]);
    }
}

impl Drop for Build {
    fn drop(&mut self) {
        if let Some(vm) = self.vm() {
            let _ = banger(&["rm", "-f", &vm]);
        }
        self.clean();
    }
}

fn states(of: &[(u64, &str)]) -> Vec<(u64, String)> {
    of.iter().map(|(step, state)| (*step, (*state).to_owned())).collect()
}

const STEPS: &str = r#"
arguments = { version = "1", unused = "" }
machine = { memory = "256M", network = false }
[[step]]
run = """
echo web:x:1000:70:::/bin/sh >>/etc/passwd
echo version $version >/version
echo to-stdout; echo to-stderr >&2
"""
[[step]]
copy = "site"
to = "/srv/site"
owner = "web:70"
[[step]]
copy = "tool"
to = "/usr/local/bin/"
mode = "0755"
[[step]]
environment = { GREETING = "hello world" }
user = "web"
workdir = "/srv/site"
command = ["sh", "-c", "tool; cat /version sub/file"]
labels = { team = "red" }
[[step]]
run = "tool >tooled; id -un >>tooled; pwd >>tooled"
shell = ["/bin/sh", "-ec"]
"#;

#[test]
fn an_image_is_built_and_built_again() {
    let build = Build::of("t-build", BUSYBOX);
    let long = "n".repeat(120);
    sh(&format!(
        "cd {} && mkdir -p site/sub/{long} && echo content >site/sub/file && ln -s sub/file site/link &&
         echo long >site/sub/{long}/{long} && chmod 700 site/sub && chmod 640 site/sub/file &&
         printf '#!/bin/sh\necho \"$GREETING\"\n' >tool",
        build.path().display()
    ))
    .ok();
    build.says(STEPS);
    let done = build.build(&["--arg", "version=2"]);
    let told: Vec<&str> = done.stderr.lines().collect();
    for line in ["step 2 of 5: copy site to /srv/site", "to-stdout", "to-stderr"] {
        assert!(told.contains(&line), "{line:?} in {told:?}");
    }
    assert_eq!(done.ok(), "t-build\n");
    assert_eq!(build.vm(), None);

    let ran = banger(&["run", "--rm", "--name", "t-built", "t-build"]);
    assert_eq!(ran.ok(), "hello world\nversion 2\ncontent\n");
    let vm = Vm::running("t-built-look", "t-build");
    let stat = "stat -c '%n %a %u %g' . sub sub/file tooled /usr/local/bin/tool; readlink link; cat tooled";
    let expected = format!(
        ". 755 1000 70\nsub 700 1000 70\nsub/file 640 1000 70\ntooled 644 1000 70\n{}\n{}",
        "/usr/local/bin/tool 755 0 0", "sub/file\nhello world\nweb\n/srv/site\n"
    );
    assert_eq!(vm.sh(stat).ok(), expected);
    assert_eq!(vm.sh(&format!("cat sub/{long}/{long}")).ok(), "long\n");
    drop(vm);
    let shown = json(&["image", "show", "t-build"]);
    assert_eq!(shown["config"]["labels"]["team"], "red");

    // Nothing is done that was done before, and no VM is started.
    let all = |version: &str| build.states(&["--arg", version]);
    assert_eq!(all("version=2"), states(&[(1, "cached"), (2, "cached"), (3, "cached"), (5, "cached")]));
    assert_eq!(json(&["image", "show", "t-build"])["id"], shown["id"]);
    // What the image says is apart.
    build.says(&STEPS.replace("red", "blue"));
    assert!(all("version=2").iter().all(|(_, state)| state == "cached"));
    assert_eq!(json(&["image", "show", "t-build"])["config"]["labels"]["team"], "blue");
    // Another file has what follows done again, but not what went before.
    sh(&format!("echo other >{}/site/sub/file", build.path().display())).ok();
    assert_eq!(all("version=2"), states(&[(1, "cached"), (2, "done"), (3, "done"), (5, "done")]));
    // So has another argument, which the first script sees.
    assert_eq!(all("version=3")[0], (1, "done".into()));
    let ran = banger(&["run", "--rm", "--name", "t-built", "t-build"]);
    assert_eq!(ran.ok(), "hello world\nversion 3\nother\n");
    assert_eq!(build.states(&["--no-cache", "--arg", "version=3"])[0], (1, "done".into()));

    // What is kept is listed, and removed, apart from other images.
    let kept = build.kept();
    assert_eq!(kept, 5);
    assert!(!banger(&["images"]).ok().contains("build/"));
    assert!(banger(&["images", "--all"]).ok().contains("build/"));
    let usage = json(&["image", "df"]);
    let usage = usage.as_array().expect("rows");
    let row = usage.iter().find(|row| row["name"] == "t-build").expect("a row");
    assert!(row["shared_bytes"].as_u64() > row["own_bytes"].as_u64(), "{row}");
    assert!(usage.iter().any(|row| row["kind"] == "build"));
    let label = ["--label", "t-build=t-build"];
    let prune = |more: &[&str]| json(&[&["image", "prune", "--build-cache"], more, &label[..]].concat());
    assert_eq!(prune(&["--dry-run"]).as_array().map(Vec::len), Some(kept));
    assert_eq!(prune(&[]).as_array().map(Vec::len), Some(kept));
    assert_eq!(build.kept(), 0);
    banger(&["image", "verify", "t-build"]).ok();
    assert_eq!(
        banger(&["run", "--rm", "--name", "t-built", "t-build", "--", "cat", "/version"]).ok(),
        "version 3\n"
    );
}

/// From a repository in the image, as guests of the lab reach no other.
#[test]
fn packages_are_installed() {
    let build = Build::of("t-build-apt", DEBIAN);
    sh(&format!(
        "cd {} && mkdir -p repo p/DEBIAN p/usr/share/t-hello && echo hello >p/usr/share/t-hello/greeting &&
         printf 'Package: t-hello\\nVersion: 1.0\\nArchitecture: all\\nMaintainer: t <t@example.org>\\nDescription: x\\n' \
             >p/DEBIAN/control && dpkg-deb -b p repo/t-hello.deb >/dev/null &&
         (cat p/DEBIAN/control && echo Filename: ./t-hello.deb && echo Size: $(stat -c %s repo/t-hello.deb) &&
          echo SHA256: $(sha256sum repo/t-hello.deb | cut -c1-64)) >repo/Packages",
        build.path().display()
    ))
    .ok();
    let steps = r#"
machine = { network = false }
[[step]]
copy = "repo"
to = "/opt/repo"
[[step]]
run = "rm -rf /etc/apt/sources.list*; echo 'deb [trusted=yes] file:/opt/repo ./' >/etc/apt/sources.list"
[[step]]
packages = ["t-hello"]
"#;
    build.says(steps);
    build.build(&[]).ok();
    let command = ["sh", "-c", "cat /usr/share/t-hello/greeting; ls /var/lib/apt/lists | wc -l"];
    let ran = banger(&[&["run", "--rm", "--name", "t-built-apt", build.name, "--"], &command[..]].concat());
    assert_eq!(ran.ok(), "hello\n0\n");
    build.says(&steps.replace("t-hello\"]", "t-missing\"]"));
    let failed = build.build(&[]);
    assert!(failed.stderr.contains("step 2 of 3: run rm -rf"), "{failed}");
    assert_eq!(failed.status, 6, "{failed}");
    failed.refused(&["step 3 of 3 (packages t-missing) failed with exit status 100", "t-missing"]);
}

#[test]
fn a_step_fails() {
    let build = Build::of("t-build-fails", BUSYBOX);
    let first = "[[step]]\nrun = \"echo first >/first\"\n";
    for (step, words) in [
        (
            "run = \"echo then; false; echo never >&2\"",
            "(run echo then; false; echo never >&2) failed with exit status 1",
        ),
        ("run = \"kill -9 $$\"", "was ended by signal 9"),
        ("run = \"x\"\nshell = [\"/bin/none\"]", "/bin/none"),
        ("packages = [\"x\"]", "failed with exit status 127"),
        ("copy = \"banger.toml\"\nto = \"/x\"\nowner = \"nobody-such\"", "failed with exit status 1"),
        ("copy = \"banger.toml\"\nto = \"/first/x\"", "failed with exit status 1"),
    ] {
        build.says(&format!("{first}[[step]]\n{step}\n"));
        let failed = build.build(&[]);
        assert_eq!(failed.status, 6, "{failed}");
        let said = failed.refused(&["step 2 of 2 (", words]);
        assert!(!said.lines().any(|line| line == "never"), "{said}");
        build.nothing_is_left();
    }
    // What went before is not done again.
    build.says(&format!("{first}[[step]]\nrun = \"cat /first\"\n"));
    assert_eq!(build.states(&[]), states(&[(1, "cached"), (2, "done")]));
}

#[test]
fn a_build_is_interrupted() {
    let build = Build::of("t-build-stops", BUSYBOX);
    build.says("[[step]]\nrun = \"echo first >/first\"\n[[step]]\nrun = \"echo sleeps; sleep 600\"\n");
    for signal in ["INT", "TERM", "HUP"] {
        let mut child = build.start();
        let mut said = String::new();
        let told = std::io::BufReader::new(child.stderr.take().expect("piped"));
        for line in std::io::BufRead::lines(told) {
            let line = line.expect("reads");
            if line == "sleeps" {
                run("kill", &[&format!("-{signal}"), &child.id().to_string()]).ok();
            }
            said.push_str(&line);
        }
        assert_eq!(child.wait().expect("waits").code(), Some(130), "{signal}: {said}");
        assert!(said.contains("was interrupted"), "{said}");
        build.nothing_is_left();
    }
    // While the VM starts, too.
    let child = build.start();
    eventually("there is a VM", || build.vm().is_some());
    run("kill", &["-INT", &child.id().to_string()]).ok();
    assert_eq!(child.wait_with_output().expect("waits").status.code(), Some(130));
    build.nothing_is_left();

    // Whoever is killed cannot clean up; but the VM's time is short.
    let mut child = build.start();
    eventually("there is a VM", || build.vm().is_some());
    child.kill().expect("kills");
    child.wait().expect("waits");
    let vm = build.vm().expect("a VM");
    let spec = json(&["vm", "show", &vm])["spec"].clone();
    assert_eq!(spec["expiry"], "delete", "{spec}");
    assert!(spec["ttl"].as_u64().is_some_and(|ttl| (1..=600).contains(&ttl)), "{spec}");
    banger(&["set", &vm, "--ttl", "1s"]).ok();
    eventually("its time is up", || build.vm().is_none());
    build.nothing_is_left();
}

#[test]
fn what_cannot_be_built_is_refused() {
    let build = Build::of("t-build-no", BUSYBOX);
    let refused = |steps: &str, arguments: &[&str], words: &[&str]| {
        build.says(steps);
        let done = build.build(arguments);
        assert_eq!(done.status, 2, "{done}");
        done.refused(words);
        assert_eq!(build.vm(), None);
    };
    refused("steps = []", &[], &["banger.toml:3: ", "steps"]);
    refused("\n[[step]]\nrum = \"x\"", &[], &["banger.toml:5: ", "rum"]);
    refused("[[step]]\ncopy = \"nothing\"\nto = \"/x\"", &[], &["nothing", "No such file"]);
    refused("[[step]]\nrun = \"x\"", &["--arg", "a=b"], &["no argument a"]);
    banger(&["image", "build", "/nowhere/banger.toml"]).refused(&["/nowhere/banger.toml"]);
    std::fs::write(build.file(), format!("base = \"{}\"", build.base())).expect("writes");
    build.build(&[]).refused(&["needs a name"]);
    build.build(&["-t", "not a name"]).refused(&["not a usable name"]);
    // Without steps it is the base.
    build.build(&["-t", build.name]).ok();
    assert_eq!(json(&["image", "show", build.name])["id"], json(&["image", "show", &build.base()])["id"]);
}

#[test]
fn what_an_image_says_can_be_changed() {
    let build = Build::of("t-derive", BUSYBOX);
    let (base, name) = (build.base(), build.name);
    let made =
        ["image", "derive", "-e", "A=1", "-u", "7:8", "-w", "/tmp", "--entrypoint", "sh -c", "--command"];
    banger(&[&made[..], &[r#"["id -u; id -g; pwd; echo $A"]"#, &base, name]].concat()).ok();
    assert_eq!(banger(&["run", "--rm", "--name", "t-derived", name]).ok(), "7\n8\n/tmp\n1\n");
    // One root filesystem for both.
    let inode = |image: &str| {
        let id = json(&["image", "show", image])["id"].as_str().expect("an id").to_owned();
        sh(&format!("stat -c %i /var/lib/banger/imaged/images/{id}/rootfs.squashfs")).ok()
    };
    assert_eq!(inode(name), inode(&base));
    banger(&["image", "derive", &base, name]).refused(&["is taken"]);
    let derive = |options: &[&str]| {
        [&["ssa{sv}", base.as_str(), name], options]
            .concat()
            .into_iter()
            .map(str::to_owned)
            .collect::<Vec<_>>()
    };
    let call = |way: Way, options: &[&str]| {
        let arguments = derive(options);
        way.call(IMAGED, "DeriveImage", &arguments.iter().map(String::as_str).collect::<Vec<_>>())
    };
    for way in Way::BOTH {
        call(way, &["2", "replace", "b", "true", "labels", "a{ss}", "1", "way", &format!("{way:?}")]).ok();
        assert_eq!(json(&["image", "show", name])["config"]["labels"]["way"], format!("{way:?}"));
    }
    call(Way::Bus, &["1", "working_directory", "s", "tmp"]).failed(&["not an absolute path"]);
    call(Way::Bus, &["1", "environment", "as", "1", "A=1"]).failed(&["a{ss}"]);
    call(Way::Bus, &["1", "colour", "s", "red"]).failed(&["unknown option colour"]);

    // A promotion can say the same.
    let vm = Vm::running("t-derive-vm", &base);
    vm.sh("echo promoted >/promoted").ok();
    let options = ["3", "replace", "b", "true", "command", "as", "2", "cat", "/promoted", "user", "s", "0:0"];
    let promote = [&["ssa{sv}", vm.name(), name], &options[..]].concat();
    Way::Bus.wait(VMD, Way::Bus.call(VMD, "PromoteVm", &promote)).ok();
    assert_eq!(banger(&["run", "--rm", "--name", "t-derived", name]).ok(), "promoted\n");
    banger(&["image", "promote", "--force", "--command", "tac /promoted", "-l", "a=b", vm.name(), name]).ok();
    let config = json(&["image", "show", name])["config"].clone();
    assert_eq!((config["cmd"][0].as_str(), config["labels"]["a"].as_str()), (Some("tac"), Some("b")));
    let bad = ["ssa{sv}", vm.name(), name, "1", "environment", "a{ss}", "1", "", "x"];
    assert_eq!(error_name(VMD, "PromoteVm", &bad), "org.freedesktop.DBus.Error.InvalidArgs");
    // The id of an image of layers comes from what those say.
    sh(&format!("skopeo copy -q --src-tls-verify=false docker://{BUSYBOX} oci-archive:/srv/t-derive.tar"))
        .ok();
    let import = ["ssa{sv}", "/srv/t-derive.tar", "t-derive-oci", "1", "user", "s", "root"];
    Way::Bus.wait(IMAGED, Way::Bus.call(IMAGED, "Import", &import)).failed(&["banger image derive"]);
    sh("rm /srv/t-derive.tar").ok();
}
