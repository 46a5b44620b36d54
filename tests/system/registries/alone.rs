//! What takes a restart of imaged.

use super::*;

const UNIT: &str = "banger-imaged.service";

fn restart() {
    run("systemctl", &["daemon-reload"]).ok();
    run("systemctl", &["restart", UNIT]).ok();
}

#[test]
fn downloads_go_on_after_a_crash() {
    let crafted = image("t-crash", 3 * MIB);
    let between = Between::open(LAB, hold_layer(&crafted.layer, MIB));
    let reference = crafted.reference.replace(LOCAL, &format!("localhost:{}", between.port));
    let _job = pull_job(&reference);
    eventually("a part arrives", || arrived(&crafted.layer) == MIB);
    run("systemctl", &["kill", "-s", "KILL", UNIT]).ok();
    eventually("it is dead", || between.abandoned() == 1);
    assert_eq!(arrived(&crafted.layer), MIB);
    pulls(&reference);
    let layers = between.blobs().into_iter().filter(|request| request.path().contains(&crafted.layer));
    assert_eq!(layers.map(|request| request.offset()).collect::<Vec<_>>(), [0, MIB]);
    assert_eq!(arrived(&crafted.layer), 0);
    // What nobody came back for goes after a day.
    let old = partial(&"0".repeat(64));
    fs::write(&old, "old").expect("writes");
    restart();
    banger(&["image", "ls"]).ok();
    assert!(old.exists());
    sh(&format!("touch -d '25 hours ago' {}", old.display())).ok();
    restart();
    banger(&["image", "ls"]).ok();
    assert!(!old.exists());
}

#[test]
fn systemd_hands_over_a_password() {
    let crafted = image("t-credential", 1000);
    let registry = Registry::start(Wire::Plain, Door::Password);
    let at = registry.at("localhost");
    let reference = crafted.reference.replace(LOCAL, &at);
    let path = "/etc/credstore/banger.registry-auth";
    {
        let _file = Placed::file(path, &format!(r#"{{"auths": {{"{at}": {{"auth": "{PAIR}"}}}}}}"#));
        sh(&format!("chmod 600 {path}")).ok();
        restart();
        pulls(&reference);
    }
    restart();
    banger(&["pull", &reference]).refused(&["anonymous"]);

    // The same encrypted, in a drop-in.
    let plain = Placed::file(path, &format!(r#"{{"auths": {{"{at}": {{"auth": "{PAIR}"}}}}}}"#));
    let encrypt = format!("systemd-creds encrypt --pretty --name=banger.registry-auth {path} -");
    let drop_in = format!("[Service]\n{}", sh(&encrypt).ok());
    drop(plain);
    assert!(!drop_in.contains(PAIR), "{drop_in}");
    {
        let _file = Placed::file("/etc/systemd/system/banger-imaged.service.d/50-auth.conf", &drop_in);
        sh("systemctl daemon-reload").ok();
        restart();
        pulls(&reference);
    }
    sh("systemctl daemon-reload").ok();
    restart();
    banger(&["pull", &reference]).refused(&["anonymous"]);
}

#[test]
fn proxies_are_those_of_the_unit() {
    let crafted = image("t-proxy", 1000);
    let registry = Registry::start(Wire::Plain, Door::Open);
    let at = registry.at("lab");
    let reference = crafted.reference.replace(LOCAL, &at);
    let _named =
        Placed::registries("t-proxy", &format!("[[registry]]\nlocation = \"{at}\"\ninsecure = true\n"));
    let proxy = Between::open(&at, |_, _| Fate::Pass);
    {
        // As `systemctl edit banger-imaged` writes it.
        let text =
            format!("[Service]\nEnvironment=HTTP_PROXY=http://localhost:{} NO_PROXY=localhost\n", proxy.port);
        let _drop_in = Placed::file("/run/systemd/system/banger-imaged.service.d/t-proxy.conf", &text);
        restart();
        pulls(&crafted.reference);
        assert_eq!(proxy.requests().len(), 0, "NO_PROXY");
        pulls(&reference);
    }
    restart();
    let through = proxy.requests();
    assert!(!through.is_empty());
    for request in through {
        assert!(request.path().starts_with(&format!("http://{at}/v2/t-proxy/")), "{}", request.head);
    }
}

#[test]
fn limits_are_the_admins() {
    let crafted = image("t-limits", 3 * MIB);
    {
        let _file = Placed::file(
            "/etc/banger/imaged.conf.d/t-limits.conf",
            "downloads = 1\n[limits]\nblob = \"2M\"\n",
        );
        restart();
        banger(&["pull", &crafted.reference]).refused(&["more than 2097152"]);
    }
    restart();
    pulls(&crafted.reference);
}
