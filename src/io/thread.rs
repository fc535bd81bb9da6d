//! The thread: started with all signals blocked, stopped within a second.

use std::net::SocketAddr;
use std::os::fd::RawFd;
use std::panic::AssertUnwindSafe;
use std::sync::Arc;
use std::sync::atomic::{AtomicBool, Ordering};
use std::sync::mpsc as std_mpsc;
use std::thread::JoinHandle;
use std::time::Duration;

use tokio::sync::{mpsc, oneshot};

use crate::api::{Command, Event, Full, Level, Settings};
use crate::engine::Engine;
use crate::hooks::Hooks;
use crate::listener::{Listener, Replies};
use crate::mailbox::Mailbox;
use crate::signals::Blocked;

/// Room for commands that are not jobs, beyond the jobs' own bound.
const CONTROL_COMMANDS: usize = 1024;
/// What blocking helpers (name lookup, parsing) get to end at a stop.
const HELPERS_END: Duration = Duration::from_millis(200);
/// What the whole stop may take before the thread is left behind.
const STOP: Duration = Duration::from_secs(1);

/// The I/O thread. Dropping it stops it: requests on the wire are cut off,
/// their jobs are never answered.
pub struct IoThread {
    commands: mpsc::Sender<Command>,
    mailbox: Arc<Mailbox>,
    alive: Arc<AtomicBool>,
    max_outstanding: usize,
    listen_addr: Option<SocketAddr>,
    stop: Option<oneshot::Sender<()>>,
    ended: std_mpsc::Receiver<()>,
    handle: Option<JoinHandle<()>>,
}

impl IoThread {
    /// Binds the listener, if any, and starts the thread. The thread and all
    /// that it spawns take no signals.
    ///
    /// # Errors
    /// The listener's address is not a loopback address or cannot be bound, or
    /// the system refuses a thread or a socket pair.
    pub fn start(settings: Settings) -> std::io::Result<Self> {
        let mailbox = Arc::new(Mailbox::new(settings.max_waiting_bytes)?);
        let replies = Arc::new(Replies::default());
        let hooks = Arc::new(Hooks::default());
        let listener = settings
            .listener
            .clone()
            .map(|l| {
                let (mailbox, replies) = (Arc::clone(&mailbox), Arc::clone(&replies));
                Listener::bind(l, mailbox, replies, Arc::clone(&hooks))
            })
            .transpose()?;
        let listen_addr = listener.as_ref().map(Listener::addr);
        let max_outstanding = settings.max_outstanding;
        let (commands, receiver) = mpsc::channel(max_outstanding + CONTROL_COMMANDS);
        let (stop, stopped) = oneshot::channel();
        let (end, ended) = std_mpsc::channel();
        let alive = Arc::new(AtomicBool::new(true));
        let engine = Engine::new(Arc::new(settings), Arc::clone(&mailbox), replies, hooks);
        let body = {
            let (mailbox, alive) = (Arc::clone(&mailbox), Arc::clone(&alive));
            move || {
                let run = AssertUnwindSafe(|| run(engine, listener, receiver, stopped));
                let failure = match std::panic::catch_unwind(run) {
                    Ok(Ok(())) => None,
                    Ok(Err(e)) => Some(format!("the I/O thread could not start: {e}")),
                    Err(_) => Some("the I/O thread panicked".to_string()),
                };
                alive.store(false, Ordering::Release);
                if let Some(message) = failure {
                    mailbox.note(Level::Warning, message);
                }
                mailbox.wake();
                // Nobody listens when the stop took too long.
                let _ = end.send(());
            }
        };
        let handle = {
            let _blocked = Blocked::all()?;
            std::thread::Builder::new()
                .name("crm-io".into())
                .spawn(body)?
        };
        Ok(Self {
            commands,
            mailbox,
            alive,
            max_outstanding,
            listen_addr,
            stop: Some(stop),
            ended,
            handle: Some(handle),
        })
    }

    /// Readable while events wait. It turns quiet when [`Self::try_recv`]
    /// returns `None`. Do not read from it.
    pub fn wake_fd(&self) -> RawFd {
        self.mailbox.fd()
    }

    /// Where the listener listens, with the port that the system chose.
    pub fn listen_addr(&self) -> Option<SocketAddr> {
        self.listen_addr
    }

    /// Hands in a command.
    ///
    /// # Errors
    /// Gives the command back if too much is outstanding: take events first.
    /// Also when the thread is gone: see [`Self::alive`].
    #[expect(
        clippy::result_large_err,
        reason = "the caller keeps the command and submits it again"
    )]
    pub fn submit(&self, command: Command) -> Result<(), Full<Command>> {
        let is_job = matches!(
            command,
            Command::Call { .. } | Command::Fetch { .. } | Command::Push { .. }
        );
        if is_job && !self.mailbox.reserve(self.max_outstanding) {
            return Err(Full(command));
        }
        self.commands.try_send(command).map_err(|e| {
            if is_job {
                self.mailbox.unreserve();
            }
            Full(e.into_inner())
        })
    }

    /// The next event, if one waits. Never blocks.
    pub fn try_recv(&self) -> Option<Event> {
        self.mailbox.take()
    }

    /// Whether the thread runs. If not, start another one.
    pub fn alive(&self) -> bool {
        self.alive.load(Ordering::Acquire)
    }
}

impl Drop for IoThread {
    fn drop(&mut self) {
        drop(self.stop.take());
        let ended = self.ended.recv_timeout(STOP).is_ok();
        if let (true, Some(handle)) = (ended, self.handle.take()) {
            // Its panic was caught and reported.
            let _ = handle.join();
        }
    }
}

fn run(
    engine: Engine,
    listener: Option<Listener>,
    commands: mpsc::Receiver<Command>,
    stop: oneshot::Receiver<()>,
) -> std::io::Result<()> {
    let runtime = tokio::runtime::Builder::new_current_thread()
        .enable_io()
        .enable_time()
        .max_blocking_threads(4)
        .thread_name("crm-io-helper")
        .build()?;
    runtime
        .block_on(async {
            if let Some(listener) = listener {
                listener.serve()?;
            }
            engine.run(commands, stop).await;
            Ok(())
        })
        .map(|()| runtime.shutdown_timeout(HELPERS_END))
}
