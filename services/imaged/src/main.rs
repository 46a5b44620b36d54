//! banger-imaged: images and kernels.
//!
//! ```text
//!   bus ──► service ──► store       rows: images, names, kernels, leases
//!              │  └───► files       staging, rename into place, sync
//!              ├──► registry, blobs download, verified by digest
//!              ├──► layers, rootfs  merge (pure), squashfs
//!              └──► kernel          packages, vmlinux, initramfs
//! ```

use std::process::ExitCode;
use std::sync::Arc;

use banger_daemon::Spec;
use banger_imaged::bus;
use banger_imaged::config::Config;
use banger_imaged::registry::Host;
use banger_imaged::service::{Service, Settings};
use banger_imaged::trust::Policy;

fn main() -> ExitCode {
    let spec = Spec {
        service: banger_api::IMAGED,
        about: "Images and kernels of banger's VMs",
        access: banger_api::image::ACCESS,
    };
    banger_daemon::run(spec, |context| async move {
        let config: Config = banger_config::load("imaged")?;
        let settings = Settings {
            state_dir: context.state_dir.clone(),
            agent: config.agent,
            host: Host::system(),
            downloads: config.downloads,
            limits: config.limits,
            presets: Arc::new(config.presets),
            trust: Policy { key_dirs: config.signatures.key_dirs(), required: config.signatures.required },
        };
        let (service, events) = Service::open(settings).await?;
        bus::serve(context, service, events).await?;
        Ok(())
    })
}
