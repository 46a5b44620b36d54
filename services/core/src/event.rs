//! What happens to VMs, images, sessions and jobs, as the journal keeps it.
//!
//! Each kind of event stands in one table, from which come its entries in the journal (`MESSAGE_ID=`,
//! `BANGER_EVENT=`, `BANGER_VM=`, …), the message catalog, banger-events(7), and what `banger events` reads.
//! Each event is noted once, by whoever knows it first-hand: how a VM's run goes on by the VM's own unit, so that it
//! needs none of the services; how it ended by vmd, who judges it; everything else by the service that owns it.

use std::fmt::Write;

/// Who notes an event, and is believed when it does.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub enum By {
    /// `banger-launch` in the unit of the VM.
    Unit,
    /// vmd, when the unit says that its run is over; the unit itself, if it cannot reach vmd.
    Release,
    /// The service of this name.
    Service(&'static str),
    /// The service that the event names.
    AnyService,
}

const UNIT: By = By::Unit;
const RELEASE: By = By::Release;
const VMD: By = By::Service("vmd");
const IMAGED: By = By::Service("imaged");
const NETD: By = By::Service("netd");
const SESSIOND: By = By::Service("sessiond");
const ANY: By = By::AnyService;

/// What all events of a kind have in common.
#[derive(Debug, PartialEq, Eq)]
pub struct Kind {
    pub name: &'static str,
    /// `MESSAGE_ID=`: never changed, and never used for anything else.
    pub id: &'static str,
    pub by: By,
    /// Whether it is a warning, and no mere notice.
    pub is_warning: bool,
    /// Names of the fields; in the journal they are in capitals, behind `BANGER_`.
    pub fields: &'static [&'static str],
    /// The message, with fields in braces.
    pub message: &'static str,
    /// For people who want to know more.
    pub meaning: &'static str,
}

macro_rules! events {
    ($($(#[doc = $meaning:literal])+
       $variant:ident = $name:literal $id:literal $by:ident $($warning:ident)? { $($field:ident),+ } $message:literal;)+) => {
        /// Something that has happened. A field that says nothing is empty.
        #[derive(Debug, Clone, Copy, PartialEq, Eq)]
        pub enum Event<'a> {
            $($(#[doc = $meaning])+ $variant { $($field: &'a str),+ },)+
        }

        /// All kinds of events.
        pub const KINDS: &[Kind] = &[$(Kind {
            name: $name,
            id: $id,
            by: $by,
            is_warning: !stringify!($($warning)?).is_empty(),
            fields: &[$(stringify!($field)),+],
            message: $message,
            meaning: concat!($($meaning),+),
        }),+];

        impl Event<'_> {
            pub fn kind(&self) -> &'static Kind {
                let name = match self { $(Event::$variant { .. } => $name),+ };
                KINDS.iter().find(|kind| kind.name == name).unwrap_or(&KINDS[0])
            }

            /// For people.
            #[allow(unused_variables)]
            pub fn message(&self) -> String {
                match self { $(Event::$variant { $($field),+ } => format!($message)),+ }
            }

            fn values(&self) -> Vec<&str> {
                match self { $(Event::$variant { $($field),+ } => vec![$($field),+]),+ }
            }
        }
    };
}

events! {
    /// It has a name and an address now; its disks follow. A fork names the VM that it was made of (from).
    VmCreated = "vm-created" "64d35d30b2ef4aedbd8e82a9dfe55ca3" VMD { vm, image, from } "VM {vm} was created from image {image}";
    /// systemd has begun to start its unit, whoever asked for it.
    VmStarting = "vm-starting" "14d6f303cdb3434aa3154ef0ff9904f8" UNIT { vm } "VM {vm} is starting";
    /// Its guest is up, or goes on from a snapshot: the unit is active.
    VmReady = "vm-ready" "0d9ac3c08b5d47eeb6b5b2c768fba3c5" UNIT { vm } "VM {vm} is ready";
    /// Its CPUs stand still, as somebody wanted it or as a snapshot is taken.
    VmPaused = "vm-paused" "2e86cdc2c02d45d6862824354ffbae6b" UNIT { vm } "VM {vm} is paused";
    /// Its CPUs run again.
    VmResumed = "vm-resumed" "dd41ee0bfee24225b7a94988185ff9e8" UNIT { vm } "VM {vm} goes on";
    /// Its guest has not given a sign of life for half a minute.
    VmUnresponsive = "vm-unresponsive" "35476e91bb7042399f107cc3bd779abe" UNIT warning { vm } "VM {vm} does not answer";
    /// The host has no room for what its guest writes, so the guest stands still. It loses nothing, and goes on when there is room.
    VmStalled = "vm-stalled" "30c8763483914b61b5061fd20c446e04" UNIT warning { vm } "VM {vm} stands still: the host has no room for what it writes";
    /// Its guest gives signs of life again, after it was unresponsive or stalled.
    VmHealthy = "vm-healthy" "0938c17c0e214897a46cc4ae7a2d666f" UNIT { vm } "VM {vm} answers again";
    /// Its guest is asked to shut down. There is no such event where the VM ends otherwise.
    VmStopping = "vm-stopping" "61997a7c023b47d59a9dc41423035cc1" UNIT { vm } "VM {vm} is stopping";
    /// Its run has ended as it should; the reason says how.
    VmStopped = "vm-stopped" "3e4ea02674d747079a28f8c7feabdd2c" RELEASE { vm, reason } "VM {vm} has stopped: {reason}";
    /// Its run has ended otherwise, or it did not come up; the reason says how. The journal of its unit (journalctl -u
    /// banger-vm@NAME) may say more, its guest's console with it.
    VmFailed = "vm-failed" "4aff00abf3234e8096ef815d12e6b0ea" RELEASE warning { vm, reason } "VM {vm} has failed: {reason}";
    /// It goes on from a snapshot of the VM that is named (from).
    VmRestored = "vm-restored" "d14afeac118d406dbf5ea806eecb197a" VMD { vm, from, snapshot } "VM {vm} was restored from snapshot {snapshot} of {from}";
    /// It is to be something else from now on, or from its next start on, in these options.
    VmChanged = "vm-changed" "e5f7a12e3f3148448b15b9bc44e1bc3f" VMD { vm, options } "VM {vm} was changed: {options}";
    /// What it wrote to its disk is gone.
    VmReset = "vm-reset" "a75b19b28dd24a3aae1e50f879bcc998" VMD { vm } "VM {vm} was reset to its image";
    /// Its disks are gone, and its name is free. So ends a creation that failed, too.
    VmDeleted = "vm-deleted" "ea6511e6c2904e97b6c5227791b8ef65" VMD { vm } "VM {vm} was deleted";
    /// Memory, devices and disks of a running VM were kept.
    SnapshotTaken = "snapshot-taken" "fadce6c0632648adba175e214780d421" VMD { vm, snapshot } "Snapshot {snapshot} of VM {vm} was taken";
    /// The snapshot is gone.
    SnapshotDeleted = "snapshot-deleted" "9fb012a804aa43c099842f4258bc5ce6" VMD { vm, snapshot } "Snapshot {snapshot} of VM {vm} was deleted";
    /// There is a disk that exists by itself, of so many bytes.
    VolumeCreated = "volume-created" "3811be90f1494dffa58494dc70d99ce5" VMD { volume, bytes } "Volume {volume} was created";
    /// The volume is gone, and what was in it.
    VolumeDeleted = "volume-deleted" "e9577ecd3a13436a8cc9aefd0347f652" VMD { volume } "Volume {volume} was deleted";
    /// An image that was not there before was pulled, imported, promoted or built, and has this name and id.
    ImagePublished = "image-published" "dbf7b5fbc3724ece8d4634e936797042" IMAGED { image, id } "Image {image} is there";
    /// An image that was there has this name now. Another that had it has it no longer.
    ImageTagged = "image-tagged" "4180a69d81474096b2df2fe439de1a42" IMAGED { image, id } "Image {image} is {id} now";
    /// An image has lost this name.
    ImageUntagged = "image-untagged" "ef956b7d0d3d4c7480a5e5ed07e39fdf" IMAGED { image, id } "Image name {image} was removed";
    /// An image without a name that no VM uses is gone.
    ImageDeleted = "image-deleted" "24bb52cd644f48b7a7cc7dfb66c7e5e2" IMAGED { id } "Image {id} was deleted";
    /// A kernel was imported or pulled.
    KernelPublished = "kernel-published" "92a030f36a584569a114ab92d5c55397" IMAGED { kernel } "Kernel {kernel} is there";
    /// A kernel is gone.
    KernelDeleted = "kernel-deleted" "c84c0c5c538f4a2aaef691d3b72dd617" IMAGED { kernel } "Kernel {kernel} was deleted";
    /// A VM that starts has this address, and nobody else, until it is released.
    LeaseAcquired = "lease-acquired" "411befad88ee4e4b93564e738f411ee6" NETD { vm, address } "VM {vm} has address {address}";
    /// The address leads nowhere.
    LeaseReleased = "lease-released" "0b14c759c2874427bf564c3022bd2850" NETD { vm, address } "VM {vm} no longer has address {address}";
    /// A command was started in a guest, by the name it was given or by an id.
    SessionStarted = "session-started" "6c923aab80284459ad2ad0b840823c44" SESSIOND { vm, session } "Session {session} in VM {vm} was started";
    /// Its command has ended, with this exit status, or by this signal.
    SessionEnded = "session-ended" "14670b9e562145cab5fb29749d24587a" SESSIOND { vm, session, status, signal } "Session {session} in VM {vm} has ended";
    /// Its VM went down before its command had ended.
    SessionLost = "session-lost" "d129701fafcc4ba79f3a21410225d61d" SESSIOND { vm, session } "Session {session} in VM {vm} was lost";
    /// Long work was begun. What else is done for it has the job's number (BANGER_JOB=) as well.
    JobBegun = "job-begun" "09a27c65b68744eebc7fe643a327b223" ANY { job, service, work, subject } "Job {job} of banger-{service} has begun: {work} {subject}";
    /// It is done, failed or was canceled; one that was under way when its service was killed has failed.
    JobEnded = "job-ended" "ef970fa7ff2f487690080a577f035525" ANY { job, service, work, subject, result, error } "Job {job} of banger-{service} has ended: {work} {subject} {result}";
}

/// The field of the journal that names the kind of an event.
pub const NAME: &str = "BANGER_EVENT";

/// The field of the journal of an event's field.
pub fn journal_field(field: &str) -> String {
    format!("BANGER_{}", field.to_ascii_uppercase())
}

impl Event<'_> {
    /// The fields of the entry in the journal, without its message and priority.
    pub fn fields(&self) -> Vec<(String, String)> {
        let kind = self.kind();
        let named = kind.fields.iter().zip(self.values()).filter(|(_, value)| !value.is_empty());
        [("MESSAGE_ID".to_owned(), kind.id.to_owned()), (NAME.to_owned(), kind.name.to_owned())]
            .into_iter()
            .chain(named.map(|(field, value)| (journal_field(field), value.to_owned())))
            .collect()
    }
}

impl Kind {
    /// The kind with this `MESSAGE_ID=`.
    pub fn of_id(id: &str) -> Option<&'static Self> {
        KINDS.iter().find(|kind| kind.id == id)
    }

    /// Whether this is its name, or that of what it happens to: the first word of its name.
    pub fn is_called(&self, name: &str) -> bool {
        self.name == name || self.name.split('-').next() == Some(name)
    }

    /// Whether such an event may come from this unit: everybody can write anything to the journal, but nobody is in
    /// a unit of banger's who does not belong there. `field` gives the fields of the event.
    pub fn is_noted_by<'a>(&self, unit: &str, field: impl Fn(&str) -> &'a str) -> bool {
        let is_own = || unit == format!("banger-vm@{}.service", field("vm"));
        let is_service = |id| unit == format!("banger-{id}.service");
        match self.by {
            By::Unit => is_own(),
            By::Release => is_service("vmd") || is_own(),
            By::Service(id) => is_service(id),
            By::AnyService => {
                ["vmd", "imaged", "netd", "sessiond"].contains(&field("service"))
                    && is_service(field("service"))
            }
        }
    }
}

/// The message catalog, in systemd's form: what `journalctl -x` shows.
pub fn catalog() -> String {
    let mut text = "# What banger's events mean. Made from services/core/src/event.rs.\n".to_owned();
    for kind in KINDS {
        let mut subject = kind.message.to_owned();
        for field in kind.fields {
            subject = subject.replace(&format!("{{{field}}}"), &format!("@{}@", journal_field(field)));
        }
        let (id, name, meaning) = (kind.id, kind.name, kind.meaning.trim());
        let _ = write!(
            text,
            "\n-- {id}\nSubject: {subject}\nDefined-By: banger\nDocumentation: man:banger-events(7)\n\n\
             {meaning}\nThis is the event {name}.\n"
        );
    }
    text
}

#[cfg(test)]
mod tests {
    use super::*;
    use std::collections::HashSet;

    #[test]
    fn no_two_kinds_are_taken_for_each_other() {
        assert_eq!(KINDS.iter().map(|kind| kind.name).collect::<HashSet<_>>().len(), KINDS.len());
        assert_eq!(KINDS.iter().map(|kind| kind.id).collect::<HashSet<_>>().len(), KINDS.len());
        for kind in KINDS {
            let hex = |c: char| c.is_ascii_digit() || ('a'..='f').contains(&c);
            assert!(kind.id.len() == 32 && kind.id.chars().all(hex), "{}", kind.name);
            assert_eq!(Kind::of_id(kind.id), Some(kind));
        }
    }

    #[test]
    fn an_entry_says_all_that_is_known() {
        let event = Event::VmStopped { vm: "web", reason: "stopped on request" };
        assert_eq!(event.message(), "VM web has stopped: stopped on request");
        let fields = [
            ("MESSAGE_ID", "3e4ea02674d747079a28f8c7feabdd2c"),
            ("BANGER_EVENT", "vm-stopped"),
            ("BANGER_VM", "web"),
            ("BANGER_REASON", "stopped on request"),
        ];
        assert_eq!(event.fields(), fields.map(|(name, value)| (name.to_owned(), value.to_owned())));
        let created = Event::VmCreated { vm: "web", image: "debian:12", from: "" };
        assert!(created.fields().iter().all(|(name, _)| name != "BANGER_FROM"));
    }

    #[test]
    fn an_event_is_believed_of_those_who_know() {
        let believed = |event: Event<'_>, unit: &str| {
            let fields = event.fields();
            let field = |name: &str| {
                let found = fields.iter().find(|(field, _)| *field == journal_field(name));
                found.map_or("", |(_, value)| value.as_str())
            };
            event.kind().is_noted_by(unit, field)
        };
        let ready = Event::VmReady { vm: "web" };
        assert!(believed(ready, "banger-vm@web.service"));
        for other in ["banger-vm@db.service", "banger-vmd.service", "user@1000.service", ""] {
            assert!(!believed(ready, other), "{other}");
        }
        let stopped = Event::VmStopped { vm: "web", reason: "" };
        assert!(believed(stopped, "banger-vmd.service") && believed(stopped, "banger-vm@web.service"));
        assert!(!believed(stopped, "banger-vm@db.service") && !believed(stopped, "banger-imaged.service"));
        let job = |service| Event::JobBegun { job: "1", service, work: "pull", subject: "x" };
        assert!(believed(job("imaged"), "banger-imaged.service"));
        assert!(
            !believed(job("imaged"), "banger-vmd.service") && !believed(job("mine"), "banger-mine.service")
        );
    }

    #[test]
    fn the_catalog_has_every_kind_once() {
        let catalog = catalog();
        for kind in KINDS {
            assert_eq!(catalog.matches(&format!("\n-- {}\n", kind.id)).count(), 1, "{}", kind.name);
        }
        assert!(catalog.contains("\nSubject: VM @BANGER_VM@ has stopped: @BANGER_REASON@\n"));
        let subjects = catalog.lines().filter(|line| line.starts_with("Subject: "));
        assert!(subjects.clone().all(|line| !line.contains(['{', '}'])), "a field that there is not");
        assert_eq!(subjects.count(), KINDS.len());
    }
}
