//! The host itself, its drain, and what is at the root.

use actix_web::HttpResponse;
use actix_web::http::header::CONTENT_TYPE;

use super::body::Body;
use super::host::Host;
use super::openapi;
use super::problem::Refusal;
use super::types::Health;
use crate::model::{Drain, DrainRequest, HostInfo};
use crate::page;

type Answer = Result<HttpResponse, Refusal>;

/// Name, capabilities, limits, load and peers of this host.
#[utoipa::path(get, path = "/v1/host", tag = "host", responses((status = 200, body = HostInfo)))]
pub(super) async fn show_host(host: Host) -> Answer {
    let info = host.ask(|c| async move { Ok(c.host().await) }).await?;
    Ok(HttpResponse::Ok().json(info))
}

/// Moves all machines away: begun when this is answered.
#[utoipa::path(post, path = "/v1/host/drain", tag = "host", request_body = DrainRequest,
    responses((status = 202, body = Drain)))]
pub(super) async fn drain_host(host: Host, request: Body<DrainRequest>) -> Answer {
    let drain = host
        .ask(|c| async move { c.drain(request.0).await })
        .await?;
    Ok(HttpResponse::Accepted().json(drain))
}

/// The drain under way, or the last one.
#[utoipa::path(get, path = "/v1/host/drain", tag = "host",
    responses((status = 200, body = Drain), (status = 404, description = "There was none")))]
pub(super) async fn show_drain(host: Host) -> Answer {
    let drain = host.ask(|c| async move { c.drain_state().await }).await?;
    Ok(HttpResponse::Ok().json(drain))
}

/// Begins no more migrations of the drain, and cancels those under way.
#[utoipa::path(delete, path = "/v1/host/drain", tag = "host",
    responses((status = 200, body = Drain), (status = 404, description = "There was none")))]
pub(super) async fn cancel_drain(host: Host) -> Answer {
    let drain = host.ask(|c| async move { c.cancel_drain().await }).await?;
    Ok(HttpResponse::Ok().json(drain))
}

/// This document.
#[utoipa::path(get, path = "/openapi.json", tag = "service",
    responses((status = 200, content_type = "application/json", body = openapi::FreeTrace)))]
pub(super) async fn show_openapi() -> Answer {
    Ok(HttpResponse::Ok()
        .insert_header((CONTENT_TYPE, "application/json"))
        .body(openapi::document()))
}

/// Metrics, as Prometheus reads them.
#[utoipa::path(get, path = "/metrics", tag = "service",
    responses((status = 200, content_type = "text/plain", body = String)))]
pub(super) async fn show_metrics(host: Host) -> Answer {
    let text = host.ask(|c| async move { Ok(c.metrics().await) }).await?;
    Ok(HttpResponse::Ok()
        .insert_header((CONTENT_TYPE, "text/plain; version=0.0.4; charset=utf-8"))
        .body(text))
}

/// The page.
#[utoipa::path(get, path = "/", tag = "service",
    responses((status = 200, content_type = "text/html", body = String)))]
pub(super) async fn show_page() -> Answer {
    let mut answer = HttpResponse::Ok();
    for header in page::headers() {
        answer.insert_header(header);
    }
    Ok(answer.body(page::HTML))
}

/// Whether the service answers.
#[utoipa::path(get, path = "/healthz", tag = "service", responses((status = 200, body = Health)))]
pub(super) async fn show_health() -> Answer {
    Ok(HttpResponse::Ok().json(Health {
        status: "ok".to_owned(),
    }))
}
