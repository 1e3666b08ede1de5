//! Images that nobody should trust: no panic, no endless work, and no write to what is refused.

use std::path::Path;

use tcmu_handler::testing::{Random, UnorderedEngine};

use super::open;
use super::variants::{self, SIZE};
use super::workload::{Workload, close, read_all, run};

const NAMES: [&str; 6] = [
    "v3 with data",
    "clusters of 512",
    "subclusters",
    "compressed, zstd",
    "with two snapshots, small clusters",
    "with bitmaps",
];

/// Values that are at the edge of something.
const EDGES: [u64; 12] = [
    0,
    1,
    0x1ff,
    0x200,
    0x10000,
    0x7fff_ffff,
    0xffff_ffff,
    0x0100_0000_0000,
    0x00ff_ffff_ffff_fe00,
    1 << 62,
    1 << 63,
    u64::MAX,
];

/// Changes something that means something: header fields, or words in the first clusters and in
/// places that hold tables.
fn damage(bytes: &mut [u8], random: &mut Random) {
    for _ in 0..1 + random.below(3) {
        let (at, width) = match random.below(4) {
            0 => (random.below(112 / 4) * 4, 4),
            1 => (random.below(300), 1),
            _ => {
                // A word that is not zero: data, or more often a table.
                let from = random.below(bytes.len() as u64 / 8) as usize * 8;
                let words = bytes[from..].as_chunks::<8>().0;
                let next = words.iter().position(|word| *word != [0; 8]).unwrap_or(0);
                ((from + next * 8) as u64, 8)
            }
        };
        let value = match random.below(3) {
            0 => EDGES[random.below(EDGES.len() as u64) as usize],
            1 => random.number(),
            _ => {
                let mut old = [0; 8];
                old[8 - width..].copy_from_slice(&bytes[at as usize..at as usize + width]);
                u64::from_be_bytes(old) ^ 1 << random.below(width as u64 * 8)
            }
        };
        let new = &value.to_be_bytes()[8 - width..];
        bytes[at as usize..at as usize + width].copy_from_slice(new);
    }
}

/// Uses a damaged image as far as it goes.
fn endure(path: &Path, seed: u64) -> bool {
    let Ok(image) = open(path, ";readonly=on", 512) else {
        return false;
    };
    let _ = read_some(&image);
    drop(image);
    let before = std::fs::read(path).unwrap();
    match open(path, "", SIZE) {
        Ok(image) => {
            let engine = UnorderedEngine::repeatable(seed);
            // What is shown need not be true.
            let mut model = vec![0; SIZE as usize];
            let workload = Workload {
                seed,
                depth: 8,
                requests: 30,
                longest: 64 << 10,
            };
            let outcome = std::panic::catch_unwind(std::panic::AssertUnwindSafe(|| {
                run(&engine, &image, &mut model, workload)
            }));
            if let Err(panic) = outcome {
                let words = panic.downcast_ref::<String>().map_or("", String::as_str);
                assert!(words.contains("differs"), "seed {seed}: {words}");
                return true;
            }
            let _ = close(&engine, &image);
            true
        }
        Err(_) => {
            let after = std::fs::read(path).unwrap();
            assert!(
                before == after,
                "seed {seed}: a refused image was written to"
            );
            false
        }
    }
}

fn read_some(image: &crate::QcowImage) -> Result<(), tcmu_handler::Error> {
    use tcmu_handler::Backstore;
    // Damage can make the disk very large.
    if image.capabilities().size > 4 * SIZE {
        return Ok(());
    }
    read_all(&UnorderedEngine::repeatable(1), image).map(drop)
}

#[test]
fn damaged_images_are_refused_or_served_but_never_trusted() {
    let (mut served, mut refused) = (0, 0);
    for name in NAMES {
        let (_folder, path) = variants::make(name);
        let whole = std::fs::read(&path).unwrap();
        for seed in 0..150 {
            let mut random = Random::new(seed * 7 + 1);
            let mut bytes = whole.clone();
            damage(&mut bytes, &mut random);
            if random.one_in(10) {
                bytes.truncate(random.below(bytes.len() as u64) as usize);
            }
            std::fs::write(&path, &bytes).unwrap();
            if endure(&path, seed) {
                served += 1;
            } else {
                refused += 1;
            }
        }
    }
    assert!(
        served > 50 && refused > 50,
        "{served} served, {refused} refused"
    );
}
