//! The call to the host while the guest starts: the configuration comes in over it, status goes out.

use std::fmt::Display;
use std::fs::File;
use std::io::{Read, Write};
use std::os::fd::OwnedFd;
use std::thread::sleep;
use std::time::Duration;

use anyhow::{Context, bail, ensure};
use banger_core::guest::{
    CONFIG_PORT, FAILURE_KEY, GuestConfig, MAX_CONFIG, PROTOCOL, STAGE_KEY, UPTIME_KEY, WARNING_KEY,
};
use nix::sys::socket::{setsockopt, sockopt};
use nix::sys::time::{TimeVal, TimeValLike};
use serde::Deserialize;

use crate::{sys, vsock};

/// How long the host may let us wait for its configuration.
const PATIENCE: Duration = Duration::from_secs(30);

/// The connection.
pub struct Host {
    connection: File,
}

impl Host {
    /// Connects and reads the configuration.
    pub fn connect() -> anyhow::Result<(Self, GuestConfig)> {
        let mut connection = File::from(dial().context("cannot reach the host over vsock")?);
        let line = read_line(&mut connection).context("cannot read the configuration")?;
        let config = parse(&line)?;
        Ok((Self { connection }, config))
    }

    pub fn stage(&mut self, stage: &str) {
        self.send(&status(&[(STAGE_KEY, &stage), (UPTIME_KEY, &sys::uptime().as_micros())]));
    }

    /// The last that is said here; [`crate::line`] does the rest.
    pub fn ready(mut self) {
        self.send(&status(&[(UPTIME_KEY, &sys::uptime().as_micros()), ("READY", &1)]));
    }

    /// Something is missing that the guest comes up without.
    pub fn warning(&mut self, what: &str) {
        sys::log!(sys::WARNING, "{what}");
        self.send(&status(&[(WARNING_KEY, &what)]));
    }

    pub fn failed(&mut self, reason: &str) {
        self.send(&status(&[(FAILURE_KEY, &reason)]));
    }

    /// The host may have stopped listening, and that must not stop us.
    fn send(&mut self, lines: &str) {
        if let Err(error) = self.connection.write_all(lines.as_bytes()) {
            sys::log!(sys::WARNING, "cannot tell the host: {error}");
        }
    }
}

/// Lines in the form of sd_notify(3).
fn status(fields: &[(&str, &dyn Display)]) -> String {
    fields.iter().map(|(key, value)| format!("{key}={}\n", value.to_string().replace('\n', " "))).collect()
}

/// The device may still be coming up, or the host not listen yet.
fn dial() -> nix::Result<OwnedFd> {
    let deadline = sys::uptime() + PATIENCE;
    loop {
        let error = match vsock::connect_host(CONFIG_PORT) {
            Ok(fd) => {
                setsockopt(&fd, sockopt::ReceiveTimeout, &TimeVal::seconds(PATIENCE.as_secs() as i64))?;
                setsockopt(&fd, sockopt::SendTimeout, &TimeVal::seconds(5))?;
                return Ok(fd);
            }
            Err(error) => error,
        };
        if sys::uptime() >= deadline {
            return Err(error);
        }
        sleep(Duration::from_millis(20));
    }
}

fn read_line(mut from: impl Read) -> anyhow::Result<Vec<u8>> {
    let mut line = Vec::new();
    let mut buffer = [0; 16384];
    loop {
        // Nothing follows the one line, so reading ahead takes nothing from anybody.
        let n = from.read(&mut buffer)?;
        ensure!(n > 0, "the host broke off");
        match buffer[..n].iter().position(|&byte| byte == b'\n') {
            Some(end) => {
                line.extend(&buffer[..end]);
                return Ok(line);
            }
            None => line.extend(&buffer[..n]),
        }
        ensure!(line.len() <= MAX_CONFIG, "it is longer than {MAX_CONFIG} bytes");
    }
}

pub fn parse(line: &[u8]) -> anyhow::Result<GuestConfig> {
    #[derive(Deserialize)]
    struct Version {
        protocol: Option<u32>,
    }
    // The version first: fields of another one need not be understood.
    let version: Version = serde_json::from_slice(line).context("the configuration is no JSON object")?;
    match version.protocol {
        Some(PROTOCOL) => {}
        Some(protocol) => bail!("the host speaks protocol {protocol}, this agent {PROTOCOL}"),
        None => bail!("the configuration names no protocol"),
    }
    serde_json::from_slice(line).context("the configuration is malformed")
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn another_protocol_is_named_whatever_else_it_says() {
        let error = parse(br#"{"protocol": 999, "new": true}"#).unwrap_err();
        assert_eq!(error.to_string(), format!("the host speaks protocol 999, this agent {PROTOCOL}"));
    }

    #[test]
    fn nonsense_is_an_error() {
        for line in ["", "{", "[]", "null", "{}", r#"{"protocol":2}"#, r#"{"protocol":"2"}"#] {
            assert!(parse(line.as_bytes()).is_err(), "{line}");
        }
    }

    #[test]
    fn lines_are_bounded() {
        assert_eq!(read_line(&b"abc\nrest"[..]).unwrap(), b"abc");
        assert!(read_line(&b"abc"[..]).is_err());
        assert!(read_line(std::io::repeat(b'x')).is_err());
    }

    #[test]
    fn a_value_never_begins_a_line_of_its_own() {
        assert_eq!(status(&[("A", &"x\nREADY=1"), ("B", &2)]), "A=x READY=1\nB=2\n");
    }
}
