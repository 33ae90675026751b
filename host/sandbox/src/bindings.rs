//! The host's side of `wit/`, made by wasmtime. `imports/` implements it; nothing here is written by hand.

#![allow(
    missing_docs,
    unreachable_pub,
    clippy::allow_attributes_without_reason,
    reason = "generated code; its documentation is in wit/"
)]

wasmtime::component::bindgen!({
    path: ["../../wit/llm", "../../wit/host", "../../wit/tenant"],
    world: "realm:tenant/workflow",
    imports: { default: async | trappable },
    exports: { default: async },
    require_store_data_send: true,
    trappable_error_type: {
        "realm:llm/types.error" => crate::imports::Failure,
    },
    with: {
        "realm:llm/model.model": crate::imports::model::ModelHandle,
        "realm:llm/sequence.sequence": crate::imports::sequence::SequenceHandle,
        "realm:llm/generation.policy": crate::imports::generation::PolicyHandle,
        "realm:llm/generation.run": crate::imports::generation::RunHandle,
        "realm:host/exchange.request": crate::imports::exchange::RequestHandle,
        "realm:host/exchange.reply": crate::imports::exchange::ReplyHandle,
    },
});
