//! `session exec|shell VM COMMAND...`: a client of sessiond as small as can be, for tests.
use std::collections::{BTreeMap, HashMap};
use std::fs::File;
use std::os::fd::OwnedFd;
use std::thread;

use banger_api::Error;
use banger_api::session::ManagerProxy;

#[tokio::main(flavor = "current_thread")]
async fn main() {
    if let Err(error) = run().await {
        eprintln!("{}: {error}", error.kind().name());
        std::process::exit(125);
    }
}

async fn run() -> banger_api::Result<()> {
    let arguments: Vec<String> = std::env::args().skip(1).collect();
    let arguments: Vec<&str> = arguments.iter().map(String::as_str).collect();
    let [verb, vm, argv @ ..] = arguments.as_slice() else { panic!("usage: see the source") };
    let bus = zbus::Connection::system().await?;
    let sessiond = ManagerProxy::new(&bus).await?;
    let environment = BTreeMap::new();
    let (id, outputs) = if *verb == "shell" {
        let (id, _, pty) = sessiond.open_shell(vm, argv, &environment, HashMap::new()).await?;
        (id, vec![OwnedFd::from(pty)])
    } else {
        let (id, _, stdin, stdout, stderr) = sessiond.exec(vm, argv, &environment, HashMap::new()).await?;
        let mut stdin = File::from(OwnedFd::from(stdin));
        thread::spawn(move || std::io::copy(&mut std::io::stdin(), &mut stdin));
        (id, vec![stdout.into(), stderr.into()])
    };
    eprintln!("[{id}]");
    let readers: Vec<_> = outputs
        .into_iter()
        .map(|fd| thread::spawn(move || std::io::copy(&mut File::from(fd), &mut std::io::stdout()).unwrap()))
        .collect();
    let readers = tokio::task::spawn_blocking(move || readers.into_iter().for_each(|it| drop(it.join())));
    readers.await.map_err(Error::internal)?;
    let (status, signal) = sessiond.wait_session(vm, &id).await?;
    std::process::exit(if signal == 0 { status } else { 128 + signal });
}
