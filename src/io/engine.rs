//! The thread's loop: commands to the servers and streams they are for.

use std::collections::HashMap;
use std::sync::Arc;

use crm_core::budget::Budget;
use crm_core::http::{HttpRequest, Purpose};
use crm_core::model::{RemoteError, WriteKind};
use tokio::sync::{Semaphore, mpsc, oneshot};
use tokio::task::AbortHandle;

use crate::api::{Asked, Command, Event, Replay, ServerSpec, Settings, Tag};
use crate::errors::local;
use crate::hooks::Hooks;
use crate::job::{Chain, Job, Shape, Ticket};
use crate::listener::Replies;
use crate::mailbox::Mailbox;
use crate::pubsub::{Credit, Parting, Schemas, Subscription};
use crate::server::{Server, unknown_server};
use crate::{clock, dispatch};

/// Streams open at a time.
const MAX_STREAMS: usize = 64;

/// Servers and streams of the thread.
pub(crate) struct Engine {
    settings: Arc<Settings>,
    mailbox: Arc<Mailbox>,
    replies: Arc<Replies>,
    hooks: Arc<Hooks>,
    parsers: Arc<Semaphore>,
    schemas: Arc<Schemas>,
    servers: HashMap<u32, Arc<Server>>,
    streams: HashMap<u64, OpenStream>,
}

/// A stream's task and its credit.
struct OpenStream {
    server: u32,
    credit: Arc<Credit>,
    parting: Arc<Parting>,
    task: AbortHandle,
}

impl OpenStream {
    fn end(self) {
        self.task.abort();
        tokio::spawn(async move { self.parting.say().await });
    }
}

impl Engine {
    pub(crate) fn new(
        settings: Arc<Settings>,
        mailbox: Arc<Mailbox>,
        replies: Arc<Replies>,
        hooks: Arc<Hooks>,
    ) -> Self {
        Self {
            settings,
            mailbox,
            replies,
            hooks,
            parsers: Arc::new(Semaphore::new(1)),
            schemas: Arc::default(),
            servers: HashMap::new(),
            streams: HashMap::new(),
        }
    }

    /// Obeys commands until told to stop or nobody can send any more.
    pub(crate) async fn run(
        mut self,
        mut commands: mpsc::Receiver<Command>,
        mut stop: oneshot::Receiver<()>,
    ) {
        loop {
            tokio::select! {
                biased;
                _ = &mut stop => break,
                command = commands.recv() => match command {
                    Some(command) => self.obey(command),
                    None => break,
                },
            }
        }
        self.part().await;
    }

    /// Ends the streams and takes leave of all their servers at once.
    async fn part(self) {
        let mut words = tokio::task::JoinSet::new();
        for (_, open) in self.streams {
            open.task.abort();
            words.spawn(async move { open.parting.say().await });
        }
        words.join_all().await;
    }

    fn obey(&mut self, command: Command) {
        match command {
            Command::Configure(spec) => self.configure(*spec),
            Command::Budget { server, budget } => self.budget(server, *budget),
            Command::Forget(id) => self.forget(id),
            Command::Call {
                job,
                server,
                tag,
                request,
            } => self.enqueue((job, server, tag), Shape::Answer, None, |_, _| request),
            Command::Fetch {
                job,
                server,
                tag,
                object,
                fields,
                request,
                follow,
            } => {
                let chain = follow.map(|rest| Chain {
                    object: object.clone(),
                    fields: Arc::clone(&fields),
                    rest,
                });
                let shape = Shape::Page { object, fields };
                self.enqueue((job, server, tag), shape, chain, |_, _| request);
            }
            Command::Push {
                job,
                server,
                tag,
                object,
                kind,
                unique_field,
                writes,
            } => {
                let shape = Shape::Results {
                    kind,
                    unique_field,
                    writes,
                };
                self.enqueue((job, server, tag), shape, None, |spec, shape| {
                    push_request(spec, &object, shape)
                });
            }
            Command::Subscribe {
                stream,
                server,
                topic,
                replay,
            } => self.subscribe(stream, server, topic, replay),
            Command::Unsubscribe { stream } => {
                if let Some(open) = self.streams.remove(&stream) {
                    open.end();
                }
            }
            Command::Credit { stream, events } => {
                if let Some(open) = self.streams.get(&stream) {
                    open.credit.give(events);
                }
            }
            Command::Reply {
                token,
                status,
                body,
            } => self.replies.answer(token, status, body),
        }
    }

    fn budget(&self, id: u32, budget: Budget) {
        if let Some(server) = self.servers.get(&id) {
            server.budget(budget);
        }
    }

    fn forget(&mut self, id: u32) {
        self.hooks.forget(id);
        if let Some(server) = self.servers.remove(&id) {
            server.close();
            self.end_streams(id);
        }
    }

    fn configure(&mut self, spec: ServerSpec) {
        let id = spec.id;
        self.hooks.configure(&spec);
        if let Some(server) = self.servers.get(&id) {
            server.reconfigure(spec);
        } else {
            let server = Arc::new(Server::new(
                spec,
                Arc::clone(&self.settings),
                Arc::clone(&self.mailbox),
                Arc::clone(&self.parsers),
            ));
            tokio::spawn(dispatch::run(Arc::clone(&server)));
            self.servers.insert(id, server);
        }
    }

    fn subscribe(&mut self, stream: u64, id: u32, topic: String, replay: Replay) {
        self.streams.retain(|_, open| !open.task.is_finished());
        let Some(server) = self.servers.get(&id) else {
            self.ended(stream, unknown_server(id));
            return;
        };
        if self.streams.len() >= MAX_STREAMS || self.streams.contains_key(&stream) {
            self.ended(stream, no_room(stream));
            return;
        }
        let credit = Arc::<Credit>::default();
        let parting = Arc::<Parting>::default();
        let subscription = Subscription {
            stream,
            server: Arc::clone(server),
            settings: Arc::clone(&self.settings),
            topic,
            replay,
            credit: Arc::clone(&credit),
            schemas: Arc::clone(&self.schemas),
            parting: Arc::clone(&parting),
            skipped: None,
        };
        let task = tokio::spawn(subscription.run()).abort_handle();
        let open = OpenStream {
            server: id,
            credit,
            parting,
            task,
        };
        self.streams.insert(stream, open);
    }

    fn end_streams(&mut self, server: u32) {
        let ended: Vec<u64> = self
            .streams
            .extract_if(|_, open| open.server == server)
            .filter(|(_, open)| !open.task.is_finished())
            .map(|(stream, open)| {
                open.end();
                stream
            })
            .collect();
        for stream in ended {
            self.ended(stream, unknown_server(server));
        }
    }

    fn ended(&self, stream: u64, error: RemoteError) {
        self.mailbox.post(Event::StreamEnded {
            stream,
            error,
            replay_expired: false,
        });
    }

    fn enqueue(
        &self,
        (job, id, tag): (u64, u32, Tag),
        shape: Shape,
        chain: Option<Chain>,
        request: impl FnOnce(&ServerSpec, &Shape) -> HttpRequest,
    ) {
        let mailbox = Arc::clone(&self.mailbox);
        let Some(server) = self.servers.get(&id) else {
            let asked = Asked {
                purpose: Purpose::Catalog,
                endpoint: "".into(),
            };
            Ticket::new(mailbox, (job, id), asked, &shape).answer(Err(unknown_server(id)));
            return;
        };
        let target = server.target();
        let request = request(&target.spec, &shape);
        let ticket = Ticket::new(mailbox, (job, id), Asked::by(&request), &shape);
        let class = target.spec.connector.class_limit(&request);
        server.enqueue(Job {
            ticket,
            shape,
            class,
            tag,
            lane: tag.latency.lane(request.purpose),
            request,
            deadline: clock::mono() + self.settings.max_wait_ms,
            reauthorized: false,
            refusals: 0,
            chain,
        });
    }
}

fn no_room(stream: u64) -> RemoteError {
    let message = format!("stream {stream} is open already, or {MAX_STREAMS} others are");
    local("too_many_streams", message)
}

fn push_request(spec: &ServerSpec, object: &str, shape: &Shape) -> HttpRequest {
    let (kind, unique_field, writes) = match shape {
        Shape::Results {
            kind,
            unique_field,
            writes,
        } => (*kind, unique_field.as_deref(), writes.as_slice()),
        Shape::Answer | Shape::Page { .. } => (WriteKind::Update, None, &[][..]),
    };
    spec.connector
        .push_request(&spec.config, object, kind, unique_field, writes)
}
