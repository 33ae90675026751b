//! Methods of Python's `str` that neither minijinja nor its library for Python has.

use minijinja::value::{Value, from_args};
use minijinja::{Error, ErrorKind, State};

/// Looks for the method here and then in that library.
pub(super) fn unknown_method(
    state: &mut State,
    value: &Value,
    method: &str,
    args: &[Value],
) -> Result<Value, Error> {
    if let Some(text) = value.as_str()
        && let Some(result) = of_text(text, method, args)
    {
        return result;
    }
    minijinja_contrib::pycompat::unknown_method_callback(state, value, method, args)
}

fn of_text(text: &str, method: &str, args: &[Value]) -> Option<Result<Value, Error>> {
    Some(match method {
        "removeprefix" => one(args).map(|part| text.strip_prefix(part).unwrap_or(text).into()),
        "removesuffix" => one(args).map(|part| text.strip_suffix(part).unwrap_or(text).into()),
        "partition" => separator(args).map(|by| match text.split_once(by) {
            Some((before, after)) => texts([before, by, after]),
            None => texts([text, "", ""]),
        }),
        "rpartition" => separator(args).map(|by| match text.rsplit_once(by) {
            Some((before, after)) => texts([before, by, after]),
            None => texts(["", "", text]),
        }),
        "rsplit" => rsplit(text, args),
        _ => return None,
    })
}

fn texts<'t>(texts: impl IntoIterator<Item = &'t str>) -> Value {
    texts.into_iter().map(Value::from).collect()
}

fn one(args: &[Value]) -> Result<&str, Error> {
    let (part,) = from_args(args)?;
    Ok(part)
}

fn separator(args: &[Value]) -> Result<&str, Error> {
    match one(args)? {
        "" => Err(empty_separator()),
        by => Ok(by),
    }
}

fn empty_separator() -> Error {
    Error::new(ErrorKind::InvalidOperation, "empty separator")
}

/// `text.rsplit(sep=None, maxsplit=-1)`; without a separator, runs of white space separate.
fn rsplit(text: &str, args: &[Value]) -> Result<Value, Error> {
    let (by, splits): (Option<&str>, Option<i64>) = from_args(args)?;
    let splits = splits.and_then(|splits| usize::try_from(splits).ok());
    let mut parts: Vec<&str> = match by {
        Some("") => return Err(empty_separator()),
        Some(by) => text
            .rsplitn(
                splits.map_or(usize::MAX, |splits| splits.saturating_add(1)),
                by,
            )
            .collect(),
        None => rsplit_space(text, splits.unwrap_or(usize::MAX)),
    };
    parts.reverse();
    Ok(texts(parts))
}

/// The words from the last on; what is left after `splits` of them is one more.
fn rsplit_space(text: &str, splits: usize) -> Vec<&str> {
    let mut rest = text.trim_end();
    let mut words = Vec::new();
    while !rest.is_empty() {
        let cut = rest
            .rfind(char::is_whitespace)
            .filter(|_| words.len() < splits);
        let Some(cut) = cut else {
            words.push(rest);
            break;
        };
        let word = rest[cut..].trim_start();
        words.push(word);
        rest = rest[..cut].trim_end();
    }
    words
}
