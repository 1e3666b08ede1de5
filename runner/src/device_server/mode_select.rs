//! MODE SELECT (6) and (10): SPC-4, 6.11 and 6.12.
//!
//! WCE is saved: the target core keeps it, for the next daemon too. The others are not.
//!
//! Other initiators should hear of a change by a unit attention, the one that made it should not.
//! TCMU does not tell them apart, so nobody does.

use std::io;

use futures_channel::oneshot;
use tcmu::scsi::cdb::{ModeSelect6, ParameterList10};
use tcmu::scsi::mode::{
    BlockDescriptor, D_SENSE, Header6, Header10, LONGLBA, LogicalBlockProvisioning,
    LongBlockDescriptor, PS, PageControl, SPF, SWP, WCE, page,
};
use tcmu::scsi::opcode::MODE_SELECT_10;
use tcmu::scsi::{AdditionalSense, Sense, SenseKey, Status};
use tcmu_handler::{Backstore, Buffer, Io};
use zerocopy::FromBytes;

use super::LogicalUnit;
use super::logical_unit::parse;
use super::mode_pages::ModeValues;
use super::reply::{Answer, Failure, Response};
use super::thresholds;
use super::unit::Unit;
use super::unmap::parameter_list;

/// PF: the pages have the standard's format.
const PF: u8 = 0x10;

const LENGTH_ERROR: Sense = Sense::illegal_request(AdditionalSense::PARAMETER_LIST_LENGTH_ERROR);

impl<B: Backstore> LogicalUnit<B> {
    /// Nothing changes unless the whole list is valid. When it ends with the write cache turned off,
    /// earlier writes are durable.
    pub(super) async fn mode_select(&self, io: &Io, cdb: &[u8], data: Buffer<'_>) -> Answer {
        let ten = cdb[0] == MODE_SELECT_10;
        let (flags, len) = if ten {
            let command = parse::<ParameterList10>(cdb)?;
            (command.flags, command.parameter_list_length.get().into())
        } else {
            let command = parse::<ModeSelect6>(cdb)?;
            (command.flags, usize::from(command.parameter_list_length))
        };
        if len == 0 {
            return Ok(Response::GOOD);
        }
        if flags & PF == 0 {
            return Err(Sense::invalid_cdb_field(1, Some(4)).into());
        }
        let list = parameter_list(data, len)?;
        let values = self.unit.selected(&list, ten)?;
        let before = self.unit.mode.get();
        self.set_mode(io, values)
            .await
            .map_err(|error| self.failed("a flush", &error))?;
        if values.thresholds != before.thresholds {
            self.unit.watch.restart();
        }
        if values.write_cache != before.write_cache {
            self.save_write_cache(io, values.write_cache).await?;
        }
        Ok(Response::GOOD)
    }

    /// Has the target core keep what an initiator said of the write cache. If it cannot, all is as it
    /// was before.
    async fn save_write_cache(&self, io: &Io, enabled: bool) -> Result<(), Failure> {
        let Some(core) = &self.target_core else {
            return Ok(());
        };
        let (sender, receiver) = oneshot::channel();
        core.set_write_cache(
            enabled,
            Box::new(move |result| {
                // The receiver is gone only if the command is.
                let _ = sender.send(result);
            }),
        );
        let lost = |_| Err(io::Error::other("nobody answered"));
        let Err(error) = receiver.await.unwrap_or_else(lost) else {
            return Ok(());
        };
        {
            let lun = &self.unit.identity.borrow().name;
            tracing::warn!(lun, enabled, %error, "the write cache cannot be switched");
        }
        let mode = self.unit.mode.get();
        let write_cache = !enabled;
        self.set_mode(
            io,
            ModeValues {
                write_cache,
                ..mode
            },
        )
        .await
        .map_err(|error| self.failed("a flush", &error))?;
        Err(match error.kind() {
            // Somebody changes the LUN in configfs at this moment, or the daemon is stopping.
            io::ErrorKind::ResourceBusy | io::ErrorKind::WouldBlock => Failure {
                status: Status::Busy,
                sense: None,
            },
            _ => Sense::new(
                SenseKey::HardwareError,
                AdditionalSense::INTERNAL_TARGET_FAILURE,
            )
            .into(),
        })
    }
}

impl Unit {
    /// The values after a MODE SELECT with this parameter list.
    fn selected(&self, list: &[u8], ten: bool) -> Result<ModeValues, Sense> {
        let mut at = self.check_header(list, ten)?;
        let mut values = self.mode.get();
        while at < list.len() {
            let page = &list[at..];
            let (page_code, len) = self.check_page(page, at)?;
            match page_code {
                page::CACHING => values.write_cache = page[2] & WCE != 0,
                page::CONTROL if page[0] & SPF == 0 => {
                    values.descriptor_sense = page[2] & D_SENSE != 0;
                    values.software_write_protect = page[4] & SWP != 0;
                }
                page::INFORMATIONAL_EXCEPTIONS_CONTROL if page[0] & SPF != 0 => {
                    let (page, _) = LogicalBlockProvisioning::ref_from_prefix(page)
                        .map_err(|_| LENGTH_ERROR)?;
                    values.thresholds = thresholds::selected(page);
                }
                _ => {}
            }
            at += len;
        }
        Ok(values)
    }

    /// Checks the header and block descriptor, which cannot change anything, and returns where the
    /// pages begin.
    fn check_header(&self, list: &[u8], ten: bool) -> Result<usize, Sense> {
        let (medium_type, medium_type_at, long, len, header_len) = if ten {
            let (header, _) = Header10::ref_from_prefix(list).map_err(|_| LENGTH_ERROR)?;
            let long = header.long_lba & LONGLBA != 0;
            let len = usize::from(header.block_descriptor_length.get());
            (header.medium_type, 2, long, len, size_of::<Header10>())
        } else {
            let (header, _) = Header6::ref_from_prefix(list).map_err(|_| LENGTH_ERROR)?;
            let len = usize::from(header.block_descriptor_length);
            (header.medium_type, 1, false, len, size_of::<Header6>())
        };
        if medium_type != 0 {
            return Err(Sense::invalid_parameter_field(medium_type_at, None));
        }
        let descriptor = list.get(header_len..header_len + len).ok_or(LENGTH_ERROR)?;
        self.check_block_descriptor(descriptor, long, header_len as u16)?;
        Ok(header_len + len)
    }

    /// A block descriptor has to describe the unit as it is; 0 or all ones for the number of blocks
    /// stand for "no change" (SBC-3, 6.5.2).
    fn check_block_descriptor(&self, bytes: &[u8], long: bool, at: u16) -> Result<(), Sense> {
        let (blocks, most, block_len, block_len_at) = match (long, bytes.len()) {
            (_, 0) => return Ok(()),
            (false, 8) => {
                let descriptor =
                    BlockDescriptor::ref_from_bytes(bytes).map_err(|_| LENGTH_ERROR)?;
                let most = u64::from(u32::MAX);
                (
                    descriptor.blocks.get().into(),
                    most,
                    descriptor.block_len,
                    5,
                )
            }
            (true, 16) => {
                let descriptor =
                    LongBlockDescriptor::ref_from_bytes(bytes).map_err(|_| LENGTH_ERROR)?;
                (descriptor.blocks.get(), u64::MAX, descriptor.block_len, 12)
            }
            _ => return Err(Sense::invalid_parameter_field(at - 2, None)),
        };
        if blocks != 0 && blocks != most && blocks != self.blocks() {
            return Err(Sense::invalid_parameter_field(at, None));
        }
        if block_len.get() != self.block_size() {
            return Err(Sense::invalid_parameter_field(at + block_len_at, None));
        }
        Ok(())
    }

    /// Checks the page that `bytes` begin with, which lies at byte `at` of the list: it changes
    /// nothing but what can be changed. Returns its code and length.
    fn check_page(&self, bytes: &[u8], at: usize) -> Result<(u8, usize), Sense> {
        // The list's length is a 16-bit field.
        let at = at as u16;
        let page_code = bytes[0] & !(PS | SPF);
        let (subpage, header_len) = if bytes[0] & SPF == 0 {
            (0, 2)
        } else {
            (*bytes.get(1).ok_or(LENGTH_ERROR)?, 4)
        };
        let (Some(current), Some(changeable)) = (
            self.mode_page(page_code, subpage, PageControl::Current),
            self.mode_page(page_code, subpage, PageControl::Changeable),
        ) else {
            return Err(Sense::invalid_parameter_field(at, Some(5)));
        };
        if current[0] & SPF != bytes[0] & SPF {
            return Err(Sense::invalid_parameter_field(at, Some(6)));
        }
        let header = bytes.get(..header_len).ok_or(LENGTH_ERROR)?;
        if header[1..] != current[1..header_len] {
            return Err(Sense::invalid_parameter_field(at + 1, None));
        }
        let page = bytes.get(..current.len()).ok_or(LENGTH_ERROR)?;
        let fields = page.iter().zip(&current).zip(&changeable).zip(at..);
        for (((new, old), mask), byte) in fields.skip(header_len) {
            let wrong = (new ^ old) & !mask;
            if wrong != 0 {
                let bit = 7 - wrong.leading_zeros() as u8;
                return Err(Sense::invalid_parameter_field(byte, Some(bit)));
            }
        }
        Ok((page_code, page.len()))
    }
}
