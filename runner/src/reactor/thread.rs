//! A reactor on a thread of its own.

use std::io;
use std::panic::{AssertUnwindSafe, catch_unwind};
use std::sync::Arc;
use std::sync::mpsc::channel;
use std::thread::{self, JoinHandle};

use super::blocking::BlockingPool;
use super::engine::UringEngine;
use super::message::{Mailer, Message, Notice, OnNotice};
use super::ready::ReadyQueue;
use super::turn::Reactor;
use crate::copy::Directory;
use crate::slow_log::SlowLimit;

/// A reactor's thread, seen from others.
pub(crate) struct ReactorHandle {
    mailer: Mailer,
    thread: Option<JoinHandle<()>>,
}

impl ReactorHandle {
    /// Starts reactor `number`, whose LUNs meet others in `directory`, and log commands that are slower
    /// than `slow_limit`.
    pub(crate) fn start(
        number: usize,
        pool: BlockingPool,
        on_notice: OnNotice,
        directory: Arc<Directory>,
        slow_limit: Arc<SlowLimit>,
    ) -> io::Result<Self> {
        let (messages, inbox) = channel();
        let (started, start) = channel();
        let ready = ReadyQueue::new()?;
        let mailer = Mailer::new(messages, Arc::clone(&ready));
        let (own, mail) = (ready, mailer.clone());
        let thread = thread::Builder::new()
            .name(format!("reactor-{number}"))
            .spawn(move || {
                own.adopt();
                match UringEngine::new(pool) {
                    Ok(engine) => {
                        let _ = started.send(Ok(()));
                        let mut reactor = Reactor::new(engine, own, inbox, Arc::clone(&on_notice));
                        reactor.meet(directory, mail);
                        reactor.log_slow(slow_limit);
                        // A panic here is a defect of the reactor's own, and ends it; those of
                        // backstores are caught where they are called.
                        let end = catch_unwind(AssertUnwindSafe(|| reactor.run()));
                        if !matches!(end, Ok(Ok(()))) {
                            tracing::error!(?end, "a reactor failed");
                            on_notice(Notice::Failed);
                        }
                    }
                    Err(error) => {
                        let _ = started.send(Err(error));
                    }
                }
            })?;
        start
            .recv()
            .map_err(|_| io::Error::other("a reactor's thread died at its start"))??;
        Ok(Self {
            mailer,
            thread: Some(thread),
        })
    }

    /// Hands over a message.
    pub(crate) fn send(&self, message: Message) {
        // A reactor lives until its handle is dropped.
        self.mailer.send(message);
    }
}

impl Drop for ReactorHandle {
    fn drop(&mut self) {
        self.send(Message::Stop);
        if let Some(thread) = self.thread.take() {
            // A panic was reported when it happened.
            let _ = thread.join();
        }
    }
}
