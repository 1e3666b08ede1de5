//! Devices that are no disks: their backstores answer the commands of their type.

use tcmu::scsi::{AdditionalSense, Sense, SenseKey, Status};
use tcmu_handler::{Backstore, Buffer, CdbAnswer, Io};

use super::LogicalUnit;
use super::reply::{Answer, Failure, supplied};

impl<B: Backstore> LogicalUnit<B> {
    /// The backstore's answer, if it has one.
    pub(super) async fn ask_backstore(
        &self,
        io: &Io,
        cdb: &[u8],
        data: Buffer<'_>,
    ) -> Option<Answer> {
        Some(match self.backstore.handle_cdb(io, cdb, data).await? {
            CdbAnswer::Good { supplied: len } => Ok(supplied(data, len)),
            CdbAnswer::CheckCondition { key, asc, ascq } => {
                let code = AdditionalSense { asc, ascq };
                Err(match SenseKey::from_bits(key) {
                    Some(key) => Sense::new(key, code).into(),
                    None => internal_failure(),
                })
            }
            CdbAnswer::Busy => Err(Failure {
                status: Status::Busy,
                sense: None,
            }),
        })
    }
}

fn internal_failure() -> Failure {
    let code = AdditionalSense::INTERNAL_TARGET_FAILURE;
    Sense::new(SenseKey::HardwareError, code).into()
}
