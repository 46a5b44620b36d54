//! Users and groups of the image, from its `/etc/passwd` and `/etc/group`.
//!
//! A static binary has no name service switch, and a container's user is one of these files by
//! definition. The files are the image's, so any line of them may be nonsense: such lines are
//! passed over.

use std::collections::BTreeSet;

/// A process's user, groups and what its environment says of them.
#[derive(Debug, Clone, PartialEq, Eq)]
pub struct User {
    pub uid: u32,
    pub gid: u32,
    pub groups: Vec<u32>,
    pub name: String,
    pub home: String,
    pub shell: String,
}

/// Why there is no such user.
#[derive(Debug, PartialEq, Eq)]
pub enum Missing {
    User(String),
    Group(String),
}

/// At most this many supplementary groups, which is more than any kernel-side quota met so far
/// and keeps a hostile file from growing the list without end.
const MAX_GROUPS: usize = 1024;

struct Passwd<'a> {
    name: &'a str,
    uid: u32,
    gid: u32,
    home: &'a str,
    shell: &'a str,
}

struct Group<'a> {
    name: &'a str,
    gid: u32,
    members: &'a str,
}

fn passwd(content: &str) -> impl Iterator<Item = Passwd<'_>> {
    content.lines().filter_map(|line| {
        let mut fields = line.split(':');
        let name = fields.next().filter(|name| !name.is_empty())?;
        let mut fields = fields.skip(1);
        Some(Passwd {
            name,
            uid: id(fields.next()?)?,
            gid: id(fields.next()?)?,
            home: fields.nth(1)?,
            shell: fields.next().unwrap_or(""),
        })
    })
}

fn groups(content: &str) -> impl Iterator<Item = Group<'_>> {
    content.lines().filter_map(|line| {
        let mut fields = line.split(':');
        let name = fields.next().filter(|name| !name.is_empty())?;
        let mut fields = fields.skip(1);
        Some(Group { name, gid: id(fields.next()?)?, members: fields.next().unwrap_or("") })
    })
}

/// A decimal id. `u32::MAX` means "unchanged" to the kernel and is no id.
fn id(digits: &str) -> Option<u32> {
    let decimal = !digits.is_empty() && digits.bytes().all(|byte| byte.is_ascii_digit());
    digits.parse().ok().filter(|&id| decimal && id != u32::MAX)
}

/// Resolves `user`, `uid`, `user:group`, `uid:gid`, or the empty string for root.
///
/// As elsewhere with containers: a name wins over a number; a number need not be in the file and
/// then has group 0; supplementary groups come with a user whose group is not given.
pub fn resolve(spec: &str, passwd_file: &[u8], group_file: &[u8]) -> Result<User, Missing> {
    let passwd_file = String::from_utf8_lossy(passwd_file);
    let group_file = String::from_utf8_lossy(group_file);
    let (user, group) = match spec.split_once(':') {
        Some((user, group)) => (user, Some(group).filter(|group| !group.is_empty())),
        None => (spec, None),
    };
    let user = if user.is_empty() { "0" } else { user };

    let number = id(user);
    let entry = passwd(&passwd_file)
        .find(|entry| entry.name == user)
        .or_else(|| passwd(&passwd_file).find(|entry| Some(entry.uid) == number));
    let mut found = match (entry, number) {
        (Some(entry), _) => User {
            uid: entry.uid,
            gid: entry.gid,
            groups: Vec::new(),
            name: entry.name.into(),
            home: entry.home.into(),
            shell: entry.shell.into(),
        },
        (None, Some(uid)) => User {
            uid,
            gid: 0,
            groups: Vec::new(),
            name: if uid == 0 { "root".into() } else { uid.to_string() },
            home: if uid == 0 { "/root".into() } else { "/".into() },
            shell: String::new(),
        },
        (None, None) => return Err(Missing::User(user.into())),
    };
    if found.home.is_empty() {
        found.home = "/".into();
    }
    if found.shell.is_empty() {
        found.shell = "/bin/sh".into();
    }
    match group {
        Some(group) => {
            found.gid = groups(&group_file)
                .find(|entry| entry.name == group)
                .map(|entry| entry.gid)
                .or_else(|| id(group))
                .ok_or_else(|| Missing::Group(group.into()))?;
            found.groups = vec![found.gid];
        }
        None => {
            let of_user = groups(&group_file)
                .filter(|entry| entry.members.split(',').any(|member| member == found.name))
                .map(|entry| entry.gid);
            let all: BTreeSet<u32> = std::iter::once(found.gid).chain(of_user).take(MAX_GROUPS).collect();
            found.groups = all.into_iter().collect();
        }
    }
    Ok(found)
}

#[cfg(test)]
mod tests {
    use super::*;
    use proptest::prelude::*;

    const PASSWD: &[u8] = b"root:x:0:0:root:/root:/bin/bash\n\
        # comment\n\
        broken\n\
        :x:5:5::/:\n\
        bad:x:-1:0::/:\n\
        last:x:4294967295:0::/:\n\
        web:x:33:33:www:/var/www:/usr/sbin/nologin\n\
        33:x:44:44::/n:\n\
        \xff\xfe:x:9:9::/:/bin/sh\n\
        short:x:50:50::/home/short";
    const GROUP: &[u8] = b"root:x:0:\nadm:x:4:web,other\nweb:x:33:\nnomembers:x:60\naudio:x:29:web\n";

    fn ids(spec: &str) -> (u32, u32, Vec<u32>) {
        let user = resolve(spec, PASSWD, GROUP).unwrap();
        (user.uid, user.gid, user.groups)
    }

    #[test]
    fn specs() {
        assert_eq!(ids(""), (0, 0, vec![0]));
        assert_eq!(ids("root"), (0, 0, vec![0]));
        assert_eq!(ids("web"), (33, 33, vec![4, 29, 33]));
        assert_eq!(ids("web:adm"), (33, 4, vec![4]));
        assert_eq!(ids("web:77"), (33, 77, vec![77]));
        assert_eq!(ids("web:"), (33, 33, vec![4, 29, 33]));
        assert_eq!(ids(":adm"), (0, 4, vec![4]));
        assert_eq!(ids("1000"), (1000, 0, vec![0]));
        assert_eq!(ids("1000:1000"), (1000, 1000, vec![1000]));
        // A name that looks like a number is still a name.
        assert_eq!(ids("33"), (44, 44, vec![44]));
        assert_eq!(ids("short").0, 50);
    }

    #[test]
    fn missing() {
        assert_eq!(resolve("nobody", PASSWD, GROUP), Err(Missing::User("nobody".into())));
        assert_eq!(resolve("web:nogroup", PASSWD, GROUP), Err(Missing::Group("nogroup".into())));
        for spec in ["-1", "+1", "4294967295", "4294967296", "bad", "last"] {
            assert!(resolve(spec, PASSWD, GROUP).is_err(), "{spec}");
        }
    }

    #[test]
    fn defaults_without_files() {
        let root = resolve("", b"", b"").unwrap();
        assert_eq!(
            (root.name.as_str(), root.home.as_str(), root.shell.as_str()),
            ("root", "/root", "/bin/sh")
        );
    }

    proptest! {
        #[test]
        fn never_panics(spec in ".*", passwd in prop::collection::vec(any::<u8>(), 0..300),
                        group in "([a-z0-9]{0,3}(:[a-z0-9,]{0,6}){0,4}\n){0,8}") {
            let _ = resolve(&spec, &passwd, group.as_bytes());
            let _ = resolve(&spec, group.as_bytes(), &passwd);
        }
    }
}
