//! Reading a bundle's file, block by block.
//!
//! The archive is read here and not by the tar crate, which is made to take what any tar makes: links, sparse files,
//! attributes that rename the next entry. A bundle has plain files, and anything else is refused before it is looked at.

use std::fs::File;
use std::io::{self, BufRead, BufReader, Read, Write};
use std::path::Path;

use tar::{EntryType, Header};
use zstd::stream::read::Decoder;

use super::error::{BundleError, PathFault, Refusal, excerpt};
use super::manifest::{LARGEST_MANIFEST, Listed, Manifest};
use super::place::{LONGEST, MANIFEST};
use super::{LARGEST, allowance};
use crate::cache::transfer::create;

/// A tar archive's unit.
const BLOCK: usize = 512;

/// Unpacks the files of a bundle into an empty folder, every one compared with the manifest.
pub(super) fn unpack(bundle: &Path, content: Content, folder: &Path) -> Result<Manifest, BundleError> {
    let refused = |refusal: Refusal| refusal.of(bundle);
    let open = Reader::new(content);
    let mut reader = open.map_err(|source| BundleError::Open { path: bundle.to_owned(), source })?;
    let first = reader.next().map_err(refused)?;
    let (path, size) = first.unwrap_or_default();
    if path != MANIFEST {
        return Err(refused(Refusal::NoManifest { found: path }));
    }
    if size > LARGEST_MANIFEST {
        let what = "the size of its manifest.json is".to_string();
        return Err(refused(Refusal::TooLarge { what, found: size, limit: LARGEST_MANIFEST }));
    }
    let mut text = Vec::new();
    let keep = |chunk: &[u8]| {
        text.extend_from_slice(chunk);
        Ok(())
    };
    reader.content(size, keep).map_err(refused)?.map_err(|never| unpack_error(folder, never))?;
    let manifest = Manifest::from_json(&text).map_err(refused)?;

    let mut listed: std::collections::BTreeMap<&str, (&Listed, bool)> =
        manifest.files.iter().map(|file| (file.path.as_str(), (file, false))).collect();
    while let Some((path, size)) = reader.next().map_err(refused)? {
        let Some((file, seen)) = listed.get_mut(path.as_str()) else {
            // What is wrong with the path says more than that it is not in the list.
            let unlisted = match path.as_str() {
                MANIFEST => Refusal::Duplicate { path },
                _ => super::place::Place::of(&path).err().unwrap_or(Refusal::Unlisted { path }),
            };
            return Err(refused(unlisted));
        };
        if std::mem::replace(seen, true) {
            return Err(refused(Refusal::Duplicate { path }));
        }
        if size != file.size {
            return Err(refused(Refusal::Size { path, found: size, listed: file.size }));
        }
        let target = folder.join(&path);
        // Its path was checked.
        let mut output = create(&target).map_err(|error| unpack_error(&target, error))?;
        let mut hasher = blake3::Hasher::new();
        let write = |chunk: &[u8]| {
            hasher.update(chunk);
            output.write_all(chunk)
        };
        reader.content(size, write).map_err(refused)?.map_err(|error| unpack_error(&target, error))?;
        if hasher.finalize().to_hex().as_str() != file.blake3 {
            return Err(refused(Refusal::Digest { path }));
        }
    }
    reader.end().map_err(refused)?;
    if let Some((path, _)) = listed.into_iter().find(|(_, (_, seen))| !seen) {
        return Err(refused(Refusal::Missing { path: path.to_string() }));
    }
    Ok(manifest)
}

fn unpack_error(path: &Path, source: io::Error) -> BundleError {
    BundleError::Unpack { path: path.to_owned(), source }
}

/// The bytes of a bundle, and how many there are: of a pipe, how many have come.
pub(super) struct Content {
    bytes: Box<dyn Read>,
    size: Option<u64>,
    read: u64,
}

impl Content {
    /// The content of a file, a pipe or a device.
    pub(super) fn open(path: &Path) -> io::Result<Self> {
        let file = File::open(path)?;
        let found = file.metadata()?;
        if found.is_dir() {
            return Err(io::Error::new(io::ErrorKind::IsADirectory, "it is a folder"));
        }
        let size = found.is_file().then_some(found.len());
        Ok(Content { bytes: Box::new(file), size, read: 0 })
    }

    /// What comes from somewhere else.
    pub(super) fn of(bytes: impl Read + 'static) -> Self {
        Content { bytes: Box::new(bytes), size: None, read: 0 }
    }

    fn size(&self) -> u64 {
        self.size.unwrap_or(self.read)
    }
}

impl Read for Content {
    fn read(&mut self, buffer: &mut [u8]) -> io::Result<usize> {
        let count = self.bytes.read(buffer)?;
        self.read += count as u64;
        Ok(count)
    }
}

/// An archive that is being read, with a budget.
struct Reader {
    archive: Decoder<'static, BufReader<Content>>,
    /// What was unpacked.
    unpacked: u64,
}

impl Reader {
    fn new(content: Content) -> io::Result<Self> {
        let archive = Decoder::new(content)?.single_frame();
        Ok(Self { archive, unpacked: 0 })
    }

    /// The next file's path and size; none at the archive's end.
    fn next(&mut self) -> Result<Option<(String, u64)>, Refusal> {
        let Some(mut header) = self.header()? else { return Ok(None) };
        let mut path = header.path_bytes().into_owned();
        // A path of more than 100 bytes comes as the content of an entry before the file's.
        if header.entry_type() == EntryType::GNULongName {
            let size = size(&header)?;
            if size > LONGEST as u64 + 1 {
                let what = "the length of a path is".to_string();
                return Err(Refusal::TooLarge { what, found: size, limit: LONGEST as u64 });
            }
            path.clear();
            let keep = |chunk: &[u8]| {
                path.extend_from_slice(chunk);
                Ok(())
            };
            // Memory does not fail to be written.
            let _ = self.content(size, keep)?;
            path.pop_if(|last| *last == 0);
            header = self.header()?.ok_or(Refusal::Truncated)?;
        }
        let shown = || excerpt(&path);
        if header.entry_type() != EntryType::Regular {
            return Err(Refusal::NotAFile { path: shown(), kind: kind(header.entry_type()) });
        }
        let size = size(&header)?;
        match String::from_utf8(path.clone()) {
            Ok(path) if path.len() <= LONGEST => Ok(Some((path, size))),
            _ => Err(Refusal::Path { path: shown(), fault: PathFault::Form }),
        }
    }

    /// A header whose checksum is right; none for the two empty blocks of the end.
    fn header(&mut self) -> Result<Option<Header>, Refusal> {
        let mut block = [0; BLOCK];
        self.fill(&mut block)?;
        if block == [0; BLOCK] {
            self.fill(&mut block)?;
            return match block == [0; BLOCK] {
                true => Ok(None),
                false => Err(Refusal::Damaged("a header is empty".into())),
            };
        }
        let header = Header::from_byte_slice(&block).clone();
        let sum = |at: std::ops::Range<usize>| block[at].iter().map(|&byte| u32::from(byte)).sum::<u32>();
        // The checksum's own eight bytes count as spaces.
        let found = sum(0..148) + 8 * u32::from(b' ') + sum(156..BLOCK);
        match header.cksum() {
            Ok(sum) if sum == found => Ok(Some(header)),
            _ => Err(Refusal::Damaged("a header's checksum is wrong".into())),
        }
    }

    /// Gives `size` bytes of content to `take`, and reads the padding after them. The inner error is `take`'s.
    fn content(
        &mut self,
        size: u64,
        mut take: impl FnMut(&[u8]) -> io::Result<()>,
    ) -> Result<io::Result<()>, Refusal> {
        let mut chunk = vec![0; 64 << 10];
        let mut left = size;
        while left > 0 {
            let len = left.min(chunk.len() as u64) as usize;
            self.fill(&mut chunk[..len])?;
            if let Err(error) = take(&chunk[..len]) {
                return Ok(Err(error));
            }
            left -= len as u64;
        }
        let padding = &mut [0; BLOCK][..(size.next_multiple_of(BLOCK as u64) - size) as usize];
        self.fill(padding)?;
        match padding.iter().all(|&byte| byte == 0) {
            true => Ok(Ok(())),
            false => Err(Refusal::Damaged("something lies between two files".into())),
        }
    }

    /// Fills a buffer, if the budget allows for it.
    fn fill(&mut self, buffer: &mut [u8]) -> Result<(), Refusal> {
        let bytes = self.archive.get_ref().get_ref().size();
        // Headers, padding and the manifest come on top of the files.
        let limit = allowance(bytes).min(LARGEST + (LARGEST >> 2));
        self.unpacked += buffer.len() as u64;
        if self.unpacked > limit {
            return Err(Refusal::Bomb { bytes, limit });
        }
        self.archive.read_exact(buffer).map_err(damaged)
    }

    /// Makes sure that nothing follows.
    fn end(mut self) -> Result<(), Refusal> {
        // Reading to the end also compares zstd's own checksum.
        let more = self.archive.read(&mut [0]).map_err(damaged)?;
        let rest = self.archive.finish().fill_buf().map_or(0, <[u8]>::len);
        match more + rest {
            0 => Ok(()),
            _ => Err(Refusal::TrailingData),
        }
    }
}

fn damaged(error: io::Error) -> Refusal {
    match error.kind() {
        io::ErrorKind::UnexpectedEof => Refusal::Truncated,
        _ => Refusal::Damaged(error.to_string()),
    }
}

fn size(header: &Header) -> Result<u64, Refusal> {
    match header.entry_size() {
        Ok(size) if size <= LARGEST => Ok(size),
        Ok(found) => Err(Refusal::TooLarge { what: "the size of a file is".into(), found, limit: LARGEST }),
        Err(error) => Err(Refusal::Damaged(error.to_string())),
    }
}

fn kind(entry: EntryType) -> &'static str {
    match entry {
        EntryType::Link => "a hard link",
        EntryType::Symlink => "a symbolic link",
        EntryType::Char | EntryType::Block => "a device",
        EntryType::Directory => "a folder",
        EntryType::Fifo => "a pipe",
        EntryType::GNUSparse => "a sparse file",
        EntryType::GNULongName | EntryType::GNULongLink => "a second name",
        EntryType::XHeader | EntryType::XGlobalHeader => "a list of attributes",
        _ => "no plain file",
    }
}
