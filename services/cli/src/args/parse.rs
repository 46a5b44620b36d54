//! Values of options.

use banger_core::event;
use banger_core::forward::Listen;
use banger_core::resource;
use banger_core::units::{parse_seconds, parse_size};

/// A volume in a guest: its name, the path there, whether it is read-only.
pub type Attachment = (String, String, bool);

pub fn parse_volume(text: &str) -> Result<Attachment, String> {
    let wrong = || format!("{text:?} is not VOLUME:PATH or VOLUME:PATH:ro");
    let (volume, rest) = text.split_once(':').ok_or_else(wrong)?;
    let (path, read_only) = match rest.strip_suffix(":ro") {
        Some(path) => (path, true),
        None => (rest, false),
    };
    if volume.is_empty() || !path.starts_with('/') || path.contains(':') {
        return Err(wrong());
    }
    Ok((volume.to_owned(), path.to_owned(), read_only))
}

/// `[ADDRESS:]PORT[/udp]`.
pub fn parse_listen(text: &str) -> Result<Listen, String> {
    let (address, protocol) = text.split_once('/').unwrap_or((text, "tcp"));
    let listen = match address.parse::<u16>() {
        Ok(_) => Listen::new(protocol, &format!("127.0.0.1:{address}")),
        Err(_) => Listen::new(protocol, address),
    };
    listen.map_err(|error| error.to_string())
}

pub fn parse_pair(text: &str) -> Result<(String, String), String> {
    let (name, value) = text.split_once('=').ok_or_else(|| format!("{text:?} is not NAME=VALUE"))?;
    Ok((name.to_owned(), value.to_owned()))
}

/// A command line.
pub type Words = Vec<String>;

/// Words, or a list of them in JSON for those with spaces in them.
pub fn parse_words(text: &str) -> Result<Words, String> {
    if !text.trim_start().starts_with('[') {
        return Ok(text.split_whitespace().map(str::to_owned).collect());
    }
    serde_json::from_str(text).map_err(|error| format!("{text:?} is not a list of words: {error}"))
}

/// As a size, but 0 is no limit.
pub fn parse_limit(text: &str) -> Result<u64, String> {
    if text == "0" { Ok(0) } else { parse_size(text) }
}

/// `nofile=1024`, `as=512M`, `core=unlimited`.
pub fn parse_resource(text: &str) -> Result<(String, u64), String> {
    let invalid = || format!("{text:?} is no limit such as nofile=1024, as=512M or core=unlimited");
    let (name, value) = text.split_once('=').ok_or_else(invalid)?;
    let value = match value {
        "unlimited" | "infinity" => resource::UNLIMITED,
        value => value.parse().or_else(|_| parse_size(value)).map_err(|_| invalid())?,
    };
    let limit = (name.to_owned(), value);
    resource::check(&[limit.clone()].into()).map_err(|error| error.to_string())?;
    Ok(limit)
}

/// As many as the guest sees.
pub fn parse_cpus(text: &str) -> Result<u32, String> {
    text.parse().map_err(|_| {
        format!("{text:?} is not a number of CPUs; --cpu-quota 150% limits what they take of the host's")
    })
}

/// `150` or `150%`.
pub fn parse_percent(text: &str) -> Result<u32, String> {
    let number = text.strip_suffix('%').unwrap_or(text);
    number.parse().map_err(|_| format!("{text:?} is not a percentage such as 150%"))
}

/// Microseconds since 1970 of a time so long ago, or of `@SECONDS`.
pub fn parse_since(text: &str) -> Result<u64, String> {
    let seconds = match text.strip_prefix('@') {
        Some(seconds) => {
            seconds.parse().map_err(|_| format!("{text:?} is not a time such as @1700000000"))?
        }
        None => (banger_api::now_usec() / 1_000_000).saturating_sub(parse_seconds(text)?),
    };
    Ok(u64::saturating_mul(seconds, 1_000_000))
}

/// `KILL`, `SIGKILL`, `9`.
pub fn parse_signal(text: &str) -> Result<i32, String> {
    if let Ok(number) = text.parse() {
        return Ok(number);
    }
    let name = text.to_ascii_uppercase();
    let name = if name.starts_with("SIG") { name } else { format!("SIG{name}") };
    name.parse::<nix::sys::signal::Signal>()
        .map(|signal| signal as i32)
        .map_err(|_| format!("{text:?} is not a signal such as TERM or 15"))
}

/// The name of an event, or of what it happens to.
pub fn parse_event(text: &str) -> Result<String, String> {
    match event::KINDS.iter().any(|kind| kind.is_called(text)) {
        true => Ok(text.to_owned()),
        false => Err("there is no such event; see banger-events(7)".into()),
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn words() {
        assert_eq!(parse_words("nginx  -g"), Ok(vec!["nginx".into(), "-g".into()]));
        assert_eq!(parse_words(r#"["sh", "a b"]"#), Ok(vec!["sh".into(), "a b".into()]));
        assert_eq!(parse_words(""), Ok(vec![]));
        assert!(parse_words("[sh]").is_err());
    }

    #[test]
    fn times() {
        assert_eq!(parse_since("@5"), Ok(5_000_000));
        let minute_ago = parse_since("1min").unwrap();
        assert!(minute_ago < banger_api::now_usec() && minute_ago.is_multiple_of(1_000_000));
        assert!(parse_since("@x").is_err() && parse_since("soon").is_err());
    }

    #[test]
    fn volumes_and_signals() {
        assert_eq!(parse_cpus("2"), Ok(2));
        assert!(parse_cpus("1.5").is_err_and(|said| said.contains("--cpu-quota")));
        assert_eq!(parse_volume("data:/srv"), Ok(("data".into(), "/srv".into(), false)));
        assert_eq!(parse_volume("data:/srv:ro"), Ok(("data".into(), "/srv".into(), true)));
        for bad in ["data", "data:srv", ":/srv", "data:/srv:rw", ""] {
            assert!(parse_volume(bad).is_err(), "{bad:?}");
        }
        assert_eq!(parse_signal("term"), Ok(15));
        assert_eq!(parse_signal("SIGKILL"), Ok(9));
        assert!(parse_signal("NEVER").is_err());
    }
}
