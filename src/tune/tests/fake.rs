//! A bench whose times are invented, and records of its races.

use crate::codegen::{Family, Schedule};
use crate::tune::synthetic::SplitMix;
use crate::tune::*;

pub(crate) struct Fake {
    pub names: Vec<String>,
    pub times_us: Vec<f64>,
    /// Relative standard deviation of a sample.
    pub noise: f64,
    /// By how much every sample slows the clock.
    pub drift: f64,
    /// Share of samples that take three times as long.
    pub outliers: f64,
    pub check: fn(usize) -> Result<(), String>,
    /// Given the candidate and how many samples it has had.
    pub time: fn(usize, usize) -> Result<(), String>,
    pub(in crate::tune) random: SplitMix,
    /// Launches of every sample, by candidate.
    pub launches: Vec<Vec<u32>>,
}

impl Fake {
    pub(crate) fn new(times_us: &[f64]) -> Self {
        Fake {
            names: (0..times_us.len()).map(|i| format!("f{i}")).collect(),
            times_us: times_us.to_vec(),
            noise: 0.0,
            drift: 0.0,
            outliers: 0.0,
            check: |_| Ok(()),
            time: |_, _| Ok(()),
            random: SplitMix(1),
            launches: vec![Vec::new(); times_us.len()],
        }
    }

    pub(crate) fn named(candidates: &[(&str, f64)]) -> Self {
        let times: Vec<f64> = candidates.iter().map(|(_, time)| *time).collect();
        let mut fake = Fake::new(&times);
        fake.names = candidates.iter().map(|(name, _)| (*name).to_owned()).collect();
        fake
    }

    pub(crate) fn race(&mut self) -> RaceResult {
        race(self, &RaceSettings::default(), &mut |_| {}).expect("a winner")
    }
}

impl Bench for Fake {
    fn len(&self) -> usize {
        self.names.len()
    }

    fn name(&self, i: usize) -> &str {
        &self.names[i]
    }

    fn check(&mut self, i: usize) -> Result<(), String> {
        (self.check)(i)
    }

    fn time_us(&mut self, i: usize, launches: u32) -> Result<f64, String> {
        (self.time)(i, self.launches[i].len())?;
        self.launches[i].push(launches);
        let samples: usize = self.launches.iter().map(Vec::len).sum();
        let clock = 1.0 + self.drift * samples as f64;
        let outlier = if self.random.uniform() < self.outliers { 3.0 } else { 1.0 };
        Ok(self.times_us[i] * clock * outlier * (1.0 + self.noise * self.random.normal()).max(0.1))
    }
}

pub(crate) fn tune_key() -> TuneKey {
    let workload = Workload { batch: 1, heads: 12, seq_q: 32_760, seq_kv: 32_760, density: 0.05 };
    TuneKey { spec: "forward-0123456789abcdef".into(), device: device(), bucket: Bucket::of(&workload) }
}

pub(crate) fn device() -> DeviceKey {
    DeviceKey { arch: "sm_90a".into(), name: "NVIDIA H200".into(), sm_count: 132, memory_clock: 32 }
}

pub(crate) fn contender(fingerprint: &str) -> Contender {
    let stages = fingerprint.bytes().last().map_or(0, |byte| i64::from(byte % 10));
    Contender {
        fingerprint: fingerprint.to_owned(),
        schedule: Schedule {
            family: Family::Sm80,
            values: vec![("WARPS".into(), 4), ("STAGES".into(), stages)],
        },
        registers: Some(168),
        smem_bytes: 49_152 + 16_384 * stages as u64,
        blocks_per_sm: Some(2),
        compile_ms: Some(812.5),
    }
}

pub(crate) fn contenders(bench: &Fake) -> Vec<Contender> {
    bench.names.iter().map(|name| contender(name)).collect()
}

/// The record of a race between candidates of these times.
pub(crate) fn record(candidates: &[(&str, f64)]) -> TuneRecord {
    let mut bench = Fake::named(candidates);
    let result = bench.race();
    TuneRecord::new(tune_key(), contenders(&bench), Vec::new(), &result).expect("a consistent record")
}

pub(crate) fn winner(record: &TuneRecord) -> &str {
    &record.winner().expect("a winner").candidate.fingerprint
}
