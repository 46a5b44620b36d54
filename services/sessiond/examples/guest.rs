//! Talks to a guest's agent without any of banger's services: for tests/agent, and to look at a
//! guest by hand.
//!
//! ```text
//! guest serve VSOCK CONFIG.json      answers the agent's request for its configuration, prints its status
//! guest run VSOCK [-t] [-u USER] [-C DIR] [-e K=V]... [--slow] [-- COMMAND...]
//! guest wait|off|list|resize|kill VSOCK ...
//! guest ping|stats|ports|grow|quiesce|thaw VSOCK
//! guest reconfigure VSOCK CONFIG.json
//! ```

use std::fs::File;
use std::io::{Read, Write};
use std::os::unix::net::UnixStream;
use std::path::Path;
use std::thread;
use std::time::{Duration, Instant};

use banger_api::agent::AgentProxy;
use banger_core::guest::{AGENT_PORT, CONFIG_PORT, STATUS_PORT};
use banger_guest::{Agent, Command};
use zbus::connection::{AuthMechanism, Builder};
use zbus::proxy::CacheProperties;

#[tokio::main(flavor = "current_thread")]
async fn main() {
    let arguments: Vec<String> = std::env::args().skip(1).collect();
    let arguments: Vec<&str> = arguments.iter().map(String::as_str).collect();
    let [verb, vsock, rest @ ..] = arguments.as_slice() else { panic!("usage: see the source") };
    let vsock = Path::new(vsock);
    if let Err(error) = act(verb, vsock, rest).await {
        eprintln!("{}: {error}", error.kind().name());
        std::process::exit(125);
    }
}

async fn act(verb: &str, vsock: &Path, rest: &[&str]) -> banger_api::Result<()> {
    if verb == "serve" {
        serve(vsock, rest[0]);
        return Ok(());
    }
    if let Some(result) = inspect(verb, vsock, rest).await {
        return Ok(result?);
    }
    let agent = Agent::connect(vsock).await?;
    match verb {
        "run" => run(&agent, rest).await,
        "wait" => {
            println!("{:?}", agent.wait(rest[0]).await?);
            Ok(())
        }
        "list" => {
            for entry in agent.list().await? {
                println!("{entry:?}");
            }
            Ok(())
        }
        "kill" => agent.kill(rest[0], rest[1].parse().unwrap()).await,
        "resize" => agent.resize(rest[0], rest[1].parse().unwrap(), rest[2].parse().unwrap()).await,
        "off" => Agent::power_off(vsock).await,
        _ => panic!("no verb {verb}"),
    }
}

/// What sessiond has no use for: straight through the proxy.
async fn inspect(verb: &str, vsock: &Path, rest: &[&str]) -> Option<zbus::Result<()>> {
    let agent = async || {
        let mut stream = UnixStream::connect(vsock)?;
        stream.write_all(format!("CONNECT {AGENT_PORT}\n").as_bytes())?;
        let mut byte = [0];
        while byte != *b"\n" {
            stream.read_exact(&mut byte)?;
        }
        stream.set_nonblocking(true)?;
        let connection = Builder::unix_stream(stream).p2p().auth_mechanism(AuthMechanism::Anonymous).build();
        let builder = AgentProxy::builder(&connection.await?).cache_properties(CacheProperties::No);
        builder.build().await
    };
    let act = async {
        let agent: AgentProxy<'static> = agent().await?;
        match verb {
            "ping" => println!("{}", agent.ping().await?),
            "stats" => println!("{:#?}", agent.stats().await?),
            "ports" => {
                for (protocol, address, port, name, pid) in agent.listening_ports().await? {
                    println!("{protocol} {address} {port} {name} {pid}");
                }
            }
            "grow" => {
                for (device, before, after) in agent.grow_disks().await? {
                    println!("{device} {before} {after}");
                }
            }
            "quiesce" => agent.quiesce().await?,
            "thaw" => agent.thaw().await?,
            "reconfigure" => {
                for warning in agent.reconfigure(&config(rest[0])).await? {
                    println!("{warning}");
                }
            }
            _ => unreachable!(),
        }
        Ok(())
    };
    let known = ["ping", "stats", "ports", "grow", "quiesce", "thaw", "reconfigure"].contains(&verb);
    if known { Some(act.await) } else { None }
}

/// The configuration in a file, with the time of this moment.
fn config(path: &str) -> String {
    let now = std::time::SystemTime::now().duration_since(std::time::UNIX_EPOCH).unwrap();
    let config = std::fs::read_to_string(path).unwrap();
    config.replace("\"NOW\"", &now.as_micros().to_string()).replace('\n', " ")
}

fn serve(vsock: &Path, path: &str) {
    let listen = |port: u32| {
        let socket = format!("{}_{port}", vsock.display());
        let _ = std::fs::remove_file(&socket);
        std::os::unix::net::UnixListener::bind(socket).unwrap()
    };
    let (start, rest) = (listen(CONFIG_PORT), listen(STATUS_PORT));
    let begin = Instant::now();
    let (mut stream, _) = start.accept().unwrap();
    println!("{:.2} connected", begin.elapsed().as_secs_f64());
    stream.write_all(format!("{}\n", config(path)).as_bytes()).unwrap();
    print_lines(stream, begin);
    print_lines(rest.accept().unwrap().0, begin);
    println!("{:.2} end", begin.elapsed().as_secs_f64());
}

fn print_lines(stream: UnixStream, begin: Instant) {
    for line in std::io::BufRead::lines(std::io::BufReader::new(stream)) {
        let Ok(line) = line else { break };
        println!("{:.2} {line}", begin.elapsed().as_secs_f64());
    }
}

async fn run(agent: &Agent, rest: &[&str]) -> banger_api::Result<()> {
    let mut command = Command::default();
    let mut slow = false;
    let mut rest = rest.iter();
    while let Some(argument) = rest.next() {
        match *argument {
            "-t" => command.terminal = Some((24, 80)),
            "-u" => command.user = rest.next().unwrap(),
            "-C" => command.directory = rest.next().unwrap(),
            "-e" => {
                let (key, value) = rest.next().unwrap().split_once('=').unwrap();
                command.environment.insert(key.into(), value.into());
            }
            "--slow" => slow = true,
            "--" => break,
            other => panic!("no option {other}"),
        }
    }
    command.argv = rest.as_slice();
    let mut started = agent.start(&command).await?;
    eprintln!("[{}]", started.id);
    let (input, outputs) = match started.streams.remove("pty") {
        Some(pty) => (pty.try_clone().unwrap(), vec![(pty, true)]),
        None => (
            started.streams.remove("stdin").unwrap(),
            vec![
                (started.streams.remove("stdout").unwrap(), true),
                (started.streams.remove("stderr").unwrap(), false),
            ],
        ),
    };
    let mut input = File::from(input);
    let terminal = command.terminal.is_some();
    thread::spawn(move || {
        let _ = std::io::copy(&mut std::io::stdin(), &mut input);
        if terminal {
            // Closing it would hang up, and what is still to come would be lost.
            thread::park();
        }
    });
    let readers: Vec<_> = outputs
        .into_iter()
        .map(|(fd, to_stdout)| {
            thread::spawn(move || {
                let mut from = File::from(fd);
                let mut buffer = vec![0; 65536];
                let mut total: u64 = 0;
                let mut paused = 0;
                loop {
                    // Three pauses that are longer than any timeout of VMM or guest.
                    if slow && to_stdout && total >= paused * 1_000_000 && paused < 3 {
                        thread::sleep(Duration::from_secs(12));
                        paused += 1;
                    }
                    match from.read(&mut buffer).unwrap() {
                        0 => break,
                        n if to_stdout => std::io::stdout().write_all(&buffer[..n]).unwrap(),
                        n => std::io::stderr().write_all(&buffer[..n]).unwrap(),
                    }
                    total += 65536;
                }
            })
        })
        .collect();
    let (status, signal) = agent.wait(&started.id).await?;
    let joined = tokio::task::spawn_blocking(move || readers.into_iter().for_each(|it| it.join().unwrap()));
    joined.await.unwrap();
    std::process::exit(if signal == 0 { status } else { 128 + signal });
}
