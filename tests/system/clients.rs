//! Programs of others use the interfaces: each makes, watches and deletes a VM, without a password. `busctl` is used by
//! all other tests.

use banger_tests::{BUSYBOX, Vm, as_user};

const CLIENTS: &str = concat!(env!("CARGO_MANIFEST_DIR"), "/clients");

fn manages(client: &str, name: &str) {
    let vm = Vm::named(name);
    as_user("alice", &format!("cd {CLIENTS} && {client} {} {BUSYBOX}", vm.name())).ok();
}

#[test]
fn gdbus() {
    manages("./gdbus", "t-gdbus");
}

#[test]
fn python_with_dbus_fast() {
    manages("./dbus-fast", "t-dbus-fast");
    as_user("mallory", &format!("{CLIENTS}/dbus-fast")).ok();
}

mod alone {
    use super::*;

    /// d-feet looks at all objects in turn, and shows a dialog if one is gone by then.
    #[test]
    fn d_feet() {
        manages("xvfb-run --auto-servernum ./d-feet", "t-d-feet");
    }
}
