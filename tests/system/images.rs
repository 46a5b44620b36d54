//! Images: pulls, imports, publication, references.

use banger_api::IMAGED;
use banger_tests::{BUSYBOX, Vm, Way, banger, job_property, json, nothing_is_staged, oci, run, sh, start};

/// How often the registry has been asked for blobs of a repository since a time.
fn blob_requests(repository: &str, since: &str) -> usize {
    let log = run("journalctl", &["-u", "docker-registry", "--since", since, "-o", "cat", "--no-pager"]).ok();
    let request = format!("GET /v2/{repository}/blobs/");
    log.lines().filter(|line| line.contains(&request) && line.contains("HTTP/1.1\" 200")).count()
}

fn now() -> String {
    format!("@{}", sh("date +%s.%N").ok().trim())
}

#[test]
fn a_pull_is_listed_shown_and_removed() {
    let crafted = oci::push("t-simple", &oci::tar(&[("hello", b"hello\n")]));
    banger(&["pull", &crafted.reference]).ok();
    let listed = json(&["image", "ls"]);
    let names: Vec<_> = listed.as_array().expect("a list").iter().map(|image| &image["name"]).collect();
    assert!(names.contains(&&serde_json::Value::from(crafted.reference.as_str())), "{listed}");
    let shown = json(&["image", "show", &crafted.reference]);
    assert!(shown.to_string().contains("linux") || shown.to_string().contains("amd64"), "{shown}");
    banger(&["image", "rm", &crafted.reference]).ok();
    banger(&["image", "show", &crafted.reference]).refused(&["t-simple"]);
}

#[test]
fn two_pulls_of_one_image_download_its_blobs_once() {
    let content = vec![b'x'; 3 << 20];
    let crafted = oci::push("t-once", &oci::tar(&[("data", &content)]));
    let _ = banger(&["image", "rm", &crafted.reference]);
    let since = now();
    let pulls: Vec<_> = (0..4).map(|_| start("banger", &["pull", &crafted.reference])).collect();
    for pull in pulls {
        pull.join().expect("joins").ok();
    }
    // One layer and one configuration.
    assert_eq!(blob_requests("t-once", &since), 2);
}

/// A registry that takes connections and never answers: a pull from it lasts until it is canceled.
#[test]
fn a_pull_that_hangs_delays_no_other() {
    let silent = std::net::TcpListener::bind("127.0.0.1:0").expect("listens");
    let reference = format!("localhost:{}/silent:latest", silent.local_addr().expect("bound").port());
    let started = Way::Bus.call(IMAGED, "Pull", &["sa{sv}", &reference, "0"]).ok();
    let hanging = started.split('"').nth(1).expect("a job");
    let (_connection, _) = silent.accept().expect("imaged calls");

    let crafted = oci::push("t-overlap", &oci::tar(&[("data", &[b'y'; 1 << 20])]));
    let _ = banger(&["image", "rm", &crafted.reference]);
    banger(&["pull", &crafted.reference]).ok();
    banger(&["image", "rm", &crafted.reference]).ok();

    assert_eq!(job_property(IMAGED, hanging, "State"), "v s \"running\"\n");
    Way::Bus.call_at(IMAGED, hanging, banger_api::job::INTERFACE, "Cancel", &[]).ok();
    assert_ne!(Way::Bus.call_at(IMAGED, hanging, banger_api::job::INTERFACE, "Wait", &[]).status, 0);
    assert_eq!(job_property(IMAGED, hanging, "State"), "v s \"canceled\"\n");
}

#[test]
fn a_name_is_published_once() {
    let dir = tempfile::tempdir().expect("tempdir");
    let files: Vec<_> = (0..4u8)
        .map(|index| {
            let path = dir.path().join(format!("{index}.tar"));
            std::fs::write(&path, oci::tar(&[("which", &[b'0' + index])])).expect("writes");
            path.display().to_string()
        })
        .collect();
    let _ = banger(&["image", "rm", "t-published"]);
    let imports: Vec<_> = files
        .iter()
        .map(|file| start("banger", &["image", "import", "--name", "t-published", file]))
        .collect();
    let outcomes: Vec<_> = imports.into_iter().map(|import| import.join().expect("joins")).collect();
    assert_eq!(outcomes.iter().filter(|done| done.status == 0).count(), 1, "{outcomes:#?}");
    for loser in outcomes.into_iter().filter(|done| done.status != 0) {
        loser.refused(&["t-published"]);
    }
    nothing_is_staged();
    banger(&["image", "rm", "t-published"]).ok();
}

#[test]
fn an_image_in_use_stays() {
    let crafted = oci::push("t-used", &oci::tar(&[("hello", b"hello\n")]));
    banger(&["pull", &crafted.reference]).ok();
    let vm = Vm::named("t-user-of-image");
    banger(&["vm", "create", "--name", vm.name(), &crafted.reference]).ok();
    banger(&["image", "rm", &crafted.reference]).refused(&["t-user-of-image"]);
    let name = banger_tests::error_name(IMAGED, "RemoveImage", &["s", &crafted.reference]);
    assert_eq!(name, "org.banger.Error.ImageInUse");
    banger(&["rm", vm.name()]).ok();
    banger(&["image", "rm", &crafted.reference]).ok();
}

#[test]
fn a_manifest_list_gives_this_machines_platform() {
    banger(&["pull", "localhost:5000/multi:latest"]).ok();
    let shown = json(&["image", "show", "localhost:5000/multi:latest"]).to_string();
    assert!(shown.contains("amd64") || shown.contains("x86_64"), "{shown}");
}

#[test]
fn images_have_several_names() {
    let (one, other) =
        (oci::push("t-tag-1", &oci::tar(&[("a", b"1")])), oci::push("t-tag-2", &oci::tar(&[("a", b"2")])));
    for image in [&one, &other] {
        banger(&["pull", &image.reference]).ok();
    }
    let _ = banger(&["image", "rm", "t-tagged"]);
    banger(&["image", "tag", &one.reference, "t-tagged"]).ok();
    let id = |name: &str| json(&["image", "show", name])["id"].clone();
    assert_eq!(id("t-tagged"), id(&one.reference));
    banger(&["image", "tag", &one.reference, "t-tagged"]).ok();
    banger(&["image", "tag", &other.reference, "t-tagged"]).refused(&["t-tagged"]);
    banger(&["image", "tag", &other.reference, "bad name"]).refused(&["bad name"]);
    let replace = ["ssa{sv}", &other.reference, "t-tagged", "1", "replace", "b", "true"];
    Way::Socket.call(IMAGED, "TagImage", &replace).ok();
    assert_eq!(id("t-tagged"), id(&other.reference));
    // A name that a pull gave goes on following its reference.
    banger(&["image", "tag", &one.reference, &one.reference]).ok();
    let moved = oci::push("t-tag-1", &oci::tar(&[("a", b"3")]));
    banger(&["pull", &moved.reference]).ok();
    // The image goes with its last name.
    banger(&["image", "rm", &other.reference]).ok();
    banger(&["image", "show", "t-tagged"]).ok();
    banger(&["image", "rm", "t-tagged", &one.reference]).ok();
}

#[test]
fn images_are_found_by_name_and_label() {
    let image = oci::push("t-find", &oci::tar(&[("a", b"find")]));
    banger(&["pull", &image.reference]).ok();
    let found = |arguments: &[&str]| banger(&[&["-q", "images"][..], arguments].concat()).ok();
    assert_eq!(found(&["t-fin?:*"]).trim(), image.reference);
    assert_eq!(found(&["--label", "title=t-find", "--unused"]).trim(), image.reference);
    assert_eq!(found(&["--label", "title=other", "t-find*"]), "");
    let vm = Vm::named("t-find");
    banger(&["vm", "create", "--name", vm.name(), &image.reference]).ok();
    assert_eq!(found(&["--label", "title=t-find", "--unused"]), "");
    let filter = ["a{sv}", "1", "labels", "as", "1", "title=t-find"];
    let listed = Way::Bus.call(IMAGED, "ListImagesFiltered", &filter).ok();
    assert!(listed.contains("t-find"), "{listed}");
    banger(&["rm", vm.name()]).ok();
    banger(&["image", "rm", &image.reference]).ok();
}

#[test]
fn unused_images_are_pruned() {
    let big = vec![7; 300_000];
    let image = oci::push("t-prune", &oci::tar(&[("a", b"prune"), ("big", &big)]));
    banger(&["pull", &image.reference]).ok();
    let mine = ["--label", "title=t-prune"];
    let prune =
        |arguments: &[&str]| banger(&[&["--json", "image", "prune"][..], &mine, arguments].concat()).ok();
    banger(&["image", "prune"]).failed(&["--all"]);
    let vm = Vm::named("t-prune");
    banger(&["vm", "create", "--name", vm.name(), &image.reference]).ok();
    assert_eq!(prune(&["--all"]).trim(), "[]");
    banger(&["rm", vm.name()]).ok();
    assert_eq!(prune(&["--unused-for", "1d"]).trim(), "[]");
    assert_eq!(prune(&["--max-size", "100G"]).trim(), "[]");

    let used = json(&["image", "df"]);
    let used = used.as_array().expect("a table").iter().find(|row| row["name"] == image.reference.as_str());
    let own = used.expect("listed")["own_bytes"].as_u64().expect("bytes");
    assert!(own >= 300_000, "{own}");
    assert!(prune(&["--all", "--dry-run"]).contains("t-prune"));
    banger(&["image", "show", &image.reference]).ok();
    let removed: serde_json::Value = serde_json::from_str(&prune(&["--max-size", "0"])).expect("JSON");
    assert_eq!(removed[0]["bytes"], own);
    banger(&["image", "show", &image.reference]).refused(&["t-prune"]);
    assert!(Way::Bus.call(IMAGED, "DiskUsage", &[]).ok().contains("kernel"));
}

#[test]
fn images_have_short_names_of_the_admins_choice() {
    let presets = json(&["image", "presets"]);
    let find = |name: &str| {
        presets.as_array().expect("a list").iter().find(|preset| preset["name"] == name).cloned()
    };
    assert_eq!(find("t-preset").expect("of /etc")["image"], BUSYBOX);
    assert_eq!(find("fedora").expect("of /usr/lib")["image"], "registry.fedoraproject.org/fedora:latest");
    assert_eq!(banger(&["-q", "pull", "t-preset"]).ok().trim(), BUSYBOX);
    let done = banger(&["run", "--rm", "--name", "t-preset", "t-preset:latest", "--", "echo", "preset"]);
    assert_eq!(done.ok(), "preset\n");
    let id = |name: &str| json(&["image", "show", name])["id"].clone();
    assert_eq!(id("t-preset"), id(BUSYBOX));
    banger(&["pull", "t-preset:no-such-tag"]).refused(&["no-such-tag"]);
    assert!(Way::Socket.call(IMAGED, "ListPresets", &[]).ok().contains("t-preset"));
}
