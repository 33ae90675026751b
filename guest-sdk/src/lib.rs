//! Typed Rust over the Realm WIT contract, for tenants.
