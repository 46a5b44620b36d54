//! Images and kernels.

use std::path::PathBuf;

use clap::{Args, Subcommand};

#[derive(Debug, Args)]
pub struct Pull {
    /// HOST[:PORT]/REPO[:TAG|@DIGEST], or a short name of docker.io
    pub reference: String,
    /// Name of the image, instead of the reference
    #[arg(long)]
    pub name: Option<String>,
    /// Platform, such as linux/arm64, instead of the host's
    #[arg(long, value_name = "OS/ARCH")]
    pub platform: Option<String>,
    /// Allow plain HTTP
    #[arg(long)]
    pub insecure: bool,
}

#[derive(Debug, Subcommand)]
pub enum Image {
    /// Pull an image from a registry
    Pull(Pull),
    /// Import the archive of a root filesystem, or an OCI layout
    Import {
        /// Name of the image; that of the file without it
        #[arg(long)]
        name: Option<String>,
        /// File, directory, or - for standard input
        path: PathBuf,
    },
    /// List images
    Ls,
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
