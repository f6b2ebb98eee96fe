//! The kernel cache on disks, among processes and under users as they are: none of it may ever give a wrong kernel or
//! a hang.
//!
//! What needs root (mounting a small disk, being somebody else) is in tests/needs.rs.
#![cfg(unix)]

#[path = "cache/support.rs"]
mod support;

#[path = "cache/basics.rs"]
mod basics;
#[path = "cache/command.rs"]
mod command;
#[path = "cache/damage.rs"]
mod damage;
#[path = "cache/processes.rs"]
mod processes;
#[path = "cache/upkeep.rs"]
mod upkeep;
#[path = "cache/users.rs"]
mod users;

/// What another process does; see `support::child`.
#[test]
#[ignore = "run by other tests in processes of their own"]
fn child() {
    match std::env::var(support::ROLE).as_deref() {
        Ok("race") => processes::race(),
        Ok("write") => processes::write(),
        Ok("hold") => processes::hold(),
        role => panic!("{role:?} is no role"),
    }
}
