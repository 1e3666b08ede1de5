//! Points at which a test holds the daemon up (feature `kill-points`).
//!
//! Whoever comes to a point waits while the folder that the environment variable `TCMU_HOLD` names holds
//! a file of the point's name: `opening` (of a device), `image` (its opening), `reconfiguring`,
//! `removing`. Beside it there is a file `<point>.held` from then on.

use std::fs;
use std::path::Path;
use std::thread;
use std::time::Duration;

/// Passes a point, as soon as it may be.
pub(super) fn pass(point: &str) {
    if let Some(folder) = std::env::var_os("TCMU_HOLD") {
        let obstacle = Path::new(&folder).join(point);
        if obstacle.exists() {
            let _ = fs::write(obstacle.with_extension("held"), "");
        }
        while obstacle.exists() {
            thread::sleep(Duration::from_millis(1));
        }
    }
}
