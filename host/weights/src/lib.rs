//! GGUF files as named tensor views over a read-only map; input is hostile.
