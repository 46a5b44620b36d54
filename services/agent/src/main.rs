//! The guest side of banger: a static binary that is `/init` of the initramfs.
//!
//! ```text
//!  kernel ─▶ /init ─▶ boot: modules, configuration, network, disks, new root
//!                       ├─ no init in the image: stays PID 1, reaps, powers off in order
//!                       └─ fork ─┬─ PID 1 execs the image's init
//!                                └─ the child serves beside it
//!  serve: org.banger.Agent1 on one vsock port, byte streams on another
//! ```
//!
//! Everything up to the fork is plain blocking code in one thread; serving is one tokio thread.
//! Nothing that comes from the image or from the host's clients may end the agent: it would take
//! the machine down. What the host's own configuration asks for and cannot be had does end it, on
//! purpose, with the reason told to the host.
#![cfg_attr(not(test), no_main)]
#![cfg_attr(test, allow(dead_code, unused_imports))]

use std::ffi::{CStr, c_char, c_int};
use std::panic::{AssertUnwindSafe, catch_unwind};

mod archive;
mod boot;
mod builtin;
mod bus;
mod command;
mod disks;
mod etc;
mod host;
mod line;
mod net;
mod ports;
mod power;
mod process;
mod provision;
mod session;
mod stats;
mod stream;
mod sys;
mod systemd;
mod transfer;
mod tree;
mod users;
mod vsock;

/// The name in the process list. systemd's shutdown spares processes from the initramfs whose
/// name begins with `@` (systemd.io/ROOT_STORAGE_DAEMONS).
const ARGV0: &CStr = c"@banger-agent";

/// The entry point, without the start-up code of Rust's runtime: that aborts when there is no
/// `/dev/null` to open, and the initramfs has none until we mount `/dev`.
///
/// # Safety
/// Called once, by libc.
#[cfg(not(test))]
#[unsafe(no_mangle)]
pub unsafe extern "C" fn main(argc: c_int, argv: *const *const c_char) -> c_int {
    // SAFETY: libc passes `argc` strings.
    let argv0 = (argc > 0).then(|| unsafe { CStr::from_ptr(*argv) });
    if std::process::id() != 1 {
        if let Some(program) = argv0.and_then(|argv0| builtin::Program::of_process(argv0.to_bytes())) {
            return program.run();
        }
        // SAFETY: as above, and the array ends with a null pointer.
        let version = argc > 1 && unsafe { CStr::from_ptr(*argv.add(1)) } == c"--version";
        if version {
            println!("banger-agent {}", env!("CARGO_PKG_VERSION"));
            return 0;
        }
        eprintln!("banger-agent is the init of a banger guest; it does nothing elsewhere");
        return 2;
    }
    if let Some(path) = argv0.filter(|argv0| !argv0.to_bytes().starts_with(b"@")) {
        // Nothing of the kernel's environment is for us or for the commands we start.
        let _ = nix::unistd::execve::<&CStr, &CStr>(path, &[ARGV0], &[]);
    }
    std::panic::set_hook(Box::new(|info| sys::log!(sys::ERR, "{info}")));
    let outcome = catch_unwind(AssertUnwindSafe(run));
    if let Ok(Err(error)) = &outcome {
        sys::log!(sys::ERR, "{error:#}");
    }
    if std::process::id() == 1 {
        power::cut(None, banger_core::guest::PowerOff::Acpi);
    }
    1
}

/// Boots and serves. Returns only on failure.
fn run() -> anyhow::Result<()> {
    boot::early()?;
    let (mut host, mut config) = host::Host::connect()?;
    let booted = match boot::boot(&mut host, &mut config) {
        Ok(booted) => booted,
        Err(error) => {
            let reason = format!("{error:#}").replace(['\n', '\r'], " ");
            sys::log!(sys::ERR, "{reason}");
            host.failed(&reason);
            power::cut(None, config.power_off);
        }
    };
    // From here on there may be two of us: only the one that serves returns from this call.
    let context = boot::hand_over(booted, &mut host, &config)?;
    drop(config);
    tokio::runtime::Builder::new_current_thread().enable_all().build()?.block_on(bus::serve(context, host))
}
