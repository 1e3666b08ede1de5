//! What comes from whoever configures LUNs.

use tcmu::discovery::DeviceName;
use tcmu::netlink;
use tcmu_handler::{Config, Handler};
use tcmu_handler_ram::RamHandler;

/// A datagram of the kernel's.
pub fn netlink(data: &[u8]) {
    // Whatever is wrong with it is an error and no more.
    let _ = netlink::decode(30, data);
}

/// A device's name with its configuration string.
pub fn config(data: &[u8]) {
    let text = String::from_utf8_lossy(data);
    let name: Result<DeviceName, _> = text.parse();
    let config = name.as_ref().map_or(&*text, |name| &name.config);
    if let Ok(config) = config.parse::<Config>() {
        let _ = RamHandler.check(&config);
        // What was understood means the same when it is written down.
        let again: Config = config
            .to_string()
            .parse()
            .expect("what was printed can be read");
        assert_eq!(again, config);
    }
    // Newlines are dropped at the end, wherever that is.
    if let Ok(name) = name
        && !text.contains('\n')
    {
        let again: DeviceName = name
            .to_string()
            .parse()
            .expect("what was printed can be read");
        assert_eq!(again, name);
    }
}
