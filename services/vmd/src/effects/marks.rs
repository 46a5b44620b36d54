//! Names remembered until the next boot: one empty file each.

use std::collections::HashSet;
use std::fs;
use std::io::ErrorKind::NotFound;
use std::path::PathBuf;

use banger_api::Result;
use banger_core::name::VmName;

/// A directory of marks, made when the first one is set.
#[derive(Debug)]
pub struct Marks(PathBuf);

impl Marks {
    pub fn new(directory: PathBuf) -> Self {
        Self(directory)
    }

    pub fn list(&self) -> Result<HashSet<VmName>> {
        let entries = match fs::read_dir(&self.0) {
            Err(error) if error.kind() == NotFound => return Ok(HashSet::new()),
            entries => entries?,
        };
        let mut names = HashSet::new();
        for entry in entries {
            names.extend(entry?.file_name().to_str().and_then(|name| VmName::new(name).ok()));
        }
        Ok(names)
    }

    pub fn set(&self, name: &VmName) -> Result<()> {
        fs::create_dir_all(&self.0)?;
        Ok(fs::write(self.0.join(name.as_str()), "")?)
    }

    pub fn clear(&self, name: &VmName) -> Result<()> {
        match fs::remove_file(self.0.join(name.as_str())) {
            Err(error) if error.kind() != NotFound => Err(error.into()),
            _ => Ok(()),
        }
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn marks_stay_until_cleared() {
        let directory = tempfile::tempdir().expect("makes");
        let marks = Marks::new(directory.path().join("marks"));
        let web = VmName::new("web").expect("a name");
        assert!(marks.list().expect("lists").is_empty());
        marks.set(&web).expect("sets");
        marks.set(&web).expect("sets again");
        assert_eq!(marks.list().expect("lists"), HashSet::from([web.clone()]));
        marks.clear(&web).expect("clears");
        marks.clear(&web).expect("clears again");
        assert!(marks.list().expect("lists").is_empty());
    }
}
