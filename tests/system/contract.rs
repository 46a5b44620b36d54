//! The D-Bus contract: what is served is what is documented, and every member has its access.

use std::collections::BTreeMap;
use std::path::Path;

use banger_api::{Access, SERVICES, Service};
use banger_tests::{BUSYBOX, Vm, Way, json, run};

/// Where the interfaces are documented, one file each.
const INTERFACES: &str = concat!(env!("CARGO_MANIFEST_DIR"), "/../dbus/interfaces");

/// With this set to a directory, the test writes the files there instead of comparing.
const UPDATE: &str = "BANGER_UPDATE_INTERFACES";

/// The XML of every interface of banger that a service serves, by name. There is a running VM with
/// a session, so every kind of object is there.
fn interfaces(service: Service) -> BTreeMap<String, String> {
    let tree = run("busctl", &["--list", "tree", service.bus_name]).ok();
    let mut found = BTreeMap::new();
    for path in tree.lines().filter(|path| path.starts_with("/org/banger")) {
        let introspected = run("busctl", &["introspect", "--xml-interface", service.bus_name, path]);
        // What belongs to other tests may be gone by now.
        if introspected.stderr.contains("Unknown object") {
            continue;
        }
        let xml = introspected.ok();
        for interface in split(&xml) {
            let name = interface.split('"').nth(1).expect("a name").to_owned();
            if name.starts_with("org.banger.") {
                found.insert(name, interface);
            }
        }
    }
    found
}

/// The `<interface>` elements of the object itself, not of those below it.
fn split(xml: &str) -> Vec<String> {
    let mut interfaces = Vec::new();
    let mut current: Option<String> = None;
    for line in xml.lines() {
        if line.starts_with("  <interface ") {
            current = Some(String::new());
        }
        if let Some(text) = &mut current {
            text.push_str(line);
            text.push('\n');
        }
        if line.starts_with("  </interface>") {
            interfaces.extend(current.take());
        }
    }
    interfaces
}

fn access(service: Service) -> &'static [banger_api::access::Entry] {
    match service.id {
        "vmd" => banger_api::vm::ACCESS,
        "imaged" => banger_api::image::ACCESS,
        "netd" => banger_api::network::ACCESS,
        _ => banger_api::session::ACCESS,
    }
}

/// Method names, and names of writable properties.
fn guarded(interface: &str) -> Vec<String> {
    let member = |line: &str| line.split('"').nth(1).map(str::to_owned);
    let is_guarded = |line: &&str| {
        let line = line.trim_start();
        line.starts_with("<method ") || (line.starts_with("<property ") && line.contains("write"))
    };
    interface.lines().filter(is_guarded).filter_map(member).collect()
}

#[test]
fn what_is_served_is_documented_and_guarded() {
    let vm = Vm::running("t-contract", BUSYBOX);
    let session = banger_tests::start("banger", &["exec", vm.name(), "--", "sleep", "20"]);
    banger_tests::eventually("the session is there", || {
        json(&["session", "ls"]).as_array().is_some_and(|list| !list.is_empty())
    });
    let update = std::env::var_os(UPDATE);
    for service in SERVICES {
        let found = interfaces(service);
        assert!(found.contains_key(service.manager), "{found:?}");
        for (name, xml) in found {
            let document = format!(
                "<!DOCTYPE node PUBLIC \"-//freedesktop//DTD D-BUS Object Introspection 1.0//EN\"\n \"http://www.freedesktop.org/standards/dbus/1.0/introspect.dtd\">\n<node>\n{xml}</node>\n"
            );
            match &update {
                Some(dir) => {
                    std::fs::write(Path::new(dir).join(format!("{name}.xml")), document).expect("writes");
                }
                None => {
                    let file = Path::new(INTERFACES).join(format!("{name}.xml"));
                    let documented = std::fs::read_to_string(&file).unwrap_or_default();
                    assert_eq!(documented, document, "{} differs; see CONTRIBUTING.md", file.display());
                }
            }
            for member in guarded(&xml) {
                let classed = access(service).iter().chain(banger_api::access::COMMON);
                let known = classed.into_iter().any(|(i, m, _)| *i == name && *m == member);
                assert!(known, "{name}.{member} is in no access table");
            }
        }
    }
    drop(vm);
    let _ = session.join();
}

#[test]
fn every_action_is_one_of_polkits() {
    let listed = run("pkaction", &[]).ok();
    for service in SERVICES {
        for (interface, member, access) in access(service) {
            if let Access::Action(action) = access {
                assert!(listed.lines().any(|line| line == *action), "{interface}.{member}: {action}");
            }
        }
    }
}

#[test]
fn arguments_have_names() {
    for service in SERVICES {
        let xml = run("busctl", &["introspect", "--xml-interface", service.bus_name, service.path]).ok();
        for interface in split(&xml).iter().filter(|xml| xml.contains("name=\"org.banger.")) {
            let unnamed: Vec<_> =
                interface.lines().filter(|line| line.contains("<arg ") && !line.contains("name=")).collect();
            assert!(unnamed.is_empty(), "{}: {unnamed:?}", service.id);
        }
    }
    // The sockets introspect like the bus.
    let tree =
        run("busctl", &["--address=unix:path=/run/banger/vmd.sock", "--list", "tree", "org.banger.Vm1"]).ok();
    assert!(tree.contains("/org/banger/Vm1"), "{tree}");
    Way::Socket.call(banger_api::VMD, "ListVms", &[]).ok();
}
