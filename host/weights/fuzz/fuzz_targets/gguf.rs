//! Any bytes are read or refused. Run with `cargo +nightly fuzz run gguf` in `host/weights`.
#![no_main]

use realm_weights::ModelSource;

libfuzzer_sys::fuzz_target!(|bytes: &[u8]| {
    if let Ok(file) = realm_weights::Gguf::from_bytes(bytes.to_vec()) {
        let _ = file.tokenizer();
        for tensor in file.tensors() {
            let _ = (tensor.matrix(), tensor.vector_f32());
        }
    }
});
