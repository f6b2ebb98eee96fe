//! The messages of the attributes, pinned: a user reads them more often than the documentation.

#[test]
fn messages() {
    trybuild::TestCases::new().compile_fail("tests/ui/*.rs");
}
