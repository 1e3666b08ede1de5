//! Every seed, and variations of each, go through their target.
#![allow(clippy::unwrap_used, reason = "this is a test")]

use std::fs;
use std::path::Path;

use tcmu_fuzz::TARGETS;

/// Variations of each seed.
const VARIATIONS: u64 = 300;

/// The names and bytes of a target's seeds.
fn seeds(target: &str) -> Vec<(String, Vec<u8>)> {
    let dir = Path::new(env!("CARGO_MANIFEST_DIR"))
        .join("seeds")
        .join(target);
    let entries = fs::read_dir(&dir).unwrap_or_else(|e| panic!("{}: {e}", dir.display()));
    let mut seeds: Vec<_> = entries
        .map(|entry| {
            let path = entry.unwrap().path();
            (path.display().to_string(), fs::read(&path).unwrap())
        })
        .collect();
    seeds.sort();
    seeds
}

/// Changes some bytes, and now and then the length.
fn vary(seed: &[u8], number: u64) -> Vec<u8> {
    let mut state = number.wrapping_mul(0x9e37_79b9_7f4a_7c15) | 1;
    let mut random = move || {
        state ^= state << 13;
        state ^= state >> 7;
        state ^= state << 17;
        (state >> 16) as usize
    };
    let mut bytes = seed.to_vec();
    for _ in 0..1 + random() % 8 {
        match (random() % 8, bytes.len()) {
            (0, _) => bytes.push(random() as u8),
            (1, 1..) => bytes.truncate(random() % bytes.len()),
            (2, len @ 1..) => bytes[random() % len] ^= 1 << (random() % 8),
            (3, len @ 1..) => bytes[random() % len] = 0xff,
            (_, len @ 1..) => bytes[random() % len] = random() as u8,
            (_, 0) => {}
        }
    }
    bytes
}

#[test]
fn no_seed_finds_anything() {
    for (name, target) in TARGETS {
        let seeds = seeds(name);
        assert!(!seeds.is_empty(), "{name} has no seeds");
        for (path, seed) in seeds {
            println!("{path}");
            target(&seed);
            for number in 0..VARIATIONS {
                target(&vary(&seed, number));
            }
        }
    }
}
