//! The objects of a service with their properties, all in one call.

use std::collections::HashMap;

use banger_api::{Result, Service};
use zbus::OwnedVariant;
use zbus::fdo::{ManagedObjects, ObjectManagerProxy};
use zbus::names::OwnedInterfaceName;

use crate::Context;

/// What is at a service.
pub struct Objects(ManagedObjects);

impl Objects {
    pub async fn at(context: &Context, service: Service) -> Result<Self> {
        let connection = context.bus.connect(service).await?;
        let manager = ObjectManagerProxy::builder(&connection)
            .destination(service.bus_name)
            .path(service.path)
            .build()
            .await?;
        Ok(Self(manager.get_managed_objects().await.map_err(zbus::Error::from)?))
    }

    /// Those with this interface.
    pub fn of<'a>(&'a self, interface: &'a str) -> impl Iterator<Item = Properties<'a>> {
        let has = move |(name, _): &(&OwnedInterfaceName, _)| name.as_str() == interface;
        self.0
            .values()
            .filter_map(move |interfaces| interfaces.iter().find(has))
            .map(|(_, properties)| Properties(properties))
    }
}

/// Those of one object. What is not there, or something else than thought, is nothing.
pub struct Properties<'a>(pub &'a HashMap<String, OwnedVariant>);

impl Properties<'_> {
    pub fn text(&self, name: &str) -> String {
        self.get(name).unwrap_or_default()
    }

    pub fn number(&self, name: &str) -> Option<f64> {
        let number = self.get::<u64>(name).or_else(|| self.get::<u32>(name).map(u64::from));
        number.map(|number| number as f64)
    }

    pub fn length(&self, name: &str) -> f64 {
        self.get::<Vec<String>>(name).map_or(0, |list| list.len()) as f64
    }

    pub fn get<T: TryFrom<OwnedVariant>>(&self, name: &str) -> Option<T> {
        T::try_from(self.0.get(name)?.try_clone().ok()?).ok()
    }
}
