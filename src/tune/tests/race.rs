use super::fake::Fake;
use crate::services::FirstUse;
use crate::tune::synthetic::SplitMix;
use crate::tune::*;

fn timed(result: &RaceResult, i: usize) -> (f64, u32, bool) {
    match result.entries()[i].finish {
        Finish::Timed { median_us, rounds, eliminated } => (median_us, rounds, eliminated),
        ref failed => panic!("candidate {i}: {failed:?}"),
    }
}

fn failure(result: &RaceResult, i: usize) -> &str {
    match &result.entries()[i].finish {
        Finish::Failed { reason } => reason,
        timed => panic!("candidate {i}: {timed:?}"),
    }
}

#[test]
fn the_fastest_wins_and_the_same_times_give_the_same_result() {
    let run = || {
        let mut bench = Fake::new(&[700.0, 650.0, 600.0, 660.0]);
        bench.noise = 0.01;
        bench.race()
    };
    let result = run();
    assert_eq!(result.winner().name, "f2");
    assert_eq!(result.winner_index(), 2);
    assert_eq!(result, run());
}

#[test]
fn slow_candidates_leave_early_and_keep_their_times() {
    let mut bench = Fake::new(&[100.0, 101.0, 125.0, 200.0]);
    let result = bench.race();
    assert_eq!(timed(&result, 3), (200.0, 1, true));
    let (median, rounds, eliminated) = timed(&result, 2);
    assert_eq!((median, eliminated), (125.0, true));
    assert!(rounds > 1 && rounds < 10, "{rounds}");
    // The close ones race to the end.
    assert_eq!(timed(&result, 0).1, RaceSettings::default().max_rounds);
    assert_eq!(timed(&result, 1).1, RaceSettings::default().max_rounds);
}

#[test]
fn a_sole_survivor_is_timed_a_few_rounds_more() {
    let result = Fake::new(&[100.0, 300.0]).race();
    assert_eq!(result.rounds(), RaceSettings::default().min_rounds);
    assert_eq!(timed(&result, 0).1, result.rounds());
}

#[test]
fn ties_go_to_the_first_declared() {
    assert_eq!(Fake::new(&[100.4, 100.0, 100.3]).race().winner().name, "f0");
    assert_eq!(Fake::new(&[100.6, 100.3, 100.0]).race().winner().name, "f1");
}

#[test]
fn with_three_percent_noise_the_winner_is_within_three_percent_of_the_best() {
    let times = [100.0, 101.5, 103.5, 104.0, 106.0, 110.0, 125.0, 180.0];
    for seed in 0..200u64 {
        // The place of the fastest changes with the seed.
        let mut shuffled = times;
        shuffled.rotate_left(seed as usize % times.len());
        let mut bench = Fake::new(&shuffled);
        (bench.noise, bench.outliers, bench.random) = (0.03, 0.02, SplitMix(seed));
        let chosen = shuffled[bench.race().winner_index()];
        assert!(chosen <= 103.0, "seed {seed} chose {chosen}");
    }
}

#[test]
fn an_outlier_in_the_first_round_eliminates_nobody() {
    struct Once(Fake);
    impl Bench for Once {
        fn len(&self) -> usize {
            self.0.len()
        }
        fn name(&self, i: usize) -> &str {
            self.0.name(i)
        }
        fn check(&mut self, i: usize) -> Result<(), String> {
            self.0.check(i)
        }
        fn time_us(&mut self, i: usize, launches: u32) -> Result<f64, String> {
            let warm_up = 10;
            let disturbed = i == 1 && self.0.launches[i].len() == warm_up;
            Ok(self.0.time_us(i, launches)? * if disturbed { 10.0 } else { 1.0 })
        }
    }
    let mut bench = Once(Fake::new(&[110.0, 100.0]));
    let result = race(&mut bench, &RaceSettings::default(), &mut |_| {}).unwrap();
    assert_eq!(result.winner().name, "f1");
}

#[test]
fn a_clock_that_slows_changes_neither_the_choice_nor_the_order() {
    for times in [[100.0, 102.0, 130.0, 200.0], [200.0, 130.0, 102.0, 100.0]] {
        let mut bench = Fake::new(&times);
        bench.drift = 0.005;
        let result = bench.race();
        assert_eq!(times[result.winner_index()], 100.0);
        // Those that left early had the faster clock: their times are restated.
        let (best, ..) = timed(&result, result.winner_index());
        for (i, time) in times.iter().enumerate() {
            let relative = timed(&result, i).0 / best;
            assert!((relative / (time / 100.0) - 1.0).abs() < 0.03, "{time}: {relative}");
        }
    }
}

#[test]
fn failing_checks_are_dropped_before_they_are_timed() {
    let mut bench = Fake::new(&[50.0, 100.0, 110.0]);
    bench.check = |i| if i == 0 { Err("out differs by 0.3 at [0, 0, 5, 7]".into()) } else { Ok(()) };
    let result = bench.race();
    assert_eq!(result.winner().name, "f1");
    assert_eq!(failure(&result, 0), "check: out differs by 0.3 at [0, 0, 5, 7]");
    assert!(bench.launches[0].is_empty());
}

#[test]
fn failing_timings_are_dropped_whenever_they_fail() {
    for fails_at in [0, 1, 15, 30] {
        let mut bench = Fake::new(&[100.0, 101.0]);
        bench.time = match fails_at {
            0 => |i, _| if i == 0 { Err("launch failed".into()) } else { Ok(()) },
            1 => |i, n| if i == 0 && n == 1 { Err("launch failed".into()) } else { Ok(()) },
            15 => |i, n| if i == 0 && n == 15 { Err("launch failed".into()) } else { Ok(()) },
            _ => |i, n| if i == 0 && n == 30 { Err("launch failed".into()) } else { Ok(()) },
        };
        let result = bench.race();
        assert_eq!(result.winner().name, "f1");
        assert_eq!(failure(&result, 0), "timing: launch failed");
    }
}

#[test]
fn a_timer_that_says_nonsense_is_a_failure() {
    for nonsense in [0.0, -1.0, f64::NAN, f64::INFINITY] {
        let result = Fake::new(&[nonsense, 100.0]).race();
        assert!(failure(&result, 0).contains("needed a positive number"));
        assert_eq!(result.winner_index(), 1);
    }
}

#[test]
fn without_a_survivor_the_error_lists_every_reason() {
    let mut bench = Fake::new(&[100.0, 200.0]);
    bench.check = |i| if i == 0 { Err("wrong".into()) } else { Ok(()) };
    bench.time = |_, _| Err("launch failed".into());
    let error = race(&mut bench, &RaceSettings::default(), &mut |_| {}).unwrap_err();
    let failures = vec![
        ("f0".to_owned(), "check: wrong".to_owned()),
        ("f1".to_owned(), "timing: launch failed".to_owned()),
    ];
    assert_eq!(error, RaceError::AllFailed { failures });
    assert!(error.to_string().contains("f1: timing: launch failed"), "{error}");
    let nothing = race(&mut Fake::new(&[]), &RaceSettings::default(), &mut |_| {});
    assert_eq!(nothing, Err(RaceError::Empty));
}

#[test]
fn short_kernels_are_launched_in_batches() {
    let mut bench = Fake::new(&[3.0, 11_000.0]);
    bench.race();
    assert_eq!(bench.launches[0][0], 1);
    assert!(bench.launches[0][1..].iter().all(|&launches| launches == 67));
    assert!(bench.launches[1].iter().all(|&launches| launches == 1));
}

#[test]
fn the_budget_ends_the_race_but_not_before_the_first_round() {
    let settings = RaceSettings { budget_ms: 500.0, ..RaceSettings::default() };
    let result = race(&mut Fake::new(&[11_000.0, 11_100.0]), &settings, &mut |_| {}).unwrap();
    assert!(result.spent_ms() <= 500.0 && result.spent_ms() > 450.0, "{}", result.spent_ms());
    assert_eq!(result.winner_index(), 1 - 1);
    let hurried = RaceSettings { budget_ms: 0.0, ..RaceSettings::default() };
    let result = race(&mut Fake::new(&[120.0, 100.0]), &hurried, &mut |_| {}).unwrap();
    assert_eq!((result.rounds(), result.winner_index()), (1, 1));
}

#[test]
fn settings_at_their_limits_still_race() {
    let settings = RaceSettings {
        max_rounds: 0,
        min_rounds: 0,
        max_launches: 0,
        sample_us: f64::INFINITY,
        ..RaceSettings::default()
    };
    let result = race(&mut Fake::new(&[120.0, 100.0]), &settings, &mut |_| {}).unwrap();
    assert_eq!((result.rounds(), result.winner_index()), (1, 1));
}

#[test]
fn progress_tells_of_every_step() {
    let mut lines = Vec::new();
    let mut bench = Fake::new(&[100.0, 300.0]);
    race(&mut bench, &RaceSettings::default(), &mut |progress| {
        lines.push(FirstUse::new("NVIDIA H200", "forward", *progress).to_string());
    })
    .unwrap();
    assert_eq!(lines[0], "first use on NVIDIA H200: checking forward, 1 of 2");
    assert_eq!(lines[3], "first use on NVIDIA H200: warming up forward, 2 of 2");
    assert_eq!(lines[4], "first use on NVIDIA H200: tuning forward, round 1, 2 candidates left");
    assert_eq!(lines[5], "first use on NVIDIA H200: tuning forward, round 2, 1 candidate left");
}
