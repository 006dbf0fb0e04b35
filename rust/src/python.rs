//! Python where templates see it and minijinja-contrib's pycompat has it not.

use std::ffi::CString;

use minijinja::value::{from_args, ValueKind};
use minijinja::{Error, ErrorKind, State, Value};
use minijinja_contrib::pycompat;

/// Methods of str and dict.
pub fn method(state: &mut State, value: &Value, name: &str, args: &[Value]) -> Result<Value, Error> {
    match value.as_str().map(|text| str_method(text, name, args)) {
        Some(Ok(Some(result))) => Ok(result),
        Some(Err(error)) => Err(error),
        _ => pycompat::unknown_method_callback(state, value, name, args),
    }
}

fn str_method(text: &str, name: &str, args: &[Value]) -> Result<Option<Value>, Error> {
    Ok(Some(match name {
        "removeprefix" => {
            let (prefix,): (&str,) = from_args(args)?;
            text.strip_prefix(prefix).unwrap_or(text).into()
        }
        "removesuffix" => {
            let (suffix,): (&str,) = from_args(args)?;
            text.strip_suffix(suffix).unwrap_or(text).into()
        }
        "partition" => {
            let (separator,): (&str,) = from_args(args)?;
            let (head, tail) = text.split_once(separator).unwrap_or((text, ""));
            strings([head, if head.len() < text.len() { separator } else { "" }, tail])
        }
        "rpartition" => {
            let (separator,): (&str,) = from_args(args)?;
            let (head, tail) = text.rsplit_once(separator).unwrap_or(("", text));
            strings([head, if tail.len() < text.len() { separator } else { "" }, tail])
        }
        "rsplit" => {
            let (separator, splits): (&str, Option<usize>) = from_args(args)?;
            let mut parts: Vec<&str> = match splits {
                Some(splits) => text.rsplitn(splits.saturating_add(1), separator).collect(),
                None => text.rsplit(separator).collect(),
            };
            parts.reverse();
            strings(parts)
        }
        _ => return Ok(None),
    }))
}

fn strings<'a>(texts: impl IntoIterator<Item = &'a str>) -> Value {
    texts.into_iter().map(Value::from).collect()
}

/// `is sequence`: what has a length and takes an index in Python, so text and dicts as well.
pub fn is_sequence(value: &Value) -> bool {
    use ValueKind::{Bytes, Map, Seq, String, Undefined};
    matches!(value.kind(), Bytes | Map | Seq | String | Undefined)
}

/// `is iterable`: not None, over which minijinja would loop.
pub fn is_iterable(value: &Value) -> bool {
    !value.is_none() && value.try_iter().is_ok()
}

/// `strftime_now(format)`: the local time, laid out by the C library as Python's datetime does.
pub fn strftime_now(format: &str) -> Result<String, Error> {
    // One character more, because strftime has no other way to tell an empty result from one that did not fit.
    let format = CString::new(format!("{format}."))
        .map_err(|_| Error::new(ErrorKind::InvalidOperation, "strftime_now: NUL in the format"))?;
    let mut buffer = [0u8; 1024];
    let size = unsafe {
        let now = libc::time(std::ptr::null_mut());
        let mut local: libc::tm = std::mem::zeroed();
        libc::localtime_r(&now, &mut local);
        libc::strftime(buffer.as_mut_ptr().cast(), buffer.len(), format.as_ptr(), &local)
    };
    if size == 0 {
        return Err(Error::new(ErrorKind::InvalidOperation, "strftime_now: the result is too long"));
    }
    Ok(String::from_utf8_lossy(&buffer[..size - 1]).into_owned())
}

/// `repr(value)`: the shortest digits that read back the same, with an exponent below 1e-4 and from 1e16 on.
pub fn float_repr(value: f64) -> String {
    let scientific = format!("{value:e}");
    let (digits, exponent) = scientific.split_once('e').unwrap_or((&scientific, "0"));
    match exponent.parse::<i32>().unwrap_or(0) {
        -4..=15 => format!("{value:?}"),
        small @ ..=-5 => format!("{digits}e-{:02}", -small),
        large => format!("{digits}e+{large:02}"),
    }
}
