//! The documents name what there is, and the code imports as they say.

use std::collections::{BTreeMap, BTreeSet};
use std::fs;
use std::path::{Path, PathBuf};
use syn::visit::{self, Visit};
use syn::{Item, UseTree};

const ARCHITECTURE: &str = include_str!("../docs/architecture.md");

fn root() -> &'static Path {
    Path::new(env!("CARGO_MANIFEST_DIR"))
}

/// The files of a folder with an ending, and of those in it.
fn files(folder: &Path, ending: &str) -> Vec<PathBuf> {
    let mut all = Vec::new();
    for entry in fs::read_dir(folder).unwrap().map(|entry| entry.unwrap().path()) {
        match entry.is_dir() {
            true => all.extend(files(&entry, ending)),
            false if entry.extension().is_some_and(|found| found == ending) => all.push(entry),
            false => {}
        }
    }
    all
}

/// A heading as links name it.
fn anchor(heading: &str) -> String {
    let text = heading.trim_start_matches('#').trim().to_lowercase();
    let kept = text.chars().filter(|c| c.is_alphanumeric() || matches!(c, ' ' | '-' | '_'));
    kept.map(|c| if c == ' ' { '-' } else { c }).collect()
}

#[test]
fn links_lead_somewhere() {
    let mut documents = files(&root().join("docs"), "md");
    documents.extend(["README.md", "CONTRIBUTING.md", "SECURITY.md"].map(|name| root().join(name)));
    let mut broken = Vec::new();
    for document in &documents {
        let text = fs::read_to_string(document).unwrap();
        let links = text.split("](").skip(1).filter_map(|rest| rest.split_once(')')).map(|(link, _)| link);
        for link in links.filter(|link| !link.contains("://") && !link.contains(char::is_whitespace)) {
            let (file, place) =
                link.split_once('#').map_or((link, None), |(file, place)| (file, Some(place)));
            let target = if file.is_empty() { document.clone() } else { document.with_file_name(file) };
            let found = match place {
                None => target.exists(),
                Some(place) => fs::read_to_string(&target).is_ok_and(|text| {
                    text.lines().any(|line| line.starts_with('#') && anchor(line) == place)
                }),
            };
            if !found {
                broken.push(format!("{}: {link}", document.display()));
            }
        }
    }
    assert!(documents.len() > 10 && broken.is_empty(), "{broken:#?}");
}

/// What stands in backquotes in the architecture's document: paths, types, functions of types.
#[test]
fn the_architecture_names_what_there_is() {
    let folders = ["src", "codegen/src", "generated", "templates", "tests", "python/src"];
    let code: String = folders
        .iter()
        .flat_map(|folder| files(&root().join(folder), "rs"))
        .map(|file| fs::read_to_string(file).unwrap())
        .collect();
    let words: BTreeSet<&str> = code.split(|c: char| !c.is_alphanumeric() && c != '_').collect();
    let quoted: Vec<&str> = ARCHITECTURE
        .split("\n```")
        .step_by(2)
        .flat_map(|prose| prose.split('`').skip(1).step_by(2))
        .collect();
    let mut unknown = Vec::new();
    for name in &quoted {
        let is_path = name.contains('/') && !name.contains("NAME");
        let is_name = name.chars().all(|c| c.is_alphanumeric() || "_:".contains(c));
        let exists = match (is_path, is_name) {
            (true, _) => root().join(name).exists(),
            (_, true) => name.split("::").all(|part| words.contains(part)),
            _ => true,
        };
        if !exists {
            unknown.push(name);
        }
    }
    assert!(quoted.len() > 100 && unknown.is_empty(), "{unknown:#?}");
}

/// The module that a path from the crate's root leads into: `None` for what is no module of `src/`.
fn module_of<'a>(path: &'a [String], facade: &'a BTreeMap<String, String>) -> Option<&'a str> {
    match path {
        [kernels, specs, ..] if kernels == "kernels" && specs == "specs" => None,
        [first, ..] => Some(facade.get(first).unwrap_or(first)),
        [] => None,
    }
}

/// The paths from the crate's root that a file takes, those of its tests left out.
#[derive(Default)]
struct Paths(Vec<Vec<String>>);

impl Paths {
    fn tree(&mut self, tree: &UseTree, before: &[String]) {
        let with = |name: &syn::Ident| [before, &[name.to_string()]].concat();
        match tree {
            UseTree::Path(path) => self.tree(&path.tree, &with(&path.ident)),
            UseTree::Group(group) => group.items.iter().for_each(|item| self.tree(item, before)),
            UseTree::Name(name) => self.add(with(&name.ident)),
            UseTree::Rename(name) => self.add(with(&name.ident)),
            UseTree::Glob(_) => self.add(before.to_vec()),
        }
    }

    fn add(&mut self, path: Vec<String>) {
        if path.first().is_some_and(|first| first == "crate" || first == "tilewright") {
            self.0.push(path[1..].to_vec());
        }
    }
}

fn is_test(attrs: &[syn::Attribute]) -> bool {
    attrs.iter().any(|attr| {
        let arguments = attr.meta.require_list().map(|list| list.tokens.to_string());
        attr.path().is_ident("cfg") && arguments.is_ok_and(|text| text.split(' ').any(|word| word == "test"))
    })
}

impl<'ast> Visit<'ast> for Paths {
    fn visit_item(&mut self, item: &'ast Item) {
        match item {
            Item::Mod(item) if is_test(&item.attrs) => {}
            Item::Use(item) if is_test(&item.attrs) => {}
            Item::Use(item) => self.tree(&item.tree, &[]),
            item => visit::visit_item(self, item),
        }
    }

    fn visit_path(&mut self, path: &'ast syn::Path) {
        self.add(path.segments.iter().map(|segment| segment.ident.to_string()).collect());
        visit::visit_path(self, path);
    }
}

/// Names at the crate's root, by the module that they come from.
fn facade() -> BTreeMap<String, String> {
    let mut paths = Paths::default();
    let file = syn::parse_file(&fs::read_to_string(root().join("src/lib.rs")).unwrap()).unwrap();
    for item in &file.items {
        if let Item::Use(item) = item {
            paths.tree(&item.tree, &["crate".to_owned()]);
        }
    }
    paths
        .0
        .into_iter()
        .filter(|path| path.len() > 1)
        .map(|path| (path.last().unwrap().clone(), path[0].clone()))
        .collect()
}

/// The lines of modules in the architecture's document, from low to high.
#[test]
fn imports_run_one_way() {
    let block = ARCHITECTURE.split("```layers\n").nth(1).and_then(|rest| rest.split("```").next()).unwrap();
    let mut layer = BTreeMap::new();
    for (height, line) in block.lines().enumerate() {
        layer.extend(line.split(' ').map(|module| (module, height)));
    }
    let facade = facade();
    let (mut wrong, mut arrows) = (BTreeSet::new(), BTreeSet::new());
    let folders = [("src", None), ("generated", Some("kernels")), ("templates", Some("kernels"))];
    for (folder, name) in folders {
        for file in files(&root().join(folder), "rs") {
            let inside = file.strip_prefix(root().join(folder)).unwrap().to_str().unwrap();
            let own = inside.split(['/', '.']).next().unwrap();
            let own = name.unwrap_or(own);
            let declares =
                file.file_name().is_some_and(|name| name == "kernel.rs") || inside.starts_with("lib/");
            if inside.contains("tests")
                || ["lib", "main", "error"].contains(&own)
                || declares && name.is_some()
            {
                continue;
            }
            let Some(&height) = layer.get(own) else {
                wrong.insert(format!("{own} is on no line"));
                continue;
            };
            let mut paths = Paths::default();
            paths.visit_file(&syn::parse_file(&fs::read_to_string(&file).unwrap()).unwrap());
            for module in paths.0.iter().filter_map(|path| module_of(path, &facade)) {
                match layer.get(module) {
                    Some(&other) if module != own && other >= height => {
                        wrong.insert(format!("{own} imports {module} in {}", file.display()));
                    }
                    Some(_) if module != own => drop(arrows.insert((own.to_owned(), module.to_owned()))),
                    _ => {}
                }
            }
        }
    }
    assert!(arrows.len() > 80, "{} arrows were seen", arrows.len());
    assert!(wrong.is_empty(), "{wrong:#?}");
}
