//! Values as Python prints them: `str()` and `repr()`.

use minijinja::value::{Value, ValueKind};
use minijinja::{Error, ErrorKind};
use std::borrow::Cow;
use std::fmt::Write;
use unicode_categories::UnicodeCategories;

/// Size of the text of a list or a map, or of one made of many, in bytes. It grows by doubling, and is copied once.
const VALUE_BYTES_MAX: usize = 8 << 20;
/// How deep values may be nested that are printed; Python stops at about as many.
const DEPTH_MAX: usize = 900;

/// `str(value)`.
pub(super) fn text(value: &Value) -> Result<Cow<'_, str>, Error> {
    if let Some(text) = value.as_str() {
        return Ok(Cow::Borrowed(text));
    }
    if value.is_undefined() {
        return Ok(Cow::Borrowed(""));
    }
    repr(value).map(Cow::Owned)
}

/// `repr(value)`.
pub(super) fn repr(value: &Value) -> Result<String, Error> {
    let mut out = String::new();
    write_repr(&mut out, value, 0)?;
    Ok(out)
}

fn write_repr(out: &mut String, value: &Value, depth: usize) -> Result<(), Error> {
    within_bounds(out.len(), depth)?;
    match value.kind() {
        ValueKind::Undefined => out.push_str("Undefined"),
        ValueKind::String => quote(out, value.as_str().unwrap_or_default())?,
        ValueKind::Bytes => quote_bytes(out, value.as_bytes().unwrap_or_default()),
        ValueKind::Number if !value.is_integer() => {
            out.push_str(&float(f64::try_from(value.clone())?))
        }
        ValueKind::Seq | ValueKind::Iterable => write_items(out, value, depth)?,
        ValueKind::Map => write_pairs(out, value, depth)?,
        _ => {
            // Writing to a text does not fail.
            let _ = write!(out, "{value}");
        }
    }
    Ok(())
}

/// An error where a text that is being made is too long, or a value nested too deep.
pub(super) fn within_bounds(bytes: usize, depth: usize) -> Result<(), Error> {
    let wrong = match (bytes > VALUE_BYTES_MAX, depth > DEPTH_MAX) {
        (false, false) => return Ok(()),
        (true, _) => "a value is too large to be printed",
        (_, true) => "a value is nested too deep to be printed",
    };
    Err(Error::new(ErrorKind::InvalidOperation, wrong))
}

fn write_items(out: &mut String, value: &Value, depth: usize) -> Result<(), Error> {
    let tuple = value.is_tuple();
    out.push(if tuple { '(' } else { '[' });
    let mut count = 0;
    for item in value.try_iter()?.checked() {
        if count > 0 {
            out.push_str(", ");
        }
        count += 1;
        write_repr(out, &item?, depth + 1)?;
    }
    if tuple && count == 1 {
        out.push(',');
    }
    out.push(if tuple { ')' } else { ']' });
    Ok(())
}

fn write_pairs(out: &mut String, value: &Value, depth: usize) -> Result<(), Error> {
    out.push('{');
    let pairs = value.as_object().and_then(|object| object.try_iter_pairs());
    for (at, (key, item)) in pairs.into_iter().flatten().enumerate() {
        if at > 0 {
            out.push_str(", ");
        }
        write_repr(out, &key, depth + 1)?;
        out.push_str(": ");
        write_repr(out, &item, depth + 1)?;
    }
    out.push('}');
    Ok(())
}

/// A text in quotes, with what does not print escaped.
fn quote(out: &mut String, text: &str) -> Result<(), Error> {
    let quote = if text.contains('\'') && !text.contains('"') {
        '"'
    } else {
        '\''
    };
    out.push(quote);
    for letter in text.chars() {
        match letter {
            '\n' => out.push_str("\\n"),
            '\r' => out.push_str("\\r"),
            '\t' => out.push_str("\\t"),
            '\\' => out.push_str("\\\\"),
            letter if letter == quote => out.extend(['\\', quote]),
            letter if is_printable(letter) => out.push(letter),
            letter => {
                within_bounds(out.len(), 0)?;
                out.push_str(&escaped(letter));
            }
        }
    }
    out.push(quote);
    Ok(())
}

/// The shortest of Python's numeric escapes.
pub(super) fn escaped(letter: char) -> String {
    match letter as u32 {
        code @ 0..0x100 => format!("\\x{code:02x}"),
        code @ 0x100..0x1_0000 => format!("\\u{code:04x}"),
        code => format!("\\U{code:08x}"),
    }
}

fn quote_bytes(out: &mut String, bytes: &[u8]) {
    out.push_str("b'");
    for byte in bytes {
        match byte {
            b'\n' => out.push_str("\\n"),
            b'\r' => out.push_str("\\r"),
            b'\t' => out.push_str("\\t"),
            b'\\' | b'\'' => out.extend(['\\', char::from(*byte)]),
            b' '..=b'~' => out.push(char::from(*byte)),
            byte => out.push_str(&escaped(char::from(*byte))),
        }
    }
    out.push('\'');
}

/// `str.isprintable` of one letter.
pub(super) fn is_printable(letter: char) -> bool {
    letter == ' ' || !(letter.is_other() || letter.is_separator())
}

/// `repr(float)`: the shortest digits that are this number, with an exponent where Python writes one.
pub(super) fn float(number: f64) -> String {
    if number.is_nan() {
        return "nan".to_owned();
    }
    if number.is_infinite() {
        return if number > 0.0 { "inf" } else { "-inf" }.to_owned();
    }
    let scientific = format!("{number:e}");
    let (digits, exponent) = scientific.split_once('e').unwrap_or((&scientific, "0"));
    match exponent.parse::<i32>() {
        Ok(exponent) if !(-4..16).contains(&exponent) => {
            let sign = if exponent < 0 { '-' } else { '+' };
            format!("{digits}e{sign}{:02}", exponent.abs())
        }
        _ => format!("{number:?}"),
    }
}
