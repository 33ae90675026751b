//! The filters of Python's Jinja that minijinja lacks, or whose arguments it takes otherwise.

use super::arguments::{Arguments, invalid};
use super::operators::sized;
use super::python_format::percent;
use super::python_repr::{text, within_bounds};
use super::wordwrap::wordwrap;
use minijinja::value::{Kwargs, Rest, Tuple, Value, ValueKind, ValueOrKwargs};
use minijinja::{Environment, Error, State, filters};
use std::borrow::Cow;

/// The arguments of a filter, of which the last may be those with names.
type Args = Rest<ValueOrKwargs>;
type Filtered = Result<Value, Error>;
type OnText = fn(&State, &str, &[Value]) -> Filtered;
type OnValue = fn(&State, Value, &[Value]) -> Filtered;

/// Adds them to the environment.
pub(super) fn add(environment: &mut Environment<'_>) {
    let on_text: [(&'static str, OnText); 8] = [
        ("replace", replace),
        ("truncate", truncate),
        ("wordwrap", wordwrap),
        ("indent", indent),
        ("center", center),
        ("wordcount", |_, text, _| Ok(wordcount(text).into())),
        ("striptags", |_, text, _| {
            Ok(minijinja_contrib::filters::striptags(text.to_owned()).into())
        }),
        ("forceescape", |_, text, _| escaped(text)),
    ];
    for (name, filter) in on_text {
        let filter = move |state: &State, value: Value, args: Args| {
            filter(state, &text(&value)?, &args.into_values())
        };
        environment.add_filter(name, filter);
    }
    let on_values: [(&'static str, OnValue); 14] = [
        ("string", |_, value, _| Ok(text(&value)?.into())),
        ("list", list),
        ("default", default),
        ("d", default),
        ("batch", batch),
        ("int", |_, value, args| int(&value, args)),
        ("float", |_, value, args| float(&value, args)),
        ("attr", attr),
        ("format", format),
        ("filesizeformat", filesizeformat),
        ("urlencode", |_, value, _| urlencode(&value)),
        ("xmlattr", |_, value, args| xmlattr(&value, args)),
        ("escape", escape),
        ("e", escape),
    ];
    for (name, filter) in on_values {
        let filter = move |state: &State, value: Value, args: Args| {
            filter(state, value, &args.into_values())
        };
        environment.add_filter(name, filter);
    }
    environment.add_filter("join", join);
    named(
        environment,
        "sort",
        filters::sort,
        ["reverse", "case_sensitive", "attribute"],
    );
    named(
        environment,
        "dictsort",
        dictsort,
        ["case_sensitive", "by", "reverse"],
    );
    named(
        environment,
        "unique",
        filters::unique,
        ["case_sensitive", "attribute", ""],
    );
    named(
        environment,
        "min",
        filters::min,
        ["case_sensitive", "attribute", ""],
    );
    named(
        environment,
        "max",
        filters::max,
        ["case_sensitive", "attribute", ""],
    );
}

/// A filter of minijinja's that takes arguments only by name.
fn named(
    environment: &mut Environment<'_>,
    filter: &'static str,
    of: fn(&State, Value, Kwargs) -> Filtered,
    names: [&'static str; 3],
) {
    environment.add_filter(filter, move |state: &State, value: Value, args: Args| {
        // They compare its items.
        sized(state, &value)?;
        let args = Arguments::bind(&args.into_values(), names)?;
        let given = (0..3).filter_map(|at| Some((names[at], args.given(at)?.clone())));
        of(state, value, given.collect())
    });
}

fn dictsort(state: &State, value: Value, args: Kwargs) -> Filtered {
    if let Some(by) = args.peek::<Option<&str>>("by")?
        && !matches!(by, "key" | "value")
    {
        return Err(invalid("a map is sorted by \"key\" or by \"value\""));
    }
    // minijinja's own is paid for by the item, this one is not.
    state.consume_fuel(8 * value.len().unwrap_or(0) as u64)?;
    filters::dictsort(&value, args)
}

fn list(state: &State, value: Value, _: &[Value]) -> Filtered {
    match value.is_none() {
        true => Err(invalid("none is not iterable")),
        false => filters::list(state, value),
    }
}

fn join(state: &mut State, value: Value, args: Args) -> Filtered {
    let args = Arguments::bind(&args.into_values(), ["d", "attribute"])?;
    let between = args.given(0).map_or(Ok(Cow::Borrowed("")), text)?;
    let items = match args.some(1) {
        Some(attribute) => {
            let attribute = [("attribute", attribute.clone())]
                .into_iter()
                .collect::<Kwargs>();
            state.apply_filter("map", &[value, attribute.into()])?
        }
        None => value,
    };
    let mut out = String::new();
    let letters = items
        .as_str()
        .map(|text| text.chars().map(Value::from).collect::<Value>());
    for (at, item) in letters.unwrap_or(items).try_iter()?.checked().enumerate() {
        if at > 0 {
            out.push_str(&between);
        }
        out.push_str(&text(&item?)?);
        within_bounds(out.len(), 0)?;
    }
    Ok(out.into())
}

fn default(_: &State, value: Value, args: &[Value]) -> Filtered {
    let args = Arguments::bind(args, ["default_value", "boolean"])?;
    match value.is_undefined() || (args.truth(1, false) && !value.is_true()) {
        true => Ok(args.given(0).cloned().unwrap_or_else(|| "".into())),
        false => Ok(value),
    }
}

/// `text.replace(old, new, count)`, as the filter and as the method.
pub(super) fn replace(state: &State, whole: &str, args: &[Value]) -> Filtered {
    let args = Arguments::bind(args, ["old", "new", "count"])?;
    let (old, new) = (text(args.required(0)?)?, text(args.required(1)?)?);
    let count = args
        .number(2)?
        .and_then(|count| usize::try_from(count).ok());
    let count = count
        .unwrap_or(usize::MAX)
        .min(whole.matches(&*old).count());
    // Before the room is taken.
    state.consume_fuel(count.saturating_mul(new.len()) as u64 / 64)?;
    Ok(whole.replacen(&*old, &new, count).into())
}

fn truncate(_: &State, whole: &str, args: &[Value]) -> Filtered {
    let args = Arguments::bind(args, ["length", "killwords", "end", "leeway"])?;
    let end = args.text_or(2, "...")?;
    let length = args.number(0)?.unwrap_or(255);
    let leeway = args.number(3)?.unwrap_or(5);
    let kept = length.saturating_sub(end.chars().count() as i64);
    let (Ok(kept), 0..) = (usize::try_from(kept), leeway) else {
        return Err(invalid(
            "'length' must be at least that of 'end', and 'leeway' at least 0",
        ));
    };
    if whole.chars().count() as i64 <= length.saturating_add(leeway) {
        return Ok(whole.into());
    }
    let cut = whole
        .char_indices()
        .nth(kept)
        .map_or(whole.len(), |(at, _)| at);
    let cut = &whole[..cut];
    let words = match args.truth(1, false) {
        true => cut,
        false => cut.rsplit_once(' ').map_or(cut, |(before, _)| before),
    };
    Ok(format!("{words}{end}").into())
}

fn indent(state: &State, whole: &str, args: &[Value]) -> Filtered {
    let args = Arguments::bind(args, ["width", "first", "blank"])?;
    let unit = match args.given(0).and_then(Value::as_str) {
        Some(unit) => Cow::Borrowed(unit),
        None => {
            let width = usize::try_from(args.number(0)?.unwrap_or(4)).unwrap_or(0);
            state.consume_fuel(width as u64 / 64)?;
            Cow::Owned(" ".repeat(width))
        }
    };
    let (first, blank) = (args.truth(1, false), args.truth(2, false));
    let mut out = String::new();
    for (at, line) in whole.split('\n').enumerate() {
        if at > 0 {
            out.push('\n');
        }
        if (at == 0 && first) || (at > 0 && (blank || !line.is_empty())) {
            out.push_str(&unit);
        }
        out.push_str(line);
        within_bounds(out.len(), 0)?;
    }
    Ok(out.into())
}

fn center(state: &State, whole: &str, args: &[Value]) -> Filtered {
    let width = Arguments::bind(args, ["width"])?.number(0)?.unwrap_or(80);
    super::python_text::padded(state, whole, "center", &[width.into()])
}

/// Words are what consists of letters, digits and `_`.
fn wordcount(whole: &str) -> usize {
    let is_between = |letter: char| !letter.is_alphanumeric() && letter != '_';
    whole
        .split(is_between)
        .filter(|word| !word.is_empty())
        .count()
}

fn filesizeformat(_: &State, value: Value, args: &[Value]) -> Filtered {
    let args = Arguments::bind(args, ["binary"])?;
    let size = as_float(&value).ok_or_else(|| invalid("a size must be a number"))?;
    let binary = args.truth(0, false);
    let base: f64 = if binary { 1024.0 } else { 1000.0 };
    if size == 1.0 {
        return Ok("1 Byte".into());
    }
    if size < base {
        return Ok(format!("{} Bytes", size.trunc()).into());
    }
    let names = ["k", "M", "G", "T", "P", "E", "Z", "Y"];
    let mut scaled = size / base;
    let mut names = names.into_iter();
    let mut name = names.next().unwrap_or_default();
    while scaled >= base {
        let Some(next) = names.next() else { break };
        (name, scaled) = (next, scaled / base);
    }
    Ok(match binary {
        true => format!("{scaled:.1} {}iB", name.to_uppercase()),
        false => format!("{scaled:.1} {name}B"),
    }
    .into())
}

/// A text in percent escapes, or pairs as the query of an address.
fn urlencode(value: &Value) -> Filtered {
    let is_pairs = matches!(
        value.kind(),
        ValueKind::Map | ValueKind::Seq | ValueKind::Iterable
    );
    if !is_pairs {
        return Ok(quoted(&text(value)?, false)?.into());
    }
    let mut out = String::new();
    for item in value.try_iter()?.checked() {
        let item = item?;
        let (name, member) = match value.kind() {
            ValueKind::Map => (item.clone(), value.get_item(&item)?),
            _ => (item.get_item_by_index(0)?, item.get_item_by_index(1)?),
        };
        if !out.is_empty() {
            out.push('&');
        }
        out += &format!(
            "{}={}",
            quoted(&text(&name)?, true)?,
            quoted(&text(&member)?, true)?
        );
        within_bounds(out.len(), 0)?;
    }
    Ok(out.into())
}

fn quoted(whole: &str, in_query: bool) -> Result<String, Error> {
    let mut out = String::new();
    for byte in whole.bytes() {
        match byte {
            b'a'..=b'z' | b'A'..=b'Z' | b'0'..=b'9' | b'_' | b'.' | b'-' | b'~' => {
                out.push(char::from(byte));
            }
            b'/' if !in_query => out.push('/'),
            b' ' if in_query => out.push('+'),
            byte => out += &format!("%{byte:02X}"),
        }
        within_bounds(out.len(), 0)?;
    }
    Ok(out)
}

fn xmlattr(value: &Value, args: &[Value]) -> Filtered {
    let has_space = Arguments::bind(args, ["autospace"])?.truth(0, true);
    let mut out = String::new();
    for name in value.try_iter()?.checked() {
        let name = name?;
        let member = value.get_item(&name)?;
        if member.is_none() || member.is_undefined() {
            continue;
        }
        let name = text(&name)?;
        if name.contains(|letter: char| letter.is_whitespace() || "/>=".contains(letter)) {
            return Err(invalid(format!(
                "invalid character in attribute name: '{name}'"
            )));
        }
        if has_space || !out.is_empty() {
            out.push(' ');
        }
        out += &format!("{}=\"{}\"", escaped(&name)?, escaped(&text(&member)?)?);
        within_bounds(out.len(), 0)?;
    }
    Ok(out.into())
}

fn escape(_: &State, value: Value, _: &[Value]) -> Filtered {
    match value.is_safe() {
        true => Ok(value),
        false => escaped(&text(&value)?),
    }
}

/// The text as HTML writes it, in the entities of Python's markupsafe.
pub(super) fn escaped(whole: &str) -> Filtered {
    let mut out = String::with_capacity(whole.len());
    for letter in whole.chars() {
        match letter {
            '&' => out.push_str("&amp;"),
            '<' => out.push_str("&lt;"),
            '>' => out.push_str("&gt;"),
            '"' => out.push_str("&#34;"),
            '\'' => out.push_str("&#39;"),
            letter => out.push(letter),
        }
        within_bounds(out.len(), 0)?;
    }
    Ok(Value::from_safe_string(out))
}

/// `int(value, base)`, or of a text that is a fraction what stands before the point, or the default.
fn int(value: &Value, args: &[Value]) -> Filtered {
    let args = Arguments::bind(args, ["default", "base"])?;
    let base = args
        .number(1)?
        .and_then(|base| u32::try_from(base).ok())
        .unwrap_or(10);
    let whole = match value.as_str() {
        Some(text) => parse_int(text, base),
        None if value.is_integer() => return Ok(value.clone()),
        None => None,
    };
    let of_float = || as_float(value).filter(|number| number.is_finite());
    Ok(
        match whole.or_else(|| of_float().map(|number| number.trunc() as i128)) {
            Some(whole) => i64::try_from(whole).map_or_else(|_| whole.into(), Value::from),
            None => args.given(0).cloned().unwrap_or_else(|| 0.into()),
        },
    )
}

/// A whole number in a base, or, where the base is 0, in that of its prefix.
fn parse_int(text: &str, base: u32) -> Option<i128> {
    let text = text.trim();
    let (sign, digits) = match text.strip_prefix('-') {
        Some(digits) => ("-", digits),
        None => ("", text.strip_prefix('+').unwrap_or(text)),
    };
    let prefixes = [
        ("0x", 16),
        ("0X", 16),
        ("0o", 8),
        ("0O", 8),
        ("0b", 2),
        ("0B", 2),
    ];
    let prefixed = prefixes.iter().find_map(|(prefix, of)| {
        let digits = digits.strip_prefix(prefix)?;
        (base == 0 || base == *of).then_some((digits.strip_prefix('_').unwrap_or(digits), *of))
    });
    let (digits, base) = prefixed.unwrap_or((digits, if base == 0 { 10 } else { base }));
    let is_wrong =
        digits.starts_with(['_', '+', '-']) || digits.ends_with('_') || digits.contains("__");
    if is_wrong || !(2..=36).contains(&base) {
        return None;
    }
    i128::from_str_radix(&format!("{sign}{}", digits.replace('_', "")), base).ok()
}

fn float(value: &Value, args: &[Value]) -> Filtered {
    let args = Arguments::bind(args, ["default"])?;
    Ok(match as_float(value) {
        Some(number) => number.into(),
        None => args.given(0).cloned().unwrap_or_else(|| 0.0.into()),
    })
}

/// `float(value)`.
fn as_float(value: &Value) -> Option<f64> {
    match (value.as_str(), value.kind()) {
        (Some(text), _) => text.trim().replace('_', "").parse().ok(),
        (None, ValueKind::Number) => f64::try_from(value.clone()).ok(),
        (None, ValueKind::Bool) => Some(if value.is_true() { 1.0 } else { 0.0 }),
        _ => None,
    }
}

/// An attribute, which the items of a map are not.
fn attr(_: &State, value: Value, args: &[Value]) -> Filtered {
    let args = Arguments::bind(args, ["name"])?;
    match value.kind() {
        ValueKind::Map => Ok(Value::UNDEFINED),
        _ => value.get_attr(args.text(0)?),
    }
}

fn format(state: &State, value: Value, args: &[Value]) -> Filtered {
    let values = match args {
        [named] if named.is_kwargs() => named.clone(),
        [.., last] if last.is_kwargs() => {
            return Err(invalid("values are given either by place or by name"));
        }
        args => Value::from(Tuple::from(args.to_vec())),
    };
    Ok(percent(state, &text(&value)?, &values)?.into())
}

fn batch(state: &State, value: Value, args: &[Value]) -> Filtered {
    let args = Arguments::bind(args, ["linecount", "fill_with"])?;
    let count = args
        .number(0)?
        .and_then(|count| usize::try_from(count).ok());
    let count = count.ok_or_else(|| invalid("'linecount' must be a positive number"))?;
    filters::batch(state, value, count, args.some(1).cloned())
}
