//! `realm model render`: the prompts that a server makes of chats. Only the tokenizer's part of the model file is read.

use super::client::line;
use super::model::cache_folder;
use crate::chat_template::chat_template;
use crate::config::model_name_of;
use crate::ingress;
use anyhow::{Context, Result, bail};
use realm_engine::Gguf;
use realm_engine::model::text_model;
use serde_json::json;
use std::io::BufRead;
use std::path::{Path, PathBuf};

/// Bytes of a line, as of a request's body.
const LINE_BYTES_MAX: usize = ingress::BODY_BYTES_MAX;

#[derive(clap::Args)]
pub(super) struct Render {
    /// GGUF file, or the name of a model in the folder that `realm model list` shows
    #[arg(long, value_name = "PATH|NAME")]
    model: PathBuf,
    /// Chat template to use in place of the model's: a Jinja file, or a name such as chatml
    #[arg(long, value_name = "FILE|NAME")]
    chat_template: Option<String>,
}

/// Reads one request a line from standard input, and prints one line for each.
pub(super) fn render(render: &Render) -> Result<()> {
    let path = path_of(&render.model)?;
    let shown = path.display();
    let gguf = Gguf::open(&path).with_context(|| format!("cannot read the model {shown}"))?;
    let template = render.chat_template.as_deref().map(chat_template);
    let text = text_model(&gguf, template.transpose()?)
        .with_context(|| format!("cannot use the model {shown}"))?;
    for request in std::io::stdin().lock().split(b'\n') {
        let request = request.context("reading standard input")?;
        if request.trim_ascii().is_empty() {
            continue;
        }
        let prompt = match request.len() > LINE_BYTES_MAX {
            true => Err(format!("a request may have at most {LINE_BYTES_MAX} bytes")),
            false => ingress::prompt(&text, &request),
        };
        let answer = match prompt {
            Ok(prompt) => json!({ "ok": prompt }),
            Err(why) => json!({ "err": why }),
        };
        line(&one_line(&answer.to_string()))?;
    }
    Ok(())
}

/// JSON without the letters that JSON allows in a text and some programs take for the end of a line.
fn one_line(json: &str) -> String {
    let mut out = String::with_capacity(json.len());
    for letter in json.chars() {
        match letter {
            '\u{85}' | '\u{2028}' | '\u{2029}' => {
                out.push_str(&format!("\\u{:04x}", letter as u32))
            }
            letter => out.push(letter),
        }
    }
    out
}

/// The file that a path or a name means.
fn path_of(model: &Path) -> Result<PathBuf> {
    if model.exists() {
        return Ok(model.to_owned());
    }
    let folder = cache_folder()?;
    let entries = std::fs::read_dir(&folder).into_iter().flatten().flatten();
    let mut paths: Vec<PathBuf> = entries.map(|entry| entry.path()).collect();
    paths.retain(|path| {
        let is_gguf = path
            .extension()
            .is_some_and(|extension| extension == "gguf");
        is_gguf
            && (Path::new(&model_name_of(path)) == model
                || path.file_name() == Some(model.as_os_str()))
    });
    paths.sort();
    match paths.into_iter().next() {
        Some(path) => Ok(path),
        None => bail!(
            "there is no file {}, and no model of that name in {}",
            model.display(),
            folder.display()
        ),
    }
}
