//! Every operation as plain loops with f64 sums: the truth the kernels are held to, and never called in production.

mod attention;
mod embed;
mod gated_act;
mod matmul;
mod norm;
mod quantize;
mod rope;
mod softmax;

pub use attention::{PagedKv, attention};
pub use embed::embed;
pub use gated_act::{activate, gated_act, softcap};
pub use matmul::matmul;
pub use norm::{layer_norm, rms_norm};
pub use quantize::quantize;
pub use rope::rope;
pub use softmax::softmax;
