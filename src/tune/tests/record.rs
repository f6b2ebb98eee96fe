use super::fake::{Fake, contender, contenders, record, tune_key, winner};
use crate::tune::*;

#[test]
fn a_record_survives_the_disk() {
    let record = record(&[("a", 651.7231), ("b", 580.33333333), ("c", 1000.1)]);
    let read = TuneRecord::parse(&record.to_json(), &tune_key()).unwrap();
    assert_eq!(read, record);
    assert_eq!(read.to_json(), record.to_json());
    assert_eq!(winner(&read), "b");
}

#[test]
fn adding_a_candidate_restates_its_time_in_the_records_clock() {
    let mut record = record(&[("a", 100.0), ("b", 120.0)]);
    // The GPU is half as fast today.
    let mut bench = Fake::named(&[("a", 200.0), ("c", 220.0)]);
    record.merge(contenders(&bench), Vec::new(), Some(&bench.race()));
    assert_eq!(winner(&record), "a");
    let medians: Vec<_> = record.candidates().iter().map(|timing| timing.median_us().unwrap()).collect();
    assert_eq!(medians, [100.0, 120.0, 110.0]);
    let mut bench = Fake::named(&[("a", 50.0), ("d", 45.0)]);
    record.merge(contenders(&bench), Vec::new(), Some(&bench.race()));
    assert_eq!(winner(&record), "d");
    assert_eq!(record.get("d").unwrap().median_us(), Some(90.0));
    assert_eq!(TuneRecord::parse(&record.to_json(), &tune_key()).unwrap(), record);
}

#[test]
fn adding_only_what_does_not_compile_keeps_the_winner() {
    let mut record = record(&[("a", 100.0)]);
    record.merge(Vec::new(), vec![(contender("b"), "it spills 64 bytes".into())], None);
    assert_eq!(winner(&record), "a");
    assert!(record.missing(&["a", "b"]).is_empty());
}

#[test]
fn an_incumbent_that_fails_takes_the_incomparable_times_with_it() {
    let mut record = record(&[("a", 100.0), ("b", 120.0)]);
    let mut bench = Fake::named(&[("a", 100.0), ("c", 300.0)]);
    bench.check = |i| if i == 0 { Err("wrong".into()) } else { Ok(()) };
    record.merge(contenders(&bench), Vec::new(), Some(&bench.race()));
    assert_eq!(winner(&record), "c");
    assert_eq!(record.missing(&["a", "b", "c"]), ["b"]);
    assert_eq!(record.get("a").unwrap().median_us(), None);
}

#[test]
fn a_demoted_winner_hands_over_to_the_next_best() {
    let mut record = record(&[("a", 300.0), ("b", 100.0), ("c", 110.0), ("d", 105.0)]);
    // `d` is of another version: this process cannot render it.
    let all = ["a", "b", "c"];
    assert_eq!(record.demote("b", "too many resources requested", &all).as_deref(), Some("c"));
    assert_eq!(winner(&record), "c");
    let Outcome::Rejected { reason, median_us } = &record.get("b").unwrap().outcome else { panic!() };
    assert_eq!((reason.as_str(), *median_us), ("too many resources requested", Some(100.0)));
    assert_eq!(plan(Some(&record), &all), Plan::Use { winner: 2 });
    assert_eq!(TuneRecord::parse(&record.to_json(), &tune_key()).unwrap(), record);
    assert_eq!(record.demote("c", "again", &all).as_deref(), Some("a"));
    assert_eq!(record.demote("a", "again", &all), None);
    // Nothing is left: the next process starts anew.
    assert!(record.winner().is_none());
    assert!(TuneRecord::usable(&record.to_json(), &tune_key()).is_none());
    assert!(matches!(plan(Some(&record), &all), Plan::Time { incumbent: None, .. }));
}

#[test]
fn demoting_another_than_the_winner_keeps_the_winner() {
    let mut record = record(&[("a", 100.0), ("b", 110.0)]);
    assert_eq!(record.demote("b", "broken", &["a", "b"]).as_deref(), Some("a"));
    assert_eq!(winner(&record), "a");
}

#[test]
fn what_failed_in_the_race_is_kept_with_its_reason() {
    let mut bench = Fake::named(&[("a", 100.0), ("b", 90.0)]);
    bench.check = |i| if i == 1 { Err("out differs".into()) } else { Ok(()) };
    let result = bench.race();
    let rejected = vec![(contender("c"), "it spills".to_owned())];
    let record = TuneRecord::new(tune_key(), contenders(&bench), rejected, &result).unwrap();
    assert_eq!(winner(&record), "a");
    let reason = |name: &str| match &record.get(name).unwrap().outcome {
        Outcome::Rejected { reason, .. } => reason.clone(),
        timed => panic!("{timed:?}"),
    };
    assert_eq!((reason("b"), reason("c")), ("check: out differs".to_owned(), "it spills".to_owned()));
}

#[test]
fn a_race_over_other_candidates_makes_no_record() {
    let result = Fake::named(&[("a", 100.0)]).race();
    let made = TuneRecord::new(tune_key(), vec![contender("b")], Vec::new(), &result);
    assert!(matches!(made, Err(RecordError::Winner { .. })));
}

#[test]
fn whatever_is_wrong_with_a_file_it_counts_as_absent() {
    let good = record(&[("a", 100.0), ("b", 120.0)]);
    let text = String::from_utf8(good.to_json()).unwrap();
    let edited = |from: &str, to: &str| {
        assert!(text.contains(from), "{from}");
        text.replacen(from, to, 1)
    };
    let wrong = [
        (String::new(), "not a tuning record"),
        (text[..text.len() / 2].to_owned(), "not a tuning record"),
        (edited("\"schema\": 1", "\"schema\": 2"), "schema 2, needed 1"),
        (edited("\"winner\": \"a\"", "\"winner\": \"z\""), "winner z"),
        (edited("\"winner\": \"a\"", "\"winner\": 0"), "not a tuning record"),
        (edited("\"fingerprint\": \"b\"", "\"fingerprint\": \"a\""), "lists a twice"),
        (edited("\"median_us\": 100.0", "\"median_us\": -3.0"), "gives a -3"),
        (edited("\"median_us\": 100.0", "\"median_us\": null"), "not a tuning record"),
        (edited("\"rounds\"", "\"turns\""), "not a tuning record"),
        (edited("\"sm_count\": 132", "\"sm_count\": 114"), "114 SMs"),
        (edited("\"schema\": 1", "\"schema\": 1, \"signed\": true"), "not a tuning record"),
    ];
    for (json, message) in wrong {
        let error = TuneRecord::parse(json.as_bytes(), &tune_key()).unwrap_err().to_string();
        assert!(error.contains(message), "{error}");
        assert!(TuneRecord::usable(json.as_bytes(), &tune_key()).is_none());
        assert!(message.contains("114") || serde_json::from_str::<TuneRecord>(&json).is_err());
    }
    assert!(TuneRecord::usable(text.as_bytes(), &tune_key()).is_some());
}

/// A record says where its kernel's check.rs was not asked; those that were written before say nothing, and were.
#[test]
fn a_record_says_whether_its_candidates_were_checked() {
    let mut record = record(&[("a", 100.0), ("b", 120.0)]);
    assert!(record.is_checked());
    assert!(!String::from_utf8(record.to_json()).unwrap().contains("checked"));
    record.set_checked(false);
    let read = TuneRecord::parse(&record.to_json(), &tune_key()).unwrap();
    assert!(!read.is_checked());
    assert_eq!(read, record);
}
