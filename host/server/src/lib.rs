//! The Realm server: ingress, admin plane, registry, metrics, settings and the command line.
//!
//! The composition root: it owns the outside world (sockets, files, the clock, keys) and hands requests to the
//! sandbox. It never touches KV blocks, logits or tensors.

#![forbid(unsafe_code)]

pub mod admin;
pub mod auth;
mod background;
mod chat_template;
pub mod cli;
pub mod config;
pub mod connections;
pub mod error;
pub mod hooks;
pub mod ingress;
pub mod metrics;
pub mod models;
pub mod path;
pub mod registry;
pub mod serve;
pub mod state;
pub mod workflows;
