//! `banger image`, and its short forms.

use std::collections::BTreeSet;
use std::fs::File;
use std::io::{stdin, stdout};
use std::os::fd::AsFd;
use std::path::{Path, PathBuf};
use std::process::{Command, Stdio};
use std::sync::{Mutex, PoisonError};

use banger_api::image::{BUILD_PREFIX, ImageProxy};
use banger_api::options::OptionsBuilder;
use banger_api::{Error, ErrorKind, IMAGED, ImageSettings, Result, Service, VMD};
use serde::Serialize;
use serde_json::json;
use zbus::{OwnedFd, OwnedObjectPath};

use crate::Context;
use crate::args::{self, Format, Image, Images, Import, Prune, Pull, Register};
use crate::credentials;
use crate::exit::SUCCESS;
use crate::job;
use crate::output::{ago, or_dash, size};

pub async fn dispatch(context: &Context, command: Image) -> Result<u8> {
    match command {
        Image::Pull(arguments) => pull(context, arguments).await?,
        Image::Import(arguments) => import(context, arguments).await?,
        Image::Export { format, image, path } => export(context, &image, format, &path).await?,
        Image::Register(arguments) => register(context, arguments).await?,
        Image::Build(arguments) => return super::build::build(context, arguments).await,
        Image::Promote { settings, force, vm, name } => {
            let options = derived(settings, force).build();
            let promoting = context.bus.vms().await?.promote_vm(&vm, &name, options).await?;
            finish_at(context, VMD, promoting, &format!("promote {vm}")).await?;
        }
        Image::Derive { settings, force, image, name } => {
            let options = derived(settings, force).build();
            context.bus.images().await?.derive_image(&image, &name, options).await?;
        }
        Image::Ls(wanted) => list(context, wanted).await?,
        Image::Presets => presets(context).await?,
        Image::Tag { image, name, force } => {
            let options = OptionsBuilder::new().set("replace", force.then_some(true)).build();
            context.bus.images().await?.tag_image(&image, &name, options).await?;
        }
        Image::Prune(arguments) => prune(context, arguments).await?,
        Image::Df => usage(context).await?,
        Image::Show { image } => show(context, &image).await?,
        Image::Set { image, kernel, no_kernel: _ } => {
            object(context, &image).await?.set_kernel(&kernel.unwrap_or_default()).await?;
        }
        Image::Verify { images, all } => {
            let images = if all { ids(context).await? } else { images };
            return verify(context, images).await;
        }
        Image::Rm { images } => {
            return super::each(images, async |name| {
                Ok(context.bus.images().await?.remove_image(&name).await?)
            })
            .await;
        }
    }
    Ok(SUCCESS)
}

#[derive(Serialize)]
struct Row {
    name: String,
    id: String,
    size_bytes: u64,
    created_usec: u64,
    vms: u32,
}

pub async fn list(context: &Context, wanted: Images) -> Result<()> {
    let all = wanted.all || wanted.pattern.as_ref().is_some_and(|pattern| pattern.starts_with(BUILD_PREFIX));
    let options = OptionsBuilder::new()
        .set("pattern", wanted.pattern)
        .set("labels", (!wanted.labels.is_empty()).then_some(wanted.labels))
        .set("unused", wanted.unused.then_some(true))
        .build();
    let rows: Vec<Row> = context
        .bus
        .images()
        .await?
        .list_images_filtered(options)
        .await?
        .into_iter()
        .map(|(name, id, size_bytes, created_usec, vms, _)| Row { name, id, size_bytes, created_usec, vms })
        .filter(|row| all || !row.name.starts_with(BUILD_PREFIX))
        .collect();
    context.output.rows(&rows, &["NAME", "ID", "SIZE", "CREATED", "VMS"], |row| {
        let id = row.id.strip_prefix("sha256:").unwrap_or(&row.id);
        let id = id.chars().take(12).collect();
        vec![or_dash(&row.name), id, size(row.size_bytes), ago(row.created_usec), row.vms.to_string()]
    })
}

#[derive(Serialize)]
struct Preset {
    name: String,
    image: String,
    description: String,
}

async fn presets(context: &Context) -> Result<()> {
    let presets = context.bus.images().await?.list_presets().await?;
    let rows: Vec<Preset> =
        presets.into_iter().map(|(name, image, description)| Preset { name, image, description }).collect();
    context.output.rows(&rows, &["NAME", "IMAGE", "DESCRIPTION"], |row| {
        vec![row.name.clone(), row.image.clone(), row.description.clone()]
    })
}

#[derive(Serialize)]
struct Pruned {
    name: String,
    id: String,
    bytes: u64,
}

async fn prune(context: &Context, arguments: Prune) -> Result<()> {
    let options = OptionsBuilder::new()
        .set("labels", (!arguments.labels.is_empty()).then_some(arguments.labels))
        .set("unused_for", arguments.unused_for)
        .set("max_size", arguments.max_size)
        .set("build_cache", arguments.build_cache.then_some(true))
        .set("dry_run", arguments.dry_run.then_some(true))
        .build();
    let removed = context.bus.images().await?.prune_images(options).await?;
    let rows: Vec<Pruned> = removed.into_iter().map(|(id, name, bytes)| Pruned { name, id, bytes }).collect();
    let freed = rows.iter().map(|row| row.bytes).sum();
    context.output.rows(&rows, &["NAME", "ID", "FREED"], |row| {
        vec![or_dash(&row.name), row.id.chars().take(12).collect(), size(row.bytes)]
    })?;
    if !context.output.json && !context.output.quiet {
        let verb = if arguments.dry_run { "Would free" } else { "Freed" };
        context.output.line(&format!("{verb} {} of {}.", size(freed), counted(rows.len(), "image")));
    }
    Ok(())
}

fn counted(number: usize, what: &str) -> String {
    format!("{number} {what}{}", if number == 1 { "" } else { "s" })
}

#[derive(Serialize)]
struct Usage {
    kind: String,
    name: String,
    #[serde(skip_serializing_if = "String::is_empty")]
    id: String,
    own_bytes: u64,
    shared_bytes: u64,
    vms: u32,
}

async fn usage(context: &Context) -> Result<()> {
    let rows = context.bus.images().await?.disk_usage().await?;
    let rows: Vec<Usage> = rows
        .into_iter()
        .map(|(kind, name, id, own_bytes, shared_bytes, vms)| Usage {
            kind,
            name,
            id,
            own_bytes,
            shared_bytes,
            vms,
        })
        .collect();
    context.output.rows(&rows, &["NAME", "KIND", "OWN", "SHARED", "VMS"], |row| {
        vec![
            or_dash(&row.name),
            row.kind.clone(),
            size(row.own_bytes),
            size(row.shared_bytes),
            row.vms.to_string(),
        ]
    })
}

/// Ids of all images, each once however many names it has.
async fn ids(context: &Context) -> Result<Vec<String>> {
    let images = context.bus.images().await?.list_images().await?;
    let ids: BTreeSet<String> = images.into_iter().map(|(_, id, ..)| id).collect();
    Ok(ids.into_iter().collect())
}

/// Checks several at once. As JSON, those that are as they should be are one list.
async fn verify(context: &Context, images: Vec<String>) -> Result<u8> {
    let verified = Mutex::new(Vec::new());
    let code = super::each(images, async |image| {
        let verifying = object(context, &image).await?.verify().await?;
        let ended = job::follow(context, IMAGED, verifying, &format!("verify {image}")).await?;
        match context.output.json {
            true => {
                verified.lock().unwrap_or_else(PoisonError::into_inner).push(json!({"name": ended.outcome}));
            }
            false => context.output.line(&ended.outcome),
        }
        Ok(())
    })
    .await?;
    if context.output.json {
        context.output.value(&verified.into_inner().unwrap_or_else(PoisonError::into_inner))?;
    }
    Ok(code)
}

async fn show(context: &Context, name: &str) -> Result<()> {
    context.output.description(&object(context, name).await?.describe().await?)
}

async fn object(context: &Context, name: &str) -> Result<ImageProxy<'static>> {
    let path = context.bus.images().await?.get_image(name).await?;
    context.bus.object(IMAGED, &path).await
}

pub async fn pull(context: &Context, arguments: Pull) -> Result<()> {
    let pulling = start_pull(context, &arguments).await?;
    finish(context, pulling, &format!("pull {}", arguments.reference)).await
}

/// Has an image pulled with the user's own credentials.
pub async fn start_pull(context: &Context, arguments: &Pull) -> Result<(u32, OwnedObjectPath)> {
    let options = OptionsBuilder::new()
        .set("name", arguments.name.as_deref())
        .set("platform", arguments.platform.as_deref())
        .set("insecure", arguments.insecure.then_some(true))
        .set("credentials", credentials::for_image(context, &arguments.reference)?)
        .build();
    Ok(context.bus.images().await?.pull(&arguments.reference, options).await?)
}

/// The options of an image that is made of another.
fn derived(settings: args::ImageSettings, force: bool) -> OptionsBuilder<'static> {
    let settings = ImageSettings {
        environment: settings.environment.into_iter().collect(),
        user: settings.user,
        working_directory: settings.workdir,
        entrypoint: settings.entrypoint,
        command: settings.command,
        labels: settings.labels.into_iter().collect(),
    };
    settings.put(OptionsBuilder::new().set("replace", force.then_some(true)))
}

/// Follows a job of imaged's, as [`finish_at`].
pub async fn finish(context: &Context, job: (u32, OwnedObjectPath), title: &str) -> Result<()> {
    finish_at(context, IMAGED, job, title).await
}

/// Follows a job whose outcome is the name of an image or a kernel, and prints that.
async fn finish_at(
    context: &Context,
    service: Service,
    job: (u32, OwnedObjectPath),
    title: &str,
) -> Result<()> {
    let ended = job::follow(context, service, job, title).await?;
    if context.output.json {
        return context.output.value(&serde_json::json!({"name": ended.outcome}));
    }
    context.output.line(&ended.outcome);
    Ok(())
}

/// The service gets an open file, so that it can read what only the caller may; a directory it
/// has to open itself.
async fn import(context: &Context, arguments: Import) -> Result<()> {
    let path = arguments.path.as_path();
    let name = arguments.name.or_else(|| name_of(path)).ok_or_else(|| {
        ErrorKind::InvalidArgs.error(format!("{} gives the image no name; use --name", path.display()))
    })?;
    let name = name.as_str();
    let images = context.bus.images().await?;
    let file = if path.is_dir() {
        archive(path)?
    } else if path == Path::new("-") {
        stdin().as_fd().try_clone_to_owned()?.into()
    } else {
        open(path)?
    };
    let options = OptionsBuilder::new()
        .set("sha256", arguments.sha256.as_deref().map(|digest| digest.trim_start_matches("sha256:")))
        .set("signature", signature(path, arguments.signature)?)
        .set("partition", arguments.partition)
        .set("like", arguments.like);
    let importing = images.import_fd(file, name, options.build()).await?;
    finish(context, importing, &format!("import {name}")).await
}

async fn register(context: &Context, arguments: Register) -> Result<()> {
    let bare = |digest: &str| digest.trim_start_matches("sha256:").to_owned();
    let mut digests: Vec<String> = arguments.kernel_sha256.iter().map(|digest| bare(digest)).collect();
    if digests.len() > arguments.kernels.len() {
        return Err(ErrorKind::InvalidArgs.error("there are more --kernel-sha256 than --kernel"));
    }
    let files =
        arguments.kernels.iter().chain(&arguments.initrd).map(|path| open(path)).collect::<Result<_>>()?;
    digests.resize(arguments.kernels.len(), String::new());
    digests.extend(
        arguments.initrd.iter().map(|_| arguments.initrd_sha256.as_deref().map(bare).unwrap_or_default()),
    );
    let modules = arguments.modules.as_deref().map(absolute).transpose()?;
    let options = derived(arguments.settings, arguments.force)
        .set("sha256", arguments.sha256.as_deref().map(bare))
        .set("signature", signature(&arguments.rootfs, None)?)
        .set("partition", arguments.partition)
        .set("kernel_name", arguments.kernel_name)
        .set("kernel_sha256", Some(digests))
        .set("modules", modules);
    let rootfs = open(&arguments.rootfs)?;
    let images = context.bus.images().await?;
    let registering = images.register_image_fd(rootfs, files, &arguments.name, options.build()).await?;
    finish(context, registering, &format!("register {}", arguments.name)).await
}

/// A file that could not be written whole goes again.
async fn export(context: &Context, image: &str, format: Format, path: &Path) -> Result<()> {
    let to_stdout = path == Path::new("-");
    let file = if to_stdout {
        stdout().as_fd().try_clone_to_owned()?
    } else {
        let file = File::create(path).map_err(|error| {
            ErrorKind::InvalidArgs.error(format!("cannot write {}: {error}", path.display()))
        })?;
        file.into()
    };
    let format = match format {
        Format::Oci => "oci",
        Format::Bundle => "bundle",
    };
    let options = OptionsBuilder::new().set("format", Some(format)).build();
    let exported = async {
        let job = context.bus.images().await?.export(image, file.into(), options).await?;
        job::follow(context, IMAGED, job, &format!("export {image}")).await
    };
    let exported = exported.await;
    if exported.is_err() && !to_stdout {
        let _ = std::fs::remove_file(path);
    }
    exported.map(drop)
}

/// The signature that was named, or the one beside the file.
fn signature(path: &Path, named: Option<PathBuf>) -> Result<Option<String>> {
    let mut beside = path.as_os_str().to_owned();
    beside.push(".minisig");
    let file = match named {
        Some(file) => file,
        None if Path::new(&beside).is_file() => beside.into(),
        None => return Ok(None),
    };
    std::fs::read_to_string(&file).map(Some).map_err(|error| unreadable(&file, &error))
}

/// A directory as a stream of tar, since it may be one that only the caller can read. tar goes on
/// beside us, and ends when imaged has read everything or lets go.
fn archive(directory: &Path) -> Result<OwnedFd> {
    let tar = Command::new("tar")
        .args(["--numeric-owner", "--sparse", "--xattrs", "--xattrs-include=*", "-C"])
        .arg(directory)
        .args(["-c", "."])
        .stdout(Stdio::piped())
        .spawn();
    let mut tar = tar.map_err(|error| Error::internal(format!("cannot run tar: {error}")))?;
    let stream = tar.stdout.take().ok_or_else(|| Error::internal("tar has no output"))?;
    Ok(std::os::fd::OwnedFd::from(stream).into())
}

/// `debian` of `/srv/debian.tar.gz`.
fn name_of(path: &Path) -> Option<String> {
    let name = path.file_name()?.to_str()?;
    let archive = [
        ".tar",
        ".tar.gz",
        ".tar.xz",
        ".tar.zst",
        ".tgz",
        ".oci",
        ".squashfs",
        ".erofs",
        ".ext4",
        ".qcow2",
        ".raw",
        ".img",
    ];
    let name = archive.iter().find_map(|ending| name.strip_suffix(ending)).unwrap_or(name);
    (name != "-" && !name.is_empty()).then(|| name.to_owned())
}

pub fn open(path: &Path) -> Result<OwnedFd> {
    let file = File::open(path).map_err(|error| unreadable(path, &error))?;
    Ok(std::os::fd::OwnedFd::from(file).into())
}

/// As text, for a service that has another working directory.
pub fn absolute(path: &Path) -> Result<String> {
    let path = path.canonicalize().map_err(|error| unreadable(path, &error))?;
    path.to_str()
        .map(str::to_owned)
        .ok_or_else(|| ErrorKind::InvalidArgs.error(format!("{} is not UTF-8", path.display())))
}

fn unreadable(path: &Path, error: &std::io::Error) -> Error {
    ErrorKind::InvalidArgs.error(format!("cannot read {}: {error}", path.display()))
}
