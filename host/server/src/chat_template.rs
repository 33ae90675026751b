//! The setting `chat_template`: a template of ours by its name, or a file.

use anyhow::{Context, Result};
use realm_engine::text::{chat_template_names, named_chat_template};

/// The source of the template that a setting means: a name, or else the path of a file.
///
/// # Errors
/// When it is no name and there is no such file; the message lists the names.
pub(crate) fn chat_template(setting: &str) -> Result<String> {
    if let Some(template) = named_chat_template(setting) {
        return Ok(template.to_owned());
    }
    std::fs::read_to_string(setting).with_context(|| {
        let names: Vec<&str> = chat_template_names().collect();
        let names = names.join(", ");
        format!("cannot read the chat template {setting:?}, which is a file or one of {names}")
    })
}

#[cfg(test)]
mod tests {
    #![allow(clippy::unwrap_used, reason = "in a test it is an assertion")]

    use super::chat_template;

    #[test]
    fn a_setting_is_a_name_or_a_file() {
        assert!(chat_template("chatml").unwrap().contains("<|im_start|>"));
        let folder = tempfile::tempdir().unwrap();
        let path = folder.path().join("own.jinja");
        std::fs::write(&path, "{{ messages }}").unwrap();
        let setting = path.to_str().unwrap();
        assert_eq!(chat_template(setting).unwrap(), "{{ messages }}");
        let error = chat_template("nobody").unwrap_err().to_string();
        assert!(
            error.contains("nobody") && error.contains("zephyr"),
            "{error}"
        );
    }
}
