//! Images of all kinds, made by qemu.

use std::path::{Path, PathBuf};

use tempfile::{TempDir, tempdir};

use super::qemu;

/// A kind of image. Steps begin with `img` (arguments of qemu-img) or `io FILE` (commands of
/// qemu-io, separated by semicolons); paths are relative to a folder of the test's own. The image
/// is `a.qcow2`.
#[derive(Clone, Copy, Debug)]
pub(super) struct Variant {
    pub(super) name: &'static str,
    steps: &'static [&'static str],
}

impl Variant {
    /// Makes the image in an empty folder.
    pub(super) fn make(&self, folder: &Path) -> PathBuf {
        for step in self.steps {
            let (program, rest) = step.split_once(' ').unwrap();
            match program {
                "img" => {
                    let words: Vec<&str> = rest.split_whitespace().collect();
                    qemu::img_in(folder, &words);
                }
                "raw" => {
                    let (file, len) = rest.split_once(' ').unwrap();
                    let bytes: Vec<u8> = (0..len.parse::<usize>().unwrap())
                        .map(|at| (at / 512 * 7 + at % 31) as u8)
                        .collect();
                    std::fs::write(folder.join(file), bytes).unwrap();
                }
                _ => {
                    let (file, commands) = rest.split_once(' ').unwrap();
                    let commands: Vec<&str> = commands.split(';').map(str::trim).collect();
                    qemu::io(&folder.join(file), &commands);
                }
            }
        }
        folder.join("a.qcow2")
    }
}

/// A new image of the variant with this name, and the folder that it is in.
pub(super) fn make(name: &str) -> (TempDir, PathBuf) {
    let variant = VARIANTS.iter().find(|variant| variant.name == name);
    let variant = variant.unwrap_or_else(|| panic!("no variant {name}"));
    let folder = tempdir().unwrap();
    let path = variant.make(folder.path());
    (folder, path)
}

/// Four tests that run side by side: each calls a function with every fourth variant, and its number.
macro_rules! in_quarters {
    ($test:ident) => {
        fn quarter(first: usize) {
            let variants = $crate::tests::variants::VARIANTS.iter().enumerate();
            for (number, variant) in variants.skip(first).step_by(4) {
                $test(number, variant);
            }
        }

        #[test]
        fn first_quarter() {
            quarter(0);
        }

        #[test]
        fn second_quarter() {
            quarter(1);
        }

        #[test]
        fn third_quarter() {
            quarter(2);
        }

        #[test]
        fn fourth_quarter() {
            quarter(3);
        }
    };
}

pub(super) use in_quarters;

/// Bytes of every image's disk, and not a multiple of any cluster.
pub(super) const SIZE: u64 = 4_211_200;

/// Bytes in clusters all over the disk, zeroes, and what was discarded.
const FILL: &str = "io a.qcow2 write -P 17 100k 700k; write -P 18 2M 256k; write -z 1M 130k; \
                    write -P 19 4M 12k; discard 128k 64k; write -z -u 2100k 64k";

macro_rules! variant {
    ($name:literal, $($step:expr),+) => {
        Variant { name: $name, steps: &[$($step),+] }
    };
}

pub(super) const VARIANTS: &[Variant] = &[
    variant!("v3", "img create -f qcow2 a.qcow2 4211200"),
    variant!("v3 with data", "img create -f qcow2 a.qcow2 4211200", FILL),
    variant!("v2", "img create -f qcow2 -o compat=0.10 a.qcow2 4211200"),
    variant!(
        "v2 with data",
        "img create -f qcow2 -o compat=0.10 a.qcow2 4211200",
        "io a.qcow2 write -P 17 100k 700k; write -P 18 2M 256k; discard 128k 64k"
    ),
    variant!(
        "clusters of 512",
        "img create -f qcow2 -o cluster_size=512 a.qcow2 4211200",
        FILL
    ),
    variant!(
        "clusters of 1k",
        "img create -f qcow2 -o cluster_size=1k a.qcow2 4211200",
        FILL
    ),
    variant!(
        "clusters of 4k",
        "img create -f qcow2 -o cluster_size=4k a.qcow2 4211200",
        FILL
    ),
    variant!(
        "clusters of 2M",
        "img create -f qcow2 -o cluster_size=2M a.qcow2 4211200",
        FILL
    ),
    variant!(
        "refcounts of 1 bit",
        "img create -f qcow2 -o refcount_bits=1,cluster_size=4k a.qcow2 4211200",
        FILL
    ),
    variant!(
        "refcounts of 2 bits",
        "img create -f qcow2 -o refcount_bits=2,cluster_size=512 a.qcow2 4211200",
        FILL
    ),
    variant!(
        "refcounts of 4 bits",
        "img create -f qcow2 -o refcount_bits=4,cluster_size=2k a.qcow2 4211200",
        FILL
    ),
    variant!(
        "refcounts of 8 bits",
        "img create -f qcow2 -o refcount_bits=8 a.qcow2 4211200",
        FILL
    ),
    variant!(
        "refcounts of 32 bits",
        "img create -f qcow2 -o refcount_bits=32 a.qcow2 4211200",
        FILL
    ),
    variant!(
        "refcounts of 64 bits",
        "img create -f qcow2 -o refcount_bits=64,cluster_size=512 a.qcow2 4211200",
        FILL
    ),
    variant!(
        "lazy refcounts",
        "img create -f qcow2 -o lazy_refcounts=on a.qcow2 4211200",
        FILL
    ),
    variant!(
        "subclusters",
        "img create -f qcow2 -o extended_l2=on a.qcow2 4211200",
        FILL
    ),
    variant!(
        "subclusters of 512",
        "img create -f qcow2 -o extended_l2=on,cluster_size=16k a.qcow2 4211200",
        FILL
    ),
    variant!(
        "subclusters of 64k",
        "img create -f qcow2 -o extended_l2=on,cluster_size=2M a.qcow2 4211200",
        FILL
    ),
    variant!(
        "compressed, zlib",
        "raw base 4211200",
        "img convert -c -f raw -O qcow2 base a.qcow2"
    ),
    variant!(
        "compressed, zstd",
        "raw base 4211200",
        "img convert -c -f raw -O qcow2 -o compression_type=zstd base a.qcow2"
    ),
    variant!(
        "compressed, zstd, clusters of 4k",
        "raw base 4211200",
        "img convert -c -f raw -O qcow2 -o compression_type=zstd,cluster_size=4k base a.qcow2",
        "io a.qcow2 write -P 5 1M 100k"
    ),
    variant!(
        "compressed, subclusters",
        "raw base 4211200",
        "img convert -c -f raw -O qcow2 -o extended_l2=on base a.qcow2",
        "io a.qcow2 write -P 5 1M 100k"
    ),
    variant!(
        "compressed, v2, small clusters",
        "raw base 4211200",
        "img convert -c -f raw -O qcow2 -o compat=0.10,cluster_size=512 base a.qcow2"
    ),
    variant!(
        "on raw",
        "raw base 4211200",
        "img create -f qcow2 -b base -F raw a.qcow2 4211200",
        FILL
    ),
    variant!(
        "on a shorter raw",
        "raw base 2100001",
        "img create -f qcow2 -b base -F raw a.qcow2 4211200",
        FILL
    ),
    variant!(
        "on a longer raw",
        "raw base 6000000",
        "img create -f qcow2 -b base -F raw a.qcow2 4211200"
    ),
    variant!(
        "on raw, v2",
        "raw base 3000320",
        "img create -f qcow2 -o compat=0.10 -b base -F raw a.qcow2 4211200",
        "io a.qcow2 write -P 17 100k 700k"
    ),
    variant!(
        "on raw, subclusters",
        "raw base 3000320",
        "img create -f qcow2 -o extended_l2=on -b base -F raw a.qcow2 4211200",
        FILL
    ),
    variant!(
        "on raw, subclusters of 512",
        "raw base 3000320",
        "img create -f qcow2 -o extended_l2=on,cluster_size=16k -b base -F raw a.qcow2 4211200",
        FILL
    ),
    variant!(
        "on a chain",
        "raw base 4211200",
        "img create -f qcow2 -o cluster_size=4k -b base -F raw b.qcow2 3M",
        "io b.qcow2 write -P 40 500k 1M; write -z 200k 100k",
        "img create -f qcow2 -o extended_l2=on -b b.qcow2 -F qcow2 c.qcow2 5M",
        "io c.qcow2 write -P 41 1M 100k; write -P 42 4M 100k",
        "img create -f qcow2 -b c.qcow2 -F qcow2 a.qcow2 4211200",
        FILL
    ),
    variant!(
        "on compressed",
        "raw base 4211200",
        "img convert -c -f raw -O qcow2 base b.qcow2",
        "img create -f qcow2 -o cluster_size=8k -b b.qcow2 -F qcow2 a.qcow2 4211200"
    ),
    variant!(
        "with a snapshot",
        "img create -f qcow2 a.qcow2 4211200",
        FILL,
        "img snapshot -c one a.qcow2"
    ),
    variant!(
        "with two snapshots, small clusters",
        "img create -f qcow2 -o cluster_size=1k a.qcow2 4211200",
        FILL,
        "img snapshot -c one a.qcow2",
        "io a.qcow2 write -P 77 1M 1M",
        "img snapshot -c two a.qcow2"
    ),
    variant!(
        "with a snapshot, v2",
        "img create -f qcow2 -o compat=0.10 a.qcow2 4211200",
        "io a.qcow2 write -P 17 100k 3M",
        "img snapshot -c one a.qcow2"
    ),
    variant!(
        "with a snapshot, subclusters, on raw",
        "raw base 3000320",
        "img create -f qcow2 -o extended_l2=on -b base -F raw a.qcow2 4211200",
        FILL,
        "img snapshot -c one a.qcow2",
        "io a.qcow2 write -P 78 60k 10k"
    ),
    variant!(
        "with a snapshot, compressed",
        "raw base 4211200",
        "img convert -c -f raw -O qcow2 base a.qcow2",
        "img snapshot -c one a.qcow2",
        "io a.qcow2 write -P 79 60k 100k"
    ),
    // Its free clusters hold old bytes.
    variant!(
        "after a snapshot",
        "img create -f qcow2 -o cluster_size=4k a.qcow2 4211200",
        FILL,
        "img snapshot -c one a.qcow2",
        "io a.qcow2 write -P 20 100k 700k",
        "img snapshot -d one a.qcow2"
    ),
    variant!(
        "preallocated tables",
        "img create -f qcow2 -o preallocation=metadata a.qcow2 4211200"
    ),
    variant!(
        "preallocated",
        "img create -f qcow2 -o preallocation=falloc a.qcow2 4211200",
        FILL
    ),
    variant!(
        "preallocated tables, subclusters",
        "img create -f qcow2 -o preallocation=metadata,extended_l2=on a.qcow2 4211200",
        FILL
    ),
    variant!(
        "external data",
        "img create -f qcow2 -o data_file=data a.qcow2 4211200",
        FILL
    ),
    variant!(
        "external data, raw",
        "img create -f qcow2 -o data_file=data,data_file_raw=on a.qcow2 4211200",
        FILL
    ),
    variant!(
        "external data, on raw",
        "raw base 3000320",
        "img create -f qcow2 -o data_file=data -b base -F raw a.qcow2 4211200",
        FILL
    ),
    variant!(
        "external data, subclusters",
        "img create -f qcow2 -o data_file=data,extended_l2=on a.qcow2 4211200",
        FILL
    ),
    variant!(
        "with bitmaps",
        "img create -f qcow2 a.qcow2 4211200",
        "img bitmap --add a.qcow2 follows",
        "img bitmap --add --disable a.qcow2 stands",
        FILL
    ),
];
