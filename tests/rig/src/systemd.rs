//! Handing a guest over to the systemd in its tree, which runs the program as a service.

use std::fs;
use std::io;
use std::os::unix::fs::symlink;
use std::os::unix::process::CommandExt as _;
use std::path::Path;
use std::process::Command;

use crate::guest_root::on_host;
use crate::init;

/// Environment variable that makes this executable the service.
const SERVICE_VAR: &str = "TCMU_RIG_SERVICE";

/// Where systemd finds units that are made at run time.
const UNITS: &str = "/run/systemd/system";
const UNIT: &str = "tcmu-rig.service";

/// Makes the service, and becomes systemd. Returns only if that is not possible.
pub(crate) fn start() -> io::Error {
    match make_service() {
        Ok(()) => Command::new("/sbin/init").env_clear().exec(),
        Err(error) => error,
    }
}

fn make_service() -> io::Result<()> {
    let program = on_host(&std::env::current_exe()?);
    let unit = format!(
        "[Unit]\nDescription=The program of the test rig\nAfter=multi-user.target\n\
         [Service]\nType=exec\nExecStart={}\nEnvironment={SERVICE_VAR}=1\n\
         StandardOutput=null\nStandardError=journal+console\nOOMScoreAdjust=-1000\n",
        program.display()
    );
    // The terminals are for the program's output.
    fs::create_dir_all(UNITS)?;
    for unit in ["getty.target", "getty@.service"] {
        symlink("/dev/null", Path::new(UNITS).join(unit))?;
    }
    let wants = Path::new(UNITS).join("multi-user.target.wants");
    fs::create_dir_all(&wants)?;
    fs::write(Path::new(UNITS).join(UNIT), unit)?;
    symlink(Path::new("..").join(UNIT), wants.join(UNIT))
}

/// Is the service, if this process was started as one.
pub(crate) fn enter() {
    if std::env::var_os(SERVICE_VAR).is_some() {
        init::run_as_service()
    }
}
