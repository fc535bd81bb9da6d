//! Open questions about which rows are one, when some of these rows are removed,
//! or are one with others by an answer.

use crm_core::model::Millis;
use serde_json::Value as Json;

use crate::pg::store::reviews::{self, Answer, Kind, RowQuestion};
use crate::pg::store::spi::Result;
use crate::worker::creates::{self, Cause};
use crate::worker::world::{Mirror, World};

/// Rows of a mirror are gone: they are no candidates any more. Where one is left,
/// or none, nobody need be asked.
pub(crate) fn without(
    world: &World,
    mirror: &Mirror,
    row_ids: Vec<i64>,
    now: Millis,
) -> Result<()> {
    if world.rehearsal.is_some() || !reviews::any_match()? {
        return Ok(());
    }
    for left in reviews::drop_candidates(mirror.id, row_ids)? {
        let Some(own) = world.mirrors.get(&left.mirror) else {
            continue;
        };
        let mut links = world.groups[own.group].links.iter();
        if let Some(link) = links.find(|l| l.name == left.link) {
            let cause = Cause::of(&own.server);
            creates::spread_link(world, link, own, vec![left.row_id], &cause, now)?;
        }
    }
    Ok(())
}

/// Two of several candidates are one: who is left on both sides is asked about on.
pub(crate) fn rest(answer: &Answer) -> Result<()> {
    let question: Json = serde_json::from_str(&answer.question).unwrap_or_default();
    let tied: Vec<i64> = (answer.value.iter())
        .flat_map(|v| v.split(','))
        .filter_map(|id| id.parse().ok())
        .collect();
    let left_over = |side: &str, place: usize| -> Vec<i64> {
        let all = question["candidates"][side].as_array();
        let ids = all.into_iter().flatten().filter_map(Json::as_i64);
        ids.filter(|id| tied.get(place) != Some(id)).collect()
    };
    let (left, right) = (left_over("left", 0), left_over("right", 1));
    // The question names a row of the side of its mirror.
    let asked = |ids: &[i64]| ids.iter().copied().find(|id| *id == answer.row_id);
    let of_left = reviews::is_left(answer.link.as_deref(), answer.mirror)?;
    let own = if of_left { &left } else { &right };
    let Some(row_id) = asked(own).or(own.first().copied()) else {
        return Ok(());
    };
    if left.is_empty() || right.is_empty() {
        return Ok(());
    }
    let mut candidates = question["candidates"].clone();
    candidates["left"] = serde_json::json!(left);
    candidates["right"] = serde_json::json!(right);
    reviews::ask(&RowQuestion {
        kind: Kind::Match,
        link: answer.link.as_deref(),
        mirror: answer.mirror,
        row_id,
        entity: None,
        reason: "others of the same key were matched, these are left",
        candidates: &candidates.to_string(),
    })?;
    Ok(())
}
