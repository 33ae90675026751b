//! The methods of Python's `str`, and those of `list`, `tuple`, `dict` and numbers, that minijinja's library for Python
//! lacks or has in part.

use super::arguments::{Arguments, invalid};
use super::operators::sized;
use super::python_filters::replace;
use super::python_format::{format, pad};
use super::python_repr::{is_printable, within_bounds};
use minijinja::value::{Tuple, Value, ValueKind};
use minijinja::{Error, State};
use unicode_categories::UnicodeCategories;

/// Methods that change a list or a map. Python's Jinja refuses them in its sandbox.
const CHANGING: [&str; 13] = [
    "append",
    "clear",
    "extend",
    "insert",
    "pop",
    "popitem",
    "remove",
    "reverse",
    "setdefault",
    "sort",
    "update",
    "add",
    "discard",
];

/// Looks for the method here and then in that library.
pub(super) fn unknown_method(
    state: &mut State,
    value: &Value,
    method: &str,
    args: &[Value],
) -> Result<Value, Error> {
    let kind = value.kind();
    let is_container = matches!(kind, ValueKind::Seq | ValueKind::Iterable | ValueKind::Map);
    let is_item = || {
        value
            .get_attr(method)
            .is_ok_and(|item| !item.is_undefined())
    };
    if is_container && CHANGING.contains(&method) && !is_item() {
        return Err(invalid(format!(
            "'{method}' would change a {kind}, which templates may not"
        )));
    }
    // Every method may look at all of it.
    let looked_at = match value.as_str() {
        Some(text) => text.len() / 64,
        None => value.len().unwrap_or(0) / 2,
    };
    state.consume_fuel(looked_at as u64)?;
    let here = match (value.as_str(), kind) {
        (Some(text), _) => of_text(state, text, method, args),
        (None, ValueKind::Seq | ValueKind::Iterable) => of_list(state, value, method, args),
        (None, ValueKind::Map) if method == "copy" => Some(none(args).map(|()| value.clone())),
        (None, ValueKind::Number) => of_number(value, method, args),
        _ => None,
    };
    here.unwrap_or_else(|| {
        minijinja_contrib::pycompat::unknown_method_callback(state, value, method, args)
    })
}

/// Nothing was given.
fn none(args: &[Value]) -> Result<(), Error> {
    Arguments::bind(args, []).map(|_| ())
}

fn of_text(
    state: &State,
    text: &str,
    method: &str,
    args: &[Value],
) -> Option<Result<Value, Error>> {
    if let Some(holds) = predicate(text, method) {
        return Some(none(args).map(|()| holds.into()));
    }
    if let Some(changed) = recased(text, method) {
        return Some(none(args).map(|()| changed.into()));
    }
    Some(match method {
        "removeprefix" => affix(args, |part| text.strip_prefix(part).unwrap_or(text)),
        "removesuffix" => affix(args, |part| text.strip_suffix(part).unwrap_or(text)),
        "strip" | "lstrip" | "rstrip" => strip(text, method, args),
        "partition" => partition(args, |by| match text.split_once(by) {
            Some((before, after)) => [before, by, after],
            None => [text, "", ""],
        }),
        "rpartition" => partition(args, |by| match text.rsplit_once(by) {
            Some((before, after)) => [before, by, after],
            None => ["", "", text],
        }),
        "split" => split(text, args),
        "rsplit" => rsplit(text, args),
        "splitlines" => split_lines(text, args),
        "find" | "rfind" | "index" | "rindex" => find(text, method, args),
        "count" => count(text, args),
        "replace" => replace(state, text, args),
        "startswith" => affixed(text, args, |text, part| text.starts_with(part)),
        "endswith" => affixed(text, args, |text, part| text.ends_with(part)),
        "join" => join(text, args),
        "center" | "ljust" | "rjust" | "zfill" => padded(state, text, method, args),
        "expandtabs" => expand_tabs(text, args),
        "translate" => translate(text, args),
        "encode" => Arguments::bind(args, ["encoding", "errors"])
            .map(|_| Value::from_bytes(text.as_bytes().to_vec())),
        "format" => format(state, text, args).map(Value::from),
        _ => return None,
    })
}

/// The methods that ask about all letters.
fn predicate(text: &str, method: &str) -> Option<bool> {
    let all = |holds: fn(char) -> bool| !text.is_empty() && text.chars().all(holds);
    Some(match method {
        "isalpha" => all(UnicodeCategories::is_letter),
        "isdecimal" => all(UnicodeCategories::is_number_decimal_digit),
        "isdigit" => all(is_digit),
        "isnumeric" => all(UnicodeCategories::is_number),
        "isalnum" => all(|letter| letter.is_letter() || letter.is_number()),
        "isspace" => all(is_space),
        "isprintable" => text.chars().all(is_printable),
        "istitle" => is_title(text),
        "isidentifier" => {
            let is_first = |letter: char| letter == '_' || letter.is_letter();
            text.starts_with(is_first)
                && text.chars().all(|letter| {
                    is_first(letter) || letter.is_number_decimal_digit() || letter.is_mark()
                })
        }
        _ => return None,
    })
}

/// A digit, which may be a small one.
fn is_digit(letter: char) -> bool {
    let is_small = matches!(letter, '²' | '³' | '¹' | '⁰' | '⁴'..='⁹' | '₀'..='₉');
    letter.is_number_decimal_digit()
        || is_small
        || matches!(letter, '①'..='⑨' | '⑴'..='⑼' | '⒈'..='⒐')
}

/// White space as `str.isspace`, `strip` and `split` know it.
fn is_space(letter: char) -> bool {
    letter.is_whitespace() || matches!(letter, '\x1c'..='\x1f')
}

/// Whether words begin, and only begin, with a capital.
fn is_title(text: &str) -> bool {
    let (mut is_inside, mut has_letters) = (false, false);
    for letter in text.chars() {
        let is_capital = letter.is_uppercase() || letter.is_letter_titlecase();
        if (is_capital && is_inside) || (letter.is_lowercase() && !is_inside) {
            return false;
        }
        is_inside = is_capital || letter.is_lowercase();
        has_letters |= is_inside;
    }
    has_letters
}

fn recased(text: &str, method: &str) -> Option<String> {
    Some(match method {
        "swapcase" => text
            .chars()
            .flat_map(|letter| match letter.is_uppercase() {
                true => letter.to_lowercase().collect::<Vec<_>>(),
                false => letter.to_uppercase().collect(),
            })
            .collect(),
        "casefold" => text
            .to_lowercase()
            .replace('ß', "ss")
            .replace('ſ', "s")
            .replace('ς', "σ"),
        "title" => {
            let mut is_inside = false;
            let mut out = String::with_capacity(text.len());
            for letter in text.chars() {
                match is_inside {
                    true => out.extend(letter.to_lowercase()),
                    false => out.extend(letter.to_uppercase()),
                }
                is_inside =
                    letter.is_lowercase() || letter.is_uppercase() || letter.is_letter_titlecase();
            }
            out
        }
        _ => return None,
    })
}

fn affix<'t>(args: &'t [Value], of: impl Fn(&str) -> &'t str) -> Result<Value, Error> {
    let args = Arguments::bind(args, ["part"])?;
    Ok(of(args.text(0)?).into())
}

fn strip(text: &str, method: &str, args: &[Value]) -> Result<Value, Error> {
    let args = Arguments::bind(args, ["chars"])?;
    let letters: Option<Vec<char>> = match args.some(0) {
        Some(_) => Some(args.text(0)?.chars().collect()),
        None => None,
    };
    let is_stripped = |letter: char| match &letters {
        Some(letters) => letters.contains(&letter),
        None => is_space(letter),
    };
    let from = match method {
        "rstrip" => text,
        _ => text.trim_start_matches(is_stripped),
    };
    Ok(match method {
        "lstrip" => from,
        _ => from.trim_end_matches(is_stripped),
    }
    .into())
}

fn texts<'t>(texts: impl IntoIterator<Item = &'t str>) -> Value {
    texts.into_iter().map(Value::from).collect()
}

fn partition<'t>(args: &'t [Value], of: impl Fn(&'t str) -> [&'t str; 3]) -> Result<Value, Error> {
    let [by] = args else {
        return Err(invalid("exactly one separator is taken"));
    };
    match by.as_str() {
        Some("") => Err(empty_separator()),
        Some(by) => Ok(Tuple::from(of(by).map(Value::from)).into()),
        None => Err(invalid("the separator must be a text")),
    }
}

fn empty_separator() -> Error {
    invalid("empty separator")
}

/// The separator, if there is one, and the number of cuts, if there is a limit.
fn cuts(args: &Arguments<2>) -> Result<(Option<&str>, usize), Error> {
    let by = args.some(0).map(|_| args.text(0)).transpose()?;
    if by == Some("") {
        return Err(empty_separator());
    }
    let cuts = args.number(1)?.and_then(|cuts| usize::try_from(cuts).ok());
    Ok((by, cuts.unwrap_or(usize::MAX)))
}

/// `text.split(sep=None, maxsplit=-1)`; without a separator, runs of white space separate.
fn split(text: &str, args: &[Value]) -> Result<Value, Error> {
    let args = Arguments::bind(args, ["sep", "maxsplit"])?;
    let (by, cuts) = cuts(&args)?;
    let Some(by) = by else {
        let mut rest = text.trim_start_matches(is_space);
        let mut words = Vec::new();
        while !rest.is_empty() {
            let cut = rest.find(is_space).filter(|_| words.len() < cuts);
            let (word, after) = rest.split_at(cut.unwrap_or(rest.len()));
            words.push(word);
            rest = after.trim_start_matches(is_space);
        }
        return Ok(texts(words));
    };
    Ok(texts(text.splitn(cuts.saturating_add(1), by)))
}

/// The same from the end on.
fn rsplit(text: &str, args: &[Value]) -> Result<Value, Error> {
    let args = Arguments::bind(args, ["sep", "maxsplit"])?;
    let (by, cuts) = cuts(&args)?;
    let mut parts: Vec<&str> = Vec::new();
    match by {
        Some(by) => parts.extend(text.rsplitn(cuts.saturating_add(1), by)),
        None => {
            let mut rest = text.trim_end_matches(is_space);
            while !rest.is_empty() {
                let cut = rest.rfind(is_space).filter(|_| parts.len() < cuts);
                let Some(cut) = cut else {
                    parts.push(rest);
                    break;
                };
                parts.push(rest[cut..].trim_start_matches(is_space));
                rest = rest[..cut].trim_end_matches(is_space);
            }
        }
    }
    parts.reverse();
    Ok(texts(parts))
}

/// `text.splitlines(keepends=False)`.
fn split_lines(text: &str, args: &[Value]) -> Result<Value, Error> {
    let keeps_ends = Arguments::bind(args, ["keepends"])?.truth(0, false);
    let is_end = |letter: char| {
        matches!(
            letter,
            '\n' | '\r' | '\x0b' | '\x0c' | '\x1c'..='\x1e' | '\u{85}' | '\u{2028}' | '\u{2029}'
        )
    };
    let mut lines = Vec::new();
    let mut rest = text;
    while !rest.is_empty() {
        let line_end = rest.find(is_end).unwrap_or(rest.len());
        let after = &rest[line_end..];
        let end_length = match after.strip_prefix("\r\n") {
            Some(_) => 2,
            None => after.chars().next().map_or(0, char::len_utf8),
        };
        let kept = if keeps_ends {
            line_end + end_length
        } else {
            line_end
        };
        lines.push(&rest[..kept]);
        rest = &rest[line_end + end_length..];
    }
    Ok(texts(lines))
}

/// The part of the text between two places, as a slice has them, and the number of letters before it.
fn window<'t>(text: &'t str, args: &Arguments<3>) -> Result<Option<(usize, &'t str)>, Error> {
    if args.some(1).is_none() && args.some(2).is_none() {
        return Ok(Some((0, text)));
    }
    let length = text.chars().count();
    let place = |at: i64| match usize::try_from(at) {
        Ok(at) => at,
        Err(_) => length.saturating_sub(usize::try_from(at.unsigned_abs()).unwrap_or(usize::MAX)),
    };
    let start = args.number(1)?.map_or(0, place);
    let end = args.number(2)?.map_or(length, place).min(length);
    if start > end {
        return Ok(None);
    }
    let offset = |letters: usize| {
        text.char_indices()
            .nth(letters)
            .map_or(text.len(), |(at, _)| at)
    };
    Ok(Some((start, &text[offset(start)..offset(end)])))
}

fn find(text: &str, method: &str, args: &[Value]) -> Result<Value, Error> {
    let args = Arguments::bind(args, ["sub", "start", "end"])?;
    let part = args.text(0)?;
    let found = window(text, &args)?.and_then(|(before, within)| {
        let at = match method {
            "find" | "index" => within.find(part),
            _ => within.rfind(part),
        };
        at.map(|at| before + within[..at].chars().count())
    });
    match found {
        Some(at) => Ok(at.into()),
        None if method.ends_with("find") => Ok((-1).into()),
        None => Err(invalid("substring not found")),
    }
}

fn count(text: &str, args: &[Value]) -> Result<Value, Error> {
    let args = Arguments::bind(args, ["sub", "start", "end"])?;
    let part = args.text(0)?;
    let within = window(text, &args)?.map(|(_, within)| within);
    Ok(within
        .map_or(0, |within| within.matches(part).count())
        .into())
}

/// `startswith` and `endswith`: of a text, or of one of a tuple.
fn affixed(text: &str, args: &[Value], has: impl Fn(&str, &str) -> bool) -> Result<Value, Error> {
    let args = Arguments::bind(args, ["part", "start", "end"])?;
    let parts = args.required(0)?;
    let Some((_, within)) = window(text, &args)? else {
        return Ok(false.into());
    };
    if !parts.is_tuple() {
        return Ok(has(within, args.text(0)?).into());
    }
    for part in parts.try_iter()?.checked() {
        let part = part?;
        let part = part
            .as_str()
            .ok_or_else(|| invalid("the tuple must contain only texts"))?;
        if has(within, part) {
            return Ok(true.into());
        }
    }
    Ok(false.into())
}

fn join(text: &str, args: &[Value]) -> Result<Value, Error> {
    let args = Arguments::bind(args, ["iterable"])?;
    let mut out = String::new();
    for (at, item) in args.required(0)?.try_iter()?.checked().enumerate() {
        let item = item?;
        let Some(item) = item.as_str() else {
            let kind = item.kind();
            return Err(invalid(format!(
                "sequence item {at}: expected a text, found {kind}"
            )));
        };
        if at > 0 {
            out.push_str(text);
        }
        out.push_str(item);
        within_bounds(out.len(), 0)?;
    }
    Ok(out.into())
}

pub(super) fn padded(
    state: &State,
    text: &str,
    method: &str,
    args: &[Value],
) -> Result<Value, Error> {
    let args = Arguments::bind(args, ["width", "fillchar"])?;
    let width = args
        .number(0)?
        .ok_or_else(|| invalid("'width' is missing"))?;
    let width = usize::try_from(width).unwrap_or(0);
    let mut fills = args.text_or(1, " ")?.chars();
    let (Some(fill), None) = (fills.next(), fills.next()) else {
        return Err(invalid(
            "the fill character must be exactly one character long",
        ));
    };
    state.consume_fuel(width as u64 / 16)?;
    if method == "zfill" {
        let sign = &text[..usize::from(text.starts_with(['+', '-']))];
        let digits = pad(
            &text[sign.len()..],
            '0',
            '>',
            width.saturating_sub(sign.len()),
        );
        return Ok(format!("{sign}{digits}").into());
    }
    // Python puts the odd one to the left where the width is odd.
    let room = width.saturating_sub(text.chars().count());
    let before = match method {
        "ljust" => 0,
        "rjust" => room,
        _ => room / 2 + (room & width & 1),
    };
    let left = pad("", fill, '>', before);
    Ok(pad(&(left + text), fill, '<', width).into())
}

fn expand_tabs(text: &str, args: &[Value]) -> Result<Value, Error> {
    let size = Arguments::bind(args, ["tabsize"])?.number(0)?.unwrap_or(8);
    let size = usize::try_from(size).unwrap_or(0);
    let (mut out, mut column) = (String::with_capacity(text.len()), 0_usize);
    for letter in text.chars() {
        if letter == '\t' {
            let room = size.saturating_sub(column.checked_rem(size).unwrap_or(0));
            within_bounds(out.len().saturating_add(room), 0)?;
            out.extend(std::iter::repeat_n(' ', room));
            column += room;
        } else {
            out.push(letter);
            column = if matches!(letter, '\n' | '\r') {
                0
            } else {
                column + 1
            };
        }
    }
    Ok(out.into())
}

/// Letters by their number as another, a text, or nothing.
fn translate(text: &str, args: &[Value]) -> Result<Value, Error> {
    let args = Arguments::bind(args, ["table"])?;
    let table = args.required(0)?;
    let mut out = String::with_capacity(text.len());
    for letter in text.chars() {
        let other = table.get_item(&Value::from(letter as u32))?;
        let code = other.as_i64().and_then(|code| u32::try_from(code).ok());
        match (other.as_str(), code.and_then(char::from_u32)) {
            (Some(other), _) => out.push_str(other),
            (_, Some(other)) => out.push(other),
            _ if other.is_none() => {}
            _ => out.push(letter),
        }
        within_bounds(out.len(), 0)?;
    }
    Ok(out.into())
}

fn of_list(
    state: &State,
    value: &Value,
    method: &str,
    args: &[Value],
) -> Option<Result<Value, Error>> {
    Some(match method {
        "copy" => none(args).map(|()| value.clone()),
        "index" => index(state, value, args),
        "count" => Arguments::bind(args, ["value"]).and_then(|args| {
            let wanted = args.required(0)?;
            sized(state, wanted)?;
            let mut count = 0;
            for item in value.try_iter()?.checked() {
                count += usize::from(item? == *wanted);
            }
            Ok(count.into())
        }),
        _ => return None,
    })
}

fn index(state: &State, value: &Value, args: &[Value]) -> Result<Value, Error> {
    let args = Arguments::bind(args, ["value", "start", "end"])?;
    let wanted = args.required(0)?;
    sized(state, wanted)?;
    let length = value.len().unwrap_or(0) as i64;
    let place = |at: i64| if at < 0 { (at + length).max(0) } else { at };
    let start = place(args.number(1)?.unwrap_or(0));
    let end = place(args.number(2)?.unwrap_or(i64::MAX));
    for (at, item) in (0..).zip(value.try_iter()?.checked()) {
        if item? == *wanted && (start..end).contains(&at) {
            return Ok(at.into());
        }
    }
    Err(invalid("the value is not in the list"))
}

fn of_number(value: &Value, method: &str, args: &[Value]) -> Option<Result<Value, Error>> {
    let whole = i128::try_from(value.clone())
        .ok()
        .filter(|_| value.is_integer());
    let found: Value = match (method, whole) {
        ("is_integer", None) => {
            let number = f64::try_from(value.clone()).unwrap_or(f64::NAN);
            (number.fract() == 0.0).into()
        }
        ("bit_length", Some(whole)) => (128 - whole.unsigned_abs().leading_zeros()).into(),
        _ => return None,
    };
    Some(none(args).map(|()| found))
}
