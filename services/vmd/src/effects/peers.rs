//! The other services, through their D-Bus interfaces.

use std::net::Ipv4Addr;
use std::os::fd::OwnedFd;

use banger_api::image::{ImageProxy, ImagesProxy, KernelProxy};
use banger_api::job::JobProxy;
use banger_api::network::{AcquireOptions, NetworkProxy, PolicyOptions};
use banger_api::options::OptionsBuilder;
use banger_api::session::ManagerProxy as SessionsProxy;
use banger_api::{Error, ErrorKind, IMAGED, Result};
use banger_core::network::Policy;
use banger_daemon::Progress;
use futures_util::StreamExt;
use ipnet::Ipv4Net;
use std::collections::HashMap;
use zbus::proxy::CacheProperties;
use zbus::{Connection, OwnedObjectPath};

use crate::supervisor::Promotion;

pub use banger_api::image::BootSet;
pub use banger_api::network::{Counters as NetCounters, Lease as NetLease};

/// The other services as vmd uses them. Properties are asked for once: to keep up with their changes would take
/// more calls than it saves.
#[derive(Debug, Clone)]
pub struct Peers {
    bus: Connection,
}

/// An image that is there.
#[derive(Debug, Clone)]
pub struct Image {
    pub id: String,
    pub name: String,
}

impl Peers {
    pub fn new(bus: Connection) -> Self {
        Self { bus }
    }

    async fn images(&self) -> Result<ImagesProxy<'static>> {
        Ok(ImagesProxy::new(&self.bus).await?)
    }

    /// Has sessiond find the sessions again of a VM that has gone on from a snapshot of itself.
    pub async fn recover_sessions(&self, vm: &str) -> Result<u32> {
        Ok(SessionsProxy::new(&self.bus).await?.recover_sessions(vm).await?)
    }

    async fn network(&self) -> Result<NetworkProxy<'static>> {
        Ok(NetworkProxy::builder(&self.bus).cache_properties(CacheProperties::No).build().await?)
    }

    /// The image a reference means, or `None` if it has to be pulled.
    pub async fn resolve_image(&self, reference: &str) -> Result<Option<Image>> {
        match self.images().await?.get_image(reference).await.map_err(Error::from) {
            Ok(path) => self.image(path).await.map(Some),
            Err(error) if error.kind() == ErrorKind::NoSuchImage => Ok(None),
            Err(error) => Err(error),
        }
    }

    async fn image(&self, path: OwnedObjectPath) -> Result<Image> {
        let image = self.image_at(path).await?;
        Ok(Image { id: image.id().await?, name: image.name().await? })
    }

    /// Pulls an image, passing the progress on, and the cancellation. If imaged ends in the middle of
    /// it, its successor is asked, once: it goes on from what was fetched.
    pub async fn pull(&self, reference: &str, progress: &Progress) -> Result<Image> {
        match self.pull_once(reference, progress).await {
            Err(error) if is_cut_off(&error) => {
                progress.cancelable(async { Ok(()) }).await?;
                tracing::warn!("pulling {reference} once more, as banger-imaged ended: {error}");
            }
            outcome => return outcome,
        }
        let again = self.pull_once(reference, progress).await;
        again.map_err(|error| match is_cut_off(&error) {
            true => error.kind().error(format!(
                "banger-imaged ended twice in the middle of pulling {reference}: \
                 see what it says (journalctl -u banger-imaged), and try again"
            )),
            false => error,
        })
    }

    async fn pull_once(&self, reference: &str, progress: &Progress) -> Result<Image> {
        let images = self.images().await?;
        let (_, job) = images.pull(reference, HashMap::new()).await?;
        let name = self.follow(job, progress, |_| ()).await?;
        let path = images.get_image(&name).await?;
        self.image(path).await
    }

    /// # Errors
    /// `NameTaken`.
    pub async fn check_image_name(&self, name: &str) -> Result<()> {
        match self.images().await?.list_images().await?.iter().any(|(taken, ..)| taken == name) {
            false => Ok(()),
            true => Err(ErrorKind::NameTaken.error(format!(
                "the image name {name:?} is taken: remove what has it, or choose another name"
            ))),
        }
    }

    /// Makes an image of a root filesystem's archive, like another in what is not said. Passes the progress on, and
    /// the cancellation.
    pub async fn import(
        &self,
        archive: OwnedFd,
        wanted: &Promotion,
        like: &str,
        progress: &Progress,
    ) -> Result<()> {
        let options = OptionsBuilder::new()
            .set("root", Some(true))
            .set("like", Some(like))
            .set("replace", wanted.replace.then_some(true));
        let options = wanted.settings.clone().put(options).build();
        let (_, job) = self.images().await?.import_fd(archive.into(), &wanted.image, options).await?;
        self.follow(job, progress, |stage| progress.stage(stage)).await.map(drop)
    }

    /// Waits for the end of a job of imaged's. Passes the cancellation on, the progress, and to `tell` the
    /// stages.
    async fn follow(&self, job: OwnedObjectPath, progress: &Progress, tell: impl Fn(&str)) -> Result<String> {
        let job = JobProxy::builder(&self.bus).destination(IMAGED.bus_name).path(job).build().await?;
        let mut changes = job.receive_progress_changed().await;
        let mut stages = job.receive_stage_changed().await;
        let ended = job.wait();
        tokio::pin!(ended);
        let mut asked = false;
        loop {
            tokio::select! {
                outcome = &mut ended => return outcome.map_err(Error::from),
                () = progress.canceled(), if !asked => {
                    asked = true;
                    match job.cancel().await.map_err(Error::from) {
                        // How, the wait for it tells.
                        Err(error) if error.kind() == ErrorKind::JobEnded => {}
                        outcome => outcome?,
                    }
                }
                Some(change) = stages.next() => {
                    if let Ok(stage) = change.get().await {
                        tell(&stage);
                    }
                }
                Some(change) = changes.next() => {
                    if let Ok((completed, total, unit)) = change.get().await {
                        progress.set(completed, total, if unit == "bytes" { "bytes" } else { "steps" });
                    }
                }
            }
        }
    }

    /// The name of the kernel for an image; the empty one is the image's own, or the default.
    pub async fn resolve_kernel(&self, name: &str, image_id: &str) -> Result<String> {
        let name = match name {
            "" => self.image_object(image_id).await?.kernel().await?,
            name => name.to_owned(),
        };
        Ok(self.kernel(&name).await?.name().await?)
    }

    /// What a kernel can do, nothing if that is not known, and what the image's filesystem is.
    pub async fn boot_features(&self, kernel: &str, image_id: &str) -> Result<(Vec<String>, String)> {
        let kernel = self.kernel(kernel).await?;
        Ok((kernel.features().await?, self.image_object(image_id).await?.rootfs_type().await?))
    }

    async fn kernel(&self, name: &str) -> Result<KernelProxy<'static>> {
        let path = self.images().await?.get_kernel(name).await?;
        Ok(KernelProxy::builder(&self.bus).path(path).cache_properties(CacheProperties::No).build().await?)
    }

    async fn image_object(&self, id: &str) -> Result<ImageProxy<'static>> {
        let path = self.images().await?.get_image(id).await?;
        self.image_at(path).await
    }

    async fn image_at(&self, path: OwnedObjectPath) -> Result<ImageProxy<'static>> {
        Ok(ImageProxy::builder(&self.bus).path(path).cache_properties(CacheProperties::No).build().await?)
    }

    pub async fn lease_image(&self, holder: &str, image_id: &str, kernel: &str) -> Result<BootSet> {
        Ok(self.images().await?.acquire_lease(holder, image_id, kernel).await?)
    }

    pub async fn release_image(&self, holder: &str) -> Result<()> {
        Ok(self.images().await?.release_lease(holder).await?)
    }

    /// Who holds images.
    pub async fn image_leases(&self) -> Result<Vec<String>> {
        let leases = self.images().await?.list_leases().await?;
        Ok(leases.into_iter().map(|(holder, ..)| holder).collect())
    }

    /// The range that guests' addresses come from.
    pub async fn range(&self) -> Result<Ipv4Net> {
        let range = self.network().await?.range().await?;
        range.parse().map_err(|_| Error::internal(format!("netd gave {range:?} for a range")))
    }

    pub async fn acquire_network(
        &self,
        holder: &str,
        address: Ipv4Addr,
        uid: u32,
        policy: &Policy,
    ) -> Result<NetLease> {
        let options = AcquireOptions { address: address.to_string(), uid, policy: reaches(policy) };
        Ok(self.network().await?.acquire(holder, options.to_dict()).await?)
    }

    /// What the holder's guest reaches, from now on.
    pub async fn set_network(&self, holder: &str, policy: &Policy) -> Result<()> {
        Ok(self.network().await?.set_policy(holder, reaches(policy).to_dict()).await?)
    }

    /// What went through the holder's TAP.
    pub async fn network_counters(&self, holder: &str) -> Result<NetCounters> {
        Ok(self.network().await?.get_counters(holder).await?)
    }

    /// Nothing happens if the holder has no lease.
    pub async fn release_network(&self, holder: &str) -> Result<()> {
        match self.network().await?.release(holder).await.map_err(Error::from) {
            Err(error) if error.kind() != ErrorKind::NoSuchLease => Err(error),
            _ => Ok(()),
        }
    }

    /// Who holds TAPs.
    pub async fn net_leases(&self) -> Result<Vec<String>> {
        let leases = self.network().await?.list_leases().await?;
        Ok(leases.into_iter().map(|(holder, ..)| holder).collect())
    }
}

/// A policy as netd takes it, with nothing left to netd's defaults.
fn reaches(policy: &Policy) -> PolicyOptions {
    PolicyOptions {
        nat: Some(policy.nat),
        groups: Some(policy.groups.iter().cloned().collect()),
        egress: Some(policy.egress.default.as_str().to_owned()),
        egress_allow: Some(policy.egress.shown_rules()),
        bandwidth: Some(policy.bandwidth.unwrap_or(0)),
        packets: Some(policy.packets.unwrap_or(0)),
    }
}

/// Whether a job did not fail, but ended with its service.
fn is_cut_off(error: &Error) -> bool {
    matches!(error.kind(), ErrorKind::ServiceUnavailable | ErrorKind::Interrupted)
}
