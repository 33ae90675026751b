//! The harness of the cross-crate tests: starts the real `realm` binary on free ports with a data folder of its own
//! and talks to it as users do, over HTTP, server-sent events and WebSocket. It knows the wire and nothing of the
//! crates behind it, so that a test here can only pass if a client would be content too.
#![forbid(unsafe_code)]

pub mod http;
pub mod metrics;
pub mod paths;
pub mod python;
pub mod raw;
pub mod server;
pub mod socket;
