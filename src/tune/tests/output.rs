use super::fake::{Fake, contender, contenders, tune_key};
use crate::codegen::{Family, Reason, Rejection, Schedule};
use crate::tune::*;

fn everything() -> (TuneRecord, Vec<Rejection>) {
    let mut bench = Fake::named(&[("f1", 651.7), ("f2", 580.3), ("f3", 1200.9), ("f4", 600.0), ("f5", 90.0)]);
    bench.check = |i| if i == 4 { Err("out <differs> & \"more\"\nsecond line".into()) } else { Ok(()) };
    let result = bench.race();
    let mut spilling = contender("f6");
    (spilling.registers, spilling.blocks_per_sm) = (Some(255), None);
    let rejected = vec![(spilling, "it spills 64 bytes".to_owned())];
    let mut record = TuneRecord::new(tune_key(), contenders(&bench), rejected, &result).unwrap();
    record.demote("f4", "launch failed: too many resources requested", &["f1", "f2"]);
    let schedule = Schedule { family: Family::Sm80, values: vec![("WARPS".into(), 8), ("STAGES".into(), 4)] };
    let pruned =
        vec![Rejection { schedule, reason: Reason::SharedMemory { needed: 262_144, limit: 232_448 } }];
    (record, pruned)
}

#[test]
fn the_table_explains_every_candidate() {
    let (record, pruned) = everything();
    insta::assert_snapshot!(record.explain(&pruned));
}

#[test]
fn the_json_has_the_same_rows() {
    let (record, pruned) = everything();
    let json = record.explain_json(&pruned);
    let rows = json["candidates"].as_array().unwrap();
    assert_eq!(rows.len(), 7);
    assert_eq!(rows[0]["winner"], true);
    assert_eq!(rows[0]["relative"], 1.0);
    assert_eq!(rows[6]["fingerprint"], serde_json::Value::Null);
    assert_eq!(json["key"]["device"]["name"], "NVIDIA H200");
}

#[test]
fn the_record_on_disk_is_readable() {
    let (record, _) = everything();
    insta::assert_snapshot!(String::from_utf8(record.to_json()).unwrap());
}

#[test]
fn the_plot_is_well_formed_and_has_a_bar_for_each_time() {
    let (record, pruned) = everything();
    let svg = record.plot(&pruned);
    let document = roxmltree::Document::parse(&svg).unwrap();
    assert_eq!(document.root_element().tag_name().name(), "svg");
    let text = |wanted: &str| {
        document
            .descendants()
            .filter(|node| node.is_text())
            .filter(|node| node.text().is_some_and(|text| text.contains(wanted)))
            .count()
    };
    assert_eq!(text("rejected: "), 4);
    assert_eq!(text("out <differs> & \"more\""), 1);
    assert_eq!(text("580.3 µs (1.00×)"), 1);
    let bars = document.descendants().filter(|node| node.tag_name().name() == "rect").count();
    assert_eq!(bars, 1 + 3, "the background and the bars");
    let widths = document.descendants().filter_map(|node| node.attribute("width")?.parse::<f64>().ok());
    assert!({ widths }.all(|width| width <= 1000.0));
}

#[test]
fn a_record_of_one_candidate_is_drawn_too() {
    let mut bench = Fake::named(&[("f1", 0.95)]);
    let result = bench.race();
    let record = TuneRecord::new(tune_key(), contenders(&bench), Vec::new(), &result).unwrap();
    let svg = record.plot(&[]);
    roxmltree::Document::parse(&svg).unwrap();
    assert!(svg.contains("0.6 µs"), "{svg}");
    assert_eq!(record.rows(&[]).len(), 1);
}

#[test]
fn reasons_are_shortened_and_cleaned() {
    let mut bench = Fake::named(&[("f1", 100.0), ("f2", 100.0)]);
    bench.check = |i| if i == 1 { Err(format!("\u{1b}[31m{}\nmore", "µ".repeat(200))) } else { Ok(()) };
    let result = bench.race();
    let record = TuneRecord::new(tune_key(), contenders(&bench), Vec::new(), &result).unwrap();
    let svg = record.plot(&[]);
    roxmltree::Document::parse(&svg).unwrap();
    assert!(svg.contains("µ…") && !svg.contains("more"), "{svg}");
    assert!(!record.explain(&[]).contains('\u{1b}'));
}
