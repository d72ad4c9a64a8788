//! The file tree that an image's layers are made from, in memory; contents lie in a spool.
//!
//! *Invariants:* every path's parents are in the tree and are folders. Paths are canonical (no leading slash, no symbolic
//! link among the parents), so `/lib/x` and `/usr/lib/x` are one entry. Each path knows the layer it was last written
//! in; a layer is what was written in it, and the folders above that. Several paths may share a node: hard links.
//!
//! The rules for packages are dpkg's: a folder that exists keeps its owner and mode, a symbolic link in a folder's place
//! is followed, two packages never have the same file. What a definition says itself replaces what packages brought.

use std::collections::{BTreeMap, BTreeSet};

/// Symbolic links followed in one path before it counts as a loop; the kernel's own limit (path_resolution(7)).
const MAX_LINKS: usize = 40;

/// What a node is.
#[derive(Debug, Clone, PartialEq, Eq)]
pub enum Kind {
    /// A folder.
    Directory,
    /// A file whose content is `length` bytes of the spool from `offset`.
    File {
        /// First byte in the spool.
        offset: u64,
        /// Number of bytes.
        length: u64,
    },
    /// A symbolic link and what it contains.
    Symlink(Vec<u8>),
    /// A character device: major, minor.
    CharacterDevice(u32, u32),
    /// A block device: major, minor.
    BlockDevice(u32, u32),
    /// A named pipe.
    Fifo,
}

/// An inode.
#[derive(Debug, Clone)]
pub struct Node {
    /// What it is.
    pub kind: Kind,
    /// Permission bits with setuid, setgid, sticky.
    pub mode: u32,
    /// Owner.
    pub uid: u64,
    /// Group.
    pub gid: u64,
    /// Seconds since 1970; `None`: the time of the layer.
    pub mtime: Option<u64>,
    /// Extended attributes.
    pub xattrs: Vec<(Vec<u8>, Vec<u8>)>,
}

impl Node {
    /// A folder of root, with the layer's time.
    pub fn directory(mode: u32) -> Node {
        Node {
            kind: Kind::Directory,
            mode,
            uid: 0,
            gid: 0,
            mtime: None,
            xattrs: Vec::new(),
        }
    }

    /// A symbolic link with the layer's time.
    pub fn symlink(target: &[u8]) -> Node {
        Node {
            kind: Kind::Symlink(target.to_vec()),
            ..Node::directory(0o777)
        }
    }

    fn is_directory(&self) -> bool {
        self.kind == Kind::Directory
    }
}

/// Names a node of one tree.
#[derive(Debug, Clone, Copy, PartialEq, Eq, PartialOrd, Ord)]
pub struct NodeId(usize);

/// Who puts something into the tree.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub enum Source<'a> {
    /// A package, by name.
    Package(&'a str),
    /// The definition.
    Definition,
}

#[derive(Debug, Clone)]
struct Place {
    node: NodeId,
    layer: usize,
    /// The package that brought it; `None` for the definition and for parents nobody named.
    package: Option<String>,
}

/// The tree of an image, growing layer by layer.
#[derive(Debug, Default)]
pub struct Tree {
    places: BTreeMap<Vec<u8>, Place>,
    nodes: Vec<Node>,
    layer: usize,
}

/// An entry of a layer, in the order of the archive.
#[derive(Debug, PartialEq, Eq)]
pub enum Entry<'a> {
    /// The first path of a node.
    Node(&'a [u8], NodeId),
    /// Another path of a node: where the first is.
    HardLink(&'a [u8], &'a [u8], NodeId),
}

impl Tree {
    /// The node behind an id.
    pub fn node(&self, id: NodeId) -> &Node {
        &self.nodes[id.0]
    }

    /// Keeps a node without a path yet.
    pub fn add(&mut self, node: Node) -> NodeId {
        self.nodes.push(node);
        NodeId(self.nodes.len() - 1)
    }

    /// The node at a canonical path.
    pub fn get(&self, path: &[u8]) -> Option<&Node> {
        self.places.get(path).map(|p| self.node(p.node))
    }

    /// What comes now belongs to the next layer.
    pub fn next_layer(&mut self) {
        self.layer += 1;
    }

    /// Puts a node at `path` (with or without `./` or `/` before it). Errors say why it can't be there.
    pub fn put(&mut self, path: &[u8], node: NodeId, source: Source<'_>) -> Result<(), String> {
        let path = self.canonical(path)?;
        if path.is_empty() {
            // the root folder: an image's root is always 0755 root
            return Ok(());
        }
        let package = match source {
            Source::Package(name) => Some(name),
            Source::Definition => None,
        };
        let keep = match self.places.get(&path) {
            None => false,
            Some(old) => keeps(
                old,
                self.node(old.node),
                self.node(node),
                package,
                self.layer,
            )
            .map_err(|why| format!("{}: {why}", show(&path)))?,
        };
        if !keep {
            self.parents(&path)?;
            let place = Place {
                node,
                layer: self.layer,
                package: package.map(str::to_string),
            };
            self.places.insert(path, place);
        }
        Ok(())
    }

    /// Forgets a path that has nothing below it, if it was written in this layer.
    pub fn forget(&mut self, path: &[u8]) {
        if self.places.get(path).is_some_and(|p| p.layer == self.layer) {
            self.places.remove(path);
        }
    }

    /// Is anything below `path`?
    pub fn has_below(&self, path: &[u8]) -> bool {
        let prefix = [path, b"/"].concat();
        self.places
            .range(prefix.clone()..)
            .next()
            .is_some_and(|(p, _)| p.starts_with(&prefix))
    }

    /// The present layer: sorted, parents before children, all parents included so that a layer that is unpacked by
    /// itself has the right owner and mode on them.
    pub fn entries(&self) -> Vec<Entry<'_>> {
        let mut paths: BTreeSet<&[u8]> = BTreeSet::new();
        for (path, place) in &self.places {
            if place.layer == self.layer {
                paths.insert(path);
                paths.extend(ancestors(path));
            }
        }
        let mut first: BTreeMap<NodeId, &[u8]> = BTreeMap::new();
        paths
            .into_iter()
            .filter_map(|path| Some((path, self.places.get(path)?.node)))
            .map(|(path, id)| match first.get(&id) {
                Some(earlier) => Entry::HardLink(path, earlier, id),
                None => {
                    first.insert(id, path);
                    Entry::Node(path, id)
                }
            })
            .collect()
    }

    /// Follows the symbolic links among the parents of `path`.
    pub fn canonical(&self, path: &[u8]) -> Result<Vec<u8>, String> {
        let mut done: Vec<u8> = Vec::new();
        let mut todo: Vec<Vec<u8>> = parts(path).rev().map(<[u8]>::to_vec).collect();
        let mut links = 0;
        while let Some(part) = todo.pop() {
            if part == b".." {
                done.truncate(done.iter().rposition(|b| *b == b'/').unwrap_or(0));
                continue;
            }
            let mut next = done.clone();
            if !next.is_empty() {
                next.push(b'/');
            }
            next.extend_from_slice(&part);
            match self.get(&next).map(|n| &n.kind) {
                Some(Kind::Symlink(target)) if !todo.is_empty() => {
                    links += 1;
                    if links > MAX_LINKS {
                        return Err(format!("{}: too many symbolic links", show(path)));
                    }
                    if target.starts_with(b"/") {
                        done.clear();
                    }
                    todo.extend(parts(target).rev().map(<[u8]>::to_vec));
                }
                _ => done = next,
            }
        }
        Ok(done)
    }

    fn parents(&mut self, path: &[u8]) -> Result<(), String> {
        let missing: Vec<Vec<u8>> = ancestors(path)
            .filter(|p| !self.places.contains_key(*p))
            .map(<[u8]>::to_vec)
            .collect();
        for parent in missing {
            let place = Place {
                node: self.add(Node::directory(0o755)),
                layer: self.layer,
                package: None,
            };
            self.places.insert(parent, place);
        }
        match ancestors(path).find(|p| self.get(p).is_some_and(|n| !n.is_directory())) {
            Some(parent) => Err(format!("{}: {} is not a folder", show(path), show(parent))),
            None => Ok(()),
        }
    }
}

/// Does what is at a place stay there when `new` comes?
fn keeps(
    place: &Place,
    old: &Node,
    new: &Node,
    package: Option<&str>,
    layer: usize,
) -> Result<bool, String> {
    let from_package = package.is_some();
    match (old.is_directory(), new.is_directory()) {
        (true, true) => Ok(from_package && place.named_or_below(layer)),
        (true, false) => match new.kind {
            Kind::Symlink(_) if from_package => Ok(true),
            _ => Err("a folder is already there".into()),
        },
        (false, true) => match old.kind {
            Kind::Symlink(_) if from_package => Ok(true),
            _ => Err("something that is not a folder is already there".into()),
        },
        (false, false) => match &place.package {
            Some(other) if place.layer == layer && package.is_some_and(|p| p != other) => {
                match (&old.kind, &new.kind) {
                    (Kind::Symlink(a), Kind::Symlink(b)) if a == b => Ok(true),
                    _ => Err(format!(
                        "{other} and {} both have it",
                        package.unwrap_or("")
                    )),
                }
            }
            _ => Ok(false),
        },
    }
}

impl Place {
    /// A folder that exists only because something lies below it takes the owner and mode of the first who names it.
    fn named_or_below(&self, layer: usize) -> bool {
        self.package.is_some() || self.layer < layer
    }
}

fn parts(path: &[u8]) -> impl DoubleEndedIterator<Item = &[u8]> {
    path.split(|b| *b == b'/')
        .filter(|p| !matches!(*p, b"" | b"."))
}

fn ancestors(path: &[u8]) -> impl Iterator<Item = &[u8]> {
    path.iter()
        .enumerate()
        .filter(|(_, b)| **b == b'/')
        .map(|(i, _)| &path[..i])
}

/// A path for messages.
pub fn show(path: &[u8]) -> String {
    format!("/{}", String::from_utf8_lossy(path))
}

#[cfg(test)]
mod tests {
    use super::*;

    fn file(tree: &mut Tree, path: &str, source: Source<'_>) -> Result<(), String> {
        let node = tree.add(Node {
            kind: Kind::Fifo,
            ..Node::directory(0o644)
        });
        tree.put(path.as_bytes(), node, source)
    }

    fn put(tree: &mut Tree, path: &str, node: Node, source: Source<'_>) -> Result<(), String> {
        let node = tree.add(node);
        tree.put(path.as_bytes(), node, source)
    }

    fn listing(tree: &Tree) -> Vec<String> {
        tree.entries()
            .iter()
            .map(|e| match e {
                Entry::Node(p, _) => show(p),
                Entry::HardLink(p, first, _) => format!("{} = {}", show(p), show(first)),
            })
            .collect()
    }

    #[test]
    fn merged_usr_and_order() {
        let mut tree = Tree::default();
        let a = Source::Package("a");
        put(
            &mut tree,
            "/lib",
            Node::symlink(b"usr/lib"),
            Source::Definition,
        )
        .unwrap();
        file(&mut tree, "./lib/z.so", a).unwrap();
        put(&mut tree, "./lib/", Node::directory(0o700), a).unwrap();
        file(&mut tree, "./usr/lib/a.so", a).unwrap();
        file(&mut tree, "./usr/lib-x", a).unwrap();
        assert_eq!(
            listing(&tree),
            [
                "/lib",
                "/usr",
                "/usr/lib",
                "/usr/lib-x",
                "/usr/lib/a.so",
                "/usr/lib/z.so"
            ]
        );
        assert_eq!(
            tree.get(b"lib").unwrap().kind,
            Kind::Symlink(b"usr/lib".to_vec())
        );
    }

    #[test]
    fn layers_hold_what_was_written_and_its_parents() {
        let mut tree = Tree::default();
        let a = Source::Package("a");
        put(&mut tree, "tmp", Node::directory(0o1777), a).unwrap();
        file(&mut tree, "etc/one", a).unwrap();
        tree.next_layer();
        put(
            &mut tree,
            "tmp",
            Node::directory(0o755),
            Source::Package("b"),
        )
        .unwrap();
        file(&mut tree, "tmp/two", Source::Package("b")).unwrap();
        assert_eq!(listing(&tree), ["/tmp", "/tmp/two"]);
        assert_eq!(tree.get(b"tmp").unwrap().mode, 0o1777);
    }

    #[test]
    fn hard_links_share_a_node() {
        let mut tree = Tree::default();
        let node = tree.add(Node::symlink(b"x"));
        tree.put(b"b", node, Source::Package("a")).unwrap();
        tree.put(b"a", node, Source::Package("a")).unwrap();
        assert_eq!(listing(&tree), ["/a", "/b = /a"]);
    }

    #[test]
    fn who_replaces_what() {
        let (a, b) = (Source::Package("a"), Source::Package("b"));
        let mut tree = Tree::default();
        file(&mut tree, "etc/x", a).unwrap();
        assert_eq!(
            file(&mut tree, "etc/x", b),
            Err("/etc/x: a and b both have it".into())
        );
        file(&mut tree, "etc/x", Source::Definition).unwrap();
        assert_eq!(
            file(&mut tree, "etc", Source::Definition),
            Err("/etc: a folder is already there".into())
        );
        assert_eq!(
            file(&mut tree, "etc/x/y", a),
            Err("/etc/x/y: /etc/x is not a folder".into())
        );
        put(&mut tree, "etc", Node::directory(0o700), Source::Definition).unwrap();
        assert_eq!(tree.get(b"etc").unwrap().mode, 0o700);
    }

    #[test]
    fn loops_end() {
        let mut tree = Tree::default();
        put(&mut tree, "a", Node::symlink(b"a"), Source::Definition).unwrap();
        assert_eq!(
            file(&mut tree, "a/b", Source::Definition),
            Err("/a/b: too many symbolic links".into())
        );
        put(
            &mut tree,
            "up",
            Node::symlink(b"../../etc"),
            Source::Definition,
        )
        .unwrap();
        assert_eq!(tree.canonical(b"up/x").unwrap(), b"etc/x");
    }
}
