//! The image's init, where that is systemd.

use std::fs;
use std::os::unix::net::UnixStream;
use std::path::Path;
use std::time::Duration;

use banger_core::ending::Goodbye;
use tokio::time::sleep;
use zbus::connection::Builder;

/// Where systemd serves root alone, peer to peer.
const PRIVATE: &str = "/run/systemd/private";

/// Between two tries to reach a systemd that is about to come up, or to become another program.
const PAUSE: Duration = Duration::from_millis(100);

/// Whether PID 1 is systemd, as sd_booted(3) tells.
pub fn is_init() -> bool {
    Path::new("/run/systemd/system").is_dir()
}

/// Whether systemd is what the image starts as its init.
pub fn will_be_init() -> bool {
    fs::canonicalize("/sbin/init").is_ok_and(|init| init.file_name().is_some_and(|name| name == "systemd"))
}

/// Waits until systemd is about to end the machine, and returns how.
///
/// Its last act is to become systemd-shutdown, and nobody is told: processes from the initramfs
/// such as this one are spared the signals of a shutdown. But a connection to it ends at that
/// moment. It ends as well when systemd executes itself anew; then there is another one to make.
pub async fn shutdown() -> Goodbye {
    loop {
        if let Some(goodbye) = fs::read("/proc/1/cmdline").ok().and_then(|line| verb(&line)) {
            return goodbye;
        }
        if let Ok(connection) = connect().await {
            connection.closed().await;
        } else {
            sleep(PAUSE).await;
        }
    }
}

async fn connect() -> zbus::Result<zbus::Connection> {
    Builder::unix_stream(UnixStream::connect(PRIVATE)?).p2p().build().await
}

/// What systemd-shutdown was started for, from its command line.
fn verb(line: &[u8]) -> Option<Goodbye> {
    let mut words = line.split(|&byte| byte == 0);
    if !words.next()?.ends_with(b"systemd-shutdown") {
        return None;
    }
    match words.next()? {
        b"reboot" => Some(Goodbye::Reboot),
        b"poweroff" | b"halt" => Some(Goodbye::PowerOff),
        // The machine goes on.
        _ => None,
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn the_command_line_of_systemd_shutdown_tells() {
        let line = b"/usr/lib/systemd/systemd-shutdown\0reboot\0--log-level\x006\0";
        assert_eq!(verb(line), Some(Goodbye::Reboot));
        assert_eq!(verb(b"/lib/systemd/systemd-shutdown\0poweroff\0"), Some(Goodbye::PowerOff));
        for line in
            [&b""[..], b"/sbin/init\0", b"/lib/systemd/systemd-shutdown\0kexec\0", b"systemd-shutdown"]
        {
            assert_eq!(verb(line), None);
        }
    }
}
