//! The I/O thread as the session holds it.

use std::cell::RefCell;
use std::os::fd::RawFd;
use std::rc::Rc;

use crm_io::{Command, Event, IoThread};

/// The I/O thread, shared with whatever must stop it before the process may end.
#[derive(Clone)]
pub(crate) struct IoHandle(pub(crate) Rc<RefCell<Option<IoThread>>>);

impl IoHandle {
    /// Stops and joins the thread; bounded in time, also while HTTP hangs.
    pub(crate) fn stop(&self) {
        // Not while a call into it is under way further up this stack.
        if let Ok(mut thread) = self.0.try_borrow_mut() {
            thread.take();
        }
    }

    /// Readable when events wait.
    pub(crate) fn wake_fd(&self) -> Option<RawFd> {
        self.0.borrow().as_ref().map(IoThread::wake_fd)
    }

    /// The next event, if one waits.
    pub(crate) fn try_recv(&self) -> Option<Event> {
        self.0.borrow().as_ref().and_then(IoThread::try_recv)
    }

    /// Whether the thread lives.
    pub(crate) fn alive(&self) -> bool {
        self.0.borrow().as_ref().is_some_and(IoThread::alive)
    }

    /// Hands a command over; false when the thread has its fill.
    pub(crate) fn submit(&self, command: Command) -> bool {
        self.0
            .borrow()
            .as_ref()
            .is_some_and(|thread| thread.submit(command).is_ok())
    }
}
