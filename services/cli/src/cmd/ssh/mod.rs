//! SSH into VMs: as `NAME.banger` into every one, and as `NAME.DOMAIN` to those with an sshd.
//!
//! - [`config`]: what ssh(1) has to know, and where it finds it
//! - [`keys`]: the keys of banger's own
//! - [`proxy`]: the server that ssh finds as `NAME.banger`

pub mod config;
mod keys;
pub mod proxy;

use std::collections::BTreeMap;
use std::os::fd::OwnedFd;

use banger_api::options::OptionsBuilder;
use banger_api::{ErrorKind, Result};

use crate::{Context, output, stream};

/// What follows the name of a VM where its agent is meant, and no address.
const SUFFIX: &str = ".banger";
/// The user that the configuration names if the caller names none: the image's own. It is no name that
/// useradd(8) gives to anybody.
const IMAGE_USER: &str = ".image";

/// Prints the public keys of a VM's own sshd as ssh(1) has them in `known_hosts`; none if it has none.
const HOST_KEYS: &str = "\
cat /etc/ssh/ssh_host_*_key.pub 2>/dev/null
for key in /etc/dropbear/*_host_key; do dropbearkey -y -f \"$key\" 2>/dev/null; done
true";
/// The most of it that is read.
const MAX_HOST_KEYS: usize = 64 * 1024;

/// For ssh(1), which asks before each connection (`KnownHostsCommand`): the guest tells its keys by a way that nobody else
/// can be at.
pub async fn known_hosts(context: &Context, host: &str) -> Result<()> {
    // It asks for addresses as well.
    let Some((vm, _)) = host.split_once('.') else { return Ok(()) };
    let sessions = context.bus.sessions().await?;
    let options = OptionsBuilder::new().set("user", Some("0:0")).build();
    let argv = ["/bin/sh", "-c", HOST_KEYS];
    let Ok((_, _, stdin, out, err)) = sessions.exec(vm, &argv, &BTreeMap::new(), options).await else {
        // ssh gives up if this fails, and there may be an sshd there that is not ours to judge.
        return Ok(());
    };
    drop((stdin, err));
    let answer = stream::read_up_to(OwnedFd::from(out), MAX_HOST_KEYS).await?;
    output::print(&lines(host, &String::from_utf8_lossy(&answer)));
    Ok(())
}

/// Lines of `known_hosts` from what a guest said, which may be anything.
fn lines(host: &str, answer: &str) -> String {
    let keys = answer.lines().filter_map(|line| {
        let mut words = line.split(' ');
        let (kind, key) = (words.next()?, words.next()?);
        let is_kind = ["ssh-", "ecdsa-"].iter().any(|prefix| kind.starts_with(prefix));
        let is_plain =
            |text: &str| text.bytes().all(|byte| byte.is_ascii_alphanumeric() || b"+/=-".contains(&byte));
        (is_kind && is_plain(kind) && is_plain(key)).then(|| format!("{host} {kind} {key}\n"))
    });
    keys.collect()
}

/// The VM that a host name stands for.
fn vm_of(host: &str) -> Result<&str> {
    host.strip_suffix(SUFFIX).filter(|vm| !vm.is_empty()).ok_or_else(|| {
        ErrorKind::InvalidArgs.error(format!("{host} is not NAME{SUFFIX}, which is how ssh finds a VM"))
    })
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn hosts_are_vms() {
        assert_eq!(vm_of("web.banger").expect("a VM"), "web");
        for host in ["web", "web.banger.internal", ".banger", ""] {
            assert!(vm_of(host).is_err(), "{host}");
        }
    }

    #[test]
    fn guests_say_keys_and_nothing_else() {
        let answer = "ssh-ed25519 AAAA+/= root@x\nPublic key portion is:\nssh-rsa AAAA\n* ssh-rsa AAAA\nssh-rsa A\u{1b}[2J\n\
                      @cert-authority ssh-rsa A\necdsa-sha2-nistp256 AAAA";
        assert_eq!(
            lines("web.x", answer),
            "web.x ssh-ed25519 AAAA+/=\nweb.x ssh-rsa AAAA\nweb.x ecdsa-sha2-nistp256 AAAA\n"
        );
    }
}
