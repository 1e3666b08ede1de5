//! Random requests to an image, many at once, compared with a model.

use std::rc::Rc;

use tcmu_handler::testing::{Random, Together, UnorderedEngine, buffer, contents, scattered};
use tcmu_handler::{Backstore, Error, Extent, Io, WriteFlags, ZeroFlags};

use super::model::{Placed, Ran, Request, request};

/// How a workload is made.
#[derive(Clone, Copy, Debug)]
pub(super) struct Workload {
    pub(super) seed: u64,
    pub(super) depth: usize,
    pub(super) requests: usize,
    /// Bytes of the longest request.
    pub(super) longest: u64,
}

/// What became of a workload.
pub(super) struct Outcome {
    pub(super) history: Vec<Ran>,
    /// The requests that failed.
    pub(super) errors: Vec<(Placed, Error)>,
}

/// Sends random requests; none overlaps another that runs. `model` is the disk before, and after.
///
/// # Panics
/// Where the image returns other bytes than the model has. After a failed request its bytes are
/// whatever the image shows, and are not compared.
pub(super) fn run(
    engine: &Rc<UnorderedEngine>,
    image: &impl Backstore,
    model: &mut [u8],
    workload: Workload,
) -> Outcome {
    let io = engine.io();
    let mut random = Random::new(workload.seed);
    let mut together = Together::new(engine);
    let mut running: Vec<(usize, Placed)> = Vec::new();
    let mut outcome = Outcome {
        history: Vec::new(),
        errors: Vec::new(),
    };
    let mut unknown: Vec<Placed> = Vec::new();
    let mut left = workload.requests;
    loop {
        while left > 0 && together.len() < workload.depth {
            left -= 1;
            let tag = left as u64 + 1 + (workload.seed << 32);
            let placed = request(&mut random, model.len() as u64, workload.longest, tag);
            if running.iter().any(|(_, other)| other.overlaps(&placed)) {
                continue;
            }
            let number = outcome.history.len();
            outcome.history.push(Ran {
                placed,
                started: engine.position(),
                ended: None,
            });
            running.push((number, placed));
            let io = io.clone();
            let piece = 512 * (1 + random.below(9)) as usize;
            together.add(async move { (number, execute(&io, image, placed, piece).await) });
        }
        let Some((number, result)) = together.finish_one() else {
            return outcome;
        };
        running.retain(|(other, _)| *other != number);
        let Placed { offset, len, .. } = outcome.history[number].placed;
        let placed = outcome.history[number].placed;
        let place = offset as usize..(offset + len) as usize;
        match (result, placed.request) {
            (Ok(Some(bytes)), _) => {
                let known = !unknown.iter().any(|other| other.overlaps(&placed));
                if let Some(at) = bytes.iter().zip(&model[place]).position(|(a, b)| a != b)
                    && known
                {
                    panic!("{workload:?}: request {number}, {placed:?}: byte {at} differs");
                }
            }
            (Ok(None), Request::Flush) => {}
            (Ok(None), _) => model[place].copy_from_slice(&placed.bytes()),
            (Err(error), _) => {
                if !matches!(placed.request, Request::Read | Request::Flush) {
                    unknown.push(placed);
                }
                outcome.errors.push((placed, error));
                continue;
            }
        }
        outcome.history[number].ended = Some(engine.position());
    }
}

/// As [`run`], of which nothing may fail; then reads the whole disk, and closes the image. Returns what
/// was done.
pub(super) fn run_through(image: impl Backstore, model: &mut [u8], workload: Workload) -> Vec<Ran> {
    let engine = UnorderedEngine::repeatable(workload.seed);
    let outcome = run(&engine, &image, model, workload);
    assert!(outcome.errors.is_empty(), "{:?}", outcome.errors);
    // Also what no request has read.
    let shown = read_all(&engine, &image).unwrap();
    assert!(shown == model, "{workload:?}: the disk holds other bytes");
    close(&engine, &image).unwrap();
    outcome.history
}

/// Sends one request; a read returns its bytes.
async fn execute(
    io: &Io,
    image: &impl Backstore,
    placed: Placed,
    piece: usize,
) -> Result<Option<Vec<u8>>, Error> {
    let Placed {
        request,
        offset,
        len,
    } = placed;
    let extent = Extent { offset, len };
    match request {
        Request::Read => {
            let target = buffer(len as usize);
            target.view().fill(0xee);
            image.read(io, target.view(), offset).await?;
            return Ok(Some(contents(&target)));
        }
        Request::Write { fua, .. } => {
            let source = scattered(&placed.bytes(), piece);
            let flags = WriteFlags { fua };
            image.write(io, source.view(), offset, flags).await?;
        }
        Request::Zero { may_unmap, fua } => {
            let flags = ZeroFlags { fua, may_unmap };
            image.write_zeroes(io, extent, flags).await?;
        }
        Request::Unmap => image.unmap(io, extent).await?,
        Request::Flush => image.flush(io).await?,
    }
    Ok(None)
}

/// Reads the whole disk.
pub(super) fn read_all(
    engine: &Rc<UnorderedEngine>,
    image: &impl Backstore,
) -> Result<Vec<u8>, Error> {
    let io = engine.io();
    let size = image.capabilities().size as usize;
    let mut all = Vec::with_capacity(size);
    while all.len() < size {
        let target = buffer((size - all.len()).min(1 << 20));
        engine.run(image.read(&io, target.view(), all.len() as u64))?;
        all.extend(contents(&target));
    }
    Ok(all)
}

/// Closes an image.
pub(super) fn close(engine: &Rc<UnorderedEngine>, image: &impl Backstore) -> Result<(), Error> {
    let io = engine.io();
    engine.run(image.close(&io))
}
