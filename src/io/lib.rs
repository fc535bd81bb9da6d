//! The network side: HTTP client, event stream and webhook listener on one
//! thread that knows nothing of PostgreSQL.
//!
//! The session worker hands in [`Command`]s and takes [`Event`]s; neither side
//! ever waits for the other. Channels are bounded both ways: [`IoThread::submit`]
//! refuses when too much is outstanding, and what it accepted is answered by
//! exactly one event, whatever the remote side does. A socket
//! ([`IoThread::wake_fd`]) is readable while events wait, for a loop that sleeps
//! on a latch and a file descriptor. Nothing here touches the database, keeps
//! state across a restart, or decides anything about data.

mod api;
mod client;
mod clock;
mod dispatch;
mod engine;
mod errors;
mod hooks;
mod hosts;
mod job;
mod listener;
mod mailbox;
mod pubsub;
mod rotation;
mod rows;
mod server;
mod signals;
mod target;
mod thread;
mod token;

pub use api::{
    Asked, Command, Content, Event, Follow, Full, Level, ListenerSettings, Replay, ServerSpec,
    Settings, StreamItem, Tag, WebhookSpec,
};
pub use hooks::{Opened, open};
pub use pubsub::UNREADABLE;
pub use thread::IoThread;
