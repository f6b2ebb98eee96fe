//! Many processes, killed processes, stuck processes.

use crate::support::*;
use std::collections::HashMap;
use std::fs::{self, OpenOptions};
use std::io::Write;
use std::os::unix::process::ExitStatusExt;
use std::process::Child;
use std::time::{Duration, Instant, SystemTime};
use tilewright::cache::{KernelCache, Origin};

const RACERS: usize = 16;
const KEYS: usize = 4;

#[test]
fn processes_at_once_compile_each_kernel_few_times() {
    let dir = tempfile::tempdir().expect("a folder");
    let racers: Vec<Child> = (0..RACERS)
        .map(|number| {
            let mut command = child("race", dir.path());
            command.env(NUMBER, number.to_string()).spawn().expect("it starts")
        })
        .collect();
    wait_until("the racers", || fs::read_dir(dir.path()).map_or(0, Iterator::count) >= RACERS);
    fs::write(dir.path().join("go"), "").expect("a file");
    for mut racer in racers {
        assert!(racer.wait().expect("it ends").success(), "a racer got a wrong kernel or failed");
    }
    let compiled = fs::read_to_string(dir.path().join("compiled")).expect("somebody compiled");
    let mut counts: HashMap<&str, usize> = HashMap::new();
    compiled.lines().for_each(|line| *counts.entry(line).or_default() += 1);
    assert_eq!(counts.len(), KEYS);
    assert!(counts.values().all(|&count| count <= 3), "{counts:?}");
    let cache = KernelCache::at(&dir.path().join("cache")).expect("a cache");
    assert!((0..KEYS).all(|number| kernel(number).is_in(&cache)));
    assert!(temporaries(&cache).is_empty() && quarantined(&cache) == 0);
}

/// One of the racers.
pub fn race() {
    let (folder, number) = (told_folder(), told_number());
    fs::write(folder.join(format!("ready{number}")), "").expect("a file");
    wait_until("the start", || folder.join("go").exists());
    let cache = KernelCache::at(&folder.join("cache")).expect("a cache");
    for step in 0..KEYS {
        let kernel = kernel((number + step) % KEYS);
        let compile = || {
            let mut log = OpenOptions::new().create(true).append(true).open(folder.join("compiled"))?;
            log.write_all(format!("{}\n", kernel.key.name()).as_bytes())?;
            std::thread::sleep(Duration::from_millis(40));
            Ok::<_, std::io::Error>(kernel.cubin.clone())
        };
        let (cubin, _) = cache.get_or_compile(&kernel.key, &kernel.source, compile).expect("a cubin");
        assert_eq!(cubin, kernel.cubin);
    }
}

#[test]
fn a_process_killed_while_it_writes_leaves_nothing_half_done() {
    const KILLS: usize = 120;
    let dir = tempfile::tempdir().expect("a folder");
    let cache = KernelCache::at(&dir.path().join("cache")).expect("a cache");
    let mut killed = 0;
    for round in 0..KILLS {
        let mut command = child("write", dir.path());
        let mut writer = command.env(NUMBER, (round * 10_000).to_string()).spawn().expect("it starts");
        let begun = dir.path().join(format!("begun{}", round * 10_000));
        wait_until("the writer", || begun.exists());
        // Moments that are spread over everything a store does.
        std::thread::sleep(Duration::from_micros(137 * (round as u64 * 7919 % 97)));
        writer.kill().expect("it is killed");
        killed += usize::from(writer.wait().expect("it ends").signal() == Some(9));
        let record = cache.read_record("device", "file").expect("the old one or the new one");
        assert!(record.len() == 50_000 && record.iter().all(|&byte| byte == record[0]));
        if round % 20 == 0 {
            assert_eq!(cache.verify().broken, []);
        }
    }
    assert_eq!(killed, KILLS);
    let report = cache.verify();
    assert_eq!(report.broken, [], "what can be seen is whole");
    assert!(report.entries >= KILLS && report.records == 1, "{} entries", report.entries);
    assert_eq!(quarantined(&cache), 0);
    // Locks that they held are free.
    assert!(cache.lock("writer", Duration::from_secs(5)).is_some());

    // What they left behind is swept away once it is old; what a living process writes is not.
    let left = temporaries(&cache);
    assert!(!left.is_empty(), "some were killed in the middle of writing");
    println!("{} entries, {} unfinished files and folders", report.entries, left.len());
    let old = SystemTime::now() - Duration::from_secs(2 * 3600);
    let v1 = cache.root().join("v1");
    let ours = v1.join(format!("sm_90a/.tmp-{}-living", std::process::id()));
    fs::create_dir_all(&ours).expect("a folder");
    let other = v1.join("sm_90a/.tmp-2000000000-dead");
    fs::create_dir_all(&other).expect("a folder");
    // What an import unpacks is locked as long as it runs, however long that is.
    let (import, gone) = (v1.join(".tmp-import-aLive1"), v1.join(".tmp-import-Gone22"));
    for folder in [&import, &gone] {
        fs::create_dir(folder).expect("a folder");
    }
    let lock = fs::File::open(&import).expect("a folder");
    lock.lock().expect("a lock");
    for path in temporaries(&cache).iter().chain([&v1.join("swept")]) {
        set_time(path, old);
    }
    KernelCache::at(cache.root()).expect("a cache");
    let mut left = temporaries(&cache);
    left.sort();
    assert_eq!(left, [import, ours]);
}

/// A process that writes until it is killed.
pub fn write() {
    let (folder, first) = (told_folder(), told_number());
    let cache = KernelCache::at(&folder.join("cache")).expect("a cache");
    let _lock = cache.lock("writer", Duration::from_secs(5));
    for number in first..first + 10_000 {
        let kernel = kernel_of(number, 20_000, (13, 0));
        let compile = || Ok::<_, ()>(kernel.cubin.clone());
        cache.get_or_compile(&kernel.key, &kernel.source, compile).expect("a cubin");
        cache.write_record("device", "file", &vec![number as u8; 50_000]).expect("it is written");
        if number == first {
            fs::write(folder.join(format!("begun{first}")), "").expect("a file");
        }
    }
}

#[test]
fn a_lock_that_is_never_given_back() {
    let (dir, cache) = cache();
    let one = kernel(1);
    let mut holder = child("hold", dir.path()).spawn().expect("it starts");
    wait_until("the holder", || dir.path().join("held").exists());
    let cache = cache.with_lock_timeout(Duration::from_millis(300));
    let start = Instant::now();
    let got = cache.get_or_compile(&one.key, &one.source, || Ok::<_, ()>(one.cubin.clone()));
    assert_eq!(got, Ok((one.cubin.clone(), Origin::Compiled)));
    assert!(start.elapsed() >= Duration::from_millis(300), "it waited for the other one first");
    assert!(start.elapsed() < Duration::from_secs(15), "and not for ever: {:?}", start.elapsed());
    assert!(one.is_in(&cache), "it is stored all the same");
    assert!(cache.lock(one.key.hash(), Duration::from_millis(10)).is_none());

    holder.kill().expect("it is killed");
    holder.wait().expect("it ends");
    let lock = cache.lock(one.key.hash(), Duration::from_secs(20)).expect("a dead process holds nothing");
    assert!(cache.lock(one.key.hash(), Duration::ZERO).is_none(), "one holder at a time");
    drop(lock);
    assert!(cache.lock(one.key.hash(), Duration::ZERO).is_some());
}

/// A process that holds a lock until it is killed.
pub fn hold() {
    let folder = told_folder();
    let cache = KernelCache::at(&folder.join("cache")).expect("a cache");
    let _lock = cache.lock(kernel(1).key.hash(), Duration::from_secs(5)).expect("the lock");
    fs::write(folder.join("held"), "").expect("a file");
    std::thread::sleep(Duration::from_secs(120));
}
