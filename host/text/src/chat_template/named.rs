//! Templates that an operator chooses by name, for models whose file has none or a broken one. They take texts and no
//! tools.

/// Every name with its template.
const TEMPLATES: [(&str, &str); 13] = [
    ("alpaca", include_str!("named/alpaca.jinja")),
    ("chatml", CHATML),
    ("command-r", include_str!("named/command-r.jinja")),
    ("deepseek", include_str!("named/deepseek.jinja")),
    ("gemma", GEMMA),
    ("llama2", include_str!("named/llama2.jinja")),
    ("llama3", include_str!("named/llama3.jinja")),
    ("mistral", include_str!("named/mistral.jinja")),
    ("openchat", include_str!("named/openchat.jinja")),
    ("phi3", include_str!("named/phi3.jinja")),
    ("phi4", include_str!("named/phi4.jinja")),
    ("vicuna", include_str!("named/vicuna.jinja")),
    ("zephyr", include_str!("named/zephyr.jinja")),
];

/// What is used when the model file has no template.
pub(super) const CHATML: &str = include_str!("named/chatml.jinja");
/// The same for vocabularies that have [`TURN`](super::TURN). There is no system role; what it says opens the first turn
/// of the user.
pub(super) const GEMMA: &str = include_str!("named/gemma.jinja");

/// The template of a name.
pub fn named_chat_template(name: &str) -> Option<&'static str> {
    let found = TEMPLATES.iter().find(|(known, _)| *known == name);
    found.map(|(_, template)| *template)
}

/// The names there are.
pub fn chat_template_names() -> impl Iterator<Item = &'static str> {
    TEMPLATES.iter().map(|(name, _)| *name)
}
