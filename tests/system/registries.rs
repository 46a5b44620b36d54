//! Registries as they are in the world: with TLS, passwords and tokens, behind mirrors and proxies,
//! slow, busy and cut off.

use std::fs;
use std::path::{Path, PathBuf};
use std::sync::atomic::Ordering;
use std::time::{Duration, SystemTime};

use banger_api::IMAGED;
use banger_tests::between::{Between, Fate, Request, answer};
use banger_tests::registry::{Authority, Door, IDENTITY, PAIR, PASSWORD, Registry, Tokens, USER, Wire};
use banger_tests::{Way, as_user, banger, eventually, job_property, json, oci, run, sh, start};

mod alone;

const LAB: &str = "127.0.0.1:5000";
const MIB: u64 = 1 << 20;

/// A file or directory of the admin's that goes with the test.
struct Placed(PathBuf);

impl Placed {
    fn file(path: &str, text: &str) -> Self {
        let path = PathBuf::from(path);
        fs::create_dir_all(path.parent().expect("a directory")).expect("creates");
        fs::write(&path, text).expect("writes");
        Self(path)
    }

    /// `registries.conf.d/NAME.conf`.
    fn registries(name: &str, text: &str) -> Self {
        Self::file(&format!("/etc/banger/registries.conf.d/{name}.conf"), text)
    }

    /// `certs.d/REGISTRY` with these files.
    fn certificates(registry: &str, files: &[(&Path, &str)]) -> Self {
        let directory = PathBuf::from(format!("/etc/banger/certs.d/{registry}"));
        fs::create_dir_all(&directory).expect("creates");
        for (file, name) in files {
            fs::copy(file, directory.join(name)).expect("copies");
        }
        sh(&format!("chmod -R a+rX {}", directory.display())).ok();
        Self(directory)
    }
}

impl Drop for Placed {
    fn drop(&mut self) {
        let _ = fs::remove_dir_all(&self.0).or_else(|_| fs::remove_file(&self.0));
    }
}

/// An image whose bytes no other test has, and no earlier run had.
fn image(name: &str, size: u64) -> oci::Crafted {
    let seed = format!("{name} {:?} ", SystemTime::now());
    let content: Vec<u8> = seed.bytes().cycle().take(size as usize).collect();
    oci::push(name, &oci::tar(&[("data", &content)]))
}

/// Pulls, and removes again.
#[track_caller]
fn pulls(reference: &str) {
    banger(&["pull", reference]).ok();
    banger(&["image", "rm", reference]).ok();
}

/// Starts a pull by `busctl`, and returns its job.
#[track_caller]
fn pull_job(reference: &str) -> String {
    let started = Way::Bus.call(IMAGED, "Pull", &["sa{sv}", reference, "0"]).ok();
    started.split('"').nth(1).expect("a job").to_owned()
}

fn wait(job: &str) -> banger_tests::Done {
    Way::Bus.call_at(IMAGED, job, banger_api::job::INTERFACE, "Wait", &[])
}

fn cancel(job: &str) {
    Way::Bus.call_at(IMAGED, job, banger_api::job::INTERFACE, "Cancel", &[]).ok();
    assert_ne!(wait(job).status, 0);
    assert_eq!(job_property(IMAGED, job, "State"), "v s \"canceled\"\n");
}

/// The layer's first answer is held after so many bytes.
fn hold_layer(layer: &str, bytes: u64) -> impl Fn(&Request, usize) -> Fate + Send + Sync + 'static {
    let layer = layer.to_owned();
    move |request, before| match request.path().contains(&layer) && before == 0 {
        true => Fate::Hold(bytes),
        false => Fate::Pass,
    }
}

fn partial(layer: &str) -> PathBuf {
    Path::new("/var/lib/banger/imaged/blobs/partial").join(layer)
}

fn arrived(layer: &str) -> u64 {
    fs::metadata(partial(layer)).map_or(0, |metadata| metadata.len())
}

#[test]
fn certificates_are_checked() {
    let crafted = image("t-tls", 1000);
    let authority = Authority::new();
    let registry = Registry::start(Wire::Tls(&authority), Door::Open);
    let at = registry.at("lab");
    let reference = crafted.reference.replace(LOCAL, &at);
    banger(&["pull", &reference]).refused(&["certificate", "/etc/banger/certs.d", &at]);
    // On this host plain HTTP would do, but a wrong certificate does not.
    let loopback = crafted.reference.replace(LOCAL, &registry.at("localhost"));
    banger(&["pull", &loopback]).refused(&["certificate"]);
    {
        let _trusted = Placed::certificates(&at, &[(&authority.certificate(), "ca.crt")]);
        pulls(&reference);
    }
    {
        // As any program on this host would have it.
        let _trusted = Placed(PathBuf::from("/usr/local/share/ca-certificates/t-tls.crt"));
        fs::copy(authority.certificate(), &_trusted.0).expect("copies");
        sh("update-ca-certificates 2>&1").ok();
        pulls(&reference);
    }
    sh("update-ca-certificates --fresh 2>&1").ok();
    banger(&["pull", &reference]).refused(&["certificate"]);
    let _named =
        Placed::registries("t-tls", &format!("[[registry]]\nlocation = \"{at}\"\ninsecure = true\n"));
    pulls(&reference);
}

#[test]
fn a_registry_may_ask_who_we_are() {
    let crafted = image("t-mtls", 1000);
    let authority = Authority::new();
    let registry = Registry::start(Wire::MutualTls(&authority), Door::Open);
    let at = registry.at("lab");
    let reference = crafted.reference.replace(LOCAL, &at);
    let (ours, key) = authority.sign("ours");
    let ca = authority.certificate();
    {
        let _trusted = Placed::certificates(&at, &[(&ca, "ca.crt")]);
        banger(&["pull", &reference]).refused(&[&at]);
    }
    let _known = Placed::certificates(&at, &[(&ca, "ca.crt"), (&ours, "ours.cert"), (&key, "ours.key")]);
    pulls(&reference);
}

#[test]
fn plain_http_is_only_spoken_where_it_was_named() {
    let crafted = image("t-plain", 1000);
    let registry = Registry::start(Wire::Plain, Door::Open);
    let at = registry.at("lab");
    let reference = crafted.reference.replace(LOCAL, &at);
    banger(&["pull", &reference]).refused(&["does not speak TLS", "insecure = true"]);
    banger(&["pull", "--insecure", &reference]).ok();
    banger(&["image", "rm", &reference]).ok();
    let insecure = ["sa{sv}", &reference, "1", "insecure", "b", "true"];
    Way::Bus.wait(IMAGED, Way::Bus.call(IMAGED, "Pull", &insecure)).ok();
    banger(&["image", "rm", &reference]).ok();
    banger(&["pull", &reference]).refused(&["does not speak TLS"]);
    // The name of the host alone is not this port of it.
    let _other = Placed::registries("t-plain-a", "[[registry]]\nlocation = \"lab\"\ninsecure = true\n");
    banger(&["pull", &reference]).refused(&["does not speak TLS"]);
    let _named =
        Placed::registries("t-plain-b", &format!("[[registry]]\nlocation = \"{at}\"\ninsecure = true\n"));
    pulls(&reference);
}

#[test]
fn passwords_of_users_are_theirs() {
    let crafted = image("t-password", 1000);
    let registry = Registry::start(Wire::Plain, Door::Password);
    let at = registry.at("localhost");
    let reference = crafted.reference.replace(LOCAL, &at);
    let pull =
        |user: &str| as_user(user, &format!("cd; banger pull {reference} && banger image rm {reference}"));
    pull("alice").refused(&["anonymous", "podman login"]);
    assert_eq!(
        banger_tests::job_error(IMAGED, "Pull", &["sa{sv}", &reference, "0"]),
        "org.banger.Error.RegistryDenied"
    );

    let monitor = tempfile::tempdir().expect("tempdir");
    let heard = monitor.path().join("heard");
    let listening =
        start("sh", &["-c", &format!("timeout 20 dbus-monitor --system --pcap > {}", heard.display())]);
    eventually("the monitor listens", || fs::metadata(&heard).is_ok_and(|heard| heard.len() > 0));
    // As `docker login` writes it.
    let docker = "/home/alice/.docker/config.json";
    {
        let _file = Placed::file(docker, &format!(r#"{{"auths": {{"{at}": {{"auth": "{PAIR}"}}}}}}"#));
        pull("alice").ok();
        // Nobody profits from what somebody else may see.
        banger(&["pull", &reference]).refused(&["anonymous"]);
    }
    {
        let wrong = format!(r#"{{"auths": {{"{at}": {{"username": "{USER}", "password": "x"}}}}}}"#);
        let _file = Placed::file(docker, &wrong);
        pull("alice").refused(&["the user \"ali\""]);
    }
    // As `podman login` writes it, for a part of the registry.
    {
        let text = format!(r#"{{"auths": {{"{at}/t-password": {{"auth": "{PAIR}"}}}}}}"#);
        let _file = Placed::file("/home/alice/.config/containers/auth.json", &text);
        pull("alice").ok();
    }
    // By a helper, which is asked for this registry and told so on its standard input.
    {
        let script = format!(
            "#!/bin/sh\n[ \"$1\" = get ] && [ \"$(cat)\" = {at} ] || {{ echo credentials not found in native keychain; exit 1; }}\n\
             echo '{{\"ServerURL\": \"{at}\", \"Username\": \"{USER}\", \"Secret\": \"{PASSWORD}\"}}'\n"
        );
        let helper = Placed::file("/usr/local/bin/docker-credential-t-lab", &script);
        sh(&format!("chmod 755 {}", helper.0.display())).ok();
        let _file = Placed::file(docker, &format!(r#"{{"credHelpers": {{"{at}": "t-lab"}}}}"#));
        pull("alice").ok();
        let _file = Placed::file(docker, r#"{"credsStore": "t-lab"}"#);
        pull("alice").ok();
        let _file = Placed::file(docker, r#"{"credsStore": "t-missing"}"#);
        pull("alice").failed(&["docker-credential-t-missing", "anonymous"]);
    }
    listening.join().expect("joins");
    let heard = fs::read(&heard).expect("reads");
    let says = |words: &str| heard.windows(words.len()).any(|window| window == words.as_bytes());
    assert!(says(&reference), "the monitor heard the calls");
    let journal = run("journalctl", &["-u", "banger-imaged", "-o", "cat", "--no-pager"]).ok();
    for secret in [PASSWORD, PAIR] {
        assert!(!says(secret) && !journal.contains(secret), "{secret}");
    }
}

#[test]
fn passwords_of_the_host() {
    let crafted = image("t-host-password", 1000);
    let registry = Registry::start(Wire::Plain, Door::Password);
    let at = registry.at("localhost");
    let reference = crafted.reference.replace(LOCAL, &at);
    let path = "/etc/banger/auth.json";
    let _file = Placed::file(path, &format!(r#"{{"auths": {{"{at}": {{"auth": "{PAIR}"}}}}}}"#));
    sh(&format!("chown banger-imaged {path} && chmod 400 {path}")).ok();
    pulls(&reference);
    // A name of the same host is another registry.
    let lab = registry.at("lab");
    let reference = crafted.reference.replace(LOCAL, &lab);
    banger(&["pull", "--insecure", &reference]).refused(&["anonymous"]);
    // Callers cannot have the host's credentials sent where anybody listens; the admin can.
    let _file = Placed::file(path, &format!(r#"{{"auths": {{"{lab}": {{"auth": "{PAIR}"}}}}}}"#));
    banger(&["pull", "--insecure", &reference]).refused(&["anonymous"]);
    let conf = format!("[[registry]]\nlocation = \"{lab}\"\ninsecure = true\n");
    let _named = Placed::registries("t-host-password", &conf);
    pulls(&reference);
}

#[test]
fn tokens_are_fetched_and_renewed() {
    let crafted = image("t-token", 3 * MIB);
    let tokens = Tokens::start();
    let registry = Registry::start(Wire::Plain, Door::Token(&tokens));
    // The token that comes with the layer's request is no longer good.
    let between = Between::open(&registry.at("localhost"), {
        let layer = crafted.layer.clone();
        move |request, before| match request.path().contains(&layer) && before == 0 {
            true => Fate::Forge("Bearer e30.e30.e30".into()),
            false => Fate::Pass,
        }
    });
    let at = format!("localhost:{}", between.port);
    let reference = crafted.reference.replace(LOCAL, &at);
    banger(&["pull", &reference]).refused(&["anonymous"]);
    assert_eq!(tokens.given.load(Ordering::SeqCst), 0);
    let _file = Placed::file(
        "/root/.docker/config.json",
        &format!(r#"{{"auths": {{"{at}": {{"auth": "{PAIR}"}}}}}}"#),
    );
    pulls(&reference);
    assert_eq!(tokens.given.load(Ordering::SeqCst), 2);
    // The password went to the one who gives out tokens, and not to the registry.
    let shown = |request: &Request| request.header("authorization").unwrap_or_default().to_owned();
    assert!(
        between.requests().iter().map(shown).all(|shown| shown.is_empty() || shown.starts_with("Bearer "))
    );
}

#[test]
fn platforms_are_chosen_or_refused() {
    let pull = |platform: &str, name: &str, reference: &str| {
        banger(&["pull", "--platform", platform, "--name", name, reference])
    };
    let multi = "localhost:5000/multi:latest";
    pull("linux/arm64", "t-arm", multi).ok();
    assert_eq!(json(&["image", "show", "t-arm"])["architecture"], "arm64");
    banger(&["image", "rm", "t-arm"]).ok();
    pull("linux/s390x", "t-s390x", multi).refused(&["linux/s390x", "it offers linux/amd64, linux/arm64"]);
    pull("linux/arm64", "t-arm", banger_tests::BUSYBOX).refused(&["linux/arm64", "it offers linux/amd64"]);
    pull("windows/amd64", "t-windows", multi).refused(&["windows/amd64", "nothing else runs here"]);
}

/// The same image as docker describes it.
#[test]
fn dockers_own_manifests_are_read() {
    let shown = |reference: &str| {
        banger(&["pull", reference]).ok();
        json(&["image", "show", reference])
    };
    let (oci, docker) = (shown(banger_tests::BUSYBOX), shown("localhost:5000/busybox:docker"));
    assert_ne!(oci["id"], docker["id"]);
    assert_eq!(oci["rootfs_digest"], docker["rootfs_digest"]);
    assert_eq!(oci["config"]["cmd"], docker["config"]["cmd"]);
}

#[test]
fn identity_tokens_are_exchanged() {
    let crafted = image("t-identity", 1000);
    let tokens = Tokens::start();
    let registry = Registry::start(Wire::Plain, Door::Token(&tokens));
    let at = registry.at("localhost");
    let reference = crafted.reference.replace(LOCAL, &at);
    let file = |token: &str| {
        let text = format!(r#"{{"auths": {{"{at}": {{"identitytoken": "{token}"}}}}}}"#);
        Placed::file("/tmp/t-identity/auth.json", &text)
    };
    let pull = || sh(&format!("REGISTRY_AUTH_FILE=/tmp/t-identity/auth.json banger pull {reference}"));
    let _file = file("another lamp");
    pull().refused(&["your identity token"]);
    let _file = file(IDENTITY);
    pull().ok();
    assert_eq!(tokens.given.load(Ordering::SeqCst), 1);
    banger(&["image", "rm", &reference]).ok();
}

#[test]
fn a_redirect_takes_no_secrets_along() {
    let crafted = image("t-redirect", MIB);
    let registry = Registry::start(Wire::Plain, Door::Password);
    let elsewhere = Between::open(LAB, |_, _| Fate::Pass);
    let there = elsewhere.port;
    // The same host, another port.
    let between = Between::open(&registry.at("localhost"), move |request, _| match request.is_blob() {
        true => answer(
            "307 Temporary Redirect",
            &[("Location", &format!("http://localhost:{there}{}", request.path()))],
        ),
        false => Fate::Pass,
    });
    let at = format!("localhost:{}", between.port);
    let _file = Placed::file(
        "/root/.config/containers/auth.json",
        &format!(r#"{{"auths": {{"{at}": {{"auth": "{PAIR}"}}}}}}"#),
    );
    pulls(&crafted.reference.replace(LOCAL, &at));
    assert!(between.blobs().iter().all(|request| request.header("authorization").is_some()));
    assert_eq!(elsewhere.blobs().len(), 2, "layer and configuration");
    for request in elsewhere.requests() {
        assert_eq!(request.header("authorization"), None, "{}", request.head);
        assert_eq!(request.header("referer"), None, "{}", request.head);
    }
}

#[test]
fn mirrors_come_first() {
    let crafted = image("t-mirror", 1000);
    let name = "docker.io/t-mirrored/t-mirror:latest";
    let conf = |mirrors: &[&str]| {
        let mirrors: String =
            mirrors.iter().map(|at| format!("[[registry.mirror]]\nlocation = \"{at}\"\n")).collect();
        format!("[[registry]]\nprefix = \"docker.io/t-mirrored\"\nlocation = \"localhost:1\"\n{mirrors}")
    };
    let mirror = Between::open(LAB, |_, _| Fate::Pass);
    // Nobody listens at the first one.
    let places = ["localhost:1/none", &format!("localhost:{}", mirror.port)];
    let _file = Placed::registries("t-mirror", &conf(&places));
    banger(&["pull", "t-mirrored/t-mirror"]).ok();
    assert_eq!(json(&["image", "show", "t-mirrored/t-mirror"])["name"], name);
    assert!(mirror.requests().iter().any(|request| request.path().contains(&crafted.layer)));
    banger(&["image", "rm", name]).ok();
    let _file = Placed::registries("t-mirror", &conf(&places[..1]));
    banger(&["pull", "t-mirrored/t-mirror"]).refused(&["localhost:1"]);
    let _file =
        Placed::registries("t-mirror", "[[registry]]\nprefix = \"docker.io/t-mirrored\"\nblocked = true\n");
    banger(&["pull", "t-mirrored/t-mirror"]).refused(&["blocks docker.io/t-mirrored"]);
}

#[test]
fn busy_registries_are_waited_for() {
    let crafted = image("t-busy", 1000);
    let between = Between::open(LAB, |request, before| match (request.path(), before) {
        (path, 0) if path.contains("/manifests/") => answer("429 Too Many Requests", &[("Retry-After", "2")]),
        (path, 1) if path.contains("/manifests/") => answer("503 Service Unavailable", &[]),
        _ => Fate::Pass,
    });
    pulls(&crafted.reference.replace(LOCAL, &format!("localhost:{}", between.port)));
    let asked: Vec<_> =
        between.requests().into_iter().filter(|request| request.path().contains("/manifests/")).collect();
    assert_eq!(asked.len(), 3);
    assert!(asked[1].when - asked[0].when >= Duration::from_secs(2));
    assert!(asked[2].when > asked[1].when);

    // As a date; and longer than anybody wants to wait.
    let between = Between::open(LAB, |request, before| match (request.path(), before) {
        (path, 0) if path.contains("/manifests/") => {
            let date = sh("date -u -d '+3 seconds' '+%a, %d %b %Y %H:%M:%S GMT'").ok();
            answer("429 Too Many Requests", &[("Retry-After", date.trim())])
        }
        (path, _) if path.contains("/blobs/") => answer("429 Too Many Requests", &[("Retry-After", "3600")]),
        _ => Fate::Pass,
    });
    let reference = crafted.reference.replace(LOCAL, &format!("localhost:{}", between.port));
    banger(&["pull", &reference]).refused(&["429", "try again in 3600 s"]);
    let asked = between.requests();
    assert!(asked[1].when - asked[0].when >= Duration::from_secs(1));
    assert_eq!(between.blobs().len(), 1);
}

#[test]
fn broken_downloads_go_on() {
    let crafted = image("t-broken", 5 * MIB);
    let layer = crafted.layer.clone();
    let between =
        Between::open(LAB, move |request, before| match request.path().contains(&layer) && before < 2 {
            true => Fate::Cut(2 * MIB),
            false => Fate::Pass,
        });
    pulls(&crafted.reference.replace(LOCAL, &format!("localhost:{}", between.port)));
    let offsets: Vec<u64> = between
        .requests()
        .iter()
        .filter(|r| r.path().contains(&crafted.layer))
        .map(Request::offset)
        .collect();
    assert_eq!(offsets, [0, 2 * MIB, 4 * MIB]);
    assert_eq!(arrived(&crafted.layer), 0);
}

/// Nothing that an earlier download left is trusted beyond the digest.
#[test]
fn spoiled_leftovers_are_thrown_away() {
    let crafted = image("t-spoiled", 3 * MIB);
    let between = Between::open(LAB, hold_layer(&crafted.layer, MIB));
    let reference = crafted.reference.replace(LOCAL, &format!("localhost:{}", between.port));
    let job = pull_job(&reference);
    eventually("a part arrives", || arrived(&crafted.layer) == MIB);
    cancel(&job);
    sh(&format!(
        "printf x | dd of={} bs=1 seek=5000 conv=notrunc status=none",
        partial(&crafted.layer).display()
    ))
    .ok();
    pulls(&reference);
    let offsets: Vec<u64> = between
        .requests()
        .iter()
        .filter(|r| r.path().contains(&crafted.layer))
        .map(Request::offset)
        .collect();
    assert_eq!(offsets, [0, MIB, 0]);
}

#[test]
fn who_gives_up_disturbs_no_other() {
    let crafted = image("t-shared", 3 * MIB);
    let between = Between::open(LAB, hold_layer(&crafted.layer, MIB));
    let reference = crafted.reference.replace(LOCAL, &format!("localhost:{}", between.port));
    let first = pull_job(&reference);
    eventually("a part arrives", || arrived(&crafted.layer) == MIB);
    let second = start("banger", &["--json", "pull", &reference]);
    let third = pull_job(&reference);
    // Whoever came later sees how far it is.
    let parts = format!("v a(stt) 1 \"sha256:{}\" {MIB} ", crafted.layer);
    eventually("all see the same", || job_property(IMAGED, &third, "Parts").starts_with(&parts));
    assert!(job_property(IMAGED, &third, "Progress").starts_with(&format!("v (tts) {MIB} ")));
    assert_eq!(job_property(IMAGED, &third, "Stage"), "v s \"download\"\n");
    cancel(&first);
    assert_eq!(between.abandoned(), 0);
    between.release();
    wait(&third).ok();
    second.join().expect("joins").ok();
    assert_eq!(between.blobs().len(), 2, "layer and configuration, each once");
    banger(&["image", "rm", &reference]).ok();
}

#[test]
fn the_last_who_gives_up_ends_it() {
    let crafted = image("t-given-up", 3 * MIB);
    let between = Between::open(LAB, hold_layer(&crafted.layer, MIB));
    let reference = crafted.reference.replace(LOCAL, &format!("localhost:{}", between.port));
    let jobs = [pull_job(&reference), pull_job(&reference)];
    eventually("a part arrives", || arrived(&crafted.layer) == MIB);
    for job in &jobs {
        eventually("both wait for it", || job_property(IMAGED, job, "Stage") == "v s \"download\"\n");
    }
    cancel(&jobs[0]);
    assert_eq!(between.abandoned(), 0);
    cancel(&jobs[1]);
    eventually("the connection is closed", || between.abandoned() == 1);
    // What arrived serves the next one.
    pulls(&reference);
    assert_eq!(between.blobs().iter().map(Request::offset).max(), Some(MIB));
}

#[test]
fn images_share_the_download_of_a_layer() {
    let crafted = image("t-layer-a", 3 * MIB);
    let bytes = fs::read(oci::registry_file(&crafted.layer)).expect("reads");
    let other = oci::push("t-layer-b", &bytes);
    assert_eq!(crafted.layer, other.layer);
    let between = Between::open(LAB, hold_layer(&crafted.layer, MIB));
    let at = format!("localhost:{}", between.port);
    let references = [&crafted, &other].map(|image| image.reference.replace(LOCAL, &at));
    let jobs = [pull_job(&references[0]), pull_job(&references[1])];
    for job in &jobs {
        let parts = format!("v a(stt) 1 \"sha256:{}\" {MIB} ", crafted.layer);
        eventually("both see it", || job_property(IMAGED, job, "Parts").starts_with(&parts));
    }
    cancel(&jobs[0]);
    between.release();
    wait(&jobs[1]).ok();
    let layers = between.blobs().into_iter().filter(|request| request.path().contains(&crafted.layer));
    assert_eq!(layers.count(), 1);
    banger(&["image", "rm", &references[1]]).ok();
}

/// A slow registry with as many layers as it likes leaves room for others.
#[test]
fn slow_pulls_delay_no_publication() {
    let slow: Vec<_> = (0..3).map(|number| image(&format!("t-slow-{number}"), 2 * MIB)).collect();
    let between = Between::open(LAB, |request, _| match request.is_blob() {
        true => Fate::Hold(0),
        false => Fate::Pass,
    });
    let at = format!("localhost:{}", between.port);
    let jobs: Vec<_> = slow.iter().map(|image| pull_job(&image.reference.replace(LOCAL, &at))).collect();
    eventually("all of them hang", || between.blobs().len() == jobs.len());
    pulls(&image("t-quick", 1000).reference);
    for job in &jobs {
        assert_eq!(job_property(IMAGED, job, "State"), "v s \"running\"\n");
        cancel(job);
    }
}

#[test]
fn a_terminal_shows_rate_and_time_left() {
    let crafted = image("t-rate", 3 * MIB);
    let between = Between::open(LAB, hold_layer(&crafted.layer, MIB));
    let reference = crafted.reference.replace(LOCAL, &format!("localhost:{}", between.port));
    let line = format!("banger pull {reference}");
    let terminal = start("script", &["-qec", &line, "/dev/null"]);
    eventually("a part arrives", || arrived(&crafted.layer) == MIB);
    std::thread::sleep(Duration::from_secs(1));
    between.release();
    let shown = terminal.join().expect("joins").ok();
    let paced = shown.split("download 1M/3M, ").nth(1).unwrap_or_default();
    assert!(paced.contains("/s, ") && paced.contains(" left"), "{shown:?}");
    banger(&["image", "rm", &reference]).ok();
}

/// Documents that no registry of good will would send.
#[test]
fn hostile_documents_are_refused() {
    let layers = |count: usize| {
        let layer = format!(
            r#"{{"mediaType":"application/vnd.oci.image.layer.v1.tar","size":1,"digest":"sha256:{}"}}"#,
            "a".repeat(64)
        );
        let config = layer.replace("image.layer.v1.tar", "image.config.v1+json");
        format!(r#"{{"schemaVersion":2,"config":{config},"layers":[{}]}}"#, vec![layer; count].join(","))
    };
    for (document, words) in [
        (layers(100_000), "more than 4194304 bytes"),
        (layers(1000), "1000 layers"),
        (layers(1).replace("sha256", "sha512"), "only sha256 is known"),
        (layers(1).replace(r#""size":1"#, r#""size":-1"#), "not JSON of the expected form"),
        (layers(1).replace(r#""size":1"#, r#""size":99999999999999"#), "more than"),
        (layers(1).replace("layer.v1.tar", "layer.nondistributable.v1.tar"), "may not hand out"),
        (layers(1).replace("layer.v1.tar", "layer.v1.tar+lz77"), "unknown type"),
        ("[".repeat(100_000), "not JSON of the expected form"),
        (format!(r#"{{"schemaVersion":2,"manifests":[{}]}}"#, "{},".repeat(1000) + "{}"), "expected form"),
    ] {
        let head =
            format!("HTTP/1.1 200 OK\r\nContent-Length: {}\r\nConnection: close\r\n\r\n", document.len());
        let bytes = [head.into_bytes(), document.into_bytes()].concat();
        let between = Between::open(LAB, move |_, _| Fate::Answer(bytes.clone()));
        banger(&["pull", &format!("localhost:{}/hostile", between.port)]).refused(&[words]);
    }
    // Without an end.
    let between = Between::open(LAB, |_, _| {
        Fate::Flood(b"HTTP/1.1 200 OK\r\nConnection: close\r\n\r\n[".to_vec(), vec![b' '; 1 << 16])
    });
    banger(&["pull", &format!("localhost:{}/endless", between.port)]).refused(&["more than 4194304 bytes"]);
}

const LOCAL: &str = "localhost:5000";
