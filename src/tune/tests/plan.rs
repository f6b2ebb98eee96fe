use super::fake::{record, winner};
use crate::tune::*;

#[test]
fn without_a_record_everything_is_timed() {
    assert_eq!(plan(None, &["a", "b"]), Plan::Time { candidates: vec![0, 1], incumbent: None });
}

#[test]
fn a_reordered_list_has_the_same_winner() {
    let record = record(&[("a", 120.0), ("b", 100.0), ("c", 140.0)]);
    for all in [["a", "b", "c"], ["b", "c", "a"], ["c", "a", "b"]] {
        let Plan::Use { winner: place } = plan(Some(&record), &all) else { panic!("nothing is missing") };
        assert_eq!(all[place], "b");
    }
    assert_eq!(winner(&record), "b");
}

#[test]
fn one_more_candidate_is_timed_beside_the_winner_alone() {
    let record = record(&[("a", 120.0), ("b", 100.0), ("c", 140.0)]);
    let all = ["new", "a", "b", "c"];
    assert_eq!(record.missing(&all), ["new"]);
    assert_eq!(plan(Some(&record), &all), Plan::Time { candidates: vec![0, 2], incumbent: Some(2) });
}

#[test]
fn a_winner_that_is_no_more_leaves_its_place_to_the_next() {
    let record = record(&[("a", 120.0), ("b", 100.0), ("c", 109.0)]);
    assert_eq!(plan(Some(&record), &["a", "c"]), Plan::Use { winner: 1 });
    assert_eq!(plan(Some(&record), &["a", "d"]), Plan::Time { candidates: vec![0, 1], incumbent: Some(0) });
    assert_eq!(plan(Some(&record), &["x"]), Plan::Time { candidates: vec![0], incumbent: None });
}
