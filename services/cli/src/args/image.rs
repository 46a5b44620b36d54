//! Images and kernels.

use std::path::PathBuf;

use banger_core::units::parse_seconds;
use clap::{Args, Subcommand, ValueEnum};

use super::parse::parse_limit;

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
PATH is an archive (tar, compressed or not) of a root filesystem, of an OCI layout, of `docker save`, or a
bundle of `banger image export --format bundle`; a filesystem (squashfs, erofs, ext4); a disk with one (raw,
qcow2); a directory with a root filesystem or an OCI layout; or - for standard input.
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

/// Which images are meant.
#[derive(Debug, Args)]
pub struct Images {
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
pub struct Prune {
    /// All that no VM uses
    #[arg(short, long, required_unless_present_any = ["unused_for", "max_size"])]
    pub all: bool,
    /// Those that nobody has used for so long, such as 30d
    #[arg(long, value_name = "SPAN", value_parser = parse_seconds, conflicts_with = "all")]
    pub unused_for: Option<u64>,
    /// So many that all images take no more, those used longest ago first
    #[arg(long, value_name = "SIZE", value_parser = parse_limit, conflicts_with = "all")]
    pub max_size: Option<u64>,
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
    /// and stopped again. Environment, command and user are those of the VM's image.
    Promote {
        vm: String,
        /// Name of the new image
        name: String,
    },
    /// List images
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
    /// Remove images that no VM uses
    Prune(Prune),
    /// Show what images and kernels take of the disk
    Df,
    /// Show everything about an image
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
    Verify {
        #[arg(required_unless_present = "all", value_name = "IMAGE")]
        images: Vec<String>,
        /// Every image there is
        #[arg(long, conflicts_with = "images")]
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
    Ls,
    /// Show everything about a kernel; without a name, the default one
    Show { kernel: Option<String> },
    /// Remove kernels
    Rm {
        #[arg(required = true, value_name = "KERNEL")]
        kernels: Vec<String>,
    },
    /// Choose the kernel of VMs that name none
    Default { kernel: String },
}
