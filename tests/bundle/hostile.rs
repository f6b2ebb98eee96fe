//! Bundles that want something else than to be imported.

use super::support::*;
use std::fs;
use tar::EntryType;
use tilewright::bundle::{BundleError, PathFault, Refusal};

/// The files of a good bundle without its manifest.
fn good() -> Vec<File> {
    let (_dir, path) = bundle();
    files_of(&path).split_off(1)
}

fn packed(files: &[File]) -> Vec<u8> {
    compress(&archive(files))
}

fn refused(files: &[File]) -> Refusal {
    refusal(&packed(files))
}

#[test]
fn archives_made_by_hand_are_imported_when_they_are_good() {
    let (_dir, cache) = try_import(&packed(&listed(good()))).expect("it is good");
    assert_eq!((cache.entries().len(), cache.records().len()), (3, 1));
}

#[test]
fn paths_that_lead_elsewhere_are_refused() {
    for (path, fault) in [
        ("/tmp/tilewright-hostile", PathFault::Absolute),
        ("\\tilewright-hostile", PathFault::Absolute),
        ("../tilewright-hostile", PathFault::Outside),
        ("sm_90a/../../tilewright-hostile", PathFault::Outside),
        ("sm_90a/kernel0-0123456789abcdef0123456789abcdef/../kernel.cu", PathFault::Outside),
        ("sm_90a/kernel.cu", PathFault::Form),
        ("toolchain.json", PathFault::Form),
        ("tune/device/record", PathFault::Form),
        ("locks/kernel0-0123456789abcdef0123456789abcdef/kernel.cu", PathFault::Form),
        ("sm_90a/kernel\u{1b}[2J-0123456789abcdef0123456789abcdef/kernel.cu", PathFault::Form),
    ] {
        let stranger = File::new(path, "content");
        let mut files = good();
        files.push(stranger.clone());
        // In the list as well as in the archive, or in the archive alone.
        for files in [listed(files.clone()), [listed(good()), vec![stranger]].concat()] {
            let refusal = refused(&files);
            assert!(
                matches!(refusal, Refusal::Path { fault: found, .. } if found == fault),
                "{path}: {refusal}"
            );
            assert!(!refusal.to_string().contains('\u{1b}'), "a path must not reach the terminal as it is");
        }
    }
}

#[test]
fn anything_but_plain_files_is_refused() {
    for (kind, link) in [
        (EntryType::Symlink, Some("/etc/passwd")),
        (EntryType::Link, Some("/etc/passwd")),
        (EntryType::Char, None),
        (EntryType::Block, None),
        (EntryType::Fifo, None),
        (EntryType::Directory, None),
        (EntryType::Continuous, None),
        (EntryType::GNUSparse, None),
        (EntryType::GNULongLink, None),
        (EntryType::XHeader, None),
        (EntryType::XGlobalHeader, None),
        (EntryType::new(b'V'), None),
    ] {
        // In the place of a file, and as one more.
        let mut files = listed(good());
        files[2] = File { kind, link, bytes: Vec::new(), ..files[2].clone() };
        assert!(matches!(refused(&files), Refusal::NotAFile { .. }), "{kind:?}");
        let mut files = listed(good());
        files.insert(1, File { kind, link, ..File::new("sm_90a", "") });
        assert!(matches!(refused(&files), Refusal::NotAFile { .. }), "{kind:?}");
    }
}

#[test]
fn the_list_and_the_files_must_agree() {
    let files = listed(good());
    let twice = [files.clone(), vec![files[3].clone()]].concat();
    assert!(matches!(refused(&twice), Refusal::Duplicate { .. }));
    let two_lists = [files.clone(), vec![files[0].clone()]].concat();
    assert!(matches!(refused(&two_lists), Refusal::Duplicate { .. }));
    let mut repeated = good();
    repeated.push(repeated[0].clone());
    assert!(matches!(refused(&listed(repeated)), Refusal::Duplicate { .. }));
    let mut unlisted = files.clone();
    let stranger = "sm_90a/other-0123456789abcdef0123456789abcdef/kernel.cu";
    unlisted.push(File::new(stranger, "source"));
    assert!(matches!(refused(&unlisted), Refusal::Unlisted { path } if path == stranger));
    for missing in [1, 5, files.len() - 1] {
        let mut files = files.clone();
        let gone = files.remove(missing).path;
        assert!(matches!(refused(&files), Refusal::Missing { path } if path == gone));
    }
    // An entry that is not complete, and a list that does not mind.
    let mut incomplete = good();
    let gone = incomplete.remove(1).path;
    assert!(matches!(refused(&listed(incomplete)), Refusal::Missing { path } if path == gone));
    let mut longer = files.clone();
    longer[2].bytes.push(b' ');
    assert!(matches!(refused(&longer), Refusal::Size { .. }));
    let mut changed = files.clone();
    let middle = changed[2].bytes.len() / 2;
    changed[2].bytes[middle] ^= 1;
    assert!(matches!(refused(&changed), Refusal::Digest { .. }));
    // An order of its own is no harm.
    let mut reversed = good();
    // One export: a later one has other times in it.
    let manifest = manifest(&reversed);
    reversed.reverse();
    let files = [vec![manifest], reversed].concat();
    try_import(&packed(&files)).expect("it is good");
}

#[test]
fn the_manifest_comes_first_and_is_of_this_schema() {
    let files = listed(good());
    let mut last = files.clone();
    last.rotate_left(1);
    assert!(matches!(refused(&last), Refusal::NoManifest { .. }));
    assert!(matches!(refused(&good()), Refusal::NoManifest { .. }));
    assert!(matches!(refused(&[]), Refusal::NoManifest { .. }));

    let with = |text: &str| {
        let mut files = files.clone();
        files[0].bytes = text.into();
        refused(&files)
    };
    let refusal = with(r#"{"schema": 2, "created_by": "tilewright 9.1.0", "parts": []}"#);
    assert!(matches!(refusal, Refusal::Schema { found: 2, .. }));
    assert!(refusal.to_string().contains("tilewright 9.1.0"), "{refusal}");
    assert!(matches!(with(r#"{"schema": 0}"#), Refusal::Schema { found: 0, .. }));
    for text in ["", "{", "[]", "{\"schema\": -1}", "{\"schema\": 1}", "\u{0}"] {
        assert!(matches!(with(text), Refusal::Manifest(_)), "{text}");
    }
    assert!(matches!(
        with(r#"{"schema": 1, "created_by": "", "files": [], "more": 1}"#),
        Refusal::Manifest(_)
    ));
    let deep = "[".repeat(100_000);
    assert!(matches!(with(&deep), Refusal::Manifest(_)));
}

#[test]
fn too_much_is_refused_before_it_is_written() {
    let entry = "sm_90a/big-0123456789abcdef0123456789abcdef";
    let list = |files: &[(String, u64)]| {
        let files: Vec<_> = files
            .iter()
            .map(|(path, size)| serde_json::json!({ "path": path, "size": size, "blake3": "" }))
            .collect();
        let json = serde_json::json!({ "schema": 1, "created_by": "", "files": files });
        refused(&[File::new("manifest.json", json.to_string())])
    };
    let one = |file: &str, size: u64| list(&[(format!("{entry}/{file}"), size)]);
    for (file, size) in
        [("kernel.cu", (256 << 20) + 1), ("meta.json", (1 << 20) + 1), ("kernel.cubin", u64::MAX)]
    {
        assert!(matches!(one(file, size), Refusal::TooLarge { .. }), "{file}");
    }
    let many: Vec<_> = (0..6)
        .map(|i| (format!("sm_9{i}/k-0123456789abcdef0123456789abcdef/kernel.cu"), 200 << 20))
        .collect();
    assert!(matches!(list(&many), Refusal::TooLarge { .. }));
    let many: Vec<_> = (0..=65_536).map(|i| (format!("tune/device/{i}.json"), 1)).collect();
    assert!(matches!(list(&many), Refusal::TooLarge { .. }));

    // Headers that promise more than there is.
    for size in [1 << 25, 1 << 40, u64::MAX >> 1] {
        let file = File::new("manifest.json", "{}");
        let mut header = header(&file);
        header.set_size(size);
        header.set_cksum();
        let bytes = [&header.as_bytes()[..], &[0; 4096]].concat();
        let refusal = refusal(&compress(&bytes));
        assert!(matches!(refusal, Refusal::TooLarge { .. } | Refusal::Truncated), "{size}: {refusal}");
    }
    let long = File { kind: EntryType::GNULongName, ..File::new("././@LongLink", "x".repeat(100_000)) };
    assert!(matches!(refused(&[long]), Refusal::TooLarge { .. }));
}

#[test]
fn a_bomb_is_defused() {
    let hash = "0123456789abcdef0123456789abcdef";
    let zeros = || vec![0; 40 << 20];
    let mut files = vec![File::new(&format!("sm_90a/bomb-{hash}/kernel.cubin"), zeros())];
    files.push(File::new(&format!("sm_90a/bomb-{hash}/kernel.cu"), zeros()));
    files.push(File::new(&format!("sm_90a/bomb-{hash}/meta.json"), "{}"));
    let bytes = packed(&listed(files));
    assert!(bytes.len() < 100_000, "{}", bytes.len());
    assert!(matches!(refusal(&bytes), Refusal::Bomb { .. }));
}

#[test]
fn nothing_may_follow_the_end() {
    let archive = archive(&listed(good()));
    let good = compress(&archive);
    assert!(matches!(refusal(&[&good[..], b"x"].concat()), Refusal::TrailingData));
    // Another frame, one that is skipped, a second archive.
    assert!(matches!(refusal(&[&good[..], &good].concat()), Refusal::TrailingData));
    let skipped = [0x50, 0x2a, 0x4d, 0x18, 4, 0, 0, 0, 1, 2, 3, 4];
    assert!(matches!(refusal(&[&good[..], &skipped].concat()), Refusal::TrailingData));
    assert!(matches!(refusal(&compress(&[&archive[..], &archive].concat())), Refusal::TrailingData));
    assert!(matches!(refusal(&compress(&[&archive[..], &[0; 512]].concat())), Refusal::TrailingData));
    // An end that is none.
    let end = archive.len() - 1024;
    assert!(matches!(refusal(&compress(&archive[..end])), Refusal::Truncated));
    assert!(matches!(refusal(&compress(&archive[..end + 512])), Refusal::Truncated));
    let mut broken = archive.clone();
    broken[end + 600] = 1;
    assert!(matches!(refusal(&compress(&broken)), Refusal::Damaged(_)));
}

#[test]
fn what_is_in_the_files_is_checked_like_the_cache() {
    let replaced = |which: &str, change: fn(&mut Vec<u8>)| {
        let mut files = good();
        let file = files.iter_mut().find(|file| file.path.ends_with(which)).expect("such a file");
        change(&mut file.bytes);
        refused(&listed(files))
    };
    for refusal in [
        replaced("kernel.cubin", |bytes| bytes.truncate(40)),
        replaced("kernel.cu", |bytes| *bytes = b"another source".to_vec()),
        replaced("meta.json", |bytes| *bytes = b"{}".to_vec()),
        replaced("meta.json", |bytes| {
            *bytes = String::from_utf8_lossy(bytes).replace("sm_90a", "sm_80").into_bytes();
        }),
        replaced("meta.json", |bytes| bytes.push(b' ')),
    ] {
        assert!(matches!(refusal, Refusal::Content { .. }), "{refusal}");
    }
    // The right content in another's place.
    let mut files = good();
    for file in files.iter_mut().filter(|file| file.path.contains("kernel0-")) {
        file.path = file.path.replace("kernel0-", "kernel9-");
    }
    assert!(matches!(refused(&listed(files)), Refusal::Content { .. }));
    let mut files = good();
    for file in files.iter_mut().filter(|file| file.path.starts_with("sm_90a")) {
        file.path = file.path.replace("sm_90a", "sm_80");
    }
    assert!(matches!(refused(&listed(files)), Refusal::Content { .. }));
    let mut files = good();
    let found = files.iter_mut().find(|file| file.path.starts_with("tune/")).expect("a record");
    found.path = "tune/another/record.json".to_owned();
    assert!(matches!(refused(&listed(files)), Refusal::Content { .. }));
    for bytes in [&b""[..], b"{}", b"{}\n{}"] {
        let mut files = good();
        let found = files.iter_mut().find(|file| file.path.starts_with("tune/")).expect("a record");
        found.bytes = bytes.to_vec();
        assert!(matches!(refused(&listed(files)), Refusal::Content { .. }));
    }
    // A record that the cache takes and the tuner does not: of another GPU, of no form, with a winner that is none.
    let good_record = record("sm_90a", &[("a", 1.0)]);
    let text = String::from_utf8(good_record.to_json()).expect("JSON");
    let (device, file) = name_of(&good_record);
    for (file, content) in [
        (file.as_str(), text.replace("H200", "H100")),
        (file.as_str(), text.replace("\"winner\": \"a\"", "\"winner\": \"b\"")),
        (file.as_str(), "{\"schema\": \"one\"}".to_owned()),
        ("another.json", text.clone()),
    ] {
        assert!(matches!(refused_record(&device, file, &content), Refusal::Content { .. }), "{content}");
    }
}

/// How the bundle of a record with this content is refused.
fn refused_record(device: &str, file: &str, content: &str) -> Refusal {
    let (_dir, cache) = cache();
    cache.write_record(device, file, content.as_bytes()).expect("the cache takes anything");
    let id = cache.records().remove(0);
    let path = id.path.strip_prefix(cache.root().join("v1")).expect("it lies there");
    let bytes = fs::read(&id.path).expect("the record");
    refused(&listed(vec![File::new(path.to_str().expect("a plain name"), bytes)]))
}

#[test]
fn names_that_would_reach_a_terminal_are_refused() {
    let (_dir, cache) = cache();
    let odd = kernel_of("a\u{1b}[2Jkernel", "sm_90a", 400);
    odd.put(&cache);
    let path = cache.root().join("bundle");
    tilewright::bundle::export(&cache, &tilewright::bundle::Contents::Everything, &path).unwrap();
    assert!(matches!(refusal(&fs::read(&path).unwrap()), Refusal::Content { .. }));
}

/// A header whose path and size are no path and no size, found by fuzzing: its words are part of the message.
const ESCAPES: &[u8] =
    b"\x28\xb5\x2f\xfd\x64\x00\x05\x65\x02\x00\x74\x03\x1b\x5b\x32\x4a\x1b\x5d\x30\x3b\x6f\x77\x6e\x65\
      \x64\x07\x00\x30\x30\x30\x30\x36\x34\x34\x30\x30\x30\x6e\x6f\x74\x20\x61\x20\x73\x69\x7a\x65\x21\
      \x00\x30\x31\x30\x35\x36\x34\x00\x20\x30\x00\x75\x73\x74\x61\x72\x20\x20\x00\x07\x00\xf4\x80\x9f\
      \x03\x90\x8e\x5b\xe1\xe7\xf3\x40\xc7\x4a\x6b\xc8\x04\xea\x93\x61\xe9\x66";

#[test]
fn what_a_bundle_says_of_itself_is_harmless() {
    let said = BundleError::Refused { path: "a\u{1b}b\nc".into(), refusal: refusal(ESCAPES) }.to_string();
    assert!(!said.contains(char::is_control), "{said:?}");
    assert!(said.contains("\\u{1b}[2J") && said.contains("a\\u{1b}b\\nc"), "{said}");
    // Anything else that may be in a file: names of fields, a manifest's own words.
    let manifest = br#"{"schema": 1, "created_by": "x", "files": [], "\u001b[2J": 1}"#.to_vec();
    for refusal in [
        refusal(&packed(&[File::new("manifest.json", manifest)])),
        Refusal::Damaged("\u{1b}[2J\u{7}".into()),
        Refusal::Manifest("\u{1b}[2J\r".into()),
        Refusal::NoManifest { found: "\u{1b}[2J\u{7f}".into() },
        Refusal::Schema { found: 2, created_by: "\u{1b}[2J\u{9b}".into() },
        Refusal::Content { path: "\u{1b}[2J".into(), why: "\u{1b}[2J\n".into() },
        Refusal::Unlisted { path: "\u{1b}[2J".into() },
    ] {
        let said = refusal.to_string();
        assert!(!said.contains(char::is_control) && said.contains("\\u{1b}[2J"), "{said:?}");
    }
}

#[test]
fn another_versions_content_is_left_out() {
    let (dir, cache) = cache();
    kernel(0).put(&cache);
    write_record(&cache, &record("sm_90a", &[("a", 1.0)]));
    let path = dir.path().join("bundle");
    tilewright::bundle::export(&cache, &tilewright::bundle::Contents::Everything, &path).unwrap();
    let mut files = files_of(&path).split_off(1);
    for file in files.iter_mut().filter(|file| file.path.ends_with("meta.json")) {
        file.bytes = br#"{"schema": 2, "form": "another"}"#.to_vec();
    }
    fs::write(&path, packed(&listed(files))).unwrap();
    let (_to, target) = super::support::cache();
    let report = import(&target, &path).unwrap();
    assert!(report.added.is_empty() && report.added_records.len() == 1);
    assert_eq!(report.refused.len(), 1);
    assert!(report.refused[0].1.contains("schema 2"), "{:?}", report.refused);
    assert!(!kernel(0).is_in(&target));
}
