//! Which handler answers what, and what all requests go through.

use actix_web::body::MessageBody;
use actix_web::dev::{ServiceRequest, ServiceResponse};
use actix_web::guard::{self, Guard};
use actix_web::http::header::{CACHE_CONTROL, HOST, HeaderValue, X_CONTENT_TYPE_OPTIONS};
use actix_web::http::{Method, StatusCode};
use actix_web::middleware::Next;
use actix_web::{Handler, HttpRequest, HttpResponse, Resource, Responder, Route, web};

use super::caller::Caller;
use super::problem::Refusal;
use super::{events, migrations, peer, root, vms};

/// All routes.
pub(super) fn routes(app: &mut web::ServiceConfig) {
    app.service(resource("/", [get(root::show_page)]))
        .service(resource("/healthz", [get(root::show_health)]))
        .service(resource("/metrics", [get(root::show_metrics)]))
        .service(resource("/openapi.json", [get(root::show_openapi)]))
        .service(resource("/v1/host", [get(root::show_host)]))
        .service(resource(
            "/v1/host/drain",
            [
                get(root::show_drain),
                post(root::drain_host),
                delete(root::cancel_drain),
            ],
        ))
        .service(resource("/v1/events", [stream(events::stream_events)]))
        .service(resource(
            "/v1/vms",
            [get(vms::list_vms), post(vms::create_vm)],
        ))
        .service(resource(
            "/v1/vms/{name}",
            [get(vms::show_vm), delete(vms::delete_vm)],
        ))
        .service(resource("/v1/vms/{name}/pause", [post(vms::pause_vm)]))
        .service(resource("/v1/vms/{name}/resume", [post(vms::resume_vm)]))
        .service(resource("/v1/vms/{name}/stop", [post(vms::stop_vm)]))
        .service(resource("/v1/vms/{name}/start", [post(vms::start_vm)]))
        .service(resource("/v1/vms/{name}/verify", [post(vms::verify_vm)]))
        .service(resource("/v1/vms/{name}/decide", [post(vms::decide_vm)]))
        .service(resource(
            "/v1/vms/{name}/settle-storage",
            [post(vms::settle_vm_storage)],
        ))
        .service(resource(
            "/v1/vms/{name}/preflight",
            [post(vms::preflight_vm)],
        ))
        .service(resource("/v1/vms/{name}/migrate", [post(vms::migrate_vm)]))
        .service(resource(
            "/v1/vms/{name}/console",
            [get(vms::show_vm_console)],
        ))
        .service(resource(
            "/v1/migrations",
            [get(migrations::list_migrations)],
        ))
        .service(resource(
            "/v1/migrations/{id}",
            [get(migrations::show_migration)],
        ))
        .service(resource(
            "/v1/migrations/{id}/report",
            [get(migrations::show_migration_report)],
        ))
        .service(resource(
            "/v1/migrations/{id}/trace",
            [get(migrations::show_migration_trace)],
        ))
        .service(resource(
            "/v1/migrations/{id}/cancel",
            [post(migrations::cancel_migration)],
        ))
        .service(resource("/v1/peer/consider", [post(peer::consider_offer)]))
        .service(resource("/v1/peer/receive", [post(peer::receive_vm)]))
        .service(resource(
            "/v1/peer/receive/{id}",
            [delete(peer::forget_reception)],
        ))
        .service(resource("/v1/peer/settled", [post(peer::told_settled)]))
        .service(resource("/v1/peer/sink", [post(peer::sink_bytes)]))
        .default_service(web::to(nothing_here));
}

/// A handler for some methods.
type Way = (&'static str, Route);

fn get<F, Args>(handler: F) -> Way
where
    F: Handler<Args>,
    Args: actix_web::FromRequest + 'static,
    F::Output: Responder + 'static,
{
    let either = guard::Any(guard::Get()).or(guard::Head());
    ("GET, HEAD", way(either, handler))
}

/// As `get`, without an end: there is nothing to say to HEAD.
fn stream<F, Args>(handler: F) -> Way
where
    F: Handler<Args>,
    Args: actix_web::FromRequest + 'static,
    F::Output: Responder + 'static,
{
    ("GET", way(guard::Get(), handler))
}

fn post<F, Args>(handler: F) -> Way
where
    F: Handler<Args>,
    Args: actix_web::FromRequest + 'static,
    F::Output: Responder + 'static,
{
    ("POST", way(guard::Post(), handler))
}

fn delete<F, Args>(handler: F) -> Way
where
    F: Handler<Args>,
    Args: actix_web::FromRequest + 'static,
    F::Output: Responder + 'static,
{
    ("DELETE", way(guard::Delete(), handler))
}

fn way<F, Args>(guard: impl Guard + 'static, handler: F) -> Route
where
    F: Handler<Args>,
    Args: actix_web::FromRequest + 'static,
    F::Output: Responder + 'static,
{
    Route::new().guard(guard).to(handler)
}

/// A resource that refuses all other methods, and says which it has.
fn resource<const N: usize>(path: &str, ways: [Way; N]) -> Resource {
    let mut allow = Vec::new();
    let mut resource = web::resource(path);
    for (methods, route) in ways {
        allow.push(methods);
        resource = resource.route(route);
    }
    let allow = allow.join(", ");
    resource.default_service(web::to(move |request: HttpRequest| {
        let refusal = Refusal::method(request.method().as_str(), &allow);
        async move { Err::<HttpResponse, _>(refusal) }
    }))
}

async fn nothing_here(request: HttpRequest) -> Result<HttpResponse, Refusal> {
    Err(Refusal::missing(format!(
        "there is nothing at {:?}: /openapi.json says what there is",
        request.path()
    )))
}

/// What all requests go through: who may do what, and errors in one form.
pub(super) async fn gate(
    request: ServiceRequest,
    next: Next<impl MessageBody + 'static>,
) -> Result<ServiceResponse, actix_web::Error> {
    let path = request.path().to_owned();
    let mut response = match admit(&request) {
        Err(refusal) => request.into_response(refusal.response(&path)),
        Ok(()) => {
            let answered = next.call(request).await?;
            match refusal(&answered) {
                Some(refusal) => answered.into_response(refusal.response(&path)),
                None => answered.map_into_boxed_body(),
            }
        }
    };
    let headers = response.headers_mut();
    headers.insert(X_CONTENT_TYPE_OPTIONS, HeaderValue::from_static("nosniff"));
    headers.insert(CACHE_CONTROL, HeaderValue::from_static("no-store"));
    Ok(response)
}

/// Whether a request is let through.
fn admit(request: &ServiceRequest) -> Result<(), Refusal> {
    let forbidden = |why: String| Err(Refusal::new(StatusCode::FORBIDDEN, why).closing());
    let Some(caller) = request.conn_data::<Caller>() else {
        return forbidden("nobody knows who asks".to_owned());
    };
    if let Err(why) = caller.may(request.method(), request.path()) {
        return forbidden(why);
    }
    // A page whose name was bound to this machine reaches a socket that is forwarded to a port.
    let headers = request.headers();
    let host = headers.get(HOST).and_then(|host| host.to_str().ok());
    if *caller == Caller::Local && host.is_some_and(|host| !is_this_machine(host)) {
        return forbidden("the socket is asked for by another name than localhost".to_owned());
    }
    // A browser that holds an administrator's certificate shows it for any page that asks.
    let site = request.headers().get("sec-fetch-site");
    let own = site.is_none_or(|site| site == "same-origin" || site == "none");
    if !own && !matches!(*request.method(), Method::GET | Method::HEAD) {
        return forbidden("a page of another origin asks for this".to_owned());
    }
    Ok(())
}

/// Whether an authority names the machine that asks.
fn is_this_machine(authority: &str) -> bool {
    let port = |rest: &str| rest.is_empty() || rest.strip_prefix(':').is_some_and(is_number);
    let named = |name: &str| authority.strip_prefix(name).is_some_and(port);
    ["localhost", "127.0.0.1", "[::1]"].into_iter().any(named)
}

fn is_number(text: &str) -> bool {
    text.bytes().all(|b| b.is_ascii_digit())
}

/// An error as it has to be answered, if it is one.
fn refusal<B>(answered: &ServiceResponse<B>) -> Option<Refusal> {
    let response = answered.response();
    match response.error() {
        Some(error) => Some(
            error
                .as_error::<Refusal>()
                .cloned()
                .unwrap_or_else(|| Refusal::plain(response.status())),
        ),
        None => response
            .status()
            .as_u16()
            .ge(&400)
            .then(|| Refusal::plain(response.status())),
    }
}
