//! The hook of systemd-resolved, since systemd 259: before it asks any server it asks us about our names, over
//! Varlink, by a socket in `/run/systemd/resolve.hook`.
//!
//! All along it holds a connection on which we have said which names those are, and if that ends it starts us at once to ask
//! again. So that we can leave all the same, systemd keeps the connection, as the drop-in of `generator.rs` asks
//! of it, and the next of us gets it back. What is on it does not change but by the configuration.
//!
//! Protocol: <https://varlink.org/Method-Call>, JSON objects each ended by a zero byte. Interface: `io.systemd.Resolve.Hook`,
//! `varlink/io.systemd.Resolve.Hook.varlink` as far as it is ours. A crate for Varlink would bring a
//! server of its own, which could not give its connections away.

use std::io;
use std::os::fd::AsFd;

use banger_api::Result;
use banger_daemon::{Context, Idle};
use base64::Engine;
use base64::engine::general_purpose::STANDARD as BASE64;
use domain::base::Question;
use domain::base::iana::{Class, Rtype};
use nix::unistd::User;
use serde::Deserialize;
use serde_json::{Value, json};
use tokio::io::{AsyncBufReadExt, AsyncReadExt, AsyncWriteExt, BufReader};
use tokio::net::{UnixListener, UnixStream};

use super::zone::{Name, Zone};
use super::{Names, answer};

/// `FileDescriptorName=` of our socket, and of resolved's connection among what systemd kept.
const SOCKET_NAME: &str = "hook";
const FILTER_NAME: &str = "hook-filter";

/// Who asks hooks, besides root.
const RESOLVED: &str = "systemd-resolve";

/// The longest call that is read. Questions are names, and few.
const MAX_CALL: u64 = 64 * 1024;

const SERVICE: &str = include_str!("varlink/org.varlink.service.varlink");
const HOOK: &str = include_str!("varlink/io.systemd.Resolve.Hook.varlink");

/// Answers resolved until the runtime ends, if systemd has opened the socket for it.
///
/// # Errors
/// If the runtime cannot watch the sockets.
pub fn serve(context: &Context, names: &Names) -> Result<()> {
    let hook = Hook { names: names.clone(), idle: context.idle.clone() };
    for (name, fd) in context.sockets.iter() {
        match name.as_str() {
            SOCKET_NAME => {
                let listener = std::os::unix::net::UnixListener::from(fd.try_clone()?);
                listener.set_nonblocking(true)?;
                tokio::spawn(hook.clone().accept(UnixListener::from_std(listener)?));
            }
            FILTER_NAME => {
                let stream = std::os::unix::net::UnixStream::from(fd.try_clone()?);
                stream.set_nonblocking(true)?;
                tokio::spawn(hook.clone().resume(UnixStream::from_std(stream)?));
            }
            _ => {}
        }
    }
    Ok(())
}

#[derive(Clone)]
struct Hook {
    names: Names,
    idle: Idle,
}

impl Hook {
    /// Nobody but resolved and root is answered: who only held connections open would hold up every lookup of the host's.
    async fn accept(self, listener: UnixListener) {
        let resolved = User::from_name(RESOLVED).ok().flatten().map(|user| user.uid.as_raw());
        loop {
            match listener.accept().await {
                Ok((stream, _)) => {
                    let uid = stream.peer_cred().map(|peer| peer.uid());
                    if uid.is_ok_and(|uid| uid == 0 || Some(uid) == resolved) {
                        tokio::spawn(self.clone().converse(stream));
                    }
                }
                Err(error) => super::server::pause_after("accept resolved's connection", &error).await,
            }
        }
    }

    /// Which names are ours may have changed since the last of us said so.
    async fn resume(self, mut stream: UnixStream) {
        let filter = message(&json!({"parameters": filter(&self.zone()), "continues": true}));
        if stream.write_all(&filter).await.is_ok() {
            self.converse(stream).await;
        }
    }

    async fn converse(self, stream: UnixStream) {
        if let Err(error) = self.answer_all(stream).await {
            tracing::debug!("resolved: {error}");
        }
    }

    async fn answer_all(&self, mut stream: UnixStream) -> io::Result<()> {
        let (read, mut write) = stream.split();
        let mut read = BufReader::new(read);
        loop {
            let mut call = Vec::new();
            (&mut read).take(MAX_CALL).read_until(0, &mut call).await?;
            if call.pop() != Some(0) {
                return Ok(());
            }
            let under_way = self.idle.call();
            let Some(reply) = reply(&call, &self.zone()) else { return Ok(()) };
            write.write_all(&reply.message).await?;
            if reply.continues {
                banger_daemon::keep(FILTER_NAME, read.get_ref().as_ref().as_fd());
            }
            drop(under_way);
        }
    }

    fn zone(&self) -> std::sync::RwLockReadGuard<'_, Zone> {
        self.names.read().unwrap_or_else(std::sync::PoisonError::into_inner)
    }
}

#[derive(Debug, PartialEq, Eq)]
struct Reply {
    /// Empty if the caller wants none.
    message: Vec<u8>,
    /// The caller waits for more of them.
    continues: bool,
}

#[derive(Deserialize)]
struct Call {
    method: String,
    #[serde(default)]
    parameters: Value,
    #[serde(default)]
    more: bool,
    #[serde(default)]
    oneway: bool,
}

/// What a call is answered. `None`: it is none.
fn reply(call: &[u8], zone: &Zone) -> Option<Reply> {
    let call: Call = serde_json::from_slice(call).ok()?;
    let (reply, continues) = match outcome(&call, zone) {
        Ok(parameters) => {
            let continues = call.more && call.method == "io.systemd.Resolve.Hook.QueryFilter";
            (json!({"parameters": parameters, "continues": continues}), continues)
        }
        Err((error, parameter, what)) => {
            let error = format!("org.varlink.service.{error}");
            (json!({"error": error, "parameters": {parameter: what}}), false)
        }
    };
    Some(if call.oneway {
        Reply { message: Vec::new(), continues: false }
    } else {
        Reply { message: message(&reply), continues }
    })
}

fn message(value: &Value) -> Vec<u8> {
    let mut message = value.to_string().into_bytes();
    message.push(0);
    message
}

/// An error of `org.varlink.service`, and its parameter.
type Refusal = (&'static str, &'static str, String);

fn outcome(call: &Call, zone: &Zone) -> std::result::Result<Value, Refusal> {
    match call.method.as_str() {
        "io.systemd.Resolve.Hook.ResolveRecord" => resolve(&call.parameters, zone),
        "io.systemd.Resolve.Hook.QueryFilter" => Ok(filter(zone)),
        "org.varlink.service.GetInfo" => Ok(json!({
            "vendor": "banger",
            "product": "banger-netd",
            "version": env!("CARGO_PKG_VERSION"),
            "url": "",
            "interfaces": ["io.systemd.Resolve.Hook", "org.varlink.service"],
        })),
        "org.varlink.service.GetInterfaceDescription" => {
            let description = match call.parameters["interface"].as_str() {
                Some("io.systemd.Resolve.Hook") => HOOK,
                Some("org.varlink.service") => SERVICE,
                Some(other) => return Err(("InterfaceNotFound", "interface", other.to_owned())),
                None => return Err(("InvalidParameter", "parameter", "interface".to_owned())),
            };
            Ok(json!({"description": description}))
        }
        other => Err(("MethodNotFound", "method", other.to_owned())),
    }
}

/// The names that resolved asks us for.
fn filter(zone: &Zone) -> Value {
    let tops: Vec<String> = zone.tops().iter().map(Name::to_string).collect();
    json!({"filterDomains": tops})
}

#[derive(Deserialize)]
struct Lookup {
    question: Vec<Asked>,
}

#[derive(Deserialize)]
struct Asked {
    key: Key,
}

#[derive(Deserialize)]
struct Key {
    #[serde(default = "internet")]
    class: u16,
    r#type: u16,
    name: String,
}

fn internet() -> u16 {
    Class::IN.to_int()
}

/// An empty answer leaves the lookup to others.
fn resolve(parameters: &Value, zone: &Zone) -> std::result::Result<Value, Refusal> {
    let wrong = || ("InvalidParameter", "parameter", "question".to_owned());
    let lookup = Lookup::deserialize(parameters).map_err(|_| wrong())?;
    if lookup.question.is_empty() {
        return Err(wrong());
    }
    let question = |asked: Asked| {
        let class = Class::from_int(asked.key.class);
        let name: Name = asked.key.name.parse().ok()?;
        (class == Class::IN).then(|| Question::new(name, Rtype::from_int(asked.key.r#type), class))
    };
    // A name that is no domain name, or of another class, is none of ours.
    let questions: Option<Vec<_>> = lookup.question.into_iter().map(question).collect();
    let Some((rcode, records)) = questions.and_then(|questions| answer::records(&questions, zone)) else {
        return Ok(json!({}));
    };
    let records: Vec<_> = records.iter().map(|record| json!({"raw": BASE64.encode(record)})).collect();
    Ok(json!({"rcode": rcode.to_int(), "answer": records}))
}

#[cfg(test)]
mod tests {
    use super::super::zone::Outside;
    use super::*;

    fn zone() -> Zone {
        let gateways = ["10.209.0.1/16", "fd00::1/64"].map(|text| text.parse().expect("a network"));
        let mut zone = Zone::new("banger.internal".parse().expect("a name"), &gateways);
        let addresses = ["10.209.0.2", "fd00::2"].map(|text| text.parse().expect("an address"));
        zone.put("web", &addresses, &Outside::NOTHING);
        zone
    }

    fn called(call: &Value) -> Value {
        let reply = reply(call.to_string().as_bytes(), &zone()).expect("a reply").message;
        let (zero, text) = reply.split_last().expect("not empty");
        assert_eq!(*zero, 0);
        serde_json::from_slice(text).expect("JSON")
    }

    /// The response code, and the records in hexadecimal.
    fn resolved(keys: &[(u16, &str)]) -> Option<(i64, Vec<String>)> {
        let keys: Vec<_> = keys
            .iter()
            .map(|(kind, name)| json!({"key": {"class": 1, "type": kind, "name": name}}))
            .collect();
        let call =
            json!({"method": "io.systemd.Resolve.Hook.ResolveRecord", "parameters": {"question": keys}});
        let parameters = &called(&call)["parameters"];
        let records = parameters["answer"].as_array()?.iter().map(|record| {
            let raw = BASE64.decode(record["raw"].as_str().expect("text")).expect("Base64");
            raw.iter().map(|byte| format!("{byte:02x}")).collect()
        });
        Some((parameters["rcode"].as_i64()?, records.collect()))
    }

    const WEB: &str = "037765620662616e67657208696e7465726e616c00";

    #[test]
    fn names_of_ours_are_answered_and_others_left_to_others() {
        let (a, aaaa) = (1, 28);
        let v4 = format!("{WEB}000100010000000000040ad10002");
        let v6 = format!("{WEB}001c0001000000000010fd000000000000000000000000000002");
        assert_eq!(resolved(&[(a, "web.banger.internal")]), Some((0, vec![v4.clone()])));
        let both = [(a, "web.banger.internal"), (aaaa, "web.banger.internal")];
        assert_eq!(resolved(&both), Some((0, vec![v4, v6])));
        let pointer =
            format!("0132013003323039023130 07696e2d61646472 0461727061 00 000c000100000000 0015{WEB}");
        assert_eq!(resolved(&[(12, "2.0.209.10.in-addr.arpa")]), Some((0, vec![pointer.replace(' ', "")])));
        // There, but without such a record; not there.
        assert_eq!(resolved(&[(16, "web.banger.internal")]), Some((0, vec![])));
        assert_eq!(resolved(&[(a, "db.banger.internal")]), Some((3, vec![])));
        assert_eq!(resolved(&[(a, "example.org")]), None);
        assert_eq!(resolved(&[(a, "web.banger.internal"), (a, "example.org")]), None);
        assert_eq!(resolved(&[(a, &"x".repeat(64))]), None);
    }

    #[test]
    fn who_asks_for_the_filter_may_wait_for_more() {
        let method = "io.systemd.Resolve.Hook.QueryFilter";
        let once = called(&json!({"method": method}));
        assert_eq!(once["parameters"]["filterDomains"][0], "banger.internal");
        assert_eq!(once["parameters"]["filterDomains"][1], "209.10.in-addr.arpa");
        assert_eq!(once["continues"], false);
        let more = json!({"method": method, "parameters": null, "more": true}).to_string();
        assert!(reply(more.as_bytes(), &zone()).expect("a reply").continues);
        let silent = json!({"method": method, "more": true, "oneway": true}).to_string();
        let nothing = Reply { message: Vec::new(), continues: false };
        assert_eq!(reply(silent.as_bytes(), &zone()), Some(nothing));
    }

    #[test]
    fn it_says_what_it_is() {
        let info = called(&json!({"method": "org.varlink.service.GetInfo"}));
        for interface in info["parameters"]["interfaces"].as_array().expect("a list") {
            let method = "org.varlink.service.GetInterfaceDescription";
            let described = called(&json!({"method": method, "parameters": {"interface": interface}}));
            let text = described["parameters"]["description"].as_str().expect("text");
            assert!(
                text.contains(&format!("\ninterface {}\n", interface.as_str().expect("a name"))),
                "{text}"
            );
        }
    }

    #[test]
    fn what_is_wrong_is_told_by_its_name() {
        let resolve = "io.systemd.Resolve.Hook.ResolveRecord";
        for (call, error) in [
            (json!({"method": "io.systemd.Resolve.Hook.Nothing"}), "MethodNotFound"),
            (json!({"method": resolve}), "InvalidParameter"),
            (json!({"method": resolve, "parameters": {"question": []}}), "InvalidParameter"),
            (
                json!({"method": resolve, "parameters": {"question": [{"key": {"name": "x"}}]}}),
                "InvalidParameter",
            ),
            (json!({"method": "org.varlink.service.GetInterfaceDescription"}), "InvalidParameter"),
            (
                json!({"method": "org.varlink.service.GetInterfaceDescription", "parameters": {"interface": "x"}}),
                "InterfaceNotFound",
            ),
        ] {
            assert_eq!(called(&call)["error"], format!("org.varlink.service.{error}"), "{call}");
        }
        for nonsense in ["", "{}", "[]", "{\"method\":1}", "{\"method\":\"x\"", "\u{0}"] {
            assert_eq!(reply(nonsense.as_bytes(), &zone()), None, "{nonsense}");
        }
    }
}
