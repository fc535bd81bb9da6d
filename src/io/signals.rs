//! Threads that no signal ever reaches.
//!
//! A signal is delivered to any thread that does not block it, and the
//! handlers of the process this library lives in may only run on its main
//! thread. A thread inherits the mask of the one that spawns it.

/// All signals blocked on this thread until dropped.
pub(crate) struct Blocked(libc::sigset_t);

impl Blocked {
    /// Blocks all signals and remembers the mask before.
    pub(crate) fn all() -> std::io::Result<Self> {
        let mut full = std::mem::MaybeUninit::<libc::sigset_t>::uninit();
        let mut before = std::mem::MaybeUninit::<libc::sigset_t>::uninit();
        // SAFETY: both pointers are to live, writable sigset_t; sigfillset
        // initializes the first before it is read, pthread_sigmask the second
        // when it returns 0, and only then is it assumed initialized.
        unsafe {
            libc::sigfillset(full.as_mut_ptr());
            match libc::pthread_sigmask(libc::SIG_SETMASK, full.as_ptr(), before.as_mut_ptr()) {
                0 => Ok(Self(before.assume_init())),
                errno => Err(std::io::Error::from_raw_os_error(errno)),
            }
        }
    }
}

impl Drop for Blocked {
    fn drop(&mut self) {
        // SAFETY: `self.0` is the mask that pthread_sigmask reported; a null
        // third argument is allowed.
        unsafe {
            libc::pthread_sigmask(libc::SIG_SETMASK, &raw const self.0, std::ptr::null_mut());
        }
    }
}
