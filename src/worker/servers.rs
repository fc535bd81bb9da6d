//! Servers as the engine uses them.

use crm_core::http::HttpResponse;
use crm_core::model::RemoteError;

use crate::pg::shmem::Request;
use crate::worker::engine::{Engine, Job, Step};

pub(crate) fn may_write() -> Step<bool> {
    Ok(true)
}
pub(crate) fn load(_engine: &mut Engine) -> Step<()> {
    Ok(())
}
pub(crate) fn on_request(_engine: &mut Engine, _request: &Request) -> Step<()> {
    Ok(())
}
pub(crate) fn on_answer(
    _engine: &mut Engine,
    _job: Job,
    _result: Result<HttpResponse, RemoteError>,
) -> Step<()> {
    Ok(())
}
