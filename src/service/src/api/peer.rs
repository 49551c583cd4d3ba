//! What hosts ask of each other.

use actix_web::http::StatusCode;
use actix_web::{HttpRequest, HttpResponse, web};

use super::body::{Body, expect_type, read};
use super::caller::Caller;
use super::host::{Host, MigrationRef};
use super::migrations::IdPart;
use super::openapi::RawBytes;
use super::problem::Refusal;
use super::types::Sunk;
use crate::model::{KnownJobs, Offer, Preflight, Reception, ReceptionRequest, SettledJobs};

type Answer = Result<HttpResponse, Refusal>;

/// Most bytes that the sink swallows at once.
pub const MAX_SINK: u64 = 64 << 20;

/// Whether the host that asks is the one called `name`; users may speak for any.
fn is_it(asked: &HttpRequest, name: &str) -> Result<(), Refusal> {
    match asked.conn_data::<Caller>() {
        Some(Caller::Host(own)) if !own.iter().any(|own| own == name) => Err(Refusal::new(
            StatusCode::FORBIDDEN,
            format!(
                "the certificate is that of {}, and this is for {name:?} to ask",
                own.join(", ")
            ),
        )),
        _ => Ok(()),
    }
}

/// Whether the host that asks is the other side of a migration; of what is not known here,
/// everybody is told the same.
async fn is_its_migration(asked: &HttpRequest, host: &Host, id: &str) -> Result<(), Refusal> {
    let id = id.to_owned();
    let known = host.ask(|c| async move { Ok(c.migration(&id).await.ok()) });
    match known.await? {
        Some(migration) => is_it(asked, &migration.peer),
        None => Ok(()),
    }
}

/// Would a machine of this description do here?
#[utoipa::path(post, path = "/v1/peer/consider", tag = "peer", request_body = Offer,
    responses((status = 200, body = Preflight)))]
pub(super) async fn consider_offer(host: Host, offer: Body<Offer>) -> Answer {
    let preflight = host
        .ask(|c| async move { c.consider(offer.0).await })
        .await?;
    Ok(HttpResponse::Ok().json(preflight))
}

/// Be the destination of a migration.
#[utoipa::path(post, path = "/v1/peer/receive", tag = "peer", request_body = ReceptionRequest,
    responses((status = 201, body = Reception)))]
pub(super) async fn receive_vm(
    asked: HttpRequest,
    host: Host,
    request: Body<ReceptionRequest>,
) -> Answer {
    is_it(&asked, &request.0.from)?;
    let reception = host
        .ask(|c| async move { c.receive(request.0).await })
        .await?;
    Ok(HttpResponse::Created().json(reception))
}

/// A reception is not needed any more.
#[utoipa::path(delete, path = "/v1/peer/receive/{id}", tag = "peer", params(IdPart),
    responses((status = 204, description = "It is forgotten")))]
pub(super) async fn forget_reception(asked: HttpRequest, host: Host, id: MigrationRef) -> Answer {
    is_its_migration(&asked, &host, &id.0).await?;
    host.ask(|c| async move { c.forget_reception(&id.0).await })
        .await?;
    Ok(HttpResponse::NoContent().finish())
}

/// Storage jobs of a machine that came from the caller have ended there.
#[utoipa::path(post, path = "/v1/peer/settled", tag = "peer", request_body = SettledJobs,
    responses((status = 200, body = KnownJobs)))]
pub(super) async fn told_settled(
    asked: HttpRequest,
    host: Host,
    settled: Body<SettledJobs>,
) -> Answer {
    is_its_migration(&asked, &host, &settled.0.migration).await?;
    let known = host
        .ask(|c| async move { c.told_settled(settled.0).await })
        .await?;
    Ok(HttpResponse::Ok().json(known))
}

/// Reads up to 64 MiB and drops them: how quickly that goes is the bandwidth between two hosts.
#[utoipa::path(post, path = "/v1/peer/sink", tag = "peer",
    request_body(content = inline(RawBytes), content_type = "application/octet-stream"),
    responses((status = 200, body = Sunk)))]
pub(super) async fn sink_bytes(request: HttpRequest, payload: web::Payload) -> Answer {
    expect_type(&request, "application/octet-stream")?;
    let bytes = read(payload.into_inner(), MAX_SINK, drop).await?;
    Ok(HttpResponse::Ok().json(Sunk { bytes }))
}
