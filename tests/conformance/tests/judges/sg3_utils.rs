//! sg3_utils: each command with the exit code and the words that it has to come to, and every
//! page decoded without complaint.

use std::fs;
use std::time::Duration;

use anyhow::{Context as _, bail, ensure};
use tcmu_conformance::sg_io::{Data, Device};
use tcmu_guest_tests::daemon::Daemon;
use tcmu_guest_tests::lun::MIB;
use tcmu_guest_tests::sh::{
    SG_ILLEGAL_REQUEST, SG_INVALID_OPCODE, SG_MISCOMPARE, SG_UNIT_ATTENTION, run, run_any, run_code,
};
use tcmu_guest_tests::{TestResult, guest_test};

use crate::luns::{Kind, SecondPath};

const SIZE: u64 = 16 * MIB;

/// sg3_utils: "data protect".
const SG_DATA_PROTECT: i32 = 7;
/// sg3_utils: "LBA out of range".
const SG_LBA_OUT_OF_RANGE: i32 = 22;
/// sg3_utils: "reservation conflict".
const SG_RESERVATION_CONFLICT: i32 = 24;

/// A command, the exit code, and words that have to be in what it prints. `SG` is the device, `SG2`
/// another way to it.
type Row = (&'static str, i32, &'static [&'static str]);

/// Runs the rows one after the other and reports all that went wrong.
fn run_table(rows: &[Row], sg: &str, sg2: &str) -> TestResult {
    let mut wrong = Vec::new();
    for (command, code, words) in rows {
        let line = command.replace("SG2", sg2).replace("SG", sg);
        let output = run_any(&line.split_whitespace().collect::<Vec<_>>())?;
        let printed = [output.stdout, output.stderr].concat();
        let printed = String::from_utf8_lossy(&printed);
        if output.status.code() != Some(*code) {
            wrong.push(format!("{line}: {} instead of {code}", output.status));
        }
        for word in words.iter().filter(|word| !printed.contains(**word)) {
            wrong.push(format!("{line}: does not print `{word}`"));
        }
    }
    ensure!(
        wrong.is_empty(),
        "{} of {} commands:\n  {}",
        wrong.len(),
        rows.len(),
        wrong.join("\n  ")
    );
    Ok(())
}

/// Runs a table on a disk of its own, which holds zeroes.
fn on_a_disk(kind: Kind, rows: &[Row]) -> TestResult {
    let daemon = Daemon::start()?;
    let (disk, sg) = kind.disk(SIZE)?;
    let second = SecondPath::to(&disk)?;
    write_inputs()?;
    settle(&[&sg, &second.sg])?;
    let outcome = run_table(rows, &sg, &second.sg);
    second.remove()?;
    disk.delete()?;
    daemon.stop()?;
    outcome
}

/// The files that commands get their data from: blocks of one byte value each.
fn write_inputs() -> TestResult {
    for (name, bytes) in [
        ("zero", vec![0; 512]),
        ("one", vec![1; 512]),
        ("two", vec![2; 512]),
        ("ones8", vec![1; 8 * 512]),
        ("twos8", vec![2; 8 * 512]),
        ("zero-one", [[0; 512], [1; 512]].concat()),
        ("one-two", [[1; 512], [2; 512]].concat()),
    ] {
        fs::write(format!("/run/{name}"), bytes)?;
    }
    Ok(())
}

/// Has every device tell the conditions that it has to tell.
fn settle(devices: &[&str]) -> TestResult {
    for device in devices {
        for _ in 0..8 {
            run_any(&["sg_turs", device])?;
        }
        run(&["sg_turs", device])?;
    }
    Ok(())
}

guest_test!(what_the_lun_says_of_itself);
fn what_the_lun_says_of_itself() -> TestResult {
    on_a_disk(
        Kind::File,
        &[
            ("sg_turs SG", 0, &[]),
            (
                "sg_inq SG",
                0,
                &[
                    "version=0x0",
                    "[SPC-",
                    "CmdQue=1",
                    "Vendor identification: LIO-ORG",
                    "Unit serial number",
                ],
            ),
            ("sg_inq --descriptors SG", 0, &["SPC-", "SBC-"]),
            ("sg_luns SG", 0, &["0000000000000000"]),
            (
                "sg_readcap SG",
                0,
                &["Last LBA=32767", "Logical block length=512 bytes"],
            ),
            (
                "sg_readcap --long SG",
                0,
                &[
                    "Number of logical blocks=32768",
                    "lbpme=1",
                    "lbprz=1",
                    "prot_en=0",
                ],
            ),
            ("sg_requests SG", 0, &[]),
            ("sg_requests --desc SG", 0, &[]),
            (
                "sg_opcodes SG",
                0,
                &[
                    "Read(16)",
                    "Compare and write",
                    "Unmap",
                    "Verify(10)",
                    "Extended copy",
                    "Receive copy",
                    "Get LBA status",
                    "Report target port groups",
                    "Sanitize",
                    "Persistent reserve out",
                ],
            ),
            ("sg_opcodes --rctd SG", 0, &["timeout"]),
            (
                "sg_opcodes --opcode=0x28 SG",
                0,
                &["Read(10)", "Command is supported"],
            ),
            (
                "sg_opcodes --opcode=0x9e,0x10 SG",
                0,
                &["Read capacity(16)"],
            ),
            ("sg_opcodes --opcode=0xc0 SG", 0, &["NOT supported"]),
            (
                "sg_opcodes --tmf SG",
                0,
                &["Logical unit reset", "Abort task"],
            ),
            (
                "sg_rtpg --decode SG",
                0,
                &["target port group id", "asymmetric access state"],
            ),
            ("sg_logs SG", 0, &["Supported log pages"]),
            (
                "sg_copy_results --params SG",
                0,
                &["Supports no list identifier", "Maximum segment length"],
            ),
            (
                "sg_persist --in --report-capabilities SG",
                0,
                &["Report capabilities response"],
            ),
            ("sg_senddiag --test SG", 0, &[]),
            ("sg_ident SG", SG_ILLEGAL_REQUEST, &[]),
        ],
    )
}

guest_test!(commands_on_data);
fn commands_on_data() -> TestResult {
    on_a_disk(
        Kind::File,
        &[
            // COMPARE AND WRITE
            ("sg_compare_and_write --in=/run/zero-one --lba=0 SG", 0, &[]),
            (
                "sg_compare_and_write --in=/run/zero-one --lba=0 --quiet SG",
                SG_MISCOMPARE,
                &[],
            ),
            (
                "sg_compare_and_write --in=/run/one-two --lba=0 --fua SG",
                0,
                &[],
            ),
            (
                "sg_compare_and_write --in=/run/one-two --lba=32768 SG",
                SG_LBA_OUT_OF_RANGE,
                &[],
            ),
            // WRITE AND VERIFY, VERIFY
            ("sg_write_verify --in=/run/ones8 --lba=8 --num=8 SG", 0, &[]),
            (
                "sg_write_verify --16 --in=/run/ones8 --lba=8 --num=8 --bytchk=1 SG",
                0,
                &[],
            ),
            ("sg_verify --lba=0 --count=32768 SG", 0, &[]),
            ("sg_verify --16 --lba=0 --count=32768 SG", 0, &[]),
            (
                "sg_verify --lba=8 --count=8 --ndo=4096 --in=/run/ones8 SG",
                0,
                &[],
            ),
            (
                "sg_verify --lba=8 --count=8 --ndo=4096 --in=/run/twos8 --quiet SG",
                SG_MISCOMPARE,
                &[],
            ),
            (
                "sg_verify --16 --lba=8 --count=8 --ebytchk=3 --ndo=512 --in=/run/one SG",
                0,
                &[],
            ),
            (
                "sg_verify --16 --lba=8 --count=9 --ebytchk=3 --ndo=512 --in=/run/one --quiet SG",
                SG_MISCOMPARE,
                &[],
            ),
            ("sg_verify --lba=32768 SG", SG_LBA_OUT_OF_RANGE, &[]),
            ("sg_verify --vrprotect=1 SG", SG_ILLEGAL_REQUEST, &[]),
            // WRITE SAME
            (
                "sg_write_same --10 --lba=100 --num=8 --in=/run/two SG",
                0,
                &[],
            ),
            (
                "sg_write_same --16 --lba=108 --num=8 --in=/run/two SG",
                0,
                &[],
            ),
            (
                "sg_write_same --32 --lba=116 --num=8 --in=/run/two SG",
                0,
                &[],
            ),
            (
                "sg_verify --16 --lba=100 --count=24 --ebytchk=3 --ndo=512 --in=/run/two SG",
                0,
                &[],
            ),
            ("sg_write_same --16 --lba=100 --num=24 --ndob SG", 0, &[]),
            (
                "sg_verify --16 --lba=100 --count=24 --ebytchk=3 --ndo=512 --in=/run/zero SG",
                0,
                &[],
            ),
            (
                "sg_write_same --16 --lba=8 --num=8 --unmap --ndob SG",
                0,
                &[],
            ),
            (
                "sg_write_same --16 --lba=32760 --num=9 --in=/run/two SG",
                SG_LBA_OUT_OF_RANGE,
                &[],
            ),
            // WRITE (16) and (32), ORWRITE, all by one tool
            (
                "sg_write_x --normal --16 --in=/run/ones8 --lba=200 --num=8 SG",
                0,
                &[],
            ),
            (
                "sg_write_x --normal --32 --in=/run/twos8 --lba=208 --num=8 SG",
                0,
                &[],
            ),
            (
                "sg_write_x --or --16 --in=/run/twos8 --lba=200 --num=8 SG",
                0,
                &[],
            ),
            ("sg_dd if=SG of=/run/or bs=512 skip=200 count=1", 0, &[]),
            (
                "sg_dd if=SG of=/run/thirtytwo bs=512 skip=208 count=8",
                0,
                &[],
            ),
            ("cmp /run/thirtytwo /run/twos8", 0, &[]),
            (
                "sg_write_x --same=1 --16 --lba=200 --num=8 --in=/run/zero SG",
                0,
                &[],
            ),
            // UNMAP and GET LBA STATUS
            (
                "sg_write_verify --in=/run/ones8 --lba=1024 --num=8 SG",
                0,
                &[],
            ),
            ("sg_get_lba_status --lba=1024 SG", 0, &["mapped"]),
            ("sg_unmap --force --lba=1024 --num=8 SG", 0, &[]),
            ("sg_get_lba_status --lba=1024 SG", 0, &["deallocated"]),
            (
                "sg_verify --16 --lba=1024 --count=8 --ebytchk=3 --ndo=512 --in=/run/zero SG",
                0,
                &[],
            ),
            ("sg_unmap --force --lba=0,64,128 --num=8,8,8 SG", 0, &[]),
            (
                "sg_unmap --force --lba=32760 --num=16 SG",
                SG_LBA_OUT_OF_RANGE,
                &[],
            ),
            ("sg_get_lba_status --lba=32768 SG", SG_LBA_OUT_OF_RANGE, &[]),
            // Caches and media
            ("sg_sync SG", 0, &[]),
            ("sg_sync --16 --lba=8 --count=8 SG", 0, &[]),
            ("sg_sync --immed SG", 0, &[]),
            ("sg_seek --pre-fetch --10 --lba=0 --num-blocks=8 SG", 0, &[]),
            ("sg_seek --pre-fetch --lba=0 --num-blocks=8 SG", 0, &[]),
            ("sg_seek SG", SG_INVALID_OPCODE, &[]),
            ("sg_start --stop SG", 0, &[]),
            ("sg_start --start SG", 0, &[]),
            // The medium cannot be taken out.
            ("sg_prevent --allow SG", SG_INVALID_OPCODE, &[]),
            ("sg_reassign --dummy --address=1 SG", 0, &[]),
            ("sg_read_long --lba=0 SG", SG_INVALID_OPCODE, &[]),
            (
                "sg_write_long --lba=0 --in=/run/one SG",
                SG_INVALID_OPCODE,
                &[],
            ),
        ],
    )
}

guest_test!(copies);
fn copies() -> TestResult {
    on_a_disk(
        Kind::File,
        &[
            ("dd if=/dev/urandom of=/run/noise bs=64k count=16", 0, &[]),
            (
                "sg_dd if=/run/noise of=SG bs=512 count=2048",
                0,
                &["2048+0 records out"],
            ),
            ("sgp_dd if=SG of=/run/copy1 bs=512 count=2048 thr=4", 0, &[]),
            ("cmp /run/noise /run/copy1", 0, &[]),
            ("sgm_dd if=SG of=/run/copy2 bs=512 count=2048", 0, &[]),
            ("cmp /run/noise /run/copy2", 0, &[]),
            (
                "sg_dd if=SG of=/run/copy3 bs=512 count=2048 iflag=fua cdbsz=16 blk_sgio=1",
                0,
                &[],
            ),
            ("cmp /run/noise /run/copy3", 0, &[]),
            // The target copies by itself.
            (
                "sg_xcopy if=SG of=SG bs=512 count=2048 seek=4096",
                0,
                &["2048 blocks, 1 command"],
            ),
            (
                "sg_dd if=SG of=/run/copy4 bs=512 skip=4096 count=2048",
                0,
                &[],
            ),
            ("cmp /run/noise /run/copy4", 0, &[]),
            (
                "sg_xcopy if=SG of=SG bs=512 count=64 seek=32760",
                SG_COPY_ABORTED,
                &[],
            ),
            ("sg_read if=SG bs=512 count=128", 0, &[]),
        ],
    )
}

/// sg3_utils: "copy aborted" (sense key 0xa).
const SG_COPY_ABORTED: i32 = 10;

guest_test!(modes_and_reservations);
fn modes_and_reservations() -> TestResult {
    on_a_disk(
        Kind::File,
        &[
            // Software write protection, set and taken back; SG2 hears of it.
            (
                "sg_wr_mode --page=a --contents=a,a,0,0,8,0,0,0,0,0,0,0 --mask=0,0,0,0,8,0,0,0,0,0,0,0 SG",
                0,
                &[],
            ),
            (
                "sg_write_same --lba=0 --num=1 --in=/run/one SG",
                SG_DATA_PROTECT,
                &[],
            ),
            ("sg_modes --page=0xa SG", 0, &["WP=1"]),
            (
                "sg_wr_mode --page=a --contents=a,a,0,0,0,0,0,0,0,0,0,0 --mask=0,0,0,0,8,0,0,0,0,0,0,0 SG",
                0,
                &[],
            ),
            ("sg_write_same --lba=0 --num=1 --in=/run/one SG", 0, &[]),
            // Sense in descriptor format.
            (
                "sg_wr_mode --page=a --contents=a,a,4,0,0,0,0,0,0,0,0,0 --mask=0,0,4,0,0,0,0,0,0,0,0,0 SG",
                0,
                &[],
            ),
            (
                "sg_raw SG c0 0 0 0 0 0 0 0 0 0",
                SG_INVALID_OPCODE,
                &["Descriptor format"],
            ),
            (
                "sg_wr_mode --page=a --contents=a,a,0,0,0,0,0,0,0,0,0,0 --mask=0,0,4,0,0,0,0,0,0,0,0,0 SG",
                0,
                &[],
            ),
            (
                "sg_raw SG c0 0 0 0 0 0 0 0 0 0",
                SG_INVALID_OPCODE,
                &["Fixed format"],
            ),
            // What cannot be changed is refused.
            (
                "sg_wr_mode --force --page=1c --contents=1c,a,ff,f SG",
                SG_ILLEGAL_REQUEST,
                &[],
            ),
            // Reservations, which the kernel keeps for us.
            ("sg_persist --out --register --param-sark=abc SG", 0, &[]),
            ("sg_persist --in --read-keys SG", 0, &["0xabc"]),
            (
                "sg_persist --out --reserve --param-rk=abc --prout-type=1 SG",
                0,
                &[],
            ),
            (
                "sg_persist --in --read-reservation SG",
                0,
                &["Write Exclusive"],
            ),
            ("sg_turs SG2", 0, &[]),
            (
                "sg_write_same --lba=0 --num=1 --in=/run/one SG2",
                SG_RESERVATION_CONFLICT,
                &[],
            ),
            ("sg_write_same --lba=0 --num=1 --in=/run/one SG", 0, &[]),
            (
                "sg_persist --out --release --param-rk=abc --prout-type=1 SG",
                0,
                &[],
            ),
            ("sg_persist --out --clear --param-rk=abc SG", 0, &[]),
            (
                "sg_persist --in --read-keys SG",
                0,
                &["there are NO registered"],
            ),
            ("sg_write_same --lba=0 --num=1 --in=/run/one SG2", 0, &[]),
            // Ports
            ("sg_rtpg SG", 0, &[]),
            ("sg_stpg --optimized SG", 0, &[]),
            ("sg_reset --no-esc --device SG", 0, &[]),
            ("sg_turs SG", SG_UNIT_ATTENTION, &[]),
            ("sg_turs SG", 0, &[]),
        ],
    )
}

guest_test!(formats_and_sanitizes);
fn formats_and_sanitizes() -> TestResult {
    on_a_disk(
        Kind::File,
        &[
            (
                "sg_write_same --16 --lba=0 --num=64 --in=/run/one SG",
                0,
                &[],
            ),
            ("sg_sanitize --quick --wait --overwrite --zero SG", 0, &[]),
            (
                "sg_verify --16 --lba=0 --count=128 --ebytchk=3 --ndo=512 --in=/run/zero SG",
                0,
                &[],
            ),
            (
                "sg_sanitize --quick --wait --overwrite --pattern=/run/two --ipl=512 SG",
                0,
                &[],
            ),
            (
                "sg_verify --16 --lba=0 --count=32768 --bpc=4096 --ebytchk=3 --ndo=512 --in=/run/two SG",
                0,
                &[],
            ),
            ("sg_sanitize --quick --wait --block SG", 0, &[]),
            (
                "sg_verify --16 --lba=0 --count=128 --ebytchk=3 --ndo=512 --in=/run/zero SG",
                0,
                &[],
            ),
            (
                "sg_sanitize --quick --wait --crypto SG",
                SG_ILLEGAL_REQUEST,
                &[],
            ),
            ("sg_sanitize --quick --wait --fail SG", 0, &[]),
            (
                "sg_write_same --16 --lba=0 --num=64 --in=/run/one SG",
                0,
                &[],
            ),
            (
                "sg_format --format --quick --wait SG",
                0,
                &["Number of blocks=32768"],
            ),
            ("sg_turs SG", 0, &[]),
            (
                "sg_format --format --quick --wait --fmtpinfo=2 SG",
                SG_ILLEGAL_REQUEST,
                &[],
            ),
        ],
    )
}

guest_test!(a_readonly_lun_refuses_writes);
fn a_readonly_lun_refuses_writes() -> TestResult {
    on_a_disk(
        Kind::ReadOnly,
        &[
            ("sg_turs SG", 0, &[]),
            ("sg_modes --page=0xa SG", 0, &["WP=1"]),
            ("sg_verify --lba=0 --count=8 SG", 0, &[]),
            (
                "sg_write_same --10 --lba=0 --num=1 --in=/run/one SG",
                SG_DATA_PROTECT,
                &[],
            ),
            (
                "sg_write_same --16 --lba=0 --num=1 --in=/run/one SG",
                SG_DATA_PROTECT,
                &[],
            ),
            (
                "sg_write_x --normal --32 --in=/run/ones8 --lba=0 --num=8 SG",
                SG_DATA_PROTECT,
                &[],
            ),
            (
                "sg_write_x --or --16 --in=/run/ones8 --lba=0 --num=8 SG",
                SG_DATA_PROTECT,
                &[],
            ),
            (
                "sg_write_verify --in=/run/ones8 --lba=0 --num=8 SG",
                SG_DATA_PROTECT,
                &[],
            ),
            (
                "sg_compare_and_write --in=/run/zero-one --lba=0 SG",
                SG_DATA_PROTECT,
                &[],
            ),
            (
                "sg_unmap --force --lba=0 --num=8 SG",
                SG_INVALID_OPCODE,
                &[],
            ),
            (
                "sg_sanitize --quick --wait --overwrite --zero SG",
                SG_DATA_PROTECT,
                &[],
            ),
            (
                "sg_verify --16 --lba=0 --count=64 --ebytchk=3 --ndo=512 --in=/run/zero SG",
                0,
                &[],
            ),
        ],
    )
}

/// sg_vpd's words for UGAVALID = 0, which is right where no storage is given back.
const NO_ALIGNMENT: &str = "unmap granularity alignment: 0 [invalid]";

/// Words by which a decoder says that a page is not as it should be.
const COMPLAINTS: &[&str] = &[
    "bad",
    "exceed",
    "invalid",
    "malformed",
    "short",
    "strange",
    "truncat",
    "unable",
    "unexpected",
    "unknown",
    "wrong",
];

guest_test!(every_page_is_decoded_without_complaint);
fn every_page_is_decoded_without_complaint() -> TestResult {
    for kind in [Kind::File, Kind::Ram, Kind::ReadOnly] {
        let daemon = Daemon::start()?;
        let (disk, sg) = kind.disk(SIZE)?;
        settle(&[&sg])?;
        vpd_pages(&sg)?;
        mode_pages(&sg)?;
        log_pages(&sg)?;
        disk.delete()?;
        daemon.stop()?;
    }
    Ok(())
}

fn vpd_pages(sg: &str) -> TestResult {
    // sg_vpd lists names only.
    let mut list = [0; 255];
    let inquiry = [0x12, 1, 0, 0, 255, 0];
    Device::open(sg)?.send(&inquiry, Data::In(&mut list), Duration::from_secs(10))?;
    let [_, 0, 0, count, codes @ ..] = &list else {
        bail!("VPD page 0 begins with {:02x?}", &list[..4]);
    };
    let pages = &codes[..usize::from(*count).min(codes.len())];
    for needed in [0x00, 0x80, 0x83, 0x86, 0xb0, 0xb1, 0xb2] {
        ensure!(
            pages.contains(&needed),
            "no VPD page {needed:#04x}: {pages:02x?}"
        );
    }
    for page in pages {
        decoded(&["sg_vpd", "--long", &format!("--page={page:#04x}"), sg])?;
    }
    decoded(&["sg_vpd", "--all", sg])?;
    // One that is not there
    let absent = ["12", "1", "d0", "0", "40", "0"];
    run_code(
        &[&["sg_raw", "--request=64", sg][..], &absent].concat(),
        SG_ILLEGAL_REQUEST,
    )?;
    Ok(())
}

fn mode_pages(sg: &str) -> TestResult {
    let all = decoded(&["sg_modes", "--all", sg])?;
    for page in [
        "Read-Write error recovery",
        "Caching",
        "Control",
        "Informational exceptions",
    ] {
        ensure!(all.contains(page), "no mode page `{page}`");
    }
    for six in [&["--six"][..], &[]] {
        for control in ["0", "1", "2"] {
            let args = ["sg_modes", "--all", "--control", control, sg];
            decoded(&[&args[..], six].concat())?;
        }
    }
    Ok(())
}

fn log_pages(sg: &str) -> TestResult {
    let pages = page_numbers(&run(&["sg_logs", sg])?);
    ensure!(pages.contains(&0), "no log page 0: {pages:02x?}");
    for page in pages {
        decoded(&["sg_logs", &format!("--page={page:#04x}"), sg])?;
    }
    decoded(&["sg_logs", "--all", sg])?;
    Ok(())
}

/// The numbers at the start of lines: `  0xb0  Block limits`.
fn page_numbers(list: &str) -> Vec<u8> {
    let number = |line: &str| {
        let word = line.split_whitespace().next()?;
        let digits = word.trim_start_matches("0x");
        u8::from_str_radix(digits, 16).ok()
    };
    list.lines().filter_map(number).collect()
}

/// Runs a command that decodes pages; it must succeed and complain of nothing.
fn decoded(command: &[&str]) -> anyhow::Result<String> {
    let output = run_any(command)?;
    let line = command.join(" ");
    ensure!(
        output.status.success(),
        "`{line}` ended with {}",
        output.status
    );
    let printed = [output.stdout, output.stderr].concat();
    let printed = String::from_utf8(printed).context("no text")?;
    for text in printed.lines() {
        let lower = text.to_lowercase().replace(NO_ALIGNMENT, "");
        if let Some(word) = COMPLAINTS.iter().find(|word| lower.contains(**word)) {
            bail!("`{line}` says `{word}`: {text}");
        }
    }
    Ok(printed)
}
