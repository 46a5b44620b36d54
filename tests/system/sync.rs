//! What the host brings its guests up with: files, keys, certificates, and what work disks begin
//! with.

use std::fs;
use std::os::unix::fs::{MetadataExt, PermissionsExt};
use std::path::{Path, PathBuf};

use banger_api::VMD;
use banger_tests::{BUSYBOX, Vm, Way, banger, error_name, json, run, sh};

/// A directory for a test, and a drop-in of vmd's configuration. Both go with it.
struct Setup {
    directory: PathBuf,
    conf: PathBuf,
}

impl Setup {
    fn new(name: &str) -> Self {
        let drop_ins = Path::new("/etc/banger/vmd.conf.d");
        let setup =
            Self { directory: Path::new("/srv").join(name), conf: drop_ins.join(format!("90-{name}.conf")) };
        setup.remove();
        fs::create_dir_all(drop_ins).expect("makes");
        fs::create_dir_all(&setup.directory).expect("makes");
        setup
    }

    fn conf(&self, text: &str) {
        fs::write(&self.conf, text.replace("DIR", &self.directory.to_string_lossy())).expect("writes");
    }

    fn path(&self, name: &str) -> PathBuf {
        self.directory.join(name)
    }

    fn write(&self, name: &str, text: &str) {
        let path = self.path(name);
        fs::write(&path, text).expect("writes");
        fs::set_permissions(&path, fs::Permissions::from_mode(0o644)).expect("sets");
    }

    fn remove(&self) {
        let _ = fs::remove_file(&self.conf);
        let _ = fs::remove_dir_all(&self.directory);
    }
}

impl Drop for Setup {
    fn drop(&mut self) {
        self.remove();
    }
}

#[test]
fn guests_are_brought_up_with_what_the_host_has_now() {
    let setup = Setup::new("t-sync");
    setup.write("hello", "one\n");
    setup.write("keys", "# of all\nssh-ed25519 AAAAall all@host\n");
    setup.write("own.pub", "ssh-ed25519 AAAAown own@host\n");
    setup.write("ca.pem", "a CA\n-----BEGIN CERTIFICATE-----\nMIIB\n-----END CERTIFICATE-----\n");
    setup.write("secret", "secret\n");
    let secret = setup.path("secret");
    fs::set_permissions(&secret, fs::Permissions::from_mode(0o600)).expect("sets");
    setup.conf(
        "[sync]\nauthorized_keys = [\"DIR/keys\"]\nca_certificates = [\"DIR/ca.pem\"]\n\
         git = { name = \"A Person\", email = \"a@example.org\" }\ntimezone = \"Europe/Berlin\"\n\
         [[file_sync]]\nhost = \"DIR/hello\"\nguest = \"/etc/t-sync/hello\"\nmode = \"0640\"\nowner = \"nobody\"\n\
         [[file_sync]]\nhost = \"DIR/secret\"\nguest = \"/root/secret\"\n\
         [[file_sync]]\nhost = \"DIR/missing\"\nguest = \"/etc/t-sync/missing\"\n",
    );
    let vm = Vm::named("t-sync");
    let own = setup.path("own.pub");
    let own = own.to_str().expect("text");
    banger(&["run", "-d", "--name", vm.name(), "--ssh-key", own, BUSYBOX]).ok();
    assert_eq!(vm.sh("cat /etc/t-sync/hello; stat -c '%a %U' /etc/t-sync/hello").ok(), "one\n640 nobody\n");
    let keys = vm.sh("cat /root/.ssh/authorized_keys; stat -c %a /root/.ssh").ok();
    assert!(keys.contains("AAAAall all@host") && keys.contains("AAAAown own@host"), "{keys}");
    assert!(keys.ends_with("700\n"), "{keys}");
    let text = vm.sh("cat /etc/gitconfig /etc/ssl/certs/ca-certificates.crt; echo $TZ").ok();
    assert!(text.contains("email = \"a@example.org\"") && text.contains("MIIB"), "{text}");
    assert!(text.ends_with("Europe/Berlin\n"), "{text}");

    // What is not there is said, with the remedy, and keeps nothing from starting.
    let checked = json(&["vm", "check", vm.name()]);
    assert_eq!(checked["problems"], serde_json::json!([]));
    let warnings = checked["warnings"].to_string();
    let remedy = format!("setfacl -m u:banger-vmd:r {}", secret.display());
    assert!(warnings.contains(&remedy) && warnings.contains("t-sync/missing: No such file"), "{warnings}");
    assert!(banger(&["vm", "check", vm.name()]).stderr.contains(&remedy));
    for unit in ["banger-vmd.service", &vm.unit()] {
        let log = sh(&format!("journalctl -u {unit} -o cat --since -5min")).text();
        assert!(log.contains(&remedy), "{unit}: {log}");
    }
    assert_ne!(vm.sh("test -e /root/secret").status, 0);

    // The next start has what there is then.
    run("setfacl", &["-m", "u:banger-vmd:r", secret.to_str().expect("text")]).ok();
    setup.write("hello", "two\n");
    Way::Bus.call(VMD, "SetVm", &["sa{sv}", vm.name(), "1", "authorized_keys", "as", "0"]).ok();
    banger(&["restart", vm.name()]).ok();
    assert_eq!(vm.sh("cat /etc/t-sync/hello /root/secret").ok(), "two\nsecret\n");
    let keys = vm.sh("cat /root/.ssh/authorized_keys").ok();
    assert!(keys.contains("AAAAall") && !keys.contains("AAAAown"), "{keys}");

    // Unless it is required.
    setup.conf("[[file_sync]]\nhost = \"DIR/missing\"\nguest = \"/etc/x\"\nrequired = true\n");
    banger(&["stop", vm.name()]).ok();
    banger(&["start", vm.name()]).refused(&["DIR/missing".replace("DIR", "/srv/t-sync").as_str()]);
    let checked = Way::Bus.call(VMD, "CheckVm", &["s", vm.name()]).ok();
    assert!(checked.contains("org.banger.Error.NotReady") && checked.contains("t-sync/missing"), "{checked}");
}

#[test]
fn keys_are_public_ones() {
    let vm = Vm::named("t-no-key");
    let key = ["ssa{sv}", vm.name(), BUSYBOX, "1", "authorized_keys", "as", "1", "AAAAC3Nz"];
    let refused = error_name(VMD, "CreateVm", &key);
    assert_eq!(refused, "org.freedesktop.DBus.Error.InvalidArgs");
    banger(&["vm", "create", "--ssh-key", "/no/such", BUSYBOX]).refused(&["/no/such"]);
}

/// The images of seeds: names, inodes, and when their content changed.
fn seeds() -> Vec<(String, u64, i64)> {
    let entries = fs::read_dir("/var/lib/banger/vmd/seeds").expect("lists");
    let of = |entry: fs::DirEntry| {
        let metadata = entry.metadata().expect("reads");
        (entry.file_name().to_string_lossy().into_owned(), metadata.ino(), metadata.mtime_nsec())
    };
    entries.map(|entry| of(entry.expect("reads"))).collect()
}

#[test]
fn work_disks_begin_with_the_seed() {
    let setup = Setup::new("t-seed");
    setup.conf("[work]\nseed = \"DIR/seed\"\n");
    let vms = ["t-seed-one", "t-seed-two", "t-seed-three"].map(Vm::named);
    let [one, two, three] = &vms;
    let refused = banger(&["vm", "create", "--name", one.name(), "--work", "256M", BUSYBOX]);
    refused.refused(&["/srv/t-seed/seed, is not there: make it"]);
    // Without a work disk nobody needs it.
    banger(&["vm", "create", "--name", one.name(), BUSYBOX]).ok();
    banger(&["rm", one.name()]).ok();

    fs::create_dir_all(setup.path("seed/sub")).expect("makes");
    setup.write("seed/sub/file", "first\n");
    sh("cd /srv/t-seed/seed && chown -R 65534:65534 sub && chmod 750 sub && ln -s sub/file link").ok();
    // Closed to vmd.
    let look = "cat /work/link; stat -c '%a %u:%g' /work/sub; df -m /work | awk 'END { print ($2 > 400) }'";
    banger(&["vm", "create", "--name", one.name(), "--work", "256M", BUSYBOX])
        .refused(&["setfacl -R -m u:banger-vmd:rX /srv/t-seed/seed"]);
    sh("setfacl -R -m u:banger-vmd:rX /srv/t-seed/seed").ok();
    let small = banger(&["vm", "create", "--name", one.name(), "--work", "64M", BUSYBOX]);
    small.refused(&["too small", "at least"]);
    banger(&["run", "-d", "--name", one.name(), "--work", "256M", BUSYBOX]).ok();
    assert_eq!(one.sh(look).ok(), "first\n750 65534:65534\n0\n");
    one.sh("echo changed >/work/sub/file; sync").ok();

    // The next one has a copy of the same image, which the first has not touched.
    let image = seeds();
    assert_eq!(image.len(), 1, "{image:?}");
    let work = ["ssa{sv}", two.name(), BUSYBOX, "1", "work", "t", "536870912"];
    let created = Way::Bus.call(VMD, "CreateVm", &work);
    Way::Bus.wait(VMD, created).ok();
    assert_eq!(seeds(), image);
    banger(&["start", two.name()]).ok();
    assert_eq!(two.sh(look).ok(), "first\n750 65534:65534\n1\n");

    // A change of the directory is in new disks, and in no others.
    setup.write("seed/sub/file", "second\n");
    sh("setfacl -m u:banger-vmd:r /srv/t-seed/seed/sub/file").ok();
    banger(&["run", "-d", "--name", three.name(), "--work", "256M", BUSYBOX]).ok();
    assert_eq!(three.sh("cat /work/link").ok(), "second\n");
    let fresh = seeds();
    assert!(fresh.len() == 1 && fresh[0].0 != image[0].0, "{fresh:?}");
    banger(&["restart", one.name()]).ok();
    assert_eq!(one.sh("cat /work/link").ok(), "changed\n");
}
