//! The public surface: what its types have in common, and what stays out of it. `unreachable_pub` is denied in the library, so that
//! whatever is `pub` in its files is public.

use std::collections::BTreeSet;
use std::fmt::Debug;
use std::fs;
use std::path::{Path, PathBuf};
use syn::visit::{self, Visit};
use syn::{Fields, ImplItem, Item, UseTree, Visibility};
use tilewright::kernels::pool::Params;
use tilewright::*;

/// Asserts what holds of every public type; the names.
macro_rules! types {
    ($($type:ty),+ $(,)?) => {{
        fn holds<T: Debug + Send + Sync>() {}
        $(holds::<$type>();)+
        vec![$(stringify!($type)),+]
    }};
}

/// Every public type of the library, the command's left out.
fn types() -> Vec<&'static str> {
    types![
        attention::Attend<'static>,
        attention::Attention,
        attention::AttentionBuilder,
        attention::Backward<'static>,
        attention::Forward<'static>,
        attention::Gradients,
        attention::HeadDim,
        attention::HeadDimError,
        attention::Inputs<'static>,
        attention::MaskLists,
        attention::Output,
        attention::Plan,
        attention::Select<'static>,
        attention::Shapes,
        attention::Step<'static>,
        attention::Work<'static>,
        attention::Workspace,
        build::Emit,
        bundle::BundleError,
        bundle::Contents<'static>,
        bundle::ExportReport,
        bundle::ImportReport,
        bundle::PathFault,
        bundle::RecordName,
        bundle::Refusal,
        cache::CacheError,
        cache::ClearReport,
        cache::CubinKey,
        cache::Entry,
        cache::KernelCache,
        cache::Lock,
        cache::Origin,
        cache::PruneReport,
        cache::RecordId,
        cache::VerifyReport,
        compile::BrokenSource,
        compile::CompileError,
        compile::CompileJob,
        compile::CompileResult<'static>,
        compile::Cubin,
        compile::Diagnostic,
        compile::EmbeddedCubin,
        compile::PtxasReport,
        compile::Severity,
        cpu::Upstream<'static>,
        device::CudaDevice,
        device::Device,
        device::DeviceBuffer,
        device::DeviceError,
        device::DeviceInfo,
        device::DeviceMemory,
        device::LoadedKernel,
        launch::BindError,
        launch::Binder,
        launch::Bound<Params>,
        launch::BoundTensor<3>,
        launch::BoxedTensor,
        launch::Choice,
        launch::Dim,
        launch::DynamicArgs,
        launch::DynamicKernel,
        launch::DynamicTensor,
        launch::Function,
        launch::FunctionArgs,
        launch::Kernel,
        launch::Probe<'static>,
        launch::Request,
        launch::TensorArg<'static>,
        launch::TensorDecl,
        launch::Tuned,
        output::Output,
        reference::Reference,
        reference::ReferenceGradients,
        services::FirstUse<'static>,
        services::Policy,
        services::PolicyError,
        services::Progress<'static>,
        services::Services,
        services::ServicesBuilder,
        toolchain::Environment,
        toolchain::Exposure,
        toolchain::Outcome,
        toolchain::Refusal,
        toolchain::Searched,
        toolchain::Source,
        toolchain::Toolchain,
        toolchain::ToolchainError,
        tune::Bucket,
        tune::Call,
        tune::Contender,
        tune::DeviceKey,
        tune::Entry,
        tune::Finish,
        tune::Outcome,
        tune::RaceError,
        tune::RaceResult,
        tune::RaceSettings,
        tune::RecordError,
        tune::Row,
        tune::Timing,
        tune::TuneKey,
        tune::TuneRecord,
        tune::Workload,
        BlockIndex,
        BlockMask,
        BlockSize,
        DenseMap,
        DynamicMaskMod,
        DynamicScoreMod,
        Error,
        ErrorKind,
        FunctionError,
        GridError,
        Interrupt,
        MaskError,
        Scores,
        SelectError,
        Selection,
        SeqLens,
        Tail,
        TailError,
        Tensor,
        TensorError,
        TokenGrid,
        TokenGridBuilder,
    ]
}

#[test]
fn every_public_type_is_debug_send_and_sync() {
    let types = types();
    let mut listed: Vec<&str> = types
        .iter()
        .map(|path| path.rsplit("::").next().unwrap().split('<').next().unwrap().trim())
        .collect();
    // One macro of `src/dynamic.rs` makes these two.
    let mut found = vec!["DynamicMaskMod".to_owned(), "DynamicScoreMod".to_owned()];
    let mut by_macros = 0;
    for file in library() {
        by_macros += file.text.matches("pub struct $").count() + file.text.matches("pub enum $").count();
        found.extend(file.items().iter().filter_map(|item| match item {
            Item::Struct(item) if is_public(&item.vis) => Some(item.ident.to_string()),
            Item::Enum(item) if is_public(&item.vis) => Some(item.ident.to_string()),
            Item::Union(item) if is_public(&item.vis) => Some(item.ident.to_string()),
            _ => None,
        }));
    }
    assert_eq!(by_macros, 1, "a macro makes public types: list them here as those of `src/dynamic.rs`");
    listed.sort_unstable();
    found.sort_unstable();
    let missing: Vec<_> = found.iter().filter(|name| count(&found, name) > count(&listed, name)).collect();
    assert!(missing.is_empty(), "put these into the table of types: {missing:?}");
    assert_eq!(listed, found, "the table of types has more than there are");
}

fn count<T: AsRef<str>>(names: &[T], name: &str) -> usize {
    names.iter().filter(|other| other.as_ref() == name).count()
}

/// The library says what is missing in terms of its own: a command line is the command's to write.
#[test]
fn the_library_writes_no_command_line() {
    for file in library() {
        for (number, line) in file.text.lines().enumerate() {
            let shown = format!("{}:{}: {line}", file.path.display(), number + 1);
            assert!(!line.contains("`tilewright "), "{shown}");
            assert!(!line.contains("(`--"), "{shown}");
        }
    }
}

/// Whoever uses the library must not depend on the version of cudarc that it is built with.
#[test]
fn no_type_of_cudarc_is_public() {
    for file in library() {
        let mut foreign = Foreign { names: ["cudarc".to_owned()].into(), found: None };
        file.items().iter().for_each(|item| foreign.import(item));
        if foreign.names.len() > 1 || file.text.contains("cudarc::") {
            let inside = file.path.strip_prefix(source()).unwrap();
            assert!(inside.starts_with("device"), "{}: cudarc belongs into `src/device`", inside.display());
        }
        for item in file.items() {
            foreign.look_at(&item);
            let found = foreign.found.take();
            assert_eq!(found, None, "{}: a public signature has a type of cudarc's", file.path.display());
        }
    }
}

/// Finds cudarc's names in what the public sees of an item.
struct Foreign {
    names: BTreeSet<String>,
    found: Option<String>,
}

impl Foreign {
    /// Learns the names that `use cudarc::…` brings into a file.
    fn import(&mut self, item: &Item) {
        if let Item::Use(item) = item
            && let UseTree::Path(path) = &item.tree
            && path.ident == "cudarc"
        {
            self.leaves(&path.tree);
        }
    }

    fn leaves(&mut self, tree: &UseTree) {
        match tree {
            UseTree::Path(path) => self.leaves(&path.tree),
            UseTree::Name(name) => drop(self.names.insert(name.ident.to_string())),
            UseTree::Rename(rename) => drop(self.names.insert(rename.rename.to_string())),
            UseTree::Group(group) => group.items.iter().for_each(|tree| self.leaves(tree)),
            UseTree::Glob(_) => panic!("name what is taken of cudarc"),
        }
    }

    fn look_at(&mut self, item: &Item) {
        match item {
            Item::Struct(item) if is_public(&item.vis) => self.fields(&item.fields, false),
            Item::Enum(item) if is_public(&item.vis) => {
                item.variants.iter().for_each(|variant| self.fields(&variant.fields, true));
            }
            Item::Fn(item) if is_public(&item.vis) => self.visit_signature(&item.sig),
            Item::Type(item) if is_public(&item.vis) => self.visit_type(&item.ty),
            Item::Const(item) if is_public(&item.vis) => self.visit_type(&item.ty),
            Item::Trait(item) if is_public(&item.vis) => self.visit_item_trait(item),
            Item::Impl(item) => {
                // An implementation of a trait is as public as its types.
                if let Some((path, _)) = &item.trait_ {
                    self.visit_path(path);
                }
                for inside in &item.items {
                    match inside {
                        ImplItem::Fn(inside) if is_public(&inside.vis) => self.visit_signature(&inside.sig),
                        ImplItem::Const(inside) if is_public(&inside.vis) => self.visit_type(&inside.ty),
                        ImplItem::Type(inside) => self.visit_type(&inside.ty),
                        _ => {}
                    }
                }
            }
            _ => {}
        }
    }

    fn fields(&mut self, fields: &Fields, all: bool) {
        for field in fields.iter().filter(|field| all || is_public(&field.vis)) {
            self.visit_type(&field.ty);
        }
    }
}

impl Visit<'_> for Foreign {
    fn visit_ident(&mut self, ident: &syn::Ident) {
        if self.names.contains(&ident.to_string()) {
            self.found = Some(ident.to_string());
        }
        visit::visit_ident(self, ident);
    }
}

/// A file of the library.
struct Source {
    path: PathBuf,
    text: String,
}

impl Source {
    fn items(&self) -> Vec<Item> {
        syn::parse_file(&self.text).unwrap_or_else(|error| panic!("{}: {error}", self.path.display())).items
    }
}

fn source() -> &'static Path {
    Path::new(concat!(env!("CARGO_MANIFEST_DIR"), "/src"))
}

/// The library's files: all but those of the command.
fn library() -> Vec<Source> {
    let (mut folders, mut files) = (vec![source().to_owned()], Vec::new());
    while let Some(folder) = folders.pop() {
        for entry in fs::read_dir(folder).unwrap() {
            let path = entry.unwrap().path();
            if path.is_dir() {
                folders.extend(Some(path).filter(|path| !path.ends_with("cli")));
            } else if path.extension().is_some_and(|extension| extension == "rs") {
                files.push(Source { text: fs::read_to_string(&path).unwrap(), path });
            }
        }
    }
    assert!(files.len() > 100, "the library's files are elsewhere: {files:?}", files = files.len());
    files
}

fn is_public(visibility: &Visibility) -> bool {
    matches!(visibility, Visibility::Public(_))
}
