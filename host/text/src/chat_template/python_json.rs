//! The `tojson` filter of chat templates: JSON as Python's `json.dumps` writes it, which is what models have seen.
//! (minijinja's own filter has no spaces and escapes for HTML.)

use super::{Bounded, Room};
use minijinja::value::{Kwargs, Value};
use minijinja::{Error, ErrorKind};
use serde::Serialize;
use serde_json::ser::{CharEscape, Formatter, Serializer};
use std::fmt::Display;
use std::io::{Result, Write};

/// Spaces of an indent; a template's number is not a reason to allocate.
const INDENT_MAX: usize = 16;

/// `value | tojson(ensure_ascii=false, indent=none, separators=none, sort_keys=false)`.
pub(super) fn tojson(value: Value, options: Kwargs) -> std::result::Result<Value, Error> {
    let indent: Option<usize> = options.get("indent")?;
    let separators: Option<(String, String)> = match options.get("separators")? {
        Some::<Value>(pair) if !pair.is_none() => Some((
            pair.get_item_by_index(0)?.to_string(),
            pair.get_item_by_index(1)?.to_string(),
        )),
        _ => None,
    };
    let sort_keys = options.get::<Option<bool>>("sort_keys")?.unwrap_or(false);
    let escape = options
        .get::<Option<bool>>("ensure_ascii")?
        .unwrap_or(false);
    options.assert_all_used()?;

    let comma = if indent.is_some() { "," } else { ", " };
    let (comma, colon) = separators.unwrap_or_else(|| (comma.to_owned(), ": ".to_owned()));
    let style = Style {
        comma,
        colon,
        indent: indent.map(|spaces| " ".repeat(spaces.min(INDENT_MAX))),
        escape,
        depth: 0,
        filled: false,
    };
    let mut out = Bounded::new(Room::ALL);
    let mut serializer = Serializer::with_formatter(&mut out, style);
    if sort_keys {
        let mut sorted = serde_json::to_value(&value).map_err(bad)?;
        sorted.sort_all_objects();
        sorted.serialize(&mut serializer).map_err(bad)?;
    } else {
        value.serialize(&mut serializer).map_err(bad)?;
    }
    String::from_utf8(out.bytes).map(Value::from).map_err(bad)
}

fn bad(error: impl Display) -> Error {
    Error::new(ErrorKind::BadSerialization, error.to_string())
}

/// Python's spacing.
struct Style {
    comma: String,
    colon: String,
    indent: Option<String>,
    /// Everything but printable ASCII as `\uXXXX`.
    escape: bool,
    depth: usize,
    /// Whether the innermost list or object has had an element.
    filled: bool,
}

impl Style {
    fn line(&self, out: &mut (impl Write + ?Sized)) -> Result<()> {
        if let Some(indent) = &self.indent {
            out.write_all(b"\n")?;
            for _ in 0..self.depth {
                out.write_all(indent.as_bytes())?;
            }
        }
        Ok(())
    }

    fn open(&mut self, out: &mut (impl Write + ?Sized), bracket: &[u8]) -> Result<()> {
        self.depth += 1;
        self.filled = false;
        out.write_all(bracket)
    }

    fn close(&mut self, out: &mut (impl Write + ?Sized), bracket: &[u8]) -> Result<()> {
        self.depth -= 1;
        if self.filled {
            self.line(out)?;
        }
        self.filled = true;
        out.write_all(bracket)
    }

    fn element(&mut self, out: &mut (impl Write + ?Sized), first: bool) -> Result<()> {
        if !first {
            out.write_all(self.comma.as_bytes())?;
        }
        self.filled = true;
        self.line(out)
    }
}

impl Formatter for Style {
    fn begin_array<W: Write + ?Sized>(&mut self, out: &mut W) -> Result<()> {
        self.open(out, b"[")
    }

    fn end_array<W: Write + ?Sized>(&mut self, out: &mut W) -> Result<()> {
        self.close(out, b"]")
    }

    fn begin_array_value<W: Write + ?Sized>(&mut self, out: &mut W, first: bool) -> Result<()> {
        self.element(out, first)
    }

    fn begin_object<W: Write + ?Sized>(&mut self, out: &mut W) -> Result<()> {
        self.open(out, b"{")
    }

    fn end_object<W: Write + ?Sized>(&mut self, out: &mut W) -> Result<()> {
        self.close(out, b"}")
    }

    fn begin_object_key<W: Write + ?Sized>(&mut self, out: &mut W, first: bool) -> Result<()> {
        self.element(out, first)
    }

    fn begin_object_value<W: Write + ?Sized>(&mut self, out: &mut W) -> Result<()> {
        out.write_all(self.colon.as_bytes())
    }

    fn write_string_fragment<W: Write + ?Sized>(&mut self, out: &mut W, text: &str) -> Result<()> {
        if !self.escape {
            return out.write_all(text.as_bytes());
        }
        for unit in text.encode_utf16() {
            match u8::try_from(unit) {
                Ok(byte @ b' '..=b'~') => out.write_all(&[byte])?,
                _ => write!(out, "\\u{unit:04x}")?,
            }
        }
        Ok(())
    }

    fn write_char_escape<W: Write + ?Sized>(
        &mut self,
        out: &mut W,
        escape: CharEscape,
    ) -> Result<()> {
        match escape {
            CharEscape::Quote => out.write_all(b"\\\""),
            CharEscape::ReverseSolidus => out.write_all(b"\\\\"),
            CharEscape::Solidus => out.write_all(b"\\/"),
            CharEscape::Backspace => out.write_all(b"\\b"),
            CharEscape::FormFeed => out.write_all(b"\\f"),
            CharEscape::LineFeed => out.write_all(b"\\n"),
            CharEscape::CarriageReturn => out.write_all(b"\\r"),
            CharEscape::Tab => out.write_all(b"\\t"),
            CharEscape::AsciiControl(byte) => write!(out, "\\u{byte:04x}"),
        }
    }
}
