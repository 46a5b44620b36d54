//! `banger kernel`.

use std::path::{Path, PathBuf};

use banger_api::image::KernelProxy;
use banger_api::options::OptionsBuilder;
use banger_api::{IMAGED, Result};
use serde::Serialize;

use super::image::{absolute, open};
use crate::Context;
use crate::args::Kernel;
use crate::credentials;
use crate::exit::SUCCESS;
use crate::job;
use crate::output::yes;

/// The kernel that runs here, to the service.
pub const HOST: &str = "host";

pub async fn dispatch(context: &Context, command: Kernel) -> Result<u8> {
    match command {
        Kernel::Import { sources, name, modules, description, default } => {
            let sources: Vec<&str> = sources.iter().map(String::as_str).collect();
            let name = name.unwrap_or_default();
            let name = import(context, &sources, &name, modules, description).await?;
            arrived(context, &name, default).await?;
        }
        Kernel::Pull { reference, name, description, default, insecure } => {
            let options = OptionsBuilder::new()
                .set("description", description)
                .set("insecure", insecure.then_some(true))
                .set("credentials", credentials::for_image(context, &reference)?)
                .build();
            let images = context.bus.images().await?;
            let job = images.pull_kernel(&reference, &name.unwrap_or_default(), options).await?;
            let ended = job::follow(context, IMAGED, job, &format!("pull {reference}")).await?;
            arrived(context, &ended.outcome, default).await?;
        }
        Kernel::Ls => list(context).await?,
        Kernel::Show { kernel } => show(context, &kernel.unwrap_or_default()).await?,
        Kernel::Rm { kernels } => {
            return super::each(kernels, async |name| {
                Ok(context.bus.images().await?.remove_kernel(&name).await?)
            })
            .await;
        }
        Kernel::Default { kernel } => context.bus.images().await?.set_default_kernel(&kernel).await?,
    }
    Ok(SUCCESS)
}

/// Says what a kernel that has come is called.
async fn arrived(context: &Context, name: &str, default: bool) -> Result<()> {
    if default {
        context.bus.images().await?.set_default_kernel(name).await?;
    }
    if context.output.json {
        return context.output.value(&serde_json::json!({"name": name}));
    }
    context.output.line(name);
    Ok(())
}

/// Imports a kernel and returns its name. The service gets open files, so that it can read what only
/// the caller may.
pub async fn import(
    context: &Context,
    sources: &[&str],
    name: &str,
    modules: Option<PathBuf>,
    description: Option<String>,
) -> Result<String> {
    let images = context.bus.images().await?;
    let modules = modules.map(|path| absolute(&path)).transpose()?;
    let options = OptionsBuilder::new().set("modules", modules.as_deref()).set("description", description);
    let (job, title) = if sources == [HOST] {
        (images.import_kernel(HOST, name, options.build()).await?, "import the host's kernel".to_owned())
    } else {
        let files = sources.iter().map(|source| open(Path::new(source))).collect::<Result<_>>()?;
        (
            images.import_kernel_fd(files, name, options.build()).await?,
            format!("import {}", sources.join(" ")),
        )
    };
    Ok(job::follow(context, IMAGED, job, &title).await?.outcome)
}

#[derive(Serialize)]
struct Row {
    name: String,
    version: String,
    architecture: String,
    description: String,
    default: bool,
    vms: u32,
}

async fn list(context: &Context) -> Result<()> {
    let rows: Vec<Row> = context
        .bus
        .images()
        .await?
        .list_kernels()
        .await?
        .into_iter()
        .map(|(name, version, architecture, description, default, vms, _)| Row {
            name,
            version,
            architecture,
            description,
            default,
            vms,
        })
        .collect();
    context.output.rows(&rows, &["NAME", "VERSION", "ARCHITECTURE", "DEFAULT", "VMS", "DESCRIPTION"], |row| {
        vec![
            row.name.clone(),
            row.version.clone(),
            row.architecture.clone(),
            yes(row.default),
            row.vms.to_string(),
            shortened(&row.description),
        ]
    })
}

async fn show(context: &Context, name: &str) -> Result<()> {
    let path = context.bus.images().await?.get_kernel(name).await?;
    let kernel: KernelProxy<'static> = context.bus.object(IMAGED, &path).await?;
    context.output.description(&kernel.describe().await?)
}

/// What fits beside the rest of a line.
fn shortened(text: &str) -> String {
    const WIDTH: usize = 48;
    match text.char_indices().nth(WIDTH) {
        Some((end, _)) => format!("{}…", text[..end].trim_end()),
        None => text.to_owned(),
    }
}
