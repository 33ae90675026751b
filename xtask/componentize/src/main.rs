//! `componentize MODULE COMPONENT ...`: makes a component of each core module.
//!
//! A program apart from `xtask`, because `wit-component` takes longer to compile than all of it, and whoever only starts the
//! demo needs no component made.

#![forbid(unsafe_code)]

use anyhow::{Context, Result, ensure};
use std::fs;

fn main() -> Result<()> {
    let files: Vec<String> = std::env::args().skip(1).collect();
    let (pairs, rest) = files.as_chunks::<2>();
    ensure!(
        rest.is_empty(),
        "usage: componentize MODULE COMPONENT [MODULE COMPONENT]..."
    );
    for [module, component] in pairs {
        let bytes = fs::read(module).with_context(|| format!("cannot read {module}"))?;
        let encoded = wit_component::ComponentEncoder::default()
            .validate(true)
            .module(&bytes)
            .and_then(|encoder| encoder.encode())
            .with_context(|| format!("cannot make a component of {module}"))?;
        fs::write(component, encoded).with_context(|| format!("cannot write {component}"))?;
    }
    Ok(())
}
