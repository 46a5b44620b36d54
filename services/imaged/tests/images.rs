//! The service without its bus: import, names, leases, removal, restart; and archives made to do harm.

use std::fs::{self, File};
use std::io::{Seek, SeekFrom, Write};
use std::os::unix::fs::FileExt;
use std::path::Path;
use std::process::Command;

use banger_api::ErrorKind;
use banger_imaged::digest::sha256;
use banger_imaged::images::{Format, ImportOptions};
use banger_imaged::limits::Limits;
use banger_imaged::progress::{Part, Progress};
use banger_imaged::registry::Host;
use banger_imaged::service::{Service, Settings};
use banger_imaged::tar::TarReader;
use serde_json::json;
use tempfile::TempDir;

#[path = "../../../tests/support/tar.rs"]
#[allow(dead_code)]
mod tar;

use tar::{Entry, Tar};

fn file_of(bytes: &[u8]) -> File {
    let mut file = tempfile::tempfile().expect("tempfile");
    file.write_all(bytes).expect("writes");
    file.seek(SeekFrom::Start(0)).expect("rewinds");
    file
}

fn settings(state: &Path) -> Settings {
    Settings {
        state_dir: state.to_owned(),
        agent: state.join("agent"),
        host: Host::below(state),
        downloads: 4,
        trust: Default::default(),
        presets: Default::default(),
        limits: Limits { unpacked: 8 << 20, ..Limits::default() },
    }
}

async fn service() -> (Service, TempDir) {
    let dir = tempfile::tempdir().expect("tempdir");
    (reopen(dir.path()).await, dir)
}

async fn reopen(state: &Path) -> Service {
    fs::write(state.join("agent"), b"\x7fELF agent").expect("writes");
    // Dropping the receiver: nobody is told, nobody waits.
    Service::open(settings(state)).await.expect("opens").0
}

fn names(dir: &Path) -> Vec<String> {
    let mut names: Vec<_> = fs::read_dir(dir)
        .expect("lists")
        .map(|e| e.expect("entry").file_name().into_string().expect("utf-8"))
        .collect();
    names.sort();
    names
}

fn assert_clean(state: &Path) {
    assert_eq!(names(&state.join("staging")), [""; 0], "staging");
    assert_eq!(names(&state.join("images")), [""; 0], "images");
    assert_eq!(names(&state.join("blobs/sha256")), [""; 0], "blobs");
}

#[tokio::test]
async fn imports_what_a_root_filesystem_can_hold() {
    let (service, dir) = service().await;
    let tar = Tar::default()
        .dir("./")
        .dir("usr")
        .pax(&[
            ("SCHILY.xattr.user.note", b"a=b\nc"),
            ("uid", b"3000000000"),
            ("path", &[b"usr/".as_slice(), &[0xff], &[b'n'; 200]].concat()),
        ])
        .file("usr/short", &vec![b'x'; 300_000])
        .link(b'1', "link", "usr/../no")
        .finish();
    let error = service
        .import_file(file_of(&tar), "bad", ImportOptions::default(), &())
        .await
        .expect_err("a link through ..");
    assert_eq!(error.kind(), ErrorKind::InvalidImage, "{error}");
    assert_clean(dir.path());

    let build = || {
        Tar::default()
            .dir("./")
            .dir("usr")
            .pax(&[("SCHILY.xattr.user.note", b"a=b\nc"), ("uid", b"3000000000"), ("mtime", b"-1.5")])
            .file("usr/file", &[vec![b'x'; 300_000], vec![0; 200_000], vec![b'y'; 70_000]].concat())
            .link(b'1', "hard", "usr/file")
            .link(b'2', "sym", "/usr/file")
            .entry(b"null", &Entry { device: (1, 3), ..Entry::new(b'3') }, b"")
            .link(b'6', "fifo", "")
            .file("empty", b"")
    };
    let image = service
        .import_file(file_of(&build().finish()), "one", ImportOptions::default(), &())
        .await
        .expect("imports");
    assert_eq!((image.name(), image.fstype.as_str()), ("one", "squashfs"));
    // The same content again is the same image under another name.
    let again = service
        .import_file(file_of(&build().finish()), "two", ImportOptions::default(), &())
        .await
        .expect("imports");
    assert_eq!((again.id.clone(), again.names), (image.id.clone(), vec!["one".to_owned(), "two".to_owned()]));
    assert_eq!(names(&dir.path().join("staging")), [""; 0]);

    let rootfs = dir.path().join("images").join(&image.id).join("rootfs.squashfs");
    let Ok(listing) = Command::new("unsquashfs").arg("-lln").arg(&rootfs).output() else {
        eprintln!("skipped the rest: no unsquashfs");
        return;
    };
    let listing = String::from_utf8_lossy(&listing.stdout).into_owned();
    for line in [
        "prw-r--r-- 0/0                        0 1970-01-01 00:00 squashfs-root/fifo",
        "-rw-r--r-- 3000000000/0          570000 1970-01-01 00:00 squashfs-root/hard",
        "crw-r--r-- 0/0                    1,  3 1970-01-01 00:00 squashfs-root/null",
        "lrwxrwxrwx 0/0                        9 1970-01-01 00:00 squashfs-root/sym -> /usr/file",
        "-rw-r--r-- 3000000000/0          570000 1970-01-01 00:00 squashfs-root/usr/file",
    ] {
        let squeeze = |text: &str| text.split_whitespace().collect::<Vec<_>>().join(" ");
        assert!(
            listing.lines().any(|found| squeeze(found) == squeeze(line)),
            "{line:?} is not in\n{listing}"
        );
    }
    let content =
        Command::new("unsquashfs").arg("-cat").arg(&rootfs).arg("usr/file").output().expect("reads").stdout;
    assert!(content == [vec![b'x'; 300_000], vec![0; 200_000], vec![b'y'; 70_000]].concat());
}

#[tokio::test]
async fn archives_made_to_do_harm_leave_nothing() {
    let (service, dir) = service().await;
    let cut = {
        let mut whole = Tar::default().file("a", &[1; 5000]).finish();
        whole.truncate(2000);
        whole
    };
    let bomb = {
        let mut gzip = flate2::write::GzEncoder::new(Vec::new(), flate2::Compression::fast());
        let mut tar = Tar::default();
        tar.header(b"zeros", &Entry::new(b'0'), 64 << 20);
        gzip.write_all(&tar.cut()).expect("packs");
        for _ in 0..64 {
            gzip.write_all(&vec![0; 1 << 20]).expect("packs");
        }
        gzip.finish().expect("packs")
    };
    let damaged = {
        let mut whole = zstd::encode_all(&[7u8; 100_000][..], 3).expect("packs");
        let middle = whole.len() / 2;
        whole.truncate(middle);
        whole
    };
    let long_pax = {
        let mut tar = Tar::default();
        tar.header(b"pax", &Entry::new(b'x'), 1 << 33);
        tar.cut()
    };
    let sparse_bomb = |size: &[u8]| {
        Tar::default().pax(&[("GNU.sparse.realsize", size), ("GNU.sparse.map", b"0,0")]).file("s", b"").cut()
    };
    let cases: Vec<(&str, Vec<u8>)> = vec![
        ("escape", Tar::default().file("../../etc/passwd", b"x").cut()),
        ("escape inside", Tar::default().file("a/../../x", b"x").cut()),
        ("whiteout of ..", Tar::default().file(".wh...", b"").cut()),
        ("circle of hard links", Tar::default().link(b'1', "a", "b").link(b'1', "b", "a").cut()),
        ("circle of symlinks", Tar::default().link(b'2', "a", "a").file("a/b", b"").cut()),
        ("unknown type", Tar::default().link(b'Q', "a", "").cut()),
        ("no tar", b"this is certainly no tar archive at all".repeat(30)),
        ("truncated", cut),
        ("bomb", bomb),
        ("damaged", damaged),
        ("long header", long_pax),
        ("sparse bomb", sparse_bomb(b"9000000000000000000")),
        ("sparse bomb, wrapping", sparse_bomb(b"18446744073709551615")),
        ("bad pax", Tar::default().pax(&[("size", b"-5")]).file("x", b"").cut()),
        ("zero in a name", Tar::default().pax(&[("path", b"a\0b")]).file("x", b"").cut()),
    ];
    for (what, bytes) in cases {
        let error = service
            .import_file(file_of(&bytes), "evil", ImportOptions::default(), &())
            .await
            .expect_err(what);
        assert_eq!(error.kind(), ErrorKind::InvalidImage, "{what}: {error}");
        assert_clean(dir.path());
    }
    assert!(service.images().await.expect("lists").is_empty());
}

#[tokio::test]
async fn images_of_docker_are_exported_as_such() {
    let (service, _state) = service().await;
    let docker = |name: &str| format!("application/vnd.docker.{name}");
    let dir = tempfile::tempdir().expect("tempdir");
    let blobs = dir.path().join("blobs/sha256");
    fs::create_dir_all(&blobs).expect("makes");
    let blob = |media_type: &str, bytes: &[u8]| {
        let hex = sha256(bytes);
        fs::write(blobs.join(&hex), bytes).expect("writes");
        json!({ "mediaType": media_type, "digest": format!("sha256:{hex}"), "size": bytes.len() })
    };
    let layer = Tar::default().file("a", b"a").finish();
    let config = json!({ "rootfs": { "diff_ids": [format!("sha256:{}", sha256(&layer))] } }).to_string();
    let manifest = json!({
        "schemaVersion": 2,
        "mediaType": docker("distribution.manifest.v2+json"),
        "config": blob(&docker("container.image.v1+json"), config.as_bytes()),
        "layers": [blob(&docker("image.rootfs.diff.tar"), &layer)],
    });
    let manifest = blob(&docker("distribution.manifest.v2+json"), manifest.to_string().as_bytes());
    let index = json!({ "schemaVersion": 2, "manifests": [&manifest] }).to_string();
    fs::write(dir.path().join("index.json"), index).expect("writes");

    service.import_path(dir.path(), "docker", ImportOptions::default(), &()).await.expect("imports");
    let mut file = file_of(b"");
    let to = file.try_clone().expect("clones");
    service.export_image("docker", Format::Oci, to, &()).await.expect("exports");
    file.rewind().expect("rewinds");
    let mut archive = TarReader::new(file);
    while archive.next_entry().expect("reads").expect("an index").path != b"index.json" {}
    let index: serde_json::Value =
        serde_json::from_slice(&archive.read_all(1 << 20).expect("reads")).expect("JSON");
    for key in ["mediaType", "digest", "size"] {
        assert_eq!(index["manifests"][0][key], manifest[key]);
    }
}

#[tokio::test]
async fn layers_of_docker_may_be_links_to_others() {
    let (service, dir) = service().await;
    let layer = Tar::default().file("a", b"a").finish();
    let saved = |layers: [&str; 2]| {
        let diff_ids = vec![format!("sha256:{}", sha256(&layer)); 2];
        let config = json!({ "os": "linux", "rootfs": { "diff_ids": diff_ids } });
        let manifest = json!([{ "Config": "config.json", "Layers": layers }]);
        Tar::default()
            .link(b'2', "1/layer.tar", "../2/layer.tar")
            .file("./2/layer.tar", &layer)
            .link(b'2', "./3/layer.tar", "../2/layer.tar")
            .link(b'2', "4/layer.tar", "../3/layer.tar")
            .link(b'2', "5/layer.tar", "../../2/layer.tar")
            .file("config.json", config.to_string().as_bytes())
            .file("manifest.json", manifest.to_string().as_bytes())
            .finish()
    };
    let import = async |layers: [&'static str; 2]| {
        service.import_file(file_of(&saved(layers)), "linked", ImportOptions::default(), &()).await
    };
    // To what comes later and earlier, what is a layer of the image and what is not.
    for layers in
        [["1/layer.tar", "2/layer.tar"], ["2/layer.tar", "3/layer.tar"], ["1/layer.tar", "3/layer.tar"]]
    {
        import(layers).await.expect("imports");
        service.remove_image("linked").await.expect("removes");
    }
    for (layer, reason) in [("4/layer.tar", "lacks 3/layer.tar"), ("5/layer.tar", "out of the archive")] {
        let error = import(["2/layer.tar", layer]).await.expect_err(layer);
        assert_eq!(error.kind(), ErrorKind::InvalidImage, "{error}");
        assert!(error.to_string().contains(reason), "{error}");
    }
    assert_clean(dir.path());
}

#[tokio::test]
async fn one_name_has_one_winner() {
    let (service, dir) = service().await;
    let imports = (0..6).map(|n: u8| {
        let service = service.clone();
        async move {
            service
                .import_file(
                    file_of(&Tar::default().file("n", &[n]).finish()),
                    "name",
                    ImportOptions::default(),
                    &(),
                )
                .await
        }
    });
    let outcomes = futures_util::future::join_all(imports).await;
    let (won, lost): (Vec<_>, Vec<_>) = outcomes.into_iter().partition(Result::is_ok);
    assert_eq!(won.len(), 1);
    for error in lost {
        assert_eq!(error.map_err(|error| error.kind()), Err(ErrorKind::NameTaken));
    }
    assert_eq!(names(&dir.path().join("images")).len(), 1);
    assert_eq!(names(&dir.path().join("staging")), [""; 0]);
}

#[tokio::test]
async fn pipes_are_read_as_well() {
    let (service, _dir) = service().await;
    let (reader, mut writer) = std::io::pipe().expect("pipe");
    let bytes = Tar::default().file("a", &vec![3; 100_000]).finish();
    let feed = std::thread::spawn(move || writer.write_all(&bytes));
    let file = File::from(std::os::fd::OwnedFd::from(reader));
    service.import_file(file, "piped", ImportOptions::default(), &()).await.expect("imports");
    feed.join().expect("joins").expect("writes");
}

/// Changes a file between the passes over it.
struct Changes(File, Vec<u8>);

impl Progress for Changes {
    fn stage(&self, stage: &str) {
        if stage == "unpack" {
            self.0.write_all_at(&self.1, 0).expect("writes");
        }
    }

    fn bytes(&self, _completed: u64, _total: u64) {}
    fn parts(&self, _parts: &[Part]) {}
}

#[tokio::test]
async fn an_image_is_what_was_read_first() {
    let archive = |content: &[u8]| Tar::default().file("a", content).finish();
    let import = async |progress: &dyn Progress, file: File, root| {
        let (service, dir) = service().await;
        let options = ImportOptions { root, ..ImportOptions::default() };
        let image = service.import_file(file, "image", options, progress).await.expect("imports");
        assert_eq!(names(&dir.path().join("staging")), [""; 0]);
        (image.id, image.rootfs_digest)
    };
    let (one, other) = (archive(b"one"), archive(b"two"));
    let wanted = import(&(), file_of(&one), false).await;
    for root in [false, true] {
        let file = file_of(&one);
        let changes = Changes(file.try_clone().expect("clones"), other.clone());
        assert_eq!(import(&changes, file, root).await, wanted);
        let mut now = vec![0; other.len()];
        changes.0.read_exact_at(&mut now, 0).expect("reads");
        assert!(now == other, "it was changed");
    }
}

/// A kernel that has everything built in: an ELF file with a banner.
fn kernel() -> File {
    let x86_64 = b"\x7fELF\x02\x01\x01\0\0\0\0\0\0\0\0\0\x02\0\x3e\0";
    file_of(&[x86_64.as_slice(), &[0; 5000], b"Linux version 6.9.1-test (x@y) #1", &[0; 100]].concat())
}

#[tokio::test]
async fn leases_keep_what_is_used() {
    use banger_imaged::kernel::{KernelOptions, KernelSource};
    let (service, dir) = service().await;
    let image = service
        .import_file(file_of(&Tar::default().file("a", b"a").finish()), "img", ImportOptions::default(), &())
        .await
        .expect("imports");
    let missing = service.acquire_lease("web", "img", "").await.expect_err("no kernel");
    assert_eq!(missing.kind(), ErrorKind::NoSuchKernel, "{missing}");
    let kernel = service
        .import_kernel(KernelSource::Files(vec![kernel()], None), KernelOptions::default(), &())
        .await
        .expect("imports");
    assert_eq!((kernel.name.as_str(), kernel.is_default), ("6.9.1-test", true));

    let set = service.acquire_lease("web", "img", "").await.expect("leases");
    assert_eq!(service.acquire_lease("web", &image.id[..12], "6.9.1-test").await.expect("leases"), set);
    assert!(Path::new(&set.rootfs).exists() && Path::new(&set.vmlinux).exists());
    let archive = fs::read(&set.initramfs).expect("initramfs");
    assert!(archive.windows(10).any(|window| window == b"\x7fELF agent"));

    let error = service.remove_image("img").await.expect_err("in use");
    assert_eq!((error.kind(), error.to_string().contains("web")), (ErrorKind::ImageInUse, true), "{error}");
    let error = service.remove_kernel("6.9.1-test").await.expect_err("in use");
    assert_eq!(error.kind(), ErrorKind::KernelInUse, "{error}");

    // After a restart everything is as it was; a changed agent is taken up.
    drop(service);
    fs::create_dir(dir.path().join("staging/left-over")).expect("makes");
    fs::create_dir(dir.path().join("images").join("f".repeat(64))).expect("makes");
    let service = reopen(dir.path()).await;
    assert_eq!(names(&dir.path().join("staging")), [""; 0]);
    assert_eq!(names(&dir.path().join("images")), std::slice::from_ref(&image.id));
    fs::write(dir.path().join("agent"), b"\x7fELF newer agent").expect("writes");
    let set = service.acquire_lease("web", "img", "").await.expect("leases");
    let archive = fs::read(&set.initramfs).expect("initramfs");
    assert!(archive.windows(11).any(|window| window == b"newer agent"));

    fs::remove_file(dir.path().join("agent")).expect("removes");
    service.acquire_lease("other", "img", "").await.expect_err("no agent");
    assert_eq!(service.leases().await.expect("lists").len(), 1);

    service.release_lease("web").await.expect("releases");
    service.release_lease("web").await.expect("again");
    service.remove_image("img").await.expect("removes");
    service.remove_kernel("").await.expect("removes the default");
    assert_clean(dir.path());
    assert_eq!(names(&dir.path().join("kernels")), [""; 0]);
}

#[tokio::test]
async fn names_are_checked() {
    let (service, _dir) = service().await;
    for bad in ["", "../x", "a b", "-x", &"x".repeat(300), &"a".repeat(64)] {
        let error = service
            .import_file(file_of(&Tar::default().finish()), bad, ImportOptions::default(), &())
            .await
            .expect_err(bad);
        assert_eq!(error.kind(), ErrorKind::InvalidArgs, "{bad}");
    }
    let error = service.image("nothing:here").await.expect_err("not there");
    assert_eq!(error.kind(), ErrorKind::NoSuchImage);
}
