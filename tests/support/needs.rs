//! Tests that need something of the machine. Where that is missing they are listed as ignored, with what is missing: none
//! passes because it did nothing.
#![allow(dead_code, reason = "each test target uses its own part")]

use libtest_mimic::{Completion, Failed, Trial};
use tilewright::Device;
use tilewright::toolchain::Toolchain;

/// What the machine lacks.
#[derive(Clone, Debug)]
pub struct Lack {
    /// In two or three words.
    pub what: &'static str,
    /// In full.
    pub why: String,
    /// Whether a test that needs it fails instead of being ignored.
    pub fails: bool,
}

/// What a test needs, or that it is lacking.
pub type Need<T> = Result<T, Lack>;

/// The first GPU.
pub fn gpu() -> Need<Device> {
    Device::cuda(0).map_err(|error| Lack { what: "no GPU", why: error.to_string(), fails: false })
}

/// NVRTC, which is installed before the tests where `CI` is set.
pub fn nvrtc() -> Need<Toolchain> {
    Toolchain::find().map_err(|error| Lack {
        what: "no NVRTC",
        why: error.to_string(),
        fails: std::env::var_os("CI").is_some(),
    })
}

/// A test: its name, and what it does with what it needs.
pub type Test<T> = (&'static str, fn(&T));

/// A test that needs `need`, or one that is listed as ignored because of what is missing, even if ignored tests are asked
/// for.
pub fn needing<T, R>(name: impl Into<String>, need: &Need<T>, test: fn(&T) -> R) -> Trial
where
    T: Clone + Send + 'static,
    R: Into<Done> + 'static,
{
    match need.clone() {
        Ok(need) => Trial::test(name, move || test(&need).into().0),
        Err(Lack { what, why, fails: true }) => {
            Trial::test(name, move || Err(format!("{what}: {why}").into()))
        }
        Err(Lack { what, .. }) => Trial::ignorable_test(name, move || Ok(Completion::ignored_with(what)))
            .with_kind(format!("ignored: {what}"))
            .with_ignored_flag(true),
    }
}

/// A test that needs nothing, beside those that do.
pub fn plain(name: &str, test: fn()) -> Trial {
    Trial::test(name, move || {
        test();
        Ok(())
    })
}

/// What a test ends with: nothing where it panics, else a result.
pub struct Done(Result<(), Failed>);

impl From<()> for Done {
    fn from((): ()) -> Self {
        Self(Ok(()))
    }
}

impl From<Result<(), Failed>> for Done {
    fn from(result: Result<(), Failed>) -> Self {
        Self(result)
    }
}

/// Says in full what is missing, above the list of tests.
pub fn say<T>(need: &Need<T>) {
    if let Err(Lack { what, why, .. }) = need {
        println!("ignored: {what} ({why})");
    }
}
