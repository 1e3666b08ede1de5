//! One logical unit: a backstore and what initiators see of it.

use std::rc::Rc;
use std::sync::Arc;
use std::task::Waker;

use tcmu::scsi::cdb::{Inquiry, StartStopUnit};
use tcmu::scsi::opcode::{INQUIRY, MAINTENANCE_IN, MAINTENANCE_OUT};
use tcmu::scsi::vpd::page::DEVICE_IDENTIFICATION;
use tcmu::scsi::{AdditionalSense, Sense, Status};
use tcmu_handler::{Backstore, Buffer, Error, Io};
use zerocopy::FromBytes;

use super::defects::{read_defect_data_10, read_defect_data_12};
use super::journal::Journal;
use super::mode_pages::ModeValues;
use super::neighbours::Neighbours;
use super::opcode::Command;
use super::progress::{self, OnlyOnce, Progress};
use super::reply::{Answer, Failure, Response};
use super::scratch::Scratch;
use super::sense_of_error;
use super::target_core::TargetCore;
use super::unit::Unit;
use super::unit_attention::Condition;
use super::{Geometry, Identity};

/// One command as it arrived.
#[derive(Clone, Copy, Debug)]
pub struct Request<'a> {
    /// The command descriptor block.
    pub cdb: &'a [u8],
    /// The memory for the command's data, out or in; empty if it has none. It is as long as the
    /// initiator said, which need not be what the CDB says.
    pub data: Buffer<'a>,
}

/// A disk: executes SCSI commands on a backstore.
///
/// It lives on one thread; any number of commands may be under way there at once. Every command
/// gets a response, whatever its bytes are.
#[derive(Debug)]
pub struct LogicalUnit<B> {
    pub(super) backstore: B,
    pub(super) unit: Unit,
    pub(super) scratch: Scratch,
    pub(super) journal: Option<Arc<dyn Journal>>,
    pub(super) neighbours: Option<Rc<dyn Neighbours>>,
    pub(super) target_core: Option<Arc<dyn TargetCore>>,
}

/// Whether what a command answers depends on how the unit is exported. Looking that up reads dozens of
/// attributes, and initiators ask for many pages of a disk that is new to them.
fn tells_of_surroundings(cdb: &[u8]) -> bool {
    match cdb.first() {
        Some(&INQUIRY) => parse::<Inquiry>(cdb)
            .is_ok_and(|command| !command.evpd() || command.page_code == DEVICE_IDENTIFICATION),
        Some(&(MAINTENANCE_IN | MAINTENANCE_OUT)) => true,
        _ => false,
    }
}

impl<B: Backstore> LogicalUnit<B> {
    /// A logical unit on `backstore`. `write_cache` is the initial WCE, LIO's
    /// `attrib/emulate_write_cache`; it counts only where the backstore has a volatile cache.
    pub fn new(backstore: B, identity: Identity, geometry: Geometry, write_cache: bool) -> Self {
        let unit = Unit::new(identity, geometry, backstore.capabilities(), write_cache);
        Self {
            backstore,
            unit,
            scratch: Scratch::default(),
            journal: None,
            neighbours: None,
            target_core: None,
        }
    }

    /// The same, with a target core to ask about ports, and to tell of changes.
    #[must_use]
    pub fn with_target_core(mut self, target_core: Arc<dyn TargetCore>) -> Self {
        self.target_core = Some(target_core);
        self
    }

    /// Has `journal` keep what is to be done when the unit is served again; `text` is what it keeps
    /// now. Without a journal, an operation that is interrupted is forgotten.
    pub fn keep_journal(&mut self, journal: Arc<dyn Journal>, text: Option<&str>) {
        self.journal = Some(journal);
        if let Some(text) = text {
            self.resume(text);
        }
    }

    /// Whether the other units know this one by `key`.
    pub(crate) fn is_known_by(&self, key: u64) -> bool {
        let neighbours = self.neighbours.as_ref();
        neighbours.is_some_and(|neighbours| neighbours.own_key() == key)
    }

    /// Lets copies reach other units.
    pub(crate) fn meet(&mut self, neighbours: Rc<dyn Neighbours>) {
        neighbours.introduce(self.unit.naa());
        self.neighbours = Some(neighbours);
    }

    /// The backstore.
    pub fn backstore(&self) -> &B {
        &self.backstore
    }

    /// Gives the backstore back.
    pub fn into_backstore(self) -> B {
        self.backstore
    }

    /// Executes one command.
    pub async fn execute(&self, io: &Io, request: Request<'_>) -> Response {
        self.execute_noting(io, request, &OnlyOnce).await
    }

    /// Executes one command that notes how far it has come, and that may have come so far already when
    /// another process executed it.
    pub async fn execute_noting(
        &self,
        io: &Io,
        request: Request<'_>,
        progress: &dyn Progress,
    ) -> Response {
        if let Some(response) = progress::end(progress) {
            return response;
        }
        match self.run(io, request, progress).await {
            Ok(response) => response,
            Err(failure) => {
                if failure.status != Status::CheckCondition {
                    // Without sense data the kernel transfers the buffer as it is.
                    progress::note_end(progress, failure.status);
                    request.data.fill(0);
                }
                failure.into()
            }
        }
    }

    async fn run(
        &self,
        io: &Io,
        Request { cdb, data }: Request<'_>,
        progress: &dyn Progress,
    ) -> Answer {
        if self.unit.features().own_type
            && let Some(answer) = Box::pin(self.ask_backstore(io, cdb, data)).await
        {
            return answer;
        }
        if tells_of_surroundings(cdb) {
            // In a box, as others below, to keep the task of a read small.
            Box::pin(self.look_around(io)).await;
        }
        let (opcode, cdb) = self.unit.admit(cdb)?;
        let command = opcode.command;
        let answer = match command {
            Command::Read => return self.read(io, cdb, data).await,
            Command::Write => {
                let answer = self.write(io, cdb, data).await;
                if self.unit.is_usage_due() {
                    Box::pin(self.watch_usage(io)).await;
                }
                return answer;
            }
            // Their futures are large and their commands rare: they take their memory when they come.
            _ => Box::pin(self.run_other(io, command, cdb, data, progress)).await,
        };
        if command.writes() && self.unit.is_usage_due() {
            Box::pin(self.watch_usage(io)).await;
        }
        if let Ok(response) = &answer
            && command.returns_nothing()
        {
            progress::note_end(progress, response.status);
            // An initiator may have asked for data all the same: the kernel then hands it the
            // buffer as it is, with what earlier commands left there. A write's buffer is not worth
            // the time: what is in it is on the medium now.
            data.fill(0);
        }
        answer
    }

    /// Executes a command that is neither a read nor a write.
    async fn run_other(
        &self,
        io: &Io,
        command: Command,
        cdb: &[u8],
        data: Buffer<'_>,
        progress: &dyn Progress,
    ) -> Answer {
        match command {
            Command::WriteAndVerify => self.write_and_verify(io, cdb, data).await,
            Command::WriteAtomic => self.write_atomic(io, cdb, data).await,
            Command::Verify => self.verify(io, cdb, data).await,
            Command::CompareAndWrite => self.compare_and_write(io, cdb, data, progress).await,
            Command::OrWrite => self.or_write(io, cdb, data).await,
            Command::PreFetch => self.prefetch(io, cdb).await,
            Command::GetLbaStatus => self.get_lba_status(io, cdb, data).await,
            Command::ReadDefectData10 => read_defect_data_10(cdb, data),
            Command::ReadDefectData12 => read_defect_data_12(cdb, data),
            Command::SynchronizeCache => self.synchronize_cache(io, cdb).await,
            Command::WriteSame => self.write_same(io, cdb, data).await,
            Command::Unmap => self.unmap(io, cdb, data).await,
            Command::FormatUnit => self.format_unit(cdb, data).await,
            Command::Sanitize => self.sanitize(io, cdb, data).await,
            Command::ExtendedCopy => self.extended_copy(io, cdb, data).await,
            Command::ReceiveCopyResults => self.unit.receive_copy_results(cdb, data),
            Command::ModeSelect => self.mode_select(io, cdb, data).await,
            Command::LogSense => self.log_sense(io, cdb, data).await,
            Command::SendDiagnostic => self.send_diagnostic(io, cdb, data).await,
            Command::SetTargetPortGroups => self.set_target_port_groups(io, cdb, data).await,
            Command::StartStopUnit => self.start_stop_unit(io, cdb).await,
            Command::TestUnitReady => Ok(Response::GOOD),
            Command::Inquiry => self.unit.inquiry(cdb, data),
            Command::RequestSense => self.unit.request_sense(cdb, data),
            Command::ModeSense => self.unit.mode_sense(cdb, data),
            Command::ReadCapacity10 => self.unit.read_capacity_10(cdb, data),
            Command::ReadCapacity16 => self.unit.read_capacity_16(cdb, data),
            Command::ReportSupportedOpcodes => self.unit.report_supported_opcodes(cdb, data),
            Command::ReportTaskManagement => self.unit.report_task_management(cdb, data),
            Command::ReportTargetPortGroups => self.unit.report_target_port_groups(cdb, data),
            Command::ReceiveDiagnostic => self.unit.receive_diagnostic(cdb, data),
            // The first two do not come here, and the target core answers the others.
            Command::Read | Command::Write | Command::Kernel => {
                let code = AdditionalSense::INVALID_COMMAND_OPERATION_CODE;
                Err(Sense::illegal_request(code).into())
            }
        }
    }

    /// The command that the task of `waker` executes was aborted. It is carried out all the same,
    /// unless it only waits for what goes on without it; say [`ended`](Self::ended) when it has ended.
    pub fn abort(&self, waker: &Waker) {
        self.unit.aborts.abort(waker);
    }

    /// The task of `waker` has ended the command that was aborted.
    pub fn ended(&self, waker: &Waker) {
        self.unit.aborts.ended(waker);
    }

    /// A logical unit reset (SAM-5, 6.3.3): mode parameters have their default values again, except
    /// for the write cache, whose value the target core saves.
    pub fn reset(&self) {
        let write_cache = self.unit.mode.get().write_cache;
        self.unit.mode.set(ModeValues {
            write_cache,
            ..self.unit.default_mode
        });
        self.unit.copies.clear();
    }

    /// Whether sense data are to have the descriptor format (D_SENSE in the Control mode page).
    pub fn descriptor_sense(&self) -> bool {
        self.unit.mode.get().descriptor_sense
    }

    /// Whether writes may complete before they are durable (WCE in the Caching mode page).
    pub fn write_cache(&self) -> bool {
        self.unit.write_cache()
    }

    /// Turns the write cache on or off, from outside of SCSI. When it returns `Ok` with the cache
    /// off, all earlier writes are durable.
    ///
    /// # Errors
    /// The backstore's, if what it had cached could not be made durable; the cache stays on then.
    pub async fn set_write_cache(&self, io: &Io, enabled: bool) -> Result<(), Error> {
        let before = self.unit.write_cache();
        let mode = self.unit.mode.get();
        let write_cache = enabled;
        self.set_mode(
            io,
            ModeValues {
                write_cache,
                ..mode
            },
        )
        .await?;
        if self.unit.write_cache() != before {
            self.unit.attention.establish(Condition::ModeParameters);
        }
        Ok(())
    }

    /// Puts mode values into force. Writes that are under way look at WCE again when they end, so
    /// that the flush here need only cover those that have ended. If it fails, WCE stays on.
    pub(super) async fn set_mode(&self, io: &Io, values: ModeValues) -> Result<(), Error> {
        let before = self.unit.write_cache();
        self.unit.mode.set(values);
        if before
            && !self.unit.write_cache()
            && let Err(error) = self.backstore.flush(io).await
        {
            // Other values may have changed during the flush.
            let mode = self.unit.mode.get();
            let write_cache = true;
            self.unit.mode.set(ModeValues {
                write_cache,
                ..mode
            });
            return Err(error);
        }
        Ok(())
    }

    /// The LUN now has `size` bytes; the backstore is asked anew what it does. Call it after
    /// [`Backstore::resize`].
    pub fn set_size(&self, size: u64) {
        self.unit.resize(size, self.backstore.capabilities());
    }

    /// The image had `known` bytes, and somebody else has given it another size. Where the LUN was as
    /// large as the image, or is larger than it now, it gets that size. Returns the LUN's new size in
    /// bytes, if it has one.
    pub(crate) async fn follow_image(&self, io: &Io, known: u64) -> Option<u64> {
        let image = self.unit.in_blocks(self.backstore.capabilities().size);
        let before = self.unit.blocks();
        let follows = before >= self.unit.in_blocks(known) || image < before;
        let blocks = if follows { image } else { before };
        // Also where the LUN stays as it is: it can be given more now.
        let size = blocks * u64::from(self.unit.block_size());
        self.set_size(size);
        if blocks == before {
            return None;
        }
        let lun = self.unit.identity.borrow().name.clone();
        tracing::info!(lun, size, "the image's size has changed: the LUN follows");
        if let Some(core) = self.target_core.clone() {
            let noted = io.blocking(move || core.note_size(size)).await;
            if let Err(error) = noted.and_then(|noted| noted) {
                tracing::warn!(lun, %error, "the kernel does not know the LUN's new size: set it with tcmuctl resize");
            }
        }
        Some(size)
    }

    /// Initiators are told that the unit has another medium, and another capacity if that is so.
    /// Call it before the first command.
    pub fn announce_medium(&self, other_capacity: bool) {
        self.unit.attention.establish(Condition::BecameReady);
        if other_capacity {
            self.unit.attention.establish(Condition::Capacity);
        }
    }

    /// Gives the logical unit other names.
    pub fn set_identity(&self, identity: Identity) {
        self.unit.set_identity(identity);
        if let Some(neighbours) = &self.neighbours {
            neighbours.introduce(self.unit.naa());
        }
    }

    /// Whether the target core serves reservations for this LUN, which is the default. It only changes
    /// what REPORT SUPPORTED OPERATION CODES says.
    pub fn set_reservations(&self, served: bool) {
        self.unit.set_reservations(served);
    }

    /// START STOP UNIT (SBC-3, 5.20). Stopping makes the data durable, but the unit stays ready: one
    /// initiator that shuts down must not take the LUN from the others.
    async fn start_stop_unit(&self, io: &Io, cdb: &[u8]) -> Answer {
        const NO_FLUSH: u8 = 0x04;
        const START: u8 = 0x01;
        let command = parse::<StartStopUnit>(cdb)?;
        if command.action & (START | NO_FLUSH) == 0 {
            self.flush(io).await?;
        }
        Ok(Response::GOOD)
    }

    /// Makes all completed writes durable.
    pub(super) async fn flush(&self, io: &Io) -> Result<(), Failure> {
        if !self.unit.capabilities().volatile_cache {
            return Ok(());
        }
        self.backstore
            .flush(io)
            .await
            .map_err(|error| self.failed("a flush", &error))
    }

    /// What an initiator hears of `error`, which the log hears of too.
    pub(super) fn failed(&self, action: &str, error: &Error) -> Failure {
        let identity = self.unit.identity.borrow();
        self.unit.errors.report(&identity.name, action, error);
        sense_of_error::failure(error.kind())
    }
}

/// The fields of a CDB. The opcode table has checked its length; the error is for the compiler.
pub(super) fn parse<T>(cdb: &[u8]) -> Result<&T, Sense>
where
    T: FromBytes + zerocopy::KnownLayout + zerocopy::Immutable + zerocopy::Unaligned,
{
    T::ref_from_bytes(cdb).map_err(|_| Sense::invalid_cdb_field(0, None))
}
