//! What lies in folders.
#![allow(dead_code, reason = "each test target uses its own part")]

use std::fs;
use std::path::Path;
use std::process::Command;

/// The names in a folder, sorted.
pub fn names(folder: &Path) -> Vec<String> {
    let name = |entry: std::io::Result<fs::DirEntry>| entry.unwrap().file_name().into_string().unwrap();
    let mut names: Vec<String> = fs::read_dir(folder).unwrap().map(name).collect();
    names.sort();
    names
}

/// Copies a program that is to be run. By a process of its own: one that a thread of this one forks meanwhile would hold the copy open
/// for writing, and it would be busy.
pub fn copy_program(from: impl AsRef<Path>, to: &Path) {
    assert!(Command::new("cp").args([from.as_ref(), to]).status().expect("cp").success());
}
