//! The target core around a logical unit: what it tells of the unit, and what it keeps for it.

use std::io;

use tcmu::configfs::TargetPortGroup;
use tcmu_handler::{Backstore, Io};

use super::LogicalUnit;
use super::unit::Unit;

/// How a logical unit is exported.
#[derive(Clone, Debug, Default, PartialEq, Eq)]
pub struct Surroundings {
    /// The target port groups. None if nobody keeps them.
    pub groups: Vec<TargetPortGroup>,
    /// The target core answers reservations.
    pub reservations: bool,
}

/// Is told how a change ended, on any thread.
pub type Told = Box<dyn FnOnce(io::Result<()>) + Send>;

/// The target core of a logical unit.
pub trait TargetCore: std::fmt::Debug + Send + Sync {
    /// How the unit is exported now. May block; runs on a worker thread.
    ///
    /// # Errors
    /// Where it cannot be told. What was told before holds on then.
    fn surroundings(&self) -> io::Result<Surroundings>;

    /// Changes the state of a group, as an initiator wants it. May block; runs on a worker thread.
    ///
    /// # Errors
    /// Where the state stays as it is.
    fn set_access_state(&self, group: &TargetPortGroup, state: u8) -> io::Result<()>;

    /// Notes that an initiator switched the write cache. Does not block: `told` hears the result.
    ///
    /// The target core may call [`LogicalUnit::set_write_cache`] with the same value meanwhile, and
    /// wait for its end.
    fn set_write_cache(&self, enabled: bool, told: Told);

    /// Notes that the unit has `bytes` bytes now, because its image has. May block; runs on a worker
    /// thread. The default notes nothing.
    ///
    /// # Errors
    /// Where the target core keeps the old size.
    fn note_size(&self, bytes: u64) -> io::Result<()> {
        let _ = bytes;
        Ok(())
    }
}

impl Surroundings {
    /// The groups that commands can come through.
    fn reachable(&self) -> impl Iterator<Item = &TargetPortGroup> {
        self.groups
            .iter()
            .filter(|group| group.ports.iter().any(|port| port.enabled))
    }

    /// Groups change their state by themselves.
    pub(super) fn implicit(&self) -> bool {
        self.reachable().any(|group| group.implicit)
    }

    /// An initiator can change the state of every group, whichever it came through.
    pub(super) fn explicit(&self) -> bool {
        self.reachable().next().is_some() && self.reachable().all(obeys_initiators)
    }

    /// The group that a command came through, where there is only one.
    pub(super) fn only_group(&self) -> Option<u16> {
        let mut groups = self.reachable();
        groups
            .next()
            .filter(|_| groups.next().is_none())
            .map(|group| group.id)
    }

    /// The port that a command came through, where there is only one.
    pub(super) fn only_port(&self) -> Option<u16> {
        let mut ports = self.groups.iter().flat_map(|group| &group.ports);
        let first = ports.find(|port| port.enabled)?;
        (!ports.any(|port| port.enabled)).then_some(first.relative_id)
    }

    /// There is more than one port, of whichever machine.
    pub(super) fn has_several_ports(&self) -> bool {
        let ports = self.groups.iter().flat_map(|group| &group.ports);
        ports.count() > 1
    }
}

/// Whether SET TARGET PORT GROUPS can change the group's state: the kernel takes changes from user
/// space as implicit ones.
pub(super) fn obeys_initiators(group: &TargetPortGroup) -> bool {
    group.explicit && group.implicit
}

impl Unit {
    /// What the target core says now.
    pub(super) fn set_surroundings(&self, surroundings: Surroundings) {
        self.set_reservations(surroundings.reservations);
        self.set_port_groups(
            surroundings.implicit() || surroundings.explicit(),
            surroundings.explicit(),
        );
        self.surroundings.replace(surroundings);
    }
}

impl<B: Backstore> LogicalUnit<B> {
    /// Asks the target core how the unit is exported, before a command that tells of it.
    pub(super) async fn look_around(&self, io: &Io) {
        let Some(core) = self.target_core.clone() else {
            return;
        };
        let told = io.blocking(move || core.surroundings());
        // A command that is aborted can tell what was known before.
        let Some(result) = self.unit.aborts.unless_aborted(told).await else {
            return;
        };
        match result.and_then(|result| result) {
            Ok(surroundings) => self.unit.set_surroundings(surroundings),
            Err(error) => {
                let lun = &self.unit.identity.borrow().name;
                tracing::debug!(lun, %error, "cannot read how the LUN is exported");
            }
        }
    }
}
