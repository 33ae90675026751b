//! Python's two ways to fill in a text: `'%s' % values` and `'{}'.format(values)`.

use super::arguments::invalid;
use super::python_repr::{escaped, float, repr, text, within_bounds};
use minijinja::value::{Kwargs, Value, ValueKind};
use minijinja::{Error, State};
use std::iter::Peekable;
use std::str::Chars;

/// Digits after the point; Rust formats no more than some 65,000.
const PRECISION_MAX: usize = 1000;
/// How deep fields may stand in the specification of another.
const FIELD_DEPTH_MAX: usize = 2;

/// How one value is to be written.
#[derive(Debug, Default, Clone)]
struct Spec {
    fill: Option<char>,
    /// `<`, `>`, `^` or `=`.
    align: Option<char>,
    /// `+`, `-` or a space.
    sign: Option<char>,
    alternate: bool,
    zero: bool,
    width: usize,
    /// `,` or `_` between groups of digits.
    grouping: Option<char>,
    precision: Option<usize>,
    kind: Option<char>,
}

impl Spec {
    /// Pays for the room that the width asks for, before it is taken.
    fn pay(&self, state: &State) -> Result<(), Error> {
        if self.precision.is_some_and(|digits| digits > PRECISION_MAX)
            && !matches!(self.kind, Some('s' | 'r' | 'a') | None)
        {
            return Err(invalid(format!(
                "a precision must be at most {PRECISION_MAX}"
            )));
        }
        state.consume_fuel(self.width as u64 / 64)
    }
}

/// `format % values`.
pub(super) fn percent(state: &State, format: &str, values: &Value) -> Result<String, Error> {
    let mut values = PercentValues::new(values)?;
    let mut out = String::new();
    let mut letters = format.chars().peekable();
    while let Some(letter) = letters.next() {
        if letter != '%' {
            out.push(letter);
            continue;
        }
        let key = (letters.peek() == Some(&'(')).then(|| key(&mut letters));
        let spec = percent_spec(&mut letters, &mut values)?;
        if spec.kind == Some('%') {
            out.push('%');
            continue;
        }
        let value = match key.transpose()? {
            Some(key) => values.named(&key)?,
            None => values.next()?,
        };
        spec.pay(state)?;
        out.push_str(&percent_value(&value, &spec)?);
        within_bounds(out.len(), 0)?;
    }
    values.end()?;
    Ok(out)
}

/// What is filled in: the items of a tuple, or one value, whose items have names if it is a map.
struct PercentValues<'v> {
    all: &'v Value,
    items: Vec<Value>,
    used: usize,
}

impl<'v> PercentValues<'v> {
    fn new(all: &'v Value) -> Result<PercentValues<'v>, Error> {
        let items = match all.is_tuple() {
            true => all.try_iter()?.checked().collect::<Result<_, _>>()?,
            false => vec![all.clone()],
        };
        let used = 0;
        Ok(PercentValues { all, items, used })
    }

    fn next(&mut self) -> Result<Value, Error> {
        let next = self.items.get(self.used).cloned();
        self.used += 1;
        next.ok_or_else(|| invalid("not enough arguments for format string"))
    }

    fn named(&mut self, key: &str) -> Result<Value, Error> {
        if self.all.kind() != ValueKind::Map {
            return Err(invalid("format requires a mapping"));
        }
        self.used = self.items.len();
        let value = self.all.get_item(&Value::from(key))?;
        match value.is_undefined() {
            true => Err(invalid(format!("'{key}' is not in the mapping"))),
            false => Ok(value),
        }
    }

    fn end(self) -> Result<(), Error> {
        match self.used < self.items.len() && self.all.kind() != ValueKind::Map {
            true => Err(invalid(
                "not all arguments converted during string formatting",
            )),
            false => Ok(()),
        }
    }
}

/// The name in `%(name)s`.
fn key(letters: &mut Peekable<Chars<'_>>) -> Result<String, Error> {
    letters.next();
    let mut key = String::new();
    for letter in letters {
        if letter == ')' {
            return Ok(key);
        }
        key.push(letter);
    }
    Err(invalid("incomplete format key"))
}

fn percent_spec(
    letters: &mut Peekable<Chars<'_>>,
    values: &mut PercentValues<'_>,
) -> Result<Spec, Error> {
    let mut spec = Spec::default();
    while let Some(flag) = letters.next_if(|letter| "#0- +".contains(*letter)) {
        match flag {
            '#' => spec.alternate = true,
            '0' => spec.zero = true,
            '-' => spec.align = Some('<'),
            ' ' if spec.sign.is_some() => {}
            sign => spec.sign = Some(sign),
        }
    }
    let width = percent_number(letters, values)?.unwrap_or(0);
    if width < 0 {
        spec.align = Some('<');
    }
    spec.width = usize::try_from(width.unsigned_abs()).unwrap_or(usize::MAX);
    if letters.next_if_eq(&'.').is_some() {
        let digits = percent_number(letters, values)?.unwrap_or(0);
        spec.precision = Some(usize::try_from(digits).unwrap_or(0));
    }
    while letters.next_if(|letter| "hlL".contains(*letter)).is_some() {}
    spec.kind = letters.next();
    match spec.kind {
        Some(_) => Ok(spec),
        None => Err(invalid("incomplete format")),
    }
}

/// A number in the text, or `*` for the next of the values.
fn percent_number(
    letters: &mut Peekable<Chars<'_>>,
    values: &mut PercentValues<'_>,
) -> Result<Option<i64>, Error> {
    if letters.next_if_eq(&'*').is_some() {
        let value = values.next()?;
        let number = value.as_i64().ok_or_else(|| invalid("* wants int"))?;
        return Ok(Some(number));
    }
    number(letters).map(|number| number.map(|number| i64::try_from(number).unwrap_or(i64::MAX)))
}

fn number(letters: &mut Peekable<Chars<'_>>) -> Result<Option<usize>, Error> {
    let mut digits = String::new();
    while let Some(digit) = letters.next_if(char::is_ascii_digit) {
        digits.push(digit);
    }
    match digits.is_empty() {
        true => Ok(None),
        false => digits
            .parse()
            .map(Some)
            .map_err(|_| invalid("a number in the format string is too large")),
    }
}

fn percent_value(value: &Value, spec: &Spec) -> Result<String, Error> {
    let kind = spec.kind.unwrap_or('s');
    let is_number = matches!(value.kind(), ValueKind::Number | ValueKind::Bool);
    match kind {
        's' => Ok(padded_text(&text(value)?, spec, '>')),
        'r' => Ok(padded_text(&repr(value)?, spec, '>')),
        'a' => Ok(padded_text(&ascii(&repr(value)?), spec, '>')),
        'c' => Ok(padded_text(&letter(value)?, spec, '>')),
        'd' | 'i' | 'u' | 'o' | 'x' | 'X' if is_number => {
            let whole = whole(value, matches!(kind, 'd' | 'i' | 'u'))?;
            let (negative, mut digits) = in_base(whole, kind);
            if let Some(least) = spec.precision {
                digits = format!("{}{digits}", "0".repeat(least.saturating_sub(digits.len())));
            }
            Ok(padded_number(
                negative,
                &digits,
                &Spec {
                    precision: None,
                    ..spec.clone()
                },
            ))
        }
        'e' | 'E' | 'f' | 'F' | 'g' | 'G' if is_number => {
            let (negative, digits) = digits_of_float(as_float(value)?, kind, spec);
            Ok(padded_number(negative, &digits, spec))
        }
        'd' | 'i' | 'u' | 'o' | 'x' | 'X' | 'e' | 'E' | 'f' | 'F' | 'g' | 'G' => Err(invalid(
            format!("%{kind} format: a number is required, not {}", value.kind()),
        )),
        kind => Err(invalid(format!("unsupported format character '{kind}'"))),
    }
}

fn ascii(text: &str) -> String {
    let escape = |letter: char| match letter.is_ascii() {
        true => letter.to_string(),
        false => escaped(letter),
    };
    text.chars().map(escape).collect()
}

/// `%c`: a letter, or the number of one.
fn letter(value: &Value) -> Result<String, Error> {
    let one = value.as_str().filter(|text| text.chars().count() == 1);
    let number = value.as_i64().and_then(|code| u32::try_from(code).ok());
    match (one, number.and_then(char::from_u32)) {
        (Some(letter), _) => Ok(letter.to_owned()),
        (_, Some(letter)) => Ok(letter.to_string()),
        _ => Err(invalid("%c requires an int or a unicode character")),
    }
}

pub(super) fn whole(value: &Value, truncates: bool) -> Result<i128, Error> {
    if value.kind() == ValueKind::Bool {
        return Ok(i128::from(value.is_true()));
    }
    if value.is_integer() {
        return i128::try_from(value.clone());
    }
    if !truncates {
        return Err(invalid(
            "a whole number is required, not one with a fraction",
        ));
    }
    let number = f64::try_from(value.clone())?;
    match number.is_finite() {
        true => Ok(number.trunc() as i128),
        false => Err(invalid("cannot convert this float to an integer")),
    }
}

pub(super) fn as_float(value: &Value) -> Result<f64, Error> {
    match value.kind() {
        ValueKind::Bool => Ok(if value.is_true() { 1.0 } else { 0.0 }),
        _ => f64::try_from(value.clone()),
    }
}

fn in_base(whole: i128, kind: char) -> (bool, String) {
    let size = whole.unsigned_abs();
    let digits = match kind {
        'x' => format!("{size:x}"),
        'X' => format!("{size:X}"),
        'o' => format!("{size:o}"),
        'b' => format!("{size:b}"),
        _ => size.to_string(),
    };
    (whole < 0, digits)
}

/// The digits of a number without its sign.
fn digits_of_float(number: f64, kind: char, spec: &Spec) -> (bool, String) {
    let (negative, size) = (number.is_sign_negative() && !number.is_nan(), number.abs());
    let upper = kind.is_ascii_uppercase();
    let precision = spec.precision.unwrap_or(6).min(PRECISION_MAX);
    if !size.is_finite() {
        let name = float(size);
        return (negative, if upper { name.to_uppercase() } else { name });
    }
    let digits = match kind.to_ascii_lowercase() {
        'e' => exponent(size, precision),
        'f' => format!("{size:.precision$}"),
        '%' => format!("{:.precision$}%", size * 100.0),
        _ => general(size, precision.max(1), precision.max(1), spec.alternate),
    };
    (negative, if upper { digits.to_uppercase() } else { digits })
}

/// A digit, a point, `precision` digits and an exponent of at least two.
fn exponent(size: f64, precision: usize) -> String {
    let scientific = format!("{size:.precision$e}");
    let (digits, exponent) = scientific.split_once('e').unwrap_or((&scientific, "0"));
    let exponent: i32 = exponent.parse().unwrap_or(0);
    let sign = if exponent < 0 { '-' } else { '+' };
    format!("{digits}e{sign}{:02}", exponent.abs())
}

/// `g`: `precision` significant digits, with an exponent where the number is small or has more than `places_max` places
/// before the point.
fn general(size: f64, precision: usize, places_max: usize, keeps_zeros: bool) -> String {
    let scientific = exponent(size, precision - 1);
    let (digits, power) = scientific.split_once('e').unwrap_or((&scientific, "0"));
    let power: i32 = power.parse().unwrap_or(0);
    let bare = |digits: &str| match keeps_zeros || !digits.contains('.') {
        true => digits.to_owned(),
        false => digits
            .trim_end_matches('0')
            .trim_end_matches('.')
            .to_owned(),
    };
    if power < -4 || power >= places_max as i32 {
        let sign = if power < 0 { '-' } else { '+' };
        return format!("{}e{sign}{:02}", bare(digits), power.abs());
    }
    let places = usize::try_from(precision as i32 - 1 - power).unwrap_or(0);
    bare(&format!("{size:.places$}"))
}

/// A text cut to the precision and set in the width.
fn padded_text(text: &str, spec: &Spec, align: char) -> String {
    let letters = spec.precision.unwrap_or(usize::MAX);
    let end = text
        .char_indices()
        .nth(letters)
        .map_or(text.len(), |(at, _)| at);
    pad(
        &text[..end],
        spec.fill.unwrap_or(' '),
        spec.align.unwrap_or(align),
        spec.width,
    )
}

fn padded_number(negative: bool, digits: &str, spec: &Spec) -> String {
    let sign = match (negative, spec.sign) {
        (true, _) => "-",
        (false, Some('+')) => "+",
        (false, Some(' ')) => " ",
        _ => "",
    };
    let prefix = match (spec.alternate, spec.kind) {
        (true, Some('x')) => "0x",
        (true, Some('X')) => "0X",
        (true, Some('o')) => "0o",
        (true, Some('b')) => "0b",
        _ => "",
    };
    let digits = grouped(digits, spec);
    let zeros = spec.zero && spec.align.is_none();
    let (fill, align) = match zeros {
        true => (spec.fill.unwrap_or('0'), '='),
        false => (spec.fill.unwrap_or(' '), spec.align.unwrap_or('>')),
    };
    if align == '=' {
        let room = spec.width.saturating_sub(sign.len() + prefix.len());
        return format!("{sign}{prefix}{}", pad(&digits, fill, '>', room));
    }
    pad(&format!("{sign}{prefix}{digits}"), fill, align, spec.width)
}

/// The digits before the point in groups.
fn grouped(digits: &str, spec: &Spec) -> String {
    let Some(separator) = spec.grouping else {
        return digits.to_owned();
    };
    let size = match spec.kind {
        Some('x' | 'X' | 'o' | 'b') => 4,
        _ => 3,
    };
    let end = digits
        .find(|letter: char| !letter.is_ascii_hexdigit())
        .unwrap_or(digits.len());
    let mut out = String::new();
    for (at, digit) in digits[..end].chars().enumerate() {
        if at > 0 && (end - at) % size == 0 {
            out.push(separator);
        }
        out.push(digit);
    }
    out + &digits[end..]
}

/// The text with as many of `fill` beside it as it takes to be `width` wide.
pub(super) fn pad(text: &str, fill: char, align: char, width: usize) -> String {
    let room = width.saturating_sub(text.chars().count());
    let before = match align {
        '<' => 0,
        '^' => room / 2,
        _ => room,
    };
    let fills = |count: usize| std::iter::repeat_n(fill, count);
    fills(before)
        .chain(text.chars())
        .chain(fills(room - before))
        .collect()
}

/// `format.format(*args)`, in which the last may be the named ones.
pub(super) fn format(state: &State, format: &str, args: &[Value]) -> Result<String, Error> {
    let (by_place, by_name) = match args.split_last() {
        Some((last, rest)) if last.is_kwargs() => (rest, Some(Kwargs::try_from(last.clone())?)),
        _ => (args, None),
    };
    let mut fields = Fields {
        state,
        by_place,
        by_name,
        next: 0,
    };
    fields.fill(format, 0)
}

struct Fields<'f> {
    state: &'f State<'f, 'f>,
    by_place: &'f [Value],
    by_name: Option<Kwargs>,
    /// The next that has no name.
    next: usize,
}

impl Fields<'_> {
    fn fill(&mut self, format: &str, depth: usize) -> Result<String, Error> {
        if depth > FIELD_DEPTH_MAX {
            return Err(invalid("max string recursion exceeded"));
        }
        let mut out = String::new();
        let mut rest = format;
        while let Some(at) = rest.find(['{', '}']) {
            out.push_str(&rest[..at]);
            let bracket = &rest[at..at + 1];
            let after = &rest[at + 1..];
            if let Some(after) = after.strip_prefix(bracket) {
                out.push_str(bracket);
                rest = after;
                continue;
            }
            if bracket == "}" {
                return Err(invalid("single '}' encountered in format string"));
            }
            let end = field_end(after)?;
            out.push_str(&self.field(&after[..end], depth)?);
            within_bounds(out.len(), 0)?;
            rest = &after[end + 1..];
        }
        out.push_str(rest);
        Ok(out)
    }

    fn field(&mut self, field: &str, depth: usize) -> Result<String, Error> {
        let name_end = name_end(field);
        let (name, rest) = field.split_at(name_end);
        let (conversion, rest) = match rest.strip_prefix('!') {
            Some(rest) => (rest.chars().next(), rest.get(1..).unwrap_or_default()),
            None => (None, rest),
        };
        let value = self.value(name)?;
        let spec = self.fill(rest.strip_prefix(':').unwrap_or(rest), depth + 1)?;
        let converted = match conversion {
            None => value,
            Some('s') => Value::from(text(&value)?.into_owned()),
            Some('r') => Value::from(repr(&value)?),
            Some('a') => Value::from(ascii(&repr(&value)?)),
            Some(other) => return Err(invalid(format!("unknown conversion specifier '{other}'"))),
        };
        formatted(self.state, &converted, &spec)
    }

    /// The value of `name`, with its attributes and items: `0.a[b]`.
    fn value(&mut self, name: &str) -> Result<Value, Error> {
        let end = name.find(['.', '[']).unwrap_or(name.len());
        let (first, mut rest) = name.split_at(end);
        let mut value = self.first(first)?;
        while !rest.is_empty() {
            let (item, after) = match (rest.strip_prefix('.'), rest.strip_prefix('[')) {
                (Some(after), _) => after.split_at(after.find(['.', '[']).unwrap_or(after.len())),
                (_, Some(after)) => after
                    .split_once(']')
                    .ok_or_else(|| invalid("expected ']' in a field of the format string"))?,
                _ => return Err(invalid("only '.' or '[' may follow ']' in a field")),
            };
            value = match item.parse::<usize>() {
                Ok(index) => value.get_item_by_index(index)?,
                Err(_) => value.get_item(&Value::from(item))?,
            };
            rest = after;
        }
        Ok(value)
    }

    fn first(&mut self, name: &str) -> Result<Value, Error> {
        let index = match name.is_empty() {
            true => {
                self.next += 1;
                Some(self.next - 1)
            }
            false => name.parse().ok(),
        };
        let found = match (index, &self.by_name) {
            (Some(index), _) => self.by_place.get(index).cloned(),
            (None, Some(by_name)) if by_name.has(name) => Some(by_name.get(name)?),
            _ => None,
        };
        found.ok_or_else(|| {
            invalid(format!(
                "the format string has a field '{name}' without a value"
            ))
        })
    }
}

/// Where the field ends, whose specification may have fields.
fn field_end(text: &str) -> Result<usize, Error> {
    let mut depth = 0;
    for (at, letter) in text.char_indices() {
        match (letter, depth) {
            ('}', 0) => return Ok(at),
            ('}', _) => depth -= 1,
            ('{', _) => depth += 1,
            _ => {}
        }
    }
    Err(invalid("expected '}' before end of string"))
}

/// Where the name of a field ends: at the first `!` or `:` outside of brackets.
fn name_end(field: &str) -> usize {
    let mut in_brackets = false;
    for (at, letter) in field.char_indices() {
        match letter {
            '[' => in_brackets = true,
            ']' => in_brackets = false,
            '!' | ':' if !in_brackets => return at,
            _ => {}
        }
    }
    field.len()
}

/// `format(value, spec)`.
fn formatted(state: &State, value: &Value, spec: &str) -> Result<String, Error> {
    if spec.is_empty() {
        return text(value).map(|text| text.into_owned());
    }
    let spec = format_spec(spec)?;
    spec.pay(state)?;
    if let Some(text) = value.as_str() {
        return match (spec.kind, spec.align) {
            (None | Some('s'), Some('=')) => Err(invalid("'=' alignment not allowed in a text")),
            (None | Some('s'), _) => Ok(padded_text(text, &spec, '<')),
            (Some(kind), _) => Err(unknown_code(kind, value)),
        };
    }
    let is_truth = value.kind() == ValueKind::Bool;
    if !is_truth && value.kind() != ValueKind::Number {
        return Err(invalid(format!(
            "a {} takes no format specification",
            value.kind()
        )));
    }
    match spec.kind {
        None | Some('d' | 'b' | 'o' | 'x' | 'X' | 'n') if is_truth || value.is_integer() => {
            let (negative, digits) = in_base(whole(value, false)?, spec.kind.unwrap_or('d'));
            Ok(padded_number(negative, &digits, &spec))
        }
        Some('c') if value.is_integer() => Ok(padded_text(&letter(value)?, &spec, '<')),
        Some(kind @ ('e' | 'E' | 'f' | 'F' | 'g' | 'G' | 'n' | '%')) => {
            let (negative, digits) = digits_of_float(as_float(value)?, kind, &spec);
            Ok(padded_number(negative, &digits, &spec))
        }
        None => {
            let (negative, digits) = plain_float(as_float(value)?, &spec);
            Ok(padded_number(negative, &digits, &spec))
        }
        Some(kind) => Err(unknown_code(kind, value)),
    }
}

/// A number without a code: as `repr` has it, or with a precision nearly as `g` does, but never without a point or an
/// exponent.
fn plain_float(number: f64, spec: &Spec) -> (bool, String) {
    let (negative, size) = (number.is_sign_negative() && !number.is_nan(), number.abs());
    let digits = match spec.precision {
        Some(precision) if size.is_finite() => {
            let precision = precision.clamp(1, PRECISION_MAX);
            general(size, precision, precision - 1, spec.alternate)
        }
        _ => float(size),
    };
    let is_bare = digits.bytes().all(|byte| byte.is_ascii_digit());
    (negative, digits + if is_bare { ".0" } else { "" })
}

fn unknown_code(kind: char, value: &Value) -> Error {
    invalid(format!(
        "unknown format code '{kind}' for a {}",
        value.kind()
    ))
}

/// `[[fill]align][sign][#][0][width][grouping][.precision][type]`.
fn format_spec(text: &str) -> Result<Spec, Error> {
    let is_align = |letter: &char| "<>=^".contains(*letter);
    let mut spec = Spec::default();
    let mut letters = text.chars().peekable();
    let mut ahead = text.chars().skip(1);
    if ahead.next().as_ref().is_some_and(is_align) {
        spec.fill = letters.next();
    }
    spec.align = letters.next_if(is_align);
    spec.sign = letters.next_if(|letter| "+- ".contains(*letter));
    spec.alternate = letters.next_if_eq(&'#').is_some();
    spec.zero = letters.next_if_eq(&'0').is_some();
    spec.width = number(&mut letters)?.unwrap_or(0);
    spec.grouping = letters.next_if(|letter| ",_".contains(*letter));
    if letters.next_if_eq(&'.').is_some() {
        let digits = number(&mut letters)?;
        spec.precision = Some(digits.ok_or_else(|| invalid("format specifier missing precision"))?);
    }
    spec.kind = letters.next();
    match letters.next() {
        None => Ok(spec),
        Some(_) => Err(invalid(format!("invalid format specifier '{text}'"))),
    }
}
