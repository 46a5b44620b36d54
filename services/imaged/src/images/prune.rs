//! Finding images, and which of them to remove: pure.

use std::collections::HashMap;

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
    /// Only what builds keep to be faster the next time.
    pub build_cache: bool,
}

/// What an image takes of the disk.
#[derive(Debug, Clone)]
pub struct Cost {
    pub image: ImageRow,
    /// Bytes of its own directory.
    pub own: u64,
    /// Its blobs, and its root filesystem if that is linked, which other images have as well, and their bytes.
    pub blobs: Vec<(String, u64)>,
}

impl Cost {
    pub fn all(&self) -> u64 {
        self.own + self.blobs.iter().map(|(_, bytes)| bytes).sum::<u64>()
    }
}

/// An image that goes, and the bytes that are free then.
#[derive(Debug, Clone, PartialEq, Eq)]
pub struct Pruned {
    pub image: ImageRow,
    pub bytes: u64,
}

/// How many images have each blob.
pub(super) struct Sharing(HashMap<String, usize>);

impl Sharing {
    pub fn of(costs: &[Cost]) -> Self {
        let mut counts = HashMap::new();
        for (digest, _) in costs.iter().flat_map(|cost| &cost.blobs) {
            *counts.entry(digest.clone()).or_default() += 1;
        }
        Self(counts)
    }

    pub fn is_shared(&self, digest: &str) -> bool {
        self.0.get(digest).is_some_and(|count| *count > 1)
    }

    /// Takes an image away: the bytes that only it still had.
    fn leave(&mut self, cost: &Cost) -> u64 {
        let mut bytes = cost.own;
        for (digest, size) in &cost.blobs {
            if let Some(count) = self.0.get_mut(digest) {
                *count -= 1;
                bytes += if *count == 0 { *size } else { 0 };
            }
        }
        bytes
    }
}

impl Prune {
    /// Which of the images go, in which order.
    pub fn plan(&self, mut images: Vec<Cost>, now_usec: u64) -> Vec<Pruned> {
        let mut all = Sharing::of(&images);
        let mut total: u64 = images.iter().map(|cost| all.leave(cost)).sum();
        let mut left = Sharing::of(&images);
        images.sort_by_key(|cost| cost.image.used_usec);
        let filter = Filter { labels: self.labels.clone(), unused: true, pattern: None };
        let mut pruned = Vec::new();
        for cost in images {
            let old =
                self.unused_for.is_some_and(|span| cost.image.used_usec.saturating_add(span) <= now_usec);
            let over = self.max_size.is_some_and(|limit| total > limit);
            let any = self.unused_for.is_none() && self.max_size.is_none();
            let fits =
                !filter.names(&cost.image).is_empty() && (!self.build_cache || cost.image.is_build_cache());
            if (old || over || any) && fits {
                let bytes = left.leave(&cost);
                total -= bytes;
                pruned.push(Pruned { image: cost.image, bytes });
            }
        }
        pruned
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
        .map(|image| Cost { image, own: 100, blobs: Vec::new() })
        .into()
    }

    fn pruned(prune: Prune) -> String {
        prune.plan(images(), 50).iter().map(|pruned| pruned.image.name().to_owned()).collect()
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
        assert_eq!(pruned(Prune { build_cache: true, ..Prune::default() }), "");
    }

    #[test]
    fn what_has_another_name_is_no_cache() {
        let mut named = image("build/2", 20, &[], &[]);
        named.names.push("web".into());
        let images = [image("build/1", 10, &[], &[]), named, image("", 30, &[], &[])];
        let costs = images.map(|image| Cost { image, own: 100, blobs: Vec::new() }).into();
        let goes = Prune { build_cache: true, ..Prune::default() }.plan(costs, 50);
        assert_eq!(goes.iter().map(|cost| cost.image.name()).collect::<Vec<_>>(), ["build/1"]);
    }

    #[test]
    fn shared_blobs_count_once_and_go_with_the_last() {
        // 400 bytes of directories; blobs of 50 (a, c), 30 (a, b) and 7 (d).
        let mut images = images();
        for (place, blobs) in [vec![("x", 50), ("y", 30)], vec![("y", 30)], vec![("x", 50)], vec![("z", 7)]]
            .into_iter()
            .enumerate()
        {
            images[place].blobs =
                blobs.into_iter().map(|(digest, bytes)| (digest.to_owned(), bytes)).collect();
        }
        let pruned = |max_size| -> Vec<(String, u64)> {
            let plan = Prune { max_size: Some(max_size), ..Prune::default() }.plan(images.clone(), 50);
            plan.iter().map(|pruned| (pruned.image.name().to_owned(), pruned.bytes)).collect()
        };
        let [c, a, d] = [("c", 100), ("a", 150), ("d", 107)].map(|(name, bytes)| (name.to_owned(), bytes));
        assert_eq!(pruned(487), []);
        assert_eq!(pruned(486), std::slice::from_ref(&c));
        assert_eq!(pruned(387), std::slice::from_ref(&c));
        assert_eq!(pruned(386), [c.clone(), a.clone()]);
        assert_eq!(pruned(0), [c, a, d]);
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
