//! All LUNs of a runner, by the names that copies call them.

use std::collections::HashSet;
use std::fmt;
use std::path::PathBuf;
use std::sync::{Arc, Mutex, MutexGuard, PoisonError};

use futures_channel::oneshot;
use tcmu_handler::Io;

use super::access::Access;
use crate::device_server::{CopyFailure, CopyRequest, CopyResult, Local, Neighbour, Neighbours};
use crate::reactor::{LunId, Mailer, Message};

/// A request for a LUN of some reactor, and whom to answer.
pub(crate) struct RemoteCopy {
    pub(crate) request: CopyRequest,
    pub(crate) answer: oneshot::Sender<CopyResult>,
}

/// The LUNs that copies can reach, and who may reach them.
#[derive(Debug)]
pub struct Directory {
    access: Box<dyn Access>,
    entries: Mutex<Entries>,
}

#[derive(Debug, Default)]
struct Entries {
    next: u64,
    list: Vec<Entry>,
    /// LUNs that are going to be served.
    expected: HashSet<LunId>,
    /// Whoever waits for news of those.
    curious: Vec<oneshot::Sender<()>>,
}

#[derive(Debug)]
struct Entry {
    key: u64,
    designator: Option<[u8; 16]>,
    folder: PathBuf,
    port: Port,
}

impl Directory {
    /// An empty directory, in which `access` decides who may reach whom.
    pub fn new(access: impl Access) -> Arc<Self> {
        Arc::new(Self {
            access: Box::new(access),
            entries: Mutex::default(),
        })
    }

    /// Makes a LUN reachable as long as what is returned lives.
    pub(crate) fn join(self: &Arc<Self>, folder: PathBuf, id: LunId, mailer: Mailer) -> Member {
        let mut entries = self.entries();
        let key = entries.next;
        entries.next += 1;
        entries.list.push(Entry {
            key,
            designator: None,
            folder: folder.clone(),
            port: Port { id, key, mailer },
        });
        Member {
            directory: Arc::clone(self),
            key,
            folder,
        }
    }

    /// A LUN is going to be served: copies wait for it, as initiators do.
    pub(crate) fn expect(&self, id: LunId) {
        self.entries().expected.insert(id);
    }

    /// A LUN is served by now, or is not going to be.
    pub(crate) fn settle(&self, id: LunId) {
        let mut entries = self.entries();
        entries.expected.remove(&id);
        for curious in entries.curious.drain(..) {
            // Whoever has given up waiting does not hear it.
            let _ = curious.send(());
        }
    }

    fn entries(&self) -> MutexGuard<'_, Entries> {
        self.entries.lock().unwrap_or_else(PoisonError::into_inner)
    }

    /// The one LUN other than `key` with this designator. Two that have the same are a mistake of
    /// whoever set them up; which one is meant cannot be told.
    fn only(&self, key: u64, designator: [u8; 16]) -> Found {
        let mut entries = self.entries();
        let mut found = entries
            .list
            .iter()
            .filter(|entry| entry.key != key && entry.designator == Some(designator));
        let Some(first) = found.next() else {
            if entries.expected.is_empty() {
                return Found::Nothing;
            }
            let (news, told) = oneshot::channel();
            entries.curious.push(news);
            return Found::NotYet(told);
        };
        if found.next().is_some() {
            tracing::warn!(
                lun = %first.folder.display(),
                "a copy was refused: several LUNs have the same serial number"
            );
            return Found::Nothing;
        }
        Found::Lun(first.port.clone(), first.folder.clone())
    }
}

/// What a look into the directory brings.
enum Found {
    Lun(Port, PathBuf),
    /// It may be one of those that are going to be served: look again when there is news.
    NotYet(oneshot::Receiver<()>),
    Nothing,
}

/// A LUN's membership in the directory.
pub(crate) struct Member {
    directory: Arc<Directory>,
    key: u64,
    folder: PathBuf,
}

impl Neighbours for Member {
    fn own_key(&self) -> u64 {
        self.key
    }

    fn introduce(&self, designator: Option<[u8; 16]>) {
        let mut entries = self.directory.entries();
        if let Some(entry) = entries.list.iter_mut().find(|entry| entry.key == self.key) {
            entry.designator = designator;
        }
    }

    fn find<'a>(
        &'a self,
        io: &'a Io,
        designator: [u8; 16],
        for_writing: bool,
    ) -> Local<'a, Option<Box<dyn Neighbour>>> {
        Box::pin(async move {
            let (port, other) = loop {
                match self.directory.only(self.key, designator) {
                    Found::Lun(port, folder) => break (port, folder),
                    Found::NotYet(news) => {
                        // News, or the end of whoever tells it.
                        let _ = news.await;
                    }
                    Found::Nothing => return None,
                }
            };
            let directory = Arc::clone(&self.directory);
            let own = self.folder.clone();
            let allowed = io
                .blocking(move || directory.access.allows(&own, &other, for_writing))
                .await
                .unwrap_or(false);
            allowed.then(|| Box::new(port) as Box<dyn Neighbour>)
        })
    }
}

impl Drop for Member {
    fn drop(&mut self) {
        let mut entries = self.directory.entries();
        entries.list.retain(|entry| entry.key != self.key);
    }
}

impl fmt::Debug for Member {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        f.debug_struct("Member")
            .field("folder", &self.folder)
            .finish_non_exhaustive()
    }
}

/// The way to a LUN on its reactor.
#[derive(Clone, Debug)]
struct Port {
    id: LunId,
    /// Who the LUN is: its number may pass to another.
    key: u64,
    mailer: Mailer,
}

impl Neighbour for Port {
    fn ask(&self, request: CopyRequest) -> Local<'static, CopyResult> {
        let (answer, answered) = oneshot::channel();
        self.mailer.send(Message::Copy {
            id: self.id,
            key: self.key,
            copy: RemoteCopy { request, answer },
        });
        Box::pin(async move {
            // A reactor or LUN that has gone drops the request.
            answered.await.unwrap_or(Err(CopyFailure::gone()))
        })
    }
}

#[cfg(test)]
mod tests {
    use std::path::Path;

    use super::*;

    #[derive(Debug)]
    struct Anybody;

    impl Access for Anybody {
        fn allows(&self, _: &Path, _: &Path, _: bool) -> bool {
            true
        }
    }

    #[test]
    fn a_lun_that_is_expected_may_still_come() {
        let directory = Directory::new(Anybody);
        let look = || directory.only(0, [7; 16]);
        assert!(matches!(look(), Found::Nothing));
        directory.expect(3);
        directory.expect(4);
        for id in [3, 4] {
            let Found::NotYet(mut news) = look() else {
                panic!("LUN {id} is not expected")
            };
            assert_eq!(news.try_recv(), Ok(None));
            directory.settle(id);
            assert_eq!(news.try_recv(), Ok(Some(())));
        }
        assert!(matches!(look(), Found::Nothing));
    }
}
