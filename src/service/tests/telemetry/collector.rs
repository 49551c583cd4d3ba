//! A collector in this process: OTLP over gRPC and HTTP.

use std::convert::Infallible;
use std::net::{Ipv4Addr, SocketAddr};
use std::sync::{Arc, Mutex};

use bytes::Bytes;
use http_body_util::{BodyExt, Full};
use hyper::body::Incoming;
use hyper::service::service_fn;
use hyper::{Request, Response, StatusCode};
use hyper_util::rt::TokioIo;
use opentelemetry_proto::tonic::collector::trace::v1::trace_service_server::{
    TraceService, TraceServiceServer,
};
use opentelemetry_proto::tonic::collector::trace::v1::{
    ExportTraceServiceRequest, ExportTraceServiceResponse,
};
use prost::Message;
use tokio::net::TcpListener;
use tonic::codec::CompressionEncoding;
use tonic::transport::server::TcpIncoming;
use vmferry_service::telemetry::Protocol;

/// What has come.
#[derive(Clone, Default)]
pub(crate) struct Heard(Arc<Mutex<Vec<ExportTraceServiceRequest>>>);

impl Heard {
    fn add(&self, request: ExportTraceServiceRequest) {
        self.0.lock().unwrap().push(request);
    }

    /// All of it.
    pub(crate) fn take(&self) -> Vec<ExportTraceServiceRequest> {
        std::mem::take(&mut *self.0.lock().unwrap())
    }
}

#[tonic::async_trait]
impl TraceService for Heard {
    async fn export(
        &self,
        request: tonic::Request<ExportTraceServiceRequest>,
    ) -> Result<tonic::Response<ExportTraceServiceResponse>, tonic::Status> {
        self.add(request.into_inner());
        Ok(tonic::Response::new(ExportTraceServiceResponse::default()))
    }
}

pub(crate) async fn listener() -> (TcpListener, SocketAddr) {
    let listener = TcpListener::bind((Ipv4Addr::LOCALHOST, 0)).await.unwrap();
    let address = listener.local_addr().unwrap();
    (listener, address)
}

/// Listens; its URL, and what comes.
pub(crate) async fn start(protocol: Protocol) -> (String, Heard) {
    let heard = Heard::default();
    let (listener, address) = listener().await;
    match protocol {
        Protocol::Grpc => {
            let service =
                TraceServiceServer::new(heard.clone()).accept_compressed(CompressionEncoding::Gzip);
            let server = tonic::transport::Server::builder().add_service(service);
            tokio::spawn(server.serve_with_incoming(TcpIncoming::from(listener)));
        }
        Protocol::HttpProtobuf | Protocol::HttpJson => {
            tokio::spawn(serve_http(listener, heard.clone()));
        }
    }
    (format!("http://{address}"), heard)
}

async fn serve_http(listener: TcpListener, heard: Heard) {
    while let Ok((stream, _)) = listener.accept().await {
        let heard = heard.clone();
        tokio::spawn(async move {
            let service = service_fn(|request| answer(request, heard.clone()));
            let _ = hyper::server::conn::http1::Builder::new()
                .serve_connection(TokioIo::new(stream), service)
                .await;
        });
    }
}

async fn answer(
    request: Request<Incoming>,
    heard: Heard,
) -> Result<Response<Full<Bytes>>, Infallible> {
    let (head, body) = request.into_parts();
    let body = body
        .collect()
        .await
        .map(|b| b.to_bytes())
        .unwrap_or_default();
    let header = |name| head.headers.get(name).and_then(|v| v.to_str().ok());
    let kind = header("content-type").unwrap_or("").to_owned();
    let parsed = match (head.uri.path(), kind.as_str()) {
        ("/v1/traces", "application/x-protobuf") => {
            ExportTraceServiceRequest::decode(body).map_err(|e| e.to_string())
        }
        ("/v1/traces", "application/json") => {
            serde_json::from_slice(&body).map_err(|e| e.to_string())
        }
        (path, kind) => Err(format!("{kind} to {path}")),
    };
    let response = Response::builder().header("content-type", &kind);
    let response = match parsed {
        Ok(request) => {
            heard.add(request);
            let empty = match kind.as_str() {
                "application/json" => "{}",
                _ => "",
            };
            response.body(Full::from(empty))
        }
        Err(wrong) => response
            .status(StatusCode::BAD_REQUEST)
            .body(Full::from(wrong)),
    };
    Ok(response.unwrap())
}
