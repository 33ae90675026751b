//! The `tojson` filter of chat templates: JSON as Python's `json.dumps` writes it, which is what models have seen.
//! (minijinja's own filter has no spaces and escapes for HTML.)

use super::arguments::{Arguments, invalid};
use super::python_repr::{float, text, within_bounds};
use minijinja::value::{Rest, Value, ValueKind, ValueOrKwargs};
use minijinja::{Error, ErrorKind};
use std::borrow::Cow;
use std::fmt::Write;

/// Spaces of an indent; a template's number is not a reason to allocate.
const INDENT_MAX: usize = 16;

/// `value | tojson(ensure_ascii=false, indent=none, separators=none, sort_keys=false)`.
pub(super) fn tojson(value: Value, args: Rest<ValueOrKwargs>) -> Result<Value, Error> {
    let args = Arguments::bind(
        &args.into_values(),
        ["ensure_ascii", "indent", "separators", "sort_keys"],
    )?;
    let indent = match args.some(1) {
        Some(unit) if unit.as_str().is_some() => {
            Some(args.text(1)?.chars().take(INDENT_MAX).collect())
        }
        Some(_) => {
            let spaces = usize::try_from(args.number(1)?.unwrap_or(0)).unwrap_or(0);
            Some(" ".repeat(spaces.min(INDENT_MAX)))
        }
        None => None,
    };
    let (comma, colon) = match args.some(2) {
        Some(pair) => (
            text(&pair.get_item_by_index(0)?)?.into_owned(),
            text(&pair.get_item_by_index(1)?)?.into_owned(),
        ),
        None => (
            if indent.is_some() { "," } else { ", " }.to_owned(),
            ": ".to_owned(),
        ),
    };
    let mut writer = Writer {
        out: String::new(),
        comma,
        colon,
        indent,
        escape: args.truth(0, false),
        sort_keys: args.truth(3, false),
    };
    writer.value(&value, 0)?;
    Ok(writer.out.into())
}

/// JSON being written in Python's spacing.
struct Writer {
    out: String,
    comma: String,
    colon: String,
    indent: Option<String>,
    /// Everything but printable ASCII as `\uXXXX`.
    escape: bool,
    sort_keys: bool,
}

impl Writer {
    fn value(&mut self, value: &Value, depth: usize) -> Result<(), Error> {
        within_bounds(self.out.len(), depth)?;
        match value.kind() {
            ValueKind::None => self.out.push_str("null"),
            ValueKind::Bool => self
                .out
                .push_str(if value.is_true() { "true" } else { "false" }),
            ValueKind::Number if value.is_integer() => self.out.push_str(&value.to_string()),
            ValueKind::Number => {
                let number = json_float(f64::try_from(value.clone())?);
                self.out.push_str(&number);
            }
            ValueKind::String => self.text(value.as_str().unwrap_or_default())?,
            ValueKind::Seq | ValueKind::Iterable => self.list(value, depth)?,
            ValueKind::Map => self.map(value, depth)?,
            kind => {
                let message = format!("a value of type {kind} is not JSON serializable");
                return Err(Error::new(ErrorKind::BadSerialization, message));
            }
        }
        Ok(())
    }

    fn list(&mut self, value: &Value, depth: usize) -> Result<(), Error> {
        self.out.push('[');
        let mut is_empty = true;
        for item in value.try_iter()?.checked() {
            self.next(is_empty, depth + 1);
            is_empty = false;
            self.value(&item?, depth + 1)?;
        }
        self.end(is_empty, depth, ']');
        Ok(())
    }

    fn map(&mut self, value: &Value, depth: usize) -> Result<(), Error> {
        self.out.push('{');
        let pairs = value.as_object().and_then(|object| object.try_iter_pairs());
        let pairs = pairs.into_iter().flatten();
        let mut pairs = pairs
            .map(|(name, item)| Ok((key(&name)?, item)))
            .collect::<Result<Vec<_>, Error>>()?;
        if self.sort_keys {
            pairs.sort_by(|(one, _), (other, _)| one.cmp(other));
        }
        for (at, (name, item)) in pairs.iter().enumerate() {
            self.next(at == 0, depth + 1);
            self.text(name)?;
            self.out.push_str(&self.colon);
            self.value(item, depth + 1)?;
        }
        self.end(pairs.is_empty(), depth, '}');
        Ok(())
    }

    /// What stands before an item.
    fn next(&mut self, is_first: bool, depth: usize) {
        if !is_first {
            self.out.push_str(&self.comma);
        }
        self.line(depth);
    }

    fn end(&mut self, is_empty: bool, depth: usize, bracket: char) {
        if !is_empty {
            self.line(depth);
        }
        self.out.push(bracket);
    }

    fn line(&mut self, depth: usize) {
        if let Some(indent) = &self.indent {
            self.out.push('\n');
            for _ in 0..depth {
                self.out.push_str(indent);
            }
        }
    }

    fn text(&mut self, text: &str) -> Result<(), Error> {
        self.out.push('"');
        for letter in text.chars() {
            match letter {
                '"' => self.out.push_str("\\\""),
                '\\' => self.out.push_str("\\\\"),
                '\n' => self.out.push_str("\\n"),
                '\r' => self.out.push_str("\\r"),
                '\t' => self.out.push_str("\\t"),
                '\u{8}' => self.out.push_str("\\b"),
                '\u{c}' => self.out.push_str("\\f"),
                '\0'..' ' => self.escaped(letter)?,
                letter if self.escape && !(' '..='~').contains(&letter) => self.escaped(letter)?,
                letter => self.out.push(letter),
            }
        }
        self.out.push('"');
        Ok(())
    }

    fn escaped(&mut self, letter: char) -> Result<(), Error> {
        within_bounds(self.out.len(), 0)?;
        for unit in letter.encode_utf16(&mut [0; 2]) {
            // Writing to a text does not fail.
            let _ = write!(self.out, "\\u{unit:04x}");
        }
        Ok(())
    }
}

fn json_float(number: f64) -> Cow<'static, str> {
    match number {
        f64::INFINITY => "Infinity".into(),
        f64::NEG_INFINITY => "-Infinity".into(),
        number if number.is_nan() => "NaN".into(),
        number => float(number).into(),
    }
}

/// The name of a member: what JSON writes for a number or a truth value is one too.
fn key(value: &Value) -> Result<String, Error> {
    match value.kind() {
        ValueKind::String => Ok(value.as_str().unwrap_or_default().to_owned()),
        ValueKind::Number if !value.is_integer() => {
            Ok(json_float(f64::try_from(value.clone())?).into_owned())
        }
        ValueKind::Number => Ok(value.to_string()),
        ValueKind::Bool => Ok(if value.is_true() { "true" } else { "false" }.to_owned()),
        ValueKind::None => Ok("null".to_owned()),
        kind => Err(invalid(format!(
            "the name of a member must be a text or a number, not {kind}"
        ))),
    }
}
