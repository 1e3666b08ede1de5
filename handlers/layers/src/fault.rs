//! `fault`: requests fail.

use std::cell::Cell;
use std::future::Future;
use std::io;
use std::ops::Range;

use rustix::io::Errno;
use tcmu_handler::{Error, ErrorKind, Io, Result};

use crate::gate::Gate;
use crate::operations::{Operation, Operations, Request};
use crate::options::{Options, invalid};

pub(crate) const OPTIONS: [&str; 9] = [
    "op", "error", "nth", "every", "chance", "seed", "times", "from", "to",
];

pub(crate) const HELP: &str = "\
fault/[OPTION=VALUE/]...SUBTYPE/CONFIG

Lets requests fail; a request that fails does not reach what lies below. Without options all fail.

  error=NAME       How: EIO (the default), ENOSPC, EROFS, EAGAIN (the initiator tries again),
                   ETIMEDOUT, ENODEV, EOPNOTSUPP.
  op=NAME+NAME...  Which: read, write, flush, unmap, zero, compare, status. The default is all.
  from=N, to=N     Only requests that touch these bytes: from byte N on, up to before byte N; 4096,
                   64k, 1M, 2G.
  nth=N            Only the Nth of all these, counted from 1 when the image is opened.
  every=N          Only every Nth of them.
  chance=P         Only this share of them, by chance: 0.01 is one in a hundred.
  seed=N           Another row of chances.
  times=N          No more than N failures.

Example: fault/op=write/every=100/error=ENOSPC/file//var/lib/x.img
";

/// How a request fails: a kind, and the operating system's number for it.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
struct Failure {
    errno: Errno,
    /// `None`: the kind of the request says.
    kind: Option<ErrorKind>,
}

const FAILURES: [(&str, Failure); 7] = [
    ("EIO", Failure::new(Errno::IO, None)),
    (
        "ENOSPC",
        Failure::new(Errno::NOSPC, Some(ErrorKind::NoSpace)),
    ),
    (
        "EROFS",
        Failure::new(Errno::ROFS, Some(ErrorKind::ReadOnly)),
    ),
    ("EAGAIN", Failure::new(Errno::AGAIN, Some(ErrorKind::Busy))),
    (
        "ETIMEDOUT",
        Failure::new(Errno::TIMEDOUT, Some(ErrorKind::TimedOut)),
    ),
    ("ENODEV", Failure::new(Errno::NODEV, Some(ErrorKind::Gone))),
    (
        "EOPNOTSUPP",
        Failure::new(Errno::OPNOTSUPP, Some(ErrorKind::Unsupported)),
    ),
];

impl Failure {
    const fn new(errno: Errno, kind: Option<ErrorKind>) -> Self {
        Self { errno, kind }
    }

    fn of(self, request: &Request) -> Error {
        let kind = self.kind.unwrap_or(match request.operation {
            Operation::Read | Operation::Status => ErrorKind::Read,
            _ => ErrorKind::Write,
        });
        let operation = request.operation.name();
        let context = format!("the layer fault lets a {operation} fail");
        Error::os(
            context,
            io::Error::from_raw_os_error(self.errno.raw_os_error()),
        )
        .with_kind(kind)
    }
}

/// Which requests fail.
#[derive(Clone, Debug)]
pub(crate) struct Plan {
    operations: Operations,
    range: Option<Range<u64>>,
    failure: Failure,
    nth: Option<u64>,
    every: Option<u64>,
    chance: Option<f64>,
    seed: u64,
    times: Option<u64>,
}

/// What the options say.
pub(crate) fn parse(options: &Options) -> Result<Plan> {
    let names = FAILURES.map(|(name, _)| name).join(", ");
    let failure = options.parsed("error", &format!("one of {names}"), |text| {
        let mut failures = FAILURES.into_iter();
        failures
            .find(|(name, _)| *name == text)
            .map(|(_, failure)| failure)
    })?;
    let chance = options.parsed("chance", "a number from 0 to 1", |text| {
        text.parse()
            .ok()
            .filter(|chance| (0.0..=1.0).contains(chance))
    })?;
    let (from, to) = (options.bytes("from")?, options.bytes("to")?);
    let range = from.unwrap_or(0)..to.unwrap_or(u64::MAX);
    if range.is_empty() {
        return Err(invalid(
            "the layer fault: from lies before to, or nothing fails",
        ));
    }
    Ok(Plan {
        operations: options.operations()?,
        range: (from.is_some() || to.is_some()).then_some(range),
        failure: failure.unwrap_or(Failure::new(Errno::IO, None)),
        nth: options.count("nth")?,
        every: options.count("every")?,
        chance,
        seed: options.number("seed")?.unwrap_or(0),
        times: options.count("times")?,
    })
}

#[derive(Debug)]
pub(crate) struct Fault {
    plan: Plan,
    /// How many requests of those that may fail there were.
    seen: Cell<u64>,
    /// How many have failed.
    failed: Cell<u64>,
    random: Cell<u64>,
}

impl Fault {
    pub(crate) fn new(options: &Options) -> Result<Self> {
        let plan = parse(options)?;
        Ok(Self {
            seen: Cell::new(0),
            failed: Cell::new(0),
            random: Cell::new(plan.seed.wrapping_mul(0x9e37_79b9_7f4a_7c15) | 1),
            plan,
        })
    }

    /// Whether this request fails.
    fn strikes(&self, request: &Request) -> bool {
        let plan = &self.plan;
        let extent = request.extent;
        let touches = |range: &Range<u64>| extent.offset < range.end && range.start < extent.end();
        if !plan.operations.contains(request.operation) || !plan.range.as_ref().is_none_or(touches)
        {
            return false;
        }
        self.seen.set(self.seen.get() + 1);
        let seen = self.seen.get();
        let strikes = plan.nth.is_none_or(|nth| seen == nth)
            && plan.every.is_none_or(|every| seen.is_multiple_of(every))
            && plan.chance.is_none_or(|chance| self.roll() < chance)
            && plan.times.is_none_or(|times| self.failed.get() < times);
        self.failed.set(self.failed.get() + u64::from(strikes));
        strikes
    }

    /// A number from 0 up to 1, of xorshift64*.
    fn roll(&self) -> f64 {
        let mut state = self.random.get();
        state ^= state << 13;
        state ^= state >> 7;
        state ^= state << 17;
        self.random.set(state);
        (state.wrapping_mul(0x2545_f491_4f6c_dd1d) >> 11) as f64 / (1_u64 << 53) as f64
    }
}

impl Gate for Fault {
    async fn pass<T>(
        &self,
        _io: &Io,
        request: Request,
        below: impl Future<Output = Result<T>>,
    ) -> Result<T> {
        if self.strikes(&request) {
            return Err(self.plan.failure.of(&request));
        }
        below.await
    }
}

#[cfg(test)]
mod tests {
    use super::*;
    use tcmu_handler::{Config, Extent};

    fn fault(text: &str) -> Result<Fault> {
        let config: Config = text.parse()?;
        Fault::new(&Options::of("fault", &OPTIONS, &config)?)
    }

    /// Which of these requests fail, counted from 1.
    fn failures(text: &str, requests: &[(Operation, u64)]) -> Vec<usize> {
        let fault = fault(text).unwrap();
        let strikes = |(operation, offset): &(Operation, u64)| {
            fault.strikes(&Request {
                operation: *operation,
                extent: Extent {
                    offset: *offset,
                    len: 512,
                },
            })
        };
        let struck = requests.iter().map(strikes);
        let numbered = struck.enumerate().filter(|(_, struck)| *struck);
        numbered.map(|(number, _)| number + 1).collect()
    }

    #[test]
    fn those_fail_that_were_meant() {
        use Operation::{Read, Write};
        let reads = [(Read, 0); 10];
        assert_eq!(failures("ram/", &reads[..3]), [1, 2, 3]);
        assert_eq!(failures("nth=4/ram/", &reads), [4]);
        assert_eq!(failures("every=4/ram/", &reads), [4, 8]);
        assert_eq!(failures("every=2/times=2/ram/", &reads), [2, 4]);
        assert!(failures("chance=0/ram/", &reads).is_empty());
        assert_eq!(failures("chance=1/times=1/ram/", &reads), [1]);
        let mixed = [
            (Read, 0),
            (Write, 0),
            (Read, 512),
            (Write, 1024),
            (Write, 1536),
        ];
        assert_eq!(failures("op=write/ram/", &mixed), [2, 4, 5]);
        assert_eq!(failures("op=write/nth=2/ram/", &mixed), [4]);
        assert_eq!(failures("from=1k/ram/", &mixed), [4, 5]);
        assert_eq!(failures("to=513/ram/", &mixed), [1, 2, 3]);
        assert_eq!(failures("from=513/to=1025/ram/", &mixed), [3, 4]);
    }

    #[test]
    fn chances_are_what_they_say_and_the_same_each_time() {
        let reads = vec![(Operation::Read, 0); 10_000];
        let struck = failures("chance=0.1/ram/", &reads);
        assert!((900..1100).contains(&struck.len()), "{}", struck.len());
        assert_eq!(failures("chance=0.1/ram/", &reads), struck);
        assert_ne!(failures("chance=0.1/seed=1/ram/", &reads), struck);
    }

    #[test]
    fn errors_have_their_kind_and_number() {
        for (name, operation, kind, errno) in [
            ("EIO", Operation::Read, ErrorKind::Read, 5),
            ("EIO", Operation::Flush, ErrorKind::Write, 5),
            ("ENOSPC", Operation::Write, ErrorKind::NoSpace, 28),
            ("EAGAIN", Operation::Read, ErrorKind::Busy, 11),
            ("ENODEV", Operation::Read, ErrorKind::Gone, 19),
        ] {
            let fault = fault(&format!("error={name}/ram/")).unwrap();
            let extent = Extent { offset: 0, len: 1 };
            let error = fault.plan.failure.of(&Request { operation, extent });
            assert_eq!((error.kind(), error.errno()), (kind, errno), "{name}");
        }
    }

    #[test]
    fn what_makes_no_sense_is_refused() {
        for text in [
            "error=EWHAT/ram/",
            "chance=2/ram/",
            "chance=x/ram/",
            "nth=0/ram/",
            "from=2k/to=1k/ram/",
            "op=reading/ram/",
        ] {
            let error = fault(text).unwrap_err();
            assert_eq!(error.kind(), ErrorKind::InvalidConfig, "{text}: {error}");
        }
    }
}
