//! The tests of this binary.

use std::time::Duration;

/// What a guest test returns. An error fails the test and is shown with its causes, unless it is
/// [`Skipped`].
pub type TestResult = anyhow::Result<()>;

/// The error that skips a test: [`skip!`](crate::skip) makes it.
#[derive(Debug)]
pub struct Skipped(
    /// Why, for whoever reads the results.
    pub String,
);

impl std::fmt::Display for Skipped {
    fn fmt(&self, f: &mut std::fmt::Formatter<'_>) -> std::fmt::Result {
        write!(f, "skipped: {}", self.0)
    }
}

impl std::error::Error for Skipped {}

/// Skips a test on a kernel with a single CPU, where each system call is slow too: what drives
/// hundreds of devices, or kills under load again and again, takes many minutes there. `work` says
/// what it is.
///
/// # Errors
/// [`Skipped`], on such a kernel.
pub fn needs_several_cpus(work: &str) -> TestResult {
    if std::thread::available_parallelism()?.get() > 1 {
        return Ok(());
    }
    let reason = format!("{work} takes too long with one CPU: see uml-built");
    Err(Skipped(reason).into())
}

/// A registered test.
#[doc(hidden)]
#[derive(Debug)]
pub struct GuestTest {
    pub path: &'static str,
    pub run: fn() -> TestResult,
    pub limit: Duration,
}

inventory::collect!(GuestTest);

impl GuestTest {
    /// For every test that does not say otherwise; a hang, not slowness, should run into it.
    pub const USUAL_LIMIT: Duration = Duration::from_secs(120);

    /// The path without the binary's own name, as `cargo test` shows tests.
    pub fn name(&self) -> &'static str {
        self.path
            .split_once("::")
            .map_or(self.path, |(_, name)| name)
    }

    /// All tests of this binary, by name.
    pub(crate) fn all() -> Vec<&'static GuestTest> {
        let mut tests: Vec<_> = inventory::iter::<GuestTest>.into_iter().collect();
        tests.sort_by_key(|t| t.name());
        tests
    }
}

/// Registers a function as a guest test, optionally with its own time limit (a
/// [`Duration`](std::time::Duration); two minutes unless told).
///
/// ```
/// # use std::time::Duration;
/// use tcmu_guest_tests::{TestResult, guest_test};
///
/// guest_test!(a_long_one, limit = Duration::from_secs(600));
/// fn a_long_one() -> TestResult {
///     Ok(())
/// }
/// # fn main() {}
/// ```
#[macro_export]
macro_rules! guest_test {
    ($test:ident) => {
        $crate::guest_test!($test, limit = $crate::GuestTest::USUAL_LIMIT);
    };
    ($test:ident, limit = $limit:expr) => {
        $crate::inventory::submit! {
            $crate::GuestTest {
                path: concat!(module_path!(), "::", stringify!($test)),
                run: $test,
                limit: $limit,
            }
        }
    };
}

/// Ends the calling test as skipped, with a reason in `format!` style. It counts as skipped, never
/// as passed.
#[macro_export]
macro_rules! skip {
    ($($reason:tt)+) => {
        return ::std::result::Result::Err($crate::Skipped(format!($($reason)+)).into())
    };
}
