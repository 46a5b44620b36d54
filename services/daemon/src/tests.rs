//! The whole of a service over a peer connection: no bus, no systemd.

use std::os::unix::net::UnixStream;
use std::time::Duration;

use banger_api::access::Entry;
use banger_api::job::JobProxy;
use banger_api::{Access, Error, ErrorKind, Result, VMD};
use futures_util::StreamExt;
use zbus::connection::Builder;
use zbus::message::Header;
use zbus::{Connection, MessageStream, interface};

use crate::{Gate, Hub, Idle, Jobs, Progress, peer};

const MANAGER: &str = "org.banger.Vm1.Manager";
const ACCESS: &[Entry] = &[
    (MANAGER, "Allowed", Access::Read),
    (MANAGER, "Work", Access::Read),
    (banger_api::job::INTERFACE, "Cancel", Access::Read),
];

#[derive(Clone)]
struct Manager {
    gate: Gate,
    jobs: Jobs,
}

#[interface(name = "org.banger.Vm1.Manager")]
impl Manager {
    async fn allowed(
        &self,
        #[zbus(header)] header: Header<'_>,
        #[zbus(connection)] connection: &Connection,
    ) -> Result<u32> {
        self.gate.enter(&header, connection, &[]).await.map(|call| call.caller.uid)
    }

    async fn forgotten(
        &self,
        #[zbus(header)] header: Header<'_>,
        #[zbus(connection)] connection: &Connection,
    ) -> Result<()> {
        self.gate.enter(&header, connection, &[]).await.map(drop)
    }

    /// A job that goes through some stages and then waits for its end, or fails.
    async fn work(
        &self,
        fail: bool,
        #[zbus(header)] header: Header<'_>,
        #[zbus(connection)] connection: &Connection,
    ) -> Result<(u32, zbus::OwnedObjectPath)> {
        let _call = self.gate.enter(&header, connection, &[]).await?;
        let work = move |progress: Progress| async move {
            progress.stage("one");
            progress.stage("two");
            if fail {
                return Err(ErrorKind::NameTaken.error("taken"));
            }
            progress.cancelable(std::future::pending()).await
        };
        Ok(self.jobs.start("work", "subject", work).await)
    }
}

async fn service() -> (Hub, Idle) {
    let (hub, idle, _) = service_after(&[]).await;
    (hub, idle)
}

/// A service that finds these records of jobs; the last value is how many were interrupted.
async fn service_after(records: &[&str]) -> (Hub, Idle, usize) {
    let (hub, idle) = (Hub::new(), Idle::new());
    let gate = Gate::new(ACCESS, idle.clone());
    let jobs = Jobs::new(VMD, hub.clone(), gate.clone(), idle.clone());
    hub.add(VMD.path, zbus::fdo::ObjectManager).await;
    let files = records.iter().map(|text| ("job-x".to_owned(), file(text))).collect();
    let interrupted = jobs.restore(files).await.len();
    hub.add(VMD.path, Manager { gate, jobs }).await;
    (hub, idle, interrupted)
}

fn file(text: &str) -> std::fs::File {
    use std::io::Write;
    let mut file = tempfile::tempfile().expect("a file");
    file.write_all(text.as_bytes()).expect("writes");
    file
}

async fn client(hub: &Hub) -> Connection {
    let (ours, theirs) = UnixStream::pair().expect("a pair");
    let (hub, builder) = (hub.clone(), peer::server(ours, VMD).expect("a socket"));
    tokio::spawn(async move { hub.serve_peer(builder).await });
    Builder::unix_stream(theirs).p2p().build().await.expect("connects")
}

async fn call<R>(client: &Connection, method: &str, fail: Option<bool>) -> Result<R>
where
    R: for<'d> zbus::wire::DynamicDeserialize<'d>,
{
    let reply = match fail {
        Some(fail) => client.call_method(None::<&str>, VMD.path, Some(MANAGER), method, &fail).await?,
        None => client.call_method(None::<&str>, VMD.path, Some(MANAGER), method, &()).await?,
    };
    Ok(reply.body().deserialize()?)
}

#[tokio::test]
async fn peers_are_identified_and_the_unclassed_is_refused() {
    let (hub, _idle) = service().await;
    let client = client(&hub).await;
    let uid: u32 = call(&client, "Allowed", None).await.expect("allowed");
    assert_eq!(uid, nix::unistd::getuid().as_raw());
    let error = call::<()>(&client, "Forgotten", None).await.expect_err("in no table");
    assert_eq!(error.kind(), ErrorKind::AccessDenied);
}

#[tokio::test]
async fn the_shim_answers_what_bus_clients_ask_first() {
    let (hub, _idle) = service().await;
    let (ours, theirs) = UnixStream::pair().expect("a pair");
    let serving = hub.clone();
    let builder = peer::server(ours, VMD).expect("a socket");
    tokio::spawn(async move { serving.serve_peer(builder).await });
    // Not peer to peer: this client says Hello, as on a bus.
    let client = Builder::unix_stream(theirs).build().await.expect("connects");
    assert!(client.unique_name().is_some());
    let bus = zbus::fdo::DBusProxy::new(&client).await.expect("a proxy");
    let name = VMD.bus_name.try_into().expect("valid");
    assert!(bus.name_has_owner(name).await.expect("answers"));
    let other = "org.example.Other".try_into().expect("valid");
    assert!(!bus.name_has_owner(other).await.expect("answers"));
}

#[tokio::test]
async fn jobs_end_with_their_error_and_hold_the_service() {
    let (hub, idle) = service().await;
    let client = client(&hub).await;
    let (_, path): (u32, zbus::OwnedObjectPath) = call(&client, "Work", Some(true)).await.expect("starts");
    let job = JobProxy::builder(&client).destination(VMD.bus_name).path(path).build().await.expect("a proxy");
    let error = Error::from(job.wait().await.expect_err("fails"));
    assert_eq!((error.kind(), error.message()), (ErrorKind::NameTaken, "taken"));
    // Readable after its end.
    assert_eq!(job.state().await.expect("reads"), "failed");
    let stages: Vec<_> = job.stages().await.expect("reads").into_iter().map(|(stage, _)| stage).collect();
    assert_eq!(stages, ["one", "two"]);

    let (_, path): (u32, zbus::OwnedObjectPath) = call(&client, "Work", Some(false)).await.expect("starts");
    assert!(idle.is_busy());
    let job = JobProxy::builder(&client).destination(VMD.bus_name).path(path).build().await.expect("a proxy");
    job.cancel().await.expect("cancels");
    let error = Error::from(job.wait().await.expect_err("canceled"));
    assert_eq!(error.kind(), ErrorKind::JobCanceled);
    assert_eq!(job.state().await.expect("reads"), "canceled");
    let error = Error::from(job.cancel().await.expect_err("too late"));
    assert_eq!(error.kind(), ErrorKind::JobEnded, "{error}");
}

#[tokio::test]
async fn jobs_outlive_their_service() {
    let now = banger_api::now_usec();
    let begun = |id| format!("{{\"id\":{id},\"kind\":\"pull\",\"subject\":\"debian\"}}\n");
    let ended = |id, usec| {
        let end =
            format!("{{\"usec\":{usec},\"outcome\":\"web\",\"error_name\":\"\",\"error_message\":\"\"}}\n");
        format!("{}{end}", begun(id))
    };
    // The second ended so long ago that it is forgotten at once.
    let newest = u32::MAX - 1;
    let records = [ended(5, now), ended(6, now - 3_600_000_000), begun(newest), "nonsense\n".into()];
    let (hub, idle, interrupted) = service_after(&records.each_ref().map(String::as_str)).await;
    assert_eq!(interrupted, 1);
    assert!(idle.is_busy());
    let client = client(&hub).await;
    let job = |id: u32| {
        let path = format!("{}/job/{id}", VMD.path);
        let builder = JobProxy::builder(&client).destination(VMD.bus_name).path(path);
        async move { builder.build().await.expect("a proxy") }
    };
    let done = job(5).await;
    assert_eq!(done.wait().await.expect("done"), "web");
    assert_eq!((done.kind().await.as_deref(), done.subject().await.as_deref()), (Ok("pull"), Ok("debian")));
    let gone = job(6).await;
    while gone.id().await.is_ok() {
        tokio::task::yield_now().await;
    }
    let failed = job(newest).await;
    assert_eq!(failed.state().await.expect("reads"), "failed");
    let error = Error::from(failed.wait().await.expect_err("fails"));
    assert_eq!(error.kind(), ErrorKind::Interrupted);
    // No id is used twice.
    let (id, _): (u32, zbus::OwnedObjectPath) = call(&client, "Work", Some(true)).await.expect("starts");
    assert_eq!(id, newest + 1);
}

#[tokio::test]
async fn every_client_hears_everything_in_order() {
    let (hub, _idle) = service().await;
    let (caller, listener) = (client(&hub).await, client(&hub).await);
    // Who has never asked anything hears nothing.
    let _: u32 = call(&listener, "Allowed", None).await.expect("allowed");
    let mut heard = MessageStream::from(&listener);
    let _: (u32, zbus::OwnedObjectPath) = call(&caller, "Work", Some(true)).await.expect("starts");
    let mut members = Vec::new();
    while members.last().map(String::as_str) != Some("JobRemoved") {
        let message = tokio::time::timeout(Duration::from_secs(5), heard.next()).await;
        let message = message.expect("in time").expect("more").expect("whole");
        members.push(message.header().member().expect("a signal").to_string());
    }
    assert_eq!(members[..2], ["InterfacesAdded", "JobNew"]);
    // Two stages and the end.
    assert_eq!(members.iter().filter(|member| *member == "PropertiesChanged").count(), 3);
}

#[tokio::test]
async fn a_client_that_goes_away_is_forgotten() {
    let (hub, _idle) = service().await;
    drop(client(&hub).await);
    let other = client(&hub).await;
    tokio::time::sleep(Duration::from_millis(50)).await;
    // Nobody waits for the one that is gone.
    let started = call::<(u32, zbus::OwnedObjectPath)>(&other, "Work", Some(true));
    tokio::time::timeout(Duration::from_secs(2), started).await.expect("in time").expect("starts");
}

/// libsystemd takes anything but the answer to its `Hello` for a broken connection.
#[tokio::test]
async fn nothing_comes_before_the_first_answer() {
    use tokio::io::{AsyncReadExt, AsyncWriteExt};
    let (hub, _idle) = service().await;
    let (ours, theirs) = UnixStream::pair().expect("a pair");
    let builder = peer::server(ours, VMD).expect("a socket");
    let serving = hub.clone();
    tokio::spawn(async move { serving.serve_peer(builder).await });
    theirs.set_nonblocking(true).expect("sets");
    let mut client = tokio::net::UnixStream::from_std(theirs).expect("a stream");
    client.write_all(b"\0AUTH EXTERNAL\r\nDATA\r\nBEGIN\r\n").await.expect("writes");
    hub.emit(VMD.path, MANAGER, "VmNew", "early");
    let mut handshake = Vec::new();
    let mut buffer = [0; 1024];
    while let Ok(Ok(read)) = tokio::time::timeout(Duration::from_millis(200), client.read(&mut buffer)).await
    {
        handshake.extend_from_slice(&buffer[..read]);
    }
    let text = String::from_utf8(handshake).expect("only the text of the handshake");
    assert!(text.contains("OK "), "{text:?}");
    let hello =
        zbus::Message::method_call("/org/freedesktop/DBus", "Hello").interface("org.freedesktop.DBus");
    let hello = hello.build(&()).expect("a message");
    client.write_all(hello.data()).await.expect("writes");
    let read = client.read(&mut buffer).await.expect("reads");
    // The second byte of a message is its type; 2 is a reply.
    assert_eq!(buffer[1], 2, "{:?}", &buffer[..read]);
}
