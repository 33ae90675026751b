//! The sandbox: compiles, limits and runs tenant components; the only crate that names wasmtime.
