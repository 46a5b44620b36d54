//! Finding images, and which of them to remove: pure.

use banger_core::glob;

use crate::store::ImageRow;

/// Which images are meant; all parts that are given must fit.
#[derive(Debug, Clone, Default)]
pub struct Filter {
    /// A shell pattern of the whole name, or of what is behind its last `/`.
    pub pattern: Option<String>,
    /// `KEY` or `KEY=VALUE`.
    pub labels: Vec<String>,
    /// Only those that no VM uses.
    pub unused: bool,
}

impl Filter {
    /// The names of an image that fit; an image without a name is one of none.
    pub fn names(&self, image: &ImageRow) -> Vec<String> {
        let labels = &image.process.labels;
        let has = |wanted: &String| match wanted.split_once('=') {
            Some((key, value)) => labels.get(key).is_some_and(|found| found == value),
            None => labels.contains_key(wanted),
        };
        if (self.unused && !image.holders.is_empty()) || !self.labels.iter().all(has) {
            return Vec::new();
        }
        let fits = |name: &str| match &self.pattern {
            Some(pattern) => {
                let last = name.rsplit('/').next().unwrap_or(name);
                glob::matches(pattern, name) || glob::matches(pattern, last)
            }
            None => true,
        };
        let names = match image.names.as_slice() {
            [] => vec![image.name().to_owned()],
            names => names.to_vec(),
        };
        names.into_iter().filter(|name| fits(name)).collect()
    }
}

/// What to remove of the images that no VM uses. Without a limit, all of them.
#[derive(Debug, Clone, Default)]
pub struct Prune {
    pub labels: Vec<String>,
    /// Those that nobody has used for this long, microseconds.
    pub unused_for: Option<u64>,
    /// So many, those that were used longest ago first, that all images together take no more bytes.
    pub max_size: Option<u64>,
}

/// An image and the bytes that its removal sets free.
#[derive(Debug, Clone, PartialEq, Eq)]
pub struct Cost {
    pub image: ImageRow,
    pub bytes: u64,
}

impl Prune {
    /// Which of the images go.
    pub fn plan(&self, mut images: Vec<Cost>, now_usec: u64) -> Vec<Cost> {
        let mut total: u64 = images.iter().map(|cost| cost.bytes).sum();
        images.sort_by_key(|cost| cost.image.used_usec);
        let filter = Filter { labels: self.labels.clone(), unused: true, pattern: None };
        images
            .into_iter()
            .filter(|cost| !filter.names(&cost.image).is_empty())
            .filter(|cost| {
                let old =
                    self.unused_for.is_some_and(|span| cost.image.used_usec.saturating_add(span) <= now_usec);
                let over = self.max_size.is_some_and(|limit| total > limit);
                let goes = old || over || (self.unused_for.is_none() && self.max_size.is_none());
                if goes {
                    total -= cost.bytes;
                }
                goes
            })
            .collect()
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    fn image(name: &str, used_usec: u64, holders: &[&str], labels: &[(&str, &str)]) -> ImageRow {
        let labels = labels.iter().map(|(key, value)| ((*key).into(), (*value).into())).collect();
        let process = crate::registry::manifest::Process { labels, ..Default::default() };
        ImageRow {
            id: "0".repeat(64),
            names: if name.is_empty() { vec![] } else { vec![name.to_owned()] },
            architecture: "amd64".into(),
            size: 1,
            rootfs_digest: String::new(),
            fstype: "squashfs".into(),
            kernel: String::new(),
            created_usec: 0,
            used_usec,
            process,
            holders: holders.iter().map(|holder| (*holder).to_owned()).collect(),
        }
    }

    fn images() -> Vec<Cost> {
        [
            image("a", 30, &[], &[("team", "red")]),
            image("b", 10, &["web"], &[]),
            image("c", 20, &[], &[]),
            image("d", 40, &[], &[("team", "blue")]),
        ]
        .map(|image| Cost { image, bytes: 100 })
        .into()
    }

    fn pruned(prune: Prune) -> String {
        prune.plan(images(), 50).iter().map(|cost| cost.image.name().to_owned()).collect()
    }

    #[test]
    fn what_is_used_stays() {
        assert_eq!(pruned(Prune::default()), "cad");
        assert_eq!(pruned(Prune { unused_for: Some(20), ..Prune::default() }), "ca");
        assert_eq!(pruned(Prune { unused_for: Some(u64::MAX), ..Prune::default() }), "");
        assert_eq!(pruned(Prune { max_size: Some(300), ..Prune::default() }), "c");
        assert_eq!(pruned(Prune { max_size: Some(0), ..Prune::default() }), "cad");
        assert_eq!(pruned(Prune { max_size: Some(400), ..Prune::default() }), "");
        assert_eq!(pruned(Prune { labels: vec!["team".into()], ..Prune::default() }), "ad");
        assert_eq!(pruned(Prune { labels: vec!["team=red".into()], ..Prune::default() }), "a");
    }

    #[test]
    fn names_fit_whole_or_by_their_end() {
        let image = image("docker.io/library/debian:12", 0, &[], &[]);
        let found =
            |pattern: &str| Filter { pattern: Some(pattern.into()), ..Filter::default() }.names(&image);
        for pattern in ["debian*", "*", "docker.io/*", "*:12"] {
            assert_eq!(found(pattern).len(), 1, "{pattern}");
        }
        assert!(found("debian").is_empty() && found("library/*").is_empty());
        assert_eq!(Filter::default().names(&super::tests::image("", 0, &[], &[])), ["<none>"]);
    }
}
