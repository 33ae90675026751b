//! From the body of a request for text to a generation under way: what HTTP and `/ws` do alike.

use super::body::TenantBody;
use super::framing::openai::Renderer;
use super::generation::{Generation, Start};
use super::request::{Defaults, Family, GenerationRequest};
use super::route;
use crate::auth::random_hex;
use crate::error::ApiResult;
use crate::registry::catalog::now_ms;
use crate::state::{Admission, App, TenantEntry};
use std::sync::Arc;
use std::time::Instant;

/// What is known of a request before its body is read as one.
pub(super) struct Incoming {
    /// Chat or completion.
    pub(super) family: Family,
    /// What messages call the body.
    pub(super) what: &'static str,
    /// What it means where it does not say.
    pub(super) defaults: Defaults,
    /// Its route, for the metrics.
    pub(super) route: &'static str,
    /// When it came in.
    pub(super) started: Instant,
    /// Its place among the tenant's requests.
    pub(super) admission: Admission,
}

/// An answer that has begun, and what writes it down.
pub(super) struct Begun {
    /// By which the operator finds it.
    pub(super) request_id: String,
    /// What happens.
    pub(super) generation: Generation,
    /// Writes the bodies.
    pub(super) renderer: Renderer,
    /// Whether text goes out as it is made.
    pub(super) stream: bool,
}

/// Reads the request, finds who answers it, and starts that.
///
/// # Errors
/// 400 that names the field, 404 for a model that the tenant has not, 429 when the tenant's memory is in use.
pub(super) async fn begin(
    app: &Arc<App>,
    tenant: &TenantEntry,
    body: TenantBody,
    incoming: Incoming,
) -> ApiResult<Begun> {
    let Incoming {
        family,
        what,
        defaults,
        ..
    } = incoming;
    let parse = move |text: &[u8]| GenerationRequest::parse(text, what, family, defaults);
    let parsed = body.parse(app, tenant, parse, GenerationRequest::heap_bytes);
    let (request, charge) = parsed.await?;
    let target = route::resolve(app, tenant, &request).await?;
    let id = random_hex::<12>();
    let request_id = format!("req_{id}");
    let renderer = Renderer {
        family,
        id: match family {
            Family::Chat => format!("chatcmpl-{id}"),
            Family::Completion => format!("cmpl-{id}"),
        },
        model: request.model,
        created: now_ms() / 1000,
        logprobs: request.policy.logprobs,
        prompt_logprobs: request.prompt_logprobs,
        include_usage: request.include_usage,
        text: Arc::clone(target.base.client.text()),
    };
    let start = Start {
        id: request_id.clone(),
        kind: request.kind,
        policy: request.policy,
        prompt_logprobs: request.prompt_logprobs,
        choices: request.choices,
        started: incoming.started,
        route: incoming.route,
        charge,
        admission: incoming.admission,
    };
    Ok(Begun {
        request_id,
        generation: Generation::start(app, tenant, &target, start),
        renderer,
        stream: request.stream,
    })
}
