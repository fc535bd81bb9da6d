//! Answers whose rows are handed over while they arrive: what waits in memory
//! is a page or so, however long the answer is.

use std::sync::Arc;
use std::time::Duration;

use crm_core::connectors::bulk::Rows;
use crm_core::http::HttpResponse;
use crm_core::model::{Page, RemoteError};

use crate::client::Opened;
use crate::job::{Job, Outcome, Shape, Ticket};
use crate::server::{Server, unknown_server};
use crate::target::Target;

/// Rows handed over together.
const PAGE_ROWS: usize = 2_000;
/// How often it is looked whether the session took something.
const LOOK: Duration = Duration::from_millis(50);

/// What came of an answer.
pub(crate) struct Received {
    /// The answer; only its head where its body was rows.
    pub(crate) answer: Result<HttpResponse, RemoteError>,
    /// The last page of those rows, and their bytes.
    pub(crate) rows: Option<(Page, usize)>,
}

impl Server {
    /// Reads an answer: whole, or its rows in pages of which all but the last are
    /// posted from here.
    pub(crate) async fn receive(
        self: &Arc<Self>,
        target: &Target,
        job: &Job,
        opened: Result<Opened, RemoteError>,
    ) -> Received {
        let whole = |answer| Received { answer, rows: None };
        let opened = match opened {
            Ok(opened) => opened,
            Err(e) => return whole(Err(e)),
        };
        let head = opened.head();
        match reader(target, job, &head) {
            None => whole(opened.whole().await),
            Some(reader) => match self.rows(job, opened, reader).await {
                Ok(rows) => Received {
                    answer: Ok(head),
                    rows: Some(rows),
                },
                Err(e) => whole(Err(e)),
            },
        }
    }

    async fn rows(
        &self,
        job: &Job,
        mut opened: Opened,
        mut reader: Box<dyn Rows>,
    ) -> Result<(Page, usize), RemoteError> {
        let mut bytes = 0;
        while let Some(piece) = opened.piece().await? {
            bytes += piece.len();
            reader.feed(&piece)?;
            if reader.waiting() >= PAGE_ROWS {
                self.room().await?;
                let mut ticket = Ticket::new(
                    Arc::clone(&self.mailbox),
                    (job.ticket.job(), self.id),
                    job.ticket.asked().clone(),
                    &job.shape,
                );
                ticket.following = true;
                ticket.answer(Ok(Outcome::Page(reader.take())));
            }
        }
        reader.end()?;
        Ok((reader.take(), bytes))
    }

    /// Waits until another page may wait, and books it in. Meanwhile the answer
    /// stays with the CRM.
    async fn room(&self) -> Result<(), RemoteError> {
        loop {
            let drained = self.mailbox.drained.notified();
            tokio::pin!(drained);
            drained.as_mut().enable();
            if self.is_closed() {
                return Err(unknown_server(self.id));
            }
            if !self.mailbox.is_heavy() && self.mailbox.reserve(self.max_outstanding()) {
                return Ok(());
            }
            tokio::select! {
                () = &mut drained => {}
                () = tokio::time::sleep(LOOK) => {}
            }
        }
    }
}

fn reader(target: &Target, job: &Job, head: &HttpResponse) -> Option<Box<dyn Rows>> {
    let Shape::Page { fields, .. } = &job.shape else {
        return None;
    };
    let reader = target.spec.connector.bulk()?;
    (200..300)
        .contains(&head.status)
        .then(|| reader.rows(&job.request, head, fields))?
}
