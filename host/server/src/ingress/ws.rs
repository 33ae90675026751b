//! placeholder
use crate::state::App;
use axum::extract::{Request, State};
use std::sync::Arc;
pub(super) async fn upgrade(State(_): State<Arc<App>>, _: Request) {}
