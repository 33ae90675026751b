//! Characters and tokens: tokenizers, chat templates, detokenizer, stop strings.
