//! How an answer is written down: as server-sent events, whole, or as frames of `/ws`. A framer only renders what
//! [`Generation`](super::generation::Generation) gives it; another API is another file here.

mod logprobs;
pub(super) mod openai;
pub(super) mod sse;
pub(super) mod whole;
pub(super) mod ws;
