//! The objects of `org.banger.Image1`. Every method authorises, asks the service and passes the answer
//! on; one task ([`serve`]) adds and removes objects and emits every signal, so their order is that of
//! the changes.

mod image;
mod kernel;
mod manager;

use std::collections::HashMap;

use banger_api::image::{IMAGE, IMAGE_PREFIX, KERNEL, KERNEL_PREFIX, MANAGER};
use banger_api::{IMAGED, path};
use banger_daemon::Context;
use tokio::sync::watch;
use zbus::{OwnedObjectPath, OwnedVariant, Variant};

use crate::error::Result;
use crate::service::{Event, Events, Service};
use crate::store::{ImageRow, KernelRow};

pub fn image_path(id: &str) -> OwnedObjectPath {
    path::encode(IMAGE_PREFIX, id)
}

pub fn kernel_path(name: &str) -> OwnedObjectPath {
    path::encode(KERNEL_PREFIX, name)
}

/// Puts all objects on the bus and keeps them up to date.
///
/// # Errors
/// If the database cannot be read.
pub async fn serve(context: Context, service: Service, mut events: Events) -> Result<()> {
    let manager = manager::Manager::new(service.clone(), context.gate.clone(), context.jobs.clone());
    context.hub.add(IMAGED.path, manager).await;
    let mut objects = Objects { context, service, images: HashMap::new(), kernels: HashMap::new() };
    for image in objects.service.images().await? {
        objects.add_image(image).await;
    }
    for kernel in objects.service.kernels().await? {
        objects.add_kernel(kernel).await;
    }
    tokio::spawn(async move {
        while let Some((event, done)) = events.recv().await {
            if let Err(error) = objects.update(event).await {
                tracing::error!("cannot tell of a change: {error}");
            }
            let _ = done.send(());
        }
    });
    Ok(())
}

struct Objects {
    context: Context,
    service: Service,
    images: HashMap<String, watch::Sender<ImageRow>>,
    kernels: HashMap<String, watch::Sender<KernelRow>>,
}

impl Objects {
    async fn update(&mut self, event: Event) -> Result<()> {
        let hub = self.context.hub.clone();
        match event {
            Event::Image(id) => match (self.service.image_by_id(&id).await?, self.images.get(&id)) {
                (Some(row), Some(known)) => {
                    let before = known.send_replace(row.clone());
                    let mut changed = Vec::new();
                    if before.names != row.names {
                        changed.push(("Name", value(row.name())));
                        changed.push(("Names", value(row.names.clone())));
                    }
                    if before.kernel != row.kernel {
                        changed.push(("Kernel", value(row.kernel)));
                    }
                    if before.used_usec != row.used_usec {
                        changed.push(("UsedTimestamp", value(row.used_usec)));
                    }
                    if before.holders != row.holders {
                        changed.push(("Leases", value(row.holders)));
                    }
                    if !changed.is_empty() {
                        hub.changed(&image_path(&id), IMAGE, changed);
                    }
                }
                (Some(row), None) => {
                    self.add_image(row).await;
                    hub.emit(IMAGED.path, MANAGER, "ImageNew", (id.clone(), image_path(&id)));
                }
                (None, Some(_)) => {
                    self.images.remove(&id);
                    hub.emit(IMAGED.path, MANAGER, "ImageRemoved", (id.clone(), image_path(&id)));
                    hub.remove(&image_path(&id)).await;
                }
                (None, None) => {}
            },
            Event::Kernel(name) => {
                match (self.service.kernel_if_any(&name).await?, self.kernels.get(&name)) {
                    (Some(row), Some(known)) => {
                        let before = known.send_replace(row.clone());
                        let mut changed = Vec::new();
                        if before.is_default != row.is_default {
                            changed.push(("Default", value(row.is_default)));
                        }
                        if before.holders != row.holders {
                            changed.push(("Leases", value(row.holders)));
                        }
                        if !changed.is_empty() {
                            hub.changed(&kernel_path(&name), KERNEL, changed);
                        }
                    }
                    (Some(row), None) => {
                        self.add_kernel(row).await;
                        hub.emit(IMAGED.path, MANAGER, "KernelNew", (name.clone(), kernel_path(&name)));
                    }
                    (None, Some(_)) => {
                        self.kernels.remove(&name);
                        hub.emit(IMAGED.path, MANAGER, "KernelRemoved", (name.clone(), kernel_path(&name)));
                        hub.remove(&kernel_path(&name)).await;
                    }
                    (None, None) => {}
                }
            }
        }
        Ok(())
    }

    async fn add_image(&mut self, row: ImageRow) {
        let id = row.id.clone();
        let (sender, row) = watch::channel(row);
        let object = image::ImageObject {
            service: self.service.clone(),
            gate: self.context.gate.clone(),
            jobs: self.context.jobs.clone(),
            row,
        };
        self.context.hub.add(&image_path(&id), object).await;
        self.images.insert(id, sender);
    }

    async fn add_kernel(&mut self, row: KernelRow) {
        let name = row.name.clone();
        let (sender, row) = watch::channel(row);
        let object =
            kernel::KernelObject { service: self.service.clone(), gate: self.context.gate.clone(), row };
        self.context.hub.add(&kernel_path(&name), object).await;
        self.kernels.insert(name, sender);
    }
}

fn value<'a>(value: impl Into<Variant<'a>>) -> OwnedVariant {
    OwnedVariant::try_from(value.into()).expect("no file descriptors in it")
}
