//! Bundles: from one cache to another, and none of the hostile ones in between.
#![cfg(unix)]

#[path = "bundle/support.rs"]
mod support;

#[path = "bundle/command.rs"]
mod command;
#[path = "bundle/contents.rs"]
mod contents;
#[path = "bundle/damage.rs"]
mod damage;
#[path = "bundle/hostile.rs"]
mod hostile;
