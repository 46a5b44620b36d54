//! Images and kernels.

use std::path::PathBuf;

use banger_core::units::parse_seconds;
use clap::{ArgGroup, Args, Subcommand, ValueEnum};

use super::parse::{Words, parse_limit, parse_pair, parse_words};

#[derive(Debug, Default, Args)]
pub struct Pull {
    /// HOST[:PORT]/REPO[:TAG|@DIGEST], or a short name of docker.io
    pub reference: String,
    /// Name of the image, instead of the reference
    #[arg(long)]
    pub name: Option<String>,
    /// Platform, such as linux/arm64, instead of the host's
    #[arg(long, value_name = "OS/ARCH")]
    pub platform: Option<String>,
    /// Allow plain HTTP and unknown certificates
    #[arg(long)]
    pub insecure: bool,
}

#[derive(Debug, Clone, Copy, ValueEnum)]
pub enum Format {
    Oci,
    Bundle,
}

#[derive(Debug, Args)]
#[command(after_help = "\
PATH is an archive (tar, compressed or not) of a root filesystem, of an OCI layout, of `docker save`, or a \
bundle of `banger image export --format bundle`; a filesystem (squashfs, erofs, ext4); a disk with one (raw, \
qcow2); a directory with a root filesystem or an OCI layout; or - for standard input. \
If PATH.minisig is there, one of the keys in /etc/banger/keys.d must have made it.")]
pub struct Import {
    /// Name of the image; that of the file without it
    #[arg(long)]
    pub name: Option<String>,
    /// What the file must be
    #[arg(long, value_name = "DIGEST")]
    pub sha256: Option<String>,
    /// Signature of minisign, instead of the one beside the file
    #[arg(long, value_name = "FILE")]
    pub signature: Option<PathBuf>,
    /// Of a disk: the partition with the root filesystem
    #[arg(long, value_name = "N")]
    pub partition: Option<u32>,
    /// Image whose environment, command and user the new one gets
    #[arg(long, value_name = "IMAGE")]
    pub like: Option<String>,
    pub path: PathBuf,
}

/// What an image is to say of the programs in it, where that is to change.
#[derive(Debug, Args)]
pub struct ImageSettings {
    /// Environment variable of programs
    #[arg(short, long = "env", value_name = "NAME=VALUE", value_parser = parse_pair)]
    pub environment: Vec<(String, String)>,
    /// User of programs: user, uid, user:group or uid:gid
    #[arg(short, long)]
    pub user: Option<String>,
    /// Directory that programs start in
    #[arg(short, long, value_name = "PATH")]
    pub workdir: Option<String>,
    /// What every command begins with: words, or a list such as '["sh", "-c"]'
    #[arg(long, value_name = "COMMAND", value_parser = parse_words, allow_hyphen_values = true)]
    pub entrypoint: Option<Words>,
    /// The command if none is given
    #[arg(long, value_name = "COMMAND", value_parser = parse_words, allow_hyphen_values = true)]
    pub command: Option<Words>,
    /// Label, for people and programs
    #[arg(short, long = "label", value_name = "NAME=VALUE", value_parser = parse_pair)]
    pub labels: Vec<(String, String)>,
}

#[derive(Debug, Args)]
#[command(after_help = "\
FILE is TOML, for example:

  base = \"debian:12\"
  name = \"web\"
  arguments = { version = \"1.2\" }        # variables of scripts that --arg sets
  machine = { memory = \"2G\" }            # of the VM: cpus, memory, disk, network

  [[step]]
  packages = [\"nginx\"]                 # by apt, apk, dnf or xbps of the image

  [[step]]
  copy = \"site\"                        # a file or directory next to FILE
  to = \"/srv/site\"
  owner = \"www-data:www-data\"          # root without it; and mode = \"0644\" of a file

  [[step]]
  run = \"make -C /srv/site\"             # by shell = [\"/bin/sh\", \"-ec\"]

  [[step]]                             # for later scripts, and for the image
  environment = { LANG = \"C.UTF-8\" }
  user = \"www-data\"
  workdir = \"/srv/site\"
  entrypoint = []                      # for the image alone, as labels are
  command = [\"nginx\", \"-g\", \"daemon off;\"]

The steps are done in a VM that is deleted afterwards. After each script and each installation of packages an \
image is kept (build/DIGEST, see banger images --all), and a later build goes on from the last one whose steps, files and base are \
still the same. banger image prune --build-cache removes them. What the steps write is shown as they write it. If one fails, the exit \
status is 6.")]
pub struct Build {
    /// Name of the image, instead of the file's; it is taken from the image that has it
    #[arg(short = 't', long)]
    pub name: Option<String>,
    /// Value of an argument of the file
    #[arg(long = "arg", value_name = "NAME=VALUE", value_parser = parse_pair)]
    pub arguments: Vec<(String, String)>,
    /// Do all steps, whatever is kept of earlier builds
    #[arg(long)]
    pub no_cache: bool,
    /// Look for a newer base in its registry
    #[arg(long)]
    pub pull: bool,
    #[arg(default_value = "banger.toml")]
    pub file: PathBuf,
}

#[derive(Debug, Args)]
#[command(after_help = "\
ROOTFS is a filesystem (squashfs, erofs, ext4), a disk with one (raw, qcow2) or an archive of one, as banger image \
import takes it. It is copied, by sharing its blocks where the filesystem beneath can; a hard link would let whoever may write the file change the image. \
Image and kernel are both there afterwards, or neither.")]
pub struct Register {
    /// vmlinuz, vmlinux, package or archive; several if they are a kernel together
    #[arg(long = "kernel", required = true, value_name = "FILE")]
    pub kernels: Vec<PathBuf>,
    /// Initrd that has the modules which the kernel needs; nothing else of it is used
    #[arg(long, value_name = "FILE")]
    pub initrd: Option<PathBuf>,
    /// Directory with the kernel's modules, such as /lib/modules/VERSION
    #[arg(long, value_name = "DIR")]
    pub modules: Option<PathBuf>,
    /// Name of the kernel; like the image's without it
    #[arg(long, value_name = "NAME")]
    pub kernel_name: Option<String>,
    /// What the root filesystem's file must be
    #[arg(long, value_name = "DIGEST")]
    pub sha256: Option<String>,
    /// What the kernel's files must be, in their order
    #[arg(long, value_name = "DIGEST")]
    pub kernel_sha256: Vec<String>,
    /// What the initrd must be
    #[arg(long, value_name = "DIGEST", requires = "initrd")]
    pub initrd_sha256: Option<String>,
    /// Of a disk: the partition with the root filesystem
    #[arg(long, value_name = "N")]
    pub partition: Option<u32>,
    #[command(flatten)]
    pub settings: ImageSettings,
    /// Take the name from the image that has it
    #[arg(short, long)]
    pub force: bool,
    pub rootfs: PathBuf,
    /// Name of the image
    pub name: String,
}

/// Which images are meant.
#[derive(Debug, Args)]
pub struct Images {
    /// Those that builds have kept, too
    #[arg(short, long)]
    pub all: bool,
    /// Only those with a label
    #[arg(short, long = "label", value_name = "KEY[=VALUE]")]
    pub labels: Vec<String>,
    /// Only those that no VM uses
    #[arg(long)]
    pub unused: bool,
    /// Only names like this, or whose last part is like it, with * and ?
    pub pattern: Option<String>,
}

#[derive(Debug, Args)]
#[command(group(ArgGroup::new("which").args(["all", "unused_for", "max_size", "build_cache"]).required(true).multiple(true)))]
pub struct Prune {
    /// All that no VM uses
    #[arg(short, long)]
    pub all: bool,
    /// Those that nobody has used for so long, such as 30d
    #[arg(long, value_name = "SPAN", value_parser = parse_seconds, conflicts_with = "all")]
    pub unused_for: Option<u64>,
    /// So many that all images take no more, those used longest ago first
    #[arg(long, value_name = "SIZE", value_parser = parse_limit, conflicts_with = "all")]
    pub max_size: Option<u64>,
    /// Only what builds have kept
    #[arg(long)]
    pub build_cache: bool,
    /// Only those with a label
    #[arg(short, long = "label", value_name = "KEY[=VALUE]")]
    pub labels: Vec<String>,
    /// Only say what would be removed
    #[arg(short = 'n', long)]
    pub dry_run: bool,
}

#[derive(Debug, Subcommand)]
pub enum Image {
    /// Pull an image from a registry
    Pull(Pull),
    /// Import a root filesystem: archive, directory, filesystem or disk
    Import(Import),
    /// Make an image of a root filesystem and the kernel of its VMs
    Register(Register),
    /// Make an image from a file that says how
    Build(Build),
    /// Write an image to a file
    Export {
        /// An OCI layout in a tar, or a bundle to be signed
        #[arg(long, value_enum, default_value_t = Format::Oci)]
        format: Format,
        image: String,
        /// Where to; - for standard output
        path: PathBuf,
    },
    /// Make an image of what a VM's disk holds
    ///
    /// What is mounted in the VM (its work disk, volumes, /tmp if it is a tmpfs) is not part of it, nor is
    /// what banger puts into every VM: name, machine id, synced files, authorized keys. Writers in a running VM
    /// wait until its disk has been read. A VM that does not run is started for it, without anything of its own,
    /// and stopped again. Environment, command and user are those of the VM's image where nothing else is said.
    Promote {
        #[command(flatten)]
        settings: ImageSettings,
        /// Take the name from the image that has it
        #[arg(short, long)]
        force: bool,
        vm: String,
        /// Name of the new image
        name: String,
    },
    /// List images
    #[command(visible_alias = "list")]
    Ls(Images),
    /// List the images that have short names
    Presets,
    /// Give an image one more name
    Tag {
        /// Take the name from the image that has it
        #[arg(short, long)]
        force: bool,
        image: String,
        name: String,
    },
    /// Make an image that differs from another only in what it says of programs
    ///
    /// Both have one root filesystem on the disk.
    Derive {
        #[command(flatten)]
        settings: ImageSettings,
        /// Take the name from the image that has it
        #[arg(short, long)]
        force: bool,
        image: String,
        /// Name of the new image
        name: String,
    },
    /// Remove images that no VM uses
    Prune(Prune),
    /// Show what images and kernels take of the disk
    Df,
    /// Show everything about an image
    #[command(visible_alias = "inspect")]
    Show { image: String },
    /// Choose the kernel of VMs that are made of an image and name none
    Set {
        image: String,
        /// Kernel of `banger kernel ls`
        #[arg(long, value_name = "NAME")]
        kernel: Option<String>,
        /// The default kernel again
        #[arg(long, conflicts_with = "kernel", required_unless_present = "kernel")]
        no_kernel: bool,
    },
    /// Check that stored images are what was pulled or imported
    #[command(group(ArgGroup::new("which").args(["images", "all"]).required(true)))]
    Verify {
        #[arg(value_name = "IMAGE")]
        images: Vec<String>,
        /// Every image there is
        #[arg(short, long)]
        all: bool,
    },
    /// Remove images
    Rm {
        #[arg(required = true, value_name = "IMAGE")]
        images: Vec<String>,
    },
}

#[derive(Debug, Subcommand)]
pub enum Kernel {
    /// Import a kernel
    Import {
        /// `host` for the kernel that runs here, or files: packages (.deb, .rpm), a tar, a vmlinuz or
        /// vmlinux
        #[arg(default_value = "host", value_name = "SOURCE")]
        sources: Vec<String>,
        /// Name of the kernel, instead of its version
        #[arg(long)]
        name: Option<String>,
        /// Directory with the modules of a vmlinuz, such as /lib/modules/VERSION
        #[arg(long, value_name = "DIR")]
        modules: Option<PathBuf>,
        /// Text for people, instead of what the kernel says of itself
        #[arg(long, value_name = "TEXT")]
        description: Option<String>,
        /// Make it the default, too
        #[arg(long)]
        default: bool,
    },
    /// Pull a kernel from a registry: an image with boot/ and lib/modules/, or an artifact of its files
    Pull {
        reference: String,
        /// Name of the kernel, instead of its version
        #[arg(long)]
        name: Option<String>,
        /// Text for people, instead of what the kernel says of itself
        #[arg(long, value_name = "TEXT")]
        description: Option<String>,
        /// Make it the default, too
        #[arg(long)]
        default: bool,
        /// Allow plain HTTP, and certificates that nobody vouches for
        #[arg(long)]
        insecure: bool,
    },
    /// List kernels
    #[command(visible_alias = "list")]
    Ls,
    /// Show everything about a kernel; without a name, the default one
    #[command(visible_alias = "inspect")]
    Show { kernel: Option<String> },
    /// Remove kernels
    Rm {
        #[arg(required = true, value_name = "KERNEL")]
        kernels: Vec<String>,
    },
    /// Choose the kernel of VMs that name none
    Default { kernel: String },
}
