//! The bindings wit-bindgen makes of `wit/`. The rest of the crate wraps them; nothing here is written by hand.

#![allow(
    missing_docs,
    unreachable_pub,
    unsafe_op_in_unsafe_fn,
    clippy::undocumented_unsafe_blocks,
    clippy::missing_safety_doc,
    clippy::allow_attributes_without_reason,
    reason = "generated code; its documentation is in wit/"
)]

wit_bindgen::generate!({
    path: ["../wit/llm", "../wit/host", "../wit/tenant"],
    world: "realm:tenant/workflow",
    pub_export_macro: true,
    export_macro_name: "export_workflow",
    generate_all,
});
