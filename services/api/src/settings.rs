//! What an image says of the programs in it, as options of methods: of `PromoteVm`, `ImportFd` and
//! `DeriveImage`.

use std::collections::{BTreeMap, HashMap};

use crate::options::{Options, OptionsBuilder};
use crate::{ErrorKind, Result};

/// Bytes of all settings together. Images of registries stay far below.
const MAX_BYTES: usize = 256 << 10;

/// Changes to an image's settings; what is not given stays as it was.
#[derive(Debug, Clone, Default, PartialEq, Eq)]
pub struct ImageSettings {
    /// Laid over the environment there was.
    pub environment: BTreeMap<String, String>,
    /// `user`, `uid`, `user:group` or `uid:gid`; empty for root.
    pub user: Option<String>,
    /// Absolute; empty for `/`.
    pub working_directory: Option<String>,
    pub entrypoint: Option<Vec<String>>,
    pub command: Option<Vec<String>>,
    /// Added to the labels there were.
    pub labels: BTreeMap<String, String>,
}

impl ImageSettings {
    /// Takes `environment a{ss}`, `user s`, `working_directory s`, `entrypoint as`, `command as` and
    /// `labels a{ss}` out of a method's options.
    ///
    /// # Errors
    /// `InvalidArgs` for another type, and for what no image can say.
    pub fn take(options: &mut Options) -> Result<Self> {
        let map = |given: Option<HashMap<String, String>>| given.unwrap_or_default().into_iter().collect();
        let settings = Self {
            environment: map(options.take("environment")?),
            user: options.take("user")?,
            working_directory: options.take("working_directory")?,
            entrypoint: options.take("entrypoint")?,
            command: options.take("command")?,
            labels: map(options.take("labels")?),
        };
        settings.check()?;
        Ok(settings)
    }

    /// The same options, for a call.
    pub fn put<'a>(self, options: OptionsBuilder<'a>) -> OptionsBuilder<'a> {
        let map = |map: BTreeMap<String, String>| {
            (!map.is_empty()).then(|| map.into_iter().collect::<HashMap<_, _>>())
        };
        options
            .set("environment", map(self.environment))
            .set("user", self.user)
            .set("working_directory", self.working_directory)
            .set("entrypoint", self.entrypoint)
            .set("command", self.command)
            .set("labels", map(self.labels))
    }

    pub fn is_empty(&self) -> bool {
        *self == Self::default()
    }

    /// Adds later settings to these.
    pub fn merge(&mut self, later: Self) {
        self.environment.extend(later.environment);
        self.labels.extend(later.labels);
        self.user = later.user.or(self.user.take());
        self.working_directory = later.working_directory.or(self.working_directory.take());
        self.entrypoint = later.entrypoint.or(self.entrypoint.take());
        self.command = later.command.or(self.command.take());
    }

    /// # Errors
    /// `InvalidArgs` for what no image can say.
    pub fn check(&self) -> Result<()> {
        let refuse = |reason: String| Err(ErrorKind::InvalidArgs.error(reason));
        if let Some(name) = self.environment.keys().find(|name| name.is_empty() || name.contains('=')) {
            return refuse(format!("{name:?} is not the name of an environment variable"));
        }
        if self.labels.contains_key("") {
            return refuse("a label needs a name".into());
        }
        if let Some(path) = self.working_directory.as_deref()
            && !path.is_empty()
            && !path.starts_with('/')
        {
            return refuse(format!("the working directory {path:?} is not an absolute path"));
        }
        if self.strings().any(|text| text.contains('\0')) {
            return refuse("a zero byte is in the settings of the image".into());
        }
        if self.strings().map(String::len).sum::<usize>() > MAX_BYTES {
            return refuse(format!("the settings of the image take more than {MAX_BYTES} bytes"));
        }
        Ok(())
    }

    fn strings(&self) -> impl Iterator<Item = &String> {
        let pairs = self.environment.iter().chain(&self.labels).flat_map(|(key, value)| [key, value]);
        let words = self.entrypoint.iter().chain(&self.command).flatten();
        pairs.chain(words).chain(&self.user).chain(&self.working_directory)
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    fn map(pairs: &[(&str, &str)]) -> BTreeMap<String, String> {
        pairs.iter().map(|(key, value)| ((*key).to_owned(), (*value).to_owned())).collect()
    }

    #[test]
    fn they_come_back_as_they_were_sent() {
        let settings = ImageSettings {
            environment: map(&[("A", "1"), ("B", "x=y")]),
            user: Some("www".into()),
            working_directory: Some(String::new()),
            entrypoint: Some(vec![]),
            command: Some(vec!["sh".into(), "-c".into()]),
            labels: map(&[("team", "red")]),
        };
        let sent = settings.clone().put(OptionsBuilder::new()).build();
        let received: HashMap<String, zbus::OwnedVariant> = sent
            .into_iter()
            .map(|(key, value)| (key.to_owned(), value.try_into_owned().expect("owned")))
            .collect();
        let mut options = Options::from(received);
        assert_eq!(ImageSettings::take(&mut options).expect("taken"), settings);
        options.finish().expect("nothing is left");
    }

    #[test]
    fn later_ones_go_before() {
        let mut settings =
            ImageSettings { environment: map(&[("A", "1")]), user: Some("a".into()), ..Default::default() };
        settings.merge(ImageSettings {
            environment: map(&[("A", "2"), ("B", "3")]),
            command: Some(vec![]),
            ..Default::default()
        });
        assert_eq!(settings.environment, map(&[("A", "2"), ("B", "3")]));
        assert_eq!((settings.user.as_deref(), settings.command), (Some("a"), Some(vec![])));
    }

    #[test]
    fn what_makes_no_sense_is_refused() {
        let default = ImageSettings::default;
        for bad in [
            ImageSettings { environment: map(&[("A=B", "1")]), ..default() },
            ImageSettings { environment: map(&[("", "1")]), ..default() },
            ImageSettings { labels: map(&[("", "1")]), ..default() },
            ImageSettings { working_directory: Some("srv".into()), ..default() },
            ImageSettings { user: Some("a\0b".into()), ..default() },
            ImageSettings { command: Some(vec!["x".repeat(MAX_BYTES + 1)]), ..default() },
        ] {
            assert_eq!(bad.check().expect_err("refused").kind(), ErrorKind::InvalidArgs);
        }
        assert!(default().is_empty() && default().check().is_ok());
    }
}
