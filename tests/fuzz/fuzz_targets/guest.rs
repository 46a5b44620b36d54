//! What answers in a guest, which may be anything but the agent: the input is all that it ever says.
#![no_main]

use std::cell::OnceCell;
use std::io::{self, Read, Write};
use std::net::Shutdown;
use std::os::unix::net::{UnixListener, UnixStream};
use std::path::PathBuf;
use std::sync::mpsc::{Sender, channel};

use banger_guest::Agent;
use tokio::runtime::{Builder, Runtime};

/// A guest whose socket is called as often as there are inputs.
struct Guest {
    socket: PathBuf,
    says: Sender<Vec<u8>>,
    runtime: Runtime,
    _dir: tempfile::TempDir,
}

thread_local!(static GUEST: OnceCell<Guest> = const { OnceCell::new() });

fn guest() -> Guest {
    let dir = tempfile::tempdir().expect("a directory");
    let socket = dir.path().join("vsock.sock");
    let listener = UnixListener::bind(&socket).expect("binds");
    let (says, words) = channel::<Vec<u8>>();
    std::thread::spawn(move || {
        for words in words {
            let (stream, _) = listener.accept().expect("accepts");
            // Whoever calls may have heard enough.
            let _ = answer(stream, &words);
        }
    });
    let runtime = Builder::new_current_thread().enable_all().build().expect("a runtime");
    Guest { socket, says, runtime, _dir: dir }
}

/// Listens to the end: what is not read breaks the connection off, and may take the words along.
fn answer(mut stream: UnixStream, words: &[u8]) -> io::Result<()> {
    stream.read_exact(&mut [0; "CONNECT 1024\n".len()])?;
    stream.write_all(words)?;
    stream.shutdown(Shutdown::Write)?;
    io::copy(&mut stream, &mut io::sink()).map(drop)
}

libfuzzer_sys::fuzz_target!(|bytes: &[u8]| {
    GUEST.with(|cell| {
        let guest = cell.get_or_init(guest);
        // One that says nothing is called again and again, which finds nothing.
        guest.says.send([b"OK 1\n", bytes].concat()).expect("listens");
        let _ = guest.runtime.block_on(Agent::connect(&guest.socket));
    });
});
