//! The unit's background: runs FORMAT UNIT and SANITIZE in bounded pieces.

use std::io;
use std::sync::Arc;

use tcmu::scsi::{AdditionalSense, Sense, SenseKey};
use tcmu_handler::{
    Backstore, Error, ErrorKind, Extent, Io, OwnedBuffer, WriteFlags, ZeroFlags, yield_now,
};

use super::LogicalUnit;
use super::operation::{Operation, Run, Stage};
use super::reply::{Answer, Response, TASK_ABORTED};
use super::unit::Unit;

/// The memory in bytes that patterns are written from, unless a block is larger.
const WRITE_PIECE: u64 = 1 << 20;
/// How many bytes a backstore is asked to zero at once: as long as one such request takes, the unit
/// cannot be taken down.
const ZERO_PIECE: u64 = 64 << 20;

impl<B: Backstore> LogicalUnit<B> {
    /// Whether a command has left work that [`background`](Self::background) is to do.
    pub fn has_background(&self) -> bool {
        self.unit.operations.pending.borrow().is_some()
    }

    /// Does the work that commands have left: FORMAT UNIT and SANITIZE, which end only when this
    /// has done them. Whoever calls [`execute`](Self::execute) looks at
    /// [`has_background`](Self::has_background) afterwards, and runs this beside other commands.
    ///
    /// An operation whose background is dropped before its end has failed.
    pub async fn background(&self, io: &Io) {
        loop {
            let next = self.unit.operations.pending.take();
            match next {
                Some(run) => self.perform(io, &run).await,
                None => return,
            }
        }
    }

    /// Has [`background`](Self::background) end soon: an operation that is under way stays in the
    /// journal, and starts again when the unit is served again.
    pub fn stop_background(&self) {
        self.unit.operations.stopping.set(true);
    }

    /// Starts an operation and waits for its end or, with IMMED, until it is certain to run.
    pub(super) async fn start_operation(&self, operation: Operation, immediate: bool) -> Answer {
        let run = Run::new(operation);
        let not_ready = run.operation.in_progress(0);
        self.unit.not_ready.set(Some(not_ready));
        self.unit.operations.pending.replace(Some(run.clone()));
        let begun = run.wait(true).await;
        let ended = if begun == Stage::Running && !immediate {
            // An aborted command ends; the operation goes on, and the unit is not ready before its end
            // (SBC-3, 4.11.2).
            let ended = self.unit.aborts.unless_aborted(run.wait(false)).await;
            ended.ok_or(TASK_ABORTED)?
        } else {
            begun
        };
        match ended {
            Stage::Succeeded | Stage::Running => Ok(Response::GOOD),
            Stage::Failed => Err(run.operation.failure().into()),
            Stage::Interrupted => Err(self.unit.not_ready.get().unwrap_or(not_ready).into()),
            Stage::Refused | Stage::Starting => Err(Sense::new(
                SenseKey::HardwareError,
                AdditionalSense::INTERNAL_TARGET_FAILURE,
            )
            .into()),
        }
    }

    /// Takes up what the journal's `text` says was under way or had failed.
    pub(super) fn resume(&self, text: &str) {
        let name = self.unit.identity.borrow().name.clone();
        let block_size = self.unit.block_size() as usize;
        let operation = toml::from_str::<Operation>(text)
            .ok()
            .filter(|operation| (1..=31).contains(&operation.passes))
            .filter(|operation| {
                let pattern = operation.pattern.as_ref();
                pattern.is_none_or(|pattern| pattern.len() <= block_size)
            });
        let Some(operation) = operation else {
            tracing::error!(
                lun = name,
                text,
                "the journal is not understood; passed over"
            );
            return;
        };
        if operation.failed {
            tracing::warn!(lun = name, method = ?operation.method, "the last operation on all of the medium failed");
            self.unit.not_ready.set(Some(operation.aftermath()));
            self.unit.operations.failed.replace(Some(operation));
        } else {
            tracing::warn!(lun = name, method = ?operation.method, "an operation on all of the medium was interrupted; starting again");
            self.unit.not_ready.set(Some(operation.in_progress(0)));
            let run = Run::new(operation);
            self.unit.operations.pending.replace(Some(run));
        }
    }

    async fn perform(&self, io: &Io, run: &Run) {
        let name = self.unit.identity.borrow().name.clone();
        let operation = &run.operation;
        // What failed before stays in the journal until this is there in its place.
        let earlier = self.unit.operations.failed.take();
        if let Err(error) = self.note(io, Some(operation)).await {
            tracing::error!(lun = name, %error, method = ?operation.method, "refused: the journal cannot be written");
            self.unit
                .not_ready
                .set(earlier.as_ref().map(Operation::aftermath));
            self.unit.operations.failed.replace(earlier);
            return run.enter(Stage::Refused);
        }
        tracing::info!(lun = name, method = ?operation.method, passes = operation.passes, "started");
        run.enter(Stage::Running);
        let mut ending = Ending {
            unit: &self.unit,
            run,
            stage: Stage::Failed,
        };
        // Commands that were let in before it end first.
        let whole = Extent {
            offset: 0,
            len: u64::MAX,
        };
        let _range = self.unit.ranges.exclusive(whole).await;
        match self.write_every_block(io, operation).await {
            Ok(true) => {
                // At worst it runs once more after the next start.
                if let Err(error) = self.note(io, None).await {
                    tracing::error!(lun = name, %error, "the journal cannot be cleared");
                }
                tracing::info!(lun = name, method = ?operation.method, "done");
                ending.stage = Stage::Succeeded;
            }
            Ok(false) => {
                tracing::info!(lun = name, method = ?operation.method, "interrupted; it starts again with the LUN");
                ending.stage = Stage::Interrupted;
            }
            Err(error) => {
                tracing::error!(lun = name, method = ?operation.method, %error, "failed");
                let failed = Operation {
                    failed: true,
                    ..operation.clone()
                };
                if let Err(error) = self.note(io, Some(&failed)).await {
                    tracing::error!(lun = name, %error, "the journal cannot be written");
                }
            }
        }
    }

    /// Has the journal keep `operation`, or nothing.
    pub(super) async fn note(&self, io: &Io, operation: Option<&Operation>) -> io::Result<()> {
        let Some(journal) = self.journal.as_ref().map(Arc::clone) else {
            return Ok(());
        };
        let text = operation
            .map(toml::to_string)
            .transpose()
            .map_err(io::Error::other)?;
        io.blocking(move || journal.store(text.as_deref())).await?
    }

    /// All passes, each made durable before the next. Says whether it came to the end.
    async fn write_every_block(&self, io: &Io, operation: &Operation) -> Result<bool, Error> {
        let block_size = self.unit.block_size() as usize;
        let mut memory = None;
        for pass in 0..operation.passes {
            let pattern = operation.block(pass, block_size);
            if let Some(pattern) = &pattern {
                fill(memory_of(io, &mut memory, block_size)?, pattern);
            }
            let mut offset = 0;
            loop {
                // The unit may be resized meanwhile.
                let end = self.unit.blocks() * block_size as u64;
                let progress = progress(pass, operation.passes, offset, end);
                self.unit
                    .not_ready
                    .set(Some(operation.in_progress(progress)));
                if offset >= end {
                    break;
                }
                if self.unit.operations.stopping.get() {
                    return Ok(false);
                }
                let len = match &pattern {
                    Some(_) => WRITE_PIECE.max(block_size as u64),
                    None => ZERO_PIECE,
                };
                let len = len.min(end - offset);
                let extent = Extent { offset, len };
                match &pattern {
                    Some(_) => {
                        let memory = memory_of(io, &mut memory, block_size)?;
                        self.write_from(io, memory, extent).await?;
                    }
                    None => self.zero(io, &mut memory, extent).await?,
                }
                offset += len;
                yield_now().await;
            }
            if self.unit.capabilities().volatile_cache {
                self.backstore.flush(io).await?;
            }
        }
        Ok(true)
    }

    /// Makes a range read as zeroes and gives its storage back where the backstore does both;
    /// otherwise writes zeroes.
    async fn zero(
        &self,
        io: &Io,
        memory: &mut Option<OwnedBuffer>,
        extent: Extent,
    ) -> Result<(), Error> {
        let capabilities = self.unit.capabilities();
        if capabilities.write_zeroes {
            let flags = ZeroFlags {
                fua: false,
                may_unmap: capabilities.unmap.is_some(),
            };
            match self.backstore.write_zeroes(io, extent, flags).await {
                // Found out only when it was tried.
                Err(error) if error.kind() == ErrorKind::Unsupported => {}
                result => return result,
            }
        }
        let fresh = memory.is_none();
        let memory = memory_of(io, memory, self.unit.block_size() as usize)?;
        if fresh {
            memory.view().fill(0);
        }
        self.write_from(io, memory, extent).await
    }

    /// Fills a range with what is in `memory`, again and again.
    async fn write_from(&self, io: &Io, memory: &OwnedBuffer, extent: Extent) -> Result<(), Error> {
        let piece = memory.view().len() as u64;
        let mut offset = extent.offset;
        while offset < extent.end() {
            let len = piece.min(extent.end() - offset);
            let part = memory
                .view()
                .slice(0..len as usize)
                .map_err(|error| Error::new(ErrorKind::Internal, error.to_string()))?;
            self.backstore
                .write(io, part, offset, WriteFlags::default())
                .await?;
            offset += len;
            yield_now().await;
        }
        Ok(())
    }
}

/// Says how an operation ended, also if the backstore panicked.
struct Ending<'a> {
    unit: &'a Unit,
    run: &'a Run,
    stage: Stage,
}

impl Drop for Ending<'_> {
    fn drop(&mut self) {
        match self.stage {
            Stage::Succeeded => self.unit.not_ready.set(None),
            Stage::Failed => {
                let operation = self.run.operation.clone();
                self.unit.not_ready.set(Some(operation.aftermath()));
                self.unit.operations.failed.replace(Some(operation));
            }
            _ => {}
        }
        self.run.enter(self.stage);
    }
}

/// The memory that is written from: whole blocks, made when it is needed first.
fn memory_of<'a>(
    io: &Io,
    memory: &'a mut Option<OwnedBuffer>,
    block_size: usize,
) -> Result<&'a OwnedBuffer, Error> {
    match memory {
        Some(memory) => Ok(memory),
        none => {
            let len = (WRITE_PIECE as usize).max(block_size);
            let fresh = io
                .allocate(len)
                .map_err(|error| Error::os("memory for a pattern", error))?;
            Ok(none.insert(fresh))
        }
    }
}

/// Fills memory with repetitions of a block.
fn fill(memory: &OwnedBuffer, block: &[u8]) {
    let view = memory.view();
    for at in (0..view.len()).step_by(block.len()) {
        view.copy_from(at, block);
    }
}

/// How much is done, in 65536ths.
fn progress(pass: u8, passes: u8, offset: u64, end: u64) -> u16 {
    let all = u128::from(passes) * u128::from(end);
    let done = u128::from(pass) * u128::from(end) + u128::from(offset.min(end));
    let progress = (done << 16).checked_div(all).unwrap_or(0);
    u16::try_from(progress).unwrap_or(u16::MAX)
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn progress_counts_all_passes_of_the_largest_units() {
        assert_eq!(progress(0, 1, 0, 1 << 60), 0);
        assert_eq!(progress(0, 1, 1 << 59, 1 << 60), 0x8000);
        assert_eq!(progress(1, 4, 1 << 63, u64::MAX), 0x6000);
        assert_eq!(progress(30, 31, u64::MAX, u64::MAX), u16::MAX);
        assert_eq!(progress(0, 1, 0, 0), 0);
    }
}
